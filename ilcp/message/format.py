"""Writes and reads messages as ``ilcp.message`` specifies them.

msgspec packs and unpacks the array: it refuses a field of another type before it builds anything of it, which msgpack
does in its stepwise ``Unpacker`` only, and a bare message takes 4.4 us both ways instead of 8.8.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from types import GenericAlias
from typing import Any, Final, Literal, NamedTuple

import msgspec

from ilcp.errors import AuthenticationError, ConfigError, DecodeError, EncodeError, ExpiredError
from ilcp.message.blob import BLOB_DIGEST_BYTES, Blob
from ilcp.message.checks import require_bytes, require_int, require_now
from ilcp.message.encryption import TAG_BYTES, decrypted, encrypted
from ilcp.message.keys import Key, keys_of, sealing_key
from ilcp.message.literals import MAX_LITERALS_BYTES, begin, from_field, require_literals, split, to_field
from ilcp.message.seal import HANDOFF_ID_BYTES, Seal

__all__ = ["Message", "Parsed", "Part", "authentic", "fitted", "opened", "parse", "parts", "verified"]

VERSION = 1  # the lowest, which a writer writes wherever it holds all
BLOB_VERSION = 2
ENCRYPTED_VERSION = 3
FITTING: Final = 0  # in the place of a version: the one that holds what the message has
CODEC_ID_BYTES = 8  # 64 bits: an accidental clash among a million codecs has a chance below 1 in 10 million
CHECK_BYTES = 4  # finds accidents; the transport below has its own checksum as well
MAC_BYTES = 16  # 128 bits: a forger's chance per attempt is 2**-128
MAX_PAYLOAD_BYTES = 2**16 - 1  # what msgpack's bin 16 can state; a larger one is no hand-off but a file
CLOCK_SKEW_S = 30  # NTP holds hosts within a second; this forgives one whose clock was not set for weeks

_IDS = {"version": int, "codec_id": bytes}
_HEAD = {**_IDS, "payload": bytes}
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
    b"\x95\x03": {**_IDS, **_SEAL, "ciphertext": bytes},
    b"\x97\x03": {**_IDS, **_BLOB, **_SEAL, "ciphertext": bytes},
}
_FIELDS = {
    VERSION: "4 (bare) or 6 (sealed) fields, 1 more with literals",
    BLOB_VERSION: "6 (bare) or 8 (sealed) fields, 1 more with literals",
    ENCRYPTED_VERSION: "5 fields, or 7 with a blob",
}
NO_LITERALS = b"\xa0"  # in front of an encrypted payload
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
MAX_PLAIN_BYTES = 3 + MAX_LITERALS_BYTES + MAX_PAYLOAD_BYTES
_SIZES = f"{MIN_MESSAGE_BYTES} to {MAX_MESSAGE_BYTES}"
_BROKEN = "the sender broke a limit of the version"

BytesLike = bytes | bytearray | memoryview
Kind = Literal["bare", "sealed", "encrypted"]


def fitted(payload: bytes, put: Callable[[bytes], Blob]) -> tuple[bytes, Blob | None]:
    """Returns a payload as a message carries it: itself, or nothing and the blob that ``put`` made of a larger one."""
    return (payload, None) if len(payload) <= MAX_PAYLOAD_BYTES else (b"", put(payload))


class Message(msgspec.Struct, frozen=True):
    """One hand-off as it crosses the wire: bare, or sealed where `seal` is given; `literals` beside the payload.

    With a `blob` the codec's payload is `payload`, which may be empty, and then the blob's bytes, which travel beside
    the message. Where it is `encrypted`, which takes a seal, nobody without the key reads payload and literals; its
    blob is then of what ``encryption.encrypted_blob`` made. The version follows: 3 encrypted, 2 with a blob, else 1;
    it need not be given.

    Raises:
        EncodeError: a field of the wrong type or length, literals that are no lines, or another version.
    """

    codec_id: bytes
    payload: bytes
    seal: Seal | None = None
    version: int = FITTING
    literals: tuple[str, ...] = ()
    blob: Blob | None = None
    encrypted: bool = False

    def __post_init__(self) -> None:
        require_bytes("codec_id", self.codec_id, CODEC_ID_BYTES, CODEC_ID_BYTES)
        require_bytes("payload", self.payload, 1 if self.blob is None else 0, MAX_PAYLOAD_BYTES)
        if self.seal is not None and not isinstance(self.seal, Seal):
            raise EncodeError(f"expected seal as Seal or None, got {type(self.seal).__name__}")
        if self.blob is not None and not isinstance(self.blob, Blob):
            raise EncodeError(f"expected blob as Blob or None, got {type(self.blob).__name__}")
        if type(self.encrypted) is not bool:
            raise EncodeError(f"expected encrypted as True or False, got {type(self.encrypted).__name__}")
        if self.encrypted and self.seal is None:
            raise EncodeError("expected a seal beside encrypted, got none: its id and expiry are the nonce")
        version = ENCRYPTED_VERSION if self.encrypted else VERSION if self.blob is None else BLOB_VERSION
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
            MissingExtraError: it is to be encrypted, and cryptography is not installed.
        """
        seals = sealing_key(key, audience)
        if (self.seal is None) != (seals is None):
            got = "a sealed one without" if seals is None else "a bare one with a key"
            raise ConfigError(f"expected a sealed message with a key or a bare one without, got {got}")
        if self.encrypted and self.seal is not None and seals is not None:
            plain = (to_field(self.literals) or NO_LITERALS) + self.payload
            beside = _encode(_fields(self, b"", bytes(len(plain) + TAG_BYTES)))[: -len(plain) - TAG_BYTES]
            return beside + encrypted(seals, self.seal.nonce, plain, beside)
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
            AuthenticationError: a wrong key or audience, a sealed or encrypted message and no key, or a bare message
                and a key.
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
    parsed = parse(data)
    found, seal = authentic(parsed, keys), parsed.seal
    if seal is not None and found is None:
        got = f"the message is {parsed.kind}; give key=, or describe() it"
        raise AuthenticationError(f"expected a key, got none: {got}")
    message = opened(parsed)
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


