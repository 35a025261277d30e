"""What a producer hands to a guardian, and what it gets back: two small JSON objects, each a transport's message.

A submission says what was handed over, by digests and counts; only literals are in it as they are. A receipt says under
which number the guardian has entered it, and brings a signed checkpoint, so that its holder is a witness from then on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from typing import Any

from ilcp.audit.entries import Draft, canonical, parsed_json
from ilcp.errors import DecodeError, EncodeError
from ilcp.message import MAX_MESSAGE_BYTES
from ilcp.records import shown
from ilcp.transport.backend import is_name

__all__ = ["HANDOFF", "PAGE", "VIEWED", "VIEWS", "Receipt", "Submission", "id_of"]

HANDOFF = "handoff"
VIEWS, VIEWED, PAGE = "views", "viewed", "page"  # the run, the event and the producer of the auditor's page
FORMAT = 1
RESERVED = frozenset({"producer", "run", "part", "sequence", "event", "clock_unix_ms"})  # said by nobody else
MOST_TEXT = 1000  # characters of a reason, a run's or a producer's name


@dataclass(frozen=True)
class Submission:
    """One event of a hand-off, as its producer saw it.

    ``sequence`` counts one recorder's events from 1: whatever is missing shows. ``part`` tells recorders of one
    producer and run apart. ``event`` is what happened: sent, fell back to text, received or refused. ``about`` holds
    what is told of message, codec and models. ``receipt`` is the mailbox for the guardian's receipt; empty: none is
    wanted.

    Raises:
        EncodeError: a part is none.
    """

    producer: str
    run: str
    part: str
    sequence: int
    event: str
    about: Mapping[str, Any]
    personal: Mapping[str, Any] = field(default_factory=dict)
    receipt: str = ""

    def __post_init__(self) -> None:
        given: dict[str, Any] = {
            "producer": self.producer,
            "run": self.run,
            "part": self.part,
            "event": self.event,
        }
        for name, value in given.items():
            if not isinstance(value, str) or not 0 < len(value) <= MOST_TEXT or not value.isprintable():
                raise EncodeError(f"expected {name} as a text of 1 to {MOST_TEXT} characters, got {shown(value)}")
        if type(self.sequence) is not int or not 0 < self.sequence < 1 << 53:  # True is no number
            raise EncodeError(f"expected a number from 1 in its run, got {shown(self.sequence)}")
        tables: tuple[Any, ...] = self.about, self.personal
        if not all(isinstance(each, Mapping) for each in tables):
            raise EncodeError("expected what is told of a hand-off as tables, got something else")
        if taken := RESERVED & {*self.about}:
            raise EncodeError(f"expected other names in what is told, got {', '.join(sorted(taken))}: they are taken")
        if self.receipt and not is_name(self.receipt):
            raise EncodeError(f"expected a mailbox's name for the receipt, got {shown(self.receipt)}")

    @cached_property
    def draft(self) -> Draft:
        """What the guardian enters.

        Raises:
            EncodeError: a name or a value is none that an entry takes.
        """
        known = {name: getattr(self, name) for name in ("producer", "run", "part", "sequence", "event")}
        return Draft(HANDOFF, {**self.about, **known}, dict(self.personal))

    def to_bytes(self) -> bytes:
        """Returns the message to the guardian.

        Raises:
            EncodeError: it is not JSON's, or larger than a transport takes.
        """
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        try:
            made = json.dumps({"ilcp_audit": FORMAT, **told}, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise EncodeError(f"expected what JSON holds exactly, got: {error}") from error
        if len(made) > MAX_MESSAGE_BYTES:
            raise EncodeError(f"expected at most {MAX_MESSAGE_BYTES} bytes for the guardian, got {len(made)}")
        return made

    @classmethod
    def from_bytes(cls, data: bytes) -> "Submission":
        """Reads a submission.

        Raises:
            DecodeError: it is none.
        """
        record = parsed_json(data, MAX_MESSAGE_BYTES)
        wanted = {"ilcp_audit", *(each.name for each in fields(cls))}
        if not isinstance(record, dict) or set(record) != wanted or record.pop("ilcp_audit") != FORMAT:
            raise DecodeError(f"expected a submission of format {FORMAT}, got {shown(data)}")
        try:
            found = cls(**record)
            _ = found.draft
        except EncodeError as error:
            raise DecodeError(str(error)) from error
        return found


def id_of(data: bytes) -> str:
    """Returns the idempotency key of a submission's way to the guardian: by its content, so that no other takes it."""
    return sha256(data).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class Receipt:
    """The guardian has entered the submission of this id, as that entry, in all that ``checkpoint`` stands for."""

    submission: str
    number: int
    checkpoint: str

    def to_bytes(self) -> bytes:
        """Returns the message to the producer."""
        told = {"submission": self.submission, "number": self.number, "checkpoint": self.checkpoint}
        return canonical({"ilcp_audit_receipt": FORMAT, **told})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Receipt":
        """Reads a receipt.

        Raises:
            DecodeError: it is none.
        """
        record = parsed_json(data, MAX_MESSAGE_BYTES)
        wanted = {"ilcp_audit_receipt": int, "submission": str, "number": int, "checkpoint": str}
        if not isinstance(record, dict) or {name: type(value) for name, value in record.items()} != wanted:
            raise DecodeError(f"expected a receipt, got {shown(data)}")
        if record.pop("ilcp_audit_receipt") != FORMAT:
            raise DecodeError(f"expected a receipt of format {FORMAT}, got {shown(data)}")
        return cls(**record)
