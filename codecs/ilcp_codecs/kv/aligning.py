"""Finds the map from one model's caches to another's: in closed form first, then through the receiver.

::

    texts, read by both --tokens paired by where they end--> ridge of each receiver's layer on some of the sender's
    cases  --sender's cache, mapped--> receiver --KL from what it says behind its own cache--> the map, by gradient

The closed form (ridge of un-rotated keys and values) brings most of what the text does for likelihood, and few facts;
the second step brings more of them (``benchmarks/README.md``). It works in the coordinates in which the sender's
features are uncorrelated and of unit spread, where one learning rate suits all of them.
"""

import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.codec.keys_values import KeysValues
from ilcp.errors import ConfigError, TrainingError
from ilcp.inputs import listed, require_text
from ilcp.models.packing import packs
from ilcp.models.prompt import answer_ids, continuation, layout
from ilcp.tasks import Case
from ilcp_codecs.kv.aligned import AlignedCodec, Ends, applied, features, width_of, windowless
from ilcp_codecs.kv.codecs import dtype_name
from ilcp_codecs.kv.container import Layer
from ilcp_codecs.kv.ends import Asked, Behind, End
from ilcp_codecs.kv.ridge import LinearMap, Sums

__all__ = ["LEARNING_RATE", "Aligner", "Step"]

MOST_FEATURES = 1536  # of the sender's a token, for each layer of the receiver: more need more texts and bring little
LEAST_ROWS, AIMED_ROWS = 3, 8  # tokens read for each feature: with fewer the map is these texts' own
QUESTIONS = 8  # of each case in a step, at most
PASS_CHARACTERS = 4000  # of texts, questions and answers side by side, the longest counted for each: of one pass
LEARNING_RATE, LAST_RATE, WARM_UP = 2e-3, 0.05, 20  # the last as a share of the first; steps
MOST_TOKENS = 1024  # of a text that is fitted to
SPARE = 32  # tokens by which a prompt may be longer than its parts, and an answer than the right one

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """What the second step says of itself: steps done, seconds spent, and the mean KL in nats since it last did."""

    steps: int
    seconds: float
    kl: float


