"""Finds the map from one model's caches to another's: in closed form first, then through the receiver.

::

    texts, read by both --tokens paired by where they end--> ridge of each receiver's layer on some of the sender's
    cases  --sender's cache, mapped--> receiver --KL from what it says behind its own cache--> the map, by gradient

The closed form (ridge of un-rotated keys and values) brings most of what the text does for likelihood, and few facts;
the second step brings the facts (``benchmarks/README.md``). It works in the coordinates in which the sender's features
are uncorrelated and of unit spread, where one learning rate suits all.
"""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.codec.keys_values import KeysValues, turned
from ilcp.errors import ConfigError
from ilcp.inputs import listed, require_text
from ilcp.models.adapter import plain
from ilcp.models.fingerprint import identify
from ilcp.models.forward import embed
from ilcp.models.kv import read_kv
from ilcp.models.packing import behind, pack, packs
from ilcp.models.prompt import answer_ids, continuation, layout
from ilcp.models.rope import ropes_of
from ilcp.models.support import forward_takes, require_tokenizer
from ilcp.tasks import Case
from ilcp_codecs.kv.aligned import AlignedCodec, Ends, features, split, width_of, windowless
from ilcp_codecs.kv.codecs import DTYPES, shape_of
from ilcp_codecs.kv.container import Layer, Shape
from ilcp_codecs.kv.ridge import LinearMap, Sums

__all__ = ["Aligner", "Step"]

MOST_FEATURES = 1536  # of the sender's a token, for each layer of the receiver: more need more texts and bring little
LEAST_ROWS, AIMED_ROWS = 3, 8  # tokens read for each feature: with fewer the map is these texts' own
QUESTIONS = 8  # of each case in a step, at most
PASS_CHARACTERS = (
    6000  # of texts, questions and answers: what a pass of a small model takes in about as long as of less
)
RATE, LAST_RATE, WARM_UP = 2e-3, 0.05, 20  # the last as a share of the first; steps
MOST_TOKENS = 1024  # of a text that both read

T = TypeVar("T")
Memory = tuple[Sequence[tuple[Tensor, Tensor]], int]  # keys and values of each layer, of no position, and the tokens
Asked = tuple[Sequence[int], Sequence[int]]  # ids of what stands behind the memory, and of the answer


@dataclass(frozen=True, slots=True)
class Step:
    """What the second step says of itself: steps done, seconds spent, and the mean KL in nats since it last did."""

    steps: int
    seconds: float
    kl: float


@dataclass(frozen=True, slots=True)
class _End:
    """One model, what its tokenizer makes of a text, and what stands before a memory in its prompts."""

    model: Any
    tokenizer: Any
    ropes: tuple[tuple[float, ...], ...]
    shape: Shape

    @classmethod
    def of(cls, side: str, model: Any, tokenizer: Any) -> "_End":
        """Raises ConfigError as ``Aligner`` does."""
        require_tokenizer(tokenizer, side)
        model = plain(model).eval()
        ropes = ropes_of(model)
        if not all(ropes):
            raise ConfigError(f"expected a {side} whose keys can be turned (RoPE), got {type(model).__name__}")
        return cls(model, tokenizer, ropes, shape_of(model))

    @torch.no_grad()
    def read(self, texts: Sequence[str], most: int = MOST_TOKENS) -> list[tuple[KeysValues, list[int]]]:
        """Returns for each text keys and values of its tokens, of no position, and where in the text each ends.

        They stand behind what a prompt begins with, and are read side by side, of each text ``most`` tokens.

        Raises:
            ConfigError: the tokenizer does not say where its tokens end.
        """
        from transformers import DynamicCache

        before = layout(self.tokenizer, "").prefix
        start = len(before)
        most = min(most, MOST_TOKENS, self.shape.tokens - start)
        made = [continuation(self.tokenizer, text) for text in texts]
        rows = [[*before, *ids[:most]] for ids, _ in made]
        if not all(spans for _, spans in made):
            raise ConfigError("expected a tokenizer that says where its tokens end (a fast one), got another")
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.model.device)
        cache = DynamicCache()  # without a configuration it holds every position
        last = {"logits_to_keep": 1} if forward_takes(self.model, "logits_to_keep") else {}
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, **last)  # nobody sees the padding behind him
        found = []
        for at, (row, (_, spans)) in enumerate(zip(rows, made, strict=True)):
            tokens = len(row) - start
            pairs = [
                [each[at, :, len(row) - layer.held(tokens) : len(row)] for each in (kept.keys, kept.values)]
                for kept, layer in zip(cache.layers, self.shape.layers, strict=True)
            ]
            windows = tuple(layer.window for layer in self.shape.layers)
            keys, values = (tuple(each) for each in zip(*pairs, strict=True))
            kv = KeysValues(keys, values, tokens, start, self.ropes, windows)
            found.append((kv.at(None), [end for _, end in spans[:most]]))
        return found


