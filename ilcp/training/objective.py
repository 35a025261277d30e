"""The loss of a batch, through the frozen receiver.

::

    loss = cross-entropy of the answers given the memory
         + kl_weight   * KL(receiver with full text || receiver with memory), on one question per context
         + rate_weight * rate_bits
         + alignment_weight * the share of the phrasebook's memory that is missing from the network's
         + blank_share * KL(receiver with nothing || receiver with a payload no sender made), on so many contexts

All questions of a context run in one sequence behind its one memory: each sees the memory and itself, at the positions
it would have alone, so the result is that of separate prompts at a fraction of the work (a test compares the two)::

    prefix | memory | suffix 1, answer 1 | suffix 2, answer 2 | ...
"""

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ilcp.context import capture_batch, window_tokens
from ilcp.errors import EncodeError
from ilcp.forward import PADDING, answer_logits, embed
from ilcp.prompt import Layout, answer_ids, layout, text_ids
from ilcp.spread import whitening
from ilcp.tasks.cases import Case, Question
from ilcp.training.precision import precision
from ilcp.training.recipe import Recipe

if TYPE_CHECKING:
    from ilcp.training.phrasebook import Phrasebook

LIKENESS_SCALE = 24.0  # of the cosine: sharp enough to name one word among thousands

__all__ = [
    "Batch",
    "Batcher",
    "Models",
    "Network",
    "Row",
    "alignment_loss",
    "calibrate",
    "frozen",
    "loss_of",
    "memory_logits",
    "memory_of",
    "naming_loss",
    "targets_of",
    "text_logits",
    "warmup_loss",
]


class Network(Protocol):
    """What the loop asks of a learned codec's ``nn.Module``."""

    layers: tuple[int, ...]

    def __call__(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Memory ``"batch memory hidden"`` and ``rate_bits`` ``"batch"`` from ``"batch layers tokens hidden"``."""
        ...

    def calibrate(self, states: Tensor, mask: Tensor, memory: Tensor) -> None:
        """Before training: fits the network to samples of states and of memory, ``"n slots hidden"``."""
        ...

    def blank(self, count: int) -> Tensor:
        """Memory ``"count memory hidden"`` of payloads that no sender made."""
        ...


@dataclass(frozen=True, slots=True)
class Models:
    """The frozen pair that a codec is trained between."""

    sender: Any
    sender_tokenizer: Any
    receiver: Any
    receiver_tokenizer: Any


@dataclass(frozen=True, slots=True)
class Row:
    """One question of one context: which context, the prompt around the memory, and the answer, in receiver ids."""

    context: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    answer: tuple[int, ...]
    question: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Sender ids and mask ``"contexts tokens"``, the texts, and the rows that ask about them.

    ``told`` holds the words of all facts about a topic, by context and the topic's number.
    """

    texts: tuple[str, ...]
    ids: Tensor
    mask: Tensor
    rows: tuple[Row, ...]
    told: dict[tuple[int, int], frozenset[str]]


@torch.no_grad()
def calibrate(
    network: Network, models: Models, cases: Sequence[Case], recipe: Recipe, phrasebook: "Phrasebook | None" = None
) -> None:
    """Fits an untrained network to how the sender's states of these cases are spread, and the memory it should make.

    That memory is the phrasebook's; without one, the receiver's embeddings stand in for it.

    Raises:
        EncodeError: a context is longer than the sender's window.
    """
    batch = Batcher(models, recipe).batch(cases, random.Random(0))
    device = models.sender.device
    mask = batch.mask.to(device)
    states = capture_batch(models.sender, batch.ids.to(device), mask.long(), network.layers)
    embedding = models.receiver.get_input_embeddings().weight
    network.calibrate(states, mask, embedding.unsqueeze(1) if phrasebook is None else phrasebook.memory(batch))


class Batcher:
    """Turns cases into batches; remembers the prompts of questions that come again."""

    def __init__(self, models: Models, recipe: Recipe):
        self.models = models
        self.recipe = recipe
        self._layouts: dict[str, Layout] = {}
        self._topics = {topic: number for number, topic in enumerate(recipe.topics)}

    def batch(self, cases: Sequence[Case], rng: random.Random) -> Batch:
        """A batch of cases, ``recipe.questions`` of each drawn at random, at most ``recipe.per_kind`` of a kind.

        Raises:
            EncodeError: a context is longer than the sender's window.
        """
        encoded = [self.models.sender_tokenizer(case.context, verbose=False).input_ids for case in cases]
        longest, window = max(map(len, encoded)), window_tokens(self.models.sender)
        if longest > window:
            raise EncodeError(f"expected training contexts of at most {window} sender tokens, got {longest}: cut them")
        ids = torch.zeros(len(cases), longest, dtype=torch.long)
        mask = torch.zeros(len(cases), longest)
        for index, row in enumerate(encoded):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        rows = [self._row(index, question) for index, case in enumerate(cases) for question in self._asked(case, rng)]
        return Batch(tuple(case.context for case in cases), ids, mask, tuple(rows), self._told(cases))

    def _asked(self, case: Case, rng: random.Random) -> list[Question]:
        left = dict(self.recipe.per_kind)
        chosen: list[Question] = []
        for question in rng.sample(case.questions, len(case.questions)):
            if left.get(question.kind) != 0 and len(chosen) < self.recipe.questions:
                chosen.append(question)
                left |= {question.kind: left[question.kind] - 1} if question.kind in left else {}
        return chosen

    def _told(self, cases: Sequence[Case]) -> dict[tuple[int, int], frozenset[str]]:
        told: dict[tuple[int, int], frozenset[str]] = {}
        for index, case in enumerate(cases):
            for topic, words in (fact for question in case.questions for fact in question.facts):
                if topic in self._topics:
                    key = index, self._topics[topic]
                    told[key] = told.get(key, frozenset()) | frozenset(re.findall(r"\w+", words))
        return told

    def _row(self, context: int, question: Question) -> Row:
        tokenizer = self.models.receiver_tokenizer
        if question.text not in self._layouts:
            self._layouts[question.text] = layout(tokenizer, question.text)
        place = self._layouts[question.text]
        answer = answer_ids(tokenizer, question.answer, end=self.recipe.close_answers)
        if not answer:
            raise EncodeError(f"expected an answer to {question.text!r}, got an empty one")
        return Row(context, place.prefix, place.suffix, answer, question.text)


@contextmanager
def frozen(models: Models) -> Iterator[None]:
    """Both models in evaluation mode and without gradients; afterwards everything is as it was."""
    parameters = [p for model in (models.sender, models.receiver) for p in model.parameters()]
    wanted = [p.requires_grad for p in parameters]
    modes = models.sender.training, models.receiver.training
    attention = models.receiver.config._attn_implementation
    try:
        for model in (models.sender, models.receiver):
            model.eval().requires_grad_(False)
        if models.receiver.device.type == "cpu":  # torch's fused attention with a mask is slow backwards on a CPU
            models.receiver.set_attn_implementation("eager")
        yield
    finally:
        models.receiver.set_attn_implementation(attention)
        models.sender.train(modes[0])
        models.receiver.train(modes[1])
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)


