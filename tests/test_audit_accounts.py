"""Accounts of hand-offs: what a guardian makes of text and payload, once each, and of nothing but what is on record."""

import json
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import ilcp
from ilcp.audit import Accountant, AuditWarning, Gloss, Guardian, Ledger, Line, Recorder, Signer, verify
from ilcp.audit import accounts as accounts_module
from ilcp.audit.accounts import MOST_CHARACTERS, TOLD, TRIES, measured_of
from ilcp.audit.deposits import ACCOUNTS, CARRIED, MOST_BYTES, Deposit, binding, received
from ilcp.audit.guardian import settings_for
from ilcp.audit.submission import Submission, id_of
from ilcp.cli import accounts as cli_module
from ilcp.cli import app
from ilcp.cli.accounts import MOST_QUESTIONS
from ilcp.cli.accounts import accounts as working
from ilcp.codec.memory import TextMemory
from ilcp.embedded import Pair, load_receiver
from ilcp.errors import ConfigError, DecodeError, IdentityError, IlcpError, StorageError, UnmeasuredError
from ilcp.handoff import FallbackWarning
from ilcp.measure.faithfulness import faithfulness
from ilcp.measure.glosses import TELL_TOKENS, Glosses, own_questions
from ilcp.message import Blob, Message
from ilcp.signing import seed_in
from ilcp.tasks import case_files
from ilcp.tasks.telling import TELL
from ilcp.transport import Settings, UnreachableError, connect
from ilcp_codecs.kv import ExactCodec
from ilcp_codecs.text import PlainCodec
from tests.helpers import Folder, environment, noting, present

