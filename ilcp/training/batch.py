"""Batches of cases: texts for the sender, rows of token ids for the receiver.

::

    cases --Batcher--> Batch: texts (sender), rows "prefix | memory | suffix, answer" (receiver ids)
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ilcp.errors import ConfigError
from ilcp.measure.fitting import Fitting
from ilcp.message.literals import auto, line
from ilcp.models.adapter import LOW_RANK
from ilcp.models.prompt import Layout, answer_ids, layout, pieces
from ilcp.nn.distributed import shard
from ilcp.nn.inference import evaluating
from ilcp.tasks.cases import Case, Question
from ilcp.tasks.telling import TELL, telling
from ilcp.training.facts import Fact, facts_of
from ilcp.training.forget import about, forgetting, secrets
from ilcp.training.hyperparameters import Hyperparameters

__all__ = ["Batch", "Batcher", "Models", "Row", "frozen", "require_fitting"]

REPEAT = "Repeat the text above."  # the question where the memory has to give the whole context back


@dataclass(frozen=True, slots=True)
class Models:
    """The frozen pair that a codec is trained between.

    ``adapter`` is the peft model around ``receiver``, whose low-rank weights are trained, first to read text, later
    along with the codec; None leaves the receiver as it is. ``teacher`` are those weights as the first left them.
    """

    sender: Any
    sender_tokenizer: Any
    receiver: Any
    receiver_tokenizer: Any
    adapter: Any = None
    teacher: tuple[Tensor, ...] = ()

    def adapted(self) -> list[nn.Parameter]:
        """Returns the receiver's parameters that are trained: the adapter's."""
        if self.adapter is None:
            return []
        return [value for name, value in self.adapter.named_parameters() if LOW_RANK in name]

    def with_teacher(self) -> "Models":
        """Returns the same models, which remember the adapter's weights of now."""
        return replace(self, teacher=tuple(parameter.detach().clone() for parameter in self.adapted()))

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Puts the teacher's weights into the adapter for a while: a target must not follow what is trained.

        No gradient may be taken inside.
        """
        learned = self.adapted() if self.teacher else []
        now = [parameter.data for parameter in learned]
        try:
            _put(learned, self.teacher)
            yield
        finally:
            _put(learned, now)


def _put(parameters: Sequence[nn.Parameter], weights: Sequence[Tensor]) -> None:
    """Exchanges the weights without a copy, and without a trace in a graph that was begun with others."""
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.data = weight
    torch.clear_autocast_cache()  # which knows parameters, not what is in them


@dataclass(frozen=True, slots=True)
class Row:
    """One question of one context: which context, the prompt around the memory, and the answer, in receiver ids."""

    context: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    answer: tuple[int, ...]
    question: str
    forgotten: bool = False  # whether the answer is another than the text's


@dataclass(frozen=True, slots=True)
class Batch:
    """The texts of this process's contexts, and the rows that ask about them.

    ``reconstruction`` are the rows that ask for the beginning of the context itself, where the loss wants them.
    ``facts`` holds the words of all facts about a topic, by context and the topic's number; ``told`` is what was said
    about each topic, by context. ``secrets`` are the numbers of the values that the message is not to tell, by context.
    ``count`` is how many contexts all processes have together.
    """

    texts: tuple[str, ...]
    rows: tuple[Row, ...]
    reconstruction: tuple[Row, ...]
    facts: dict[tuple[int, int], frozenset[str]]
    told: tuple[tuple[Fact, ...], ...]
    count: int
    secrets: tuple[tuple[int, ...], ...] = ()


class Batcher:
    """Turns cases into batches; remembers the prompts of questions, and the answers, that come again."""

    def __init__(self, models: Models, hyperparameters: Hyperparameters):
        self.models = models
        self.hyperparameters = hyperparameters
        self._fitting = Fitting(models.receiver, models.receiver_tokenizer, answers_end=hyperparameters.answers_end)
        self._layouts: dict[str, Layout] = {}
        self._answers: dict[str, tuple[int, ...]] = {}
        self._topics = {topic: number for number, topic in enumerate(hyperparameters.topics)}
        self._stated: dict[str, tuple[Fact, ...]] = {}

    def batch(self, cases: Sequence[Case], rng: random.Random, *, whole: bool = False) -> Batch:
        """Returns a batch of cases, ``questions`` of each drawn at random, at most ``per_kind`` of a kind.

        Of several processes each gets its part of the cases, unless it asks for the ``whole``.

        Raises:
            ConfigError: a question has no answer.
        """
        wanted = self.hyperparameters
        hidden = [secrets(case, {t: wanted.forget_values.get(t, ()) for t in wanted.forget}) for case in cases]
        cases = [forgetting(case, wanted.forget, wanted.forget_answer) for case in cases]
        asked = [
            self._asked(case, rng) + self._told_of(case, rng) for case in cases
        ]  # of all: all processes draw alike
        drawn = list(zip(cases, asked, self._literals(cases, rng), hidden, strict=True))
        chosen = drawn if whole else list(shard(drawn))
        own = [case for case, *_ in chosen]
        rows = [self._row(at, each, beside) for at, (_, asks, beside, _) in enumerate(chosen) for each in asks]
        again = wanted.reconstruction_weight > 0
        repeated = [self._reconstruction(at, case) for at, case in enumerate(own)] if again else []
        texts, told = tuple(case.context for case in own), tuple(map(self._said, own))
        kept = tuple(each for *_, each in chosen)
        return Batch(texts, tuple(rows), tuple(repeated), self._facts(own), told, len(cases), kept)

    def _asked(self, case: Case, rng: random.Random) -> list[Question]:
        left = dict(self.hyperparameters.per_kind)
        chosen: list[Question] = []
        for question in rng.sample(case.questions, len(case.questions)):
            if left.get(question.kind) != 0 and len(chosen) < self.hyperparameters.questions:
                chosen.append(question)
                left |= {question.kind: left[question.kind] - 1} if question.kind in left else {}
        return chosen

    def _told_of(self, case: Case, rng: random.Random) -> list[Question]:
        """Returns, for the share of cases that are asked so, the question that asks for all that a case says."""
        wanted = self.hyperparameters
        question = telling(case) if wanted.telling_share and rng.random() < wanted.telling_share else None
        if question is None:
            return []
        tokens = self._fitting.prompt_tokens(case, question, wanted.telling_tokens) + wanted.telling_tokens
        return [question] if tokens <= self._fitting.window_tokens else []  # the reader's stage has the text beside it

    def _literals(self, cases: Sequence[Case], rng: random.Random) -> list[str]:
        """Returns the line of literals beside each memory; empty for those without, and for blank payloads."""
        blanks, share = self.hyperparameters.blanks(len(cases)), self.hyperparameters.literals_share
        lines = []
        for index, case in enumerate(cases):
            literals = auto(case.context) if share and index >= blanks and rng.random() < share else ()
            lines.append(line(literals) if literals else "")
        return lines

    def _facts(self, cases: Sequence[Case]) -> dict[tuple[int, int], frozenset[str]]:
        facts: dict[tuple[int, int], frozenset[str]] = {}
        for index, case in enumerate(cases):
            for topic, words in (fact for question in case.questions for fact in question.facts):
                if topic in self._topics:
                    key = index, self._topics[topic]
                    facts[key] = facts.get(key, frozenset()) | frozenset(re.findall(r"\w+", words))
        return facts

    def _said(self, case: Case) -> tuple[Fact, ...]:
        """Returns the facts of a case; where they stand in it is looked for once."""
        if not self._topics:
            return ()
        if case.id not in self._stated:
            tokenizers = self.models.sender_tokenizer, self.models.receiver_tokenizer
            self._stated[case.id] = tuple(facts_of(case, self._topics, *tokenizers))
        return self._stated[case.id]

    def _row(self, context: int, question: Question, beside: str) -> Row:
        answer = self._answer(question.answer)
        if not answer:
            raise ConfigError(f"expected an answer to {question.text!r}, got an empty one")
        place = self._layout(question.text, beside)
        wanted = self.hyperparameters
        most = wanted.telling_tokens if question.text == TELL else wanted.answer_tokens
        forgotten = about(question, wanted.forget)
        return Row(context, place.prefix, place.suffix, answer[:most], question.text, forgotten)

    def _answer(self, answer: str) -> tuple[int, ...]:
        if answer not in self._answers:
            ends = self.hyperparameters.answers_end
            self._answers[answer] = answer_ids(self.models.receiver_tokenizer, answer, end=ends)
        return self._answers[answer]

    def _reconstruction(self, context: int, case: Case) -> Row:
        ids = answer_ids(self.models.receiver_tokenizer, case.context, end=False)
        place = self._layout(REPEAT)
        return Row(context, place.prefix, place.suffix, ids[: self.hyperparameters.reconstruction_tokens], REPEAT)

    def _layout(self, question: str, beside: str = "") -> Layout:
        if beside:  # hardly ever the same again
            return Layout(*pieces(self.models.receiver_tokenizer, question, [None], lines=[beside]))
        if question not in self._layouts:
            self._layouts[question] = layout(self.models.receiver_tokenizer, question)
        return self._layouts[question]


def require_fitting(models: Models, cases: Iterable[Case], hyperparameters: Hyperparameters) -> None:
    """Refuses a case whose full text, question and answer are more than the receiver can read at once.

    Raises:
        ConfigError: as ``ilcp.measure.fitting.Fitting`` says.
    """
    fitting = Fitting(models.receiver, models.receiver_tokenizer, answers_end=hyperparameters.answers_end)
    for case in cases:
        said = fitting.misfit(case)
        if said is not None:
            raise ConfigError(said)


@contextmanager
def frozen(models: Models) -> Iterator[None]:
    """Puts both models into evaluation mode without gradients, but for the adapter; afterwards all is as it was."""
    learning = {id(parameter) for parameter in models.adapted()}
    parameters = [p for model in (models.sender, models.receiver) for p in model.parameters() if id(p) not in learning]
    wanted = [p.requires_grad for p in parameters]
    attention = models.receiver.config._attn_implementation
    try:
        with evaluating(models.sender), evaluating(models.receiver):
            for parameter in parameters:
                parameter.requires_grad_(False)
            if models.receiver.device.type == "cpu":  # torch's fused attention with a mask is slow backwards on a CPU
                models.receiver.set_attn_implementation("eager")
            yield
    finally:
        models.receiver.set_attn_implementation(attention)
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)
