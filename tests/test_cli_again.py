"""``ilcp measure --again``: the cases of a codec's evidence once more."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ilcp.cli import app
from ilcp.embedded import HERE
from ilcp.errors import ConfigError, UnmeasuredError
from ilcp.tasks import case_files


def run(*words: object) -> Any:
    """Calls the command line; what it raises is in the result."""
    return CliRunner().invoke(app, ["measure", *map(str, words), "--repetitions", "0"])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run that fails leaves behind lies in the folder that it was called in."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the embedded codec that was measured on a few look-ups, and their file."""
    folder = tmp_path_factory.mktemp("again")
    codec, cases = folder / "codec", folder / "few.jsonl"
    shutil.copytree(HERE / "codec", codec)
    lines = []
    for case in case_files("validation", 21, 4, facts=4):
        asked = [question for question in case.questions if question.kind == "lookup"][:3]
        lines.append({"context": case.context, "questions": [{"question": q.text, "answer": q.answer} for q in asked]})
    cases.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    done = run(codec, "--task", cases, "--attach")
    assert done.exception is None, done.output
    return codec, cases


def evidence_in(codec: Path) -> dict[str, Any]:
    """What the folder says of the codec."""
    found: dict[str, Any] = json.loads((codec / "config.json").read_text(encoding="utf-8"))["evidence"]
    return found


def test_evidence_says_when_and_with_what_it_was_measured(measured: tuple[Path, Path]) -> None:
    """So that it can expire."""
    found = evidence_in(measured[0])
    assert found["measured_unix_s"] > 1_700_000_000
    assert "." in found["transformers"]


def test_the_same_cases_give_what_they_gave(measured: tuple[Path, Path]) -> None:
    """The cases and their seed are those of the evidence; nothing is written."""
    before = (measured[0] / "config.json").read_bytes()
    done = run(measured[0], "--task", measured[1], "--again")
    assert done.exception is None, done.output
    assert "as before: content gain" in done.output
    assert before == (measured[0] / "config.json").read_bytes()


def test_another_gain_than_then_is_refused(measured: tuple[Path, Path], tmp_path: Path) -> None:
    """The text says what was measured then, and now."""
    codec = tmp_path / "codec"
    shutil.copytree(measured[0], codec)
    record = json.loads((codec / "config.json").read_text(encoding="utf-8"))
    found = record["evidence"]
    found["arms"] |= {"message": 0.1, "mismatched": 0.0}
    found |= {"content_gain": 0.1, "low": 0.05, "high": 0.15}
    (codec / "config.json").write_text(json.dumps(record), encoding="utf-8")
    done = run(codec, "--task", measured[1], "--again")
    assert isinstance(done.exception, UnmeasuredError)
    assert "expected a content gain as in the evidence (0.100 [0.050, 0.150]" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "other.jsonl"], "the 4 cases of few.jsonl for --again, got others"),
        (["--n", "3"], "the 4 cases of few.jsonl for --again, got others"),
        (["kv-int8"], "one codec to measure --again, got 2"),
    ],
)
def test_other_cases_are_refused(measured: tuple[Path, Path], words: list[str], said: str) -> None:
    """Before anything is measured."""
    done = run(measured[0], *words, "--again")
    assert isinstance(done.exception, ConfigError)
    assert said in str(done.exception)


def test_a_codec_without_evidence_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    """The text says so."""
    shutil.copytree(HERE / "codec", tmp_path / "codec")
    config = tmp_path / "codec" / "config.json"
    record = json.loads(config.read_text(encoding="utf-8"))
    for name in ("evidence", "proof"):  # the second is its earlier name
        record.pop(name, None)
    config.write_text(json.dumps(record), encoding="utf-8")
    done = run(tmp_path / "codec", "--again")
    assert isinstance(done.exception, ConfigError)
    assert "which was not: leave --again out" in str(done.exception)
