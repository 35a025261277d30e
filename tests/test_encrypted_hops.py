"""Encrypted messages from end to end: senders, receivers, blobs, transports, records and the command line."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import ilcp
from ilcp import Message, Receiver, Sender
from ilcp.audit import Accountant, Gloss, Guardian, Ledger, Recorder, Signer
from ilcp.audit.deposits import ACCOUNTS
from ilcp.audit.guardian import settings_for
from ilcp.cli import app
from ilcp.cli.exit_codes import exit_code
from ilcp.codec.memory import CacheMemory, TextMemory
from ilcp.errors import AuthenticationError, ConfigError, DecodeError, MissingExtraError, ReplayError
from ilcp.handoff import FallbackWarning
from ilcp.measure.hops import forwarded
from ilcp.message import Blob, KeyRing, Seal, describe
from ilcp.message.encryption import encrypted_blob
from ilcp.transport import BlobError, Settings, connect
from ilcp_codecs.kv import ExactCodec
from ilcp_codecs.text import PlainCodec
from tests.families import build
from tests.helpers import Folder, make_tokenizer, present, vectors_of

KEY, OTHER = bytes(range(0x40, 0x60)), bytes(range(1, 33))
SHORT = "Mara owns the ticket. The affected region is Bergen."
TOKENIZER = make_tokenizer(300)
LONG = "The ticket is owned by Mara, who knows nothing. The affected region is Bergen, for the third time. " * 2


def ends(small: SimpleNamespace, **options: Any) -> tuple[Sender, Receiver]:
    """A sender that encrypts, and a receiver of the same key and audience."""
    both = {"key": KEY, "audience": options.pop("audience", None)}
    sender = Sender(small.sender.model, small.sender.tokenizer, small.codec, encrypt=True, **both)
    told = options | both | {"allow_unmeasured": True}
    return sender, Receiver(small.receiver.model, small.receiver.tokenizer, small.codec, **told)


def test_encrypted_hops(small: SimpleNamespace) -> None:
    """What was encrypted decodes as the bare message does, one byte shorter than sealed; others are refused."""
    sender, receiver = ends(small, audience="planner")
    message = sender.encode(SHORT, literals=["INC-7"])
    bare = small.sender.encode(SHORT, literals=["INC-7"])
    assert ("encrypted", len(bare) + 25) == (describe(message).kind, len(message))
    memory = receiver.decode(message)
    assert vectors_of(memory).equal(vectors_of(small.receiver.decode(bare)))
    assert ("INC-7",) == memory.literals
    assert b"INC-7" not in message
    assert [26, 26] == [len(wire) - len(small.sender.encode(SHORT)) for wire in sender.encode_batch([SHORT, SHORT])]
    another = Receiver(
        small.receiver.model, small.receiver.tokenizer, small.codec, key=KeyRing(OTHER), allow_unmeasured=True
    )
    for wrong in (another, ends(small)[1], small.receiver):  # another key, no audience, no key
        with pytest.raises(AuthenticationError):
            wrong.decode(message)
    sealed = Sender(small.sender.model, small.sender.tokenizer, small.codec, key=KEY, audience="planner").encode(SHORT)
    assert vectors_of(receiver.decode(sealed)).equal(vectors_of(memory))


def test_encryption_takes_a_key_and_its_package(small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender without a key, or whose key was taken away, sends nothing; the package is missed when it is made."""
    given = (small.sender.model, small.sender.tokenizer, small.codec)
    with pytest.raises(ConfigError, match="expected a key to encrypt with, got none: give key="):
        Sender(*given, encrypt=True)
    for load in (ilcp.load_pair, ilcp.embedded.load_sender):
        with pytest.raises(ConfigError, match="expected a key to encrypt with, got none"):
            load(encrypt=True)
    sender, _ = ends(small)
    sender.key = None
    with pytest.raises(ConfigError, match="to encrypt with, got none: the sender's was taken away"):
        sender.encode(SHORT)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ilcp\[encrypt\]'"):
        Sender(*given, key=KEY, encrypt=True)


def test_the_embedded_pair_encrypts() -> None:
    """126 bytes in place of 127, and the answer of the bare message."""
    pair = ilcp.load_pair(key=KEY, encrypt=True)
    message = pair.sender.encode(SHORT)
    assert (126, "encrypted") == (len(message), describe(message).kind)
    plain = ilcp.load_pair()
    question = "Which region is affected?"
    assert plain.receiver.generate(plain.sender.encode(SHORT), question) == pair.receiver.generate(message, question)
    assert 126 == len(ilcp.embedded.load_sender(key=KEY, encrypt=True).encode(SHORT))
    again = forwarded(pair.sender, pair.receiver, message, 2)
    assert again != message
    assert Message.from_bytes(message, key=KEY).payload == Message.from_bytes(again, key=KEY).payload