class Aligner:
    """Finds a map between two loaded models, which stay as they are.

    Args:
        tokens: the most that a cache may stand for; None for what both windows hold.

    Raises:
        ConfigError: one of the models cannot be identified, its keys cannot be turned (RoPE), or its layers all have
            sliding windows that hold fewer tokens.
    """

    def __init__(
        self, sender: Any, sender_tokenizer: Any, receiver: Any, receiver_tokenizer: Any, *, tokens: int | None = None
    ):
        self.sender = _End.of("sender", sender, sender_tokenizer)
        self.receiver = _End.of("receiver", receiver, receiver_tokenizer)
        ends = self.sender, self.receiver
        most = min(end.shape.tokens for end in ends)
        if tokens is not None and (type(tokens) is not int or not 1 <= tokens <= most):
            raise ConfigError(f"expected tokens from 1 to {most}, what both windows hold, got {tokens!r}")
        self.sources = _sources(self.sender.shape.layers, self.receiver.shape.layers, tokens or most)
        held = [window - 1 for own in self.sources for one in own if (window := self.sender.shape.layers[one].window)]
        self.tokens = min([tokens or most, *held])
        self._maps: list[LinearMap] = []

    def holds(self, text: str) -> bool:
        """Says whether a cache of the text is short enough for the codec."""
        return len(continuation(self.sender.tokenizer, text)[0]) <= self.tokens

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
            for (own, ends), (other, others) in zip(*self._read(part), strict=True):
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
        seed: int = 0,
        every: int = 25,
        told: Callable[[Step], None] = lambda step: None,
    ) -> int:
        """Moves the map by gradient until the receiver says behind it what it says behind its own cache.

        Args:
            cases: texts with questions, or with what comes next (questions without words).
            minutes: it takes; the learning rate falls to its end.
            every: so many steps ``told`` is called; what that takes does not count.

        Returns:
            The number of steps.

        Raises:
            ConfigError: nothing was fitted, or no case fits; or the receiver's attention takes no mask for several
                prompts at once.
        """
        if not self._maps:
            raise ConfigError("expected a map that was fitted, got none: call fit first")
        if not packs(self.receiver.model):
            raise ConfigError("expected a receiver of a family in SUPPORT.md, in eager or sdpa attention, got another")
        from ilcp.training.batch import Models, frozen

        models = Models(self.sender.model, self.sender.tokenizer, self.receiver.model, self.receiver.tokenizer)
        with frozen(models):
            return self._tuned(cases, 60 * minutes, random.Random(seed), every, told)

    def _tuned(
        self, cases: Sequence[Case], seconds: float, drawn: random.Random, every: int, told: Callable[[Step], None]
    ) -> int:
        receiver = _Behind(self.receiver)
        parameters = [parameter for one in self._maps for parameter in (one.weight, one.bias)]
        optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
        begun, steps, seen = time.monotonic(), 0, list[float]()
        passes: list[list[Case]] = []
        while (spent := time.monotonic() - begun) < seconds:
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1.0, (steps + 1) / WARM_UP) * max(LAST_RATE, 1 - spent / seconds)
            passes = passes or _passes(drawn.sample(cases, len(cases)), _characters, drawn)
            loss = self._loss(passes.pop(), receiver, drawn)
            loss.backward()
            seen.append(loss.item())
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            steps += 1
            if steps % every == 0:
                now = time.monotonic()
                told(Step(steps, now - begun, fmean(seen)))
                begun, seen = begun + time.monotonic() - now, []
        return steps

    def codec(self) -> AlignedCodec:
        """Returns the codec of the map as it is.

        Raises:
            ConfigError: nothing was fitted.
        """
        if not self._maps:
            raise ConfigError("expected a map that was fitted, got none: call fit first")
        sender, receiver = (identify(end.model, end.tokenizer) for end in (self.sender, self.receiver))
        reads, gives = (_limited(end.shape, self.tokens) for end in (self.sender, self.receiver))
        dtype = next(name for name, dtype in DTYPES.items() if dtype == self.receiver.model.dtype)
        tensors: dict[str, Tensor] = {}
        for number, one in enumerate(self._maps):
            tensors |= {f"weight.{number}": one.folded()[0], f"bias.{number}": one.folded()[1]}
        return AlignedCodec(Ends(sender, receiver, reads, gives, dtype), self.sources, tensors)

    def _read(self, texts: Sequence[str]) -> tuple[list[tuple[KeysValues, list[int]]], ...]:
        """Returns what both models read of texts: the receiver no more than the sender."""
        own = self.sender.read(texts, self.tokens)
        same = [text[: ends[-1]] for text, (_, ends) in zip(texts, own, strict=True)]
        return own, self.receiver.read(same)

    def _loss(self, cases: Sequence[Case], receiver: "_Behind", drawn: random.Random) -> Tensor:
        """Returns the mean KL over the tokens of the cases' answers."""
        chosen = [drawn.sample(case.questions, min(QUESTIONS, len(case.questions))) for case in cases]
        asked = [[receiver.asked(question.text, question.answer) for question in each] for each in chosen]
        read, others = self._read([case.context for case in cases])
        memories = []
        for own, _ in read:
            parts = zip(self._maps, self.sources, self.receiver.shape.layers, strict=True)
            pairs = [
                split(one(features(own, sources)[-layer.held(own.tokens) :]), layer) for one, sources, layer in parts
            ]
            memories.append((pairs, own.tokens))
        said = receiver.logits(memories, asked)
        with torch.no_grad():
            own_memories = [(list(zip(kv.keys, kv.values, strict=True)), kv.tokens) for kv, _ in others]
            wanted = receiver.logits(own_memories, asked)
        return F.kl_div(said.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)


