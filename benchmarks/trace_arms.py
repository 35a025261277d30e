"""One arm of the trace benchmark: what the reader is given, how it is tuned, and what it answers then.

Every arm's reader begins as the same model and is tuned by the same loop, on the same cases in the same order, for as
many steps. What differs is what stands before the question: a trace, a part of one, a control's, or a text.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ilcp.codec.memory import TextMemory
from ilcp.codec.registry import codec_class
from ilcp.handoff import Receiver
from ilcp.models.adapter import begun_adapter, new_adapter, save_adapter
from ilcp.models.generate_options import end_ids
from ilcp.models.prompt import answer_ids, layout
from ilcp.tasks import Case
from ilcp.training.batch import Models, frozen
from ilcp.training.data import Shuffled
from ilcp.training.hyperparameters import Hyperparameters
from ilcp_codecs.kv.ends import Behind, End
from ilcp_codecs.trace.controls import changed
from ilcp_codecs.trace.learning import Frontier, Learning, learn, scored
from ilcp_codecs.trace.plan import Plan
from ilcp_codecs.trace.rules import Rule
from ilcp_codecs.trace.traces import Traces, Written

RANK = 8  # with alpha 16, as DiffMAS has it
ANSWER_TOKENS = 16
CHUNK = 8  # cases in one pass


@dataclass(frozen=True)
class Arm:
    """What the reader is given: a trace by ``plan``, changed by ``control``; or a text, where ``text`` makes one.

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
    change: Callable[[Written], Written] | None = None
    if arm.control and arm.control != "another's steps":
        change = partial(changed, steps=arm.plan.steps, control=arm.control)
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
    asker = _of_text if arm.text is not None else _of_traces
    with frozen(models):
        found = asker(setting, models, learning, arm)
    questions = [(number, question) for number, case in enumerate(setting.test) for question in case.questions]
    exact = [answer in question.answers for answer, (_, question) in zip(found["answers"], questions, strict=True)]
    return {
        "exact": [int(right) for right in exact],
        "nats": [round(value, 4) for value in found["nats"]],
        "perplexity": [round(min(value, 1e6), 4) for value in found["perplexity"]],
        "answers": found["answers"],
        "tokens": found["tokens"],
        "bytes": found["bytes"],
    }


def _of_traces(setting: Setting, models: Models, learning: Learning, arm: Arm) -> dict[str, Any]:
    end = learning.traces.end
    tokenizer = models.receiver_tokenizer
    behind = Behind(replace(end, model=models.receiver))
    found: dict[str, Any] = {"nats": [], "answers": [], "perplexity": [], "tokens": [], "bytes": []}
    cases = list(setting.test)
    for start in range(0, len(cases), CHUNK):
        part = cases[start : start + CHUNK]
        given = [cases[(start + n + 1) % len(cases)] for n in range(len(part))] if arm.mismatched else part
        texts = [case.context for case in given]
        made = learning.traces.live(texts) if learning.learns_rule else learning.traces.of(texts)
        if arm.control == "another's steps":
            others = [cases[(start + n + 1) % len(cases)].context for n in range(len(part))]
            theirs = learning.traces.live(others) if learning.learns_rule else learning.traces.of(others)
            made = [changed(a, arm.plan.steps, arm.control, other=b) for a, b in zip(made, theirs, strict=True)]
        memories = [each.memory(arm.plan) for each in made]
        asked = [
            [(layout(tokenizer, q.text).suffix, answer_ids(tokenizer, q.answer)) for q in case.questions]
            for case in part
        ]
        gold = scored(behind.logits(memories, asked), [answer for own in asked for _, answer in own])
        found["nats"] += [sum(nats) for nats, _ in gold]
        ends = end_ids(models.receiver)
        said = behind.answers(memories, [[suffix for suffix, _ in own] for own in asked], ends, ANSWER_TOKENS)
        again = iter(said)
        decoded = [[(suffix, next(again)) for suffix, _ in own] for own in asked]
        sure = scored(behind.logits(memories, decoded), said)
        found["perplexity"] += [math.exp(-sum(nats) / len(nats)) for nats, _ in sure]
        found["answers"] += [
            tokenizer.decode([t for t in ids if t not in ends], skip_special_tokens=True).strip() for ids in said
        ]
        found["tokens"] += [tokens for _, tokens in memories]
        found["bytes"] += [sum(k.nbytes + v.nbytes for k, v in pairs) for pairs, _ in memories]
    return found


def _of_text(setting: Setting, models: Models, learning: Learning, arm: Arm) -> dict[str, Any]:
    assert arm.text is not None
    tokenizer = models.receiver_tokenizer
    receiver = Receiver(models.receiver, tokenizer, codec_class("text-head")(), allow_unmeasured=True)
    cases = list(setting.test)
    given = cases[1:] + cases[:1] if arm.mismatched else cases
    texts = [arm.text(case.context) for case in given]
    pairs = [(TextMemory(text), q) for text, case in zip(texts, cases, strict=True) for q in case.questions]
    scores = receiver.score([(memory, q.text, q.answer) for memory, q in pairs], batch=16)
    answers = receiver.answers([(memory, q.text) for memory, q in pairs], max_new_tokens=ANSWER_TOKENS, batch=16)
    said = [answer or " " for answer in answers]
    sure = receiver.score([(memory, q.text, answer) for (memory, q), answer in zip(pairs, said, strict=True)], batch=16)
    lengths = [max(1, len(answer_ids(tokenizer, answer))) for answer in said]
    return {
        "nats": [score.log_likelihood_nats for score in scores],
        "answers": [answer.strip() for answer in answers],
        "perplexity": [math.exp(-s.log_likelihood_nats / n) for s, n in zip(sure, lengths, strict=True)],
        "tokens": [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts],
        "bytes": [len(text.encode()) for text in texts],
    }
