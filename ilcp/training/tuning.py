"""The first stage of a training whose receiver is adapted: the adapter learns to answer from the full text.

::

    text, all its questions packed behind it --receiver with its adapter--> cross-entropy of the answers

What the receiver does not find in the text, no message can tell it. The stage is a run like the codec's, without a
codec: the same loop, the same checkpoints, a log of its own. It ends early where the validation cases are read no
better, and the best weights stay, those of its start among them.
"""

import json
import os
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor, nn

from ilcp.errors import StorageError
from ilcp.files import write_whole
from ilcp.folders import read_whole
from ilcp.nn.distributed import is_main
from ilcp.training.batch import Batch, Models, frozen
from ilcp.training.checkpoint import alone, has_checkpoint
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.log import Log
from ilcp.training.loop import Run, Source
from ilcp.training.objective import Objective
from ilcp.training.precision import precision
from ilcp.training.signals import deferred_signals
from ilcp.training.stage import stage_of
from ilcp.training.validation import Validation, Validator

__all__ = ["FOLDER", "reading_stage", "tune", "tuned"]

FOLDER = "reader"  # of the stage, in the run's
BROUGHT = "brought.json"  # appears when the stage is over
WARMUP_STEPS = 10
PATIENCE = 3  # validations without a better reading


def tune(
    models: Models,
    source: Source,
    validator: Validator,
    hyperparameters: Hyperparameters,
    folder: str | Path,
    *,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains the adapter to answer from the full text, and returns what that brought.

    Args:
        source: as ``fit`` takes it.
        validator: of cases that ``source`` never gives; it has read them with what came out.
        folder: of the codec's run; the stage keeps its checkpoint and its log in a folder within.
        resume: goes on from the stage's checkpoint, or takes up what came out, if there is either.

    Returns:
        ``before`` and ``after`` with ``exact`` match and ``log_likelihood`` in nats of an answer from the full text,
        ``questions`` (how many were asked), ``steps`` and ``minutes``.

    Raises:
        ConfigError, StorageError, TrainingError, Interrupted: as ``fit``.
    """
    run, brought = _Reading(models, hyperparameters, Path(folder) / FOLDER), tuned(folder)
    with alone(run.folder), frozen(models):
        if brought is not None:
            run.resumed(resume)
            run.keep_best()
            validator.read()
            return brought
        before = validator.read()  # of the receiver as it came, before a checkpoint is taken up
        run.say(f"before it is tuned, {validator.said()}")
        if not run.resumed(resume):
            run.best = before.score[1], run.weights()
        again = iter(partial(validator.read, ("text",)), None)
        with deferred_signals() as interrupted:
            result = run.go(source, partial(next, chain([before], again)), interrupted)
        after = validator.read()
    brought = {"before": _of_text(before), "after": _of_text(after), "questions": len(validator.batch.rows)}
    brought |= {"steps": result.steps, "minutes": result.minutes}
    if is_main():
        write_whole(run.folder / BROUGHT, json.dumps(brought) + "\n")
    return brought


def tuned(folder: str | Path) -> dict[str, Any] | None:
    """Returns what the first stage of a run brought, as ``tune`` did; None where there was none, or it is not over.

    Raises:
        StorageError: the file that says so is damaged.
    """
    file = Path(folder) / FOLDER / BROUGHT
    if not (os.path.exists(file) and has_checkpoint(file.parent)):
        return None
    try:
        brought = msgspec.json.decode(read_whole(file), type=dict[str, Any])
        msgspec.convert(brought, _Brought)
        return brought
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(f"expected a run's own record in {file}, got: {error}; remove it, and resume") from error


class _Brought(msgspec.Struct):
    """What a run goes on with of what the stage brought."""

    before: dict[str, float]
    after: dict[str, float]
    minutes: float


class _NoCodec(nn.Module):
    """What a run trains beside the adapter, here: nothing."""

    layers = (0,)


class _TextObjective(Objective):
    """The cross-entropy of the answers given the full text, and nothing else."""

    def terms(self, network: Any, batch: Batch, step: int = 0, done: float = 0.0) -> dict[str, Tensor]:
        """Computes it, as ``"reading"`` and as the loss."""
        with self.clock("receiver"), precision(self.models.receiver.device, self.hyperparameters):
            reading = self.reading(batch, batch.rows)
        return {"reading": reading, "loss": reading}


class _Reading(Run):
    """A run that trains the adapter alone."""

    what = "learning to read"

    def __init__(self, models: Models, hyperparameters: Hyperparameters, folder: Path):
        wanted = reading_stage(hyperparameters)
        super().__init__(_NoCodec(), models, wanted, folder, None, None, Log(folder))
        self.objective = _TextObjective(models, wanted, self.reader, clock=self.clock)

    def _receiver_pass_s(self, batch: Batch) -> float:
        return 0.0  # the step is nothing else


def reading_stage(hyperparameters: Hyperparameters) -> Hyperparameters:
    """Returns the hyperparameters of the first stage of a run that has these."""
    share = hyperparameters.reader_share
    return stage_of(
        hyperparameters,
        steps=round(share * hyperparameters.steps),
        share=share,
        contexts=hyperparameters.reader_contexts,
        warmup_steps=WARMUP_STEPS,
        adapter_learning_rate=hyperparameters.reader_learning_rate,
        adapter_after=0.0,
        patience=PATIENCE,
        literals_share=0.0,
        forget=(),  # who is to learn to read reads everything
    )


def _of_text(reading: Validation) -> dict[str, float]:
    return {"exact": round(reading.exact["text"], 4), "log_likelihood": round(reading.log_likelihood["text"], 4)}
