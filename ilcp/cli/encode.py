"""``ilcp encode``: makes a message of every text of a corpus."""

import os
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, TimeElapsedColumn

from ilcp.cli.common import (
    EMBEDDED,
    DeviceOption,
    DownloadOption,
    SenderOption,
    busy,
    err,
    interruptible,
    out,
)
from ilcp.cli.exit_codes import exit_code
from ilcp.errors import ConfigError, DecodeError, IlcpError, StorageError
from ilcp.files import NO_FOLLOW, PRIVATE, require_writable, write_whole
from ilcp.folders import read_whole
from ilcp.identity import digest
from ilcp.inputs import STEERING, read_text
from ilcp.message import describe

if TYPE_CHECKING:
    from ilcp.handoff import Sender

__all__ = ["encode"]

SUFFIX = ".ilcp"
MADE = ".encoded"  # beside the messages: of each a digest of its text and itself, which says what is done


def encode(
    files: Annotated[list[Path], typer.Argument(help="Text files.")],
    codec: Annotated[str, typer.Option(help="A codec's folder or hub id, or 'embedded'.")] = EMBEDDED,
    sender: SenderOption = None,
    to: Annotated[Path, typer.Option("--out", help="Where the messages go: NAME.ilcp for a file NAME.")] = Path("."),
    device: DeviceOption = "cpu",
    download: DownloadOption = False,
    payload_bytes: Annotated[
        int | None, typer.Option("--bytes", help="A shorter payload, if the codec has it.")
    ] = None,
) -> None:
    """Makes one message of every file. One that is there of the same text is left: run a stopped run again.

    A file that cannot be encoded or kept is named and passed over; the exit code is then that of the first such file.
    Of the embedded codec, a text of a kind that it does not know is named too: its message says next to nothing.
    """
    twice = [name for name, count in Counter(file.name for file in files).items() if count > 1]
    if twice:
        raise ConfigError(f"expected files of different names, got {twice[0]!r} more than once: encode them apart")
    require_writable(to / f"message{SUFFIX}")
    with busy("loading the sender and the codec"):
        from ilcp.embedded import load_sender

        named: dict[str, Any] = {"sender": sender, "device": device, "allow_download": download}
        reader = load_sender(None if codec == EMBEDDED else codec, **named)
    messages = _Messages(to, reader, payload_bytes)
    counted: Counter[str] = Counter()
    failures: list[Exception] = []
    with interruptible("the same command goes on with the files that are left"), _progress() as progress:
        for file in progress.track(files, description="encoding"):
            shown = escape(file.name.translate(STEERING))  # of a bar, no console writes them out
            progress.update(progress.task_ids[0], description=f"encoding {shown}")
            try:
                counted.update(messages.of(file))
            except Exception as error:  # whatever one file brings about, the others are encoded
                failures.append(error)
                _say(file, "red", str(error) if isinstance(error, IlcpError) else traceback.format_exc())
    found = f", {counted['outside']} outside what the embedded pair knows" if counted["outside"] else ""
    said = f"{counted['made']} encoded, {counted['there']} were there, {len(failures)} failed{found}"
    out.print(said, highlight=False)
    if failures:
        raise typer.Exit(exit_code(failures[0]))


class _Messages:
    """A folder of messages, and which of them are of their texts: told by content, for times of files tell nothing."""

    def __init__(self, folder: Path, sender: "Sender", payload_bytes: int | None):
        self.folder, self.sender, self.payload_bytes = folder, sender, payload_bytes
        codec = sender.codec
        self.codec_id = codec.trained.codec_id(codec.spec).hex()
        self.length = codec.spec.length(payload_bytes) if codec.spec.prefixes else None
        self.known: set[str] = set()
        with suppress(OSError):  # without it all is made again, which harms nobody
            self.known.update(read_whole(folder / MADE).decode(errors="replace").split())

    def of(self, file: Path) -> list[str]:
        """Makes a file's message, unless it is there, says what the sender warned of; returns what it counts as."""
        from ilcp.embedded.domain import OutsideWarning

        text, target = read_text(file), self.folder / (file.name + SUFFIX)
        before = self._there(target)
        if before is not None and _mark(text, before) in self.known:
            return ["there"]
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", OutsideWarning)
            message = self.sender.encode(text, payload_bytes=self.payload_bytes)
        there = before is not None and _payload(before) == _payload(message)  # who made it left no mark
        if not there:
            write_whole(target, message, private=True)
        self._remember(_mark(text, before if there and before is not None else message))
        outside = [each for each in warned if issubclass(each.category, OutsideWarning)]
        for each in outside:
            _say(file, "yellow", str(each.message))
        return ["there" if there else "made", *["outside"] * bool(outside)]

    def _there(self, target: Path) -> bytes | None:
        """Returns the message of this codec and length that lies there; None where none does.

        Raises:
            ConfigError: something else does.
            StorageError: it cannot be read.
        """
        try:
            message = read_whole(target)
            found = describe(message)
        except FileNotFoundError:
            return None
        except DecodeError as error:
            raise ConfigError(f"expected a message in {target}, got something else: {error}; move it away") from error
        except OSError as error:
            raise StorageError(
                f"expected a readable message in {target}, got: {error}; choose another --out"
            ) from error
        if found.kind == "encrypted":
            raise ConfigError(f"expected a message that can be read in {target}, got an encrypted one: move it away")
        if found.codec_id != self.codec_id:
            raise ConfigError(
                f"expected a message of codec {self.codec_id} in {target}, got one of {found.codec_id}: choose another "
                "--out"
            )
        return message if self.length in (None, len(_payload(message))) else None

    def _remember(self, mark: str) -> None:
        """Adds a line; begins one too, because the last may have been cut off."""
        file = self.folder / MADE
        try:
            with open(file, "a", encoding="utf-8", opener=_opened) as marks:
                marks.write(f"\n{mark}\n")
        except OSError as error:
            raise StorageError(f"expected room in {file}, got: {error}; free space, and run it again") from error
        self.known.add(mark)


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | NO_FOLLOW, PRIVATE)


def _mark(text: str, message: bytes) -> str:
    return digest(text.encode(), message).hex()


def _payload(message: bytes) -> bytes:
    """Returns a message's payload, of a sealed one too."""
    part = next(part for part in describe(message).parts if part.name == "payload")
    return message[part.offset : part.offset + part.size_bytes]


def _progress() -> Progress:
    """Makes a bar that shows, of a long text too, that something goes on."""
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    return Progress(*columns, console=err, disable=not err.is_terminal, transient=True)


def _say(file: Path, colour: str, what: str) -> None:
    err.print(f"[bold {colour}]ilcp:[/] {escape(str(file))}: {escape(what)}", highlight=False, soft_wrap=True)
