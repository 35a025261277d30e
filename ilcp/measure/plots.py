"""The plots of a report: recovery by bytes and by hops, scores by kind, time to the first token by length.

::

    report --plots--> name -> Figure --to_svg--> text     (inline in a page)
                                     --save_plots--> PNG files

Each shows figures of the report and nothing else; one that the report has no data for is left out.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ilcp.errors import StorageError
from ilcp.files import replacing
from ilcp.measure.choosing import Offer
from ilcp.measure.cost import Point
from ilcp.measure.drawing import (
    LOOKS,
    SHORT,
    SMALL,
    Look,
    Series,
    legend,
    look_of,
    plain_numbers,
    points,
    require_matplotlib,
    sheet,
    short_numbers,
    shortened,
    style,
)
from ilcp.measure.figures import Measured
from ilcp.measure.report import ALL, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["BYTES", "against", "plots", "require_matplotlib", "save_axes", "save_plots", "series_of", "to_svg"]

RECOVERY = (-0.6, 2.0)  # what an axis of recovery shows at most; what lies outside is named with its value
MOST_KINDS, HEADING = 8, 44  # of one plot; characters of a kind's name
COLOURS = ("#0072B2", "#D55E00")  # of codecs, in turn: no text's are these, and no text's marker is one of the next
MARKERS = ("o", "h", "p", "*", "<", ">", "d", "4")  # none looks like another: "8" is an "o" at this size
NATS = "log-likelihood (nats)"
ROW = 0.2  # inches of height of one arm under a kind


class Across(NamedTuple):
    """What recovery is drawn against: what an offer has of it, a title, the axis' label and its numbers.

    ``nats`` draws the recovery by log-likelihood in place of that by the task's own score.
    """

    of: Callable[[Offer], float | None]
    title: str
    label: str
    numbers: "Callable[[Axis], None]"
    nats: bool = False


BYTES = Across(
    lambda offer: offer.mean_bytes, "Recovery against bytes on the wire", "wire bytes per document, mean", short_numbers
)
AXES = {  # of several reports
    "recovery": BYTES,
    "log-likelihood": BYTES._replace(title="Recovery of log-likelihood against bytes on the wire", nats=True),
    "first token": Across(
        lambda offer: offer.first_token_ms,
        "Recovery against the first token",
        "time to the first token, ms, median",
        plain_numbers,
    ),
    "tokens": Across(
        lambda offer: offer.read_tokens,
        "Recovery against tokens read",
        "tokens read before an answer, median",
        plain_numbers,
    ),
}


def plots(report: Report) -> "dict[str, Figure]":
    """Draws the report's plots: "recovery", "hops", "kinds" and "first token", as far as it has the data.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with style():
        drawn = {
            "recovery": _recovery(report),
            "hops": _hops(report),
            "kinds": _kinds(report),
            "first token": _first_token(report),
        }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save_plots(report: Report, folder: str | Path) -> list[Path]:
    """Writes one PNG per plot into ``folder``, and returns their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: the folder or a file cannot be written.
    """
    return _save_all(plots(report), Path(folder))


def save_axes(report: Report, offers: Sequence[Offer], folder: str | Path) -> list[Path]:
    """Draws recovery of all offers of reports of the same questions: against bytes, and, as far as they were taken,
    against the time to the first token and against the tokens read until then; a PNG each.

    Args:
        report: one of the reports, for what they have alike.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: the folder or a file cannot be written.
    """
    with style():
        drawn = {name: _axis(report, offers, across) for name, across in AXES.items()}
    return _save_all({name: figure for name, figure in drawn.items() if figure is not None}, Path(folder))


