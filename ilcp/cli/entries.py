"""``ilcp audit log``, ``show`` and ``diff``: what a ledger says."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ilcp.cli.ledgers import LARGEST, AsJson, LedgerFile, opened_at, say
from ilcp.errors import ConfigError

if TYPE_CHECKING:
    from ilcp.audit import Entry, Ledger

__all__ = ["diff", "log", "show"]

SHORT = 100  # characters of a reason in a line


def log(
    ledger: LedgerFile,
    run: Annotated[str | None, typer.Option(help="Of this run only.")] = None,
    event: Annotated[str | None, typer.Option(help="Of this kind only: sent, received, refused ...")] = None,
    last: Annotated[int, typer.Option(min=1, help="So many, the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Lists entries, the newest last."""
    with opened_at(ledger) as opened:
        chosen = []
        for entry in opened.entries(run=run, newest=True):
            if event is None or event == (entry.fields.get("event") if entry.kind == "handoff" else entry.kind):
                chosen.append(entry)
            if len(chosen) == last:
                break
        lines = [json.dumps(asdict(entry)) if as_json else _line(entry, opened) for entry in reversed(chosen)]
    for line in lines:
        say(line)


def show(
    ledger: LedgerFile, number: Annotated[int, typer.Argument(min=0, max=LARGEST, help="The entry's number.")]
) -> None:
    """Shows an entry as JSON: what it says, what stands beside it, and the proof that it is in the tree."""
    with opened_at(ledger) as opened:
        entry = opened.entry(number)
        beside = {} if entry is None else opened.personal(number)
        erased = (each.fields for each in opened.entries(kinds=["erasure"], first=number))
        told = {
            "entry": None if entry is None else asdict(entry),
            "personal": {name: None if each is None else each.value for name, each in beside.items()},
            "erased": [fields for fields in erased if fields.get("of") == number],
            "proof": [each.hex() for each in opened.inclusion(number)],
            "checkpoint": opened.checkpoint(),
        }
    say(json.dumps(told, indent=2, ensure_ascii=False))


def diff(
    ledger: LedgerFile,
    one: Annotated[int, typer.Argument(min=0, max=LARGEST)],
    other: Annotated[int, typer.Argument(min=0, max=LARGEST)],
) -> None:
    """Says in which fields two entries differ."""
    with opened_at(ledger) as opened:
        entries = []
        for number in (one, other):
            entry = opened.entry(number)
            if entry is None:
                raise ConfigError(f"expected two entries to compare, got {number}, of which only the hash is left")
            said = {name: None if each is None else each.value for name, each in opened.personal(number).items()}
            entries.append(dict(entry.fields) | said)
    for name in sorted({*entries[0], *entries[1]}):
        values = [json.dumps(each[name], ensure_ascii=False) if name in each else "nothing" for each in entries]
        if values[0] != values[1]:
            say(f"{name}: {values[0]} in {one}, {values[1]} in {other}")


def _line(entry: "Entry", ledger: "Ledger") -> str:
    """Says an entry in one line."""
    from ilcp.audit.entries import LATEST_MS
    from ilcp.audit.findings import in_line

    fields, known = entry.fields, entry.kind == "handoff"
    moment = datetime.fromtimestamp(min(entry.recorded_unix_ms, LATEST_MS) / 1000, UTC)
    words = [f"{entry.number:>6}  {moment:%Y-%m-%d %H:%M:%S}", str(fields.get("event")) if known else entry.kind]
    if "producer" in fields:
        words.append(f"{fields['producer']} {fields.get('sequence')} of run {fields.get('run')}")
    if "message_bytes" in fields:
        words.append(f"{fields['message_bytes']} bytes, {fields.get('codec', 'codec unknown')}")
    words += [f"{name} {fields[name]}" for name in ("reader", "page", "differ") if name in fields]
    if not known:
        words += [f"{name} {fields[name]}" for name in ("of", "by", "because", "public_key") if name in fields]
    held = ledger.personal(entry.number).get("reason")
    reason = fields.get("reason") or (held and held.value)
    words += [str(reason)[:SHORT]] if reason else []
    return "  ".join(map(in_line, words))
