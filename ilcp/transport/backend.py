"""The seam of the transports: seven operations on opaque bytes, and what all of them agree on.

A queue is known by its receiver's name. ``put`` is idempotent per name and hand-off id; ``take`` leases the oldest
message that nobody holds; ``extend`` holds it for longer; ``settle`` ends a lease. Nothing here looks into a message,
except for the hand-off id that a sealed or encrypted one shows in the clear.
"""

import hashlib
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from os import urandom
from pathlib import Path
from typing import NamedTuple, Protocol

from ilcp.errors import DecodeError, EncodeError
from ilcp.message import MAX_BLOB_BYTES, MAX_MESSAGE_BYTES, Blob, describe
from ilcp.message.format import BytesLike
from ilcp.transport.blobs import Part, Source
from ilcp.transport.errors import AddressError, ConflictError

__all__ = [
    "MEDIA_TYPE",
    "Backend",
    "Lease",
    "Settings",
    "blob_of",
    "checked_id",
    "checked_message",
    "checked_name",
    "checked_queue",
    "checked_s",
    "checked_to",
    "checked_token",
    "content_digest",
    "dead_letters",
    "is_name",
    "require_same",
]

MEDIA_TYPE = "application/vnd.ilcp.message"
MAX_LEASE_S = 12 * 3600.0  # a receiver that works longer on one hand-off keeps its own books
MAX_DEDUP_S = 7 * 86400.0  # ids of a week; beyond, the list outgrows the messages
FRESH_ID_BYTES = 16  # random: no two sends of the world meet
MAX_CAPABILITIES_BYTES = 1 << 16  # the ids of 3,000 codecs
MAX_AGE_S = 366 * 86400.0
MAX_TOKEN = 1024  # characters; servers take heads of 4 kB and more
ROW_BYTES = 128  # what a row of a store and its index entries take beside the message, rounded up
LEAST_BYTES = MAX_MESSAGE_BYTES + ROW_BYTES
NAMES_THAT_FILL = 4
DEAD = "-dead"  # ends the name of a name's dead letters, to which nobody sends
SENDS_ONLY = "expected a transport to receive from, got http://: take from the spool behind it, or use NATS"
NOT_OURS = "expected an open connection of this process, got one that is closed or from before a fork: connect again"
CLOSED_MEANWHILE = "expected an open connection, got one that another thread closed meanwhile"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # is a URL's path segment and a NATS subject token as it stands


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a connection. One that the scheme has no use for is refused, not ignored.

    ``lease_s`` is how long a receiver may hold a hand-off before another one gets it; ``timeout_s`` how long the other
    side may take to answer; ``clock`` (unix seconds) is there for tests. Memory and spool: an id is remembered for
    the ``dedup_s`` of who acknowledged it, all waiting messages take at most ``max_bytes``, those of a name at most
    ``max_name_bytes`` (None: a quarter of it), a blob takes at most ``max_blob_bytes`` and all of them
    ``max_blobs_bytes``; what nobody has acknowledged for its sender's ``max_age_s``, or no message has named, goes;
    ``power_safe=False`` of a spool survives killed processes but may lose the last hand-offs to a power cut. NATS:
    ``dedup_s``, ``max_bytes``, ``max_blobs_bytes`` and ``max_age_s`` hold when the stream or the bucket is first made,
    and a name has no share of its own. All three: what was handed out ``max_deliveries`` times and never acknowledged
    goes to the name's dead letters. http and https: ``token``. https and NATS: ``tls``. NATS: ``credentials``, a
    ``.creds`` file, or ``token``.

    Raises:
        AddressError: a number outside its limits, or a setting of another type.
    """

    lease_s: float = 60.0
    timeout_s: float = 10.0
    dedup_s: float = 600.0
    max_bytes: int = 64 << 20
    max_name_bytes: int | None = None
    max_blob_bytes: int = 1 << 30  # the exact cache of 8,192 tokens in 32 layers, 8 heads of 128, 16 bits
    max_blobs_bytes: int = 8 << 30  # eight of them: less than the disk that is free where models run
    max_age_s: float = 7 * 86400.0
    max_deliveries: int = 10
    power_safe: bool = True
    token: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    credentials: Path | None = None
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        checked_s("lease_s", self.lease_s, MAX_LEASE_S)
        checked_s("timeout_s", self.timeout_s, MAX_LEASE_S)
        checked_s("dedup_s", self.dedup_s, MAX_DEDUP_S)
        checked_s("max_age_s", self.max_age_s, MAX_AGE_S)
        for name, kind in {"token": str, "tls": ssl.SSLContext, "credentials": Path}.items():
            got = getattr(self, name)
            if not isinstance(got, kind | None):
                raise AddressError(f"expected {name} of type {kind.__name__}, got {type(got).__name__}")
        if type(self.max_blob_bytes) is not int or not 1 <= self.max_blob_bytes <= MAX_BLOB_BYTES:
            wanted = f"expected max_blob_bytes as a whole number from 1 to {MAX_BLOB_BYTES}"
            raise AddressError(f"{wanted}, got {self.max_blob_bytes!r}: that is the most that a message names")
        for name, least in {
            "max_bytes": LEAST_BYTES,
            "max_name_bytes": LEAST_BYTES,
            "max_deliveries": 1,
            "max_blobs_bytes": 1,
        }.items():
            got = getattr(self, name)
            if (got is not None or name != "max_name_bytes") and (type(got) is not int or not least <= got < 1 << 63):
                raise AddressError(f"expected {name} as a whole number of at least {least}, got {got!r}")

    @property
    def name_bytes(self) -> int:
        """What the waiting messages of one name may take."""
        return self.max_name_bytes or max(self.max_bytes // NAMES_THAT_FILL, LEAST_BYTES)

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
        """Keeps the message, once, and says whether it is new; other content under a known id: ``ConflictError``."""

    async def take(self, name: str, lease_s: float, wait_s: float) -> Lease | None:
        """Leases the oldest message that is free; None when there was none for ``wait_s``."""

    async def extend(self, name: str, lease: Lease, lease_s: float) -> float:
        """Holds a lease for ``lease_s`` from now on, and returns until when, by the settings' clock."""

    async def settle(self, name: str, lease: Lease, *, retry_in_s: float | None, unseen: bool = False) -> None:
        """Ends a lease: done for good where ``retry_in_s`` is None, else free again in so many seconds.

        What comes back ``unseen`` counts as not handed out, where the transport's own count allows it.
        """

    async def publish(self, name: str, body: bytes) -> None:
        """Keeps what the receiver says of itself, in place of what it said before."""

    async def lookup(self, name: str) -> bytes | None:
        """Returns what the receiver said of itself last."""

    async def put_blob(self, source: Source) -> Blob:
        """Keeps the bytes of a source under their digest, and goes on where an earlier put of them ended."""

    async def get_blob(self, blob: Blob, into: Part) -> None:
        """Writes the bytes that are kept under a digest to ``into``, which compares them."""

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


