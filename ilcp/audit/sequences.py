"""Which of a recorder's numbers came: ranges, so that a number of any size costs nothing.

A retention entry has the numbers of what was retired (``handed``), so that a run stays as complete as it was.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ilcp.audit.entries import Entry

__all__ = ["Recorded", "gaps", "handed", "in_words", "is_range", "merged", "ranges"]

Recorded = tuple[str, str, str]  # producer, run, and the part that tells its recorders apart


def gaps(found: Sequence[Sequence[int]]) -> list[list[int]]:
    """Returns what is missing from 1 to the last number of ascending ranges."""
    before = [0, *(last for _, last in found)]
    return [[end + 1, first - 1] for end, (first, _) in zip(before, found, strict=False) if first > end + 1]


def merged(found: Iterable[Sequence[int]]) -> list[list[int]]:
    """Returns ranges in ascending order, those that touch as one."""
    whole: list[list[int]] = []
    for first, last in sorted(map(tuple, found)):
        if whole and first <= whole[-1][1] + 1:
            whole[-1][1] = max(whole[-1][1], last)
        else:
            whole.append([first, last])
    return whole


def in_words(found: Iterable[Sequence[int]]) -> str:
    """Returns ranges as people write them."""
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in found)


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Returns whole numbers as ascending ranges, first and last."""
    return merged((number, number) for number in numbers)


def handed(entry: Entry) -> dict[Recorded, list[list[int]]]:
    """Returns the numbers that a retention entry says were retired; what is none is left out."""
    found: dict[Recorded, list[list[int]]] = {}
    rows = entry.fields.get("handed")
    for row in rows if isinstance(rows, list) else []:
        if (
            isinstance(row, list)
            and len(row) == 4
            and isinstance(row[3], list)
            and row[3]
            and all(map(is_range, row[3]))
        ):
            found[str(row[0]), str(row[1]), str(row[2])] = row[3]
    return found


def is_range(value: Any) -> bool:
    """Says whether a value is two whole numbers, the first no larger than the last."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(each) is int for each in value)
        and value[0] <= value[1]
    )