SIGNER = Signer("example/ledger", bytes(range(32)))
QUESTIONS = ("Who owns the ticket?", "Which region is affected?")
LINES = (Line("Who?", "Mara", "Mara"), Line("Where?", "Bergen", "Brno"), Line("When?", "Monday", None))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A spool, a guardian with its ledger beside it, and the connection on which it takes deposits."""
    for name in ("spool", "audit"):
        (tmp_path / name).mkdir(mode=0o700)
    url = f"spool://{tmp_path / 'spool'}"
    settings, path = settings_for(url), tmp_path / "audit" / "ledger.sqlite"
    with (
        connect(url, name="guardian", settings=settings) as connection,
        connect(url, name=f"guardian{ACCOUNTS}", settings=settings) as deposits,
        Ledger(path, SIGNER) as ledger,
    ):
        yield SimpleNamespace(
            url=url,
            ledger=ledger,
            guardian=Guardian(ledger, connection),
            deposits=deposits,
            spool=tmp_path / "spool",
            box=tmp_path / "box",
        )


class Fake:
    """Reads every message as the same, or refuses; ``asked`` is what it was given."""

    def __init__(self, gloss: Gloss | None = None, error: Exception | None = None) -> None:
        self.said = Gloss(LINES, "", {"model": "m"}) if gloss is None else gloss
        self.error = error
        self.asked: list[tuple[Any, ...]] = []

    def gloss(self, codec_id: str, payload: bytes, literals: Sequence[str], source: str | None) -> Gloss:
        """Returns what it says of all."""
        self.asked.append((codec_id, payload, tuple(literals), source))
        if self.error is not None:
            raise self.error
        return self.said


def text(number: int = 0) -> str:
    return next(iter(case_files("test", 7, 1, start=number))).context


def handed_over(
    place: SimpleNamespace, source: str | None = "It was Mara.", literals: Sequence[str] = (), payload: bytes = b"x"
) -> None:
    """Has a producer say that it sent a payload, which the guardian enters, and leave its deposit."""
    with Recorder(place.url, "planner", run="monday", accounts=True) as audit:
        message = Message(bytes(8), payload, literals=tuple(literals))
        audit.sent(message.to_bytes(), None, literals, payload=payload, source=source)
    place.guardian.work()


def entered(place: SimpleNamespace, payload: bytes, source: str | None, number: int = 1, **about: Any) -> None:
    """Has the guardian enter a record of a payload and a text, without a deposit."""
    told = {"handoff_id": f"h{number}"} | about
    made = Submission("planner", "r", "p", number, "sent", told, binding(payload, source))
    place.deposits.send(made.to_bytes(), to="guardian", handoff_id=id_of(made.to_bytes()))
    place.guardian.work()


def deposited(place: SimpleNamespace, body: bytes, codec_id: bytes = CARRIED) -> None:
    """Leaves bytes where deposits come in."""
    wire = Message(codec_id, body).to_bytes()
    place.deposits.send(wire, to=f"guardian{ACCOUNTS}", handoff_id=id_of(wire))


def kinds(ledger: Ledger) -> list[str]:
    return [entry.kind for entry in ledger.entries(first=1)]


def beside(ledger: Ledger, number: int) -> dict[str, Any]:
    return {name: present(each).value for name, each in ledger.personal(number).items()}


def the_account(ledger: Ledger) -> Any:
    (found,) = ledger.entries(kinds=["account"])
    return found


def literals_of(wire: bytes) -> tuple[str, ...]:
    return Message.from_bytes(wire).literals


def receiver_of(pair: Pair, **options: Any) -> ilcp.Receiver:
    """The embedded receiver, which takes texts too."""
    codecs = [pair.receiver.codec, PlainCodec()]
    return ilcp.Receiver(pair.receiver.model, pair.receiver.tokenizer, codecs, allow_unmeasured=True, **options)


# --- what an account holds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["bare", "sealed"])
def test_an_account_says_what_a_message_was_read_to_say_and_what_its_text_says(
    pair: Pair, place: SimpleNamespace, key: bytes | None
) -> None:
    """Both stand beside the tree and can be erased; the entry has counts and digests alone."""
    with Recorder(place.url, "planner", run="monday", accounts=True) as audit:
        sender = ilcp.Sender(pair.sender.model, pair.sender.tokenizer, pair.sender.codec, audit=audit, key=key)
        wire = sender.encode(text(), literals=["INC-20391"])
    place.guardian.work()
    accountant = Accountant(place.ledger, place.deposits, Glosses(receiver_of(pair), QUESTIONS))
    assert (True, False) == (accountant.work(), accountant.work())
    assert ["handoff", "account"] == kinds(place.ledger)
    account, said = the_account(place.ledger), beside(place.ledger, 2)
    sent = present(place.ledger.entry(1)).fields
    assert (1, "monday", sent["handoff_id"]) == tuple(account.fields[name] for name in ("of", "run", "handoff_id"))
    memory = ilcp.Receiver(pair.receiver.model, pair.receiver.tokenizer, pair.receiver.codec, key=key).decode(wire)
    from_memory, from_text = (
        pair.receiver.answers([(each, question) for question in QUESTIONS]) for each in (memory, TextMemory(text()))
    )
    lines = [
        dict(zip(("question", "answer", "from_text"), each, strict=True))
        for each in zip(QUESTIONS, from_memory, from_text, strict=True)
    ]
    assert lines == said["gloss"]
    differ = sum(one != other for one, other in zip(from_memory, from_text, strict=True))
    assert (2, 2, differ) == tuple(account.fields[name] for name in ("asked", "compared", "differ"))
    assert said["summary"]
    assert all(part in text() for part in said["summary"].split(". "))
    assert pair.receiver.codec.trained.receiver.digest().hex() == account.fields["gloss_by"]["model"]
    assert not any(word in account.to_bytes().decode() for word in (QUESTIONS[0], said["summary"][:20]))
    place.ledger.erase(2, ["gloss", "summary"], by="officer", because="she asked")
    assert {"gloss": None, "summary": None} == place.ledger.personal(2)
    assert verify(place.ledger.path, keys=[SIGNER.key]).sound


def test_disagreement_is_counted_where_the_text_was_read(place: SimpleNamespace) -> None:
    """What has no answer from the text is neither the same nor another; what a message says freely stands beside."""
    reads = Fake(Gloss(LINES, "It was Mara in Bergen.", {"model": "m"}))
    handed_over(place, literals=["INC-1"])
    Accountant(place.ledger, place.deposits, reads).work()
    fields = the_account(place.ledger).fields
    assert (3, 2, 1) == (fields["asked"], fields["compared"], fields["differ"])
    assert {"model": "m"} == fields["gloss_by"]
    assert ("It was Mara in Bergen.", "It was Mara.") == tuple(
        beside(place.ledger, 2)[name] for name in ("freely", "summary")
    )
    assert [(bytes(8).hex(), b"x", ("INC-1",), "It was Mara.")] == reads.asked
    assert "measured" not in fields
    assert [False, True, False] == [line.differs for line in LINES]


@pytest.mark.parametrize(("letters", "characters"), [(10, 200), (400, 409), (5000, MOST_CHARACTERS)])
def test_a_summary_is_about_as_long_as_the_gloss_beside_it(
    place: SimpleNamespace, letters: int, characters: int
) -> None:
    source = " ".join(f"The number of part {n} is {7 * n}." for n in range(400))
    handed_over(place, source=source)
    reads = Fake(Gloss((Line("What?", "a" * (letters + 2), None),), ""))
    Accountant(place.ledger, place.deposits, reads).work()
    assert characters == the_account(place.ledger).fields["summary_by"]["characters"]
    assert characters - 40 < len(beside(place.ledger, 2)["summary"]) <= characters


@pytest.mark.parametrize("source", [None, " ", "\u200b\u200b"], ids=["none", "blank", "unseen"])
def test_where_there_is_no_text_there_is_no_summary(place: SimpleNamespace, source: str | None) -> None:
    handed_over(place, source=source)
    assert Accountant(place.ledger, place.deposits, Fake()).work()
    assert {"gloss"} == beside(place.ledger, 2).keys()
    assert "summary_by" not in the_account(place.ledger).fields


@pytest.mark.parametrize("error", [DecodeError("expected a payload, got none"), IdentityError("x" * 900), None])
def test_a_message_that_cannot_be_read_has_a_summary_alone(place: SimpleNamespace, error: IlcpError | None) -> None:
    """The account says why; without anybody who reads messages there is nothing to say."""
    handed_over(place)
    Accountant(place.ledger, place.deposits, None if error is None else Fake(error=error)).work()
    fields, said = the_account(place.ledger).fields, beside(place.ledger, 2)
    reason = {} if error is None else {"reason": str(error)[:500]}
    assert {"summary": "It was Mara."} | reason == said
    assert (None if error is None else type(error).__name__) == fields.get("error")
    assert not {"asked", "gloss_by", "measured"} & fields.keys()
    assert verify(place.ledger.path).sound


# --- how a deposit comes in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("size", [1, 9000], ids=["small", "large"])
def test_a_deposit_goes_straight_or_through_an_outbox_and_is_given_up(
    place: SimpleNamespace, boxed: bool, size: int
) -> None:
    """What is more than a message holds lies as a blob in the spool until its account is made, and no longer."""
    source, reads = "It was Mara.\t" * size, Fake()
    with Recorder(place.url, "planner", accounts=True, outbox=place.box if boxed else None) as audit:
        audit.sent(b"a message", None, payload=b"x", source=source)
    place.guardian.work()
    assert size // 9000 == len(list((place.spool / "blobs").glob("*")))
    assert Accountant(place.ledger, place.deposits, reads).work()
    assert [source] == [asked[-1] for asked in reads.asked]
    assert [] == list((place.spool / "blobs").glob("*"))
    assert ["handoff", "account"] == kinds(place.ledger)
    assert not (boxed and list(place.box.iterdir()))


def test_an_outbox_keeps_a_deposit_that_no_transport_takes_for_the_next_recorder(place: SimpleNamespace) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise UnreachableError("nobody there")

    with Recorder(place.url, "planner", accounts=True, outbox=place.box, timeout_s=0.1) as audit:
        absent: Any = SimpleNamespace(put_blob=None, send=away)
        audit._opened = absent
        audit.sent(b"a message", None, payload=b"x\t\n", source="It was\tMara.")
    assert 0 == place.guardian.work()
    with Recorder(place.url, "planner", outbox=place.box):
        ends = time.monotonic() + 60
        while place.guardian.work() == 0:
            assert time.monotonic() < ends
    reads = Fake()
    Accountant(place.ledger, place.deposits, reads).work()
    assert [(b"x\t\n", "It was\tMara.")] == [(payload, source) for _, payload, _, source in reads.asked]


def test_a_line_of_an_outbox_whose_deposit_is_none_is_set_aside(place: SimpleNamespace) -> None:
    place.box.mkdir(mode=0o700)
    record = Submission("gone", "r", "p", 1, "sent", {}).to_bytes()
    (place.box / "gone-1.outbox").write_bytes(record + b"\t{}\n")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with Recorder(place.url, "planner", outbox=place.box):
            ends = time.monotonic() + 60
            while not list(place.box.glob("*.aside")):
                assert time.monotonic() < ends
    assert ["is set aside in" in str(each.message) for each in told] == [True]
    assert (0, None) == (place.guardian.work(), place.deposits.receive())


def test_nothing_is_left_with_a_guardian_unless_it_was_asked_for(place: SimpleNamespace) -> None:
    """Nor is what was refused, nor a message without a payload."""
    for accounts in (False, True):
        with Recorder(place.url, "planner", accounts=accounts) as audit:
            if not accounts:
                audit.sent(b"a message", None, payload=b"x", source="It was Mara.")
            audit.sent(b"a message", None, source="It was Mara.")
            audit.refused(DecodeError("no"), b"a message")
            audit.record("sent", {})
    place.guardian.work()
    assert place.deposits.receive() is None
    assert not any("payload_sha256" in entry.fields for entry in place.ledger.entries())
    assert not any("source_sha256" in entry.commitments for entry in place.ledger.entries())


def test_whatever_way_a_message_is_made_its_text_goes_along(pair: Pair, place: SimpleNamespace) -> None:
    """One of a batch, one that was verified, a chat in its own words; of token ids there is none."""
    case = next(iter(case_files("test", 7, 1)))
    chat = [{"role": "user", "content": text(1)}, {"role": "assistant", "content": "Noted."}]
    with Recorder(place.url, "planner", accounts=True) as audit:
        sender = ilcp.Sender(pair.sender.model, pair.sender.tokenizer, pair.sender.codec, audit=audit)
        wires = sender.encode_batch([text(2), text(3)], literals="auto")
        known = {question.text: question.answer for question in case.questions[:3]}
        wires.append(sender.encode(case.context, verify=pair.receiver, budget_bytes=140, questions=known))
        wires.append(sender.encode(pair.sender.tokenizer(text(4)).input_ids))
        plain = Recorder(place.url, "writer", accounts=True)
        ilcp.Sender(pair.sender.model, pair.sender.tokenizer, PlainCodec(), audit=plain).encode(chat)
        plain.close()
    place.guardian.work()
    reads = Fake()
    accountant = Accountant(place.ledger, place.deposits, reads)
    while accountant.work():
        pass
    made = [Message.from_bytes(wire) for wire in wires]
    texts = (text(2), text(3), case.context, None)
    expected = {(one.payload, one.literals, source) for one, source in zip(made, texts, strict=True)}
    *told, chatted = [asked[1:] for asked in reads.asked]
    assert expected == set(told)
    assert f"{text(1)}\nNoted." == chatted[-1]
    assert 5 == kinds(place.ledger).count("account")


def test_a_guardian_s_answer_is_to_the_record_and_not_to_its_deposit(place: SimpleNamespace) -> None:
    with Recorder(place.url, "planner", accounts=True, unrecorded=5) as audit:
        audit.sent(b"a message", None, payload=b"x", source="It was Mara.")
        assert 1 == audit.pending
        place.guardian.work()
        assert 0 == audit.pending


def test_a_deposit_that_overtook_its_record_waits_for_it(place: SimpleNamespace, monkeypatch) -> None:
    """For a while: one that never gets a record is entered as unreadable, by its digest."""
    monkeypatch.setattr(accounts_module, "AGAIN_S", 0.0)
    accountant, deposit = Accountant(place.ledger, place.deposits, Fake()), Deposit("planner", "r", "p", 1, b"x", "It.")
    deposit.send(place.deposits, "guardian")
    assert [True] * 3 == [accountant.work() for _ in range(3)]
    assert [] == kinds(place.ledger)
    entered(place, b"x", "It.")
    assert accountant.work()
    assert ["handoff", "account"] == kinds(place.ledger)
    Deposit("planner", "r", "p", 2, b"x", "It.").send(place.deposits, "guardian")
    assert [True] * TRIES + [False] == [accountant.work() for _ in range(TRIES + 1)]
    assert ["handoff", "account", "unreadable"] == kinds(place.ledger)


class Dies:
    """A connection of somebody who dies before anything is acknowledged."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def receive(self, timeout_s: float) -> Any:
        """Hands out what comes again."""
        found = self.inner.receive(timeout_s)
        return SimpleNamespace(message=found.message, attempt=found.attempt, ack=found.nack)


