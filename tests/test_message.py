"""The wire format: one table of objects and bytes drives writer and reader, another one holds what must be refused."""

import contextlib
import copy
import dataclasses
import hashlib
import json
import pathlib
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilcp import message as wire_format
from ilcp.errors import AuthenticationError, ConfigError, DecodeError, EncodeError, ExpiredError
from ilcp.message import MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, Message, Part, Seal, describe
from ilcp.message.format import CLOCK_SKEW_S, MIN_MESSAGE_BYTES
from ilcp.message.keys import KeyRing, keys_of
from ilcp.message.literals import MAX_LITERALS_BYTES
from ilcp.testing.strategies import bare_messages, hostile_bytes, keys, sealed_messages, with_check, with_mac
from tests.helpers import refused_by_rule

GOLDEN = pathlib.Path(__file__).parent / "golden" / "v1"
KEY = bytes(range(0x40, 0x60))
OTHER_KEY = bytes(range(0x41, 0x61))
CODEC_ID = b"\x11\x22\x33\x44\x55\x66\x77\x88"
SEAL = Seal(b"\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8", 1893456000)  # ends with the year 2029
NOW = SEAL.expires_unix_s - 1
P80 = bytes((7 * i + 3) % 256 for i in range(80))
ZEROS = bytes(256)
FEW = ("J3X4P2", "2024-05-17")
ODD = ("J3X4P2", "mara@example.org", "https://example.org/Ø/7")
MANY = tuple(f"{i * 7919:06d}-{i * 104729 % 9973:04d}" for i in range(24))
ALIKE = tuple(f"INC-2024-{n:04d}" for n in (17, 18, 19, 20, 171, 172))

_HEAD = b"\x01\xc4\x08\x11\x22\x33\x44\x55\x66\x77\x88"
_SEAL = b"\xc4\x08\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xce\x70\xdb\xd8\x80"
_TAIL = _SEAL + b"\xc4\x10"

# Name, message, its bytes. The golden files hold the same bytes under the same names.
TABLE = [
    ("bare-1", Message(CODEC_ID, b"!"), b"\x94" + _HEAD + b"\xc4\x01!\xc4\x04\xfc\x51\x1b\x36"),
    ("bare-80", Message(CODEC_ID, P80), b"\x94" + _HEAD + b"\xc4\x50" + P80 + b"\xc4\x04\x0a\x9d\x88\x78"),
    ("bare-256", Message(CODEC_ID, ZEROS), b"\x94" + _HEAD + b"\xc5\x01\x00" + ZEROS + b"\xc4\x04\xee\x41\x22\x0a"),
    (
        "sealed-1",
        Message(CODEC_ID, b"!", SEAL),
        b"\x96" + _HEAD + b"\xc4\x01!" + _TAIL + bytes.fromhex("c23cae4b8acd15ba986d0214f3f6f5e4"),
    ),
    (
        "sealed-80",
        Message(CODEC_ID, P80, SEAL),
        b"\x96" + _HEAD + b"\xc4\x50" + P80 + _TAIL + bytes.fromhex("d947bb82333adca8116e4b11864e2c0d"),
    ),
    (
        "sealed-256",
        Message(CODEC_ID, ZEROS, SEAL),
        b"\x96" + _HEAD + b"\xc5\x01\x00" + ZEROS + _TAIL + bytes.fromhex("03548ff53509f4fd35f093201c404888"),
    ),
    (
        "literals-bare",
        Message(CODEC_ID, P80, literals=FEW),
        b"\x95" + _HEAD + b"\xc4\x50" + P80 + b"\xb1J3X4P2\n2024-05-17\xc4\x04" + bytes.fromhex("22603a90"),
    ),
    (
        "literals-sealed",
        Message(CODEC_ID, P80, SEAL, literals=FEW),
        b"\x97" + _HEAD + b"\xc4\x50" + P80 + _SEAL + b"\xb1J3X4P2\n2024-05-17\xc4\x10"
        b"\xf9\xed\x8c\x1c\x0bj\xe9\n\xdb8\x82g\xf4\x80.\x85",
    ),
    (
        "literals-str8",
        Message(CODEC_ID, P80, literals=ODD),
        b"\x95" + _HEAD + b"\xc4\x50" + P80 + b"\xd9\x30" + "\n".join(ODD).encode() + b"\xc4\x04\xdd\x29\x2b\x0a",
    ),
]
# What a reader must read but a writer may write otherwise: text that zstd would make shorter, and a zstd frame.
FRAME = bytes.fromhex("2053250100b0494e432d323032342d303031370a38393230313731320500e00c6020e0183884e0a612")
READ_ONLY = [
    (
        "literals-str16",
        Message(CODEC_ID, P80, SEAL, literals=MANY),
        b"\x97" + _HEAD + b"\xc4\x50" + P80 + _SEAL + b"\xda\x01\x1f" + "\n".join(MANY).encode() + b"\xc4\x10"
        b'\x8f%\x98\xb0\x03\xf9"\x14f\xf95S9W]\x95',
    ),
    (
        "literals-zstd",
        Message(CODEC_ID, P80, literals=ALIKE),
        b"\x95" + _HEAD + b"\xc4\x50" + P80 + b"\xc4\x29" + FRAME + b"\xc4\x04\xd2\x03\xfd\x3a",
    ),
    (
        "literals-zstd-sealed",
        Message(CODEC_ID, P80, SEAL, literals=ALIKE),
        b"\x97"
        + _HEAD
        + b"\xc4\x50"
        + P80
        + _SEAL
        + b"\xc4\x29"
        + FRAME
        + b"\xc4\x10"
        + bytes.fromhex("3b4c4ad23130e0d5eaa1ff45a9f3797a"),
    ),
]
GOLDEN_ROWS = TABLE + READ_ONLY
IDS = [name for name, _, _ in TABLE]
PAIRS = [(message, wire) for _, message, wire in TABLE]
ALL_IDS = [name for name, _, _ in GOLDEN_ROWS]
ALL_PAIRS = [(message, wire) for _, message, wire in GOLDEN_ROWS]
BARE_80, SEALED_80, LITERALS_80, SEALED_LITERALS = (TABLE[i][2] for i in (1, 4, 6, 7))

