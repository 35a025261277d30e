"""The agenda: which topics were said, and how they, the lengths of their values and the latent's bits become a payload.

::

    topics that were said, each one's length, each one's bits
      --topic by topic; length by length; the first bit of every fact, the second, ...--> symbols
      --range coder--> payload: each byte more decides further symbols, and a prefix decides the first of them

What is said is coded along a tree (Chow and Liu, 1968): each topic's chance depends on whether its parent was said,
because topics come together, as the slots of a service do. A length is coded by how long the values of its topic are;
the latent's bits take one bit each.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ilcp.errors import ConfigError
from ilcp_codecs import range_code

__all__ = ["Agenda", "Code"]

EVEN = np.array([0.5, 0.5])
PRIOR = 0.5  # of a case added to every count: nothing is impossible
SCALE = 2**16  # chances are kept as whole numbers of so many, the same on every machine


@dataclass(frozen=True)
class Code:
    """Facts as a payload holds them: ``topics`` ascend, ``lengths`` are in tokens, and ``bits`` are -1 and 1, 0 being
    unknown: as many for each fact as ``Agenda.bits_of`` says of its length."""

    topics: tuple[int, ...]
    lengths: tuple[int, ...]
    bits: tuple[NDArray[np.int8], ...]


@dataclass(frozen=True)
class Agenda:
    """The chances of what is said.

    ``order`` ``"topics"`` is that in which topics are coded, ``parent`` each one's (-1: none), ``chances``
    ``"topics 2"`` that it is said when its parent is not, and when it is; ``lengths`` ``"topics most"`` are the chances
    of one token, two, and so on. All chances are whole numbers of ``SCALE`` parts.

    Raises:
        ConfigError: the order is none, a parent comes behind its topic, or something is impossible or certain: weights
            may be anybody's.
    """

    order: NDArray[np.int32]
    parent: NDArray[np.int32]
    chances: NDArray[np.int32]
    lengths: NDArray[np.int32]
    whole_dims: int
    token_dims: int

    def __post_init__(self) -> None:
        topics = np.arange(len(self.order))
        place, known = np.empty_like(topics), self.parent >= 0
        ordered = np.array_equal(np.sort(self.order), topics) and self.parent.max() < len(topics)
        if ordered:
            place[self.order] = topics
            ordered = bool((place[self.parent[known]] < place[known]).all())
        possible = self.chances.min() > 0 and self.chances.max() < SCALE and self.lengths.min() > 0
        if not (ordered and possible):
            raise ConfigError("expected topics in an order, parents first, and chances between never and always")

    @classmethod
    def fit(cls, said: NDArray[np.bool_], counts: NDArray[np.int64], *, whole_dims: int, token_dims: int) -> "Agenda":
        """Returns the chances of cases ``said`` ``"cases topics"``, and of lengths counted in ``"topics most"``."""
        cases, topics = said.shape
        order, parent = _tree(_mutual_information(said))
        chances = np.empty((topics, 2))
        for topic in range(topics):
            given = said[:, parent[topic]] if parent[topic] >= 0 else np.zeros(cases, dtype=bool)
            for state in (0, 1):
                of = said[given == bool(state), topic]
                chances[topic, state] = (of.sum() + PRIOR) / (len(of) + 2 * PRIOR)
        lengths = (counts + PRIOR) / (counts + PRIOR).sum(1, keepdims=True)
        return cls(order, parent, _whole(chances), _whole(lengths), whole_dims, token_dims)

    def bits_of(self, length: int) -> int:
        """Returns how many bits a value of so many tokens has."""
        return self.whole_dims + length * self.token_dims

    def encode(self, code: Code, payload_bytes: int) -> bytes:
        """Returns the payload: at most ``payload_bytes``, shorter where everything fits, and a prefix of any longer."""
        said = np.zeros(len(self.order), dtype=bool)
        said[list(code.topics)] = True
        symbols = [int(said[topic]) for topic in self.order]
        symbols += [length - 1 for length in code.lengths]
        symbols += [int(code.bits[fact][bit] > 0) for fact, bit in self._turns(code.lengths)]
        return range_code.whole_payload(range_code.walk(symbols, _Source(self), math.inf))[:payload_bytes]

    def decode(self, payload: bytes) -> Code:
        """Returns what a payload says; a length that it does not decide is the topic's likeliest."""
        symbols = iter(range_code.decided(payload, _Source(self)))
        topics = tuple(sorted(int(topic) for topic, flag in zip(self.order, symbols, strict=False) if flag))
        likeliest = [int(self.lengths[topic].argmax()) for topic in topics]
        lengths = tuple(1 + next(symbols, other) for other in likeliest)
        bits = tuple(np.zeros(self.bits_of(length), dtype=np.int8) for length in lengths)
        for (fact, bit), symbol in zip(self._turns(lengths), symbols, strict=False):
            bits[fact][bit] = 2 * symbol - 1
        return Code(topics, lengths, bits)

    def _turns(self, lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Returns the order of the bits, as pairs of a fact and its bit: each fact's first, each one's second, ..."""
        sizes = [self.bits_of(length) for length in lengths]
        return ((fact, bit) for bit in range(max(sizes, default=0)) for fact, size in enumerate(sizes) if bit < size)


class _Source:
    """Says what may come next: whether a topic was said, in the tree's order; a length; even bits for ever."""

    def __init__(self, agenda: Agenda):
        self._agenda = agenda
        self._said = np.zeros(len(agenda.order), dtype=bool)
        self._next = 0
        ones = agenda.chances / SCALE
        self._flags = np.stack([1 - ones, ones], axis=-1)
        self._asked: list[int] = []  # topics whose length comes next

    def __call__(self, latest: int | None) -> range_code.Probabilities:
        agenda = self._agenda
        order = agenda.order
        if latest is not None:
            if self._next < len(order):
                self._said[order[self._next]] = bool(latest)
            self._next += 1
            if self._next == len(order):
                self._asked = np.flatnonzero(self._said).tolist()
        if self._next < len(order):
            topic = order[self._next]
            parent = agenda.parent[topic]
            table: range_code.Probabilities = self._flags[topic, int(parent >= 0 and self._said[parent])]
            return table
        at = self._next - len(order)
        if at < len(self._asked):
            row = agenda.lengths[self._asked[at]].astype(np.float64)
            length: range_code.Probabilities = row / row.sum()
            return length
        return EVEN


def _whole(chances: NDArray[np.float64]) -> NDArray[np.int32]:
    return (chances * SCALE).round().clip(1, SCALE - 1).astype(np.int32)


def _mutual_information(said: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns ``"topics topics"``: what one topic's being said tells of another's, in nats."""
    total = len(said) + 4 * PRIOR
    states = {True: said.astype(float), False: 1.0 - said}
    information = np.zeros((said.shape[1],) * 2)
    for one in states.values():
        for other in states.values():
            both = (one.T @ other + PRIOR) / total
            alone = np.outer((one.sum(0) + 2 * PRIOR) / total, (other.sum(0) + 2 * PRIOR) / total)
            information += both * np.log(both / alone)
    np.fill_diagonal(information, 0)
    return information


def _tree(information: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns the order and the parents of the spanning tree that holds the most information (Prim's algorithm)."""
    topics = len(information)
    parent = np.full(topics, -1, dtype=np.int32)
    order = [int(information.sum(0).argmax())]
    best, left = information[order[0]].copy(), np.ones(topics, dtype=bool)
    parent[left] = order[0]
    parent[order[0]], left[order[0]] = -1, False
    while left.any():
        following = int(np.where(left, best, -np.inf).argmax())
        left[following] = False
        order.append(following)
        nearer = left & (information[following] > best)
        best[nearer], parent[nearer] = information[following][nearer], following
    return np.array(order, dtype=np.int32), parent
