"""The sockets of ``ilcp serve``: how many there may be, and how long one may say nothing.

uvicorn waits for a request's head without end, and asyncio tries for ever, and logs each time, where the process has no
file descriptor left. Here one goes when there are too many: what was idle for longest, and where nobody else is idle,
what has been longest at a request without the token.
"""

import asyncio
import socket
import sys
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from ilcp.transport.app import ADMITTED
from ilcp.transport.errors import UnreachableError

if sys.platform != "win32":
    import resource

__all__ = ["BACKLOG", "Door", "listening", "most_connections"]

MAX_CONNECTIONS = 1000  # some 30 kB each
HEAD_S = 10.0  # a head is one packet; who does not read its answers is given as long
BACKLOG = 128
RESERVED = 64  # file descriptors of the spool, the log and the rest


class Door(H11Protocol):
    """A connection that is closed when no request begins, or no answer is read, in time, or others need its place."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a head, and makes room."""
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        self._wait_for_head()
        if len(self.connections) > most_connections():
            doors: Any = self.connections
            others = [each for each in doors if each is not self and (each.is_idle or not each.is_admitted)]
            oldest = min(others, key=lambda each: (not each.is_idle, each.since_s), default=self)
            self.connections.discard(oldest)
            oldest.transport.abort()

    def pause_writing(self) -> None:
        """Begins to wait for who does not read its answers."""
        super().pause_writing()
        self._unread = self.loop.call_later(HEAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Waits no longer: they are read."""
        super().resume_writing()
        self._unread.cancel()

    def data_received(self, data: bytes) -> None:
        """Waits for a head no longer once it is there."""
        super().data_received(data)
        if not self.is_idle:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Begins to wait for the next head, unless it is there."""
        super().on_response_complete()
        if self.is_idle:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Says whether no request is in work."""
        cycle: Any = self.cycle  # None before the first
        return cycle is None or bool(cycle.response_complete)

    @property
    def is_admitted(self) -> bool:
        """Says whether the last request has shown the token."""
        scope: Any = self.scope  # None before the first
        return scope is not None and ADMITTED in scope

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self.since_s = self.loop.time()
        self._late = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()


class _Listening(socket.socket):
    """A socket that accepts only what the process has room for, TLS handshakes included."""

    _accepted: tuple[socket.socket, ...] = ()

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accepts one, or raises what asyncio takes for nobody."""
        found, peer = super().accept()
        self._accepted = (*(each for each in self._accepted if each.fileno() >= 0), found)
        if len(self._accepted) > most_connections() + BACKLOG:
            found.close()
            raise ConnectionAbortedError
        return found, peer


def most_connections() -> int:
    """Returns how many connections are kept: what file descriptors there are bounds it too."""
    if sys.platform == "win32":  # which counts no file descriptors
        return MAX_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = MAX_CONNECTIONS if files == resource.RLIM_INFINITY else files - RESERVED - 2 * BACKLOG
    return max(1, min(MAX_CONNECTIONS, room))


def listening(host: str, port: int) -> socket.socket:
    """Binds a socket.

    Raises:
        UnreachableError: the port is taken.
    """
    # With the protocol named, asyncio sends small answers at once (TCP_NODELAY); otherwise each waits 40 ms for an ACK.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = _Listening(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise UnreachableError(f"expected port {port} of {host} free, got: {error.strerror}; choose another") from error
    return made
