"""The spread of vectors, from which whitening and colouring are made."""

import torch
from torch import Tensor, nn

__all__ = ["principal_axes", "start_whitened", "whitening"]

JOINT_WIDTH = 4096  # rows that are wider are whitened part by part, for it takes width cubed
FLOOR = 1e-3  # of the largest variance: directions below it are noise


def principal_axes(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean ``"width"``, variances ``"width"`` and directions ``"width width"`` of rows ``"n width"``.

    The variances ascend, and none is below a floor.
    """
    rows = rows.detach().float()
    middle = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - middle).T @ (rows - middle) / len(rows))
    return middle, values.clamp(min=FLOOR * float(values[-1])), vectors


def whitening(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``middle`` ``"width"`` and ``matrix`` ``"width width"`` of rows ``"n width"``.

    ``(rows - middle) @ matrix`` varies by one in every direction.
    """
    middle, values, vectors = principal_axes(rows)
    return middle, vectors / values.sqrt() @ vectors.T


@torch.no_grad()
def start_whitened(linear: nn.Linear, rows: Tensor, part: int) -> None:
    """Starts a layer as a random rotation of whitened ``rows`` ``"n width"``; wide ones in parts of so many columns.

    Words of one kind share most of their state; without this, what tells them apart is learned last or never.
    """
    width = rows.shape[1]
    part = width if width <= JOINT_WIDTH else part
    directions = nn.init.orthogonal_(torch.empty_like(linear.weight))
    for start in range(0, width, part):
        middle, matrix = whitening(rows[:, start : start + part])
        weight = directions[:, start : start + part] @ matrix
        linear.weight[:, start : start + part] = weight
        directions[:, start : start + part] = weight * middle  # of which the bias takes the sum
    linear.bias.copy_(-directions.sum(1))
