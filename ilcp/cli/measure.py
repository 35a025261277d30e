"""``ilcp measure`` and ``ilcp compare``: the worth of a codec, and its changes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ilcp.cli.common import EMBEDDED, DeviceOption, ReceiverOption, SenderOption, busy, interruptible, out
from ilcp.errors import ConfigError
from ilcp.files import write_whole

if TYPE_CHECKING:
    from ilcp.embedded import Pair
    from ilcp.measure import Report
    from ilcp.tasks import Task

__all__ = ["compare", "measure"]


def measure(
    codec: Annotated[str, typer.Argument(help="A codec's folder or hub id, or 'embedded'.")],
    task: Annotated[str, typer.Option(help="'case-files', or a JSONL file of cases.")] = "case-files",
    n: Annotated[int | None, typer.Option(help="How many cases; without it 500, or as many as a file has.")] = None,
    seed: Annotated[int, typer.Option(help="Of the test documents, the intervals and the random payloads.")] = 7,
    sender: SenderOption = None,
    receiver: ReceiverOption = None,
    device: DeviceOption = "cpu",
    hops: Annotated[int, typer.Option(help="How many hops to hand on (case files only); 0: not measured.")] = 0,
    budget: Annotated[
        list[int] | None,
        typer.Option(help="Also measure messages that the receiver read back, of so many bytes; may be repeated."),
    ] = None,
    repetitions: Annotated[int, typer.Option(help="Of the times, at least 50; 0: not measured.")] = 60,
    as_json: Annotated[
        Path | None,
        typer.Option("--json", help="Keep the report here; an interrupted run goes on from it.", dir_okay=False),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="A page with plots; needs ilcp\\[plots].", dir_okay=False)] = None,
    png: Annotated[Path | None, typer.Option(help="A folder for the plots; needs ilcp\\[plots].")] = None,
    attach: Annotated[bool, typer.Option("--attach", help="Write the result into the codec's folder.")] = False,
) -> None:
    """Measures what a codec's message is worth, against everything that it must beat, on any pair of models.

    Every question is asked with the full text, with the message at each length, with nothing, with another case's
    message, with text of as many bytes, and more; every figure stands beside its interval. Ctrl-C leaves what was
    measured in --json, marked incomplete; the same command goes on with it.
    """
    _refuse_early(codec, attach, html, png)
    with busy("loading both models and the codec"):
        from ilcp import embedded, tasks
        from ilcp.measure import equal_texts, table

        folder = None if codec == EMBEDDED else codec
        pair = embedded.load_pair(folder, sender=sender, receiver=receiver, allow_unmeasured=True, device=device)
        asked = tasks.task(task, n=n, seed=seed)
        texts = equal_texts(pair.sender, asked.samples())
    report = _run(
        pair, asked, texts=texts, seed=seed, hops=hops, budgets=budget or (), repetitions=repetitions, keep=as_json
    )
    table.show(report, out if out.is_terminal else Console(width=100))
    _draw(report, html, png)
    if attach:
        from ilcp.codec.folder import attach_evidence

        attach_evidence(pair.path, report.evidence())


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


def _run(pair: "Pair", asked: "Task", *, keep: Path | None, **options: Any) -> "Report":
    from ilcp.measure import run

    left = "nothing was kept: name a file with --json"
    if keep is not None:
        left = f"{keep} holds what was measured so far; the same command goes on with it"
    named: dict[str, Any] = {"task": asked.name, "answers_end": asked.answers_end, "keep": keep, "progress": True}
    with interruptible(left):
        return run(pair.sender, pair.receiver, asked.cases, **named, **options)


def _refuse_early(codec: str, attach: bool, html: Path | None, png: Path | None) -> None:
    """Refuses now what would fail after an hour of measuring."""
    if attach and codec == EMBEDDED:
        raise ConfigError("expected a codec's folder to --attach, got 'embedded': name the folder")
    if html is not None:
        from ilcp.measure.page import require_jinja

        require_jinja()
    if html is not None or png is not None:
        from ilcp.measure.plots import require_matplotlib

        require_matplotlib()


def _draw(report: "Report", html: Path | None, png: Path | None) -> None:
    if html is not None:
        from ilcp.measure.page import page

        write_whole(html, page(report))
    if png is not None:
        from ilcp.measure.plots import save_plots

        save_plots(report, png)
