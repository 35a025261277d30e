"""What ``ilcp train`` is asked to do: two models, where the cases come from, the codec, the recipe. Frozen and checked.

A recipe file is TOML; every key has the name of a field below::

    sender = "path or hub id"
    receiver = "path or hub id"
    data = "cases.jsonl"            # or a table [self_study]
    out = "my-codec"

    [codec]                         # its settings; name = "vae" unless it says otherwise
    slots = 16

    [training]                      # fields of ilcp.training.Recipe
    steps = 3000
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from ilcp.errors import EncodeError
from ilcp.models.loading import DTYPES
from ilcp.training.data import LEAST
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.selfstudy import SelfStudy

__all__ = ["TrainingConfig", "read_config", "refuse_unknown"]

STEPS = 3000
DEFAULT_RANK = 8
ANSWERS = dict(steps=STEPS, contexts=16, questions=8, kl_weight=0.5, close_answers=True)
CONTINUATIONS = dict(steps=STEPS, contexts=32, questions=1, kl_weight=0.5, close_answers=False)
COMMON = dict(collapse_after=0.5, validation_contexts=64)
PHRASES = {"naming_steps", "alignment_steps", "alignment_weight", "topics"}
TABLES = ("self_study", "codec", "training")
PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text in quotes",
    Path: "a path",
}


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training from end to end; see ``ilcp.training.job``."""

    sender: str
    receiver: str
    out: Path
    data: Path | None = None
    self_study: SelfStudy | None = None
    codec: Mapping[str, Any] = field(default_factory=dict)  # "name" and settings
    training: Mapping[str, Any] = field(default_factory=dict)  # fields of the recipe that are not as usual
    adapt_receiver: bool = False
    adapter_rank: int = DEFAULT_RANK
    test_cases: int = 200  # that the finished codec is measured on, at most a tenth of all
    too_long: str = "refuse"  # cases over the receiver's window: "refuse" or "skip"
    states_gb: float = 4.0  # of the sender's states on disk, at most; 0: none are kept
    dtype: str = "float32"
    device: str | None = None
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.data is None) == (self.self_study is None):
            found = "both" if self.data is not None else "neither"
            raise EncodeError(f"expected either data or self_study, got {found}: give one of --data and --self-study")
        if self.too_long not in ("refuse", "skip"):
            raise EncodeError(f"expected too_long to be 'refuse' or 'skip', got {self.too_long!r}")
        if self.dtype not in DTYPES:
            raise EncodeError(f"expected dtype to be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not 0 <= self.states_gb < float("inf"):
            raise EncodeError(f"expected states_gb to be 0 or more, got {self.states_gb}")
        if self.seed < 0:
            raise EncodeError(f"expected seed to be 0 or more, got {self.seed}")
        if self.test_cases < LEAST:
            raise EncodeError(f"expected test_cases to be at least {LEAST}, got {self.test_cases}: fewer prove nothing")
        if not self.out.name or self.out.name == "..":
            raise EncodeError(f"expected a folder with a name of its own for --out, got {str(self.out)!r}")
        if self.adapter_rank != DEFAULT_RANK and not self.adapt_receiver:
            raise EncodeError(
                f"expected adapt_receiver = true beside adapter_rank = {self.adapter_rank}, got false: "
                "set it, or leave adapter_rank out"
            )
        for name in PHRASES & set(self.training):
            raise EncodeError(
                f"expected no {name} under [training]: it needs a phrasebook, which is made in Python only"
            )
        if "seed" in self.training:
            raise EncodeError("expected seed at the top of the recipe, got it under [training]: it is the whole run's")
        self.recipe(closed=True)  # an unknown or impossible number is refused before an hour is spent

    @property
    def work(self) -> Path:
        """Where a run keeps its checkpoint, its log and the sender's states: beside the codec, not in it."""
        return self.out.with_name(self.out.name + ".run")

    def recipe(self, *, closed: bool) -> Hyperparameters:
        """The recipe for answers that end, or for continuations, with this plan's changes."""
        values = COMMON | (ANSWERS if closed else CONTINUATIONS) | dict(self.training) | {"seed": self.seed}
        return Hyperparameters(**_typed(Hyperparameters, values, "[training]"))

    def to_dict(self) -> dict[str, Any]:
        """All that decides the outcome, as JSON takes it."""
        record = asdict(self) | {"data": None if self.data is None else str(self.data)}
        for name in ("out", "device", "tensorboard"):  # where and how it is shown, not what is computed
            record.pop(name)
        return record


def read_config(recipe: Path | None = None, **changes: Any) -> TrainingConfig:
    """The plan of a recipe file, of keyword arguments, or of both: what is given (not None) goes before the file.

    ``self_study=True`` is self-study as usual; a mapping gives its fields. ``steps`` and ``minutes`` are the recipe's.

    Raises:
        EncodeError: the file cannot be read, a key is unknown or missing, or two contradict each other.
    """
    record = {} if recipe is None else _read(recipe)
    given = {name: value for name, value in changes.items() if value is not None}
    training = dict(_table(record, "training"))
    for name in ("steps", "minutes"):
        if name in given:
            training[name] = given.pop(name)
    for table in TABLES:
        if isinstance(given.get(table), Mapping):
            record[table] = {**_table(record, table), **given.pop(table)}
            training = {**training, **record[table]} if table == "training" else training
    if given.pop("self_study", False):
        record.setdefault("self_study", {})
    if "data" in given and recipe is not None and "self_study" in record:
        raise EncodeError(f"expected either --data or the table [self_study] of {recipe}, got both: remove one")
    record = {**record, **given, "training": training}
    where = "the recipe" if recipe is None else str(recipe)
    refuse_unknown(record, (f.name for f in fields(TrainingConfig)), where)
    _typed(Hyperparameters, training, "[training]")
    missing = [
        f.name for f in fields(TrainingConfig) if f.default is f.default_factory is MISSING and f.name not in record
    ]
    if missing:
        raise EncodeError(f"expected {', '.join(missing)} in {where}, got nothing: every training needs them")
    if "self_study" in record:
        study = _typed(SelfStudy, _table(record, "self_study"), "[self_study]")
        record["self_study"] = SelfStudy(**study)
    values = _typed(
        TrainingConfig, {**record, "sender": str(record["sender"]), "receiver": str(record["receiver"])}, where
    )
    paths = {name: Path(values[name]) for name in ("out", "data") if values.get(name) is not None}
    return TrainingConfig(**(values | paths))


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        because = (error.strerror or "unreadable").lower()
        raise EncodeError(f"expected a readable recipe, got {file}: {because}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EncodeError(f"expected a recipe in TOML, got something else in {file}: {error}") from error


def _table(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = record.get(name, {})
    if not isinstance(table, Mapping):
        raise EncodeError(f"expected a table [{name}] in the recipe, got {table!r}")
    return table


def _typed(kind: Any, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values for a dataclass's fields: none unknown, numbers where its defaults are numbers, lists as tuples."""
    known = {f.name: f for f in fields(kind)}
    refuse_unknown(values, known, where)
    typed: dict[str, Any] = {}
    for name, value in values.items():
        if not _fits(value, known[name].type):
            raise EncodeError(f"expected {_words(known[name].type)} for {name!r} in {where}, got {value!r}")
        typed[name] = tuple(value) if isinstance(value, list) else value
    return typed


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value of TOML or Python is of a field's type; lists stand for tuples."""
    parts = get_args(wanted)
    if get_origin(wanted) is UnionType:
        return any(_fits(value, part) for part in parts)
    if get_origin(wanted) is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if get_origin(wanted) is Literal:
        return value in parts
    if wanted in (int, float) and isinstance(value, bool):
        return False
    plain = get_origin(wanted) or wanted
    return isinstance(value, int | float if wanted is float else str | Path if wanted is Path else plain)


def _words(wanted: Any) -> str:
    """A field's type for people."""
    return PLAIN.get(wanted) or str(wanted).replace("pathlib.", "").replace("collections.abc.", "")


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuses a key that is none of those known, with the one that may have been meant.

    Raises:
        EncodeError: with the key, the nearest known one, and all of them.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise EncodeError(f"expected a key of {where}, got {name!r}{meant} Known: {', '.join(sorted(known))}")
