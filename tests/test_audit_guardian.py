"""A guardian and its producers: every hand-off is entered once, and goes on unrecorded only as its caller allowed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ilcp
from ilcp.audit import AuditWarning, Guardian, Ledger, Recorder, Signer, parsed, verify
from ilcp.audit.checkpoints import Checkpoint
from ilcp.audit.entries import canonical
from ilcp.audit.findings import said_of
from ilcp.audit.guardian import settings_for
from ilcp.audit.submission import Receipt, Submission, id_of
from ilcp.embedded import Pair
from ilcp.errors import AuditError, ConfigError, DecodeError, EncodeError
from ilcp.handoff import FallbackWarning
from ilcp.tasks import case_files
from ilcp.transport import Settings, UnreachableError, connect
from ilcp_codecs.text import PlainCodec

SIGNER = Signer("example/ledger", bytes(range(32)))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A spool, and a guardian with its ledger beside it."""
    for name in ("spool", "audit"):
        (tmp_path / name).mkdir(mode=0o700)
    url = f"spool://{tmp_path / 'spool'}"
    path = tmp_path / "audit" / "ledger.sqlite"
    with connect(url, name="guardian", settings=settings_for(url)) as connection, Ledger(path, SIGNER) as ledger:
        yield SimpleNamespace(url=url, ledger=ledger, guardian=Guardian(ledger, connection), connection=connection)


def events(ledger: Ledger) -> list[tuple[Any, ...]]:
    return [(e.fields["producer"], e.fields["sequence"], e.fields["event"]) for e in ledger.entries(kinds=["handoff"])]


def numbers(ledger: Ledger) -> list[tuple[str, str, list[list[int]]]]:
    return [(producer, run, found) for (producer, run, _), found in ledger.sequences().items()]


def text(number: int = 0) -> str:
    return next(iter(case_files("test", 7, 1, start=number))).context


def test_what_both_ends_did_is_on_record(pair: Pair, place: SimpleNamespace) -> None:
    """Sent, received and refused, with whose models and which codec; what a message says is not on it."""
    with Recorder(place.url, "planner", run="monday", hop=1) as one, Recorder(place.url, "writer", run="monday") as two:
        sender = ilcp.Sender(pair.sender.model, pair.sender.tokenizer, pair.sender.codec, audit=one)
        receiver = ilcp.Receiver(pair.receiver.model, pair.receiver.tokenizer, pair.receiver.codec, audit=two)
        message = sender.encode(text(), literals=["INC-20391"])
        receiver.decode(message)
        sender.encode_batch([text(1), text(2)])
        with pytest.raises(EncodeError):
            sender.encode(" ")
        with pytest.raises(DecodeError):
            receiver.decode(message[:-1])
        with pytest.raises(DecodeError):
            receiver.generate(b"nothing", "Which region is affected?")
        receiver.generate(message, "Which region is affected?")
    assert 8 == place.guardian.work()
    assert 0 == place.guardian.work()
    found = list(place.ledger.entries(kinds=["handoff"]))
    assert [
        ("planner", 1, "sent"),
        ("writer", 1, "received"),
        ("planner", 2, "sent"),
        ("planner", 3, "sent"),
        ("planner", 4, "refused"),
        ("writer", 2, "refused"),
        ("writer", 3, "refused"),
        ("writer", 4, "received"),
    ] == events(place.ledger)
    sent, received, refused = found[0].fields, found[1].fields, found[4].fields
    assert sent["message_sha256"] == received["message_sha256"]
    assert (len(message), 1, "vae") == (sent["message_bytes"], sent["hop"], sent["codec"])
    trained = pair.sender.codec.trained
    assert (trained.sender.exact, trained.receiver.exact) == (sent["sender"], sent["receiver"])
    assert sent["codec_id"] == sent["evidence"]["codec_id"]
    assert "EncodeError" == refused["error"]
    assert "expected a text" in place.ledger.personal(found[4].number)["reason"].value
    assert ["INC-20391"] == place.ledger.personal(found[0].number)["literals"].value
    assert text()[:20] not in "".join(each.to_bytes().decode() for each in found)
    assert verify(place.ledger.path, keys=[SIGNER.key]).sound


