"""Records of TOML and JSON become dataclasses, or a sentence that says what is wrong with them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from ilcp.errors import ConfigError, EncodeError, IdentityError, StorageError, UnmeasuredError
from ilcp.evidence import Evidence
from ilcp.identity import ModelIdentity
from ilcp.records import read_record, refuse_unknown


@dataclass(frozen=True, slots=True)
class Study:
    """A record below another."""

    contexts: int
    topics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """A record with a field of every kind that ilcp reads."""

    sender: str
    out: Path
    steps: int = 1
    rate: float = 0.5
    halved: bool = False
    mode: Literal["fast", "exact"] = "fast"
    limit: int | None = None
    pace: Literal["slow"] | float = 1.0
    data: Path | None = None
    band: tuple[float, int] = (0.0, 1)
    free: tuple[float, ...] = ()
    study: Study | None = None
    studies: tuple[Study, ...] = ()
    codec: Mapping[str, Any] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    named: Mapping[str, Study] = field(default_factory=dict)
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"expected steps to be 1 or more, got {self.steps}")
        if self.steps == 13:
            raise EncodeError("expected another number of steps, got 13")


LEAST = {"sender": "a", "out": "codec"}


def test_a_record_becomes_its_dataclass() -> None:
    """Lists become tuples, texts paths, whole numbers floats where floats are wanted; what is left out is as usual."""
    given = {
        "sender": "a",
        "out": "codec",
        "rate": 1,
        "limit": 4,
        "band": [0, 2],
        "free": [1, 0.5],
        "study": {"contexts": 3, "topics": ["x"]},
        "studies": [{"contexts": 1}],
        "codec": {"name": "vae", "slots": 4},
        "means": {"none": 0},
        "mode": "exact",
    }
    expected = Run(
        "a",
        Path("codec"),
        rate=1.0,
        limit=4,
        band=(0.0, 2),
        free=(1.0, 0.5),
        study=Study(3, ("x",)),
        studies=(Study(1),),
        codec={"name": "vae", "slots": 4},
        means={"none": 0.0},
        mode="exact",
    )
    assert expected == read_record(Run, given, "the recipe")
    assert Run("a", Path("codec")) == read_record(Run, LEAST, "the recipe")
    assert Run("a", Path("codec"), data=Path("x")) == read_record(Run, {**LEAST, "data": Path("x")}, "the recipe")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"steps": "many"}, "expected a whole number for 'steps' in the recipe, got 'many'"),
        ({"steps": True}, "expected a whole number for 'steps' in the recipe, got True"),
        ({"steps": 1.5}, "expected a whole number for 'steps' in the recipe, got 1.5"),
        ({"steps": None}, "expected a whole number for 'steps' in the recipe, got None"),
        ({"rate": "half"}, "expected a number for 'rate' in the recipe, got 'half'"),
        ({"rate": False}, "expected a number for 'rate' in the recipe, got False"),
        ({"halved": 1}, "expected true or false for 'halved' in the recipe, got 1"),
        ({"sender": 7}, "expected a text in quotes for 'sender' in the recipe, got 7"),
        ({"out": 7}, "expected a path for 'out' in the recipe, got 7"),
        ({"data": 7}, "expected a path or nothing for 'data' in the recipe, got 7"),
        ({"limit": "x"}, "expected a whole number or nothing for 'limit' in the recipe, got 'x'"),
        ({"mode": "quick"}, "expected one of 'fast', 'exact' for 'mode' in the recipe, got 'quick'"),
        ({"mode": 1}, "expected one of 'fast', 'exact' for 'mode' in the recipe, got 1"),
        ({"pace": "quick"}, "expected one of 'slow' or a number for 'pace' in the recipe, got 'quick'"),
        ({"band": [1]}, "expected a list of 2 for 'band' in the recipe, got [1]"),
        ({"band": [1, "x"]}, "expected a whole number for 'band[1]' in the recipe, got 'x'"),
        ({"free": 3}, "expected a list for 'free' in the recipe, got 3"),
        ({"free": [1, 2, "x"]}, "expected a number for 'free[2]' in the recipe, got 'x'"),
        ({"study": 3}, "expected a table or nothing for 'study' in the recipe, got 3"),
        ({"study": {"contexts": "x"}}, "expected a whole number for 'study.contexts' in the recipe, got 'x'"),
        ({"study": {}}, "expected 'contexts' in study of the recipe, got nothing"),
        ({"studies": [{"contexts": 1}, {"contexts": []}]}, "expected a whole number for 'studies[1].contexts' in"),
        ({"codec": 3}, "expected a table for 'codec' in the recipe, got 3"),
        ({"means": {"b": 1, "a": "x"}}, "expected a number for 'means.a' in the recipe, got 'x'"),
        ({"samples": {"b": [1], "a": [1, "x"]}}, "expected a number for 'samples.a[1]' in the recipe, got 'x'"),
        ({"samples": {"a": 1}}, "expected a list for 'samples.a' in the recipe, got 1"),
        ({"named": {"a": {}}}, "expected 'contexts' in named.a of the recipe, got nothing"),
        ({"named": {"a": {"contexts": 1, "topic": 1}}}, "expected a key of a in named in the recipe, got 'topic'; did"),
        ({"step": 1}, "expected a key of the recipe, got 'step'; did you mean 'steps'? Known: band, codec,"),
        ({"zzz": 1}, "expected a key of the recipe, got 'zzz'. Known: band, codec,"),
        ({"study": {"contexts": 1, "topic": 1}}, "expected a key of study in the recipe, got 'topic'; did you mean"),
        ({"studies": [{"context": 1}]}, "expected a key of [0] in studies in the recipe, got 'context'; did you mean"),
        ({"steps": 0}, "expected steps to be 1 or more, got 0"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(given: dict[str, Any], expected: str) -> None:
    """The text names the key by its path, what it should be in people's words, and the value that came."""
    with pytest.raises(ConfigError) as caught:
        read_record(Run, {**LEAST, **given}, "the recipe")
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, "expected 'sender', 'out' in the recipe, got nothing"),
        ({"out": "x"}, "expected 'sender' in the recipe, got nothing"),
        ([1], "expected a table in the recipe, got [1]"),
        (None, "expected a table in the recipe, got None"),
        ("text", "expected a table in the recipe, got 'text'"),
        ({7: 1}, "expected a key of the recipe, got '7'. Known:"),
    ],
)
def test_what_is_no_record_or_lacks_a_key_is_said(record: Any, expected: str) -> None:
    """All missing keys are named at once; what is no table is shown."""
    with pytest.raises(ConfigError) as caught:
        read_record(Run, record, "the recipe")
    assert expected in str(caught.value)


