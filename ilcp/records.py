"""Reads records of strangers (TOML, JSON) into dataclasses, and says in a sentence what is wrong with one.

``msgspec`` checks and converts the types; what it has no words for, such as a key that nobody knows, is added here. It
was taken in place of pydantic because it needs nothing else, reads plain dataclasses and imports in milliseconds.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from ilcp.errors import ConfigError, IlcpError

__all__ = ["read_record", "refuse_unknown", "renamed", "shown"]

T = TypeVar("T")
WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text in quotes",
    Path: "a path",
    NoneType: "nothing",
}
_SAID = re.compile(r"(?P<said>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL)
MOST_SHOWN = 80  # characters of a value in an error: who wrote it may be anybody
LARGEST = 1 << 64  # of whole numbers: what is larger counts nothing, and fills an error
_STEP = re.compile(r"\[(?P<index>\d+|\.\.\.)\]|(?P<name>[^.\[\]]+)")  # [...] is a table's value, whatever its key


def read_record(kind: type[T], record: Any, where: str, *, error: type[IlcpError] = ConfigError) -> T:
    """Makes the dataclass ``kind`` of a record of TOML or JSON: lists become tuples where it says so, texts paths.

    Args:
        kind: a dataclass; of what its ``__post_init__`` raises, a ConfigError becomes ``error``, others pass.
        record: a mapping of its fields, which may hold mappings for dataclasses below it.
        where: the place, for people, such as ``"[training]"`` or a file's name.
        error: what is raised.

    Raises:
        IlcpError: ``error``, where a key is unknown or missing, a value is of another type, or values contradict each
            other; the text names the key, what was expected and what came.
    """
    if isinstance(record, Mapping):
        record = {str(name): value for name, value in record.items()}
        _refuse_unknown_below(kind, record, where, error)
    too_large = next(_too_large(record), None)
    if too_large is not None:
        raise error(f"expected whole numbers below {LARGEST} in {where}, got {shown(too_large)}")
    try:
        return msgspec.convert(record, kind, dec_hook=_made_of)
    except msgspec.ValidationError as wrong:
        cause = wrong.__cause__
        if isinstance(cause, ConfigError) and not issubclass(ConfigError, error):
            path = _SAID.fullmatch(str(wrong))["path"]  # type: ignore[index]
            raise error(f"{cause}: {path} in {where}" if path else f"{cause}: {where}") from None
        if isinstance(cause, IlcpError):
            raise cause from None
        raise error(_sentence(str(wrong), kind, record, where)) from None


def renamed(record: Mapping[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
    """Returns a record under the names of now.

    Args:
        names: the name of now by each earlier one.
        where: the record is from, in words.

    Raises:
        ConfigError: both names of one thing are there, and it is not said which counts.
    """
    for before, name in names.items():
        if before in record and name in record:
            raise ConfigError(f"expected {name} once in {where}, got {before}, its earlier name, as well: remove one")
    return {names.get(name, name): value for name, value in record.items()}


def shown(value: Any) -> str:
    """Returns a value as an error shows it: its beginning, where it is long."""
    said = repr(value)
    return said if len(said) <= MOST_SHOWN else f"{said[: MOST_SHOWN - 3]}..."


def refuse_unknown(
    given: Iterable[str], known: Iterable[str], where: str, *, error: type[IlcpError] = ConfigError
) -> None:
    """Refuses a key that is none of those known, with the one that may have been meant.

    Raises:
        IlcpError: ``error``, with the key, the nearest known one, and all of them.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else "."
            raise error(f"expected a key of {where}, got {shown(name)}{meant} Known: {', '.join(sorted(known))}")


def _too_large(value: Any) -> Iterator[int]:
    if isinstance(value, int) and abs(value) >= LARGEST:
        yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _too_large(inner)


