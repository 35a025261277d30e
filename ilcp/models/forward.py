"""One forward pass of the receiver over prompts with their answers: what scoring and training both run.

::

    prompts "tokens hidden" each, answers in ids --padded on the left--> model --> logits "rows answer vocabulary"

Padding on the left lets all answers end together, so that logits are computed for answers only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ilcp.errors import EncodeError
from ilcp.models.support import forward_takes

__all__ = ["PADDING", "answer_logits", "answer_scores", "block_mask", "embed", "embedding_norm", "pad_left"]

PADDING = -1  # label of a position that is no answer's
NORM_SAMPLE = 4096  # embeddings suffice for a mean norm; all of a large vocabulary would take gigabytes


def embed(model: Any, ids: Sequence[int]) -> Tensor:
    """Embeddings ``"tokens hidden"`` of token ids, as the model's embedding module gives them."""
    vectors: Tensor = model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=model.device))
    return vectors


@torch.no_grad()
def embedding_norm(model: Any) -> float:
    """The mean norm of the embeddings as the model reads them: some families scale inside their embedding module."""
    vocabulary = model.get_input_embeddings().num_embeddings
    sample = range(0, vocabulary, -(-vocabulary // NORM_SAMPLE))
    return float(embed(model, sample).float().norm(dim=-1).mean())


def pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows ``"tokens hidden"`` of any length as ``"rows tokens hidden"``, all ending together, and their mask."""
    longest = max(map(len, rows))
    embeds = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=embeds.device)
    mask = torch.arange(longest, device=embeds.device) >= (longest - lengths).unsqueeze(1)
    return embeds, mask.long()


def block_mask(model: Any, segment: Tensor, position: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Additive mask ``"rows 1 query key"`` of sequences that hold several prompts with one beginning.

    Each token sees its own segment and what is common to all (segment -1), backwards; both arguments are
    ``"rows tokens"``, positions being those of each prompt alone. Layers with a sliding window see the last positions
    only, and a model that has both kinds of layers gets both masks, by kind.

    Raises:
        EncodeError: the model has layers of another kind.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    default = ("full_attention",) if window is None else ("sliding_attention",)
    kinds = set(getattr(config, "layer_types", None) or default)
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise EncodeError(
            f"expected a receiver of full and sliding attention to train through, got layers of {sorted(kinds)}: "
            "take a family of SUPPORT.md"
        )
    same = segment.unsqueeze(2) == segment.unsqueeze(1)
    full = (same | (segment == -1).unsqueeze(1)).tril()
    seen = {"full_attention": full}
    if "sliding_attention" in kinds:
        seen["sliding_attention"] = full & (position.unsqueeze(2) - position.unsqueeze(1) < int(window or 0))
    lowest = torch.finfo(dtype).min
    masks = {
        kind: torch.zeros(seen[kind].shape, dtype=dtype, device=segment.device)
        .masked_fill(~seen[kind], lowest)
        .unsqueeze(1)
        for kind in sorted(kinds)
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def answer_logits(model: Any, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Float32 logits ``"rows answer vocabulary"`` that predict each answer after its embedded prompt, and the labels
    ``"rows answer"``; shorter answers are padded on the left with ``PADDING``."""
    pieces = [torch.cat([prompt, embed(model, ids)]) for prompt, ids in zip(prompts, answers, strict=True)]
    keep = max(map(len, answers))
    embeds, mask = pad_left(pieces)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    wanted = {"logits_to_keep": keep + 1, "position_ids": positions, "use_cache": False}
    taken = {name: value for name, value in wanted.items() if forward_takes(model, name)}
    outputs = model(inputs_embeds=embeds, attention_mask=mask, **taken)
    labels = torch.full((len(pieces), keep), PADDING)
    for row, ids in enumerate(answers):
        labels[row, keep - len(ids) :] = torch.tensor(ids)
    return outputs.logits[:, -(keep + 1) : -1].float(), labels.to(embeds.device)


def answer_scores(logits: Tensor, labels: Tensor, ends: Sequence[int] = ()) -> list[tuple[list[float], bool]]:
    """Per row, the log-likelihood of each token of the answer in nats, and whether greedy decoding gives exactly it.

    Where an answer is closed by one of ``ends``, any other of them ends it as well.
    """
    known = labels != PADDING
    losses = F.cross_entropy(logits.transpose(1, 2), labels.clamp(min=0), reduction="none")
    said, any_end = logits.argmax(-1), torch.tensor(ends, dtype=labels.dtype, device=labels.device)
    right = (said == labels) | ~known
    right[:, -1] |= torch.isin(said[:, -1], any_end) & torch.isin(labels[:, -1], any_end)
    exact = right.all(1)
    nats = [(-row[mine]).tolist() for row, mine in zip(losses, known, strict=True)]
    return list(zip(nats, exact.tolist(), strict=True))
