"""The codec seam: what every method of handing context over looks like from outside.

::

    Context --encode--> payload (bytes) --decode--> Memory

``protocols`` declares it, ``registry`` finds installed codecs, ``folder`` saves and loads them.
"""

from ilcp.codec.context import Context
from ilcp.codec.folder import HubCodec, load, save
from ilcp.codec.memory import Memory
from ilcp.codec.protocols import Codec
from ilcp.codec.registry import codec_class, codec_names
from ilcp.codec.spec import CodecSpec, Trained

__all__ = [
    "Codec",
    "CodecSpec",
    "Context",
    "HubCodec",
    "Memory",
    "Trained",
    "codec_class",
    "codec_names",
    "load",
    "save",
]
