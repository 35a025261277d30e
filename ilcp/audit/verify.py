"""Verifies a copy of a ledger: what it says of itself is computed anew, and compared with what others hold.

Each check has a name (``CHECKS``) and finds what it says; ``Verified.cannot`` says what was not to be found out, since
a key or an older checkpoint was not given. Without an older checkpoint nobody can tell a ledger from one that its own
guardian wrote anew, or cut at its end: that takes a witness, who keeps checkpoints where the guardian cannot reach.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ilcp.audit import tree
from ilcp.audit.checkpoints import Checkpoint, Key, parsed, signers
from ilcp.audit.copies import Copy, Row, copy_at
from ilcp.audit.entries import Entry, commitment
from ilcp.audit.tables import columns
from ilcp.errors import DecodeError, EncodeError, StorageError

__all__ = ["CHECKS", "Finding", "Verified", "verify"]

CHECKS = {
    "readable": "every part can be read and has its type",
    "entries": "every entry is spelt canonically, at its number, and what it is looked up by is what it says",
    "tree": "the hashes that are kept are those of the entries, or each entry's proof leads to the root",
    "root": "every checkpoint is of just these entries",
    "signature": "every checkpoint is signed by the key of its time, and the newest by one that is believed",
    "witness": "the ledger still begins with what older checkpoints stood for, and is no shorter",
    "time": "no entry is dated before a checkpoint that it came after, nor before the entry in front of it",
    "personal": "what stands beside an entry is what the entry meant, and what is gone was erased on the record",
    "sequence": "no producer's number in a run was given twice",
}
MOST_FINDINGS = 100  # of one copy: it is damaged enough
NO_KEY = "no key was given: another could have written the whole ledger; ask its guardian for the public key"
NO_WITNESS = (
    "no older checkpoint was given: the guardian itself could have rewritten the ledger, or cut off its end; whoever "
    "keeps one can tell ('ilcp audit witness')"
)
PARTLY = "this copy is of some runs: what was left out at the end of one cannot be seen"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and at which entry; None: of all."""

    check: str
    said: str
    entry: int | None = None

    def __str__(self) -> str:
        return f"{self.check}{'' if self.entry is None else f', entry {self.entry}'}: {self.said}"


@dataclass(frozen=True)
class Verified:
    """What is so of a copy: its newest checkpoint, how many entries it has, what was found and what cannot be told.

    ``missing`` are the numbers, by producer and run, that were not handed in though later ones were: such a run is
    incomplete, which is no sign that the ledger was changed. ``erased`` are the entries that say what was erased, by
    whom and why; ``retired`` counts entries of which only the hash is left.
    """

    checkpoint: Checkpoint | None
    entries: int
    findings: tuple[Finding, ...]
    cannot: tuple[str, ...]
    missing: Mapping[tuple[str, str], tuple[int, ...]]
    complete: Mapping[tuple[str, str], int]
    erased: tuple[Entry, ...]
    retired: int

    @property
    def sound(self) -> bool:
        """Says whether nothing was found."""
        return not self.findings


def verify(path: Path, *, keys: Sequence[Key] = (), witnessed: Sequence[str] = ()) -> Verified:
    """Verifies a ledger's file, or an export.

    Args:
        keys: whom to believe; without any, the key that the ledger names itself.
        witnessed: older checkpoints that somebody kept.

    Raises:
        ConfigError: there is no such file.
        MissingExtraError: cryptography or rfc8785 is not installed.
    """
    try:
        copy = copy_at(path)
    except (DecodeError, StorageError) as error:
        return Verified(None, 0, (Finding("readable", str(error)),), (), {}, {}, (), 0)
    return _Verifying(copy, keys, witnessed).end()