def test_an_account_is_made_once(place: SimpleNamespace) -> None:
    """Of a deposit that is handed out again, or comes again; the same message handed over twice has two."""
    handed_over(place)
    dying: Any = Dies(place.deposits)
    reads = Fake()
    assert Accountant(place.ledger, dying, reads).work()
    accountant = Accountant(place.ledger, place.deposits, reads)
    assert (True, False) == (accountant.work(), accountant.work())
    fields = present(place.ledger.entry(1)).fields
    again = Deposit("planner", "monday", fields["part"], 1, b"x", "It was Mara.").to_bytes() + b" "
    deposited(place, again)
    assert accountant.work()
    assert (1, 1) == (len(reads.asked), kinds(place.ledger).count("account"))
    handed_over(place)
    assert accountant.work()
    made = [entry.fields for entry in place.ledger.entries(kinds=["account"])]
    assert [1, 3] == [each["of"] for each in made]
    assert 1 == len({each["handoff_id"] for each in made})


# --- what is none ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("payload", "source"), [(b"y", "It."), (b"x", "It"), (b"x", None), (b"", "It."), (b"x", "")])
def test_what_is_not_on_record_has_no_account(place: SimpleNamespace, payload: bytes, source: str | None) -> None:
    """Another payload or text than the record says; what was really sent still has its own."""
    entered(place, b"x", "It.")
    for deposit in (Deposit("planner", "r", "p", 1, payload, source), Deposit("planner", "r", "p", 1, b"x", "It.")):
        deposit.send(place.deposits, "guardian")
    reads = Fake()
    accountant = Accountant(place.ledger, place.deposits, reads)
    assert (True, True, False) == tuple(accountant.work() for _ in range(3))
    assert ["handoff", "unreadable", "account"] == kinds(place.ledger)
    assert "no account: no record is of its payload" in present(place.ledger.entry(2)).fields["reason"]
    assert [b"x"] == [asked[1] for asked in reads.asked]


