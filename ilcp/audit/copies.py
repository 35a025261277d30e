"""Copies of a ledger to be verified by whoever holds one: the file itself, or an export of it, in one form.

An export is one file of lines, each a JSON object::

    {"ilcp_ledger_export": 1, "size": 3, "whole": true, "checkpoints": ["..."]}      the newest checkpoint last
    {"number": 0, "leaf": "{...}", "personal": {}}                                   then an entry a line
    {"number": 1, "leaf": null, "hash": "9f2c...", "personal": {}}                   one that was retired
    {"number": 2, "leaf": "{...}", "personal": {"summary": {"salt": "...", "value": "..."}}, "proof": ["..."]}

A ``whole`` export has every entry, and its tree is computed from them; one of some runs has for each entry the proof
that it is one of ``size``. ``tests/verify_export.py`` verifies one without this package.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ilcp.audit import tree
from ilcp.audit.checkpoints import MOST_ENTRIES, parsed
from ilcp.audit.entries import MOST_BYTES, SALT_BYTES, Entry, Personal, canonical, is_digest, parsed_json
from ilcp.audit.ledger import Ledger
from ilcp.audit.tables import DAMAGED, KEPT_KINDS, LOOKED_UP, opened
from ilcp.errors import ConfigError, DecodeError
from ilcp.files import replacing
from ilcp.folders import open_regular
from ilcp.records import shown

__all__ = ["MOST_NOTES", "Copy", "Row", "copy_at", "export"]

FORMAT = 1
MOST_NOTES = 100_000  # checkpoints of a copy: one an hour for eleven years
MOST_LINE = 64 << 20  # an entry of the largest size, with the largest personal values
SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Row:
    """An entry of a copy, as it stands there: nothing of it is believed.

    ``nodes`` are the hashes that the copy has of complete subtrees which this entry ends, by level and place;
    ``columns`` what it is looked up by.
    """

    number: int
    leaf: bytes | None
    hashed: bytes | None
    personal: Mapping[str, Personal]
    proof: list[bytes] | None = None
    nodes: Mapping[tuple[int, int], bytes] = field(default_factory=dict)
    columns: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Copy:
    """A copy: its checkpoints, the newest last, whether it has every entry, and its entries."""

    checkpoints: list[str]
    whole: bool
    rows: Iterator[Row]


def copy_at(path: Path) -> Copy:
    """Opens a ledger, or an export of one.

    Raises:
        ConfigError: there is no file.
        DecodeError, StorageError: it is neither; ``rows`` raises them too, where one is reached that is damaged.
    """
    try:
        with open_regular(path) as file:
            beginning = file.read(len(SQLITE))
    except OSError as error:
        raise ConfigError(f"expected a ledger or an export at {path}, got: {error}") from error
    return _of_ledger(path) if beginning == SQLITE else _of_export(path)


def export(ledger: Ledger, path: Path, run: str | None = None) -> int:
    """Writes an export, which appears whole or not at all, and returns how many entries it has.

    Args:
        run: whose entries alone, with those about keys and removals, each with its proof; None for all.

    Raises:
        StorageError: there is no room, or the ledger is damaged.
    """
    written = 0
    with ledger.snapshot(), replacing(path, private=True) as draft, draft.open("w", encoding="utf-8") as file:
        size, newest = ledger.size, ledger.checkpoint()
        notes = ledger.checkpoints() if run is None else [newest]
        head = {"ilcp_ledger_export": FORMAT, "size": size, "whole": run is None, "checkpoints": notes}
        file.write(json.dumps(head) + "\n")
        for number in range(size):
            entry = ledger.entry(number)
            if run is not None and (entry is None or not _is_of(entry, run)):
                continue
            beside = {} if entry is None else ledger.personal(number)
            line: dict[str, Any] = {
                "number": number,
                "leaf": None if entry is None else entry.to_bytes().decode(),
                "personal": {n: {"salt": p.salt.hex(), "value": p.value} for n, p in beside.items() if p is not None},
            }
            if entry is None:
                line["hash"] = ledger.node(0, number).hex()
            if run is not None:
                line["proof"] = [each.hex() for each in ledger.inclusion(number, size)]
            file.write(canonical(line).decode() + "\n")
            written += 1
    return written


def _is_of(entry: Entry, run: str) -> bool:
    """Says whether an entry belongs into a run's export: keys and removals do, and erasures of its own."""
    return entry.fields.get("run") == run or (entry.kind in KEPT_KINDS and entry.kind != "erasure")


def _of_ledger(path: Path) -> Copy:
    db = opened(path, writing=False)
    try:
        db.execute("BEGIN")  # so that all that is read is of one moment
        sound = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if sound != "ok":
            raise DecodeError(f"expected sound tables and indexes in {path}, got: {shown(sound)}")
        asked = "SELECT note FROM checkpoints ORDER BY size LIMIT ?"
        notes = [row[0] for row in db.execute(asked, (MOST_NOTES + 1,)).fetchall()]
    except BaseException as error:
        db.close()
        if not isinstance(error, DAMAGED):
            raise
        raise DecodeError(f"expected a ledger's checkpoints in {path}, got: {error}") from error
    return Copy(notes, True, _rows_of_ledger(db))