@dataclass
class _Verifying:
    """One pass over a copy."""

    copy: Copy
    keys: Sequence[Key]
    witnessed: Sequence[str]
    findings: list[Finding] = field(default_factory=list)
    notes: dict[str, Checkpoint] = field(default_factory=dict)
    older: dict[str, Checkpoint] = field(default_factory=dict)  # those that were witnessed
    sizes: set[int] = field(default_factory=set)  # of all checkpoints
    peaks: list[tuple[int, bytes]] = field(default_factory=list)  # complete subtrees, by level, the largest first
    roots: dict[int, bytes] = field(default_factory=dict)  # by those sizes
    times: dict[int, int] = field(default_factory=dict)  # of entries in front of, and behind, those sizes
    named: list[tuple[int, Key]] = field(default_factory=list)  # keys, from the entry on that names them
    gone: dict[tuple[int, str], int] = field(default_factory=dict)  # what is not there -> when it was found so
    there: set[tuple[int, str]] = field(default_factory=set)
    erased: list[Entry] = field(default_factory=list)
    removals: list[Entry] = field(default_factory=list)
    retired: list[int] = field(default_factory=list)
    given: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    count: int = 0
    last: int = -1
    last_ms: int = 0

    def find(self, check: str, said: str, entry: int | None = None) -> None:
        assert check in CHECKS
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(check, said, entry))

    def end(self) -> Verified:
        """Goes through everything, and returns what is so."""
        self._read_notes()
        try:
            for row in self.copy.rows:
                self._row(row)
        except (DecodeError, StorageError) as error:
            self.find("readable", str(error), self.last + 1)
        newest = next(iter(reversed(self.notes.values())), None)
        if newest is not None:
            self._check_roots(newest)
            self._check_keys()
            self._check_witnesses(newest)
        self._check_gone()
        cannot = [
            *([] if self.keys else [NO_KEY]),
            *([] if self.witnessed else [NO_WITNESS]),
            *([] if self.copy.whole else [PARTLY]),
        ]
        whole = {who: max(numbers) for who, numbers in self.given.items()}
        missing = {
            who: tuple(sorted(set(range(1, whole[who] + 1)) - numbers))
            for who, numbers in self.given.items()
            if len(numbers) < whole[who]
        }
        return Verified(
            newest,
            self.count,
            tuple(self.findings),
            tuple(cannot),
            missing,
            {who: number for who, number in whole.items() if who not in missing},
            tuple(self.erased),
            len(self.retired),
        )

    def _read_notes(self) -> None:
        for note in self.copy.checkpoints:
            try:
                self.notes[note] = parsed(note)
            except DecodeError as error:
                self.find("readable", str(error))
        if not self.copy.checkpoints:
            self.find("readable", "expected a checkpoint, got none")
        sizes = [each.size for each in self.notes.values()]
        if sizes != sorted(set(sizes)):
            self.find("root", f"expected checkpoints of growing sizes, got {sizes[:10]}")
        for note in self.witnessed:
            try:
                self.older[note] = parsed(note)
            except DecodeError as error:
                self.find("witness", str(error))
        self.sizes = {each.size for each in (*self.notes.values(), *self.older.values())}

    def _row(self, row: Row) -> None:
        """Checks what can be told of one entry, and keeps what the end needs."""
        if (self.copy.whole and row.number != self.last + 1) or row.number <= self.last:
            self.find("entries", f"expected entry {self.last + 1}, got entry {row.number}", row.number)
        self.last, self.count = row.number, self.count + 1
        entry = self._entry(row)
        hashed = row.hashed if row.leaf is None else tree.leaf_hash(row.leaf)
        if hashed is None:
            self.find("tree", "expected the hash of what was retired, got none", row.number)
        else:
            self._hashed(row, hashed)
        if entry is None:
            return
        if entry.recorded_unix_ms < self.last_ms:
            self.find("time", f"expected a time from {self.last_ms}, got {entry.recorded_unix_ms}", row.number)
        self.last_ms = max(self.last_ms, entry.recorded_unix_ms)
        if self.sizes & {entry.number, entry.number + 1}:
            self.times[entry.number] = entry.recorded_unix_ms
        self._personal(row, entry)
        self._kind(entry)

    def _entry(self, row: Row) -> Entry | None:
        if row.leaf is None:
            self.retired.append(row.number)
            return None
        try:
            entry = Entry.from_bytes(row.leaf)
        except DecodeError as error:
            self.find("entries", str(error), row.number)
            return None
        if entry.number != row.number:
            self.find("entries", f"expected number {row.number} in it, got {entry.number}", row.number)
        known = (entry.kind, entry.recorded_unix_ms, *columns(entry))
        if row.columns is not None and row.columns != known:
            self.find("entries", f"expected to look it up by {known}, got {row.columns}", row.number)
        return entry

    def _hashed(self, row: Row, hashed: bytes) -> None:
        """Adds a leaf to the tree, and compares what the copy has of it."""
        if row.proof is not None:
            newest = next(iter(reversed(self.notes.values())), None)
            if newest is None or not tree.includes(newest.root, newest.size, row.number, hashed, row.proof):
                self.find("tree", "its proof does not lead to the newest checkpoint's root", row.number)
            return
        level, place = 0, row.number
        while True:
            if row.nodes.get((level, place), hashed) != hashed:
                self.find("tree", f"the hash of subtree {level}/{place} is another", row.number)
            if not place % 2 or not self.peaks or self.peaks[-1][0] != level:
                break
            hashed = tree.joined(self.peaks.pop()[1], hashed)
            level, place = level + 1, place // 2
        self.peaks.append((level, hashed))
        if row.number + 1 in self.sizes:
            self.roots[row.number + 1] = self._root()

    def _root(self) -> bytes:
        found = self.peaks[-1][1]
        for _, peak in reversed(self.peaks[:-1]):
            found = tree.joined(peak, found)
        return found

    def _personal(self, row: Row, entry: Entry) -> None:
        for name, meant in entry.commitments.items():
            held = row.personal.get(name)
            if held is None:
                self.gone[row.number, name] = entry.recorded_unix_ms
                continue
            self.there.add((row.number, name))
            try:
                same = commitment(held.salt, row.number, name, held.value) == meant
            except EncodeError:
                same = False
            if not same:
                self.find("personal", f"{name} is not what the entry meant", row.number)
        for name in set(row.personal) - set(entry.commitments):
            self.find("personal", f"expected nothing by the name of {name}, got a value", row.number)

    def _kind(self, entry: Entry) -> None:
        fields = entry.fields
        if entry.kind in ("ledger", "key"):
            try:
                self.named.append((entry.number, Key.parse(str(fields.get("public_key")))))
            except DecodeError as error:
                self.find("signature", str(error), entry.number)
        if entry.kind == "erasure":
            self.erased.append(entry)
        if entry.kind == "retention":
            self.removals.append(entry)
        numbered = fields.get("producer"), fields.get("run"), fields.get("sequence")
        if entry.kind == "handoff" and isinstance(numbered[2], int):
            numbers = self.given.setdefault((str(numbered[0]), str(numbered[1])), set())
            if numbered[2] in numbers:
                self.find("sequence", f"number {numbered[2]} of {numbered[0]} in {numbered[1]} again", entry.number)
            numbers.add(numbered[2])

    def _check_roots(self, newest: Checkpoint) -> None:
        if not self.copy.whole:
            return
        if self.last + 1 != newest.size:
            self.find("root", f"expected {newest.size} entries, as the newest checkpoint says, got {self.last + 1}")
        for each in self.notes.values():
            if each.size in self.roots and self.roots[each.size] != each.root:
                self.find("root", f"the checkpoint of {each.size} entries is of others")
            elif each.size > self.last + 1:
                self.find("root", f"the checkpoint of {each.size} entries is of more than there are")
            self._check_time(each)

    def _check_time(self, each: Checkpoint) -> None:
        if self.times.get(each.size - 1, 0) > each.time_unix_ms:
            self.find("time", f"a checkpoint is dated before its last entry: {each.time_unix_ms}", each.size - 1)
        if each.size in self.times and self.times[each.size] < each.time_unix_ms:
            self.find("time", f"dated before the checkpoint in front of it, {each.time_unix_ms}", each.size)

    def _check_keys(self) -> None:
        """Checks that each checkpoint is signed by the key of its time, and that the newest one's is believed."""
        believed = set(self.keys) or {key for number, key in self.named if number == 0}
        known = [*dict.fromkeys([*(key for _, key in self.named), *believed])]
        for note, each in self.notes.items():
            by = set(signers(note, known))
            current = [key for number, key in self.named if number < each.size][-1:]
            if not set(current) & by:
                self.find("signature", f"the checkpoint of {each.size} entries is not signed by the key of its time")
            if by & believed:  # what a believed key signs brings the keys that are named in it
                believed |= {key for number, key in self.named if number < each.size and key in by}
        newest = next(iter(reversed(self.notes)))
        if not set(signers(newest, known)) & believed:
            got = "another" if self.keys else "none"
            self.find("signature", f"expected the newest checkpoint signed by a key that is believed, got {got}'s")

    def _check_witnesses(self, newest: Checkpoint) -> None:
        known = [*dict.fromkeys([*(key for _, key in self.named), *self.keys])]
        for note, each in self.older.items():
            if each.origin != newest.origin:
                self.find("witness", f"expected a checkpoint of {newest.origin}, got one of {each.origin}")
            elif not signers(note, known):
                self.find(
                    "witness", f"the older checkpoint of {each.size} entries has no signature of this ledger's keys"
                )
            elif each.size > newest.size:
                self.find("witness", f"rolled back: there were {each.size} entries, and now there are {newest.size}")
            elif not self.copy.whole and (each.size, each.root) != (newest.size, newest.root):
                self.find("witness", "expected a whole copy to compare an older checkpoint with, got some runs")
            elif self.copy.whole and self.roots.get(each.size) != each.root:
                self.find("witness", f"the first {each.size} entries are others than they were: forked, or edited")
            else:
                self._check_time(each)

    def _check_gone(self) -> None:
        """Checks that whatever is not there was removed on the record, and that nothing is there that was."""
        said: set[tuple[Any, str]] = set()
        for entry in self.erased:
            names = entry.fields.get("names")
            said |= {(entry.fields.get("of"), str(name)) for name in (names if isinstance(names, list) else [])}
        for number, name in self.gone:
            if (number, name) not in said:
                self.find("personal", f"{name} is not there, and no entry says that it was erased", number)
        for number, name in sorted(self.there & said, key=str):
            self.find("personal", f"{name} was erased by an entry, and is there", number)
        for number in self.retired:
            if not any(_covers(entry, number) for entry in self.removals):
                self.find("entries", "only its hash is there, and no entry says that it was retired", number)


def _covers(entry: Entry, number: int) -> bool:
    first, last = entry.fields.get("first"), entry.fields.get("last")
    return isinstance(first, int) and isinstance(last, int) and first <= number <= last


def said_of(found: Verified) -> Iterable[str]:
    """Yields, line by line, what people are told of a copy."""
    if found.checkpoint is not None:
        yield f"{found.checkpoint.origin}: {found.entries} entries, {found.retired} of them retired"
    for who, number in found.complete.items():
        yield f"{who[0]}, run {who[1]}: all of 1 to {number}"
    for who, numbers in found.missing.items():
        listed = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
        yield f"{who[0]}, run {who[1]}: incomplete, missing {listed}"
    for entry in found.erased:
        fields = entry.fields
        names = ", ".join(map(str, fields.get("names", [])))
        yield f"entry {fields.get('of')}: {names} erased by {fields.get('by')}, because {fields.get('because')}"
    yield from (f"cannot be told: {each}" for each in found.cannot)
    yield from (f"NOT SOUND: {each}" for each in found.findings)
    if found.sound:
        yield f"sound: {', '.join(CHECKS)}"
