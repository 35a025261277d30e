"""Version 3 of the wire format: encrypted messages. One table of objects and bytes drives writer and reader."""

import hashlib
import json
import pathlib
import sys
import time

import msgpack
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from hypothesis import given, settings
from hypothesis import strategies as st

from ilcp.errors import AuthenticationError, ConfigError, DecodeError, EncodeError, ExpiredError, MissingExtraError
from ilcp.message import MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, Blob, KeyRing, Message, Part, Seal, describe
from ilcp.message.encryption import SEGMENT_BYTES, decrypted_blob, encrypted_blob, plain_bytes
from ilcp.message.replay import ReplayCache
from ilcp.testing.strategies import encrypted_messages, hostile_bytes, keys, literals, payloads, with_ciphertext
from tests.helpers import refused_by_rule, run_python
from tests.second_decoder import Refused, decode

GOLDEN = pathlib.Path(__file__).parent / "golden" / "v3"
KEY = bytes(range(0x40, 0x60))
CODEC_ID = b"\x11\x22\x33\x44\x55\x66\x77\x88"
SEAL = Seal(b"\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8", 1893456000)
NOW = SEAL.expires_unix_s - 1
P80 = bytes((7 * i + 3) % 256 for i in range(80))
FEW = ("J3X4P2", "2024-05-17")
AUDIENCE = "planner"
THOROUGH = settings(max_examples=150, deadline=None, derandomize=True, database=None)

BLOB = b"blob"
HIDDEN_BLOB = bytes.fromhex("2f438e61c4cbe0196f9468cc30d02c2a1da13f59")
SMALL = Blob.of(HIDDEN_BLOB)
_HEAD = b"\x03\xc4\x08\x11\x22\x33\x44\x55\x66\x77\x88"
_SEAL = b"\xc4\x08\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xce\x70\xdb\xd8\x80"
_SMALL = b"\x14\xc4\x20" + bytes.fromhex("53cf91c212da9b9818d0f2b15e19fb132a2272f2aca6d9a7426630c9f97dbe28")
_SHOWN, _SHOWN_BLOB = b"\x95" + _HEAD + _SEAL, b"\x97" + _HEAD + _SMALL + _SEAL
_WORDS = b"\xb1J3X4P2\n2024-05-17"

