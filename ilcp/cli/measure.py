"""``ilcp measure`` and ``ilcp compare``: the worth of a codec, and its changes."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ilcp.cli.again import Before, as_before
from ilcp.cli.common import (
    EMBEDDED,
    DeviceOption,
    DownloadOption,
    ReceiverOption,
    SenderOption,
    busy,
    err,
    interruptible,
    out,
    wide,
)
from ilcp.cli.named import file_names, is_preset, pairs_of
from ilcp.errors import ConfigError
from ilcp.files import require_writable, write_whole
from ilcp.identity import digest
from ilcp.signing import public_key, seed_in

if TYPE_CHECKING:
    from ilcp.embedded import Pair
    from ilcp.measure import Report
    from ilcp.tasks import Task

__all__ = ["compare", "measure", "own_task"]

TaskOption = Annotated[
    str | None,
    typer.Option(help="'case-files', or a JSONL file of cases; without it, those that the training kept apart."),
]
BudgetOption = Annotated[
    list[int] | None,
    typer.Option(help="Also measure messages that the receiver read back, of so many bytes; may be repeated."),
]
ReportOption = Annotated[
    Path | None,
    typer.Option("--json", help="Keep the report here, those of several codecs in this folder, and go on from there."),
]
SamplesOption = Annotated[
    Path | None,
    typer.Option(
        help="JSONL of texts like the task's, none of them: for a dictionary, and for codecs that are fitted."
    ),
]
SignOption = Annotated[
    Path | None,
    typer.Option(help="Signs it with this file's key, made if missing; needs ilcp\\[sign].", dir_okay=False),
]
AccountsOption = Annotated[
    Path | None, typer.Option(help="Measure how true accounts of the messages are, too; JSON.", dir_okay=False)
]
FreelyOption = Annotated[
    bool, typer.Option("--freely", help="For --faithfulness: also ask messages to say what they say.")
]
AgainOption = Annotated[
    bool, typer.Option("--again", help="The same cases once more, compared with the codec's evidence.")
]
UNFINISHED = [".unfinished", ".json"]  # ends the name of what is kept until all outputs are written


def measure(
    codecs: Annotated[
        list[str],
        typer.Argument(
            help="Codecs' folders or hub ids, 'embedded', or presets of a model's own cache: kv-exact, kv-int8, "
            "kv-int4, kv-pca:4bit, kv-pca:2bit, kv-compact:10% ..."
        ),
    ],
    task: TaskOption = None,
    samples: SamplesOption = None,
    n: Annotated[int | None, typer.Option(help="How many cases; without it 500, or as many as a file has.")] = None,
    seed: Annotated[int, typer.Option(help="Of the test documents, the intervals and the random payloads.")] = 7,
    sender: SenderOption = None,
    receiver: ReceiverOption = None,
    device: DeviceOption = "cpu",
    download: DownloadOption = False,
    hops: Annotated[int, typer.Option(min=0, help="How many hops to hand on (case files only); 0: not measured.")] = 0,
    budget: BudgetOption = None,
    repetitions: Annotated[int, typer.Option(help="Of the times, at least 50; 0: not measured.")] = 60,
    as_json: ReportOption = None,
    html: Annotated[Path | None, typer.Option(help="A page with plots; needs ilcp\\[plots].", dir_okay=False)] = None,
    png: Annotated[Path | None, typer.Option(help="A folder for the plots; needs ilcp\\[plots].")] = None,
    attach: Annotated[bool, typer.Option("--attach", help="Write the result into the codec's folder.")] = False,
    again: AgainOption = False,
    sign: SignOption = None,
    faithfulness: AccountsOption = None,
    freely: FreelyOption = False,
) -> None:
    """Measures what a codec's message is worth, against everything that it must beat, on any pair of models.

    Every question is asked with the full text, with the message at each length, with nothing, with another case's
    message, with text of as many bytes, and more. Ctrl-C leaves what was measured in --json, or in a file beside.

    Several codecs answer the same questions, one after the other, and are put on one axis, which --png draws. A preset
    stands on the receiver of the first codec that is none, or on --receiver; caches have no hops and no budgets.
    """
    before = as_before(codecs, task, n) if again else None
    task, n, seed = (task, n, seed) if before is None else before.cases
    keeps = _places(codecs, as_json, (task, samples, n, seed, sender, receiver, hops, budget, repetitions))
    with busy("loading models and codecs"):
        _refuse_early(codecs, attach, html, png, [*keeps, faithfulness], repetitions, freely)
        key, asked = _key(sign, attach), _asked(codecs, task, n, seed, samples)
        pairs = pairs_of(codecs, sender=sender, receiver=receiver, device=device, allow_download=download, task=asked)
    wanted: dict[str, Any] = {"seed": seed, "hops": hops, "budgets": budget or (), "repetitions": repetitions}
    reports = _reports(dict(zip(codecs, pairs, strict=True)), asked, keeps, attach, key, wanted)
    with _left(*keeps):
        _compare(before, reports[0])
        _tell_accounts(dict(zip(file_names(codecs), pairs, strict=True)), asked, seed, faithfulness, freely)
        _draw(dict(zip(file_names(codecs), reports, strict=True)), html, png)
    _forget(keeps if as_json is None else ())


def _asked(codecs: Sequence[str], task: str | None, n: int | None, seed: int, samples: Path | None) -> "Task":
    from ilcp import tasks

    return tasks.task(task or own_task(codecs), n=n, seed=seed, samples=samples)


def _compare(before: Before | None, report: "Report") -> None:
    """Says whether the evidence of before still holds, where it was to be measured again."""
    if before is not None:
        before.compared(report)


def _forget(keeps: Sequence[Path]) -> None:
    """Removes what was kept until all outputs were written."""
    for keep in keeps:
        keep.unlink(missing_ok=True)


def _reports(
    pairs: "Mapping[str, Pair]", asked: "Task", keeps: Sequence[Path], attach: bool, key: bytes | None, wanted: Any
) -> "list[Report]":
    """Measures one codec after the other, shows each, and attaches it where that is wanted."""
    reports: list[Report] = []
    for pair, keep in [*zip(pairs.values(), keeps, strict=True)][1:]:  # the first one's run begins with this
        _refuse_other(pair, asked, keep, wanted["seed"])
    for (name, pair), keep in zip(pairs.items(), keeps, strict=True):
        with _left(*keeps[: len(reports)]):
            if len(pairs) > 1:
                out.print(f"\n{name}", style="bold", markup=False, highlight=False)
            reports.append(_run(pair, asked, keep, among=len(pairs) > 1, alike=reports, **wanted))
        with _left(*keeps[: len(reports)]):
            _show(reports[-1])
            if attach:
                _attach(pair.path, reports[-1], key, asked)
    return reports


def _tell_accounts(pairs: "Mapping[str, Pair]", asked: "Task", seed: int, file: Path | None, freely: bool) -> None:
    """Measures how true accounts of each codec's messages are, at each of its lengths, where there is a file for it."""
    if file is None:
        return
    from ilcp.measure import faithfulness as of_accounts
    from ilcp.measure import provenance
    from ilcp.measure.table import show_faithfulness

    record = {}
    for name, pair in pairs.items():
        lengths: list[int | None] = [*sorted(pair.sender.codec.spec.prefixes, reverse=True)] or [None]
        with busy(f"asking the memories of {name} what they say"):
            options: dict[str, Any] = {"seed": seed, "freely": freely}
            found = [of_accounts(pair.sender, pair.receiver, asked.cases, payload_bytes=n, **options) for n in lengths]
        show_faithfulness(found, wide())
        record[name] = [one.to_dict() for one in found]
    write_whole(file, json.dumps({"accounts": record, "seed": seed, "provenance": provenance()}, indent=1) + "\n")


