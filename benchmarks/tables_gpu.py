"""The table of benchmarks/README.md of what ``gpu.py`` trained and measured."""

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["gpu"]

ARMS = {"full text": "text", "message": "message", "another case's message": "mismatched", "nothing": "none"}
RIVAL = "zstd-"  # text of as many bytes as the message: the first, which is the longest
NONE_YET = "\nNo figure here is of a GPU so far: all are of CPUs.\n\n"


def gpu(
    records: Sequence[dict[str, Any]],
    table: Callable[[list[str], list[list[str]]], str],
    number: Callable[[dict[str, Any] | None], str],
) -> str:
    """Returns exact match over all questions of each complete training and measurement, or that there is none."""
    rows = []
    for record in records:
        made = record["result"]
        if not record["complete"] or "arms" not in made.get("figures", {}):
            continue
        arms = made["figures"]["arms"]
        names = [*ARMS.values(), next((name for name in arms if name.startswith(RIVAL)), "")]
        exact = [number(arms[name]["all"]["exact"] if name in arms else None) for name in names]
        gain = number(made["figures"]["content gain"]["all"]["exact"])
        rows.append([record["item"], record["device"]["name"], made["data"], str(record["n"]), *exact, gain])
    columns = ["item", "device", "cases", "n", *ARMS, "zstd text of as many bytes", "content gain"]
    return table(columns, rows) if rows else NONE_YET