# Name, message, audience, its bytes; the golden files hold the same. Ciphertexts are from RFC 8452 in pure Python over
# openssl's AES, the blob's digest is b2sum's.
TABLE = [
    (
        "encrypted-1",
        Message(CODEC_ID, b"!", SEAL, encrypted=True),
        None,
        _SHOWN + b"\xc4\x12" + bytes.fromhex("a07f1c14e6517ff2d6e5aaab3fb527dbddcd"),
    ),
    (
        "encrypted-80",
        Message(CODEC_ID, P80, SEAL, encrypted=True),
        None,
        _SHOWN
        + b"\xc4\x61"
        + bytes.fromhex(
            "94e1672c7877228dbe3f23061de2d8de4e72e9cce75acad0a977ddddc6922d91b0cdff0f89ff337af6fc14115c63961f418abd57da"
            "d0c9e2ca40f921746e934a901b12a48bf01140ac8d392441b426f57545897bd20e8ada10ffa74fd86cb69d94"
        ),
    ),
    (
        "encrypted-256",
        Message(CODEC_ID, bytes(256), SEAL, encrypted=True),
        None,
        _SHOWN
        + b"\xc5\x01\x11"
        + bytes.fromhex(
            "de34c2299484f1d9177e00cd97cd4e815b3cae68353d46031fb8b3622fbbe38228a881132491055000395f79b6de0baf65209f9030"
            "c499dfdbd816313934a41306b8d7c6faf10be70614ff5d29426863242db7f68c64ebdaeac53dd55703194c8d0e8664091f1d327e98"
            "a8465868e7eb6aaf050d6e53dc198185823bec05c1cca15a78e9bdc884fb91a7155b32c427f3b30e2db12dfae1814a113de33c71cb"
            "afc717a73a1f1ea5168be3a973d74f4cafc5b36ae0270872a2cc24e1a4bb603707cf32dd71dccea96cbca2bc8ffae029d973407ac6"
            "7f0ea9431b0614dc04951a123941db53ee128a11ab1d70d2f5e2cce986c795c581e0d16ff380c5942055cbb8cb5a32711d9d04d4c7"
            "1e5893b1f65540e8"
        ),
    ),
    (
        "literals",
        Message(CODEC_ID, P80, SEAL, literals=FEW, encrypted=True),
        None,
        _SHOWN
        + b"\xc4\x72"
        + bytes.fromhex(
            "68ae1a8fde191b6d313936d33061802c1a24fc4236ea39c060c7980811cfe3fccab445233739acade6d8088e505e0c04bde8c12d3a"
            "6b718c01733f618423d7316053baad44ce7c090bb94e2ad3da8ed96125a8bc78d8bb71aabae9ce6a653e7806767ee9261fa0fef85c"
            "829eb7c3bf2bac96"
        ),
    ),
    (
        "audience",
        Message(CODEC_ID, P80, SEAL, encrypted=True),
        AUDIENCE,
        _SHOWN
        + b"\xc4\x61"
        + bytes.fromhex(
            "d2247fa5db24eeadb1aec786128cecab3f71cbd0cafab4de9a76558353d5edb16eb9154535820de42f5ba98b206671055b3f6a3d27"
            "f631fd7a64cb0159f0fcb504be52e5e88d21f6dc76840316e025aa3cfff90a8017fcd2403c01d6d0dfa47b4d"
        ),
    ),
    (
        "blob-0",
        Message(CODEC_ID, b"", SEAL, blob=SMALL, encrypted=True),
        None,
        _SHOWN_BLOB + b"\xc4\x11" + bytes.fromhex("0f07d23b158571a3e6eef209c920148c18"),
    ),
    (
        "literals-blob",
        Message(CODEC_ID, b"!", SEAL, blob=SMALL, literals=FEW, encrypted=True),
        None,
        _SHOWN_BLOB
        + b"\xc4\x23"
        + bytes.fromhex("655700379b44ebb2f87723651812a48588c176f4847be67dff558fc4f8c40c3b26bdeb"),
    ),
]
IDS = [name for name, *_ in TABLE]
ROWS = [row[1:] for row in TABLE]
ENCRYPTED_80 = TABLE[1][3]
GOLDEN_ROWS = [(name, message, wire) for name, message, _, wire in TABLE]


def hiding(plain: bytes, shown: bytes = _SHOWN) -> bytes:
    """Returns a message that hides these bytes, whatever they are, under a tag that is right."""
    return with_ciphertext(shown, plain, KEY)


