"""Several prompts that begin alike, read in one sequence: their common beginning once, then what each has of its own.

::

    beginning ... (padding) | rest 1 | rest 2 | ... (padding) | kept 1 | kept 2 | ... (padding)

Each prompt sees the beginning and itself, at the positions that it would have alone (``block_mask``), so the result is
that of separate prompts at a fraction of the work. Whatever is embedded can be a beginning: text, memory vectors, or
both; those of one batch may be of different length. The last tokens of each prompt, from which its answer is predicted,
stand together at the end of the sequences: logits are made there, and hardly anywhere else, by the model's own forward,
which alone knows how it scales or caps them.

Training reads a sequence in one pass. Where no gradient is wanted the beginnings are read first, which takes no mask,
and the rest behind their keys and values, which then serve the answers' next tokens: one of each prompt in a step.
"""

import copy
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ilcp.models.adapter import unwrapped
from ilcp.models.forward import COMMON, attention_kinds, block_mask, left_padded
from ilcp.models.support import TESTED, forward_takes

__all__ = ["Packed", "behind", "common_tokens", "greedy", "pack", "packed_logits", "packs", "read", "shared"]

NOBODY = -2  # the segment of padding: seen by padding only


def packs(model: Any) -> bool:
    """Says whether the model is known to give packed prompts what they get alone.

    The tested families are, in an attention that takes a mask of any shape. Of others nothing is known that a short
    check could show: a layer may look at the places of tokens, beside their positions, in long sequences only.
    """
    config = unwrapped(model).config
    return (
        config.model_type in TESTED
        and config._attn_implementation in ("eager", "sdpa")
        and attention_kinds(model) <= {"full_attention", "sliding_attention"}
        and forward_takes(model, "position_ids")
    )


class Packed(NamedTuple):
    """One sequence per beginning.

    Of each of its places ``"contexts tokens"``: the embedding, the segment (whose it is), and the position. The first
    ``common`` places are the beginnings', logits are made at the last ``kept``. Of each prompt: its sequence, ``owner``
    ``"rows"``, and which of the kept places predict its answer, ``at`` ``"rows answer"``, padded on the left. Of one
    sequence alone, a ``cache`` may hold the first places.
    """

    embeds: Tensor
    segment: Tensor
    position: Tensor
    common: int
    kept: int
    owner: Tensor
    at: Tensor
    cache: Any = None

    def of_rows(self, logits: Tensor) -> Tensor:
        """Returns float32 logits ``"rows answer vocabulary"`` of those at the last places of every sequence."""
        return logits[:, -self.kept :][self.owner.unsqueeze(1), self.at].float()


def common_tokens(rows: Sequence[Sequence[int]]) -> int:
    """Returns how many ids all rows begin with; at least one of each is left."""
    shortest = min(map(len, rows))
    same = (len({row[at] for row in rows}) == 1 for at in range(shortest - 1))
    return sum(takewhile(bool, same))


def shared(prompts: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Returns what all prompts ``"tokens hidden"`` begin with, and of each the rest, at least its last token.

    Only one of them is held as a whole, so that they may be made one by one.
    """
    beginning: Tensor | None = None
    rests: list[Tensor] = []
    for prompt in prompts:
        if beginning is None:
            beginning = prompt[:-1]
        length = min(len(beginning), len(prompt) - 1)
        length = int((beginning[:length] == prompt[:length]).all(-1).cumprod(0).sum())
        if length < len(beginning):
            rests = [torch.cat([beginning[length:], rest]) for rest in rests]
            beginning = beginning[:length]
        rests.append(prompt[length:].clone())  # a view would hold the whole prompt
    assert beginning is not None
    return beginning, rests


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
    position[:, :common] = torch.arange(common)
    for at, beginning in enumerate(beginnings):
        length = len(beginning)
        source[at, :length] = torch.arange(offsets[at], offsets[at + 1])
        segment[at, :length] = COMMON
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


@torch.no_grad()
def read(model: Any, packed: Packed) -> tuple[Tensor, Any]:
    """Returns the logits ``"contexts kept vocabulary"``, in the model's dtype, and the cache of keys and values."""
    from transformers import DynamicCache

    # Without a configuration its layers hold every position, as the masks expect.
    cache = DynamicCache() if packed.cache is None else copy.deepcopy(packed.cache)
    common = packed.common
    held = cache.get_seq_length()
    if common > held:  # padding stands behind these, where nothing that counts can see it
        model(
            inputs_embeds=packed.embeds[:, held:common],
            position_ids=packed.position[:, held:common],
            past_key_values=cache,
            use_cache=True,
            **({"logits_to_keep": 1} if forward_takes(model, "logits_to_keep") else {}),
        )
    return behind(model, packed, cache), cache


def behind(model: Any, packed: Packed, cache: Any) -> Tensor:
    """Returns the logits ``"contexts kept vocabulary"``, in the model's dtype, behind a cache of all first places.

    The cache grows by the rest; gradients flow back into it.
    """
    common, width = packed.common, packed.segment.shape[1]
    logits: Tensor = model(
        inputs_embeds=packed.embeds[:, common:],
        attention_mask=block_mask(model, packed.segment, packed.position, packed.embeds.dtype, width - common),
        position_ids=packed.position[:, common:],
        past_key_values=cache,
        use_cache=True,
        **_kept(model, packed),
    ).logits
    return logits[:, -packed.kept :]


@torch.no_grad()
def greedy(model: Any, packed: Packed, ends: Collection[int], max_new_tokens: int) -> list[list[int]]:
    """Returns the ids of each prompt's greedy answer: up to the first of ``ends``, and so many at most."""
    logits, cache = read(model, packed)
    said = packed.of_rows(logits)[:, -1].argmax(-1).tolist()
    segment, position = packed.segment, packed.position
    owner, sequences = packed.owner.tolist(), list(range(len(segment)))
    last = position[packed.owner, packed.at[:, -1] - packed.kept].tolist()  # counted from the end
    answers: list[list[int]] = [[] for _ in owner]
    going = list(range(len(owner)))
    while True:
        for row, token in zip(going, said, strict=True):
            answers[row].append(token)
        going = [row for row in going if answers[row][-1] not in ends and len(answers[row]) < max_new_tokens]
        if not going:
            return answers
        left = [at for at in sequences if any(owner[row] == at for row in going)]
        if left != sequences:
            chosen = torch.tensor([sequences.index(at) for at in left], device=segment.device)
            cache.batch_select_indices(chosen)
            segment, position, sequences = segment[chosen], position[chosen], left
        groups = [[row for row in going if owner[row] == at] for at in sequences]
        going = [row for group in groups for row in group]
        ids = _right_padded([[answers[row][-1] for row in group] for group in groups], 0).to(segment)
        new = _right_padded(groups, NOBODY).to(segment)
        places = _right_padded([[last[row] + len(answers[row]) for row in group] for group in groups], 0).to(segment)
        segment, position = torch.cat([segment, new], 1), torch.cat([position, places], 1)
        mask = block_mask(model, segment, position, packed.embeds.dtype, new.shape[1])
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        ).logits
        said = logits[new != NOBODY].argmax(-1).tolist()


def _right_padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
