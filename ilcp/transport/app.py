"""The HTTP endpoint: a Starlette app in front of a store. `ilcp.transport.api` says what it answers.

Nothing of a request is read before its token, its path and its declared length are in order. A request without a length
is refused (411). Nothing about a message's meaning is checked here.
"""

import asyncio
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ilcp.errors import DecodeError, EncodeError, TransportError
from ilcp.message import MAX_MESSAGE_BYTES
from ilcp.transport.api import ATTEMPT_HEADER, ID_HEADER, LEASE_FOR_HEADER, LEASE_HEADER, MAX_WAIT_S, PREFIX
from ilcp.transport.backend import (
    MAX_CAPABILITIES_BYTES,
    MAX_LEASE_S,
    MEDIA_TYPE,
    Lease,
    checked_id,
    checked_message,
    checked_name,
    checked_s,
    checked_token,
)
from ilcp.transport.capabilities import Capabilities
from ilcp.transport.errors import AddressError, FullError, LeaseLostError
from ilcp.transport.spool import StoreBackend
from ilcp.transport.telemetry import logged

__all__ = ["endpoint"]

HELD = ("ack", "nack", "extend")  # what a receiver does with what it holds: never refused for want of room
# Each takes some 50 kB. Receivers wait, and have places of their own, or they would keep out who has messages for them.
MAX_RECEIVERS = 256
MAX_AT_ONCE = 256  # others
RETRY_AFTER_S = 1
TOKEN_BYTES = 4096  # no header that is longer is compared
BODY_S = 10.0  # the largest body takes 0.1 s at 5 Mbit/s; who sends half of one keeps its place no longer

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?(e-?[0-9]{1,3})?")  # as repr(float) writes it; float() takes more

Handler = Callable[[Request], Awaitable[Response]]


