"""The checkpoint of a run: written whole or not at all, and gone on with under the same hyperparameters only.

There are two, the latest and the one before it, each with a digest of all that it holds: what the disk did to the one
costs the minutes between them, not the run.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from math import inf
from pathlib import Path
from typing import Any

import torch

from ilcp.errors import ConfigError, StorageError
from ilcp.files import held, replacing
from ilcp.folders import open_regular
from ilcp.identity import digest_all
from ilcp.nn.distributed import is_main
from ilcp.training.hyperparameters import Hyperparameters

__all__ = [
    "BEFORE",
    "CHECKPOINT",
    "alone",
    "differences",
    "has_checkpoint",
    "read_checkpoint",
    "require_same",
    "write_checkpoint",
]

CHECKPOINT, BEFORE = "checkpoint.pt", "checkpoint.before.pt"  # the latest, and the one before it
LOCK = "checkpoint.lock"
MAGIC = b"ilcp checkpoint\n"  # then the digest of the rest, which torch wrote
HEAD_BYTES = len(MAGIC) + 16
LENGTHS = {"steps", "minutes", "texts"}  # may grow, so that a run goes on for longer; None: not said, or without end
FREE = {"teacher_floor", "validate_every", "checkpoint_minutes"}  # how a run is judged, watched and kept


def alone(folder: Path, lock: str = LOCK) -> AbstractContextManager[None]:
    """Holds a run's folder inside a ``with``, for all processes of one run.

    Raises:
        ConfigError: another run holds it; the text says which process.
        StorageError: the lock cannot be made.
    """
    return held(folder / lock) if is_main() else nullcontext()


def has_checkpoint(folder: Path) -> bool:
    """Says whether a run left a checkpoint in the folder; a crash may leave the one before alone."""
    return any(os.path.exists(folder / name) for name in (CHECKPOINT, BEFORE))


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes the checkpoint whole or not at all; the one before stays beside it.

    Raises:
        StorageError: the disk is full, or not to be written to.
    """
    file, buffer = folder / CHECKPOINT, BytesIO(bytes(HEAD_BYTES))
    buffer.seek(HEAD_BYTES)
    torch.save(dict(state), buffer)
    content = buffer.getbuffer()
    content[:HEAD_BYTES] = MAGIC + digest_all([content[HEAD_BYTES:]])
    try:
        with replacing(file, private=True) as draft:
            draft.write_bytes(content)
            if os.path.exists(file):
                file.replace(folder / BEFORE)
    except StorageError as error:
        kept = "the checkpoint before stays" if has_checkpoint(folder) else "none was there before"
        raise StorageError(
            f"expected room for a checkpoint in {folder}, got: {error.__cause__ or error}; {kept}: free space, then "
            "resume"
        ) from error


def read_checkpoint(folder: Path, device: torch.device | str = "cpu") -> tuple[Any, Path]:
    """Returns what the latest whole checkpoint of the folder holds, and its file.

    Raises:
        StorageError: none is whole.
    """
    failed: Exception | None = None
    for file in (folder / CHECKPOINT, folder / BEFORE):
        try:
            return torch.load(BytesIO(_content(file)), weights_only=True, map_location=device), file
        except Exception as error:  # pickle, zip and torch raise many kinds, all of which mean this
            failed = failed or error
    raise StorageError(f"expected a checkpoint in {folder / CHECKPOINT}, got a damaged file: {failed!r}") from failed


def _content(file: Path) -> memoryview:
    with open_regular(file) as opened:
        data = memoryview(opened.read())
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not begin with the digest that every checkpoint has")
    if data[len(MAGIC) : HEAD_BYTES] != digest_all([data[HEAD_BYTES:]]):
        raise ValueError("its digest is that of something else")
    return data[HEAD_BYTES:]


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
