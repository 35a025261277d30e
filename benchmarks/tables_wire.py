"""The tables of what messages cost on their way: wire, transports, faults, fuzzing. See ``tables.py``."""

from collections.abc import Callable
from typing import Any

Result = Callable[[str], dict[str, Any]]
Table = Callable[[list[str], list[list[str]]], str]

SCENARIOS = {  # count -> its heading, in this order
    "sent_with_receipt": "sent",
    "lost": "lost",
    "handed_out_after_its_acknowledgement": "again after its ack",
    "redelivered": "redelivered before its ack",
    "out_of_order": "out of order",
}


def wire(result: Result, table: Table) -> str:
    """Tabulates microseconds to write and read a message, against others doing the same job."""
    rows = [
        [name, str(row["bytes"]), *(f"{row[step]['median_us']:.1f}" for step in ("write", "read", "both"))]
        + [f"{1e6 / row['both']['median_us']:,.0f}"]
        for name, row in result("wire")["rows"].items()
    ]
    return table(
        ["message with a payload of 80 bytes", "bytes", "write, us", "read, us", "both, us", "per second"], rows
    )


def encryption(result: Result, table: Table) -> str:
    """Tabulates the bytes of bare, sealed and encrypted messages, what each takes, and a blob's encryption."""
    found = result("wire-encryption")
    kinds = ("bare", "sealed", "encrypted")
    sizes = [[name, *(f"{row[kind]:,}" for kind in kinds)] for name, row in found["sizes"].items()]
    rows = [
        [name, str(row["both"]["rounds"])]
        + [f"{row[step][at]:.1f}" for at in ("median_us", "best_us") for step in ("write", "read", "both")]
        for name, row in found["rows"].items()
    ]
    steps = ("encrypt", "decrypt", "digest")
    blobs = [
        [f"{row['bytes']:,}", str(row["more_bytes"]), str(row["encrypt"]["rounds"])]
        + [f"{row[step][at]:.1f}" for at in ("median_ms", "best_ms") for step in steps]
        for row in found["blobs"]
    ]
    times = [f"{step}, us, {at}" for at in ("p50", "least") for step in ("write", "read", "both")]
    ways = [f"{step}, ms, {at}" for at in ("p50", "least") for step in steps]
    return "".join(
        (
            table(["payload", *(f"{kind}, bytes" for kind in kinds)], sizes),
            table(["message with a payload of 80 bytes", "rounds", *times], rows),
            table(["blob, bytes", "more bytes", "rounds", *ways], blobs),
        )
    )


def load(result: Result, table: Table) -> str:
    """Tabulates hand-offs per second and how long each step takes, beside the raw libraries."""
    rows = [
        [row["transport"], str(row["senders"])]
        + [shown(row.get(name), ",.0f") for name in ("sends_per_s", "handoffs_per_s")]
        + [shown(row.get(f"{step}_ms_{at}"), ".2f") for step in ("send", "receive") for at in ("p50", "p99")]
        + [shown(row.get("ratio"), ".2f")]
        for row in result("load")["rows"]
    ]
    steps = [f"{step}, ms, {at}" for step in ("send", "receive and ack") for at in ("p50", "p99")]
    return table(["transport", "at once", "sends/s", "hand-offs/s", *steps, "sends: raw / ours"], rows)


def faults(result: Result, table: Table) -> str:
    """Tabulates what became of hand-offs while processes were killed."""
    rows = [
        [row["transport"], str(sum(row["kills"].values())), *(f"{row[name]:,}" for name in SCENARIOS)]
        for row in result("faults")["rows"]
    ]
    return table(["transport", "kills", *SCENARIOS.values()], rows)


def shown(value: float | None, form: str) -> str:
    """Formats a number, or a dash where there is none."""
    return "–" if value is None else format(value, form)
