"""A report as one HTML document: nothing is loaded, nothing runs; it can be mailed, printed and read on a phone.

True of every figure here: it has its value, unit, 95 % interval where it is a mean, and how it came about, *measured*
with its n or *computed* with its formula. ``page.html.jinja`` and ``page.css`` say how they are laid out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ilcp.errors import MissingExtraError
from ilcp.measure.figures import Computed, Measured
from ilcp.measure.plots import plots, require_matplotlib, to_svg
from ilcp.measure.report import ALL, Figures, Report
from ilcp.measure.table import METRIC_NAMES, shown

__all__ = ["page", "require_jinja"]

Figure = Measured | Computed
KEY_TIMES = ("first token, message / text", "the message pays, encode and wire counted in")
SHORT_NAME = 16  # characters of a row's name that are never broken into two lines
WHAT = {
    "text": "the receiver reads the document",
    "none": "the receiver is told nothing",
    "mismatched": "another case's message",
    "literals-mismatched": "another case's latent, with the document's own literals beside it",
    "zero": "a payload of zero bytes",
    "random": "a payload of random bytes",
    "continuous": "the same latent before it is rounded",
    "index": "the number of the right choice, one byte per question",
}
WHAT_FAMILY = {
    "message": "the sender's message",
    "literals": "the same, with the document's literals beside it",
    "text of equal bytes": "text of as many bytes as",
    "limit": "the task's own entropy code of the facts",
    "hops": "after so many hops",
}


@dataclass(frozen=True)
class Cell:
    """A figure in a table: ``words`` where its origin is said beside it, because its column does not agree on one."""

    value: str
    note: str
    words: bool = True


@dataclass(frozen=True)
class Head:
    """A column's name, and what all of its figures agree on."""

    name: str
    note: str
    words: bool


@dataclass(frozen=True)
class Row:
    """A row's name, its cells (None where there is no figure) and, in some tables, what it is."""

    name: str
    cells: tuple[Cell | None, ...]
    explained: str


@dataclass(frozen=True)
class Table:
    """A table that scrolls by itself."""

    first: str
    heads: tuple[Head, ...]
    rows: tuple[Row, ...]
    explained: bool
    narrow: bool


def page(report: Report) -> str:
    """Returns the report as the text of one HTML document.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    require_matplotlib()  # now, not after all figures were made
    require_jinja()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=folder, autoescape=True, undefined=StrictUndefined).get_template("page.html.jinja")
    figures, verdict = report.figures(), report.verdict()
    return template.render(
        report=report,
        title=f"ilcp report: {report.task}",
        verdict=verdict,
        sure=report.complete and verdict.startswith("The message carries content"),
        judged_by=METRIC_NAMES[report.metric],
        key_figures=[(name, _in_words(figure)) for name, figure in _key_figures(report, figures)],
        plots=_plots(report),
        scores=list(_scores(report, figures)),
        gains=_gains(report, figures),
        delivered=_delivered(figures),
        bytes=_bytes(report, figures),
        asked=_asked(report),
        cost=_cost(figures.get("cost", {})),
        notes=_notes(report),
        provenance=list(_provenance(report)),
    )


def require_jinja() -> None:
    """Refuses where no page can be made, before work is done for one.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    if find_spec("jinja2") is None:
        raise MissingExtraError.of("jinja2", "to make the page", "plots")


def _key_figures(report: Report, figures: Figures) -> Iterable[tuple[str, Figure]]:
    if "content gain" in figures:
        yield "content gain: the message minus another case's", figures["content gain"][ALL][report.metric]
    messages = [name for name, arm in report.arms.items() if arm.family == "message"]
    for name in messages:
        recovery = figures["arms"][name][ALL].get(f"recovery, {report.metric}")
        if recovery is not None:
            yield f"recovery by {name}", recovery
    for name in messages[:1]:
        for what, figure in figures.get("delivered", {}).get(name, {}).items():
            yield f"delivered by {name}: {what}", figure
        yield f"{name}, bytes on the wire", figures["bytes"][name]["wire"]
    for name in KEY_TIMES:
        if name in figures.get("cost", {}):
            yield name, figures["cost"][name]


def _plots(report: Report) -> list[Any]:
    """Returns the plots as SVG that is not escaped again, each with a description for those who cannot see it."""
    from markupsafe import Markup, escape

    drawn = []
    for name, figure in plots(report).items():
        axes = figure.axes[0]
        series = [str(line.get_label()) for line in axes.lines]
        shown_names = ", ".join(one for one in series if not one.startswith("_"))
        said = f"Plot. {axes.get_title(loc='left')}. {axes.texts[0].get_text()}. Shown: {shown_names}."
        described = f'<svg role="img" aria-label="{escape(said)}"'
        drawn.append(Markup(to_svg(figure, name).replace("<svg", described, 1)))
    return drawn


def _kinds(report: Report) -> tuple[str, ...]:
    return (ALL, *report.kinds) if len(report.kinds) > 1 else (ALL,)


def _scores(report: Report, figures: Figures) -> Iterable[dict[str, Any]]:
    """Yields one table per score and per recovery: a row per arm, a column per kind. The task's own are open."""
    kinds = _kinds(report)
    for of in report.metrics:
        for score, name in ((of, METRIC_NAMES[of]), (f"recovery, {of}", f"recovery of {METRIC_NAMES[of]}")):
            rows = {arm: [found[kind].get(score) for kind in kinds] for arm, found in figures["arms"].items()}
            table = _table("arm", kinds, rows)
            if table:
                yield {"name": name, "table": table, "open": of == report.metric}


