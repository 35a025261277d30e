"""Writes and reads messages as ``ilcp.message`` specifies them.

msgspec packs and unpacks the array: it refuses a field of another type before it builds anything of it, which msgpack
does in its stepwise ``Unpacker`` only, and a bare message takes 4.4 us both ways instead of 8.8.
"""

import hashlib
import hmac
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import GenericAlias
from typing import Any, Final, Literal, NamedTuple, Self

import msgspec

from ilcp.errors import AuthenticationError, ConfigError, DecodeError, EncodeError, ExpiredError
from ilcp.message.blob import BLOB_DIGEST_BYTES, Blob
from ilcp.message.checks import MAX_UNIX_S, require_bytes, require_int, require_now
from ilcp.message.keys import Key, keys_of, sealing_key
from ilcp.message.literals import MAX_LITERALS_BYTES, from_field, require_literals, split, to_field

__all__ = ["Description", "Message", "Part", "Seal", "describe", "fitted", "verified"]

VERSION = 1  # the lowest, which a writer writes wherever it holds all
BLOB_VERSION = 2
FITTING: Final = 0  # in the place of a version: the one that holds what the message has
CODEC_ID_BYTES = 8  # 64 bits: an accidental clash among a million codecs has a chance below 1 in 10 million
HANDOFF_ID_BYTES = 8  # random ids of one receiver's unexpired messages; a clash only drops a message as a duplicate
CHECK_BYTES = 4  # finds accidents; the transport below has its own checksum as well
MAC_BYTES = 16  # 128 bits: a forger's chance per attempt is 2**-128
MAX_PAYLOAD_BYTES = 2**16 - 1  # what msgpack's bin 16 can state; a larger one is no hand-off but a file
MIN_EXPIRES_UNIX_S = 2**16  # msgpack shortens a smaller number to 1 to 3 bytes; it is 18 hours after 1970 began
MAX_EXPIRES_UNIX_S = MAX_UNIX_S
CLOCK_SKEW_S = 30  # NTP holds hosts within a second; this forgives one whose clock was not set for weeks

_HEAD = {"version": int, "codec_id": bytes, "payload": bytes}
_SEAL = {"handoff_id": bytes, "expires_unix_s": int}
_BLOB = {"blob_bytes": int, "blob_digest": bytes}
_LITERALS = {"literals": msgspec.Raw}  # as they stand: nothing of them is opened before the MAC was verified
_LAYOUTS: dict[bytes, dict[str, Any]] = {  # array header and version: the fields and their types
    b"\x94\x01": {**_HEAD, "check": bytes},
    b"\x95\x01": {**_HEAD, **_LITERALS, "check": bytes},
    b"\x96\x01": {**_HEAD, **_SEAL, "mac": bytes},
    b"\x97\x01": {**_HEAD, **_SEAL, **_LITERALS, "mac": bytes},
    b"\x96\x02": {**_HEAD, **_BLOB, "check": bytes},
    b"\x97\x02": {**_HEAD, **_BLOB, **_LITERALS, "check": bytes},
    b"\x98\x02": {**_HEAD, **_BLOB, **_SEAL, "mac": bytes},
    b"\x99\x02": {**_HEAD, **_BLOB, **_SEAL, **_LITERALS, "mac": bytes},
}
_FIELDS = {VERSION: "4 (bare) or 6 (sealed)", BLOB_VERSION: "6 (bare) or 8 (sealed)"}
# Both keep the state of a call on its own stack, so threads may share them.
_encode = msgspec.msgpack.Encoder().encode
_DECODERS = {
    begin: msgspec.msgpack.Decoder[Any](GenericAlias(tuple, tuple(layout.values())))
    for begin, layout in _LAYOUTS.items()
}

_HEAD_BYTES = 1 + 1 + 2 + CODEC_ID_BYTES
_SEAL_BYTES = 2 + HANDOFF_ID_BYTES + 1 + 4
_BLOB_BYTES = 1 + 8 + 2 + BLOB_DIGEST_BYTES
MIN_MESSAGE_BYTES = _HEAD_BYTES + 2 + 1 + 2 + CHECK_BYTES  # 21
_BESIDE_BYTES = _SEAL_BYTES + 3 + MAX_LITERALS_BYTES + 2 + MAC_BYTES
MAX_MESSAGE_BYTES = _HEAD_BYTES + 3 + MAX_PAYLOAD_BYTES + _BLOB_BYTES + _BESIDE_BYTES  # 66653
_SIZES = f"{MIN_MESSAGE_BYTES} to {MAX_MESSAGE_BYTES}"
_BROKEN = "the sender broke a limit of the version"

