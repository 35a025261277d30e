"""One call: every arm on the same questions, then the time, then the hops."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from ilcp.codec.protocols import Codec
from ilcp.codec.registry import codec_class
from ilcp.errors import DecodeError, EncodeError
from ilcp.handoff import Receiver, Sender
from ilcp.measure.arms import ArmInput, ArmSpec, arm_specs
from ilcp.measure.cost import cost, fan_out
from ilcp.measure.figures import provenance
from ilcp.measure.hops import hop_specs
from ilcp.measure.items import DECIMALS, Arm, Items
from ilcp.measure.report import Report, plain
from ilcp.models.prompt import answer_ids, text_ids
from ilcp.models.reading import window_tokens
from ilcp.tasks.cases import Case, Question

__all__ = ["equal_texts", "load_report", "run", "save_report"]

SPARE_TOKENS = 8  # by which an answer may be longer than the gold one before it is cut off
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
    closed: bool = True,
    lengths: Sequence[int] | None = None,
    texts: Mapping[str, Codec] | None = None,
    arms: Collection[str] | None = None,
    hops: int = 0,
    repetitions: int = REPETITIONS,
    keep: Path | None = None,
    progress: bool = False,
) -> Report:
    """What the hand-off from ``sender`` to ``receiver`` is worth on ``cases``, against everything that it must beat.

    Args:
        cases: documents with questions; see ``thin`` to ask fewer of each.
        task: its name, for the report.
        seed: of the bootstrap and the random payloads.
        closed: whether answers end; a continuation (one question per case, its text empty) does not.
        lengths: payload bytes to measure; None for the codec's own prefixes.
        texts: name -> text codec, each an arm at every length; None for ``equal_texts(sender)``.
        arms: the names of those to measure (see ``ilcp.measure.arms``); None for all.
        hops: how many times a message is handed on, forwarded and re-encoded (0: not measured; needs ``Case.retell``).
        repetitions: of the time measurements (at least 50); 0 for none.
        keep: a file for the report, which holds what was measured so far; a run that was interrupted goes on from it.
            A finished report in its place stays until the new one is finished.
        progress: shows a bar on standard error.

    Raises:
        EncodeError: too few cases, a case named twice, a context that does not fit, or ``keep`` holds another run.
    """
    check(cases, receiver)
    lengths = _lengths(sender, lengths)
    draft = _draft(keep)
    report = _resumed(_empty(sender, cases, task, seed, closed), draft)
    texts = equal_texts(sender) if texts is None else texts
    planned = [*arm_specs(sender, receiver, cases, lengths=lengths, texts=texts, seed=seed)]
    if hops:
        planned += hop_specs(sender, receiver, cases, length=lengths[0], texts=texts, hops=hops)
    planned = [way for way in planned if arms is None or way.name in arms]
    scorer = _Scorer(receiver, cases, report.items, closed)
    for way in track(planned, "arms", console=Console(stderr=True), disable=not progress, transient=True):
        if way.name not in report.arms and not any(note.startswith(f"{way.name}: ") for note in report.notes):
            report = _add(report, way, scorer)
            save_report(report, draft)
    if repetitions and report.cost is None:
        report = _priced(report, sender, receiver, cases, repetitions, progress)
    report = replace(report, complete=True)
    save_report(report, keep)
    if draft is not None and draft != keep:
        draft.unlink(missing_ok=True)
    return report


def _priced(
    report: Report, sender: Sender, receiver: Receiver, cases: Sequence[Case], repetitions: int, progress: bool
) -> Report:
    """With the times, and whether one message serves many calls; both ask questions of the task."""
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


def _empty(sender: Sender, cases: Sequence[Case], task: str, seed: int, closed: bool) -> Report:
    """A report before its first arm."""
    codec = sender.codec
    return Report(
        task=task,
        seed=seed,
        closed=closed,
        codec={"codec_id": codec.trained.codec_id(codec.spec).hex(), **plain(asdict(codec.spec))},
        items=Items.of(cases),
        arms={},
        provenance=provenance(sender=asdict(codec.trained.sender), receiver=asdict(codec.trained.receiver)),
        complete=False,
    )


def equal_texts(sender: Sender, samples: Iterable[str] = ()) -> dict[str, Codec]:
    """The text codecs that a latent of as many bytes must beat.

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


