"""Writes and reads messages as ``ilcp.message`` specifies them."""

import hashlib
import hmac
import os
import time
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from ilcp.errors import AuthenticationError, DecodeError, EncodeError, ExpiredError
from ilcp.message import literals as exact
from ilcp.message.checks import require_bytes, require_int
from ilcp.message.keys import Key, keys_of, sealing_key
from ilcp.message.literals import MAX_LITERALS_BYTES

__all__ = ["Description", "Message", "Part", "Seal", "describe", "verified"]

VERSION = 1
CODEC_ID_BYTES = 8  # 64 bits: an accidental clash among a million codecs has a chance below 1 in 10 million
HANDOFF_ID_BYTES = 8  # random ids of one receiver's unexpired messages; a clash only drops a message as a duplicate
CHECK_BYTES = 4  # finds accidents; the transport below has its own checksum as well
MAC_BYTES = 16  # 128 bits: a forger's chance per attempt is 2**-128
MAX_PAYLOAD_BYTES = 2**16 - 1  # what msgpack's bin 16 can state; a larger one is no hand-off but a file
MIN_EXPIRES_UNIX_S = 2**16  # msgpack shortens a smaller number to 1 to 3 bytes; it is 18 hours after 1970 began
MAX_EXPIRES_UNIX_S = 2**32 - 1  # uint32; February 2106
CLOCK_SKEW_S = 30  # NTP holds hosts within a second; this forgives one whose clock was not set for weeks

_BARE_ARRAY, _SEALED_ARRAY, _BIN_8, _BIN_16, _UINT_32 = 0x94, 0x96, 0xC4, 0xC5, 0xCE
_LITERALS_FIELD = 1  # one field more in the array header
_HEAD_BYTES = 1 + 1 + 2 + CODEC_ID_BYTES  # where the payload header stands
_TAG_HEADER = (bytes((_BIN_8, CHECK_BYTES)), bytes((_BIN_8, MAC_BYTES)))  # bare, sealed
_SEAL_BYTES = 2 + HANDOFF_ID_BYTES + 1 + 4
_TAG_BYTES = {_BARE_ARRAY: CHECK_BYTES, _SEALED_ARRAY: MAC_BYTES}
MIN_MESSAGE_BYTES = _HEAD_BYTES + 2 + 1 + 2 + CHECK_BYTES  # 21
MAX_MESSAGE_BYTES = _HEAD_BYTES + 3 + MAX_PAYLOAD_BYTES + _SEAL_BYTES + 3 + MAX_LITERALS_BYTES + 2 + MAC_BYTES  # 66610
_SIZES = f"{MIN_MESSAGE_BYTES} to {MAX_MESSAGE_BYTES}"
_BROKEN = f"the sender broke a limit of version {VERSION}"

BytesLike = bytes | bytearray | memoryview
CheckState = Literal["valid", "valid under the key", "not verified: no key given"]