def _refuse_other(pair: "Pair", asked: "Task", keep: Path, seed: int) -> None:
    """Refuses another run's file before any codec is measured."""
    from ilcp.measure import load_report
    from ilcp.measure.files import is_same

    if not os.path.exists(keep) or (found := load_report(keep)).complete:
        return
    if not is_same(found, pair.sender.codec, asked.cases, task=asked.name, seed=seed):
        raise ConfigError(f"expected an interrupted run of this measurement in {keep}, got another: remove it")


def _places(codecs: Sequence[str], as_json: Path | None, made_with: object) -> list[Path]:
    """Names the file of each codec's report."""
    names = file_names(codecs)
    if as_json is None:  # a preset stands on another codec's receiver: beside another, it is another measurement
        return [_beside(codec, tuple(codecs), made_with) for codec in codecs]
    if len(codecs) > 1:
        return [as_json / f"{name}.json" for name in names]
    if os.path.isdir(as_json):
        raise ConfigError(f"expected a file for --json of one codec, got a folder: name one in {as_json}")
    return [as_json]


def _attach(folder: Path, report: "Report", seed: bytes | None, asked: "Task") -> None:
    from ilcp.codec.folder import attach_evidence, settings_of
    from ilcp.evidence import signed
    from ilcp.tasks import cases_digest

    evidence = report.evidence()
    if seed is not None:
        evidence = signed(evidence, seed, cases_digest(asked.cases), settings_of(folder))
    attach_evidence(folder, evidence)


def _key(file: Path | None, attach: bool) -> bytes | None:
    """Reads a signing key (hex), or makes one, for its owner only, and says whose it is; None where none is named."""
    if file is None:
        return None
    if not attach:
        raise ConfigError("expected --attach beside --sign, got none: what is signed is what is attached")
    seed = seed_in(file)
    out.print(f"signs as {public_key(seed)}", highlight=False, soft_wrap=True)
    return seed


def _show(report: "Report") -> None:
    from ilcp.measure.table import show

    show(report, wide())


def _beside(codec: str, *options: object) -> Path:
    """Names the file, in this folder, that holds what was measured until all outputs are written."""
    made_with = digest(repr((codec, *options)).encode()).hex()[:8]
    return Path(f"{file_names([codec])[0]}-{made_with}{''.join(UNFINISHED)}")


