"""What a producer leaves with a guardian beside a record, to have accounts made: the text, and what was made of it.

A deposit goes the way of a message, with a blob where it is large, and the transport gives it up once the accounts are
made. Its record holds digests of both, so a guardian makes none of anything else. Literals are in the record itself.
"""

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ilcp.audit.entries import Entry, Personal, parsed_json
from ilcp.audit.submission import id_of
from ilcp.errors import DecodeError, EncodeError
from ilcp.message import Blob, Message
from ilcp.message.format import fitted
from ilcp.records import shown
from ilcp.transport import Connection

__all__ = ["ACCOUNTS", "MOST_BYTES", "Deposit", "binding", "received"]

ACCOUNTS = "-accounts"  # ends the name under which a guardian takes deposits
CARRIED = b"\0deposit"  # stands where a message names its codec
FORMAT = 1
MOST_BYTES = 1 << 26  # of a deposit: the exact cache of a few thousand tokens of a small model, or a book
PAYLOAD, SOURCE = "payload_sha256", "source_sha256"  # beside the tree


@dataclass(frozen=True, slots=True)
class Deposit:
    """The payload of a message, and the text that it was made of (None: of none), by the recorder's number."""

    producer: str
    run: str
    part: str
    sequence: int
    payload: bytes
    source: str | None

    def to_bytes(self) -> bytes:
        """Returns it in one line."""
        told = {name: getattr(self, name) for name in ("producer", "run", "part", "sequence", "source")}
        return json.dumps({"ilcp_audit_deposit": FORMAT, **told, "payload": b64encode(self.payload).decode()}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Deposit":
        """Reads one.

        Raises:
            DecodeError: it is none.
        """
        record = parsed_json(data, MOST_BYTES)
        wanted = {
            "ilcp_audit_deposit": int,
            "producer": str,
            "run": str,
            "part": str,
            "sequence": int,
            "source": str | None,
            "payload": str,
        }
        sound = isinstance(record, dict) and set(record) == set(wanted)
        if not sound or not all(isinstance(record[name], kind) for name, kind in wanted.items()):
            raise DecodeError(f"expected a deposit with {', '.join(sorted(wanted))}, got {shown(data)}")
        if record.pop("ilcp_audit_deposit") != FORMAT:
            raise DecodeError(f"expected a deposit of format {FORMAT}, got {shown(data)}")
        try:
            "".join(value for value in record.values() if isinstance(value, str)).encode()
            return cls(**{**record, "payload": b64decode(record["payload"], validate=True)})
        except ValueError as error:  # half characters, too
            raise DecodeError(f"expected a deposit's payload and text, got {shown(data)}: {error}") from error

    def send(self, connection: Connection, guardian: str) -> None:
        """Hands it to a guardian.

        Raises:
            TransportError: it does not arrive.
        """
        body, blob = fitted(self.to_bytes(), connection.put_blob)
        wire = Message(CARRIED, body, blob=blob).to_bytes()
        connection.send(wire, to=f"{guardian}{ACCOUNTS}", handoff_id=id_of(wire))

    def is_of(self, entry: Entry, beside: dict[str, Personal | None]) -> bool:
        """Says whether it is what the producer recorded, and of the message on record, where that is not sealed.

        Of a text whose digest was erased, nothing can be said.
        """
        known = {name: None if each is None else each.value for name, each in beside.items()}
        text = None if self.source is None else sha256(self.source.encode()).hexdigest()
        if text != known.get(SOURCE) or (SOURCE in known) != (text is not None):
            return False
        same = known.get(PAYLOAD) == sha256(self.payload).hexdigest()
        return same and (entry.fields.get("kind") != "bare" or self._is_in(entry, known.get("literals") or []))

    def _is_in(self, entry: Entry, literals: Any) -> bool:
        """Says whether the payload and literals make the bare message whose digest is on record."""
        try:
            known = bytes.fromhex(str(entry.fields.get("codec_id")))
            payload, blob = fitted(self.payload, Blob.of)
            made = Message(known, payload, literals=tuple(literals), blob=blob).to_bytes()
        except (EncodeError, ValueError, TypeError):
            return False
        return sha256(made).hexdigest() == entry.fields.get("message_sha256")


def binding(payload: bytes, source: str | None) -> dict[str, Any]:
    """Returns what a record says of a deposit, beside the tree: who guesses a text could check its digest."""
    found = {PAYLOAD: sha256(payload).hexdigest()}
    return found if source is None else found | {SOURCE: sha256(source.encode()).hexdigest()}


def received(wire: bytes, connection: Connection) -> Deposit:
    """Reads a deposit that came as a message.

    Raises:
        DecodeError: it is none, or too large.
        TransportError: its blob does not arrive.
    """
    message = Message.from_bytes(wire)
    if message.codec_id != CARRIED:
        raise DecodeError(f"expected a deposit, got a message of codec {message.codec_id.hex()}")
    if message.blob is None:
        return Deposit.from_bytes(message.payload)
    if message.blob.size_bytes > MOST_BYTES:
        raise DecodeError(f"expected a deposit of at most {MOST_BYTES} bytes, got {message.blob.size_bytes}")
    return Deposit.from_bytes(connection.get_blob(message.blob, max_bytes=MOST_BYTES))
