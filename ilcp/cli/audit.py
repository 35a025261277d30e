"""``ilcp audit``: the record of hand-offs, for those who keep it and for those who ask."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ilcp.cli.accounts import accounts, reading
from ilcp.cli.common import err, out
from ilcp.cli.exit_codes import NOT_SOUND
from ilcp.cli.page import reader, serve
from ilcp.cli.stamps import parsed_size, stamp_at
from ilcp.cli.stamps import stamp as stamp_
from ilcp.errors import ConfigError, DecodeError, StorageError
from ilcp.files import held, write_whole
from ilcp.folders import read_whole

if TYPE_CHECKING:
    from ilcp.audit import Entry, Key, Ledger, Signer, Verified

__all__ = ["audit"]

audit = typer.Typer(
    no_args_is_help=True,
    help="Keep a record of hand-offs that only grows, and verify one. It is tamper-evident, and no proof of truth.",
)
SHORT = 100  # characters of a reason in a line
LATEST_MS = 253_402_300_799_000  # the last moment of the year 9999
LARGEST = (1 << 53) - 1

LedgerFile = Annotated[Path, typer.Argument(help="The ledger's file.", dir_okay=False)]
Number = Annotated[int, typer.Argument(min=0, max=LARGEST, help="The entry's number.")]
audit.command()(serve)
audit.command()(reader)
audit.command()(stamp_)
KeyFile = Annotated[Path, typer.Option("--key", help="The guardian's signing key, hex; of its owner alone.")]
By = Annotated[str, typer.Option("--by", help="Who does it; stays on the record.")]
PublicKeys = Annotated[
    list[str] | None, typer.Option("--key", help="The guardian's public key, name+id+key; repeat it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@audit.command()
def guard(
    ledger: LedgerFile,
    via: Annotated[str, typer.Option("--via", help="Where records come in: spool:///folder or nats://host:port.")],
    key: KeyFile,
    name: Annotated[str, typer.Option(help="The ledger's name, such as example.org/handoffs.")] = "ilcp/ledger",
    codec: Annotated[
        str | None, typer.Option("--accounts", help="Make accounts of this codec's messages: a folder, or 'embedded'.")
    ] = None,
    receiver: Annotated[
        str | None, typer.Option(help="The receiver's model, where the codec does not name it.")
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="What accounts ask, a question a line.")] = None,
    measured: Annotated[
        Path | None, typer.Option(help="What 'ilcp measure --faithfulness' wrote: stands beside each account.")
    ] = None,
    freely: Annotated[bool, typer.Option("--freely", help="Also ask a message to say what it says.")] = False,
    summary: Annotated[
        str, typer.Option(help="Ask the receiver's model this of the text, in place of a summary by rule.")
    ] = "",
) -> None:
    """Enters what senders and receivers tell, until Ctrl-C or SIGTERM; the key is made where there is none.

    With --accounts it also reads what recorders leave with it (Recorder(accounts=True)), beside its work: a gloss of
    the message and a summary of the text, and where they disagree.
    """
    from ilcp.audit import Guardian, Ledger
    from ilcp.audit.guardian import GUARDIAN, settings_for
    from ilcp.transport import connect

    if via.partition(":")[0].lower() == "memory":
        got = f"got {via}: it ends with this command"
        raise ConfigError(f"expected an address that other processes reach, {got}; use spool:// or nats://")
    if codec is None and (receiver or questions or measured or freely or summary):
        raise ConfigError("expected --accounts CODEC beside what is asked of accounts, got none: name the codec")
    signer = _signer(key, name)
    lock = ledger.with_name(f"{ledger.name}.lock")
    with ExitStack() as stack:
        reads, asked = (None, 0) if codec is None else reading(codec, receiver, questions, freely, summary)
        stack.enter_context(held(lock))
        opened = stack.enter_context(Ledger(ledger, signer))
        c = stack.enter_context(connect(via, name=GUARDIAN, settings=settings_for(via)))
        if reads is not None:
            stack.enter_context(accounts(via, opened, reads, measured))
            _say(f"makes accounts of {codec}: {asked} questions each")
        _say(f"guards {ledger} under {signer.key}; takes records from {via}")
        with _until_told() as goes_on:
            Guardian(opened, c).serve(goes_on)
        _say(f"ended: {opened.size} entries; what comes now waits")


@audit.command()
def log(
    ledger: LedgerFile,
    run: Annotated[str | None, typer.Option(help="Of this run only.")] = None,
    event: Annotated[str | None, typer.Option(help="Of this kind only: sent, received, refused ...")] = None,
    last: Annotated[int, typer.Option(min=1, help="So many, the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Lists entries, the newest last."""
    with _opened(ledger) as opened:
        chosen = []
        for entry in opened.entries(run=run, newest=True):
            if event is None or event == (entry.fields.get("event") if entry.kind == "handoff" else entry.kind):
                chosen.append(entry)
            if len(chosen) == last:
                break
        lines = [json.dumps(asdict(entry)) if as_json else _line(entry, opened) for entry in reversed(chosen)]
    for line in lines:
        _say(line)


