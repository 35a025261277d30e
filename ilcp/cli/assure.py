"""``ilcp calibrate``, ``ilcp canary`` and ``ilcp watch``: whether a codec is still what it was."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ilcp.assurance.martingale import ALARM
from ilcp.assurance.watch import State, Watch
from ilcp.cli.common import (
    EMBEDDED,
    DeviceOption,
    DownloadOption,
    ReceiverOption,
    SenderOption,
    busy,
    interruptible,
    out,
    wide,
)
from ilcp.cli.exit_codes import ALARMED
from ilcp.cli.measure import TaskOption, own_task
from ilcp.errors import ConfigError
from ilcp.files import require_writable
from ilcp.message import CODEC_ID_BYTES

if TYPE_CHECKING:
    from ilcp.embedded import Pair

__all__ = ["calibrate", "canary", "watch"]

CodecArgument = Annotated[str, typer.Argument(help="A codec's folder, a hub id, or 'embedded'.")]
TenantOption = Annotated[str, typer.Option(help="Whose messages.")]
CALIBRATED_ON, ASKED = 2000, 200
WIDTH = 120  # of a table that no terminal shows
VERDICTS = {"lost": "the facts are lost", "sound": "the facts come through"}


def calibrate(
    codec: CodecArgument,
    task: TaskOption = None,
    n: Annotated[int | None, typer.Option(help="How many cases; without it 2000, or as many as a file has.")] = None,
    seed: Annotated[int, typer.Option(help="Of the dossiers of 'case-files': another one than you measure with.")] = 20,
    sender: SenderOption = None,
    receiver: ReceiverOption = None,
    device: DeviceOption = "cpu",
    download: DownloadOption = False,
) -> None:
    """Writes into a codec's folder what is usual of its messages, by which a doubtful one is told.

    The cases are to be like those that will be handed over, and training must not have seen them. It is a summary: no
    message and no text of them is kept, but up to eight questions with an answer that at least five of them have. Both
    ends then judge messages by it: see ilcp.assurance.Policy.
    """
    folder = Path(codec)
    if codec == EMBEDDED or not (folder / "config.json").is_file():
        raise ConfigError(f"expected a codec's folder to write into, got {codec!r}: fetch it, and name the folder")
    with busy("loading models and codec"):
        from ilcp.assurance import REFERENCE
        from ilcp.measure.calibrating import calibrate as calibrated
        from ilcp.tasks import task as cases_of
        from ilcp.tasks.load import CASE_FILES

        require_writable(folder / REFERENCE)
        name = task or own_task([codec])
        asked = cases_of(name, n=n or (CALIBRATED_ON if name == CASE_FILES else None), seed=seed)
        pair = _pair(codec, sender, receiver, device, download, assurance=None)  # what is there may be damaged
    with busy(f"encoding {len(asked.cases)} cases"), interruptible("nothing was written"):
        found = calibrated(pair.sender, pair.receiver, asked.cases, task=asked.name, seed=seed)
    found.write(folder)
    views = ", ".join(f"{name} ({len(view.scores)} scores)" for name, view in found.views.items())
    known = found.calibrated
    out.print(f"{folder / REFERENCE}: {views}", highlight=False, soft_wrap=True, markup=False)
    out.print(
        f"canaries: {known.right} of {known.canaries} right from the message, {known.right_by_others} from another's",
        highlight=False,
    )


def canary(
    codec: CodecArgument,
    task: TaskOption = None,
    n: Annotated[int, typer.Option(min=1, help="How many questions at most.")] = ASKED,
    seed: Annotated[int, typer.Option(help="Of the dossiers of 'case-files': another one each time.")] = 0,
    to: Annotated[Path | None, typer.Option("--watch", help="A watch that is told.", dir_okay=False)] = None,
    tenant: TenantOption = "",
    sender: SenderOption = None,
    receiver: ReceiverOption = None,
    device: DeviceOption = "cpu",
    download: DownloadOption = False,
) -> None:
    """Asks canary questions through the real pair until the evidence is in: is what the messages say still known?

    Run it on a schedule, beside the normal traffic, with another --seed or file each time. Exit code 18 where the
    answers are lost.
    """
    with busy("loading models and codec"):
        from ilcp.assurance import Canary, Reference
        from ilcp.measure.sequential import canary as asked_until
        from ilcp.measure.sequential import canary_of
        from ilcp.tasks import task as cases_of
        from ilcp.tasks.load import CASE_FILES

        kept = None if to is None else Watch(to)
        name = task or own_task([codec])
        asked = cases_of(name, n=max(2, n) if name == CASE_FILES else None, seed=seed)
        pair = _pair(codec, sender, receiver, device, download)
        reference = Reference.of(pair.sender.codec)
        if reference is None:
            raise ConfigError(f"expected a codec that was calibrated, got {codec}: run 'ilcp calibrate' first")
        canary_of(reference.calibrated)
    codec_id = pair.sender.codec_id.hex()

    def told(test: Canary) -> None:
        if kept is not None:
            kept.change(codec_id, reference.digest, tenant, "canary", lambda state: state.told(test))

    with busy("asking"), interruptible("nothing was decided"):
        test = asked_until(pair.sender, pair.receiver, reference, asked.cases[:n], told=told)
    fault, health = test.values
    verdict = VERDICTS.get(test.verdict, "the evidence is not in")
    evidence = f"evidence of a fault {fault:.3g} : 1, of health {health:.3g} : 1 ({ALARM:g} decides)"
    out.print(f"{verdict}: {test.right} of {test.asked} right; {evidence}", highlight=False, soft_wrap=True)
    if test.verdict == "lost":
        raise typer.Exit(ALARMED)


def watch(
    file: Annotated[Path, typer.Argument(help="What Policy(watch=Watch(FILE)) keeps.", dir_okay=False)],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="In Prometheus' text format; ilcp\\[http].")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 18 while an alarm stands.")] = False,
    reset: Annotated[str | None, typer.Option(help="Begin anew for this codec's id, once you have looked.")] = None,
    tenant: TenantOption = "",
) -> None:
    """Shows what is watched: messages, decisions, and the evidence that they have changed, of each codec and tenant."""
    if not file.is_file() or not file.stat().st_size:
        raise ConfigError(f"expected a watch in {file}, got none: Policy(watch=Watch({str(file)!r})) makes it")
    with Watch(file) as kept:
        if reset is not None and not kept.reset(reset, tenant):
            raise ConfigError(f"expected the id of a codec of tenant {tenant!r} that is watched, got {reset!r}")
        states = kept.states()
        if prometheus:
            from ilcp.assurance.metrics import exposition

            typer.echo(exposition(kept), nl=False)
        elif as_json:
            typer.echo(json.dumps([asdict(state) | {"value": state.value} for state in states], indent=1))
        else:
            _show(states)
    if check and any(state.alarmed for state in states):
        raise typer.Exit(ALARMED)


def _show(states: list[State]) -> None:
    table = Table()
    table.add_column("codec", min_width=2 * CODEC_ID_BYTES, no_wrap=True)
    for name in ("tenant", "place"):
        table.add_column(name)
    table.add_column("messages", justify="right")
    table.add_column("decided")
    table.add_column("evidence", justify="right")
    table.add_column("alarm")
    for state in states:
        decided = ", ".join(f"{name} {count}" for name, count in sorted(state.decided.items()))
        alarm = f"since message {state.alarm_at}" if state.alarmed else ""
        said, evidence = _canaries(state) or decided, f"{state.value:.3g} : 1"
        row = (state.codec_id, state.tenant, state.place, f"{state.messages:,}", said, evidence, alarm)
        table.add_row(*map(escape, row))  # a tenant may be called [/x]
    wide(WIDTH).print(table if states else "nothing was judged yet")


def _canaries(state: State) -> str:
    test = state.canary
    return "" if test is None else f"{test.right} of {test.asked} right: {test.verdict or 'undecided'}"


def _pair(codec: str, sender: str | None, receiver: str | None, device: str, download: bool, **more: Any) -> "Pair":
    from ilcp.embedded import load_pair

    named: dict[str, Any] = {"sender": sender, "receiver": receiver, "device": device, "allow_download": download}
    return load_pair(None if codec == EMBEDDED else codec, allow_unmeasured=True, **named, **more)
