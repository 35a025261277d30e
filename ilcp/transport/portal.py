"""Calls of a program without an event loop, on a loop that anyio runs in a thread of its own."""

import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from anyio.abc import TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ilcp.transport.backend import CLOSED_MEANWHILE
from ilcp.transport.connection import AsyncConnection
from ilcp.transport.errors import UnreachableError
from ilcp.transport.sync import Caller, Connection

__all__ = ["PortalCaller", "connected_by_portal"]

T = TypeVar("T")


class PortalCaller(Caller):
    """A ``Caller`` whose coroutines run in the portal's loop."""

    def __init__(self, portal: BlockingPortal) -> None:
        super().__init__()
        self._portal, self._lock = portal, threading.Lock()

    def call(self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any, **more: Any) -> T:
        """See ``Caller.call``.

        Raises:
            AddressError, UnreachableError: as there.
        """
        self._check()  # before the lock too: after a fork it may be held for ever
        with self._lock:
            self._check()
            future: Future[T] = self._portal.start_task_soon(partial(work, *args, **more))
        try:
            return future.result()
        except CancelledError as error:
            raise UnreachableError(CLOSED_MEANWHILE) from error
        finally:
            future.cancel()

    def end(self) -> None:
        """Refuses calls from now on, and cancels those that are under way."""
        with self._lock:
            super().end()
        self._portal.call(self._portal.stop, True)


@contextmanager
def connected_by_portal(opening: AbstractAsyncContextManager[AsyncConnection]) -> Iterator[Connection]:
    """Gives a connection onto the one that ``opening`` opens, in a loop that lives as long.

    Its calls have a portal of their own inside the loop's, so that they have all ended when ``opening`` is left.

    Raises:
        TransportError, MissingExtraError: what ``opening`` raises.
    """

    async def hold(*, task_status: TaskStatus[tuple[AsyncConnection, BlockingPortal]]) -> None:
        async with opening as inner, BlockingPortal() as calls:
            task_status.started((inner, calls))
            await calls.sleep_until_stopped()

    with start_blocking_portal() as portal:
        ended, (inner, calls) = portal.start_task(hold)
        caller = PortalCaller(calls)
        try:
            yield Connection(caller, inner)
        finally:
            if caller.is_ours:
                caller.end()
                ended.result()
            else:  # the loop's thread is the parent's: to wait for it would take for ever
                with suppress(StopIteration):
                    portal.stop().send(None)
