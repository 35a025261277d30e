"""Limits of what reading an input may cost: 1 ms per kB, and memory in proportion to the input.

Every call is timed. Its memory is watched for the first inputs of a process (a corpus, or a finding that is repeated)
and for one in ``SAMPLE`` after them, because tracemalloc makes a call some ten times slower. Memory that is not
Python's (torch, zstd, SQLite) is libFuzzer's to watch: its limit for the process is in ``fuzz/run.py``.
"""

import contextlib
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

__all__ = ["Limits"]

T = TypeVar("T")

FIRST, SAMPLE = 250, 1000
TRIES = 10  # what is slow or large once may be the collector's or the machine's; what is so ten times is the input's


@dataclass(frozen=True, slots=True)
class Limits:
    """Time is 1 ms per kB and ``floor_ms`` over; memory is ``factor`` times the input and ``more_bytes`` over."""

    factor: int
    more_bytes: int
    floor_ms: float = 1.0
    calls: Iterator[int] = field(default_factory=count)

    def of(self, data: bytes, call: Callable[..., T], *args: Any, **more: Any) -> T:
        """Returns or raises what the call does, which may be made again; its cost is measured by ``data``."""
        start_s = time.thread_time()
        try:
            return call(*args, **more)
        finally:
            if time.thread_time() - start_s > self._time_s(data):
                spent_s = min(_seconds(call, *args, **more) for _ in range(TRIES))
                assert spent_s <= self._time_s(data), f"{spent_s * 1e3:.2f} ms for {len(data)} bytes"
            call_number = next(self.calls)
            if call_number < FIRST or call_number % SAMPLE == 0:
                self.check_memory(data, call, *args, **more)

    def check_memory(self, data: bytes, call: Callable[..., Any], *args: Any, **more: Any) -> None:
        """Fails where the call takes more memory than it may."""
        allowed, peak = self.factor * len(data) + self.more_bytes, 0
        for _ in range(TRIES):
            peak = _peak_bytes(call, *args, **more)
            if peak <= allowed:
                return
        raise AssertionError(f"{peak} bytes of memory for {len(data)} bytes, {allowed} are allowed")

    def _time_s(self, data: bytes) -> float:
        return 1e-6 * len(data) + 1e-3 * self.floor_ms


def _seconds(call: Callable[..., Any], *args: Any, **more: Any) -> float:
    start_s = time.thread_time()
    _quietly(call, *args, **more)
    return time.thread_time() - start_s


def _peak_bytes(call: Callable[..., Any], *args: Any, **more: Any) -> int:
    tracemalloc.start()
    try:
        _quietly(call, *args, **more)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _quietly(call: Callable[..., Any], *args: Any, **more: Any) -> None:
    with contextlib.suppress(Exception):  # the first call has told it
        call(*args, **more)
