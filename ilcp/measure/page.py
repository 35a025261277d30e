"""A report as one HTML document: nothing is loaded, nothing runs; it can be mailed, printed and read on a phone.

What is true of every figure here: value, unit, 95 % interval where it is a mean, and how it came about, *measured* with
its n or *computed* with its formula. Where a whole column agrees on unit and origin, its head says them once.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ilcp.measure.figures import Computed, Measured
from ilcp.measure.plots import plots, require_matplotlib, to_svg
from ilcp.measure.report import ALL, METRICS, Figures, Report
from ilcp.measure.table import METRIC_NAMES, shown

__all__ = ["page"]

Figure = Measured | Computed
SAY = ' class="say"'  # a cell of words
KEY_TIMES = ("first token, message / text", "the message pays, encode and wire counted in")
WHAT = {
    "text": "the receiver reads the document",
    "none": "the receiver is told nothing",
    "other": "another case's message",
    "literals-other": "another case's latent, with the document's own literals beside it",
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
CSS = """
:root { color-scheme: light dark; --ink: #1a1d21; --soft: #565d66; --paper: #fff; --card: #f4f5f7; --line: #d9dce1;
  --accent: #0060a0; --warn: #9a3b00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --soft: #a4abb5; --paper: #15181c; --card: #1f242a;
  --line: #363d46; --accent: #6db8ee; --warn: #ffa565 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--soft); margin: 0 0 .5rem }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line) }
h3, summary { font-size: 1.05rem; font-weight: 600; margin: 1.25rem 0 .5rem }
summary { cursor: pointer }
p, li { max-width: 46rem }
.verdict { font-size: clamp(1.1rem, 1rem + 1vw, 1.3rem); line-height: 1.4; font-weight: 600; max-width: 52rem;
  margin: 0; padding: .9rem 1rem; background: var(--card); border-left: .35rem solid var(--accent);
  border-radius: .25rem }
.verdict.warn { border-left-color: var(--warn) }
small, .soft { color: var(--soft); font-size: .8125rem; font-weight: 400 }
.key { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.5rem), 1fr)); gap: .6rem;
  margin: 0 }
.key div { background: var(--card); border-radius: .4rem; padding: .7rem .85rem }
.key dt { font-size: .9rem; color: var(--soft) }
.key dd { margin: 0; font-size: 1.35rem; font-weight: 650; font-variant-numeric: tabular-nums }
.key dd small { display: block; line-height: 1.4 }
.plots { columns: 2 31rem; column-gap: 1rem }
figure { margin: 0 0 1rem; break-inside: avoid; background: #fff; border: 1px solid var(--line); border-radius: .4rem;
  padding: .2rem }
figure svg { display: block; width: 100%; height: auto; max-width: 40rem; margin: auto }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; max-width: max-content }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding: .5rem .6rem; color: var(--soft) }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; border-top: 1px solid var(--line) }
td, thead th { white-space: nowrap }
thead th { vertical-align: bottom; background: var(--card); border-top: 0 }
th:first-child, .say { text-align: left }
tbody th { position: sticky; left: 0; background: var(--paper); font-weight: 600; min-width: 9rem; max-width: 15rem }
tbody th.whole { white-space: nowrap; min-width: 0 }
td.say { white-space: normal; min-width: 11rem; max-width: 40rem; overflow-wrap: anywhere }
td.what { min-width: 18rem }
td small, th small { display: block; line-height: 1.3; font-size: .92em }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --card: #f4f5f7; --line: #bbb }
  body { max-width: none; padding: 0; font-size: 10pt }
  .wide { overflow: visible; max-width: none; border: 0 } table { font-size: 7.5pt } th, td { padding: .15rem .3rem }
  tbody th { position: static } .plots { columns: auto } figure { max-width: 15cm }
  figure, tr, .key div, .verdict { break-inside: avoid } h2, h3, summary { break-after: avoid }
  thead { display: table-header-group } details::details-content { content-visibility: visible; height: auto } }
