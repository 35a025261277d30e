"""Tensors as planes of bytes: whole, or rounded to a few bits.

::

    exact    values of k bytes --> k planes: all first bytes, all second ones ... (exponents are alike, and shrink)
    rounded  low + step * code, a code of 4 or 8 bits --> codes (two of 4 bits in a byte), low and step in float32
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["exact_planes", "exact_sizes", "from_exact", "from_rounded", "rounded_planes", "rounded_sizes"]

TINY = 1e-12


def exact_planes(tensor: Tensor) -> list[bytes]:
    """Returns the bytes of a tensor's values, one plane for each byte of a value."""
    width = tensor.element_size()
    flat = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().reshape(-1, width)
    return [np.ascontiguousarray(flat[:, at]).tobytes() for at in range(width)]


def exact_sizes(count: int, dtype: torch.dtype) -> list[int]:
    """Returns how long the planes of so many values are."""
    return [count] * dtype.itemsize


def from_exact(planes: list[bytes], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns the tensor of that shape that ``exact_planes`` took apart."""
    together = np.empty((len(planes[0]), len(planes)), dtype=np.uint8)
    for at, plane in enumerate(planes):
        together[:, at] = np.frombuffer(plane, dtype=np.uint8)
    return torch.from_numpy(together.reshape(-1)).view(dtype).reshape(shape)


def rounded_planes(tensor: Tensor, bits: int, axis: int) -> list[bytes]:
    """Returns the planes of a tensor whose values along ``axis`` share one scale: codes, then lows and steps."""
    wide = tensor.float()
    low, high = wide.amin(axis, keepdim=True), wide.amax(axis, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=TINY)
    codes = ((wide - low) / step).round_().clamp_(0, 2**bits - 1).to(torch.uint8).flatten().cpu().numpy()
    if bits == 4:
        codes = np.pad(codes, (0, len(codes) % 2))
        codes = codes[::2] | codes[1::2] << 4
    scales = torch.stack([low, step]).float().cpu().numpy()
    return [codes.tobytes(), scales.astype("<f4").tobytes()]


def rounded_sizes(shape: tuple[int, ...], bits: int, axis: int) -> list[int]:
    """Returns how long the planes of a tensor of that shape are."""
    count = int(np.prod(shape))
    return [count if bits == 8 else (count + 1) // 2, 8 * count // shape[axis]]


def from_rounded(planes: list[bytes], shape: tuple[int, ...], bits: int, axis: int) -> Tensor:
    """Returns the float32 tensor of that shape that ``rounded_planes`` rounded."""
    codes = np.frombuffer(planes[0], dtype=np.uint8)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(-1)[: int(np.prod(shape))]
    scaled = list(shape)
    scaled[axis] = 1
    low, step = torch.from_numpy(np.frombuffer(planes[1], dtype="<f4").reshape(2, *scaled).astype(np.float32))
    tensor: Tensor = low + step * torch.from_numpy(codes.reshape(shape).astype(np.float32))
    return tensor
