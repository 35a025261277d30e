"""Shared by the commands: consoles, options, reading of files, and the end after Ctrl-C."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from ilcp.cli.exit_codes import INTERRUPTED
from ilcp.errors import ConfigError, DecodeError, Interrupted
from ilcp.folders import open_regular
from ilcp.inputs import STEERING
from ilcp.message import MAX_MESSAGE_BYTES, Description, describe

__all__ = [
    "EMBEDDED",
    "DeviceOption",
    "DownloadOption",
    "PlainConsole",
    "ReceiverOption",
    "SenderOption",
    "busy",
    "err",
    "interruptible",
    "mild_streams",
    "out",
    "read_message",
    "wide",
]

EMBEDDED = "embedded"

SenderOption = Annotated[
    str | None,
    typer.Option(help="The sender: folder, hub id or GGUF file; without it, the one that the codec names."),
]
ReceiverOption = Annotated[
    str | None,
    typer.Option(help="The receiver: folder, hub id or GGUF file; without it, the one that the codec names."),
]
DownloadOption = Annotated[
    bool, typer.Option("--allow-download", help="Fetch models that only the codec names, from the hub.")
]
DeviceOption = Annotated[str, typer.Option(help="That the models compute on: cpu, cuda, cuda:1 ...")]


class PlainConsole(Console):
    """A console to which control characters in a text are characters: a peer's words do not steer the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Returns the text, with what would steer a terminal written as ``\\x1b``."""
        return super().render_str(text.translate(STEERING), **options)


out = PlainConsole()
err = PlainConsole(stderr=True)


def wide(columns: int = 100) -> PlainConsole:
    """Returns the console for tables: the terminal, or so many columns where there is none."""
    return out if out.is_terminal else PlainConsole(width=columns)


def mild_streams() -> None:
    """Has standard output and error write what their encoding lacks as escapes, and nowhere if they were closed."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # until the end
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Shows what takes a while, as long as it takes."""
    with err.status(what, spinner="dots" if err.encoding.startswith("utf") else "line"):
        yield


@contextmanager
def interruptible(left: str) -> Iterator[None]:
    """Says after Ctrl-C what is left of the run, and exits as a shell expects; an ``Interrupted`` says it itself."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        said = str(stopped) if isinstance(stopped, Interrupted) else left
        err.print(f"[bold red]ilcp:[/] interrupted; {escape(said)}", highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def read_message(path: Path) -> tuple[bytes, Description]:
    """Reads a message from a file, or from standard input where the path is ``-``, and says what it is.

    Raises:
        ConfigError: the file cannot be read.
        DecodeError: it holds no message.
    """
    size = 0
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(MAX_MESSAGE_BYTES + 1)
        else:
            with open_regular(path) as file:
                data, size = file.read(MAX_MESSAGE_BYTES + 1), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ConfigError(f"expected a readable message file, got {path}: {error.strerror}") from error
    if len(data) > MAX_MESSAGE_BYTES:  # what was read of it is not all that there is
        got = f"{size:,}" if size > MAX_MESSAGE_BYTES else "more"
        raise DecodeError(f"expected a message of at most {MAX_MESSAGE_BYTES:,} bytes in {path}, got {got}: it is none")
    try:
        return data, describe(data)
    except DecodeError as error:
        raise DecodeError(f"{error}: {path} holds no message") from error
