"""The tables of a store, how a file of an earlier version becomes one of this, and SQLite's errors under our names.

Version 2 knows each message's digest and time of sending, dead letters, and what the messages of each name take.
Version 3 knows the blob that each message names, and of each blob since when it is there and whether one ever did.
"""

import sqlite3

from ilcp.errors import TransportError
from ilcp.transport.backend import ROW_BYTES, content_digest
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
        attempt INTEGER NOT NULL DEFAULT 0,
        lease TEXT,
        taken_s REAL NOT NULL DEFAULT 0,
        free_s REAL NOT NULL DEFAULT 0,
        settled_s REAL,
        UNIQUE (name, id))""",
    "CREATE INDEX waiting ON handoffs (name, number) WHERE message IS NOT NULL",
    "CREATE INDEX settled ON handoffs (settled_s) WHERE message IS NULL",
    "CREATE TABLE totals (messages INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    "INSERT INTO totals VALUES (0, 0)",
    f"""CREATE TRIGGER arrived AFTER INSERT ON handoffs BEGIN
        UPDATE totals SET messages = messages + 1, bytes = bytes + length(new.message) + {ROW_BYTES}; END""",
    f"""CREATE TRIGGER done AFTER UPDATE OF message ON handoffs WHEN new.message IS NULL BEGIN
        UPDATE totals SET messages = messages - 1, bytes = bytes - length(old.message) - {ROW_BYTES}; END""",
    "CREATE TABLE capabilities (name TEXT PRIMARY KEY, body BLOB NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
)
SINCE_2 = (
    "ALTER TABLE handoffs ADD COLUMN digest BLOB",
    "ALTER TABLE handoffs ADD COLUMN sent_s REAL NOT NULL DEFAULT 0",
    "ALTER TABLE handoffs ADD COLUMN dead INTEGER NOT NULL DEFAULT 0",
    "UPDATE handoffs SET digest = content_digest(message), sent_s = now() WHERE message IS NOT NULL",
    "DROP INDEX waiting",
    "CREATE INDEX waiting ON handoffs (name, dead, number) WHERE message IS NOT NULL",
    "CREATE INDEX sent ON handoffs (sent_s) WHERE message IS NOT NULL",
    "CREATE TABLE names (name TEXT PRIMARY KEY, messages INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    f"""INSERT INTO names SELECT name, count(*), sum(length(message) + {ROW_BYTES}) FROM handoffs
        WHERE message IS NOT NULL GROUP BY name""",
    f"""CREATE TRIGGER named AFTER INSERT ON handoffs BEGIN
        INSERT INTO names VALUES (new.name, 1, length(new.message) + {ROW_BYTES})
        ON CONFLICT (name) DO UPDATE SET messages = messages + 1, bytes = bytes + excluded.bytes; END""",
    f"""CREATE TRIGGER unnamed AFTER UPDATE OF message ON handoffs WHEN new.message IS NULL BEGIN
        UPDATE names SET messages = messages - 1, bytes = bytes - length(old.message) - {ROW_BYTES}
        WHERE name = old.name;
        DELETE FROM names WHERE name = old.name AND messages <= 0; END""",
    "PRAGMA user_version = 2",
)
SINCE_3 = (
    "ALTER TABLE handoffs ADD COLUMN blob BLOB",
    "CREATE INDEX naming ON handoffs (blob) WHERE blob IS NOT NULL AND message IS NOT NULL",
    """CREATE TABLE blobs (
        digest BLOB PRIMARY KEY, bytes INTEGER NOT NULL, put_s REAL NOT NULL, named INTEGER NOT NULL DEFAULT 0)""",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


def prepare(db: sqlite3.Connection, path: str, now_s: float) -> None:
    """Makes the tables of an empty file, inside a transaction, or brings those of an earlier version up to date.

    Raises:
        CorruptError: the file is another program's, or of a later version.
    """
    application, version = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version"))
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    fresh = not tables and not application
    if not fresh and (application != APPLICATION_ID or version not in range(1, SCHEMA_VERSION + 1)):
        got = f"application {application:#x}, version {version}"
        raise CorruptError(f"expected an ilcp spool of version {SCHEMA_VERSION} in {path}, got {got}")
    if version == SCHEMA_VERSION:
        return
    db.create_function("content_digest", 1, content_digest)
    db.create_function("now", 0, lambda: now_s)
    for statement in (*(SCHEMA if fresh else ()), *(SINCE_2 if version < 2 else ()), *SINCE_3):
        db.execute(statement)


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
