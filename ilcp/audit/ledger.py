"""The ledger: entries that are only ever added, in one SQLite file, under a Merkle tree whose root a guardian signs.

::

    drafts --Ledger.append--> numbers        one transaction: leaves, the tree's new hashes, a signed checkpoint
    number --erase-->         the personal values are gone, and an entry says which, by whom and why
    months --retire-->        so is what is older, but for the hashes; an entry says how far

**Durability.** WAL, ``synchronous=FULL``: once ``append`` returns, entries and checkpoint survive a killed process and
a power cut; what was refused or interrupted left nothing. What is erased is overwritten, in the log too.

**Time.** Entries bear the guardian's clock, which in a ledger never goes back: where the clock does, an entry has the
time of the checkpoint before, and ``clock_unix_ms`` what the clock said.

**Built on what was signed.** Before each step the newest checkpoint has to be the key's own, and of what the file
holds: nobody can put words into a ledger between two steps and have its guardian sign them.

**Keys.** The first entry names the key that signs; ``rotate`` enters the next one, under a checkpoint that both sign.

Checkpoints of before go, but for the first of every hour and those with two signatures. Any number of processes may
read; one at a time writes, and waits its turn.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Self

from ilcp.audit import tree
from ilcp.audit.checkpoints import Checkpoint, Signer, parsed, signers
from ilcp.audit.entries import Draft, Entry, canonical
from ilcp.audit.reading import Readable
from ilcp.audit.sequences import ranges
from ilcp.audit.tables import BUSY_S, KEPT_KINDS, LOOKED_UP, RETIRED, SCHEMA, VERSION, columns, opened, whole
from ilcp.errors import ConfigError, StorageError
from ilcp.files import file_id, own_file

__all__ = ["LEAST_MONTHS", "MONTHS", "Ledger"]

MONTHS, LEAST_MONTHS = 12, 6  # that entries stay; AI Act, articles 19 and 26: logs for six months at least
MONTH_MS = 366 * 86_400_000 // 12
KEEP_EVERY_MS = 3_600_000  # checkpoints that stay
OVERWRITE_S = 2.0  # how long a reader may keep the log from being emptied of what was erased


class Ledger(Readable):
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
        self._sealed = ""  # the newest checkpoint that this process made or looked at
        self._erased = False  # whether the log still holds what was erased
        try:
            if signer is not None:
                self._begin(signer)
        except BaseException:
            self._db.close()
            raise

    def _begin(self, signer: Signer) -> None:
        if self._is_made() and signer.key not in (keys := self.keys)[-1:]:
            got = f"got {signer.key}: name its file, or rotate to a new one"
            raise ConfigError(f"expected the key that signs {self.path} ({keys[-1] if keys else 'none'}), {got}")
        with self.transaction():
            if not self._is_made():
                for statement in SCHEMA:
                    self._db.execute(statement)
            if not self.size:
                self._add(Draft("ledger", {"name": signer.name, "public_key": str(signer.key), "version": VERSION}))
                self._seal([signer], keep=True)

    def append(self, drafts: Sequence[Draft]) -> list[int]:
        """Enters drafts, and returns their numbers once they are on the disk, under a signed checkpoint.

        Raises:
            ConfigError: there is no signer.
            StorageError: the disk is full, or the file is damaged or was replaced; nothing was entered.
        """
        with self.transaction():
            return [self._add(draft) for draft in drafts]

    def erase(self, number: int, names: Sequence[str], *, by: str, because: str) -> int:
        """Erases personal values of an entry, and returns the number of the entry that says so.

        Raises:
            ConfigError: there is no such value, or it was erased before; or no reason.
            StorageError: as ``append``.
        """
        if not by.strip() or not because.strip():
            raise ConfigError("expected who erases, and why, got nothing: both stay on the record")
        with self.transaction():
            there = [name for name, each in self.personal(number).items() if each is not None]
            if not names or not set(names) <= set(there):
                raise ConfigError(
                    f"expected some of {there or 'nothing'} to erase in entry {number}, got {list(names)}"
                )
            for name in names:
                self._db.execute("DELETE FROM personal WHERE number = ? AND name = ?", (number, name))
            entry = self.entry(number)
            run = {"run": entry.fields["run"]} if entry is not None and "run" in entry.fields else {}
            told = {"of": number, "names": list(names), "by": by, "because": because}
            made = self._add(Draft("erasure", told | run))
            self._erased = True
        return made

    def retire(self, months: int = MONTHS, *, by: str, below_least: bool = False) -> int | None:
        """Removes what is older than so many months, but for its hashes; returns the number of the entry that says so.

        Entries about keys, erasures and removals stay. None: nothing is as old.

        Raises:
            ConfigError: fewer months than six, unless told ``below_least``.
            StorageError: as ``append``.
        """
        if months < (0 if below_least else LEAST_MONTHS):
            on_purpose = "ask for fewer on purpose only (below_least=True, --below-six)"
            raise ConfigError(f"expected at least {LEAST_MONTHS} months, got {months}: {on_purpose}")
        before = self._now() - months * MONTH_MS
        kept = ",".join("?" * (len(KEPT_KINDS) + 1))
        old = f"recorded_unix_ms < ? AND kind NOT IN ({kept})"
        values = (before, *KEPT_KINDS, RETIRED)
        with self.transaction():
            rows = self._db.execute(f"SELECT number FROM leaves WHERE {old} ORDER BY number", values).fetchall()
            if not rows:
                return None
            handed = self._sequences(f"AND {old}", values)
            self._db.execute(f"DELETE FROM personal WHERE number IN (SELECT number FROM leaves WHERE {old})", values)
            blank = ", ".join(f"{name} = NULL" for name in ("body", *LOOKED_UP))
            self._db.execute(f"UPDATE leaves SET kind = '{RETIRED}', recorded_unix_ms = 0, {blank} WHERE {old}", values)
            fields = {
                "numbers": ranges(number for (number,) in rows),
                "handed": [[*who, found] for who, found in handed.items()],
                "before_unix_ms": before,
                "months": months,
                "by": by,
            }
            made = self._add(Draft("retention", fields))
            self._erased = True
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
        with self.transaction():
            made = self._add(Draft("key", {"public_key": str(new.key), "before": str(before.key)}))
            self._seal([before, new], keep=True)
        self.signer = new
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _own(self) -> Signer:
        if self.signer is None:
            raise ConfigError(f"expected a key to write to {self.path}, got none: it was opened to read")
        return self.signer

    def _now(self) -> int:
        return int(1000 * self._clock())

    def _add(self, draft: Draft) -> int:
        """Adds one entry within a transaction."""
        now, number = self._now(), self.size
        last = self._last_ms()
        if now < last:
            draft = replace(draft, fields={**draft.fields, "clock_unix_ms": now})
        entry, beside = Entry.of(draft, number, max(now, last))
        body = entry.to_bytes()
        hashed = tree.leaf_hash(body)
        self._db.execute(
            f"INSERT INTO leaves (number, body, kind, recorded_unix_ms, {', '.join(LOOKED_UP)})"
            f" VALUES (?, ?, ?, ?, {', '.join('?' * len(LOOKED_UP))})",
            (number, body, entry.kind, entry.recorded_unix_ms, *columns(entry)),
        )
        for level, place, made in tree.appended(number, hashed, self.node):
            self._fresh[level, place] = made
            self._db.execute("INSERT INTO nodes VALUES (?, ?, ?)", (level, place, made))
        for name, each in beside.items():
            values = (number, name, each.salt, canonical(each.value))
            self._db.execute("INSERT INTO personal VALUES (?, ?, ?, ?)", values)
        return number

    def _last_ms(self) -> int:
        """Returns the time of the newest checkpoint, or of an entry behind it."""
        last = self._db.execute("SELECT recorded_unix_ms FROM leaves WHERE number = ?", (self.size - 1,)).fetchone()
        noted = self._db.execute("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
        return max(whole(last[0]) if last else 0, parsed(noted[0]).time_unix_ms if noted else 0)

    def _seal(self, by: Sequence[Signer], keep: bool = False) -> None:
        """Signs what the tree is now, in place of the checkpoint before, unless that one is kept."""
        size, now = self.size, max(self._now(), self._last_ms())
        kept_ms = self._db.execute("SELECT max(time_unix_ms) FROM checkpoints WHERE kept").fetchone()[0]
        newest = "(SELECT max(size) FROM checkpoints)"
        self._db.execute(f"DELETE FROM checkpoints WHERE size = {newest} AND NOT kept")
        checkpoint = Checkpoint(by[0].name, size, self.root(size), now)
        stays = keep or type(kept_ms) is not int or not 0 <= now - kept_ms < KEEP_EVERY_MS
        values = (size, checkpoint.signed(*by), now, int(stays))
        self._db.execute("INSERT INTO checkpoints VALUES (?, ?, ?, ?)", values)

    def _overwrite(self) -> None:
        """Empties the log of what was erased, as soon as no reader holds it: now, or after the next step."""
        if not self._erased:
            return
        with self._lock, self._named():
            ends = time.monotonic() + OVERWRITE_S
            self._db.execute("PRAGMA busy_timeout = 0").fetchone()  # which would wait long by itself
            try:
                while self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    if time.monotonic() > ends:
                        return
                    time.sleep(0.05)
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_S)}").fetchone()
            self._erased = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes one step of what is inside, under one checkpoint; within another it is a part of that.

        Raises:
            ConfigError: there is no signer, or no longer the present one.
            StorageError: the file was replaced, or somebody without the key has changed what was signed.
        """
        signer = self._own()
        with self._lock, self._named():
            inside = self._db.in_transaction
            if inside:
                yield
                return
            if file_id(self.path) != self._file:
                got = "got another file or none there"
                raise StorageError(f"expected the ledger that was opened in {self.path}, {got}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if self._is_made():
                    self._require_sealed(signer)
                yield
                if parsed(self._newest()).size < self.size:
                    self._seal([signer])
                sealed = self._newest()
                self._db.execute("COMMIT")
                self._sealed = sealed
            finally:
                self._fresh.clear()
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        self._overwrite()

    def _require_sealed(self, signer: Signer) -> None:
        """Refuses to go on from what was not signed: the newest checkpoint is the key's, and of what is there."""
        note = self._newest()
        checkpoint = parsed(note)
        before = parsed(self._sealed) if self._sealed else checkpoint
        if note != self._sealed and (signer.key not in signers(note, [signer.key]) or self.keys[-1:] != [signer.key]):
            raise ConfigError(f"expected {self.path} under the same key, got another's checkpoint: open it with that")
        if (
            checkpoint.size != self.size
            or checkpoint.size < before.size
            or self.root(checkpoint.size) != checkpoint.root
            or self.root(before.size) != before.root
        ):
            raise StorageError(
                f"expected in {self.path} what its checkpoint stands for, got other entries: somebody without the key "
                "has changed it; compare it with a copy: 'ilcp audit verify'"
            )
