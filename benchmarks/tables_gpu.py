"""The table of benchmarks/README.md of what ``gpu.py`` did."""

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["gpu"]

ARMS = {"full text": "text", "message": "message", "another's": "mismatched", "nothing": "none"}
NONE_YET = "\nNothing was run on a GPU so far.\n\n"


def gpu(records: Sequence[dict[str, Any]], table: Callable[[list[str], list[list[str]]], str]) -> str:
    """Returns a row for each item: where it ran and how long, and what a training came to on its validation cases."""
    rows = []
    for record in records:
        training = record["result"].get("training", {})
        exact = training.get("validation", {}).get("validation_exact", {})
        steps = " + ".join(str(part["steps"]) for part in (training.get("reader"), training) if part)
        shown = [f"{exact[arm]:.3f}" if arm in exact else "" for arm in ARMS.values()]
        became = "yes" if record["complete"] else f"no: {record['reason']}"
        rows.append([record["item"], record["device"]["name"], f"{record['seconds']:.0f} s", became, steps, *shown])
    columns = ["item", "device", "took", "complete", "steps of reading, of the message"]
    return table([*columns, *(f"{name}, exact" for name in ARMS)], rows) if rows else NONE_YET
