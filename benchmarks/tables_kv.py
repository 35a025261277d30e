"""The tables of caches as messages. See ``tables.py``."""

from collections.abc import Callable
from typing import Any

Result = Callable[[str], dict[str, Any]]
Table = Callable[[list[str], list[list[str]]], str]

SHOWN = {"full": "the model's own cache", "none": "nothing", "mismatched": "another text's cache"}


def caches(result: Result, table: Table) -> str:
    """Tabulates what each codec of keys and values takes, keeps and costs."""
    found = result("kv-smollm2")
    quality, times = found["quality"], found["time"]
    rows = []
    for name, row in quality.items():
        spent = times.get(name, {})
        value, low, high = row["gain"]
        rows.append(
            [
                SHOWN.get(name, f"`{name}`"),
                f"{row['bytes_per_token']:,.0f}" if row["bytes_per_token"] else "",
                f"{row['nats_per_token']:.3f}",
                f"{value:.3f}" if name in ("full", "none") else f"{value:.3f} [{low:.3f}, {high:.3f}]",
                *(f"{spent[side]:,.0f}" if spent else "" for side in ("encode_mb_per_s", "decode_mb_per_s")),
                f"{spent['first_token_share']:.2f}" if spent else "",
            ]
        )
    heading = ["memory", "bytes a token", "nats a token", "share of the gain", "encode, MB/s", "decode, MB/s"]
    return table([*heading, "first token / text"], rows)


def questions(result: Result, table: Table) -> str:
    """Tabulates what each codec of keys and values still knows."""
    rows = []
    for name, row in result("kv-questions-smollm2")["arms"].items():
        gains = ("{:.3f} [{:.3f}, {:.3f}]".format(*row[of]) for of in ("gain_exact", "gain"))
        rows.append(
            [
                SHOWN.get(name, f"`{name}`"),
                f"{row['bytes_per_token']:,.0f}" if row["bytes_per_token"] else "",
                f"{row['exact']:.3f}",
                f"{row['log_likelihood']:.3f}",
                *(gains if name not in ("none", "kv-exact") else ("", "")),
            ]
        )
    heading = ["memory", "bytes a token", "exact", "log-likelihood", "share of the gain, exact"]
    return table([*heading, "share of the gain, log-likelihood"], rows)
