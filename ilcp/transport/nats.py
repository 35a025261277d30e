"""``nats://host:port``: fleets, over NATS JetStream and nats-py, which also reconnects, with its own back-off.

A stream keeps what waits (`STREAM`, work queue, one subject per name), one durable consumer per name hands it out, and
the stream refuses an id twice by ``Nats-Msg-Id``. The server forgets those ids when it is restarted, and the last
acknowledgements when it is killed; so an acknowledgement is first written down in a bucket (`SETTLED`, entries live for
``dedup_s``), and what stands there is not handed out again. Names and what they read are in another (`TOLD`).

What JetStream has acknowledged survives a killed server; whether it survives a power cut is the server's setting.
``tls://``, or ``Settings.tls``, asks for TLS: a server that does not require it is told nothing and refused.
Handed out again is what comes back, when it comes back: after a lease ended, order is not kept. The lease of a name is
that of its first receiver; another one is refused. A receive that is cancelled may leave one message to its lease.
"""

import asyncio
import importlib.util
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, BadRequestError, BucketNotFoundError, KeyNotFoundError, NotFoundError
from nats.js.kv import KeyValue

from ilcp.errors import IlcpError, TransportError
from ilcp.transport.errors import (
    AddressError,
    FullError,
    MissingExtraError,
    ProtocolError,
    RefusedError,
    UnreachableError,
)
from ilcp.transport.link import Lease, Settings

__all__ = ["NatsLink", "open_nats"]

STREAM, SETTLED, TOLD = "ilcp-handoffs", "ilcp-settled", "ilcp-told"
SUBJECT = "ilcp.handoffs"
ID_HEADER = "Nats-Msg-Id"
STATUS_HEADER = "Status"
RECONNECT_S = 0.5
PULL_S = 5.0  # one request for a message; a server that was restarted meanwhile is asked again after it
NAME_TAKEN = 10058  # JetStream's error: there is a stream of that name, made otherwise
# What nats-py raises where an answer is not as a server's: it reads JSON, numbers and times without a check.
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)
NO_ROOM = (10047, 10077, 10122, 10023)  # maximum bytes or messages exceeded, insufficient storage or resources

_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]{1,64}")  # name and id, as ``put`` writes them


