"""The cache as a message: a model's keys and values, exact or in fewer bits, for the same model elsewhere."""

from ilcp_codecs.kv.codecs import ExactCodec, Int4Codec, Int8Codec, KvCodec
from ilcp_codecs.kv.pca import PcaCodec

__all__ = ["ExactCodec", "Int4Codec", "Int8Codec", "KvCodec", "PcaCodec"]
