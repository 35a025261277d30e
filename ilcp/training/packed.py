"""The receiver's pass in training: what it says to every question, given memory or given text.

All questions of a context run in one sequence behind its one memory: each sees the memory and itself, at the positions
it would have alone, so the result is that of separate prompts at a fraction of the work (a test compares the two)::

    prefix | memory | suffix 1, answer 1 | suffix 2, answer 2 | ...

Logits are made where an answer is predicted, and nowhere else.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ilcp.families import forward_takes
from ilcp.forward import PADDING, answer_logits, block_mask, embed
from ilcp.prompt import text_ids
from ilcp.training.batch import Models, Row

__all__ = ["memory_logits", "text_logits"]


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
    asked, at = predicts.unique(return_inverse=True)  # positions at which any row's answer is predicted
    fewer = forward_takes(receiver, "logits_to_keep")
    logits = receiver(
        inputs_embeds=embeds,
        attention_mask=block_mask(receiver, segment.to(device), position.to(device), embeds.dtype),
        position_ids=position.to(device),
        use_cache=False,
        **({"logits_to_keep": asked.to(device)} if fewer else {}),
    ).logits
    owner = torch.tensor([line[row.context] for row in rows])
    return logits[owner.unsqueeze(1), at if fewer else predicts].float(), labels.to(device)


def text_logits(models: Models, rows: Sequence[Row], contexts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """As ``memory_logits``, given one context per row as text; an empty one is no context."""
    prompts = [
        embed(models.receiver, text_ids(models.receiver_tokenizer, context, row.question))
        for row, context in zip(rows, contexts, strict=True)
    ]
    return answer_logits(models.receiver, prompts, [row.answer for row in rows])
