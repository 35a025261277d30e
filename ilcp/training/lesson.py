"""The stage in which a codec that learns facts is taught what was said: from the questions, without a receiver.

::

    the sender's states, facts of the training cases --network.fact_losses--> loss

A step takes a fraction of one through the receiver, and what was said is most of what the receiver will ask. The stage
is a run like the codec's own: the same loop, the same checkpoints, a log of its own.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilcp.training.batch import Batch, Models, frozen
from ilcp.training.checkpoint import alone
from ilcp.training.facts import Told
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.log import Log
from ilcp.training.loop import Run, Source
from ilcp.training.objective import FactNetwork, Objective
from ilcp.training.reader import StateStore
from ilcp.training.result import Result
from ilcp.training.signals import deferred_signals
from ilcp.training.stage import stage_of
from ilcp.training.validation import READ, Validator

__all__ = ["FOLDER", "facts_stage", "learn_facts"]

FOLDER = "facts"  # of the stage, in the run's


@dataclass(frozen=True, slots=True)
class Recall:
    """The share of the validation's facts that the memory spells word for word, and how many there are."""

    recalled: float
    facts: int
    gain_low: float = math.inf  # nothing is compared here

    @property
    def score(self) -> tuple[str, float]:
        """What the stage is to raise, and its name."""
        return "facts recalled", self.recalled

    def to_dict(self) -> dict[str, Any]:
        """Returns both, rounded."""
        return {"facts_recalled": round(self.recalled, 4), "facts": self.facts}

    def __str__(self) -> str:
        return f"{self.recalled:.3f} of {self.facts} facts recalled"


def learn_facts(
    network: FactNetwork,
    models: Models,
    source: Source,
    validator: Validator,
    hyperparameters: Hyperparameters,
    folder: str | Path,
    *,
    store: StateStore | None = None,
    resume: bool = False,
) -> Result:
    """Teaches the network, in place, what was said in the cases of ``source``.

    Args:
        validator: of cases that ``source`` never gives.
        folder: of the codec's run; the stage keeps its checkpoint and its log in a folder within.
        store: keeps what the sender computed; None computes it anew each time.
        resume: goes on from the stage's checkpoint, if there is one.

    Raises:
        ConfigError, StorageError, TrainingError, Interrupted: as ``fit``.
    """
    run = _Lesson(network, models, hyperparameters, Path(folder) / FOLDER, store)
    with alone(run.folder), frozen(models):
        run.resumed(resume)
        with deferred_signals() as interrupted:
            return run.go(source, lambda: run.recall(validator.batch), interrupted)


class _LessonObjective(Objective):
    """The codec's own losses, and nothing else."""

    def terms(self, network: Any, batch: Batch, step: int = 0, done: float = 0.0) -> dict[str, Tensor]:
        """Computes them."""
        return self.lesson(network, batch, *self.states(batch))


class _Lesson(Run):
    """A run that trains the codec alone, without a receiver."""

    what = "learning facts"

    def __init__(
        self,
        network: FactNetwork,
        models: Models,
        hyperparameters: Hyperparameters,
        folder: Path,
        store: StateStore | None,
    ):
        wanted = facts_stage(hyperparameters)
        alone = replace(models, adapter=None)
        assert isinstance(network, nn.Module)
        super().__init__(network, alone, wanted, folder, None, store, Log(folder))
        self.learner = network
        self.objective = _LessonObjective(alone, wanted, self.reader, clock=self.clock)

    @torch.no_grad()
    def recall(self, batch: Batch) -> Any:
        """Returns how much of what a batch was told the network recalls."""
        self.network.eval()
        right = total = 0.0
        for start in range(0, len(batch.texts), READ):
            states, mask = self.reader.states(batch.texts[start : start + READ])
            told = Told.of(batch.told[start : start + READ], self.learner.places, states.shape[2], states.device)
            recalled = self.learner.recalled(states, mask, told)
            right, total = right + float(recalled.sum()), total + len(recalled)
        return Recall(right / max(1.0, total), int(total))

    def _receiver_pass_s(self, batch: Batch) -> float:
        return 0.0  # there is none


def facts_stage(hyperparameters: Hyperparameters) -> Hyperparameters:
    """Returns the hyperparameters of this stage of a run that has these."""
    return stage_of(
        hyperparameters,
        steps=hyperparameters.facts_steps,
        share=hyperparameters.facts_share,
        contexts=hyperparameters.facts_contexts,
        learning_rate=hyperparameters.facts_learning_rate,
        patience=0,
        adapter_after=1.0,
    )
