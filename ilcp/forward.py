"""One forward pass of the receiver over prompts with their answers: what scoring and training both run.

::

    prompts "tokens hidden" each, answers in ids --padded on the left--> model --> logits "rows answer vocabulary"

Padding on the left lets all answers end together, so that logits are computed for answers only.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PADDING", "answer_logits", "answer_scores", "embed", "pad_left"]

PADDING = -1  # label of a position that is no answer's


def embed(model: Any, ids: Sequence[int]) -> Tensor:
    """Embeddings ``"tokens hidden"`` of token ids."""
    vectors: Tensor = model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=model.device))
    return vectors


def pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows ``"tokens hidden"`` of any length as ``"rows tokens hidden"``, all ending together, and their mask."""
    longest = max(map(len, rows))
    embeds = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=embeds.device)
    mask = torch.arange(longest, device=embeds.device) >= (longest - lengths).unsqueeze(1)
    return embeds, mask.long()


def answer_logits(model: Any, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Float32 logits ``"rows answer vocabulary"`` that predict each answer after its embedded prompt, and the labels
    ``"rows answer"``; shorter answers are padded on the left with ``PADDING``."""
    pieces = [torch.cat([prompt, embed(model, ids)]) for prompt, ids in zip(prompts, answers, strict=True)]
    keep = max(map(len, answers))
    embeds, mask = pad_left(pieces)
    fewer = {"logits_to_keep": keep + 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    outputs = model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        **fewer,
    )
    labels = torch.full((len(pieces), keep), PADDING)
    for row, ids in enumerate(answers):
        labels[row, keep - len(ids) :] = torch.tensor(ids)
    return outputs.logits[:, -(keep + 1) : -1].float(), labels.to(embeds.device)


def answer_scores(logits: Tensor, labels: Tensor) -> list[tuple[list[float], bool]]:
    """Per row, the log-likelihood of each token of the answer in nats, and whether greedy decoding gives exactly it."""
    known = labels != PADDING
    losses = F.cross_entropy(logits.transpose(1, 2), labels.clamp(min=0), reduction="none")
    exact = ((logits.argmax(-1) == labels) | ~known).all(1)
    nats = [(-row[mine]).tolist() for row, mine in zip(losses, known, strict=True)]
    return list(zip(nats, exact.tolist(), strict=True))
