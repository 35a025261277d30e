"""A producer's side of the record: what ``Sender(audit=...)`` and ``Receiver(audit=...)`` tell a guardian.

>>> from ilcp.audit import Recorder
>>> with Recorder("memory://record", "planner") as audit:
...     audit.record("sent", {"message_bytes": 100})
1

The record is on its way before the message is: it is in the transport's keeping when ``encode`` returns, or with
``outbox=`` in a file from which a thread takes it there, so that neither a guardian nor a transport that cannot be
reached delays anything or loses anything. Whether a hand-off may go on unrecorded says ``unrecorded``:

    "always"   yes: where even the transport fails, a warning says so, and the missing number shows in the ledger
    "told"     what the outbox or the transport has; what cannot be told does not go on
    a number   as long as the guardian has not yet entered so many of this recorder's
    "never"    only what the guardian has entered goes on, within ``timeout_s``

A receipt says that it is so. Whoever may write to the transport can write one, unless ``key=`` names the guardian's. A
message that was refused goes nowhere, and is told of without waiting. An OpenTelemetry span that is open gets the
record's id, run and number. After a fork a recorder is its parent's.
"""

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from hashlib import sha256
from os import urandom
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from ilcp.audit.checkpoints import Key, parsed, signers
from ilcp.audit.deposits import MOST_BYTES, Deposit, binding
from ilcp.audit.entries import Draft
from ilcp.audit.guardian import GUARDIAN, settings_for
from ilcp.audit.outbox import Outbox
from ilcp.audit.submission import PAGE, VIEWS, Receipt, Submission, id_of
from ilcp.errors import AuditError, ConfigError, DecodeError, EncodeError, IlcpError, TransportError
from ilcp.message import describe
from ilcp.transport import ConflictError, Connection, FullError, Settings, connect, telemetry
from ilcp.transport.backend import checked_name

__all__ = ["AuditWarning", "Recorder"]

RUN_BYTES = 8
LOOK_S = 0.2  # at receipts, before others of this recorder have their turn
MOST_REASON = 1000  # characters
POLICIES = ("always", "told", "never")
BESIDE = b"\t"  # between a record and its deposit: JSON has none


class AuditWarning(UserWarning):
    """A hand-off went on without a record, as the caller allowed."""


