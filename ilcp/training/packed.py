"""The receiver's pass in training: its logits for every answer, given memory or given text.

All questions of a context run in one sequence behind their common beginning (see ``ilcp.models.packing``): its one
memory and the literals beside it, or one reading of its text.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ilcp.errors import ConfigError
from ilcp.models.forward import embed, left_padded
from ilcp.models.packing import common_tokens, pack, packed_logits
from ilcp.models.prompt import texts_ids
from ilcp.training.batch import Models, Row

__all__ = ["memory_logits", "text_logits"]

# Contexts x tokens x tokens of one pass: what attention keeps of it for the way back is so much of every head and layer
# (of 30 layers of 9 heads in single precision 1.6 GB, computed). A history of conversations would take many times that.
MOST_PAIRS = 1_500_000
# On a GPU attention keeps nothing of it, and a pass of few contexts takes as long as one of many. What bounds it there
# is the rest of what a layer keeps: of 20,000 tokens of such a model 30 GB, computed.
MOST_PAIRS_ON_GPU = 16_000_000


def memory_logits(models: Models, rows: Sequence[Row], memory: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """Returns logits ``"rows answer vocabulary"`` and labels ``"rows answer"``, given each row's context as memory.

    ``memory`` is ``"memory hidden"`` for each context; rows of one context share one sequence, as far as the same text
    stands before it. Shorter answers are
    padded on the left, with ``PADDING`` as their labels.
    """
    keys = [(row.context, row.prefix) for row in rows]  # a question may stand around the memory in words of its own
    texts = {prefix: embed(models.receiver, prefix) for _, prefix in keys}
    before = {(n, prefix): torch.cat([texts[prefix], memory[n].to(texts[prefix])]) for n, prefix in keys}
    return _logits(models, rows, keys, [row.suffix for row in rows], before)


def text_logits(models: Models, rows: Sequence[Row], contexts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Returns the same as ``memory_logits``, given one context per row as text; an empty one is no context.

    Rows of one context share one reading of its text.
    """
    tokenizer = models.receiver_tokenizer
    prompts = texts_ids(tokenizer, [(context, row.question) for row, context in zip(rows, contexts, strict=True)])
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
    if not (before or all(prompts)):
        raise ConfigError("expected a context or a question to each answer, got neither: such a case teaches nothing")
    groups: dict[Hashable, list[tuple[int, ...]]] = {}
    for key, prompt in zip(keys, prompts, strict=True):
        groups.setdefault(key, []).append(prompt)
    common = {key: common_tokens(group) for key, group in groups.items()}
    ids = [group[0][: common[key]] for key, group in groups.items()]
    ids += [prompt[common[key] :] + row.answer[:-1] for key, prompt, row in zip(keys, prompts, rows, strict=True)]
    embeds = embed(receiver, list(chain.from_iterable(ids))).split(list(map(len, ids)))  # at once: a GPU is far away
    beginnings, rests = list(embeds[: len(groups)]), embeds[len(groups) :]
    if before:
        beginnings = [torch.cat([before[key], own]) for key, own in zip(groups, beginnings, strict=True)]
    numbers = {key: number for number, key in enumerate(groups)}
    owner, answers = [numbers[key] for key in keys], [row.answer for row in rows]
    labels = left_padded(answers).to(rests[0].device)
    sizes = list(map(len, beginnings))
    for number, rest in zip(owner, rests, strict=True):
        sizes[number] += len(rest)
    parts = _parts(sizes, MOST_PAIRS if receiver.device.type == "cpu" else MOST_PAIRS_ON_GPU)
    if len(parts) == 1:
        return packed_logits(receiver, pack(beginnings, rests, owner, list(map(len, answers)))), labels
    return _in_parts(receiver, parts, beginnings, rests, owner, list(map(len, answers))), labels


def _parts(sizes: Sequence[int], most_pairs: int) -> list[list[int]]:
    """Splits contexts of so many tokens into passes, those of like length together."""
    parts: list[list[int]] = []
    for number in sorted(range(len(sizes)), key=lambda n: sizes[n]):
        if parts and (len(parts[-1]) + 1) * sizes[number] ** 2 <= most_pairs:
            parts[-1].append(number)
        else:
            parts.append([number])
    return parts


def _in_parts(
    receiver: Any,
    parts: Sequence[Sequence[int]],
    beginnings: Sequence[Tensor],
    rests: Sequence[Tensor],
    owner: Sequence[int],
    kept: Sequence[int],
) -> Tensor:
    """Returns the logits of several passes, each computed again on the way back: only one is held at a time."""
    longest, found = max(kept), dict[int, Tensor]()
    for part in parts:
        rows = [row for row, of in enumerate(owner) if of in part]
        own = [part.index(owner[row]) for row in rows]

        def logits(*embeds: Tensor, own: Sequence[int] = own, rows: Sequence[int] = rows, n: int = len(part)) -> Tensor:
            packed = pack(embeds[:n], embeds[n:], own, [kept[row] for row in rows])
            return packed_logits(receiver, packed)

        embeds = [*(beginnings[number] for number in part), *(rests[row] for row in rows)]
        made = checkpoint(logits, *embeds, use_reentrant=False)
        padded = F.pad(made, (0, 0, longest - made.shape[1], 0))
        found |= dict(zip(rows, padded, strict=True))
    return torch.stack([found[row] for row in range(len(owner))])
