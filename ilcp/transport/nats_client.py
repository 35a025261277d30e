"""nats-py's client as ``nats://`` needs it: what it cannot read, what it says of TLS, its errors under our names, and
the stream and the buckets that a server has to have.

Three private names of nats-py are used (`PRIVATE`): there is no public way to go on behind headers that it cannot
decode, nor to see whether the server wants TLS before our token goes to it. pyproject.toml caps its version, and a test
looks for the names.
"""

import asyncio
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api, errors
from nats.js.client import JetStreamContext
from nats.js.kv import KeyValue

from ilcp.errors import IlcpError, MissingExtraError, TransportError
from ilcp.message import MAX_MESSAGE_BYTES
from ilcp.transport.backend import Settings
from ilcp.transport.errors import AddressError, FullError, ProtocolError, RefusedError, UnreachableError

__all__ = [
    "PRIVATE",
    "ReadingClient",
    "bucket",
    "close_client",
    "connected",
    "make_stream",
    "named",
    "named_errors",
    "unless_made",
]

PRIVATE = ("_connect_command", "_process_headers", "_server_info")
STREAM = "ilcp-handoffs"
SUBJECT = "ilcp.handoffs"
SUBJECTS = f"{SUBJECT}.*.*"  # name and id
HEADER_BYTES = 4096  # a message's own are 200
NAME_TAKEN = 10058  # JetStream's error: there is a stream of that name, made otherwise
RECONNECT_S = 0.5
# What nats-py raises where an answer is not as a server's: it reads JSON, numbers and times without a check.
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)
NO_ROOM = (10047, 10077, 10122, 10023)  # maximum bytes or messages exceeded, insufficient storage or resources


class ReadingClient(Client):
    """nats-py stops reading for good, and says nothing, at headers that it cannot decode; here they count as none."""

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (ValueError, LookupError):
            return None

    async def ask(self, subject: str, payload: bytes, timeout_s: float) -> Msg:
        """Returns the answer to an inbox of its own, whatever it says; ``request`` acts on any message's ``Status``."""
        inbox, answer = self.new_inbox(), asyncio.get_running_loop().create_future()
        subscription = await self.subscribe(inbox, future=answer, max_msgs=1)
        try:
            await subscription.unsubscribe(limit=1)
            await self.publish(subject, payload, reply=inbox)
            found: Msg = await asyncio.wait_for(answer, timeout_s)
        except BaseException:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()
            raise
        return found


class TlsClient(ReadingClient):
    """nats-py speaks TLS only where the server wants it; here no word of ours, and no token, goes to one without."""

    def _connect_command(self) -> bytes:
        if not self._server_info.get("tls_required"):
            raise RefusedError("expected a NATS server that requires TLS, got one that does not: start it with --tls")
        return super()._connect_command()


