"""In which precision the frozen models compute while a codec is trained."""

import time
from functools import cache

import torch

from ilcp.training.hyperparameters import Hyperparameters

__all__ = ["faster_in_bfloat16", "in_bfloat16", "precision"]


def precision(device: torch.device, recipe: Hyperparameters) -> torch.autocast:
    """Autocast for the frozen models, where the recipe asks for it; the network itself stays in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device, recipe))


def in_bfloat16(device: torch.device, recipe: Hyperparameters) -> bool:
    """Whether that is so: as the recipe says, else where it is faster."""
    return faster_in_bfloat16(device.type) if recipe.bfloat16 is None else recipe.bfloat16


@cache
def faster_in_bfloat16(device: str) -> bool:
    """Whether a product of two small matrices takes less time in bfloat16 here: some processors only emulate it."""
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