# Bytes, the key that the reader holds, the error, a fragment of its text; the tag is right, but for the last ones.
HOSTILE = {
    "6 fields": (
        hiding(b"\xa0!", b"\x96" + _SHOWN[1:]),
        KEY,
        DecodeError,
        "5 fields, or 7 with a blob, got 6: version",
    ),
    "version 4": (b"\x95\x04" + ENCRYPTED_80[2:], KEY, DecodeError, "expected version 1, 2 or 3 at byte 1, got 0x04"),
    "ciphertext is text": (_SHOWN + b"\xb2" + bytes(18), KEY, DecodeError, "got `str` - at `ciphertext`"),
    "ciphertext without a payload": (hiding(b"\xa0"), KEY, DecodeError, "ciphertext of 18 to 66578 bytes, got 17: the"),
    "ciphertext without a tag": (_SHOWN_BLOB + b"\xc4\x10" + bytes(16), KEY, DecodeError, "17 to 66578 bytes, got 16"),
    "ciphertext too long": (
        hiding(b"\xa0" + bytes(66562)),
        KEY,
        DecodeError,
        "ciphertext of 18 to 66578 bytes, got 66579",
    ),
    "bin 16 without need": (
        _SHOWN + b"\xc5\x00\x12" + bytes(18),
        KEY,
        DecodeError,
        "as ciphertext header, got 0xc500: damaged, or not canonical",
    ),
    "expiry of 1970": (hiding(b"\xa0!", _SHOWN[:-4] + b"\0\0\xff\xff"), KEY, DecodeError, "expected expires_unix_s as"),
    "codec id of 7 bytes": (
        hiding(b"\xa0!", b"\x95\x03\xc4\x07" + bytes(7) + _SEAL),
        KEY,
        DecodeError,
        "expected codec_id of 8 bytes, got 7",
    ),
    "nothing before the payload": (
        hiding(b"\xc0!"),
        KEY,
        DecodeError,
        "before the payload, got 0xc0 and no such field",
    ),
    "literals beyond the end": (hiding(b"\xa3!!"), KEY, DecodeError, "before the payload, got 0xa3 and no such field"),
    "half a header": (hiding(b"\xda\x01"), KEY, DecodeError, "before the payload, got 0xda and no such field"),
    "no literals in two bytes": (hiding(b"\xd9\x00!"), KEY, DecodeError, "literals of 1 to 1024 bytes, got 0: the"),
    "literals in str 8 without need": (hiding(b"\xd9\x02!!!"), KEY, DecodeError, "shortest str or bin for 2 bytes"),
    "literals of 1025 bytes": (hiding(b"\xda\x04\x01" + b"!" * 1026), KEY, DecodeError, "1 to 1024 bytes, got 1025"),
    "literals alone": (hiding(b"\xa1!"), KEY, DecodeError, "expected payload of 1 to 65535 bytes, got 0: the sender"),
    "a literal twice": (hiding(b"\xa3a\na!"), KEY, DecodeError, "expected each literal once"),
    "a literal of no UTF-8": (hiding(b"\xa1\xff!"), KEY, DecodeError, "expected literals as UTF-8"),
    "a frame that is none": (hiding(b"\xc4\x02\x20\x01!"), KEY, DecodeError, "zstd frame"),
    "payload too long": (hiding(b"\xa0" + bytes(2**16)), KEY, DecodeError, "payload of 1 to 65535 bytes, got 65536"),
    "no key": (
        ENCRYPTED_80,
        None,
        AuthenticationError,
        "expected a key, got none: the message is encrypted; give key=",
    ),
    "another key": (ENCRYPTED_80, bytes(range(32)), AuthenticationError, "expected a tag that verifies under the key"),
    "another audience": (
        TABLE[4][3],
        KEY,
        AuthenticationError,
        "encrypted with another key, or altered, or for another",
    ),
    "as sealed": (
        b"\x96\x01"
        + ENCRYPTED_80[2:12]
        + b"\xc4\x51"
        + ENCRYPTED_80[29:110]
        + _SEAL
        + b"\xc4\x10"
        + ENCRYPTED_80[110:],
        KEY,
        AuthenticationError,
        "expected a MAC that verifies",
    ),
    "as bare": (
        b"\x94\x01" + ENCRYPTED_80[2:12] + b"\xc4\x51" + ENCRYPTED_80[29:110] + b"\xc4\x04" + ENCRYPTED_80[110:114],
        KEY,
        AuthenticationError,
        "expected a sealed message, got a bare one",
    ),
    "another blob": (
        TABLE[5][3].replace(_SMALL, b"\x15" + _SMALL[1:]),
        KEY,
        AuthenticationError,
        "expected a tag that verifies",
    ),
    "too late": (hiding(b"\xa0!", _SHOWN[:-4] + b"\x00\x01\x00\x00"), KEY, ExpiredError, "expires_unix_s 65536 + 30"),
}


def accepted_vectors() -> list[dict[str, object]]:
    """The golden messages as JSON values: bytes are hex, what is absent is null."""
    return [
        {
            "name": name,
            "hex": wire.hex(),
            "key": KEY.hex(),
            "audience": audience,
            "now_unix_s": NOW,
            "codec_id": message.codec_id.hex(),
            "payload": message.payload.hex(),
            "blob_bytes": message.blob and message.blob.size_bytes,
            "blob_digest": message.blob and message.blob.digest.hex(),
            "blob": message.blob and HIDDEN_BLOB.hex(),
            "decrypted_blob": message.blob and BLOB.hex(),
            "handoff_id": SEAL.handoff_id.hex(),
            "expires_unix_s": SEAL.expires_unix_s,
            "literals": list(message.literals),
            "canonical": True,
        }
        for name, message, audience, wire in TABLE
    ]


