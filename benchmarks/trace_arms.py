"""One arm of the trace benchmark: what the reader is given, how it is tuned, and what it answers then.

Every arm's reader begins as the same model and is tuned by the same loop, on the same cases in the same order, for as
many steps. What differs is what stands before the question: a trace, a part of one, a control's, or a text.
"""

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ilcp.codec.memory import TextMemory
from ilcp.codec.registry import codec_class
from ilcp.handoff import Receiver
from ilcp.models.adapter import begun_adapter, new_adapter, save_adapter
from ilcp.models.attended import attended
from ilcp.models.prompt import answer_ids
from ilcp.tasks import Case
from ilcp.training.batch import Models, frozen
from ilcp.training.data import Shuffled
from ilcp.training.hyperparameters import Hyperparameters
from ilcp_codecs.kv.compact import compacted
from ilcp_codecs.kv.ends import End
from ilcp_codecs.trace.controls import changed
from ilcp_codecs.trace.learning import Frontier, Learning, learn
from ilcp_codecs.trace.plan import Plan
from ilcp_codecs.trace.rules import Rule
from ilcp_codecs.trace.traces import Traces, Written
from ilcp_codecs.trace.worth import ANSWER_TOKENS, Answered, answered

RANK = 8  # with alpha 16, as DiffMAS has it
BATCH = 16  # questions about texts in one pass
COMPACT = "a tenth of its tokens"
ASKED = 24  # of the commonest questions: what a compacted trace is chosen by


@dataclass(frozen=True)
class Arm:
    """What the reader is given: a trace by ``plan``, changed by ``control``; or a text, where ``text`` makes one.

    A control is ``COMPACT``, or one of ``ilcp_codecs.trace.controls``.

    ``of`` is what the writers read of a case's text. An arm with ``tuned_as`` has the reader of that other arm.
    """

    name: str
    plan: Plan = field(default_factory=Plan)
    of: Callable[[str], str] | None = None
    text: Callable[[str], str] | None = None
    control: str = ""
    tuned_as: str = ""
    tuned: bool = True
    learns_rule: bool = False
    kl_weight: float = 0.0
    states_weight: float = 0.0
    frontier_weight: float = 0.0
    mismatched: bool = False


@dataclass
class Setting:
    """One task on one model: the two copies of it, its cases, and how a reader is tuned."""

    writer: tuple[Any, Any]
    reader: tuple[Any, Any]
    train: Sequence[Case]
    validation: Sequence[Case]
    test: Sequence[Case]
    hyperparameters: Hyperparameters
    folder: Path
    adapter: Path | None = None  # low-rank weights that every reader begins with
    frontier: Frontier | None = None
    everything: Plan | None = None
    save: Path | None = None  # where the first arm's low-rank weights go, for others to begin with


def run(setting: Setting, arms: Sequence[Arm], seed: int, told: Callable[[str, dict[str, Any]], None]) -> None:
    """Tunes and asks one arm after the other; those that share a reader stand behind the one that it was tuned as."""
    end = End.of("writer", *setting.writer)
    groups = [[arm, *(a for a in arms if a.tuned_as == arm.name)] for arm in arms if not arm.tuned_as]
    for first, *others in groups:
        began = time.monotonic()
        models, learning = _prepared(setting, first, end, seed)
        steps = 0
        if first.tuned:
            steps = _learn(setting, models, learning, first.name, seed)
            if setting.save is not None:
                save_adapter(models.adapter, setting.save)
        told(
            first.name,
            _asked(setting, models, learning, first) | {"steps": steps, "s": round(time.monotonic() - began, 1)},
        )
        for arm in others:
            began = time.monotonic()
            own = _learning(setting, arm, end, learning.traces.rule)
            told(arm.name, _asked(setting, models, own, arm) | {"steps": 0, "s": round(time.monotonic() - began, 1)})
        if models.adapter is not None:
            models.adapter.unload()


def _prepared(setting: Setting, arm: Arm, end: End, seed: int) -> tuple[Models, Learning]:
    torch.manual_seed(seed)
    model, tokenizer = setting.reader
    if not arm.tuned and setting.adapter is None:
        models = Models(*setting.writer, model, tokenizer)
    else:
        adapter = new_adapter(model, RANK) if setting.adapter is None else begun_adapter(model, setting.adapter)
        models = Models(*setting.writer, adapter.get_base_model(), tokenizer, adapter)
    return models, _learning(setting, arm, end, Rule(arm.plan.rule, setting.writer[0]))


