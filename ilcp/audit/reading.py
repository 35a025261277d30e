"""What can be read of a ledger: entries, what stands beside them, checkpoints, proofs."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from threading import RLock
from typing import Any

from ilcp.audit import tree
from ilcp.audit.checkpoints import MOST_ENTRIES, Key
from ilcp.audit.entries import MOST_BYTES, Entry, Personal, parsed_json
from ilcp.audit.sequences import Recorded, handed, merged, ranges
from ilcp.audit.tables import DAMAGED, RETIRED, blob, named_error, whole
from ilcp.errors import ConfigError, StorageError

__all__ = ["Readable"]

BATCH = 1000  # rows that are read at once


class Readable:
    """An open ledger; what is inherited by ``Ledger``."""

    path: Path
    _db: sqlite3.Connection
    _lock: RLock
    _fresh: dict[tuple[int, int], bytes]  # hashes of the transaction that runs

    @property
    def size(self) -> int:
        """The number of entries."""
        with self._reading() as db:
            return int(db.execute("SELECT coalesce(max(number), -1) + 1 FROM leaves").fetchone()[0])

    @property
    def keys(self) -> list[Key]:
        """The keys that sign, the present one last, as the entries say: whom to believe is the reader's to know."""
        return [Key.parse(str(each.fields.get("public_key"))) for each in self.entries(kinds=("ledger", "key"))]

    def checkpoint(self) -> str:
        """Returns the newest signed checkpoint."""
        with self._reading():
            return self._newest()

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
        self,
        *,
        first: int = 0,
        before: int | None = None,
        kinds: Sequence[str] = (),
        run: str | None = None,
        but_run: str | None = None,
        newest: bool = False,
    ) -> Iterator[Entry]:
        """Yields entries from a number on, those that were retired left out.

        ``newest`` has the newest first, of those ``before`` a number, if there is one.
        """
        chosen = "body IS NOT NULL" + (f" AND kind IN ({','.join('?' * len(kinds))})" if kinds else "")
        chosen += "" if run is None else " AND run = ?"
        chosen += "" if but_run is None else " AND run IS NOT ?"
        values = [*kinds, *(each for each in (run, but_run) if each is not None)]
        beyond, order, at = ("<", "DESC", MOST_ENTRIES) if newest else (">", "ASC", first - 1)
        at = before if newest and before is not None else at
        while True:
            asked = f"SELECT number, body FROM leaves WHERE {chosen} AND number >= ? AND number {beyond} ?"
            with self._reading() as db:
                rows = db.execute(f"{asked} ORDER BY number {order} LIMIT ?", (*values, first, at, BATCH)).fetchall()
            yield from (Entry.from_bytes(blob(body)) for _, body in rows)
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
        return None if row[0] is None else Entry.from_bytes(blob(row[0]))

    def personal(self, number: int) -> dict[str, Personal | None]:
        """Returns an entry's personal values by name; None for what was erased."""
        entry = self.entry(number)
        with self._reading() as db:
            rows = db.execute("SELECT name, salt, value FROM personal WHERE number = ?", (number,)).fetchall()
        found = {name: Personal(blob(salt), parsed_json(blob(value), MOST_BYTES)) for name, salt, value in rows}
        return {name: found.get(name) for name in (entry.commitments if entry else {})}

    def numbered(self, producer: str, run: str, part: str, sequence: int) -> int | None:
        """Returns the entry that a recorder gave this number; None where there is none."""
        with self._reading() as db:
            asked = "SELECT number FROM leaves WHERE kind = 'handoff' AND producer = ? AND run = ? AND part = ?"
            row = db.execute(f"{asked} AND sequence = ?", (producer, run, part, sequence)).fetchone()
        return None if row is None else int(row[0])

    def of_handoff(self, handoff_id: str, most: int = BATCH) -> list[Entry]:
        """Returns what producers told of one hand-off, the oldest first: who sent it, took it, refused it."""
        where = "handoff_id = ? AND kind IN ('handoff', 'conflict')"
        return self._some(f"{where} AND body IS NOT NULL ORDER BY number LIMIT ?", (handoff_id, most))

    def about(self, number: int, kind: str) -> list[Entry]:
        """Returns the entries of a kind that are of another one: its accounts, its erasures; the newest first."""
        where = "of = ? AND kind = ? AND body IS NOT NULL ORDER BY number DESC LIMIT ?"
        return self._some(where, (number, kind, BATCH))

    def _some(self, where: str, values: Sequence[Any]) -> list[Entry]:
        with self._reading() as db:
            rows = db.execute(f"SELECT body FROM leaves WHERE {where}", values).fetchall()
        return [Entry.from_bytes(blob(body)) for (body,) in rows]

    @property
    def retired(self) -> int:
        """How many entries were retired: only their hashes are left."""
        with self._reading() as db:
            return int(db.execute("SELECT count(*) FROM leaves WHERE kind = ?", (RETIRED,)).fetchone()[0])

    def sequences(self) -> dict[Recorded, list[list[int]]]:
        """Returns the numbers that came, as ranges, by producer, run and part: whatever lies between two is missing."""
        with self._reading():
            found = self._sequences()
        for who, numbers in self.retired_sequences().items():
            found[who] = merged([*found.get(who, []), *numbers])
        return found

    def retired_sequences(self) -> dict[Recorded, list[list[int]]]:
        """Returns the same of what was retired."""
        found: dict[Recorded, list[list[int]]] = {}
        for entry in self.entries(kinds=("retention",)):
            for who, numbers in handed(entry).items():
                found[who] = merged([*found.get(who, []), *numbers])
        return found

    def _sequences(self, where: str = "", values: Sequence[Any] = ()) -> dict[Recorded, list[list[int]]]:
        asked = "SELECT producer, run, part, sequence FROM leaves WHERE kind = 'handoff' AND sequence IS NOT NULL"
        rows = self._db.execute(f"{asked} {where} ORDER BY producer, run, part, sequence", values)
        return {
            who: ranges(whole(row[3]) for row in of)
            for who, of in groupby(rows, key=lambda row: (row[0], row[1], row[2]))
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
            found = blob(row[0])
        return found

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._db.close()

    def _newest(self) -> str:
        row = self._db.execute("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
        if row is None or not isinstance(row[0], str):
            raise StorageError(f"expected a signed checkpoint in {self.path}, got none: the ledger is damaged")
        return row[0]

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Has everything that is read inside be of one moment, whatever is entered or erased meanwhile."""
        with self._lock, self._named():
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._named():
            yield self._db

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except DAMAGED as error:
            raise named_error(error, self.path) from error

    def _is_made(self) -> bool:
        return bool(self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
