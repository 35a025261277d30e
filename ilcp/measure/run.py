"""One call: every arm on the same questions, then the time, then the hops."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ilcp.codec.protocols import Codec, is_trainable
from ilcp.codec.registry import codec_class
from ilcp.codec.seen import seen_by
from ilcp.errors import ConfigError
from ilcp.files import require_writable
from ilcp.handoff import Receiver, Sender
from ilcp.inputs import listed
from ilcp.measure.arms import ArmSpec, arm_specs
from ilcp.measure.asking import Asking, reason
from ilcp.measure.caches import apart, cache_specs, require_caches
from ilcp.measure.cost import cost, require_repetitions
from ilcp.measure.fanout import fan_out
from ilcp.measure.figures import provenance
from ilcp.measure.files import UNFINISHED, resumed, save_report, unfinished
from ilcp.measure.fitting import Fitting
from ilcp.measure.hops import hop_specs
from ilcp.measure.items import Items
from ilcp.measure.report import Report, plain
from ilcp.measure.scoring import Scorer
from ilcp.measure.verified import verified_specs
from ilcp.nn.attention import many_shapes
from ilcp.tasks.cases import Case

__all__ = ["equal_texts", "require_cases", "run"]

LENGTHS = (10, 20, 40, 80)  # bytes: what a learned codec without prefixes is measured at
MAX_LENGTH = 1000  # bytes: a codec without prefixes is measured at its own length up to here
REPETITIONS = 60
OF_NO_CODEC = ("text", "none")  # arms that the receiver answers alone
ASKED_IN_TURN = 4  # questions that eight receivers' calls ask of one message


def run(
    sender: Sender,
    receiver: Receiver,
    cases: Sequence[Case],
    *,
    task: str,
    seed: int = 0,
    answers_end: bool = True,
    lengths: Sequence[int] | None = None,
    texts: Mapping[str, Codec] | None = None,
    arms: Collection[str] | None = None,
    hops: int = 0,
    budgets: Collection[int] = (),
    repetitions: int = REPETITIONS,
    keep: Path | None = None,
    progress: bool = False,
    alike: Sequence[Report] = (),
) -> Report:
    """Measures what the hand-off from ``sender`` to ``receiver`` is worth on ``cases``, beside all that it must beat.

    A case that fails is left out, as is an arm unless the verdict needs it, and the report says which and why.

    Args:
        cases: documents with questions (``ilcp.tasks.thin`` asks fewer of each).
        task, seed: the name for the report; of the bootstrap and the random payloads.
        answers_end: false for continuations (one question per case, its text empty), whose answers go on.
        lengths: payload bytes to measure; None for the codec's own prefixes, or the usual ones where it has none.
        texts: name -> text codec, each an arm at every length; None for ``equal_texts(sender)``.
        arms: the names of those to measure (see ``ilcp.measure.arms``); None for all.
        hops, repetitions: hand-ons of a message (needs ``Case.rewrite``); of the times, at least 50; 0 for none.
        budgets: bytes on the wire for messages that the receiver reads back (see ``ilcp.measure.verified``).
        keep: a file for the report, from which an interrupted run goes on; a finished one stays until the new one is.
        progress: shows a bar on standard error.
        alike: other codecs' reports by this receiver: what it answers from text and from nothing is taken over.

    Raises:
        ConfigError, StorageError: an argument or a case is not as above, or ``keep`` is another run's or not writable.
    """
    _require_possible(sender, receiver, hops, budgets, repetitions, keep)
    cases = listed(cases, "cases in a list", "case", error=ConfigError)
    require_cases(cases, receiver, answers_end=answers_end)
    with apart(sender, receiver) as (sender, receiver):
        texts = _texts(sender) if texts is None else texts
        specs_of = partial(_specs, sender, receiver, _lengths(sender, lengths), texts, seed, hops, budgets)
        fresh, draft = _taken_over(_empty(sender, cases, task, seed, answers_end), alike, arms), unfinished(keep)
        report = resumed(fresh, draft)
        asking = Asking(report.kept(cases), specs_of, partial(Scorer, receiver, answers_end=answers_end))
        report = _asked(report, _chosen(specs_of(cases), arms), asking, draft, progress)
        report = _priced(report, sender, receiver, asking.cases, repetitions, progress)
        return _finished(report, sender.codec, asking.cases, keep, draft)


def _taken_over(report: Report, alike: Iterable[Report], wanted: Collection[str] | None) -> Report:
    """Returns the report with the arms of other codecs' reports that no codec has part in, and a note of it."""
    who = report.provenance["models"]["receiver"]
    for other in listed(alike, "reports in a list as alike", "report", error=ConfigError):
        if not isinstance(other, Report):
            raise ConfigError(f"expected reports in alike, got {type(other).__name__}")
        same = (report.items, report.answers_end) == (other.items, other.answers_end)
        if not same or other.provenance.get("models", {}).get("receiver") != who:
            continue
        names = [name for name in OF_NO_CODEC if name in other.arms and (wanted is None or name in wanted)]
        arms = {name: other.arms[name] for name in names if name not in report.arms}
        if arms:
            made = "" if other.provenance["commit"] == report.provenance["commit"] else " by other code"
            note = f"{' and '.join(arms)} as in the report of {other.codec['name']} {other.codec['codec_id']}{made}"
            report = replace(report, arms={**report.arms, **arms}, notes=(*report.notes, note))
    return report


