"""The baselines: text as the payload, whole, cut to a byte budget, or compressed.

They are codecs like any other, go through the same message, and fit every pair: their memory is text, which the
receiver reads with its own tokenizer.
"""

from ilcp_codecs.text.codecs import HeadCodec, PlainCodec, TailCodec, ZstdCodec

__all__ = ["HeadCodec", "PlainCodec", "TailCodec", "ZstdCodec"]