class NatsLink:
    """A ``Link`` onto a JetStream server."""

    def __init__(
        self, client: Client, stream: JetStreamContext, buckets: tuple[KeyValue, KeyValue], s: Settings
    ) -> None:
        self._client, self._stream, self._settings = client, stream, s
        self._settled, self._told = buckets
        self._consumers: set[str] = set()

    async def put(self, name: str, handoff_id: str, message: bytes) -> bool:
        """See ``Link``."""
        with _named_errors():
            kept = await self._stream.publish(
                f"{SUBJECT}.{name}",
                message,
                timeout=self._settings.timeout_s,
                stream=STREAM,
                headers={ID_HEADER: f"{name}.{handoff_id}"},
            )
        return not kept.duplicate

    async def take(self, name: str, lease_s: float, wait_s: float) -> Lease | None:
        """See ``Link``."""
        end = time.monotonic() + wait_s
        with _named_errors():
            await self._consume(name, lease_s)
            while True:
                left = max(0.0, end - time.monotonic())
                message = await self._pull(name, min(left, PULL_S))
                if message is None:
                    if left <= PULL_S:
                        return None
                    continue
                attempt = message.metadata.num_delivered
                key = (message.headers or {}).get(ID_HEADER, "")
                if attempt < 1 or not _KEY.fullmatch(key) or not key.startswith(f"{name}."):
                    # Nobody could acknowledge it: it would come again for ever.
                    await self._client.request(message.reply, b"+TERM", timeout=self._settings.timeout_s)
                    raise ProtocolError(f"expected a hand-off of ilcp's for {name}, got another message: removed")
                if await self._is_settled(key):
                    await self._client.request(message.reply, b"+ACK", timeout=self._settings.timeout_s)
                    continue
                until_s = self._settings.clock() + lease_s
                handoff_id = key.partition(".")[2]
                return Lease(message.reply, handoff_id, message.data, attempt, until_s)

    async def settle(self, name: str, lease: Lease, *, retry_in_s: float | None) -> None:
        """See ``Link``."""
        with _named_errors():
            if retry_in_s is None:
                await self._settled.put(f"{name}.{lease.handoff_id}", b"")
                answer = b"+ACK"
            else:
                answer = b"-NAK" + (json.dumps({"delay": int(retry_in_s * 1e9)}).encode() if retry_in_s else b"")
            await self._client.request(lease.token, answer, timeout=self._settings.timeout_s)

    async def publish(self, name: str, body: bytes) -> None:
        """See ``Link``."""
        with _named_errors():
            await self._told.put(name, body)

    async def lookup(self, name: str) -> bytes | None:
        """See ``Link``."""
        with _named_errors():
            try:
                return (await self._told.get(name)).value
            except KeyNotFoundError:
                return None

    async def close(self) -> None:
        """See ``Link``."""
        await _close(self._client)

    async def _is_settled(self, key: str) -> bool:
        try:
            await self._settled.get(key)
        except KeyNotFoundError:
            return False
        return True

    async def _consume(self, name: str, lease_s: float) -> None:
        """Makes the name's consumer, if this connection has not seen it yet.

        Raises:
            AddressError: it is there, with another lease.
        """
        if name in self._consumers:
            return
        try:
            there = (await self._stream._jsm.consumer_info(STREAM, name)).config
        except NotFoundError:
            wanted = api.ConsumerConfig(
                name=name,
                durable_name=name,
                filter_subject=f"{SUBJECT}.{name}",
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=lease_s,
                max_ack_pending=-1,
            )
            there = (await self._stream._jsm.add_consumer(STREAM, wanted)).config
        if there.ack_wait != lease_s:
            got = f"expected lease_s {there.ack_wait:g}, with which receivers of {name} began, got {lease_s:g}"
            raise AddressError(f"{got}: use that, or have the consumer {name} of {STREAM} removed")
        self._consumers.add(name)

    async def _pull(self, name: str, wait_s: float) -> Msg | None:
        """One message, or None; each request has an inbox of its own, so that answers cannot be mistaken."""
        asked = {"batch": 1, "no_wait": True} if wait_s <= 0 else {"batch": 1, "expires": int(wait_s * 1e9)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{name}"
        if not self._client.is_connected:  # a request kept back until then would lease a message to nobody
            if wait_s <= 0:
                raise nats.errors.ConnectionReconnectingError
            await asyncio.sleep(min(wait_s, RECONNECT_S))
            return None
        try:
            patience = self._settings.timeout_s if wait_s <= 0 else wait_s + 1.0
            # "Old style" subscribes an inbox of its own; the shared one sorts by subject, and a message keeps its own.
            message = await self._client.request(subject, json.dumps(asked).encode(), timeout=patience, old_style=True)
        except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
            if wait_s <= 0:
                raise
            return None
        return message if STATUS_HEADER not in (message.headers or {}) else None


async def open_nats(url: SplitResult, settings: Settings) -> NatsLink:
    """A connection to the server, with the stream and the buckets in place.

    Raises:
        AddressError: the URL has no host, or more than a host and a port.
        MissingExtraError: credentials, and no nkeys to read them with.
        UnreachableError, RefusedError: nobody answers, or not to us, or without the TLS that was asked for.
        ProtocolError: the server has no JetStream.
    """
    settings.only(url.scheme, "timeout_s", "dedup_s", "max_bytes", "token", "tls", "credentials")
    if not url.hostname or url.path.strip("/") or url.query:
        raise AddressError(f"expected {url.scheme}://host:port, got {url.geturl()!r}")
    client = await _connected(url.geturl(), settings)
    try:
        with _named_errors():
            stream = client.jetstream(timeout=settings.timeout_s)
            await _make_stream(stream, settings)
            buckets = await _bucket(stream, SETTLED, settings.dedup_s), await _bucket(stream, TOLD, None)
    except BaseException:
        await _close(client)
        raise
    return NatsLink(client, stream, buckets, settings)


class ReadingClient(Client):
    """nats-py stops reading for good, and says nothing, at headers that it cannot decode; here they count as none."""

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (ValueError, LookupError):
            return None


class _TlsClient(ReadingClient):
    """nats-py speaks TLS only where the server wants it; here no word of ours, and no token, goes to one without."""

    def _connect_command(self) -> bytes:
        if not self._server_info.get("tls_required"):
            raise RefusedError("expected a NATS server that requires TLS, got one that does not: start it with --tls")
        return super()._connect_command()


async def _connected(address: str, settings: Settings) -> Client:
    """nats-py tries on by itself; what it could not mend so, as a refusal, is said at once."""
    secure = settings.tls is not None or address.startswith("tls:")
    client, refused = _TlsClient() if secure else ReadingClient(), asyncio.get_running_loop().create_future()
    seen: list[Exception] = []

    async def on_error(error: Exception) -> None:
        seen.append(error)
        named = _name(error)
        if isinstance(named, RefusedError) and not refused.done():
            refused.set_result(named)

    options: dict[str, Any] = {"token": settings.token, "tls": settings.tls}
    if settings.credentials is not None:
        try:
            content = settings.credentials.read_bytes()
        except OSError as error:
            raise AddressError(f"expected credentials that can be read, got: {error}; name a .creds file") from error
        if b"BEGIN NATS USER JWT" not in content or b"BEGIN USER NKEY SEED" not in content:
            wanted = f"expected a user's JWT and seed in {settings.credentials}"
            raise AddressError(f"{wanted}, got another file: name a .creds file")
        if importlib.util.find_spec("nkeys") is None:
            raise MissingExtraError("expected nkeys for credentials, got no such package: pip install 'ilcp[nats]'")
        options["user_credentials"] = str(settings.credentials)
    trying = asyncio.ensure_future(
        client.connect(
            address,
            error_cb=on_error,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_S,  # type: ignore[arg-type]
            connect_timeout=settings.timeout_s,  # type: ignore[arg-type]
            **options,
        )
    )
    done, _ = await asyncio.wait({trying, refused}, timeout=settings.timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if trying in done and trying.exception() is None:
        return client
    trying.cancel()
    await asyncio.gather(trying, return_exceptions=True)
    await _close(client)
    if refused.done():
        raise refused.result()
    said = trying.exception() if trying in done else (seen[-1] if seen else "nothing")
    raise UnreachableError(f"expected a NATS server at {address}, got: {said}; is nats-server -js running there?")


async def _close(client: Client) -> None:
    """Ends what there is of a connection; what the last operation said of it has been told already."""
    with suppress(nats.errors.Error, OSError, AssertionError):  # AssertionError: nats-py closing what never was open
        await client.close()


async def _make_stream(stream: JetStreamContext, settings: Settings) -> None:
    try:
        await stream._jsm.stream_info(STREAM)
    except NotFoundError:
        wanted = api.StreamConfig(
            name=STREAM,
            subjects=[f"{SUBJECT}.*"],
            retention=api.RetentionPolicy.WORK_QUEUE,
            discard=api.DiscardPolicy.NEW,
            storage=api.StorageType.FILE,
            max_bytes=settings.max_bytes,
            duplicate_window=settings.dedup_s,
        )
        await _unless_made(stream._jsm.add_stream(wanted))


async def _bucket(stream: JetStreamContext, name: str, ttl_s: float | None) -> KeyValue:
    try:
        return await stream.key_value(name)
    except BucketNotFoundError:
        await _unless_made(stream.create_key_value(bucket=name, ttl=ttl_s, direct=True))
        return await stream.key_value(name)


async def _unless_made(making: Any) -> None:
    """Somebody else may make the same at this moment, with other settings."""
    try:
        await making
    except BadRequestError as error:
        if error.err_code != NAME_TAKEN:
            raise


def _name(error: Exception) -> TransportError:
    """nats-py's error under our name."""
    if isinstance(error, TransportError):
        return error
    said = str(error) or type(error).__name__
    low = said.lower()
    if isinstance(error, nats.errors.AuthorizationError) or "authorization" in low or "authentication" in low:
        return RefusedError(f"expected entry to the NATS server, got: {said}; give Settings(token=… or credentials=…)")
    if "permissions violation" in low or "certificate" in low:
        return RefusedError(f"expected trust between us and the NATS server, got: {said}; see its permissions and TLS")
    if isinstance(error, APIError) and error.err_code in NO_ROOM:
        return FullError(f"expected room in the stream {STREAM}, got: {error.description}; receive some")
    if isinstance(error, nats.errors.NotJSMessageError):
        return ProtocolError(f"expected a message of JetStream's, got another: {said}; who else writes to {SUBJECT}?")
    if isinstance(error, APIError | nats.errors.NoRespondersError) and not isinstance(error, nats.errors.TimeoutError):
        return ProtocolError(f"expected JetStream to do it, got: {said}; is the server started with -js?")
    return UnreachableError(f"expected an answer of the NATS server, got: {said}; it may have been done: try again")


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except (TimeoutError, nats.errors.Error, OSError) as error:
        if isinstance(error, TransportError):
            raise
        raise _name(error) from error
    except UNREADABLE as error:
        if isinstance(error, IlcpError):
            raise
        got = f"{type(error).__name__}: {error}"
        raise ProtocolError(f"expected an answer as JetStream gives it, got another: {got:.300}") from error
