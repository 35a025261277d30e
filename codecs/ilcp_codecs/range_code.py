"""Symbols to bytes and back: constriction's range coder, and payloads whose own length says where the symbols end.

::

    symbols --walk: a source says what may come next--> Path --payload_of its first symbols--> payload
    payload --decided: a source says what may come next--> symbols

**The end costs no symbol.** A decoder goes on for as long as the payload decides the next symbol, whatever bits might
follow it; so the encoder takes bytes that decide the first symbols and leave open what comes next. That costs 1 bit
where the next symbol is uncertain (and where one is nearly certain, up to 12); an end symbol or a count costs 8 to 11.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf, log2
from typing import Any

import constriction  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

__all__ = ["SEARCH_BYTES", "Path", "Probabilities", "Source", "decided", "payload_of", "walk", "whole_payload"]

WORD_BYTES = 4  # constriction's words are uint32, the most significant first
PIN_SYMBOLS = 1 << 16  # the first of so many even ones, three times over, narrows an interval to its lower edge
SEARCH_BYTES = 5  # a payload may be so much longer than its symbols' code: 12 bits to leave the next open, and rounding

Probabilities = NDArray[np.float64]
Source = Callable[[int | None], Probabilities]  # given the latest symbol (None: none yet), what may come next


@dataclass(frozen=True, slots=True)
class _Step:
    """A coder's table, and its edge nearest to the middle, at which a payload leaves the symbol open."""

    table: Any
    edge: int  # the symbol above it
    open_bits: float


@dataclass(slots=True)
class Path:
    """The way along symbols: ``bits[k]`` is the code length of the first k, ``steps[k]`` codes what follows them."""

    symbols: list[int]
    bits: list[float]
    steps: list[_Step]

    @property
    def whole_bits(self) -> float:
        """The code length of all symbols, their open end included."""
        return self.bits[-1] + self.steps[-1].open_bits


def walk(symbols: Iterable[int], source: Source, budget_bits: float) -> Path:
    """Returns the path along ``symbols``, up to the first that exceeds the budget."""
    expected = source(None)
    path = Path([], [0.0], [_step(expected)])
    for symbol in symbols:
        path.symbols.append(symbol)
        path.bits.append(path.bits[-1] - log2(expected[symbol]))
        before, expected = expected, source(symbol)
        path.steps.append(path.steps[-1] if expected is before else _step(expected))
        if path.bits[-1] > budget_bits:
            break
    return path


def payload_of(path: Path, count: int, limit: int) -> bytes:
    """Returns the shortest payload that decides the first ``count`` symbols, no more; empty beyond ``limit`` bytes."""
    edge = _edge(path, count)
    shortest = max(1, int(path.bits[count] / 8))
    for size in range(shortest, min(limit, shortest + SEARCH_BYTES) + 1):
        payload = edge[:size].ljust(size, b"\0")  # zeros are what is left out where the edge has fewer bytes
        if _decides(payload, path, count):
            return payload
    return b""


def whole_payload(path: Path) -> bytes:
    """Returns the shortest payload that decides all symbols, and perhaps some behind them.

    Any prefix of it decides the first of them, and nothing else: what it leaves open may still become the whole.
    """
    payload = _edge(path, len(path.symbols))
    shortest = max(1, int(path.bits[-1] / 8))
    for size in range(shortest, shortest + SEARCH_BYTES):
        if _begins(_Decoder(payload[:size].ljust(size, b"\0")), path, len(path.symbols)):
            return payload[:size].ljust(size, b"\0")
    return payload


def decided(payload: bytes, source: Source, most: float = inf) -> list[int]:
    """Returns the symbols that a payload decides; one over ``most`` where it decides more."""
    decoder = _Decoder(payload)
    symbols: list[int] = []
    symbol = decoder.next(_table(source(None)))
    while symbol is not None and len(symbols) <= most:
        symbols.append(symbol)
        symbol = decoder.next(_table(source(symbol)))
    return symbols


class _Decoder:
    """Reads symbols for as long as they are the same whether zeros or ones follow the payload."""

    def __init__(self, payload: bytes):
        words = -(-len(payload) // WORD_BYTES) + 2  # the coder looks two words ahead
        self._ends = [
            constriction.stream.queue.RangeDecoder(
                np.frombuffer(payload.ljust(words * WORD_BYTES, fill), dtype=">u4").astype(np.uint32)
            )
            for fill in (b"\x00", b"\xff")
        ]

    def next(self, table: Any) -> int | None:
        """Returns the next symbol; None where the payload does not decide it, for good."""
        try:
            lowest, highest = (end.decode(table) for end in self._ends)
        except AssertionError:  # constriction's answer to bits that no encoder writes
            return None
        return int(lowest) if lowest == highest else None


def _edge(path: Path, count: int) -> bytes:
    """Returns the code of the edge at which what follows the first ``count`` symbols is open."""
    encoder = constriction.stream.queue.RangeEncoder()
    for symbol, step in zip(path.symbols[:count], path.steps, strict=False):
        encoder.encode(symbol, step.table)
    encoder.encode(path.steps[count].edge, path.steps[count].table)
    encoder.encode(np.zeros(3, dtype=np.int32), constriction.stream.model.Uniform(PIN_SYMBOLS))
    edge: bytes = encoder.get_compressed().astype(">u4").tobytes()
    return edge


def _begins(decoder: "_Decoder", path: Path, count: int) -> bool:
    steps = zip(path.symbols[:count], path.steps, strict=False)
    return all(symbol == decoder.next(step.table) for symbol, step in steps)


def _decides(payload: bytes, path: Path, count: int) -> bool:
    decoder = _Decoder(payload)
    return _begins(decoder, path, count) and decoder.next(path.steps[count].table) is None


def _step(probabilities: Probabilities) -> _Step:
    edges = np.cumsum(probabilities)[:-1]
    nearest = int(np.abs(edges - 0.5).argmin())
    room = min(edges[nearest], 1 - edges[nearest])
    return _Step(_table(probabilities), nearest + 1, -log2(room))


def _table(probabilities: Probabilities) -> Any:
    return constriction.stream.model.Categorical(probabilities, perfect=False)
