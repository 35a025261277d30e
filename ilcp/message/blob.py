"""Blobs: the names, in a message, of bytes that are too many for one and travel beside it."""

import hashlib
from typing import Protocol, Self

import msgspec

from ilcp.message.checks import require_bytes, require_int

__all__ = ["BLOB_DIGEST_BYTES", "MAX_BLOB_BYTES", "Blob", "Blobs", "blob_hash"]

BLOB_DIGEST_BYTES = 32  # 256 bits: the name is an address, so nobody may find two contents for one
# 64 GiB: the exact cache of 131,072 tokens in 80 layers, 8 heads of 128, keys and values, 16 bits, has 40 GiB.
MAX_BLOB_BYTES = 2**36


class Blob(msgspec.Struct, frozen=True):
    """The name of a blob: how many bytes it has, and their BLAKE2b of 32 bytes, unkeyed.

    Raises:
        EncodeError: a size outside 1 .. 2**36, or a digest that is not 32 bytes.
    """

    size_bytes: int
    digest: bytes

    def __post_init__(self) -> None:
        require_int("blob_bytes", self.size_bytes, 1, MAX_BLOB_BYTES)
        require_bytes("blob_digest", self.digest, BLOB_DIGEST_BYTES, BLOB_DIGEST_BYTES)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Self:
        """Names the blob that ``data`` is.

        Raises:
            EncodeError: no bytes at all, or more than 2**36.
        """
        return cls(memoryview(data).nbytes, blob_hash(data).digest())


def blob_hash(begun: bytes | bytearray | memoryview = b"") -> hashlib.blake2b:
    """Begins the hash whose digest names a blob."""
    return hashlib.blake2b(begun, digest_size=BLOB_DIGEST_BYTES)


class Blobs(Protocol):
    """Where blobs are put and found by their names, as an open connection of ``ilcp.transport`` is."""

    def put_blob(self, data: bytes, /) -> Blob:
        """Keeps the bytes, and returns their name."""
        ...

    def get_blob(self, blob: Blob, /) -> bytes:
        """Returns the bytes of that name, checked."""
        ...
