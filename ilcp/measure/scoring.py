"""Questions asked of a receiver: what it answers, and the log-likelihoods of the gold answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ilcp.codec.memory import Memory
from ilcp.handoff import Receiver
from ilcp.handoff.answers import Score
from ilcp.measure.arms import ArmInput, ArmSpec
from ilcp.measure.fitting import Fitting
from ilcp.measure.items import DECIMALS, Arm
from ilcp.models.prompt import answer_ids
from ilcp.tasks.cases import Case, Question

__all__ = ["Answers", "Scorer"]

BATCH, BATCH_ON_GPU = 64, 512  # prompts in a pass at most; on a GPU a pass of few takes as long as one of many


@dataclass(frozen=True)
class Answers:
    """One entry per question, as ``Arm`` keeps them."""

    answers: tuple[str | None, ...]
    nats: tuple[float, ...]
    new_nats: tuple[float, ...]


class Scorer:
    """Asks every question of the cases.

    ``answers_end`` says whether answers end (questions) or go on (continuations: only their log-likelihood is taken).
    """

    def __init__(self, receiver: Receiver, cases: Sequence[Case], *, answers_end: bool = True):
        self.receiver, self.answers_end = receiver, answers_end
        self.batch = BATCH_ON_GPU if receiver.model.device.type == "cuda" else BATCH
        self.asked = [(number, question) for number, case in enumerate(cases) for question in case.questions]
        self._given = [self._given_tokens(question) for _, question in self.asked]
        self._rooms = self._answer_rooms(cases) if answers_end else []

    def arm(self, spec: ArmSpec, given: ArmInput, none: Arm | None) -> Arm:
        """Returns the arm's answers; those that ``given`` stores need ``none``, as ``stored`` says."""
        if given.answers is None:
            found = self.ask(given.memories)
        else:
            assert none is not None  # it is the second arm of every run
            found = self.stored(given.answers, none)
        return Arm(
            name=spec.name,
            family=spec.family,
            **vars(found),
            payload_bytes=given.payload_bytes,
            wire_bytes=given.wire_bytes,
            rival_of=spec.rival_of,
        )

    def ask(self, memories: Sequence[Memory | None]) -> Answers:
        """Asks the receiver, with one memory for each case; where they say so (``at_once``), of a few cases at a time.

        Raises:
            EncodeError: as ``Receiver.score``.
        """
        most = getattr(memories, "at_once", len(memories))
        found: list[Score] = []
        answers: list[str | None] = []
        for first in range(0, len(memories), most):
            scores, said = self._ask(memories, range(first, min(first + most, len(memories))))
            found += scores
            answers += said
        nats = [_kept(sum(score.token_nats)) for score in found]
        new = [_kept(sum(score.token_nats[given:])) for score, given in zip(found, self._given, strict=True)]
        return Answers(tuple(answers), tuple(nats), tuple(new))

    def _ask(self, memories: Sequence[Memory | None], numbers: range) -> tuple[Sequence[Score], Sequence[str | None]]:
        """Asks about the cases of these numbers, whose memories are let go with this call."""
        held = {number: memories[number] for number in numbers}
        indices = [index for index, (number, _) in enumerate(self.asked) if number in held]
        about = [self.asked[index] for index in indices]
        asked = [(held[number], question.text, question.answer) for number, question in about]
        scores = self.receiver.score(asked, end=self.answers_end, batch=self.batch)
        return scores, self._greedy(asked, [score.exact for score in scores], indices) if self.answers_end else []

    def stored(self, answers: Sequence[Mapping[str, str]], none: Arm) -> Answers:
        """Scores answers stored in the payload; falls back to the ``none`` arm where it stores none that is right."""
        right = [answers[number].get(question.text) in question.answers for number, question in self.asked]
        return Answers(
            tuple(None if ok else answer for ok, answer in zip(right, none.answers, strict=True)),
            tuple(0.0 if ok else nats for ok, nats in zip(right, none.nats, strict=True)),
            tuple(0.0 if ok else nats for ok, nats in zip(right, none.new_nats, strict=True)),
        )

    def _greedy(
        self, asked: Sequence[tuple[Any, str, str]], exact: Sequence[bool], indices: Sequence[int]
    ) -> list[str | None]:
        """Returns the greedy answers to the questions of these ``indices``, None where it is the gold one.

        Only what is not exact has to be generated.
        """
        wrong = [index for index, right in enumerate(exact) if not right]
        rooms = [self._rooms[index] for index in indices]
        answers: list[str | None] = [None] * len(asked)
        for room in sorted({rooms[index] for index in wrong}):
            these = [index for index in wrong if rooms[index] == room]
            prompts = [asked[index][:2] for index in these]
            given = self.receiver.answers(prompts, max_new_tokens=room, batch=self.batch)
            for index, answer in zip(these, given, strict=True):
                answers[index] = None if answer == asked[index][2] else answer
        return answers

    def _answer_rooms(self, cases: Sequence[Case]) -> list[int]:
        """Returns how many tokens each answer may have: as any of them, or its own where the text leaves no more."""
        receiver = self.receiver
        fitting = Fitting(receiver.model, receiver.tokenizer, template=receiver.template)
        longest = max(fitting.answer_room(question) for _, question in self.asked)
        prompts = (fitting.prompt_tokens(cases[number], question, longest) for number, question in self.asked)
        return [
            longest if tokens + longest <= fitting.window_tokens else fitting.answer_room(question)
            for tokens, (_, question) in zip(prompts, self.asked, strict=True)
        ]

    def _given_tokens(self, question: Question) -> int:
        """Counts the tokens of the answer that its given beginning takes."""
        tokenizer = self.receiver.tokenizer
        given, whole = (answer_ids(tokenizer, text, end=False) for text in (question.given, question.answer))
        same = [a == b for a, b in zip(given, whole, strict=False)]
        return same.index(False) if False in same else len(same)


def _kept(value: float) -> float:
    return round(value, DECIMALS) if np.isfinite(value) else value
