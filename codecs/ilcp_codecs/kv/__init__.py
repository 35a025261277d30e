"""The cache as a message, for the same model elsewhere: keys and values, exact, in fewer bits, or of fewer tokens."""

from ilcp_codecs.kv.codecs import ExactCodec, Int4Codec, Int8Codec, KvCodec
from ilcp_codecs.kv.compact import CompactCodec
from ilcp_codecs.kv.pca import PcaCodec

__all__ = ["CompactCodec", "ExactCodec", "Int4Codec", "Int8Codec", "KvCodec", "PcaCodec"]
