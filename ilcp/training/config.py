"""The configuration of ``ilcp train``: two models, the cases, the codec, and the hyperparameters that are not as usual.

A recipe is a TOML file of it; every key has the name of a field below::

    sender = "path or hub id"        # or a GGUF file: see load_model
    receiver = "path or hub id"
    data = "cases.jsonl"            # or a table [self_study]
    out = "my-codec"

    [codec]                         # its settings; without a name it is "facts" where questions have topics, else "vae"
    width = 192

    [training]                      # fields of ilcp.training.Hyperparameters
    steps = 3000
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ilcp.errors import ConfigError, MissingExtraError
from ilcp.folders import read_whole
from ilcp.models.loading import DTYPES
from ilcp.records import read_record, refuse_unknown
from ilcp.tasks.load import RUN
from ilcp.training.data import LEAST
from ilcp.training.hyperparameters import FACTS_STEPS, Hyperparameters, renamed
from ilcp.training.selfstudy import SelfStudy

__all__ = ["TrainingConfig", "read_config", "read_recipe"]

STEPS = 3000
DEFAULT_RANK = 8
ANSWERS = dict(steps=STEPS, contexts=16, questions=8, kl_weight=0.5, answers_end=True)
CONTINUATIONS = dict(steps=STEPS, contexts=32, questions=1, kl_weight=0.5, answers_end=False)
# A codec that learns facts has had its lesson when the receiver is asked: that part is short, and its steps are dear.
FACTS = dict(
    steps=600, contexts=8, questions=8, learning_rate=2e-4, literals_share=0.25, validate_every=200, answers_end=True
)
LESSON = 5  # steps of the lesson for each step through the receiver, unless facts_steps says otherwise
COMMON = dict(collapse_after=0.5, validation_contexts=64)
TABLES = ("self_study", "codec", "training")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training from end to end; see ``ilcp.training.job``."""

    sender: str
    receiver: str
    out: Path
    data: Path | None = None
    self_study: SelfStudy | None = None
    codec: Mapping[str, Any] = field(default_factory=dict)  # "name" and settings
    training: Mapping[str, Any] = field(default_factory=dict)  # hyperparameters that are not as usual
    adapt_receiver: bool = False
    adapter_rank: int = DEFAULT_RANK
    adapter: Path | None = None  # a folder of low-rank weights that the receiver starts with, such as another codec's
    # receiver-adapter; where it reads already, reader_share = 0 under [training] leaves the first stage out
    test_cases: int = 200  # that the finished codec is measured on, at most a tenth of all
    too_long: str = "refuse"  # cases over the receiver's window: "refuse" or "skip"
    states_gb: float = 4.0  # of the sender's states on disk, at most; 0: none are kept
    dtype: str = "float32"
    device: str | None = None
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if "seed" in self.training:
            raise ConfigError("expected seed at the top of the recipe, got it under [training]: it is the whole run's")
        self.hyperparameters(True)  # an impossible number is refused before an hour is spent
        if (self.data is None) == (self.self_study is None):
            found = "both" if self.data is not None else "neither"
            raise ConfigError(f"expected either data or self_study, got {found}: give one of --data and --self-study")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise MissingExtraError.of("tensorboard", "to write event files", "tensorboard")
        if self.self_study is not None and self.self_study.texts < 10 * LEAST:
            raise ConfigError(
                f"expected texts of self_study to be at least {10 * LEAST} (a tenth validates, a tenth tests), got "
                f"{self.self_study.texts}: write more"
            )
        if self.too_long not in ("refuse", "skip"):
            raise ConfigError(f"expected too_long to be 'refuse' or 'skip', got {self.too_long!r}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"expected dtype to be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not 0 <= self.states_gb < float("inf"):
            raise ConfigError(f"expected states_gb to be 0 or more, got {self.states_gb}")
        if self.seed < 0:
            raise ConfigError(f"expected seed to be 0 or more, got {self.seed}")
        if self.test_cases < LEAST:
            raise ConfigError(f"expected test_cases to be at least {LEAST}, got {self.test_cases}: fewer prove nothing")
        if not self.out.name or self.out.name == "..":
            raise ConfigError(f"expected a folder with a name of its own for --out, got {str(self.out)!r}")
        if self.adapter is not None and (not self.adapt_receiver or self.adapter_rank != DEFAULT_RANK):
            raise ConfigError(
                f"expected adapt_receiver = true beside adapter = {str(self.adapter)!r}, and no adapter_rank, which is "
                "the folder's: set the one, and leave the other out"
            )
        if self.adapter_rank != DEFAULT_RANK and not self.adapt_receiver:
            raise ConfigError(
                f"expected adapt_receiver = true beside adapter_rank = {self.adapter_rank}, got false: "
                "set it, or leave adapter_rank out"
            )

    @property
    def work(self) -> Path:
        """The folder of a run's checkpoint, its log and the sender's states: beside the codec, not in it."""
        return self.out.with_name(self.out.name + RUN)

    def hyperparameters(self, answers_end: bool, *, facts: bool = False) -> Hyperparameters:
        """Returns those for answers that end, or for continuations, with the changes of ``training``.

        Args:
            facts: of a codec that learns facts, which has a lesson before.

        Raises:
            ConfigError: one of them is unknown, of another type, or impossible.
        """
        usual: dict[str, Any] = COMMON | (FACTS if facts else ANSWERS if answers_end else CONTINUATIONS)
        if self.training.get("forget"):
            usual = usual | {"literals_share": 0.0}  # they are the text's own words
        steps = self.training.get("steps")
        if facts and isinstance(steps, int):  # a short run has a short lesson
            usual = usual | {"facts_steps": max(1, min(FACTS_STEPS, LESSON * steps))}
        return read_record(Hyperparameters, usual | dict(self.training) | {"seed": self.seed}, "[training]")

    def to_dict(self) -> dict[str, Any]:
        """Returns all that decides the outcome, as JSON takes it."""
        record = asdict(self) | {"data": None if self.data is None else str(self.data)}
        for name in ("out", "device", "tensorboard"):  # where and how it is shown, not what is computed
            record.pop(name)
        return record


def read_config(recipe: Path | None = None, **changes: Any) -> TrainingConfig:
    """Reads a recipe file, keyword arguments, or both: what is given (not None) goes before the file.

    ``self_study=True`` is self-study as usual; a mapping gives its fields. ``steps`` and ``minutes`` are
    hyperparameters.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or missing, or two contradict each other.
    """
    record = {} if recipe is None else read_recipe(recipe)
    where = "the recipe" if recipe is None else str(recipe)
    given = {name: value for name, value in changes.items() if value is not None}
    record["training"] = renamed(_table(record, "training"))
    for name in ("steps", "minutes"):
        if name in given:
            record["training"][name] = given.pop(name)
    for table in TABLES:
        if isinstance(given.get(table), Mapping):
            record[table] = {**_table(record, table), **given.pop(table)}
    if given.pop("self_study", False):
        record.setdefault("self_study", {})
    if "data" in given and recipe is not None and "self_study" in record:
        raise ConfigError(f"expected either --data or the table [self_study] of {recipe}, got both: remove one")
    record |= given
    refuse_unknown(record, (f.name for f in fields(TrainingConfig)), where)
    if "self_study" in record:
        record["self_study"] = read_record(SelfStudy, _table(record, "self_study"), "[self_study]")
    missing = [
        f.name for f in fields(TrainingConfig) if f.default is f.default_factory is MISSING and f.name not in record
    ]
    if missing:
        flags = ", ".join(f"--{name}" for name in missing)
        raise ConfigError(
            f"expected {', '.join(missing)} in {where}, got nothing: every training needs them; give {flags} (in "
            "Python the arguments of these names), or --recipe FILE"
        )
    for name in ("sender", "receiver"):
        if not isinstance(record[name], str | Path):
            raise ConfigError(
                f"expected {name} as a folder, a hub id or a GGUF file, got {type(record[name]).__name__}: save it "
                "with save_pretrained, and name the folder"
            )
    models = {name: str(record[name]) for name in ("sender", "receiver")}
    return read_record(TrainingConfig, record | models, where)


def read_recipe(file: Path) -> dict[str, Any]:
    """Returns what a recipe's file says.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(read_whole(file).decode("utf-8-sig"))
    except OSError as error:
        because = (error.strerror or "unreadable").lower()
        raise ConfigError(f"expected a readable recipe, got {file}: {because}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected a recipe in TOML, got something else in {file}: {error}") from error


def _table(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = record.get(name, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"expected a table [{name}] in the recipe, got {table!r}")
    return table
