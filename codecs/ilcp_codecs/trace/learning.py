"""Trains the reader of a trace: low-rank weights that answer behind what frozen writers left.

::

    texts --Traces--> memories --reader with its adapter--> cross-entropy of the answers
                                                          + kl_weight * KL(reader behind everything || reader)
                                                          + states_weight * distance to its states there (CODI)
    step states --the model's own head--> frontier_weight * cross-entropy of what the task says they should hold

The loop, its checkpoints and its log are those of every codec (``ilcp.training.loop``). Where the rule has weights and
is trained, traces are written anew in every step, and gradients flow back through the steps into it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.models.forward import PADDING, answer_scores, left_padded
from ilcp.models.reading import depth, tapped
from ilcp.tasks import Case
from ilcp.training.batch import Batch, Models, Row, frozen
from ilcp.training.checkpoint import alone
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.log import Log
from ilcp.training.loop import Result, Run, Source
from ilcp.training.objective import Objective
from ilcp.training.precision import precision
from ilcp.training.signals import deferred_signals
from ilcp.training.validation import Scores, Validation, Validator
from ilcp_codecs.kv.ends import Asked, Behind, Memory
from ilcp_codecs.trace.rules import Rule
from ilcp_codecs.trace.traces import Traces, Written

__all__ = ["Frontier", "Learning", "learn"]

CHUNK = 8  # contexts of a validation in one pass
Frontier = Callable[[str], Sequence[Sequence[Sequence[int]]]]  # text -> for each agent, after each step, token ids


class Learning:
    """What a run of training needs beside its models: the traces, and what is learned of them.

    Args:
        traces: of the plan to learn to read.
        text: what the reader reads in place of a trace, of a case's text: for a pipeline of text agents.
        everything: traces of one agent that reads all, without steps; for ``kl_weight`` and ``states_weight``.
        learns_rule: trains the rule too, through the steps.
        frontier: what each step's state should hold, where the task knows it; needs ``learns_rule``.
    """

    def __init__(
        self,
        traces: Traces,
        *,
        text: Callable[[str], str] | None = None,
        everything: Traces | None = None,
        learns_rule: bool = False,
        frontier: Frontier | None = None,
        kl_weight: float = 0.0,
        states_weight: float = 0.0,
        frontier_weight: float = 0.0,
    ):
        self.traces, self.text, self.everything, self.frontier = traces, text, everything, frontier
        self.learns_rule = learns_rule
        self.kl_weight, self.states_weight, self.frontier_weight = kl_weight, states_weight, frontier_weight


def learn(
    models: Models,
    learning: Learning,
    source: Source,
    validation: Sequence[Case],
    hyperparameters: Hyperparameters,
    folder: Path,
    *,
    resume: bool = False,
) -> Result:
    """Trains the adapter, and the rule where it learns; checkpoints and a log go to ``folder``.

    Raises:
        ConfigError, StorageError, TrainingError, Interrupted: as ``ilcp.training.fit``.
    """
    network = _Trained(learning.traces.rule if learning.learns_rule else None)
    run = _Reading(models, learning, hyperparameters, folder, network)
    with alone(run.folder), frozen(models):
        run.resumed(resume)
        validator = _Watching(models, validation, hyperparameters, run)
        with deferred_signals() as interrupted:
            return run.go(source, partial(validator.measure, network), interrupted)


class _Trained(nn.Module):
    """What a run trains beside the adapter: the rule, or nothing."""

    layers = (0,)

    def __init__(self, rule: Rule | None):
        super().__init__()
        self.rule = rule


class _Reading(Run):
    """A run that reads traces."""

    what = "learning to read traces"

    def __init__(
        self, models: Models, learning: Learning, hyperparameters: Hyperparameters, folder: Path, network: nn.Module
    ):
        super().__init__(network, models, hyperparameters, folder, None, None, Log(folder))
        self.objective: _TraceObjective = _TraceObjective(models, hyperparameters, self.reader, clock=self.clock)
        self.objective.begin(learning)

    def _receiver_pass_s(self, batch: Batch) -> float:
        return 0.0


class _TraceObjective(Objective):
    """The terms of the loss."""

    learning: Learning
    behind: Behind

    def begin(self, learning: Learning) -> None:
        """Takes what is learned, and the reader's end."""
        self.learning = learning
        end = learning.traces.end
        self.behind = Behind(replace(end, model=self.models.receiver))

    def terms(self, network: Any, batch: Batch, step: int = 0, done: float = 0.0) -> dict[str, Tensor]:
        """Computes the terms, and ``"loss"``, their weighted sum."""
        learning, asked = self.learning, by_context(batch.rows, len(batch.texts))
        if learning.text is not None:
            read = replace(batch, texts=tuple(map(learning.text, batch.texts)))
            with self.clock("receiver"), precision(self.models.receiver.device, self.hyperparameters):
                loss = self.reading(read, read.rows)
            return {"cross_entropy": loss, "loss": loss}
        with self.clock("sender"):
            made = self._written(batch.texts)
            memories = [each.memory(learning.traces.plan) for each in made]
        flat = [row.answer for row in batch.rows]
        labels = torch.tensor([token for answer in flat for token in answer], device=self.models.receiver.device)
        terms: dict[str, Tensor] = {}
        with self.clock("receiver"), precision(self.models.receiver.device, self.hyperparameters):
            states: list[Tensor] = []
            logits = self._logits(memories, asked, states)
            terms["cross_entropy"] = F.cross_entropy(logits, labels)
            loss = terms["cross_entropy"]
            if learning.everything is not None and (learning.kl_weight or learning.states_weight):
                with torch.no_grad():
                    own: list[Tensor] = []
                    wanted = self._logits(learning.everything.memories(batch.texts), asked, own)
                terms["kl"] = F.kl_div(
                    logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"
                )
                apart = [(a - b).abs().mean() / b.std().clamp(min=1e-6) for a, b in zip(states, own, strict=True)]
                terms["states"] = torch.stack(apart).mean() if apart else torch.zeros(())
                loss = loss + learning.kl_weight * terms["kl"] + learning.states_weight * terms["states"]
            if learning.frontier is not None and learning.frontier_weight:
                terms["frontier"] = self._frontier(batch.texts, made)
                loss = loss + learning.frontier_weight * terms["frontier"]
        return terms | {"loss": loss}

    def _written(self, texts: Sequence[str]) -> list[Written]:
        traces = self.learning.traces
        return traces.live(texts) if self.learning.learns_rule else traces.of(texts)

    def _logits(self, memories: Sequence[Memory], asked: Sequence[Sequence[Asked]], states: list[Tensor]) -> Tensor:
        """Returns the logits of all answers in turn; ``states`` gets those of each layer where an answer begins."""
        if not self.learning.states_weight:
            return self.behind.logits(memories, asked)
        model = self.models.receiver
        kept: dict[int, Tensor] = {}
        layers = range(1, depth(model) + 1)
        with tapped(model, layers, kept.__setitem__):
            logits = self.behind.logits(memories, asked)
        packed = self.behind.packed
        assert packed is not None
        lengths = torch.tensor([len(answer) for own in asked for _, answer in own], device=packed.at.device)
        begins = packed.at.gather(1, (packed.at.shape[1] - lengths)[:, None])[:, 0]
        states += [kept[place][:, -packed.kept :][packed.owner, begins] for place in sorted(kept)]
        return logits

    def _frontier(self, texts: Sequence[str], made: Sequence[Written]) -> Tensor:
        """Computes the cross-entropy from what each step's state says to the words that it should hold, all alike."""
        assert self.learning.frontier is not None
        states, wanted = [], []
        for text, own in zip(texts, made, strict=True):
            for agent, known in enumerate(self.learning.frontier(text)):
                for step, tokens in enumerate(known[: len(own.states[agent]) if own.states else 0]):
                    if tokens:
                        states.append(own.states[agent][step])
                        wanted.append(list(tokens))
        if not states:
            return torch.zeros((), device=self.models.receiver.device)
        head = self.learning.traces.end.model.get_output_embeddings()
        said = head(torch.stack(states)).float().log_softmax(-1)
        return -torch.stack([row[tokens].mean() for row, tokens in zip(said, wanted, strict=True)]).mean()


