"""``spool:///folder``: several processes on one host, no server. ``memory://name``: the same inside one process.

A spool is a folder with one SQLite file; any number of processes may open it. ``memory://name`` is one store for all
who are connected to that name at a time, and ends when the last of them closes.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import SplitResult, unquote

from ilcp.message import Blob
from ilcp.transport.backend import CLOSED_MEANWHILE, Lease, Settings
from ilcp.transport.blobs import BeingPutError, Part, Source, chunks_of
from ilcp.transport.errors import AddressError, BlobError, LeaseLostError, NotWritableError, UnreachableError
from ilcp.transport.store import Store

__all__ = [
    "StoreBackend",
    "ThreadedStoreBackend",
    "memory_backend",
    "open_memory",
    "open_spool",
    "spool_backend",
    "spool_file",
]

T = TypeVar("T")

FILE = "handoffs.sqlite"
OF_A_STORE = (
    "dedup_s",
    "max_bytes",
    "max_name_bytes",
    "max_blob_bytes",
    "max_blobs_bytes",
    "max_age_s",
    "max_deliveries",
)
# A receiver that waits looks again after 1 ms, then less and less often, at last every 30 ms: 64 waiting receivers then
# take a tenth of a core.
POLL_S, POLL_GROWTH, POLL_MOST_S = 0.001, 1.5, 0.03


class _Shared(NamedTuple):
    """A store that has a name, what it was made with, and how many are connected to it."""

    store: Store
    made_with: tuple[float, ...]
    users: int


# What a name in memory:// means is the process's, as a file's path is the host's.
_STORES: Final[dict[str, _Shared]] = {}
_STORES_LOCK: Final = threading.Lock()


class StoreBackend:
    """A ``Backend`` onto a store, called in place: nothing suspends, so that no event loop is needed."""

    def __init__(self, store: Store, *, end: Callable[[], None] | None = None) -> None:
        self._store, self._end = store, end or store.close
        self._closed = threading.Event()

    async def put(self, name: str, handoff_id: str, message: bytes) -> bool:
        """See ``Backend``."""
        return await self._call(self._store.put, name, handoff_id, message)

    async def take(self, name: str, lease_s: float, wait_s: float) -> Lease | None:
        """See ``Backend``. An interrupt in the store gives back what was taken; a later one does not."""
        end, pause = time.monotonic() + wait_s, POLL_S
        while True:
            lease = await self._take_now(name, lease_s)
            left = end - time.monotonic()
            if lease is not None or left <= 0:
                return lease
            await self._pause(min(pause, left))
            pause = min(pause * POLL_GROWTH, POLL_MOST_S)

    async def extend(self, name: str, lease: Lease, lease_s: float) -> float:
        """See ``Backend``."""
        return await self._call(self._store.extend, name, lease.token, lease_s)

    async def settle(self, name: str, lease: Lease, *, retry_in_s: float | None, unseen: bool = False) -> None:
        """See ``Backend``."""
        await self._call(self._store.settle, name, lease.token, retry_in_s, unseen)

    async def publish(self, name: str, body: bytes) -> None:
        """See ``Backend``."""
        await self._call(self._store.publish, name, body)

    async def lookup(self, name: str) -> bytes | None:
        """See ``Backend``."""
        return await self._call(self._store.lookup, name)

    async def put_blob(self, source: Source) -> Blob:
        """See ``Backend``. It waits while another one puts the same."""
        blob = await self._long(source.named)
        part = await self._part_in_turn(blob)
        if part is not None and part.offset:  # an earlier try's, which may have been altered since: then from zero
            with suppress(BlobError):
                await self._write_blob(source, part)
                return blob
            part = await self._part_in_turn(blob)
        if part is not None:
            await self._write_blob(source, part)
        return blob

    async def _part_in_turn(self, blob: Blob) -> Part | None:
        part = await self.blob_part(blob)
        while part is not None and isinstance(part, BeingPutError):
            await self._pause(POLL_MOST_S)
            part = await self.blob_part(blob)
        return part

    async def _write_blob(self, source: Source, part: Part) -> None:
        try:
            async with self.keeping(part):
                chunks = source.chunks(part.offset)
                while chunk := await self._long(next, chunks, b""):
                    await self._long(part.write, chunk)
        finally:
            part.close()

    async def blob_part(self, blob: Blob) -> Part | BeingPutError | None:
        """Begins a blob that is put, or goes on with it; None: it is there. The error: another one puts it."""
        try:
            return await self._long(self._store.blob_part, blob)
        except BeingPutError as error:
            return error

    @asynccontextmanager
    async def keeping(self, part: Part) -> AsyncIterator[None]:
        """Keeps the blob that is written inside; of what is another one nothing stays, and no room."""
        try:
            yield
            await self._long(self._store.blobs.keep, part)
        except BlobError:
            await self._long(self._store.drop_blob, part)
            raise

    async def blob_offset(self, digest: bytes) -> int:
        """Returns how many bytes of a blob there are: all, where it is there."""
        return await self._long(self._store.blob_offset, digest)

    async def get_blob(self, blob: Blob, into: Part) -> None:
        """See ``Backend``. What has its size and is not the blob is removed, so that a new put mends it.

        What has another size stays: it may be the blob, and the size in the caller's name for it wrong.
        """
        file = await self._long(self._store.blobs.opened, blob)
        try:
            chunks = chunks_of(file)
            while chunk := await self._long(next, chunks, b""):
                await self._long(into.write, chunk)
            into.end()
        except BlobError:
            await self._long(self._store.blobs.remove, blob.digest)
            raise
        finally:
            file.close()

    async def waiting(self, name: str) -> tuple[int, int]:
        """Counts the messages that the store holds for a name, and the bytes that they take."""
        return await self._call(self._store.waiting, name)

    async def close(self) -> None:
        """See ``Backend``."""
        if not self._closed.is_set():
            self._closed.set()
            self._end()

    async def _call(self, work: Callable[..., T], *args: Any) -> T:
        self._check_open()
        return work(*args)

    async def _long(self, work: Callable[..., T], *args: Any) -> T:
        """Does what takes long; other calls need not wait for it."""
        return await self._call(work, *args)

    async def _take_now(self, name: str, lease_s: float) -> Lease | None:
        return await self._call(self._store.take, name, lease_s)

    async def _pause(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise UnreachableError(CLOSED_MEANWHILE)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise UnreachableError("expected an open connection, got one that is closed: connect again")


class ThreadedStoreBackend(StoreBackend):
    """The same for an event loop, which goes on meanwhile: calls run one after the other in a thread of their own."""

    def __init__(self, store: Store, *, end: Callable[[], None] | None = None) -> None:
        super().__init__(store, end=end)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ilcp-store")

    async def close(self) -> None:
        """See ``Backend``."""
        if not self._closed.is_set():
            self._closed.set()
            self._pool.submit(self._end)
            await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    async def _call(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.wrap_future(self._submit(work, *args))

    async def _long(self, work: Callable[..., T], *args: Any) -> T:
        self._check_open()
        return await asyncio.to_thread(work, *args)

    async def _take_now(self, name: str, lease_s: float) -> Lease | None:
        taking = self._submit(self._store.take, name, lease_s)
        try:
            return await asyncio.wrap_future(taking)
        except asyncio.CancelledError:
            if not taking.cancelled():
                with suppress(UnreachableError):  # closed meanwhile: the lease runs out by itself
                    self._submit(self._give_back, name, taking)
            raise

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        self._check_open()
        return self._pool.submit(work, *args)

    def _give_back(self, name: str, taking: Future[Lease | None]) -> None:
        lease = taking.result()
        if lease is not None:
            with suppress(LeaseLostError):  # it ran out by itself
                self._store.settle(name, lease.token, 0.0, unseen=True)


def spool_file(folder: Path) -> Path:
    """Names the file of the spool in ``folder``, which is made if need be.

    Raises:
        NotWritableError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise NotWritableError(f"expected a folder that can be made, got {folder}: {error.strerror}") from error
    return folder / FILE


