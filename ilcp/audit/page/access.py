"""Who may look, and at which runs: a TOML file of readers, each known by a token's digest or a certificate's.

::

    [[reader]]
    name = "Jane, compliance"
    token_sha256 = "9f2c..."          # or certificate_sha256, of the client's certificate in DER
    runs = ["monday"]                 # or "all"

A browser asks for the token as a password (any user name); a program sends it as ``Authorization: Bearer``.
"""

import binascii
import tomllib
from base64 import b64decode
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any

from ilcp.audit.entries import is_digest
from ilcp.errors import ConfigError
from ilcp.folders import read_whole
from ilcp.records import shown

__all__ = ["TOKEN_BYTES", "Reader", "admitted", "readers_in"]

TOKEN_BYTES = 32
MOST_READERS = 1000
MOST_NAME = 200
MOST_TOKEN = 1024  # characters


@dataclass(frozen=True, slots=True)
class Reader:
    """Who looks; ``runs`` is None for all of them."""

    name: str
    runs: frozenset[str] | None
    token_sha256: str = ""
    certificate_sha256: str = ""

    def may_see(self, run: Any) -> bool:
        """Says whether entries of a run are shown to them."""
        return self.runs is None or (isinstance(run, str) and run in self.runs)


def readers_in(file: Path) -> list[Reader]:
    """Reads a file of readers.

    Raises:
        ConfigError: it is none, or one of them is.
    """
    try:
        record = tomllib.loads(read_whole(file).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"expected a TOML file of readers in {file}, got: {error}") from error
    rows = record.get("reader")
    if set(record) != {"reader"} or not isinstance(rows, list) or not 0 < len(rows) <= MOST_READERS:
        raise ConfigError(f"expected 1 to {MOST_READERS} tables [[reader]] in {file}, got {shown(sorted(record))}")
    found = [_reader(row, file) for row in rows]
    known = [each for one in found for each in (one.token_sha256, one.certificate_sha256) if each]
    if len(set(known)) < len(known) or len({one.name for one in found}) < len(found):
        raise ConfigError(f"expected readers of different names and tokens in {file}, got one twice: remove it")
    return found


def _reader(row: Any, file: Path) -> Reader:
    keys = {"name", "runs", "token_sha256", "certificate_sha256"}
    if not isinstance(row, dict) or not {"name", "runs"} <= set(row) <= keys:
        raise ConfigError(f"expected a reader of name, runs and token_sha256 in {file}, got {shown(row)}")
    name, runs = row["name"], row["runs"]
    if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME or not name.isprintable():
        raise ConfigError(f"expected a reader's name of 1 to {MOST_NAME} characters in {file}, got {shown(name)}")
    listed = isinstance(runs, list) and bool(runs) and all(isinstance(run, str) for run in runs)
    if not listed and runs != "all":
        raise ConfigError(f'expected runs = ["NAME", ...] or "all" for {name} in {file}, got {shown(runs)}')
    digests = {key: row[key] for key in ("token_sha256", "certificate_sha256") if key in row}
    if not digests or not all(is_digest(each) for each in digests.values()):
        raise ConfigError(f"expected a digest of 64 hex digits for {name} in {file}, got {shown(digests)}")
    return Reader(name, None if runs == "all" else frozenset(runs), **digests)


def admitted(readers: list[Reader], authorization: str | None, certificate: bytes | None) -> Reader | None:
    """Returns who asks, by a head's token or a connection's certificate; None for a stranger."""
    token, found = _token(authorization), None
    by_token = "" if token is None else sha256(token.encode()).hexdigest()
    by_certificate = "" if certificate is None else sha256(certificate).hexdigest()
    for reader in readers:  # all of them, whoever it is: how long it takes tells nobody anything
        for known, got in ((reader.token_sha256, by_token), (reader.certificate_sha256, by_certificate)):
            if known and got and compare_digest(known, got):
                found = reader
    return found


def _token(authorization: str | None) -> str | None:
    """Returns the token of a head; None where there is none."""
    scheme, _, given = (authorization or "").partition(" ")
    if not given or len(given) > MOST_TOKEN:
        return None
    if scheme.lower() == "bearer":
        return given
    if scheme.lower() != "basic":
        return None
    try:
        return b64decode(given, validate=True).decode().partition(":")[2] or None
    except (binascii.Error, ValueError):
        return None