def _finished(report: Report, codec: Codec, cases: Iterable[Case], keep: Path | None, draft: Path | None) -> Report:
    """Keeps the whole report, in the place of its draft, with the number of texts that the codec learned from."""
    seen = sum(map(seen_by(codec), (case.context for case in cases)))
    report = replace(report, complete=True, seen=seen)
    save_report(report, keep)
    if draft is not None and draft != keep:
        draft.unlink(missing_ok=True)
    return report


def _specs(
    sender: Sender,
    receiver: Receiver,
    lengths: Sequence[int],
    texts: Mapping[str, Codec],
    seed: int,
    hops: int,
    budgets: Collection[int],
    cases: Sequence[Case],
) -> list[ArmSpec]:
    """Lists all arms that there are of these cases."""
    if sender.codec.spec.reads == "cache":
        return [*cache_specs(sender, receiver, cases, lengths)]
    specs = [*arm_specs(sender, receiver, cases, lengths=lengths, texts=texts, seed=seed)]
    if hops:
        specs += hop_specs(sender, receiver, cases, length=lengths[0], texts=texts, hops=hops)
    return [*specs, *verified_specs(sender, receiver, cases, budgets=budgets, lengths=lengths, texts=texts)]


def _chosen(specs: Sequence[ArmSpec], arms: Collection[str] | None) -> list[str]:
    """Returns the names of the arms to measure: all that there are, or those named."""
    known = [spec.name for spec in specs]
    unknown = [] if arms is None else [name for name in arms if name not in known]
    if unknown:
        raise ConfigError(f"expected arms of {', '.join(sorted(known))}, got {', '.join(unknown)}")
    return [name for name in known if arms is None or name in arms]


@many_shapes()
def _asked(report: Report, names: Sequence[str], asking: Asking, draft: Path | None, progress: bool) -> Report:
    """Adds the arms that are not in the report yet; the draft holds each as soon as it is done."""
    for name in track(names, "arms", console=Console(stderr=True), disable=not progress, transient=True):
        if name not in report.arms and not any(note.startswith(f"{name}: ") for note in report.notes):
            report = asking.add(report, name)
            save_report(report, draft)
    return report


def _priced(
    report: Report, sender: Sender, receiver: Receiver, cases: Sequence[Case], repetitions: int, progress: bool
) -> Report:
    """Adds the times, and whether one message serves many calls; both ask questions of the task.

    What is there already, or not wanted (no repetitions), is left as it is.
    """
    if not repetitions or report.cost is not None:
        return report
    if getattr(sender.codec, "questions", ()):
        why = (
            "cost, fan-out: not measured, since the sender asks its questions each time, which takes many times as long"
        )
        return replace(report, notes=(*report.notes, why))
    contexts = [case.context for case in cases]
    questions = list(dict.fromkeys(question.text for case in cases for question in case.questions if question.text))
    if len(questions) < 2:
        why = f"cost, fan-out: not measured, they need two questions of the task, and it has {len(questions)}"
        return replace(report, notes=(*report.notes, why))
    try:
        report = replace(
            report, cost=cost(sender, receiver, contexts, question=questions[0], n=repetitions, progress=progress)
        )
        return replace(report, fan_out=fan_out(receiver, sender.encode(contexts[0]), questions[:ASKED_IN_TURN]))
    except Exception as error:  # of any kind, and no reason to lose what was measured before
        what = "fan-out" if report.cost else "cost, fan-out"
        return replace(report, notes=(*report.notes, f"{what}: not measured, {reason(error)}"))