def refused_vectors() -> list[dict[str, object]]:
    """What must be refused, and by which error; without those that are long."""
    return [
        {"name": name, "hex": wire.hex(), "key": key and key.hex(), "now_unix_s": NOW, "refusal": error.__name__}
        for name, (wire, key, error, _) in HOSTILE.items()
        if len(wire) < 2000
    ]


def blame(wire: bytes, key: bytes | None) -> str:
    """Says how the second decoder refuses."""
    with pytest.raises(Refused) as caught:
        decode(wire, key, NOW)
    return str(caught.value)


def _flips(wire: bytes) -> list[bytes]:
    return [wire[:at] + bytes([wire[at] ^ 1 << bit]) + wire[at + 1 :] for at in range(len(wire)) for bit in range(8)]


# --- what is written and read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "message", "audience", "wire"), TABLE, ids=IDS)
def test_writer_reader_and_golden_files_agree_with_the_table(
    name: str, message: Message, audience: str | None, wire: bytes
) -> None:
    """A message gives the bytes of the table, which are those of its file; they give the message, to any reader."""
    assert wire == message.to_bytes(KEY, audience=audience) == (GOLDEN / f"{name}.bin").read_bytes()
    assert message == Message.from_bytes(wire, key=KEY, now_unix_s=NOW, audience=audience)
    assert 3 == message.version
    assert wire == msgpack.packb(msgpack.unpackb(wire))
    if audience is None:
        found = decode(wire, KEY, NOW)
        assert (message.payload, list(message.literals)) == (found["payload"], found["literals"])
        assert (message.blob and (message.blob.size_bytes, message.blob.digest)) == found.get("blob")


def test_the_golden_json_says_what_the_tables_say() -> None:
    """The vectors for other languages are those of this file: none was changed or left out."""
    kept = json.loads((GOLDEN / "vectors.json").read_text(encoding="utf-8"))
    assert accepted_vectors() == kept["accepted"]
    assert refused_vectors() == kept["refused"]
    assert sorted(IDS) == sorted(path.stem for path in GOLDEN.glob("*.bin"))


@THOROUGH
@given(encrypted_messages(), keys(), st.none() | st.just(AUDIENCE))
def test_an_encrypted_message_survives_the_wire(message: Message, key: bytes, audience: str | None) -> None:
    """Reading what was encrypted gives an equal message under the same key and audience, and what it is says so."""
    assert message.seal is not None
    wire = message.to_bytes(key, audience=audience)
    now = message.seal.expires_unix_s - 1
    assert message == Message.from_bytes(wire, key=key, now_unix_s=now, audience=audience)
    assert ("encrypted", len(wire)) == (describe(wire).kind, sum(part.size_bytes for part in describe(wire).parts))
    ring = KeyRing(bytes(range(1, 33)), (key,))
    assert message == Message.from_bytes(wire, key=ring, now_unix_s=now, audience=audience)


@THOROUGH
@given(payloads(), literals(), st.booleans())
def test_encryption_takes_no_byte_more_than_a_seal(payload: bytes, beside: tuple[str, ...], named: bool) -> None:
    """Of every usual message: one byte less where nothing stands beside a payload, two where literals do."""
    blob = SMALL if named else None
    sealed, encrypted = (
        Message(CODEC_ID, payload, SEAL, literals=beside, blob=blob, encrypted=on) for on in (False, True)
    )
    assert len(encrypted.to_bytes(KEY)) <= len(sealed.to_bytes(KEY))


