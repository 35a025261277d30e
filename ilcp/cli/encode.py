"""``ilcp encode``: makes a message of every text of a corpus."""

import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, TimeElapsedColumn

from ilcp.cli.common import EMBEDDED, DeviceOption, DownloadOption, SenderOption, busy, err, interruptible, out
from ilcp.cli.exit_codes import exit_code
from ilcp.errors import ConfigError, DecodeError, IlcpError, StorageError
from ilcp.files import require_writable, write_whole
from ilcp.inputs import read_text
from ilcp.message import describe

if TYPE_CHECKING:
    from ilcp.handoff import Sender

__all__ = ["encode"]

SUFFIX = ".ilcp"


def encode(
    files: Annotated[list[Path], typer.Argument(help="Text files.", dir_okay=False)],
    codec: Annotated[str, typer.Option(help="A codec's folder or hub id, or 'embedded'.")] = EMBEDDED,
    sender: SenderOption = None,
    to: Annotated[Path, typer.Option("--out", help="Where the messages go: NAME.ilcp for a file NAME.")] = Path("."),
    device: DeviceOption = "cpu",
    download: DownloadOption = False,
    payload_bytes: Annotated[
        int | None, typer.Option("--bytes", help="A shorter payload, if the codec has it.")
    ] = None,
) -> None:
    """Makes one message of every file. One that is there and newer than its text is left: run a stopped run again.

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
    length = reader.codec.spec.length(payload_bytes) if reader.codec.spec.prefixes else None
    codec_id = reader.codec.trained.codec_id(reader.codec.spec).hex()
    counted: Counter[str] = Counter()
    failures: list[Exception] = []
    with interruptible("the same command goes on with the files that are left"), _progress() as progress:
        for file in progress.track(files, description="encoding"):
            progress.update(progress.task_ids[0], description=f"encoding {escape(file.name)}")
            target = to / (file.name + SUFFIX)
            try:
                text = read_text(file)
                there = _is_there(target, file, codec_id, length)
                counted.update(["there"] if there else _made(reader, text, payload_bytes, file, target))
            except Exception as error:  # whatever one file brings about, the others are encoded
                failures.append(error)
                _say(file, "red", str(error) if isinstance(error, IlcpError) else traceback.format_exc())
    found = f", {counted['outside']} outside what the embedded pair knows" if counted["outside"] else ""
    said = f"{counted['made']} encoded, {counted['there']} were there, {len(failures)} failed{found}"
    out.print(said, highlight=False)
    if failures:
        raise typer.Exit(exit_code(failures[0]))


def _made(sender: "Sender", text: str, payload_bytes: int | None, file: Path, target: Path) -> list[str]:
    """Writes a text's message, and says what the sender warned of; returns what it counts as."""
    from ilcp.embedded.domain import OutsideWarning

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", OutsideWarning)
        message = sender.encode(text, payload_bytes=payload_bytes)
    write_whole(target, message)
    outside = [each for each in warned if issubclass(each.category, OutsideWarning)]
    for each in outside:
        _say(file, "yellow", str(each.message))
    return ["made", "outside"] if outside else ["made"]


def _progress() -> Progress:
    """Makes a bar that shows, of a long text too, that something goes on."""
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    return Progress(*columns, console=err, disable=not err.is_terminal, transient=True)


def _say(file: Path, colour: str, what: str) -> None:
    err.print(f"[bold {colour}]ilcp:[/] {escape(str(file))}: {escape(what)}", highlight=False, soft_wrap=True)


def _is_there(target: Path, source: Path, codec_id: str, payload_bytes: int | None) -> bool:
    """Says whether a whole message of this codec and length lies there, made since the text was last changed.

    Raises:
        ConfigError: something else does.
        StorageError: it cannot be read.
    """
    try:
        found = describe(target.read_bytes())
        since = target.stat().st_mtime_ns >= source.stat().st_mtime_ns
    except FileNotFoundError:
        return False
    except DecodeError as error:
        raise ConfigError(f"expected a message in {target}, got something else: {error}; move it away") from error
    except OSError as error:
        raise StorageError(f"expected a readable message in {target}, got: {error}; choose another --out") from error
    if found.codec_id != codec_id:
        raise ConfigError(
            f"expected a message of codec {codec_id} in {target}, got one of {found.codec_id}: choose another --out"
        )
    length = next(part.size_bytes for part in found.parts if part.name == "payload")  # of a sealed one too
    return since and payload_bytes in (None, length)