def _rows_of_ledger(db: sqlite3.Connection) -> Iterator[Row]:
    names = ", ".join(("number", "body", "kind", "recorded_unix_ms", *LOOKED_UP))
    try:
        for number, leaf, *columns in db.execute(f"SELECT {names} FROM leaves ORDER BY number"):
            if not isinstance(leaf, bytes | None):
                raise DecodeError(f"expected bytes of entry {number}, got {type(leaf).__name__}")
            rows = db.execute("SELECT name, salt, value FROM personal WHERE number = ?", (number,)).fetchall()
            personal = {str(name): _personal(salt, value) for name, salt, value in rows}
            nodes = {(level, place): _hash(db, level, place) for level, place in tree.ended(number)}
            yield Row(number, leaf, nodes[0, number], personal, None, nodes, tuple(columns))
        strays = "SELECT number FROM personal WHERE number NOT IN (SELECT number FROM leaves) LIMIT 1"
        if stray := db.execute(strays).fetchone():
            raise DecodeError(f"expected personal values of entries alone, got some of {stray[0]}")
    except DAMAGED as error:
        raise DecodeError(f"expected sound tables of a ledger, got: {error}") from error
    finally:
        db.close()


def _hash(db: sqlite3.Connection, level: int, place: int) -> bytes:
    row = db.execute("SELECT hash FROM nodes WHERE level = ? AND place = ?", (level, place)).fetchone()
    if row is None or not isinstance(row[0], bytes):
        raise DecodeError(f"expected the hash of subtree {level}/{place}, got none")
    return row[0]


def _personal(salt: Any, value: Any) -> Personal:
    if not isinstance(salt, bytes) or len(salt) != SALT_BYTES or not isinstance(value, bytes):
        raise DecodeError(f"expected a salt of {SALT_BYTES} bytes and a value, got {shown(salt)}")
    return Personal(salt, parsed_json(value, MOST_BYTES))


def _of_export(path: Path) -> Copy:
    lines = _lines(path)
    head: Any = next(lines, None)
    sound = (
        isinstance(head, dict)
        and set(head) == {"ilcp_ledger_export", "size", "whole", "checkpoints"}
        and head["ilcp_ledger_export"] == FORMAT
        and isinstance(head["whole"], bool)
        and isinstance(head["checkpoints"], list)
        and bool(head["checkpoints"])
    )
    if not sound:
        raise DecodeError(f"expected a ledger, or an export of one (format {FORMAT}), in {path}, got {shown(head)}")
    if parsed(head["checkpoints"][-1]).size != head["size"]:
        raise DecodeError(f"expected the newest checkpoint of {head['size']} entries, got another")
    return Copy(head["checkpoints"], head["whole"], (_row(line, head["whole"]) for line in lines))


def _lines(path: Path) -> Iterator[Any]:
    try:
        with open_regular(path) as file:
            while line := file.readline(MOST_LINE + 1):
                if not line.endswith(b"\n"):
                    raise DecodeError(f"expected whole lines in {path}, got one that is cut off")
                yield parsed_json(line, MOST_LINE)
    except OSError as error:
        raise ConfigError(f"expected a readable export at {path}, got: {error}") from error


def _row(line: Any, whole: bool) -> Row:
    """Reads one line.

    Raises:
        DecodeError: it is no entry.
    """
    wanted = {"number", "leaf", "personal"} | (set() if whole else {"proof"})
    retired = isinstance(line, dict) and line.get("leaf", "") is None
    if not isinstance(line, dict) or set(line) != wanted | ({"hash"} if retired else set()):
        raise DecodeError(f"expected an entry with {', '.join(sorted(wanted))}, got {shown(line)}")
    number, leaf, beside, proof = line["number"], line["leaf"], line["personal"], line.get("proof")
    sound = (
        type(number) is int
        and 0 <= number < MOST_ENTRIES
        and isinstance(leaf, str | None)
        and isinstance(beside, dict)
        and all(isinstance(each, dict) and set(each) == {"salt", "value"} for each in beside.values())
        and all(is_digest(each["salt"]) for each in beside.values())
        and (proof is None or (isinstance(proof, list) and all(map(is_digest, proof))))
        and (not retired or is_digest(line["hash"]))
    )
    if not sound:
        raise DecodeError(f"expected an entry's parts of their types, got {shown(line)}")
    try:
        body = None if leaf is None else leaf.encode()
    except UnicodeEncodeError as error:
        raise DecodeError(f"expected whole characters in entry {number}, got: {error}") from error
    personal = {name: Personal(bytes.fromhex(each["salt"]), each["value"]) for name, each in beside.items()}
    hashed = bytes.fromhex(line["hash"]) if retired else None
    return Row(number, body, hashed, personal, None if proof is None else [bytes.fromhex(each) for each in proof])
