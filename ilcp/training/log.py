"""The log of a run: one JSON object per validation, its curve as a picture, and TensorBoard's event files if wanted."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from ilcp.errors import MissingExtraError, StorageError
from ilcp.files import replacing, write_whole
from ilcp.folders import read_whole
from ilcp.training.pace import say

__all__ = ["LOG", "Log", "draw_curve", "flat", "read_log"]

LOG = "log.jsonl"
CURVE = "curve.png"
LABELS = {"mismatched": "another case's message", "none": "nothing"}
RENAMED = {"validation_nats": "validation_log_likelihood", "foreign": "mismatched"}  # in logs of before


class Log:
    """Appends to ``log.jsonl`` in the folder of a run, which is made where there is none.

    Raises:
        StorageError: it cannot be made.
        MissingExtraError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"expected a folder for the run, got {folder}: {error}; choose another place") from error
        self.file = folder / LOG
        self._console, self._given_up = Console(stderr=True, soft_wrap=True), set[str]()
        self._events: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError.of("tensorboard", "to write event files", "tensorboard") from error
            self._events = SummaryWriter(str(folder / "tensorboard"))

    def write(self, record: dict[str, Any]) -> None:
        """Appends one line, and draws the curve anew where matplotlib is installed.

        Raises:
            StorageError: the disk is full, or not to be written to.
        """
        try:
            with open(self.file, "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise StorageError(f"expected room for the log {self.file}, got: {error}; free space and resume") from error
        self._shown("the curve", lambda: draw_curve(self.file))
        if self._events is not None:
            self._shown("TensorBoard's events", lambda: self._tell(record))

    def _tell(self, record: Mapping[str, Any]) -> None:
        for name, value in flat(record, "/").items():
            self._events.add_scalar(name, float(value), record["step"])
        self._events.flush()

    def _shown(self, what: str, show: Callable[[], object]) -> None:
        """Shows what no run depends on: where that fails, in whatever way, it is said once, and the run goes on."""
        if what not in self._given_up:
            try:
                show()
            except Exception as error:
                self._given_up.add(what)
                say(self._console, f"{what} of {self.file} cannot be shown, the run goes on: {error!r}")

    def forget_after(self, step: int) -> None:
        """Drops the lines of steps that a resumed run makes again."""
        if os.path.exists(self.file):
            kept = [record for record in read_log(self.file) if record["step"] <= step]
            write_whole(self.file, "".join(json.dumps(record) + "\n" for record in kept))


def read_log(file: Path) -> list[dict[str, Any]]:
    """Reads the lines of a log; one that was cut off while it was written, or damaged since, is left out."""
    records = []
    for line in read_whole(file).splitlines():
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int | float):
                records.append(_renamed(record))
    return records


def _renamed(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a line's tables and arms under the names that they have now."""
    return {
        RENAMED.get(name, name): _renamed(value) if isinstance(value, dict) else value for name, value in record.items()
    }


def draw_curve(file: Path) -> Path | None:
    """Draws the learning curve beside the log, as PNG; returns None where matplotlib is not installed, and where one
    validation is all that there is: a dot says nothing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    records = [record for record in read_log(file) if "validation_log_likelihood" in record]
    if len(records) < 2:
        return None
    steps = [record["step"] for record in records]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    answers, rest = figure.subplots(1, 2)
    for arm, style in (("text", "k.--"), ("message", "C0.-"), ("mismatched", "C3.:"), ("none", "C7.:")):
        values = [record["validation_log_likelihood"].get(arm) for record in records]
        if any(value is not None for value in values):  # a stage that has no message has fewer arms
            answers.plot(steps, values, style, label=LABELS.get(arm, arm))
    answers.set(xlabel="step", ylabel="log-likelihood of the answer, nats", title="validation")
    answers.legend(fontsize=8)
    for name in ("loss", "cross_entropy", "kl", "reconstruction", "naming", "alignment", "reading"):
        known = [(record["step"], record[name]) for record in records if name in record]
        if known:
            rest.plot(*zip(*known, strict=True), ".-", label=name.replace("_", " "))
    rest.set(xlabel="step", ylabel="nats", title="training (running mean)")
    rest.legend(fontsize=8)
    picture = file.with_name(CURVE)
    with replacing(picture) as draft:
        figure.savefig(draft, dpi=110, format="png")
    return picture


def flat(record: Mapping[str, Any], joint: str, before: str = "") -> dict[str, Any]:
    """Flattens a table of tables into one, the names on the way to a value joined."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        found |= flat(value, joint, f"{before}{name}{joint}") if isinstance(value, Mapping) else {before + name: value}
    return found
