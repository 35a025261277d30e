"""Writes the tables of the README, of docs/ and of benchmarks/README.md from the committed results.

python benchmarks/tables.py            # rewrites the pages between their markers
python benchmarks/tables.py --check    # exits with 1 where a table differs from its results
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tables_assurance
import tables_audit
import tables_conversations
import tables_front
import tables_gpu
import tables_kv
import tables_privacy
import tables_trace
import tables_wire

from ilcp.measure.formats import translated

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = {
    HERE.parent / "README.md": ("conversations-front",),
    HERE.parent / "docs" / "index.md": ("conversations-front", "front"),
    HERE.parent / "docs" / "results.md": ("figures", "cost"),
    HERE.parent / "docs" / "how-to" / "transport.md": ("faults",),
    HERE.parent / "docs" / "how-to" / "audit.md": ("accounts",),
    HERE.parent / "docs" / "how-to" / "assure.md": ("assurance-short", "assurance-calm"),
    HERE.parent / "docs" / "security-privacy.md": ("privacy-facts", "privacy-noise", "privacy-forget"),
    HERE.parent / "docs" / "how-to" / "trace.md": ("trace-said", "trace-front"),
    HERE / "README.md": (
        "conversations-goals",
        "conversations",
        "pair",
        "arms",
        "literals",
        "delivered",
        "hops",
        "capacity",
        "times",
        "stories",
        "train-speed",
        "scale",
        "gpu",
        "variants",
        "peer",
        "peer-findings",
        "caches",
        "caches-beside",
        "axis",
        "axis-conversations",
        "caches-questions",
        "caches-between",
        "caches-failing",
        "accounts",
        "accounts-foretold",
        "audit-costs",
        "accounts-alarm",
        "telling",
        "audit-page",
        "audit-growth",
        "audit-tampering",
        "trace-said",
        "trace-front",
        "trace-gains",
        "trace-steps",
        "trace-conversations",
        "trace-dossier",
        "trace-graph",
        "trace-hops",
        "trace-times",
        "assurance",
        "assurance-calm",
        "assurance-hostile",
        "assurance-cost",
        "assurance-caches",
        "privacy-probes",
        "privacy-curve",
        "privacy-caches",
        "privacy-links",
        "wire",
        "encryption",
        "load",
        "faults",
    ),
}
STATED = 17  # facts of a standard dossier
KINDS = ("lookup", "join", "absent", "code")
LENGTHS = ("80", "40", "20", "10")
STORIES = {
    "stories-260K-to-656K": "260K to 656K",
    "stories-656K-to-260K": "656K to 260K",
    "stories-260K-to-656K-seen": "260K to 656K, 60 characters seen",
}  # report -> direction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = [page for page, names in PAGES.items() if render(page.read_text("utf-8"), names) != page.read_text("utf-8")]
    if args.check:
        sys.exit(f"differs from its results: {', '.join(map(str, stale))}; run this without --check" if stale else 0)
    for page in stale:
        page.write_text(render(page.read_text(encoding="utf-8"), PAGES[page]), encoding="utf-8")


def render(text: str, names: tuple[str, ...]) -> str:
    """Writes the table of each name between its two markers in ``text``."""
    for name in names:
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        if start not in text or end not in text:
            sys.exit(f"expected the markers {start.strip()} and {end.strip()}, got a page without them")
        before, rest = text.split(start)
        text = before + start + TABLES[name]() + end + rest.split(end)[1]
    return text


def result(name: str) -> dict[str, Any]:
    """Reads a committed result; a report of an older format, in today's words."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return translated(record) if "format" in record else record


