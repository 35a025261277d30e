"""The wire format of a hand-off, Message v1. This docstring is the normative specification.

    >>> wire = Message(codec_id=bytes(8), payload=bytes(80)).to_bytes()
    >>> len(wire), Message.from_bytes(wire).payload == bytes(80)
    (100, True)

**Layout.** A message is one positional msgpack array, bare or sealed; integers are big-endian; the payload has n bytes.
A writer MUST encode every part as this table says, so each message has exactly one encoding.

    part            encoding                            bytes, bare    bytes, sealed
    array header    0x94 bare, 0x96 sealed                        1                1
    version         0x01                                          1                1
    codec_id        0xc4 0x08, value                          2 + 8            2 + 8
    payload         0xc4 n, value; n <= 255                   2 + n            2 + n
                    0xc5 n n, value; n >= 256                 3 + n            3 + n
    handoff_id      0xc4 0x08, value                              -            2 + 8
    expires_unix_s  0xce, uint32                                  -            1 + 4
    check           0xc4 0x04, value                          2 + 4                -
    mac             0xc4 0x10, value                              -           2 + 16
    total, n = 80                                               100              127

- `codec_id` names the codec that decodes the payload. `handoff_id` SHOULD be unique: it is idempotency key and nonce.
- `check` MUST be the unkeyed BLAKE2b, digest size 4, and `mac` the keyed BLAKE2b, digest size 16, no salt and no
  personalisation, of all bytes that precede the check or mac field: that field's own 2-byte header is not covered.
- The key has 16 to 64 bytes and MUST NOT be used for anything else.
- `expires_unix_s` MUST take the 5-byte encoding, so it MUST be at least 2**16: msgpack would shorten a smaller number.

**Limits.** The payload has 1 to 65535 bytes: bin 16 can state no more, and 65535 is 800 times the usual 80. So a bare
message has 21 to 65556 bytes and a sealed one 48 to 65583. `expires_unix_s` ends with uint32, in February 2106.

**Reading.** A reader MUST make these checks in this order and refuse a message that fails one. So it copies nothing
before 1, hashes nothing before 8, and never allocates what a length field merely claims:
 1. the argument is bytes, and there are 21 to 65583 of them;
 2. byte 0 is an array header, byte 1 is version 1, the array has 4 or 6 fields;
 3. the payload header, at byte 12, is bin 8 or bin 16;
 4. there are as many bytes as kind and payload header imply: none missing, none trailing;
 5. `payload` and `expires_unix_s` are within their limits;
 6. the fields, encoded again, give the very same bytes: any other msgpack spelling of the same values is refused;
 7. the kind is the one asked for: a reader that holds a key MUST refuse a bare message (else whoever strips the seal
    is believed); one without a key MUST NOT accept a sealed message, though it MAY show it, marked as not verified;
 8. the check matches, or the MAC does, compared in constant time;
 9. now < `expires_unix_s` by the reader's clock, without leeway: a sender adds the seconds that clocks may differ.

**Not checked.** Whether the payload means anything, whether `codec_id` is that of the reader's codec (compare it),
whether `handoff_id` is unique, replay (a reader that minds remembers each `handoff_id` until it expires).

**What is protected.** The check finds accidents (one in 2**32 goes unseen) and stops nobody: anyone can compute it.
The MAC covers every field and shows that a holder of the key wrote them. It does not say which holder, does not hide
the payload, and does not stop a message from being delivered twice, late (until it expires) or never.

**Evolution.** A v1 reader MUST refuse any other version and any other array length. A later version MAY add trailing
fields; it takes a new version number, and a writer MUST NOT send them under version 1.
"""

import hashlib
import hmac
import os
import time
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from ilcp.errors import AuthenticationError, DecodeError, EncodeError, ExpiredError

__all__ = ["Description", "Message", "Part", "Seal", "describe"]