@pytest.mark.parametrize("source", ["It.", None])
def test_of_a_text_whose_digest_was_erased_nothing_is_said(place: SimpleNamespace, source: str | None) -> None:
    """Nor of one that came without it: nobody can tell any more whether it was so."""
    entered(place, b"x", "It.")
    place.ledger.erase(1, ["source_sha256"], by="officer", because="she asked")
    Deposit("planner", "r", "p", 1, b"x", source).send(place.deposits, "guardian")
    reads = Fake()
    assert Accountant(place.ledger, place.deposits, reads).work()
    assert [] == reads.asked
    assert ["handoff", "erasure", "unreadable"] == kinds(place.ledger)
    assert verify(place.ledger.path, keys=[SIGNER.key]).sound


def test_a_record_without_digests_is_of_no_deposit(place: SimpleNamespace) -> None:
    with Recorder(place.url, "planner") as audit:
        audit.sent(b"a message", None)
    place.guardian.work()
    Deposit("planner", audit.run, audit.part, 1, b"", None).send(place.deposits, "guardian")
    Accountant(place.ledger, place.deposits, Fake()).work()
    assert ["handoff", "unreadable"] == kinds(place.ledger)


@pytest.mark.parametrize(
    "change",
    [
        {"ilcp_audit_deposit": 2},
        {"ilcp_audit_deposit": "1"},
        {"producer": 7},
        {"run": None},
        {"part": []},
        {"sequence": 1.5},
        {"sequence": "1"},
        {"source": 7},
        {"source": "\ud800"},
        {"producer": "\ud800"},
        {"run": "\ud800"},
        {"part": "\ud800"},
        {"payload": None},
        {"payload": "?"},
        {"payload": "e?A=="},
        {"payload": "\ud800"},
        {"more": 1},
    ],
    ids=str,
)
def test_what_a_stranger_leaves_is_read_or_entered_as_unreadable(
    place: SimpleNamespace, change: dict[str, Any]
) -> None:
    """And the next deposit has its account."""
    entered(place, b"x", "It.")
    deposit = Deposit("planner", "r", "p", 1, b"x", "It.")
    assert deposit == Deposit.from_bytes(deposit.to_bytes())
    deposited(place, json.dumps(json.loads(deposit.to_bytes()) | change).encode())
    deposit.send(place.deposits, "guardian")
    accountant = Accountant(place.ledger, place.deposits, Fake())
    assert (True, True) == (accountant.work(), accountant.work())
    assert ["handoff", "unreadable", "account"] == kinds(place.ledger)
    assert verify(place.ledger.path).sound


