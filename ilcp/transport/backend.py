"""The seam of the transports: seven operations on opaque bytes, and what all of them agree on.

A queue is known by its receiver's name. ``put`` is idempotent per name and hand-off id; ``take`` leases the oldest
message that nobody holds; ``extend`` holds it for longer; ``settle`` ends a lease. Nothing here looks into a message,
except for the hand-off id that a sealed one shows in the clear.
"""

import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from os import urandom
from pathlib import Path
from typing import NamedTuple, Protocol

from ilcp.errors import DecodeError, EncodeError
from ilcp.message import MAX_MESSAGE_BYTES, describe
from ilcp.message.format import BytesLike
from ilcp.transport.errors import AddressError

__all__ = [
    "MEDIA_TYPE",
    "Backend",
    "Lease",
    "Settings",
    "checked_id",
    "checked_message",
    "checked_name",
    "checked_s",
    "checked_token",
    "is_name",
]

MEDIA_TYPE = "application/vnd.ilcp.message"
MAX_LEASE_S = 12 * 3600.0  # a receiver that works longer on one hand-off keeps its own books
MAX_DEDUP_S = 7 * 86400.0  # ids of a week; beyond, the list outgrows the messages
FRESH_ID_BYTES = 16  # random: no two sends of the world meet
MAX_CAPABILITIES_BYTES = 1 << 16  # the ids of 3,000 codecs
CLOSED_MEANWHILE = "expected an open connection, got one that another thread closed meanwhile"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # is a URL's path segment and a NATS subject token as it stands


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a connection. One that the scheme has no use for is refused, not ignored.

    ``lease_s`` is how long a receiver may hold a hand-off before another one gets it; ``timeout_s`` how long the other
    side may take to answer; ``clock`` (unix seconds) is there for tests. Memory and spool: an id is remembered for
    ``dedup_s`` after its acknowledgement, and all waiting messages take at most ``max_bytes``; ``power_safe=False`` of
    a spool survives killed processes but may lose the last hand-offs to a power cut. NATS: both hold when the stream is
    first made. http and https: ``token``. https and NATS: ``tls``. NATS: ``credentials``, a ``.creds`` file, or
    ``token``.

    Raises:
        AddressError: a number outside its limits, or a setting of another type.
    """

    lease_s: float = 60.0
    timeout_s: float = 10.0
    dedup_s: float = 600.0
    max_bytes: int = 64 << 20
    power_safe: bool = True
    token: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    credentials: Path | None = None
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        checked_s("lease_s", self.lease_s, MAX_LEASE_S)
        checked_s("timeout_s", self.timeout_s, MAX_LEASE_S)
        checked_s("dedup_s", self.dedup_s, MAX_DEDUP_S)
        for name, kind in {"max_bytes": int, "token": str, "tls": ssl.SSLContext, "credentials": Path}.items():
            got = getattr(self, name)
            if not isinstance(got, kind) and (got is not None or kind is int):
                raise AddressError(f"expected {name} of type {kind.__name__}, got {type(got).__name__}")
        if self.max_bytes < MAX_MESSAGE_BYTES:
            raise AddressError(f"expected max_bytes of at least one message, {MAX_MESSAGE_BYTES}, got {self.max_bytes}")

    def only(self, scheme: str, *used: str) -> None:
        """Refuses what was set and is not ``used``.

        Raises:
            AddressError: there is such a setting.
        """
        for one in fields(self):
            if one.name not in {"lease_s", "clock", *used} and getattr(self, one.name) != one.default:
                raise AddressError(f"expected no {one.name} with {scheme}://, got one: it would have no effect there")


class Lease(NamedTuple):
    """One message, handed out until ``until_s`` (by the settings' clock); ``attempt`` counts from 1."""

    token: str
    handoff_id: str
    message: bytes
    attempt: int
    until_s: float


class Backend(Protocol):
    """The operations of a transport. Each raises ``TransportError`` and nothing else of its own."""

    async def put(self, name: str, handoff_id: str, message: bytes) -> bool:
        """Keeps the message, once, and says whether it is new."""

    async def take(self, name: str, lease_s: float, wait_s: float) -> Lease | None:
        """Leases the oldest message that is free; None when there was none for ``wait_s``."""

    async def extend(self, name: str, lease: Lease, lease_s: float) -> float:
        """Holds a lease for ``lease_s`` from now on, and returns until when, by the settings' clock."""

    async def settle(self, name: str, lease: Lease, *, retry_in_s: float | None) -> None:
        """Ends a lease: done for good where ``retry_in_s`` is None, else free again in so many seconds."""

    async def publish(self, name: str, body: bytes) -> None:
        """Keeps what the receiver says of itself, in place of what it said before."""

    async def lookup(self, name: str) -> bytes | None:
        """Returns what the receiver said of itself last."""

    async def close(self) -> None:
        """Lets go of everything; leases run out by themselves."""


def is_name(name: object) -> bool:
    """Says whether ``name`` is 1 to 64 ASCII letters, digits, hyphens or underscores."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def checked_name(what: str, name: object) -> str:
    """Returns ``name``, which is a receiver's name or an id.

    Raises:
        AddressError: it is none; see ``is_name``.
    """
    if not isinstance(name, str) or not is_name(name):
        raise AddressError(f"expected {what} as 1 to 64 of the characters A-Z a-z 0-9 - _, got {name!r}")
    return name


def checked_token(token: str) -> str:
    """Returns ``token``, as a header carries it.

    Raises:
        AddressError: it is empty, or has anything but printable ASCII without spaces.
    """
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise AddressError(f"expected a token of printable ASCII without spaces, got {'another' if token else 'none'}")
    return token


def checked_message(message: object) -> bytes:
    """Returns ``message`` as bytes.

    Raises:
        EncodeError: it is no bytes, empty, or larger than any ilcp message.
    """
    if not isinstance(message, BytesLike):
        raise EncodeError(f"expected a message as bytes, got {type(message).__name__}: pass what encode() returned")
    wire = bytes(message)
    if not 1 <= len(wire) <= MAX_MESSAGE_BYTES:
        raise EncodeError(f"expected a message of 1 to {MAX_MESSAGE_BYTES} bytes, got {len(wire)}: no ilcp message")
    return wire


def checked_id(wire: bytes, given: str | None) -> str:
    """Finds the idempotency key of a message: a sealed one's own hand-off id, else the one given, else a fresh one.

    Raises:
        AddressError: another id given than the message shows, or one that no transport takes.
    """
    try:
        own = describe(wire).handoff_id
    except DecodeError:  # some other bytes: the receiver will say so, a transport does not
        own = None
    if given is not None and checked_name("handoff_id", given) != own and own is not None:
        raise AddressError(f"expected handoff_id {own}, as the sealed message says, got {given!r}: leave it out")
    return own or given or urandom(FRESH_ID_BYTES).hex()


def checked_s(what: str, seconds: object, most: float) -> float:
    """Returns ``seconds``, above 0 and at most ``most``.

    Raises:
        AddressError: it is no number, or outside.
    """
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds <= most:
        return float(seconds)
    raise AddressError(f"expected {what} above 0 and at most {most:g} seconds, got {seconds!r}")
