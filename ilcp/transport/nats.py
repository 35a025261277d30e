"""``nats://host:port``: fleets, over NATS JetStream and nats-py, which also reconnects, with its own back-off.

A stream keeps what waits (`STREAM`, work queue, one subject per name and id, one message per subject), and one durable
consumer per name hands it out. An id that was settled is refused by ``Nats-Msg-Id``. The server forgets those ids when
it is restarted, and the last acknowledgements when it is killed; so an acknowledgement is first written down in a
bucket (`SETTLED`, the message's digest, entries live for ``dedup_s``), and what stands there is not handed out again.
What a known id's message was is read back: other content is no duplicate. Names and what they read are in another
bucket (`TOLD`). A message in the stream that is no hand-off is removed, and logged.

The stream has the settings' ``max_bytes`` and ``max_age_s``, from whoever makes it; JetStream knows no share of a name.
What was handed out ``max_deliveries`` times is sent to the name's dead letters before it is settled under its own.

Blobs lie in an object store (`BLOBS`), which nobody empties but the server: by age, after twice ``max_age_s``, so that
each outlives the messages that name it, and by ``max_blobs_bytes``, beyond which a put is refused.

What JetStream has acknowledged survives a killed server; whether it survives a power cut is the server's setting.
``tls://``, or ``Settings.tls``, asks for TLS: a server that does not require it is told nothing and refused.
Handed out again is what comes back, when it comes back: after a lease ended, order is not kept. The lease of a name is
that of its first receiver; another one is refused. It counts from the request for the message, so it may be up to a
tenth shorter here than at the server, never longer. A receive that is cancelled may leave one message to its lease.
"""

import asyncio
import json
import math
import time
from datetime import datetime
from urllib.parse import SplitResult

import nats.errors
from nats.aio.msg import Msg
from nats.js import api, errors
from nats.js.client import JetStreamContext
from nats.js.errors import DigestMismatchError
from nats.js.kv import KeyValue
from nats.js.object_store import ObjectStore

from ilcp.errors import EncodeError
from ilcp.message import MAX_MESSAGE_BYTES, Blob
from ilcp.transport import telemetry
from ilcp.transport.backend import Lease, Settings, blob_of, content_digest, dead_letters, is_name, require_same
from ilcp.transport.blobs import Part, Source, missing
from ilcp.transport.errors import AddressError, ConflictError, FullError, LeaseLostError
from ilcp.transport.nats_client import (
    NO_ROOM,
    RECONNECT_S,
    STREAM,
    SUBJECT,
    ReadingClient,
    bucket,
    close_client,
    connected,
    make_stream,
    named_errors,
    unless_made,
)

__all__ = ["NatsBackend", "open_nats"]

SETTLED, TOLD, BLOBS = "ilcp-settled", "ilcp-told", "ilcp-blobs"
ID_HEADER = "Nats-Msg-Id"
STATUS_HEADER = "Status"
MESSAGE_REPLY = "$JS.ACK."  # where a message's acknowledgement goes begins so; the server's own word has none
NOTHING = ("404", "408")  # the server's word that there is no message: now, or in the time that was asked for
PULL_S = 5.0  # one request for a message; a server that was restarted meanwhile is asked again after it
PULL_PART = 0.1  # of a lease: no request waits longer, because the lease counts from the request
GRACE_S = 1.0  # for the way of an answer
DEDUP_LEASES = 2  # an acknowledgement is remembered for so many leases at least: one passes before it is asked for
LEASE_SLACK_S = 1e-6  # nats-py cuts nanoseconds off
SETTLED_BYTES, TOLD_BYTES = 256 << 20, 16 << 20  # some 2 million acknowledgements within dedup_s; 100,000 receivers
NEVER_TOLD = b"none"  # is no digest: nobody knows what was sent under an id
ONCE = "per subject"  # in the text of 10077, where it is the one message per subject that is there already
GONE = (nats.errors.NoRespondersError, nats.errors.ConnectionReconnectingError, errors.ServiceUnavailableError)
AWAY = (TimeoutError, *GONE)  # what may be over in a moment; a time-out of nats-py's is one of Python's


