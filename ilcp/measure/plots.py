"""The plots of a report: recovery by bytes and by hops, scores by kind, time to the first token by length.

::

    report --plots--> name -> Figure --to_svg--> text     (inline in a page)
                                     --save_plots--> PNG files

Figures are matplotlib's objects, drawn without pyplot: no window, no state outside the call, the same bytes every time.
Each shows figures of the report and nothing else; one that the report has no data for is left out.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ilcp.errors import EncodeError
from ilcp.measure.cost import Point
from ilcp.measure.figures import Measured
from ilcp.measure.report import ALL, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["plots", "require_matplotlib", "save_plots", "to_svg"]

WIDTH = 6.4  # inches, as are the margins, which are fixed: the labels are placed by them
LEFT, RIGHT, TOP, BOTTOM = 0.85, 0.15, 0.75, 0.64
SMALL, USUAL, LARGE = 11.0, 11.5, 14.0  # points; a phone shows them at about six tenths
LABELS, COLUMN, LINE = 2.3, 0.2, 0.195  # the labels beside the curves; from a point to its label; between two labels
RECOVERY = (-0.6, 2.0)  # what an axis of recovery shows at most; what lies outside is named with its value
MOST_KINDS, SHORT = 8, 22  # of one plot; characters of a label
GREY = "#595959"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": USUAL,
    "text.parse_math": False,  # a kind may be named "$x"
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    "grid.color": "#E3E3E3",
    "svg.hashsalt": "ilcp",
}


@dataclass(frozen=True)
class Look:
    """How a series is named and drawn; the colours are Okabe and Ito's, which colour-blind readers tell apart."""

    label: str
    colour: str
    marker: str
    dash: str = "-"


LOOKS = {
    "text": Look("full text", "#000000", "s"),
    "message": Look("message", "#0072B2", "o"),
    "literals": Look("message, with literals", "#0072B2", "h", "-."),
    "sent": Look("message, with\nencoding and wire", "#0072B2", ".", "--"),
    "head": Look("text: beginning", "#E69F00", "^"),
    "tail": Look("text: end", "#56B4E9", "v"),
    "zstd": Look("text: zstd", "#009E73", "D"),
    "lm": Look("text: language model", "#CC79A7", "P"),
    "oracle": Look("limit: facts alone", "#D55E00", "*", "--"),
    "index": Look("limit: answer's index", "#D55E00", "p"),
    "continuous": Look("limit: not rounded", "#0072B2", "", ":"),
    "other": Look("another's message", GREY, "x"),
    "zero": Look("zero payload", GREY, "+"),
    "random": Look("random payload", GREY, "1"),
    "none": Look("nothing", GREY, "d", "--"),
    "forwarded": Look("message, forwarded", "#56B4E9", "s", "--"),
    "reencoded": Look("message, re-encoded", "#0072B2", "o"),
}


@dataclass(frozen=True)
class Series:
    """Points of one name, from left to right; ``low`` and ``high`` are NaN where a figure has no interval."""

    name: str
    look: Look
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, name: str, look: Look, points: Iterable[tuple[float, Measured]]) -> "Series":
        """Figures at their places on the axis."""
        places, figures = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        low, high = zip(*([np.nan if end is None else end for end in (f.low, f.high)] for f in figures), strict=True)
        return cls(name, look, places, tuple(figure.value for figure in figures), low, high)

    @property
    def end(self) -> tuple[Look, float, float]:
        """What a label at its last point names."""
        return self.look, self.x[-1], self.y[-1]

    @property
    def reach(self) -> list[float]:
        """Every y that is drawn, the intervals' ends among them."""
        return [y for y in (*self.low, *self.y, *self.high) if not np.isnan(y)]


def plots(report: Report) -> "dict[str, Figure]":
    """The report's plots by name: "recovery", "hops", "kinds" and "first token", as far as it has the data.

    Raises:
        EncodeError: matplotlib is not installed.
    """
    with _style():
        drawn = {
            "recovery": _recovery(report),
            "hops": _hops(report),
            "kinds": _kinds(report),
            "first token": _first_token(report),
        }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save_plots(report: Report, folder: str | Path) -> list[Path]:
    """The files written into ``folder``: one PNG per plot.

    Raises:
        EncodeError: matplotlib is not installed.
    """
    drawn = plots(report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name.replace(' ', '-')}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        with _style():
            figure.savefig(path, dpi=160, metadata={"Software": None})
    return paths