class _Refused(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Metrics:
    """Prometheus' view; no label has a value that a client chooses."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("operation", "status")
        self.requests = Counter("ilcp_requests", "requests answered", labels, registry=self.registry)
        self.seconds = Histogram("ilcp_request_seconds", "time to answer", labels[:1], registry=self.registry)
        self.duplicates = Counter("ilcp_duplicates", "messages sent again under a known id", registry=self.registry)
        self.active = Gauge("ilcp_requests_active", "requests in work", registry=self.registry)
        self.waiting = Gauge("ilcp_handoffs_waiting", "messages not yet acknowledged", registry=self.registry)
        self.waiting_bytes = Gauge("ilcp_handoffs_waiting_bytes", "what they take", registry=self.registry)


class _Places:
    """Limits how many requests of a kind may be in work; None: any number."""

    def __init__(self, most: int | None) -> None:
        self.most, self.taken = most, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Takes a place for as long as a request takes."""
        if self.most is not None and self.taken >= self.most:
            text = f"expected at most {self.most} such requests at once, got more"
            raise FullError(text, retry_after_s=RETRY_AFTER_S)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class _Endpoint:
    def __init__(self, backend: StoreBackend, token: str | None, max_at_once: int, max_receivers: int) -> None:
        self.backend = backend
        self.places = {"receive": _Places(max_receivers), **{name: _Places(None) for name in (*HELD, "health")}}
        self.other_places = _Places(max_at_once)
        self.token = None if token is None else token.encode()
        self.metrics = _Metrics()

    def route(self, path: str, method: str, operation: str, handler: Handler, *, open_to_all: bool = False) -> Route:
        """Puts a handler behind the checks that all share; what it raises becomes a status."""
        places = self.places.get(operation, self.other_places)

        async def answer(request: Request) -> Response:
            began = time.perf_counter()
            self.metrics.active.inc()
            try:
                if not open_to_all:
                    self._admit(request)
                with places.one():
                    response = await handler(request)
            except ClientDisconnect:
                response = Response(status_code=400)
            except (_Refused, TransportError, EncodeError, DecodeError) as error:
                response = _as_response(error)
            finally:
                self.metrics.active.dec()
            self.metrics.requests.labels(operation, str(response.status_code)).inc()
            self.metrics.seconds.labels(operation).observe(time.perf_counter() - began)
            if response.status_code >= 400:
                peer = request.client.host if request.client else "unknown"
                logged(f"{operation} refused", status=response.status_code, peer=peer)
            return response

        return Route(path, answer, methods=[method])

    def _admit(self, request: Request) -> None:
        if self.token is not None:
            scheme, _, given = request.headers.get("authorization", "")[:TOKEN_BYTES].partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self.token):
                raise _Refused(401, "expected Authorization: Bearer with the endpoint's token, got none or another")

    async def send(self, request: Request) -> Response:
        name = checked_name("name", request.path_params["name"])
        if request.headers.get("content-type") != MEDIA_TYPE:
            raise _Refused(415, f"expected content-type {MEDIA_TYPE}, got another")
        wire = checked_message(await _body(request, MAX_MESSAGE_BYTES))
        known = checked_id(wire, request.headers.get(ID_HEADER))
        new = await self.backend.put(name, known, wire)
        if not new:
            self.metrics.duplicates.inc()
        logged("kept", queue=name, handoff_id=known, message_bytes=len(wire), duplicate=not new)
        return JSONResponse({"handoff_id": known, "duplicate": not new}, 201 if new else 200)

    async def receive(self, request: Request) -> Response:
        name = checked_name("name", request.path_params["name"])
        lease_s = _seconds(request, "lease_s", MAX_LEASE_S, None)
        wait_s = _seconds(request, "wait_s", MAX_WAIT_S, 0.0)
        lease = await self.backend.take(name, lease_s, wait_s)
        if lease is None:
            return Response(status_code=204)
        if await request.is_disconnected():  # nobody will get the answer: free at once, not when the lease ends
            await self.backend.give_back(name, lease)
            return Response(status_code=400)
        logged("handed out", queue=name, handoff_id=lease.handoff_id, attempt=lease.attempt)
        headers = {
            LEASE_HEADER: lease.token,
            ID_HEADER: lease.handoff_id,
            ATTEMPT_HEADER: str(lease.attempt),
            LEASE_FOR_HEADER: repr(lease_s),
        }
        return Response(lease.message, media_type=MEDIA_TYPE, headers=headers)

    async def ack(self, request: Request) -> Response:
        return await self._settle(request, None)

    async def nack(self, request: Request) -> Response:
        return await self._settle(request, _seconds(request, "delay_s", MAX_LEASE_S, 0.0))

    async def extend(self, request: Request) -> Response:
        lease_s = _seconds(request, "lease_s", MAX_LEASE_S, None)
        await self.backend.extend(*_held(request), lease_s)
        return Response(status_code=204)

    async def _settle(self, request: Request, retry_in_s: float | None) -> Response:
        await self.backend.settle(*_held(request), retry_in_s=retry_in_s)
        return Response(status_code=204)

    async def publish(self, request: Request) -> Response:
        name = checked_name("name", request.path_params["name"])
        body = await _body(request, MAX_CAPABILITIES_BYTES)
        await self.backend.publish(name, Capabilities.from_bytes(body).to_bytes())
        return Response(status_code=204)

    async def lookup(self, request: Request) -> Response:
        name = checked_name("name", request.path_params["name"])
        body = await self.backend.lookup(name)
        if body is None:
            raise _Refused(404, f"expected {name} to have told what it reads, got nothing")
        return Response(body, media_type="application/json")

    async def health(self, request: Request) -> Response:
        try:
            await self.backend.waiting()
        except TransportError:  # its text names the spool, and whoever asks is told no more than that
            raise _Refused(503, "expected a spool that can be read, got none: /metrics says why") from None
        return JSONResponse({"status": "ok"})

    async def hello(self, request: Request) -> Response:
        return JSONResponse({"ilcp": "endpoint", "max_message_bytes": MAX_MESSAGE_BYTES})

    async def show_metrics(self, request: Request) -> Response:
        messages, used = await self.backend.waiting()
        self.metrics.waiting.set(messages)
        self.metrics.waiting_bytes.set(used)
        return Response(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")


def endpoint(
    backend: StoreBackend,
    *,
    token: str | None = None,
    max_at_once: int = MAX_AT_ONCE,
    max_receivers: int = MAX_RECEIVERS,
) -> Starlette:
    """Makes the app, for uvicorn or any ASGI server. Without a token everybody who reaches it may do everything.

    Raises:
        AddressError: a token that no client could show.
    """
    door = _Endpoint(backend, None if token is None else checked_token(token), max_at_once, max_receivers)
    app = Starlette(
        routes=[
            door.route("/health", "GET", "health", door.health, open_to_all=True),
            door.route("/metrics", "GET", "metrics", door.show_metrics),
            door.route(PREFIX, "GET", "hello", door.hello),
            door.route(PREFIX + "/{name}", "POST", "send", door.send),
            door.route(PREFIX + "/{name}/receive", "POST", "receive", door.receive),
            door.route(PREFIX + "/{name}/ack", "POST", "ack", door.ack),
            door.route(PREFIX + "/{name}/nack", "POST", "nack", door.nack),
            door.route(PREFIX + "/{name}/extend", "POST", "extend", door.extend),
            door.route(PREFIX + "/{name}/capabilities", "PUT", "publish", door.publish),
            door.route(PREFIX + "/{name}/capabilities", "GET", "lookup", door.lookup),
        ]
    )
    app.router.redirect_slashes = False  # a path has one spelling, and no answer sends anybody elsewhere
    return app


def _held(request: Request) -> tuple[str, Lease]:
    """Reads whose lease a request is about."""
    name = checked_name("name", request.path_params["name"])
    return name, Lease(request.headers.get(LEASE_HEADER, "")[:64], "", b"", 0, 0.0)


async def _body(request: Request, most: int) -> bytes:
    """Reads the body, whose length is declared and looked at before anything is read."""
    declared = request.headers.get("content-length", "")
    if not declared.isascii() or not declared.isdigit() or len(declared) > 15 or "transfer-encoding" in request.headers:
        raise _Refused(411, "expected a content-length alone, got none or more: send the body in one piece")
    if int(declared) > most:
        raise _Refused(413, f"expected at most {most} bytes, got {int(declared)}")
    body = bytearray()  # appended to in place: a client may send one byte at a time
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > int(declared):
                    raise _Refused(400, f"expected {declared} bytes as declared, got more")
    except TimeoutError:
        raise _Refused(408, f"expected {declared} bytes within {BODY_S:g} s, got {len(body)}: send it again") from None
    return bytes(body)


def _seconds(request: Request, what: str, most: float, default: float | None) -> float:
    text = request.query_params.get(what)
    if text is None and default is not None:
        return default
    if not _SECONDS.fullmatch(text or ""):
        raise _Refused(400, f"expected {what} as seconds, got {(text or '')[:40]!r}")
    seconds = float(text or "")
    return 0.0 if seconds == 0.0 and default is not None else checked_s(what, seconds, most)


def _as_response(error: Exception) -> Response:
    headers: dict[str, Any] = {}
    match error:
        case _Refused(status=status):
            pass
        case LeaseLostError():
            status = 409
        case FullError(retry_after_s=after):
            status, headers = 429, {"retry-after": str(int(after or RETRY_AFTER_S))}
        case AddressError() | EncodeError() | DecodeError():
            status = 400
        case _:
            status = 503
    if status == 401:
        headers = {"www-authenticate": "Bearer"}
    return JSONResponse({"error": str(error)[:500]}, status, headers=headers)
