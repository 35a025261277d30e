"""``ilcp trace train`` and ``tune``: from one model and cases to a measured reader of traces.

::

    model, twice --writers--> traces on disk --learn--> low-rank weights, and the rule where it learns --> folder
      --> measured on the test cases, with every control, and what the steps bring --> evidence in the folder

A run keeps its checkpoint, its log, its test cases and the traces in ``<out>.run``. One that was stopped goes on with
``resume``.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ilcp.codec.folder import ADAPTER, attach_evidence, load, save
from ilcp.codec.seen import write_seen
from ilcp.errors import ConfigError, EncodeError, Interrupted, StorageError
from ilcp.files import require_writable, settle, write_whole
from ilcp.folders import read_whole
from ilcp.handoff import Sender
from ilcp.identity import ModelIdentity, digest
from ilcp.measure import Report, provenance, run
from ilcp.models.adapter import begun_adapter, new_adapter, require_adapter, save_adapter
from ilcp.models.fingerprint import identify
from ilcp.models.loading import load_model
from ilcp.models.packing import packs
from ilcp.models.prompt import answer_ids, continuation, layout
from ilcp.nn.attention import many_shapes
from ilcp.nn.half import round_to_half
from ilcp.tasks import Case, read_jsonl
from ilcp.tasks.load import own_test
from ilcp.tasks.written import merged, write_jsonl
from ilcp.training.batch import Models
from ilcp.training.card import short_name
from ilcp.training.checkpoint import alone, has_checkpoint
from ilcp.training.data import LEAST, Shuffled, Split, split
from ilcp.training.finish import shows, tell
from ilcp.training.log import LOG
from ilcp.training.loop import Result
from ilcp_codecs.kv.ends import End
from ilcp_codecs.trace.codec import TraceCodec
from ilcp_codecs.trace.config import TraceConfig
from ilcp_codecs.trace.learning import Frontier, Learning, learn
from ilcp_codecs.trace.plan import Plan
from ilcp_codecs.trace.reader import Reader
from ilcp_codecs.trace.rules import Rule
from ilcp_codecs.trace.traces import GIGA, Traces

__all__ = ["TRACES", "Trained", "cases_of", "measure", "prepared", "train", "trained"]

KEPT, TRACES, LOCK = "plan.json", "traces", "run.lock"
CARD = """---
library_name: ilcp
tags:
- ilcp
- kv-cache
---

# {model} reads what its agents left

A codec of ilcp: {agents} read their parts of a text behind one another with {model} as it is, and take {steps} latent
steps each (rule `{rule}`). Its reader, {model} with the low-rank weights in `receiver-adapter`, answers behind their
keys and values. It was made for exactly this model and knows it by its weights.

Trained on {cases} cases in {made} steps of {minutes} minutes, seed {seed}; `log.jsonl` has the curve.

## Limits

- It is for texts and questions like those that it was trained on. What it carries of yours tells
  `ilcp trace measure FOLDER --task FILE`, and whether the *steps* bring anything.