class NatsBackend:
    """A ``Backend`` onto a JetStream server."""

    def __init__(
        self, client: ReadingClient, stream: JetStreamContext, buckets: tuple[KeyValue, KeyValue], s: Settings
    ) -> None:
        self._client, self._stream, self._settings = client, stream, s
        self._settled, self._told = buckets
        self._consumers: set[str] = set()

    async def put(self, name: str, handoff_id: str, message: bytes) -> bool:
        """See ``Backend``."""
        key, timeout_s = f"{name}.{handoff_id}", self._settings.timeout_s
        blob = blob_of(message)
        with named_errors():
            settled = await self._settled_as(key)  # first: a server that was restarted takes any content under it
            if settled is not None:
                require_same(handoff_id, settled or None, message)
                return False
            if blob is not None and not await self._has(blob):
                raise missing(blob, "none, or an old one")
            try:
                kept = await self._stream.publish(
                    f"{SUBJECT}.{key}", message, timeout=timeout_s, stream=STREAM, headers={ID_HEADER: key}
                )
            except errors.APIError as error:
                if ONCE not in (error.description or ""):
                    raise
            else:
                if not kept.duplicate:
                    return True
            require_same(handoff_id, await self._known(key), message)
        return False

    async def take(self, name: str, lease_s: float, wait_s: float) -> Lease | None:
        """See ``Backend``. None is the server's word: who waits goes on waiting for a server that is away."""
        end = time.monotonic() + wait_s
        with named_errors():
            while True:
                left_s = max(0.0, end - time.monotonic())
                try:
                    await self._consume(name, lease_s)
                    asked = time.monotonic()
                    message = await self._pull(name, min(left_s, PULL_S, PULL_PART * lease_s))
                    lease = None if message is None else await self._leased(name, message, asked + lease_s)
                except AWAY:
                    self._consumers.discard(name)
                    if left_s <= 0:
                        raise
                    await asyncio.sleep(min(left_s, RECONNECT_S))
                    continue
                if lease is not None or (message is None and left_s <= 0):
                    return lease

    async def extend(self, name: str, lease: Lease, lease_s: float) -> float:
        """See ``Backend``. The server holds it for the consumer's lease, which is this one."""
        began_s = self._settings.clock()
        with named_errors():
            await self._client.request(lease.token, b"+WPI", timeout=self._settings.timeout_s)
        if self._settings.clock() >= lease.until_s:  # the server answers who comes too late as well
            raise LeaseLostError("expected a lease that is held, got one that ended: the message is handed out again")
        return began_s + lease_s

    async def settle(self, name: str, lease: Lease, *, retry_in_s: float | None, unseen: bool = False) -> None:
        """See ``Backend``. The server counts what comes back ``unseen`` too."""
        with named_errors():
            if retry_in_s is None:
                await self._note(f"{name}.{lease.handoff_id}", lease.message)
                answer = b"+ACK"
            else:
                answer = b"-NAK" + (json.dumps({"delay": int(retry_in_s * 1e9)}).encode() if retry_in_s else b"")
            await self._client.request(lease.token, answer, timeout=self._settings.timeout_s)

    async def publish(self, name: str, body: bytes) -> None:
        """See ``Backend``."""
        with named_errors():
            await self._told.put(name, body)

    async def lookup(self, name: str) -> bytes | None:
        """See ``Backend``."""
        with named_errors():
            try:
                return (await self._told.get(name)).value
            except errors.KeyNotFoundError:
                return None

    async def put_blob(self, source: Source) -> Blob:
        """See ``Backend``. An interrupted put begins again: the object store keeps nothing of it."""
        blob, most = await asyncio.to_thread(source.named), self._settings.max_blob_bytes
        if blob.size_bytes > most:
            raise EncodeError(f"expected a blob of at most {most} bytes, got {blob.size_bytes}: raise max_blob_bytes")
        with named_errors():
            if not await self._has(blob):
                with source.opened() as file:
                    await (await self._objects()).put(blob.digest.hex(), file)  # type: ignore[arg-type]
        return blob

    async def get_blob(self, blob: Blob, into: Part) -> None:
        """See ``Backend``. It is compared here too: the store's own digest is its writer's word."""
        with named_errors():
            objects, name = await self._objects(), blob.digest.hex()
            try:
                size = (await objects.get_info(name)).size
                if size != blob.size_bytes:
                    raise missing(blob, f"{size} bytes")
                writer = _Writer(into, self._settings.timeout_s)
                async with writer.limit:
                    await objects.get(name, writeinto=writer)  # type: ignore[arg-type]
            except (errors.NotFoundError, DigestMismatchError) as error:
                raise missing(blob, str(error) or "none") from error
        into.end()

    async def close(self) -> None:
        """See ``Backend``."""
        await close_client(self._client)

    async def _note(self, key: str, message: bytes) -> None:
        """Writes down what is settled. A full bucket stops no acknowledgement: the server's own memory is left."""
        try:
            await self._settled.put(key, content_digest(message))
        except errors.APIError as error:
            if error.err_code not in NO_ROOM:
                raise
            telemetry.logged(f"no room in {SETTLED}", queue=key.partition(".")[0])

    async def _objects(self) -> ObjectStore:
        """Finds or makes the bucket of blobs, whose entries live twice as long as a message may wait."""
        try:
            return await self._stream.object_store(BLOBS)
        except errors.BucketNotFoundError:
            config = api.ObjectStoreConfig(
                ttl=2 * self._settings.max_age_s, max_bytes=self._settings.max_blobs_bytes, storage=api.StorageType.FILE
            )
            await unless_made(self._stream.create_object_store(BLOBS, config))
            return await self._stream.object_store(BLOBS)

    async def _has(self, blob: Blob) -> bool:
        """Says whether a blob is there for as long as a message that is sent now may wait."""
        try:
            info = await (await self._objects()).get_info(blob.digest.hex())
        except errors.NotFoundError:
            return False
        age_s = time.time() - datetime.fromisoformat(info.mtime or "").timestamp()
        return info.size == blob.size_bytes and age_s < self._settings.max_age_s

    async def _settled_as(self, key: str) -> bytes | None:
        """Returns the digest of what was settled under this key; empty: it was not told."""
        try:
            return (await self._settled.get(key)).value or b""
        except errors.KeyNotFoundError:
            return None

    async def _known(self, key: str) -> bytes | None:
        """Returns the digest of the message that the server knows by this key; None: only that there was one."""
        try:  # first: what is settled meanwhile stands in the bucket before it goes from here
            return content_digest((await self._stream.get_last_msg(STREAM, f"{SUBJECT}.{key}")).data or b"")
        except errors.NotFoundError:
            known = await self._settled_as(key)
            return NEVER_TOLD if known is None else known or None

    async def _give_up(self, name: str, lease: Lease) -> None:
        """Moves a message to the dead letters of its name; where it cannot be now, it comes again later."""
        telemetry.logged("given up", queue=name, handoff_id=lease.handoff_id, attempt=lease.attempt - 1)
        try:
            await self.put(str(dead_letters(name)), lease.handoff_id, lease.message)
        except (ConflictError, FullError):
            await self.settle(name, lease, retry_in_s=self._settings.lease_s)
        else:
            await self.settle(name, lease, retry_in_s=None)

    async def _consume(self, name: str, lease_s: float) -> None:
        """Makes the name's consumer, if this connection has not seen it yet.

        Raises:
            AddressError: it is there, with another lease; or acknowledgements are not remembered for long enough.
        """
        if not self._client.is_connected:  # a request kept back until then would lease a message to nobody
            closed = self._client.is_closed
            raise nats.errors.ConnectionClosedError if closed else nats.errors.ConnectionReconnectingError
        if name in self._consumers:
            return
        try:
            there = (await self._stream.consumer_info(STREAM, name)).config
        except errors.NotFoundError:
            _check_dedup((await self._settled.status()).ttl or math.inf, lease_s)
            wanted = api.ConsumerConfig(
                name=name,
                durable_name=name,
                filter_subject=f"{SUBJECT}.{name}.*",
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=lease_s,
                max_ack_pending=-1,
            )
            there = (await self._stream.add_consumer(STREAM, wanted)).config
        if there.ack_wait is None or abs(there.ack_wait - lease_s) > LEASE_SLACK_S:
            got = f"expected lease_s {there.ack_wait:g}, with which receivers of {name} began, got {lease_s:g}"
            raise AddressError(f"{got}: use that, or have the consumer {name} of {STREAM} removed")
        self._consumers.add(name)

    async def _pull(self, name: str, wait_s: float) -> Msg | None:
        """Asks for one message; None where the server says that there is none."""
        asked = {"batch": 1, "no_wait": True} if wait_s <= 0 else {"batch": 1, "expires": int(wait_s * 1e9)}
        patience_s = self._settings.timeout_s if wait_s <= 0 else wait_s + GRACE_S
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{name}"
        answer = await self._client.ask(subject, json.dumps(asked).encode(), patience_s)
        if answer.reply.startswith(MESSAGE_REPLY):
            return answer
        headers = answer.headers or {}
        if headers.get(STATUS_HEADER) in NOTHING:
            return None
        raise errors.ServiceUnavailableError(description=headers.get("Description"))

    async def _leased(self, name: str, message: Msg, end: float) -> Lease | None:
        """Leases the message until ``end`` (monotonic); None if it was settled, or is no hand-off, and so removed."""
        key, attempt = (message.headers or {}).get(ID_HEADER, ""), message.metadata.num_delivered
        owner, _, handoff_id = key.partition(".")
        ours = owner == name and is_name(handoff_id) and message.subject == f"{SUBJECT}.{key}"
        if not ours or attempt < 1 or not 1 <= len(message.data) <= MAX_MESSAGE_BYTES:
            # Nobody could acknowledge it: it would come again for ever.
            await self._client.request(message.reply, b"+TERM", timeout=self._settings.timeout_s)
            telemetry.logged("dropped: not a hand-off", queue=name)
            return None
        if await self._settled_as(key) in (b"", content_digest(message.data)):
            await self._client.request(message.reply, b"+ACK", timeout=self._settings.timeout_s)
            return None
        left_s = end - time.monotonic()
        if left_s <= 0:  # it is, or will be, somebody else's
            raise nats.errors.TimeoutError
        lease = Lease(message.reply, handoff_id, message.data, attempt, self._settings.clock() + left_s)
        if attempt > self._settings.max_deliveries and dead_letters(name) is not None:
            await self._give_up(name, lease)
            return None
        return lease