def to_svg(figure: "Figure", name: str) -> str:
    """The figure as an ``<svg>`` element; its ids begin with ``name``, so that several fit into one page."""
    file = io.StringIO()
    with _style():
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue().partition("<svg")[2].rstrip()
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows them; so the page names no address at all
    return "<svg" + re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name.replace(' ', '-')}-", text)


def require_matplotlib() -> None:
    """Nothing: it refuses where no plot can be drawn, before work is done for one.

    Raises:
        EncodeError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise EncodeError("expected matplotlib for the plots, got none: pip install 'ilcp[plots]'")


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults and ours inside the block, whatever the reader's settings are."""
    require_matplotlib()
    from matplotlib import style

    with style.context(["default", STYLE]):
        yield


def _recovery(report: Report) -> "Figure | None":
    if not _recovers(report):
        return None
    crossed = {name: arm for name, arm in report.arms.items() if arm.wire_bytes and arm.family != "hops"}
    stems = {name: "message" if arm.family == "message" else _stem(name) for name, arm in crossed.items()}
    drawn = _curves(report, {name: (stems[name], arm.sizes()["wire"].value) for name, arm in crossed.items()})
    levels = _curves(report, {name: (name, np.nan) for name in ("none", "continuous") if name in report.arms})
    start, most = min(x for one in drawn for x in one.x) / 1.25, max(x for one in drawn for x in one.x) * 1.25
    end = max((x for one in drawn for x in one.x if one.name != "text"), default=most)
    # Where the full text is far longer than all else, the labels fit between; where not, they stand outside.
    between = bool((WIDTH - LEFT - RIGHT) * np.log(most / end) / np.log(most / start) > COLUMN + LABELS + 0.5)
    figure, axes = _sheet("Recovery against bytes on the wire", _over(report), 5.2, right=RIGHT if between else LABELS)
    axes.set(xscale="log", xlim=(start, most), xlabel="wire bytes per document, mean (log scale)")
    _plain_numbers(axes.xaxis)
    _recovery_axis(axes, [y for one in drawn for y in one.reach] + [one.y[0] for one in levels], headroom=0.28)
    _points(axes, drawn)
    for one in levels:
        axes.axhline(one.y[0], color=one.look.colour, ls=one.look.dash, linewidth=1, label=one.name)
    apart = [one for one in drawn if one.x[-1] < 0.7 * end or (between and one.name == "text")]
    for place, one in enumerate(sorted(apart, key=lambda one: one.x[0])):  # named above all curves, each below the last
        side, corner = ("left", (0, 0)) if one.x[0] < end else ("right", (1, 0))
        line = {"arrowstyle": "-", "color": GREY, "ls": ":", "lw": 0.8, "shrinkB": 3, "relpos": corner}
        at, places = ((one.x[0], one.y[0]), (one.x[0], 0.95 - 0.05 * place)), ("data", axes.get_xaxis_transform())
        axes.annotate(one.look.label, *at, *places, line, ha=side, **_ink(one.look))
    named = [one.end for one in (*drawn, *levels) if one not in apart]
    _labels(axes, named, _place(axes, end, 0)[0] if between else 1.0)
    return figure


def _hops(report: Report) -> "Figure | None":
    names = [name for name, arm in report.arms.items() if arm.family == "hops"]
    if not names or not _recovers(report):
        return None
    drawn = _curves(report, {name: (_stem(name), float(name.rpartition("-")[2])) for name in names})
    last = max(x for one in drawn for x in one.x)
    figure, axes = _sheet("Recovery against hops", _over(report), 4.2, right=LABELS)
    axes.set(xlim=(0.85, last + 0.1), xticks=range(1, int(last) + 1), xlabel="hops")
    _recovery_axis(axes, [y for one in drawn for y in one.reach])
    _points(axes, drawn)
    axes.axhline(0, color=GREY, linestyle="--", linewidth=1, label="none")
    _labels(axes, [*(one.end for one in drawn), (LOOKS["none"], np.nan, 0.0)], 1.0)
    return figure


def _curves(report: Report, places: Mapping[str, tuple[str, float]]) -> list[Series]:
    """Recovery of the arms: ``places`` says of each which curve it belongs to, and where."""
    curves: dict[str, list[tuple[float, Measured]]] = {}
    for name, (stem, x) in places.items():
        figure = report.recovery(name)
        assert figure is not None  # see _recovers
        curves.setdefault(stem, []).append((x, figure))
    return [Series.of(stem, _look(stem.removesuffix("-hops")), points) for stem, points in curves.items()]


