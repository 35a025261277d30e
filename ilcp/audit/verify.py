"""Verifies a copy of a ledger: what it says of itself is computed anew, and compared with what others hold.

Each check has a name (``CHECKS``) and finds what it says; ``Verified.cannot`` says what was not to be found out, since
a key or an older checkpoint was not given. Without an older checkpoint nobody can tell a ledger from one that its own
guardian wrote anew, or cut at its end: that takes a witness, who keeps checkpoints where the guardian cannot reach.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ilcp.audit import tree
from ilcp.audit.checkpoints import Checkpoint, Key, parsed, signers
from ilcp.audit.copies import MOST_NOTES, Copy, Row, copy_at
from ilcp.audit.entries import Entry, commitment
from ilcp.audit.findings import CHECKS, NO_KEY, NO_WITNESS, PARTLY, Finding, Verified
from ilcp.audit.sequences import Recorded, gaps, handed, is_range, merged, ranges
from ilcp.audit.tables import LOOKED_UP, RETIRED, columns
from ilcp.errors import DecodeError, EncodeError, StorageError
from ilcp.records import shown

__all__ = ["verify"]

MOST_KEYS = 1000  # that followed each other in one ledger
MOST_FINDINGS = 100  # of one copy: it is damaged enough


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
        return Verified("", 0, (Finding("readable", str(error)),), (), {}, {}, (), 0)
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
    gone: list[tuple[int, str]] = field(default_factory=list)  # personal values that are not there
    there: set[tuple[int, str]] = field(default_factory=set)
    erased: list[Entry] = field(default_factory=list)
    removals: list[Entry] = field(default_factory=list)
    retired: list[int] = field(default_factory=list)
    given: dict[Recorded, set[int]] = field(default_factory=dict)
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
        note = next(reversed(self.notes), "")
        if note:
            self._check_roots(self.notes[note])
            self._check_keys(note)
            self._check_witnesses(self.notes[note])
        self._check_gone()
        cannot = [
            *([] if self.keys else [NO_KEY]),
            *([] if self.witnessed else [NO_WITNESS]),
            *([] if self.copy.whole else [PARTLY]),
        ]
        came = {who: ranges(numbers) for who, numbers in self.given.items()}
        for entry in self.removals:
            for who, found in handed(entry).items():
                came[who] = merged([*came.get(who, []), *found])
        missing = {who: found for who, numbers in came.items() if (found := gaps(numbers))}
        return Verified(
            note,
            self.count,
            tuple(self.findings),
            tuple(cannot),
            missing,
            {who: numbers[-1][1] for who, numbers in came.items() if who not in missing and numbers},
            tuple(self.erased),
            len(self.retired),
        )

    def _read_notes(self) -> None:
        for note in self.copy.checkpoints[:MOST_NOTES]:
            try:
                self.notes[note] = parsed(note)
            except DecodeError as error:
                self.find("readable", str(error))
        most = MOST_NOTES if self.copy.whole else 1
        if not 0 < len(self.copy.checkpoints) <= most:
            self.find("readable", f"expected 1 to {most} checkpoints, got {len(self.copy.checkpoints)}")
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
            if row.personal:
                self.find("personal", "only its hash is there, and personal values stand beside it", row.number)
            if row.columns not in (None, (RETIRED, 0, *(None for _ in LOOKED_UP))):
                self.find("entries", "only its hash is there, and what it would be looked up by", row.number)
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
        top = 0
        for level, place in tree.ended(row.number):
            if level:
                if not self.peaks or self.peaks[-1][0] != top:  # entries are missing
                    break
                hashed = tree.joined(self.peaks.pop()[1], hashed)
            top = level
            if row.nodes.get((level, place), hashed) != hashed:
                self.find("tree", f"the hash of subtree {level}/{place} is another", row.number)
        self.peaks.append((top, hashed))
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
                self.gone.append((row.number, name))
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
                key = Key.parse(str(fields.get("public_key")))
                if len(self.named) < MOST_KEYS:
                    self.named.append((entry.number, key))
                else:
                    self.find("signature", f"expected at most {MOST_KEYS} keys, got more", entry.number)
            except DecodeError as error:
                self.find("signature", str(error), entry.number)
        if entry.kind == "erasure":
            self.erased.append(entry)
        if entry.kind == "retention":
            self.removals.append(entry)
        sequence = fields.get("sequence")
        if entry.kind == "handoff" and type(sequence) is int:
            who = tuple(str(fields.get(name)) for name in ("producer", "run", "part"))
            numbers = self.given.setdefault((who[0], who[1], who[2]), set())
            if sequence in numbers:
                self.find("sequence", f"number {sequence} of {shown(who)} again", entry.number)
            numbers.add(sequence)

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

    def _check_keys(self, newest: str) -> None:
        """Checks that each checkpoint is signed by the key of its time, and that the newest one's is believed.

        A believed key brings the next one where it signed the entry that names it: in a checkpoint of a whole copy,
        whose entries were found to be those that it stands for. Of a part only the newest checkpoint says anything.
        """
        believed = set(self.keys) or {key for number, key in self.named if number == 0 or not self.copy.whole}
        for note, each in self.notes.items():
            at = bisect_left(self.named, each.size, key=lambda named: named[0])
            current = self.named[at - 1][1] if at else None
            by = set(signers(note, [*({current} - {None}), *self.keys]))  # type: ignore[list-item]
            if current not in by:
                self.find("signature", f"the checkpoint of {each.size} entries is not signed by the key of its time")
            shows = self.copy.whole and self.roots.get(each.size) == each.root
            before = self.named[at - 2][1] if at > 1 else None
            if shows and current is not None and before in believed and signers(note, [before]):
                believed.add(current)
            if note == newest and not by & believed:
                got = "another's" if self.keys else "none"
                self.find("signature", f"expected the newest checkpoint signed by a key that is believed, got {got}")

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
        said: set[tuple[int, str]] = set()
        for entry in self.erased:
            of, names = entry.fields.get("of"), entry.fields.get("names")
            if type(of) is int and isinstance(names, list):
                said |= {(of, name) for name in names if isinstance(name, str)}
        for number, name in self.gone:
            if (number, name) not in said:
                self.find("personal", f"{name} is not there, and no entry says that it was erased", number)
        for number, name in sorted(self.there & said, key=str):
            self.find("personal", f"{name} was erased by an entry, and is there", number)
        covered = merged(each for entry in self.removals for each in _retired(entry))
        for number in self.retired:
            at = bisect_right(covered, number, key=lambda each: each[0])
            if not at or number > covered[at - 1][1]:
                self.find("entries", "only its hash is there, and no entry says that it was retired", number)


def _retired(entry: Entry) -> list[list[int]]:
    """Returns the ranges of entries that a retention entry names."""
    found = entry.fields.get("numbers")
    return [each for each in found if is_range(each)] if isinstance(found, list) else []
