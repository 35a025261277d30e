"""A report in the terminal: the verdict, every arm's scores, delivered information, costs and notes."""

import math
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from ilcp.measure.choosing import Choice
from ilcp.measure.compare import Comparison
from ilcp.measure.faithfulness import Faithfulness
from ilcp.measure.figures import Computed, Measured
from ilcp.measure.items import JOINT, LOG_LIKELIHOOD
from ilcp.measure.report import ALL, Figures, Report

__all__ = ["METRIC_NAMES", "show", "show_choice", "show_comparison", "show_faithfulness", "shown"]

COLUMNS = 100
METRIC_NAMES = {"exact": "exact match", JOINT: "joint exact match", "f1": "token F1", LOG_LIKELIHOOD: "log-likelihood"}
HIGHLIGHTS = (
    "sender's extra",
    "first token, text",
    "first token, message",
    "first token, message / text",
    "first token, message, encode and wire / text",
    "prefill, message / text",
    "FLOPs by formula, message / text",
    "the message pays, receiver alone",
    "the message pays, encode and wire counted in",
)


def show(report: Report, console: Console) -> None:
    """Prints the report, the verdict first. The page and the JSON hold every figure; this holds the main ones."""
    console.print(report.verdict(), soft_wrap=True, highlight=False, markup=False)
    if not report.arms:
        return
    figures = report.figures()
    table = _arms(report, figures, report.kinds if len(report.kinds) > 1 else ())
    wanted = Measurement.get(console, console.options.update(max_width=10 * COLUMNS), table).maximum
    if wanted > min(COLUMNS, console.width):
        table = _arms(report, figures, ())
    _print(
        console,
        f"every arm: means over n={len(report.items)} questions about {report.n} documents [95 % interval]",
        table,
    )
    if any(arm.family == "hops" for arm in report.arms.values()):
        _print(console, "after hops [95 % interval]", _hops(report, figures))
    if "delivered" in figures:
        _print(
            console,
            f"delivered information: n={report.n} documents [95 % interval]",
            _delivered(report, figures["delivered"]),
        )
    if "cost" in figures:
        _print(console, "cost", _cost(figures["cost"]))
    for note in (*report.notes, *(report.cost.notes() if report.cost else ())):
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)


def shown(figure: Measured | Computed) -> tuple[str, str]:
    """Returns the value and its interval, to as many places; the interval is empty where there is none."""
    low, high = getattr(figure, "low", None), getattr(figure, "high", None)
    bounds = [] if low is None or high is None else [low, high]
    largest = max(abs(value) for value in (figure.value, *bounds))

    def number(value: float) -> str:
        if largest >= 1e9:
            return f"{value:.4g}".replace("e+", "e")
        if largest >= 1000 or (not bounds and float(value).is_integer()):
            return f"{value:,.0f}"
        places = 3 if largest == 0 else 2 - math.floor(math.log10(largest))
        return f"{value:,.{max(places, 3 if largest < 10 else 1)}f}"

    return number(figure.value), f"[{', '.join(map(number, bounds))}]" if bounds else ""


def _print(console: Console, title: str, table: Table) -> None:
    console.print(f"\n{title}", style="bold", soft_wrap=True, highlight=False, markup=False)
    console.print(table, highlight=False)