BytesLike = bytes | bytearray | memoryview
CheckState = Literal["valid", "valid under the key", "not verified: no key given"]


def fitted(payload: bytes, put: Callable[[bytes], Blob]) -> tuple[bytes, Blob | None]:
    """Returns a payload as a message carries it: itself, or nothing and the blob that ``put`` made of a larger one."""
    return (payload, None) if len(payload) <= MAX_PAYLOAD_BYTES else (b"", put(payload))


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


class Message(msgspec.Struct, frozen=True):
    """One hand-off as it crosses the wire: bare, or sealed where `seal` is given; `literals` beside the payload.

    With a `blob` the codec's payload is `payload`, which may be empty, and then the blob's bytes, which travel beside
    the message. The version follows: 2 with a blob, else 1; it need not be given.

    Raises:
        EncodeError: a field of the wrong type or length, literals that are no lines, or another version.
    """

    codec_id: bytes
    payload: bytes
    seal: Seal | None = None
    version: int = FITTING
    literals: tuple[str, ...] = ()
    blob: Blob | None = None

    def __post_init__(self) -> None:
        require_bytes("codec_id", self.codec_id, CODEC_ID_BYTES, CODEC_ID_BYTES)
        require_bytes("payload", self.payload, 1 if self.blob is None else 0, MAX_PAYLOAD_BYTES)
        if self.seal is not None and not isinstance(self.seal, Seal):
            raise EncodeError(f"expected seal as Seal or None, got {type(self.seal).__name__}")
        if self.blob is not None and not isinstance(self.blob, Blob):
            raise EncodeError(f"expected blob as Blob or None, got {type(self.blob).__name__}")
        version = VERSION if self.blob is None else BLOB_VERSION
        if self.version is not version:  # True, which equals 1, is none
            if self.version is not FITTING:
                require_int("version", self.version, version, version)
            msgspec.structs.force_setattr(self, "version", version)
        if self.literals != ():
            require_literals(self.literals)

    def to_bytes(self, key: Key | None = None, *, audience: str | None = None) -> bytes:
        """Returns the message's bytes; `key` (or a ring's current one) is needed where, and only where, it is sealed.

        With an `audience` it verifies for a reader of that name only.

        Raises:
            ConfigError: a sealed message without a key, a bare one with a key, or a key not of 16 to 64 bytes, or an
                audience that is none.
        """
        seals = sealing_key(key, audience)
        if (self.seal is None) != (seals is None):
            got = "a sealed one without" if seals is None else "a bare one with a key"
            raise ConfigError(f"expected a sealed message with a key or a bare one without, got {got}")
        size = CHECK_BYTES if seals is None else MAC_BYTES
        wire = _encode(_fields(self, to_field(self.literals), bytes(size)))
        return wire[:-size] + _tag(wire[: -2 - size], seals)

    @classmethod
    def from_bytes(
        cls, data: BytesLike, *, key: Key | None = None, now_unix_s: int | None = None, audience: str | None = None
    ) -> "Message":
        """Returns the message that `data` holds, verified: with a key only a sealed one, without a key only a bare one.

        With an `audience` only what was sealed for it verifies, without one only what was sealed for nobody by name.

        Raises:
            DecodeError: bytes that are not a whole, canonical, undamaged message.
            AuthenticationError: a wrong key or audience, a sealed message and no key, or a bare message and a key.
            ExpiredError: a message that verifies, but too late.
            ConfigError: a key not of 16 to 64 bytes, or a `now_unix_s` that is no time.
        """
        return verified(data, key=key, now_unix_s=now_unix_s, audience=audience)[0]


