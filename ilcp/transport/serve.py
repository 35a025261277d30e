"""The server behind ``ilcp serve``: uvicorn, with the endpoint in front of a spool, until SIGINT or SIGTERM.

uvicorn waits for the rest of a request's head without end: where strangers can reach it, put a proxy in front of it.
"""

import asyncio
import ipaddress
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from ilcp.transport.app import endpoint
from ilcp.transport.backend import Settings
from ilcp.transport.errors import AddressError, UnreachableError
from ilcp.transport.spool import StoreBackend, open_spool

__all__ = ["serve"]

GOODBYE_S = 5  # waiting receivers are cut off after it; their messages were not handed out


def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    settings: Settings | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves until it is told to stop; ``ready`` gets the address once requests are taken (port 0 picks a free one).

    Raises:
        AddressError: another host than this one without a token, a token that no client could show, or a certificate
            that cannot be loaded or has no key.
        UnreachableError: the port is taken, or the spool cannot be opened.
        CorruptError: the folder holds no spool, or a damaged one.
    """
    if token is None and not _is_loopback(host):
        raise AddressError(f"expected a token, because {host} can be reached from elsewhere, got none: set ILCP_TOKEN")
    if (certificate is None) != (key is None):
        raise AddressError(f"expected a certificate and its key, or neither, got {certificate} and {key}")
    with _ended_after_closing():
        asyncio.run(_serve(folder, host, port, token, certificate, key, settings or Settings(), ready))


async def _serve(
    folder: Path,
    host: str,
    port: int,
    token: str | None,
    certificate: Path | None,
    key: Path | None,
    settings: Settings,
    ready: Callable[[str], None],
) -> None:
    backend: StoreBackend = await open_spool(
        urlsplit(folder.resolve().as_uri().replace("file:", "spool:", 1)), settings
    )
    try:
        config = uvicorn.Config(
            endpoint(backend, token=token),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
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
        with _bound(host, port) as listening:
            scheme = "http" if certificate is None else "https"
            where = f"[{host}]" if ":" in host else host
            ready(f"{scheme}://{where}:{listening.getsockname()[1]}")
            await uvicorn.Server(config).serve(sockets=[listening])
    finally:
        await backend.close()


@contextmanager
def _ended_after_closing() -> Iterator[None]:
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


def _bound(host: str, port: int) -> socket.socket:
    # With the protocol named, asyncio sends small answers at once (TCP_NODELAY); otherwise each waits 40 ms for an ACK.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise UnreachableError(f"expected port {port} of {host} free, got: {error.strerror}; choose another") from error
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