THOROUGH = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def key_of(message: Message) -> bytes | None:
    return None if message.seal is None else KEY


def read(wire: bytes, message: Message) -> Message:
    """What a reader makes of `wire` that was asked for the kind of `message`, a second before the table expires."""
    return Message.from_bytes(wire, key=key_of(message), now_unix_s=NOW)


def _packed(frame: bytes) -> bytes:
    """A bare message up to its check, with a zstd frame as its literals."""
    return b"\x95" + _HEAD + b"\xc4\x06latent" + b"\xc4" + bytes([len(frame)]) + frame


def _flipped(wire: bytes, at: int) -> bytes:
    return wire[:at] + bytes([wire[at] ^ 1]) + wire[at + 1 :]


# --- what is accepted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("message", "wire"), PAIRS, ids=IDS)
def test_writer_and_reader_agree_with_the_table(message: Message, wire: bytes) -> None:
    """A message gives exactly the bytes of the table, and those bytes give that message, whatever holds them."""
    assert wire == message.to_bytes(key_of(message))
    assert message == read(wire, message)
    assert message == Message.from_bytes(bytearray(wire), key=key_of(message), now_unix_s=NOW)
    assert message == Message.from_bytes(memoryview(wire), key=key_of(message), now_unix_s=NOW)
    shaped = memoryview(wire).cast("B", shape=[1, len(wire)])
    assert message == Message.from_bytes(shaped, key=key_of(message), now_unix_s=NOW)
    strided = memoryview(bytes(b for byte in wire for b in (byte, 0)))[::2]
    assert message == Message.from_bytes(strided, key=key_of(message), now_unix_s=NOW)


@pytest.mark.parametrize(("message", "wire"), PAIRS, ids=IDS)
def test_golden_files_are_read_and_written_again(message: Message, wire: bytes, request: pytest.FixtureRequest) -> None:
    """The files of wire version 1 stay readable for ever, and today's writer still gives the same bytes."""
    golden = (GOLDEN / f"{request.node.callspec.id}.bin").read_bytes()
    assert message == read(golden, message)
    assert golden == message.to_bytes(key_of(message))


@pytest.mark.parametrize(("name", "message", "wire"), READ_ONLY, ids=[name for name, _, _ in READ_ONLY])
def test_golden_files_that_leave_the_writer_a_choice_are_read(name: str, message: Message, wire: bytes) -> None:
    """Uncompressed text and a frame of one zstd version stay readable, whatever today's writer makes of them."""
    assert wire == (GOLDEN / f"{name}.bin").read_bytes()
    assert message == read(wire, message)
    again = message.to_bytes(key_of(message))
    assert message == read(again, message)
    assert len(again) <= len(wire)


def test_no_golden_file_is_left_unread() -> None:
    """The folder of golden files and the table name the same messages."""
    assert sorted(ALL_IDS) == sorted(path.stem for path in GOLDEN.glob("*.bin"))


def test_the_golden_json_says_what_the_tables_say() -> None:
    """The vectors for other languages are those of this file: none was changed or left out."""
    kept = json.loads((GOLDEN / "vectors.json").read_text(encoding="utf-8"))
    assert accepted_vectors() == kept["accepted"]
    assert refused_vectors() == kept["refused"]
    assert {"about", "accepted", "refused"} == set(kept)


@pytest.mark.parametrize(("message", "wire"), PAIRS, ids=IDS)
def test_any_msgpack_library_reads_and_writes_a_message(message: Message, wire: bytes) -> None:
    """A message is ordinary msgpack, in the shortest form that a msgpack library writes."""
    fields = msgpack.unpackb(wire)
    assert [1, message.codec_id, message.payload] == fields[:3]
    assert wire == msgpack.packb(fields)
    if message.seal is not None:
        assert [message.seal.handoff_id, message.seal.expires_unix_s] == fields[3:5]
    if message.literals:
        assert "\n".join(message.literals) == fields[-2]


def test_the_usual_payload_costs_100_bytes_bare_and_127_sealed() -> None:
    """The sizes that the project states are those of the bytes that cross."""
    assert 100 == len(Message(CODEC_ID, bytes(80)).to_bytes())
    assert 127 == len(Message(CODEC_ID, bytes(80), SEAL).to_bytes(KEY))


@pytest.mark.parametrize("n", [1, 2, 80, 254, 255, 256, 257, 65534, 65535])
def test_every_border_of_the_payload_length_round_trips(n: int) -> None:
    """The overhead is 20 or 47 bytes, and one more from a payload of 256 on, where msgpack needs bin 16."""
    wide = n >= 256
    bare, sealed = Message(CODEC_ID, bytes(n)), Message(CODEC_ID, bytes(n), SEAL)
    assert n + 20 + wide == len(bare.to_bytes())
    assert n + 47 + wide == len(sealed.to_bytes(KEY))
    assert bare == read(bare.to_bytes(), bare)
    assert sealed == read(sealed.to_bytes(KEY), sealed)
    assert bare.to_bytes() == msgpack.packb(msgpack.unpackb(bare.to_bytes()))


