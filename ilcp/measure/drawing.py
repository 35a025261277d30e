"""The parts that the plots of a report are drawn of: looks, series, sheets, axes, legends.

Figures are matplotlib's objects, drawn without pyplot: no window, no state outside the call, the same bytes every time.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from ilcp.errors import MissingExtraError
from ilcp.measure.figures import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "GREY",
    "LOOKS",
    "SHORT",
    "SMALL",
    "Look",
    "Series",
    "legend",
    "look_of",
    "plain_numbers",
    "points",
    "require_matplotlib",
    "sheet",
    "short_numbers",
    "shortened",
    "style",
]

WIDTH = 6.4  # inches
SMALL, USUAL, LARGE = 11.0, 11.5, 14.0  # points; a phone shows them at about six tenths
SHORT = 22  # characters of a label
NOTE = 70  # characters of a line below the title
COLUMNS = 2  # of a legend
LINE = 0.2  # inches of height that one line of a legend takes
GREY = "#595959"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": USUAL,
    "text.parse_math": False,  # a kind may be named "$x"
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
    "svg.hashsalt": "ilcp",
}


@dataclass(frozen=True)
class Look:
    """The name and the look of a series; the colours are Okabe and Ito's, which colour-blind readers tell apart."""

    label: str
    colour: str
    marker: str
    dash: str = "-"


LOOKS = {
    "text": Look("full text", "#000000", "s"),
    "message": Look("message", "#0072B2", "o"),
    "literals": Look("message, with literals", "#0072B2", "h", "-."),
    "verified": Look("message, read back", "#0072B2", "H", ":"),
    "literals-only": Look("text: chosen facts", "#7A5C3E", "X"),
    "sent": Look("message, with encoding and wire", "#0072B2", ".", "--"),
    "head": Look("text: beginning", "#E69F00", "^"),
    "tail": Look("text: end", "#56B4E9", "v"),
    "zstd": Look("text: zstd", "#009E73", "D"),
    "lm": Look("text: language model", "#CC79A7", "P"),
    "oracle": Look("limit: facts alone", "#D55E00", "*", "--"),
    "index": Look("limit: answer's index", "#D55E00", "p"),
    "continuous": Look("limit: not rounded", "#0072B2", "", ":"),
    "mismatched": Look("another case's message", GREY, "x"),
    "literals-mismatched": Look("another's, own literals", GREY, "X"),
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
    def of(cls, name: str, look: Look, figures_at: Iterable[tuple[float, Measured]]) -> "Series":
        """Places figures on the axis."""
        places, figures = zip(*sorted(figures_at, key=lambda point: point[0]), strict=True)
        low, high = zip(*([np.nan if end is None else end for end in (f.low, f.high)] for f in figures), strict=True)
        return cls(name, look, places, tuple(figure.value for figure in figures), low, high)

    @property
    def reach(self) -> list[float]:
        """Every y that is drawn, the intervals' ends among them."""
        return [y for y in (*self.low, *self.y, *self.high) if not np.isnan(y)]


def look_of(stem: str, before: str = "") -> Look:
    """Returns the look of an arm without the length at its name's end; a text codec that is not known gets one."""
    found = LOOKS.get(stem, Look(shortened(f"text: {stem}", SHORT), "#7A5C3E", "X"))
    return replace(found, label=before + found.label)


def shortened(text: str, most: int) -> str:
    """Returns the text, cut to so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def require_matplotlib() -> None:
    """Refuses where no plot can be drawn, before work is done for one.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError.of("matplotlib", "to draw plots", "plots")


@contextmanager
def style() -> Iterator[None]:
    """Sets matplotlib's own defaults and ours inside the block, whatever the reader's settings are."""
    require_matplotlib()
    from matplotlib.style import context

    with context(["default", STYLE]):
        yield


def sheet(title: str, note: str, height: float, *, named: int) -> "tuple[Figure, Axes]":
    """Makes an empty plot below its title, with room for a legend of so many names."""
    from matplotlib.figure import Figure

    lines = wrap(note, NOTE)
    figure = Figure(figsize=(WIDTH, height + LINE * (-(-named // COLUMNS) + len(lines) - 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", size=LARGE, weight="bold", pad=8 + 16 * len(lines))
    said: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "size": SMALL, "color": GREY}
    axes.annotate("\n".join(lines), (0, 1), (0, 8), **said).set_in_layout(False)  # it takes no width from the axes
    return figure, axes


def points(axes: "Axes", drawn: Sequence[Series]) -> None:
    """Draws the series with their intervals; the message lies on top."""
    axes.grid(axis="y")
    for one in drawn:
        top = 4 if one.look.colour == LOOKS["message"].colour else 3
        axes.plot(one.x, one.y, one.look.marker, ls=one.look.dash, color=one.look.colour, label=one.name, zorder=top)
        axes.vlines(one.x, one.low, one.high, color=one.look.colour, linewidth=1, alpha=0.6, zorder=top)


def legend(figure: "Figure", drawn: Sequence[Series]) -> None:
    """Names the series below the plot."""
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    handles, labels = [lines[one.name] for one in drawn], [one.look.label for one in drawn]
    figure.legend(handles, labels, loc="outside lower left", ncols=COLUMNS, fontsize=SMALL)


def plain_numbers(axis: "Axis") -> None:
    """Writes 1, 2, 5, 10, ... in digits, in the place of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def short_numbers(axis: "Axis") -> None:
    """Writes 10, 100, 1k, 10k, 1M: an axis from bytes to megabytes has no room for more."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator())
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())
