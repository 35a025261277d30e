"""The precision in which the frozen models compute while a codec is trained."""

import time
from functools import cache

import torch
from torch.nn import functional as F

from ilcp.training.hyperparameters import Hyperparameters

__all__ = ["faster_in_bfloat16", "in_bfloat16", "precision"]


def precision(device: torch.device, hyperparameters: Hyperparameters) -> torch.autocast:
    """Returns autocast for the frozen models, where it is asked for; the network itself stays in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device, hyperparameters))


def in_bfloat16(device: torch.device, hyperparameters: Hyperparameters) -> bool:
    """Says whether the models compute in bfloat16: where it is asked for, or else where it is faster."""
    return faster_in_bfloat16(device.type) if hyperparameters.bfloat16 is None else hyperparameters.bfloat16


@cache
def faster_in_bfloat16(device: str) -> bool:
    """Measures whether a product of small matrices takes less time under autocast, which casts the weights each time:
    some processors only emulate bfloat16. A GPU is asked, since there a small product takes what its call takes."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    left, right = torch.ones(512, 256, device=device), torch.ones(256, 256, device=device)
    seconds = {}
    for halved in (False, True):
        laps = []
        for _ in range(5):
            started = time.perf_counter()
            with torch.autocast(device, torch.bfloat16, enabled=halved):
                F.linear(left, right).sum().item()
            laps.append(time.perf_counter() - started)
        seconds[halved] = min(laps)
    return seconds[True] < seconds[False]