VERSION = 1
CODEC_ID_BYTES = 8  # 64 bits: an accidental clash among a million codecs has a chance below 1 in 10 million
HANDOFF_ID_BYTES = 8  # random ids of one receiver's unexpired messages; a clash only drops a message as a duplicate
CHECK_BYTES = 4  # finds accidents; the transport below has its own checksum as well
MAC_BYTES = 16  # 128 bits: a forger's chance per attempt is 2**-128
MIN_KEY_BYTES = 16  # below 128 bits the key, not the MAC, is what one would guess
MAX_KEY_BYTES = 64  # BLAKE2b takes no longer key
MAX_PAYLOAD_BYTES = 2**16 - 1  # what msgpack's bin 16 can state; a larger one is no hand-off but a file
MIN_EXPIRES_UNIX_S = 2**16  # msgpack shortens a smaller number to 1 to 3 bytes; it is 18 hours after 1970 began
MAX_EXPIRES_UNIX_S = 2**32 - 1  # uint32; February 2106

_BARE_ARRAY, _SEALED_ARRAY, _BIN_8, _BIN_16, _UINT_32 = 0x94, 0x96, 0xC4, 0xC5, 0xCE
_HEAD_BYTES = 1 + 1 + 2 + CODEC_ID_BYTES  # where the payload header stands
_BARE_TAIL_BYTES = 2 + CHECK_BYTES
_SEALED_TAIL_BYTES = 2 + HANDOFF_ID_BYTES + 1 + 4 + 2 + MAC_BYTES
MIN_MESSAGE_BYTES = _HEAD_BYTES + 2 + 1 + _BARE_TAIL_BYTES  # 21
MAX_MESSAGE_BYTES = _HEAD_BYTES + 3 + MAX_PAYLOAD_BYTES + _SEALED_TAIL_BYTES  # 65583
_HEAD_PARTS = ("array header", "version", "codec_id header", "codec_id", "payload header", "payload")
_SEAL_PARTS = ("handoff_id header", "handoff_id", "expires_unix_s header", "expires_unix_s", "mac header", "mac")
_CHECK_PARTS: tuple[str, ...] = ("check header", "check")

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
        _require_bytes("handoff_id", self.handoff_id, HANDOFF_ID_BYTES, HANDOFF_ID_BYTES)
        _require_int("expires_unix_s", self.expires_unix_s, MIN_EXPIRES_UNIX_S, MAX_EXPIRES_UNIX_S)

    @classmethod
    def fresh(cls, *, ttl_s: int, now_unix_s: int | None = None) -> Self:
        """A seal with a random id that expires `ttl_s` seconds from now (the system's clock unless told).

        Raises:
            EncodeError: a `ttl_s` below 1, or an expiry beyond the year 2106.
        """
        _require_int("ttl_s", ttl_s, 1, MAX_EXPIRES_UNIX_S)
        return cls(os.urandom(HANDOFF_ID_BYTES), _now(now_unix_s) + ttl_s)


@dataclass(frozen=True, slots=True)
class Message:
    """One hand-off as it crosses the wire: bare, or sealed where `seal` is given.

    Raises:
        EncodeError: a field of the wrong type or length, or a version other than 1.
    """

    codec_id: bytes
    payload: bytes
    seal: Seal | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        _require_bytes("codec_id", self.codec_id, CODEC_ID_BYTES, CODEC_ID_BYTES)
        _require_bytes("payload", self.payload, 1, MAX_PAYLOAD_BYTES)
        if not isinstance(self.seal, Seal | None):
            raise EncodeError(f"expected seal as Seal or None, got {type(self.seal).__name__}")
        _require_int("version", self.version, VERSION, VERSION)

    def to_bytes(self, key: bytes | None = None) -> bytes:
        """The bytes of this message; `key` is needed where, and only where, the message is sealed.

        Raises:
            EncodeError: a sealed message without a key, a bare one with a key, or a key not of 16 to 64 bytes.
        """
        _require_key(key)
        if (self.seal is None) != (key is None):
            got = "a sealed one without" if key is None else "a bare one with a key"
            raise EncodeError(f"expected a sealed message with a key or a bare one without, got {got}")
        body = b"".join(_body(self))
        return body + b"".join(_bin(_tag(body, key)))

    @classmethod
    def from_bytes(cls, data: BytesLike, *, key: bytes | None = None, now_unix_s: int | None = None) -> "Message":
        """The message that `data` holds, verified: with a key only a sealed one, without a key only a bare one.

        Raises:
            DecodeError: bytes that are not a whole, canonical, undamaged message v1.
            AuthenticationError: a wrong key, a sealed message and no key, or a bare message and a key.
            ExpiredError: a message that verifies, but too late.
            EncodeError: a key not of 16 to 64 bytes, or a `now_unix_s` that is no time.
        """
        _require_key(key)
        now = _now(now_unix_s)
        message, wire, parts = _parse(data)
        if _verify(message, wire, parts, key) == "not verified: no key given":
            raise AuthenticationError("expected a key, got none: the message is sealed; give key=, or describe() it")
        if message.seal is not None and now >= message.seal.expires_unix_s:
            expired = f"expected now < expires_unix_s {message.seal.expires_unix_s}, got {now}"
            raise ExpiredError(f"{expired}: have it sent again; if it was just written, compare the clocks")
        return message


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