def test_a_message_that_is_only_tried_is_not_on_record(pair: Pair, place: SimpleNamespace) -> None:
    """Neither what is measured nor the messages among which a verified one is chosen."""
    case = next(iter(case_files("test", 7, 1)))
    with Recorder(place.url, "planner") as audit:
        sender = ilcp.Sender(pair.sender.model, pair.sender.tokenizer, pair.sender.codec, audit=audit)
        receiver = ilcp.Receiver(pair.receiver.model, pair.receiver.tokenizer, pair.receiver.codec, audit=audit)
        answers = {question.text: question.answer for question in case.questions[:3]}
        sender.encode(case.context, verify=receiver, budget_bytes=140, questions=answers)
        cases = list(case_files("test", 7, 2))
        ilcp.measure.run(sender, receiver, cases, task="t", arms=["message"], repetitions=0, texts={})
        assert audit is sender.audit is receiver.audit
    place.guardian.work()
    assert [("planner", 1, "sent")] == events(place.ledger)


def test_falling_back_to_text_is_on_record_with_its_reason(small: SimpleNamespace, place: SimpleNamespace) -> None:
    with Recorder(place.url, "planner") as audit:
        sender = ilcp.Sender(small.sender.model, small.sender.tokenizer, small.codec, audit=audit)
        with pytest.warns(FallbackWarning):
            sender.encode("The release of INC-20391 is on Friday.", otherwise="text", literals="auto")
    place.guardian.work()
    (entry,) = place.ledger.entries(kinds=["handoff"])
    assert ["INC-20391"] == place.ledger.personal(entry.number)["literals"].value
    assert ("fell back to text", PlainCodec().spec.name) == (entry.fields["event"], entry.fields["codec"])
    assert "expected a codec that was measured" in entry.fields["reason"]


def test_a_guardian_that_is_away_delays_nothing_and_loses_nothing(place: SimpleNamespace) -> None:
    with Recorder(place.url, "planner", run="monday") as audit:
        started = time.monotonic()
        assert list(range(1, 301)) == [audit.record("sent", {}) for _ in range(300)]
        assert time.monotonic() - started < 30
    while place.guardian.work():
        pass
    assert [("planner", "monday", [[1, 300]])] == numbers(place.ledger)


def test_where_nothing_may_go_on_unrecorded_the_guardian_answers_first(place: SimpleNamespace) -> None:
    """Without a guardian the hand-off is refused; with one, its receipt brings a checkpoint that later ledgers keep."""
    with Recorder(place.url, "planner", unrecorded="never", timeout_s=0.2) as audit:
        with pytest.raises(AuditError, match="expected the guardian's receipt within 0"):
            audit.record("sent", {})
        audit.timeout_s, goes_on = 60, [True]
        working = threading.Thread(target=place.guardian.serve, args=(lambda: goes_on[0], 0.05))
        working.start()
        try:
            assert 2 == audit.record("sent", {})
            assert 0 == audit.pending
        finally:
            goes_on.clear()
            goes_on.append(False)
            working.join()
    assert [1, 2] == [entry.fields["sequence"] for entry in place.ledger.entries(kinds=["handoff"])]
    assert parsed(audit.checkpoint).size <= 3
    assert verify(place.ledger.path, keys=[SIGNER.key], witnessed=[audit.checkpoint]).cannot == ()


def test_so_many_may_wait_and_no_more(place: SimpleNamespace) -> None:
    with Recorder(place.url, "planner", unrecorded=2) as audit:
        assert [1, 2] == [audit.record("sent", {}) for _ in range(2)]
        with pytest.raises(AuditError, match="expected fewer than 2 hand-offs that wait for the guardian, got 2"):
            audit.record("sent", {})
        assert 2 == place.guardian.work()
        assert (0, 3) == (audit.pending, audit.record("sent", {}))


@pytest.mark.parametrize("unrecorded", ["sometimes", 0, True, 1.5, None])
def test_another_policy_is_refused(place: SimpleNamespace, unrecorded: Any) -> None:
    with pytest.raises(ConfigError, match="expected unrecorded as"):
        Recorder(place.url, "planner", unrecorded=unrecorded)


