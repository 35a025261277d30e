"""The guardian: a process and a key of its own, which enters what producers hand in, and nobody else does.

::

    submissions --transport--> Guardian.work --> one transaction of the ledger --> acknowledged --> receipts

**Once.** What is handed out again, because a process died in between, is known by its recorder and number, and entered
once. Other content under a known number is entered beside it, as a ``conflict``: somebody counts wrong, or forges.
What is no submission is entered as ``unreadable``, by its digest. So nothing that came is lost, and nothing is refused.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any

from ilcp.audit.entries import Draft, Entry, canonical, commitment
from ilcp.audit.ledger import Ledger
from ilcp.audit.submission import Receipt, Submission, id_of
from ilcp.errors import DecodeError, EncodeError, TransportError
from ilcp.transport import AddressError, ConflictError, Connection, Delivery, FullError, LeaseLostError, Settings
from ilcp.transport.backend import MAX_AGE_S

__all__ = ["GUARDIAN", "Guardian", "settings_for"]

GUARDIAN = "guardian"  # the name under which submissions come in
BATCH = 256  # submissions of one transaction at most
MOST_REASON = 500  # characters
MOST_WAITING_BYTES = 1 << 32  # two million records


def settings_for(url: str, *, power_safe: bool = True) -> Settings:
    """Returns settings by which a transport gives no record up: not for its age, nor for how often it was handed out.

    Args:
        power_safe: of a spool: whether each record is synced to the disk before a call returns.
    """
    scheme = url.partition(":")[0].lower()
    if scheme in ("http", "https"):  # which sends into a spool that has settings of its own
        return Settings()
    kept = Settings(max_age_s=MAX_AGE_S, max_bytes=MOST_WAITING_BYTES, max_deliveries=(1 << 31) - 1)
    return replace(kept, power_safe=power_safe) if scheme == "spool" else kept


class Guardian:
    """Enters what comes in.

    Args:
        ledger: opened with its key.
        connection: opened under the guardian's name, with ``settings_for`` its address: by others a transport may give
            records up.
    """

    def __init__(self, ledger: Ledger, connection: Connection):
        self.ledger, self._connection = ledger, connection

    def work(self, timeout_s: float = 0.0) -> int:
        """Enters what waits, after up to ``timeout_s`` for a first one; returns how many submissions there were.

        Raises:
            StorageError: the ledger cannot be written; what came is handed out again.
            TransportError: the transport cannot be reached.
        """
        held: list[Delivery] = []
        while len(held) < BATCH:
            delivery = self._connection.receive(0.0 if held else timeout_s)
            if delivery is None:
                break
            held.append(delivery)
        try:
            if held:
                self._enter(held)
        except BaseException:  # whoever works next gets them at once
            for delivery in held:
                with suppress(TransportError):
                    delivery.nack(unseen=True)
            raise
        return len(held)

    def serve(self, goes_on: Callable[[], bool], timeout_s: float = 0.5) -> None:
        """Works until told otherwise, and tries again where the transport cannot be reached.

        Raises:
            StorageError: as ``work``.
        """
        while goes_on():
            try:
                self.work(timeout_s)
            except TransportError:
                time.sleep(timeout_s)

    def _enter(self, held: Sequence[Delivery]) -> None:
        receipts: list[tuple[str, str, int]] = []  # mailbox, submission, and the entry's number
        with self.ledger.transaction():
            for delivery in held:
                try:
                    submission = Submission.from_bytes(delivery.message)
                    number = self._entered(submission)
                except (DecodeError, EncodeError) as error:  # whatever a stranger sends: it is on record, and no more
                    self.ledger.append([_unreadable(delivery.message, str(error))])
                    continue
                if submission.receipt:
                    receipts.append((submission.receipt, id_of(delivery.message), number))
        checkpoint = self.ledger.checkpoint()
        for mailbox, submission_id, number in receipts:
            self._answer(mailbox, Receipt(submission_id, number, checkpoint))
        for delivery in held:
            try:
                delivery.ack()
            except LeaseLostError:  # it comes again, and is known then
                continue

    def _entered(self, submission: Submission) -> int:
        """Enters a submission, or finds where it is; returns the entry's number."""
        draft = submission.draft
        known = self.ledger.numbered(submission.producer, submission.run, submission.part, submission.sequence)
        if known is None and not self._retired(submission):
            (number,) = self.ledger.append([draft])
            return number
        entry = None if known is None else self.ledger.entry(known)
        if known is not None and entry is not None and self._is(entry, draft):
            return known
        (number,) = self.ledger.append([_conflict(draft, known)])
        return number

    def _retired(self, submission: Submission) -> bool:
        who = submission.producer, submission.run, submission.part
        found = self.ledger.retired_sequences().get(who, [])
        return any(first <= submission.sequence <= last for first, last in found)

    def _is(self, entry: Entry, draft: Draft) -> bool:
        """Says whether an entry is of a draft: what was erased of it cannot be compared."""
        fields = {name: value for name, value in entry.fields.items() if name != "clock_unix_ms"}
        if canonical(fields) != canonical(dict(draft.fields)) or set(entry.commitments) != set(draft.personal):
            return False
        held = self.ledger.personal(entry.number)
        return all(
            each is None or commitment(each.salt, entry.number, name, draft.personal[name]) == entry.commitments[name]
            for name, each in held.items()
        )

    def _answer(self, mailbox: str, receipt: Receipt) -> None:
        try:
            self._connection.send(receipt.to_bytes(), to=mailbox, handoff_id=receipt.submission)
        except (AddressError, ConflictError, FullError):  # no such mailbox, an answer of before, or nobody fetches any
            return


def _unreadable(data: bytes, reason: str) -> Draft:
    about: dict[str, Any] = {"sha256": sha256(data).hexdigest(), "bytes": len(data), "reason": reason[:MOST_REASON]}
    return Draft("unreadable", about)


def _conflict(draft: Draft, number: int | None) -> Draft:
    """Enters what was said again otherwise as it was said, so that it is found under its run."""
    return Draft("conflict", {**draft.fields, "of": number}, draft.personal)