def test_what_is_no_deposit_at_all_is_entered_as_unreadable(place: SimpleNamespace) -> None:
    """No message, one of a codec, no JSON, and a blob that is larger than any deposit."""
    accountant = Accountant(place.ledger, place.deposits, Fake())
    place.deposits.send(b"garbage", to=f"guardian{ACCOUNTS}", handoff_id="g")
    deposited(place, Deposit("planner", "r", "p", 1, b"x", None).to_bytes(), codec_id=bytes(8))
    deposited(place, b"[]")
    for _ in range(3):
        assert accountant.work()
    assert ["unreadable"] * 3 == kinds(place.ledger)
    assert all(entry.fields["reason"].startswith("no account: ") for entry in place.ledger.entries(first=1))
    huge = Message(CARRIED, b"", blob=Blob(MOST_BYTES + 1, bytes(32))).to_bytes()
    with pytest.raises(DecodeError, match=f"expected a deposit of at most {MOST_BYTES} bytes"):
        received(huge, place.deposits)


def test_a_deposit_whose_blob_is_gone_is_entered_as_unreadable_in_the_end(place: SimpleNamespace, monkeypatch) -> None:
    """It is tried again for a while, and holds nothing up."""
    monkeypatch.setattr(accounts_module, "AGAIN_S", 0.0)
    handed_over(place, source="It was Mara. " * 9000)
    (blob,) = (place.spool / "blobs").glob("*")
    blob.unlink()
    accountant = Accountant(place.ledger, place.deposits, Fake())
    for _ in range(TRIES):
        accountant.work()
    assert ["handoff", "unreadable"] == kinds(place.ledger)


# --- what reads messages ---------------------------------------------------------------------------------------------


def test_a_text_in_place_of_a_message_has_an_account_without_disagreement(
    small: SimpleNamespace, pair: Pair, place: SimpleNamespace
) -> None:
    with Recorder(place.url, "planner", accounts=True) as audit:
        sender = ilcp.Sender(small.sender.model, small.sender.tokenizer, small.codec, audit=audit, key=bytes(range(32)))
        with pytest.warns(FallbackWarning):
            sender.encode(text(), otherwise="text", literals=["INC-1"])
        with pytest.warns(FallbackWarning):
            sender.encode([{"role": "user", "content": "Mara owns the ticket."}], otherwise="text")
    place.guardian.work()
    accountant = Accountant(place.ledger, place.deposits, Glosses(receiver_of(pair), QUESTIONS))
    assert accountant.work()
    said = beside(place.ledger, 3)["gloss"]
    assert pair.receiver.answers([(TextMemory(text()).beside(("INC-1",)), q) for q in QUESTIONS]) == [
        line["answer"] for line in said
    ]
    assert accountant.work()
    assert ["fell back to text"] * 2 == [e.fields["event"] for e in place.ledger.entries(kinds=["handoff"])]
    assert (2, 0) == tuple(present(place.ledger.entry(4)).fields[name] for name in ("compared", "differ"))
    assert beside(place.ledger, 4)["summary"].endswith("Mara owns the ticket.")


def test_a_cache_too_large_for_a_message_has_an_account(pair: Pair, place: SimpleNamespace) -> None:
    """Its payload is a blob for the receiver, and another in the deposit; both are one memory."""
    model, tokenizer, blobs = pair.receiver.model, pair.receiver.tokenizer, Folder()
    codec = ExactCodec.of(model, tokenizer)
    with Recorder(place.url, "planner", accounts=True) as audit:
        wire = ilcp.Sender(model, tokenizer, codec, blobs=blobs, audit=audit).encode(text(), literals=["INC-1"])
    place.guardian.work()
    assert 1 == len(list((place.spool / "blobs").glob("*")))
    own = ilcp.Receiver(model, tokenizer, codec, allow_unmeasured=True, blobs=Folder())
    seen: list[Any] = []
    own.decode = noting(own.decode, seen, literals_of)  # type: ignore[method-assign]
    Accountant(place.ledger, place.deposits, Glosses(own, QUESTIONS)).work()
    assert [("INC-1",)] == seen
    said = beside(place.ledger, 2)["gloss"]
    reader = ilcp.Receiver(model, tokenizer, codec, allow_unmeasured=True, blobs=blobs)
    memory = reader.decode(wire)
    assert reader.answers([(memory, question) for question in QUESTIONS]) == [line["answer"] for line in said]
    assert 0 == the_account(place.ledger).fields["differ"]
    assert [] == list((place.spool / "blobs").glob("*"))