def memory_of(network: Network, batch: Batch, models: Models, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Memory ``"contexts memory hidden"`` and its rate; the sender's pass takes no gradient."""
    device = models.sender.device
    with precision(models.receiver.device, recipe):
        states = capture_batch(models.sender, batch.ids.to(device), batch.mask.long().to(device), network.layers)
    return network(states, batch.mask.to(device))


def warmup_loss(
    network: Network, batch: Batch, models: Models, recipe: Recipe, phrasebook: "Phrasebook", step: int
) -> dict[str, Tensor]:
    """The terms of the loss before the receiver is asked anything; see ``naming_loss`` and ``alignment_loss``."""
    memory, _ = memory_of(network, batch, models, recipe)
    targets = targets_of(phrasebook, batch, memory)
    terms = {"naming": naming_loss(targets), "alignment": alignment_loss(targets)}
    return terms | {"loss": terms["naming" if step < recipe.naming_steps else "alignment"]}


def loss_of(
    network: Network, batch: Batch, models: Models, recipe: Recipe, phrasebook: "Phrasebook | None" = None
) -> dict[str, Tensor]:
    """The terms of the loss, and their weighted sum under ``"loss"``."""
    memory, rate_bits = memory_of(network, batch, models, recipe)
    blanks = round(recipe.blank_share * len(memory))
    silent = [row for row in batch.rows if row.context < blanks]
    told = [row for row in batch.rows if row.context >= blanks]
    terms = {"rate_bits": rate_bits.mean()}
    with precision(models.receiver.device, recipe):
        logits, labels = memory_logits(models, told, memory)
        known = labels != PADDING
        terms["cross_entropy"] = F.cross_entropy(logits[known], labels[known])
        if recipe.kl_weight:
            terms["kl"] = _distillation_loss(models, batch, told, logits)
    if recipe.alignment_weight and phrasebook is not None:
        terms["alignment"] = alignment_loss(targets_of(phrasebook, batch, memory))
    if silent:
        blank = network.blank(blanks)
        with precision(models.receiver.device, recipe):
            logits, labels = memory_logits(models, silent, blank)
            with torch.no_grad():
                target, _ = text_logits(models, silent, [""] * len(silent))
            terms["blank"] = _kl(target, logits, labels)
    weights = {
        "rate_bits": recipe.rate_weight,
        "alignment": recipe.alignment_weight,
        "blank": recipe.blank_share,
        "kl": recipe.kl_weight,
    }
    weighted = [weights.get(name, 1.0) * term for name, term in terms.items()]
    return terms | {"loss": torch.stack(weighted).sum()}


@dataclass(frozen=True, slots=True)
class Targets:
    """What the memory vectors of a batch should be, after whitening by how the phrasebook's memory is spread.

    ``held`` and ``wanted`` are ``"told hidden"``, of the same contexts and topics and less the topic's place; ``words``
    is ``"words hidden"``, every word that could be said; ``said`` is ``"told words"``, a distribution over them.
    """

    held: Tensor
    wanted: Tensor
    words: Tensor
    said: Tensor


def targets_of(phrasebook: "Phrasebook", batch: Batch, memory: Tensor) -> Targets:
    """The aims of a batch.

    Raises:
        EncodeError: no question of the batch is about one of the recipe's topics.
    """
    keys = [key for key, words in batch.told.items() if words <= phrasebook.words.keys()]
    if not keys:
        raise EncodeError("expected questions about the recipe's topics, got none: give Question.facts, Recipe.topics")
    said = phrasebook.said(batch, keys)
    _, matrix = whitening(phrasebook.vectors)
    contexts, topics = map(list, zip(*keys, strict=True))
    vectors = phrasebook.vectors @ matrix
    return Targets(
        held=(memory[contexts, topics] - phrasebook.places[topics]) @ matrix,
        wanted=said @ vectors,
        words=vectors,
        said=F.normalize(said, p=1, dim=-1),
    )


def naming_loss(targets: Targets) -> Tensor:
    """KL, in nats, from the words of the answers to what a memory vector looks like among all words (cosine).

    It starts the learning, since it tells values of one kind apart at once. A squared error does not: that of a value
    is mostly that of its kind.
    """
    likeness = F.normalize(targets.held, dim=-1) @ F.normalize(targets.words, dim=-1).T
    return F.kl_div((LIKENESS_SCALE * likeness).log_softmax(-1), targets.said, reduction="batchmean")


def alignment_loss(targets: Targets) -> Tensor:
    """The share of the phrasebook's memory that is missing from the network's: squared error over mean square."""
    return (targets.held - targets.wanted).square().sum() / targets.wanted.square().sum().clamp(min=1e-6)


def _distillation_loss(models: Models, batch: Batch, rows: Sequence[Row], logits: Tensor) -> Tensor:
    first = {row.context: index for index, row in reversed(list(enumerate(rows)))}
    chosen = list(first.values())
    with torch.no_grad():
        target, own = text_logits(models, [rows[index] for index in chosen], [batch.texts[c] for c in first])
    return _kl(target, logits[chosen, -own.shape[1] :], own)


def memory_logits(models: Models, rows: Sequence[Row], memory: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``"rows answer vocabulary"`` and labels ``"rows answer"``, given the memory of each row's context.

    ``memory`` is ``"contexts memory hidden"``; rows of one context share one sequence.
    """
    contexts = sorted({row.context for row in rows})
    line = {context: index for index, context in enumerate(contexts)}
    prefix = rows[0].prefix
    start = len(prefix) + memory.shape[1]
    widths = [sum(len(r.suffix + r.answer) for r in rows if r.context == context) for context in contexts]
    ids = torch.zeros(len(contexts), max(widths), dtype=torch.long)
    segment = torch.full((len(contexts), start + max(widths)), -1)  # -1: seen by all that follow
    position = torch.arange(start + max(widths)).repeat(len(contexts), 1)
    keep = max(len(row.answer) for row in rows)
    labels = torch.full((len(rows), keep), PADDING)
    predicts = torch.zeros(len(rows), keep, dtype=torch.long)
    filled = [0] * len(contexts)
    for index, row in enumerate(rows):
        at, tokens, answer = line[row.context], row.suffix + row.answer, len(row.answer)
        begin, end = filled[at], filled[at] + len(tokens)
        ids[at, begin:end] = torch.tensor(tokens)
        segment[at, start + begin : start + end] = index
        position[at, start + begin : start + end] = start + torch.arange(len(tokens))
        labels[index, keep - answer :] = torch.tensor(row.answer)
        predicts[index, keep - answer :] = torch.arange(start + end - answer - 1, start + end - 1)
        filled[at] = end
    receiver, device = models.receiver, memory.device
    before = embed(receiver, prefix).expand(len(contexts), -1, -1)
    embeds = torch.cat([before, memory[contexts].to(before.dtype), embed(receiver, ids.tolist())], dim=1)
    logits = receiver(
        inputs_embeds=embeds,
        attention_mask=_block_mask(segment, embeds.dtype).to(device),
        position_ids=position.to(device),
    ).logits
    owner = torch.tensor([line[row.context] for row in rows])
    return logits[owner.unsqueeze(1), predicts].float(), labels.to(device)


def _block_mask(segment: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask ``"batch 1 query key"``: each token sees what is common and its own segment, backwards."""
    same = segment.unsqueeze(2) == segment.unsqueeze(1)
    seen = (same | (segment == -1).unsqueeze(1)).tril()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)


def text_logits(models: Models, rows: Sequence[Row], contexts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """As ``memory_logits``, given one context per row as text; an empty one is no context."""
    prompts = [
        embed(models.receiver, text_ids(models.receiver_tokenizer, context, row.question))
        for row, context in zip(rows, contexts, strict=True)
    ]
    return answer_logits(models.receiver, prompts, [row.answer for row in rows])


def _kl(target: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    known = labels != PADDING
    wanted = F.log_softmax(target[known], dim=-1)
    return F.kl_div(F.log_softmax(logits[known], dim=-1), wanted, log_target=True, reduction="batchmean")
