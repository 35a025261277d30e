"""The calls of a connection, over any ``Backend``; `ilcp.transport.sync` calls it for programs without a loop."""

import os
import time
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from ilcp.errors import ConfigError, TransportError
from ilcp.files import replacing
from ilcp.message import Blob
from ilcp.message.format import BytesLike
from ilcp.transport import telemetry
from ilcp.transport.backend import (
    MAX_LEASE_S,
    NOT_OURS,
    Backend,
    Lease,
    Settings,
    checked_id,
    checked_message,
    checked_name,
    checked_queue,
    checked_s,
    checked_to,
)
from ilcp.transport.blobs import BlobSource, Part, Source
from ilcp.transport.capabilities import Capabilities
from ilcp.transport.errors import AddressError, CapabilityError, LeaseLostError, ProtocolError, UnreachableError

__all__ = ["AsyncConnection", "AsyncDelivery", "Receipt"]


class Receipt(NamedTuple):
    """A message is kept. ``duplicate``: it was there already under this id, and is kept once."""

    handoff_id: str
    duplicate: bool


class AsyncDelivery:
    """One message, held until it is settled or ``until_s`` (the settings' clock) has come.

    A clock that is set back holds it no longer: beside the usual one, the time since it came is looked at.

    ``attempt`` counts how often it was handed out, from 1: a message that breaks its receivers shows by it.
    """

    def __init__(self, backend: Backend, name: str, lease: Lease, settings: Settings) -> None:
        self._backend, self._name, self._clock, self._pid = backend, name, settings.clock, os.getpid()
        self._settled: Literal["ack", "nack"] | None = None
        self._ack_in_doubt = False
        self._lease_s = settings.lease_s
        self._hold(lease)

    def _hold(self, lease: Lease) -> None:
        self._lease = lease
        left_s = min(lease.until_s - self._clock(), self._lease_s)
        self._end_s = time.monotonic() + left_s if self._clock is time.time else float("inf")

    @property
    def message(self) -> bytes:
        """The message that was sent."""
        return self._lease.message

    @property
    def handoff_id(self) -> str:
        """The idempotency key: the sealed message's own, or the one that it was sent under."""
        return self._lease.handoff_id

    @property
    def attempt(self) -> int:
        """The number of times that the message was handed out, this time counted in."""
        return self._lease.attempt

    @property
    def until_s(self) -> float:
        """When the lease ends, by the settings' clock."""
        return self._lease.until_s

    async def ack(self) -> None:
        """Ends it as done: nobody gets it again. May be repeated, as after an ``UnreachableError``.

        Raises:
            LeaseLostError: the lease has ended, or it was given back.
            TransportError: the other side cannot be reached; it may or may not know.
        """
        await self._settle("ack", None)

    async def nack(self, delay_s: float = 0.0, *, unseen: bool = False) -> None:
        """Gives it back as not done: it is free again after ``delay_s``.

        What comes back ``unseen``, because the receiver failed before it looked at it, counts as not handed out, so
        that it is no dead letter for that (NATS counts every time).

        Raises:
            LeaseLostError: the lease has ended, or it was acknowledged, as far as we know.
            AddressError: a delay that is negative or longer than any lease.
            TransportError: the other side cannot be reached; the lease runs out by itself.
        """
        await self._settle("nack", 0.0 if delay_s == 0 else checked_s("delay_s", delay_s, MAX_LEASE_S), unseen)

    async def extend(self) -> float:
        """Holds it for another ``lease_s`` from now on, for work that takes longer, and returns the new ``until_s``.

        May be repeated, each time before the lease ends.

        Raises:
            LeaseLostError: the lease has ended, or the delivery was settled.
            TransportError: the other side cannot be reached; the lease that was held goes on.
        """
        self._require_held("extend")
        with telemetry.span(telemetry.SPAN_SETTLE, **_attributes("extend", self._name, self._lease)):
            until_s = await self._backend.extend(self._name, self._lease, self._lease_s)
        self._hold(self._lease._replace(until_s=until_s))
        telemetry.logged("extended", queue=self._name, handoff_id=self.handoff_id, attempt=self.attempt)
        return until_s

    async def _settle(self, how: Literal["ack", "nack"], retry_in_s: float | None, unseen: bool = False) -> None:
        if self._settled == how:
            return
        self._require_held(how)
        with telemetry.span(telemetry.SPAN_SETTLE, **_attributes(how, self._name, self._lease)):
            try:
                await self._backend.settle(self._name, self._lease, retry_in_s=retry_in_s, unseen=unseen)
            except BaseException as error:  # what is no refusal, such as Ctrl-C, may come when all is done
                sure = isinstance(error, TransportError) and not isinstance(error, UnreachableError | ProtocolError)
                self._ack_in_doubt |= how == "ack" and not sure
                raise
        self._settled = how
        telemetry.logged(f"{how}ed", queue=self._name, handoff_id=self.handoff_id, attempt=self.attempt)

    def _require_held(self, how: str) -> None:
        """Refuses what only who holds the delivery may do with it."""
        _require_ours(self._pid)
        was = None
        if self._settled:
            was = f"after its {self._settled}"
        elif self._clock() >= self.until_s or time.monotonic() >= self._end_s:
            was = "after its lease ended"
        elif how != "ack" and self._ack_in_doubt:
            was = "whose acknowledgement may have arrived"
        if was is not None:
            raise LeaseLostError(f"expected {how} of a delivery that is held, got one {was}: {self.handoff_id}")