def _first_token(report: Report) -> "Figure | None":
    if report.cost is None or not report.cost.points:
        return None
    points, threads = report.cost.points, report.cost.threads
    n = len(points[0].samples["text"])
    steps = {"text": ("text",), "message": ("message",), "sent": ("message", "encode", "wire out")}
    drawn = [_times(name, points, parts) for name, parts in steps.items()]
    note = f"medians of n={n} repetitions, {threads} thread{'s' * (threads > 1)}; bars: the middle half of the samples"
    figure, axes = _sheet("Time to the first token against document length", note, 4.2, right=LABELS)
    ys, xs = [y for one in drawn for y in one.reach], drawn[0].x
    axes.set(xscale="log", xlim=(xs[0] / 1.15, xs[-1] * 1.1), yscale="log", ylim=(min(ys) / 1.3, max(ys) * 1.3))
    axes.set(xlabel="document, receiver's tokens (log scale)", ylabel="time to first token, ms (log scale)")
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    _points(axes, drawn)
    _labels(axes, [one.end for one in drawn], 1.0, lines=2)
    return figure


def _times(name: str, points: Sequence[Point], steps: Sequence[str]) -> Series:
    """The sum of the steps' medians by document length, and that of their quartiles."""
    low, middle, high = (
        tuple(float(sum(np.percentile(point.samples[step], share) for step in steps)) for point in points)
        for share in (25, 50, 75)
    )
    return Series(name, LOOKS[name], tuple(float(point.tokens) for point in points), middle, low, high)


def _kinds(report: Report) -> "Figure | None":
    rival = report.strongest(tuple(name for name, arm in report.arms.items() if arm.rival_of == "message")) or ""
    if "message" not in report.arms:
        return None
    arms = [name for name in ("text", "message", rival, "other", "none") if name in report.arms]
    asked = {kind: report.items.kinds.count(kind) for kind in report.kinds}
    most = sorted(asked, key=lambda kind: -asked[kind])[:MOST_KINDS] if len(asked) > 1 else []
    kinds, rows = [ALL, *(kind for kind in report.kinds if kind in most)], len(arms) + 1.7
    missing = f"; {len(most)} kinds of {len(asked)}" if 0 < len(most) < len(asked) else ""
    note = f"means over n questions, 95 % intervals, {report.n} documents{missing}"
    figure, axes = _sheet("Answers by kind of question", note, TOP + BOTTOM + 0.2 * rows * len(kinds), left=RIGHT)
    axes.set(ylim=(rows * len(kinds), 0), yticks=[], xlabel=_unit(report))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    for place, kind in enumerate(kinds):
        heading = f"{'all questions' if kind == ALL else _short(kind, 2 * SHORT)} (n={report.mean(arms[0], kind).n})"
        axes.text(0, rows * place + 0.8, heading, transform=axes.get_yaxis_transform(), size=SMALL, weight="bold")
        axes.axhline(rows * place, color="#BBBBBB", linewidth=0.8)
    drawn = []
    for number, name in enumerate(arms):
        points = [(rows * place + 1.5 + number, report.mean(name, kind)) for place, kind in enumerate(kinds)]
        drawn.append(Series.of(name, _look(_stem(name), "best ") if name == rival else LOOKS[name], points))
    middle = np.mean([edge(one.y[0] for one in drawn) for edge in (min, max)])
    for one in drawn:  # lying: the figures go across; the name stands beside the first
        axes.plot(one.y, one.x, one.look.marker, color=one.look.colour, label=one.name)
        axes.hlines(one.x, one.low, one.high, color=one.look.colour)
        end, side, off = (one.high[0], "left", 7) if one.y[0] < middle else (one.low[0], "right", -7)
        at = (one.y[0] if np.isnan(end) else end, one.x[0])
        axes.annotate(one.look.label, at, (off, 0), textcoords="offset points", ha=side, va="center", **_ink(one.look))
    return figure


def _recovers(report: Report) -> bool:
    """Whether recovery is defined: the full text is surely better than nothing."""
    return {"text", "none"} <= report.arms.keys() and report.recovery("text") is not None


def _over(report: Report) -> str:
    return f"of {_unit(report)}; 95 % intervals; n={len(report.items)} questions about {report.n} documents"


def _unit(report: Report) -> str:
    return "exact match" if report.closed else "log-likelihood (nats)"


