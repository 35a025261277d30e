"""What the commands of ``ilcp audit`` share: a ledger opened, a key read, a line said."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ilcp.cli.common import out
from ilcp.errors import ConfigError, DecodeError, StorageError

if TYPE_CHECKING:
    from ilcp.audit import Ledger, Signer

__all__ = ["LARGEST", "AsJson", "LedgerFile", "opened_at", "say", "signer_in"]

LARGEST = (1 << 53) - 1
LedgerFile = Annotated[Path, typer.Argument(help="The ledger's file.", dir_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say(text: str) -> None:
    out.print(text, highlight=False, soft_wrap=True, markup=False)


def signer_in(file: Path, name: str) -> "Signer":
    from ilcp.audit import Signer
    from ilcp.signing import seed_in

    found = Signer(name, seed_in(file))
    try:
        _ = found.key
    except DecodeError as error:
        raise ConfigError(str(error)) from error
    return found


@contextmanager
def opened_at(ledger: Path, key: Path | None = None) -> "Iterator[Ledger]":
    """Opens a ledger: to write, where the file of its key is named."""
    from ilcp.audit import Ledger

    with Ledger(ledger) as reader:
        keys = reader.keys
        if not keys:
            raise StorageError(f"expected a ledger in {ledger}, got one without its first entry: it is damaged")
        name = keys[-1].name
        if key is None:
            yield reader
            return
    if not key.exists():
        raise ConfigError(f"expected the guardian's key in {key}, got no such file")
    with Ledger(ledger, signer_in(key, name)) as writer:
        yield writer