class Parsed(msgspec.Struct):
    """A message as it stands on the wire: canonical, not yet verified, its literals or its ciphertext unopened."""

    wire: bytes
    version: int
    codec_id: bytes
    payload: bytes  # none of an encrypted one
    blob: Blob | None
    seal: Seal | None
    literals: bytes
    tag: bytes  # the last field: check, MAC or ciphertext
    plain: bytes = b""  # what the ciphertext hid

    @property
    def kind(self) -> Kind:
        """Bare, sealed or encrypted."""
        return "bare" if self.seal is None else "sealed" if self.version != ENCRYPTED_VERSION else "encrypted"


def _fields(message: Message | Parsed, literals: bytes, tag: bytes) -> list[Any]:
    """Lists the fields in the order of the wire, `literals` as a whole field: the one place that writes the layout."""
    fields: list[Any] = [message.version, message.codec_id]
    if message.version != ENCRYPTED_VERSION:
        fields.append(message.payload)
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


def parse(data: object) -> Parsed:
    """Makes checks 1 to 6: unpacks the fields, checks each, and packs them again, which must give `data`.

    Raises:
        DecodeError: one of them fails.
    """
    if not isinstance(data, BytesLike):
        raise DecodeError(f"expected bytes, got {type(data).__name__}: pass what the transport delivered")
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if not MIN_MESSAGE_BYTES <= size <= MAX_MESSAGE_BYTES:
        raise DecodeError(f"expected {_SIZES} bytes, got {size}: truncated, or not an ilcp message")
    wire = bytes(data)
    version, codec_id, *rest, tag = _unpacked(wire)
    payload = b"" if version == ENCRYPTED_VERSION else rest.pop(0)
    literals = bytes(rest.pop()) if len(rest) & 1 else b""
    try:
        blob = Blob(rest.pop(0), rest.pop(0)) if version == BLOB_VERSION or len(rest) == 4 else None
        seal = Seal(*rest) if rest else None
        parsed = Parsed(wire, version, codec_id, payload, blob, seal, literals, tag)
        _require_lengths(parsed)
        if literals:
            split(literals)
    except EncodeError as error:
        raise DecodeError(f"{error}: {_BROKEN}") from None
    encoded = _encode(_fields(parsed, literals, tag))
    if encoded != wire:
        spans = ((part.name, slice(part.offset, part.offset + part.size_bytes)) for part in parts(parsed))
        name, at = next(each for each in spans if encoded[each[1]] != wire[each[1]])
        expected = f"expected 0x{encoded[at].hex()} as {name}, got 0x{wire[at].hex()}"
        raise DecodeError(f"{expected}: damaged, or not canonical msgpack")
    return parsed