class _Behind:
    """The receiver behind a cache through which gradients flow."""

    def __init__(self, end: _End):
        self.end, self.prefix = end, layout(end.tokenizer, "").prefix
        self._before = read_kv(end.model, self.prefix, 0, end.ropes) if self.prefix else None

    def asked(self, question: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns ids of what stands behind the memory, and of the answer, which ends where a question has words."""
        return layout(self.end.tokenizer, question).suffix, answer_ids(self.end.tokenizer, answer, end=bool(question))

    def logits(self, memories: Sequence[Memory], asked: Sequence[Sequence[Asked]]) -> Tensor:
        """Returns float32 logits ``"tokens vocabulary"`` of all answers in turn, each behind its memory."""
        model, start = self.end.model, len(self.prefix)
        nobody = embed(model, [0])  # what is in the cache is not read
        flat = [each for own in asked for each in own]
        packed = pack(
            [nobody.expand(start + tokens, -1) for _, tokens in memories],
            [embed(model, [*suffix, *answer[:-1]]) for suffix, answer in flat],
            [number for number, own in enumerate(asked) for _ in own],
            [len(answer) for _, answer in flat],
        )
        logits = packed.of_rows(behind(model, packed, self._cache(memories)))
        longest = packed.at.shape[1]
        known = torch.tensor([[at >= longest - len(answer) for at in range(longest)] for _, answer in flat])
        return logits[known.to(logits.device)]

    def _cache(self, memories: Sequence[Memory]) -> Any:
        """Returns the prompt's beginning and each memory behind it, padded on the right with what nobody sees."""
        from transformers import DynamicCache

        cache, start, model = DynamicCache(), len(self.prefix), self.end.model
        most = max(tokens for _, tokens in memories)
        for number, rope in enumerate(self.end.ropes):
            sides: tuple[list[Tensor], list[Tensor]] = [], []
            for pairs, tokens in memories:
                keys, values = pairs[number]
                gone = tokens - keys.shape[1]
                places = torch.arange(gone, tokens, dtype=torch.float64) + start
                for side, each in zip(sides, (turned(keys, places, rope), values), strict=True):
                    side.append(F.pad(each, (0, 0, gone, most - tokens)).to(model.device, model.dtype))
            both = [torch.stack(side) for side in sides]
            if self._before is not None:
                first = (self._before.keys[number], self._before.values[number])
                both = [torch.cat([a.expand(len(b), *a.shape), b], 2) for a, b in zip(first, both, strict=True)]
            cache.update(both[0], both[1], number)
        return cache


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


def _limited(shape: Shape, tokens: int) -> Shape:
    return Shape(shape.layers, shape.ropes, tokens)
