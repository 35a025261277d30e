"""A connection for a program without an event loop: the same names, called plainly.

Nothing is decided here: `Connection` and `Delivery` call the asynchronous ones by way of a `Caller`. Where the backend
is a store, their coroutines wait for nothing but the store, so they are run in place, without a loop; what needs one
goes through `ilcp.transport.portal`.
"""

import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

from ilcp.message import Blob
from ilcp.message.format import BytesLike
from ilcp.transport.backend import NOT_OURS, Backend, Settings
from ilcp.transport.blobs import BlobSource
from ilcp.transport.capabilities import Capabilities
from ilcp.transport.connection import AsyncConnection, AsyncDelivery, Receipt
from ilcp.transport.errors import AddressError

__all__ = ["Caller", "Connection", "Delivery", "connected_in_place", "in_place"]

T = TypeVar("T")


def in_place(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never suspends to its end, and returns what it returns.

    Raises:
        RuntimeError: it suspended.
    """
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("expected a coroutine that needs no event loop, got one that waits for one")


class Caller:
    """Calls coroutine functions that need no event loop. After a fork it is the parent's: connect anew."""

    def __init__(self) -> None:
        self._pid, self._open = os.getpid(), True

    @property
    def is_ours(self) -> bool:
        """Says whether this process made it, and not its parent before a fork."""
        return self._pid == os.getpid()

    def call(self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any, **more: Any) -> T:
        """Returns what ``work`` returns, or raises what it raises; an interrupt here ends it there.

        Raises:
            AddressError: the connection is closed, or another process's.
            UnreachableError: it was closed meanwhile.
        """
        self._check()
        return in_place(work(*args, **more))

    def end(self) -> None:
        """Refuses calls from now on."""
        self._open = False

    def _check(self) -> None:
        if not self._open or not self.is_ours:
            raise AddressError(NOT_OURS)


class Delivery:
    """``AsyncDelivery``, called plainly."""

    def __init__(self, caller: Caller, inner: AsyncDelivery) -> None:
        self._caller, self._inner = caller, inner
        self.message, self.handoff_id, self.attempt = inner.message, inner.handoff_id, inner.attempt

    @property
    def until_s(self) -> float:
        """When the lease ends, by the settings' clock."""
        return self._inner.until_s

    def extend(self) -> float:
        """See ``AsyncDelivery.extend``.

        Raises:
            LeaseLostError, TransportError: as there.
        """
        return self._caller.call(self._inner.extend)

    def ack(self) -> None:
        """See ``AsyncDelivery.ack``.

        Raises:
            LeaseLostError, TransportError: as there.
        """
        self._caller.call(self._inner.ack)

    def nack(self, delay_s: float = 0.0, *, unseen: bool = False) -> None:
        """See ``AsyncDelivery.nack``.

        Raises:
            LeaseLostError, AddressError, TransportError: as there.
        """
        self._caller.call(self._inner.nack, delay_s, unseen=unseen)


class Connection:
    """``AsyncConnection``, called plainly. Threads may share it; a signal handler may end its calls, but make none."""

    def __init__(self, caller: Caller, inner: AsyncConnection) -> None:
        self._caller, self._inner = caller, inner
        self.name = inner.name

    def send(self, message: BytesLike, *, to: str, handoff_id: str | None = None) -> Receipt:
        """See ``AsyncConnection.send``.

        Raises:
            EncodeError, AddressError, ConflictError, BlobError, FullError, TransportError: as there.
        """
        return self._caller.call(self._inner.send, message, to=to, handoff_id=handoff_id)

    def receive(self, timeout_s: float = 0.0) -> Delivery | None:
        """See ``AsyncConnection.receive``.

        Raises:
            AddressError, TransportError: as there.
        """
        found = self._caller.call(self._inner.receive, timeout_s)
        return None if found is None else Delivery(self._caller, found)

    def put_blob(self, data: BlobSource) -> Blob:
        """See ``AsyncConnection.put_blob``.

        Raises:
            EncodeError, BlobError, FullError, StorageError, TransportError: as there.
        """
        return self._caller.call(self._inner.put_blob, data)

    @overload
    def get_blob(self, blob: Blob, *, max_bytes: int | None = None, into: None = None) -> bytes: ...

    @overload
    def get_blob(self, blob: Blob, *, max_bytes: int | None = None, into: str | Path) -> Path: ...

    def get_blob(self, blob: Blob, *, max_bytes: int | None = None, into: str | Path | None = None) -> bytes | Path:
        """See ``AsyncConnection.get_blob``.

        Raises:
            BlobError, ConfigError, StorageError, TransportError: as there.
        """
        return self._caller.call(self._inner.get_blob, blob, max_bytes=max_bytes, into=into)

    def publish(self, capabilities: Capabilities) -> None:
        """See ``AsyncConnection.publish``.

        Raises:
            AddressError, TransportError: as there.
        """
        self._caller.call(self._inner.publish, capabilities)

    def capabilities(self, name: str) -> Capabilities:
        """See ``AsyncConnection.capabilities``.

        Raises:
            CapabilityError, DecodeError, TransportError: as there.
        """
        return self._caller.call(self._inner.capabilities, name)


@contextmanager
def connected_in_place(backend: Backend, name: str | None, settings: Settings) -> Iterator[Connection]:
    """Gives a connection over a backend that never suspends, and closes the backend.

    Raises:
        AddressError: ``name`` is none.
    """
    caller = Caller()
    try:
        yield Connection(caller, AsyncConnection(backend, name, settings))
    finally:
        if caller.is_ours:  # else what is to be closed is the parent's
            caller.end()
            in_place(backend.close())
