"""What a run says while it runs: how far it is, how fast, when it ends, and the memory that it took so far.

::

    the sender reads: 12,000 of 340,000 tokens · 2,310 tokens/s · ends about 14:12 (2 min) · peak 1.5 GB
    training: step 40 of 3,000 · 3.20 s a step · ends about 14:55 (2 h 38 min) · peak 1.7 GB · loss 2.310

A terminal shows it in a bar. Elsewhere it is a line within the first minute, and one a minute from then on.
"""

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ilcp.inputs import STEERING
from ilcp.nn.distributed import is_main
from ilcp.training.hyperparameters import Hyperparameters

__all__ = ["Pace", "StepPace", "bytes_text", "held_bytes", "length_text", "peak_bytes", "say", "seconds_text", "voice"]

FIRST_S, EVERY_S = 20.0, 60.0  # until the first line of a stage, and between two
EXCESS = 1.5  # of the memory that was announced
MEGA, GIGA = 1e6, 1e9
STATUS = Path("/proc/self/status")  # of Linux, where getrusage would begin with the peak of the parent process
Tell = Callable[[float, str], None]  # (share that is done, the line): says it if it is time to


class Pace:
    """The pace of one stage of ``total`` steps or tokens, of which ``done`` were made before it began."""

    def __init__(self, total: int, done: int = 0, began: float | None = None):
        self.total, self.first = total, done
        self._began = time.monotonic() if began is None else began

    def each_s(self, done: int) -> float:
        """Returns the seconds that one has taken so far, with all that went on between them."""
        return (time.monotonic() - self._began) / max(1, done - self.first)

    def ends(self, done: int, most_s: float = math.inf) -> str:
        """Says when the stage ends, ``most_s`` from now at the latest."""
        left_s = min(max(0.0, self.total - done) * self.each_s(done), most_s)
        end, now = (datetime.fromtimestamp(time.time() + s) for s in (left_s, 0))
        return f"ends about {end:{'%H:%M' if end.date() == now.date() else '%Y-%m-%d %H:%M'}} ({seconds_text(left_s)})"


class StepPace:
    """The pace of a training's steps, whose warm-up, where there is one, is a stage of its own.

    ``announced_bytes`` is the memory that was announced before; ``warmup`` how many steps the receiver has no part in.
    """

    def __init__(
        self, hyperparameters: Hyperparameters, device: torch.device, *, warmup: int, announced_bytes: int | None
    ):
        self._hyperparameters, self._device, self._warmup = hyperparameters, device, min(warmup, hyperparameters.steps)
        self._announced = announced_bytes

    def begin(self, step: int, busy_s: float, now: float | None = None) -> None:
        """Begins a stage after ``step`` steps, which took ``busy_s``, validation left out."""
        now = time.monotonic() if now is None else now
        self._stage = Pace(self._warmup if step < self._warmup else self._hyperparameters.steps, step, now)
        self._busy_before = busy_s
        self._at = step, busy_s, now

    def made(self, step: int, busy_s: float) -> None:
        """Takes note of a step; the one after the last of the warm-up begins the next stage."""
        if self._at[0] == self._warmup > self._stage.first:
            self.begin(*self._at)
        self._at = step, busy_s, time.monotonic()

    @property
    def step_s(self) -> float:
        """The seconds of a step of this stage, validation left out."""
        step, busy_s, _ = self._at
        return (busy_s - self._busy_before) / max(1, step - self._stage.first)

    def line(self, seconds: float, note: str) -> str:
        """Returns the line of a stage that has taken ``seconds``."""
        step, stage = self._at[0], self._stage
        left_s = 60 * self._hyperparameters.minutes - seconds
        in_time = step + left_s / max(1e-9, stage.each_s(step))
        total = f"about {in_time:,.0f}" if in_time < stage.total else f"{stage.total:,.0f}"
        what = "warm-up step" if stage.first < self._warmup else "step"
        parts = (
            f"{what} {step:,} of {total}",
            f"{seconds_text(self.step_s)} a step",
            stage.ends(step, max(0.0, left_s)),
        )
        return " · ".join((*parts, f"peak {bytes_text(peak_bytes(self._device))}", note))

    def excess(self) -> str:
        """Says once that the memory measured is more than half above the memory announced; else is empty."""
        measured = peak_bytes(self._device)
        if self._announced is None or measured <= EXCESS * self._announced:
            return ""
        announced, self._announced = self._announced, None
        return (
            f"measured memory: {bytes_text(measured)}, where {bytes_text(announced)} and a step's activations were "
            "announced: so much do the activations take; fewer contexts or questions take less"
        )


def say(console: Console, text: str) -> None:
    """Prints a line. Nobody who listens, or a console that cannot write it, ends a run of hours."""
    with suppress(OSError, ValueError):  # a pipe that was closed; a character that it has not
        console.print(text.translate(STEERING), highlight=False, markup=False)


@contextmanager
def voice(console: Console, what: str) -> Iterator[Tell]:
    """Yields what shows a stage's share and line: in a bar on a terminal, else as a line when a minute is over."""
    due = time.monotonic() + FIRST_S
    on_terminal = sys.stderr.isatty() and is_main()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        TextColumn("{task.percentage:>3.0f} % {task.fields[line]}"),
    )
    with Progress(*columns, console=console, disable=not on_terminal, transient=True) as bar:
        task = bar.add_task(what, total=1.0, line="")

        def tell(share: float, line: str) -> None:
            nonlocal due
            if on_terminal:
                bar.update(task, completed=share, line=line)
            elif is_main() and time.monotonic() >= due:
                due = time.monotonic() + EVERY_S
                say(console, f"{what}: {line}")

        yield tell


def held_bytes(device: torch.device) -> int:
    """Returns the memory that this process holds now, on a GPU's device what torch holds there."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def peak_bytes(device: torch.device) -> int:
    """Returns the most that ``held_bytes`` has been; where the system keeps no record of that, what it is."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text()) if os.path.exists(STATUS) else None
    if found:
        return 1024 * int(found[1])
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))  # Windows keeps one


def length_text(hyperparameters: Hyperparameters, before: Mapping[str, Hyperparameters] | None = None) -> str:
    """Says how long a run may become; how long that takes is known once its first steps are made.

    Args:
        before: the stages before the one through the receiver, in words, each with its hyperparameters.
    """
    stages = {**(before or {}), "through the receiver" if before else "": hyperparameters}
    said = (f"{each.steps:,} steps of {each.contexts} contexts {what}".rstrip() for what, each in stages.items())
    minutes = hyperparameters.minutes
    most = "" if math.isinf(minutes) else f", in {seconds_text(60 * minutes)} at most"
    return f"{', then '.join(said)}{most}: the first minute says what they take"


def seconds_text(seconds: float) -> str:
    """Returns a duration as people say it."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.{0 if seconds >= 10 else 2}f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def bytes_text(size: float) -> str:
    """Returns a size as people say it."""
    return f"{size / GIGA:.1f} GB" if size >= GIGA else f"{size / MEGA:.0f} MB"
