"""``ilcp trace tune``: how many steps a task wants, since too many hurt and most of them may bring nothing.

::

    for each number of steps: a reader, trained alike --validation cases--> exact match, nats
    --> the fewest steps that no other number beats with its interval
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
import numpy as np

from ilcp.errors import ConfigError, Interrupted
from ilcp.files import require_writable, write_whole
from ilcp.folders import read_whole
from ilcp.identity import digest
from ilcp.measure import provenance
from ilcp.measure.bootstrap import Bootstrap
from ilcp.measure.figures import Measured
from ilcp.nn.attention import many_shapes
from ilcp.training.checkpoint import alone
from ilcp.training.data import Split
from ilcp.training.finish import tell
from ilcp_codecs.trace.config import TraceConfig
from ilcp_codecs.trace.job import cases_of, trained
from ilcp_codecs.trace.worth import Answered, answered

__all__ = ["SWEEP", "Curve", "tune"]

SWEEP = (0, 1, 2, 5, 10, 20, 40)
WATCHED = 64  # cases that decide, where there are as many: a tenth of all at most
CURVE, KEPT, TRYING = "steps.json", "steps.lock", "trying"


@dataclass(frozen=True, slots=True)
class Curve:
    """Exact match and nats by the number of steps, over ``n`` questions, and the number to take."""

    n: int
    exact: dict[int, Measured]
    nats: dict[int, Measured]
    over_best: dict[int, Measured]  # in nats, minus the number with the most
    choice: int

    def to_dict(self) -> dict[str, Any]:
        """Returns all figures as JSON takes them."""
        return asdict(self)


def tune(config: TraceConfig, steps: Sequence[int] = SWEEP) -> Curve:
    """Trains a reader for each number of steps, and returns the curve, which is also in ``config.out``.

    What is chosen are the fewest steps whose log-likelihood is not below the highest one's with its interval. The test
    cases have no part in it. Each number is kept in ``config.work`` as it is done: the same call goes on from there.

    Raises:
        ConfigError, StorageError, TrainingError, MissingExtraError: as ``train``; or there are no numbers.
        Interrupted: Ctrl-C or SIGTERM; it says which numbers are done.
    """
    wanted = sorted({*steps})
    if not wanted:
        raise ConfigError("expected numbers of steps to try, got none")
    if config.keep == "steps":
        raise ConfigError("expected keep = 'all' to find a number of steps, got 'steps', of which none are not enough")
    for number in wanted:
        replace(config, steps=number)
    config.require_new()
    config = replace(config, training=dict(config.training) | {"validation_contexts": WATCHED})
    cases = cases_of(config)
    require_writable(config.out / CURVE)
    require_writable(config.work / KEPT)
    found: dict[int, Answered] = {}
    with alone(config.work), many_shapes():
        try:
            for number in wanted:
                tell(f"{number} steps")
                found[number] = _tried(replace(config, steps=number), cases)
        except KeyboardInterrupt as stopped:
            shutil.rmtree(config.work / TRYING, ignore_errors=True)
            done = ", ".join(map(str, found)) or "none"
            raise Interrupted(f"done are {done} of {wanted}: the same command goes on from there") from stopped
    curve = _curve(found, [number for number, case in enumerate(cases.validation) for _ in case.questions], config.seed)
    record = curve.to_dict() | {"plan": config.to_dict(), "provenance": provenance()}
    write_whole(config.out / CURVE, json.dumps(record, indent=2, default=str) + "\n")
    shutil.rmtree(config.work, ignore_errors=True)
    return curve


def _tried(config: TraceConfig, cases: Split) -> Answered:
    """Returns what a reader of so many steps answers: as it was kept, or trained now."""
    own = json.dumps([config.to_dict(), [case.context for case in cases.training]], sort_keys=True, default=str)
    kept = config.work / f"steps-{config.steps}-{digest(own.encode()).hex()}.json"
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(read_whole(kept), type=Answered)
    work = config.work / TRYING
    shutil.rmtree(work, ignore_errors=True)
    made = trained(config, cases, work)
    found = answered(made.models, made.traces.end, cases.validation, made.traces.of_cases, made.traces)
    write_whole(kept, msgspec.json.encode(found).decode() + "\n")
    shutil.rmtree(work, ignore_errors=True)
    return found


def _curve(found: dict[int, Answered], documents: list[int], seed: int) -> Curve:
    draws = Bootstrap(documents, seed=seed)
    nats = {number: np.array(each.nats, float) for number, each in found.items()}
    best = max(nats, key=lambda number: nats[number].mean())
    over = {number: draws.of(np.subtract, own, nats[best], unit="nats") for number, own in nats.items()}
    within = [number for number, gain in over.items() if gain.high is None or gain.high >= 0]
    return Curve(
        n=len(documents),
        exact={number: draws.of(np.asarray, np.array(each.exact, float)) for number, each in found.items()},
        nats={number: draws.of(np.asarray, own, unit="nats") for number, own in nats.items()},
        over_best=over,
        choice=min(within),
    )
