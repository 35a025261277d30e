"""Version 2 of the wire format: messages that name a blob. One table of objects and bytes drives writer and reader."""

import json
import pathlib

import msgpack
import pytest

from ilcp.errors import AuthenticationError, DecodeError, EncodeError
from ilcp.message import MAX_BLOB_BYTES, MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, Blob, Message, Part, Seal, describe
from ilcp.testing.strategies import with_check, with_mac
from tests.helpers import refused_by_rule
from tests.second_decoder import decode

GOLDEN = pathlib.Path(__file__).parent / "golden" / "v2"
KEY = bytes(range(0x40, 0x60))
CODEC_ID = b"\x11\x22\x33\x44\x55\x66\x77\x88"
SEAL = Seal(b"\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8", 1893456000)
NOW = SEAL.expires_unix_s - 1
FEW = ("J3X4P2", "2024-05-17")
SMALL, LARGE = Blob.of(b"blob"), Blob(MAX_BLOB_BYTES, bytes(range(32)))

_HEAD = b"\x02\xc4\x08\x11\x22\x33\x44\x55\x66\x77\x88"
_SEAL = b"\xc4\x08\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xce\x70\xdb\xd8\x80"
_SMALL = b"\x04\xc4\x20" + bytes.fromhex("63bc91fd719fd0f6512718baf3e7ba714c0de5414b356fcb6b85873a7a4e4cc2")
_LARGE = b"\xcf\x00\x00\x00\x10\x00\x00\x00\x00\xc4\x20" + bytes(range(32))
_WORDS = b"\xb1J3X4P2\n2024-05-17"

# Name, message, its bytes; the golden files hold the same. Checks, MACs and the small blob's digest are b2sum's and
# openssl's.
TABLE = [
    (
        "bare-0",
        Message(CODEC_ID, b"", blob=SMALL),
        b"\x96" + _HEAD + b"\xc4\x00" + _SMALL + b"\xc4\x04\x55\xb6\x6e\x9e",
    ),
    (
        "bare-1",
        Message(CODEC_ID, b"!", blob=LARGE),
        b"\x96" + _HEAD + b"\xc4\x01!" + _LARGE + b"\xc4\x04\x78\x7c\xaf\xb6",
    ),
    (
        "literals-bare",
        Message(CODEC_ID, b"!", blob=SMALL, literals=FEW),
        b"\x97" + _HEAD + b"\xc4\x01!" + _SMALL + _WORDS + b"\xc4\x04\x7f\xcc\x5f\x24",
    ),
    (
        "sealed-0",
        Message(CODEC_ID, b"", SEAL, blob=SMALL),
        b"\x98"
        + _HEAD
        + b"\xc4\x00"
        + _SMALL
        + _SEAL
        + b"\xc4\x10"
        + bytes.fromhex("900edb50d9102eea83f35c2270633b96"),
    ),
    (
        "literals-sealed",
        Message(CODEC_ID, b"!", SEAL, blob=LARGE, literals=FEW),
        b"\x99"
        + _HEAD
        + b"\xc4\x01!"
        + _LARGE
        + _SEAL
        + _WORDS
        + b"\xc4\x10"
        + bytes.fromhex("880f5ebdbde45c54b42172b8916111f3"),
    ),
]
IDS = [name for name, _, _ in TABLE]
PAIRS = [(message, wire) for _, message, wire in TABLE]
BARE, SEALED = TABLE[0][2], TABLE[3][2]
_BEGIN = b"\x96" + _HEAD + b"\xc4\x01!"
_DIGEST = b"\xc4\x20" + bytes(32)