def verified(
    data: BytesLike, *, key: Key | None = None, now_unix_s: int | None = None, audience: str | None = None
) -> tuple[Message, bytes | None]:
    """Reads as ``Message.from_bytes``; returns the key that verified the message as well, None for a bare one.

    With an audience that is the key made for it.

    Raises:
        DecodeError, AuthenticationError, ExpiredError, ConfigError: as ``Message.from_bytes``.
    """
    keys = keys_of(key, audience)
    if now_unix_s is not None:
        require_now(now_unix_s)
    parsed = _parse(data)
    found, seal = _verify(parsed, keys), parsed.message.seal
    if seal is not None and found is None:
        raise AuthenticationError("expected a key, got none: the message is sealed; give key=, or describe() it")
    message = _opened(parsed)
    if seal is None:
        return message, None
    now = int(time.time()) if now_unix_s is None else now_unix_s
    if now >= seal.expires_unix_s + CLOCK_SKEW_S:
        expected = f"expected now < expires_unix_s {seal.expires_unix_s} + {CLOCK_SKEW_S}"
        raise ExpiredError(f"{expected}, got {now}: have it sent again; if it was just written, compare the clocks")
    return message, found


class Part(NamedTuple):
    """One part of a message on the wire: where it begins and how many bytes it takes."""

    name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """A message as it may be shown (ids in hex); `parts` accounts for every one of its `total_bytes`."""

    version: int
    kind: Literal["bare", "sealed"]
    codec_id: str
    total_bytes: int
    parts: tuple[Part, ...]
    check: CheckState
    handoff_id: str | None
    expires_unix_s: int | None
    blob_bytes: int | None
    blob_digest: str | None


def describe(data: BytesLike, *, key: Key | None = None, audience: str | None = None) -> Description:
    """Describes `data` part by part. An expired message is described, not refused.

    Raises:
        DecodeError: bytes that are not a whole, canonical, undamaged message.
        AuthenticationError: a key and audience that do not verify the message, or a key given for a bare one.
        ConfigError: a key not of 16 to 64 bytes.
    """
    keys = keys_of(key, audience)
    parsed = _parse(data)
    found, message = _verify(parsed, keys), parsed.message
    seal, blob = message.seal, message.blob
    if seal is None or found:
        _opened(parsed)
    return Description(
        version=message.version,
        kind="bare" if seal is None else "sealed",
        codec_id=message.codec_id.hex(),
        total_bytes=len(parsed.wire),
        parts=_parts(parsed),
        check="valid" if seal is None else "valid under the key" if found else "not verified: no key given",
        handoff_id=None if seal is None else seal.handoff_id.hex(),
        expires_unix_s=None if seal is None else seal.expires_unix_s,
        blob_bytes=None if blob is None else blob.size_bytes,
        blob_digest=None if blob is None else blob.digest.hex(),
    )


class _Parsed(msgspec.Struct):
    """A message as it stands on the wire: canonical, not yet verified, its literals unopened and not in `message`."""

    wire: bytes
    message: Message
    literals: bytes
    tag: bytes


def _fields(message: Message, literals: bytes, tag: bytes) -> list[Any]:
    """Lists the fields in the order of the wire, `literals` as a whole field: the one place that writes the layout."""
    fields: list[Any] = [message.version, message.codec_id, message.payload]
    if message.blob is not None:
        fields += (message.blob.size_bytes, message.blob.digest)
    if message.seal is not None:
        fields += (message.seal.handoff_id, message.seal.expires_unix_s)
    if literals:
        fields.append(msgspec.Raw(literals))
    fields.append(tag)
    return fields


def _tag(body: bytes, key: bytes | None) -> bytes:
    return hashlib.blake2b(body, digest_size=CHECK_BYTES if key is None else MAC_BYTES, key=key or b"").digest()