def test_the_limits_of_a_message_follow_from_those_of_its_payload() -> None:
    """The smallest and the largest message that can be written are the limits that the reader enforces."""
    assert MIN_MESSAGE_BYTES == len(Message(CODEC_ID, b"!").to_bytes())
    payload = b"\xc5\xff\xff" + bytes(MAX_PAYLOAD_BYTES)
    literals = b"\xda\x04\x00" + b"!" * MAX_LITERALS_BYTES
    bare = with_check(b"\x95" + _HEAD + payload + literals)
    sealed = with_mac(b"\x97" + _HEAD + payload + _SEAL + literals, KEY)
    message = Message(CODEC_ID, bytes(MAX_PAYLOAD_BYTES), SEAL, literals=("!" * MAX_LITERALS_BYTES,))
    assert MAX_MESSAGE_BYTES == len(sealed) + 43  # what the name of a blob takes in version 2
    assert message == read(sealed, message)
    assert len(message.to_bytes(KEY)) < len(sealed)
    documented = wire_format.__doc__ or ""
    for number in (MIN_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, MAX_MESSAGE_BYTES, len(bare), CLOCK_SKEW_S):
        assert str(number) in documented


@THOROUGH
@given(bare_messages())
def test_a_bare_message_survives_the_wire(message: Message) -> None:
    """Reading what was written gives an equal message, for every bare message."""
    assert message == Message.from_bytes(message.to_bytes())


@THOROUGH
@given(sealed_messages(), keys())
def test_a_sealed_message_survives_the_wire(message: Message, key: bytes) -> None:
    """Reading what was sealed gives an equal message under the same key, for every sealed message in time."""
    assert message.seal is not None
    now = message.seal.expires_unix_s - 1
    assert message == Message.from_bytes(message.to_bytes(key), key=key, now_unix_s=now)


# --- what is refused ----------------------------------------------------------------------------------------------

_BARE_LATENT = b"\x94" + _HEAD + b"\xc4\x06latent"
_SEALED_LATENT = b"\x96" + _HEAD + b"\xc4\x06latent"
_LITERALS = b"\x95" + _BARE_LATENT[1:]
_HANDOFF = b"\xc4\x08\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8"

