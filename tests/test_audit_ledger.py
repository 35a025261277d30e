"""A ledger: what is entered stays, what is erased is gone and said to be, and a copy shows what was done to it."""

import itertools
import json
import random
import shutil
import sqlite3
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ilcp.audit.checkpoints import Checkpoint, Key, Signer, parsed, signers
from ilcp.audit.copies import copy_at, export
from ilcp.audit.entries import MOST_BYTES, Draft, Entry, canonical
from ilcp.audit.findings import CHECKS, Verified, said_of
from ilcp.audit.ledger import MONTH_MS, Ledger
from ilcp.audit.tree import appended, extends, includes, inclusion, leaf_hash, root_of
from ilcp.audit.verify import verify
from ilcp.errors import ConfigError, DecodeError, EncodeError, IlcpError, StorageError
from ilcp.signing import signature
from tests.helpers import ROOT, run_python

SIGNER = Signer("example/ledger", bytes(range(32)))
MONDAY, OTHER = ("planner", "monday", "p"), ("planner", "other", "p")
SECRET = "Mara's number is 0151 2345"


class Clock:
    """Unix seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "audit").mkdir(mode=0o700)
    return tmp_path / "audit"


@pytest.fixture
def ledger(folder: Path, clock: Clock) -> Iterator[Ledger]:
    """A ledger with its first entry and five hand-offs, of which the third is missing."""
    with Ledger(folder / "ledger.sqlite", SIGNER, clock) as made:
        for number in (1, 2, 4, 5):
            clock.now += 1
            made.append([handoff(number)])
        made.append([handoff(1, run="other")])
        yield made


def handoff(sequence: int, run: str = "monday", **personal: Any) -> Draft:
    fields = {"producer": "planner", "run": run, "part": "p", "sequence": sequence, "handoff_id": f"{run}-{sequence}"}
    return Draft("handoff", fields, personal or {"summary": SECRET, "literals": ["INC-20391", 4.5]})


def found(path: Path, **given: Any) -> Verified:
    return verify(path, **{"keys": [SIGNER.key], **given})


def names(of: Verified) -> set[str]:
    return {each.check for each in of.findings}


def test_what_is_entered_is_read_back_and_proven(ledger: Ledger) -> None:
    assert 6 == ledger.size
    assert ["ledger", *["handoff"] * 5] == [each.kind for each in ledger.entries()]
    assert [5, 4] == [each.number for each in ledger.entries(newest=True)][:2]
    assert [1, 2, 3, 4] == [each.number for each in ledger.entries(run="monday")]
    entry, beside = ledger.entry(2), ledger.personal(2)
    assert entry is not None
    assert ("monday-2", 2) == (entry.fields["handoff_id"], entry.fields["sequence"])
    assert {"summary": SECRET, "literals": ["INC-20391", 4.5]} == {n: each.value for n, each in beside.items() if each}
    assert SECRET not in entry.to_bytes().decode()
    note = ledger.checkpoint()
    assert [SIGNER.key] == signers(note, [SIGNER.key])
    newest = parsed(note)
    assert (6, ledger.root(6)) == (newest.size, newest.root)
    assert includes(newest.root, 6, 2, leaf_hash(entry.to_bytes()), ledger.inclusion(2))
    assert extends(newest.root, 6, ledger.root(4), 4, ledger.consistency(4))
    assert {MONDAY: [[1, 2], [4, 5]], OTHER: [[1, 1]]} == ledger.sequences()
    assert 4 == ledger.numbered(*MONDAY, 5)
    assert ledger.numbered(*MONDAY, 3) is None


def test_a_sound_copy_says_what_is_missing_and_what_cannot_be_told(ledger: Ledger, folder: Path) -> None:
    older = parsed(ledger.checkpoint())
    whole = found(ledger.path)
    assert (6, {MONDAY: [[3, 3]]}, {OTHER: 1}) == (whole.entries, whole.missing, whole.complete)
    assert whole.sound
    assert ["no older checkpoint"] == [said[:19] for said in whole.cannot]
    assert ["no key was given", "no older checkpo"] == [said[:16] for said in verify(ledger.path).cannot]
    note = ledger.checkpoint()
    ledger.append([handoff(3)])
    again = found(ledger.path, witnessed=[note])
    assert again.sound
    assert () == again.cannot
    assert {} == again.missing
    assert older.size < parsed(ledger.checkpoint()).size
    said = list(said_of(again))
    assert ["example/ledger: 7 entries, 0 of them retired", "planner, run monday: all of 1 to 5"] == said[:2]
    assert f"sound: {', '.join(CHECKS)}" == said[-1]


def test_what_is_erased_is_gone_from_the_disk_and_every_proof_stays(ledger: Ledger) -> None:
    """Neither the file nor its log has it, the entry is what it was, and the record says who and why."""
    entry = ledger.entry(2)
    note = ledger.checkpoint()
    files = [ledger.path, ledger.path.with_name(ledger.path.name + "-wal")]
    for number in range(1, 6):
        if number != 2:
            ledger.erase(number, ["summary"], by="the officer", because="of a test")
    held = sum(SECRET.encode() in file.read_bytes() for file in files if file.exists())
    assert held == 1
    made = ledger.erase(2, ["summary"], by="the data protection officer", because="she asked")
    assert not any(SECRET.encode() in file.read_bytes() for file in files if file.exists())
    assert entry == ledger.entry(2)
    assert ({"summary": None}, True) == (
        {"summary": ledger.personal(2)["summary"]},
        bool(ledger.personal(2)["literals"]),
    )
    said = ledger.entry(made)
    assert said is not None
    wanted = {
        "of": 2,
        "names": ["summary"],
        "by": "the data protection officer",
        "because": "she asked",
        "run": "monday",
    }
    assert wanted == said.fields
    copy = found(ledger.path, witnessed=[note])
    assert copy.sound
    assert "entry 2: summary erased by the data protection officer, because she asked" in said_of(copy)
    for names_, reason in ((["summary"], "why"), (["nothing"], "why"), ([], "why"), (["literals"], " ")):
        with pytest.raises(ConfigError, match="expected"):
            ledger.erase(2, names_, by="x", because=reason)


def test_what_is_old_is_retired_but_for_its_hashes(ledger: Ledger, clock: Clock) -> None:
    note = ledger.checkpoint()
    clock.now += 13 * MONTH_MS / 1000
    ledger.append([handoff(6)])
    with pytest.raises(ConfigError, match="expected at least 6 months, got 5"):
        ledger.retire(5, by="a rule")
    made = ledger.retire(by="a rule")
    assert (7, None) == (made, ledger.retire(by="a rule"))
    assert ([None] * 5, True) == ([ledger.entry(number) for number in range(1, 6)], ledger.entry(6) is not None)
    assert ["ledger", "handoff", "retention"] == [entry.kind for entry in ledger.entries()]
    copy = found(ledger.path, witnessed=[note])
    assert (copy.findings, copy.retired) == ((), 5)
    assert {MONDAY: [[3, 3]]} == copy.missing  # as before
    assert [[1, 2], [4, 6]] == ledger.sequences()[MONDAY]
    clock.now += 1
    assert 8 == ledger.retire(0, by="a rule", below_least=True)


def test_keys_follow_each_other_under_both_signatures(ledger: Ledger, folder: Path) -> None:
    """Who believes the first key believes the next; the old one signs no more, and no other key opens the ledger."""
    new = Signer(SIGNER.name, bytes(32))
    with pytest.raises(ConfigError, match="expected another key"):
        ledger.rotate(SIGNER)
    with pytest.raises(ConfigError, match="expected another key"):
        ledger.rotate(Signer("other", bytes(32)))
    ledger.rotate(new)
    assert [SIGNER.key, new.key] == signers(ledger.checkpoint(), [SIGNER.key, new.key])
    ledger.append([handoff(7)])
    assert [new.key] == signers(ledger.checkpoint(), [SIGNER.key, new.key])
    for key in (SIGNER.key, new.key):
        assert found(ledger.path, keys=[key]).sound
    assert {"signature"} == names(found(ledger.path, keys=[Key(SIGNER.name, "07" * 32)]))
    with pytest.raises(ConfigError, match="expected the key that signs"):
        Ledger(ledger.path, SIGNER)
    with Ledger(ledger.path, new) as again:
        assert [SIGNER.key, new.key] == again.keys
        again.rotate(Signer(SIGNER.name, bytes([9] * 32)))
        with pytest.raises(ConfigError, match="under the same key, got another's checkpoint"):
            ledger.append([handoff(8)])  # opened before, under the key of then
    assert found(ledger.path).sound


def test_a_clock_that_goes_back_dates_nothing_back(ledger: Ledger, clock: Clock) -> None:
    before = [entry.recorded_unix_ms for entry in ledger.entries()][-1]
    clock.now -= 86_400
    (number,) = ledger.append([handoff(6)])
    entry = ledger.entry(number)
    assert entry is not None
    assert (before, int(1000 * clock.now)) == (entry.recorded_unix_ms, entry.fields["clock_unix_ms"])
    assert found(ledger.path).sound


def test_a_clock_that_goes_back_within_a_step_dates_nothing_back(folder: Path) -> None:
    """Entries of one step follow each other, its checkpoint them, whatever each look at the clock says."""
    moments = itertools.chain([9.0, 9.0, 9.0, 9.0], itertools.count(8.0, -0.5))
    with Ledger(folder / "ledger.sqlite", SIGNER, lambda: next(moments)) as ledger:
        ledger.append([handoff(number) for number in range(1, 5)])
        assert 1 < len([entry for entry in ledger.entries() if "clock_unix_ms" in entry.fields])
    assert found(folder / "ledger.sqlite").sound


def test_a_step_of_many_entries_has_one_checkpoint(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = [], Ledger._seal

    def counted(self: Ledger, *args: Any, **options: Any) -> None:
        made.append(1)
        real(self, *args, **options)

    monkeypatch.setattr(Ledger, "_seal", counted)
    with ledger.transaction():
        for number in range(6, 16):
            ledger.append([handoff(number)])
    assert ([1], 16) == (made, parsed(ledger.checkpoint()).size)


def test_old_checkpoints_go_but_for_one_an_hour(ledger: Ledger, clock: Clock) -> None:
    assert [1, 6] == [parsed(note).size for note in ledger.checkpoints()]
    for number in range(6, 10):
        clock.now += 1800
        ledger.append([handoff(number)])
    assert [1, 8, 10] == [parsed(note).size for note in ledger.checkpoints()]


def test_what_fails_halfway_leaves_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two drafts, of which the second cannot be entered; a disk that is full; a ledger that is only read."""
    before = ledger.checkpoint()
    with pytest.raises(StorageError, match="UNIQUE"):
        ledger.append([handoff(8), handoff(1)])
    with pytest.raises(EncodeError, match="expected at most 1048576 bytes in an entry"):
        handoff(9, summary="x" * MOST_BYTES)
    ledger._db.execute(f"PRAGMA max_page_count = {ledger._db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(StorageError, match="database or disk is full; free space"):
        ledger.append([handoff(number, summary="x" * 10_000) for number in range(10, 90)])
    assert (6, before) == (ledger.size, ledger.checkpoint())
    assert found(ledger.path).sound
    moved = ledger.path.with_name("moved.sqlite")
    ledger.path.rename(moved)
    with pytest.raises(StorageError, match="got another file or none there"):
        ledger.append([handoff(9)])
    moved.rename(ledger.path)
    with Ledger(ledger.path) as reader, pytest.raises(ConfigError, match="it was opened to read"):
        reader.append([handoff(9)])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "expected a ledger at .*, got none"),
        (lambda path: path.write_bytes(b"text " * 1000), "file is not a database"),
        (lambda path: path.mkdir(), "expected a ledger at .*, got none"),
        (lambda path: sqlite3.connect(path).execute("CREATE TABLE t (a)"), "expected an ilcp ledger of version 2"),
    ],
)
def test_what_is_no_ledger_is_refused(folder: Path, make: Callable[[Path], Any], said: str) -> None:
    path = folder / "none.sqlite"
    make(path)
    with pytest.raises((ConfigError, StorageError), match=said):
        Ledger(path)


