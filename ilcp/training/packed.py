"""The receiver's pass in training: its logits for every answer, given memory or given text.

All questions of a context run in one sequence behind its one memory, and behind what all of them begin with (literals):
each sees these and itself, at the positions it would have alone, so the result is that of separate prompts at a
fraction of the work (a test compares the two)::

    prefix | memory | common | rest 1, answer 1 | rest 2, answer 2 | ...

Logits are made where an answer is predicted, and nowhere else.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from ilcp.models.forward import PADDING, answer_logits, block_mask, embed
from ilcp.models.prompt import text_ids
from ilcp.models.support import forward_takes
from ilcp.training.batch import Models, Row

__all__ = ["memory_logits", "text_logits"]


def memory_logits(models: Models, rows: Sequence[Row], memory: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logits ``"rows answer vocabulary"`` and labels ``"rows answer"``, given each row's context as memory.

    ``memory`` is ``"contexts memory hidden"``; rows of one context share one sequence.
    """
    packed = _packed(rows, len(rows[0].prefix) + memory.shape[1])
    receiver, device = models.receiver, memory.device
    before = embed(receiver, rows[0].prefix).expand(len(packed.contexts), -1, -1)
    after = embed(receiver, packed.ids.tolist())
    embeds = torch.cat([before, memory[packed.contexts].to(before.dtype), after], dim=1)
    segment, position = packed.segment.to(device), packed.position.to(device)
    asked, at = packed.predicts.unique(return_inverse=True)  # positions at which any row's answer is predicted
    fewer = forward_takes(receiver, "logits_to_keep")
    logits = receiver(
        inputs_embeds=embeds,
        attention_mask=block_mask(receiver, segment, position, embeds.dtype),
        position_ids=position,
        use_cache=False,
        **({"logits_to_keep": asked.to(device)} if fewer else {}),
    ).logits
    owner = torch.tensor([packed.contexts.index(row.context) for row in rows])
    return logits[owner.unsqueeze(1), at if fewer else packed.predicts].float(), packed.labels.to(device)


class _Packed(NamedTuple):
    """One sequence per context: its ids behind the memory, and of the whole of it each place's segment and position;
    ``"rows answer"``: the labels, and the places that predict them."""

    contexts: list[int]
    ids: Tensor
    segment: Tensor
    position: Tensor
    labels: Tensor
    predicts: Tensor


def _packed(rows: Sequence[Row], start: int) -> _Packed:
    """Packs the rows into sequences in which ``start`` places stand before the ids."""
    contexts = sorted({row.context for row in rows})
    common = {context: _common([row.suffix for row in rows if row.context == context]) for context in contexts}
    own = [(row.suffix + row.answer)[len(common[row.context]) :] for row in rows]
    filled = {context: len(first) for context, first in common.items()}
    for row, tokens in zip(rows, own, strict=True):
        filled[row.context] += len(tokens)
    width, keep = max(filled.values()), max(len(row.answer) for row in rows)
    ids = torch.zeros(len(contexts), width, dtype=torch.long)
    segment = torch.full((len(contexts), start + width), -1)  # -1: seen by all that follow
    position = torch.arange(start + width).repeat(len(contexts), 1)
    labels = torch.full((len(rows), keep), PADDING)
    predicts = torch.zeros(len(rows), keep, dtype=torch.long)
    for at, context in enumerate(contexts):
        filled[context] = end = len(common[context])
        ids[at, :end] = torch.tensor(common[context], dtype=torch.long)
    for index, (row, tokens) in enumerate(zip(rows, own, strict=True)):
        at, begin, answer = contexts.index(row.context), filled[row.context], len(row.answer)
        filled[row.context] = end = begin + len(tokens)
        ids[at, begin:end] = torch.tensor(tokens)
        segment[at, start + begin : start + end] = index
        position[at, start + begin : start + end] = start + len(common[row.context]) + torch.arange(len(tokens))
        labels[index, keep - answer :] = torch.tensor(row.answer)
        predicts[index, keep - answer :] = torch.arange(start + end - answer - 1, start + end - 1)
    return _Packed(contexts, ids, segment, position, labels, predicts)


def _common(suffixes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns what all of them begin with; at least one token of each is left."""
    shortest = min(suffixes, key=len)
    same = (len({suffix[at] for suffix in suffixes}) == 1 for at in range(len(shortest) - 1))
    return shortest[: sum(takewhile(bool, same))]


def text_logits(models: Models, rows: Sequence[Row], contexts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Returns the same as ``memory_logits``, given one context per row as text; an empty one is no context."""
    prompts = [
        embed(models.receiver, text_ids(models.receiver_tokenizer, context, row.question))
        for row, context in zip(rows, contexts, strict=True)
    ]
    return answer_logits(models.receiver, prompts, [row.answer for row in rows])
