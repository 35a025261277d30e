"""``ilcp audit stamp``: has a third party say that a ledger was there by now."""

from pathlib import Path
from typing import Annotated

import typer

from ilcp.cli.ledgers import LedgerFile, opened_at, say
from ilcp.errors import ConfigError
from ilcp.files import require_writable, write_whole
from ilcp.folders import read_whole

__all__ = ["parsed_size", "stamp", "stamp_at"]


def stamp(
    ledger: LedgerFile,
    tsa: Annotated[str, typer.Option(help="The time stamping authority's address, http:// or https://.")],
    roots: Annotated[Path, typer.Option(help="Its root certificates (PEM).", dir_okay=False)],
    to: Annotated[Path, typer.Option("--out", help="The stamp's file; keep it out of the guardian's reach.")],
) -> None:
    """Has the newest checkpoint stamped (RFC 3161): the authority learns a hash of it, and nothing else."""
    from ilcp.audit.stamps import asked, stamped_at
    from ilcp.audit.stamps import stamp as made_by

    trusted = _read(roots)
    require_writable(to)
    with opened_at(ledger) as opened:
        note = opened.checkpoint()
    made = made_by(note, trusted, asked(tsa))
    write_whole(to, made, private=True)
    when = stamped_at(made.encode(), trusted)
    say(f"{parsed_size(note)} entries stamped at {when:%Y-%m-%d %H:%M:%S} UTC in {to}")


def stamp_at(file: Path, roots: Path | None) -> tuple[str, str]:
    """Returns a stamp's checkpoint, and its time in words.

    Raises:
        ConfigError: a file cannot be read, or there are no roots.
        DecodeError: the stamp does not hold.
    """
    from ilcp.audit.stamps import note_in, stamped_at

    if roots is None:
        raise ConfigError("expected --roots FILE beside --stamp, got none: whose stamps are believed?")
    data = _read(file)
    return note_in(data), f"{stamped_at(data, _read(roots)):%Y-%m-%d %H:%M:%S} UTC"


def parsed_size(note: str) -> int:
    """Returns how many entries a checkpoint stands for."""
    from ilcp.audit import parsed

    return parsed(note).size


def _read(file: Path) -> bytes:
    try:
        return read_whole(file)
    except OSError as error:
        raise ConfigError(f"expected a readable file at {file}, got: {error}") from error