class Aligner:
    """Finds a map between two loaded models, which stay as they are.

    Args:
        tokens: the most that a cache may stand for; None for what both windows hold behind what a prompt begins with,
            and, where all the sender's layers have sliding windows, what these hold.

    Raises:
        ConfigError: one of the models cannot be identified, its keys cannot be turned (RoPE), its tokenizer does not
            say where tokens end, or they hold fewer tokens; or the receiver takes no several prompts at once.
    """

    def __init__(
        self, sender: Any, sender_tokenizer: Any, receiver: Any, receiver_tokenizer: Any, *, tokens: int | None = None
    ):
        self.sender = End.of("sender", sender, sender_tokenizer)
        self.receiver = End.of("receiver", receiver, receiver_tokenizer)
        if not packs(self.receiver.model):
            raise ConfigError("expected a receiver of a family in SUPPORT.md, in eager or sdpa attention, got another")
        most = min(self.sender.room, self.receiver.room)
        wanted = most if tokens is None else tokens
        self.sources = _sources(self.sender.shape.layers, self.receiver.shape.layers, wanted)
        held = [window - 1 for own in self.sources for one in own if (window := self.sender.shape.layers[one].window)]
        most = min([most, *held])
        if tokens is not None and (type(tokens) is not int or not 1 <= tokens <= most):
            raise ConfigError(f"expected tokens from 1 to {most}, what both windows hold, got {tokens!r}")
        self.tokens = min(most, wanted)
        self._maps: list[LinearMap] = []

    def holds(self, case: Case) -> bool:
        """Says whether the codec takes the case's text, and the receiver its memory or itself and every question."""
        own, others = (len(continuation(end.tokenizer, case.context)[0]) for end in (self.sender, self.receiver))
        asked = [self._asked(question.text, question.answer) for question in case.questions]
        longest = max((len(suffix) + len(answer) for suffix, answer in asked), default=0)
        return 0 < own <= self.tokens and others > 0 and max(own, others) + longest + SPARE <= self.receiver.room

    def _asked(self, question: str, answer: str) -> Asked:
        """Returns ids of what stands behind the memory, and of the answer, which ends where a question has words."""
        tokenizer = self.receiver.tokenizer
        return layout(tokenizer, question).suffix, answer_ids(tokenizer, answer, end=bool(question))

    def fit(self, texts: Iterable[str]) -> None:
        """Finds the map in closed form.

        Args:
            texts: such as will be handed over, of which both models read up to 1,024 tokens.

        Raises:
            ConfigError: one of them is no text; a tokenizer does not say where its tokens end; or there are fewer than
                three tokens for each feature that is mapped.
        """
        sums = [Sums() for _ in self.sources]
        given = listed(texts, "texts in a list", "text", error=ConfigError)
        for part in _passes([require_text(text, f"text {number}") for number, text in enumerate(given)], len):
            for (own, ends), (other, others) in zip(*self._read(part, MOST_TOKENS), strict=True):
                pairs = _paired(ends, others)
                for layer, (one, sources) in enumerate(zip(sums, self.sources, strict=True)):
                    gone = other.tokens - other.keys[layer].shape[1]  # out of the layer's window
                    here = torch.tensor([pair for pair in pairs if pair[1] >= gone], dtype=torch.long).view(-1, 2)
                    one.add(features(own, sources)[here[:, 0]], features(other, [layer])[here[:, 1] - gone])
        needed = max(width_of([self.sender.shape.layers[one] for one in own]) for own in self.sources)
        rows = min(one.rows for one in sums)
        if rows < LEAST_ROWS * needed:
            raise ConfigError(
                f"expected texts of {LEAST_ROWS * needed} tokens or more in all, better {AIMED_ROWS * needed}, to fit "
                f"{needed} features, got {rows}: give more texts; with fewer the map is these texts' own"
            )
        self._maps = [one.map() for one in sums]

    def tune(
        self,
        cases: Sequence[Case],
        *,
        minutes: float,
        steps: int | None = None,
        learning_rate: float | None = None,
        seed: int = 0,
        every: int = 25,
        told: Callable[[Step], None] = lambda step: None,
    ) -> int:
        """Moves the map by gradient until the receiver says behind it what it says behind its own cache.

        Args:
            cases: texts with questions, or with what comes next (questions without words); those that are too long
                (``holds``) are left out.
            minutes: it takes at most; the learning rate falls to its end.
            steps: it takes at most, where that comes first.
            learning_rate: at its beginning, None for 0.002; a lower one where the KL rises.
            every: so many steps ``told`` is called, and at the end; what that takes does not count.

        Returns:
            The number of steps.

        Raises:
            ConfigError: nothing was fitted, or no case is left; or a number is impossible.
            TrainingError: the receiver says what is no number; the map stays as it was before that step.
        """
        self._require_fitted()
        if not 0 < minutes < float("inf") or (steps is not None and steps < 1) or every < 1:
            raise ConfigError(f"expected minutes, steps and every above 0, got {minutes}, {steps} and {every}")
        learning_rate = LEARNING_RATE if learning_rate is None else learning_rate
        if not 0 < learning_rate < 1:
            raise ConfigError(f"expected a learning rate between 0 and 1, got {learning_rate!r}")
        given = listed(cases, "cases in a list", "case", error=ConfigError)
        held = [case for case in given if isinstance(case, Case) and case.questions and self.holds(case)]
        if not held:
            raise ConfigError(f"expected a case with questions that the codec holds, got {len(given)} of which none is")
        from ilcp.training.batch import Models, frozen

        models = Models(self.sender.model, self.sender.tokenizer, self.receiver.model, self.receiver.tokenizer)
        with frozen(models):
            most = 60 * minutes, steps or sys.maxsize
            return self._tuned(held, most, learning_rate, random.Random(seed), every, told)

    def _tuned(
        self,
        cases: Sequence[Case],
        most: tuple[float, int],
        rate: float,
        drawn: random.Random,
        every: int,
        told: Callable[[Step], None],
    ) -> int:
        """Tunes for at most so many seconds and steps."""
        receiver = Behind(self.receiver)
        parameters = [parameter for one in self._maps for parameter in (one.weight, one.bias)]
        optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        begun, steps, seen = time.monotonic(), 0, list[float]()
        passes: list[list[Case]] = []
        try:
            while (share := max((time.monotonic() - begun) / most[0], steps / most[1])) < 1:
                for group in optimiser.param_groups:
                    group["lr"] = rate * min(1.0, (steps + 1) / WARM_UP) * max(LAST_RATE, 1 - share)
                passes = passes or _passes(drawn.sample(cases, len(cases)), _characters, drawn)
                loss = self._loss(passes.pop(), receiver, drawn)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(parameters, 1.0)
                if not bool(loss.isfinite() and norm.isfinite()):
                    got = f"got {loss.item()} in step {steps + 1}"
                    raise TrainingError(f"expected a finite loss, {got}: take a lower learning rate, or float32")
                optimiser.step()
                optimiser.zero_grad()
                steps += 1
                seen.append(loss.item())
                if steps % every == 0:
                    now = time.monotonic()
                    told(Step(steps, now - begun, fmean(seen)))
                    begun, seen = begun + time.monotonic() - now, []
        finally:
            if seen:
                told(Step(steps, time.monotonic() - begun, fmean(seen)))
        return steps

    def codec(self) -> AlignedCodec:
        """Returns the codec of the map as it is.

        Raises:
            ConfigError: nothing was fitted.
        """
        self._require_fitted()
        sender, receiver = self.sender, self.receiver
        reads, gives = (msgspec.structs.replace(end.shape, tokens=self.tokens) for end in (sender, receiver))
        ends = Ends(sender.identity, receiver.identity, reads, gives, dtype_name(receiver.model.dtype))
        tensors: dict[str, Tensor] = {}
        for number, one in enumerate(self._maps):
            tensors[f"weight.{number}"], tensors[f"bias.{number}"] = one.folded()
        return AlignedCodec(ends, self.sources, tensors)

    def _require_fitted(self) -> None:
        if not self._maps:
            raise ConfigError("expected a map that was fitted, got none: call fit first")

    def _read(self, texts: Sequence[str], most: int) -> tuple[list[tuple[KeysValues, list[int]]], ...]:
        """Returns what both models read of texts: the receiver no more than the sender."""
        own = self.sender.read(texts, min(most, self.tokens))
        same = [text[: ends[-1]] for text, (_, ends) in zip(texts, own, strict=True)]
        return own, self.receiver.read(same, self.receiver.room)

    def _loss(self, cases: Sequence[Case], receiver: Behind, drawn: random.Random) -> Tensor:
        """Returns the mean KL over the tokens of the cases' answers."""
        chosen = [drawn.sample(case.questions, min(QUESTIONS, len(case.questions))) for case in cases]
        asked = [[self._asked(question.text, question.answer) for question in each] for each in chosen]
        read, others = self._read([case.context for case in cases], self.tokens)
        memories = [(applied(kv, self.sources, self._maps, self.receiver.shape), kv.tokens) for kv, _ in read]
        said = receiver.logits(memories, asked)
        with torch.no_grad():
            own_memories = [(list(zip(kv.keys, kv.values, strict=True)), kv.tokens) for kv, _ in others]
            wanted = receiver.logits(own_memories, asked)
        return F.kl_div(said.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)