def spool_backend(url: SplitResult, settings: Settings) -> StoreBackend:
    """Opens the spool in the folder that the URL's path names, for calls in place.

    Raises:
        AddressError: the URL names a host, or no folder.
        CorruptError, UnreachableError: see ``Store``.
    """
    return StoreBackend(_spool(url, settings))


async def open_spool(url: SplitResult, settings: Settings) -> ThreadedStoreBackend:
    """Opens the same for an event loop.

    Raises:
        AddressError, CorruptError, UnreachableError: as ``spool_backend``.
    """
    return ThreadedStoreBackend(await asyncio.to_thread(_spool, url, settings))


def memory_backend(url: SplitResult, settings: Settings) -> StoreBackend:
    """Opens the store that this process knows by the URL's name, for calls in place.

    Raises:
        AddressError: the URL has more than a name, or others are connected to that name with other settings.
    """
    return StoreBackend(_join(url, settings), end=partial(_leave, url.netloc))


async def open_memory(url: SplitResult, settings: Settings) -> ThreadedStoreBackend:
    """Opens the same for an event loop.

    Raises:
        AddressError: as ``memory_backend``.
    """
    return ThreadedStoreBackend(_join(url, settings), end=partial(_leave, url.netloc))


def _spool(url: SplitResult, settings: Settings) -> Store:
    settings.only("spool", *OF_A_STORE, "power_safe")
    if url.netloc or not url.path.strip("/"):
        raise AddressError(f"expected spool:///folder, with an absolute path, got {url.geturl()!r}")
    try:
        file = spool_file(Path(unquote(url.path, errors="strict")))
    except ValueError as error:  # a NUL, or no UTF-8
        raise AddressError(f"expected spool:///folder, got {url.geturl()!r}, which names none: {error}") from error
    return Store(str(file), settings)


def _join(url: SplitResult, settings: Settings) -> Store:
    """Finds or makes the store of a name in memory, for one user more."""
    settings.only("memory", *OF_A_STORE)
    if url.path:
        raise AddressError(f"expected memory://name, got {url.geturl()!r}")
    name, wanted = url.netloc, tuple(getattr(settings, each) for each in OF_A_STORE)
    with _STORES_LOCK:
        shared = _STORES.get(name) or _Shared(Store(":memory:", settings), wanted, 0)
        if shared.made_with != wanted:
            got = f"expected {', '.join(OF_A_STORE)} {shared.made_with}, with which memory://{name} was made"
            raise AddressError(f"{got}, got {wanted}")
        _STORES[name] = shared._replace(users=shared.users + 1)
    return shared.store


def _leave(name: str) -> None:
    """Takes one user off the name; with the last of them the store goes."""
    with _STORES_LOCK:
        shared = _STORES.pop(name)
        if shared.users > 1:
            _STORES[name] = shared._replace(users=shared.users - 1)
        else:
            shared.store.close()