def own_task(codecs: Sequence[str]) -> str:
    """Names the task where none is given: the cases that the training of the first codec that had one kept apart."""
    from ilcp.tasks.load import CASE_FILES, own_test

    trained = [codec for codec in codecs if not is_preset(codec)]
    if not trained:
        raise ConfigError(f"expected --task beside {codecs[0]}, got none: name a file of cases, or 'case-files'")
    codec = trained[0]
    kept = own_test(codec)
    if codec != EMBEDDED and os.path.isfile(kept):
        return str(kept)
    if codec != EMBEDDED and (os.path.isdir(codec) or "/" in codec):  # what is neither is refused for what it is
        raise ConfigError(
            f"expected the cases that the training of {codec} kept apart in {kept}, got none: name others with --task"
        )
    return CASE_FILES


@contextmanager
def _left(*keeps: Path) -> Iterator[None]:
    """Says, where an output fails that was possible when it was tried, which file still holds what was measured."""
    try:
        yield
    except BaseException:
        if keeps:
            shown = f"{', '.join(map(str, keeps))} {'holds' if len(keeps) == 1 else 'hold'} what was measured"
            err.print(shown, highlight=False, soft_wrap=True, markup=False)
        raise


def compare(
    before: Annotated[Path, typer.Argument(help="A report: JSON of 'ilcp measure'.")],
    after: Annotated[Path, typer.Argument(help="Another report of the same questions.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, on standard output.")] = False,
) -> None:
    """Says what changed between two reports, with intervals, and how many single answers flipped (churn)."""
    with busy("making all figures of both reports anew"):
        import ilcp

        found = ilcp.measure.compare(ilcp.measure.load_report(before), ilcp.measure.load_report(after))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from ilcp.measure.table import show_comparison

    show_comparison(found, out)


def _run(
    pair: "Pair", asked: "Task", keep: Path, *, among: bool, alike: "Sequence[Report]", **options: Any
) -> "Report":
    """Measures, or takes up the whole report of an interrupted call, whose outputs or other codecs are missing.

    ``among`` tells that several are measured: of caches, neither hops nor budgets.
    """
    from ilcp.measure import equal_texts, load_report, provenance, run
    from ilcp.measure.files import is_same

    if (among or keep.suffixes[-2:] == UNFINISHED) and os.path.exists(keep):
        done, command = load_report(keep), provenance()["command"]
        same = done.complete and is_same(done, pair.sender.codec, asked.cases, task=asked.name, seed=options["seed"])
        if same and (not among or done.provenance["command"] == command):  # else with other options
            return done
    if among and pair.sender.codec.spec.reads == "cache":
        options |= {"hops": 0, "budgets": ()}
    options |= {"task": asked.name, "answers_end": asked.answers_end, "keep": keep, "progress": True, "alike": alike}
    texts = {} if pair.sender.codec.spec.reads == "cache" else equal_texts(pair.sender, asked.samples())
    with interruptible(f"{keep} holds what was measured so far; the same command goes on with it"):
        return run(pair.sender, pair.receiver, asked.cases, texts=texts, **options)


def _refuse_early(
    codecs: Sequence[str],
    attach: bool,
    html: Path | None,
    png: Path | None,
    keeps: Sequence[Path | None],
    repetitions: int,
    freely: bool,
) -> None:
    """Refuses now what would fail after an hour of measuring."""
    if freely and keeps[-1] is None:
        raise ConfigError("expected --faithfulness FILE beside --freely, got none")
    if repetitions:
        from ilcp.measure.cost import require_repetitions

        require_repetitions(repetitions)
    if attach and (without := [codec for codec in codecs if codec == EMBEDDED or is_preset(codec)]):
        raise ConfigError(f"expected a codec's folder to --attach, got {without[0]!r}: name the folder")
    if html is not None and len(codecs) > 1:
        raise ConfigError(f"expected one codec for --html, got {len(codecs)}: draw several with --png")
    if html is not None:
        from ilcp.measure.page import require_jinja

        require_jinja()
    if html is not None or png is not None:
        from ilcp.measure.plots import require_matplotlib

        require_matplotlib()
    for file in (*keeps, html, None if png is None else png / "recovery.png"):
        if file is not None:
            require_writable(file)
    for codec in codecs:
        if attach and os.path.isdir(codec):
            require_writable(Path(codec) / "config.json")


def _draw(reports: "Mapping[str, Report]", html: Path | None, png: Path | None) -> None:
    """Draws one report, or puts several on one axis."""
    (report, *others) = reports.values()
    if html is not None:
        from ilcp.measure.page import page

        write_whole(html, page(report))
    if others:
        from ilcp.measure import choose
        from ilcp.measure.table import show_choice

        found = choose(reports)
        show_choice(found, wide())
        if png is not None:
            from ilcp.measure.plots import save_axes

            save_axes(report, found.offers, png)
    elif png is not None:
        from ilcp.measure.plots import save_plots

        save_plots(report, png)