class _Writer:
    """A blob's ``write`` for nats-py, which waits without end for chunks that were removed: here each has its time."""

    def __init__(self, into: Part, timeout_s: float) -> None:
        self._into, self._timeout_s, self._loop = into, timeout_s, asyncio.get_running_loop()
        self.limit = asyncio.timeout(timeout_s)

    def write(self, chunk: bytes) -> None:
        """Writes, in a thread of the loop's."""
        self._into.write(chunk)
        self._loop.call_soon_threadsafe(self.limit.reschedule, self._loop.time() + self._timeout_s)


async def open_nats(url: SplitResult, settings: Settings) -> NatsBackend:
    """Connects to the server, with the stream and the buckets in place.

    Raises:
        AddressError: the URL has no host, or more than a host and a port; ``dedup_s`` is too short for the lease, or
            longer than ``max_age_s``.
        MissingExtraError: credentials, and no nkeys to read them with.
        UnreachableError, RefusedError: nobody answers, or not to us, or without the TLS that was asked for.
        ProtocolError: the server has no JetStream, or our stream's name for another one.
    """
    of_stream = ("dedup_s", "max_bytes", "max_blob_bytes", "max_blobs_bytes", "max_age_s", "max_deliveries")
    settings.only(url.scheme, "timeout_s", *of_stream, "token", "tls", "credentials")
    if not url.hostname or url.path.strip("/") or url.query or url.fragment:
        raise AddressError(f"expected {url.scheme}://host:port, got {url.geturl()!r}")
    _check_dedup(settings.dedup_s, settings.lease_s)
    if settings.dedup_s > settings.max_age_s:
        raise AddressError(f"expected dedup_s of at most max_age_s {settings.max_age_s:g}, got {settings.dedup_s:g}")
    client = await connected(url.geturl(), settings)
    try:
        with named_errors():
            stream = client.jetstream(timeout=settings.timeout_s)
            await make_stream(stream, settings)
            settled = await bucket(stream, SETTLED, settings.dedup_s, SETTLED_BYTES)
            buckets = settled, await bucket(stream, TOLD, None, TOLD_BYTES)
    except BaseException:
        await close_client(client)
        raise
    return NatsBackend(client, stream, buckets, settings)


def _check_dedup(dedup_s: float, lease_s: float) -> None:
    """Refuses an acknowledgement's memory that would end before its message has come again, and been known by it."""
    if dedup_s < DEDUP_LEASES * lease_s:
        wanted = f"expected acknowledgements to be remembered for {DEDUP_LEASES} times lease_s {lease_s:g} or longer"
        raise AddressError(f"{wanted}, got dedup_s {dedup_s:g} (that of the first connection holds): set lease_s")
