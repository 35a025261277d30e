"""The HTTP ingress of one receiver: a Starlette app in front of its spool. `ilcp.transport.api` says what it answers.

A receiver mounts it in an app of its own, or ``ilcp serve`` runs it::

    async with connect_async("spool:///folder") as c:
        app = ingress(c, "planner", token=token)      # messages for planner, which takes them from the spool

Nothing of a request is read before its host, token, path and declared length are in order. A message that is undamaged
is kept; whether it verifies, and what it means, is the receiver's to find out.
"""

import asyncio
import hmac
import ipaddress
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ilcp.errors import DecodeError, EncodeError, TransportError
from ilcp.message import MAX_MESSAGE_BYTES, Blob, describe
from ilcp.transport.api import BLOB_TYPE, BLOBS, ID_HEADER, OFFSET_HEADER, PREFIX
from ilcp.transport.backend import MEDIA_TYPE, checked_to, checked_token
from ilcp.transport.blobs import CHUNK_BYTES, BeingPutError, Part
from ilcp.transport.connection import AsyncConnection
from ilcp.transport.errors import AddressError, BlobError, ConflictError, FullError, UnreachableError
from ilcp.transport.spool import StoreBackend
from ilcp.transport.telemetry import REFUSED, logged, spared

__all__ = ["ADMITTED", "MIN_TOKEN", "ingress"]

MIN_TOKEN = 16  # characters; what `ilcp serve` makes up has 43
MAX_AT_ONCE = 256  # requests in work, of some 50 kB each
RETRY_AFTER_S = 1
TOKEN_BYTES = 4096  # no header that is longer is compared
BODY_S = 10.0  # the largest body takes 0.1 s at 5 Mbit/s; who sends half of one keeps its place no longer
WRONG_S = 1.0  # a wrong token is answered so much later
HEALTH_S = 1.0  # who has no token makes the store look no oftener
LOOK_S = 0.5  # a store that has not been looked at by then is no healthy one
ADMITTED = "ilcp.admitted"  # is in the scope of a request that has shown the token
LOCAL = frozenset({"localhost", ""})  # HTTP/1.0 may leave the host out; browsers do not

_DIGEST = re.compile("[0-9a-f]{64}")
_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")
_HOST = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]*))(?::[0-9]*)?")

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


