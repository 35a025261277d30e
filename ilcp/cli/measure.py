"""``ilcp measure`` and ``ilcp compare``: the worth of a codec, and its changes."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ilcp.cli.common import (
    EMBEDDED,
    DeviceOption,
    DownloadOption,
    PlainConsole,
    ReceiverOption,
    SenderOption,
    busy,
    err,
    interruptible,
    out,
)
from ilcp.errors import ConfigError, MissingExtraError, StorageError
from ilcp.evidence import SEED_BYTES, public_key
from ilcp.files import require_writable, write_whole
from ilcp.folders import read_whole
from ilcp.identity import digest

if TYPE_CHECKING:
    from ilcp.embedded import Pair
    from ilcp.measure import Report
    from ilcp.tasks import Task

__all__ = ["compare", "measure"]

TaskOption = Annotated[
    str | None,
    typer.Option(help="'case-files', or a JSONL file of cases; without it, those that the training kept apart."),
]
BudgetOption = Annotated[
    list[int] | None,
    typer.Option(help="Also measure messages that the receiver read back, of so many bytes; may be repeated."),
]
ReportOption = Annotated[
    Path | None,
    typer.Option("--json", help="Keep the report here; an interrupted run goes on from it.", dir_okay=False),
]
SignOption = Annotated[
    Path | None,
    typer.Option(help="Signs it with this file's key, made if missing; needs ilcp\\[sign].", dir_okay=False),
]
SHOWN = 50  # characters of a codec's name in a file's, which have room in any
UNFINISHED = [".unfinished", ".json"]  # ends the name of what is kept until all outputs are written


def measure(
    codec: Annotated[str, typer.Argument(help="A codec's folder or hub id, or 'embedded'.")],
    task: TaskOption = None,
    n: Annotated[int | None, typer.Option(help="How many cases; without it 500, or as many as a file has.")] = None,
    seed: Annotated[int, typer.Option(help="Of the test documents, the intervals and the random payloads.")] = 7,
    sender: SenderOption = None,
    receiver: ReceiverOption = None,
    device: DeviceOption = "cpu",
    download: DownloadOption = False,
    hops: Annotated[int, typer.Option(min=0, help="How many hops to hand on (case files only); 0: not measured.")] = 0,
    budget: BudgetOption = None,
    repetitions: Annotated[int, typer.Option(help="Of the times, at least 50; 0: not measured.")] = 60,
    as_json: ReportOption = None,
    html: Annotated[Path | None, typer.Option(help="A page with plots; needs ilcp\\[plots].", dir_okay=False)] = None,
    png: Annotated[Path | None, typer.Option(help="A folder for the plots; needs ilcp\\[plots].")] = None,
    attach: Annotated[bool, typer.Option("--attach", help="Write the result into the codec's folder.")] = False,
    sign: SignOption = None,
) -> None:
    """Measures what a codec's message is worth, against everything that it must beat, on any pair of models.

    Every question is asked with the full text, with the message at each length, with nothing, with another case's
    message, with text of as many bytes, and more; every figure stands beside its interval. Ctrl-C leaves what was
    measured in --json, or in a file beside, marked incomplete; the same command goes on with it.
    """
    keep = as_json or _beside(codec, task, n, seed, sender, receiver, hops, budget, repetitions)
    with busy("loading both models and the codec"):
        from ilcp import embedded, tasks
        from ilcp.measure import equal_texts

        _refuse_early(codec, attach, html, png, keep, repetitions)
        key = None if sign is None else _seed(sign, attach)
        if key is not None:
            out.print(f"signs as {public_key(key)}", highlight=False, soft_wrap=True)
        asked = tasks.task(task or _own(codec), n=n, seed=seed)
        ends: dict[str, Any] = {"sender": sender, "receiver": receiver, "device": device, "allow_download": download}
        pair = embedded.load_pair(None if codec == EMBEDDED else codec, **ends, allow_unmeasured=True)
        texts = equal_texts(pair.sender, asked.samples())
    wanted: dict[str, Any] = {"seed": seed, "hops": hops, "budgets": budget or (), "repetitions": repetitions}
    report = _run(pair, asked, texts=texts, keep=keep, **wanted)
    with _left(keep):
        _show(report)
        if attach:
            _attach(pair.path, report, key, asked)
        _draw(report, html, png)
    if as_json is None:
        keep.unlink(missing_ok=True)


def _attach(folder: Path, report: "Report", seed: bytes | None, asked: "Task") -> None:
    from ilcp.codec.folder import attach_evidence, settings_of
    from ilcp.evidence import signed
    from ilcp.tasks import cases_digest

    evidence = report.evidence()
    if seed is not None:
        evidence = signed(evidence, seed, cases_digest(asked.cases), settings_of(folder))
    attach_evidence(folder, evidence)


def _seed(file: Path, attach: bool) -> bytes:
    """Reads a signing key (hex), or makes one, for its owner only."""
    if not attach:
        raise ConfigError("expected --attach beside --sign, got none: what is signed is what is attached")
    if find_spec("nacl") is None:
        raise MissingExtraError.of("PyNaCl", "for signed evidence", "sign")
    try:
        if not os.path.lexists(file):
            write_whole(file, token_hex(SEED_BYTES) + "\n", private=True, new=True)
        seed = bytes.fromhex(read_whole(file).decode("ascii"))
    except (OSError, ValueError, StorageError) as error:
        raise ConfigError(f"expected a signing key in hex in {file}, got: {error}") from error
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"expected a signing key of {SEED_BYTES} bytes in {file}, got {len(seed)}")
    return seed


def _show(report: "Report") -> None:
    from ilcp.measure import table

    table.show(report, out if out.is_terminal else PlainConsole(width=100))


def _beside(codec: str, *options: object) -> Path:
    """Names the file, in this folder, that holds what was measured until all outputs are written."""
    made_with = digest(repr((codec, *options)).encode()).hex()[:8]
    return Path(f"{Path(codec).name[:SHOWN] or 'codec'}-{made_with}{''.join(UNFINISHED)}")


def _own(codec: str) -> str:
    """Names the task that a codec is measured on where no other is given: cases that its training kept apart."""
    from ilcp.tasks.load import CASE_FILES, own_test

    kept = own_test(codec)
    if codec != EMBEDDED and os.path.isfile(kept):
        return str(kept)
    if codec != EMBEDDED and (os.path.isdir(codec) or "/" in codec):  # what is neither is refused for what it is
        raise ConfigError(
            f"expected the cases that the training of {codec} kept apart in {kept}, got none: name others with --task"
        )
    return CASE_FILES


@contextmanager
def _left(keep: Path) -> Iterator[None]:
    """Says, where an output fails that was possible when it was tried, which file still holds what was measured."""
    try:
        yield
    except BaseException:
        err.print(f"{keep} holds what was measured", highlight=False, soft_wrap=True, markup=False)
        raise


def compare(
    before: Annotated[Path, typer.Argument(help="A report: JSON of 'ilcp measure'.")],
    after: Annotated[Path, typer.Argument(help="Another report of the same questions.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, on standard output.")] = False,
) -> None:
    """Says what changed between two reports, with intervals, and how many single answers flipped (churn)."""
    with busy("making all figures of both reports anew"):
        import ilcp

        found = ilcp.measure.compare(ilcp.measure.load_report(before), ilcp.measure.load_report(after))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from ilcp.measure.table import show_comparison

    show_comparison(found, out)


def _run(pair: "Pair", asked: "Task", *, keep: Path, **options: Any) -> "Report":
    from ilcp.measure import load_report, run

    # An interrupted run, or one of which an output failed.
    if keep.suffixes[-2:] == UNFINISHED and os.path.exists(keep):
        done, codec = load_report(keep), pair.sender.codec
        if done.complete and done.codec["codec_id"] == codec.trained.codec_id(codec.spec).hex():
            return done
    named: dict[str, Any] = {"task": asked.name, "answers_end": asked.answers_end, "keep": keep, "progress": True}
    with interruptible(f"{keep} holds what was measured so far; the same command goes on with it"):
        return run(pair.sender, pair.receiver, asked.cases, **named, **options)


def _refuse_early(codec: str, attach: bool, html: Path | None, png: Path | None, keep: Path, repetitions: int) -> None:
    """Refuses now what would fail after an hour of measuring."""
    if repetitions:
        from ilcp.measure.cost import require_repetitions

        require_repetitions(repetitions)
    if attach and codec == EMBEDDED:
        raise ConfigError("expected a codec's folder to --attach, got 'embedded': name the folder")
    if html is not None:
        from ilcp.measure.page import require_jinja

        require_jinja()
    if html is not None or png is not None:
        from ilcp.measure.plots import require_matplotlib

        require_matplotlib()
    for file in (keep, html, None if png is None else png / "recovery.png"):
        if file is not None:
            require_writable(file)
    if attach and os.path.isdir(codec):
        require_writable(Path(codec) / "config.json")


def _draw(report: "Report", html: Path | None, png: Path | None) -> None:
    if html is not None:
        from ilcp.measure.page import page

        write_whole(html, page(report))
    if png is not None:
        from ilcp.measure.plots import save_plots

        save_plots(report, png)
