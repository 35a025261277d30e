"""The ledger: entries that are only ever added, in one SQLite file, under a Merkle tree whose root a guardian signs.

::

    drafts --Ledger.append--> numbers        one transaction: leaves, the tree's new hashes, a signed checkpoint
    number --erase-->         the personal values are gone, and an entry says which, by whom and why
    months --retire-->        so is what is older, but for the hashes; an entry says how far

**Durability.** WAL, ``synchronous=FULL``: once ``append`` returns, entries and checkpoint survive a killed process and
a power cut; what was refused or interrupted left nothing. What is erased is overwritten, in the log too.

**Time.** Entries bear the guardian's clock, which in a ledger never goes back: where the clock does, an entry has the
time of the checkpoint before, and ``clock_unix_ms`` what the clock said.

**Keys.** The first entry names the key that signs; ``rotate`` enters the next one, under a checkpoint that both sign.

Checkpoints of before go, but for the first of every hour and those with two signatures. Any number of processes may
read; one at a time writes, and waits its turn.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock

from ilcp.audit import tree
from ilcp.audit.checkpoints import MOST_ENTRIES, Checkpoint, Key, Signer
from ilcp.audit.entries import MOST_BYTES, Draft, Entry, Personal, canonical, parsed_json
from ilcp.audit.tables import KEPT_KINDS, SCHEMA, VERSION, columns, named_error, opened
from ilcp.errors import ConfigError, StorageError
from ilcp.files import file_id, own_file

__all__ = ["LEAST_MONTHS", "MONTHS", "Ledger"]

MONTHS, LEAST_MONTHS = 12, 6  # that entries stay; AI Act, articles 19 and 26: logs for six months at least
MONTH_MS = 366 * 86_400_000 // 12
KEEP_EVERY_MS = 3_600_000  # checkpoints that stay
BATCH = 1000  # rows that are read at once


class Ledger:
    """A ledger in a file; any thread may call.

    Args:
        path: the file. With a signer it is made where there is none.
        signer: whose key signs; None to read.
        clock: unix seconds; there for tests.

    Raises:
        StorageError: the file cannot be opened, is another's, or no sound ledger.
        ConfigError: there is none to read, or it is signed by another key.
    """

    def __init__(self, path: Path, signer: Signer | None = None, clock: Callable[[], float] = time.time):
        self.path, self.signer, self._clock = Path(path), signer, clock
        self._lock = RLock()
        self._fresh: dict[tuple[int, int], bytes] = {}  # hashes of the transaction that runs
        if signer is None and not self.path.is_file():
            raise ConfigError(f"expected a ledger at {self.path}, got none: name its file")
        if signer is not None:
            own_file(self.path)
        self._db, self._file = opened(self.path, writing=signer is not None), file_id(self.path)
        self._keyed: int | None = None  # the entry that names the signer's key
        try:
            if signer is not None:
                self._begin(signer)
        except BaseException:
            self._db.close()
            raise

    def _begin(self, signer: Signer) -> None:
        with self._transaction():
            if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in SCHEMA:
                    self._db.execute(statement)
            if not self.size:
                self._add(Draft("ledger", {"name": signer.name, "public_key": str(signer.key), "version": VERSION}))
                self._seal([signer], keep=True)
        keys = self.keys
        if signer.key not in keys[-1:]:
            raise ConfigError(
                f"expected the key that signs {self.path} ({keys[-1] if keys else 'none'}), got {signer.key}: name "
                "its file, or rotate to a new one"
            )

    @property
    def size(self) -> int:
        """The number of entries."""
        with self._reading() as db:
            return int(db.execute("SELECT coalesce(max(number), -1) + 1 FROM leaves").fetchone()[0])

    @property
    def keys(self) -> list[Key]:
        """The keys that sign, the present one last, as the entries say: whom to believe is the reader's to know."""
        return [Key.parse(str(each.fields.get("public_key"))) for each in self.entries(kinds=("ledger", "key"))]

    def append(self, drafts: Sequence[Draft]) -> list[int]:
        """Enters drafts, and returns their numbers once they are on the disk, under a signed checkpoint.

        Raises:
            ConfigError: there is no signer.
            StorageError: the disk is full, or the file is damaged or was replaced; nothing was entered.
        """
        with self._transaction():
            numbers = [self._add(draft) for draft in drafts]
            self._seal([self._own()])
        return numbers

    def erase(self, number: int, names: Sequence[str], *, by: str, because: str) -> int:
        """Erases personal values of an entry, and returns the number of the entry that says so.

        Raises:
            ConfigError: there is no such value, or it was erased before; or no reason.
            StorageError: as ``append``.
        """
        if not by.strip() or not because.strip():
            raise ConfigError("expected who erases, and why, got nothing: both stay on the record")
        with self._transaction():
            there = [name for name, each in self.personal(number).items() if each is not None]
            if not names or not set(names) <= set(there):
                raise ConfigError(
                    f"expected some of {there or 'nothing'} to erase in entry {number}, got {list(names)}"
                )
            for name in names:
                self._db.execute("DELETE FROM personal WHERE number = ? AND name = ?", (number, name))
            made = self._add(Draft("erasure", {"of": number, "names": list(names), "by": by, "because": because}))
            self._seal([self._own()])
        self._overwrite()
        return made

    def retire(self, months: int = MONTHS, *, by: str, below_least: bool = False) -> int | None:
        """Removes what is older than so many months, but for its hashes; returns the number of the entry that says so.

        Entries about keys, erasures and removals stay. None: nothing is as old.

        Raises:
            ConfigError: fewer months than six, unless told ``below_least``.
            StorageError: as ``append``.
        """
        if months < (0 if below_least else LEAST_MONTHS):
            raise ConfigError(f"expected at least {LEAST_MONTHS} months, got {months}: ask for fewer on purpose only")
        before = self._now() - months * MONTH_MS
        kept = ",".join("?" * len(KEPT_KINDS))
        old = f"recorded_unix_ms < ? AND body IS NOT NULL AND kind NOT IN ({kept})"
        with self._transaction():
            found = self._db.execute(f"SELECT min(number), max(number) FROM leaves WHERE {old}", (before, *KEPT_KINDS))
            first, last = found.fetchone()
            if first is None:
                return None
            self._db.execute(
                f"DELETE FROM personal WHERE number IN (SELECT number FROM leaves WHERE {old})", (before, *KEPT_KINDS)
            )
            self._db.execute(f"UPDATE leaves SET body = NULL WHERE {old}", (before, *KEPT_KINDS))
            fields = {"first": first, "last": last, "before_unix_ms": before, "months": months, "by": by}
            made = self._add(Draft("retention", fields))
            self._seal([self._own()])
        self._overwrite()
        return made

    def rotate(self, new: Signer) -> int:
        """Has another key sign from now on, which the present one bears witness to; returns its entry's number.

        Raises:
            ConfigError: it is the same key, or under another name.
            StorageError: as ``append``.
        """
        before = self._own()
        if new.name != before.name or new.key == before.key:
            raise ConfigError(f"expected another key for {before.name}, got {new.key}")
        with self._transaction():
            made = self._add(Draft("key", {"public_key": str(new.key), "before": str(before.key)}))
            self._seal([before, new], keep=True)
        self.signer = new
        return made

    def checkpoint(self) -> str:
        """Returns the newest signed checkpoint."""
        with self._reading() as db:
            row = db.execute("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
        if row is None:
            raise StorageError(f"expected a signed checkpoint in {self.path}, got none: the ledger is damaged")
        return str(row[0])

    def checkpoints(self) -> list[str]:
        """Returns all checkpoints that are kept, the newest last."""
        with self._reading() as db:
            return [str(row[0]) for row in db.execute("SELECT note FROM checkpoints ORDER BY size").fetchall()]

    def inclusion(self, number: int, size: int | None = None) -> list[bytes]:
        """Returns the proof that an entry is one of the first ``size`` (None: of all).

        Raises:
            ConfigError: there is no such entry.
        """
        size = self.size if size is None else size
        if not 0 <= number < size <= self.size:
            raise ConfigError(f"expected an entry from 0 to {self.size - 1}, got {number} of {size}")
        return tree.inclusion(number, size, self.node)

    def consistency(self, earlier: int, later: int | None = None) -> list[bytes]:
        """Returns the proof that the first ``earlier`` entries are the beginning of the first ``later`` (None: of all).

        Raises:
            ConfigError: there are not as many.
        """
        later = self.size if later is None else later
        if not 0 < earlier <= later <= self.size:
            raise ConfigError(f"expected sizes from 1 to {self.size}, got {earlier} and {later}")
        return tree.consistency(earlier, later, self.node)

    def root(self, size: int) -> bytes:
        """Returns the root of the first ``size`` entries."""
        return tree.root_of(size, self.node)

    def entries(
        self, *, first: int = 0, kinds: Sequence[str] = (), run: str | None = None, newest: bool = False
    ) -> Iterator[Entry]:
        """Yields entries from a number on, those that were retired left out; ``newest`` first if told so."""
        chosen = "body IS NOT NULL" + (f" AND kind IN ({','.join('?' * len(kinds))})" if kinds else "")
        chosen += "" if run is None else " AND run = ?"
        values = [*kinds, *([] if run is None else [run])]
        beyond, order, at = ("<", "DESC", MOST_ENTRIES) if newest else (">", "ASC", first - 1)
        while True:
            asked = f"SELECT number, body FROM leaves WHERE {chosen} AND number >= ? AND number {beyond} ?"
            with self._reading() as db:
                rows = db.execute(f"{asked} ORDER BY number {order} LIMIT ?", (*values, first, at, BATCH)).fetchall()
            yield from (Entry.from_bytes(body) for _, body in rows)
            if len(rows) < BATCH:
                return
            at = rows[-1][0]

    def entry(self, number: int) -> Entry | None:
        """Returns an entry; None where it was retired.

        Raises:
            ConfigError: there is none.
        """
        with self._reading() as db:
            row = db.execute("SELECT body FROM leaves WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise ConfigError(f"expected an entry from 0 to {self.size - 1}, got {number}")
        return None if row[0] is None else Entry.from_bytes(row[0])

    def personal(self, number: int) -> dict[str, Personal | None]:
        """Returns an entry's personal values by name; None for what was erased."""
        entry = self.entry(number)
        with self._reading() as db:
            rows = db.execute("SELECT name, salt, value FROM personal WHERE number = ?", (number,)).fetchall()
        found = {name: Personal(bytes(salt), parsed_json(bytes(value), MOST_BYTES)) for name, salt, value in rows}
        return {name: found.get(name) for name in (entry.commitments if entry else {})}

    def numbered(self, producer: str, run: str, sequence: int) -> int | None:
        """Returns the entry that a producer gave this number in a run; None where there is none."""
        with self._reading() as db:
            asked = "SELECT number FROM leaves WHERE producer = ? AND run = ? AND sequence = ? AND kind = 'handoff'"
            row = db.execute(asked, (producer, run, sequence)).fetchone()
        return None if row is None else int(row[0])

    def sequences(self) -> dict[tuple[str, str], tuple[int, list[int]]]:
        """Returns, by producer and run, the highest number that was given, and those that are missing below it."""
        asked = """SELECT producer, run, sequence FROM leaves WHERE kind = 'handoff' AND sequence IS NOT NULL
            ORDER BY producer, run, sequence"""
        with self._reading() as db:
            rows = db.execute(asked).fetchall()
        known: dict[tuple[str, str], set[int]] = {}
        for producer, run, sequence in rows:
            known.setdefault((producer, run), set()).add(sequence)
        return {
            who: (max(numbers), sorted(set(range(1, max(numbers) + 1)) - numbers)) for who, numbers in known.items()
        }

    def node(self, level: int, place: int) -> bytes:
        """Returns the hash of a complete subtree.

        Raises:
            StorageError: it is not there.
        """
        found = self._fresh.get((level, place))
        if found is None:
            with self._reading() as db:
                asked = "SELECT hash FROM nodes WHERE level = ? AND place = ?"
                row = db.execute(asked, (level, place)).fetchone()
            if row is None:
                raise StorageError(f"expected the hash of subtree {level}/{place} in {self.path}, got none: damaged")
            found = bytes(row[0])
        return found

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _key_entry(self) -> int | None:
        """Returns the number of the entry that names the present key; None: there is no entry yet."""
        if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return None
        row = self._db.execute("SELECT max(number) FROM leaves WHERE kind IN ('ledger', 'key')").fetchone()
        return None if row[0] is None else int(row[0])

    def _own(self) -> Signer:
        if self.signer is None:
            raise ConfigError(f"expected a key to write to {self.path}, got none: it was opened to read")
        return self.signer

    def _now(self) -> int:
        return int(1000 * self._clock())

    def _add(self, draft: Draft) -> int:
        """Adds one entry within a transaction."""
        now, number = self._now(), self.size
        last = int(self._db.execute("SELECT coalesce(max(time_unix_ms), 0) FROM checkpoints").fetchone()[0])
        if now < last:
            draft = replace(draft, fields={**draft.fields, "clock_unix_ms": now})
        entry, beside = Entry.of(draft, number, max(now, last))  # so within one transaction too
        body = entry.to_bytes()
        hashed = tree.leaf_hash(body)
        self._db.execute(
            "INSERT INTO leaves (number, body, kind, recorded_unix_ms, run, producer, sequence, handoff_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (number, body, entry.kind, entry.recorded_unix_ms, *columns(entry)),
        )
        for level, place, made in tree.appended(number, hashed, self.node):
            self._fresh[level, place] = made
            self._db.execute("INSERT INTO nodes VALUES (?, ?, ?)", (level, place, made))
        for name, each in beside.items():
            values = (number, name, each.salt, canonical(each.value))
            self._db.execute("INSERT INTO personal VALUES (?, ?, ?, ?)", values)
        return number

    def _seal(self, by: Sequence[Signer], keep: bool = False) -> None:
        """Signs what the tree is now, in place of the checkpoint before, unless that one is kept."""
        size = self.size
        asked = "SELECT max(size), max(time_unix_ms), max(time_unix_ms) FILTER (WHERE kept) FROM checkpoints"
        last, last_ms, kept_ms = self._db.execute(asked).fetchone()
        now = max(self._now(), int(last_ms or 0))
        checkpoint = Checkpoint(by[0].name, size, self.root(size), now)
        self._db.execute("DELETE FROM checkpoints WHERE size = ? AND NOT kept", (last,))
        stays = keep or kept_ms is None or now - int(kept_ms) >= KEEP_EVERY_MS
        values = (size, checkpoint.signed(*by), now, int(stays))
        self._db.execute("INSERT INTO checkpoints VALUES (?, ?, ?, ?)", values)

    def _overwrite(self) -> None:
        """Empties the log of what was erased; a reader may hold it until later."""
        with self._lock, self._named():
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._named():
            yield self._db

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._own()
        with self._lock, self._named():
            if file_id(self.path) != self._file:
                raise StorageError(
                    f"expected the ledger that was opened in {self.path}, got another file or none there"
                )
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if self._keyed not in (None, self._key_entry()):
                    raise ConfigError(f"expected {self.path} under the same key, got a new one: open it with that")
                yield
                self._keyed = self._key_entry()
                self._db.execute("COMMIT")
            finally:
                self._fresh.clear()
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise named_error(error, self.path) from error
