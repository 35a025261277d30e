"""The training loop: seeded, resumable, and unwilling to start where there is nothing to learn."""

import json
import math
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from ilcp.errors import EncodeError
from ilcp.tasks.cases import Case
from ilcp.training.objective import Batcher, Models, frozen, loss_of, warmup_loss
from ilcp.training.phrasebook import Phrasebook
from ilcp.training.recipe import Recipe
from ilcp.training.validation import Validation, Validator

__all__ = ["Result", "train"]

Source = Callable[[int, int], Sequence[Case]]  # (first number, how many) -> about so many; the same for the same two
CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
FINAL_RATE = 0.02  # of the learning rate, where the cosine ends


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to: steps made, minutes taken, and the last validation."""

    steps: int
    minutes: float
    validation: Validation


def train(
    network: nn.Module,
    models: Models,
    source: Source,
    validation: Sequence[Case],
    recipe: Recipe,
    folder: str | Path,
    *,
    phrasebook: Phrasebook | None = None,
    resume: bool = False,
) -> Result:
    """Trains ``network`` in place, between the frozen models; checkpoints and a log go to ``folder``.

    ``phrasebook`` is what the recipe's naming, alignment and topics refer to; without it they have no effect.

    Raises:
        EncodeError: the receiver does not answer from the full text; or a checkpoint is there and ``resume`` is
            false, or is of another recipe; or the loss is not finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(network, models, recipe, folder, phrasebook)
    if (folder / CHECKPOINT).exists():
        if not resume:
            raise EncodeError(
                f"expected a new folder, got {folder} with a checkpoint: pass resume=True, or choose another"
            )
        run.restore()
    with frozen(models):
        validator = Validator(models, validation[: recipe.validation_contexts], recipe)
        validator.require_teacher()
        with _deferred_interrupt() as interrupted:
            return run.go(source, validator, interrupted)


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the end of the step, so that a checkpoint never holds half of one."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may handle signals
        return
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)


class _Run:
    """The state of one run: everything that a checkpoint holds."""

    def __init__(self, network: nn.Module, models: Models, recipe: Recipe, folder: Path, phrasebook: Phrasebook | None):
        self.network, self.models, self.recipe, self.folder = network, models, recipe, folder
        self.phrasebook = phrasebook
        self.step = 0
        self.seconds = 0.0
        torch.manual_seed(recipe.seed)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )

    def go(self, source: Source, validator: Validator, interrupted: Callable[[], bool]) -> Result:
        batcher = Batcher(self.models, self.recipe)
        result = validator.measure(self.network)
        averages: dict[str, float] = {}
        started = time.monotonic() - self.seconds
        with _progress() as progress:
            bar = progress.add_task("training", total=1.0, note="")
            while self._done() < 1:
                cases = source(self.step * self.recipe.contexts, self.recipe.contexts)
                batch = batcher.batch(cases, random.Random(f"{self.recipe.seed}/{self.step}"))
                for name, value in self._update(batch).items():
                    averages[name] = 0.98 * averages.get(name, value) + 0.02 * value
                self.step += 1
                self.seconds = time.monotonic() - started
                progress.update(bar, completed=self._done(), note=f"loss {averages['loss']:.3f}")
                if interrupted():
                    self.save()
                    raise KeyboardInterrupt
                if self.step % self.recipe.validate_every == 0 or self._done() >= 1:
                    result = validator.measure(self.network)
                    self._log(averages, result)
                    self.save()
        return Result(self.step, round(self.seconds / 60, 2), result)

    def _update(self, batch: Any) -> dict[str, float]:
        torch.manual_seed(random.Random(f"noise {self.recipe.seed}/{self.step}").getrandbits(63))
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        learner: Any = self.network  # the loop needs a module; the loss, what Network says
        if self.phrasebook and self.step < self.recipe.naming_steps + self.recipe.alignment_steps:
            terms = warmup_loss(learner, batch, self.models, self.recipe, self.phrasebook, self.step)
        else:
            terms = loss_of(learner, batch, self.models, self.recipe, self.phrasebook)
        if not torch.isfinite(terms["loss"]):
            raise EncodeError(f"expected a finite loss, got {terms['loss'].item()} at step {self.step}: lower the rate")
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise EncodeError(f"expected finite gradients, got norm {norm.item()} at step {self.step}: lower the rate")
        self.optimizer.step()
        return {name: value.item() for name, value in terms.items()}

    def _done(self) -> float:
        return max(self.step / self.recipe.steps, self.seconds / 60 / self.recipe.minutes)

    def _rate(self) -> float:
        warm = min(1.0, (self.step + 1) / max(1, self.recipe.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self._done())))
        return self.recipe.learning_rate * warm * (FINAL_RATE + (1 - FINAL_RATE) * cosine)

    def _log(self, averages: dict[str, float], validation: Validation) -> None:
        record = {"step": self.step, "minutes": round(self.seconds / 60, 2)}
        record |= {name: round(value, 4) for name, value in averages.items()} | validation.to_dict()
        with open(self.folder / LOG, "a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        Console(stderr=True, soft_wrap=True).print(f"step {self.step}: {validation}", highlight=False)

    def save(self) -> None:
        """Writes the checkpoint whole or not at all."""
        draft = self.folder / (CHECKPOINT + ".draft")
        state = {
            "recipe": self.recipe.to_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, draft)
        draft.replace(self.folder / CHECKPOINT)

    def restore(self) -> None:
        state = torch.load(self.folder / CHECKPOINT, weights_only=True, map_location=self.models.receiver.device)
        differs = {
            name: (state["recipe"].get(name), value)
            for name, value in self.recipe.to_dict().items()
            if state["recipe"].get(name) != value
        }
        if differs:
            raise EncodeError(
                f"expected the recipe of the checkpoint in {self.folder}, got a difference in "
                + "; ".join(f"{name} (was {was!r}, is {now!r})" for name, (was, now) in differs.items())
            )
        self.step, self.seconds = state["step"], state["seconds"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} % {task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