def test_a_transport_that_fails_ends_a_hand_off_only_where_it_may_not_go_on(place: SimpleNamespace) -> None:
    """Then the number is missing, and the ledger says so."""
    full = Settings(max_bytes=1 << 17, max_name_bytes=1 << 17)
    about = {"reason": "x" * 50_000}
    with Recorder(place.url, "strict", unrecorded=9, settings=full) as strict:
        assert [1, 2] == [strict.record("sent", about) for _ in range(2)]
        with pytest.raises(AuditError, match="got: expected room"):
            strict.record("sent", about)
    with Recorder(place.url, "told", unrecorded="told", settings=full) as told:
        with pytest.raises(AuditError, match="got: expected room"):
            told.record("sent", about)
        assert 0 == told.pending  # no receipt is waited for
    with Recorder(place.url, "planner", run="r", settings=full) as audit:
        with pytest.warns(AuditWarning, match="it goes on without, and its number will be missing"):
            audit.record("sent", about)
        while place.guardian.work():
            pass
        audit.record("sent", {})
        place.guardian.work()
    assert ("planner", "r", [[2, 2]]) in numbers(place.ledger)
    assert [[1, 1]] in verify(place.ledger.path).missing.values()


def test_what_comes_again_is_entered_once_and_what_contradicts_beside_it(place: SimpleNamespace) -> None:
    """In one batch, or after the guardian has gone before it acknowledged; garbage is entered by its digest."""
    one = Submission("planner", "r", "p", 1, "sent", {"a": 1}, {"literals": ["x"]})
    other = Submission("planner", "r", "p", 1, "sent", {"a": 2})
    for name, sent in {"a": one, "b": one, "c": other}.items():
        place.connection.send(sent.to_bytes(), to="guardian", handoff_id=name)
    place.guardian.work()
    assert ["ledger", "handoff", "conflict"] == [entry.kind for entry in place.ledger.entries()]
    secret = Submission("planner", "r", "p", 1, "sent", {"a": 1}, {"literals": ["y"]})
    for name, sent in {"d": one, "e": secret}.items():
        place.connection.send(sent.to_bytes(), to="guardian", handoff_id=name)
    place.connection.send(b"no submission", to="guardian", handoff_id="f")
    place.guardian.work()
    assert ["conflict", "unreadable"] == [entry.kind for entry in place.ledger.entries(first=3)]
    place.ledger.erase(1, ["literals"], by="x", because="y")
    place.connection.send(one.to_bytes(), to="guardian", handoff_id="g")
    place.guardian.work()
    assert 6 == place.ledger.size
    assert verify(place.ledger.path).sound


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 0},
        {"sequence": True},
        {"sequence": 1.5},
        {"producer": ""},
        {"producer": "a\nb"},
        {"run": 7},
        {"event": "x" * 2000},
        {"about": []},
        {"about": {"": 1}},
        {"personal": None},
        {"more": 1},
        {"ilcp_audit": 2},
        {"about": {"clock_unix_ms": 1}},
        {"about": {"x": 1e20}},
        {"personal": {"x": 1 << 60}},
        {"part": ""},
        {"receipt": True},
        {"receipt": "no mailbox"},
    ],
)
def test_a_submission_of_a_stranger_is_read_or_refused(change: dict[str, Any]) -> None:
    made = json.loads(Submission("planner", "r", "p", 1, "sent", {}, {}).to_bytes())
    assert Submission.from_bytes(canonical(made)) == Submission("planner", "r", "p", 1, "sent", {}, {})
    with pytest.raises(DecodeError, match="expected"):
        Submission.from_bytes(json.dumps(made | change).encode())
    with pytest.raises(DecodeError, match="expected"):
        Receipt.from_bytes(json.dumps(made | change).encode())


def test_a_submission_that_no_transport_takes_is_refused_and_uses_up_no_number(place: SimpleNamespace) -> None:
    with Recorder(place.url, "planner") as audit:
        refused = (({"a": "x" * 70_000}, "at most 66653 bytes"), ({"a": float("nan")}, "JSON holds exactly"))
        for about, said in (*refused, ({"a": 1e20}, "JSON holds exactly"), ({"run": "x"}, "they are taken")):
            with pytest.raises(EncodeError, match=said):
                audit.record("sent", about)
        assert 1 == audit.record("sent", {})