def test_a_message_is_read_in_the_words_of_its_questions_and_freely_where_it_was_asked_for(pair: Pair) -> None:
    """Each question once; who read it is said by digests."""
    receiver = receiver_of(pair)
    message = Message.from_bytes(pair.sender.encode(text()))
    codec_id, memory = message.codec_id.hex(), receiver.decode(message.to_bytes())
    glosses = Glosses(receiver, [*QUESTIONS, QUESTIONS[0]], freely=True)
    found = glosses.gloss(codec_id, message.payload, (), None)
    assert [*QUESTIONS] == [line.question for line in found.lines]
    assert {None} == {line.from_text for line in found.lines}
    assert receiver.answers([(memory, TELL)], max_new_tokens=TELL_TOKENS) == [found.freely]
    assert {"model", "codec_id", "questions_sha256", "ilcp", "transformers"} == set(found.by)
    assert codec_id == found.by["codec_id"]
    summed = Glosses(receiver, QUESTIONS, summary="Who owns the ticket?").gloss(codec_id, message.payload, (), text())
    assert (summed.lines[0].from_text, "") == (summed.summary, found.summary)
    assert summed.by["questions_sha256"] != found.by["questions_sha256"]
    long = Glosses(receiver, QUESTIONS).gloss(codec_id, message.payload, (), text() * 40)
    assert ("", {None}) == (long.freely, {line.from_text for line in long.lines})
    seen: list[Any] = []
    receiver.decode = noting(receiver.decode, seen, literals_of)  # type: ignore[method-assign]
    told = Glosses(receiver, QUESTIONS).gloss(codec_id, message.payload, ("INC-1",), None)
    assert [("INC-1",)] == seen
    from_memory = receiver.answers([(memory.beside(("INC-1",)), question) for question in QUESTIONS])
    assert from_memory == [line.answer for line in told.lines]


@pytest.mark.parametrize("spelt", ["{}zz", "", "ab", "{:.8}", " {}", "upper"])
def test_a_codec_s_id_that_is_spelt_otherwise_is_refused(pair: Pair, spelt: str) -> None:
    message = Message.from_bytes(pair.sender.encode(text()))
    known = message.codec_id.hex()
    given = known.upper() if spelt == "upper" else spelt.format(known)
    with pytest.raises(IlcpError, match="expected"):
        Glosses(receiver_of(pair), QUESTIONS[:1]).gloss(given, message.payload, (), None)


def test_what_reads_messages_needs_questions_and_no_key(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="expected questions for accounts, got none"):
        Glosses(receiver_of(pair), [])
    with pytest.raises(ConfigError, match="expected a receiver of its own, without key and audit"):
        Glosses(receiver_of(pair, key=bytes(range(32))), QUESTIONS)
    codec: Any = SimpleNamespace(questions=("Who?",))
    assert (["Who?"], []) == (own_questions(codec), own_questions(pair.receiver.codec))


def test_the_receiving_end_alone_takes_its_codec_s_messages_and_texts(pair: Pair) -> None:
    receiver = load_receiver(beside=[PlainCodec()], allow_unmeasured=True)
    assert ["vae", "text-plain"] == [codec.spec.name for codec in receiver.codecs]
    wire = pair.sender.encode(text())
    assert pair.receiver.answers([(wire, QUESTIONS[0])]) == receiver.answers([(wire, QUESTIONS[0])])


def test_a_receiving_end_of_a_codec_without_evidence_is_refused(small: SimpleNamespace, tmp_path: Path) -> None:
    """Unless it was asked for."""
    small.receiver.model.save_pretrained(tmp_path / "model")
    small.receiver.tokenizer.save_pretrained(tmp_path / "model")
    ilcp.save(small.codec, tmp_path / "codec", card="# Mine")
    with pytest.raises(UnmeasuredError, match="expected a codec that was measured"):
        load_receiver(tmp_path / "codec", receiver=tmp_path / "model")
    taken = load_receiver(tmp_path / "codec", receiver=tmp_path / "model", allow_unmeasured=True)
    assert small.codec.trained == taken.codec.trained


# --- what was measured -----------------------------------------------------------------------------------------------


def figures_of(pair: Pair, *lengths: int) -> bytes:
    """What ``ilcp measure --faithfulness`` writes."""
    cases = list(case_files("test", 7, 2))
    found = [faithfulness(pair.sender, pair.receiver, cases, payload_bytes=n).to_dict() for n in lengths]
    return json.dumps({"accounts": {"embedded": found}, "seed": 7, "provenance": {}}).encode()


def test_an_account_has_the_figures_of_its_codec_and_length(pair: Pair, place: SimpleNamespace) -> None:
    """Those of the longest length that the payload has, else of the shortest; of another codec there are none."""
    data = figures_of(pair, 20, 10)
    codec_id = pair.sender.codec_id.hex()
    written = json.loads(data)["accounts"]["embedded"]
    measured = measured_of(data)
    assert ({codec_id}, {10, 20}) == (set(measured), set(measured[codec_id]))
    assert {name for name, figure in written[0]["figures"].items() if name in TOLD and figure} == set(
        measured[codec_id][20]["figures"]
    )
    recall = measured[codec_id][20]["figures"]["recall, gloss"]
    known = written[0]["figures"]["recall, gloss"]
    assert {name: known[name] if name == "n" else round(known[name], 4) for name in recall} == recall
    for number, (length, of) in enumerate({80: 20, 20: 20, 19: 10, 10: 10, 5: 10}.items(), start=1):
        entered(place, bytes(length), None, number, codec_id=codec_id)
        Deposit("planner", "r", "p", number, bytes(length), None).send(place.deposits, "guardian")
        Accountant(place.ledger, place.deposits, Fake(), measured).work()
        told = list(place.ledger.entries(kinds=["account"]))[-1].fields["measured"]
        assert (of, 2) == (told["payload_bytes"], told["cases"])
    entered(place, b"x", None, 9, codec_id="00")
    Deposit("planner", "r", "p", 9, b"x", None).send(place.deposits, "guardian")
    Accountant(place.ledger, place.deposits, Fake(), measured).work()
    assert "measured" not in list(place.ledger.entries(kinds=["account"]))[-1].fields


FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 2, "unit": ""}
ACCOUNT = {"codec_id": "ab", "payload_bytes": 80, "n": 2, "figures": {"recall, gloss": FIGURE}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"accounts": 1}',
        b'{"accounts": {"a": 1}}',
        json.dumps({"accounts": {"a": [{k: v for k, v in ACCOUNT.items() if k != "codec_id"}]}}).encode(),
        json.dumps({"accounts": {"a": [ACCOUNT | {"payload_bytes": "x"}]}}).encode(),
        json.dumps({"accounts": {"a": [ACCOUNT]}}).replace("80", "1e999").encode(),
        json.dumps({"accounts": {"a": [ACCOUNT | {"figures": {"recall, gloss": {}}}]}}).encode(),
    ],
)
def test_another_file_than_that_of_figures_is_refused(data: bytes) -> None:
    assert {80} == set(measured_of(json.dumps({"accounts": {"a": [ACCOUNT]}}).encode())["ab"])
    with pytest.raises(ConfigError, match="expected what 'ilcp measure --faithfulness' wrote"):
        measured_of(data)


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_thread_of_its_own_makes_accounts_until_it_is_ended(place: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    file.write_text(json.dumps({"accounts": {"a": [ACCOUNT | {"codec_id": bytes(8).hex()}]}}))
    with working(place.url, place.ledger, Fake(), file):
        handed_over(place)
        ends = time.monotonic() + 60
        while "account" not in kinds(place.ledger):
            assert time.monotonic() < ends
            time.sleep(0.02)
    assert 80 == the_account(place.ledger).fields["measured"]["payload_bytes"]
    handed_over(place)
    assert 1 == kinds(place.ledger).count("account")
    with (
        pytest.raises(ConfigError, match="expected figures in"),
        working(place.url, place.ledger, None, tmp_path / "x"),
    ):
        pass


def test_what_fails_an_account_is_said_once_and_tried_again(place: SimpleNamespace, monkeypatch, capsys) -> None:
    """The guardian's own work goes on, and so do accounts once there is room."""
    tried: list[int] = []
    usual = Ledger.append

    def full(ledger: Ledger, drafts: Any) -> list[int]:
        tried.append(1)
        if len(tried) < 3:
            raise StorageError("expected room, got none")
        return usual(ledger, drafts)

    handed_over(place)
    monkeypatch.setattr(cli_module, "AGAIN_S", 0.01)
    monkeypatch.setattr(Ledger, "append", full)
    with working(place.url, place.ledger, Fake(), None):
        ends = time.monotonic() + 60
        while "account" not in kinds(place.ledger):
            assert time.monotonic() < ends
            time.sleep(0.02)
    assert 1 == capsys.readouterr().err.count("no account could be entered: expected room, got none")


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), MemoryError(), KeyError("x")])
def test_whatever_a_model_fails_with_is_one_message_s(place: SimpleNamespace, error: Exception) -> None:
    """Its account says so and has the summary; the next message is read."""
    handed_over(place)
    Accountant(place.ledger, place.deposits, Fake(error=error)).work()
    account = the_account(place.ledger)
    assert type(error).__name__ == account.fields["error"]
    assert "It was Mara." == beside(place.ledger, account.number)["summary"]
    handed_over(place)
    assert Accountant(place.ledger, place.deposits, Fake()).work()
    assert 2 == kinds(place.ledger).count("account")


def test_a_payload_is_that_of_the_bare_message_on_record(pair: Pair, place: SimpleNamespace) -> None:
    """Another one under the same record has no account; of a sealed message it is the producer's word."""
    message = pair.sender.encode(text(), literals=["INC-1"])
    other = Message.from_bytes(pair.sender.encode(text(1), literals=["INC-1"]))
    with Recorder(place.url, "planner", accounts=True) as audit:
        audit.sent(message, pair.sender.codec, ["INC-1"], payload=other.payload, source=text(1))
        audit.sent(message, pair.sender.codec, ["INC-2"], payload=Message.from_bytes(message).payload, source=text())
    place.guardian.work()
    accountant = Accountant(place.ledger, place.deposits, Fake())
    assert accountant.work()
    assert accountant.work()
    assert ["handoff", "handoff", "unreadable", "unreadable"] == kinds(place.ledger)
    assert "no record is of its payload and text" in next(place.ledger.entries(kinds=["unreadable"])).fields["reason"]


