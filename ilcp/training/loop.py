"""The training loop: seeded, resumable, and unwilling to go on where there is nothing to learn."""

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from ilcp.errors import ConfigError, Interrupted, StorageError, TrainingError
from ilcp.nn.distributed import all_reduce, any_rank, average_gradients, is_main, world
from ilcp.tasks.cases import Case
from ilcp.training.batch import Batch, Batcher, Models, frozen
from ilcp.training.checkpoint import CHECKPOINT, alone, has_checkpoint, read_checkpoint, require_same, write_checkpoint
from ilcp.training.clock import Clock
from ilcp.training.forget import learners, watched
from ilcp.training.hyperparameters import Hyperparameters, renamed
from ilcp.training.log import Log
from ilcp.training.objective import Objective
from ilcp.training.pace import StepPace, say, voice
from ilcp.training.phrasebook import Phrasebook
from ilcp.training.reader import Reader, StateStore
from ilcp.training.result import Result
from ilcp.training.signals import deferred_signals
from ilcp.training.validation import Validation, Validator

__all__ = ["Result", "Run", "Source", "fit", "require_share"]

Source = Callable[[int, int], Sequence[Case]]  # (first number, how many) -> about so many; the same for the same two
FINAL_RATE = 0.02  # of the learning rate, where the cosine ends
MEMORY = 0.98  # of the running means that are logged


def fit(
    network: nn.Module,
    models: Models,
    source: Source,
    validation: Sequence[Case] | Validator,
    hyperparameters: Hyperparameters,
    folder: str | Path,
    *,
    phrasebook: Phrasebook | None = None,
    store: StateStore | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    announced_bytes: int | None = None,
) -> Result:
    """Trains ``network`` in place, between the frozen models; checkpoints and a log go to ``folder``.

    An adapter's weights as they come set the targets to the end: ``ilcp.training.tune`` makes them read first.

    Args:
        source: see ``Source``; ``ilcp.training.data.Shuffled`` makes one of a list of cases.
        validation: cases that ``source`` never gives, or a validator of them that has read them already.
        phrasebook: the aim of naming and alignment; without it they have no effect.
        store: keeps what the sender computed; None computes it anew each time.
        resume: goes on from the folder's checkpoint, if there is one. With a schedule in steps alone, and on one
            device, the weights become those of a run that was never stopped.
        tensorboard: writes its event files beside the log.
        announced_bytes: of memory, by ``ilcp.training.estimate``; a run that takes half as much again says so.

    Raises:
        ConfigError: a checkpoint is there and ``resume`` is false, or is of other hyperparameters; another run is at
            work there; a case does not fit into the window; ``contexts`` cannot be shared; there are too few cases.
        TrainingError: the receiver does not answer from the full text, the loss is not finite, or the message still
            says nothing when ``collapse_after`` is reached. The last checkpoint stays.
        StorageError: the disk is full or not to be written to, or the checkpoint is damaged.
        MissingExtraError: TensorBoard is wanted and not installed.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint; it is a ``KeyboardInterrupt``.
    """
    folder = Path(folder)
    log = Log(folder, tensorboard=tensorboard and is_main())
    models = models.with_teacher()
    with watched(network, hyperparameters), alone(folder), frozen(models):
        run = Run(network, models, hyperparameters, folder, phrasebook, store, log)
        resumed = run.resumed(resume)
        validator = validation if isinstance(validation, Validator) else _reads(run, validation)
        if not resumed:
            validator.require_teacher()
        with deferred_signals() as interrupted:
            return run.go(source, partial(validator.measure, network), interrupted, announced_bytes)


def _reads(run: "Run", cases: Sequence[Case]) -> Validator:
    """Returns a validator that has heard the receiver read, as the run found it, and says how it did."""
    wanted = run.hyperparameters
    validator = Validator(run.models, cases[: wanted.validation_contexts], wanted, run.reader)
    with run.models.teaching():
        validator.read()
    run.say(validator.said())
    return validator