def test_no_record_is_given_up(place: SimpleNamespace) -> None:
    """However often guardians die with it in their hands, and however long nobody takes it."""
    with Recorder(place.url, "planner") as audit:
        audit.record("sent", {})
    for _ in range(12):  # a mailbox of messages gives up after ten
        delivery = place.connection.receive()
        assert delivery is not None
        delivery.nack()
    assert 1 == place.guardian.work()
    for url in ("spool:///x", "memory://x", "nats://x"):
        assert settings_for(url).max_age_s >= 365 * 86400
    assert Settings() == settings_for("https://x")


def test_recorders_of_one_run_count_for_themselves(place: SimpleNamespace) -> None:
    """A run that goes on in another process has its numbers again, and nothing of either is lost."""
    for number in (2, 3):
        with Recorder(place.url, "planner", run="monday") as audit:
            for _ in range(number):
                audit.record("sent", {})
    place.guardian.work()
    assert [("planner", "monday", [[1, 2]]), ("planner", "monday", [[1, 3]])] == sorted(numbers(place.ledger))
    lines = [line for line in said_of(verify(place.ledger.path)) if line.startswith("planner, run monday, part ")]
    assert 2 == len(lines)


def test_a_recorder_is_its_own_process_s(place: SimpleNamespace, tmp_path: Path) -> None:
    """After a fork the child has the parent's file and its numbers: it tells nothing, and closes nothing."""
    audit = Recorder(place.url, "planner", outbox=tmp_path / "box")
    audit.record("sent", {})
    assert audit._outbox is not None
    own = audit._pid
    audit._pid = audit._outbox._pid = own + 1
    with pytest.raises(AuditError, match="expected a recorder of this process"):
        audit.record("sent", {})
    audit._outbox.close(0)
    audit._pid = audit._outbox._pid = own
    assert 2 == audit.record("sent", {})
    audit.close()
    place.guardian.work()
    assert [("planner", audit.run, [[1, 2]])] == numbers(place.ledger)


def test_a_closed_outbox_keeps_nothing_more(place: SimpleNamespace, tmp_path: Path) -> None:
    audit = Recorder(place.url, "planner", unrecorded=5, outbox=tmp_path / "box")
    audit.close()
    audit.close()
    with pytest.raises(AuditError, match="expected an open outbox of this process"):
        audit.record("sent", {})


def test_a_receipt_is_the_guardian_s_where_its_key_is_known(place: SimpleNamespace) -> None:
    """Anybody who may write to the spool may write one; other mail of the producer's stays where it is."""
    place.connection.send(b"a message for the planner", to="planner", handoff_id="m")
    with Recorder(place.url, "planner", unrecorded="never", timeout_s=0.5, key=SIGNER.key) as audit:
        other = Signer(SIGNER.name, bytes(32))
        before = Checkpoint(SIGNER.name, 1, bytes(32), 1).signed(SIGNER)  # genuine, and of before that entry
        for checkpoint in ("i am one", Checkpoint(SIGNER.name, 9, bytes(32), 1).signed(other), before):
            made = Submission("planner", audit.run, audit.part, 1, "sent", {})
            receipt = Receipt(id_of(made.to_bytes()), 1, checkpoint)
            place.connection.send(
                receipt.to_bytes(), to=f"receipts-{audit.part}", handoff_id=id_of(checkpoint.encode())
            )
        with pytest.warns(AuditWarning, match="no receipt") as told, pytest.raises(AuditError, match="got none"):
            audit.record("sent", {})
        assert 3 == len(told)
        assert "" == audit.checkpoint
    with connect(place.url, name="planner") as c:
        delivery = c.receive()
        assert delivery is not None
        assert b"a message for the planner" == delivery.message


def test_what_is_refused_waits_for_nobody_and_raises_its_own_error(pair: Pair, place: SimpleNamespace) -> None:
    with Recorder(place.url, "writer", unrecorded="never", timeout_s=30) as audit:
        receiver = ilcp.Receiver(pair.receiver.model, pair.receiver.tokenizer, pair.receiver.codec, audit=audit)
        started = time.monotonic()
        with pytest.raises(DecodeError):
            receiver.decode(b"garbage")
        assert time.monotonic() - started < 10
    place.guardian.work()
    assert [("writer", 1, "refused")] == events(place.ledger)