# Bytes, the key that the reader holds, the error, a fragment of its text. The check or the MAC is right wherever one
# is added by with_check or with_mac, so that nothing but the rule under test can refuse these bytes.
HOSTILE = {
    "empty": (b"", None, DecodeError, "expected 21 to 66653 bytes, got 0: truncated"),
    "one byte": (b"\x94", None, DecodeError, "got 1: truncated"),
    "too long": (bytes(66654), None, DecodeError, "expected 21 to 66653 bytes, got 66654"),
    "text": (b"The root cause was the cache.", None, DecodeError, "(0x94 to 0x99) at byte 0, got 0x54"),
    "a map": (b"\x84" + BARE_80[1:], None, DecodeError, "(0x94 to 0x99) at byte 0, got 0x84"),
    "array 16": (with_check(b"\xdc\x00\x04" + _BARE_LATENT[1:]), None, DecodeError, "at byte 0, got 0xdc"),
    "version 0": (
        with_check(b"\x94\x00" + _BARE_LATENT[2:]),
        None,
        DecodeError,
        "version 1, 2 or 3 at byte 1, got 0x00",
    ),
    "version 2": (with_check(b"\x94\x02" + _BARE_LATENT[2:]), None, DecodeError, "with literals, got 4: version 2"),
    "version 2, 7 fields": (b"\x97\x02" + BARE_80[2:], None, DecodeError, "got `bytes` - at `blob_bytes`"),
    "version true": (
        with_check(b"\x94\xc3" + _BARE_LATENT[2:]),
        None,
        DecodeError,
        "version 1, 2 or 3 at byte 1, got 0xc3",
    ),
    "version uint 8": (with_check(b"\x94\xcc\x01" + _BARE_LATENT[2:]), None, DecodeError, "at byte 1, got 0xcc"),
    "3 fields": (b"\x93" + BARE_80[1:], None, DecodeError, "or 6 (sealed) fields, 1 more with literals, got 3"),
    "8 fields": (with_check(b"\x98" + _BARE_LATENT[1:] + b"\xc0"), None, DecodeError, "got 8: version 1 has no other"),
    "fifth field nil": (
        with_check(b"\x95" + _BARE_LATENT[1:] + b"\xc0"),
        None,
        DecodeError,
        "str or bin for 1 bytes, got 0xc0: damaged",
    ),
    "fifth field int": (
        with_check(b"\x95" + _BARE_LATENT[1:] + b"\xcc\x80"),
        None,
        DecodeError,
        "expected literals as the shortest str or bin for 2 bytes, got 0xcc: damaged, or not canonical msgpack",
    ),
    "seventh field nil": (
        b"\x97" + SEALED_80[1:] + b"\xc0",
        KEY,
        DecodeError,
        "Expected `bytes`, got `None` - at `mac`",
    ),
    "version 2, literals": (
        with_check(b"\x95\x02" + _LITERALS[2:] + b"\xa1!"),
        None,
        DecodeError,
        "expected 6 (bare) or 8 (sealed) fields, 1 more with literals, got 5: version 2",
    ),
    "literals missing": (
        with_check(b"\x95" + _BARE_LATENT[1:]),
        None,
        DecodeError,
        "got 26 bytes: Input data was truncated",
    ),
    "literals beyond the end": (
        with_check(_LITERALS + b"\xbf!"),
        None,
        DecodeError,
        "expected one whole message, got 28 bytes: Input data was truncated",
    ),
    "literals say 65535 bytes": (
        with_check(_LITERALS + b"\xda\xff\xff!"),
        None,
        DecodeError,
        "got 30 bytes: Input data was truncated",
    ),
    "literals of nothing": (
        with_check(_LITERALS + b"\xd9\x00"),
        None,
        DecodeError,
        "1 to 1024 bytes, got 0: the sender",
    ),
    "literals of 1025 bytes": (
        with_check(_LITERALS + b"\xda\x04\x01" + bytes(1025)),
        None,
        DecodeError,
        "expected literals of 1 to 1024 bytes, got 1025: the sender broke a limit",
    ),
    "literals in str 8 without need": (
        with_check(_LITERALS + b"\xd9\x02!!"),
        None,
        DecodeError,
        "expected literals as the shortest str or bin for 2 bytes, got 0xd9: damaged, or not canonical",
    ),
    "literals are no UTF-8": (with_check(_LITERALS + b"\xa2\xff!"), None, DecodeError, "expected literals as UTF-8"),
    "literals, surrogate": (with_check(_LITERALS + b"\xa3\xed\xa0\x80"), None, DecodeError, "literals as UTF-8"),
    "literals, one empty": (
        with_check(_LITERALS + b"\xa2!\n"),
        None,
        DecodeError,
        "literal 1 without spaces around it",
    ),
    "literals, a space": (with_check(_LITERALS + b"\xa2! "), None, DecodeError, "begins or ends with one: the sender"),
    "literals, a tab": (with_check(_LITERALS + b"\xa3!\t!"), None, DecodeError, "got U+0009 at character 1"),
    "literals, a marker": (with_check(_LITERALS + b"\xa3\xee\x80\x80"), None, DecodeError, "got U+E000 at character 0"),
    "literals twice": (with_check(_LITERALS + b"\xa3!\n!"), None, DecodeError, "each literal once, got one twice"),
    "frame of another kind": (
        with_check(_LITERALS + b"\xc4\x03\x00!!"),
        None,
        DecodeError,
        "got another kind of frame",
    ),
    "frame with checksum": (with_check(_packed(b"\x24" + FRAME[1:])), None, DecodeError, "got another kind of frame"),
    "frame that says 0 bytes": (with_check(_packed(b"\x20\x00\x01\x00\x00")), None, DecodeError, "1024 bytes, got 0"),
    "frame that says 65791 bytes": (with_check(_packed(b"\x60\xff\xff!")), None, DecodeError, "1024 bytes, got 65791"),
    "frame that says too little": (with_check(_packed(b"\x20\x52" + FRAME[2:])), None, DecodeError, "one whole zstd"),
    "frame cut": (with_check(_packed(FRAME[:-1])), None, DecodeError, "expected one whole zstd frame"),
    "frame with junk": (with_check(_packed(FRAME + b"!")), None, DecodeError, "expected one whole zstd frame"),
    "frame no shorter": (
        with_check(_packed(b"\x20\x04\x21\x00\x00!!!!")),
        None,
        DecodeError,
        "expected a zstd frame shorter than its 4 bytes of text, got 9",
    ),
    "literals bit flipped": (_flipped(LITERALS_80, 96), None, DecodeError, "damaged on its way"),
    "wrong key, literals": (SEALED_LITERALS, OTHER_KEY, AuthenticationError, "sealed with another key, or altered"),
    "codec id is text": (
        with_check(b"\x94\x01\xd9\x08\x11" + _BARE_LATENT[5:]),
        None,
        DecodeError,
        "Expected `bytes`, got `str` - at `codec_id`",
    ),
    "codec id of 7 bytes": (
        with_check(b"\x94\x01\xc4\x07" + _BARE_LATENT[5:]),
        None,
        DecodeError,
        "expected codec_id of 8 bytes, got 7: the sender broke a limit",
    ),
    "payload is text": (
        with_check(b"\x94" + _HEAD + b"\xa6latent"),
        None,
        DecodeError,
        "Expected `bytes`, got `str` - at `payload`",
    ),
    "payload in bin 32": (
        with_check(b"\x94" + _HEAD + b"\xc6\x00\x00\x00\x06latent"),
        None,
        DecodeError,
        "expected 0xc406 as payload header, got 0xc600: damaged",
    ),
    "payload in bin 16 without need": (
        with_check(b"\x94" + _HEAD + b"\xc5\x00\x06latent"),
        None,
        DecodeError,
        "expected 0xc406 as payload header, got 0xc500: damaged, or not canonical",
    ),
    "payload says 4 GB": (
        b"\x94" + _HEAD + b"\xc6\xff\xff\xff\xfflatent",
        None,
        DecodeError,
        "got 23 bytes: Input data was truncated",
    ),
    "payload says 65535 bytes": (
        with_check(b"\x94" + _HEAD + b"\xc5\xff\xfflatent"),
        None,
        DecodeError,
        "expected one whole message, got 27 bytes: Input data was truncated",
    ),
    "no payload, bare": (with_check(b"\x94" + _HEAD + b"\xc4\x00"), None, DecodeError, "got 20: truncated"),
    "no payload, sealed": (
        with_mac(b"\x96" + _HEAD + b"\xc4\x00" + _HANDOFF + b"\xce\x70\xdb\xd8\x80", KEY),
        KEY,
        DecodeError,
        "expected payload of 1 to 65535 bytes, got 0: the sender broke a limit",
    ),
    "last byte missing": (BARE_80[:-1], None, DecodeError, "got 99 bytes: Input data was truncated"),
    "one byte too many": (
        BARE_80 + b"\x00",
        None,
        DecodeError,
        "got 101 bytes: MessagePack data is malformed: trailing",
    ),
    "two messages": (BARE_80 + BARE_80, None, DecodeError, "got 200 bytes: MessagePack data is malformed: trailing"),
    "check is text": (
        _BARE_LATENT + b"\xd9\x04\xd0\xaf\x50\x85",
        None,
        DecodeError,
        "Expected `bytes`, got `str` - at `check`",
    ),
    "check of another message": (
        _BARE_LATENT + b"\xc4\x04\xfc\x51\x1b\x36",
        None,
        DecodeError,
        "expected check d0af5085, got fc511b36: damaged",
    ),
    "bit of the payload flipped": (
        BARE_80[:14] + bytes([BARE_80[14] ^ 1]) + BARE_80[15:],
        None,
        DecodeError,
        "got 0a9d8878: damaged on its way",
    ),
    "sealed, array says bare": (
        b"\x94" + SEALED_80[1:],
        None,
        DecodeError,
        "got 127 bytes: MessagePack data is malformed: trailing",
    ),
    "bare, array says sealed": (b"\x96" + BARE_80[1:], KEY, DecodeError, "got 100 bytes: Input data was truncated"),
    "hand-off id is text": (
        with_mac(_SEALED_LATENT + b"\xd9" + _HANDOFF[1:] + b"\xce\x70\xdb\xd8\x80", KEY),
        KEY,
        DecodeError,
        "Expected `bytes`, got `str` - at `handoff_id`",
    ),
    "expiry below 2**16": (
        with_mac(_SEALED_LATENT + _HANDOFF + b"\xce\x00\x00\xff\xff", KEY),
        KEY,
        DecodeError,
        "expected expires_unix_s as a whole number from 65536 to 4294967295, got 65535",
    ),
    "expiry as a float": (
        with_mac(_SEALED_LATENT + _HANDOFF + b"\xca\x70\xdb\xd8\x80", KEY),
        KEY,
        DecodeError,
        "Expected `int`, got `float` - at `expires_unix_s`",
    ),
    "mac is text": (
        SEALED_80[:-18] + b"\xd9" + SEALED_80[-17:],
        KEY,
        DecodeError,
        "Expected `bytes`, got `str` - at `mac`",
    ),
    "wrong key": (
        SEALED_80,
        OTHER_KEY,
        AuthenticationError,
        "got d947bb82333adca8116e4b11864e2c0d: sealed with another",
    ),
    "no key": (SEALED_80, None, AuthenticationError, "expected a key, got none: the message is sealed"),
    "bare for a reader with a key": (BARE_80, KEY, AuthenticationError, "expected a sealed message, got a bare one"),
    "forged, its literals are not opened": (
        _LITERALS.replace(b"\x95", b"\x97", 1) + _SEAL + b"\xc4\x03\x00!!\xc4\x10" + bytes(16),
        KEY,
        AuthenticationError,
        "sealed with another key, or altered",
    ),
}


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
            "handoff_id": None if message.seal is None else message.seal.handoff_id.hex(),
            "expires_unix_s": None if message.seal is None else message.seal.expires_unix_s,
            "literals": list(message.literals),
            "canonical": name in IDS,
        }
        for name, message, wire in GOLDEN_ROWS
    ]