# Bytes, the key that the reader holds, the error, a fragment of its text; check and MAC are right.
HOSTILE = {
    "version 1, 8 fields": (b"\x98\x01" + SEALED[2:], KEY, DecodeError, "got 8: version 1 has no other"),
    "version 2, 5 fields": (b"\x95" + BARE[1:], None, DecodeError, "got 5: version 2 has no other"),
    "version 3": (b"\x96\x03" + BARE[2:], None, DecodeError, "expected 5 fields, or 7 with a blob, got 6: version 3"),
    "no bytes": (with_check(_BEGIN + b"\x00" + _DIGEST), None, DecodeError, "expected blob_bytes as a whole number"),
    "too many bytes": (
        with_check(_BEGIN + b"\xcf\x00\x00\x00\x10\x00\x00\x00\x01" + _DIGEST),
        None,
        DecodeError,
        "from 1 to 68719476736, got 68719476737: the sender broke a limit",
    ),
    "size negative": (with_check(_BEGIN + b"\xff" + _DIGEST), None, DecodeError, "whole number from 1 to"),
    "size longer than need be": (
        with_check(_BEGIN + b"\xcc\x04" + _DIGEST),
        None,
        DecodeError,
        "expected 0x04 as blob_bytes, got 0xcc: damaged, or not canonical",
    ),
    "size in 32 bits without need": (
        with_check(_BEGIN + b"\xce\x00\x00\xff\xff" + _DIGEST),
        None,
        DecodeError,
        "as blob_bytes header, got 0xce: damaged",
    ),
    "size as a float": (
        with_check(_BEGIN + b"\xca\x00\x00\x00\x01" + _DIGEST),
        None,
        DecodeError,
        "Expected `int`, got `float` - at `blob_bytes`",
    ),
    "digest of 31 bytes": (
        with_check(_BEGIN + b"\x04\xc4\x1f" + bytes(31)),
        None,
        DecodeError,
        "expected blob_digest of 32 bytes, got 31: the sender",
    ),
    "digest is text": (
        with_check(_BEGIN + b"\x04\xd9\x20" + bytes(32)),
        None,
        DecodeError,
        "Expected `bytes`, got `str` - at `blob_digest`",
    ),
    "bare for a reader with a key": (BARE, KEY, AuthenticationError, "got a bare one"),
    "another blob under the seal": (
        SEALED.replace(_SMALL, b"\x05" + _SMALL[1:]),
        KEY,
        AuthenticationError,
        "or altered",
    ),
}


def key_of(message: Message) -> bytes | None:
    return None if message.seal is None else KEY


def accepted_vectors() -> list[dict[str, object]]:
    """The golden messages as JSON values: bytes are hex, what is absent is null."""
    return [
        {
            "name": name,
            "hex": wire.hex(),
            "key": None if message.seal is None else KEY.hex(),
            "now_unix_s": NOW,
            "codec_id": message.codec_id.hex(),
            "payload": message.payload.hex(),
            "blob_bytes": message.blob and message.blob.size_bytes,
            "blob_digest": message.blob and message.blob.digest.hex(),
            "handoff_id": None if message.seal is None else message.seal.handoff_id.hex(),
            "expires_unix_s": None if message.seal is None else message.seal.expires_unix_s,
            "literals": list(message.literals),
            "canonical": True,
        }
        for name, message, wire in TABLE
    ]


def refused_vectors() -> list[dict[str, object]]:
    """What must be refused, and by which error."""
    return [
        {"name": name, "hex": wire.hex(), "key": key and key.hex(), "now_unix_s": NOW, "refusal": error.__name__}
        for name, (wire, key, error, _) in HOSTILE.items()
    ]


@pytest.mark.parametrize(("message", "wire"), PAIRS, ids=IDS)
def test_writer_reader_and_golden_files_agree_with_the_table(
    message: Message, wire: bytes, request: pytest.FixtureRequest
) -> None:
    """A message gives the bytes of the table, which are those of its file; they give the message, to any reader."""
    assert wire == message.to_bytes(key_of(message)) == (GOLDEN / f"{request.node.callspec.id}.bin").read_bytes()
    assert message == Message.from_bytes(wire, key=key_of(message), now_unix_s=NOW)
    assert 2 == message.version
    assert wire == msgpack.packb(msgpack.unpackb(wire))
    assert message.blob is not None
    assert (message.blob.size_bytes, message.blob.digest) == decode(wire, key_of(message), NOW)["blob"]