def _empty(sender: Sender, cases: Sequence[Case], task: str, seed: int, answers_end: bool) -> Report:
    """Makes a report before its first arm."""
    codec = sender.codec
    return Report(
        task=task,
        seed=seed,
        answers_end=answers_end,
        codec={"codec_id": codec.trained.codec_id(codec.spec).hex(), **plain(asdict(codec.spec))},
        items=Items.of(cases),
        arms={},
        provenance=provenance(sender=codec.trained.sender.exact, receiver=codec.trained.receiver.exact),
        complete=False,
    )


def _texts(sender: Sender) -> dict[str, Codec]:
    return {} if sender.codec.spec.reads == "cache" else equal_texts(sender)  # of as many bytes as a cache: the text


def equal_texts(sender: Sender, samples: Iterable[str] = ()) -> dict[str, Codec]:
    """Makes the text codecs that a latent of as many bytes must beat.

    Their beginning, their end, zstd (its dictionary trained on ``samples``, where they are enough for one), and
    arithmetic coding under the sender's own language model.
    """
    return {
        "head": codec_class("text-head")(),
        "tail": codec_class("text-tail")(),
        "zstd": _zstd(list(samples)),
        "lm": codec_class("text-lm")(sender.model, sender.tokenizer),
    }


def _zstd(samples: Sequence[str]) -> Codec:
    method = codec_class("text-zstd")
    with suppress(ConfigError):  # too few or too short for a dictionary
        fitted: Codec = method.fit(samples)
        return fitted
    plain: Codec = method()
    return plain


def require_cases(cases: Sequence[Case], receiver: Receiver, *, answers_end: bool = True) -> None:
    """Refuses cases that cannot be measured.

    Raises:
        ConfigError: fewer than two cases, one without questions or over the receiver's window, or a case or context
            that comes twice.
    """
    if len(cases) < 2:
        raise ConfigError(f"expected at least two cases (another case's message is a control), got {len(cases)}")
    fitting = Fitting(receiver.model, receiver.tokenizer, answers_end=answers_end, template=receiver.template or None)
    seen: set[str] = set()
    contexts: dict[str, str] = {}
    for case in cases:
        if case.id in seen:
            raise ConfigError(f"expected every case to have an id of its own, got {case.id!r} twice")
        seen.add(case.id)
        twin = contexts.setdefault(case.context, case.id)
        if twin != case.id:
            raise ConfigError(
                f"expected every case to have a context of its own, got that of {twin!r} again in {case.id!r}: "
                "put all questions about one context into one case"
            )
        if not case.questions:
            raise ConfigError(f"expected questions about case {case.id!r}, got none")
        said = fitting.misfit(case)
        if said is not None:
            raise ConfigError(said)


def _require_possible(
    sender: object, receiver: object, hops: int, budgets: Collection[int], repetitions: int, keep: Path | None
) -> None:
    """Refuses ends that are none, and what would be refused when hours of measuring are over."""
    for side, kind, given in (("sender", Sender, sender), ("receiver", Receiver, receiver)):
        if not isinstance(given, kind):
            raise ConfigError(f"expected an ilcp.{kind.__name__} as {side}, got {type(given).__name__}")
    if isinstance(sender, Sender) and isinstance(receiver, Receiver):
        require_caches(sender, receiver, hops=hops, budgets=sorted(budgets))
    if repetitions:
        require_repetitions(repetitions)
    if keep is not None:
        require_writable(keep)
        require_writable(keep.with_name(keep.name + UNFINISHED))


def _lengths(sender: Sender, lengths: Sequence[int] | None) -> list[int]:
    spec = sender.codec.spec
    if spec.reads == "cache":
        return sorted({spec.length(length) for length in lengths or (spec.payload_bytes,)}, reverse=True)
    some = [length for length in LENGTHS if length <= spec.payload_bytes] if is_trainable(sender.codec) else []
    wanted = lengths or spec.prefixes or some or [min(spec.payload_bytes, MAX_LENGTH)]
    return sorted({spec.length(length) for length in wanted}, reverse=True)
