"""``http://host:port`` and ``https://``: a client of ``ilcp serve``, over httpx.

A call takes at most ``timeout_s``, and a receiver's wait on top. A connection that cannot be made is tried again by
httpx, with its own back-off; nothing else is repeated, so that the caller decides. TLS verifies against the system's
certificates unless ``Settings.tls`` is another context.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import SplitResult

import httpx

from ilcp.errors import EncodeError
from ilcp.message import MAX_MESSAGE_BYTES
from ilcp.transport.api import ATTEMPT_HEADER, ID_HEADER, LEASE_FOR_HEADER, LEASE_HEADER, MAX_WAIT_S, PREFIX
from ilcp.transport.backend import (
    MAX_CAPABILITIES_BYTES,
    MAX_LEASE_S,
    MEDIA_TYPE,
    Lease,
    Settings,
    checked_name,
    checked_s,
    checked_token,
)
from ilcp.transport.errors import AddressError, FullError, LeaseLostError, ProtocolError, RefusedError, UnreachableError

__all__ = ["HttpBackend", "open_http"]

CONNECT_TRIES = 3  # httpx waits 0, 0.5, 1 s between them
MAX_ANSWER_BYTES = max(MAX_MESSAGE_BYTES, MAX_CAPABILITIES_BYTES) + 1024


class HttpBackend:
    """A ``Backend`` onto an endpoint."""

    def __init__(self, client: httpx.AsyncClient, settings: Settings) -> None:
        self._client, self._settings = client, settings

    async def put(self, name: str, handoff_id: str, message: bytes) -> bool:
        """See ``Backend``."""
        headers = {"content-type": MEDIA_TYPE, ID_HEADER: handoff_id}
        answer, _ = await self._ask("POST", f"{PREFIX}/{name}", (200, 201), content=message, headers=headers)
        return answer.status_code == 201

    async def take(self, name: str, lease_s: float, wait_s: float) -> Lease | None:
        """See ``Backend``. Long waits are several requests."""
        end = time.monotonic() + wait_s
        while True:
            left = max(0.0, end - time.monotonic())
            this_s = min(left, MAX_WAIT_S)
            wanted = {"lease_s": repr(lease_s), "wait_s": repr(this_s)}
            answer, body = await self._ask("POST", f"{PREFIX}/{name}/receive", (200, 204), wait_s=this_s, params=wanted)
            if answer.status_code == 200:
                return _lease(answer, body, self._settings.clock())
            if left <= MAX_WAIT_S:
                return None

    async def extend(self, name: str, lease: Lease, lease_s: float) -> float:
        """See ``Backend``. It counts from the request: what the answer takes is not held."""
        began_s, asked = self._settings.clock(), {"lease_s": repr(lease_s)}
        await self._ask("POST", f"{PREFIX}/{name}/extend", (204,), params=asked, headers={LEASE_HEADER: lease.token})
        return began_s + lease_s

    async def settle(self, name: str, lease: Lease, *, retry_in_s: float | None) -> None:
        """See ``Backend``."""
        how, params = ("ack", None) if retry_in_s is None else ("nack", {"delay_s": repr(retry_in_s)})
        await self._ask("POST", f"{PREFIX}/{name}/{how}", (204,), params=params, headers={LEASE_HEADER: lease.token})

    async def publish(self, name: str, body: bytes) -> None:
        """See ``Backend``."""
        headers = {"content-type": "application/json"}
        await self._ask("PUT", f"{PREFIX}/{name}/capabilities", (204,), content=body, headers=headers)

    async def lookup(self, name: str) -> bytes | None:
        """See ``Backend``."""
        answer, body = await self._ask("GET", f"{PREFIX}/{name}/capabilities", (200, 404))
        if answer.status_code == 404 and answer.headers.get("content-type") != "application/json":
            raise ProtocolError(f"expected an ilcp endpoint, got 404 from {answer.url}: is the address right?")
        return body if answer.status_code == 200 else None

    async def close(self) -> None:
        """See ``Backend``."""
        await self._client.aclose()

    async def _ask(
        self, method: str, path: str, good: tuple[int, ...], *, wait_s: float = 0.0, **more: Any
    ) -> tuple[httpx.Response, bytes]:
        """Returns the answer and its body, which is read neither beyond nor longer than an endpoint may answer."""
        if self._client.is_closed:
            raise UnreachableError("expected an open connection, got one that is closed: connect again")
        most_s = self._settings.timeout_s + wait_s
        with _named_errors(self._client.base_url):
            async with asyncio.timeout(most_s), self._client.stream(method, path, timeout=most_s, **more) as answer:
                body = bytearray()  # appended to in place: an endpoint may send one byte at a time
                async for chunk in answer.aiter_raw():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise ProtocolError(f"expected an answer of at most {MAX_ANSWER_BYTES} bytes, got more")
        if answer.status_code not in good:
            raise _refusal(answer, bytes(body))
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise ProtocolError("expected a body as it is, got one with a content-encoding: what stands between us?")
        return answer, bytes(body)


async def open_http(url: SplitResult, settings: Settings) -> HttpBackend:
    """Opens a client of the endpoint, which has answered a request with our token.

    Raises:
        AddressError: the URL has no host, or more than a host and a port; ``tls`` without https.
        UnreachableError, RefusedError, ProtocolError: nobody answers, not to us, or not as an endpoint does.
    """
    settings.only(url.scheme, "timeout_s", "token", *(["tls"] if url.scheme == "https" else []))
    if not url.hostname or url.path.strip("/"):
        raise AddressError(f"expected {url.scheme}://host:port, got {url.geturl()!r}")
    backend = HttpBackend(client_for(url.geturl(), settings), settings)
    try:
        answer, body = await backend._ask("GET", f"{PREFIX}", (200,))
        if answer.headers.get("content-type") != "application/json" or b'"ilcp"' not in body:
            raise ProtocolError(f"expected an ilcp endpoint at {url.geturl()}, got another page: is the port right?")
    except BaseException:
        await backend.close()
        raise
    return backend


def client_for(
    base_url: str, settings: Settings, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """Makes the httpx client; ``transport`` is there for tests.

    Raises:
        AddressError: a token that no header can carry, or a host that is none.
    """
    headers = {"accept-encoding": "identity"}  # bodies are read as they come
    if settings.token is not None:
        headers["authorization"] = f"Bearer {checked_token(settings.token)}"
    try:
        where = httpx.URL(base_url)
        _ = where.host  # decodes an international name
    except (httpx.InvalidURL, ValueError) as error:
        raise AddressError(f"expected an address that httpx takes, got {base_url!r}: {error}") from error
    if transport is None:
        verify = settings.tls if settings.tls is not None else ssl.create_default_context()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        transport = httpx.AsyncHTTPTransport(verify=verify, retries=CONNECT_TRIES, limits=limits)
    cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))  # what an endpoint wants kept would grow for ever
    return httpx.AsyncClient(base_url=where, headers=headers, cookies=cookies, transport=transport)


def _lease(answer: httpx.Response, body: bytes, now_s: float) -> Lease:
    """Reads the lease that an answer gives. It began when the answer was sent; the endpoint's clock decides."""
    headers = answer.headers
    try:
        if headers["content-type"] != MEDIA_TYPE or not body:
            raise ValueError(headers["content-type"])
        token, known = headers[LEASE_HEADER], checked_name("handoff_id", headers[ID_HEADER])
        attempt, for_s = int(headers[ATTEMPT_HEADER]), float(headers[LEASE_FOR_HEADER])
        if not token.isascii() or not token.isprintable() or attempt < 1:  # the token goes back in a header
            raise ValueError(f"lease {token!r}, attempt {attempt}")
        return Lease(token, known, body, attempt, now_s + checked_s(LEASE_FOR_HEADER, for_s, MAX_LEASE_S))
    except (KeyError, ValueError) as error:
        raise ProtocolError(f"expected a message with its lease, got another answer: {error!r}") from error