def _refuse_unknown_below(hint: Any, value: Any, where: str, error: type[IlcpError]) -> None:
    """Refuses unknown keys of a dataclass's record, and of every record in it, in lists and in tables."""
    if not _holds_records(hint):
        return
    kind = next((part for part in _alternatives(hint) if is_dataclass(part)), None)
    if kind is not None and isinstance(value, Mapping):
        refuse_unknown(value, (field.name for field in fields(kind)), where, error=error)
        for name, inner in value.items():
            _refuse_unknown_below(_below(kind, name), inner, f"{name} in {where}", error)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_unknown_below(_below(hint, None), inner, f"{name} in {where}", error)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            _refuse_unknown_below(_below(hint, place), inner, f"[{place}] in {where}", error)


@cache
def _holds_records(hint: Any) -> bool:
    """Says whether a value of this type may be a record, or have one in it."""
    parts = _alternatives(hint)
    return any(is_dataclass(part) or any(map(_holds_records, get_args(part))) for part in parts)


def _made_of(kind: Any, value: Any) -> Any:
    """Makes a value of a type that msgspec does not know, such as a path, of the text that stands for it.

    A path may begin with ``~``, as a shell takes it.
    """
    if not isinstance(value, kind | str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    if kind is Path:
        return Path(os.path.expanduser(value))  # unlike Path's own, does without a home
    return value if isinstance(value, kind) else kind(value)


def _sentence(wrong: str, kind: Any, record: Any, where: str) -> str:
    """Says what msgspec found wrong, with the hint and the value that stand at its path."""
    found = _SAID.fullmatch(wrong)
    said, path = (found["said"], found["path"] or "") if found else (wrong, "")
    hint, value = kind, record
    for step in _STEP.finditer(path):
        if step["index"] == "...":  # of a table whose key msgspec does not name
            hint = _below(hint, None)
            key = next((name for name, inner in value.items() if not _fits(inner, hint)), None)
            path, value = path.replace("[...]", f".{key}", 1), value[key]
            continue
        place = step["name"] or int(step["index"])
        hint, value = _below(hint, place), value[place]
    if said.startswith("Object missing required field"):
        required = [f.name for f in fields(_record_kind(hint)) if f.default is f.default_factory is MISSING]
        names = ", ".join(repr(name) for name in required if name not in value)
        return f"expected {names} in {f'{path} of {where}' if path else where}, got nothing"
    place_of = f" for {path!r} in {where}" if path else f" in {where}"
    if said.startswith(("Expected", "Invalid enum value")):
        return f"expected {_words(hint)}{place_of}, got {shown(value)}"
    return f"expected another value{place_of}, got {shown(value)}: {said}"


def _fits(value: Any, hint: Any) -> bool:
    try:
        msgspec.convert(value, hint, dec_hook=_made_of)
    except msgspec.ValidationError:
        return False
    return True


def _record_kind(hint: Any) -> Any:
    return next(part for part in _alternatives(hint) if is_dataclass(part))


def _alternatives(hint: Any) -> Sequence[Any]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _below(hint: Any, place: str | int | None) -> Any:
    """Returns the type of a dataclass's field, of a list's item, or (None) of a table's values."""
    for part in _alternatives(hint):
        inner = get_args(part)
        if isinstance(place, str) and is_dataclass(part):
            known: Any = part
            return _hints(known)[place]
        if place is None and len(inner) == 2:
            return inner[1]
        if isinstance(place, int) and inner and get_origin(part) not in (dict, Mapping):
            return inner[0] if len(inner) == 1 or inner[-1] is Ellipsis else inner[min(place, len(inner) - 1)]
    return Any


def _words(hint: Any) -> str:
    """Says a type to people."""
    return " or ".join(_kinds(hint))


def _kinds(hint: Any) -> Iterator[str]:
    for part in _alternatives(hint):
        origin, inner = get_origin(part) or part, get_args(part)
        if part in WORDS:
            yield WORDS[part]
        elif origin is Literal:
            yield f"one of {', '.join(map(repr, inner))}"
        elif origin is tuple and inner and inner[-1] is not Ellipsis:
            yield f"a list of {len(inner)}"
        elif origin in (tuple, list, Sequence):
            yield "a list"
        elif is_dataclass(part) or origin in (dict, Mapping):
            yield "a table"
        else:
            yield str(part)
