"""The comparison of two reports of the same questions: what changed, and which single answers flipped."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ilcp.errors import ConfigError
from ilcp.measure.bootstrap import Bootstrap
from ilcp.measure.figures import Measured
from ilcp.measure.report import ALL, Report

__all__ = ["Change", "Comparison", "compare", "require_same_questions"]


@dataclass(frozen=True, slots=True)
class Change:
    """One arm and kind of question: before, after, the paired difference, and the answers that flipped.

    ``gained`` and ``lost`` count answers that became right and wrong, ``changed`` those that read differently at all
    (None where answers go on: there is none to compare).
    """

    arm: str
    kind: str
    metric: str
    before: Measured
    after: Measured
    difference: Measured
    gained: int | None
    lost: int | None
    changed: int | None

    @property
    def real(self) -> bool:
        """True where the difference is away from zero with its interval."""
        low, high = self.difference.low, self.difference.high
        return low is not None and high is not None and (low > 0 or high < 0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between two reports: in the way they were made, and in every arm that both have."""

    made_differently: dict[str, tuple[Any, Any]]
    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON takes it."""
        return asdict(self)


def compare(before: Report, after: Report) -> Comparison:
    """Returns the changes from one report to another of the same questions.

    Raises:
        ConfigError: the reports are of different questions, or one was interrupted.
    """
    partly = [name for name, report in (("before", before), ("after", after)) if not report.complete]
    if partly:
        raise ConfigError(
            f"expected two complete reports, got an interrupted one {' and '.join(partly)}: finish its run first"
        )
    require_same_questions(before, after)
    shared = [arm for arm in before.arms if arm in after.arms]
    draws = Bootstrap(before.items.documents, seed=before.seed)
    changes = [_change(before, after, arm, kind, draws) for arm in shared for kind in (ALL, *before.kinds)]
    names = ("commit", "versions", "machine", "command", "models")
    made = {name: (before.provenance.get(name), after.provenance.get(name)) for name in names}
    made |= {"codec": (before.codec, after.codec), "seed": (before.seed, after.seed)}
    return Comparison(
        {name: both for name, both in made.items() if both[0] != both[1]},
        tuple(changes),
        tuple(arm for arm in before.arms if arm not in after.arms),
        tuple(arm for arm in after.arms if arm not in before.arms),
    )


def require_same_questions(before: Report, after: Report) -> None:
    """Refuses two reports of different questions.

    Raises:
        ConfigError: with both tasks, and what to do.
    """
    if before.items != after.items or before.answers_end != after.answers_end:
        raise ConfigError(
            f"expected two reports of the same questions, got {before.task} (n={before.n}, {len(before.items)} "
            f"questions) and {after.task} (n={after.n}, {len(after.items)} questions): measure both with the same "
            "--task, --n and --seed"
        )


def _change(before: Report, after: Report, arm: str, kind: str, draws: Bootstrap) -> Change:
    metric = before.metric
    was, now = (report.arms[arm].scores(metric, report.items) for report in (before, after))
    chosen = np.array([kind in (ALL, found) for found in before.items.kinds])
    gained = lost = changed = None
    if before.answers_end:
        pairs = zip(before.arms[arm].texts(before.items), after.arms[arm].texts(after.items), strict=True)
        changed = int(np.array([a != b for a, b in pairs])[chosen].sum())
        gained, lost = int((now > was)[chosen].sum()), int((now < was)[chosen].sum())
    difference = draws.of(lambda a, b: a - b, now, was, items=chosen, unit="" if before.answers_end else "nats")
    return Change(arm, kind, metric, before.mean(arm, kind), after.mean(arm, kind), difference, gained, lost, changed)
