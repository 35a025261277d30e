"""NATS: what a server, or whoever publishes into its subjects, may send. nats-py's own code reads it, but no socket.

The first byte of an input picks the operation, and whether the consumer is known; then come the answers to the
client's requests, in their order, divided by a line ``--``: the reply subject, lines of headers as on the wire, an
empty line, the data.
"""

import contextlib

import nats.errors
from nats.aio.msg import Msg
from nats.js.kv import KeyValue

from fuzz.transport_client import LOOP, NOW_S, OPERATIONS
from ilcp.errors import DecodeError, TransportError
from ilcp.transport.backend import Settings
from ilcp.transport.connection import AsyncConnection
from ilcp.transport.nats import SETTLED, TOLD, NatsBackend, ReadingClient

__all__ = ["delivered"]

SETTINGS = Settings(clock=lambda: NOW_S)
NO_RESPONDERS = "503"


class Peer(ReadingClient):
    """Our client, for whom an input answers."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[bytes] = []
        self._error_cb = self._ignore

    async def _ignore(self, error: Exception) -> None:
        pass

    @property
    def is_connected(self) -> bool:
        return True

    async def request(self, subject: str, payload: bytes = b"", *more: object, **options: object) -> Msg:
        if not subject or any(char.isspace() for char in subject):
            raise nats.errors.BadSubjectError
        if not self.left:
            raise nats.errors.TimeoutError
        head, _, data = self.left.pop(0).partition(b"\n\n")
        reply, _, lines = head.partition(b"\n")
        wire = b"NATS/1.0" + (b"" if lines.startswith(b" ") else b"\r\n") + lines.replace(b"\n", b"\r\n") + b"\r\n\r\n"
        headers = await self._process_headers(wire if lines else b"")  # what fails here ends nats-py's reading
        message = self._build_message(1, b"ilcp.handoffs.a.x", reply.decode("latin-1").encode(), data, headers)
        assert message is not None
        if (message.headers or {}).get("Status") == NO_RESPONDERS:
            raise nats.errors.NoRespondersError
        return message

    async def ask(self, subject: str, payload: bytes, timeout_s: float) -> Msg:
        return await self.request(subject, payload)


def _backend() -> tuple[Peer, NatsBackend]:
    peer = Peer()
    stream = peer.jetstream()
    settled, told = (KeyValue(name, f"KV_{name}", f"$KV.{name}.", stream, True) for name in (SETTLED, TOLD))
    return peer, NatsBackend(peer, stream, (settled, told), SETTINGS)


async def _made() -> tuple[Peer, NatsBackend]:
    return _backend()


PEER, BACKEND = LOOP.run_until_complete(_made())


def delivered(data: bytes) -> None:
    """Fails where anything but a TransportError, or a DecodeError of capabilities, comes out."""
    first = data[0] if data else 0
    PEER.left = data[1:].split(b"\n--\n")
    BACKEND._consumers = set() if first & 0x80 else {"a"}
    connection = AsyncConnection(BACKEND, "a", SETTINGS)
    with contextlib.suppress(TransportError, DecodeError):
        LOOP.run_until_complete(OPERATIONS[first % len(OPERATIONS)](connection))