def refused_vectors() -> list[dict[str, object]]:
    """What must be refused, and by which error; an expired message and a bit of every golden message among it."""
    rows: list[dict[str, object]] = [
        {"name": name, "hex": wire.hex(), "key": key and key.hex(), "now_unix_s": NOW, "refusal": error.__name__}
        for name, (wire, key, error, _) in HOSTILE.items()
        if len(wire) < 5000
    ]
    late = {"name": "expired", "hex": SEALED_80.hex(), "key": KEY.hex(), "now_unix_s": NOW + 1 + CLOCK_SKEW_S}
    return [*rows, {**late, "refusal": "ExpiredError"}]


@pytest.mark.parametrize(("wire", "key", "error", "fragment"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_breaks_a_rule_is_refused_by_that_rule(
    wire: bytes, key: bytes | None, error: type[DecodeError], fragment: str
) -> None:
    """Each rule of the specification refuses bytes that break it alone, with its own error and text."""
    refused_by_rule(wire, key, error, fragment, NOW)


@pytest.mark.parametrize(("message", "wire"), ALL_PAIRS, ids=ALL_IDS)
def test_every_truncation_is_refused_and_counted(message: Message, wire: bytes) -> None:
    """A message cut off anywhere is refused as truncated, and the text says how many bytes came."""
    for n in range(len(wire)):
        with pytest.raises(DecodeError, match=rf"^expected .*, got {n}( bytes: Input data was|:) truncated"):
            read(wire[:n], message)


@pytest.mark.parametrize("junk", [b"\x00", b"\xc0", b"\x94", b"junk", BARE_80], ids=repr)
@pytest.mark.parametrize(("message", "wire"), ALL_PAIRS, ids=ALL_IDS)
def test_trailing_junk_is_refused_and_counted(message: Message, wire: bytes, junk: bytes) -> None:
    """No byte may follow a message, not even another message."""
    with pytest.raises(
        DecodeError, match=rf"got {len(wire + junk)} bytes: .* trailing characters \(byte {len(wire)}\)"
    ):
        read(wire + junk, message)


@pytest.mark.parametrize(("message", "wire"), ALL_PAIRS, ids=ALL_IDS)
def test_every_flipped_bit_is_refused(message: Message, wire: bytes) -> None:
    """No message of the table stays acceptable when any one of its bits changes."""
    for bit in range(8 * len(wire)):
        flipped = bytearray(wire)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecodeError):
            read(bytes(flipped), message)


@pytest.mark.parametrize("data", ["text", None, 7, [1, 2], {"a": 1}], ids=repr)
def test_what_is_not_bytes_is_refused_by_its_type(data: object) -> None:
    """Whatever a transport hands over by mistake is a DecodeError that names its type."""
    expected = f"expected bytes, got {type(data).__name__}: pass what the transport delivered"
    for reader in (Message.from_bytes, describe):
        with pytest.raises(DecodeError) as caught:
            reader(data)  # type: ignore[arg-type]
        assert expected == str(caught.value)


def test_a_message_ends_half_a_minute_after_the_second_of_its_expiry() -> None:
    """The last valid second is the one before `expires_unix_s` and the skew of clocks; the text quotes both times."""
    assert SEAL == Message.from_bytes(SEALED_80, key=KEY, now_unix_s=NOW + CLOCK_SKEW_S).seal
    with pytest.raises(
        ExpiredError, match=r"expected now < expires_unix_s 1893456000 \+ 30, got 1893456030: have it sent again"
    ):
        Message.from_bytes(SEALED_80, key=KEY, now_unix_s=NOW + 1 + CLOCK_SKEW_S)


def test_expiry_is_judged_by_the_clock_unless_told() -> None:
    """Without `now_unix_s` the system's clock decides."""
    past, ahead = int(time.time()) - 10 - CLOCK_SKEW_S, int(time.time()) + 600
    late, early = (Message(CODEC_ID, P80, Seal(SEAL.handoff_id, s)) for s in (past, ahead))
    assert early == Message.from_bytes(early.to_bytes(KEY), key=KEY)
    with pytest.raises(ExpiredError):
        Message.from_bytes(late.to_bytes(KEY), key=KEY)


def test_a_forged_message_is_not_called_expired() -> None:
    """The MAC is checked before the expiry, so an outsider learns nothing from an old message."""
    with pytest.raises(AuthenticationError):
        Message.from_bytes(SEALED_80, key=OTHER_KEY, now_unix_s=NOW + 1 + CLOCK_SKEW_S)


def test_the_error_of_a_wrong_mac_does_not_tell_the_right_one() -> None:
    """Who sends altered bytes and sees the error must not learn the MAC that would have been accepted."""
    altered = SEALED_80[:14] + bytes([SEALED_80[14] ^ 1]) + SEALED_80[15:]
    right = with_mac(altered[:-18], KEY)[-16:].hex()
    with pytest.raises(AuthenticationError) as caught:
        Message.from_bytes(altered, key=KEY, now_unix_s=NOW)
    assert right not in str(caught.value)
    assert KEY.hex() not in str(caught.value)


@THOROUGH
@given(st.data())
def test_hostile_bytes_give_a_message_or_a_decode_error(data: st.DataObject) -> None:
    """No bytes bring out any other exception; and what is accepted is, written again, the very same bytes."""
    wire = data.draw(hostile_bytes(KEY))
    for key in (None, KEY):
        try:
            message = Message.from_bytes(wire, key=key, now_unix_s=NOW)
        except DecodeError:
            continue
        assert wire == message.to_bytes(key)
        assert (message.seal is None) == (key is None)


@THOROUGH
@given(hostile_bytes(KEY))
def test_hostile_bytes_give_a_description_or_a_decode_error(wire: bytes) -> None:
    """No bytes bring any other exception out of describe; and what is described accounts for every byte."""
    for key in (None, KEY):
        try:
            description = describe(wire, key=key)
        except DecodeError:
            continue
        assert len(wire) == description.total_bytes == sum(part.size_bytes for part in description.parts)


@pytest.mark.parametrize(
    "wire",
    [
        Message(CODEC_ID, bytes(MAX_PAYLOAD_BYTES)).to_bytes(),
        Message(CODEC_ID, bytes(MAX_PAYLOAD_BYTES), SEAL).to_bytes(KEY),
        Message(CODEC_ID, bytes(MAX_PAYLOAD_BYTES)).to_bytes()[:-1] + b"\x00",
        b"\x94\x01" + b"\x91" * (MAX_MESSAGE_BYTES - 2),
        b"\x91" * MAX_MESSAGE_BYTES,
        b"\xc4" * MAX_MESSAGE_BYTES,
        bytes(MAX_MESSAGE_BYTES + 1),
        bytes(10_000_000),
    ],
    ids=["bare", "sealed", "bad check", "nested", "nested from the start", "headers", "one too many", "10 MB"],
)
def test_reading_takes_at_most_a_millisecond_per_kilobyte(wire: bytes) -> None:
    """No bytes, valid or hostile, keep a reader busy for longer than 1 ms per kB of the largest message."""
    times_s = []
    for _ in range(3):
        start_s = time.perf_counter()
        for key in (None, KEY):
            with contextlib.suppress(DecodeError):
                Message.from_bytes(wire, key=key, now_unix_s=NOW)
        times_s.append(time.perf_counter() - start_s)
    assert min(times_s) < 1e-6 * min(len(wire), MAX_MESSAGE_BYTES)


@pytest.mark.parametrize(
    "inside", [b"\x91", b"\x97", b"\x81", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"], ids=bytes.hex
)
@pytest.mark.parametrize("at", ["payload", "handoff_id", "literals"])
def test_nested_values_in_a_field_cost_no_memory(at: str, inside: bytes) -> None:
    """A field of another type is refused before anything is built of it, however deep or long it says it is."""
    head = {"payload": b"\x94" + _HEAD, "handoff_id": _SEALED_LATENT, "literals": _LITERALS}[at]
    wire = head + inside * (1000 // len(inside))
    for _ in range(2):  # the first one also loads what is loaded once
        tracemalloc.start()
        with pytest.raises(DecodeError, match=r"^expected "):
            Message.from_bytes(wire, now_unix_s=NOW)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8000


def test_threads_that_read_and_write_at_once_do_not_meet() -> None:
    """The packer and the unpackers are shared by all threads of a process, and each call keeps its own state."""
    rows = [(message, wire) for message, wire in PAIRS * 100]

    def both_ways(row: tuple[Message, bytes]) -> bool:
        message, wire = row
        return wire == message.to_bytes(key_of(message)) and message == read(wire, message)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(both_ways, rows))


# --- what the caller may give -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((bytes(7), b"!"), "expected codec_id of 8 bytes, got 7"),
        ((bytes(9), b"!"), "expected codec_id of 8 bytes, got 9"),
        (("codec id", b"!"), "expected codec_id as bytes, got str"),
        ((CODEC_ID, b""), "expected payload of 1 to 65535 bytes, got 0"),
        ((CODEC_ID, bytes(65536)), "expected payload of 1 to 65535 bytes, got 65536"),
        ((CODEC_ID, bytearray(b"!")), "expected payload as bytes, got bytearray"),
        ((CODEC_ID, b"!", b"seal"), "expected seal as Seal or None, got bytes"),
        ((CODEC_ID, b"!", None, 2), "expected version as a whole number from 1 to 1, got 2"),
        ((CODEC_ID, b"!", None, True), "expected version as a whole number from 1 to 1, got True"),
        ((CODEC_ID, b"!", None, 1, ["a"]), "expected literals as a tuple of str, got list"),
        ((CODEC_ID, b"!", None, 1, None), "expected literals as a tuple of str, got NoneType"),
        ((CODEC_ID, b"!", None, 1, ("a", 7)), "expected literal 1 as a str, got int"),
        ((CODEC_ID, b"!", None, 1, ("a", "")), "expected literal 1 without spaces around it, got an empty one"),
        ((CODEC_ID, b"!", None, 1, ("a\nb",)), "expected literal 0 as one line of text, got U+000A at character 1"),
        ((CODEC_ID, b"!", None, 1, ("\ud800",)), "got U+D800 at character 0"),
        ((CODEC_ID, b"!", None, 1, ("a", "b", "a")), "expected each literal once, got one twice"),
        ((CODEC_ID, b"!", None, 1, ("ø" * 512, "!")), "expected literals of at most 1024 bytes together, got 1026"),
    ],
)
def test_a_message_that_cannot_be_written_cannot_be_made(arguments: tuple[object, ...], fragment: str) -> None:
    """Every field is checked when the message is made, and the text says which, and what came."""
    with pytest.raises(EncodeError) as caught:
        Message(*arguments)  # type: ignore[arg-type]
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((bytes(7), 65536), "expected handoff_id of 8 bytes, got 7"),
        ((bytes(8), 65535), "expected expires_unix_s as a whole number from 65536 to 4294967295, got 65535"),
        ((bytes(8), 2**32), "got 4294967296"),
        ((bytes(8), 1e9), "got 1000000000.0"),
    ],
)
def test_a_seal_that_cannot_be_written_cannot_be_made(arguments: tuple[object, ...], fragment: str) -> None:
    """An id or an expiry that the wire cannot carry is refused when the seal is made."""
    with pytest.raises(EncodeError) as caught:
        Seal(*arguments)  # type: ignore[arg-type]
    assert fragment in str(caught.value)


