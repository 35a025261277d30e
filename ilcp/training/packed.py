"""The receiver's pass in training: its logits for every answer, given memory or given text.

All questions of a context run in one sequence behind their common beginning (see ``ilcp.models.packing``): its one
memory and the literals beside it, or one reading of its text.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ilcp.models.forward import embed, left_padded
from ilcp.models.packing import common_tokens, pack, packed_logits
from ilcp.models.prompt import text_ids
from ilcp.training.batch import Models, Row

__all__ = ["memory_logits", "text_logits"]


def memory_logits(models: Models, rows: Sequence[Row], memory: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """Returns logits ``"rows answer vocabulary"`` and labels ``"rows answer"``, given each row's context as memory.

    ``memory`` is ``"memory hidden"`` for each context; rows of one context share one sequence. Shorter answers are
    padded on the left, with ``PADDING`` as their labels.
    """
    prefix = embed(models.receiver, rows[0].prefix)
    before = {row.context: torch.cat([prefix, memory[row.context].to(prefix.dtype)]) for row in rows}
    return _logits(models, rows, [row.context for row in rows], [row.suffix for row in rows], before)


def text_logits(models: Models, rows: Sequence[Row], contexts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Returns the same as ``memory_logits``, given one context per row as text; an empty one is no context.

    Rows of one context share one reading of its text.
    """
    tokenizer = models.receiver_tokenizer
    prompts = [text_ids(tokenizer, context, row.question) for row, context in zip(rows, contexts, strict=True)]
    return _logits(models, rows, [(row.context, text) for row, text in zip(rows, contexts, strict=True)], prompts)


def _logits(
    models: Models,
    rows: Sequence[Row],
    keys: Sequence[Hashable],
    prompts: Sequence[tuple[int, ...]],
    before: Mapping[Any, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Packs prompts of ids that have the same key into one sequence, what is ``before`` that key's prompts first."""
    receiver = models.receiver
    groups = {key: [prompt for other, prompt in zip(keys, prompts, strict=True) if other == key] for key in keys}
    common = {key: common_tokens(group) for key, group in groups.items()}
    beginnings = [
        torch.cat([*([before[key]] if before else []), embed(receiver, group[0][: common[key]])])
        for key, group in groups.items()
    ]
    rests = [
        embed(receiver, prompt[common[key] :] + row.answer[:-1])
        for key, prompt, row in zip(keys, prompts, rows, strict=True)
    ]
    numbers = {key: number for number, key in enumerate(groups)}
    answers = [row.answer for row in rows]
    packed = pack(beginnings, rests, [numbers[key] for key in keys], list(map(len, answers)))
    return packed_logits(receiver, packed), left_padded(answers).to(packed.embeds.device)
