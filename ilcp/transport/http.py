"""``http://host:port`` and ``https://``: a client of an HTTP ingress, over httpx. It sends, and receives nothing.

A call takes at most ``timeout_s``; within it a send is repeated where nobody answers, or there is no room. TLS verifies
against the system's certificates unless ``Settings.tls`` is another context.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NoReturn
from urllib.parse import SplitResult

import httpx

from ilcp.errors import EncodeError
from ilcp.message import Blob
from ilcp.transport.api import BLOB_TYPE, BLOBS, ID_HEADER, OFFSET_HEADER, PREFIX
from ilcp.transport.backend import MAX_CAPABILITIES_BYTES, MEDIA_TYPE, SENDS_ONLY, Settings, checked_token
from ilcp.transport.blobs import Source, missing
from ilcp.transport.errors import (
    AddressError,
    BlobError,
    ConflictError,
    FullError,
    ProtocolError,
    RefusedError,
    UnreachableError,
)

__all__ = ["HttpBackend", "open_http"]

CONNECT_TRIES = 3  # httpx waits 0, 0.5, 1 s between them
RETRY_S = 0.1  # twice as long each time
MAX_ANSWER_BYTES = MAX_CAPABILITIES_BYTES + 1024


class HttpBackend:
    """A ``Backend`` onto an ingress, which takes what is put."""

    def __init__(self, client: httpx.AsyncClient, settings: Settings) -> None:
        self._client, self._settings = client, settings

    async def put(self, name: str, handoff_id: str, message: bytes) -> bool:
        """See ``Backend``. Within ``timeout_s`` it is tried again under its id, where that may help."""
        headers = {"content-type": MEDIA_TYPE, ID_HEADER: handoff_id}
        until_s, pause_s = time.monotonic() + self._settings.timeout_s, RETRY_S
        while True:
            left_s = until_s - time.monotonic()
            try:
                path = f"{PREFIX}/{name}"
                answer, _ = await self._ask("POST", path, (200, 202), left_s, content=message, headers=headers)
                return answer.status_code == 202
            except (UnreachableError, FullError) as error:
                pause_s = max(2 * pause_s, getattr(error, "retry_after_s", None) or 0.0)
                if self._client.is_closed or time.monotonic() + pause_s >= until_s:
                    raise
                await asyncio.sleep(pause_s)

    async def take(self, *_: object, **__: object) -> NoReturn:
        """Refuses: nothing is received over HTTP.

        Raises:
            AddressError: always.
        """
        raise AddressError(SENDS_ONLY)

    extend = settle = publish = get_blob = take

    async def put_blob(self, source: Source) -> Blob:
        """See ``Backend``. It is tried again, from what arrived, until nothing more arrives for ``timeout_s``.

        What arrived in an earlier try, and was altered there since, is begun anew, once.
        """
        blob = await asyncio.to_thread(source.named)
        path, most = f"{BLOBS}/{blob.digest.hex()}", blob.size_bytes
        offset, until_s, anew = -1, 0.0, False
        while True:
            first = 0
            try:
                answer, _ = await self._ask("HEAD", path, (200,))
                there = answer.headers.get(OFFSET_HEADER, "")
                if not (there.isascii() and there.isdigit() and len(there) < 16):
                    raise ProtocolError(f"expected {OFFSET_HEADER} of {path}, got none: is the ingress up to date?")
                if int(there) == most:
                    return blob
                first = int(there) if int(there) < most else 0
                if first > offset:
                    offset, until_s = first, time.monotonic() + self._settings.timeout_s
                headers = {"content-type": BLOB_TYPE, "content-length": str(most - first)}
                if first:
                    headers["content-range"] = f"bytes {first}-{most - 1}/{most}"
                content = _chunks(source, blob, first)
                await self._ask("PUT", path, (200, 201), content=content, headers=headers, long=True)
                return blob
            except BlobError:
                if anew or not first:
                    raise
                offset, anew = -1, True
            except (UnreachableError, FullError):
                if self._client.is_closed or time.monotonic() + RETRY_S >= until_s:
                    raise
                await asyncio.sleep(RETRY_S)

    async def lookup(self, name: str) -> bytes | None:
        """See ``Backend``."""
        answer, body = await self._ask("GET", f"{PREFIX}/{name}/capabilities", (200, 404))
        if answer.status_code == 404 and answer.headers.get("content-type") != "application/json":
            raise ProtocolError(f"expected an ilcp ingress, got 404 from {answer.url}: is the address right?")
        if answer.status_code == 404 and body != b"null":
            raise _refusal(answer, body)
        return body if answer.status_code == 200 else None

    async def close(self) -> None:
        """See ``Backend``."""
        await self._client.aclose()

    async def _ask(
        self,
        method: str,
        path: str,
        good: tuple[int, ...],
        most_s: float | None = None,
        *,
        long: bool = False,
        **more: Any,
    ) -> tuple[httpx.Response, bytes]:
        """Returns the answer and its body, which is read neither beyond nor longer than an ingress may answer.

        What is ``long`` may take any time as a whole; each step of it takes at most ``most_s``.
        """
        if self._client.is_closed:
            raise UnreachableError("expected an open connection, got one that is closed: connect again")
        most_s = self._settings.timeout_s if most_s is None else most_s
        with _named_errors(self._client.base_url):
            async with (
                asyncio.timeout(None if long else most_s),
                self._client.stream(method, path, timeout=most_s, **more) as answer,
            ):
                body = bytearray()  # appended to in place: an ingress may send one byte at a time
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
    """Opens a client of the ingress, which has answered a request with our token.

    Raises:
        AddressError: the URL has no host; ``tls`` without https.
        UnreachableError, RefusedError, ProtocolError: nobody answers, not to us, or not as an ingress does.
    """
    settings.only(url.scheme, "timeout_s", "token", *(["tls"] if url.scheme == "https" else []))
    if not url.hostname:
        raise AddressError(f"expected {url.scheme}://host:port, got {url.geturl()!r}")
    backend = HttpBackend(client_for(url.geturl(), settings), settings)
    try:
        answer, body = await backend._ask("GET", f"{PREFIX}", (200,))
        if answer.headers.get("content-type") != "application/json" or b'"ilcp"' not in body:
            raise ProtocolError(f"expected an ilcp ingress at {url.geturl()}, got another page: is the port right?")
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
    cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))  # what an ingress wants kept would grow for ever
    return httpx.AsyncClient(base_url=where, headers=headers, cookies=cookies, transport=transport)


async def _chunks(source: Source, blob: Blob, offset: int) -> AsyncIterator[bytes]:
    """Yields the rest of a blob, of a file that may be altered meanwhile."""
    chunks = source.chunks(offset)
    while chunk := await asyncio.to_thread(next, chunks, b""):
        offset += len(chunk)
        if offset > blob.size_bytes:
            break
        yield chunk
    if offset != blob.size_bytes:
        raise missing(blob, "a file of another size, altered meanwhile")


def _refusal(answer: httpx.Response, body: bytes) -> Exception:
    """Gives the error that a status means here, with the ingress's own words where it has some."""
    try:
        said = str(json.loads(body)["error"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = f"status {answer.status_code}"
    where = f"from {answer.url.copy_with(query=None)}, got: {said}"
    match answer.status_code:
        case 401 | 403:
            return RefusedError(
                f"expected entry {where}; give the token of the ingress (ILCP_TOKEN, Settings(token=…))"
            )
        case 404 if answer.headers.get("content-type") == "application/json":
            return AddressError(f"expected a receiver of that name {where}")
        case 409:
            return ConflictError(said)
        case 422:
            return BlobError(said)
        case 400 | 413:
            return EncodeError(f"expected a message that is taken {where}")
        case 429:
            after = answer.headers.get("retry-after", "")
            wait = float(after) if after.isascii() and after.isdigit() else None
            return FullError(f"expected room {where}; try again later", retry_after_s=wait)
        case status if status in (408, 416) or status >= 500:
            return UnreachableError(f"expected an answer {where}")
    return ProtocolError(f"expected an answer of an ilcp ingress {where}; is the address right?")


@contextmanager
def _named_errors(where: object) -> Iterator[None]:
    """Raises httpx's errors under our names."""
    try:
        yield
    except httpx.InvalidURL as error:  # of a redirect, which is read although nobody follows it
        raise ProtocolError(f"expected an answer of an ilcp ingress from {where}, got a redirect: {error}") from error
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
