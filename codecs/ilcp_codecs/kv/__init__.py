"""The cache as a message: for the same model, exact, in fewer bits or of fewer tokens; mapped for another model."""

from ilcp_codecs.kv.aligned import AlignedCodec
from ilcp_codecs.kv.aligning import Aligner
from ilcp_codecs.kv.codecs import ExactCodec, Int4Codec, Int8Codec, KvCodec
from ilcp_codecs.kv.compact import CompactCodec
from ilcp_codecs.kv.pca import PcaCodec

__all__ = ["AlignedCodec", "Aligner", "CompactCodec", "ExactCodec", "Int4Codec", "Int8Codec", "KvCodec", "PcaCodec"]
