"""What a store writes down of its blobs: the room that each takes, since when, and whether a message ever named it."""

import sqlite3

from ilcp.message import Blob
from ilcp.transport.blobs import Shelf, missing, sized
from ilcp.transport.errors import FullError

__all__ = ["collect", "name", "offset", "release", "reserve"]


def reserve(db: sqlite3.Connection, blob: Blob, now_s: float, most_bytes: int) -> None:
    """Writes down that a blob is there or will be, and that nobody has named it since.

    Raises:
        FullError: the other blobs leave no room for it.
    """
    others = db.execute("SELECT total(bytes) FROM blobs WHERE digest != ?", (blob.digest,)).fetchone()[0]
    if others + blob.size_bytes > most_bytes:
        got = f"got others that take {others:.0f} of {most_bytes}: receive some, or raise max_blobs_bytes"
        raise FullError(f"expected room for a blob of {blob.size_bytes} bytes, {got}")
    db.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, 0)", (blob.digest, blob.size_bytes, now_s))


def release(db: sqlite3.Connection, shelf: Shelf, digest: bytes, put_s: float) -> None:
    """Gives back the room of a put that failed; what lies there keeps its own, and another put since ``put_s`` too."""
    if (size := shelf.size(digest)) is not None:
        db.execute("UPDATE blobs SET bytes = ? WHERE digest = ? AND put_s = ?", (size, digest, put_s))
    elif not shelf.offset(digest):
        db.execute("DELETE FROM blobs WHERE digest = ? AND put_s = ?", (digest, put_s))


def offset(db: sqlite3.Connection, shelf: Shelf, digest: bytes) -> int:
    """Returns how many bytes of a blob there are: all, where it is there as it was put."""
    row = db.execute("SELECT bytes FROM blobs WHERE digest = ?", (digest,)).fetchone()
    if row is None:
        return 0
    if shelf.size(digest) == row[0]:
        return int(row[0])
    there = shelf.offset(digest)
    return there if there < row[0] else 0  # what is whole and was not kept is written again: see ``Shelf.part``


def name(db: sqlite3.Connection, shelf: Shelf, blob: Blob) -> bytes:
    """Writes down that a message names a blob, and returns its digest.

    Raises:
        BlobError: it is not there, or of another size.
    """
    if (size := shelf.size(blob.digest)) != blob.size_bytes:
        raise missing(blob, sized(size))
    db.execute("UPDATE blobs SET named = 1 WHERE digest = ?", (blob.digest,))
    return blob.digest


def collect(db: sqlite3.Connection, shelf: Shelf, before_s: float) -> None:
    """Removes the blobs that no waiting message names: those that one did, and those that were put ``before_s``."""
    named = "SELECT 1 FROM handoffs WHERE blob = blobs.digest AND message IS NOT NULL"
    of = f"(named OR put_s < ?) AND NOT EXISTS ({named})"
    for (digest,) in db.execute(f"SELECT digest FROM blobs WHERE {of}", (before_s,)).fetchall():
        shelf.remove(digest)
        if shelf.size(digest) is None:
            db.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