def test_a_key_is_needed_where_and_only_where_a_message_is_sealed() -> None:
    """Neither a seal without a key nor a key without a seal is passed over in silence."""
    with pytest.raises(ConfigError, match="got a sealed one without"):
        Message(CODEC_ID, P80, SEAL).to_bytes()
    with pytest.raises(ConfigError, match="got a bare one with a key"):
        Message(CODEC_ID, P80).to_bytes(KEY)


@pytest.mark.parametrize(
    "key", [b"", bytes(15), bytes(65), "k" * 32, bytearray(32)], ids=["0", "15", "65", "str", "array"]
)
def test_a_key_of_the_wrong_length_or_type_is_the_callers_fault(key: bytes) -> None:
    """A key that cannot be one is a ConfigError everywhere, before any byte is read, and is never quoted."""
    for call in (
        lambda: Message(CODEC_ID, P80, SEAL).to_bytes(key),
        lambda: Message.from_bytes(b"", key=key),
        lambda: describe(b"", key=key),
    ):
        with pytest.raises(ConfigError, match=r"^expected key (of 16 to 64 bytes, got \d+|as bytes, got \w+)$"):
            call()


@pytest.mark.parametrize("now", [-1, 2**32, float("nan"), "today"])
def test_a_time_that_is_none_is_the_callers_fault(now: int) -> None:
    """`now_unix_s` must be a time: compared with a NaN no message would ever expire."""
    with pytest.raises(ConfigError, match="expected now_unix_s as a whole number"):
        Message.from_bytes(SEALED_80, key=KEY, now_unix_s=now)