def table(header: list[str], rows: list[list[str]]) -> str:
    """Makes a Markdown table; all columns but the first are right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n" + "".join("| " + " | ".join(line) + " |\n" for line in lines) + "\n"


def basis(figure: dict[str, Any]) -> str:
    """Says what a figure rests on: n items, or a formula."""
    return f"n = {figure['n']}" if "n" in figure else figure["formula"]


def number(figure: dict[str, Any] | None, digits: int = 3) -> str:
    """Says the value of a figure with its interval; a dash where there is none."""
    if figure is None:
        return "–"
    if figure.get("unit") == "B":
        return f"{figure['value']:,.0f} B"
    unit = figure["unit"] if figure.get("unit") in ("ms", "us") else ""
    interval = "" if figure.get("low") is None else f" [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"
    return f"{figure['value']:.{digits}f}{interval} {unit}".rstrip()


def figures() -> str:
    """Makes the table of the claims of the README, each with its interval."""
    made = result("embedded")["figures"]
    arms, delivered, gain = made["arms"], made["delivered"], made["content gain"]
    every = next(point for point in result("capacity")["points"] if point["facts"] == STATED)
    chosen = {
        "message, everything counted": made["bytes"]["message"]["wire"],
        "full text, everything counted": made["bytes"]["text"]["wire"],
        **{
            f"recovery, all questions, {size} bytes": arms[message_of(size)]["all"]["recovery, exact"]
            for size in LENGTHS
        },
        "recovery, every question of a dossier, 80 bytes": every["arms"]["message"]["recovery"],
        **{
            f"recovery, all questions, {size} bytes of text coded by the sender's language model": arms[f"lm-{size}"][
                "all"
            ]["recovery, exact"]
            for size in LENGTHS
        },
        **{f"{kind}, message, exact": arms["message"][kind]["exact"] for kind in KINDS},
        **{f"{kind}, full text, exact": arms["text"][kind]["exact"] for kind in KINDS},
        "look-up, nothing, exact": arms["none"]["lookup"]["exact"],
        "look-up, another case's message, exact": arms["mismatched"]["lookup"]["exact"],
        "content gain, all questions": gain["all"]["exact"],
        "content gain, all questions, nats": gain["all"]["log_likelihood"],
        "delivered of the document's entropy, 80 bytes": delivered["message"]["share of the document's entropy"],
        "delivered of the document's entropy, 40 bytes": delivered["message-40"]["share of the document's entropy"],
        "delivered of the payload's bits, 10 bytes": delivered["message-10"]["share of payload bits"],
    }
    rows = [[name, number(figure), basis(figure)] for name, figure in chosen.items()]
    return table(["figure", "value [95 % interval]", "measured over"], rows)


def message_of(size: str) -> str:
    """Returns the name of the message arm of a length; the longest has none behind it."""
    return "message" if size == LENGTHS[0] else f"message-{size}"


def arms() -> str:
    """Makes the table of every arm: bytes, exact match by kind, F1, log-likelihood and recovery over all questions."""
    made = result("embedded")["figures"]
    rows = []
    for arm, kinds in made["arms"].items():
        size = f"{made['bytes'][arm]['wire']['value']:.0f}" if arm in made["bytes"] else ""
        exact = [number(kinds[kind]["exact"]) for kind in KINDS]
        churn = number(made["churn"][arm])
        every = kinds["all"]
        recovery = number(every["recovery, exact"])
        rows.append(
            [
                arm,
                size,
                *exact,
                number(every["f1"]),
                number(every["log_likelihood"], 2),
                recovery,
                churn,
            ]
        )
    header = ["arm", "bytes on the wire", *KINDS, "F1, all", "nats, all", "recovery, all", "answers unlike the text's"]
    return table(header, rows)


def literals() -> str:
    """Makes the table of what literals beside the latent bring and cost, at each length."""
    made = result("embedded")["figures"]
    chosen = [arm for size in LENGTHS for arm in (message_of(size), f"literals-{size}")]
    rows = [
        [
            arm,
            f"{made['bytes'][arm]['wire']['value']:.0f}",
            *(number(made["arms"][arm][kind]["exact"]) for kind in KINDS),
        ]
        for arm in [*chosen, "literals-mismatched", "mismatched"]
    ]
    return table(["arm", "bytes on the wire, mean", *KINDS], rows)


def delivered() -> str:
    """Makes the table of delivered information, in bits and as shares of the bits spent."""
    made = result("embedded")["figures"]["delivered"]
    columns = ["bits per document", "share of payload bits", "share of wire bits", "share of the document's entropy"]
    rows = [
        [arm, number(found[columns[0]], 1), *(number(found.get(name)) for name in columns[1:])]
        for arm, found in made.items()
    ]
    return table(["arm", *columns], rows)


def hops() -> str:
    """Makes the table of recovery after each hop: handed on, encoded anew, and text cut anew."""
    made = result("hops")["figures"]["arms"]
    chains: dict[str, dict[int, str]] = {}
    for arm, kinds in made.items():
        if found := re.fullmatch(r"(forwarded|reencoded|.*-hops)-(\d+)", arm):
            chains.setdefault(found[1], {})[int(found[2])] = number(kinds["all"].get("recovery, exact"))
    most = max(max(hop) for hop in chains.values())
    rows = [[name, *(chain[hop] for hop in range(1, most + 1))] for name, chain in chains.items()]
    return table(["recovery, all questions, after hop", *map(str, range(1, most + 1))], rows)


def capacity() -> str:
    """Makes the table of recovery and delivered information as the documents hold more."""
    rows = []
    for point in result("capacity")["points"]:
        messages = [point["arms"][message_of(size)] for size in LENGTHS]
        shares = [number(arm["delivered"]["bits per document"], 1) for arm in messages]
        entropy = f"{point['entropy_bits']['value']:.1f}"
        rows.append([str(point["facts"]), entropy, number(messages[0]["recovery"]), *shares])
    header = [
        "facts stated",
        "entropy, bits",
        "recovery at 80 bytes",
        *(f"bits told by {size} bytes" for size in LENGTHS),
    ]
    return table(header, rows)


def cost() -> str:
    """Makes the table of the first token by message over first token by text, and the goals that are ratios."""
    made = result("embedded")["figures"]["cost"]
    rows = [
        [name, number(figure), f"`{figure['formula']}`"]
        for name, figure in made.items()
        if "formula" in figure and any(word in name for word in ("first token", "decode", "wire", "pays"))
    ]
    return table(["computed from the medians below", "value", "formula"], rows)


def times() -> str:
    """Makes the table of every measured step and count."""
    made = result("embedded")["figures"]["cost"]
    rows = [
        [name, number(figure), number(made.get(f"{name}, p99")), basis(figure)]
        for name, figure in made.items()
        if not name.endswith(", p99")
    ]
    return table(["step or count", "median, or value", "99th percentile", "measured over, or computed as"], rows)


def stories() -> str:
    """Makes the table of bits per byte of the true continuation, by arm and direction."""
    made = {title: result(name)["figures"] for name, title in STORIES.items()}
    names = list(dict.fromkeys(arm for found in made.values() for arm in found["bits per byte"]))
    rows = []
    for arm in names:
        size = next((f["bytes"][arm]["wire"]["value"] for f in made.values() if arm in f["bytes"]), None)
        rows.append(
            [
                arm,
                "" if size is None else f"{size:.0f}",
                *(number(found["bits per byte"].get(arm)) for found in made.values()),
            ]
        )
    gains = [number(found["content gain"]["all"]["log_likelihood"], 2) for found in made.values()]
    rows.append(["content gain, nats per continuation", "", *gains])
    return table(["arm, bits per byte", "bytes on the wire", *made], rows)


def train_speed() -> str:
    """Makes the table of a training step beside the receiver's bare pass."""
    rows = [
        [
            f"{row['receiver_parameters'] / 1e6:.1f} M",
            f"{row['codec_parameters'] / 1e6:.1f} M",
            *(f"{row[name]:.3f}" for name in ("bare_s", "step_s", "step_over_bare")),
            f"{row['shares']['codec']:.3f}",
            f"{row['default_step_s']:.3f}",
            f"{row['default_shares']['codec']:.3f}",
        ]
        for row in result("train-speed")["rows"]
    ]
    columns = ["receiver", "codec", "bare pass, s", "step, s", "step / bare", "codec's share"]
    return table([*columns, "step of the default recipe, s", "codec's share of it"], rows)