def test_an_export_is_verified_by_us_and_by_a_stranger(ledger: Ledger, folder: Path) -> None:
    """One file; whole, or one run with a proof for each entry. The stranger's script has nothing of this package."""
    note = ledger.checkpoint()
    ledger.erase(1, ["summary"], by="x", because="y")
    whole, run = folder / "whole.jsonl", folder / "run.jsonl"
    assert (7, 6) == (export(ledger, whole), export(ledger, run, "monday"))
    for path, given in ((whole, [note]), (run, [])):
        copy = found(path, witnessed=given)
        assert () == copy.findings
        assert {MONDAY: [[3, 3]]} == copy.missing
    assert "other" not in run.read_text()
    assert {"witness"} == names(found(run, witnessed=[note]))  # a run's copy cannot be compared with it
    script, key, older = ROOT / "tests" / "verify_export.py", str(SIGNER.key), folder / "older"
    older.write_text(note)
    assert 0 == run_python("-I", script, whole, key, older).returncode
    lines = whole.read_text().splitlines(keepends=True)
    changed = {
        "value": [line.replace("INC-20391", "INC-20392") for line in lines],
        "leaf": [line.replace("monday-2", "monday-3") for line in lines],
        "gone": lines[:3] + lines[4:],
        "swapped": [*lines[:2], lines[3], lines[2], *lines[4:]],
    }
    for name, other in changed.items():
        whole.write_text("".join(other))
        assert not found(whole).sound, name
        assert 1 == run_python("-I", script, whole, key).returncode, name
    whole.write_text("".join(lines))
    assert 1 == run_python("-I", script, whole, str(Signer(SIGNER.name, bytes(32)).key)).returncode


