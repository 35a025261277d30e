"""The configuration of ``ilcp trace train`` and ``tune``: one model, the cases, the writers, and how the reader learns.

A recipe is a TOML file of it; every key has the name of a field below::

    model = "path or hub id"
    data = "cases.jsonl"
    out = "my-trace"
    steps = 10                      # latent steps of each agent
    rule = "soft"

    [training]                      # fields of ilcp.training.Hyperparameters
    steps = 200
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ilcp.errors import ConfigError
from ilcp.models.loading import DTYPES
from ilcp.records import read_record, refuse_unknown
from ilcp.tasks.load import RUN
from ilcp.training.begun import is_empty
from ilcp.training.config import read_recipe
from ilcp.training.data import LEAST
from ilcp.training.hyperparameters import Hyperparameters
from ilcp_codecs.trace.codec import CARRIERS
from ilcp_codecs.trace.plan import Plan
from ilcp_codecs.trace.rules import LEARNED
from ilcp_codecs.trace.writer import RULE, STEPS, TEXT_HERE

__all__ = ["TraceConfig", "read_trace_config"]

USUAL: dict[str, Any] = dict(
    steps=200,
    contexts=4,
    questions=8,
    adapter_learning_rate=1e-3,
    adapter_after=0.0,
    warmup_steps=10,
    validate_every=50,
    validation_contexts=16,
    blank_share=0.0,
    teacher_floor=0.0,
)
RANK = 8  # with alpha 16
LEARNABLE = (  # what of the loop's numbers has a meaning here
    "steps",
    "minutes",
    "contexts",
    "questions",
    "per_kind",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "adapter_learning_rate",
    "adapter_after",
    "answer_tokens",
    "validate_every",
    "validation_contexts",
    "patience",
    "checkpoint_minutes",
    "bfloat16",
)


@dataclass(frozen=True, slots=True)
class TraceConfig:
    """One training from end to end; see ``ilcp_codecs.trace.job``.

    ``learns_rule`` trains the rule as well, through the steps, at the ``learning_rate`` of ``[training]``; the reader's
    is ``adapter_learning_rate``. None: the rule ``learned`` does. ``kl_weight`` and ``states_weight`` pull the reader
    to what it says, and computes, behind one agent that read everything (the latter as CODI does, arXiv 2502.21074).
    ``frontier_weight`` pulls the steps' states to the words of each case's ``frontier``, where the rule learns.
    """

    model: str
    data: Path
    out: Path
    agents: tuple[str, ...] = ("first", "second")
    steps: int = STEPS
    rule: str = RULE
    prompt: str = TEXT_HERE
    keep: str = "all"
    carrier: str = CARRIERS[0]
    learns_rule: bool | None = None
    kl_weight: float = 0.0
    states_weight: float = 0.0
    frontier_weight: float = 0.0
    adapter: Path | None = None  # a folder of low-rank weights that the reader starts with
    adapter_rank: int = RANK
    training: Mapping[str, Any] = field(default_factory=dict)
    test_cases: int = 200  # that the reader is measured on, at most a tenth of all
    traces_gb: float = 8.0  # on disk, at most
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        self.plan()
        refuse_unknown(self.training, (*LEARNABLE, "seed"), "[training] of a trace")
        self.hyperparameters()
        if "seed" in self.training:
            raise ConfigError("expected seed at the top of the recipe, got it under [training]: it is the whole run's")
        if self.carrier not in CARRIERS:
            raise ConfigError(f"expected a carrier of {', '.join(CARRIERS)}, got {self.carrier!r}")
        if self.learns_rule and self.rule not in LEARNED:
            raise ConfigError(f"expected a rule of {', '.join(LEARNED)} to learn, got {self.rule!r}: it has no weights")
        if self.frontier_weight and not self.trains_rule:
            raise ConfigError(f"expected a rule that learns beside frontier_weight, got {self.rule!r}: set learns_rule")
        for name in ("kl_weight", "states_weight", "frontier_weight", "traces_gb"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"expected {name} to be 0 or more, got {getattr(self, name)}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"expected dtype to be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.seed < 0 or self.adapter_rank < 1:
            raise ConfigError(
                f"expected a seed of 0 or more and a rank of 1 or more, got {self.seed} and {self.adapter_rank}"
            )
        if self.test_cases < LEAST:
            raise ConfigError(f"expected test_cases to be at least {LEAST}, got {self.test_cases}: fewer prove nothing")
        if not self.out.name or self.out.name == "..":
            raise ConfigError(f"expected a folder with a name of its own for --out, got {str(self.out)!r}")

    @property
    def work(self) -> Path:
        """The folder of a run's checkpoint, its log and the traces: beside the codec, not in it."""
        return self.out.with_name(self.out.name + RUN)

    @property
    def trains_rule(self) -> bool:
        """Whether gradients flow through the steps into the rule."""
        return self.rule == "learned" if self.learns_rule is None else self.learns_rule

    def plan(self) -> Plan:
        """Returns the writers' plan; raises as it."""
        return Plan(self.agents, self.steps, self.rule, self.prompt, self.keep)

    def hyperparameters(self) -> Hyperparameters:
        """Returns those of the loop; raises ``ConfigError`` where one is unknown or impossible."""
        return read_record(Hyperparameters, USUAL | dict(self.training) | {"seed": self.seed}, "[training]")

    def require_new(self) -> None:
        """Refuses to write over what is there.

        Raises:
            ConfigError: with what to do.
        """
        if os.path.lexists(self.out) and not is_empty(self.out):
            raise ConfigError(f"expected a new folder for the codec, got {self.out}, which is there: choose another")

    def to_dict(self) -> dict[str, Any]:
        """Returns all that decides the outcome, as JSON takes it."""
        record = asdict(self)
        for name in ("out", "device"):
            record.pop(name)
        return {name: str(value) if isinstance(value, Path) else value for name, value in record.items()}


def read_trace_config(recipe: Path | None = None, **changes: Any) -> TraceConfig:
    """Reads a recipe file, keyword arguments, or both: what is given (not None) goes before the file.

    ``training_steps`` and ``minutes`` are hyperparameters.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or missing, or two contradict each other.
    """
    record: dict[str, Any] = {} if recipe is None else read_recipe(recipe)
    given = {name: value for name, value in changes.items() if value is not None}
    table = record.get("training", {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"expected a table [training] in the recipe, got {table!r}")
    wanted = dict(table) | dict(given.pop("training", {}))
    for name, own in (("training_steps", "steps"), ("minutes", "minutes")):
        if name in given:
            wanted[own] = given.pop(name)
    where = "the recipe" if recipe is None else str(recipe)
    record |= {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    missing = [name for name in ("model", "data", "out") if name not in record]
    if missing:
        flags = ", ".join(f"--{name}" for name in missing)
        raise ConfigError(f"expected {', '.join(missing)} in {where}, got nothing: give {flags}, or --recipe FILE")
    return read_record(TraceConfig, record | {"training": wanted}, where)
