"""The baselines: text as the payload, whole, cut to a byte budget, or compressed.

They are codecs like any other, go through the same message, and fit every receiver: their memory is text, which the
receiver reads with its own tokenizer. All but ``LmCodec``, which codes under the sender's model, fit every sender too.
"""

from ilcp_codecs.text.codecs import HeadCodec, PlainCodec, TailCodec, ZstdCodec
from ilcp_codecs.text.lm import LmCodec

__all__ = ["HeadCodec", "LmCodec", "PlainCodec", "TailCodec", "ZstdCodec"]