def test_the_text_in_place_of_a_message_is_encrypted_too(small: SimpleNamespace) -> None:
    """Where a sender that encrypts falls back, the text is not sealed in clear."""
    sender, _ = ends(small)
    with pytest.warns(FallbackWarning):
        message = sender.encode(SHORT, otherwise="text")
    assert b"Mara" not in message
    receiver = Receiver(small.receiver.model, small.receiver.tokenizer, PlainCodec(), key=KEY, allow_unmeasured=True)
    assert SHORT == receiver.decode(message).text  # type: ignore[attr-defined]


def test_a_replay_cache_lets_an_encrypted_message_in_once_and_again_when_its_work_failed(
    small: SimpleNamespace,
) -> None:
    """As a sealed one."""
    sender, receiver = ends(small, replay=ilcp.ReplayCache())
    message = sender.encode(SHORT)
    receiver.decode(message)
    with pytest.raises(ReplayError):
        receiver.decode(message)
    receiver.forget(message)
    receiver.decode(message)


# --- blobs ------------------------------------------------------------------------------------------------------------


def caches(blobs: Any, audience: str | None = None, audit: Any = None) -> tuple[Sender, Receiver]:
    """Both ends of a hop of keys and values that is encrypted."""
    model = build("gpt_neox", len(TOKENIZER), hidden=64)
    codec = ExactCodec.of(model, TOKENIZER)
    both = {"key": KEY, "audience": audience, "blobs": blobs}
    sender = Sender(model, TOKENIZER, codec, encrypt=True, audit=audit, **both)
    return sender, Receiver(model, TOKENIZER, codec, allow_unmeasured=True, **both)


def test_a_blob_is_encrypted_with_its_message() -> None:
    """Nothing of keys and values is put in clear; 16 bytes more are, and the memory is that of the bare message."""
    blobs, bare = Folder(), Folder()
    sender, receiver = caches(blobs, "planner")
    message = sender.encode(LONG)
    plain = Sender(sender.model, TOKENIZER, sender.codec, blobs=bare)
    plain.encode(LONG)
    (blob, hidden), (whole, shown) = next(iter(blobs.kept.items())), next(iter(bare.kept.items()))
    assert (3, blob) == (Message.from_bytes(message, key=KEY, audience="planner").version, Blob.of(hidden))
    assert whole.size_bytes + 16 == blob.size_bytes
    assert not any(shown[at : at + 16] in hidden for at in range(0, len(shown) - 16, 16))
    memory = receiver.decode(message)
    assert isinstance(memory, CacheMemory)
    assert sender.codec.decode(shown).digest() == memory.digest()


def test_a_blob_of_another_message_or_too_long_is_refused() -> None:
    """One that was encrypted under another id, under that message's own name, and one that no payload is as long as."""
    blobs = Folder()
    sender, receiver = caches(blobs)
    first, second = (Message.from_bytes(sender.encode(LONG), key=KEY) for _ in range(2))
    assert present(first.blob) != present(second.blob)
    mixed = Message(first.codec_id, b"", second.seal, blob=first.blob, encrypted=True).to_bytes(KEY)
    with pytest.raises(DecodeError, match="expected a blob that was encrypted for this message"):
        receiver.decode(mixed)
    most = sender.codec.spec.payload_bytes
    seal = Seal.fresh(ttl_s=60)
    huge = Message(first.codec_id, b"", seal, blob=Blob(1 << 35, bytes(32)), encrypted=True).to_bytes(KEY)
    with pytest.raises(DecodeError, match=rf"at most {most} bytes, got 0 and a blob of \d+: drop it"):
        receiver.decode(huge)
    junk = blobs.put_blob(encrypted_blob(KEY, seal.nonce, b"no keys and values"))
    with pytest.raises(DecodeError):
        receiver.decode(Message(first.codec_id, b"", seal, blob=junk, encrypted=True).to_bytes(KEY))