def _parse(data: object) -> _Parsed:
    """Makes checks 1 to 6: unpacks the fields, checks each, and packs them again, which must give `data`."""
    if not isinstance(data, BytesLike):
        raise DecodeError(f"expected bytes, got {type(data).__name__}: pass what the transport delivered")
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if not MIN_MESSAGE_BYTES <= size <= MAX_MESSAGE_BYTES:
        raise DecodeError(f"expected {_SIZES} bytes, got {size}: truncated, or not an ilcp message")
    wire = bytes(data)
    version, codec_id, payload, *rest, tag = _unpacked(wire)
    literals = bytes(rest.pop()) if len(rest) & 1 else b""
    try:
        blob = None if version == VERSION else Blob(rest.pop(0), rest.pop(0))
        message = Message(codec_id, payload, Seal(*rest) if rest else None, version, blob=blob)
        name, tag_bytes = ("mac", MAC_BYTES) if rest else ("check", CHECK_BYTES)
        require_bytes(name, tag, tag_bytes, tag_bytes)
        if literals:
            split(literals)
    except EncodeError as error:
        raise DecodeError(f"{error}: {_BROKEN}") from None
    parsed = _Parsed(wire, message, literals, tag)
    encoded = _encode(_fields(message, literals, tag))
    if encoded != wire:
        spans = ((part.name, slice(part.offset, part.offset + part.size_bytes)) for part in _parts(parsed))
        name, at = next(each for each in spans if encoded[each[1]] != wire[each[1]])
        expected = f"expected 0x{encoded[at].hex()} as {name}, got 0x{wire[at].hex()}"
        raise DecodeError(f"{expected}: damaged, or not canonical msgpack")
    return parsed


def _unpacked(wire: bytes) -> Any:
    """Makes checks 2 to 4: a decoder for each layout refuses every other number, type or length of fields."""
    decoder = _DECODERS.get(wire[:2])
    if decoder is None:
        raise DecodeError(_no_layout(wire[0], wire[1]))
    try:
        return decoder.decode(wire)
    except (msgspec.DecodeError, RecursionError) as error:
        names = [*_LAYOUTS[wire[:2]]]
        said = re.sub(r"\$\[(\d)\]", lambda at: names[int(at[1])], str(error))
        raise DecodeError(f"expected one whole message, got {len(wire)} bytes: {said}") from None


def _no_layout(first: int, version: int) -> str:
    """Says what is wrong with the two bytes that no layout begins with."""
    if first & 0xF0 != 0x90:
        return f"expected a msgpack array (0x94 to 0x99) at byte 0, got 0x{first:02x}: no ilcp message"
    if version not in _FIELDS:
        return f"expected version 1 or 2 at byte 1, got 0x{version:02x}: update the reader or the sender"
    fields = f"expected {_FIELDS[version]} fields, 1 more with literals"
    return f"{fields}, got {first & 0x0F}: version {version} has no other"


def _parts(parsed: _Parsed) -> tuple[Part, ...]:
    """Lists the parts of the fields as they are encoded."""
    parts = [Part("array header", 0, 1), Part("version", 1, 1)]
    names = [*_LAYOUTS[parsed.wire[:2]]]
    fields = _fields(parsed.message, parsed.literals, parsed.tag)
    for name, field in zip(names[1:], fields[1:], strict=True):
        content, whole = split(parsed.literals)[1] if name == "literals" else field, len(_encode(field))
        size = (whole - 1 or 1) if isinstance(content, int) else len(content)
        header, at = whole - size, parts[-1].offset + parts[-1].size_bytes
        if header:  # none of a blob of 1 to 127 bytes
            parts.append(Part(f"{name} header", at, header))
        parts.append(Part(name, at + header, size))
    return tuple(parts)


def _opened(parsed: _Parsed) -> Message:
    """Makes check 9, of what is verified."""
    message = parsed.message
    if not parsed.literals:
        return message
    try:
        return msgspec.structs.replace(message, literals=from_field(parsed.literals))
    except EncodeError as error:
        raise DecodeError(f"{error}: {_BROKEN}") from None


def _verify(parsed: _Parsed, keys: tuple[bytes, ...]) -> bytes | None:
    """Makes checks 7 and 8; returns the key that verified, None where there was none to try."""
    body = parsed.wire[: -2 - len(parsed.tag)]
    if parsed.message.seal is None:
        if keys:
            because = "a key was given, and anyone can write a bare one"
            raise AuthenticationError(f"expected a sealed message, got a bare one: {because}")
        expected = _tag(body, None)
        if expected != parsed.tag:
            raise DecodeError(
                f"expected check {expected.hex()}, got {parsed.tag.hex()}: damaged on its way; send again"
            )
        return None
    for key in keys:
        if hmac.compare_digest(_tag(body, key), parsed.tag):
            return key
    if not keys:
        return None
    # The right MAC is never told.
    because = "sealed with another key, or altered, or for another audience"
    raise AuthenticationError(f"expected a MAC that verifies under the key given, got {parsed.tag.hex()}: {because}")
