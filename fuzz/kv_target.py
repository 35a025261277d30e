"""``decode`` of the codecs of keys and values, on any container.

The first byte of an input picks the codec. Where it is 128 or more the others are the container; else they are a header
and, behind a null, the planes: the target writes what stands before the header and its check, so that what is behind
the check is reached.
"""

import struct
from hashlib import blake2b

from fuzz.limits import Limits
from ilcp.codec.memory import CacheMemory
from ilcp.errors import DecodeError
from ilcp.identity import ModelIdentity
from ilcp_codecs.kv import ExactCodec, Int4Codec, Int8Codec
from ilcp_codecs.kv.container import MAGIC, Layer, Shape

__all__ = ["one_input"]

MODEL = ModelIdentity("a", "b", "c", "full")
SHAPE = Shape((Layer(1, 4, 4, 0, 0),), ((1.0, 0.1),), 512)
MOST_BYTES = 512 * 8 * 4
CODECS = [kind(MODEL, SHAPE) for kind in (ExactCodec, Int8Codec, Int4Codec)]
LIMITS = Limits(factor=64, more_bytes=16 * MOST_BYTES, floor_ms=10.0)


def one_input(data: bytes) -> None:
    """Fails where a container brings out anything but finite keys and values within the limit, or a refusal."""
    which, body = (data[0], data[1:]) if data else (0, b"")
    codec, payload = CODECS[which % len(CODECS)], body if which >= 128 else _checked(body)
    try:
        memory = LIMITS.of(payload, codec.decode, payload)
    except DecodeError as error:
        if "expected " not in str(error):
            raise
        return
    assert isinstance(memory, CacheMemory)
    assert memory.kv.size_bytes <= MOST_BYTES
    assert all(bool(each.isfinite().all()) for each in (*memory.kv.keys, *memory.kv.values))


def _checked(body: bytes) -> bytes:
    head, _, planes = body.partition(b"\0")
    begin = MAGIC + struct.pack("<I", len(head)) + head
    return begin + blake2b(begin, digest_size=16).digest() + planes