def checked_to(name: object) -> str:
    """Returns ``name``, to which messages are sent.

    Raises:
        AddressError: it is none, or that of dead letters.
    """
    if checked_name("a receiver's name", name).endswith(DEAD):
        raise AddressError(f"expected a receiver's name, got {name!r}: what ends so are a name's dead letters")
    return str(name)


def checked_queue(name: object) -> str:
    """Returns ``name``, under which messages are received: a receiver's, or that of its dead letters.

    Raises:
        AddressError: it is none.
    """
    checked_name("name", name.removesuffix(DEAD) if isinstance(name, str) else name)
    return str(name)


def dead_letters(name: str) -> str | None:
    """Names the dead letters of a name; None: it is that of some, which stay however often they are handed out."""
    return None if name.endswith(DEAD) else name + DEAD


def content_digest(message: bytes) -> bytes:
    """Returns by what a store knows a message again that it has no longer."""
    return hashlib.blake2b(message, digest_size=16).digest()


def require_same(handoff_id: str, known: object, message: bytes) -> None:
    """Checks that what is ``known`` under an id is the digest of this message; None: it was never told.

    Raises:
        ConflictError: it is another's.
    """
    if known is not None and known != content_digest(message):
        raise ConflictError(
            f"expected the message that is known under {handoff_id}, got another: send this one under a fresh id; if "
            "the id was yours alone, somebody else has written under it: seal your messages"
        )


def checked_token(token: str, least: int = 1) -> str:
    """Returns ``token``, as a header carries it.

    Raises:
        AddressError: it is shorter than ``least``, longer than a head has room for, or has anything but printable
            ASCII without spaces.
    """
    if len(token) > MAX_TOKEN:
        raise AddressError(
            f"expected a token of at most {MAX_TOKEN} characters, got {len(token)}: no head has room for it; shorten it"
        )
    if 0 < len(token) < least:
        raise AddressError(
            f"expected a token of at least {least} characters, got {len(token)}: leave it out for a new one"
        )
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


def blob_of(wire: bytes) -> Blob | None:
    """Returns the blob that a message names; None: it names none, or is no message."""
    try:
        found = describe(wire) if wire[1:2] in (b"\x02", b"\x03") else None
    except DecodeError:
        return None
    if found is None or found.blob_bytes is None or found.blob_digest is None:
        return None
    return Blob(found.blob_bytes, bytes.fromhex(found.blob_digest))


def checked_s(what: str, seconds: object, most: float) -> float:
    """Returns ``seconds``, above 0 and at most ``most``.

    Raises:
        AddressError: it is no number, or outside.
    """
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds <= most:
        return float(seconds)
    raise AddressError(f"expected {what} above 0 and at most {most:g} seconds, got {seconds!r}")