- A trace is as personal as its text: it holds what was read.
"""


@dataclass(frozen=True, slots=True)
class Trained:
    """A reader that was trained, its models, its cases, and the traces that it learned from."""

    codec: TraceCodec
    models: Models
    cases: Split
    traces: Traces
    result: Result


def train(config: TraceConfig, *, resume: bool = False) -> Report:
    """Trains the reader that ``config`` describes, saves it in ``config.out``, measures it, and returns the report.

    Raises:
        ConfigError: the model, the data or the configuration cannot be used, or ``config.out`` or ``config.work`` holds
            something else; the text says what to do.
        TrainingError: a number is not finite.
        StorageError: the disk is full or not to be written to, or a file of the run is damaged.
        MissingExtraError: peft is not installed.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
    """
    config.require_new()
    cases = cases_of(config)
    if has_checkpoint(config.work) != resume:
        got = "one with a checkpoint" if not resume else "none"
        way_out = "pass --resume to go on with it" if not resume else "leave --resume out"
        raise ConfigError(f"expected {'a' if resume else 'no'} run in {config.work}, got {got}: {way_out}")
    require_writable(config.work / KEPT)
    with alone(config.work, LOCK), many_shapes():
        found = trained(config, cases, config.work, resume=resume)
        _save(config, found)
        write_jsonl(own_test(config.out), found.cases.test)
        shutil.rmtree(config.work / TRACES, ignore_errors=True)  # the largest part of it; the test's are written anew
        left = f"the reader is whole in {config.out}, but not measured: 'ilcp measure {config.out} --attach' does so"
        try:
            report = measure(load(config.out), found.models, found.cases.test, task=config.data.name, seed=config.seed)
            attach_evidence(config.out, report.evidence())
        except KeyboardInterrupt as stopped:
            raise Interrupted(left) from stopped
        except BaseException:
            tell(left)
            raise
        return report


def trained(config: TraceConfig, cases: Split, work: Path, *, resume: bool = False) -> Trained:
    """Trains a reader, and saves nothing but the run's own files in ``work``; raises as ``train``."""
    work.mkdir(parents=True, exist_ok=True)
    models, end = prepared(config)
    plan, wanted = config.plan(), config.hyperparameters()
    rule = Rule(plan.rule, models.sender)
    folder = None if config.trains_rule else work / TRACES
    taught = bool(config.kl_weight or config.states_weight)
    limit = int(config.traces_gb * GIGA) // (2 if taught else 1)
    traces = Traces(end, plan, rule, folder=folder, limit_bytes=limit)
    everything = None
    if taught:
        one = Plan(("everything",), 0, "norm", config.prompt)
        everything = Traces(end, one, Rule("norm", models.sender), folder=work / TRACES, limit_bytes=limit)
    _require_room(traces, (*cases.training, *cases.validation, *cases.test))
    _same(config, end.identity, work)
    learning = Learning(
        traces,
        everything=everything,
        learns_rule=config.trains_rule,
        kl_weight=config.kl_weight,
        states_weight=config.states_weight,
        frontier=_frontier(cases, models.sender_tokenizer) if config.frontier_weight else None,
        frontier_weight=config.frontier_weight,
    )
    source = Shuffled(cases.training, [len(case.context) for case in cases.training], config.seed)
    tell(f"{len(cases.training)} cases to learn from, {len(cases.validation)} to watch, {len(cases.test)} to measure")
    result = learn(models, learning, source, cases.validation, wanted, work, resume=resume)
    round_to_half(models.adapted())
    codec = TraceCodec(
        end.identity,
        identify(models.receiver, models.receiver_tokenizer),
        end.shape,
        plan,
        config.carrier,
        rule.tensors() if config.trains_rule else {},
    )
    return Trained(codec, models, cases, traces, result)


def prepared(config: TraceConfig) -> tuple[Models, End]:
    """Returns the model twice, as writers and as reader with its adapter, and the writers' end.

    Raises:
        ConfigError: it cannot be loaded, its keys cannot be turned, or it takes no several prompts at once.
        MissingExtraError: peft is not installed.
    """
    if config.adapter is not None:
        require_adapter(config.adapter)
    writer = load_model(config.model, dtype=config.dtype, device=config.device)
    end = End.of("writer", *writer)
    if not packs(end.model):
        raise ConfigError("expected a model of a family in SUPPORT.md, in eager or sdpa attention, got another")
    reader = load_model(config.model, dtype=config.dtype, device=config.device)
    torch.manual_seed(config.seed)
    if config.adapter is None:
        adapter = new_adapter(reader[0], config.adapter_rank)
    else:
        adapter = begun_adapter(reader[0], config.adapter)
    return Models(*writer, adapter.get_base_model(), reader[1], adapter), end


def measure(
    codec: Any, models: Models, cases: Sequence[Case], *, task: str, seed: int = 0, keep: Path | None = None
) -> Report:
    """Measures a trained reader against its controls; raises as ``ilcp.measure.run``."""
    return run(
        Sender(models.sender, models.sender_tokenizer, codec),
        Reader(models.receiver, models.receiver_tokenizer, codec, allow_unmeasured=True),
        cases,
        task=task,
        seed=seed,
        repetitions=0,
        keep=keep,
        progress=shows(),
    )


def cases_of(config: TraceConfig) -> Split:
    """Returns the cases of a configuration, in three parts; raises ``ConfigError`` where there are too few."""
    cases = merged(read_jsonl(config.data))
    if any(not question.text for case in cases for question in case.questions):
        raise ConfigError(f"expected questions in {config.data}, got continuations: a reader of traces is asked")
    if len(cases) < 10 * LEAST:
        got = f"got {len(cases)} in {config.data}: add cases"
        raise ConfigError(f"expected at least {10 * LEAST} cases with different contexts (a tenth tests), {got}")
    wanted = config.hyperparameters()
    parts = split(cases, validation=wanted.validation_contexts, test=config.test_cases, seed=config.seed)
    if wanted.contexts > len(parts.training):
        raise ConfigError(
            f"expected contexts of at most the {len(parts.training)} cases to learn from, got {wanted.contexts}"
        )
    return parts


