"""Several prompts that begin alike, read in one sequence: their common beginning once, then what each has of its own.

::

    beginning ... (padding) | rest 1 | rest 2 | ... (padding) | kept 1 | kept 2 | ... (padding)

Each prompt sees the beginning and itself, at the positions that it would have alone (``block_mask``), so the result is
that of separate prompts at a fraction of the work. Whatever is embedded can be a beginning: text, memory vectors, or
both; those of one batch may be of different length. The last tokens of each prompt, from which its answer is predicted,
stand together at the end of the sequences: logits are made there, and hardly anywhere else, by the model's own forward,
which alone knows how it scales or caps them.
"""

from collections.abc import Sequence
from itertools import accumulate, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ilcp.models.forward import COMMON, block_mask, left_padded
from ilcp.models.support import forward_takes

__all__ = ["Packed", "common_tokens", "pack", "packed_logits"]

NOBODY = -2  # the segment of padding: seen by padding only


class Packed(NamedTuple):
    """One sequence per beginning.

    Of each of its places ``"contexts tokens"``: the embedding, the segment (whose it is), and the position. The first
    ``common`` places are the beginnings', logits are made at the last ``kept``. Of each prompt: its sequence, ``owner``
    ``"rows"``, and which of the kept places predict its answer, ``at`` ``"rows answer"``, padded on the left.
    """

    embeds: Tensor
    segment: Tensor
    position: Tensor
    common: int
    kept: int
    owner: Tensor
    at: Tensor

    def of_rows(self, logits: Tensor) -> Tensor:
        """Returns float32 logits ``"rows answer vocabulary"`` of those at the last places of every sequence."""
        return logits[:, -self.kept :][self.owner.unsqueeze(1), self.at].float()


def common_tokens(rows: Sequence[Sequence[int]]) -> int:
    """Returns how many ids all rows begin with; at least one of each is left."""
    shortest = min(map(len, rows))
    same = (len({row[at] for row in rows}) == 1 for at in range(shortest - 1))
    return sum(takewhile(bool, same))


def pack(beginnings: Sequence[Tensor], rests: Sequence[Tensor], owner: Sequence[int], kept: Sequence[int]) -> Packed:
    """Packs prompts, each of which is its owner's beginning and its own rest, both ``"tokens hidden"``.

    Args:
        owner: for each rest, the number of its beginning.
        kept: for each rest, how many of its last tokens predict something; at least one.
    """
    offsets = [0, *accumulate(map(len, (*beginnings, *rests)))]  # in the list of all embeddings, a row of zeros last
    body, tail = [0] * len(beginnings), [0] * len(beginnings)
    for at, rest, last in zip(owner, rests, kept, strict=True):
        body[at] += len(rest) - last
        tail[at] += last
    common = max(map(len, beginnings))
    begin, width = common + max(body), common + max(body) + max(tail)
    source = torch.full((len(beginnings), width), offsets[-1])
    segment, position = torch.full_like(source, NOBODY), torch.zeros_like(source)
    for at, beginning in enumerate(beginnings):
        length = len(beginning)
        source[at, :length] = torch.arange(offsets[at], offsets[at + 1])
        segment[at, :length] = COMMON
        position[at, :length] = torch.arange(length)
    predicts: list[range] = []
    body, tail = [common] * len(beginnings), [begin] * len(beginnings)  # from here on: the next free place
    for row, (at, rest, last) in enumerate(zip(owner, rests, kept, strict=True)):
        first = len(rest) - last
        places = [*range(body[at], body[at] + first), *range(tail[at], tail[at] + last)]
        source[at, places] = torch.arange(len(rest)) + offsets[len(beginnings) + row]
        segment[at, places] = row
        position[at, places] = torch.arange(len(rest)) + len(beginnings[at])
        predicts.append(range(tail[at] - begin, tail[at] - begin + last))
        body[at] += first
        tail[at] += last
    everything = torch.cat([*beginnings, *rests, rests[0].new_zeros(1, rests[0].shape[1])])
    device = everything.device
    embeds = everything.index_select(0, source.flatten().to(device)).view(*source.shape, -1)
    places_of_rows = left_padded(predicts).clamp(min=0).to(device)
    segment, position = segment.to(device), position.to(device)
    return Packed(embeds, segment, position, common, width - begin, torch.tensor(owner, device=device), places_of_rows)


def packed_logits(model: Any, packed: Packed) -> Tensor:
    """Returns float32 logits ``"rows answer vocabulary"``, of one pass through which gradients flow."""
    logits = model(
        inputs_embeds=packed.embeds,
        attention_mask=block_mask(model, packed.segment, packed.position, packed.embeds.dtype),
        position_ids=packed.position,
        use_cache=False,
        **_kept(model, packed),
    ).logits
    return packed.of_rows(logits)


def _kept(model: Any, packed: Packed) -> dict[str, int]:
    return {"logits_to_keep": packed.kept} if forward_takes(model, "logits_to_keep") else {}
