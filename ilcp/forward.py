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

__all__ = ["PADDING", "answer_logits", "answer_scores", "embed"]

PADDING = -1  # label of a position that is no answer's


def embed(model: Any, ids: Sequence[int]) -> Tensor:
    """Embeddings ``"tokens hidden"`` of token ids."""
    vectors: Tensor = model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=model.device))
    return vectors


def answer_logits(model: Any, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Float32 logits ``"rows answer vocabulary"`` that predict each answer after its embedded prompt, and the labels
    ``"rows answer"``; shorter answers are padded on the left with ``PADDING``."""
    pieces = [torch.cat([prompt, embed(model, ids)]) for prompt, ids in zip(prompts, answers, strict=True)]
    longest, keep = max(map(len, pieces)), max(map(len, answers))
    embeds = torch.stack([F.pad(piece, (0, 0, longest - len(piece), 0)) for piece in pieces])
    lengths = torch.tensor([len(piece) for piece in pieces], device=embeds.device)
    positions = torch.arange(longest, device=embeds.device) - (longest - lengths).unsqueeze(1)
    fewer = {"logits_to_keep": keep + 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    outputs = model(
        inputs_embeds=embeds,
        attention_mask=(positions >= 0).long(),
        position_ids=positions.clamp(min=0),
        **fewer,
    )
    labels = torch.full((len(pieces), keep), PADDING)
    for row, ids in enumerate(answers):
        labels[row, keep - len(ids) :] = torch.tensor(ids)
    return outputs.logits[:, -(keep + 1) : -1].float(), labels.to(embeds.device)


def answer_scores(logits: Tensor, labels: Tensor) -> list[tuple[float, bool]]:
    """Per row, the log-likelihood of the answer in nats, and whether greedy decoding gives exactly it."""
    known = labels != PADDING
    losses = F.cross_entropy(logits.transpose(1, 2), labels.clamp(min=0), reduction="none")
    nats = -(losses * known).sum(1)
    exact = ((logits.argmax(-1) == labels) | ~known).all(1)
    return list(zip(nats.tolist(), exact.tolist(), strict=True))