@pytest.mark.parametrize("n", [1, 80, 238, 239, 255, 256, 65518, 65519, 65535])
def test_every_border_of_the_payload_length_round_trips(n: int) -> None:
    """The size is that of a sealed message or one less, and one more from 65,519 bytes of payload on."""
    message = Message(CODEC_ID, bytes(n), SEAL, encrypted=True)
    wire = message.to_bytes(KEY)
    more = len(wire) - len(Message(CODEC_ID, bytes(n), SEAL).to_bytes(KEY))
    assert (0 if 239 <= n <= 255 else 1 if n >= 65519 else -1) == more
    assert message == Message.from_bytes(wire, key=KEY, now_unix_s=NOW)
    assert wire == msgpack.packb(msgpack.unpackb(wire))


def test_the_largest_message_is_as_large_as_the_largest_sealed_one() -> None:
    """The limit of a message is that of an encrypted one with the longest of everything, too."""
    large = b"\xcf\x00\x00\x00\x10\x00\x00\x00\x00\xc4\x20" + bytes(32)
    plain = b"\xda\x04\x00" + b"!" * 1024 + bytes(MAX_PAYLOAD_BYTES)
    wire = hiding(plain, b"\x97" + _HEAD + large + _SEAL)
    assert MAX_MESSAGE_BYTES == len(wire)
    found = Message.from_bytes(wire, key=KEY, now_unix_s=NOW)
    assert (("!" * 1024,), bytes(MAX_PAYLOAD_BYTES)) == (found.literals, found.payload)


def test_the_keys_are_those_of_the_specification() -> None:
    """The cipher's key is made of the key, or the audience's, and is neither; the nonce is the id and the expiry."""
    nonce = SEAL.handoff_id + SEAL.expires_unix_s.to_bytes(4, "big")
    assert nonce == SEAL.nonce
    audience = hashlib.blake2b(AUDIENCE.encode(), key=KEY, digest_size=32, person=b"ilcp audience").digest()
    for row, key in ((TABLE[1], KEY), (TABLE[4], audience)):
        own = hashlib.blake2b(key=key, digest_size=32, person=b"ilcp encryption").digest()
        assert own not in (KEY, audience)
        assert b"\xa0" + P80 == AESGCMSIV(own).decrypt(nonce, row[3][29:], row[3][:29])


# --- what is hidden, and what is not ----------------------------------------------------------------------------------


@THOROUGH
@given(st.binary(min_size=6, max_size=200), st.text("abcdefgh", min_size=6, max_size=28))
def test_nothing_of_payload_and_literals_is_on_the_wire(payload: bytes, literal: str) -> None:
    """No six bytes of either stand in an encrypted message, which a sealed one shows in full."""
    sealed, encrypted = (Message(CODEC_ID, payload, SEAL, literals=(literal,), encrypted=on) for on in (False, True))
    shown, hidden = sealed.to_bytes(KEY), encrypted.to_bytes(KEY)[27:]
    assert payload in shown
    assert literal.encode() in shown
    for secret in (payload, literal.encode()):
        assert not any(secret[at : at + 6] in hidden for at in range(len(secret) - 5))


def test_length_codec_id_time_and_blob_are_shown() -> None:
    """Without the key a description says what the specification says is not hidden, and no more."""
    found = describe(TABLE[6][3])
    assert ("encrypted", 3, CODEC_ID.hex(), SEAL.handoff_id.hex(), SEAL.expires_unix_s) == (
        found.kind,
        found.version,
        found.codec_id,
        found.handoff_id,
        found.expires_unix_s,
    )
    assert (20, SMALL.digest.hex(), "not verified: no key given") == (
        found.blob_bytes,
        found.blob_digest,
        found.check,
    )
    assert (Part("ciphertext header", 62, 2), Part("ciphertext", 64, 19), Part("tag", 83, 16)) == found.parts[-3:]
    assert "valid under the key" == describe(TABLE[6][3], key=KEY).check


def test_the_same_message_under_the_same_id_looks_the_same_and_another_one_does_not() -> None:
    """An id that comes twice in one second tells whether two messages are equal, and not where they differ."""
    one, again, other = (
        Message(CODEC_ID, payload, SEAL, encrypted=True).to_bytes(KEY) for payload in (P80, P80, P80[:-1] + b"!")
    )
    assert one == again
    assert sum(a == b for a, b in zip(one[29:], other[29:], strict=True)) < 8  # by chance, 97 / 256 of them


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wire", "key", "error", "fragment"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_breaks_a_rule_is_refused_by_that_rule(
    wire: bytes, key: bytes | None, error: type[DecodeError], fragment: str
) -> None:
    """Each rule of version 3 refuses bytes that break it alone, with its own error and text; the second decoder too."""
    refused_by_rule(wire, key, error, fragment, NOW)
    assert error.__name__.removesuffix("Error").lower() == blame(wire, key)


