"""A small SQLite file of one account's own, or of this process's memory: safe between threads, processes and forks.

What keeps a state in one (``ilcp.message.replay``, ``ilcp.assurance.watch``) says what it is, its schema, and which
error its user gets.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from ilcp.errors import IlcpError, StorageError
from ilcp.files import file_id, own_file

__all__ = ["Database"]

BUSY_S = 5.0  # how long one process waits for the others to finish their entry, which takes well under 1 ms
WAIT_S = 0.01


class Database:
    """One file, opened and checked; or memory, where there is no path.

    Args:
        path: of a SQLite file, made if it is not there; None for one of this process alone.
        what: it is, in words, such as "a replay cache".
        application_id: by which such files are told from others.
        schema: the statements that make its tables where they are not there.
        lost: what follows from the file's being removed or replaced while it is used, in words.
        error: that users get.

    Raises:
        IlcpError: ``error``: the file cannot be opened, is another kind of database, or another account's, or could be.
    """

    def __init__(
        self,
        path: str | Path | None,
        what: str,
        application_id: int,
        schema: Sequence[str],
        lost: str,
        error: type[IlcpError],
    ):
        self.path = None if path is None else Path(path).absolute()  # a fork or a copy may open it in another folder
        self._what, self._application_id, self._schema = what, application_id, schema
        self._lost, self._error = lost, error
        self._lock, self._lock_process = Lock(), os.getpid()
        self._process = os.getpid()
        self._inherited: list[sqlite3.Connection] = []
        self._database = self._open()

    @property
    def name(self) -> str:
        """Where it is, in words."""
        return "this process's memory" if self.path is None else str(self.path)

    def close(self) -> None:
        """Closes the file; what is in it stays."""
        with self._own_lock():
            if self._process == os.getpid():  # a forked child must not close its parent's
                self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Makes one step that no other thread or process sees half of; of ilcp's own errors what was done stays."""
        with self._own_lock():
            if self.path is not None and self._process != os.getpid():
                # SQLite's connections do not survive a fork, and the child must not even close its copy.
                self._inherited.append(self._database)
                self._process, self._database = os.getpid(), self._open()
            database = self._database
            if self.path is not None and file_id(self.path) != self._file:
                raise self._error(
                    f"expected {self._what} that was opened in {self.path}, got none or another file in its place: it "
                    f"was removed or replaced, {self._lost}"
                )
            try:
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                except IlcpError:
                    database.execute("COMMIT")
                    raise
                database.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._error(f"expected {self._what} in {self.name}, got: {error}") from error
            finally:
                with suppress(sqlite3.Error):
                    database.rollback()  # nothing is left open, whatever ended the step

    def _own_lock(self) -> Lock:
        """Returns this process's lock: a fork may have copied one that another thread held."""
        if self._lock_process != os.getpid():
            self._lock, self._lock_process = Lock(), os.getpid()
        return self._lock

    def _open(self) -> sqlite3.Connection:
        try:
            if self.path is not None:
                own_file(self.path)
            database = sqlite3.connect(
                self.path or ":memory:", timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                if self.path is not None:
                    _keep_a_log(database)
                    database.execute("PRAGMA synchronous = NORMAL")
                database.execute("BEGIN IMMEDIATE")  # so that nobody makes the tables between the look and the making
                self._require_ours(database)
                for statement in (f"PRAGMA application_id = {self._application_id}", *self._schema):
                    database.execute(statement)
                database.execute("COMMIT")
            except BaseException:
                database.close()
                raise
            self._file = None if self.path is None else file_id(self.path)
        except (sqlite3.Error, StorageError) as error:
            raise self._error(f"expected {self._what} in {self.name}, got: {error}") from error
        return database

    def _require_ours(self, database: sqlite3.Connection) -> None:
        """Refuses to write tables into somebody else's database."""
        application = database.execute("PRAGMA application_id").fetchone()[0]
        tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != self._application_id and (tables or application):
            raise self._error(f"expected {self._what} in {self.name}, got another database: name another file")


def _keep_a_log(database: sqlite3.Connection) -> None:
    """Has SQLite keep a log beside the file; for that alone it does not wait while others open it as well."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(WAIT_S)
