"""``spool:///folder``: several processes on one host, no server. ``memory://name``: the same inside one process.

A spool is a folder with one SQLite file; any number of processes may open it. ``memory://name`` is one store for all
who are connected to that name at a time, and ends with the last of them.
"""

import asyncio
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, unquote

from ilcp.transport.errors import AddressError, LeaseLostError, UnreachableError
from ilcp.transport.link import Lease, Settings
from ilcp.transport.store import Store

__all__ = ["StoreLink", "open_memory", "open_spool", "spool_file"]

T = TypeVar("T")

FILE = "handoffs.sqlite"
# A receiver that waits looks again after 1 ms, then less and less often, at last every 30 ms: 64 waiting receivers then
# take a tenth of a core.
POLL_S, POLL_GROWTH, POLL_MOST_S = 0.001, 1.5, 0.03

# What a name in memory:// means is the process's, as a file's path is the host's. Nothing is kept alive here.
_STORES: Final[weakref.WeakValueDictionary[str, Store]] = weakref.WeakValueDictionary()


class StoreLink:
    """A ``Link`` onto a store, whose calls run one after the other in a thread of their own."""

    def __init__(self, store: Store, *, shared: bool = False) -> None:
        self._store, self._shared = store, shared
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ilcp-store")

    async def put(self, name: str, handoff_id: str, message: bytes) -> bool:
        """See ``Link``."""
        return await self._call(self._store.put, name, handoff_id, message)

    async def take(self, name: str, lease_s: float, wait_s: float) -> Lease | None:
        """See ``Link``. A call that is cancelled gives back what it has taken."""
        end, pause = time.monotonic() + wait_s, POLL_S
        while True:
            taking = self._pool.submit(self._store.take, name, lease_s)
            try:
                lease = await asyncio.wrap_future(taking)
            except asyncio.CancelledError:
                if not taking.cancelled():
                    self._pool.submit(self._give_back, name, taking)
                raise
            left = end - time.monotonic()
            if lease is not None or left <= 0:
                return lease
            await asyncio.sleep(min(pause, left))
            pause = min(pause * POLL_GROWTH, POLL_MOST_S)

    async def settle(self, name: str, lease: Lease, *, retry_in_s: float | None) -> None:
        """See ``Link``."""
        await self._call(self._store.settle, name, lease.token, retry_in_s)

    async def publish(self, name: str, body: bytes) -> None:
        """See ``Link``."""
        await self._call(self._store.publish, name, body)

    async def lookup(self, name: str) -> bytes | None:
        """See ``Link``."""
        return await self._call(self._store.lookup, name)

    async def waiting(self) -> tuple[int, int]:
        """How many messages the store holds, and the bytes that count for them."""
        return await self._call(self._store.waiting)

    async def close(self) -> None:
        """See ``Link``."""
        if not self._shared:
            self._pool.submit(self._store.close)
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    async def _call(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def _give_back(self, name: str, taking: Future[Lease | None]) -> None:
        lease = taking.result()
        if lease is not None:
            with suppress(LeaseLostError):  # it ran out by itself
                self._store.settle(name, lease.token, 0.0)


def spool_file(folder: Path) -> Path:
    """The file of the spool in ``folder``, which is made if need be.

    Raises:
        UnreachableError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UnreachableError(f"expected a folder that can be made, got {folder}: {error.strerror}") from error
    return folder / FILE


async def open_spool(url: SplitResult, settings: Settings) -> StoreLink:
    """The spool in the folder that the URL's path names.

    Raises:
        AddressError: the URL names a host, or no folder.
        CorruptError, UnreachableError: see ``Store``.
    """
    settings.only("spool", "dedup_s", "max_bytes", "power_safe")
    if url.netloc or not url.path.strip("/") or url.query:
        raise AddressError(f"expected spool:///folder, with an absolute path, got {url.geturl()!r}")
    file = spool_file(Path(unquote(url.path)))
    return StoreLink(await asyncio.get_running_loop().run_in_executor(None, _store, str(file), settings))


async def open_memory(url: SplitResult, settings: Settings) -> StoreLink:
    """The store that this process knows by the URL's name.

    Raises:
        AddressError: the URL has more than a name.
    """
    settings.only("memory", "dedup_s", "max_bytes")
    if url.path or url.query:
        raise AddressError(f"expected memory://name, got {url.geturl()!r}")
    store = _STORES.get(url.netloc)
    if store is None:
        store = _STORES[url.netloc] = _store(":memory:", settings)
    return StoreLink(store, shared=True)


def _store(path: str, settings: Settings) -> Store:
    return Store(
        path,
        clock=settings.clock,
        dedup_s=settings.dedup_s,
        max_bytes=settings.max_bytes,
        power_safe=settings.power_safe,
    )