def test_a_checkpoint_is_read_only_as_it_is_written() -> None:
    checkpoint = Checkpoint("example/ledger", 3, bytes(32), 5)
    note = checkpoint.signed(SIGNER)
    assert checkpoint == parsed(note)
    assert SIGNER.key == Key.parse(str(SIGNER.key))
    for other in (
        note.replace("\n3\n", "\n03\n"),
        note.replace("time 5", "time -5"),
        note[1:40],
        "",
        None,
        "\n\n",
        note * 99,
    ):
        with pytest.raises(DecodeError, match="expected a checkpoint"):
            parsed(other)
    for changed in (note.replace("\n3\n", "\n4\n"), note.replace("time 5", "time 6"), note.replace("— e", "— f")):
        assert [] == signers(changed, [SIGNER.key])
    assert [] == signers(note, [Key("example/other", SIGNER.key.public)])
    for text in ("", "a+b+c", str(SIGNER.key)[:-1], str(SIGNER.key).replace("example", "another"), "x" * 5000):
        with pytest.raises(DecodeError, match="expected"):
            Key.parse(text)


OF_ENTRY = {"format": 1, "number": 1, "recorded_unix_ms": 1, "kind": "k", "fields": {}, "commitments": {}}
OTHERS: list[dict[str, Any]] = [
    {"number": -1},
    {"number": 1.5},
    {"number": True},
    {"kind": 1},
    {"fields": []},
    {"format": 2},
    {"commitments": {"a": "00"}},
    {"more": 1},
]
ANYTHING = (b'{"a":1,"a":1}', b'{"a":NaN}', b'{"a":1e999}', b'{"a":"\\ud800"}', b'{"a":123456789012345678901}')


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{}", b"[" * 100_000, b"\xff", b"null", b'{"format":1}', canonical(OF_ENTRY)[:-1]),
        *(canonical(OF_ENTRY | other) for other in OTHERS),
        *(canonical(OF_ENTRY).replace(b'"fields":{}', b'"fields":' + other) for other in ANYTHING),
        json.dumps(OF_ENTRY).encode(),
    ],
)
def test_an_entry_is_read_only_as_it_is_written(data: bytes) -> None:
    with pytest.raises(DecodeError, match="expected"):
        Entry.from_bytes(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1 << 60, "\ud800", {1: 2}, {"a": object()}, b"x"])
