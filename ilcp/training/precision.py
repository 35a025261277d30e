"""The precision in which the frozen models compute while a codec is trained."""

import time
from functools import cache

import torch

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
    """Measures whether a product of small matrices takes less time in bfloat16: some processors only emulate it."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(512, 256, dtype=dtype, device=device), torch.ones(256, 256, dtype=dtype, device=device)
        laps = []
        for _ in range(5):
            started = time.perf_counter()
            (left @ right).sum().item()
            laps.append(time.perf_counter() - started)
        seconds[dtype] = min(laps)
    return seconds[torch.bfloat16] < seconds[torch.float32]