class _Watching(Validator):
    """Measures the reader behind traces, another case's, and nothing."""

    def __init__(self, models: Models, cases: Sequence[Case], hyperparameters: Hyperparameters, run: _Reading):
        super().__init__(models, cases[: hyperparameters.validation_contexts], hyperparameters, run.reader)
        self.run = run

    @torch.no_grad()
    def measure(self, network: nn.Module) -> Validation:
        """Measures, and leaves what was trained in evaluation mode."""
        network.eval()
        learning, texts = self.run.objective.learning, self.batch.texts
        scores = {"none": self._text([""] * len(self.batch.rows))}
        if learning.text is not None:
            read = [learning.text(text) for text in texts]
            for arm, given in (("mismatched", read[-1:] + read[:-1]), ("message", read)):
                scores[arm] = self._text([given[row.context] for row in self.batch.rows])
            return self._validation(scores, "message")
        parts = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
        memories = [one for part in parts for one in _of(learning, part)]
        scores["mismatched"] = self._behind(memories[-1:] + memories[:-1])
        scores["message"] = self._behind(memories)
        return self._validation(scores, "message")

    def _behind(self, memories: Sequence[Memory]) -> Scores:
        behind, rows = self.run.objective.behind, self.batch.rows
        found: list[tuple[list[float], bool]] = []
        asked = by_context(rows, len(memories))
        for start in range(0, len(memories), CHUNK):
            own = slice(start, start + CHUNK)
            with precision(self.models.receiver.device, self.hyperparameters):
                logits = behind.logits(memories[own], asked[own])
            found += scored(logits, [answer for each in asked[own] for _, answer in each])
        return Scores([sum(nats) for nats, _ in found], [exact for _, exact in found])


def _of(learning: Learning, texts: Sequence[str]) -> list[Memory]:
    traces = learning.traces
    return [each.memory(traces.plan) for each in traces.live(texts)] if learning.learns_rule else traces.memories(texts)


def by_context(rows: Sequence[Row], contexts: int) -> list[list[Asked]]:
    """Returns what is asked about each context, in the rows' order."""
    asked: list[list[Asked]] = [[] for _ in range(contexts)]
    for row in rows:
        asked[row.context].append((row.suffix, row.answer))
    return asked


def scored(logits: Tensor, answers: Sequence[Sequence[int]]) -> list[tuple[list[float], bool]]:
    """Returns of each answer its tokens' log-likelihoods, and whether greedy decoding gives it.

    Args:
        logits: ``"tokens vocabulary"`` of all answers in turn, as ``Behind.logits`` gives them.
    """
    labels = left_padded(answers).to(logits.device)
    padded = logits.new_zeros(*labels.shape, logits.shape[-1])
    padded[labels != PADDING] = logits
    return answer_scores(padded, labels)
