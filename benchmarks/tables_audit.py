"""The tables of the record of hand-offs: what accounts are worth, and what the record costs. See ``tables.py``."""

from collections.abc import Callable
from typing import Any

Result = Callable[[str], dict[str, Any]]
Table = Callable[[list[str], list[list[str]]], str]
Number = Callable[..., str]

FACTS = ("recall, gloss", "recall, another's gloss", "recall, gloss of nothing", "recall, summary")
TRUTH = ("precision, gloss", "misleading, gloss", "swapped, answer", "swapped, answer and gloss")
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
    kept, lost = record["acknowledged"]["ms"], record["kills"]
    medians = f"{ms['with']['p50']:.1f} / {ms['without']['p50']:.1f} ms"
    rows = [
        ["hand-off with a record / without, median", f"{ratio['p50']:.3f} ({medians})"],
        ["the same, 99th percentile", f"{ratio['p99']:.3f}"],
        ["until the guardian's receipt, median and 99th percentile", f"{kept['p50']:.1f}, {kept['p99']:.1f} ms"],
        ["records told while processes were killed", f"{lost['told']:,}"],
        ["kills (-9) of the guardian and of producers", f"{lost['kills']['guardian']}, {lost['kills']['producer']}"],
        ["records lost, entered twice", f"{lost['lost']}, {lost['twice']}"],
    ]
    return table(["", ""], rows)
