"""``ilcp encode``: makes a message of every text of a corpus."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import track

from ilcp.cli.common import EMBEDDED, DeviceOption, SenderOption, busy, err, interruptible, out, read_text
from ilcp.cli.exit_codes import exit_code
from ilcp.errors import ConfigError, DecodeError, EncodeError, IlcpError, StorageError
from ilcp.files import require_writable, write_whole
from ilcp.message import describe

__all__ = ["encode"]

SUFFIX = ".ilcp"


def encode(
    files: Annotated[list[Path], typer.Argument(help="Text files.", dir_okay=False)],
    codec: Annotated[str, typer.Option(help="A codec's folder or hub id, or 'embedded'.")] = EMBEDDED,
    sender: SenderOption = None,
    to: Annotated[Path, typer.Option("--out", help="Where the messages go: NAME.ilcp for a file NAME.")] = Path("."),
    device: DeviceOption = "cpu",
    payload_bytes: Annotated[
        int | None, typer.Option("--bytes", help="A shorter payload, if the codec has it.")
    ] = None,
) -> None:
    """Makes one message of every file. One that is there and newer than its text is left: run a stopped run again.

    A file that cannot be encoded or kept is named and passed over; the exit code is then that of the first such file.
    """
    twice = [name for name, count in Counter(file.name for file in files).items() if count > 1]
    if twice:
        raise ConfigError(f"expected files of different names, got {twice[0]!r} more than once: encode them apart")
    require_writable(to / f"message{SUFFIX}")
    with busy("loading the sender and the codec"):
        from ilcp.embedded import load_sender

        reader = load_sender(None if codec == EMBEDDED else codec, sender=sender, device=device)
    length = reader.codec.spec.length(payload_bytes) if reader.codec.spec.prefixes else None
    codec_id = reader.codec.trained.codec_id(reader.codec.spec).hex()
    done = made = 0
    failures: list[IlcpError] = []
    with interruptible("the same command goes on with the files that are left"):
        for file in track(files, "encoding", console=err, disable=not err.is_terminal, transient=True):
            target = to / (file.name + SUFFIX)
            try:
                text = read_text(file)
                if _is_there(target, file, codec_id, length):
                    done += 1
                    continue
                write_whole(target, reader.encode(text, payload_bytes=payload_bytes))
                made += 1
            except (EncodeError, ConfigError, StorageError) as error:
                failures.append(error)
                err.print(
                    f"[bold red]ilcp:[/] {escape(str(file))}: {escape(str(error))}", highlight=False, soft_wrap=True
                )
    out.print(f"{made} encoded, {done} were there, {len(failures)} failed", highlight=False)
    if failures:
        raise typer.Exit(exit_code(failures[0]))


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
