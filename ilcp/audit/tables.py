"""The tables of a ledger, and SQLite's errors under our names.

``leaves`` has an entry's bytes, and beside them what they are looked up by; ``nodes`` the hashes of complete subtrees
(level 0: the leaves'); ``personal`` what may be erased; ``checkpoints`` the signed notes that are kept.
"""

import os
import sqlite3
from pathlib import Path
from typing import Any

from ilcp.audit.entries import Entry
from ilcp.errors import StorageError

__all__ = [
    "BUSY_S",
    "DAMAGED",
    "KEPT_KINDS",
    "LOOKED_UP",
    "RETIRED",
    "SCHEMA",
    "VERSION",
    "blob",
    "columns",
    "named_error",
    "opened",
    "whole",
]

APPLICATION_ID = 0x696C6161  # "ilaa"
VERSION = 2
BUSY_S = 30.0
DAMAGED = (sqlite3.Error, UnicodeDecodeError, OverflowError)  # what a file's damaged rows bring about
KEPT_KINDS = ("ledger", "key", "erasure", "retention")  # without which nobody could tell what became of the rest
LOOKED_UP = ("run", "producer", "part", "sequence", "handoff_id", "of")  # fields of an entry that have a column
RETIRED = "retired"  # the kind of a row of which only the hash is left

SCHEMA = (
    """CREATE TABLE leaves (
        number INTEGER PRIMARY KEY,
        body BLOB,
        kind TEXT NOT NULL,
        recorded_unix_ms INTEGER NOT NULL,
        run TEXT,
        producer TEXT,
        part TEXT,
        sequence INTEGER,
        handoff_id TEXT,
        of INTEGER)""",
    """CREATE UNIQUE INDEX numbered ON leaves (producer, run, part, sequence)
        WHERE kind = 'handoff' AND sequence IS NOT NULL""",
    "CREATE INDEX by_kind ON leaves (kind, number)",
    "CREATE INDEX by_run ON leaves (run, number)",
    "CREATE INDEX by_handoff ON leaves (handoff_id)",
    "CREATE INDEX by_entry ON leaves (of, kind)",
    """CREATE TABLE nodes (
        level INTEGER, place INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, place)) WITHOUT ROWID""",
    """CREATE TABLE personal (
        number INTEGER,
        name TEXT,
        salt BLOB NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (number, name)) WITHOUT ROWID""",
    """CREATE TABLE checkpoints (
        size INTEGER PRIMARY KEY, note TEXT NOT NULL, time_unix_ms INTEGER NOT NULL, kept INTEGER NOT NULL)""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)


def columns(entry: Entry) -> list[Any]:
    """Returns what an entry is looked up by; None for what it has not, or not of that type."""
    return [
        value if type(value := entry.fields.get(name)) is (int if name in ("sequence", "of") else str) else None
        for name in LOOKED_UP
    ]


def blob(value: Any) -> bytes:
    """Returns what a row has as bytes.

    Raises:
        StorageError: it is of another type.
    """
    if not isinstance(value, bytes):
        raise StorageError(f"expected bytes in a ledger's row, got {type(value).__name__}: the file is damaged")
    return value


def whole(value: Any) -> int:
    """Returns what a row has as a whole number.

    Raises:
        StorageError: it is of another type.
    """
    if type(value) is not int:
        raise StorageError(f"expected a whole number in a ledger's row, got {type(value).__name__}: it is damaged")
    return value


def opened(path: Path, *, writing: bool) -> sqlite3.Connection:
    """Opens a ledger's file, which is one or, to write, empty.

    Raises:
        StorageError: it is another program's, of another version, or cannot be opened.
    """
    try:
        alone = not os.access(path.parent, os.W_OK) and not os.path.lexists(f"{path}-wal")  # as on a disk of copies
        address = f"{path.absolute().as_uri()}?mode={'rw' if writing else 'ro'}{'&immutable=1' if alone else ''}"
        db = sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("BEGIN")  # so that all of it is of one moment: another process may just be making the tables
            application, version = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version"))
            empty = not application and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if (application, version) != (APPLICATION_ID, VERSION) and not (empty and writing):
                raise StorageError(
                    f"expected an ilcp ledger of version {VERSION} in {path}, got application {application:#x}, "
                    f"version {version}: name another file"
                )
            if not empty:
                _require_schema(db, path)
            db.execute("COMMIT")
            db.execute("PRAGMA trusted_schema = OFF").fetchone()
            if writing:
                for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
                    db.execute(f"PRAGMA {pragma}").fetchone()
        except BaseException:
            db.close()
            raise
    except DAMAGED as error:
        raise named_error(error, path) from error
    return db


def _require_schema(db: sqlite3.Connection, path: Path) -> None:
    """Refuses a file with other tables than ours, or with views and triggers, which could answer as they like.

    Raises:
        StorageError: what there is differs.
    """
    asked = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    own = sqlite3.connect(":memory:")
    try:
        for statement in SCHEMA:
            own.execute(statement)
        if db.execute(asked).fetchall() != own.execute(asked).fetchall():
            raise StorageError(f"expected the tables of a ledger in {path}, got others: it was altered")
    finally:
        own.close()


def named_error(error: Exception, path: Path) -> StorageError:
    """Gives SQLite's error under our name, with what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    way_out = {
        sqlite3.SQLITE_FULL: "free space on the disk",
        sqlite3.SQLITE_BUSY: f"another process wrote for more than {BUSY_S:g} s; who?",
        sqlite3.SQLITE_READONLY: "mend its permissions",
    }.get(code, "compare it with a copy: 'ilcp audit verify'")
    return StorageError(f"expected a sound ledger in {path}, got: {error}; {way_out}")
