"""The checkpoint of a run: written whole or not at all, and gone on with under the same hyperparameters only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ilcp.errors import ConfigError, StorageError
from ilcp.files import replacing
from ilcp.training.hyperparameters import Hyperparameters

__all__ = ["CHECKPOINT", "require_same", "write_checkpoint"]

CHECKPOINT = "checkpoint.pt"
JUDGED = {"teacher_floor"}  # before the first step, and not again: another value does not make it another run


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes the checkpoint whole or not at all; the one before stays until then.

    Raises:
        StorageError: the disk is full, or not to be written to.
    """
    file = folder / CHECKPOINT
    try:
        with replacing(file, durable=True) as draft:
            torch.save(dict(state), draft)
    except (StorageError, RuntimeError) as error:  # torch wraps a full disk into a RuntimeError
        kept = "the checkpoint before stays" if file.exists() else "none was there before"
        raise StorageError(
            f"expected room for a checkpoint in {folder}, got: {error.__cause__ or error}; {kept}: free space, then "
            "resume"
        ) from error


def require_same(before: Mapping[str, Any], hyperparameters: Hyperparameters, folder: Path) -> None:
    """Refuses other hyperparameters than those of a run that goes on; what was not known when it began is left out.

    Raises:
        ConfigError: the text has each that differs, with both values.
    """
    now = hyperparameters.to_dict()
    differs = [name for name in now if name in before and name not in JUDGED and before[name] != now[name]]
    if differs:
        shown = "; ".join(f"{name} (was {before[name]!r}, is {now[name]!r})" for name in differs)
        raise ConfigError(f"expected the hyperparameters of the checkpoint in {folder}, got a difference in {shown}")