def test_a_transport_keeps_the_blob_of_an_encrypted_message_as_long_as_the_message(tmp_path: Path) -> None:
    """It sees the name, so that the blob comes, goes with its message, and is missed before a message is sent."""
    with connect(f"spool://{tmp_path / 'spool'}", name="planner", settings=Settings(power_safe=False)) as place:
        sender, receiver = caches(place)
        message = sender.encode(LONG)
        place.send(message, to="planner")
        delivery = present(place.receive(5))
        assert isinstance(receiver.decode(delivery.message), CacheMemory)
        assert present(describe(message).handoff_id) == delivery.handoff_id
        delivery.ack()
        assert [] == list((tmp_path / "spool" / "blobs").glob("*"))
        with pytest.raises(BlobError):
            place.send(
                Message(bytes(8), b"!", Seal.fresh(ttl_s=9), blob=Blob.of(b"!"), encrypted=True).to_bytes(KEY), to="x"
            )


# --- records ----------------------------------------------------------------------------------------------------------


class Reads:
    """Reads every message as nothing, and keeps what it was given."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def gloss(self, *asked: Any) -> Gloss:
        """Keeps what is asked."""
        self.asked.append(asked)
        return Gloss((), "", {})


def test_a_record_says_encrypted_and_an_account_is_made_of_what_the_producer_told(tmp_path: Path) -> None:
    """The ledger has the digest of the message as it crossed; a guardian without the key believes the deposit."""
    for name in ("spool", "audit"):
        (tmp_path / name).mkdir(mode=0o700)
    url = f"spool://{tmp_path / 'spool'}"
    settings = settings_for(url)
    with (
        connect(url, name="guardian", settings=settings) as connection,
        connect(url, name=f"guardian{ACCOUNTS}", settings=settings) as deposits,
        Ledger(tmp_path / "audit" / "ledger.sqlite", Signer("example/ledger", bytes(range(32)))) as ledger,
    ):
        with Recorder(url, "planner", accounts=True) as audit:
            sender, receiver = caches(Folder(), audit=audit)
            receiver.audit = audit
            message = sender.encode(LONG, literals=["INC-7"])
            receiver.decode(message)
        Guardian(ledger, connection).work()
        reads: Any = Reads()
        Accountant(ledger, deposits, reads).work()
        sent, received = (entry.fields for entry in ledger.entries(kinds=["handoff"]))
        assert [("encrypted", len(message))] * 2 == [(each["kind"], each["message_bytes"]) for each in (sent, received)]
        assert describe(message).blob_digest == sent["blob_digest"]
        account = next(iter(ledger.entries(kinds=["account"])))
        assert "as its producer told" == account.fields["payload"]
        assert 1 == len(reads.asked)


# --- the command line -------------------------------------------------------------------------------------------------


def test_inspect_shows_what_is_not_hidden(small: SimpleNamespace, tmp_path: Path) -> None:
    """Parts, ids and expiry, and that the rest takes the key."""
    file = tmp_path / "message.ilcp"
    file.write_bytes(ends(small)[0].encode(SHORT, literals=["INC-7"]))
    shown = CliRunner().invoke(app, ["inspect", str(file)]).stdout
    for said in ("encrypted message, version 3", "ciphertext", "tag", "hidden", "payload and literals", "not verified"):
        assert said in shown
    found = json.loads(CliRunner().invoke(app, ["inspect", str(file), "--json"]).stdout)
    assert ("encrypted", 3) == (found["kind"], found["version"])
    assert "INC-7" not in json.dumps(found)


def test_encode_leaves_an_encrypted_message_where_it_is(tmp_path: Path) -> None:
    """It cannot be compared with a text: its place is said to be taken."""
    text = tmp_path / "a.txt"
    text.write_text(SHORT, encoding="utf-8")
    there = ilcp.embedded.load_sender(key=KEY, encrypt=True).encode(SHORT)
    (tmp_path / "a.txt.ilcp").write_bytes(there)
    done = CliRunner().invoke(app, ["encode", str(text), "--out", str(tmp_path)])
    assert exit_code(ConfigError("x")) == done.exit_code
    assert there == (tmp_path / "a.txt.ilcp").read_bytes()


def test_a_text_memory_is_no_less_plain_for_having_been_hidden(small: SimpleNamespace) -> None:
    """What an encrypted message says is judged as any other's: control tokens in a text are refused."""
    message = Message(
        PlainCodec().trained.codec_id(PlainCodec().spec), "a\u200bb".encode(), Seal.fresh(ttl_s=9), encrypted=True
    )
    receiver = Receiver(small.receiver.model, small.receiver.tokenizer, PlainCodec(), key=KEY, allow_unmeasured=True)
    with pytest.raises(DecodeError):
        receiver.decode(message.to_bytes(KEY))
    fine = Message(message.codec_id, b"Mara", message.seal, encrypted=True).to_bytes(KEY)
    assert isinstance(receiver.decode(fine), TextMemory)
