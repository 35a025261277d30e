"""The two kinds of figure, and where they come from. There is no third kind.

A figure of somebody else is a ``Citation``: it stands in a footnote, with its source and setting, never in a table.
"""

import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from ilcp.errors import ConfigError

__all__ = ["Citation", "Computed", "Measured", "provenance"]

PACKAGES = ("ilcp", "torch", "transformers", "tokenizers", "numpy", "zstandard", "constriction")


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


@dataclass(frozen=True, slots=True)
class Citation:
    """What somebody else stated, for a footnote: it names its source and the setting that it holds in."""

    text: str
    source: str
    setting: str

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value.strip():
                raise ConfigError(f"expected a citation with text, source and setting, got no {name}")


def provenance(**models: Any) -> dict[str, Any]:
    """Returns where figures come from: commit, time, versions, machine, command, and the identities given by name."""
    return {
        "commit": _commit(),
        "measured_unix_s": int(time.time()),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": ", ".join([f"{platform.system()} {platform.machine()}", _processor(), *_gpus()]),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "models": models,
    }


def _commit() -> str:
    """Returns the commit of this package's working tree, with ``+`` where tracked files were changed since."""
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


def _gpus() -> list[str]:
    """Returns the names of the GPUs that there are, used or not."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{psutil.cpu_count()} x {names[0] if names else platform.processor() or 'unknown processor'}"
