"""``ilcp audit``: the record of hand-offs, for those who keep it and for those who ask."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ilcp.cli.accounts import (
    CodecOption,
    DtypeOption,
    FreelyOption,
    MeasuredOption,
    ModelOption,
    QuestionsOption,
    SummaryOption,
    accounts,
    reading,
)
from ilcp.cli.common import err, out
from ilcp.cli.entries import diff, log, show
from ilcp.cli.exit_codes import NOT_SOUND
from ilcp.cli.ledgers import LARGEST, AsJson, LedgerFile, opened_at, say, signer_in
from ilcp.cli.page import reader, serve
from ilcp.cli.stamps import parsed_size, stamp_at
from ilcp.cli.stamps import stamp as stamp_
from ilcp.errors import ConfigError, DecodeError
from ilcp.files import held, write_whole
from ilcp.folders import read_whole

if TYPE_CHECKING:
    from ilcp.audit import Key, Ledger, Verified

__all__ = ["audit"]

audit = typer.Typer(
    no_args_is_help=True,
    help="Keep a record of hand-offs that only grows, and verify one. It is tamper-evident, and no proof of truth.",
)

Number = Annotated[int, typer.Argument(min=0, max=LARGEST, help="The entry's number.")]
KeyFile = Annotated[Path, typer.Option("--key", help="The guardian's signing key, hex; of its owner alone.")]
By = Annotated[str, typer.Option("--by", help="Who does it; stays on the record.")]
PublicKeys = Annotated[
    list[str] | None, typer.Option("--key", help="The guardian's public key, name+id+key; repeat it.")
]


@audit.command()
def guard(
    ledger: LedgerFile,
    via: Annotated[str, typer.Option("--via", help="Where records come in: spool:///folder or nats://host:port.")],
    key: KeyFile,
    name: Annotated[
        str | None, typer.Option(help="A new ledger's name, such as example.org/handoffs; without it ilcp/ledger.")
    ] = None,
    codec: CodecOption = None,
    receiver: ModelOption = None,
    dtype: DtypeOption = None,
    questions: QuestionsOption = None,
    measured: MeasuredOption = None,
    freely: FreelyOption = False,
    summary: SummaryOption = "",
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
    if codec is None and (receiver or dtype or questions or measured or freely or summary):
        raise ConfigError("expected --accounts CODEC beside what is asked of accounts, got none: name the codec")
    signer = signer_in(key, name or _name_of(ledger))
    lock = ledger.with_name(f"{ledger.name}.lock")
    with ExitStack() as stack:
        reads, asked = (None, 0) if codec is None else reading(codec, receiver, questions, freely, summary, dtype)
        stack.enter_context(held(lock))
        opened = stack.enter_context(Ledger(ledger, signer))
        c = stack.enter_context(connect(via, name=GUARDIAN, settings=settings_for(via)))
        if reads is not None:
            stack.enter_context(accounts(via, opened, reads, measured))
            say(f"makes accounts of {codec}: {asked} questions each")
        say(f"guards {ledger} under {signer.key}; takes records from {via}")
        with _until_told() as goes_on:
            Guardian(opened, c).serve(goes_on)
        say(f"ended: {opened.size} entries; what comes now waits")


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
        say(json.dumps(record | {"sound": found.sound}, indent=2))
    else:
        _tell(found)
        for note, when in stamped:
            say(f"stamped: its first {parsed_size(note)} entries were there at {when}")
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
    from ilcp.audit.findings import PARTLY

    older = [_note(state)] if state.exists() else []
    found = _verified(copy, key, older)
    if PARTLY in found.cannot:
        raise ConfigError(f"expected a ledger's file or a whole export to witness, got some runs in {copy}")
    _tell(found)
    if not found.sound:
        raise typer.Exit(NOT_SOUND)
    write_whole(state, found.note, private=True)
    say(f"kept the checkpoint of {found.entries} entries in {state}")


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
    if to is not None and os.path.lexists(to):
        raise ConfigError(
            f"expected a new file for the export, got {to}, which is there: it may be evidence; name another"
        )
    with opened_at(ledger) as opened:
        if run is not None and next(opened.entries(run=run), None) is None:
            raise ConfigError(f"expected a run of this ledger, got {run!r}, of which nothing is on record")
        if html is not None:
            from ilcp.audit.page.written import write_pages

            say(f"{write_pages(opened, html, run)} hand-offs in {html}: open index.html")
        if to is not None:
            say(f"{written(opened, to, run)} entries in {to}")


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
    with opened_at(ledger, key) as opened:
        made = opened.erase(number, names, by=by, because=because)
        left = _beside(opened, number)
    say(f"erased {', '.join(names)} of entry {number}; entry {made} says so")
    for other, kept in left.items():
        say(f"entry {other} is of the same hand-off, and still has {', '.join(kept)}")


@audit.command()
def retire(
    ledger: LedgerFile,
    key: KeyFile,
    by: By,
    months: Annotated[int, typer.Option(min=0, help="How long entries stay.")] = 12,
    below_least: Annotated[bool, typer.Option("--below-six", help="Allow fewer months than six.")] = False,
) -> None:
    """Removes what is older, but for its hashes; an entry says how far."""
    from ilcp.audit.sequences import in_words

    with opened_at(ledger, key) as opened:
        made = opened.retire(months, by=by, below_least=below_least)
        entry = None if made is None else opened.entry(made)
    if entry is None:
        say("nothing is as old")
        return
    gone = in_words(entry.fields["numbers"])
    say(f"retired what is older than {months} months, entries {gone}; entry {made} says so")


@audit.command()
def rotate(
    ledger: LedgerFile,
    key: KeyFile,
    new: Annotated[Path, typer.Option(help="The next signing key; made where there is none.", dir_okay=False)],
) -> None:
    """Has another key sign from now on, under a checkpoint that both sign."""
    with opened_at(ledger, key) as opened:
        assert opened.signer is not None
        made = opened.rotate(signer_in(new, opened.signer.name))
        say(f"signs as {opened.signer.key} from entry {made} on")
        say(f"start the guardian anew with --key {new}, and tell who verifies of the new public key")


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


def _name_of(ledger: Path) -> str:
    """Returns the name of a ledger that is there already."""
    if not ledger.is_file() or not ledger.stat().st_size:
        return "ilcp/ledger"
    with opened_at(ledger) as opened:
        return opened.keys[-1].name


for command in (log, show, diff, serve, reader):
    audit.command()(command)
audit.command("stamp")(stamp_)


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
    from ilcp.audit import parsed

    try:
        note = read_whole(file).decode()
        parsed(note)
    except (OSError, UnicodeDecodeError, DecodeError) as error:
        raise ConfigError(f"expected a checkpoint in {file}, got: {error}") from error
    return note


def _tell(found: "Verified") -> None:
    from ilcp.audit.findings import said_of

    for line in said_of(found):
        (out if found.sound else err).print(line, highlight=False, soft_wrap=True, markup=False)