SCALE = {  # figures of a run, as the table calls them; the JSON has all
    "first token, text": "first token, text",
    "first token, text in the prefix cache": "in the prefix cache",
    "first token, nothing": "nothing",
    "message to first token": "message, wire and decode counted in",
    "sender's extra": "sender's extra",
    "message / text": "message / text",
    "message, sender's extra counted in / text": "sender's extra counted in",
    "KV, text": "KV, text",
    "KV, memory": "KV, memory",
}


def scale() -> str:
    """Makes the table of one hand-off at the sizes of real models: times, keys and values, and ratios."""
    rows = []
    for file in (*sorted(RESULTS.glob("scale-*.json")), *sorted(RESULTS.glob("gpu-scale-*.json"))):
        record = result(file.stem)
        record = record.get("result", record)  # an item of gpu.py holds what scale.py wrote
        for run in record["runs"]:
            figures = run.get("figures")
            what = [record["device"], f"{run['sender']} to {run['receiver']}", f"{run['tokens']:,}"]
            shown = [number(figures.get(name)) for name in SCALE] if figures else [f"not run: {run['refused']}"]
            rows.append([*what, *shown, *[""] * (len(SCALE) - len(shown))])
    return table(["device", "models", "tokens", *SCALE.values()], rows)


def gpu() -> str:
    """Makes the table of what was done on a GPU."""
    files = (file for file in sorted(RESULTS.glob("gpu-*.json")) if "gpu-scale" not in file.name)
    return tables_gpu.gpu([result(file.stem) for file in files], table)


def variants() -> str:
    """Makes the table of what other designs of the codec gave under the same budget."""
    rows = []
    for variant in result("variants")["variants"]:
        made = [number(figure) for figure in variant["figures"].values()]
        rows.append([variant["name"], str(variant["steps"]), *made])
    names = list(result("variants")["variants"][0]["figures"])
    return table(["variant", "steps", *names], rows)


