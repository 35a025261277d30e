"""The shape of what is usual: a mean and a covariance, by which the distance of a vector is told (Mahalanobis).

The covariance is shrunk towards the sphere (Ledoit and Wolf, J. Multivariate Anal. 88, 2004).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Shape"]

Array = NDArray[np.float32]
ROWS = 80  # of a block


@dataclass(frozen=True)
class Shape:
    """Mean ``"dims"`` and the lower triangle of a covariance ``"dims * (dims + 1) / 2"``, row by row.

    Raises:
        ValueError: the covariance is of another size, not finite, or none.
    """

    mean: Array
    covariance: Array

    def __post_init__(self) -> None:
        dims = len(self.mean)
        if self.mean.ndim != 1 or self.covariance.shape != (dims * (dims + 1) // 2,):
            raise ValueError(f"a mean of shape {self.mean.shape} beside a covariance of {self.covariance.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("a mean or a covariance that is not finite")
        _ = self._whitener  # which refuses what is none

    @classmethod
    def of(cls, vectors: Array) -> "Shape":
        """Fits vectors ``"n dims"``; of fewer than dims, more is shrunk."""
        n, dims = vectors.shape
        mean = vectors.mean(0, dtype=np.float64)
        centred = vectors - mean
        covariance = centred.T @ centred / n
        spread = max(float(np.trace(covariance)) / dims, 1e-12)
        apart = float(((covariance - spread * np.eye(dims)) ** 2).sum())
        noise = float((centred**2).sum(1).__pow__(2).sum()) / n - float((covariance**2).sum())
        share = 1.0 if apart <= 0 else min(1.0, max(0.0, noise / n / apart))
        shrunk = (1 - share) * covariance + share * spread * np.eye(dims) + 1e-6 * spread * np.eye(dims)
        return cls(mean.astype(np.float32), shrunk[np.tril_indices(dims)].astype(np.float32))

    @cached_property
    def _whitener(self) -> list[Array]:
        """The lower triangle that whitens, some rows at a time, each block as wide as it is not zero: what a message
        costs is the memory that is read for it."""
        dims = len(self.mean)
        full = np.zeros((dims, dims))
        full[np.tril_indices(dims)] = self.covariance
        try:  # of which the lower triangle is all that is read
            inverse = np.linalg.inv(np.linalg.cholesky(full)).astype(np.float32)
        except np.linalg.LinAlgError as error:
            raise ValueError(f"a covariance that is none: {error}") from error
        ends = [min(dims, start + ROWS) for start in range(0, dims, ROWS)]
        starts = [0, *ends[:-1]]
        return [np.ascontiguousarray(inverse[start:end, :end]) for start, end in zip(starts, ends, strict=True)]

    def distances(self, vectors: Array) -> NDArray[np.float64]:
        """Returns, of vectors ``"n dims"``, the logarithms of two squared distances from the mean, ``"n 2"``: by the
        covariance, and plain."""
        centred = vectors - self.mean
        white = [centred[:, : block.shape[1]] @ block.T for block in self._whitener]
        squared = [sum(np.square(part).sum(1, dtype=np.float64) for part in parts) for parts in (white, [centred])]
        return np.log(np.stack(squared, axis=1) + math.ulp(1.0))