def test_nothing_that_a_stranger_tells_stops_the_guardian(place: SimpleNamespace) -> None:
    """What no entry can hold is entered by its digest; what is nearly the same is not taken for the same."""
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    made = json.loads(Submission("planner", "r", "p", 1, "sent", {}).to_bytes())
    for number, about in enumerate(({"x": 1e20}, {"x": deep}, {"clock_unix_ms": 5})):
        place.connection.send(json.dumps(made | {"about": about}).encode(), to="guardian", handoff_id=f"s{number}")
    for number, value in enumerate((1, True, 1)):
        sent = Submission("planner", "r", "p", 7, "sent", {"ok": value})
        place.connection.send(sent.to_bytes(), to="guardian", handoff_id=f"t{number}")
    assert 6 == place.guardian.work()
    assert ["unreadable"] * 3 + ["handoff", "conflict"] == [entry.kind for entry in place.ledger.entries(first=1)]
    assert verify(place.ledger.path, keys=[SIGNER.key]).sound


def test_what_comes_again_after_it_was_retired_is_entered_beside_it(place: SimpleNamespace) -> None:
    one = Submission("planner", "r", "p", 1, "sent", {})
    place.connection.send(one.to_bytes(), to="guardian", handoff_id="a")
    place.guardian.work()
    time.sleep(0.01)
    place.ledger.retire(0, by="a test", below_least=True)
    place.connection.send(one.to_bytes(), to="guardian", handoff_id="b")
    place.guardian.work()
    assert ["ledger", "retention", "conflict"] == [entry.kind for entry in place.ledger.entries()]
    assert verify(place.ledger.path).sound


def test_a_line_that_no_guardian_takes_is_set_aside(place: SimpleNamespace, tmp_path: Path) -> None:
    """What a power cut left, or somebody wrote, keeps nothing else from going."""
    box = tmp_path / "box"
    box.mkdir(mode=0o700)
    good = Submission("gone", "r", "p", 1, "sent", {}).to_bytes()
    (box / "gone-1.outbox").write_bytes(b'\0\0\0\n\n[]\n{"a":1}\n' + good + b"\n")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with Recorder(place.url, "planner", run="r", outbox=box) as audit:
            audit.record("sent", {})
            ends = time.monotonic() + 60
            while place.ledger.size < 3 or audit._outbox.left:  # type: ignore[union-attr]
                place.guardian.work()
                assert time.monotonic() < ends
            assert 0 == next(box.glob("planner-*.outbox")).stat().st_size  # it does not grow for ever
    assert 2 == len([each for each in told if "is set aside in" in str(each.message)])
    assert {"gone", "planner"} == {producer for producer, _, _ in numbers(place.ledger)}
    (aside,) = box.iterdir()
    assert b'[]\n{"a":1}\n' == aside.read_bytes()