def test_what_json_does_not_hold_is_not_entered(value: Any) -> None:
    with pytest.raises(EncodeError, match="expected"):
        Draft("handoff", {"a": value})


# --- tampering --------------------------------------------------------------------------------------------------------


def forged(path: Path, change: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(change)
    db.close()


def rewritten(path: Path, folder: Path, by: Signer, change: Callable[[list[Draft]], None]) -> None:
    """Writes the whole ledger anew, under a key, as its guardian could."""
    with Ledger(path) as old:
        drafts = [Draft(e.kind, dict(e.fields), {"summary": "x"}) for e in old.entries(kinds=["handoff"])]
    change(drafts)
    path.unlink()
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    with Ledger(path, by, Clock()) as new:
        new.append(drafts)


OF_2, TEXT = "WHERE number = 2", "CAST('\"x\"' AS BLOB)"
SUMMARY = f"{OF_2} AND name = 'summary'"
RENAMED = "CAST(replace(body, 'monday-2', 'monday-9') AS BLOB)"
EDITS: dict[str, tuple[str, set[str]]] = {  # what is done to the file, and the checks that may say so
    "a body": (f"UPDATE leaves SET body = {RENAMED} {OF_2}", {"entries", "tree", "root"}),
    "a body of text": (f"UPDATE leaves SET body = 'x' {OF_2}", {"readable", "root"}),
    "a body and its column": (f"UPDATE leaves SET body = {RENAMED}, handoff_id = 'monday-9' {OF_2}", {"tree", "root"}),
    "a column": (f"UPDATE leaves SET run = 'other' {OF_2}", {"entries"}),
    "a time": (f"UPDATE leaves SET recorded_unix_ms = 5 {OF_2}", {"entries"}),
    "a leaf's hash": ("UPDATE nodes SET hash = zeroblob(32) WHERE level = 0 AND place = 3", {"tree"}),
    "a subtree's hash": ("UPDATE nodes SET hash = zeroblob(32) WHERE level = 1 AND place = 1", {"tree"}),
    "no hash": ("DELETE FROM nodes WHERE level = 1 AND place = 0", {"readable", "root"}),
    "no row": ("DELETE FROM leaves WHERE number = 3", {"readable", "entries", "root"}),
    "no last row": ("DELETE FROM leaves WHERE number = 5", {"readable", "root"}),
    "a number": ("UPDATE leaves SET number = 9 WHERE number = 5", {"readable", "entries", "root"}),
    "a body gone": ("UPDATE leaves SET body = NULL WHERE number = 3", {"entries", "personal"}),
    "another table": ("CREATE TABLE more (a)", {"readable"}),
    "a trigger": ("CREATE TRIGGER t AFTER INSERT ON leaves BEGIN DELETE FROM leaves; END", {"readable"}),
    "an index less": ("DROP INDEX by_run", {"readable"}),
    "a view in a table's place": (
        "ALTER TABLE leaves RENAME TO l; CREATE VIEW leaves AS SELECT * FROM l",
        {"readable"},
    ),
    "a value of text": (f"UPDATE personal SET value = '1' {SUMMARY}", {"readable", "root"}),
    "a value": (f"UPDATE personal SET value = {TEXT} {SUMMARY}", {"personal"}),
    "a salt": (f"UPDATE personal SET salt = zeroblob(32) {SUMMARY}", {"personal"}),
    "a value gone": (f"DELETE FROM personal {SUMMARY}", {"personal"}),
    "a value more": (f"INSERT INTO personal VALUES (2, 'more', zeroblob(32), {TEXT})", {"personal"}),
    "a value of no entry": (f"INSERT INTO personal VALUES (99, 'a', zeroblob(32), {TEXT})", {"readable"}),
    "no checkpoint": ("DELETE FROM checkpoints", {"readable"}),
    "a checkpoint's time": ("UPDATE checkpoints SET note = replace(note, 'time 1', 'time 2')", {"signature", "time"}),
    "an old checkpoint alone": ("DELETE FROM checkpoints WHERE size = 6", {"root"}),
    "no table": ("DROP TABLE nodes", {"readable", "root", "signature"}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_of_the_file_is_found_by_its_check(ledger: Ledger, edit: str) -> None:
    ledger.close()
    change, wanted = EDITS[edit]
    assert found(ledger.path).sound
    forged(ledger.path, change)
    copy = found(ledger.path)
    assert names(copy) <= wanted, copy.findings
    assert not copy.sound


def test_a_damaged_header_or_schema_is_a_finding_and_an_error_of_ours(ledger: Ledger, tmp_path: Path) -> None:
    """Bytes of the first pages, where SQLite's own decoding ends in errors of many kinds."""
    ledger.close()
    rng, data, copy = random.Random(7), ledger.path.read_bytes(), tmp_path / "copy.sqlite"
    for at in rng.sample(range(4096), 600):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        copy.write_bytes(changed)
        found(copy)
        with suppress(IlcpError), Ledger(copy) as damaged:
            list(damaged.entries())
            damaged.sequences()
            damaged.checkpoint()


def test_an_index_that_answers_wrongly_is_found(ledger: Ledger) -> None:
    """Its text is ours, and what it holds is not: a look-up would miss what stands in the tree."""
    ledger.close()
    own = "CREATE INDEX by_run ON leaves (run, number)"
    emptied = f"{own} WHERE number > 99"
    forged(
        ledger.path,
        f"DROP INDEX by_run; {emptied}; PRAGMA writable_schema = ON;"
        f"UPDATE sqlite_master SET sql = '{own}' WHERE name = 'by_run'; PRAGMA writable_schema = OFF",
    )
    with Ledger(ledger.path) as misled:
        assert [] == list(misled.entries(run="monday"))
    assert {"readable"} == names(found(ledger.path))


def test_nobody_has_the_guardian_sign_what_was_changed_between_two_steps(ledger: Ledger, clock: Clock) -> None:
    """An entry and all hashes above it, or the time of a checkpoint: the next step is refused, or takes no notice."""
    note = ledger.checkpoint()
    other = sqlite3.connect(ledger.path, isolation_level=None)
    (body,) = other.execute("SELECT body FROM leaves WHERE number = 5").fetchone()
    changed = body.replace(b"other-1", b"other-9")
    other.execute("UPDATE leaves SET body = ?, handoff_id = 'other-9' WHERE number = 5", (changed,))
    for level, place, made in appended(5, leaf_hash(changed), ledger.node):
        other.execute("UPDATE nodes SET hash = ? WHERE level = ? AND place = ?", (made, level, place))
    with pytest.raises(StorageError, match="somebody without the key has changed it"):
        ledger.append([handoff(6)])
    with (
        pytest.raises(StorageError, match="somebody without the key has changed it"),
        Ledger(ledger.path, SIGNER) as again,
    ):
        again.append([handoff(6)])
    assert note == ledger.checkpoint()
    other.execute("UPDATE leaves SET body = ?, handoff_id = 'other-1' WHERE number = 5", (body,))
    for level, place, made in appended(5, leaf_hash(body), ledger.node):
        other.execute("UPDATE nodes SET hash = ? WHERE level = ? AND place = ?", (made, level, place))
    other.execute("UPDATE checkpoints SET time_unix_ms = 4503599627370496")
    other.close()
    (number,) = ledger.append([handoff(6)])
    entry = ledger.entry(number)
    assert entry is not None
    assert int(1000 * clock.now) == entry.recorded_unix_ms


def test_a_ledger_is_not_gone_on_with_where_its_own_key_wrote_it_anew(ledger: Ledger, tmp_path: Path) -> None:
    """Another one of the same key in its place, longer and sound in itself: who has it open knows what there was."""
    (tmp_path / "other").mkdir(mode=0o700)
    path = tmp_path / "other" / "fork.sqlite"
    with Ledger(path, SIGNER, Clock()) as fork:
        fork.append([handoff(number, run="forked") for number in range(1, 12)])
    db = sqlite3.connect(ledger.path, isolation_level=None)
    db.execute("ATTACH ? AS fork", (str(path),))
    for table in ("leaves", "nodes", "personal", "checkpoints"):
        db.executescript(f"DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM fork.{table}")
    db.close()
    assert found(ledger.path).sound
    with pytest.raises(StorageError, match="got other entries"):
        ledger.append([handoff(6)])


def test_a_forged_part_is_not_believed_for_a_genuine_checkpoint_beside_it(ledger: Ledger, folder: Path) -> None:
    """Whoever adds a signature to a genuine checkpoint, and a tree of their own behind it, brings no key in."""
    thief, path = Signer(SIGNER.name, bytes([7] * 32)), folder / "forged.jsonl"
    drafts = [
        Draft("ledger", {"name": SIGNER.name, "public_key": str(SIGNER.key), "version": 1}),
        Draft("key", {"public_key": str(thief.key), "before": str(SIGNER.key)}),
        handoff(1),
    ]
    leaves = [Entry.of(replace(each, personal={}), number, 5)[0].to_bytes() for number, each in enumerate(drafts)]
    hashes: dict[tuple[int, int], bytes] = {}

    def node(level: int, place: int) -> bytes:
        return hashes[level, place]

    for number, leaf in enumerate(leaves):
        for level, place, made in appended(number, leaf_hash(leaf), node):
            hashes[level, place] = made
    root = root_of(3, node)
    genuine = ledger.checkpoint()
    own = thief.key.id + bytes.fromhex(signature(thief.seed, parsed(genuine).body.encode()))
    both = f"{genuine}— {thief.name} {b64encode(own).decode()}\n"
    forged_note = Checkpoint(SIGNER.name, 3, root, 9).signed(thief)
    for notes in ([both, forged_note], [forged_note], [genuine]):
        head = {"ilcp_ledger_export": 1, "size": parsed(notes[-1]).size, "whole": False, "checkpoints": notes}
        lines = [
            {"number": number, "leaf": leaf.decode(), "personal": {}, "proof": [each.hex() for each in proof]}
            for number, leaf in enumerate(leaves)
            for proof in [inclusion(number, 3, node)]
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)))
        assert not found(path).sound


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE leaves SET sequence = 4 WHERE number = 2",
        "UPDATE leaves SET kind = 'handoff' WHERE number = 2",
        "INSERT INTO personal VALUES (2, 'summary', zeroblob(32), CAST('1' AS BLOB))",
        "UPDATE leaves SET kind = 'retired', recorded_unix_ms = 0, body = NULL WHERE number = 6",
    ],
)
def test_nothing_stands_where_only_a_hash_is_left_nor_goes_with_it(ledger: Ledger, clock: Clock, change: str) -> None:
    """A retired entry has no columns and no values; what was not retired, such as an erasure, does not pass for it."""
    ledger.erase(1, ["summary"], by="x", because="y")
    clock.now += 13 * MONTH_MS / 1000
    ledger.append([handoff(6)])
    ledger.retire(by="a rule")
    ledger.close()
    assert found(ledger.path).sound
    forged(ledger.path, change)
    assert not found(ledger.path).sound


