"""How unusual one observation is: the furthest of a few statistics is its score, and the score's rank among those of a
calibration set its p-value.

::

    vector "dims" --Shape--> log Mahalanobis, log distance  }  each centred and scaled
    scalars (a posterior's width ...) ----------------------}    --largest absolute--> score --rank--> p

A conformal p-value (Vovk, Gammerman and Shafer, 2005): of messages like those of the calibration set it is uniform,
whatever the distribution, because ties are broken at random. Both directions count: a vector of a text that says too
little lies too close to the mean. The three parts of the fit (shape, centre and scale, scores) share no observation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ilcp.assurance.shape import Array, Shape
from ilcp.errors import ConfigError

__all__ = ["FEWEST", "Observed", "View"]

FEWEST = 100  # observations to fit: of 40 scores the smallest p is 1/41
SHAPED, CENTRED = 0.5, 0.6  # of the observations: to here they decide the shape, then centre and scale, then scores
SMALLEST_SCALE = 1e-6


@dataclass(frozen=True, slots=True)
class Observed:
    """What an end knows of one message before it is used: a vector ``"dims"`` float32, and numbers beside it."""

    vector: Array
    scalars: tuple[float, ...] = ()


@dataclass(frozen=True)
class View:
    """What is usual of one kind of observation, and the scores of a calibration set, ascending.

    Raises:
        ValueError: parts of another shape, or not in order.
    """

    shape: Shape
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.centre.ndim != 1 or self.centre.shape != self.scale.shape or len(self.centre) < 2:
            raise ValueError(f"centres of shape {self.centre.shape} beside scales of {self.scale.shape}")
        if not (np.isfinite(self.centre).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("centres or scales that are not finite, or scales that are not above zero")
        if self.scores.ndim != 1 or not len(self.scores) or not np.isfinite(self.scores).all():
            raise ValueError("no scores, or some that are not finite")
        if (np.diff(self.scores) < 0).any():
            raise ValueError("scores that do not ascend")

    @classmethod
    def fit(cls, observed: Sequence[Observed]) -> "View":
        """Fits observations, in the order in which they came: they have to be alike but for chance.

        Raises:
            ConfigError: there are too few, or they are not finite, or of several shapes.
        """
        if len(observed) < FEWEST:
            raise ConfigError(f"expected at least {FEWEST} messages to calibrate on, got {len(observed)}: give more")
        if len({(each.vector.shape, len(each.scalars)) for each in observed}) > 1:
            raise ConfigError("expected observations of one shape to calibrate on, got several: mend the codec")
        vectors = np.stack([each.vector for each in observed]).astype(np.float32)
        scalars = np.array([each.scalars for each in observed], dtype=np.float64).reshape(len(observed), -1)
        if not (np.isfinite(vectors).all() and np.isfinite(scalars).all()):
            raise ConfigError("expected finite observations to calibrate on, got NaN or infinity: are models damaged?")
        shaped, centred = int(SHAPED * len(observed)), int(CENTRED * len(observed))
        shape = Shape.of(vectors[:shaped])
        found = np.concatenate([shape.distances(vectors[shaped:]), scalars[shaped:]], axis=1)
        first = found[: centred - shaped]
        centre, scale = first.mean(0), np.maximum(first.std(0), SMALLEST_SCALE)
        scores = np.sort(np.abs((found[centred - shaped :] - centre) / scale).max(1))
        return cls(shape, centre, scale, scores)

    def fits(self, observed: Observed) -> bool:
        """Says whether an observation has the shape of those that this was fitted to."""
        return observed.vector.shape == self.shape.mean.shape and len(observed.scalars) + 2 == len(self.centre)

    def score(self, observed: Observed) -> float:
        """Returns how far an observation lies from what is usual; infinity where it is not finite."""
        with np.errstate(all="ignore"):
            statistics = np.concatenate([self.shape.distances(observed.vector[None])[0], observed.scalars])
            score = float(np.abs((statistics - self.centre) / self.scale).max())
        return score if np.isfinite(score) else float("inf")

    def p_value(self, score: float, chance: float) -> float:
        """Returns the p-value of a score; ``chance``, uniform in [0, 1), breaks ties."""
        above = len(self.scores) - int(np.searchsorted(self.scores, score, side="right"))
        equal = len(self.scores) - above - int(np.searchsorted(self.scores, score, side="left"))
        return (above + chance * (equal + 1)) / (len(self.scores) + 1)
