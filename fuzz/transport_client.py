"""The HTTP client: what an ingress, or whoever answers in its place, may say.

The first byte of an input picks what the client asks, and whether bodies end; then come two answers, divided by ``--``:
``STATUS``, lines of headers, an empty line, the body. ``answered_raw`` takes the bytes as they come from the wire,
through httpcore and h11.
"""

import asyncio
import contextlib
import importlib.util
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import httpcore
import httpx

from ilcp.errors import DecodeError, EncodeError, TransportError
from ilcp.transport.backend import Settings, checked_name
from ilcp.transport.capabilities import Capabilities
from ilcp.transport.connection import AsyncConnection, AsyncDelivery
from ilcp.transport.http import HttpBackend, client_for

__all__ = ["LOOP", "NOW_S", "OPERATIONS", "answered", "answered_raw", "check_delivery"]

NOW_S = 1e9
MANY = 1 << 12  # 16 MiB of 4 KiB each: whoever reads them all has no limit
SETTINGS = Settings(clock=lambda: NOW_S, timeout_s=0.05)  # too short for another try
LOOP = asyncio.new_event_loop()
Operation = Callable[[AsyncConnection], Awaitable[object]]


class Body(httpx.AsyncByteStream):
    """A body that comes in two parts, or again and again."""

    def __init__(self, body: bytes, endless: bool) -> None:
        self.body, self.endless = body, endless

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body[:7]
        yield self.body[7:]
        for _ in range(MANY if self.endless else 0):
            yield self.body.ljust(1 << 12)


class Answers(httpx.AsyncBaseTransport):
    """Gives one answer after the other, and then none."""

    def __init__(self) -> None:
        self.left: list[bytes] = []
        self.endless = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.left:
            raise httpx.ReadTimeout("")
        head, _, body = self.left.pop(0).partition(b"\n\n")
        status, *lines = head.split(b"\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        # As h11: a name is a token, and a value holds no NUL.
        sound = [(name, value) for name, value in headers if _is_token(name) and b"\0" not in value]
        return httpx.Response(
            int(status) if _is_status(status) else 200, headers=sound, stream=Body(body, self.endless)
        )


class Wire(httpcore.AsyncNetworkBackend):
    """A network that knows nothing but the bytes of the next answer."""

    def __init__(self) -> None:
        self.answer = b""

    async def connect_tcp(self, *_: object, **__: object) -> httpcore.AsyncNetworkStream:
        return httpcore.AsyncMockStream([part for part in (self.answer[:40], self.answer[40:]) if part])


async def _receive_and_ack(connection: AsyncConnection) -> None:
    delivery = await connection.receive()
    if delivery is not None:
        check_delivery(delivery)
        await delivery.ack()


async def _receive_and_nack(connection: AsyncConnection) -> None:
    delivery = await connection.receive()
    if delivery is not None:
        check_delivery(delivery)
        await delivery.nack(1.5)


OPERATIONS: tuple[Operation, ...] = (
    _receive_and_ack,
    _receive_and_nack,
    lambda connection: connection.capabilities("a"),
    lambda connection: connection.send(b"a message", to="a", handoff_id="x"),
    lambda connection: connection.publish(Capabilities(codec_ids=("00112233445566aa",))),
)
OVER_HTTP = OPERATIONS[2:4]


def check_delivery(delivery: AsyncDelivery) -> None:
    """Fails where a receiver would get what is no delivery."""
    assert isinstance(delivery.message, bytes)
    assert type(delivery.attempt) is int
    assert delivery.attempt >= 1
    assert math.isfinite(delivery.until_s)
    checked_name("handoff_id", delivery.handoff_id)


def _is_token(name: bytes) -> bool:
    return name.replace(b"-", b"").isalnum()


def _is_status(status: bytes) -> bool:
    return status.isdigit() and len(status) == 3 and status >= b"200"


def _over_wire() -> tuple[Wire, httpx.AsyncClient]:
    wire, transport = Wire(), httpx.AsyncHTTPTransport()
    transport._pool = httpcore.AsyncConnectionPool(network_backend=wire, max_keepalive_connections=0)
    return wire, client_for("http://peer", SETTINGS, transport)


# httpcore looks for sniffio at every lock, and where there is none, that takes longer than all the rest.
if importlib.util.find_spec("sniffio") is None:
    sys.modules["sniffio"] = None  # type: ignore[assignment]
ANSWERS, (WIRE, RAW) = Answers(), _over_wire()
CLIENT = client_for("http://peer", SETTINGS, ANSWERS)


def answered(data: bytes) -> None:
    """Gives two structured answers to one operation."""
    ANSWERS.left, ANSWERS.endless = data[1:].split(b"\n--\n", 1), data[:1] >= b"\x80"
    _ask(CLIENT, data)


def answered_raw(data: bytes) -> None:
    """Answers each request with the same bytes of the wire."""
    WIRE.answer = data[1:]
    _ask(RAW, data)


def _ask(client: httpx.AsyncClient, data: bytes) -> None:
    operation = OVER_HTTP[data[0] % len(OVER_HTTP) if data else 0]
    connection = AsyncConnection(HttpBackend(client, SETTINGS), "a", SETTINGS)
    try:
        with contextlib.suppress(TransportError, EncodeError, DecodeError):
            LOOP.run_until_complete(operation(connection))
        assert not client.cookies.jar, "the client keeps what an ingress gave it"
    finally:
        client.cookies.clear()
