"""The server behind ``ilcp serve``: uvicorn, and an ingress in front of a spool, until SIGINT or SIGTERM."""

import asyncio
import signal
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from ilcp.transport import connect_async
from ilcp.transport.app import ingress
from ilcp.transport.backend import Settings
from ilcp.transport.door import BACKLOG, Door, listening
from ilcp.transport.errors import AddressError
from ilcp.transport.telemetry import spared

__all__ = ["configured", "ended_after_closing", "require_both", "serve"]

GOODBYE_S = 5  # who has not sent the rest of a message by then sends it again
STRANGERS_LOGS = ("asyncio", "uvicorn.error")  # whose lines whoever connects can bring out


def serve(
    folder: Path,
    name: str,
    *,
    token: str,
    host: str = "127.0.0.1",
    port: int = 0,
    hosts: Sequence[str] = (),
    certificate: Path | None = None,
    key: Path | None = None,
    settings: Settings | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves until it is told to stop; ``ready`` gets the address once requests are taken (port 0 picks a free one).

    Raises:
        AddressError: a name or token that ``ingress`` refuses, or a certificate that cannot be loaded or has no key.
        UnreachableError: the port is taken, or the spool cannot be opened.
        CorruptError: the folder holds no spool, or a damaged one.
    """
    require_both(certificate, key)

    async def work() -> None:
        url = folder.resolve().as_uri().replace("file:", "spool:", 1)
        async with connect_async(url, settings=settings) as connection:
            config = configured(ingress(connection, name, token=token, hosts=(*hosts, host)), certificate, key)
            with listening(host, port) as door:
                scheme = "http" if certificate is None else "https"
                where = f"[{host}]" if ":" in host else host
                ready(f"{scheme}://{where}:{door.getsockname()[1]}")
                await uvicorn.Server(config).serve(sockets=[door])

    spared(*STRANGERS_LOGS)
    with ended_after_closing():
        asyncio.run(work())


def require_both(certificate: Path | None, key: Path | None) -> None:
    """Refuses a certificate without its key, and a key without one.

    Raises:
        AddressError: with both.
    """
    if (certificate is None) != (key is None):
        raise AddressError(f"expected a certificate and its key, or neither, got {certificate} and {key}")


def configured(
    app: Any, certificate: Path | None = None, key: Path | None = None, *, door: type[Door] = Door
) -> uvicorn.Config:
    """Configures uvicorn for strangers.

    Raises:
        AddressError: the certificate cannot be loaded.
    """
    config = uvicorn.Config(
        app,
        http=door,
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whoever sends X-Forwarded-For could be anybody
        lifespan="off",
        ws="none",
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=GOODBYE_S,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise AddressError(
            f"expected a certificate and its key in PEM, got {certificate} and {key}: {error}"
        ) from error
    return config


@contextmanager
def ended_after_closing() -> Iterator[None]:
    """Makes SIGTERM an exception until all is closed: uvicorn would end the process before that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended: list[int] = []

    def end(number: int, _: object) -> None:
        ended.append(number)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if ended:
            signal.raise_signal(signal.SIGTERM)
