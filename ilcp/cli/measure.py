"""``ilcp measure`` and ``ilcp compare``: what a codec is worth, and what changed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ilcp.cli.common import EMBEDDED, DeviceOption, ReceiverOption, SenderOption, busy, interruptible, out
from ilcp.errors import EncodeError

if TYPE_CHECKING:
    from ilcp.measure import Report

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
    repetitions: Annotated[int, typer.Option(help="Of the times, at least 50; 0: not measured.")] = 60,
    as_json: Annotated[
        Path | None,
        typer.Option("--json", help="Keep the report here; an interrupted run goes on from it.", dir_okay=False),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="A page with plots; needs ilcp\\[plots].", dir_okay=False)] = None,
    png: Annotated[Path | None, typer.Option(help="A folder for the plots; needs ilcp\\[plots].")] = None,
    attach: Annotated[bool, typer.Option("--attach", help="Write the result into the codec's folder.")] = False,
) -> None:
    """What a codec's message is worth, against everything that it must beat, on any pair of models.

    Every question is asked with the full text, with the message at each length, with nothing, with another case's
    message, with text of as many bytes, and more; every figure stands beside its interval. Ctrl-C leaves what was
    measured in --json, marked incomplete; the same command goes on with it.
    """
    _check_measure(codec, attach, plots=html is not None or png is not None)
    with busy("loading both models and the codec"):
        from ilcp.embedded import load_pair
        from ilcp.measure import equal_texts, run
        from ilcp.measure.table import show
        from ilcp.tasks import task as named

        pair = load_pair(
            None if codec == EMBEDDED else codec, sender=sender, receiver=receiver, allow_unmeasured=True, device=device
        )
        asked = named(task, n=n, seed=seed)
        texts = equal_texts(pair.sender, asked.samples())
    left = "nothing was kept: name a file with --json"
    if as_json is not None:
        left = f"{as_json} holds what was measured so far; the same command goes on with it"
    with interruptible(left):
        report = run(
            pair.sender,
            pair.receiver,
            asked.cases,
            task=asked.name,
            seed=seed,
            closed=asked.answers_end,
            texts=texts,
            hops=hops,
            repetitions=repetitions,
            keep=as_json,
            progress=True,
        )
    show(report, out if out.is_terminal else Console(width=100))
    _draw(report, html, png)
    if attach:
        from ilcp.codec.folder import attach_evidence

        attach_evidence(pair.path, report.evidence())


def compare(
    before: Annotated[Path, typer.Argument(help="A report: JSON of 'ilcp measure'.")],
    after: Annotated[Path, typer.Argument(help="Another report of the same questions.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, on standard output.")] = False,
) -> None:
    """What changed between two reports, with intervals, and how many single answers flipped (churn)."""
    with busy("making all figures of both reports anew"):
        from ilcp.measure import compare as changes_of
        from ilcp.measure import load_report

        found = changes_of(load_report(before), load_report(after))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from ilcp.measure.table import show_comparison

    show_comparison(found, out)


def _check_measure(codec: str, attach: bool, *, plots: bool) -> None:
    """Refuses now what would fail after an hour of measuring."""
    if attach and codec == EMBEDDED:
        raise EncodeError("expected a codec's folder to --attach, got 'embedded': name the folder")
    if plots:
        from ilcp.measure.plots import require_matplotlib

        require_matplotlib()


def _draw(report: "Report", html: Path | None, png: Path | None) -> None:
    if html is not None:
        from ilcp.measure.page import page

        html.write_text(page(report), encoding="utf-8")
    if png is not None:
        from ilcp.measure.plots import save_plots

        save_plots(report, png)