def _sources(sender: Sequence[Layer], receiver: Sequence[Layer], tokens: int) -> list[tuple[int, ...]]:
    """Returns for each layer of the receiver the sender's that are as deep, so many that the features are few enough.

    Layers with a sliding window forget: they are taken where there are no others.
    """
    whole = [number for number, layer in enumerate(sender) if windowless(layer, tokens)] or list(range(len(sender)))
    count = max(1, MOST_FEATURES // max(width_of([sender[number]]) for number in whole))

    def apart(one: int, depth: float) -> float:
        return abs((one + 0.5) / len(sender) - depth)

    found = []
    for number in range(len(receiver)):
        depth = (number + 0.5) / len(receiver)
        nearest = sorted(whole, key=lambda one: (apart(one, depth), one))
        found.append(tuple(sorted(nearest[:count])))
    return found


def _paired(ends: Sequence[int], others: Sequence[int]) -> list[tuple[int, int]]:
    """Returns pairs of a token and the last one of the others that ends no later; of where either stops, none."""
    found, at = [], -1
    for number, end in enumerate(ends):
        while at + 1 < len(others) and others[at + 1] <= end:
            at += 1
        if at >= 0 and end <= others[-1]:
            found.append((number, at))
    return found


def _passes(given: Iterable[T], size: Callable[[T], int], drawn: random.Random | None = None) -> list[list[T]]:
    """Returns what is read side by side: of like lengths, since the longest counts for each; ``drawn`` mixes them."""
    near = [(size(each) * (drawn.uniform(0.9, 1.1) if drawn else 1.0), each) for each in given]
    found: list[list[T]] = []
    for _, each in sorted(near, key=lambda pair: pair[0]):
        if found and (len(found[-1]) + 1) * max(map(size, [*found[-1], each])) <= PASS_CHARACTERS:
            found[-1].append(each)
        else:
            found.append([each])
    if drawn:
        drawn.shuffle(found)
    return found


def _characters(case: Case) -> int:
    return len(case.context) + sum(len(q.text) + len(q.answer) for q in case.questions[:QUESTIONS])