def test_a_fresh_seal_is_unique_and_lasts_its_time() -> None:
    """Two fresh seals differ in their id and expire `ttl_s` after now."""
    first, second = (Seal.fresh(ttl_s=60, now_unix_s=1_800_000_000) for _ in range(2))
    assert first.handoff_id != second.handoff_id
    assert 1_800_000_060 == first.expires_unix_s == second.expires_unix_s
    before = int(time.time())
    assert before + 60 <= Seal.fresh(ttl_s=60).expires_unix_s <= int(time.time()) + 60


@pytest.mark.parametrize("ttl_s", [0, -1, 1.5, 2**32])
def test_a_seal_must_last_at_least_a_second(ttl_s: int) -> None:
    """A time to live that is none is refused, and so is an expiry that uint32 cannot hold."""
    with pytest.raises(ConfigError, match="expected ttl_s as a whole number"):
        Seal.fresh(ttl_s=ttl_s)
    with pytest.raises(EncodeError, match="expected expires_unix_s"):
        Seal.fresh(ttl_s=2**31, now_unix_s=2**31)


@pytest.mark.parametrize(
    ("value", "field"), [(TABLE[4][1], "payload"), (SEAL, "handoff_id"), (describe(BARE_80), "check")]
)
def test_messages_seals_and_descriptions_are_immutable(value: object, field: str) -> None:
    """No field of a value can be set, and equal values hash alike."""
    with pytest.raises(AttributeError, match=r"immutable|cannot assign"):
        setattr(value, field, b"other")
    assert hash(value) == hash(copy.copy(value))
    assert value == copy.deepcopy(value)


