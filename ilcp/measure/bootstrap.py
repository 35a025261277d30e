"""95 % intervals by a paired bootstrap over documents.

Questions about one document are not independent, so whole documents are drawn. Every statistic of one ``Bootstrap``
sees the same draws: a difference of two arms is therefore paired, item by item.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ilcp.measure.figures import Measured

__all__ = ["Bootstrap"]

DRAWS = 2000
Floats = NDArray[np.float64]


class Bootstrap:
    """Resampled documents. ``groups`` names the document of each item; the same seed gives the same draws."""

    def __init__(self, groups: Sequence[int], *, seed: int):
        names = sorted(set(groups))
        self._groups = np.searchsorted(names, groups)
        drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
        self._weights = np.vstack([np.ones(len(names)), drawn]).astype(np.float64)  # row 0: all documents, once

    def means(self, values: Floats, items: NDArray[np.bool_] | None = None) -> Floats:
        """Returns the mean of ``values`` over the chosen items, ``"1+draws"``: of all documents, then of each draw.

        NaN where a draw has no such item.
        """
        chosen = np.ones(len(values), dtype=bool) if items is None else items
        shape = self._weights.shape[1]
        sums = np.bincount(self._groups[chosen], values[chosen], minlength=shape)
        counts = np.bincount(self._groups[chosen], minlength=shape)
        with np.errstate(invalid="ignore"):
            means: Floats = (self._weights @ sums) / (self._weights @ counts)
        return means

    def sums(self, values: Floats) -> Floats:
        """Returns the mean over documents of the sum of ``values`` in each, as ``means`` gives it."""
        sums = np.bincount(self._groups, values, minlength=self._weights.shape[1])
        return self.of_groups(sums.astype(np.float64))

    def of_groups(self, values: Floats) -> Floats:
        """Returns the mean of one value per document, or of one that holds for all."""
        values = np.broadcast_to(values, self._weights.shape[1])
        means: Floats = (self._weights @ values) / self._weights.sum(1)
        return means

    def figure(self, statistic: Floats, n: int, unit: str = "") -> Measured:
        """Makes a figure of a statistic of ``means``; it has no interval where a draw is not finite (as over zero)."""
        value, draws = float(statistic[0]), statistic[1:]
        if not np.isfinite(draws).all():
            return Measured(value, unit, n)
        low, high = np.percentile(draws, [2.5, 97.5])
        return Measured(value, unit, n, float(low), float(high))

    def of(
        self, statistic: Callable[..., Floats], *values: Floats, items: NDArray[np.bool_] | None = None, unit: str = ""
    ) -> Measured:
        """Returns the figure of ``statistic(mean of each of values)`` over the chosen items."""
        n = len(values[0]) if items is None else int(items.sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.figure(statistic(*(self.means(one, items) for one in values)), n, unit)
