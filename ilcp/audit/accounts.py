"""Accounts of hand-offs, made by the guardian after the fact: what a message was read to say, and what its text says.

::

    deposit --transport--> Accountant.work --> summary  sentences of the text, which say nothing that it does not
                                           --> gloss    what the receiver's model answers from the memory alone
                                           --> an entry of kind "account", both texts beside the tree

**The alarm** is their disagreement. Each question of the gloss was put to the text as well, by the same model: where
the two answers differ, the account says so (``differ``). How often a false answer raises it, and how often a right one
does, is measured with the rest (``ilcp.measure.faithfulness``): ``measured`` has those figures beside each account.

An account explains nobody's reasoning. It is a reading of the message, and as wide as its questions.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from math import isfinite
from typing import Any, Protocol

from ilcp.audit.deposits import Deposit, received
from ilcp.audit.entries import MOST_BYTES, Draft, Entry, parsed_json
from ilcp.audit.ledger import Ledger
from ilcp.audit.summary import summarised
from ilcp.errors import ConfigError, DecodeError, EncodeError, TransportError
from ilcp.transport import BlobError, Connection, Delivery

__all__ = ["ACCOUNT", "Accountant", "Gloss", "Line", "Reads", "measured_of"]

ACCOUNT = "account"
LEAST_CHARACTERS = 200  # of a summary: a sentence or two
MOST_CHARACTERS = 2000
MOST_REASON = 500
TOLD = (  # of the figures that were measured
    "recall, gloss",
    "recall, another's gloss",
    "precision, gloss",
    "misleading, gloss",
    "alarm, false answers",
    "alarm, right answers",
    "recall, told freely",
    "misleading, told freely",
)
AGAIN_S, MOST_AGAIN_S = 1.0, 300.0  # until a deposit whose record is not there yet is looked at again: longer each time
TRIES = 500  # of that: a day and a half
MOST_READ = 200_000  # characters of a text that a summary is made of
Measured = Mapping[int, Mapping[str, Any]]  # figures, by the length of the payload that they are of


@dataclass(frozen=True, slots=True)
class Line:
    """A question, what the receiver's model answers from the memory alone, and what from the text (None: no text)."""

    question: str
    answer: str
    from_text: str | None

    @property
    def differs(self) -> bool:
        """Says whether the two answers are not the same."""
        return self.from_text is not None and self.from_text != self.answer


@dataclass(frozen=True, slots=True)
class Gloss:
    """What a memory says: line by line, in its own words (empty: it was not asked so), and who read it, by digests.

    ``summary`` is the model's own of the text; empty where it was not asked for one.
    """

    lines: tuple[Line, ...]
    freely: str
    by: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""


class Reads(Protocol):
    """Reads messages: a receiver's model, apart from the one that works with them (``ilcp.measure.Glosses``)."""

    def gloss(self, codec_id: str, payload: bytes, literals: Sequence[str], source: str | None) -> Gloss:
        """Returns what a message says.

        Raises:
            IlcpError: it cannot be read.
        """


class Accountant:
    """Makes accounts of what is deposited, one at a time.

    Args:
        ledger: the guardian's; a thread of its own may work while others append.
        connection: opened under the name of deposits (``GUARDIAN + ACCOUNTS``), with ``settings_for`` its address.
        reads: reads the messages; None for summaries alone.
        measured: by codec id, how true such accounts were measured to be (``measured_of``).
    """

    def __init__(
        self,
        ledger: Ledger,
        connection: Connection,
        reads: Reads | None = None,
        measured: Mapping[str, Measured] | None = None,
    ):
        self.ledger, self._connection, self._reads = ledger, connection, reads
        self._measured = dict(measured or {})

    def work(self, timeout_s: float = 0.0) -> bool:
        """Makes the account of the next deposit, after up to ``timeout_s``; says whether there was one.

        Raises:
            StorageError: the ledger cannot be written; the deposit is handed out again.
            TransportError: the transport cannot be reached.
        """
        delivery = self._connection.receive(timeout_s)
        if delivery is None:
            return False
        try:
            deposit = received(delivery.message, self._connection)
        except (BlobError, DecodeError, EncodeError) as error:  # a blob may be on its way
            if not isinstance(error, BlobError) or not self._waits(delivery):
                self._ends(delivery, _not_made(delivery.message, str(error)))
            return True
        entry = self._entry(deposit)
        if entry is None and self._waits(delivery):  # it overtook its record
            return True
        if entry is None or not deposit.is_of(entry, self.ledger.personal(entry.number)):
            because = "no record is of its payload and text"
            self._ends(delivery, _not_made(deposit.to_bytes(), because))
        elif self.ledger.about(entry.number, ACCOUNT):  # a process died before it acknowledged the deposit
            delivery.ack()
        else:
            self._ends(delivery, self._account(entry, deposit))
        return True

    @staticmethod
    def _waits(delivery: Delivery) -> bool:
        """Has a deposit come again later, longer each time; False where it came often enough."""
        if delivery.attempt >= TRIES:
            return False
        delivery.nack(min(MOST_AGAIN_S, AGAIN_S * delivery.attempt))
        return True

    def _ends(self, delivery: Delivery, draft: Draft) -> None:
        try:
            self.ledger.append([draft])
        except BaseException:  # whoever works next gets it at once
            with suppress(TransportError):
                delivery.nack(unseen=True)
            raise
        delivery.ack()

    def _entry(self, deposit: Deposit) -> Entry | None:
        number = self.ledger.numbered(deposit.producer, deposit.run, deposit.part, deposit.sequence)
        return None if number is None else self.ledger.entry(number)

    def _account(self, entry: Entry, deposit: Deposit) -> Draft:
        codec_id = str(entry.fields.get("codec_id", ""))
        beside = self.ledger.personal(entry.number).get("literals")
        literals = beside.value if beside is not None and isinstance(beside.value, list) else []
        fields: dict[str, Any] = {"of": entry.number, "run": deposit.run}
        fields |= {"handoff_id": known} if isinstance(known := entry.fields.get("handoff_id"), str) else {}
        fields["payload"] = "of the message" if entry.fields.get("kind") == "bare" else "as its producer told"
        personal: dict[str, Any] = {}
        gloss: Gloss | None = None
        try:
            if self._reads is not None:
                gloss = self._reads.gloss(codec_id, deposit.payload, literals, deposit.source)
                Draft(ACCOUNT, _counted(gloss), _told(gloss))  # whatever a model said, an entry has to take it
                fields, personal = fields | _counted(gloss), _told(gloss)
        except Exception as error:  # of any kind: it is one message's, and the next one is read
            gloss = None
            fields["error"], personal["reason"] = type(error).__name__, str(error)[:MOST_REASON]
        personal["summary"], fields["summary_by"] = _summary(deposit.source or "", gloss)
        if not personal["summary"]:  # there is no text, or nothing of it can be seen
            del personal["summary"], fields["summary_by"]
        if codec_id in self._measured and gloss is not None:
            fields["measured"] = _at(self._measured[codec_id], len(deposit.payload))
        return Draft(ACCOUNT, fields, personal)