def _learning(setting: Setting, arm: Arm, end: End, rule: Rule) -> Learning:
    change: Callable[[Written, str], Written] | None = None
    if arm.control == COMPACT:
        asked = Counter(q.text for case in setting.train for q in case.questions)
        change = compacting(end, [text for text, _ in asked.most_common(ASKED)], 0.1)
    elif arm.control and arm.control != "another's steps":
        steps, control = arm.plan.steps, arm.control
        change = lambda written, text: changed(written, steps, control, text)  # noqa: E731
    folder = None if arm.learns_rule or arm.plan.rule == "learned" else setting.folder / "traces"
    traces = Traces(end, arm.plan, rule, folder=folder, change=change, of=arm.of)
    everything = None
    if arm.kl_weight or arm.states_weight:
        plan = setting.everything or replace(arm.plan, steps=0, keep="all")
        everything = Traces(end, plan, rule, folder=setting.folder / "traces")
    return Learning(
        traces,
        text=arm.text,
        everything=everything,
        learns_rule=arm.learns_rule,
        frontier=setting.frontier if arm.frontier_weight else None,
        kl_weight=arm.kl_weight,
        states_weight=arm.states_weight,
        frontier_weight=arm.frontier_weight,
    )


def _learn(setting: Setting, models: Models, learning: Learning, name: str, seed: int) -> int:
    folder = setting.folder / f"run-{seed}-{''.join(c if c.isalnum() else '-' for c in name)}"
    shutil.rmtree(folder, ignore_errors=True)
    source = Shuffled(setting.train, [len(case.context) for case in setting.train], seed)
    wanted = replace(setting.hyperparameters, seed=seed)
    result = learn(models, learning, source, setting.validation, wanted, folder)
    shutil.rmtree(folder, ignore_errors=True)
    return result.steps


@torch.no_grad()
def _asked(setting: Setting, models: Models, learning: Learning, arm: Arm) -> dict[str, Any]:
    """Returns, question by question: the gold answer's nats, what was answered, and how sure the reader was of it."""
    found = _of_text(setting, models, arm) if arm.text is not None else _of_traces(setting, models, learning, arm)
    return {
        "exact": [int(right) for right in found.exact],
        "nats": [round(value, 4) for value in found.nats],
        "perplexity": [round(min(value, 1e6), 4) for value in found.perplexity],
        "answers": found.answers,
        "tokens": found.tokens,
        "bytes": found.bytes,
    }


def _of_traces(setting: Setting, models: Models, learning: Learning, arm: Arm) -> Answered:
    traces, cases = learning.traces, list(setting.test)
    following = dict(zip((case.context for case in cases), [*cases[1:], cases[0]], strict=True))

    def written(given: Sequence[Case]) -> list[Written]:
        of = traces.live if learning.learns_rule else traces.of
        own = of([case.context for case in given])
        if arm.control == "another's steps":
            others = of([following[case.context].context for case in given])
            own = [changed(a, arm.plan.steps, arm.control, other=b) for a, b in zip(own, others, strict=True)]
        return own

    return answered(models, traces.end, cases, written, traces, shift=int(arm.mismatched))


def _of_text(setting: Setting, models: Models, arm: Arm) -> Answered:
    assert arm.text is not None
    tokenizer, cases = models.receiver_tokenizer, list(setting.test)
    receiver = Receiver(models.receiver, tokenizer, codec_class("text-head")(), allow_unmeasured=True)
    given = cases[1:] + cases[:1] if arm.mismatched else cases
    texts = [arm.text(case.context) for case in given]
    pairs = [(TextMemory(text), q) for text, case in zip(texts, cases, strict=True) for q in case.questions]
    with frozen(models):
        scores = receiver.score([(memory, q.text, q.answer) for memory, q in pairs], batch=BATCH)
        answers = receiver.answers([(memory, q.text) for memory, q in pairs], max_new_tokens=ANSWER_TOKENS, batch=BATCH)
        said = [(memory, q.text, answer or " ") for (memory, q), answer in zip(pairs, answers, strict=True)]
        sure = receiver.score(said, batch=BATCH)
    lengths = [max(1, len(answer_ids(tokenizer, answer))) for *_, answer in said]
    return Answered(
        exact=[answer.strip() in q.answers for answer, (_, q) in zip(answers, pairs, strict=True)],
        nats=[score.log_likelihood_nats for score in scores],
        answers=[answer.strip() for answer in answers],
        perplexity=[math.exp(-s.log_likelihood_nats / n) for s, n in zip(sure, lengths, strict=True)],
        tokens=[len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts],
        bytes=[len(text.encode()) for text in texts],
    )


def compacting(end: End, questions: Sequence[str], share: float) -> Callable[[Written, str], Written]:
    """Returns what keeps a share of a trace's tokens, those that the questions look at (``kv-compact``)."""

    def change(written: Written, text: str) -> Written:
        start = len(end.prefix)
        looked = attended(end.model, end.tokenizer, end.prefix, written.kv.at(start), questions, {})
        kept = compacted(written.kv, looked, max(1, round(share * written.kv.tokens)))
        return Written(kept, [kept.tokens])

    return change
