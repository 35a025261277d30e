"""The time of a step by part: the sender, the receiver, and the codec between them."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Clock"]

EVERY = 10  # steps between two that are timed on a GPU: to time one, it has to be waited for


class Clock:
    """Seconds by part. The backward pass is the receiver's until it reaches the memory, and the codec's from there."""

    def __init__(self, device: torch.device | None = None):
        self.seconds: dict[str, float] = defaultdict(float)
        self._cuda = device is not None and device.type == "cuda"
        self._on = True
        self._reached = 0.0

    def starts(self, step: int) -> None:
        """Begins a step."""
        self._on = not self._cuda or step % EVERY == 0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Counts what is done inside for ``part``."""
        started = self._now()
        yield
        self.seconds[part] += self._now() - started

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Counts a backward pass inside for the receiver and the codec."""
        started = self._reached = self._now()
        yield
        self.seconds["receiver"] += self._reached - started
        self.seconds["codec"] += self._now() - self._reached

    def backward_reaches(self, memory: Iterable[Tensor]) -> None:
        """Ends the receiver's share of the backward pass where that reaches the last of these tensors."""
        for tensor in (memory,) if isinstance(memory, Tensor) else memory:
            if tensor.requires_grad:
                tensor.register_hook(self._mark)

    def shares(self) -> dict[str, float]:
        """Returns each part's share of the time that was counted."""
        total = sum(self.seconds.values())
        return {part: seconds / total for part, seconds in self.seconds.items()} if total else {}

    def _mark(self, _: Tensor) -> None:
        self._reached = self._now()

    def _now(self) -> float:
        if not self._on:
            return 0.0
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