def _stem(name: str) -> str:
    """The name without the length or the hop at its end."""
    return re.sub(r"-\d+$", "", name)


def _look(stem: str, before: str = "") -> Look:
    found = LOOKS.get(stem, Look(_short(f"text: {stem}", SHORT), "#7A5C3E", "X"))
    return replace(found, label=before + found.label)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _ink(look: Look) -> dict[str, Any]:
    """How a label is written: in its series' colour, darker."""
    from matplotlib.colors import to_rgb

    return {"size": SMALL, "color": tuple(0.75 * part for part in to_rgb(look.colour))}


def _sheet(title: str, note: str, height: float, *, left: float = LEFT, right: float = RIGHT) -> "tuple[Figure, Axes]":
    """An empty plot below its title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    figure.suptitle(title, x=RIGHT / WIDTH, y=1 - 0.09 / height, ha="left", va="top", size=LARGE, weight="bold")
    figure.text(RIGHT / WIDTH, 1 - 0.38 / height, note, ha="left", va="top", size=SMALL, color=GREY)
    box = (left / WIDTH, BOTTOM / height, 1 - (left + right) / WIDTH, 1 - (BOTTOM + TOP) / height)
    return figure, figure.add_axes(box)


def _recovery_axis(axes: "Axes", drawn: Sequence[float], headroom: float = 0.06) -> None:
    low, high = max(min(0.0, *drawn), RECOVERY[0]), min(max(1.0, *drawn), RECOVERY[1])
    axes.set(ylim=(low - 0.06, high + headroom), ylabel="recovery: nothing = 0, full text = 1")
    axes.locator_params(axis="y", steps=[1, 2, 5, 10])


def _plain_numbers(axis: "Axis") -> None:
    """1, 2, 5, 10, ... in digits, in the place of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def _points(axes: "Axes", drawn: Sequence[Series]) -> None:
    """The series with their intervals; the message lies on top."""
    axes.grid(axis="y")
    for one in drawn:
        top = 4 if one.look.colour == LOOKS["message"].colour else 3
        axes.plot(one.x, one.y, one.look.marker, ls=one.look.dash, color=one.look.colour, label=one.name, zorder=top)
        axes.vlines(one.x, one.low, one.high, color=one.look.colour, linewidth=1, alpha=0.6, zorder=top)


def _place(axes: "Axes", x: float, y: float) -> tuple[float, float]:
    """Data as shares of the plot's width and height."""
    across, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    return float(across), float(up)


def _labels(axes: "Axes", ends: Sequence[tuple[Look, float, float]], start: float, lines: int = 1) -> None:
    """Names in a column behind ``start``, each as near to its own height as the others allow, tied to its place.

    A place whose x is NaN is a level, which goes on behind the column.
    """
    width, height = (side / axes.figure.dpi for side in axes.get_window_extent().size)
    named = [(_place(axes, 1 if np.isnan(x) else x, y), look, bool(np.isnan(x)), y) for look, x, y in ends]
    named.sort(key=lambda one: one[0][1])
    inside = [min(max(up, 0.0), 1.0) for (_, up), *_ in named]
    column, edge = start + COLUMN / width, min(start + 0.6 * COLUMN / width, 1.0)
    places = _spread(inside, lines * LINE / height)
    for ((across, up), look, level, value), at, label_at in zip(named, inside, places, strict=True):
        arrow = "" if at == up else f": {value:.2f} {'↑' if at else '↓'}".replace("-", "−")
        line = {"arrowstyle": "-", "color": look.colour, "lw": 0.6, "shrinkB": 0 if level else 3, "relpos": (0, 0.5)}
        axes.annotate(
            look.label + arrow,
            xy=(edge if level else across, at),
            xytext=(column, label_at),
            xycoords="axes fraction",
            va="center",
            bbox={"fc": "white", "ec": "none", "pad": 0.8},
            arrowprops=line,
            **_ink(look),
        )


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """The ascending places between 0 and 1 nearest to those wanted that lie ``gap`` apart, or less if they must."""
    gap = min(gap, 1 / len(wanted))
    pools: list[list[float]] = []
    for number, place in enumerate(wanted):
        pools.append([place - number * gap])
        while len(pools) > 1 and np.mean(pools[-2]) >= np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    levels = [float(np.mean(pool)) for pool in pools for _ in pool]
    top = 1 - gap * (len(wanted) - 0.5)
    return [min(max(level, gap / 2), top) + number * gap for number, level in enumerate(levels)]
