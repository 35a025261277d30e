"""The two kinds of figure, their intervals, and where they come from."""

import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Computed", "Measured", "bootstrap", "provenance"]

DRAWS = 2000
PACKAGES = ("ilcp", "torch", "transformers", "tokenizers", "numpy", "zstandard")


@dataclass(frozen=True, slots=True)
class Measured:
    """A value that was measured over ``n`` items; ``low`` and ``high`` bound it with 95 % where it is a mean."""

    value: float
    unit: str
    n: int
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.4g} {self.unit}{interval} (measured, n={self.n})".replace("  ", " ")


@dataclass(frozen=True, slots=True)
class Computed:
    """A value that follows from others by ``formula``."""

    value: float
    unit: str
    formula: str
    inputs: Mapping[str, float]

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value:g}" for name, value in self.inputs.items())
        return f"{self.value:.4g} {self.unit} (computed: {self.formula}{'; ' + given if given else ''})"


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], groups: Sequence[int], *, seed: int, unit: str = ""
) -> Measured:
    """``statistic`` of all items, with its 95 % percentile interval over resampled groups.

    ``groups`` names the group (the document) of each item: questions about one document are not independent, so whole
    documents are drawn. ``statistic`` takes item numbers; arms compared inside it are therefore paired.
    """
    members: dict[int, list[int]] = {}
    for item, group in enumerate(groups):
        members.setdefault(group, []).append(item)
    blocks = [np.array(items, dtype=np.int64) for items in members.values()]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(DRAWS):
        chosen = rng.integers(len(blocks), size=len(blocks))
        draws.append(statistic(np.concatenate([blocks[index] for index in chosen])))
    value = statistic(np.arange(len(groups)))
    if not np.isfinite(draws).all():  # a ratio whose denominator is not safely away from zero has no interval
        return Measured(value, unit, len(groups))
    low, high = np.percentile(draws, [2.5, 97.5])
    return Measured(value, unit, len(groups), float(low), float(high))


def provenance(**models: Any) -> dict[str, Any]:
    """Where figures come from: commit, versions, machine, command, and the identities given by name."""
    return {
        "commit": _commit(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "models": models,
    }


def _commit() -> str:
    """The commit of the working tree that this package is in, with ``+`` where tracked files were changed since."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # a wheel inside somebody's repository is not of their commit
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/ilcp", ":/codecs")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"  # installed from a wheel: the version says which release


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "unknown processor"