def describe(data: BytesLike, *, key: bytes | None = None) -> Description:
    """What `data` shows of itself, part by part. An expired message is described, not refused.

    Raises:
        DecodeError: bytes that are not a whole, canonical, undamaged message v1.
        AuthenticationError: a key that does not verify the message, or a key given for a bare one.
        EncodeError: a key not of 16 to 64 bytes.
    """
    _require_key(key)
    message, wire, parts = _parse(data)
    seal = message.seal
    return Description(
        version=message.version,
        kind="bare" if seal is None else "sealed",
        codec_id=message.codec_id.hex(),
        total_bytes=len(wire),
        parts=parts,
        check=_verify(message, wire, parts, key),
        handoff_id=None if seal is None else seal.handoff_id.hex(),
        expires_unix_s=None if seal is None else seal.expires_unix_s,
    )


def _body(message: Message) -> list[bytes]:
    """All parts before the check or the MAC: the one place that writes the layout."""
    array = _BARE_ARRAY if message.seal is None else _SEALED_ARRAY
    body = [bytes([array]), bytes([message.version]), *_bin(message.codec_id), *_bin(message.payload)]
    if message.seal is not None:
        body += [*_bin(message.seal.handoff_id), bytes([_UINT_32]), message.seal.expires_unix_s.to_bytes(4, "big")]
    return body


def _bin(value: bytes) -> list[bytes]:
    n = len(value)
    return [bytes([_BIN_8, n]) if n <= 0xFF else bytes([_BIN_16, n >> 8, n & 0xFF]), value]


def _tag(body: bytes, key: bytes | None) -> bytes:
    return hashlib.blake2b(body, digest_size=CHECK_BYTES if key is None else MAC_BYTES, key=key or b"").digest()


def _parse(data: object) -> tuple[Message, bytes, tuple[Part, ...]]:
    """Checks 1 to 6. The fields are cut out where the canonical encoding has them, and must give `data` again."""
    if not isinstance(data, BytesLike):
        raise DecodeError(f"expected bytes, got {type(data).__name__}: pass what the transport delivered")
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if not MIN_MESSAGE_BYTES <= size <= MAX_MESSAGE_BYTES:
        limits = f"{MIN_MESSAGE_BYTES} to {MAX_MESSAGE_BYTES}"
        raise DecodeError(f"expected {limits} bytes, got {size}: truncated, or not an ilcp message")
    wire = bytes(data)
    start, end = _payload_span(wire)
    seal, tail, tag = None, _CHECK_PARTS, wire[-CHECK_BYTES:]
    try:
        if wire[0] == _SEALED_ARRAY:
            at = end + 2 + HANDOFF_ID_BYTES + 1
            seal = Seal(wire[end + 2 : at - 1], int.from_bytes(wire[at : at + 4], "big"))
            tail, tag = _SEAL_PARTS, wire[-MAC_BYTES:]
        message = Message(wire[_HEAD_BYTES - CODEC_ID_BYTES : _HEAD_BYTES], wire[start:end], seal)
    except EncodeError as error:
        raise DecodeError(f"{error}: the sender broke a limit of version {VERSION}") from None
    parts: list[Part] = []
    at = 0
    for name, value in zip(_HEAD_PARTS + tail, [*_body(message), *_bin(tag)], strict=True):
        got = wire[at : at + len(value)]
        if got != value:
            because = "damaged, or not canonical msgpack"
            raise DecodeError(f"expected 0x{value.hex()} as {name} at byte {at}, got 0x{got.hex()}: {because}")
        parts.append(Part(name, at, len(value)))
        at += len(value)
    return message, wire, tuple(parts)


