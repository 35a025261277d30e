"""The disk and memory that a training will take, computed before it starts."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ilcp.errors import ConfigError, StorageError
from ilcp.training.batch import Models
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.pace import held_bytes
from ilcp.training.reader import StateStore

__all__ = ["Estimate", "estimate"]

COPIES = 4  # of what is trained: weights, gradients, and AdamW's two moments
GENERATIONS = 3  # of a checkpoint: two that stay, and the new one while it is written
TUNED = 2 * 4  # the adapter in the first stage's checkpoints, two of which stay: weights, moments, the best weights
MEGA = 1e6


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes, computed: numbers of elements times their size. What a step's activations take is not among them.

    ``program_bytes`` are measured: what the process holds already beside the models.
    """

    states_bytes: int
    checkpoint_bytes: int
    models_bytes: int
    training_bytes: int
    program_bytes: int = 0

    @property
    def memory_bytes(self) -> int:
        """All of the memory."""
        return self.models_bytes + self.training_bytes + self.program_bytes

    def __str__(self) -> str:
        parts = {
            "disk": {"the sender's states": self.states_bytes, "checkpoints": self.checkpoint_bytes},
            "memory": {
                "both models": self.models_bytes,
                "the codec in training": self.training_bytes,
                "the program": self.program_bytes,
            },
        }
        shown = [
            f"{place} {sum(of.values()) / MEGA:,.0f} MB ({', '.join(f'{n} {b / MEGA:,.0f}' for n, b in of.items())})"
            for place, of in parts.items()
        ]
        return f"computed need: {'; '.join(shown)}, and the activations of a step"


def estimate(
    models: Models,
    network: Any,
    store: StateStore,
    texts: Sequence[str],
    folder: Path,
    hyperparameters: Hyperparameters,
) -> Estimate:
    """Computes the need of a run whose states go to ``store`` and whose checkpoints to ``folder``.

    Raises:
        StorageError: there is less disk than that; the text has the numbers.
        ConfigError: there is less memory than that.
    """
    adapted = models.adapted()
    learned, tuned = [*network.parameters(), *adapted], sum(p.numel() * p.element_size() for p in adapted)
    trained = sum(p.numel() * p.element_size() for p in learned)
    whole = trained + sum(b.numel() * b.element_size() for b in network.buffers())
    both = {id(p): p for model in (models.sender, models.receiver) for p in model.parameters()}
    models_bytes = sum(p.numel() * p.element_size() for p in both.values())
    need = Estimate(
        states_bytes=min(store.bytes_of(texts), store.limit_bytes),
        checkpoint_bytes=GENERATIONS * (2 * trained + whole + whole * (hyperparameters.patience > 0))  # with moments
        + TUNED * tuned * (hyperparameters.reader_share > 0),
        models_bytes=models_bytes,
        training_bytes=COPIES * trained + whole - trained + tuned,  # the adapter once more, which sets the targets
        program_bytes=max(0, held_bytes(models.receiver.device) - models_bytes),
    )
    kept = sum(file.stat().st_size for file in store.folder.glob("*.safetensors"))  # of a run that goes on
    disk, free = need.states_bytes - kept + need.checkpoint_bytes, shutil.disk_usage(folder).free
    if disk > free:
        raise StorageError(
            f"expected {disk / MEGA:,.0f} MB of disk free at {folder}, got {free / MEGA:,.0f}: lower states_gb, or "
            "choose another --out"
        )
    memory, left = need.training_bytes, _free_memory(models.receiver.device)
    if memory > left:
        raise ConfigError(
            f"expected {memory / MEGA:,.0f} MB of memory free for the codec in training, got {left / MEGA:,.0f}: "
            "take a smaller codec, or another device"
        )
    return need


def _free_memory(device: torch.device) -> int:
    """Returns the bytes that are free on the device, the models being loaded already."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return psutil.virtual_memory().available