def test_the_caller_chooses_the_error_and_a_records_own_errors_pass() -> None:
    """A file of ours that is damaged is a StorageError; what a dataclass refuses by itself keeps its class."""
    with pytest.raises(StorageError, match="expected a whole number for 'steps'"):
        read_record(Run, {**LEAST, "steps": "x"}, "config.json", error=StorageError)
    with pytest.raises(StorageError, match="got 'step'"):
        read_record(Run, {**LEAST, "step": 1}, "config.json", error=StorageError)
    with pytest.raises(EncodeError, match=r"^expected another number of steps, got 13$"):
        read_record(Run, {**LEAST, "steps": 13}, "the recipe")
    with pytest.raises(EncodeError, match=r"expected a key of x, got 'b'; did you mean 'bb'\? Known: aa, bb"):
        refuse_unknown(["aa", "b"], ["bb", "aa"], "x", error=EncodeError)
    refuse_unknown([], [], "x")


def test_numbers_that_contradict_each_other_are_blamed_as_the_caller_chose() -> None:
    """What a dataclass calls a ConfigError is damage where it stands in a file of ours, and the text says where."""
    with pytest.raises(StorageError, match=r"^expected steps to be 1 or more, got 0: run in config\.json$"):
        read_record(Run, {**LEAST, "steps": 0}, "run in config.json", error=StorageError)
    with pytest.raises(EncodeError, match=r"got 13$"):
        read_record(Run, {**LEAST, "steps": 13}, "run in config.json", error=StorageError)


IDENTITY = {"weights": "w", "tokenizer": "t", "chat_template": "", "dtype": "float32", "adapters": ""}
EVIDENCE = {
    "codec_id": "00",
    "task": "case files",
    "n": 200,
    "seed": 0,
    "unit": "exact match",
    "content_gain": 0.5,
    "low": 0.4,
    "high": 1,
    "arms": {"none": 0.0, "mismatched": 0.5, "message": 1.0, "text": 1},
    "commit": "abc",
}


def test_an_identity_is_read_with_its_types_checked() -> None:
    """What ``asdict`` wrote is read; a missing, unknown or mistyped field is an IdentityError that names it."""
    assert ModelIdentity("w", "t", "", "float32", "") == ModelIdentity.from_dict(IDENTITY)
    for change, expected in (
        ({"weights": 7}, "expected a text in quotes for 'weights' in the model's identity, got 7"),
        ({"weight": "w"}, "got 'weight'; did you mean 'weights'"),
    ):
        with pytest.raises(IdentityError, match=expected):
            ModelIdentity.from_dict({**IDENTITY, **change})
    wrong: tuple[Any, ...] = ({"weights": "w"}, {}, [], None)
    for record in wrong:
        with pytest.raises(IdentityError, match=r"expected (identity fields|a table in the model's identity)"):
            ModelIdentity.from_dict(record)


def test_evidence_of_before_is_read_in_the_words_of_today() -> None:
    """An arm that was renamed has its new name, whatever wrote the evidence."""
    held = Evidence("ab", "a task", 9, 1, "exact match", 0.5, 0.4, 0.6, {"message": 0.9, "mismatched": 0.4}, "abc")
    assert held == Evidence.from_dict(asdict(replace(held, arms={"message": 0.9, "other": 0.4})))
    assert held == Evidence.from_dict(asdict(held))


def test_evidence_is_read_with_its_types_checked() -> None:
    """What ``asdict`` wrote is read, an interval that is none included; a wrong field is an UnmeasuredError."""
    assert 1.0 == Evidence.from_dict(EVIDENCE).arms["text"]
    assert not Evidence.from_dict({**EVIDENCE, "low": None, "high": None}).holds
    for change, expected in (
        ({"n": "200"}, "expected a whole number for 'n' in the evidence, got '200': measure again"),
        ({"low": "x"}, "expected a number or nothing for 'low' in the evidence, got 'x'"),
        ({"arms": [1]}, "expected a table for 'arms' in the evidence"),
        ({"gain": 1}, "expected a key of the evidence, got 'gain'"),
    ):
        with pytest.raises(UnmeasuredError, match=expected):
            Evidence.from_dict({**EVIDENCE, **change})
    wrong: tuple[Any, ...] = ({"low": 1}, [], None)
    for record in wrong:
        with pytest.raises(UnmeasuredError, match=r"the evidence, got .*: measure again"):
            Evidence.from_dict(record)