def _require_lengths(parsed: Parsed) -> None:
    least = 0 if parsed.blob else 1
    require_bytes("codec_id", parsed.codec_id, CODEC_ID_BYTES, CODEC_ID_BYTES)
    if parsed.version == ENCRYPTED_VERSION:
        require_bytes("ciphertext", parsed.tag, 1 + least + TAG_BYTES, MAX_PLAIN_BYTES + TAG_BYTES)
        return
    require_bytes("payload", parsed.payload, least, MAX_PAYLOAD_BYTES)
    name, size = ("mac", MAC_BYTES) if parsed.seal else ("check", CHECK_BYTES)
    require_bytes(name, parsed.tag, size, size)


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
        return f"expected version 1, 2 or 3 at byte 1, got 0x{version:02x}: update the reader or the sender"
    return f"expected {_FIELDS[version]}, got {first & 0x0F}: version {version} has no other"


def parts(parsed: Parsed) -> tuple[Part, ...]:
    """Lists the parts of the fields as they are encoded."""
    found = [Part("array header", 0, 1), Part("version", 1, 1)]
    names = [*_LAYOUTS[parsed.wire[:2]]]
    fields = _fields(parsed, parsed.literals, parsed.tag)
    for name, field in zip(names[1:], fields[1:], strict=True):
        content, whole = split(parsed.literals)[1] if name == "literals" else field, len(_encode(field))
        size = (whole - 1 or 1) if isinstance(content, int) else len(content)
        header, at = whole - size, found[-1].offset + found[-1].size_bytes
        if header:  # none of a blob of 1 to 127 bytes
            found.append(Part(f"{name} header", at, header))
        tag = TAG_BYTES if name == "ciphertext" else 0
        found.append(Part(name, at + header, size - tag))
        if tag:
            found.append(Part("tag", at + whole - tag, tag))
    return tuple(found)


def opened(parsed: Parsed) -> Message:
    """Makes check 9, of what is verified.

    Raises:
        DecodeError: it fails.
    """
    payload, field, hidden = parsed.payload, parsed.literals, parsed.version == ENCRYPTED_VERSION
    try:
        if hidden:
            size = begin(parsed.plain)
            field, payload = parsed.plain[:size], parsed.plain[size:]
        literals = from_field(field) if field not in (b"", NO_LITERALS) else ()
        return Message(parsed.codec_id, payload, parsed.seal, parsed.version, literals, parsed.blob, hidden)
    except EncodeError as error:
        raise DecodeError(f"{error}: {_BROKEN}") from None


def authentic(parsed: Parsed, keys: tuple[bytes, ...]) -> bytes | None:
    """Makes checks 7 and 8; returns the key that verified, or decrypted, None where there was none to try.

    Raises:
        DecodeError: the check is another.
        AuthenticationError: the kind is not the one asked for, or no key verifies.
    """
    if parsed.seal is None:
        if keys:
            because = "a key was given, and anyone can write a bare one"
            raise AuthenticationError(f"expected a sealed message, got a bare one: {because}")
        expected = _tag(parsed.wire[: -2 - CHECK_BYTES], None)
        if expected != parsed.tag:
            raise DecodeError(
                f"expected check {expected.hex()}, got {parsed.tag.hex()}: damaged on its way; send again"
            )
        return None
    for key in keys:
        if _opens(parsed, parsed.seal, key):
            return key
    if not keys:
        return None
    # The right MAC is never told.
    what, done = ("tag", "encrypted") if parsed.version == ENCRYPTED_VERSION else ("MAC", "sealed")
    because = f"{done} with another key, or altered, or for another audience"
    got = parsed.tag[-TAG_BYTES:].hex()
    raise AuthenticationError(f"expected a {what} that verifies under the key given, got {got}: {because}")


def _opens(parsed: Parsed, seal: Seal, key: bytes) -> bool:
    """Says whether a key verifies; what a ciphertext hid is then ``parsed.plain``."""
    if parsed.version != ENCRYPTED_VERSION:
        return hmac.compare_digest(_tag(parsed.wire[: -2 - MAC_BYTES], key), parsed.tag)
    plain = decrypted(key, seal.nonce, parsed.tag, parsed.wire[: -len(parsed.tag)])
    parsed.plain = plain or b""
    return plain is not None