def _refusal(answer: httpx.Response, body: bytes) -> Exception:
    """Gives the error that a status means here, with the endpoint's own words where it has some."""
    try:
        said = str(json.loads(body)["error"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = f"status {answer.status_code}"
    where = f"from {answer.url.copy_with(query=None)}, got: {said}"
    match answer.status_code:
        case 401 | 403:
            return RefusedError(f"expected entry {where}; give the endpoint's token (ILCP_TOKEN, or Settings(token=…))")
        case 409:
            return LeaseLostError(said)
        case 413:
            return EncodeError(f"expected a message that fits {where}")
        case 429:
            after = answer.headers.get("retry-after", "")
            wait = float(after) if after.isascii() and after.isdigit() else None
            return FullError(f"expected room {where}; try again later", retry_after_s=wait)
        case status if status == 408 or status >= 500:
            return UnreachableError(f"expected an answer {where}")
    return ProtocolError(f"expected an answer of an ilcp endpoint {where}; is the address right?")


@contextmanager
def _named_errors(where: object) -> Iterator[None]:
    """Raises httpx's errors under our names."""
    try:
        yield
    except httpx.InvalidURL as error:  # of a redirect, which is read although nobody follows it
        raise ProtocolError(f"expected an answer of an ilcp endpoint from {where}, got a redirect: {error}") from error
    except TimeoutError as error:
        raise UnreachableError(
            f"expected an answer of {where}, got none in time; is ilcp serve running there?"
        ) from error
    except httpx.HTTPError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError):
                raise RefusedError(f"expected a certificate that can be trusted of {where}, got: {cause}") from error
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
            raise AddressError(f"expected an address that httpx takes, got {where}: {error}") from error
        said = str(error) or type(error).__name__
        raise UnreachableError(f"expected an answer of {where}, got: {said}; is ilcp serve running there?") from error
