"""Weights in half precision: rounded to it when training is over, and saved in it where that loses nothing."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["lean", "round_to_half"]


@torch.no_grad()
def round_to_half(tensors: Iterable[Tensor]) -> None:
    """Rounds those of floating point, in place, to the nearest that 16 bits hold, so that a file is half as large."""
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def lean(tensor: Tensor) -> Tensor:
    """Returns the tensor in 16 bits where that loses nothing, else as it is."""
    half = tensor.half()
    return half if tensor.is_floating_point() and torch.equal(half.float(), tensor.float()) else tensor
