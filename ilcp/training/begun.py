"""What lies in the folders of a training already: a codec that is done, a run that may go on, and of which recipe."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch

from ilcp.codec.folder import CONFIG, evidence_of
from ilcp.errors import ConfigError, IlcpError, StorageError
from ilcp.files import write_whole
from ilcp.folders import read_json, read_whole
from ilcp.identity import ModelIdentity, differs, digest
from ilcp.nn.distributed import any_rank, is_main
from ilcp.tasks.load import own_test
from ilcp.training import lesson, tuning
from ilcp.training.checkpoint import differences, has_checkpoint
from ilcp.training.config import TrainingConfig
from ilcp.training.hyperparameters import renamed
from ilcp.training.log import flat
from ilcp.training.precision import in_bfloat16

__all__ = ["KEPT", "STUDY", "is_begun", "is_empty", "refuse_taken", "same_config"]

KEPT, STUDY = "plan.json", "self-study.jsonl"  # in the run's folder, named as ever
STAGES = ("", tuning.FOLDER, lesson.FOLDER)  # each with a checkpoint of its own
HALVED = "in bfloat16"
SIDES = ("sender identity", "receiver identity")


def is_begun(out: str | Path) -> bool:
    """Says whether a training to the folder ``out`` was begun, so that ``resume=True`` has something to go on with."""
    return os.path.exists(own_test(out).parent / KEPT)


def refuse_taken(config: TrainingConfig, resume: bool) -> None:
    """Refuses to overwrite what is finished, to begin anew what is begun, and to go on with what is not.

    Raises:
        ConfigError: with what to do.
    """
    out, work = config.out, config.work
    if os.path.islink(out) or os.path.ismount(out):
        raise ConfigError(f"expected a plain folder for the codec, got a link or mount at {out}: name one inside")
    unmeasured = _is_unmeasured(out) and has_checkpoint(work)
    if os.path.exists(out) and not is_empty(out) and not (resume and unmeasured):
        holds, way_out = "is not empty", ""
        if os.path.exists(out / CONFIG):
            holds = "holds a codec already"
            way_out = "move it away to train it further, or " if resume else ""
            way_out = "pass --resume to measure it, or " if unmeasured else way_out
        raise ConfigError(
            f"expected a new folder for the codec, got {out}, which {holds}: {way_out}choose another --out"
        )
    if resume and not is_begun(out):
        raise ConfigError(f"expected a run to go on with in {work}, got none: leave --resume out to begin one")
    if any(has_checkpoint(work / stage) for stage in STAGES) and not resume:
        raise ConfigError(
            f"expected no run in {work}, got one with a checkpoint: pass --resume to go on with it, remove it, "
            "or choose another --out"
        )


def is_empty(out: Path) -> bool:
    """Says whether there is a folder with nothing in it; one that cannot be read may hold anything."""
    with suppress(OSError):
        return not os.listdir(out)
    return False


def _is_unmeasured(out: Path) -> bool:
    """Says whether a codec lies there whose run ended before it was measured."""
    with suppress(IlcpError):
        return evidence_of(out) is None
    return False


def same_config(config: TrainingConfig, identities: Sequence[ModelIdentity], device: torch.device) -> bool:
    """Says whether the models compute in bfloat16: decided once for all processes and parts of a run, and kept.

    Raises:
        ConfigError: another configuration began the run; the text has every key that differs, with both values.
        StorageError: what began it cannot be read.
    """
    names = dict(zip(SIDES, map(asdict, identities), strict=True))
    data = None if config.data is None else _digest(config.data)
    record = json.loads(json.dumps(config.to_dict() | names | {"data digest": data}, default=str))
    file, halved = config.work / KEPT, False
    if is_main():
        trained = any(has_checkpoint(config.work / stage) for stage in STAGES)
        begun = os.path.exists(file) and (trained or os.path.exists(config.work / STUDY))
        before = _kept(file) if begun else {}
        halved = bool(before.pop(HALVED, in_bfloat16(device, config.hyperparameters(True))))
        shown = _differences(_settled(before, identities, file), record, trained) if begun else ""
        if shown:
            raise ConfigError(
                f"expected the run that {config.work} holds, got a difference in {shown}: take it back, or choose "
                "another --out"
            )
        write_whole(file, json.dumps(record | {HALVED: halved}, indent=2) + "\n")  # it may have become longer
    return any_rank(halved, device)


def _settled(before: dict[str, Any], identities: Sequence[ModelIdentity], file: Path) -> dict[str, Any]:
    """Returns what began a run with the models' states of now, where only rounding tells them apart."""
    known = {
        side: asdict(now)
        for side, now in zip(SIDES, identities, strict=True)
        if side in before
        and not differs(ModelIdentity.from_dict(before[side], f"{side} in {file}", error=StorageError), now)
    }
    return before | known


def _differences(before: dict[str, Any], record: dict[str, Any], trained: bool) -> str:
    old, now = flat(before, "."), flat(record, ".")
    texts = "self_study.texts"
    if not trained and now.get(texts, 0) >= old.get(texts, 0):  # later, cases that were learned from would test
        old, now = ({name: value for name, value in each.items() if name != texts} for each in (old, now))
    return differences(old, now)


def _kept(file: Path) -> dict[str, Any]:
    """Reads the configuration that began a run; it is compared key by key, so no key is refused."""
    try:
        record = msgspec.convert(read_json(file), dict[str, Any])
        return record | {"training": renamed(msgspec.convert(record.get("training"), dict[str, Any]))}
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise StorageError(
            f"expected the configuration of a run in {file}, got: {error}; remove {file.parent}"
        ) from error


def _digest(file: Path) -> str:
    try:
        return digest(read_whole(file)).hex()
    except OSError as error:
        raise ConfigError(f"expected a readable file of cases, got {file}: {error.strerror}") from error
