"""The codec seam: what every method of handing context over looks like from outside.

::

    Context --encode--> payload (bytes) --decode--> Memory: SoftPrompt, TextMemory or CacheMemory

``protocols`` declares it, ``registry`` finds installed codecs, ``folder`` saves and loads them, and ``ilcp.testing``
checks whether a codec keeps what it has to.
"""

from ilcp.codec.context import Context
from ilcp.codec.folder import HubCodec, load, save
from ilcp.codec.memory import Memory, SoftPrompt, TextMemory
from ilcp.codec.protocols import Codec, TrainableCodec, is_trainable
from ilcp.codec.registry import codec_class, codec_names
from ilcp.codec.spec import CodecSpec, Trained

__all__ = [
    "Codec",
    "CodecSpec",
    "Context",
    "HubCodec",
    "Memory",
    "SoftPrompt",
    "TextMemory",
    "TrainableCodec",
    "Trained",
    "codec_class",
    "codec_names",
    "is_trainable",
    "load",
    "save",
]