def _table(first: str, others: Iterable[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(escape(name), justify="right")
    return table


def _arms(report: Report, figures: Figures, kinds: Iterable[str]) -> Table:
    metrics = report.metrics
    recovery = f"recovery, {report.metric}"
    recovers = any(recovery in found[ALL] for found in figures["arms"].values())
    columns = ["wire, B", *("F1" if of == "f1" else of for of in metrics), *([recovery] if recovers else []), *kinds]
    table = _table("arm", columns)
    for name, arm in report.arms.items():
        if arm.family == "hops":
            continue
        found = figures["arms"][name]
        scores = found[ALL]
        cells = [f"{scores[of].value:.3f}" for of in metrics]
        if recovers:
            cells.append(" ".join(shown(scores[recovery])))
        else:  # the interval stands beside the score then
            place = metrics.index(report.metric)
            cells[place] = " ".join(shown(scores[report.metric]))
        cells += [f"{found[kind][report.metric].value:.3f}" for kind in kinds]
        wire = f"{figures['bytes'][name]['wire'].value:,.1f}" if arm.wire_bytes else "-"
        table.add_row(escape(name), wire, *cells, style="bold" if arm.family == "message" else "")
    return table


def _hops(report: Report, figures: Figures) -> Table:
    """Makes the table of the arms ``NAME-k``: a row per name, a column per hop."""
    by_hop: dict[str, dict[int, str]] = {}
    of = f"recovery, {report.metric}"
    for name, arm in report.arms.items():
        if arm.family == "hops":
            chain, _, hop = name.rpartition("-")
            scores = figures["arms"][name][ALL]
            by_hop.setdefault(chain, {})[int(hop)] = " ".join(shown(scores[of if of in scores else report.metric]))
    hops = sorted({hop for found in by_hop.values() for hop in found})
    what = of if any(of in found[ALL] for found in figures["arms"].values()) else report.metric
    table = _table("handed on by", [f"{what}, hop {hop}" for hop in hops])
    for chain, found in by_hop.items():
        table.add_row(escape(chain), *(found.get(hop, "-") for hop in hops))
    return table


def _delivered(report: Report, delivered: Figures) -> Table:
    messages = [name for name, arm in report.arms.items() if arm.family == "message"]
    columns = list(dict.fromkeys(column for name in messages for column in delivered[name]))
    table = _table("arm", columns)
    for name in messages:
        figures = [delivered[name].get(column) for column in columns]
        table.add_row(escape(name), *("-" if figure is None else "\n".join(shown(figure)) for figure in figures))
    return table


def _cost(figures: Figures) -> Table:
    table = _table("figure", ["value"])
    table.add_column("how")
    for name in HIGHLIGHTS:
        if name in figures:
            figure = figures[name]
            how = f"measured, n={figure.n}" if isinstance(figure, Measured) else f"computed: {figure.formula}"
            table.add_row(escape(name), f"{shown(figure)[0]} {figure.unit}".strip(), escape(how))
    return table


def show_comparison(found: Comparison, console: Console) -> None:
    """Prints what changed between two reports: how they were made, then every arm, then which arms only one has."""
    for name, (was, now) in found.made_differently.items():
        console.print(f"{name}: {was} -> {now}", soft_wrap=True, highlight=False, markup=False)
    table = Table("arm", "kind", "before", "after", "difference [95 %]", "gained", "lost", "changed", box=box.SIMPLE)
    for change in found.changes:
        interval = (
            "" if change.difference.low is None else f" [{change.difference.low:+.3f}, {change.difference.high:+.3f}]"
        )
        row = [
            change.arm,
            change.kind,
            f"{change.before.value:.3f}",
            f"{change.after.value:.3f}",
            f"{change.difference.value:+.3f}{interval}",
            *("" if count is None else str(count) for count in (change.gained, change.lost, change.changed)),
        ]
        table.add_row(*map(escape, row), style="bold" if change.real else None)
    console.print(table)
    console.print("Bold: the difference is away from zero with its interval.", highlight=False)
    for title, arms in (("only before", found.only_before), ("only after", found.only_after)):
        if arms:
            console.print(f"{title}: {', '.join(arms)}", soft_wrap=True, highlight=False, markup=False)


def show_choice(found: Choice, console: Console) -> None:
    """Prints what to hand over, or what cannot be had, then every offer, the shortest first."""
    console.print(found.said, soft_wrap=True, highlight=False, markup=False)
    table = Table(
        "hand over", "codec", "wire, B", "at most", "recovery [95 %]", "first token", "against", box=box.SIMPLE
    )
    for offer in found.offers:
        recovery = offer.recovery
        interval = "" if recovery.low is None else f" [{recovery.low:.3f}, {recovery.high:.3f}]"
        row = [
            offer.arm,
            offer.codec,
            f"{offer.mean_bytes:,.1f}",
            f"{offer.most_bytes:,}",
            f"{recovery.value:.3f}{interval}",
            "" if offer.first_token_ms is None else f"{offer.first_token_ms:.1f} ms",
            ", ".join(offer.against),
        ]
        table.add_row(*map(escape, row), style="bold" if offer == found.chosen else None)
    console.print(table)


def show_faithfulness(found: Sequence[Faithfulness], console: Console) -> None:
    """Prints what accounts of messages are worth, a column for each length."""
    table = Table(title="How true an account of the message is", title_justify="left")
    table.add_column("")
    for one in found:
        table.add_column(f"{one.payload_bytes} bytes", justify="right")
    for name in found[0].figures:
        figures = [one.figures.get(name) for one in found]
        table.add_row(name, *("" if figure is None else _short(figure) for figure in figures))
    console.print(table)
    console.print(
        "A gloss is a reading of the message, asked of its memory alone; it explains nobody's reasoning.",
        highlight=False,
    )


def _short(figure: Measured) -> str:
    return f"{figure.value:.3f}" + ("" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]")