def _frontier(cases: Split, tokenizer: Any) -> Frontier:
    """Returns what the steps of each text should hold: of every word its first token that is no space.

    Raises:
        ConfigError: no case says so.
    """
    known = {case.context: case.frontier for case in (*cases.training, *cases.validation)}
    if not any(known.values()):
        raise ConfigError("expected cases with a frontier beside frontier_weight, got none: leave it out")
    words = {word for agents in known.values() for steps in agents for own in steps for word in own}
    ids = {word: _first(tokenizer, word) for word in words}
    return lambda text: [[[ids[word] for word in own] for own in steps] for steps in known.get(text, ())]


def _first(tokenizer: Any, word: str) -> int:
    """Returns the first token of a word behind a space, which may be a token of its own."""
    ids = continuation(tokenizer, f" {word}")[0]
    return next((each for each in ids if tokenizer.decode([each]).strip()), ids[0])


def _require_room(traces: Traces, cases: Sequence[Case]) -> None:
    """Refuses cases whose trace, a question and its answer are more than the model's window."""
    tokenizer, room = traces.end.tokenizer, traces.end.room
    for case in cases:
        longest = max(
            len(layout(tokenizer, q.text).suffix) + len(answer_ids(tokenizer, q.answer)) for q in case.questions
        )
        try:
            tokens = traces.tokens(case.context)
        except EncodeError as error:
            raise ConfigError(f"case {case.id!r}: {error}") from error
        if tokens + longest > room:
            raise ConfigError(
                f"expected traces of at most {room} tokens, questions and answers included, got {tokens} + {longest} "
                f"for case {case.id!r}: shorten it, take fewer steps, or leave it out"
            )


def _same(config: TraceConfig, writer: ModelIdentity, work: Path) -> None:
    """Keeps what began a run, and refuses to go on with another.

    Raises:
        ConfigError: another configuration, model or data began it.
    """
    file = work / KEPT
    data = digest(read_whole(config.data)).hex()
    names = {"data digest": data, "model identity": writer.exact}
    record = json.loads(json.dumps(config.to_dict() | names, default=str))
    for name in ("steps", "minutes"):
        record["training"].pop(name, None)  # may grow
    if has_checkpoint(work) and os.path.exists(file):
        before = json.loads(read_whole(file))
        differs = sorted(name for name in record if before.get(name) != record[name])
        if differs:
            raise ConfigError(
                f"expected the run that {work} holds, got another {', '.join(differs)}: take it back, or choose another"
            )
    write_whole(file, json.dumps(record, indent=2) + "\n")


def _save(config: TraceConfig, found: Trained) -> None:
    codec, result = found.codec, found.result
    made = {
        "plan": config.to_dict() | {"sender": config.model, "receiver": config.model},
        "recipe": config.hyperparameters().to_dict(),
        "cases": {name: len(getattr(found.cases, name)) for name in ("training", "validation", "test")},
        "seed": config.seed,
        "steps": result.steps,
        "minutes": result.minutes,
        "provenance": provenance(sender=codec.trained.sender.exact, receiver=codec.trained.receiver.exact),
    }
    card = CARD.format(
        model=short_name(config.model),
        agents=", ".join(config.agents),
        steps=config.steps,
        rule=config.rule,
        cases=len(found.cases.training),
        made=result.steps,
        minutes=result.minutes,
        seed=config.seed,
    )
    draft = config.work / "codec"
    shutil.rmtree(draft, ignore_errors=True)
    save(codec, draft, card=card, training=json.loads(json.dumps(made, default=str)))
    try:
        write_seen(draft, (case.context for case in (*found.cases.training, *found.cases.validation)))
        shutil.copyfile(config.work / LOG, draft / LOG)
        save_adapter(found.models.adapter, draft / ADAPTER)
        settle(draft)
        if os.path.isdir(config.out):
            config.out.rmdir()
        config.out.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(config.out)
    except OSError as error:
        raise StorageError(f"expected room for the codec in {config.out}, got: {error}; free space") from error
    tell(f"the reader is in {config.out}, not measured yet")
