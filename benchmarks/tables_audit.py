"""The tables of the record of hand-offs: what accounts are worth, and what the record costs. See ``tables.py``."""

from collections.abc import Callable
from typing import Any

Result = Callable[[str], dict[str, Any]]
Table = Callable[[list[str], list[list[str]]], str]
Number = Callable[..., str]

FACTS = ("recall, gloss", "recall, another's gloss", "recall, gloss of nothing", "recall, summary")
TRUTH = ("precision, gloss", "misleading, gloss", "swapped, answer", "swapped, answer and gloss")
ALARM = ("precision, gloss", "alarm, false answers", "alarm, right answers")
TELLING = (
    "answered right",
    "recall, gloss",
    "recall, told freely",
    "recall, another's, told freely",
    "recall, of nothing, told freely",
    "misleading, told freely",
)
READERS = ("", ", another's gloss", ", no gloss")
AGAIN = ("encoded again, answers kept", "encoded again, answers kept, another's message")
NAMES = {"embedded": "latent", "facts": "latent, SmolLM2 to Gemma 3, conversations"}


def facts(result: Result, table: Table, number: Number) -> str:
    """Tabulates which facts accounts tell, and how many are false."""
    heading = ["handed over", "bytes", "characters of the gloss"]
    return table([*heading, *FACTS, *TRUTH], _rows(result, number, [*FACTS, *TRUTH], characters=True))


def foretold(result: Result, table: Table, number: Number) -> str:
    """Tabulates how well a reader of a gloss knows what the receiver will answer."""
    asked = [f"foretold, {part}{reader}" for part in ("asked", "not asked") for reader in READERS]
    return table(["handed over", "bytes", *asked, *AGAIN], _rows(result, number, [*asked, *AGAIN]))


def alarm(result: Result, table: Table, number: Number) -> str:
    """Tabulates how often an answer that differs from the text's is a false one."""
    return table(["handed over", "bytes", *ALARM], _rows(result, number, [*ALARM]))


def telling(result: Result, table: Table, number: Number) -> str:
    """Tabulates what a share of training that asks a message to say what it says costs and brings."""
    record = result("telling")
    names = ["shipped", "900 steps more", "900 steps more, half of them asked to say it"]
    rows = []
    for name, one in zip(names, record["codecs"], strict=True):
        rows.append([name, *(number(one[figure]) for figure in TELLING)])
    rows.append(["the text itself, read by the receiver", "", "", number(record["of the text itself"])])
    heads = ["codec", *TELLING]
    return table(heads, [[*row, *[""] * (len(heads) - len(row))] for row in rows])


def page(result: Result, table: Table) -> str:
    """Tabulates how the auditor's page fared among strangers and kills, and how long a view takes."""
    record = result("audit-page")
    hostile, kills = record["hostile"], record["kills"]
    rows = [
        ["requests of a stranger, let in", f"{hostile['requests']:,}, {hostile['let in']}"],
        [
            "requests of a reader of one run, told of another",
            f"{hostile['requests']:,}, {hostile['told of another run']}",
        ],
        ["answered with a failure (5xx)", str(hostile["failed"])],
        ["pages shown while the server was killed, missing on the record", f"{kills['shown']:,}, {kills['lost']}"],
    ]
    for one in record["times"]:
        slowest = max(one["p50_s"], key=lambda page: float(one["p50_s"][page]))
        usual = f"first view {one['first_s']:.2f} s; then at most {1000 * one['p50_s'][slowest]:.0f} ms (`{slowest}`)"
        rows.append([f"a view of {one['handoffs']:,} hand-offs", usual])
    return table(["", ""], rows)


def _rows(result: Result, number: Number, names: list[str], characters: bool = False) -> list[list[str]]:
    rows = []
    for file in ("embedded", "conversations"):
        for codec, lengths in result(f"faithfulness-{file}")["accounts"].items():
            for one in lengths:
                figures = [number(one["figures"].get(name)) for name in names]
                sizes = [f"{one['mean_bytes']:,.0f}", *([f"{one['gloss_characters']:.0f}"] if characters else [])]
                rows.append([NAMES.get(codec, f"`{codec}`"), *sizes, *figures])
    return rows


def growth(result: Result, table: Table) -> str:
    """Tabulates what one more entry and one proof take in ledgers of growing size."""
    rows = [
        [
            f"{row['entries']:,}",
            f"{row['bytes_an_entry']:,.0f}",
            *(f"{row[f'{step}_ms'][at]:.3f}" for step in ("append", "prove", "check") for at in ("p50", "p99")),
            str(row["proof_hashes"]),
        ]
        for row in result("audit")["growth"]
    ]
    steps = [f"{step}, ms, {at}" for step in ("append", "prove", "check") for at in ("p50", "p99")]
    return table(["entries", "bytes an entry", *steps, "hashes of a proof"], rows)


def tampering(result: Result, table: Table) -> str:
    """Tabulates which random edits were found."""
    record = result("audit")["tampering"]
    rows = [
        [name, f"{tried:,}", f"{record['found'].get(name, 0):,}", f"{record['unread'].get(name, 0):,}"]
        for name, tried in record["tried"].items()
    ]
    return table(["edit", "tried", "found", "changed nothing that a ledger says"], rows)


def costs(result: Result, table: Table) -> str:
    """Tabulates what the record adds to a hand-off, and what it lost while processes were killed."""
    record = result("audit")
    ms, ratio = record["latency"]["ms"], record["latency"]["with / without"]
    kept = record["acknowledged"]["ms"]
    medians = f"{ms['with']['p50']:.1f} / {ms['without']['p50']:.1f} ms"
    rows = [
        ["hand-off with a record / without, median", f"{ratio['p50']:.3f} ({medians})"],
        ["the same, 99th percentile", f"{ratio['p99']:.3f}"],
        ["until the guardian's receipt, median and 99th percentile", f"{kept['p50']:.1f}, {kept['p99']:.1f} ms"],
    ]
    for over, lost in (("a spool", record["kills"]), ("NATS", record["kills_nats"])):
        killed = ", ".join(f"{who} {lost['kills'][who]}" for who in sorted(lost["kills"]))
        rows += [
            [f"records told over {over} while processes were killed (-9)", f"{lost['told']:,} ({killed})"],
            ["lost, entered twice", f"{lost['lost']}, {lost['twice']}"],
        ]
    return table(["", ""], rows)
