"""Damaged records: one value of a JSON record is gone, or is another than it was, at every depth."""

from collections.abc import Collection, Iterator
from typing import Any

HARM: tuple[Any, ...] = (None, [], {}, "x", -1, 0.5, 1e99, [7] * 100)


def spoiled(record: Any, *, whole: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Gives the path of what is damaged, and the record with it: of a list the first item, below ``whole`` nothing."""
    for name in record if isinstance(record, dict) else range(min(len(record), 1)):
        yield f"{name}: gone", _without(record, name)
        for value in HARM:
            yield f"{name}: {str(value)[:9]}", _with(record, name, value)
        if isinstance(record[name], dict | list) and name not in whole:
            for path, inner in spoiled(record[name], whole=whole):
                yield f"{name} / {path}", _with(record, name, inner)


def _without(record: Any, name: Any) -> Any:
    if isinstance(record, dict):
        return {other: value for other, value in record.items() if other != name}
    return [value for place, value in enumerate(record) if place != name]


def _with(record: Any, name: Any, value: Any) -> Any:
    changed = record.copy()
    changed[name] = value
    return changed
