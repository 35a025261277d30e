"""Two plots of a page, as shapes that its template draws: what happened by day, and how often accounts disagreed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Bar", "Plot", "by_day"]

WIDTH, HEIGHT, LEFT, BELOW = 720, 200, 48, 22
MOST_DAYS = 60
COLOURS = {  # Okabe and Ito's, which colour-blind readers tell apart
    "sent": "#0072B2",
    "received": "#56B4E9",
    "fell back to text": "#E69F00",
    "refused": "#D55E00",
    "disagree": "#CC79A7",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar, in pixels from the upper left; ``title`` says it in words."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str


@dataclass(frozen=True)
class Plot:
    """A plot: its bars, what a day's name stands under, the largest value, and its legend."""

    title: str
    bars: tuple[Bar, ...]
    labels: tuple[tuple[float, str], ...]
    most: int
    legend: tuple[tuple[str, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    below: int = BELOW


def by_day(days: Mapping[str, Mapping[str, int]], parts: Mapping[str, str], title: str) -> Plot | None:
    """Stacks parts (by name, and in words) for each of the newest days; None where nothing happened."""
    kept = sorted(day for day, counts in days.items() if any(counts.get(part) for part in parts))[-MOST_DAYS:]
    if not kept:
        return None
    most = max(sum(days[day].get(part, 0) for part in parts) for day in kept)
    step = (WIDTH - LEFT) / len(kept)
    bars: list[Bar] = []
    for place, day in enumerate(kept):
        top = float(HEIGHT - BELOW)
        for part, words in parts.items():
            count = days[day].get(part, 0)
            height = (HEIGHT - BELOW - 10) * count / most
            top -= height
            if count:
                x, width = LEFT + place * step + 1, min(step - 2, 80.0)
                bars.append(Bar(x, top, width, height, COLOURS[part], f"{day}: {count} {words}"))
    return Plot(title, tuple(bars), _labels(kept, step), most, tuple((COLOURS[p], w) for p, w in parts.items()))


def _labels(days: Sequence[str], step: float) -> tuple[tuple[float, str], ...]:
    every = max(1, round(110 / step))
    return tuple((LEFT + place * step + 1, day) for place, day in enumerate(days) if place % every == 0)