@page { margin: 15mm }
"""


def page(report: Report) -> str:
    """The report as the text of one HTML document.

    Raises:
        EncodeError: matplotlib is not installed.
    """
    require_matplotlib()  # now, not after all figures were made
    figures = report.figures()
    title = f"ilcp report: {report.task}"
    sure = report.complete and report.verdict().startswith("The message carries content")
    parts = [
        f'<header><h1>{escape(title)}</h1><p class="verdict{"" if sure else " warn"}">{escape(report.verdict())}</p>'
        f'<p class="soft">{report.n} documents, {len(report.items)} questions, judged by '
        f"{METRIC_NAMES[report.metric]}. In brackets: 95 % intervals, from a paired bootstrap over documents.</p>"
        "</header>",
        _section("Key figures", _key_figures(report, figures)),
        _section("Plots", _plots(report)),
        _section("Every arm", _arms(report, figures)),
        _section("Delivered information", _delivered(report, figures)),
        _section("Bytes", _bytes(report, figures)),
        _section("Times and operations", _cost(report, figures.get("cost", {}))),
        _section("Notes", _notes(report)),
        _section("Footnotes", _footnotes(report)),
        _section("Provenance", _provenance(report)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>" if content else ""


def _key_figures(report: Report, figures: Figures) -> str:
    found: list[tuple[str, Figure]] = []
    if "content gain" in figures:
        found.append(("content gain: the message minus another case's", figures["content gain"][ALL][report.metric]))
    told = [name for name, arm in report.arms.items() if arm.family == "message"]
    for name in told:
        recovery = figures["arms"][name][ALL].get(f"recovery, {report.metric}")
        if recovery is not None:
            found.append((f"recovery by {name}", recovery))
    for name in told[:1]:
        delivered = figures.get("delivered", {}).get(name, {})
        found += [(f"delivered by {name}: {what}", figure) for what, figure in delivered.items()]
        found.append((f"{name}, bytes on the wire", figures["bytes"][name]["wire"]))
    found += [(name, figures["cost"][name]) for name in KEY_TIMES if name in figures.get("cost", {})]
    cards = (
        f"<div><dt>{escape(name)}</dt><dd>{_value(figure)} <small>{_interval(figure)}{escape(_origin(figure))}</small>"
        "</dd></div>"
        for name, figure in found
    )
    return f'<dl class="key">{"".join(cards)}</dl>' if found else ""


def _plots(report: Report) -> str:
    drawn = []
    for name, figure in plots(report).items():
        series = [line.get_label() for line in figure.axes[0].lines]
        said = ". ".join(text.get_text() for text in figure.texts)
        said = f"Plot. {said}. Shown: {', '.join(str(one) for one in series if not str(one).startswith('_'))}."
        svg = to_svg(figure, name).replace("<svg", f'<svg role="img" aria-label="{escape(said)}"', 1)
        drawn.append(f"<figure>{svg}</figure>")
    return f'<div class="plots">{"".join(drawn)}</div>' if drawn else ""


def _arms(report: Report, figures: Figures) -> str:
    """One table per score and per recovery: a row per arm, a column per kind. Those the task is judged by are open."""
    kinds = (ALL, *report.kinds) if len(report.kinds) > 1 else (ALL,)
    tables = []
    for of in METRICS if report.closed else ("nats",):
        for score, name in ((of, METRIC_NAMES[of]), (f"recovery, {of}", f"recovery of {METRIC_NAMES[of]}")):
            rows = {arm: [found[kind].get(score) for kind in kinds] for arm, found in figures["arms"].items()}
            is_open = " open" if of == report.metric else ""
            table = _table("arm", kinds, rows)
            tables.append(f"<details{is_open}><summary>{name}</summary>{table}</details>" if table else "")
    gains = figures.get("content gain")
    if gains:
        rows = {METRIC_NAMES[of]: [gains[kind][of] for kind in kinds] for of in gains[ALL]}
        tables.append(f"<h3>content gain: message minus another case's</h3>{_table('score', kinds, rows)}")
    return "\n".join(tables)


def _delivered(report: Report, figures: Figures) -> str:
    if "delivered" not in figures:
        return ""
    heads = list(dict.fromkeys(what for found in figures["delivered"].values() for what in found))
    rows = {name: [found.get(what) for what in heads] for name, found in figures["delivered"].items()}
    if figures["churn"]:
        heads.append("answers unlike the full text's")
        rows = {name: [*row, figures["churn"][name]] for name, row in rows.items()}
    said = "What an arm tells the receiver of a document's facts: a lower bound of the mutual information."
    return f"<p>{said}</p>{_table('arm', heads, rows)}"


def _bytes(report: Report, figures: Figures) -> str:
    rows = {name: [found["payload"], found["wire"]] for name, found in figures["bytes"].items()}
    said = {
        name: f"{WHAT.get(name, WHAT_FAMILY.get(arm.family, arm.family))} {arm.rival_of or ''}".strip()
        for name, arm in report.arms.items()
    }
    every = {name: rows.get(name, [None, None]) for name in report.arms}
    return _table("arm", ("payload", "wire"), every, said) if every else ""


def _cost(report: Report, cost: Mapping[str, Figure]) -> str:
    """By step, with the 99th percentile beside the median; by document length; then all else."""
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
    said = [f"<h3>{name}</h3>{table}" for name, table in tables.items() if table]
    if report.cost is not None:
        asked = f"{report.cost.threads} thread{'s' * (report.cost.threads > 1)}, asked: {report.cost.question}"
        said.insert(0, f"<p>Medians of interleaved repetitions; {escape(asked)}</p>")
    return "\n".join(said)


def _notes(report: Report) -> str:
    notes = [*report.notes, *(report.cost.notes() if report.cost else ())]
    if {"text", "none"} <= report.arms.keys() and report.recovery("text") is None:
        notes.append("recovery: not given, because the full text is not surely better than nothing")
    if not report.closed:
        notes.append("exact match and token F1: not given, because answers go on")
    return f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def _footnotes(report: Report) -> str:
    """Figures of others, which stand in no table."""
    notes = (
        f"<li>{escape(note.text)} <small>Source: {escape(note.source)}. Setting: {escape(note.setting)}.</small></li>"
        for note in report.footnotes
    )
    return f"<ol>{''.join(notes)}</ol>" if report.footnotes else ""


def _provenance(report: Report) -> str:
    known = {
        "task": report.task,
        "documents": report.n,
        "questions": len(report.items),
        "seed": report.seed,
        "complete": report.complete,
        "answers end": report.closed,
        "report format": report.format,
        "codec": report.codec,
        **report.provenance,
    }
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td{SAY}>{escape(value)}</td></tr>' for name, value in _flat(known, "")
    )
    return f'<div class="wide"><table><tbody>{rows}</tbody></table></div>'


def _flat(value: Any, name: str) -> Iterable[tuple[str, str]]:
    """A nested record as names and values."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}, {key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value))
    else:
        yield name, str(value)