class Recorder:
    """Tells a guardian what is handed over; any thread may call. It is closed as a context manager, or by ``close``.

    Args:
        url: the transport to the guardian, such as ``spool:///folder``.
        producer: who hands over, a name of A-Z a-z 0-9 - _; whoever may write to the transport may say it.
        run: what belongs together, over several recorders too; each counts its own from 1. None for a fresh one.
        hop: where in a pipeline this producer is, from 1; None where nobody counts.
        unrecorded: "always", "told", "never", or how many may wait for the guardian; see above.
        guardian: the name under which it receives.
        key: the guardian's public key; a receipt without its signature is then none.
        outbox: a folder of this account's own, in which a record lies until the transport has it.
        accounts: whether the guardian also gets text and payload, of which it makes accounts, and gives both up.
        settings: of the transport. Without any, a killed process loses nothing and a power cut may lose the last ones.

    Raises:
        AddressError, UnreachableError, MissingExtraError: as ``ilcp.transport.connect``.
        ConfigError: ``unrecorded`` is something else, or the run is that of the page's views.
    """

    def __init__(
        self,
        url: str,
        producer: str,
        *,
        run: str | None = None,
        hop: int | None = None,
        unrecorded: Literal["always", "told", "never"] | int = "always",
        guardian: str = GUARDIAN,
        key: Key | None = None,
        outbox: Path | None = None,
        accounts: bool = False,
        settings: Settings | None = None,
        timeout_s: float = 10.0,
    ):
        if unrecorded not in POLICIES and (type(unrecorded) is not int or unrecorded < 1):
            raise ConfigError(f"expected unrecorded as {', '.join(POLICIES)} or a number from 1, got {unrecorded!r}")
        self.producer = checked_name("a producer's name", producer)
        if run == VIEWS and producer != PAGE:
            raise ConfigError(f"expected another run than {VIEWS!r}, got it: views of the auditor's page are in it")
        self.run, self.hop = run or urandom(RUN_BYTES).hex(), hop
        self.unrecorded, self.guardian, self.timeout_s = unrecorded, guardian, timeout_s
        self.key, self.part, self.accounts = key, urandom(RUN_BYTES).hex(), accounts
        self._lock, self._connecting, self._pid = RLock(), RLock(), os.getpid()
        self._sequence = 0
        self._waiting: set[str] = set()  # submissions without a receipt
        self._codecs: dict[str, dict[str, Any]] = {}  # what is told of them, by id
        self.checkpoint = ""  # the newest that a receipt brought
        self._mailbox = "" if unrecorded in ("always", "told") else f"receipts-{self.part}"
        self._url, self._settings = url, settings_for(url, power_safe=False) if settings is None else settings
        self._stack = ExitStack()
        self._opened: Connection | None = None
        self._outbox: Outbox | None = None
        if outbox is None:
            self._connection()
        else:
            self._outbox = Outbox(Path(outbox), f"{producer}-{self.part}", self._post, _require_line)

    def sent(
        self,
        message: bytes,
        codec: Any,
        literals: Sequence[str] = (),
        fell_back: str = "",
        *,
        payload: bytes = b"",
        source: str | None = None,
        assurance: Mapping[str, Any] | None = None,
    ) -> None:
        """Records a message that is about to be handed over; ``fell_back`` says why it is the text.

        Args:
            payload: what the codec made, blob and all.
            source: the text that it was made of; None where there is none.
            assurance: what was decided about it; None where nothing was.

        Raises:
            AuditError: it cannot be recorded, and may not go on without.
        """
        event = "fell back to text" if fell_back else "sent"
        about, beside = self._about(message, codec) | _because(fell_back) | _judged(assurance), _beside(literals)
        if not (self.accounts and payload):
            self._tell(event, about, beside)
        elif len(payload) + len(source or "") > MOST_BYTES // 2:  # in base64 and JSON they take more
            warnings.warn("a message is too large for an account: there will be none", AuditWarning, stacklevel=3)
            self._tell(event, about, beside)
        else:
            self._tell(event, about, beside | binding(payload, source), deposit=(payload, source))

    def received(
        self, message: bytes, codec: Any, literals: Sequence[str] = (), *, assurance: Mapping[str, Any] | None = None
    ) -> None:
        """Records a message that a receiver has taken, and what was decided about it.

        Raises:
            AuditError: as ``sent``.
        """
        self._tell("received", self._about(message, codec) | _judged(assurance), _beside(literals))

    def refused(self, because: Exception, message: bytes = b"") -> None:
        """Records that no message was made, or one was not taken.

        Raises:
            AuditError: as ``sent``.
        """
        about = self._about(message, None) if message else {}
        reason = {"reason": str(because)[:MOST_REASON]}  # which may quote the text: it can be erased
        about |= {"error": type(because).__name__} | _judged(getattr(because, "assurance", None))
        self._tell("refused", about, reason, goes_nowhere=True)

    def record(self, event: str, about: Mapping[str, Any], personal: Mapping[str, Any] | None = None) -> int:
        """Tells the guardian of an event, and returns its number in this run.

        Raises:
            AuditError: as ``sent``.
            EncodeError: it is nothing that an entry takes.
        """
        Draft(event, about, personal or {})  # which looks at every value
        return self._tell(event, about, personal)

    def _tell(
        self,
        event: str,
        about: Mapping[str, Any],
        personal: Mapping[str, Any] | None = None,
        goes_nowhere: bool = False,
        deposit: tuple[bytes, str | None] | None = None,
    ) -> int:
        if os.getpid() != self._pid:
            raise AuditError("expected a recorder of this process, got one from before a fork: open another one here")
        hop = {} if self.hop is None else {"hop": self.hop}
        told = {"at_unix_ms": int(1000 * time.time()), **hop, **about}
        with self._lock:
            if not goes_nowhere:
                self._require_room()
            number, mailbox = self._sequence + 1, "" if goes_nowhere else self._mailbox
            made = Submission(self.producer, self.run, self.part, number, event, told, personal or {}, mailbox)
            line = record = made.to_bytes()
            if deposit is not None:
                line += BESIDE + Deposit(self.producer, self.run, self.part, number, *deposit).to_bytes()
            self._sequence = number
            known = {telemetry.ATTRIBUTE_RECORD: id_of(record), telemetry.ATTRIBUTE_RUN: self.run}
            telemetry.mark({**known, telemetry.ATTRIBUTE_SEQUENCE: number})
            try:
                (self._post if self._outbox is None else self._outbox.put)(line)
            except IlcpError as error:
                self._fails(f"expected a record of this hand-off, got: {error}", error)
                return number
            if mailbox:
                self._waiting.add(id_of(record))
        if self.unrecorded == "never" and mailbox:
            self._await(id_of(record))
        return number

    @property
    def pending(self) -> int:
        """How many the guardian has not entered yet, as far as its receipts came; without receipts none is known of."""
        with self._lock:
            self._take_receipts()
            return len(self._waiting)

    def close(self) -> None:
        """Lets go of the transport; what an outbox holds is sent first, within ``timeout_s``, or stays there."""
        if self._outbox is not None:
            self._outbox.close(self.timeout_s)
        self._stack.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connection(self) -> Connection:
        """Returns the transport, which is opened once it is needed: an outbox does without until then."""
        with self._connecting:
            if self._opened is None:
                held = connect(self._url, name=self._mailbox or None, settings=self._settings)
                self._opened = self._stack.enter_context(held)
            return self._opened

    def _post(self, line: bytes) -> None:
        """Hands a submission to the transport, its deposit before it: where that finds no room there is no account."""
        record, _, deposit = line.partition(BESIDE)
        if deposit:
            try:
                Deposit.from_bytes(deposit).send(self._connection(), self.guardian)
            except (FullError, ConflictError, DecodeError, EncodeError) as error:
                warnings.warn(f"a hand-off will have no account: {error}", AuditWarning, stacklevel=6)
        self._connection().send(record, to=self.guardian, handoff_id=id_of(record))

    def _about(self, message: bytes, codec: Any) -> dict[str, Any]:
        """Returns what is told of a message, and of the codec that made it."""
        digest = sha256(message).hexdigest()
        told: dict[str, Any] = {"message_sha256": digest, "message_bytes": len(message), "handoff_id": digest[:32]}
        try:
            found = describe(message)
        except DecodeError:
            return told
        told |= {"codec_id": found.codec_id, "handoff_id": found.handoff_id or digest[:32], "kind": found.kind}
        if found.blob_digest is not None:
            told |= {"blob_bytes": found.blob_bytes, "blob_digest": found.blob_digest}
        if codec is not None and found.codec_id not in self._codecs:
            trained, evidence = codec.trained, codec.evidence
            self._codecs[found.codec_id] = {
                "codec": codec.spec.name,
                "sender": trained.sender.exact,
                "receiver": trained.receiver.exact,
                "evidence": None if evidence is None else asdict(evidence),
            }
        return told | ({} if codec is None else self._codecs[found.codec_id])

    def _require_room(self) -> None:
        if isinstance(self.unrecorded, int) and len(self._waiting) >= self.unrecorded:
            self._take_receipts()
            if len(self._waiting) >= self.unrecorded:
                raise AuditError(
                    f"expected fewer than {self.unrecorded} hand-offs that wait for the guardian, got "
                    f"{len(self._waiting)}: see that 'ilcp audit guard' runs, then hand over again"
                )

    def _await(self, submission: str) -> None:
        end = time.monotonic() + self.timeout_s
        while submission in self._waiting:
            left = end - time.monotonic()
            if left <= 0:
                raise AuditError(
                    f"expected the guardian's receipt within {self.timeout_s:g} s, got none: this hand-off may be on "
                    "record and does not go on; see that 'ilcp audit guard' runs, then hand over again"
                )
            with self._lock:
                self._take_receipts(min(left, LOOK_S))

    def _take_receipts(self, timeout_s: float = 0.0) -> None:
        if not self._mailbox:
            return
        try:
            while (delivery := self._connection().receive(timeout_s)) is not None:
                timeout_s = 0.0
                try:
                    self._take(Receipt.from_bytes(delivery.message))
                except DecodeError as error:
                    warnings.warn(f"what came from the guardian is no receipt: {error}", AuditWarning, stacklevel=4)
                delivery.ack()
        except TransportError as error:
            raise AuditError(f"expected to reach the guardian's receipts, got: {error}") from error

    def _take(self, receipt: Receipt) -> None:
        """Takes a receipt for a submission of this recorder.

        Raises:
            DecodeError: its checkpoint is none, or not the guardian's.
        """
        checkpoint = parsed(receipt.checkpoint)
        if self.key is not None and self.key not in signers(receipt.checkpoint, [self.key]):
            raise DecodeError(f"expected a checkpoint signed by {self.key}, got another's")
        if checkpoint.size <= receipt.number:
            raise DecodeError(f"expected a checkpoint of entry {receipt.number}, got one of {checkpoint.size} entries")
        self._waiting.discard(receipt.submission)
        self.checkpoint = receipt.checkpoint

    def _fails(self, said: str, error: IlcpError) -> None:
        if self.unrecorded != "always":
            raise AuditError(f"{said}; it does not go on") from error
        warnings.warn(f"{said}; it goes on without, and its number will be missing", AuditWarning, stacklevel=5)


def _require_line(line: bytes) -> None:
    """Refuses what is no line of an outbox.

    Raises:
        DecodeError: with the reason.
    """
    record, _, deposit = line.partition(BESIDE)
    Submission.from_bytes(record)
    if deposit:
        Deposit.from_bytes(deposit)


def _because(reason: str) -> dict[str, Any]:
    return {"reason": reason[:MOST_REASON]} if reason else {}


def _judged(assurance: Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if assurance is None else {"assurance": dict(assurance)}


def _beside(literals: Sequence[str]) -> dict[str, Any]:
    return {"literals": list(literals)} if literals else {}
