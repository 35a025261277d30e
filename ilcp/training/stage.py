"""A stage before the codec is trained through the receiver: a run with hyperparameters of its own."""

from dataclasses import replace
from typing import Any

from ilcp.nn.distributed import world
from ilcp.training.hyperparameters import Hyperparameters

__all__ = ["stage_of"]

VALIDATIONS = 10  # in a whole stage, at least one


def stage_of(
    hyperparameters: Hyperparameters, *, steps: int, share: float, contexts: int, **changes: Any
) -> Hyperparameters:
    """Returns the hyperparameters of a stage of so many steps, one at least, and that share of the run's minutes.

    No message is judged in it, and no payload is blank. ``contexts``, per step, are enough for every process.
    """
    usual = dict(collapse_after=1.0, blank_share=0.0, reconstruction_weight=0.0)
    steps = max(1, steps)
    return replace(
        hyperparameters,
        steps=steps,
        minutes=share * hyperparameters.minutes,
        contexts=-(-contexts // world()) * world(),
        validate_every=max(1, steps // VALIDATIONS),
        **(usual | changes),
    )