def test_numbers_of_any_size_cost_nothing(ledger: Ledger) -> None:
    ledger.append([handoff((1 << 53) - 1, "large")])
    assert [[(1 << 53) - 1, (1 << 53) - 1]] == ledger.sequences()["planner", "large", "p"]
    copy = found(ledger.path)
    assert [[1, (1 << 53) - 2]] == copy.missing["planner", "large", "p"]
    assert f"planner, run large: incomplete, missing 1 to {(1 << 53) - 2}" in said_of(copy)


@pytest.mark.parametrize("value", [1e20, 1e16, 2.0**53, [[]] * 2])
def test_what_would_not_be_read_again_is_not_entered(value: Any) -> None:
    """RFC 8785 writes some floats as whole numbers that no reader of JSON has to hold."""
    deep: Any = value
    for _ in range(31 if isinstance(value, list) else 0):
        deep = [deep]
    for given in ({"fields": {"a": deep}, "personal": {}}, {"fields": {}, "personal": {"a": deep}}):
        with pytest.raises(EncodeError, match="expected"):
            Draft("handoff", **given)


def test_strange_erasures_and_names_are_told_in_one_line(ledger: Ledger) -> None:
    """A guardian may have entered anything; who verifies reads a finding, never a traceback or a forged line."""
    ledger.append([handoff(1, run="a\nplanner, run b: all of 1 to 9")])
    for fields in ({"of": [1], "names": 5}, {"of": 1, "names": [["x"]]}, {"of": 1.5, "names": ["summary"]}):
        ledger.append(
            [Draft("erasure", fields), Draft("retention", {"numbers": [[1], "x", [3, 2]], "handed": [5, [1]]})]
        )
    copy = found(ledger.path)
    assert copy.sound
    lines = list(said_of(copy))
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("planner, run b") for line in lines)


