"""What every command shares: where it prints, how it reads files, and what it exits with."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ilcp.errors import EncodeError, Interrupted

__all__ = [
    "BAD_INPUT",
    "EMBEDDED",
    "INTERRUPTED",
    "OUTSIDE",
    "DeviceOption",
    "ReceiverOption",
    "SenderOption",
    "busy",
    "err",
    "interruptible",
    "out",
    "read_bytes",
    "read_text",
]

EMBEDDED = "embedded"
BAD_INPUT = 2
INTERRUPTED = 130
OUTSIDE = 3

SenderOption = Annotated[
    str | None, typer.Option(help="The sender: a folder or hub id; without it, the one that the codec names.")
]
ReceiverOption = Annotated[
    str | None, typer.Option(help="The receiver: a folder or hub id; without it, the one that the codec names.")
]
DeviceOption = Annotated[str, typer.Option(help="That the models compute on: cpu, cuda, cuda:1 ...")]

out = Console()
err = Console(stderr=True)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        EncodeError: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise EncodeError(f"expected a readable text file, got {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EncodeError(
            f"expected UTF-8 text in {path}, got byte {error.object[error.start]:#04x} at {error.start}"
        ) from error


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Says what takes a while, as long as it takes."""
    with err.status(what):
        yield


@contextmanager
def interruptible(left: str) -> Iterator[None]:
    """Ctrl-C says what is left of the run, and exits as a shell expects; an ``Interrupted`` says it itself."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        said = str(stopped) if isinstance(stopped, Interrupted) else left
        err.print(f"[bold red]ilcp:[/] interrupted; {escape(said)}", highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def read_bytes(path: Path, limit: int) -> bytes:
    """The first ``limit`` bytes of a file, or of standard input where the path is ``-``.

    Raises:
        EncodeError: it cannot be read.
    """
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(limit)
        with open(path, "rb") as file:
            return file.read(limit)
    except OSError as error:
        raise EncodeError(f"expected a readable message file, got {path}: {error.strerror}") from error
