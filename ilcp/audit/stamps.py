"""Time stamps of a third party (RFC 3161) over checkpoints: that a ledger was there by then, whoever keeps it.

A stamp is a file of its own: the checkpoint as it was signed, and the authority's answer over it, in base64. So it is a
witness, too: a ledger that is compared with it has to begin with what it stood for.
"""

import binascii
import http.client
import json
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ilcp.audit.checkpoints import parsed
from ilcp.audit.entries import parsed_json
from ilcp.errors import AuditError, ConfigError, DecodeError, MissingExtraError
from ilcp.records import shown

__all__ = ["asked", "note_in", "stamp", "stamped_at"]

FORMAT = 1
MOST_BYTES = 1 << 20  # of an answer, and of a file
TIMEOUT_S = 30.0
TYPE = "application/timestamp-query"

Ask = Callable[[bytes], bytes]


def stamp(note: str, roots: bytes, ask: Ask) -> str:
    """Has a checkpoint stamped, and returns the stamp's file.

    Args:
        note: the signed checkpoint.
        roots: the certificates (PEM) that the authority's leads up to.
        ask: takes a request to the authority, and returns its answer (``asked``).

    Raises:
        AuditError: the authority gives no stamp that holds.
        MissingExtraError: rfc3161-client is not installed.
    """
    known = _client()
    parsed(note)
    request = known.TimestampRequestBuilder().data(note.encode()).build()
    answer = ask(request.as_bytes())
    made = json.dumps({"ilcp_stamp": FORMAT, "checkpoint": note, "answer": b64encode(answer).decode()}) + "\n"
    try:
        stamped_at(made.encode(), roots, nonce=request.nonce)
    except DecodeError as error:
        raise AuditError(f"expected a time stamp from the authority, got: {error}") from error
    return made


def stamped_at(data: bytes, roots: bytes, nonce: int | None = None) -> datetime:
    """Returns when the checkpoint of a stamp's file was stamped, by an authority under these roots.

    Raises:
        DecodeError: the file is none, or the stamp does not hold.
        ConfigError: the roots are no certificates.
        MissingExtraError: rfc3161-client is not installed.
    """
    known = _client()
    note, answer = _read(data)
    builder = known.VerifierBuilder(nonce=nonce)
    for each in dict.fromkeys(_certificates(roots)):
        builder = builder.add_root_certificate(each)
    try:
        response = known.decode_timestamp_response(answer)
        builder.build().verify_message(response, note.encode())
        found: datetime = response.tst_info.gen_time
    except (ValueError, known.VerificationError) as error:
        raise DecodeError(f"expected a time stamp that holds, got: {shown(str(error))}") from error
    return found.astimezone(UTC)


def note_in(data: bytes) -> str:
    """Returns the checkpoint of a stamp's file; what its signature is worth is for ``verify`` to say.

    Raises:
        DecodeError: the file is none.
    """
    return _read(data)[0]


def asked(url: str) -> Ask:
    """Returns what asks the authority at an address.

    Raises:
        ConfigError: it is none of http or https.
    """
    if url.partition(":")[0].lower() not in ("http", "https"):
        raise ConfigError(f"expected the authority's address as http:// or https://, got {url!r}")

    def ask(request: bytes) -> bytes:
        try:
            wanted = urllib.request.Request(url, request, {"Content-Type": TYPE})
            with urllib.request.urlopen(wanted, timeout=TIMEOUT_S) as answer:
                return bytes(answer.read(MOST_BYTES))
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise AuditError(f"expected an answer from {url}, got: {error}; try again, or another one") from error

    return ask


def _client() -> Any:
    try:
        import rfc3161_client
    except ImportError as error:
        raise MissingExtraError.of("rfc3161-client", "for time stamps", "stamps") from error
    return rfc3161_client


def _read(data: bytes) -> tuple[str, bytes]:
    record = parsed_json(data, MOST_BYTES)
    if not isinstance(record, dict) or set(record) != {"ilcp_stamp", "checkpoint", "answer"}:
        raise DecodeError(f"expected a stamp with its checkpoint and answer, got {shown(data)}")
    note, answer = record["checkpoint"], record["answer"]
    if record["ilcp_stamp"] != FORMAT or not isinstance(note, str) or not isinstance(answer, str):
        raise DecodeError(f"expected a stamp of format {FORMAT}, got {shown(data)}")
    parsed(note)
    try:
        return note, b64decode(answer, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError(f"expected an answer in base64, got {shown(answer)}") from error


def _certificates(roots: bytes) -> list[Any]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(roots)
    except ValueError as error:
        raise ConfigError(f"expected certificates in PEM, got: {error}") from error
