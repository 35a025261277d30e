"""Entries of a ledger: canonical JSON (RFC 8785), and beside it what may be erased, by a commitment in its place.

::

    {"commitments":{"summary":"9f2c..."},"fields":{...},"format":1,"kind":"handoff","number":7,
     "recorded_unix_ms":1764172800000}

What is personal stands beside the tree: the entry holds ``SHA-256("ilcp audit 1\\0" || salt || [number, name, value])``
of each such field, under a fresh salt of 32 bytes. Whoever has value and salt can show that they are what the entry
meant; once both are erased nobody can guess the value from the commitment, and every proof stays what it was.

Who reads an entry takes nothing for granted: it is canonical, of a known format, and within limits, or no entry.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from os import urandom
from typing import Any

from ilcp.errors import DecodeError, EncodeError, MissingExtraError
from ilcp.records import shown

__all__ = [
    "FORMAT",
    "LATEST_MS",
    "MOST_BYTES",
    "SALT_BYTES",
    "Draft",
    "Entry",
    "Personal",
    "canonical",
    "commitment",
    "is_digest",
    "parsed_json",
    "require_sound",
]

FORMAT = 1
SALT_BYTES = 32
MOST_BYTES = 1 << 20  # of an entry, and of a personal value
MOST_NAME = 64
MOST_DEPTH = 32  # of lists and tables in one another: no reader's stack is too small for it
LATEST_MS = 253_402_300_799_000  # unix ms: the last moment of the year 9999, which a calendar still has
COMMITS = b"ilcp audit 1\0"
KEYS = {"commitments", "fields", "format", "kind", "number", "recorded_unix_ms"}


def canonical(value: Any) -> bytes:
    """Returns a value as RFC 8785 writes it.

    Raises:
        MissingExtraError: rfc8785 is not installed.
        EncodeError: it is none of JSON's, has numbers that JSON does not hold exactly, or half characters.
    """
    try:
        import rfc8785
    except ImportError as error:
        raise MissingExtraError.of("rfc8785", "for a ledger", "audit") from error
    try:
        return bytes(rfc8785.dumps(value))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError, AttributeError, TypeError) as error:
        raise EncodeError(f"expected what JSON holds exactly, got: {shown(str(error))}") from error


def commitment(salt: bytes, number: int, name: str, value: Any) -> str:
    """Returns, in hex, what stands in an entry for a personal value."""
    return sha256(COMMITS + salt + canonical([number, name, value])).hexdigest()


def require_sound(value: Any, most_bytes: int, most_depth: int) -> None:
    """Refuses what would not be read again as it was written.

    Raises:
        EncodeError: it is not JSON's, too large, too deep, or has a float that RFC 8785 writes as a whole number beyond
            those that JSON holds exactly.
    """
    written = canonical(value)
    if len(written) > most_bytes:
        raise EncodeError(f"expected at most {most_bytes} bytes in an entry, got {len(written)}: leave some out")
    if _depth(value) > most_depth:
        raise EncodeError(f"expected lists and tables at most {most_depth} deep in an entry, got more: flatten them")
    try:
        again = canonical(parsed_json(written, most_bytes))
    except (DecodeError, EncodeError) as error:
        raise EncodeError(f"expected numbers that JSON holds exactly, got others: {error}") from error
    if again != written:
        raise EncodeError("expected what JSON holds exactly, got a number that is written as another")


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be entered: a kind, fields that stay, and personal ones that may be erased.

    Raises:
        EncodeError: a name is none, or what is given is not JSON's or larger than an entry may be.
    """

    kind: str
    fields: Mapping[str, Any]
    personal: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names: list[Any] = [self.kind, *self.fields, *self.personal]
        for name in names:
            if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME or not name.isprintable():
                raise EncodeError(f"expected names of 1 to {MOST_NAME} characters in an entry, got {shown(name)}")
        for value in (dict(self.fields), *self.personal.values()):
            require_sound(value, MOST_BYTES, MOST_DEPTH - 1)  # an entry is one deeper


@dataclass(frozen=True, slots=True)
class Personal:
    """A personal value and its salt."""

    salt: bytes
    value: Any


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as the tree holds it: ``number`` from 0, when it was recorded (unix ms), and what it says."""

    number: int
    recorded_unix_ms: int
    kind: str
    fields: Mapping[str, Any]
    commitments: Mapping[str, str]

    @classmethod
    def of(cls, draft: Draft, number: int, recorded_unix_ms: int) -> tuple["Entry", dict[str, Personal]]:
        """Makes an entry, and what stands beside it, under fresh salts."""
        beside = {name: Personal(urandom(SALT_BYTES), value) for name, value in draft.personal.items()}
        commitments = {name: commitment(each.salt, number, name, each.value) for name, each in beside.items()}
        return cls(number, recorded_unix_ms, draft.kind, dict(draft.fields), commitments), beside

    def to_bytes(self) -> bytes:
        """Returns the leaf."""
        return canonical(
            {
                "format": FORMAT,
                "number": self.number,
                "recorded_unix_ms": self.recorded_unix_ms,
                "kind": self.kind,
                "fields": self.fields,
                "commitments": self.commitments,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Entry":
        """Reads a leaf.

        Raises:
            DecodeError: it is no entry, or not spelt as ``to_bytes`` spells it.
        """
        record = parsed_json(data, MOST_BYTES + (1 << 16))
        if not isinstance(record, dict) or set(record) != KEYS or record["format"] != FORMAT:
            raise DecodeError(f"expected an entry of format {FORMAT} with {', '.join(sorted(KEYS))}, got {shown(data)}")
        names, counts = (record["commitments"], record["fields"]), (record["number"], record["recorded_unix_ms"])
        sound = (
            all(isinstance(each, dict) for each in names)
            and all(type(count) is int and 0 <= count < 1 << 53 for count in counts)
            and isinstance(record["kind"], str)
            and all(is_digest(value) for value in record["commitments"].values())
        )
        if not sound:
            raise DecodeError(f"expected an entry's fields of their types, got {shown(data)}")
        del record["format"]
        found = cls(**record)
        try:
            same = found.to_bytes() == data
        except EncodeError as error:
            raise DecodeError(f"expected an entry of canonical JSON, got one that is none: {error}") from error
        if not same:
            raise DecodeError(f"expected an entry as RFC 8785 writes it, got {shown(data)}")
        return found


def parsed_json(data: bytes, most: int) -> Any:
    """Reads JSON of a stranger.

    Raises:
        DecodeError: it is longer than ``most`` bytes, none, names a key twice, or is too deep.
    """
    if len(data) > most:
        raise DecodeError(f"expected at most {most} bytes of JSON, got {len(data)}")
    try:
        found = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant, parse_int=_bounded)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"expected JSON, got {shown(data)}: {shown(str(error))}") from error
    if _depth(found) > MOST_DEPTH:
        raise DecodeError(f"expected lists and tables at most {MOST_DEPTH} deep, got more in {shown(data)}")
    return found


def is_digest(value: Any) -> bool:
    """Says whether a value is 32 bytes in hex, as they are written."""
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def _depth(value: Any) -> int:
    """Returns how deep lists and tables lie in one another, whatever the depth."""
    depth, layer = 0, [value]
    while layer := [each for each in layer if isinstance(each, dict | list | tuple)]:
        depth += 1
        layer = [inner for each in layer for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _bounded(digits: str) -> int:
    if len(digits) > 17 or not math.isfinite(float(digits)):
        raise ValueError("a whole number is larger than JSON holds exactly")
    return int(digits)
