"""Reads records of strangers (TOML, JSON) into dataclasses, and says in a sentence what is wrong with one.

``msgspec`` checks and converts the types; what it has no words for, such as a key that nobody knows, is added here. It
was taken in place of pydantic because it needs nothing else, reads plain dataclasses and imports in milliseconds.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from ilcp.errors import ConfigError, IlcpError

__all__ = ["read_record", "refuse_unknown"]

T = TypeVar("T")
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text in quotes",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
_WRONG = re.compile(r"(?P<said>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<kinds>[^`]+)`(?P<more> of length .*?)?, got .*", re.DOTALL)


def read_record(kind: type[T], record: Any, where: str, *, error: type[IlcpError] = ConfigError) -> T:
    """The dataclass ``kind`` from a record as TOML or JSON gives it: lists become tuples, texts become paths.

    Args:
        kind: a dataclass; its ``__post_init__`` may raise errors of ilcp's, which pass.
        record: a mapping of its fields, which may hold mappings for dataclasses below it.
        where: the place, for people, such as ``"[training]"`` or a file's name.
        error: what is raised.

    Raises:
        IlcpError: ``error``, where a key is unknown or missing, or a value is of another type; the text names the key,
            what was expected and what came.
    """
    if isinstance(record, Mapping):
        record = {str(name): value for name, value in record.items()}
        _refuse_unknown_below(kind, record, where, error)
    try:
        return msgspec.convert(record, kind, dec_hook=_made_of)
    except msgspec.ValidationError as wrong:
        if isinstance(wrong.__cause__, IlcpError):
            raise wrong.__cause__ from None
        raise error(_sentence(wrong, record, where)) from wrong


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
            raise error(f"expected a key of {where}, got {name!r}{meant} Known: {', '.join(sorted(known))}")


def _refuse_unknown_below(kind: Any, record: Mapping[str, Any], where: str, error: type[IlcpError]) -> None:
    refuse_unknown(record, (field.name for field in fields(kind)), where, error=error)
    hints = get_type_hints(kind)
    for name, value in record.items():
        union = get_origin(hints[name]) in (Union, UnionType)
        inner = next(
            (part for part in (get_args(hints[name]) if union else (hints[name],)) if is_dataclass(part)), None
        )
        if inner is not None and isinstance(value, Mapping):
            _refuse_unknown_below(inner, value, f"{name} in {where}", error)


def _made_of(kind: Any, value: Any) -> Any:
    """A value of a type that msgspec does not know, such as a path, made of the text that stands for it."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return kind(value)


def _sentence(wrong: Exception, record: Any, where: str) -> str:
    found = _WRONG.fullmatch(str(wrong))
    said, path = (found["said"], found["path"] or "") if found else (str(wrong), "")
    missing = re.fullmatch(r"Object missing required field `(.*)`", said)
    if missing:
        return f"expected {missing[1]!r} in {f'{path} of {where}' if path else where}, got nothing"
    value = _at(record, path)
    expected = _EXPECTED.fullmatch(said)
    if expected:
        words = " or ".join(WORDS.get(kind, kind) for kind in expected["kinds"].split(" | "))
        return f"expected {words}{expected['more'] or ''}{f' for {path!r}' if path else ''} in {where}, got {value!r}"
    return f"expected another value{f' for {path!r}' if path else ''} in {where}, got {value!r}: {said}"


def _at(record: Any, path: str) -> Any:
    """The value at a path such as ``training.free_bits[1]``; the nearest above it where the path goes no further."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            record = record[int(index)] if index else record[name]
        except (KeyError, IndexError, TypeError):
            return record
    return record