def test_a_record_is_told_though_its_deposit_finds_no_room(pair: Pair, place: SimpleNamespace, recwarn) -> None:
    """Too large a one, or a full mailbox: a warning says that there will be no account, and nothing else is missing."""
    small = Settings(max_bytes=1 << 18, max_name_bytes=70_000, power_safe=False)
    with Recorder(place.url, "planner", run="r", accounts=True, unrecorded="told", settings=small) as audit:
        pair.sender.audit = audit
        try:
            while not recwarn.list:
                assert audit._sequence < 200
                pair.sender.encode(text())
                place.guardian.work()
            assert "will have no account" in str(recwarn.pop(AuditWarning).message)
            with pytest.warns(AuditWarning, match="too large for an account"):
                audit.sent(b"x" * 99, None, payload=bytes(MOST_BYTES // 2), source="x")
        finally:
            pair.sender.audit = None
    place.guardian.work()
    assert [[[1, audit._sequence]]] == list(place.ledger.sequences().values())


def test_a_long_text_is_summarised_from_its_beginning(place: SimpleNamespace) -> None:
    """So that no text takes the guardian's memory; the account says how much was read."""
    handed_over(place, "It was Mara. " * 20_000 + "It was Ivo.")
    began = time.monotonic()
    Accountant(place.ledger, place.deposits, Fake()).work()
    assert time.monotonic() - began < 20
    assert 200_000 == the_account(place.ledger).fields["summary_by"]["of_the_first"]


@pytest.fixture
def guard(tmp_path: Path) -> SimpleNamespace:
    """Calls ``ilcp audit guard`` for a ledger in this folder, with what else it is given."""
    for name in ("audit", "spool"):
        (tmp_path / name).mkdir(mode=0o700)
    seed_in(tmp_path / "audit" / "k")
    url = f"spool://{tmp_path / 'spool'}"
    line = ["audit", "guard", str(tmp_path / "audit" / "l"), "--via", url, "--key", str(tmp_path / "audit" / "k")]
    return SimpleNamespace(line=line, url=url, ledger=tmp_path / "audit" / "l", folder=tmp_path)


def test_the_command_makes_accounts_until_it_is_told_to_end(guard: SimpleNamespace, pair: Pair) -> None:
    """A process of its own, asked freely, with figures beside; SIGTERM ends it well."""
    questions, figures = guard.folder / "questions.txt", guard.folder / "figures.json"
    questions.write_text("\n".join(["", *QUESTIONS, " "]))
    figures.write_text(json.dumps({"accounts": {"a": [ACCOUNT | {"codec_id": pair.sender.codec_id.hex()}]}}))
    more = ["--accounts", "embedded", "--questions", questions, "--measured", figures, "--freely"]
    words = [sys.executable, "-m", "ilcp", *guard.line, *map(str, more)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    process = subprocess.Popen(words, **pipes)
    try:
        said = present(process.stdout).readline()
        assert "makes accounts of embedded: 2 questions each" in said or process.communicate(timeout=60)
        with Recorder(guard.url, "planner", unrecorded="never", timeout_s=60, accounts=True) as audit:
            ilcp.Sender(pair.sender.model, pair.sender.tokenizer, pair.sender.codec, audit=audit).encode(text())
        with Ledger(guard.ledger) as ledger:
            ends = time.monotonic() + 100
            while "account" not in kinds(ledger):
                assert process.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.05)
            assert 80 == the_account(ledger).fields["measured"]["payload_bytes"]
            assert {"gloss", "summary", "freely"} == beside(ledger, 2).keys()
            assert [*QUESTIONS] == [line["question"] for line in beside(ledger, 2)["gloss"]]
        process.send_signal(signal.SIGTERM)
        told, wrong = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (0, False) == (process.returncode, "no more accounts" in wrong)
    assert "ended: 3 entries; what comes now waits" in told
    assert verify(guard.ledger).sound


def refused(guard: SimpleNamespace, *more: object) -> str:
    """Returns what a call is refused with."""
    with pytest.raises(ConfigError) as told:
        CliRunner().invoke(app, [*guard.line, *map(str, more)], catch_exceptions=False)
    return str(told.value)


def test_accounts_are_refused_without_what_they_need(guard: SimpleNamespace, pair: Pair) -> None:
    """One sentence each, before anything is entered; a whole process exits with the code for wrong use."""
    file, junk = guard.folder / "questions.txt", guard.folder / "junk"
    file.write_text("\n \n")
    for option in (("--questions", file), ("--measured", file), ("--receiver", "x"), ("--freely",)):
        assert refused(guard, *option).startswith("expected --accounts CODEC beside what is asked of")
    own = ("--accounts", "embedded", "--questions")
    assert f"expected 1 to {MOST_QUESTIONS} questions in {file}, got 0" == refused(guard, *own, file)
    file.write_text("Who?\n" * (MOST_QUESTIONS + 1))
    assert f"got {MOST_QUESTIONS + 1}" in refused(guard, *own, file)
    assert f"expected questions in {junk}, one a line, got:" in refused(guard, *own, junk)
    junk.write_bytes(b"\xff")
    assert f"expected questions in {junk}, one a line, got:" in refused(guard, *own, junk)
    assert "expected figures in" in refused(guard, "--accounts", "embedded", "--measured", guard.folder / "nothing")
    assert "expected what 'ilcp measure" in refused(guard, "--accounts", "embedded", "--measured", junk)
    assert "expected --questions FILE for accounts of" in refused(guard, "--accounts", pair.path)
    done = subprocess.run(
        [sys.executable, "-m", "ilcp", *guard.line, "--freely"], capture_output=True, text=True, env=environment()
    )
    assert (2, 1) == (done.returncode, len(done.stderr.strip().splitlines()))


def test_a_summary_may_be_the_model_s(place: SimpleNamespace) -> None:
    """It stands in place of the rule's, and the account says whose it is."""
    handed_over(place)
    Accountant(place.ledger, place.deposits, Fake(Gloss(LINES, "", {}, "Mara did it."))).work()
    account = the_account(place.ledger)
    assert "Mara did it." == beside(place.ledger, account.number)["summary"]
    assert {"method": "the model of the gloss"} == account.fields["summary_by"]
