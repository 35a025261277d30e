"""The queue itself, in one SQLite file (or in memory): what the spool, the HTTP ingress and the tests stand on.

**Durability.** WAL. With ``power_safe`` a hand-off is synced to the disk before ``put`` returns, and an acknowledgement
before ``settle`` does (``synchronous=FULL``); leases are not (``NORMAL``: a lease that a power cut forgets is a message
that is free again). Without it no commit waits for the disk: killed processes lose nothing, a power cut may lose the
last commits of both kinds. `benchmarks/load.py` measures both.

**Once.** A name has each id once: while the message waits, and for ``dedup_s`` of whoever acknowledged it, but not
beyond the latest ``MAX_REMEMBERED`` hand-offs of the spool. Other content under it is refused, by its digest. Order is
that of ``put``; a message that is handed out again keeps its place.

**Never for ever.** What was handed out ``max_deliveries`` times becomes a dead letter of its name, where it waits under
its id, and in nobody's way. What was sent ``max_age_s`` ago, by its sender's settings, and is not held goes.
The messages of one name, dead letters included, take no more than its share of the store.

**Clocks.** Leases use the wall clock, because a spool outlives a boot. A clock set forward ends leases early, one set
back by more than ``CLOCK_SLACK_S`` voids those that seem to begin in the future: the message is handed out again, and
the late settlement refused. A clock set forward by more than ``dedup_s`` forgets the ids that were acknowledged: what
is sent again under one of them is handed out again; by more than ``max_age_s``, it drops what waits. The clock is read
inside the transaction, so that one process's now is never before the lease that another has just made.

**A full disk.** Leases and acknowledgements need room too, in the log. So messages are refused while there is less than
``RESERVE_BYTES``, and what is there is still handed out. Where others take that as well, every call is refused; what is
kept stays kept, and goes on once there is room.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ilcp.errors import EncodeError, StorageError, TransportError
from ilcp.files import file_id, own_file
from ilcp.message import Blob
from ilcp.transport import blob_rows, blobs
from ilcp.transport.backend import (
    DEAD,
    ROW_BYTES,
    Lease,
    Settings,
    blob_of,
    content_digest,
    dead_letters,
    is_name,
    require_same,
)
from ilcp.transport.errors import (
    CorruptError,
    DiskFullError,
    FullError,
    LeaseLostError,
    NotWritableError,
    UnreachableError,
)
from ilcp.transport.schema import named_error, prepare
from ilcp.transport.telemetry import logged

__all__ = ["Store"]

BUSY_S = 30.0  # a writer holds the file for milliseconds; after this long something is stuck
TURN_S = 0.001
RESERVE_BYTES = 8 << 20  # the log grows to 4 MB before it is written back, and the file by as much
CLOCK_SLACK_S = 5.0  # a clock that is nudged back by less only makes a lease that much longer
MAX_REMEMBERED = 1_000_000  # about 100 MB of ids
MAX_TOLD_BYTES = 16 << 20  # what all receivers say of themselves: 100,000 of a codec each

QUEUE = "name = ? AND dead = ?"
FREE = f"{QUEUE} AND message IS NOT NULL AND (free_s <= ? OR taken_s > ?)"
OLDEST = f"SELECT number FROM handoffs WHERE {FREE} ORDER BY number LIMIT 1"
TAKE = f"""UPDATE handoffs SET attempt = attempt + 1, lease = ?, taken_s = ?, free_s = ? WHERE number = ({OLDEST})
    RETURNING number, id, message, attempt"""
HELD = f"number = ? AND lease = ? AND message IS NOT NULL AND free_s > ? AND taken_s <= ? AND {QUEUE}"
BURY = "UPDATE handoffs SET dead = 1, attempt = attempt - 1, lease = NULL, taken_s = 0, free_s = 0 WHERE number = ?"

LOST = "expected a lease that is held, got one that ended: the message is handed out again"


class Store:
    """A queue per name, and what each name says of itself. Every call returns at once; any thread may call.

    Raises:
        CorruptError: ``path`` is no spool, or a damaged one.
        NotWritableError: ``path`` is another account's, or could be.
        UnreachableError: ``path`` cannot be opened.
    """

    def __init__(self, path: str, settings: Settings) -> None:
        self._path, self._settings, self._clock = path, settings, settings.clock
        self._sync = "FULL" if settings.power_safe else "NORMAL"
        self._lock = threading.Lock()
        self.blobs = blobs.shelf_beside(path)
        if path != ":memory:":
            try:
                own_file(Path(path))
            except StorageError as error:
                raise NotWritableError(str(error)) from error
        with self._lock, self._named_errors():
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                prepare(self._db, path, BUSY_S)
            except BaseException:
                self._db.close()
                raise
            self._file = None if path == ":memory:" else file_id(path)

    def put(self, name: str, handoff_id: str, message: bytes) -> bool:
        """Keeps the message, once, and says whether it is new to this name.

        Raises:
            ConflictError: another message is known under the id.
            BlobError: it names a blob that is not there.
            FullError: the waiting messages, those of the name, or the disk, leave no room for it.
        """
        blob = blob_of(message)
        with self._lock, self._transaction(self._sync):
            now = self._clock()
            blob_rows.collect(self._db, self.blobs, now - self._settings.max_age_s)
            self._forget(now)
            found = self._db.execute("SELECT digest FROM handoffs WHERE name = ? AND id = ?", (name, handoff_id))
            for (known,) in found.fetchall():
                require_same(handoff_id, known, message)
                return False
            self._check_room(name, len(message))
            self._check_disk(len(message))
            new = "INSERT INTO handoffs (name, id, message, blob, digest, sent_s, over_s) VALUES (?, ?, ?, ?, ?, ?, ?)"
            named = blob and blob_rows.name(self._db, self.blobs, blob)
            digest, over_s = content_digest(message), now + self._settings.max_age_s
            self._db.execute(new, (name, handoff_id, message, named, digest, now, over_s))
        return True

    def take(self, name: str, lease_s: float) -> Lease | None:
        """Leases the oldest free message; None if there is none."""
        now = self._clock()
        with self._lock, self._at_its_place():
            if self._db.execute(OLDEST, (*_queue(name), now, now + CLOCK_SLACK_S)).fetchone() is None:
                return None  # the usual answer to a poll, and it locks nobody out
        lease = os.urandom(8).hex()
        row: list[tuple[Any, ...]] = []
        try:
            with self._lock, self._transaction("NORMAL"):
                now = self._clock()
                self._expire(now)
                values = (lease, now, now + lease_s, *_queue(name), now, now + CLOCK_SLACK_S)
                while (row := self._db.execute(TAKE, values).fetchall()) and self._is_given_up(name, *row[0]):
                    self._db.execute(BURY, row[0][:1])
        except BaseException:  # Ctrl-C may come when all is done, and then nobody has what was taken
            if row:
                with suppress(TransportError):
                    self.settle(name, f"{row[0][0]}.{lease}", 0.0, unseen=True)
            raise
        if not row:
            return None
        number, handoff_id, message, attempt = row[0]
        return Lease(f"{number}.{lease}", handoff_id, message, attempt, now + lease_s)

    def settle(self, name: str, token: str, retry_in_s: float | None, unseen: bool = False) -> None:
        """Ends a lease. An acknowledgement may be repeated, as after an answer that was lost on the way.

        What comes back ``unseen``, because nobody got it, counts as not handed out.

        Raises:
            LeaseLostError: there is no such lease, or no longer.
        """
        number, lease = _parts(token)
        freed: list[tuple[bytes | None]] = []
        with self._lock, self._transaction(self._sync if retry_in_s is None else "NORMAL"):
            now = self._clock()
            held = (number, lease, now, now + CLOCK_SLACK_S, *_queue(name))
            if retry_in_s is None:
                change = f"UPDATE handoffs SET message = NULL, over_s = ? WHERE {HELD} RETURNING blob"
                freed = self._db.execute(change, (now + self._settings.dedup_s, *held)).fetchall()
                done = len(freed)
                if not done:
                    again = "SELECT count(*) FROM handoffs WHERE number = ? AND lease = ? AND message IS NULL"
                    done = self._db.execute(again, held[:2]).fetchone()[0]
            else:
                change = f"""UPDATE handoffs SET attempt = attempt - ?, lease = NULL, taken_s = ?, free_s = ?
                    WHERE {HELD}"""
                done = self._db.execute(change, (int(unseen), now, now + retry_in_s, *held)).rowcount
        if not done:
            raise LeaseLostError(LOST)
        if freed and freed[0][0] is not None:  # after the commit: a message that comes again has its blob
            with suppress(TransportError), self._lock, self._transaction("NORMAL"):
                blob_rows.collect(self._db, self.blobs, self._clock() - self._settings.max_age_s)

    def blob_part(self, blob: Blob) -> blobs.Part | None:
        """Begins a blob that is put, or goes on with it; None: it is there.

        Raises:
            EncodeError: it is larger than ``max_blob_bytes``.
            FullError: there is no room for it.
            BeingPutError, NotWritableError: see ``Shelf``.
        """
        most = self._settings.max_blob_bytes
        if blob.size_bytes > most:
            raise EncodeError(f"expected a blob of at most {most} bytes, got {blob.size_bytes}: raise max_blob_bytes")
        with self._lock, self._transaction(self._sync):
            now = self._clock()
            blob_rows.collect(self._db, self.blobs, now - self._settings.max_age_s)
            blob_rows.reserve(self._db, blob, now, self._settings.max_blobs_bytes)
            if self.blobs.size(blob.digest) == blob.size_bytes:
                return None
            self._check_disk(blob.size_bytes)
        try:
            part = self.blobs.part(blob)
        except StorageError:
            self._release(blob.digest, now)
            raise
        if part is not None:
            part.put_s = now
        return part

    def drop_blob(self, part: blobs.Part) -> None:
        """Removes what a put wrote that is not the blob, and gives back the room that was kept for it."""
        self.blobs.drop(part)
        self._release(part.blob.digest, part.put_s)

    def blob_offset(self, digest: bytes) -> int:
        """Returns how many bytes of a blob there are: all, where it is there."""
        with self._lock, self._at_its_place():
            return blob_rows.offset(self._db, self.blobs, digest)

    def extend(self, name: str, token: str, lease_s: float) -> float:
        """Holds what is leased for ``lease_s`` from now on, and returns until when.

        Raises:
            LeaseLostError: there is no such lease, or no longer.
        """
        number, lease = _parts(token)
        with self._lock, self._transaction("NORMAL"):
            now = self._clock()
            change = f"UPDATE handoffs SET taken_s = ?, free_s = ? WHERE {HELD}"
            values = (now, now + lease_s, number, lease, now, now + CLOCK_SLACK_S, *_queue(name))
            if not self._db.execute(change, values).rowcount:
                raise LeaseLostError(LOST)
        return now + lease_s

    def publish(self, name: str, body: bytes) -> None:
        """Keeps what the receiver says of itself.

        Raises:
            FullError: what others said leaves no room for it.
        """
        with self._lock, self._transaction(self._sync):
            others = "SELECT count(*), total(length(body)) FROM capabilities WHERE name != ?"
            names, used = self._db.execute(others, (name,)).fetchone()
            if used + len(body) > MAX_TOLD_BYTES:
                got = f"got {names} names that said {used:g}: start a new spool"
                raise FullError(f"expected at most {MAX_TOLD_BYTES} bytes of capabilities in {self._path}, {got}")
            self._db.execute("INSERT OR REPLACE INTO capabilities VALUES (?, ?)", (name, body))

    def lookup(self, name: str) -> bytes | None:
        """Returns what the receiver said of itself last."""
        with self._lock, self._at_its_place():
            row = self._db.execute("SELECT body FROM capabilities WHERE name = ?", (name,)).fetchone()
        if row is not None and not isinstance(row[0], bytes):
            raise CorruptError(f"expected bytes of {name} in {self._path}, got another type: move the file away")
        return None if row is None else row[0]

    def waiting(self, name: str) -> tuple[int, int]:
        """Counts the messages of a name that wait or are leased, dead ones included, and the bytes that they take."""
        with self._lock, self._at_its_place():
            return self._taken("WHERE name = ?", name)

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._db.close()

    def _release(self, digest: bytes, put_s: float) -> None:
        with suppress(TransportError), self._lock, self._transaction("NORMAL"):  # why the put failed says more
            blob_rows.release(self._db, self.blobs, digest, put_s)

    def _taken(self, where: str = "", *values: str) -> tuple[int, int]:
        """Sums up what waits; only names of which something waits have a row."""
        total = "SELECT coalesce(sum(messages), 0), coalesce(sum(bytes), 0) FROM names"
        row = self._db.execute(f"{total} {where}", values).fetchone()
        if not all(isinstance(number, int) for number in row):
            raise CorruptError(f"expected the totals in {self._path}, got {row}: move the file away")
        return row[0], row[1]

    def _check_room(self, name: str, more: int) -> None:
        """Refuses what would leave others no room: all messages have so much of it, and those of one name less."""
        named, also = self._taken("WHERE name = ?", name), f" of {name} and {name}{DEAD}"
        for of, (messages, used), most, option in (
            ("", self._taken(), self._settings.max_bytes, "max_bytes"),
            (also, named, self._settings.name_bytes, "max_name_bytes"),
        ):
            if used + more + ROW_BYTES > most:
                raise FullError(
                    f"expected room for {more} bytes in {self._path}, got {messages} waiting messages{of} that take"
                    f" {used} of {most}: receive some, or raise {option}"
                )

    def _check_disk(self, more: int) -> None:
        """Refuses what would take from the disk what leases and acknowledgements need."""
        if self._path == ":memory:" or not hasattr(os, "statvfs"):
            return
        try:
            disk = os.statvfs(self._path)
        except OSError as error:  # the file was taken away: what is written now, nobody would find
            raise UnreachableError(f"expected a spool in {self._path}, got: {error.strerror}; connect again") from error
        pages, page_bytes = (self._db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("freelist_count", "page_size"))
        room = disk.f_bavail * disk.f_frsize + pages * page_bytes
        if room < RESERVE_BYTES + more:
            left = f"got {room}, of which {RESERVE_BYTES} are for acknowledgements; free some"
            raise DiskFullError(f"expected room on the disk for {more} bytes in {self._path}, {left}")

    def _forget(self, now: float) -> None:
        """Drops what is too old, and the ids that need no longer be remembered."""
        self._expire(now)
        self._db.execute("DELETE FROM handoffs WHERE message IS NULL AND over_s < ?", (now,))
        oldest = "(SELECT seq FROM sqlite_sequence WHERE name = 'handoffs') - ?"
        ancient = f"DELETE FROM handoffs NOT INDEXED WHERE number < {oldest} AND message IS NULL"
        self._db.execute(ancient, (MAX_REMEMBERED,))

    def _expire(self, now: float) -> None:
        """Drops what nobody has acknowledged in time and nobody holds; sent again, it is new.

        What was sent under a clock that was wrong, and lies ahead, counts as sent now.
        """
        ahead = "UPDATE handoffs SET over_s = over_s - sent_s + ?, sent_s = ? WHERE message IS NOT NULL AND sent_s > ?"
        self._db.execute(ahead, (now, now, now + CLOCK_SLACK_S))
        old = "message IS NOT NULL AND over_s < ? AND (free_s <= ? OR taken_s > ?)"
        values = (now, now, now + CLOCK_SLACK_S)
        gone = self._db.execute(f"UPDATE handoffs SET message = NULL, over_s = 0 WHERE {old}", values).rowcount
        if gone:
            self._db.execute("DELETE FROM handoffs WHERE message IS NULL AND over_s = 0")
            logged(f"dropped {gone} that nobody acknowledged within max_age_s")

    def _is_given_up(self, name: str, number: object, handoff_id: object, message: object, attempt: object) -> bool:
        """Says whether a row was handed out too often, and checks that it holds what ``put`` and ``take`` write."""
        if not is_name(handoff_id) or not isinstance(message, bytes) or not isinstance(attempt, int) or attempt < 1:
            raise CorruptError(f"expected a hand-off in row {number} of {self._path}, got none: move the file away")
        if given_up := dead_letters(name) is not None and attempt > self._settings.max_deliveries:
            logged("given up", queue=name, handoff_id=handoff_id, attempt=attempt - 1)
        return given_up

    def _begin(self) -> None:
        """Waits for its turn in short steps: SQLite's own waiting grows to 100 ms, when a turn takes 5."""
        until = time.monotonic() + BUSY_S
        while True:
            try:
                self._db.execute("PRAGMA busy_timeout = 0").close()
                self._db.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(TURN_S)
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}").close()

    @contextmanager
    def _at_its_place(self) -> Iterator[None]:
        """Refuses to work on a file that was taken away, or whose place another one has: nobody else is in it."""
        if self._path != ":memory:" and file_id(self._path) != self._file:
            raise UnreachableError(
                f"expected the spool that was opened in {self._path}, got none or another file in its place: the "
                "folder was removed or replaced; connect again"
            )
        with self._named_errors():
            yield

    @contextmanager
    def _transaction(self, sync: str) -> Iterator[None]:
        with self._at_its_place():
            try:  # from here on: an interrupt may come on any line, also between BEGIN and the next
                if self._db.in_transaction:  # an interrupt came while this very guard was ending one
                    self._db.execute("ROLLBACK")
                self._db.execute(f"PRAGMA synchronous = {sync}")
                self._begin()
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise named_error(error, self._path, BUSY_S) from error


def _parts(token: str) -> tuple[int, str]:
    """Reads the row and the lease that a token names; what is no token names no row."""
    digits, _, lease = token.partition(".")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else -1, lease


def _queue(name: str) -> tuple[str, int]:
    """Says where the messages of a name lie: dead letters lie with their name's own, which knows their ids."""
    return name.removesuffix(DEAD), int(name.endswith(DEAD))
