"""``ilcp choose``: which of the things that were measured to hand over."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ilcp.cli.common import PlainConsole, busy, out
from ilcp.cli.exit_codes import NOTHING_FITS
from ilcp.files import require_writable

if TYPE_CHECKING:
    from ilcp.measure import Choice

__all__ = ["choose"]


def choose(
    reports: Annotated[list[Path], typer.Argument(help="Reports of the same questions: JSON of 'ilcp measure'.")],
    max_bytes: Annotated[int | None, typer.Option(help="Of the longest message on the wire.")] = None,
    max_ttft_ms: Annotated[float | None, typer.Option(help="Of the receiver's time to its first token.")] = None,
    min_recovery: Annotated[
        float | None, typer.Option(help="1: as good as the full text; the lower end of the interval counts.")
    ] = None,
    auditable: Annotated[bool, typer.Option("--auditable", help="Only what people can read: text.")] = False,
    png: Annotated[
        Path | None, typer.Option(help="A folder for plots of recovery, on one axis each; needs ilcp\\[plots].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, on standard output.")] = False,
) -> None:
    """Names what to hand over within a budget, out of what was measured, or says what cannot be had.

    It names what takes the fewest bytes: of all that reach the recovery asked for, or else of all that are not surely
    worse than the best.
    """
    with busy("making all figures of the reports anew"):
        from ilcp.measure import choose as chosen_of
        from ilcp.measure import load_report

        if png is not None:
            from ilcp.measure.plots import require_matplotlib

            require_matplotlib()
            require_writable(png / "recovery.png")
        read = [load_report(report) for report in reports]
        named = dict(zip((report.stem for report in reports), read, strict=True))
        found = chosen_of(
            named if len(named) == len(read) else read,
            max_bytes=max_bytes,
            max_first_token_ms=max_ttft_ms,
            min_recovery=min_recovery,
            readable=auditable,
        )
    if png is not None:
        from ilcp.measure.plots import save_axes

        save_axes(read[0], found.offers, png)
    typer.echo(json.dumps(found.to_dict(), indent=2)) if as_json else _show(found)
    if found.chosen is None:
        raise typer.Exit(NOTHING_FITS)


def _show(found: "Choice") -> None:
    from ilcp.measure.table import show_choice

    show_choice(found, out if out.is_terminal else PlainConsole(width=100))
