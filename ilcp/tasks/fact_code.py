"""The entropy code of a dossier's facts: the fewest bytes that can hold them, and so the limit of what bytes can tell.

Every draw of a dossier is uniform, so its facts are digits of a number with mixed bases: which attributes are stated
(one of 20 choose 17), each value (one of 40), each office (one of 40), each pair of the code (one of 240). A payload of
N bytes holds the facts that fit, in that order.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ilcp.errors import DecodeError
from ilcp.tasks.dossier import ATTRIBUTES, CODE_DIGITS, CODE_LETTERS, JOINS, POOLS

__all__ = ["DossierFactCode"]

NAMES = tuple(attribute.name for attribute in ATTRIBUTES)
POOL = {attribute.name: POOLS[attribute.pool] for attribute in ATTRIBUTES}
PAIRS = tuple(letter + digit for letter in CODE_LETTERS for digit in CODE_DIGITS)
CITIES = POOLS["city"]
UNKNOWN = "unknown"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DossierFactCode:
    """The facts of one dossier, and which of its questions asks for which attribute (a role, for a join).

    How many attributes are stated is known to both ends, as the pools are; nothing else is.
    """

    values: Mapping[str, str]
    offices: Mapping[str, str]
    code: str
    asks: tuple[tuple[str, str, str], ...]  # question, kind, attribute

    def encode(self, payload_bytes: int) -> bytes:
        """Encodes the facts that fit into so many bytes, at least one byte."""
        number, weight = 0, 1
        for base, digit in self._digits():
            if weight * base > 256**payload_bytes:
                break
            number += weight * digit
            weight *= base
        length = max(1, math.ceil((weight - 1).bit_length() / 8))
        return number.to_bytes(length, "little")

    def answers(self, payload: bytes) -> dict[str, str]:
        """Returns what a payload of this dossier answers; a question whose facts did not fit is left out.

        Raises:
            DecodeError: the bytes are no such payload.
        """
        decoded = _Decoded(payload, len(self.values))
        found = {question: decoded.answer(kind, name) for question, kind, name in self.asks}
        return {question: answer for question, answer in found.items() if answer is not None}

    def _digits(self) -> Iterator[tuple[int, int]]:
        stated = [name for name in NAMES if name in self.values]
        subsets = list(itertools.combinations(NAMES, len(stated)))
        yield len(subsets), subsets.index(tuple(stated))
        for name in stated:
            yield len(POOL[name]), POOL[name].index(self.values[name])
        for person in _people(self.values):
            yield len(CITIES), CITIES.index(self.offices[person])
        for place in range(0, len(self.code), 2):
            yield len(PAIRS), PAIRS.index(self.code[place : place + 2])


class _Decoded:
    """The facts of a payload, read back from its bytes alone."""

    def __init__(self, payload: bytes, stated: int):
        self._number, self._room = int.from_bytes(payload, "little"), 256 ** len(payload)
        subset = self._next(tuple(itertools.combinations(NAMES, stated)))
        self.stated: Sequence[str] | None = subset
        self.values = {name: value for name in subset or () if (value := self._next(POOL[name])) is not None}
        self.offices: dict[str, str] = {}
        self.code = ""
        if subset is not None and len(self.values) == len(subset):
            for person in _people(self.values):
                office = self._next(CITIES)
                self.offices |= {} if office is None else {person: office}
            pairs = [self._next(PAIRS) for _ in range(3)]
            self.code = "" if None in pairs else "".join(map(str, pairs))
        if self._number:
            raise DecodeError(
                "expected a fact code of this task, got bytes beyond its last fact: another case's or damaged"
            )

    def answer(self, kind: str, name: str) -> str | None:
        """Returns the answer to a question about an attribute; None where the payload does not reach so far."""
        if kind == "code":
            return self.code or None
        if self.stated is not None and name not in self.stated:
            return UNKNOWN
        value = self.values.get(name)
        if kind != "join" or value is None:
            return value
        return f"{value}, {self.offices[value]}" if value in self.offices else None

    def _next(self, choices: Sequence[T]) -> T | None:
        if self._room < len(choices):
            self._room = 0
            return None
        self._room //= len(choices)
        self._number, digit = divmod(self._number, len(choices))
        return choices[digit]


def _people(values: Mapping[str, str]) -> list[str]:
    return sorted({values[role] for role in JOINS if role in values})
