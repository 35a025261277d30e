"""Which prompts a receiver reads in one pass: what begins alike is one sequence, and those of like length go together.

::

    prompts about one memory --sequences--> Asked: beginning, rests --passes--> as many as one pass takes
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ilcp.models.packing import Packed, pack, shared

__all__ = ["Asked", "Limits", "packed", "passes", "sequences"]

RESTS_TOKENS = 1024  # of a sequence: beyond, looking past one another costs more than to read a short beginning again
RESTS_TOKENS_LONG = 4096  # the same for a beginning as long; the mask is then as large as a quarter of a gigabyte
PASS_TOKENS = 16_384  # padding and new tokens counted: the keys and values of so many are 2 to 8 GB of a model of 7B
PASS_LOGITS = 2**25  # 64 MB in half precision; those of one sequence once more in float32, to compare them
POOL_TOKENS = 4 * PASS_TOKENS  # lie ready, and are sorted by length before they are cut into passes


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pass may hold: so many prompts, each with so many ``new`` tokens, and logits of such a vocabulary."""

    batch: int
    vocabulary: int
    new: int = 0

    def admit(self, part: Sequence["Asked"]) -> bool:
        """Says whether these sequences fit into one pass; one with a cache is read alone."""
        if len(part) > 1 and any(asked.cache is not None for asked in part):
            return False
        rows, beginning, body, kept = (max(sizes) for sizes in zip(*(asked.sizes for asked in part), strict=True))
        tokens = beginning + body + kept + rows * self.new
        return (
            sum(len(asked.numbers) for asked in part) <= self.batch
            and len(part) * tokens <= PASS_TOKENS
            and len(part) * kept * self.vocabulary <= PASS_LOGITS
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """One sequence: the prompts of these ``numbers``, embedded: what they begin with, and what each has of its own.

    Of each prompt the last ``kept`` tokens predict something: its answer's first token, and each further one. A
    ``cache`` holds the keys and values of the first tokens of the beginning, which are then not read.
    """

    numbers: tuple[int, ...]
    beginning: Tensor
    rests: tuple[Tensor, ...]
    kept: tuple[int, ...]
    cache: Any = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The number of prompts, and of tokens: the beginning's, and the rests' that predict nothing and that do."""
        kept = sum(self.kept)
        return len(self.numbers), len(self.beginning), sum(map(len, self.rests)) - kept, kept


def sequences(
    numbers: Sequence[int], prompts: Iterable[Tensor], answers: Sequence[Tensor], limits: Limits, cache: Any = None
) -> Iterator[Asked]:
    """Yields the prompts ``"tokens hidden"`` as sequences: one, or more where it would be too long.

    ``answers`` are the embedded tokens that stand behind each prompt; of none where the answer is asked for.
    """
    beginning, rests = shared(prompts)
    longest = min(max(RESTS_TOKENS, len(beginning)), RESTS_TOKENS_LONG)
    kept = [len(answer) + 1 for answer in answers]
    whole = [torch.cat([rest, answer]) for rest, answer in zip(rests, answers, strict=True)]
    start = 0
    for stop in range(1, len(whole) + 1):
        tokens = sum(map(len, whole[start : stop + 1])) + (stop + 1 - start) * limits.new
        logits = sum(kept[start : stop + 1]) * limits.vocabulary
        if stop == len(whole) or tokens > longest or logits > PASS_LOGITS:
            part = slice(start, stop)
            yield Asked(tuple(numbers[part]), beginning, tuple(whole[part]), tuple(kept[part]), cache)
            start = stop


def passes(asked: Iterable[Asked], limits: Limits) -> Iterator[list[Asked]]:
    """Yields the sequences in groups of like length, of which each is one pass."""
    pool: list[Asked] = []
    tokens = 0
    for sequence in asked:
        pool.append(sequence)
        tokens += len(sequence.beginning) + sum(map(len, sequence.rests))
        if tokens > POOL_TOKENS:
            yield from _cut(pool, limits)
            pool, tokens = [], 0
    yield from _cut(pool, limits)


def _cut(pool: list[Asked], limits: Limits) -> Iterator[list[Asked]]:
    part: list[Asked] = []
    for sequence in sorted(pool, key=lambda each: len(each.beginning)):
        if part and not limits.admit([*part, sequence]):
            yield part
            part = []
        part.append(sequence)
    if part:
        yield part


def packed(part: Sequence[Asked]) -> Packed:
    """Packs the sequences of one pass."""
    return pack(
        [asked.beginning for asked in part],
        [rest for asked in part for rest in asked.rests],
        [at for at, asked in enumerate(part) for _ in asked.numbers],
        [kept for asked in part for kept in asked.kept],
    )._replace(cache=part[0].cache)