@pytest.mark.parametrize(("message", "audience", "wire"), ROWS, ids=IDS)
def test_no_bit_and_no_byte_may_change(message: Message, audience: str | None, wire: bytes) -> None:
    """Every flipped bit, every cut and whatever stands behind is refused, by the second decoder for the same blame."""
    for changed in (*(wire[:at] for at in range(len(wire))), wire + b"\0", wire + wire, *_flips(wire)):
        with pytest.raises(DecodeError) as caught:
            Message.from_bytes(changed, key=KEY, now_unix_s=NOW, audience=audience)
        if audience is None:
            assert type(caught.value).__name__.removesuffix("Error").lower() == blame(changed, KEY)


@THOROUGH
@given(hostile_bytes(KEY).filter(lambda wire: wire[1:2] == b"\x03"), st.sampled_from([None, KEY]))
def test_both_decoders_agree_on_hostile_bytes_of_this_version(wire: bytes, key: bytes | None) -> None:
    """Whatever comes, the two decoders read the same payload and literals, or refuse it for the same blame."""
    try:
        message = Message.from_bytes(wire, key=key, now_unix_s=NOW)
    except DecodeError as error:
        refusal = type(error).__name__.removesuffix("Error").lower()
    else:
        found = decode(wire, key, NOW)
        assert (found["payload"], found["literals"]) == (message.payload, list(message.literals))
        return
    assert refusal == blame(wire, key)


def test_what_cannot_be_encrypted_is_refused_before_anything_is_written() -> None:
    """Encrypted takes a seal and a key; the version follows, and one that contradicts it is an error."""
    with pytest.raises(EncodeError, match="expected a seal beside encrypted, got none"):
        Message(CODEC_ID, b"!", encrypted=True)
    with pytest.raises(EncodeError, match="expected encrypted as True or False, got int"):
        Message(CODEC_ID, b"!", SEAL, encrypted=1)  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match="expected version as a whole number from 3 to 3, got 1"):
        Message(CODEC_ID, b"!", SEAL, 1, encrypted=True)
    with pytest.raises(EncodeError, match="expected version as a whole number from 1 to 1, got 3"):
        Message(CODEC_ID, b"!", SEAL, 3)
    with pytest.raises(ConfigError, match="expected a sealed message with a key"):
        Message(CODEC_ID, b"!", SEAL, encrypted=True).to_bytes()


def test_a_replay_cache_knows_an_id_whether_its_message_was_sealed_or_encrypted() -> None:
    """Both verify under one key, so that an id that was used up one way is used up the other way too."""
    from ilcp.errors import ReplayError
    from ilcp.message import verified

    cache = ReplayCache()
    seal = Seal(SEAL.handoff_id, int(time.time()) + 60)
    for on, refusals in ((False, ()), (True, (ReplayError,))):
        message, key = verified(Message(CODEC_ID, b"!", seal, encrypted=on).to_bytes(KEY), key=KEY)
        assert KEY == key
        assert message.seal is not None
        if refusals:
            with pytest.raises(refusals):
                cache.admit(key, message.seal)
        else:
            cache.admit(key, message.seal)


