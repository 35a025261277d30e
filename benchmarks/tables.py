"""Writes the tables of README.md and benchmarks/README.md from the committed results.

python benchmarks/tables.py            # rewrites both files between their markers
python benchmarks/tables.py --check    # exits with 1 where a table differs from its results
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = {
    HERE.parent / "README.md": ("figures", "cost"),
    HERE / "README.md": ("arms", "limits", "times", "strangers", "pair"),
}
STRANGERS = "strangers-260K-to-656K"
KINDS = ("lookup", "join", "absent", "code")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = [
        page for page, names in PAGES.items() if render(page.read_text(encoding="utf-8"), names) != page.read_text()
    ]
    if args.check:
        sys.exit(f"differs from its results: {', '.join(map(str, stale))}; run this without --check" if stale else 0)
    for page in stale:
        page.write_text(render(page.read_text(encoding="utf-8"), PAGES[page]), encoding="utf-8")


def render(text: str, names: tuple[str, ...]) -> str:
    """``text`` with the table of each name between its two markers."""
    for name in names:
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        if start not in text or end not in text:
            sys.exit(f"expected the markers {start.strip()} and {end.strip()}, got a page without them")
        before, rest = text.split(start)
        text = before + start + TABLES[name]() + end + rest.split(end)[1]
    return text


def result(name: str) -> dict[str, Any]:
    """A committed result."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n" + "".join("| " + " | ".join(line) + " |\n" for line in lines) + "\n"


def basis(figure: dict[str, Any]) -> str:
    """What a figure rests on: n items, or a formula."""
    return f"n = {figure['n']}" if "n" in figure else figure["formula"]


def number(figure: dict[str, Any] | None, digits: int = 3) -> str:
    """The value of a figure with its interval; a dash where there is none."""
    if figure is None:
        return "–"
    if figure.get("unit") == "B":
        return f"{figure['value']:.0f} B"
    interval = "" if figure.get("low") is None else f" [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"
    return f"{figure['value']:.{digits}f}{interval}"


def figures() -> str:
    """The claims, each with its interval."""
    quality = result("quality")
    rows = [[name, number(figure), basis(figure)] for name, figure in quality["claims"].items()]
    return table(["figure", "value [95 % interval]", "measured over, or computed as"], rows)


def arms() -> str:
    """Exact match of every arm by kind, and log-likelihood of look-ups."""
    by_kind = result("quality")["arms"]
    rows = []
    for arm, lookup in by_kind["lookup"].items():
        size = "" if lookup["wire_bytes"] is None else f"{lookup['wire_bytes']:.0f}"
        exact = [number(by_kind[kind][arm]["exact"]) for kind in KINDS]
        rows.append([arm, size, *exact, number(lookup["nats"], 2), number(lookup["recovery"])])
    return table(["arm", "bytes on the wire", *KINDS, "look-up, nats", "look-up, recovery"], rows)


def cost() -> str:
    """First token by message over first token by text."""
    latency = result("latency")
    rows = [[name, f"{ratio['value']:.2f}", ratio["formula"]] for name, ratio in latency["ratios"].items()]
    return table(["first token, by message over by full text (computed from medians)", "ratio", "formula"], rows)


def times() -> str:
    """Medians and 99th percentiles."""
    latency = result("latency")
    rows = [
        [name, f"{figure['median']['value']:.3f}", f"{figure['p99']['value']:.3f}", str(figure["median"]["n"])]
        for name, figure in latency["figures"].items()
    ]
    return table(["step (measured)", "median, ms", "99th percentile, ms", "n"], rows)


def limits() -> str:
    """Without quantiser, and over-fitted."""
    rows = [[name, number(figure), basis(figure)] for name, figure in result("limits")["figures"].items()]
    return table(["latent, kind of question", "exact match [95 % interval]", "measured over"], rows)


def strangers() -> str:
    """Bits per byte of the true continuation, by arm."""
    rows = [[name, number(figure), basis(figure)] for name, figure in result(STRANGERS)["figures"].items()]
    return table(["figure", "value [95 % interval]", "measured over"], rows)


def pair() -> str:
    """How the two embedded models answer from the text on validation documents."""
    rows = []
    for role in ("sender", "receiver"):
        training = json.loads((HERE.parent / "ilcp" / "pair" / role / "training.json").read_text(encoding="utf-8"))
        rows.append([role, *(f"{training['validation'][kind]:.3f}" for kind in KINDS), str(training["minutes_in_all"])])
    return table(["model (validation, exact match)", *KINDS, "minutes of training"], rows)


TABLES = {
    "figures": figures,
    "arms": arms,
    "limits": limits,
    "cost": cost,
    "times": times,
    "strangers": strangers,
    "pair": pair,
}

if __name__ == "__main__":
    main()
