"""What keeps the calls of one model apart, in several threads and whatever mode somebody left it in.

``evaluating`` counts who wants evaluation mode, module by module: a call that ends gives no mode back that another,
running at the same time, still needs. ``lock_of`` is one lock per module, whoever asks for it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock, RLock
from typing import Any, Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

__all__ = ["evaluating", "inference", "lock_of"]

P = ParamSpec("P")
R = TypeVar("R")


class _Shared:
    """What the threads of one process share."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
        self.turned: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # from training mode, for so many calls


_BY_PROCESS: Final[dict[int, _Shared]] = {}  # a fork copies locks that threads of its parent hold


def _shared() -> _Shared:
    process = os.getpid()
    return _BY_PROCESS.get(process) or _BY_PROCESS.setdefault(process, _Shared())


def lock_of(module: nn.Module) -> Any:
    """Returns the lock, which one thread may take several times, of a module."""
    shared = _shared()
    with shared.lock:
        return shared.locks.setdefault(module, RLock())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module and all in it into evaluation mode for the length of the ``with``, then each back in its own."""
    shared = _shared()
    with shared.lock:
        turned = [part for part in module.modules() if part.training or part in shared.turned]
        for part in turned:
            shared.turned[part] = shared.turned.get(part, 0) + 1
            part.training = False
    try:
        yield
    finally:
        with shared.lock:
            for part in turned:
                shared.turned[part] -= 1
                if not shared.turned[part]:
                    del shared.turned[part]
                    part.training = True


def inference(module_of: Callable[[Any], nn.Module]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a call one of inference: without gradients, its module in evaluation mode.

    Args:
        module_of: finds the module in the call's first argument.
    """

    def of(call: Callable[P, R]) -> Callable[P, R]:
        @wraps(call)
        def run(*args: P.args, **options: P.kwargs) -> R:
            with torch.no_grad(), evaluating(module_of(args[0])):
                return call(*args, **options)

        return run

    return of