# --- blobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES])
def test_a_blob_is_hidden_in_segments(n: int) -> None:
    """Each segment has its number and whether it is the last as its nonce, under a key of this message's own."""
    plain = bytes(range(251)) * (n // 251 + 1)
    plain = plain[:n]
    hidden = encrypted_blob(KEY, SEAL.nonce, plain)
    segments = -(-n // SEGMENT_BYTES)
    assert n + 16 * segments == len(hidden)
    assert n == plain_bytes(len(hidden))
    assert plain == decrypted_blob(KEY, SEAL.nonce, hidden)
    cipher = AESGCMSIV(hashlib.blake2b(SEAL.nonce, key=KEY, digest_size=32, person=b"ilcp blob").digest())
    last = hidden[(segments - 1) * (SEGMENT_BYTES + 16) :]
    assert plain[(segments - 1) * SEGMENT_BYTES :] == cipher.decrypt(
        (segments - 1).to_bytes(11, "big") + b"\x01", last, None
    )
    assert n < 100 or plain[:100] not in hidden


def test_the_golden_blob_is_written_and_read() -> None:
    """The blob of the golden messages, which other languages have in the JSON."""
    assert HIDDEN_BLOB == encrypted_blob(KEY, SEAL.nonce, BLOB)
    assert BLOB == decrypted_blob(KEY, SEAL.nonce, HIDDEN_BLOB)


def test_a_blob_of_another_message_cut_turned_around_or_altered_is_refused() -> None:
    """Whole segments that are missing, too many, exchanged or empty are seen, as a flipped bit and another id are."""
    step = SEGMENT_BYTES + 16
    plain = bytes(2 * SEGMENT_BYTES + 5)
    hidden = encrypted_blob(KEY, SEAL.nonce, plain)
    first, second, third = hidden[:step], hidden[step : 2 * step], hidden[2 * step :]
    own = hashlib.blake2b(SEAL.nonce, key=KEY, digest_size=32, person=b"ilcp blob").digest()
    nothing = AESGCMSIV(own).encrypt(bytes(11) + b"\x01", b"", None)
    others = (first + second, first + third, second + first + third, hidden + third, first + b"!" + hidden[step + 1 :])
    for bad in (*others, hidden[:-1], hidden[:step], third, nothing, b"!"):
        with pytest.raises(
            DecodeError, match=r"expected a blob that was encrypted for this message, got other bytes in"
        ):
            decrypted_blob(KEY, SEAL.nonce, bad)
    for key, seal in ((KEY, Seal(bytes(8), SEAL.expires_unix_s)), (bytes(range(32)), SEAL)):
        with pytest.raises(DecodeError, match="in segment 0: drop it"):
            decrypted_blob(key, seal.nonce, hidden)


# --- the package behind it --------------------------------------------------------------------------------------------


def test_messages_are_read_and_written_without_cryptography_until_one_is_encrypted() -> None:
    """What is bare or sealed never loads the package, and neither does a look at an encrypted message."""
    done = run_python(
        "-c",
        "import sys\nfrom ilcp.message import Message, Seal, describe\nimport ilcp.message.encryption\n"
        f"wire = bytes.fromhex('{ENCRYPTED_80.hex()}')\nassert describe(wire).kind == 'encrypted'\n"
        "key, seal = bytes(range(32)), Seal.fresh(ttl_s=9)\n"
        "assert Message.from_bytes(Message(bytes(8), b'!', seal).to_bytes(key), key=key).seal == seal\n"
        "assert not {'cryptography', 'torch'} & {*sys.modules}\n"
        "Message(bytes(8), b'!', seal, encrypted=True).to_bytes(key)\nassert 'cryptography' in sys.modules",
    )
    assert 0 == done.returncode, done.stderr


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer gets a MissingExtraError; a reader refuses as one of an older version would, whoever sent it."""
    message, wire = TABLE[1][1], ENCRYPTED_80
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    said = r"expected cryptography>=43 for encrypted messages, got no such package: pip install 'ilcp\[encrypt\]'"
    with pytest.raises(MissingExtraError, match=said):
        message.to_bytes(KEY)
    with pytest.raises(MissingExtraError, match=said):
        encrypted_blob(KEY, SEAL.nonce, BLOB)
    with pytest.raises(DecodeError, match=said):
        Message.from_bytes(wire, key=KEY, now_unix_s=NOW)
    with pytest.raises(DecodeError, match=said):
        decrypted_blob(KEY, SEAL.nonce, HIDDEN_BLOB)
    with pytest.raises(AuthenticationError, match="expected a key, got none"):
        Message.from_bytes(wire, now_unix_s=NOW)