class _Ingress:
    def __init__(self, connection: AsyncConnection, name: str, token: str, hosts: Sequence[str]) -> None:
        if not isinstance(connection._backend, StoreBackend):
            raise AddressError("expected a connection to a spool, got another: connect_async('spool:///folder')")
        self.connection, self.name = connection, checked_to(name)
        self.place = connection._backend._store._path
        self.token = checked_token(token, MIN_TOKEN).encode()
        self.hosts = LOCAL | {each if _is_ip(each) else _host(each) for each in hosts}
        if None in self.hosts or "" in hosts:  # else whatever is none would be let in
            raise AddressError(f"expected hosts as names, such as planner.example, got {', '.join(map(repr, hosts))}")
        self.places = asyncio.Semaphore(MAX_AT_ONCE)
        self.places_of_wrong = asyncio.Semaphore(MAX_AT_ONCE)  # who guesses keeps nobody out
        self.metrics = _Metrics()
        self.healthy = (float("-inf"), True)

    @property
    def backend(self) -> StoreBackend:
        """The spool's; looked up at each call, for after a fork there is none."""
        try:
            return cast(StoreBackend, self.connection._backend)
        except AddressError as error:  # which blames who asks
            raise UnreachableError(f"{error}, and make the ingress in the process that serves") from error

    def route(self, path: str, method: str, operation: str, handler: Handler, *, open_to_all: bool = False) -> Route:
        """Puts a handler behind the checks that all share; what it raises becomes a status."""

        async def answer(request: Request) -> Response:
            began = time.perf_counter()
            self.metrics.active.inc()
            try:
                self._check_host(request)
                if not open_to_all:
                    await self._admit(request)
                spelled = path.format(name=self.name, digest=request.path_params.get("digest"))
                if not (request.scope.get("raw_path") or request.scope["path"].encode()).endswith(spelled.encode()):
                    raise _Refused(
                        404, "expected a path of the receiver behind this address, plainly spelled, got another"
                    )
                _ = self.backend
                async with nullcontext() if open_to_all else _one(self.places):
                    response = await handler(request)
            except ClientDisconnect:
                response = Response(status_code=400)
            except (_Refused, TransportError, EncodeError, DecodeError) as error:
                response = _as_response(error, self.place)
            finally:
                self.metrics.active.dec()
            self.metrics.requests.labels(operation, str(response.status_code)).inc()
            self.metrics.seconds.labels(operation).observe(time.perf_counter() - began)
            if response.status_code >= 400:
                peer = request.client.host if request.client else "unknown"
                logged(f"{operation} refused", REFUSED, status=response.status_code, peer=peer)
            return response

        return Route(path, answer, methods=[method])

    def _check_host(self, request: Request) -> None:
        """Refuses what a web page may have a browser ask: by a name that it pointed here, or from its own origin."""
        if "origin" in request.headers:
            raise _Refused(403, "expected no Origin, got one: no web page sends messages")
        host = _host(request.headers.get("host", ""))
        if host is None or (host not in self.hosts and not _is_ip(host)):
            raise _Refused(403, "expected a Host that is an IP address or was allowed, got another: --allow-host NAME")

    async def _admit(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "")[:TOKEN_BYTES].partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), self.token):
            request.scope[ADMITTED] = True
            return
        async with _one(self.places_of_wrong):
            await asyncio.sleep(WRONG_S)
        raise _Refused(401, "expected Authorization: Bearer with the token of the ingress, got none or another")

    async def send(self, request: Request) -> Response:
        if request.headers.get("content-type") != MEDIA_TYPE:
            raise _Refused(415, f"expected content-type {MEDIA_TYPE}, got another")
        wire, given = await _body(request, MAX_MESSAGE_BYTES), request.headers.get(ID_HEADER)
        if describe(wire).handoff_id is None and given is None:
            raise _Refused(400, f"expected {ID_HEADER} beside a bare message, got none: repeated, it would come twice")
        receipt = await self.connection.send(wire, to=self.name, handoff_id=given)
        if receipt.duplicate:
            self.metrics.duplicates.inc()
        return Response(status_code=200 if receipt.duplicate else 202, headers={ID_HEADER: receipt.handoff_id})

    async def blob_offset(self, request: Request) -> Response:
        offset = await self.backend.blob_offset(_digest(request))
        return Response(headers={OFFSET_HEADER: str(offset)})

    async def put_blob(self, request: Request) -> Response:
        if request.headers.get("content-type") != BLOB_TYPE:
            raise _Refused(415, f"expected content-type {BLOB_TYPE}, got another")
        digest, declared = _digest(request), _declared(request, self.connection._settings.max_blob_bytes)
        said = request.headers.get("content-range", f"bytes 0-{declared - 1}/{declared}")
        found = _RANGE.fullmatch(said)
        first, last, size = map(int, found.groups()) if found else (0, 0, 0)
        if last - first + 1 != declared or last + 1 != size:
            raise _Refused(400, f"expected content-range of the last {declared} bytes of the blob, got another")
        part = await self.backend.blob_part(Blob(size, digest))
        if isinstance(part, BeingPutError):
            raise part
        if part is None:
            return Response(status_code=200)
        try:
            if part.offset != first:
                raise _Refused(416, f"expected the bytes from {part.offset} on, got those from {first}: ask again")
            async with self.backend.keeping(part):
                await self._write(request, part)
        finally:
            await asyncio.to_thread(part.close)
        return Response(status_code=201)

    async def _write(self, request: Request, part: Part) -> None:
        """Writes the body; what arrived of one that ends early stays for the next try."""
        held, chunks, more = bytearray(), request.stream(), True
        try:
            while more:
                async with asyncio.timeout(BODY_S):  # each piece; the whole may take any time
                    chunk = await anext(chunks, None)
                more = chunk is not None
                held += chunk or b""
                if len(held) >= CHUNK_BYTES:
                    await asyncio.to_thread(part.write, bytes(held))
                    held.clear()
        except TimeoutError:
            raise _Refused(408, f"expected the next bytes within {BODY_S:g} s, got none: go on") from None
        finally:
            if held:
                await asyncio.to_thread(part.write, bytes(held))

    async def lookup(self, request: Request) -> Response:
        body = await self.backend.lookup(self.name)
        if body is None:
            return JSONResponse(None, 404)
        return Response(body, media_type="application/json")

    async def health(self, request: Request) -> Response:
        looked_s, healthy = self.healthy
        if time.monotonic() - looked_s > HEALTH_S:
            self.healthy = time.monotonic(), healthy  # who comes meanwhile does not look as well
            try:
                async with asyncio.timeout(LOOK_S):
                    await self.backend.waiting(self.name)
                healthy = True
            except (TransportError, TimeoutError):
                healthy = False
            self.healthy = time.monotonic(), healthy
        if not healthy:  # why is told to those who have the token
            raise _Refused(503, "expected a spool that can be read, got none: /metrics says why")
        return JSONResponse({"status": "ok"})

    async def hello(self, request: Request) -> Response:
        return JSONResponse({"ilcp": "ingress", "max_message_bytes": MAX_MESSAGE_BYTES})

    async def show_metrics(self, request: Request) -> Response:
        messages, used = await self.backend.waiting(self.name)
        self.metrics.waiting.set(messages)
        self.metrics.waiting_bytes.set(used)
        return Response(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")


def ingress(connection: AsyncConnection, name: str, *, token: str, hosts: Sequence[str] = ()) -> Starlette:
    """Makes the app that takes messages for ``name``, for uvicorn or any ASGI server.

    Args:
        connection: to the receiver's spool; it has to be open for as long as the app serves.
        name: whose messages.
        token: what every sender has to show.
        hosts: the names by which senders reach it, beside IP addresses and localhost.

    Raises:
        AddressError: a name or a host that is none, a token that is short or that no client could show, or a
            connection to something else.
    """
    door = _Ingress(connection, name, token, hosts)
    spared(REFUSED)
    app = Starlette(
        routes=[
            door.route("/health", "GET", "health", door.health, open_to_all=True),
            door.route("/metrics", "GET", "metrics", door.show_metrics),
            door.route(PREFIX, "GET", "hello", door.hello),
            door.route(BLOBS + "/{digest}", "HEAD", "blob", door.blob_offset),
            door.route(BLOBS + "/{digest}", "PUT", "blob", door.put_blob),
            door.route(PREFIX + "/{name}", "POST", "send", door.send),
            door.route(PREFIX + "/{name}/capabilities", "GET", "lookup", door.lookup),
        ]
    )
    app.router.redirect_slashes = False  # no answer sends anybody elsewhere
    return app


def _one(places: asyncio.Semaphore) -> asyncio.Semaphore:
    """Gives a place for as long as a request takes, and lets nobody wait for one."""
    if places.locked():
        raise FullError("expected fewer such requests at once, got too many", retry_after_s=RETRY_AFTER_S)
    return places


def _host(header: str) -> str | None:
    """Returns the host of a Host header, without its port; None: it is none."""
    found = _HOST.fullmatch(header)
    return (found[1] or found[2]).rstrip(".").lower() if found else None


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _body(request: Request, most: int) -> bytes:
    """Reads the body, whose length is declared and looked at before anything is read."""
    declared = _declared(request, most)
    body = bytearray()  # appended to in place: a client may send one byte at a time
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > declared:
                    raise _Refused(400, f"expected {declared} bytes as declared, got more")
    except TimeoutError:
        raise _Refused(408, f"expected {declared} bytes within {BODY_S:g} s, got {len(body)}: send it again") from None
    return bytes(body)


def _digest(request: Request) -> bytes:
    """Reads the digest in the path."""
    digest: str = request.path_params["digest"]
    if not _DIGEST.fullmatch(digest):
        raise _Refused(404, "expected a blob's digest of 64 hex digits, got another path")
    return bytes.fromhex(digest)


def _declared(request: Request, most: int) -> int:
    """Reads the length of the body."""
    declared = request.headers.get("content-length", "")
    if not declared.isascii() or not declared.isdigit() or len(declared) > 15 or "transfer-encoding" in request.headers:
        raise _Refused(411, "expected a content-length alone, got none or more: send the body in one piece")
    if int(declared) > most:
        raise _Refused(413, f"expected at most {most} bytes, got {int(declared)}")
    return int(declared)


def _as_response(error: Exception, place: str) -> Response:
    """Says what was wrong, and not where on this host the spool is."""
    headers: dict[str, Any] = {}
    match error:
        case _Refused(status=status):
            pass
        case ConflictError():
            status = 409
        case BlobError():
            status = 422
        case FullError(retry_after_s=after):
            status, headers = 429, {"retry-after": str(int(after or RETRY_AFTER_S))}
        case AddressError() | EncodeError() | DecodeError():
            status = 400
        case _:
            status = 503
    if status == 401:
        headers = {"www-authenticate": "Bearer"}
    said = str(error).replace(place, "the spool")
    if os.path.isabs(place):  # and not a store in memory
        said = said.replace(os.path.dirname(place), "the spool")
    return JSONResponse({"error": said[:500]}, status, headers=headers)