def _table(
    first: str, heads: Sequence[str], rows: Mapping[str, Sequence[Figure | None]], said: Mapping[str, str] | None = None
) -> str:
    """Figures in a table that scrolls by itself; "" where it would hold none.

    What a column agrees on (unit, origin) stands in its head; where it does not agree, in each cell.
    """
    columns = [[figure for figure in column if figure is not None] for column in zip(*rows.values(), strict=True)]
    if not any(columns):
        return ""
    units = [_common(figure.unit for figure in column) for column in columns]
    origins = [_common(map(_origin, column)) for column in columns]
    top = "".join(
        f'<th scope="col"{"" if origin else SAY}>{escape(head)}<small>{escape("; ".join(filter(None, (unit, origin))))}'
        "</small></th>"
        for head, unit, origin in zip(heads, units, origins, strict=True)
    )
    whole = ' class="whole"' if max(map(len, rows)) <= 16 else ""
    body = "".join(
        f'<tr><th scope="row"{whole}>{escape(name)}</th>'
        + "".join(_cell(*one) for one in zip(figures, units, origins, strict=True))
        + (f'<td class="say what">{escape(said[name])}</td>' if said else "")
        + "</tr>"
        for name, figures in rows.items()
    )
    top += f'<th scope="col"{SAY}>what it is</th>' if said else ""
    head = f'<thead><tr><th scope="col">{escape(first)}</th>{top}</tr></thead>'
    return f'<div class="wide" tabindex="0"><table>{head}<tbody>{body}</tbody></table></div>'


def _common(values: Iterable[str]) -> str | None:
    """What all of them are; None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _cell(figure: Figure | None, unit: str | None, origin: str | None) -> str:
    """What the head says of the column (unit, origin) is not said again."""
    if figure is None:
        return "<td>–</td>"
    value, interval = shown(figure) if unit is not None else (_value(figure), shown(figure)[1])
    if origin is not None:
        return f"<td>{value}<small>{interval}</small></td>"
    return f"<td{SAY}>{value} <small>{_interval(figure)}{escape(_origin(figure))}</small></td>"


def _value(figure: Figure) -> str:
    return f"{shown(figure)[0]} {escape(figure.unit)}".strip()


def _interval(figure: Figure) -> str:
    interval = shown(figure)[1]
    return f"95 %: {interval}; " if interval else ""


def _origin(figure: Figure) -> str:
    """How it came about."""
    if isinstance(figure, Measured):
        return f"measured, n={figure.n}"
    given = ", ".join(f"{name}={value:g}" for name, value in figure.inputs.items())
    return f"computed: {figure.formula}" + (f" ({given})" if given else "")