def test_the_golden_json_says_what_the_tables_say() -> None:
    """The vectors for other languages are those of this file: none was changed or left out."""
    kept = json.loads((GOLDEN / "vectors.json").read_text(encoding="utf-8"))
    assert accepted_vectors() == kept["accepted"]
    assert refused_vectors() == kept["refused"]
    assert sorted(IDS) == sorted(path.stem for path in GOLDEN.glob("*.bin"))


@pytest.mark.parametrize(("wire", "key", "error", "fragment"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_breaks_a_rule_is_refused_by_that_rule(
    wire: bytes, key: bytes | None, error: type[DecodeError], fragment: str
) -> None:
    """Each rule of version 2 refuses bytes that break it alone, with its own error and text."""
    refused_by_rule(wire, key, error, fragment, NOW)


@pytest.mark.parametrize(("message", "wire"), PAIRS, ids=IDS)
def test_no_bit_and_no_byte_may_change(message: Message, wire: bytes) -> None:
    """Every flipped bit and every cut is refused."""
    for at in range(len(wire)):
        for changed in (wire[:at], *(wire[:at] + bytes([wire[at] ^ 1 << bit]) + wire[at + 1 :] for bit in range(8))):
            with pytest.raises(DecodeError):
                Message.from_bytes(changed, key=key_of(message), now_unix_s=NOW)


def test_the_version_follows_from_the_blob() -> None:
    """A version is written by what the message has; one that contradicts it is refused, and so is no payload in v1."""
    assert (1, 2) == (Message(CODEC_ID, b"!").version, Message(CODEC_ID, b"!", blob=SMALL).version)
    assert Message(CODEC_ID, b"!", blob=SMALL) == Message(CODEC_ID, b"!", None, 2, (), SMALL)
    for more, said in (
        ({"version": 1, "blob": SMALL}, "expected version as a whole number from 2 to 2, got 1"),
        ({"version": 2}, "expected version as a whole number from 1 to 1, got 2"),
        ({"blob": b"blob"}, "expected blob as Blob or None, got bytes"),
    ):
        with pytest.raises(EncodeError, match=said):
            Message(CODEC_ID, b"!", **more)
    with pytest.raises(EncodeError, match="expected payload of 1 to 65535 bytes, got 0"):
        Message(CODEC_ID, b"")
    for size, digest, said in (
        (0, bytes(32), "expected blob_bytes as a whole number from 1 to 68719476736, got 0"),
        (MAX_BLOB_BYTES + 1, bytes(32), "got 68719476737"),
        (1, bytes(31), "expected blob_digest of 32 bytes, got 31"),
    ):
        with pytest.raises(EncodeError, match=said):
            Blob(size, digest)


def test_the_largest_message_names_a_blob() -> None:
    """The limit of a message is that of a sealed one with the longest of everything."""
    message = Message(CODEC_ID, bytes(MAX_PAYLOAD_BYTES), SEAL, literals=("!" * 1024,), blob=LARGE)
    payload = b"\xc5\xff\xff" + bytes(MAX_PAYLOAD_BYTES)
    wire = with_mac(b"\x99" + _HEAD + payload + _LARGE + _SEAL + b"\xda\x04\x00" + b"!" * 1024, KEY)
    assert MAX_MESSAGE_BYTES == len(wire)
    assert message == Message.from_bytes(wire, key=KEY, now_unix_s=NOW)


def test_a_description_shows_the_blob() -> None:
    """Size and digest are told, verified or not, and the parts name every byte."""
    found = describe(SEALED)
    assert (2, 4, SMALL.digest.hex()) == (found.version, found.blob_bytes, found.blob_digest)
    assert (Part("blob_bytes", 14, 1), Part("blob_digest header", 15, 2), Part("blob_digest", 17, 32)) == found.parts[
        6:9
    ]
    large = describe(TABLE[1][2])
    assert (Part("blob_bytes header", 15, 1), Part("blob_bytes", 16, 8)) == large.parts[6:8]
    assert len(SEALED) == sum(part.size_bytes for part in found.parts)
    assert (None, None) == (describe(Message(CODEC_ID, b"!").to_bytes()).blob_bytes, None)