def require_share(hyperparameters: Hyperparameters) -> None:
    """Refuses a batch in which a process has no context whose message is its sender's.

    Raises:
        ConfigError: with what to change.
    """
    contexts = hyperparameters.contexts
    blanks = hyperparameters.blanks(contexts)
    if contexts % world() or contexts - blanks < world():
        raise ConfigError(
            f"expected contexts to be a multiple of the {world()} processes, and one for each beside the "
            f"{blanks} blank ones, got {contexts}: change contexts or blank_share"
        )


class Run:
    """The state of one run: everything that a checkpoint holds."""

    what = "training"  # in words

    def __init__(
        self,
        network: nn.Module,
        models: Models,
        hyperparameters: Hyperparameters,
        folder: Path,
        phrasebook: Phrasebook | None,
        store: StateStore | None,
        log: Log,
    ):
        self.network, self.models, self.folder, self.log = network, models, folder, log
        self.hyperparameters = hyperparameters
        self.step, self.seconds, self.tokens, self.stepping_s = 0, 0.0, 0, 0.0
        self.device = models.receiver.device
        self.console = Console(stderr=True, soft_wrap=True)  # one for both: what is said does not break the bar
        self.clock = Clock(self.device)
        learner: Any = network  # the loop needs a module; the readers, what Network says
        self.reader = Reader(models, learner.layers, hyperparameters, store)
        self.objective = Objective(models, hyperparameters, self.reader, phrasebook, self.clock)
        self.best: tuple[float, dict[str, Any]] | None = None
        self.stale = 0  # validations since the best
        self.last_loss = math.nan
        torch.manual_seed(hyperparameters.seed)
        groups = learners(network, hyperparameters)
        self.adapted = models.adapted()
        if self.adapted:
            groups.append({"params": self.adapted, "lr": hyperparameters.adapter_learning_rate})
        self.rates = [float(group["lr"]) for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=hyperparameters.weight_decay)
        require_share(hyperparameters)

    def go(
        self,
        source: Source,
        measure: Callable[[], Validation],
        interrupted: Callable[[], bool],
        announced_bytes: int | None = None,
    ) -> Result:
        """Runs to the end of the schedule, or until nothing has got better for long.

        Raises:
            TrainingError, StorageError, Interrupted: as ``fit``.
        """
        batcher = Batcher(self.models, self.hyperparameters)
        result = measure()
        averages: dict[str, float] = {}
        batch: Batch | None = None
        started = saved = time.monotonic()
        before, first = self.seconds, self.step
        pace = self._pace(announced_bytes)
        with voice(self.console, self.what) as tell:
            while self._done() < 1 and not self._stale():
                started_step, read = time.monotonic(), self.reader.tokens
                cases = source(self.step * self.hyperparameters.contexts, self.hyperparameters.contexts)
                batch = batcher.batch(cases, random.Random(f"{self.hyperparameters.seed}/{self.step}"))
                new = self._update(batch)  # a term that is over leaves the log
                self.step += 1
                share = max(1 - MEMORY, 1 / (self.step - first))  # the mean of all, until there are many
                averages = {name: (1 - share) * averages.get(name, now) + share * now for name, now in new.items()}
                self.tokens += self.reader.tokens - read + sum(len(row.suffix + row.answer) for row in batch.rows)
                self.stepping_s += time.monotonic() - started_step
                self.seconds = before + self._same(time.monotonic() - started)
                pace.made(self.step, self.stepping_s)
                tell(self._done(), pace.line(self.seconds, self._note(averages, result)))
                self.say(pace.excess())
                self._heed(interrupted)
                if self.step % self.hyperparameters.validate_every == 0 or self._done() >= 1:
                    result, saved = measure(), time.monotonic()
                    self._judge(averages, result)
                elif time.monotonic() - saved > 60 * self.hyperparameters.checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
        self._heed(interrupted)
        if self.hyperparameters.patience and self.best is not None:
            self.keep_best()
            result = measure()
        return self._finished(result, pace, batch)

    def _pace(self, announced_bytes: int | None) -> StepPace:
        wanted = self.hyperparameters
        warmup = wanted.naming_steps + wanted.alignment_steps if self.objective.phrasebook else 0
        pace = StepPace(wanted, self.device, warmup=warmup, announced_bytes=announced_bytes)
        pace.begin(self.step, self.stepping_s)
        return pace

    def _finished(self, validation: Validation, pace: StepPace, batch: Batch | None) -> Result:
        """Returns the outcome, and says what bounds a step, ``batch`` being the last one."""
        alone_s = 0.0
        with suppress(RuntimeError):  # of a full memory: it is a figure, and the run is over
            alone_s = 0.0 if batch is None else self._receiver_pass_s(batch)
        shares, speed = self.clock.shares(), round(self._speed(), 1)
        result = Result(
            self.step, round(self.seconds / 60, 2), validation, shares, speed, round(pace.step_s, 4), round(alone_s, 4)
        )
        self.say(result.bound())
        return result

    def _receiver_pass_s(self, batch: Batch) -> float:
        """Returns the seconds of the receiver's pass alone, the better of two."""
        with torch.no_grad():
            memory, _ = self.network(*self.reader.states(batch.texts))
        laps = []
        for _ in range(2):
            started = time.monotonic()
            self.objective.receiver_pass(batch, memory)
            laps.append(time.monotonic() - started)
        return min(laps)

    def say(self, text: str) -> None:
        """Prints a line, once for all processes."""
        if text and is_main():
            say(self.console, text)

    def _update(self, batch: Batch) -> dict[str, float]:
        torch.manual_seed(random.Random(f"noise {self.hyperparameters.seed}/{self.step}").getrandbits(63))
        self.clock.starts(self.step)
        self.network.train()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self._rate()
        for parameter in self.adapted:
            parameter.requires_grad_(self.hyperparameters.adapts_at(self._done()))
        learner: Any = self.network
        terms = self.objective.terms(learner, batch, self.step, self._done())
        if any_rank(not torch.isfinite(terms["loss"]), self.device):
            raise TrainingError(
                f"expected a finite loss, got {terms['loss'].item()} at step {self.step}: lower the rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        with self.clock.backward():
            terms["loss"].backward()
        with self.clock("codec"):
            learning = [p for group in self.optimizer.param_groups for p in group["params"]]
            average_gradients(learning)
            norm = torch.nn.utils.clip_grad_norm_(learning, 1.0)
            if not torch.isfinite(norm):
                raise TrainingError(
                    f"expected finite gradients, got norm {norm.item()} at step {self.step}: lower the rate"
                )
            self.optimizer.step()
        values = all_reduce(torch.stack([term.detach().float() for term in terms.values()])) / world()
        self.last_loss = float(values[list(terms).index("loss")])
        return dict(zip(terms, values.tolist(), strict=True))

    def _heed(self, interrupted: Callable[[], bool]) -> None:
        """Ends the run, with a checkpoint, where a signal asked for it."""
        if any_rank(interrupted(), self.device):
            self.save()
            raise Interrupted(f"stopped at step {self.step}; {self.folder} holds a checkpoint of it")

    def _stale(self) -> bool:
        """Says whether nothing has got better for so long that the run ends."""
        return any_rank(0 < self.hyperparameters.patience <= self.stale, self.device)

    def _judge(self, averages: dict[str, float], result: Validation) -> None:
        """Logs, and keeps a checkpoint.

        Raises:
            TrainingError: nothing was learned when something should have been.
        """
        if self.hyperparameters.patience:
            better = self.best is None or result.score[1] > self.best[0]
            self.best, self.stale = ((result.score[1], self.weights()), 0) if better else (self.best, self.stale + 1)
        record = {"step": self.step, "minutes": round(self.seconds / 60, 2), "tokens_per_s": round(self._speed(), 1)}
        record |= {"last_loss": round(self.last_loss, 6)}
        record |= {name: round(value, 4) for name, value in averages.items()} | result.to_dict()
        shares = {f"time_{part}": round(share, 3) for part, share in self.clock.shares().items()}
        self.save()
        if is_main():
            self.log.write(record | shares)
        self.say(f"step {self.step}: {result}")
        if any_rank(self.hyperparameters.collapse_after <= self._done() < 1 and result.gain_low <= 0, self.device):
            raise TrainingError(
                f"expected the message to say more than another case's after "
                f"{self.hyperparameters.collapse_after:.0%} of the run, got a content gain of {result.gain_nats:.4f} "
                f"nats, lower end {result.gain_low:.4f}, at step {self.step}: the codec has collapsed; see "
                f"{self.log.file}, try a lower rate_weight, a reconstruction_weight above 0, more questions per "
                "context or a smaller learning_rate"
            )

    def _done(self) -> float:
        return max(self.step / self.hyperparameters.steps, self.seconds / 60 / self.hyperparameters.minutes)

    def _rate(self) -> float:
        warm = min(1.0, (self.step + 1) / max(1, self.hyperparameters.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self._done())))
        return warm * (FINAL_RATE + (1 - FINAL_RATE) * cosine)

    def _same(self, seconds: float) -> float:
        """Returns the mean over processes: all must agree when a run is over."""
        return float(all_reduce(seconds, self.device)) / world() if world() > 1 else seconds

    def _speed(self) -> float:
        """Returns the tokens per second of contexts and questions that this process trains on, validation left out."""
        return self.tokens / self.stepping_s if self.stepping_s else 0.0

    def _note(self, averages: dict[str, float], result: Validation) -> str:
        bits = f" · {averages['rate_bits']:.0f} bits" if "rate_bits" in averages else ""
        return f"loss {averages['loss']:.3f} · {'{} {:.3f}'.format(*result.score)}{bits}"

    def weights(self) -> dict[str, Any]:
        """Returns a copy of all that is trained, by owner."""
        adapted = [parameter.detach().clone() for parameter in self.adapted]
        return {"network": {k: v.clone() for k, v in self.network.state_dict().items()}, "adapter": adapted}

    def keep_best(self) -> None:
        """Takes up the best weights that were found, where any were kept."""
        if self.best is not None:
            self._put_back(self.best[1])

    @torch.no_grad()
    def _put_back(self, weights: dict[str, Any]) -> None:
        self.network.load_state_dict(weights["network"])
        for parameter, value in zip(self.adapted, weights["adapter"], strict=True):
            parameter.copy_(value)

    def save(self) -> None:
        """Writes the checkpoint whole or not at all; the one before stays.

        Raises:
            StorageError: the disk is full, or not to be written to.
        """
        if not is_main():
            return
        state = {
            "recipe": self.hyperparameters.to_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "weights": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "stale": self.stale,
            "spent": dict(self.clock.seconds),
            "tokens": self.tokens,
            "stepping_s": self.stepping_s,
        }
        write_checkpoint(self.folder, state)

    def resumed(self, resume: bool) -> bool:
        """Takes up the checkpoint, if there is one, and says whether there is.

        Raises:
            ConfigError: there is one, and ``resume`` is false; or it is of other hyperparameters.
            StorageError: it is damaged.
        """
        if not has_checkpoint(self.folder):
            return False
        if not resume:
            raise ConfigError(
                f"expected a new folder, got {self.folder} with a checkpoint: pass resume=True, or choose another"
            )
        state, file = read_checkpoint(self.folder, self.device)
        try:
            require_same(renamed(state["recipe"]), self.hyperparameters, self.folder)
            self._take(state)
        except ConfigError:
            raise
        except Exception as error:  # something is missing in it, or of another kind or shape
            raise StorageError(f"expected a checkpoint in {file}, got a damaged file: {error!r}") from error
        all_reduce(0.0, self.device)  # no process reads any more
        if file.name != CHECKPOINT:
            self.say(f"the latest checkpoint in {self.folder} is missing or damaged, the one before it is taken")
        if is_main():
            file.replace(self.folder / CHECKPOINT)  # else it would be the next to go
            self.log.forget_after(self.step)
        return True

    def _take(self, state: dict[str, Any]) -> None:
        self.step, self.stale, self.tokens = (int(state[name]) for name in ("step", "stale", "tokens"))
        self.seconds, self.stepping_s = float(state["seconds"]), float(state["stepping_s"])
        self.clock.seconds.update({part: float(seconds) for part, seconds in state["spent"].items()})
        if state["best"] is not None:
            recovery, best = state["best"]
            self._put_back(best)  # a damaged one is found now, not when the run ends
            self.best = float(recovery), best
        self._put_back(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, held in self.optimizer.state.items():
            shapes = {moment.shape for moment in held.values() if moment.dim()}
            if shapes - {parameter.shape}:
                raise ValueError(f"moments of shape {shapes} for {parameter.shape}")
