"""The tables of a store, and SQLite's errors under our names.

``over_s`` is when a message is too old, or its id need no longer be remembered, by the settings of who sent it, or
acknowledged it: each hand-off has its own, because anybody may open the file with other ones. Of each
blob there is since when it is there, and whether a message ever named it.
"""

import sqlite3
import time

from ilcp.errors import TransportError
from ilcp.transport.backend import ROW_BYTES
from ilcp.transport.errors import CorruptError, DiskFullError, NotWritableError, UnreachableError

__all__ = ["SCHEMA", "named_error", "prepare"]

APPLICATION_ID = 0x696C6370  # "ilcp"
SCHEMA_VERSION = 3
NOT_WRITABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR)

SCHEMA = (
    """CREATE TABLE handoffs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        id TEXT NOT NULL,
        message BLOB,
        blob BLOB,
        digest BLOB,
        attempt INTEGER NOT NULL DEFAULT 0,
        lease TEXT,
        taken_s REAL NOT NULL DEFAULT 0,
        free_s REAL NOT NULL DEFAULT 0,
        sent_s REAL NOT NULL DEFAULT 0,
        over_s REAL NOT NULL DEFAULT 0,
        dead INTEGER NOT NULL DEFAULT 0,
        UNIQUE (name, id))""",
    "CREATE INDEX waiting ON handoffs (name, dead, number) WHERE message IS NOT NULL",
    "CREATE INDEX sent ON handoffs (sent_s) WHERE message IS NOT NULL",
    "CREATE INDEX old ON handoffs (over_s) WHERE message IS NOT NULL",
    "CREATE INDEX settled ON handoffs (over_s) WHERE message IS NULL",
    "CREATE INDEX naming ON handoffs (blob) WHERE blob IS NOT NULL AND message IS NOT NULL",
    """CREATE TABLE blobs (
        digest BLOB PRIMARY KEY, bytes INTEGER NOT NULL, put_s REAL NOT NULL, named INTEGER NOT NULL DEFAULT 0)""",
    "CREATE TABLE names (name TEXT PRIMARY KEY, messages INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    f"""CREATE TRIGGER arrived AFTER INSERT ON handoffs BEGIN
        INSERT INTO names VALUES (new.name, 1, length(new.message) + {ROW_BYTES})
        ON CONFLICT (name) DO UPDATE SET messages = messages + 1, bytes = bytes + excluded.bytes; END""",
    f"""CREATE TRIGGER done AFTER UPDATE OF message ON handoffs WHEN new.message IS NULL BEGIN
        UPDATE names SET messages = messages - 1, bytes = bytes - length(old.message) - {ROW_BYTES}
        WHERE name = old.name;
        DELETE FROM names WHERE name = old.name AND messages <= 0; END""",
    "CREATE TABLE capabilities (name TEXT PRIMARY KEY, body BLOB NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


def prepare(db: sqlite3.Connection, path: str, busy_s: float) -> None:
    """Switches a file to WAL, and makes the tables of an empty one, waiting for others for ``busy_s``.

    Raises:
        CorruptError: the file is another program's, or of another version.
    """
    until = time.monotonic() + busy_s
    while True:  # the switch to WAL does not wait for other processes that are just making it
        try:
            db.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
    db.execute("BEGIN IMMEDIATE")
    try:
        _make_tables(db, path)
        db.execute("COMMIT")
    except BaseException:  # half a schema would be no spool to anybody
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _make_tables(db: sqlite3.Connection, path: str) -> None:
    application, version = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version"))
    if not application and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        for statement in SCHEMA:
            db.execute(statement)
    elif (application, version) != (APPLICATION_ID, SCHEMA_VERSION):
        raise CorruptError(
            f"expected an ilcp spool of version {SCHEMA_VERSION} in {path}, got application {application:#x}, version "
            f"{version}: take what waits there with the release that made it, and name a new folder"
        )


def named_error(error: sqlite3.Error, path: str, waited_s: float) -> TransportError:
    """Gives SQLite's error under our name."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    where = f"in {path}, got: {error}"
    if isinstance(error, sqlite3.ProgrammingError):
        return UnreachableError(f"expected an open spool {where}; connect again")
    if code == sqlite3.SQLITE_FULL:
        return DiskFullError(f"expected room on the disk {where}; free some")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return UnreachableError(f"expected a turn within {waited_s:g} s {where}; who holds it?")
    if code in NOT_WRITABLE:
        return NotWritableError(f"expected a spool that can be written {where}")
    return CorruptError(f"expected a sound spool {where}; move the file away and start a new one")
