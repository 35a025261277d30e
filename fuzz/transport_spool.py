"""A spool's rows as another program may have written them, and what a receiver says of itself.

An input of ``found`` has lines, one per column of ``COLUMNS``: ``i`` and a whole number, ``f`` and a float, ``t`` and
text (UTF-8 or not), ``b`` and bytes; anything else is NULL. The last line is the lease that is settled.
"""

import contextlib
import math
import sqlite3
from typing import Any

from fuzz.transport_client import LOOP
from fuzz.transport_server import AUTHORIZED, in_front_of, memory_store, status_of
from ilcp.errors import DecodeError, TransportError
from ilcp.transport.backend import checked_name
from ilcp.transport.capabilities import Capabilities

__all__ = ["found", "told"]

HANDOFF = ("id", "message", "attempt", "lease", "taken_s", "free_s", "over_s", "digest", "sent_s", "dead")
COLUMNS = (*HANDOFF[:7], "messages", "bytes", "body", *HANDOFF[7:])
STORE = memory_store()
APP = in_front_of(STORE)
EMPTY = ("DELETE FROM handoffs", "DELETE FROM names", "DELETE FROM capabilities")
LOOKUP = {"method": "GET", "path": "/v1/a/capabilities", "query_string": b"", "headers": [AUTHORIZED]}
MOST = 2**63 - 1


def found(data: bytes) -> None:
    """Fails where the store, or the ingress in front of it, answers damaged rows with anything but its errors."""
    lines = data.split(b"\n")
    cells = [_cell(line) for line in lines] + [("?", None)] * len(COLUMNS)
    for statement in EMPTY:
        STORE._db.execute(statement)
    with contextlib.suppress(sqlite3.IntegrityError, sqlite3.OperationalError):  # no such row can be
        _write(dict(zip(COLUMNS, cells, strict=False)))
    lease = lines[len(COLUMNS)].decode("latin-1") if len(lines) > len(COLUMNS) else "1.abcd"
    for call, *args in (
        (STORE.waiting, "a"),
        (STORE.lookup, "a"),
        (_take,),
        (STORE.take, "a-dead", 5.0),
        (STORE.settle, "a", lease, 1.0),
        (STORE.settle, "a", lease, None),
        (STORE.put, "a", "x", b"message"),
    ):
        with contextlib.suppress(TransportError):
            call(*args)
        assert not STORE._db.in_transaction
    status = LOOP.run_until_complete(status_of(APP, dict(LOOKUP), b""))
    assert status in (200, 404, 503), f"status {status}"


def told(data: bytes) -> None:
    """Fails where capabilities are read otherwise than they are written, or refused by another name."""
    with contextlib.suppress(DecodeError):
        read = Capabilities.from_bytes(data)
        assert read == Capabilities.from_bytes(read.to_bytes())


def _take() -> None:
    lease = STORE.take("a", 5.0)
    if lease is not None:
        assert isinstance(lease.message, bytes)
        assert type(lease.attempt) is int
        assert math.isfinite(lease.until_s)
        checked_name("handoff_id", lease.handoff_id)


def _write(cells: dict[str, tuple[str, Any]]) -> None:
    """Writes one row of each table; the cells' types are SQLite's to keep or to convert, as in a file."""
    marks = ", ".join(cells[name][0] for name in HANDOFF)
    values = [cells[name][1] for name in HANDOFF]
    STORE._db.execute(f"INSERT INTO handoffs (number, name, {', '.join(HANDOFF)}) VALUES (1, 'a', {marks})", values)
    (one, messages), (two, size), (three, body) = (cells[name] for name in ("messages", "bytes", "body"))
    if messages is not None and size is not None:
        STORE._db.execute(f"UPDATE names SET messages = {one}, bytes = {two}", (messages, size))
    if body is not None:
        STORE._db.execute(f"INSERT INTO capabilities VALUES ('a', {three})", (body,))


def _cell(line: bytes) -> tuple[str, Any]:
    """Says how SQL takes the value, and reads the value."""
    kind, text = line[:1], line[1:]
    match kind:
        case b"t":
            return "CAST(? AS TEXT)", text
        case b"b":
            return "?", text
        case b"i" | b"f":
            with contextlib.suppress(ValueError):
                number = float(text)
                if kind == b"f" or not math.isfinite(number):
                    return "?", number
                return "?", max(-MOST - 1, min(MOST, int(text[:40])))
    return "?", None
