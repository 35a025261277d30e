"""Ways for a message from one agent's process to the next: in memory, a spool on one host, HTTP into one, NATS.

>>> with connect("memory://manual", name="planner") as c:
...     receipt = c.send(b"a message", to="planner", handoff_id="case-17")
...     again = c.send(b"a message", to="planner", handoff_id="case-17")  # as after a doubtful error: kept once
...     delivery = c.receive(timeout_s=2)
...     delivery.message, delivery.attempt, again.duplicate
...     delivery.ack()
...     c.receive() is None
(b'a message', 1, True)
True

``connect_async`` gives the same with ``async with`` and ``await``. Addresses:

    memory://name             one process (tests)
    spool:///folder           several processes on one host, durable, no server
    http://host:port, https   sends to a receiver elsewhere, which runs ``ilcp serve`` in front of its spool, or mounts
                              ``ilcp.transport.ingress``                              pip install 'ilcp[http]'
    nats://host:port, tls     fleets, over NATS JetStream                             pip install 'ilcp[nats]'

**At least once.** A message that was sent is handed out until somebody acknowledges it. Who receives it holds it for
``lease_s``, and as long again with each ``delivery.extend()``; a receiver that dies, gives it back or takes longer
loses it to the next. The **hand-off id** is the idempotency key: a name keeps a message once per id, and what was
acknowledged is not handed out again, also when it is sent again within ``dedup_s``. Other content under a known id is
a ``ConflictError``. A sealed message shows its id; a bare one has the ``handoff_id`` that its sender gives, or a fresh
one per send.

**Not for ever.** What was handed out ``max_deliveries`` times and never acknowledged goes to the name's dead letters: a
connection named ``planner-dead`` receives those of ``planner``. What nobody takes within ``max_age_s`` is dropped.

**Order** is that of sending, per name, until something is handed out again: a receiver gets the oldest message that is
free (NATS: what is handed out again comes when it comes).

**Not here**: what a message means. Whoever may write to a transport can steer its receivers: seal the messages.

``import ilcp.transport`` loads no torch, and a transport's library only once its scheme is used.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ilcp.errors import MissingExtraError
from ilcp.transport.backend import MEDIA_TYPE, SENDS_ONLY, Backend, Settings
from ilcp.transport.capabilities import Capabilities, Choice, choose
from ilcp.transport.connection import AsyncConnection, AsyncDelivery, Receipt
from ilcp.transport.errors import (
    AddressError,
    BlobError,
    CapabilityError,
    ConflictError,
    CorruptError,
    DiskFullError,
    FullError,
    LeaseLostError,
    NotWritableError,
    ProtocolError,
    RefusedError,
    UnreachableError,
)
from ilcp.transport.sync import Connection, Delivery, connected_in_place

__all__ = [
    "MEDIA_TYPE",
    "AddressError",
    "AsyncConnection",
    "AsyncDelivery",
    "Backend",
    "BlobError",
    "Capabilities",
    "CapabilityError",
    "Choice",
    "ConflictError",
    "Connection",
    "CorruptError",
    "Delivery",
    "DiskFullError",
    "FullError",
    "LeaseLostError",
    "NotWritableError",
    "ProtocolError",
    "Receipt",
    "RefusedError",
    "Settings",
    "UnreachableError",
    "choose",
    "connect",
    "connect_async",
    "ingress",
]


_IN_PLACE = {"memory": "memory_backend", "spool": "spool_backend"}  # what opens a store for calls in place
_SCHEMES = {  # the module, the function that opens it for an event loop, and the extra that brings its library
    "memory": ("ilcp.transport.spool", "open_memory", None),
    "spool": ("ilcp.transport.spool", "open_spool", None),
    "http": ("ilcp.transport.http", "open_http", "http"),
    "https": ("ilcp.transport.http", "open_http", "http"),
    "nats": ("ilcp.transport.nats", "open_nats", "nats"),
    "tls": ("ilcp.transport.nats", "open_nats", "nats"),
}


def __getattr__(name: str) -> Any:
    """Loads what needs a server's libraries.

    Raises:
        MissingExtraError: they are not installed.
    """
    if name != "ingress":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module("ilcp.transport.app").ingress
    except ModuleNotFoundError as error:
        raise MissingExtraError.of(str(error.name), "for an ingress", "http") from error


@contextmanager
def connect(url: str, *, name: str | None = None, settings: Settings | None = None) -> Iterator[Connection]:
    """Opens a connection to ``url`` for the length of a ``with``; ``name`` is whose messages ``receive`` gives.

    Raises:
        AddressError: an unknown scheme, an address or a setting that it does not take; a name with http.
        MissingExtraError: the scheme's library is not installed.
        UnreachableError, RefusedError, CorruptError: nobody there, no entry, or no spool.
    """
    settings = settings or Settings()
    parts = _parts(url, name)
    if parts.scheme in _IN_PLACE:
        backend = getattr(import_module("ilcp.transport.spool"), _IN_PLACE[parts.scheme])(parts, settings)
        held = connected_in_place(backend, name, settings)
    else:
        held = _loaded("ilcp.transport.portal", parts).connected_by_portal(
            connect_async(url, name=name, settings=settings)
        )
    with held as connection:
        yield connection


@asynccontextmanager
async def connect_async(
    url: str, *, name: str | None = None, settings: Settings | None = None
) -> AsyncIterator[AsyncConnection]:
    """Opens the same for ``async with``.

    Raises:
        AddressError, MissingExtraError, UnreachableError, RefusedError, CorruptError: as ``connect``.
    """
    settings = settings or Settings()
    parts = _parts(url, name)
    backend: Backend = await _opener(parts)(parts, settings)
    pid = os.getpid()
    try:
        yield AsyncConnection(backend, name, settings)
    finally:
        if pid == os.getpid():  # else what is to be closed is the parent's
            await backend.close()


def _parts(url: object, name: str | None) -> SplitResult:
    """Reads an address, which has a known scheme and no credentials, and gives messages where there is a ``name``."""
    if not isinstance(url, str) or not url.isprintable() or "?" in url or "#" in url:
        raise AddressError("expected an address of printable characters, without ? and # (%3F and %23), got another")
    try:
        parts = urlsplit(url)
        _ = parts.port  # what is no number raises
    except ValueError as error:
        raise AddressError(f"expected an address such as spool:///folder, got one that is none: {error}") from error
    if "@" in parts.netloc:
        raise AddressError("expected an address without credentials, got some in it: give them in Settings")
    if parts.scheme not in _SCHEMES:
        raise AddressError(f"expected a scheme of {', '.join(_SCHEMES)}, got {parts.scheme!r} in {url!r}")
    if name is not None and parts.scheme in ("http", "https"):
        raise AddressError(SENDS_ONLY)
    return parts


def _opener(parts: SplitResult) -> Any:
    """Finds the function that opens an address of this scheme."""
    module, function, _ = _SCHEMES[parts.scheme]
    return getattr(_loaded(module, parts), function)


def _loaded(module: str, parts: SplitResult) -> Any:
    """Imports a module of ours that needs the scheme's library."""
    extra = _SCHEMES[parts.scheme][2]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("ilcp."):
            raise
        raise MissingExtraError.of(str(error.name), f"for {parts.scheme}://", extra) from error
