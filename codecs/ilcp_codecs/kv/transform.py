"""Transform coding of one tensor of keys or values: principal components, each rounded to bits of its own.

::

    x "tokens dims" --mean, basis--> y "tokens dims" --divided by its spread, rounded to bits[dim]--> codes --> planes

Components of large spread get many bits and those of little none. A bit more divides a component's error by about
four, so what one more bit takes away falls from bit to bit, and handing out bits one by one, each where it takes away
most, is the best of all ways to spend them: what dynamic programming would find. Rounding is uniform, its steps those
of the smallest error of a Gaussian (Max, 1960). Caches are coded so by KVTC, arXiv 2511.01815.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["MOST_BITS", "Transform", "allotted", "fitted", "packed", "packed_sizes", "unpacked"]

# Of a Gaussian of unit spread rounded to so many bits: the step of least error, and that error.
STEPS = (0.0, 1.5956, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)
ERRORS = (1.0, 0.3634, 0.1188, 0.0374, 0.0115, 0.00349, 0.00104, 0.000304, 0.0000885)
MOST_BITS = len(STEPS) - 1


class Transform:
    """Mean ``"dims"``, basis ``"components dims"``, spread and bits ``"components"`` of one tensor."""

    def __init__(self, mean: Tensor, basis: Tensor, spread: Tensor, bits: Tensor):
        self.mean, self.basis, self.spread, self.bits = mean, basis, spread, bits
        steps = torch.tensor(STEPS)[bits.long()] * spread
        self._groups = [
            (count, basis[bits == count], steps[bits == count])
            for count in range(1, MOST_BITS + 1)
            if bool((bits == count).any())
        ]

    @property
    def counts(self) -> list[tuple[int, int]]:
        """The number of components of each number of bits, for those that are sent."""
        return [(count, len(basis)) for count, basis, _ in self._groups]

    def codes(self, x: Tensor) -> list[Tensor]:
        """Returns the codes ``"tokens components"`` of each group of as many bits, uint8."""
        centred = x - self.mean
        return [
            torch.floor(centred @ basis.T / step + 2 ** (count - 1)).clamp_(0, 2**count - 1).to(torch.uint8)
            for count, basis, step in self._groups
        ]

    def values(self, codes: list[Tensor], tokens: int) -> Tensor:
        """Returns ``"tokens dims"`` float32 out of the codes."""
        x = self.mean.expand(tokens, -1).clone()
        for (count, basis, step), own in zip(self._groups, codes, strict=True):
            x += ((own.float() - (2 ** (count - 1) - 0.5)) * step) @ basis
        return x


def fitted(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean, basis and spread of rows ``"tokens dims"``, the components of largest spread first."""
    mean = x.double().mean(0)
    centred = x.double() - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(x) - 1))
    spread = variances.flip(0).clamp(min=1e-12).sqrt()
    return mean.float(), vectors.flip(1).T.contiguous().float(), spread.float()


def allotted(variances: Tensor, total_bits: int) -> Tensor:
    """Returns how many bits each component gets, of so many in all: ``"components"`` uint8.

    ``variances`` are weighted by what an error in the component costs.
    """
    gains = torch.tensor(ERRORS[:-1]) - torch.tensor(ERRORS[1:])
    worth = (variances.float()[:, None] * gains).flatten()
    taken = torch.zeros_like(worth)
    taken[worth.topk(min(total_bits, len(worth))).indices] = 1
    return taken.view(-1, MOST_BITS).sum(1).to(torch.uint8)


def packed(codes: Tensor, bits: int) -> bytes:
    """Returns codes as bytes: one plane of bits after the other, the highest first."""
    flat = codes.flatten().numpy()
    return b"".join(np.packbits((flat >> bit) & 1).tobytes() for bit in range(bits - 1, -1, -1))


def packed_sizes(count: int, bits: int) -> int:
    """Returns how many bytes so many codes take."""
    return bits * ((count + 7) // 8)


def unpacked(plane: bytes, shape: tuple[int, int], bits: int) -> Tensor:
    """Returns the codes of that shape."""
    count = shape[0] * shape[1]
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(bits, -1)
    flat = np.zeros(count, dtype=np.uint8)
    for row in rows:
        flat = np.left_shift(flat, 1, dtype=np.uint8) | np.unpackbits(row, count=count)
    return torch.from_numpy(flat.reshape(shape))