async def connected(address: str, settings: Settings) -> ReadingClient:
    """Connects. nats-py tries on by itself; what it could not mend so, as a refusal, is said at once."""
    secure = settings.tls is not None or address.startswith("tls:")
    client, refused = TlsClient() if secure else ReadingClient(), asyncio.get_running_loop().create_future()
    last: Exception | None = None

    async def on_error(error: Exception) -> None:
        nonlocal last
        last = error
        ours = named(error)
        if isinstance(ours, RefusedError) and not refused.done():
            refused.set_result(ours)

    options = _options(settings)
    trying = asyncio.ensure_future(client.connect(address, error_cb=on_error, **options))
    done, _ = await asyncio.wait({trying, refused}, timeout=settings.timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if trying in done and trying.exception() is None:
        return client
    trying.cancel()
    await asyncio.gather(trying, return_exceptions=True)
    await close_client(client)
    if refused.done():
        raise refused.result()
    said = trying.exception() if trying in done else (last or "nothing")
    raise UnreachableError(f"expected a NATS server at {address}, got: {said}; is nats-server -js running there?")


async def close_client(client: Client) -> None:
    """Ends what there is of a connection; what the last operation said of it has been told already."""
    with suppress(nats.errors.Error, OSError, AssertionError):  # AssertionError: nats-py closing what never was open
        await client.close()


def _options(settings: Settings) -> dict[str, Any]:
    """Gives nats-py's options for the settings; credentials are looked at, because nats-py would try them for ever."""
    options: dict[str, Any] = {
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": RECONNECT_S,
        "connect_timeout": settings.timeout_s,
        "token": settings.token,
        "tls": settings.tls,
    }
    if settings.credentials is None:
        return options
    try:
        content = settings.credentials.read_bytes()
    except OSError as error:
        raise AddressError(f"expected credentials that can be read, got: {error}; name a .creds file") from error
    if b"BEGIN NATS USER JWT" not in content or b"BEGIN USER NKEY SEED" not in content:
        wanted = f"expected a user's JWT and seed in {settings.credentials}"
        raise AddressError(f"{wanted}, got another file: name a .creds file")
    if importlib.util.find_spec("nkeys") is None:
        raise MissingExtraError.of("nkeys", "for credentials", "nats")
    return options | {"user_credentials": str(settings.credentials)}


def named(error: Exception) -> TransportError:
    """Gives nats-py's error under our name."""
    if isinstance(error, TransportError):
        return error
    said = str(error) or type(error).__name__
    low = said.lower()
    if isinstance(error, nats.errors.AuthorizationError) or "authorization" in low or "authentication" in low:
        return RefusedError(f"expected entry to the NATS server, got: {said}; give Settings(token=… or credentials=…)")
    if "permissions violation" in low or "certificate" in low:
        return RefusedError(f"expected trust between us and the NATS server, got: {said}; see its permissions and TLS")
    if isinstance(error, errors.APIError) and error.err_code in NO_ROOM:
        return FullError(f"expected room in the stream {STREAM}, got: {error.description}; receive some")
    if isinstance(error, nats.errors.NotJSMessageError):
        return ProtocolError(f"expected a message of JetStream's, got another: {said}; who else writes to {SUBJECT}?")
    if isinstance(error, errors.APIError | nats.errors.NoRespondersError):
        return ProtocolError(f"expected JetStream to do it, got: {said}; is the server started with -js?")
    return UnreachableError(f"expected an answer of the NATS server, got: {said}; it may have been done: try again")


@contextmanager
def named_errors() -> Iterator[None]:
    try:
        yield
    except (TimeoutError, nats.errors.Error, OSError) as error:
        if isinstance(error, TransportError):
            raise
        raise named(error) from error
    except UNREADABLE as error:
        if isinstance(error, IlcpError):
            raise
        got = f"{type(error).__name__}: {error}"
        raise ProtocolError(f"expected an answer as JetStream gives it, got another: {got:.300}") from error


async def make_stream(stream: JetStreamContext, settings: Settings) -> None:
    """Makes the stream, unless it is there.

    Raises:
        ProtocolError: what is there keeps messages otherwise.
    """
    fixed: dict[str, Any] = dict(
        subjects=[SUBJECTS],
        retention=api.RetentionPolicy.WORK_QUEUE,
        discard=api.DiscardPolicy.NEW,
        discard_new_per_subject=True,
        max_msgs_per_subject=1,
    )
    try:
        there = (await stream.stream_info(STREAM)).config
    except errors.NotFoundError:
        made = api.StreamConfig(
            name=STREAM,
            **fixed,
            storage=api.StorageType.FILE,
            max_bytes=settings.max_bytes,
            max_age=settings.max_age_s,
            max_msg_size=MAX_MESSAGE_BYTES + HEADER_BYTES,
            duplicate_window=settings.dedup_s,
        )
        await unless_made(stream.add_stream(made))
        return
    for option, value in fixed.items():
        if (got := getattr(there, option)) != value:
            wanted = getattr(value, "value", value)
            raise ProtocolError(f"expected {STREAM} with {option} {wanted}, got {got}: empty it, and have it removed")
    for option in ("max_bytes", "max_age"):
        if (got := getattr(there, option) or 0) <= 0:
            raise ProtocolError(f"expected {STREAM} with a {option}, got none: give it one at the server")


async def bucket(stream: JetStreamContext, name: str, ttl_s: float | None, max_bytes: int) -> KeyValue:
    """Returns the bucket of that name, which is made unless it is there."""
    try:
        return await stream.key_value(name)
    except errors.BucketNotFoundError:
        await unless_made(stream.create_key_value(bucket=name, ttl=ttl_s, max_bytes=max_bytes, direct=True))
        return await stream.key_value(name)


async def unless_made(making: Any) -> None:
    """Somebody else may make the same at this moment, with other settings."""
    try:
        await making
    except errors.BadRequestError as error:
        if error.err_code != NAME_TAKEN:
            raise