class AsyncConnection:
    """A way to send to any name, and to receive under one's own, ``name``. Any number of tasks may share it.

    A message that was handed out ``max_deliveries`` times goes to the dead letters, under the name ``NAME-dead``.
    """

    def __init__(self, backend: Backend, name: str | None, settings: Settings) -> None:
        self.name = name if name is None else checked_queue(name)
        self._inner, self._settings, self._pid = backend, settings, os.getpid()

    @property
    def _backend(self) -> Backend:
        """The backend, whose loop and threads are those of the process that connected: after a fork nobody answers."""
        _require_ours(self._pid)
        return self._inner

    async def send(self, message: BytesLike, *, to: str, handoff_id: str | None = None) -> Receipt:
        """Hands ``message`` on to be kept for ``to``, once per id.

        The id is the one that a sealed message shows; else ``handoff_id``; else a fresh one, and then a send that is
        repeated after an error may be kept twice.

        Raises:
            EncodeError: no bytes, none of them, or too many.
            AddressError: a name or an id that no transport takes.
            ConflictError: another message is known under the id.
            BlobError: the message names a blob that was not put, or is of another size.
            FullError: there is no room now.
            TransportError: the other side cannot be reached, or does not want it.
        """
        wire, name = checked_message(message), checked_to(to)
        known = checked_id(wire, handoff_id)
        lease = Lease("", known, wire, 0, 0.0)
        with telemetry.span(telemetry.SPAN_SEND, **_attributes("send", name, lease)) as span:
            new = await self._backend.put(name, known, wire)
            if span is not None:
                span.set_attribute(telemetry.ATTRIBUTE_DUPLICATE, not new)
        telemetry.logged("sent", queue=name, handoff_id=known, message_bytes=len(wire), duplicate=not new)
        return Receipt(known, not new)

    async def receive(self, timeout_s: float = 0.0) -> AsyncDelivery | None:
        """Returns the oldest message for ``name`` that nobody holds; None if none came within ``timeout_s``.

        Raises:
            AddressError: the connection has no name, or the time is none.
            TransportError: the other side cannot be reached, or does not want to.
        """
        name = self._own_name()
        wait_s = 0.0 if timeout_s == 0 else checked_s("timeout_s", timeout_s, MAX_LEASE_S)
        lease = await self._backend.take(name, self._settings.lease_s, wait_s)
        if lease is None:
            return None
        with telemetry.span(telemetry.SPAN_RECEIVE, **_attributes("receive", name, lease)):
            telemetry.logged(
                "received",
                queue=name,
                handoff_id=lease.handoff_id,
                message_bytes=len(lease.message),
                attempt=lease.attempt,
            )
            return AsyncDelivery(self._backend, name, lease, self._settings)

    async def put_blob(self, data: BlobSource) -> Blob:
        """Keeps bytes that are too many for a message, and returns the name under which a message names them.

        ``data`` is bytes, the path of a file, or a binary file from where it stands to its end; a file is read in
        chunks. What is there already is not kept twice, and a put that was interrupted goes on where it ended.

        Raises:
            EncodeError: something else, no bytes, or more than ``max_blob_bytes``.
            BlobError: the file was altered meanwhile.
            FullError: there is no room now.
            StorageError: the file cannot be read.
            TransportError: the other side cannot be reached, or does not want it.
        """
        return await self._backend.put_blob(Source(data))

    @overload
    async def get_blob(self, blob: Blob, *, max_bytes: int | None = None, into: None = None) -> bytes: ...

    @overload
    async def get_blob(self, blob: Blob, *, max_bytes: int | None = None, into: str | Path) -> Path: ...

    async def get_blob(
        self, blob: Blob, *, max_bytes: int | None = None, into: str | Path | None = None
    ) -> bytes | Path:
        """Returns the bytes that a blob names; with ``into`` they are a file there, whole or not at all, and its path.

        They are compared with the blob's size and digest while they are read. More than ``max_bytes``
        (``Settings.max_blob_bytes`` if not given) are not begun.

        Raises:
            BlobError: it is not there, or is not what its name says; nothing is kept of it.
            ConfigError: the blob is larger than ``max_bytes``, or is none; ``max_bytes`` is no whole number.
            StorageError: the file cannot be written.
            TransportError: the other side cannot be reached, or does not want to.
        """
        if not isinstance(blob, Blob):
            raise ConfigError(f"expected a Blob, got {blob!r:.80}: give what put_blob returned, or a message's .blob")
        most = self._settings.max_blob_bytes if max_bytes is None else max_bytes
        if type(most) is not int:
            raise ConfigError(f"expected max_bytes as a whole number, got {most!r:.80}: give bytes, or leave it out")
        if blob.size_bytes > most:
            raise ConfigError(f"expected a blob of at most {most} bytes, got {blob.size_bytes}: raise max_bytes")
        if into is None:
            held = BytesIO()
            await self._backend.get_blob(blob, Part(blob, held))
            return held.getvalue()
        with replacing(Path(into), private=True) as draft, open(draft, "r+b") as file:
            await self._backend.get_blob(blob, Part(blob, file))
        return Path(into)

    async def publish(self, capabilities: Capabilities) -> None:
        """Tells under ``name`` what this receiver reads, in place of what was told before.

        Raises:
            AddressError: the connection has no name.
            TransportError: the other side cannot be reached, or does not want to.
        """
        await self._backend.publish(self._own_name(), capabilities.to_bytes())

    async def capabilities(self, name: str) -> Capabilities:
        """Returns what ``name`` told last.

        Raises:
            CapabilityError: it has told nothing.
            DecodeError: what it told is nothing that this release reads.
            TransportError: the other side cannot be reached, or does not want to.
        """
        body = await self._backend.lookup(checked_name("name", name))
        if body is None:
            raise CapabilityError(f"expected {name} to have told what it reads, got nothing: start the receiver first")
        return Capabilities.from_bytes(body)

    def _own_name(self) -> str:
        if self.name is None:
            raise AddressError("expected a connection with a name, got one without: connect(url, name='planner')")
        return self.name


def _require_ours(pid: int) -> None:
    if os.getpid() != pid:
        raise AddressError(NOT_OURS)


def _attributes(operation: str, name: str, lease: Lease) -> dict[str, Any]:
    return {
        telemetry.ATTRIBUTE_OPERATION: operation,
        telemetry.ATTRIBUTE_QUEUE: name,
        telemetry.ATTRIBUTE_ID: lease.handoff_id,
        telemetry.ATTRIBUTE_BYTES: len(lease.message),
        telemetry.ATTRIBUTE_ATTEMPT: lease.attempt,
    }
