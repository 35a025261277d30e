"""Several processes that train one codec: each works on its part of every batch, and all together do what one would.

Process ``rank`` of ``world`` takes every ``world``-th context of a batch. What is drawn at random is drawn for the
whole batch by every process alike, and each keeps its part; means are over the whole batch; gradients are averaged once
per step. So the loss of a step does not depend on how many processes made it (a test compares two with one).

``accelerate launch`` starts the processes and finds each its device; ``init_device`` lets one take its place among
them. Without it everything here is what a single process does.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.errors import MissingExtraError
from ilcp.nn.device import usable_device

__all__ = [
    "SyncedNorm",
    "all_reduce",
    "any_rank",
    "average_gradients",
    "init_device",
    "is_main",
    "rank",
    "same_everywhere",
    "shard",
    "shard_rng",
    "world",
]

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # others wait while one measures; of one that died, the launcher knows at once


def init_device(device: str | None = None) -> torch.device:
    """Returns the device that this process computes on; joins the others where a launcher started several.

    Raises:
        MissingExtraError: several processes were started and accelerate is not installed.
        ConfigError: ``device`` is none of torch's.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise MissingExtraError.of("accelerate", "for several processes", "train") from error
        found: torch.device = PartialState(cpu=device == "cpu", timeout=PATIENCE).device
        return found
    return usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def world() -> int:
    """Returns how many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns which of them this one is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Says whether this process is the one that writes files and speaks."""
    return rank() == 0


def shard(items: Sequence[T]) -> Sequence[T]:
    """Returns this process's part of what all have."""
    return items[rank() :: world()]


def shard_rng(count: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Returns this process's ``count`` rows of what ``draw`` gives for the rows of all processes together."""
    return draw(count * world())[rank() :: world()]


def all_reduce(value: Tensor | float, device: Any = "cpu") -> Tensor:
    """Returns the sum over all processes; its gradient is that of every process's use of it."""
    tensor = value if isinstance(value, Tensor) else torch.tensor(float(value), device=device)
    summed: Tensor = tensor if world() == 1 else _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


def any_rank(said: bool, device: Any = "cpu") -> bool:
    """Says whether it holds in any process; all get the same answer."""
    return bool(said) if world() == 1 else bool(all_reduce(float(said), device) > 0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Puts the mean over all processes in place of each process's own gradients, in one exchange."""
    if world() == 1:
        return
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= world()
    for parameter, part in zip(learning, flat.split([grad.numel() for grad in grads]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def same_everywhere(module: nn.Module) -> None:
    """Gives every process the weights and buffers of the first."""
    if world() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


class _Sum(torch.autograd.Function):
    """A sum over processes whose gradient is summed over processes, too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed = value.detach().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed


class SyncedNorm(nn.BatchNorm1d):
    """Batch normalisation over the batches of all processes; torch's own of that kind wants GPUs.

    ``"batch features"`` in and out. One process computes exactly what ``BatchNorm1d`` does, but for a batch of one or
    none in training, which has no spread of its own: it is normalised by what was seen before.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world() == 1 < len(x):
            return super().forward(x)
        count = all_reduce(float(len(x)), x.device)
        if count < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        middle = all_reduce(x.sum(0)) / count
        variance = all_reduce((x - middle).square().sum(0)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            share = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(middle, share)
            self.running_var.lerp_(variance * count / (count - 1), share)
        return (x - middle) / (variance + self.eps).sqrt()
