"""One call: every arm on the same questions, then the time, then the hops."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ilcp.codec.protocols import Codec, is_trainable
from ilcp.codec.registry import codec_class
from ilcp.errors import ConfigError, DecodeError, EncodeError
from ilcp.handoff import Receiver, Sender
from ilcp.inputs import listed
from ilcp.measure.arms import ArmSpec, arm_specs
from ilcp.measure.cost import cost
from ilcp.measure.fanout import fan_out
from ilcp.measure.figures import provenance
from ilcp.measure.files import resumed, save_report, unfinished
from ilcp.measure.hops import hop_specs
from ilcp.measure.items import Items
from ilcp.measure.report import Report, plain
from ilcp.measure.scoring import SPARE_TOKENS, Scorer, longest_answer
from ilcp.measure.verified import verified_specs
from ilcp.models.forward import require_room
from ilcp.models.prompt import text_ids
from ilcp.tasks.cases import Case

__all__ = ["equal_texts", "require_cases", "run"]

LENGTHS = (10, 20, 40, 80)  # bytes: what a learned codec without prefixes is measured at
MAX_LENGTH = 1000  # bytes: a codec without prefixes is measured at its own length up to here
REPETITIONS = 60
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
) -> Report:
    """Measures what the hand-off from ``sender`` to ``receiver`` is worth on ``cases``, beside all that it must beat.

    Args:
        cases: documents with questions; see ``ilcp.tasks.thin`` to ask fewer of each.
        task: its name, for the report.
        seed: of the bootstrap and the random payloads.
        answers_end: false for continuations (one question per case, its text empty), whose answers go on.
        lengths: payload bytes to measure; None for the codec's own prefixes, or the usual ones where it has none.
        texts: name -> text codec, each an arm at every length; None for ``equal_texts(sender)``.
        arms: the names of those to measure (see ``ilcp.measure.arms``); None for all.
        hops: how many times a message is handed on, forwarded and re-encoded (0: not measured; needs ``Case.rewrite``).
        budgets: bytes on the wire for messages that the receiver reads back (see ``ilcp.measure.verified``).
        repetitions: of the time measurements (at least 50); 0 for none.
        keep: a file for the report, from which an interrupted run goes on. A finished one stays until the new one is.
        progress: shows a bar on standard error.

    Raises:
        ConfigError: an argument or a case is not as above, or ``keep`` holds another run.
        StorageError: ``keep`` cannot be written.
    """
    _require_ends(sender, receiver)
    cases = listed(cases, "cases in a list", "case", error=ConfigError)
    require_cases(cases, receiver)
    specs = _chosen(_specs(sender, receiver, cases, _lengths(sender, lengths), texts, seed, hops, budgets), arms)
    draft = unfinished(keep)
    report = resumed(_empty(sender, cases, task, seed, answers_end), draft)
    report = _asked(report, specs, Scorer(receiver, cases, answers_end=answers_end), draft, progress)
    return _finished(_priced(report, sender, receiver, cases, repetitions, progress), keep, draft)


def _finished(report: Report, keep: Path | None, draft: Path | None) -> Report:
    """Keeps the whole report, in the place of its draft."""
    report = replace(report, complete=True)
    save_report(report, keep)
    if draft is not None and draft != keep:
        draft.unlink(missing_ok=True)
    return report


def _specs(
    sender: Sender,
    receiver: Receiver,
    cases: Sequence[Case],
    lengths: Sequence[int],
    texts: Mapping[str, Codec] | None,
    seed: int,
    hops: int,
    budgets: Collection[int],
) -> list[ArmSpec]:
    """Lists all arms that there are."""
    texts = equal_texts(sender) if texts is None else texts
    specs = [*arm_specs(sender, receiver, cases, lengths=lengths, texts=texts, seed=seed)]
    if hops:
        specs += hop_specs(sender, receiver, cases, length=lengths[0], texts=texts, hops=hops)
    return [*specs, *verified_specs(sender, receiver, cases, budgets=budgets, lengths=lengths, texts=texts)]


def _chosen(specs: Sequence[ArmSpec], arms: Collection[str] | None) -> list[ArmSpec]:
    """Returns the arms to measure: all that there are, or those named."""
    known = {spec.name for spec in specs}
    unknown = [] if arms is None else [name for name in arms if name not in known]
    if unknown:
        raise ConfigError(f"expected arms of {', '.join(sorted(known))}, got {', '.join(unknown)}")
    return [spec for spec in specs if arms is None or spec.name in arms]


def _asked(report: Report, specs: Sequence[ArmSpec], scorer: Scorer, draft: Path | None, progress: bool) -> Report:
    """Adds the arms that are not in the report yet; the draft holds each as soon as it is done."""
    for spec in track(specs, "arms", console=Console(stderr=True), disable=not progress, transient=True):
        if spec.name not in report.arms and not any(note.startswith(f"{spec.name}: ") for note in report.notes):
            report = _add(report, spec, scorer)
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
    contexts = [case.context for case in cases]
    questions = list(dict.fromkeys(question.text for case in cases for question in case.questions if question.text))
    if len(questions) < 2:
        why = f"cost, fan-out: not measured, they need two questions of the task, and it has {len(questions)}"
        return replace(report, notes=(*report.notes, why))
    return replace(
        report,
        cost=cost(sender, receiver, contexts, question=questions[0], n=repetitions, progress=progress),
        fan_out=fan_out(receiver, sender.encode(contexts[0]), questions[:ASKED_IN_TURN]),
    )


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
        provenance=provenance(sender=asdict(codec.trained.sender), receiver=asdict(codec.trained.receiver)),
        complete=False,
    )


def equal_texts(sender: Sender, samples: Iterable[str] = ()) -> dict[str, Codec]:
    """Makes the text codecs that a latent of as many bytes must beat.

    Their beginning, their end, zstd (its dictionary trained on ``samples``, where there are any), and arithmetic coding
    under the sender's own language model.
    """
    zstd = codec_class("text-zstd")
    samples = list(samples)
    return {
        "head": codec_class("text-head")(),
        "tail": codec_class("text-tail")(),
        "zstd": zstd.fit(samples) if samples else zstd(),
        "lm": codec_class("text-lm")(sender.model, sender.tokenizer),
    }


def require_cases(cases: Sequence[Case], receiver: Receiver) -> None:
    """Refuses cases that cannot be measured.

    Raises:
        ConfigError: fewer than two cases, one without questions or over the receiver's window, or a case or context
            that comes twice.
    """
    if len(cases) < 2:
        raise ConfigError(f"expected at least two cases (another case's message is a control), got {len(cases)}")
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
        for question in case.questions:
            require_room(
                receiver.model,
                len(text_ids(receiver.tokenizer, case.context, question.text)),
                longest_answer(receiver, [question]) + SPARE_TOKENS,
                what=f"case {case.id!r}",
                way_out="the full text is the arm that all others are compared with; cut it",
                error=ConfigError,
            )


def _require_ends(sender: object, receiver: object) -> None:
    for side, kind, given in (("sender", Sender, sender), ("receiver", Receiver, receiver)):
        if not isinstance(given, kind):
            raise ConfigError(f"expected an ilcp.{kind.__name__} as {side}, got {type(given).__name__}")


def _lengths(sender: Sender, lengths: Sequence[int] | None) -> list[int]:
    spec = sender.codec.spec
    some = [length for length in LENGTHS if length <= spec.payload_bytes] if is_trainable(sender.codec) else []
    wanted = lengths or spec.prefixes or some or [min(spec.payload_bytes, MAX_LENGTH)]
    return sorted({spec.length(length) for length in wanted}, reverse=True)


def _add(report: Report, spec: ArmSpec, scorer: Scorer) -> Report:
    try:
        given = spec.make()
    except (DecodeError, EncodeError, ConfigError) as error:
        if not isinstance(error, DecodeError) and spec.family != "text of equal bytes":
            raise  # a text codec may need more bytes than there are; everything else has to encode
        return replace(report, notes=(*report.notes, f"{spec.name}: not measured, the codec refuses it ({error})"))
    return replace(report, arms={**report.arms, spec.name: scorer.arm(spec, given, report.arms.get("none"))})