def test_a_message_keeps_its_bytes_when_the_readers_buffer_changes() -> None:
    """What was read owns its bytes: a transport may use its buffer again."""
    buffer = bytearray(BARE_80)
    message = Message.from_bytes(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert Message(CODEC_ID, P80) == message


# --- what a message shows of itself -------------------------------------------------------------------------------


def test_a_description_of_a_bare_message_names_every_byte() -> None:
    """The parts of a bare message, in order, with offsets: 80 of its 100 bytes are payload."""
    description = describe(BARE_80)
    assert (
        Part("array header", 0, 1),
        Part("version", 1, 1),
        Part("codec_id header", 2, 2),
        Part("codec_id", 4, 8),
        Part("payload header", 12, 2),
        Part("payload", 14, 80),
        Part("check header", 94, 2),
        Part("check", 96, 4),
    ) == description.parts
    assert (1, "bare", "1122334455667788", 100) == (
        description.version,
        description.kind,
        description.codec_id,
        description.total_bytes,
    )
    assert ("valid", None, None) == (description.check, description.handoff_id, description.expires_unix_s)


def test_a_description_of_a_sealed_message_says_what_was_verified() -> None:
    """Without a key a sealed message is shown as not verified, with the key as valid; expired or not."""
    with_key, without_key = describe(SEALED_80, key=KEY), describe(SEALED_80)
    assert "valid under the key" == with_key.check
    assert "not verified: no key given" == without_key.check
    assert with_key == dataclasses.replace(without_key, check="valid under the key")
    assert ("sealed", "a1a2a3a4a5a6a7a8", 1893456000) == (with_key.kind, with_key.handoff_id, with_key.expires_unix_s)
    assert (Part("expires_unix_s", 105, 4), Part("mac header", 109, 2), Part("mac", 111, 16)) == with_key.parts[-3:]
    expired = Message(CODEC_ID, P80, Seal(SEAL.handoff_id, 65536))
    assert 65536 == describe(expired.to_bytes(KEY), key=KEY).expires_unix_s


@pytest.mark.parametrize(("message", "wire"), PAIRS, ids=IDS)
def test_the_parts_of_a_description_cover_the_message_without_gaps(message: Message, wire: bytes) -> None:
    """Each part begins where the one before it ends; the last ends with the message."""
    offset = 0
    for part in describe(wire).parts:
        assert offset == part.offset
        offset += part.size_bytes
    assert len(wire) == offset
    assert {"payload": len(message.payload)}.items() <= {p.name: p.size_bytes for p in describe(wire).parts}.items()


@pytest.mark.parametrize(
    ("wire", "key", "error", "fragment"),
    [row for name, row in HOSTILE.items() if name != "no key"],
    ids=[name for name in HOSTILE if name != "no key"],
)
def test_what_a_reader_refuses_is_not_described(
    wire: bytes, key: bytes | None, error: type[DecodeError], fragment: str
) -> None:
    """Describing refuses what reading refuses, with the same error, save for the missing key."""
    with pytest.raises(DecodeError) as caught:
        describe(wire, key=key)
    assert error is type(caught.value)
    assert fragment in str(caught.value)


def test_an_audience_is_a_key_of_its_own() -> None:
    """As the specification says: the same bytes but for the MAC, under the key that BLAKE2b makes for the name."""
    message = Message(bytes(8), b"payload", Seal(bytes(8), 2**31))
    bare, planner = message.to_bytes(KEY), message.to_bytes(KEY, audience="planner")
    made = hashlib.blake2b(b"planner", key=KEY, digest_size=32, person=b"ilcp audience").digest()
    assert bare[:-16] == planner[:-16]
    assert hashlib.blake2b(planner[:-18], key=made, digest_size=16).digest() == planner[-16:]
    assert message == Message.from_bytes(planner, key=KEY, now_unix_s=2**30, audience="planner")
    assert "valid under the key" == describe(planner, key=KEY, audience="planner").check
    for wire, audience in ((planner, None), (planner, "critic"), (bare, "planner")):
        with pytest.raises(AuthenticationError, match="for another audience"):
            Message.from_bytes(wire, key=KEY, now_unix_s=2**30, audience=audience)
    with pytest.raises(ConfigError, match="expected a key beside the audience"):
        Message.from_bytes(planner, audience="planner")


@pytest.mark.parametrize("key", [bytes(16), bytes(64), b"k" * 32])
def test_memory_that_was_never_filled_is_no_key(key: bytes) -> None:
    """A key of one byte again and again is refused at each door, because everybody would guess it."""
    ring = KeyRing(KEY)
    for use in (lambda: keys_of(key), lambda: KeyRing(key), lambda: KeyRing(KEY, (key,)), lambda: ring.accepting(key)):
        with pytest.raises(ConfigError, match="expected a key of random bytes"):
            use()