def test_a_copy_is_of_one_moment(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is entered while it is read is no part of it, in the file as in an export."""
    copy = copy_at(ledger.path)
    ledger.append([handoff(6)])
    assert 6 == parsed(copy.checkpoints[-1]).size == len(list(copy.rows))
    path, whole = ledger.path.with_name("e.jsonl"), Ledger.entry
    with Ledger(ledger.path) as reader:

        def meanwhile(self: Ledger, number: int) -> Any:
            if number == 3:
                monkeypatch.undo()
                ledger.erase(1, ["summary"], by="x", because="y")
            return whole(self, number)

        monkeypatch.setattr(Ledger, "entry", meanwhile)
        assert 7 == export(reader, path)
    assert found(path).sound
    assert 8 == ledger.size


def test_what_a_reader_keeps_in_the_log_is_overwritten_with_the_next_step(ledger: Ledger) -> None:
    """A reader that is open meanwhile holds the log; once it has gone, so has what was erased."""
    ledger.append([handoff(6, summary="a secret of six")])
    reader = sqlite3.connect(ledger.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM leaves").fetchone()
    ledger.erase(6, ["summary"], by="x", because="y")
    files = [ledger.path, ledger.path.with_name(ledger.path.name + "-wal")]
    assert any(b"a secret of six" in file.read_bytes() for file in files)
    reader.execute("ROLLBACK")
    reader.close()
    ledger.append([handoff(7)])
    assert not any(b"a secret of six" in file.read_bytes() for file in files if file.exists())


def test_what_a_guardian_itself_rewrites_needs_a_witness(ledger: Ledger, folder: Path, tmp_path: Path) -> None:
    """Rolled back, forked, dated back, another key: each is found by its check where an older checkpoint is known."""
    note, path, old = ledger.checkpoint(), ledger.path, tmp_path / "old.sqlite"
    db = sqlite3.connect(old)
    ledger._db.backup(db)
    db.close()
    ledger.append([handoff(6), handoff(7)])
    newer = ledger.checkpoint()
    ledger.close()
    assert found(path, witnessed=[note, newer]).sound
    assert (True, {"witness"}) == (found(old).sound, names(found(old, witnessed=[newer])))
    assert "rolled back: there were 8 entries, and now there are 6" in found(old, witnessed=[newer]).findings[0].said
    for change in (lambda d: d.reverse(), lambda d: d.pop(2), lambda d: d.insert(0, handoff(8))):
        rewritten(path, folder, SIGNER, change)
        assert found(path).sound  # which nobody can tell without an older checkpoint
        assert {"witness"} == names(found(path, witnessed=[note]))
    rewritten(path, folder, Signer(SIGNER.name, bytes(32)), lambda d: None)
    assert {"signature"} == names(found(path))
    assert {"signature", "witness"} == names(found(path, witnessed=[note]))
    assert verify(path).sound  # nor, without its key, whose ledger it is


def test_an_entry_dated_before_an_older_checkpoint_is_found(folder: Path, clock: Clock) -> None:
    """A guardian that goes on from what others hold cannot say that something came before it."""
    path = folder / "ledger.sqlite"
    with Ledger(path, SIGNER, clock) as ledger:
        ledger.append([handoff(1)])
        clock.now += 100
        ledger.append([handoff(2)])
        note, body = ledger.checkpoint(), ledger.entry(2)
        assert body is not None
        late = Checkpoint(SIGNER.name, 2, ledger.root(2), body.recorded_unix_ms + 1).signed(SIGNER)
    assert found(path, witnessed=[note]).sound
    assert {"time"} == names(found(path, witnessed=[late]))


def test_random_edits_of_bytes_are_found_or_change_nothing(ledger: Ledger, folder: Path, tmp_path: Path) -> None:
    """Of files and exports: what is verified as sound says just what it said before."""
    rng, note = random.Random(7), ledger.checkpoint()
    whole, run = folder / "whole.jsonl", folder / "run.jsonl"
    export(ledger, whole)
    export(ledger, run, "monday")
    ledger.close()
    told = {path: list(said_of(found(path))) for path in (ledger.path, whole, run)}
    missed = 0
    for trial in range(300):
        path = (ledger.path, whole, run)[trial % 3]
        copy = tmp_path / f"{trial}{path.suffix}"
        shutil.copy(path, copy)
        data = bytearray(copy.read_bytes())
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        copy.write_bytes(data)
        result = found(copy, witnessed=[] if path == run else [note])
        if result.sound:
            assert path == ledger.path  # where pages have room that holds nothing, and indexes
            missed += 1
            with Ledger(path) as before, Ledger(copy) as after:
                assert list(before.entries()) == list(after.entries())
                assert [before.personal(n) for n in range(6)] == [after.personal(n) for n in range(6)]
                assert before.checkpoints() == after.checkpoints()
        copy.unlink()
    assert missed < 100
    assert told == {path: list(said_of(found(path))) for path in told}