def _payload_span(wire: bytes) -> tuple[int, int]:
    """Checks 2 to 4: where the payload begins and ends."""
    array, version, header = wire[0], wire[1], wire[_HEAD_BYTES]
    if array & 0xF0 != 0x90:
        raise DecodeError(f"expected a msgpack array (0x94 or 0x96) at byte 0, got 0x{array:02x}: no ilcp message")
    if version != VERSION:
        raise DecodeError(f"expected version {VERSION} at byte 1, got 0x{version:02x}: update the reader or the sender")
    if array not in (_BARE_ARRAY, _SEALED_ARRAY):
        raise DecodeError(f"expected 4 (bare) or 6 (sealed) fields, got {array & 0x0F}: version {VERSION} has no other")
    if header not in (_BIN_8, _BIN_16):
        raise DecodeError(f"expected payload header 0xc4 or 0xc5 at byte {_HEAD_BYTES}, got 0x{header:02x}: damaged")
    start = _HEAD_BYTES + (2 if header == _BIN_8 else 3)
    end = start + int.from_bytes(wire[_HEAD_BYTES + 1 : start], "big")
    total = end + (_BARE_TAIL_BYTES if array == _BARE_ARRAY else _SEALED_TAIL_BYTES)
    if len(wire) != total:
        what = "truncated" if len(wire) < total else f"{len(wire) - total} trailing bytes do not belong to it"
        raise DecodeError(f"expected {total} bytes for a payload of {end - start}, got {len(wire)}: {what}")
    return start, end


def _verify(message: Message, wire: bytes, parts: tuple[Part, ...], key: bytes | None) -> CheckState:
    """Checks 7 and 8. The MAC that would have been right is never told."""
    body, got = wire[: parts[-2].offset], wire[parts[-1].offset :]
    if message.seal is None:
        if key is not None:
            because = "a key was given, and anyone can write a bare one"
            raise AuthenticationError(f"expected a sealed message, got a bare one: {because}")
        expected = _tag(body, None)
        if expected != got:
            raise DecodeError(f"expected check {expected.hex()}, got {got.hex()}: damaged on its way; have it resent")
        return "valid"
    if key is None:
        return "not verified: no key given"
    if not hmac.compare_digest(_tag(body, key), got):
        because = "sealed with another key, or altered"
        raise AuthenticationError(f"expected a MAC that verifies under the key given, got {got.hex()}: {because}")
    return "valid under the key"


def _now(now_unix_s: int | None) -> int:
    return int(time.time()) if now_unix_s is None else _require_int("now_unix_s", now_unix_s, 0, MAX_EXPIRES_UNIX_S)


def _require_key(key: bytes | None) -> None:
    if key is not None:
        _require_bytes("key", key, MIN_KEY_BYTES, MAX_KEY_BYTES)


def _require_bytes(name: str, value: object, low: int, high: int) -> None:
    """The length is told, never the value: it may be a key."""
    if not isinstance(value, bytes):
        raise EncodeError(f"expected {name} as bytes, got {type(value).__name__}")
    if not low <= len(value) <= high:
        raise EncodeError(f"expected {name} of {low if low == high else f'{low} to {high}'} bytes, got {len(value)}")


def _require_int(name: str, value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise EncodeError(f"expected {name} as a whole number from {low} to {high}, got {value!r}")
    return value
