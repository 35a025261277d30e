"""The checkpoint of a run: written whole or not at all, and gone on with under the same hyperparameters only."""

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch

from ilcp.errors import ConfigError, StorageError
from ilcp.files import replacing
from ilcp.training.hyperparameters import Hyperparameters

__all__ = ["CHECKPOINT", "differences", "require_same", "write_checkpoint"]

CHECKPOINT = "checkpoint.pt"
LENGTHS = {"steps", "minutes", "texts"}  # may grow, so that a run goes on for longer; None: not said, or without end
FREE = {"teacher_floor", "validate_every", "checkpoint_minutes"}  # how a run is judged, watched and kept


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
    known, ours = (
        {name: inf if name == "minutes" and record[name] is None else record[name] for name in now if name in before}
        for record in (before, now)
    )
    shown = differences(known, ours)
    if shown:
        raise ConfigError(f"expected the hyperparameters of the checkpoint in {folder}, got a difference in {shown}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Says what makes ``now`` another run than ``before``, by flat names; empty where nothing does.

    A run may be longer than it was meant to be, and be watched and judged otherwise.
    """
    names = sorted(now.keys() | before.keys())
    return "; ".join(
        f"{name} (was {before.get(name)!r}, is {now.get(name)!r})"
        for name in names
        if before.get(name) != now.get(name) and not _may_differ(name.split(".")[-1], before.get(name), now.get(name))
    )


def _may_differ(name: str, before: Any, now: Any) -> bool:
    if name in FREE:
        return True
    return name in LENGTHS and (before is None or now is None or now >= before)
