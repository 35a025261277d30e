"""Ridge regression of many outputs on many features, of any number of rows, as a map that can be trained on.

::

    rows "features", "outputs" --Sums--> means, products --ridge of whitened features--> LinearMap
      --folded--> weight "features outputs", bias "outputs"
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LinearMap", "Sums"]

RIDGE = 0.01  # of each feature's spread
SMALLEST = 1e-7  # of the largest spread squared: what spreads less is rounding


class Sums:
    """What the closed form needs of any number of rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._near: Any = None  # the means, roughly: products of what is far from zero lose their last digits
        self._x: Any = 0.0
        self._y: Any = 0.0
        self._xx: Any = 0.0
        self._xy: Any = 0.0
        self._yy: Any = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Takes in features ``"rows features"`` and outputs ``"rows outputs"``."""
        if not len(x):
            return
        if self._near is None:
            self._near = x.mean(0), y.mean(0)
        self.rows += len(x)
        x, y = x - self._near[0], y - self._near[1]
        self._x, self._y = self._x + x.double().sum(0), self._y + y.double().sum(0)
        self._xx, self._xy = self._xx + (x.T @ x).double(), self._xy + (x.T @ y).double()
        self._yy = self._yy + y.double().square().sum(0)

    def map(self) -> "LinearMap":
        """Returns the ridge regression of the outputs on the features."""
        mean, target = self._x / self.rows, self._y / self.rows
        spread = (self._yy / self.rows - target.square()).clamp(min=1e-12).sqrt()
        variances, vectors = torch.linalg.eigh(self._xx / self.rows - mean[:, None] * mean)
        kept = variances > SMALLEST * variances.max()
        whitening = vectors[:, kept] / variances[kept].sqrt()
        weight = whitening.T @ (self._xy / self.rows - mean[:, None] * target) / (1 + RIDGE) / spread
        return LinearMap(mean + self._near[0], whitening, weight, target + self._near[1], spread)


class LinearMap(nn.Module):
    """A linear map whose parameters are between features and outputs that are uncorrelated and of unit spread."""

    def __init__(self, mean: Tensor, whitening: Tensor, weight: Tensor, target: Tensor, spread: Tensor):
        super().__init__()
        self.mean, self.whitening, self.target, self.spread = (
            each.float() for each in (mean, whitening, target, spread)
        )
        self.weight = nn.Parameter(weight.float())
        self.bias = nn.Parameter(torch.zeros_like(self.weight[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``"rows outputs"`` of ``"rows features"``."""
        white = (x - self.mean) @ self.whitening
        return (white @ self.weight + self.bias) * self.spread + self.target

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Returns the same as one weight and one bias, on the CPU."""
        weight = self.whitening.double() @ self.weight.double() * self.spread
        bias = self.bias.double() * self.spread + self.target - self.mean.double() @ weight
        return weight.float().cpu(), bias.float().cpu()