def _gains(report: Report, figures: Figures) -> Table | None:
    gains, kinds = figures.get("content gain"), _kinds(report)
    if not gains:
        return None
    return _table("score", kinds, {METRIC_NAMES[of]: [gains[kind][of] for kind in kinds] for of in gains[ALL]})


def _delivered(figures: Figures) -> Table | None:
    if "delivered" not in figures:
        return None
    heads = list(dict.fromkeys(what for found in figures["delivered"].values() for what in found))
    rows = {name: [found.get(what) for what in heads] for name, found in figures["delivered"].items()}
    if figures["churn"]:
        heads.append("answers unlike the full text's")
        rows = {name: [*row, figures["churn"][name]] for name, row in rows.items()}
    return _table("arm", heads, rows)


def _bytes(report: Report, figures: Figures) -> Table | None:
    rows = {name: [found["payload"], found["wire"]] for name, found in figures["bytes"].items()}
    explained = {
        name: f"{WHAT.get(name, WHAT_FAMILY.get(arm.family, arm.family))} {arm.rival_of or ''}".strip()
        for name, arm in report.arms.items()
    }
    every = {name: rows.get(name, [None, None]) for name in report.arms}
    return _table("arm", ("payload", "wire"), every, explained)


def _asked(report: Report) -> str:
    if report.cost is None:
        return ""
    return f"{report.cost.threads} thread{'s' * (report.cost.threads > 1)}, asked: {report.cost.question}"


def _cost(cost: Mapping[str, Figure]) -> dict[str, Table]:
    """Returns tables by step, with the 99th percentile beside the median; by document length; then of all else."""
    steps = {name: [cost[name], cost[f"{name}, p99"]] for name in cost if f"{name}, p99" in cost}
    by_length: dict[str, dict[str, Figure]] = {}
    for name, figure in cost.items():
        matched = re.fullmatch(r"(\d+ tokens), (.+)", name)
        if matched:
            by_length.setdefault(matched[1], {})[matched[2]] = figure
    heads = list(dict.fromkeys(step for found in by_length.values() for step in found))
    lengths = {length: [found.get(step) for step in heads] for length, found in by_length.items()}
    listed = {*steps, *(f"{name}, p99" for name in steps), *(f"{at}, {step}" for at in by_length for step in heads)}
    others = {name: [figure] for name, figure in cost.items() if name not in listed}
    tables = {
        "by step": _table("step", ("median", "99th percentile"), steps),
        "first token by document length, medians": _table("document", heads, lengths),
        "what follows from them, bytes and operations": _table("figure", ("value",), others),
    }
    return {name: table for name, table in tables.items() if table is not None}


def _notes(report: Report) -> list[str]:
    notes = [*report.notes, *(report.cost.notes() if report.cost else ())]
    if {"text", "none"} <= report.arms.keys() and report.recovery("text") is None:
        notes.append("recovery: not given, because the full text is not surely better than nothing")
    if not report.answers_end:
        notes.append("exact match and token F1: not given, because answers go on")
    return notes


def _provenance(report: Report) -> Iterable[tuple[str, str]]:
    known = {
        "task": report.task,
        "documents": report.n,
        "questions": len(report.items),
        "seed": report.seed,
        "complete": report.complete,
        "answers end": report.answers_end,
        "report format": report.format,
        "codec": report.codec,
        **report.provenance,
    }
    return _flat(known, "")


def _flat(value: Any, name: str) -> Iterable[tuple[str, str]]:
    """Yields a nested record as names and values."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}, {key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value))
    else:
        yield name, str(value)


def _table(
    first: str,
    heads: Sequence[str],
    rows: Mapping[str, Sequence[Figure | None]],
    explained: Mapping[str, str] | None = None,
) -> Table | None:
    """Lays figures out in a table; None where it would hold none."""
    columns = [[figure for figure in column if figure is not None] for column in zip(*rows.values(), strict=True)]
    if not any(columns):
        return None
    units = [_common(figure.unit for figure in column) for column in columns]
    origins = [_common(map(_origin, column)) for column in columns]
    agreed = list(zip(units, origins, strict=True))
    return Table(
        first=first,
        heads=tuple(
            Head(name, "; ".join(filter(None, both)), words=not both[1])
            for name, both in zip(heads, agreed, strict=True)
        ),
        rows=tuple(
            Row(
                name,
                tuple(_cell(figure, *both) for figure, both in zip(figures, agreed, strict=True)),
                explained[name] if explained else "",
            )
            for name, figures in rows.items()
        ),
        explained=explained is not None,
        narrow=max(map(len, rows)) <= SHORT_NAME,
    )


def _common(values: Iterable[str]) -> str | None:
    """Returns what all of them are; None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _cell(figure: Figure | None, unit: str | None, origin: str | None) -> Cell | None:
    """Says a figure without what the head says of its column."""
    if figure is None:
        return None
    value, interval = shown(figure)
    value = value if unit is not None else f"{value} {figure.unit}".strip()
    return Cell(value, interval, words=False) if origin is not None else Cell(value, _in_words(figure).note)


def _in_words(figure: Figure) -> Cell:
    """Says a figure with its unit, interval and origin."""
    value, interval = shown(figure)
    return Cell(f"{value} {figure.unit}".strip(), (f"95 %: {interval}; " if interval else "") + _origin(figure))


def _origin(figure: Figure) -> str:
    """Says how a figure came about."""
    if isinstance(figure, Measured):
        return f"measured, n={figure.n}"
    given = ", ".join(f"{name}={value:g}" for name, value in figure.inputs.items())
    return f"computed: {figure.formula}" + (f" ({given})" if given else "")