@audit.command()
def show(
    ledger: LedgerFile, number: Annotated[int, typer.Argument(min=0, max=LARGEST, help="The entry's number.")]
) -> None:
    """Shows an entry as JSON: what it says, what stands beside it, and the proof that it is in the tree."""
    with _opened(ledger) as opened:
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
    _say(json.dumps(told, indent=2, ensure_ascii=False))


@audit.command()
def diff(
    ledger: LedgerFile,
    one: Annotated[int, typer.Argument(min=0, max=LARGEST)],
    other: Annotated[int, typer.Argument(min=0, max=LARGEST)],
) -> None:
    """Says in which fields two entries differ."""
    with _opened(ledger) as opened:
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
            _say(f"{name}: {values[0]} in {one}, {values[1]} in {other}")


@audit.command()
def verify(
    copy: Annotated[Path, typer.Argument(help="A ledger's file, or an export.", dir_okay=False)],
    key: PublicKeys = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A file with an older checkpoint that somebody kept; repeat it.")
    ] = None,
    stamp: Annotated[
        list[Path] | None, typer.Option(help="A stamp of 'ilcp audit stamp': an older checkpoint and its time.")
    ] = None,
    roots: Annotated[Path | None, typer.Option(help="The stamps' authority's root certificates (PEM).")] = None,
    as_json: AsJson = False,
) -> None:
    """Computes everything anew, and says what is sound, what is not (exit code 16) and what cannot be told."""
    stamped = [stamp_at(file, roots) for file in stamp or []]
    found = _verified(copy, key, [*(_note(file) for file in checkpoint or []), *(note for note, _ in stamped)])
    if as_json:
        record = asdict(found)
        for name in ("missing", "complete"):
            by_recorder = getattr(found, name).items()
            record[name] = [{"producer": a, "run": b, "part": c, name: value} for (a, b, c), value in by_recorder]
        _say(json.dumps(record | {"sound": found.sound}, indent=2))
    else:
        _tell(found)
        for note, when in stamped:
            _say(f"stamped: its first {parsed_size(note)} entries were there at {when}")
    if not found.sound:
        raise typer.Exit(NOT_SOUND)


@audit.command()
def witness(
    copy: Annotated[Path, typer.Argument(help="A ledger's file, or a whole export.", dir_okay=False)],
    state: Annotated[
        Path, typer.Option(help="Keeps the newest checkpoint that was seen; out of the guardian's reach.")
    ],
    key: PublicKeys = None,
) -> None:
    """Sees that a ledger still begins as it did when it was last looked at, and keeps its newest checkpoint."""
    older = [_note(state)] if state.exists() else []
    found = _verified(copy, key, older)
    _tell(found)
    if not found.sound:
        raise typer.Exit(NOT_SOUND)
    write_whole(state, found.note, private=True)
    _say(f"kept the checkpoint of {found.entries} entries in {state}")


@audit.command()
def export(
    ledger: LedgerFile,
    to: Annotated[Path | None, typer.Option("--out", help="The file.", dir_okay=False)] = None,
    html: Annotated[Path | None, typer.Option(help="A new folder of pages for people; needs ilcp\\[page].")] = None,
    run: Annotated[str | None, typer.Option(help="This run's entries alone, each with its proof.")] = None,
) -> None:
    """Writes one file that anybody can verify, with 'ilcp audit verify' or a script of their own; or pages to read."""
    from ilcp.audit import export as written

    if to is None and html is None:
        raise ConfigError("expected --out FILE, --html FOLDER, or both, got neither")
    with _opened(ledger) as opened:
        if html is not None:
            from ilcp.audit.page.written import write_pages

            _say(f"{write_pages(opened, html, run)} hand-offs in {html}: open index.html")
        if to is not None:
            _say(f"{written(opened, to, run)} entries in {to}")


@audit.command()
def erase(
    ledger: LedgerFile,
    number: Number,
    names: Annotated[list[str], typer.Argument(help="Which personal values: literals, summary ...")],
    key: KeyFile,
    by: By,
    because: Annotated[str, typer.Option(help="Why; stays on the record.")],
) -> None:
    """Erases personal values for good; every proof stays valid, and an entry says who, when and why."""
    with _opened(ledger, key) as opened:
        made = opened.erase(number, names, by=by, because=because)
        left = _beside(opened, number)
    _say(f"erased {', '.join(names)} of entry {number}; entry {made} says so")
    for other, kept in left.items():
        _say(f"entry {other} is of the same hand-off, and still has {', '.join(kept)}")