def _save_all(drawn: "Mapping[str, Figure]", folder: Path) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"expected a folder for plots at {folder}, got: {error}; choose another place") from error
    paths = [folder / f"{name.replace(' ', '-')}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        with style(), replacing(path) as draft:
            figure.savefig(draft, format="png", dpi=160, metadata={"Software": None})
    return paths


def _axis(report: Report, offers: Sequence[Offer], across: Across) -> "Figure | None":
    """Draws recovery of offers; None where none has what it is drawn against, or the same is drawn already."""
    if across.nats and not report.answers_end:
        return None
    drawn = series_of(offers, across)
    return against(across, _note(report, across), drawn, _curves(report, {"none": ("none", np.nan)})) if drawn else None


def series_of(offers: Sequence[Offer], across: Across) -> list[Series]:
    """Makes a curve of each codec's messages and of each kind of text, of what has a place on the axis."""
    curves: dict[tuple[str, str], list[tuple[float, Measured]]] = {}
    for offer in offers:
        recovery = offer.recovery_nats if across.nats else offer.recovery
        place = None if recovery is None else across.of(offer)
        curve = curves.setdefault((offer.codec, _stem(offer.arm)), [])
        curve.extend([] if recovery is None or place is None else [(place, recovery)])
    of_codecs = [of for of in curves if of[0] or of[1] not in LOOKS]  # of all: each looks alike in every plot
    looks = {of: look_of(of[1]) for of in curves} | {
        (codec, stem): Look(
            _both_ends(codec if stem == "message" else f"{codec}, {stem}" if codec else stem),
            COLOURS[(at + at // len(MARKERS)) % len(COLOURS)],  # so that twice as many codecs as markers look apart
            MARKERS[at % len(MARKERS)],
        )
        for at, (codec, stem) in enumerate(of_codecs)
    }
    return [Series.of("\n".join(of), looks[of], found) for of, found in curves.items() if found]


def _both_ends(name: str) -> str:
    """Returns a name cut in its middle, since what tells two apart often stands at the end."""
    return name if len(name) <= SHORT else f"{name[: SHORT // 2 - 1]}…{name[-SHORT // 2 :]}"


def against(across: Across, note: str, drawn: Sequence[Series], levels: Sequence[Series]) -> "Figure":
    """Draws curves of recovery across what they are drawn against, and the levels beside them; within ``style()``."""
    figure, axes = sheet(across.title, note, 4.6, named=len(drawn) + len(levels))
    axes.set(xscale="log", xlabel=f"{across.label} (log scale)")
    across.numbers(axes.xaxis)
    return _recoveries(figure, axes, drawn, levels)


def _note(report: Report, across: Across) -> str:
    return _over(report, NATS if across.nats else _unit(report))


def _recoveries(figure: "Figure", axes: "Axes", drawn: Sequence[Series], levels: Sequence[Series]) -> "Figure":
    """Draws curves of recovery and the levels beside them, on a sheet whose other axis is set."""
    points(axes, drawn)
    _levels(axes, levels)
    legend(figure, _recovery_axis(axes, [*drawn, *levels]))
    return figure


def to_svg(figure: "Figure", name: str) -> str:
    """Returns the figure as an ``<svg>`` element; its ids begin with ``name``, so that several fit into one page."""
    file = io.StringIO()
    with style():
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue().partition("<svg")[2].rstrip()
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows them; so the page names no address at all
    return "<svg" + re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name.replace(' ', '-')}-", text)


def _recovery(report: Report) -> "Figure | None":
    if not _recovers(report):
        return None
    crossed = {name: arm for name, arm in report.arms.items() if arm.wire_bytes and arm.family != "hops"}
    stems = {name: "message" if arm.family == "message" else _stem(name) for name, arm in crossed.items()}
    drawn = _curves(report, {name: (stems[name], arm.sizes()["wire"].value) for name, arm in crossed.items()})
    levels = _curves(report, {name: (name, np.nan) for name in ("none", "continuous") if name in report.arms})
    return against(BYTES._replace(numbers=plain_numbers), _note(report, BYTES), drawn, levels)


def _hops(report: Report) -> "Figure | None":
    names = [name for name, arm in report.arms.items() if arm.family == "hops"]
    if not names or not _recovers(report):
        return None
    drawn = _curves(report, {name: (_stem(name), float(name.rpartition("-")[2])) for name in names})
    levels = _curves(report, {"none": ("none", np.nan)})
    figure, axes = sheet("Recovery against hops", _over(report, _unit(report)), 4.2, named=len(drawn) + 1)
    axes.set(xticks=range(1, int(max(x for one in drawn for x in one.x)) + 1), xlabel="hops")
    return _recoveries(figure, axes, drawn, levels)


def _curves(report: Report, places: Mapping[str, tuple[str, float]]) -> list[Series]:
    """Makes curves of the arms' recovery: ``places`` says of each which curve it belongs to, and where."""
    curves: dict[str, list[tuple[float, Measured]]] = {}
    for name, (stem, x) in places.items():
        figure = report.recovery(name)
        assert figure is not None  # see _recovers
        curves.setdefault(stem, []).append((x, figure))
    return [Series.of(stem, look_of(stem.removesuffix("-hops")), found) for stem, found in curves.items()]


def _levels(axes: "Axes", levels: Sequence[Series]) -> None:
    """Draws what has no place of its own as a line from end to end."""
    for one in levels:
        axes.axhline(one.y[0], color=one.look.colour, ls=one.look.dash, linewidth=1, label=one.name)


def _recovery_axis(axes: "Axes", drawn: Sequence[Series]) -> list[Series]:
    """Limits the axis, and returns the series: what lies outside has its furthest value behind its name."""
    reach = [y for one in drawn for y in one.reach]
    low, high = max(min(0.0, *reach), RECOVERY[0]) - 0.06, min(max(1.0, *reach), RECOVERY[1]) + 0.06
    axes.set(ylim=(low, high), ylabel="recovery: nothing = 0, full text = 1")
    axes.locator_params(axis="y", steps=[1, 2, 5, 10])
    outside = [max((y for y in one.y if not low <= y <= high), key=abs, default=None) for one in drawn]
    return [
        one if y is None else replace(one, look=replace(one.look, label=f"{one.look.label}: {y:.2f} {'↓↑'[y > high]}"))
        for one, y in zip(drawn, outside, strict=True)
    ]


def _first_token(report: Report) -> "Figure | None":
    if report.cost is None or not report.cost.points:
        return None
    measured, threads = report.cost.points, report.cost.threads
    n = len(measured[0].samples["text"])
    steps = {"text": ("text",), "message": ("message",), "sent": ("message", "encode", "wire out")}
    drawn = [_times(name, measured, parts) for name, parts in steps.items()]
    note = f"medians of n={n} repetitions, {threads} thread{'s' * (threads > 1)}; bars: the middle half of the samples"
    figure, axes = sheet("Time to the first token against document length", note, 4.2, named=len(drawn))
    axes.set(xscale="log", xlabel="document, receiver's tokens (log scale)")
    axes.set(yscale="log", ylabel="time to first token, ms (log scale)")
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    points(axes, drawn)
    legend(figure, drawn)
    return figure


def _times(name: str, measured: Sequence[Point], steps: Sequence[str]) -> Series:
    """Sums the steps' medians by document length, and their quartiles."""
    low, middle, high = (
        tuple(float(sum(np.percentile(point.samples[step], share) for step in steps)) for point in measured)
        for share in (25, 50, 75)
    )
    return Series(name, LOOKS[name], tuple(float(point.tokens) for point in measured), middle, low, high)


def _kinds(report: Report) -> "Figure | None":
    rival = report.strongest(tuple(name for name, arm in report.arms.items() if arm.rival_of == "message")) or ""
    if "message" not in report.arms:
        return None
    arms = [name for name in ("text", "message", rival, "mismatched", "none") if name in report.arms]
    asked = {kind: report.items.kinds.count(kind) for kind in report.kinds}
    most = sorted(asked, key=lambda kind: -asked[kind])[:MOST_KINDS] if len(asked) > 1 else []
    kinds, rows = [ALL, *(kind for kind in report.kinds if kind in most)], len(arms) + 1.7
    missing = f"; {len(most)} kinds of {len(asked)}" if 0 < len(most) < len(asked) else ""
    note = f"means over n questions, 95 % intervals, {report.n} documents{missing}"
    figure, axes = sheet("Answers by kind of question", note, 1.2 + ROW * rows * len(kinds), named=len(arms))
    axes.set(ylim=(rows * len(kinds), 0), yticks=[], xlabel=_unit(report))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    for place, kind in enumerate(kinds):
        said = f"{'all questions' if kind == ALL else shortened(kind, HEADING)} (n={report.mean(arms[0], kind).n})"
        axes.text(0, rows * place + 0.8, said, transform=axes.get_yaxis_transform(), size=SMALL, weight="bold")
        axes.axhline(rows * place, color="#BBBBBB", linewidth=0.8)
    drawn = []
    for number, name in enumerate(arms):
        figures_at = [(rows * place + 1.5 + number, report.mean(name, kind)) for place, kind in enumerate(kinds)]
        look = look_of(_stem(name), "best ") if name == rival else LOOKS[name]
        drawn.append(Series.of(name, look, figures_at))
    for one in drawn:  # lying: the figures go across
        axes.plot(one.y, one.x, one.look.marker, color=one.look.colour, label=one.name)
        axes.hlines(one.x, one.low, one.high, color=one.look.colour)
    legend(figure, drawn)
    return figure


def _recovers(report: Report) -> bool:
    """Tells whether recovery is defined: the full text is surely better than nothing."""
    return {"text", "none"} <= report.arms.keys() and report.recovery("text") is not None


def _over(report: Report, unit: str) -> str:
    return f"of {unit}; 95 % intervals; n={len(report.items)} questions about {report.n} documents"


def _unit(report: Report) -> str:
    return "exact match" if report.answers_end else NATS


def _stem(name: str) -> str:
    """Returns the name without the length or the hop at its end."""
    return re.sub(r"-\d+$", "", name)
