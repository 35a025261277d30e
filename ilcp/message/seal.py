"""Seals: the id of a message that is sealed or encrypted, and when it ceases to be valid."""

import os
import time
from typing import Self

import msgspec

from ilcp.errors import ConfigError
from ilcp.message.checks import MAX_UNIX_S, require_bytes, require_int, require_now

__all__ = ["HANDOFF_ID_BYTES", "MAX_EXPIRES_UNIX_S", "MIN_EXPIRES_UNIX_S", "Seal"]

HANDOFF_ID_BYTES = 8  # random ids of one receiver's unexpired messages; a clash only drops a message as a duplicate
MIN_EXPIRES_UNIX_S = 2**16  # msgpack shortens a smaller number to 1 to 3 bytes; it is 18 hours after 1970 began
MAX_EXPIRES_UNIX_S = MAX_UNIX_S


class Seal(msgspec.Struct, frozen=True):
    """The id of a sealed message, and the second at which it ceases to be valid.

    Raises:
        EncodeError: an id that is not 8 bytes, or an expiry outside 2**16 .. 2**32 - 1.
    """

    handoff_id: bytes
    expires_unix_s: int

    def __post_init__(self) -> None:
        require_bytes("handoff_id", self.handoff_id, HANDOFF_ID_BYTES, HANDOFF_ID_BYTES)
        require_int("expires_unix_s", self.expires_unix_s, MIN_EXPIRES_UNIX_S, MAX_EXPIRES_UNIX_S)

    @classmethod
    def fresh(cls, *, ttl_s: int, now_unix_s: int | None = None) -> Self:
        """Makes a seal with a random id that expires `ttl_s` seconds from now (the system's clock unless told).

        Raises:
            ConfigError: a `ttl_s` below 1, or a `now_unix_s` that is no time.
            EncodeError: an expiry beyond the year 2106.
        """
        require_int("ttl_s", ttl_s, 1, MAX_EXPIRES_UNIX_S, error=ConfigError)
        now = int(time.time()) if now_unix_s is None else require_now(now_unix_s)
        return cls(os.urandom(HANDOFF_ID_BYTES), now + ttl_s)

    @property
    def nonce(self) -> bytes:
        """The 12 bytes under which a message is encrypted: its id and its expiry."""
        return self.handoff_id + self.expires_unix_s.to_bytes(4, "big")
