"""The spread of vectors, from which whitening and colouring are made."""

import torch
from torch import Tensor

__all__ = ["principal_axes", "whitening"]

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
