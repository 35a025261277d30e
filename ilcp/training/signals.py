"""Ctrl-C and SIGTERM that wait for the end of a step."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["deferred_signals"]

TWICE_S = 2.0  # a signal that comes by two ways within this time was meant once


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Lets Ctrl-C and SIGTERM wait for the end of the step, so that a checkpoint never holds half of one."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may handle signals
        return
    seen: list[float] = []

    def hear(number: int, _: Any) -> None:
        if seen and time.monotonic() - seen[0] > TWICE_S:
            raise KeyboardInterrupt  # said again: at once
        seen.append(time.monotonic())

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
