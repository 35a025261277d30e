"""A list of cases as a training reads it: in batches of like length, in an order of its own in every epoch."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ilcp.errors import ConfigError
from ilcp.tasks.cases import Case

__all__ = ["LEAST", "Shuffled", "Split", "require_enough", "split"]

POOL = 16  # batches among which like lengths are sought: more would make batches alike in more than length
LEAST = 16  # cases of validation and of test each: fewer say nothing


class Shuffled:
    """A source for ``fit``: the same batch for the same number, every case once per epoch.

    ``lengths`` (one per case, in any unit) decides which cases share a batch: padding is work for nothing. What does
    not fill a batch at the end of an epoch waits for another.
    """

    def __init__(self, cases: Sequence[Case], lengths: Sequence[int], seed: int):
        self.cases, self.lengths, self.seed = list(cases), list(lengths), seed
        self._order: tuple[tuple[int, int], list[list[int]]] | None = None

    def __call__(self, first: int, n: int) -> list[Case]:
        """Returns the ``n`` cases of batch ``first // n``.

        Raises:
            ConfigError: there are fewer than ``n`` cases.
        """
        if len(self.cases) < n:
            raise ConfigError(f"expected at least {n} cases for a batch, got {len(self.cases)}: lower contexts")
        batches = len(self.cases) // n
        epoch, number = divmod(first // n, batches)
        if self._order is None or self._order[0] != (epoch, n):
            self._order = (epoch, n), self._shuffled(epoch, n)
        return [self.cases[index] for index in self._order[1][number]]

    def _shuffled(self, epoch: int, n: int) -> list[list[int]]:
        rng = random.Random(f"order {self.seed}/{epoch}")
        order = rng.sample(range(len(self.cases)), len(self.cases) // n * n)
        batches: list[list[int]] = []
        for start in range(0, len(order), POOL * n):
            pool = sorted(order[start : start + POOL * n], key=lambda index: self.lengths[index])
            batches += [pool[at : at + n] for at in range(0, len(pool), n)]
        rng.shuffle(batches)
        return batches


@dataclass(frozen=True, slots=True)
class Split:
    """Cases to learn from, to watch the learning by, and to measure what came out: no case is in two of them."""

    training: list[Case]
    validation: list[Case]
    test: list[Case]


def require_enough(count: int) -> None:
    """Refuses too few cases to split.

    Raises:
        ConfigError: with how many it takes.
    """
    if count < 10 * LEAST:
        raise ConfigError(
            f"expected at least {10 * LEAST} cases with different contexts (a tenth validates, a tenth tests), "
            f"got {count}: add cases, or let the sender write them with --self-study (more texts, where it did)"
        )


def split(cases: Sequence[Case], *, validation: int, test: int, seed: int) -> Split:
    """Splits off so many cases for validation and test, at most a tenth of all for each, drawn by seed.

    Raises:
        ConfigError: there are too few cases to draw them from.
    """
    require_enough(len(cases))
    order = random.Random(f"split {seed}").sample(cases, len(cases))
    sizes = [min(wanted, len(order) // 10) for wanted in (test, validation)]
    return Split(training=order[sum(sizes) :], validation=order[sizes[0] : sum(sizes)], test=order[: sizes[0]])