class Away:
    """Stands for a connection whose other side is away for a while."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.away = inner, True

    def send(self, *args: Any, **options: Any) -> Any:
        if self.away:
            raise UnreachableError("nobody there")
        return self.inner.send(*args, **options)


def test_an_outbox_keeps_what_no_transport_takes(place: SimpleNamespace, tmp_path: Path) -> None:
    """While it is away a hand-off goes on; then everything is sent, by this recorder or by the next one."""
    box = tmp_path / "box"
    with Recorder(place.url, "planner", run="r", outbox=box, timeout_s=0.1) as audit:
        away: Any = Away(audit._connection())
        audit._opened = away
        assert list(range(1, 21)) == [audit.record("sent", {}) for _ in range(20)]
        assert 1 == len(list(box.iterdir()))
    assert 0 == place.guardian.work()
    assert 1 == len(list(box.iterdir()))  # what was not sent stays
    with Recorder(place.url, "planner", run="s", outbox=box) as audit:
        audit.record("sent", {})
    assert [] == list(box.iterdir())
    place.guardian.work()
    assert [("planner", "r", [[1, 20]]), ("planner", "s", [[1, 1]])] == numbers(place.ledger)


def test_an_outbox_that_comes_back_is_emptied(place: SimpleNamespace, tmp_path: Path) -> None:
    with Recorder(place.url, "planner", run="r", outbox=tmp_path / "box") as audit:
        away: Any = Away(audit._connection())
        audit._opened = away
        audit.record("sent", {})
        away.away = False
        ends = time.monotonic() + 60
        while place.guardian.work() == 0:
            assert time.monotonic() < ends
    assert [("planner", "r", [[1, 1]])] == numbers(place.ledger)


def test_an_outbox_without_room_keeps_nothing_of_a_line(place: SimpleNamespace, tmp_path: Path, monkeypatch) -> None:
    """A write that was cut short is taken back, and the policy says whether the hand-off goes on."""
    box, whole = tmp_path / "box", os.write
    with Recorder(place.url, "planner", run="r", outbox=box, unrecorded=5) as audit:
        monkeypatch.setattr(os, "write", lambda handle, data: whole(handle, data[:10]))
        with pytest.raises(AuditError, match="only a part of it was written"):
            audit.record("sent", {})
        monkeypatch.undo()
        assert 2 == audit.record("sent", {})
    place.guardian.work()
    assert [("planner", "r", [[2, 2]])] == numbers(place.ledger)


def test_a_line_that_a_dead_process_began_was_never_handed_over(place: SimpleNamespace, tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir(mode=0o700)
    lines = [Submission("gone", "r", "p", number, "sent", {}).to_bytes() for number in (1, 2)]
    (box / "gone-1.outbox").write_bytes(lines[0] + b"\n" + lines[1][:-5])
    (box / "link.outbox").symlink_to(tmp_path / "elsewhere")
    with Recorder(place.url, "planner", outbox=box):
        ends = time.monotonic() + 60
        while place.guardian.work() == 0:
            assert time.monotonic() < ends
    assert [("gone", "r", [[1, 1]])] == numbers(place.ledger)
    assert ["link.outbox"] == [file.name for file in box.iterdir()]


WORKS = """
import sys
from pathlib import Path
from ilcp.audit import Guardian, Ledger, Recorder, Signer
from dataclasses import replace
from ilcp.audit.guardian import settings_for
from ilcp.transport import connect
role, url, ledger = sys.argv[1:]
if role == "guardian":
    signer = Signer("example/ledger", bytes(range(32)))
    own = replace(settings_for(url), lease_s=2.0)  # what a dead guardian held comes back soon
    with connect(url, name="guardian", settings=own) as c, Ledger(Path(ledger), signer) as made:
        Guardian(made, c).serve(lambda: True, 0.05)
else:
    with Recorder(url, role, run="r") as audit:
        while True:
            print(audit.record("sent", {}), flush=True)
"""


def test_killed_processes_lose_no_record_and_enter_none_twice(place: SimpleNamespace, tmp_path: Path) -> None:
    """Guardians and producers are killed in the middle of their work, and started again."""
    script, path = tmp_path / "works.py", place.ledger.path
    script.write_text(WORKS)
    place.ledger.close()

    def start(role: str) -> subprocess.Popen[str]:
        words = [sys.executable, str(script), role, place.url, str(path)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def kill(process: subprocess.Popen[str]) -> str:
        process.send_signal(signal.SIGKILL)
        said, _ = process.communicate()
        return said

    told = {}
    for round_ in range(3):
        guardian, producer = start("guardian"), start(f"planner{round_}")
        assert producer.stdout is not None
        first = producer.stdout.readline()
        time.sleep(0.3)
        kill(guardian)
        lines = (first + kill(producer)).split("\n")[:-1]
        told[f"planner{round_}"] = int(lines[-1])
    with connect(place.url, name="guardian", settings=settings_for(place.url)) as c, Ledger(path, SIGNER) as ledger:
        ends = time.monotonic() + 180
        guardian_ = Guardian(ledger, c)
        while True:  # what a dead guardian held comes back when its lease is over
            guardian_.work()
            found = {who: came[-1][1] for (who, _, _), came in ledger.sequences().items()}
            complete = all(len(came) == 1 and came[0][0] == 1 for came in ledger.sequences().values())
            if complete and all(found.get(who, 0) >= number for who, number in told.items()):
                break
            assert time.monotonic() < ends, (told, ledger.sequences())
            time.sleep(0.2)
        assert all(found[who] - number <= 1 for who, number in told.items())
    assert verify(path, keys=[SIGNER.key]).sound