def _told(gloss: Gloss) -> dict[str, Any]:
    """Returns what stands beside the tree of a gloss."""
    return {"gloss": [asdict(line) for line in gloss.lines], **({"freely": gloss.freely} if gloss.freely else {})}


def _summary(source: str, gloss: Gloss | None) -> tuple[str, dict[str, Any]]:
    """Returns a text's summary and who made it: the model where it was asked for one, else a rule."""
    if gloss is not None and gloss.summary:
        return gloss.summary, {"method": "the model of the gloss"}
    told = 0 if gloss is None else sum(len(line.question) + len(line.answer) + 2 for line in gloss.lines)
    most = min(MOST_CHARACTERS, max(LEAST_CHARACTERS, told))
    by: dict[str, Any] = {"method": "sentences of the text", "characters": most}
    try:
        found = summarised(source[:MOST_READ], most)
    except EncodeError:
        found = ""
    return found, by | ({"of_the_first": MOST_READ} if len(source) > MOST_READ else {})


def _counted(gloss: Gloss) -> dict[str, Any]:
    """Returns how many questions a gloss answered, and of how many the text says otherwise."""
    compared = [line for line in gloss.lines if line.from_text is not None]
    return {
        "asked": len(gloss.lines),
        "compared": len(compared),
        "differ": sum(line.differs for line in compared),
        "gloss_by": dict(gloss.by),
    }


def _not_made(data: bytes, reason: str) -> Draft:
    """Enters what no account can be made of: its digest may tell who guesses the text, and can be erased."""
    about = {"reason": f"no account: {reason}"[:MOST_REASON]}
    return Draft("unreadable", about, {"sha256": sha256(data).hexdigest()})


def measured_of(data: bytes) -> dict[str, Measured]:
    """Reads what ``ilcp measure --faithfulness`` wrote: by codec id and payload length the figures of an account.

    Raises:
        ConfigError: it is something else, or was measured before such files named codecs by their ids.
    """
    try:
        accounts = parsed_json(data, MOST_BYTES)["accounts"].values()
        found: dict[str, dict[int, Mapping[str, Any]]] = {}
        for one in (one for each in accounts for one in each):
            figures = {
                name: {part: _finite(figure[part]) for part in ("value", "low", "high")} | {"n": int(figure["n"])}
                for name, figure in one["figures"].items()
                if name in TOLD and figure is not None
            }
            about = {"file_sha256": sha256(data).hexdigest(), "payload_bytes": one["payload_bytes"], "cases": one["n"]}
            found.setdefault(str(one["codec_id"]), {})[int(one["payload_bytes"])] = {**about, "figures": figures}
    except (DecodeError, ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"expected what 'ilcp measure --faithfulness' wrote, got something else: {error}") from error
    if not found:
        raise ConfigError("expected figures of a codec at least, got none: measure one with --faithfulness")
    return dict(found)


def _finite(value: Any) -> float:
    if not isfinite(value):
        raise ValueError(f"{value} is no figure")
    return round(float(value), 4)


def _at(measured: Measured, payload_bytes: int) -> Mapping[str, Any]:
    """Returns the figures of the longest measured length that a payload has, or of the shortest there is."""
    return measured[max((each for each in measured if each <= payload_bytes), default=min(measured))]