def peer() -> str:
    """Makes the table of ilcp and avp on the same models and documents."""
    record = result("peer-avp")
    columns = [name for name in record["rows"][0] if name != "what"]
    rows = [[row["what"], *(number(row[name]) for name in columns)] for row in record["rows"]]
    return table(["", *columns], rows)


def peer_findings() -> str:
    """Makes the table of what each of the two refuses, keeps and cannot do."""
    rows = [
        [finding["what"], *("yes" if finding[side]["yes"] else "**no**" for side in ("ilcp", "avp"))]
        for finding in result("peer-avp")["findings"]
    ]
    return table(["", "ilcp", "avp"], rows)


def pair() -> str:
    """Makes the table of how the two embedded models answer from the text on validation documents."""
    rows = []
    for role in ("sender", "receiver"):
        training = json.loads((HERE.parent / "ilcp" / "embedded" / role / "training.json").read_text(encoding="utf-8"))
        rows.append([role, *(f"{training['validation'][kind]:.3f}" for kind in KINDS), str(training["minutes_in_all"])])
    return table(["model (validation, exact match)", *KINDS, "minutes of training"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "figures": figures,
    "arms": arms,
    "literals": literals,
    "delivered": delivered,
    "hops": hops,
    "capacity": capacity,
    "cost": cost,
    "times": times,
    "stories": stories,
    "train-speed": train_speed,
    "scale": scale,
    "gpu": gpu,
    "variants": variants,
    "peer": peer,
    "peer-findings": peer_findings,
    "pair": pair,
    "conversations-goals": partial(tables_conversations.goals, RESULTS, table, number),
    "conversations-front": partial(tables_conversations.front, RESULTS, table, number),
    "conversations": partial(tables_conversations.conversations, RESULTS, table, number),
    "front": partial(tables_front.front, result, table, number),
    "caches": partial(tables_kv.caches, result, table),
    "caches-beside": partial(tables_kv.beside, result, table),
    "axis": partial(tables_kv.axis, "axis-embedded", result, table),
    "axis-conversations": partial(tables_kv.axis, "axis-conversations", result, table),
    "caches-questions": partial(tables_kv.questions, result, table),
    "caches-between": partial(tables_kv.aligned, RESULTS, table),
    "caches-failing": partial(tables_kv.failures, result, table),
    "accounts": partial(tables_audit.facts, result, table, number),
    "accounts-foretold": partial(tables_audit.foretold, result, table, number),
    "audit-costs": partial(tables_audit.costs, result, table),
    "accounts-alarm": partial(tables_audit.alarm, result, table, number),
    "telling": partial(tables_audit.telling, result, table, number),
    "audit-page": partial(tables_audit.page, result, table),
    "audit-growth": partial(tables_audit.growth, result, table),
    "audit-tampering": partial(tables_audit.tampering, result, table),
    "trace-said": partial(tables_trace.said, result),
    "trace-front": partial(tables_trace.front, result, table),
    "trace-gains": partial(tables_trace.gains, result, table),
    "trace-steps": partial(tables_trace.sweep, result, table),
    "trace-hops": partial(tables_trace.hops, result, table),
    "trace-times": partial(tables_trace.times, result, table),
    "assurance": partial(tables_assurance.detection, result, table),
    "assurance-short": partial(tables_assurance.short, result, table),
    "assurance-calm": partial(tables_assurance.calm, result, table),
    "assurance-hostile": partial(tables_assurance.hostile, result, table),
    "assurance-caches": partial(tables_assurance.caches, result, table),
    "assurance-cost": partial(tables_assurance.cost, result),
    **{f"trace-{task}": partial(tables_trace.arms, result, table, task) for task in tables_trace.TASKS},
    "privacy-facts": partial(tables_privacy.facts, result, table),
    "privacy-probes": partial(tables_privacy.probes, result, table),
    "privacy-curve": partial(tables_privacy.curve, result, table),
    "privacy-caches": partial(tables_privacy.caches, result, table),
    "privacy-links": partial(tables_privacy.links, result, table),
    "privacy-noise": partial(tables_privacy.noise, result, table),
    "privacy-forget": partial(tables_privacy.forget, result, table),
    "wire": partial(tables_wire.wire, result, table),
    "encryption": partial(tables_wire.encryption, result, table),
    "load": partial(tables_wire.load, result, table),
    "faults": partial(tables_wire.faults, result, table),
}

if __name__ == "__main__":
    main()