@dataclass(frozen=True, slots=True)
class Seal:
    """What a sealed message adds: an id of its own and the second at which it ceases to be valid.

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
        """A seal with a random id that expires `ttl_s` seconds from now (the system's clock unless told).

        Raises:
            EncodeError: a `ttl_s` below 1, or an expiry beyond the year 2106.
        """
        require_int("ttl_s", ttl_s, 1, MAX_EXPIRES_UNIX_S)
        return cls(os.urandom(HANDOFF_ID_BYTES), _now(now_unix_s) + ttl_s)


@dataclass(frozen=True, slots=True)
class Message:
    """One hand-off as it crosses the wire: bare, or sealed where `seal` is given; `literals` beside the payload.

    Raises:
        EncodeError: a field of the wrong type or length, literals that are no lines, or a version other than 1.
    """

    codec_id: bytes
    payload: bytes
    seal: Seal | None = None
    version: int = VERSION
    literals: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_bytes("codec_id", self.codec_id, CODEC_ID_BYTES, CODEC_ID_BYTES)
        require_bytes("payload", self.payload, 1, MAX_PAYLOAD_BYTES)
        if self.seal is not None and not isinstance(self.seal, Seal):
            raise EncodeError(f"expected seal as Seal or None, got {type(self.seal).__name__}")
        require_int("version", self.version, VERSION, VERSION)
        if self.literals != ():
            exact.check_literals(self.literals)

    def to_bytes(self, key: Key | None = None) -> bytes:
        """The bytes of this message; `key` (or a ring's current one) is needed where, and only where, it is sealed.

        Raises:
            EncodeError: a sealed message without a key, a bare one with a key, or a key not of 16 to 64 bytes.
        """
        seals = sealing_key(key)
        if (self.seal is None) != (seals is None):
            got = "a sealed one without" if seals is None else "a bare one with a key"
            raise EncodeError(f"expected a sealed message with a key or a bare one without, got {got}")
        body = _body(self.codec_id, self.payload, self.seal, exact.to_field(self.literals))
        return body + _TAG_HEADER[seals is not None] + _tag(body, seals)

    @classmethod
    def from_bytes(cls, data: BytesLike, *, key: Key | None = None, now_unix_s: int | None = None) -> "Message":
        """The message that `data` holds, verified: with a key only a sealed one, without a key only a bare one.

        Raises:
            DecodeError: bytes that are not a whole, canonical, undamaged message v1.
            AuthenticationError: a wrong key, a sealed message and no key, or a bare message and a key.
            ExpiredError: a message that verifies, but too late.
            EncodeError: a key not of 16 to 64 bytes, or a `now_unix_s` that is no time.
        """
        return verified(data, key=key, now_unix_s=now_unix_s)[0]


def verified(data: BytesLike, *, key: Key | None = None, now_unix_s: int | None = None) -> tuple[Message, bytes | None]:
    """``Message.from_bytes``, and the one key of `key` that verified it, for the replay cache; None for a bare message.

    Raises:
        DecodeError, AuthenticationError, ExpiredError, EncodeError: as ``Message.from_bytes``.
    """
    keys, now = keys_of(key), _now(now_unix_s)
    raw = _parse(data)
    found = _verify(raw, keys)
    if raw.seal is not None and found is None:
        raise AuthenticationError("expected a key, got none: the message is sealed; give key=, or describe() it")
    message = _opened(raw)
    if raw.seal is not None and now >= raw.seal.expires_unix_s + CLOCK_SKEW_S:
        expected = f"expected now < expires_unix_s {raw.seal.expires_unix_s} + {CLOCK_SKEW_S}"
        raise ExpiredError(f"{expected}, got {now}: have it sent again; if it was just written, compare the clocks")
    return message, found


class Part(NamedTuple):
    """One part of a message on the wire: where it begins and how many bytes it takes."""

    name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """What a message shows of itself (ids in hex); `parts` accounts for every one of its `total_bytes`."""

    version: int
    kind: Literal["bare", "sealed"]
    codec_id: str
    total_bytes: int
    parts: tuple[Part, ...]
    check: CheckState
    handoff_id: str | None
    expires_unix_s: int | None


def describe(data: BytesLike, *, key: Key | None = None) -> Description:
    """What `data` shows of itself, part by part. An expired message is described, not refused.

    Raises:
        DecodeError: bytes that are not a whole, canonical, undamaged message v1.
        AuthenticationError: a key that does not verify the message, or a key given for a bare one.
        EncodeError: a key not of 16 to 64 bytes.
    """
    keys = keys_of(key)
    raw = _parse(data)
    found, seal = _verify(raw, keys), raw.seal
    if seal is None or found:
        _opened(raw)
    return Description(
        version=VERSION,
        kind="bare" if seal is None else "sealed",
        codec_id=raw.codec_id.hex(),
        total_bytes=len(raw.wire),
        parts=_parts(raw),
        check="valid" if seal is None else "valid under the key" if found else "not verified: no key given",
        handoff_id=None if seal is None else seal.handoff_id.hex(),
        expires_unix_s=None if seal is None else seal.expires_unix_s,
    )


class _Raw(NamedTuple):
    """The fields of a message as they stand on the wire: canonical, not yet verified, literals unopened."""

    wire: bytes
    codec_id: bytes
    payload: bytes
    seal: Seal | None
    packed: bool  # the literals are a zstd frame
    literals: bytes
    tag: bytes

    def encoded(self) -> bytes:
        field = exact.header(self.packed, len(self.literals)) + self.literals if self.literals else b""
        return _body(self.codec_id, self.payload, self.seal, field) + _TAG_HEADER[self.seal is not None] + self.tag


def _body(codec_id: bytes, payload: bytes, seal: Seal | None, literals: bytes) -> bytes:
    """All before the check or the MAC, `literals` as a whole field: the one place that writes the layout."""
    array = (_BARE_ARRAY if seal is None else _SEALED_ARRAY) | (_LITERALS_FIELD if literals else 0)
    head = bytes((array, VERSION, _BIN_8, CODEC_ID_BYTES)) + codec_id + exact.header(True, len(payload)) + payload
    if seal is None:
        return head + literals
    expires = seal.expires_unix_s.to_bytes(4, "big")
    return head + bytes((_BIN_8, HANDOFF_ID_BYTES)) + seal.handoff_id + bytes((_UINT_32,)) + expires + literals


def _tag(body: bytes, key: bytes | None) -> bytes:
    return hashlib.blake2b(body, digest_size=CHECK_BYTES if key is None else MAC_BYTES, key=key or b"").digest()


def _parse(data: object) -> _Raw:
    """Checks 1 to 6. The fields are cut out where the canonical encoding has them, and must give `data` again."""
    if not isinstance(data, BytesLike):
        raise DecodeError(f"expected bytes, got {type(data).__name__}: pass what the transport delivered")
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if not MIN_MESSAGE_BYTES <= size <= MAX_MESSAGE_BYTES:
        raise DecodeError(f"expected {_SIZES} bytes, got {size}: truncated, or not an ilcp message")
    wire = bytes(data)
    array, start, end = _payload_span(wire)
    at = end + (0 if array == _BARE_ARRAY else _SEAL_BYTES)
    packed, first, last = _literals_span(wire, at, array, end - start)
    payload, literals, seal = wire[start:end], wire[first:last], None
    try:
        require_bytes("payload", payload, 1, MAX_PAYLOAD_BYTES)
        if wire[0] != array:
            require_bytes("literals", literals, 1, MAX_LITERALS_BYTES)
        if array == _SEALED_ARRAY:
            seal = Seal(wire[end + 2 : end + 2 + HANDOFF_ID_BYTES], int.from_bytes(wire[at - 4 : at], "big"))
    except EncodeError as error:
        raise DecodeError(f"{error}: {_BROKEN}") from None
    raw = _Raw(wire, wire[4:_HEAD_BYTES], payload, seal, packed, literals, wire[last + 2 :])
    if raw.encoded() != wire:
        _parts(raw)  # which finds the part
    return raw


def _payload_span(wire: bytes) -> tuple[int, int, int]:
    """Checks 2 and 3: the array header without literals, where the payload begins and where it would end."""
    first, version, header = wire[0], wire[1], wire[_HEAD_BYTES]
    array = first & ~_LITERALS_FIELD
    if first & 0xF0 != 0x90:
        raise DecodeError(f"expected a msgpack array (0x94 to 0x97) at byte 0, got 0x{first:02x}: no ilcp message")
    if version != VERSION:
        raise DecodeError(f"expected version {VERSION} at byte 1, got 0x{version:02x}: update the reader or the sender")
    if array not in _TAG_BYTES:
        fields = "4 (bare) or 6 (sealed) fields, 1 more with literals"
        raise DecodeError(f"expected {fields}, got {first & 0x0F}: version {VERSION} has no other")
    if header not in (_BIN_8, _BIN_16):
        raise DecodeError(f"expected payload header 0xc4 or 0xc5 at byte {_HEAD_BYTES}, got 0x{header:02x}: damaged")
    start = _HEAD_BYTES + (2 if header == _BIN_8 else 3)
    return array, start, start + int.from_bytes(wire[_HEAD_BYTES + 1 : start], "big")


def _literals_span(wire: bytes, at: int, array: int, payload_bytes: int) -> tuple[bool, int, int]:
    """Checks 3 and 4: whether the literals are packed, where they begin and end; an empty span at `at` without any."""
    packed, first, last = False, at, at
    tail = 2 + _TAG_BYTES[array]
    what = f"for a payload of {payload_bytes}"
    if wire[0] != array:
        last, what = at + 2, f"{what} and at least 2 of literals"  # the shortest field: is its header there at all?
        if last + tail <= len(wire):
            packed, first, last = exact.span(wire, at)
            what = f"for a payload of {payload_bytes} and literals of {last - first}"
    total = last + tail
    if len(wire) != total:
        because = "truncated" if len(wire) < total else f"{len(wire) - total} trailing bytes do not belong to it"
        raise DecodeError(f"expected {total} bytes {what}, got {len(wire)}: {because}")
    return packed, first, last


def _parts(raw: _Raw) -> tuple[Part, ...]:
    """Check 6, part by part: each has to stand on the wire as it is encoded again."""
    n, k, encoded = len(raw.payload), len(raw.literals), raw.encoded()
    sizes = [("array header", 1), ("version", 1), ("codec_id header", 2), ("codec_id", 8)]
    sizes += [("payload header", len(exact.header(True, n))), ("payload", n)]
    if raw.seal is not None:
        sizes += [("handoff_id header", 2), ("handoff_id", 8), ("expires_unix_s header", 1), ("expires_unix_s", 4)]
    if k:
        sizes += [("literals header", len(exact.header(raw.packed, k))), ("literals", k)]
    name = "check" if raw.seal is None else "mac"
    parts: list[Part] = []
    at = 0
    for part, size in [*sizes, (f"{name} header", 2), (name, len(raw.tag))]:
        expected, got = encoded[at : at + size], raw.wire[at : at + size]
        if expected != got:
            because = "damaged, or not canonical msgpack"
            raise DecodeError(f"expected 0x{expected.hex()} as {part} at byte {at}, got 0x{got.hex()}: {because}")
        parts.append(Part(part, at, size))
        at += size
    return tuple(parts)


def _opened(raw: _Raw) -> Message:
    """Check 9, of what is verified."""
    try:
        literals = exact.from_field(raw.packed, raw.literals) if raw.literals else ()
        return Message(raw.codec_id, raw.payload, raw.seal, VERSION, literals)
    except EncodeError as error:
        raise DecodeError(f"{error}: {_BROKEN}") from None


def _verify(raw: _Raw, keys: tuple[bytes, ...]) -> bytes | None:
    """Checks 7 and 8: the key that verified, None where there was none to try. The right MAC is never told."""
    body = raw.wire[: -2 - len(raw.tag)]
    if raw.seal is None:
        if keys:
            because = "a key was given, and anyone can write a bare one"
            raise AuthenticationError(f"expected a sealed message, got a bare one: {because}")
        expected = _tag(body, None)
        if expected != raw.tag:
            raise DecodeError(f"expected check {expected.hex()}, got {raw.tag.hex()}: damaged on its way; send again")
        return None
    for key in keys:
        if hmac.compare_digest(_tag(body, key), raw.tag):
            return key
    if not keys:
        return None
    because = "sealed with another key, or altered"
    raise AuthenticationError(f"expected a MAC that verifies under the key given, got {raw.tag.hex()}: {because}")


def _now(now_unix_s: int | None) -> int:
    return int(time.time()) if now_unix_s is None else require_int("now_unix_s", now_unix_s, 0, MAX_EXPIRES_UNIX_S)