def load_report(path: str | Path) -> Report:
    """The report in a JSON file.

    Raises:
        EncodeError: the file cannot be read, is no report of this version, or holds a figure that was not measured.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise EncodeError(f"expected a readable report, got {path}: {error.strerror}") from error
    except ValueError as error:
        raise EncodeError(f"expected a report as JSON, got something else in {path}: {error}") from error
    try:
        return Report.from_dict(record)
    except EncodeError as error:
        raise EncodeError(f"{path}: {error}") from error


def save_report(report: Report, path: str | Path | None) -> None:
    """Writes the report as JSON, whole or not at all; None is nowhere."""
    if path is None:
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in report.to_dict().items()]
    draft.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    draft.replace(path)


def check(cases: Sequence[Case], receiver: Receiver) -> None:
    """Refuses cases that cannot be measured.

    Raises:
        EncodeError: fewer than two cases, one without questions, a case named twice, or a context over the window.
    """
    if len(cases) < 2:
        raise EncodeError(f"expected at least two cases (another case's message is a control), got {len(cases)}")
    seen: set[str] = set()
    contexts: dict[str, str] = {}
    window = window_tokens(receiver.model)
    for case in cases:
        if case.id in seen:
            raise EncodeError(f"expected every case to have an id of its own, got {case.id!r} twice")
        seen.add(case.id)
        twin = contexts.setdefault(case.context, case.id)
        if twin != case.id:
            raise EncodeError(
                f"expected every case to have a context of its own, got that of {twin!r} again in {case.id!r}: "
                "put all questions about one context into one case"
            )
        if not case.questions:
            raise EncodeError(f"expected questions about case {case.id!r}, got none")
        for question in case.questions:
            ids = len(text_ids(receiver.tokenizer, case.context, question.text))
            room = len(answer_ids(receiver.tokenizer, question.answer)) + SPARE_TOKENS
            if ids + room > window:
                raise EncodeError(
                    f"expected case {case.id!r} to fit into the receiver's window of {window} tokens, got {ids} tokens "
                    f"and {room} for the answer: the full text is the arm that all others are compared with; cut it"
                )


def _lengths(sender: Sender, lengths: Sequence[int] | None) -> list[int]:
    spec = sender.codec.spec
    wanted = lengths or spec.prefixes or [min(spec.payload_bytes, MAX_LENGTH)]
    return sorted({spec.length(length) for length in wanted}, reverse=True)


def _draft(keep: Path | None) -> Path | None:
    """Where an unfinished report is kept: in its own place, or beside the finished one that stands there."""
    if keep is None or not keep.exists() or not load_report(keep).complete:
        return keep
    return keep.with_name(keep.name + ".unfinished")


def _resumed(fresh: Report, keep: Path | None) -> Report:
    """``fresh``, or what an interrupted run of the same measurement left in ``keep``."""
    if keep is None or not keep.exists():
        return fresh
    found = load_report(keep)
    for name, mine, theirs in (
        ("task", fresh.task, found.task),
        ("seed", fresh.seed, found.seed),
        ("questions", fresh.items, found.items),
        ("codec", fresh.codec["codec_id"], found.codec["codec_id"]),
        ("commit", fresh.provenance["commit"], found.provenance["commit"]),
    ):
        if mine != theirs:
            raise EncodeError(
                f"expected an interrupted run of the same {name} in {keep}, got another: remove it or name another file"
            )
    return found


def _add(report: Report, way: ArmSpec, scorer: "_Scorer") -> Report:
    try:
        told = way.make()
    except (DecodeError, EncodeError) as error:
        if isinstance(error, EncodeError) and way.family != "text of equal bytes":
            raise  # a text codec may need more bytes than there are; everything else has to encode
        return replace(report, notes=(*report.notes, f"{way.name}: not measured, the codec refuses it ({error})"))
    return replace(report, arms={**report.arms, way.name: scorer.arm(way, told, report.arms.get("none"))})


class _Scorer:
    """Asks every question in one arm."""

    def __init__(self, receiver: Receiver, cases: Sequence[Case], items: Items, closed: bool):
        self.receiver, self.items, self.closed = receiver, items, closed
        self.asked = [(number, question) for number, case in enumerate(cases) for question in case.questions]
        self.old = [self._given_tokens(question) for _, question in self.asked]

    def arm(self, way: ArmSpec, told: ArmInput, none: Arm | None) -> Arm:
        """The arm's answers; ``none`` says what is answered where a record of answers has nothing to say."""
        if told.answers is None:
            answers, nats, new = self._ask(told)
        else:
            answers, nats, new = self._look_up(told.answers, none)
        return Arm(
            name=way.name,
            family=way.family,
            answers=tuple(answers),
            nats=tuple(nats),
            new_nats=tuple(new),
            payload_bytes=told.payload_bytes,
            wire_bytes=told.wire_bytes,
            rival_of=way.rival_of,
        )

    def _ask(self, told: ArmInput) -> tuple[list[str | None], list[float], list[float]]:
        asked = [(told.memories[number], question.text, question.answer) for number, question in self.asked]
        scores = self.receiver.score(asked, end=self.closed)
        nats = [_kept(sum(score.token_nats)) for score in scores]
        new = [_kept(sum(score.token_nats[old:])) for score, old in zip(scores, self.old, strict=True)]
        return (self._answers(asked, [score.exact for score in scores]) if self.closed else []), nats, new

    def _answers(self, asked: Sequence[tuple[Any, str, str]], exact: Sequence[bool]) -> list[str | None]:
        """The greedy answers; None where it is the gold one. Only what is not exact has to be generated."""
        wrong = [index for index, right in enumerate(exact) if not right]
        longest = max(len(answer_ids(self.receiver.tokenizer, question.answer)) for _, question in self.asked)
        given = self.receiver.answers([asked[index][:2] for index in wrong], max_new_tokens=longest + SPARE_TOKENS)
        answers: list[str | None] = [None] * len(asked)
        for index, answer in zip(wrong, given, strict=True):
            answers[index] = None if answer == asked[index][2] else answer
        return answers

    def _look_up(
        self, answers: Sequence[Mapping[str, str]], none: Arm | None
    ) -> tuple[list[str | None], list[float], list[float]]:
        """Answers out of a record: certain where it has them, as with nothing where not."""
        assert none is not None  # it is the second arm of every run
        right = [answers[number].get(question.text) == question.answer for number, question in self.asked]
        return (
            [None if ok else answer for ok, answer in zip(right, none.answers, strict=True)],
            [0.0 if ok else nats for ok, nats in zip(right, none.nats, strict=True)],
            [0.0 if ok else nats for ok, nats in zip(right, none.new_nats, strict=True)],
        )

    def _given_tokens(self, question: Question) -> int:
        """How many tokens of the answer its given beginning takes."""
        tokenizer = self.receiver.tokenizer
        given, whole = (answer_ids(tokenizer, text, end=False) for text in (question.given, question.answer))
        same = [a == b for a, b in zip(given, whole, strict=False)]
        return same.index(False) if False in same else len(same)


def _kept(value: float) -> float:
    return round(value, DECIMALS) if np.isfinite(value) else value
