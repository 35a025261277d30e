"""The tables of caches as messages. See ``tables.py``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = Callable[[str], dict[str, Any]]
Table = Callable[[list[str], list[list[str]]], str]

KEPT = ["memory", "bytes a token", "nats a token", "share of the gain"]
SHOWN = {
    "full": "the model's own cache",
    "none": "nothing",
    "mismatched": "another text's cache",
}


def caches(result: Result, table: Table) -> str:
    """Tabulates what each codec of keys and values takes, keeps and costs."""
    found = result("kv-smollm2")
    rows = []
    for name, row in found["quality"].items():
        spent = (found["time"] or {}).get(name, {})
        speeds = (f"{spent[side]:,.0f}" if spent else "" for side in ("encode_mb_per_s", "decode_mb_per_s"))
        rows.append([*_kept(name, row), *speeds, f"{spent['first_token_share']:.2f}" if spent else ""])
    return table([*KEPT, "encode, MB/s", "decode, MB/s", "first token / text"], rows)


def beside(result: Result, table: Table) -> str:
    """Tabulates what these codecs and transformers' quantised cache keep, of conversations and of prose."""
    conversations, prose = (result(f"kv-smollm2-{name}")["quality"] for name in ("hqq", "prose"))
    rows = [[*_kept(name, row), *_kept(name, prose[name])[1:]] for name, row in conversations.items()]
    return table([*KEPT, *(f"prose: {heading}" for heading in KEPT[1:])], rows)


def _kept(name: str, row: dict[str, Any]) -> list[str]:
    """Returns the cells of what a memory takes and keeps."""
    value, low, high = row["gain"]
    coded = "; bytes: its text, coded by the model" if name == "full" and row["bytes_per_token"] else ""
    return [
        SHOWN.get(name, f"`{name}`") + coded,
        _bytes(row["bytes_per_token"]),
        f"{row['nats_per_token']:.3f}",
        f"{value:.3f}" if name in ("full", "none") else f"{value:.3f} [{low:.3f}, {high:.3f}]",
    ]


def _bytes(count: float | None) -> str:
    return "" if count is None else f"{count:,.{2 if count < 10 else 0}f}"


def questions(result: Result, table: Table) -> str:
    """Tabulates what each codec of keys and values still knows."""
    rows = []
    for name, row in result("kv-questions-smollm2")["arms"].items():
        gains = ("{:.3f} [{:.3f}, {:.3f}]".format(*row[of]) for of in ("gain_exact", "gain"))
        rows.append(
            [
                SHOWN.get(name, f"`{name}`"),
                _bytes(row["bytes_per_token"]),
                f"{row['exact']:.3f}",
                f"{row['log_likelihood']:.3f}",
                *(gains if name not in ("none", "kv-exact") else ("", "")),
            ]
        )
    heading = ["memory", "bytes a token", "exact", "log-likelihood", "share of the gain, exact"]
    return table([*heading, "share of the gain, log-likelihood"], rows)


LEAST_NATS = 0.1  # a token, that the text has to bring its reader before a share of it means anything


def aligned(results: Path, table: Table) -> str:
    """Tabulates what crosses between two models, step by step."""
    rows = []
    for file in sorted(results.glob("kv-align-*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        pair = " to ".join(record["pair"]) + (" that reads them" if record["adapted"] else "")
        own = record["stages"]["own reading"]
        told = own.get("nats a token, own", 0.0) - own.get("nats a token, none", 0.0) >= LEAST_NATS
        for stage, row in record["stages"].items():
            facts = [_figure(row.get(f"facts, {which}")) for which in ("own", "another", "none", "own - another")]
            gains = [_figure(row.get(f"gain, {which}") if told else None) for which in ("own", "another")]
            sizes = [str(row["n"]), _bytes(row.get("payload_bytes"))]
            rows.append([pair, record["facts_of"], stage, *sizes, *facts, *gains])
    heading = ["models", "asked for", "step", "texts", "bytes a text", "facts", "another's memory", "nothing"]
    return table([*heading, "facts above another's", "likelihood", "likelihood, another's"], rows)


def failures(result: Result, table: Table) -> str:
    """Tabulates how a cache fails, and what notices."""
    rows = []
    for name, row in result("kv-failures-smollm2")["failures"].items():
        numbers = [f"{row[each]:.3f}" for each in ("agrees", "cosine", "entropy", "keys", "values")]
        caught = ", ".join(row["caught by"]) or "**nothing**"
        rows.append([name, _figure(row["facts"]), _figure(row["gain"]), *numbers, caught])
    heading = ["what is wrong", "facts", "gain", "agrees", "cosine", "entropy", "keys", "values"]
    return table([*heading, "caught by"], rows)


def axis(name: str, result: Result, table: Table) -> str:
    """Tabulates everything that can be handed over of one task, the shortest first."""
    rows = []
    for offer in result(name)["offers"]:
        recoveries = [
            offer[name] and [offer[name][part] for part in ("value", "low", "high")]
            for name in ("recovery", "recovery_nats")
        ]
        first, read = offer["first_token_ms"], offer["read_tokens"]
        rows.append(
            [
                f"`{offer['codec']}`" if offer["codec"] and offer["arm"] == "message" else offer["arm"],
                f"{offer['mean_bytes']:,.0f}",
                *map(_figure, recoveries),
                "" if first is None else f"{first:.1f}",
                "" if read is None else f"{read:,.0f}",
            ]
        )
    heading = ["handed over", "bytes on the wire, mean", "recovery, exact", "recovery, log-likelihood"]
    return table([*heading, "first token, ms", "tokens read until then"], rows)


def _figure(figure: list[float | None] | None) -> str:
    if figure is None:
        return "–"
    value, low, high = figure
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