@audit.command()
def retire(
    ledger: LedgerFile,
    key: KeyFile,
    by: By,
    months: Annotated[int, typer.Option(min=0, help="How long entries stay.")] = 12,
    below_least: Annotated[bool, typer.Option("--below-six", help="Allow fewer months than six.")] = False,
) -> None:
    """Removes what is older, but for its hashes; an entry says how far."""
    with _opened(ledger, key) as opened:
        made = opened.retire(months, by=by, below_least=below_least)
    _say("nothing is as old" if made is None else f"retired what is older than {months} months; entry {made} says so")


@audit.command()
def rotate(
    ledger: LedgerFile,
    key: KeyFile,
    new: Annotated[Path, typer.Option(help="The next signing key; made where there is none.", dir_okay=False)],
) -> None:
    """Has another key sign from now on, under a checkpoint that both sign."""
    with _opened(ledger, key) as opened:
        assert opened.signer is not None
        made = opened.rotate(_signer(new, opened.signer.name))
        _say(f"signs as {opened.signer.key} from entry {made} on")


def _beside(ledger: "Ledger", number: int) -> dict[int, list[str]]:
    """Returns which other entries of the same hand-off still have personal values, and which."""
    entry = ledger.entry(number)
    told = entry.fields if entry is not None else {}
    same = [entry] if entry is not None else []
    if isinstance(of := told.get("of"), int) and (first := ledger.entry(of)) is not None:
        same.append(first)
    for each in tuple(same):
        handoff_id = each.fields.get("handoff_id")
        same += ledger.of_handoff(handoff_id) if isinstance(handoff_id, str) else []
    numbers = {each.number for each in same}
    numbers |= {each.number for of in tuple(numbers) for each in ledger.about(of, "account")}
    held = {n: [name for name, value in ledger.personal(n).items() if value is not None] for n in sorted(numbers)}
    return {n: names for n, names in held.items() if names and n != number}


def _say(text: str) -> None:
    out.print(text, highlight=False, soft_wrap=True, markup=False)


def _signer(file: Path, name: str) -> "Signer":
    from ilcp.audit import Signer
    from ilcp.signing import seed_in

    found = Signer(name, seed_in(file))
    try:
        _ = found.key
    except DecodeError as error:
        raise ConfigError(str(error)) from error
    return found


@contextmanager
def _until_told() -> Iterator[Callable[[], bool]]:
    """Gives what says whether to go on: until SIGINT or SIGTERM, which end nothing in its middle."""
    told: list[int] = []
    before = {number: signal.signal(number, lambda *_: told.append(1)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: not told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _opened(ledger: Path, key: Path | None = None) -> "Iterator[Ledger]":
    """Opens a ledger: to write, where the file of its key is named."""
    from ilcp.audit import Ledger

    with Ledger(ledger) as reader:
        keys = reader.keys
        if not keys:
            raise StorageError(f"expected a ledger in {ledger}, got one without its first entry: it is damaged")
        name = keys[-1].name
        if key is None:
            yield reader
            return
    if not key.exists():
        raise ConfigError(f"expected the guardian's key in {key}, got no such file")
    with Ledger(ledger, _signer(key, name)) as writer:
        yield writer


def _verified(copy: Path, keys: list[str] | None, witnessed: list[str]) -> "Verified":
    from ilcp.audit import verify as computed

    return computed(copy, keys=[_key(each) for each in keys or []], witnessed=witnessed)


def _key(text: str) -> "Key":
    from ilcp.audit import Key

    try:
        return Key.parse(text)
    except DecodeError as error:
        raise ConfigError(str(error)) from error


def _note(file: Path) -> str:
    try:
        return read_whole(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected a checkpoint in {file}, got: {error}") from error


def _tell(found: "Verified") -> None:
    from ilcp.audit.findings import said_of

    for line in said_of(found):
        (out if found.sound else err).print(line, highlight=False, soft_wrap=True, markup=False)


def _line(entry: "Entry", ledger: "Ledger") -> str:
    """Says an entry in one line."""
    from ilcp.audit.findings import in_line

    fields, known = entry.fields, entry.kind == "handoff"
    moment = datetime.fromtimestamp(min(entry.recorded_unix_ms, LATEST_MS) / 1000, UTC)
    words = [f"{entry.number:>6}  {moment:%Y-%m-%d %H:%M:%S}", str(fields.get("event")) if known else entry.kind]
    if "producer" in fields:
        words.append(f"{fields['producer']} {fields.get('sequence')} of run {fields.get('run')}")
    if "message_bytes" in fields:
        words.append(f"{fields['message_bytes']} bytes, {fields.get('codec', 'codec unknown')}")
    if not known:
        words += [f"{name} {fields[name]}" for name in ("of", "by", "because", "public_key") if name in fields]
    held = ledger.personal(entry.number).get("reason")
    reason = fields.get("reason") or (held and held.value)
    words += [str(reason)[:SHORT]] if reason else []
    return "  ".join(map(in_line, words))
