"""The loss of a batch, through the frozen receiver.

::

    loss = cross-entropy of the answers given the memory
         + kl_weight   * KL(receiver with full text || receiver with memory), on one question per context
         + rate_weight * rate_bits
         + reconstruction_weight * KL(words of a stretch of the text || what its memory vector looks like)
         + blank_share * KL(receiver with nothing || receiver with a payload no sender made), on so many contexts

All questions of a context run in one sequence behind its one memory: each sees the memory and itself, at the positions
it would have alone, so the result is that of separate prompts at a fraction of the work (a test compares the two)::

    prefix | memory | suffix 1, answer 1 | suffix 2, answer 2 | ...
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ilcp.context import capture_batch, window_tokens
from ilcp.errors import EncodeError
from ilcp.forward import PADDING, answer_logits, embed
from ilcp.prompt import Layout, answer_ids, layout, text_ids
from ilcp.tasks.cases import Case, Question
from ilcp.training.recipe import Recipe

RARITY_FLOOR = 0.05  # a word that all texts have still counts a little
LIKENESS_SCALE = 24.0  # of the cosine: sharp enough to name one word among thousands

__all__ = [
    "Batch",
    "Batcher",
    "Models",
    "Network",
    "Row",
    "loss_of",
    "memory_logits",
    "memory_of",
    "precision",
    "reconstruction_loss",
    "text_logits",
]


class Network(Protocol):
    """What the loop asks of a learned codec's ``nn.Module``."""

    layers: tuple[int, ...]

    def __call__(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Memory ``"batch memory hidden"`` and ``rate_bits`` ``"batch"`` from ``"batch layers tokens hidden"``."""
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
    """Sender ids and mask ``"contexts tokens"``, the texts, and the rows that ask about them."""

    texts: tuple[str, ...]
    ids: Tensor
    mask: Tensor
    rows: tuple[Row, ...]


class Batcher:
    """Turns cases into batches; remembers the prompts of questions that come again."""

    def __init__(self, models: Models, recipe: Recipe):
        self.models = models
        self.recipe = recipe
        self._layouts: dict[str, Layout] = {}

    def batch(self, cases: Sequence[Case], rng: random.Random) -> Batch:
        """A batch of cases, ``recipe.questions`` of each drawn at random.

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
        rows = [
            self._row(index, question)
            for index, case in enumerate(cases)
            for question in rng.sample(case.questions, min(self.recipe.questions, len(case.questions)))
        ]
        return Batch(tuple(case.context for case in cases), ids, mask, tuple(rows))

    def _row(self, context: int, question: Question) -> Row:
        tokenizer = self.models.receiver_tokenizer
        if question.text not in self._layouts:
            self._layouts[question.text] = layout(tokenizer, question.text)
        place = self._layouts[question.text]
        answer = answer_ids(tokenizer, question.answer, end=self.recipe.close_answers)
        if not answer:
            raise EncodeError(f"expected an answer to {question.text!r}, got an empty one")
        return Row(context, place.prefix, place.suffix, answer, question.text)


def memory_of(network: Network, batch: Batch, models: Models, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Memory ``"contexts memory hidden"`` and its rate; the sender's pass takes no gradient."""
    device = models.sender.device
    with precision(models, recipe):
        states = capture_batch(models.sender, batch.ids.to(device), batch.mask.long().to(device), network.layers)
    return network(states, batch.mask.to(device))


def precision(models: Models, recipe: Recipe) -> torch.autocast:
    """Autocast for the frozen models, where the recipe asks for it; the network itself stays in float32."""
    return torch.autocast(models.receiver.device.type, torch.bfloat16, enabled=recipe.bfloat16)


def loss_of(network: Network, batch: Batch, models: Models, recipe: Recipe) -> dict[str, Tensor]:
    """The terms of the loss, and their weighted sum under ``"loss"``."""
    memory, rate_bits = memory_of(network, batch, models, recipe)
    blanks = round(recipe.blank_share * len(memory))
    silent = [row for row in batch.rows if row.context < blanks]
    told = [row for row in batch.rows if row.context >= blanks]
    terms = {"rate_bits": rate_bits.mean()}
    with precision(models, recipe):
        logits, labels = memory_logits(models, told, memory)
        known = labels != PADDING
        terms["cross_entropy"] = F.cross_entropy(logits[known], labels[known])
        if recipe.kl_weight:
            terms["kl"] = _distillation_loss(models, batch, told, logits)
    if recipe.reconstruction_weight:
        terms["reconstruction"] = reconstruction_loss(models, batch.texts, memory)
    if silent:
        blank = network.blank(blanks)
        with precision(models, recipe):
            logits, labels = memory_logits(models, silent, blank)
            with torch.no_grad():
                target, _ = text_logits(models, silent, [""] * len(silent))
            terms["blank"] = _kl(target, logits, labels)
    weights = {
        "rate_bits": recipe.rate_weight,
        "reconstruction": recipe.reconstruction_weight,
        "blank": recipe.blank_share,
        "kl": recipe.kl_weight,
    }
    weighted = [weights.get(name, 1.0) * term for name, term in terms.items()]
    return terms | {"loss": torch.stack(weighted).sum()}


def reconstruction_loss(models: Models, texts: Sequence[str], memory: Tensor) -> Tensor:
    """How far each memory vector is from the receiver's embeddings of the words it should stand for, in nats.

    The text's receiver tokens are cut into as many stretches as there are vectors, in order. A vector's likeness to
    the embeddings (cosine, sharpened) is compared with the words of its stretch, in which a word weighs the more the
    fewer of the texts have it. It takes no labels, and it gives every vector something to hold from the first step.
    """
    embedding = models.receiver.get_input_embeddings().weight.detach().float()
    tokens = [models.receiver_tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    spread = torch.zeros(embedding.shape[0])
    for ids in tokens:
        spread[sorted(set(ids))] += 1
    rarity = ((1 + len(texts)) / (1 + spread)).log() + RARITY_FLOOR
    wanted = torch.zeros(*memory.shape[:2], embedding.shape[0])
    for line, ids in zip(wanted, tokens, strict=True):
        row = torch.tensor(ids)
        line.index_put_((torch.arange(len(ids)) * len(line) // len(ids), row), rarity[row], accumulate=True)
    held = wanted.sum(-1) > 0  # a stretch of a text shorter than the memory may hold no token
    wanted = F.normalize(wanted[held], p=1, dim=-1).to(memory.device)
    likeness = LIKENESS_SCALE * F.normalize(memory[held], dim=-1) @ F.normalize(embedding, dim=-1).T
    return F.kl_div(likeness.log_softmax(-1), wanted, reduction="batchmean")


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
