"""The scripts that measure caches: what they ask, what they count, and that nothing is measured twice."""

import json
import math
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ilcp
from ilcp.embedded import load_pair
from ilcp.measure import save_report
from ilcp.models.kv import following_nats
from ilcp.tasks import Case, Question
from ilcp.tasks.load import task
from ilcp.tasks.written import write_jsonl
from tests.helpers import load_script

axis, kv, kv_align = map(load_script, ("axis", "kv", "kv_align"))


def test_the_axis_goes_on_where_it_stopped_and_keeps_what_was_measured(tmp_path: Path, monkeypatch) -> None:
    """A preset that was measured is not measured again; the record names all that was handed over, and its pair."""
    pair, asked = load_pair(), task("case-files", n=3, seed=7)
    options: dict[str, Any] = {"task": asked.name, "seed": 7, "repetitions": 0, "texts": {}}
    arms = ["text", "none", "message", "mismatched"]
    latent = ilcp.measure.run(pair.sender, pair.receiver, asked.cases, arms=arms, **options)
    save_report(latent, tmp_path / "own.json")
    folders = ["--report", str(tmp_path / "own.json"), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["axis.py", *folders, "--presets", "kv-int8", "kv-int4"])
    monkeypatch.setattr(axis, "write_whole", lambda *_: pytest.fail("a full disk"))
    with pytest.raises(pytest.fail.Exception, match="a full disk"):
        axis.main()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["axis.py", *folders, "--presets", "kv-int8", "kv-int4"])
    monkeypatch.setattr(axis, "run", lambda *_, **__: pytest.fail("measured again"))
    axis.main()
    record = json.loads((tmp_path / "axis-embedded.json").read_text(encoding="utf-8"))
    assert {"vae", "kv-int8", "kv-int4"} == {offer["codec"] for offer in record["offers"] if offer["arm"] == "message"}
    assert (["embedded"], 3) == (record["pair"], record["n"])
    assert {"kv-int8", "kv-int4"} == set(record["another's"])
    save_report(replace(latent, seed=8), tmp_path / "own.json")  # other dossiers
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        axis.main()
    save_report(latent, tmp_path / "own.json")
    monkeypatch.setattr(sys, "argv", ["axis.py", *folders, "--presets", "kv-int8", "kv-exact"])
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        axis.main()


def test_a_code_is_as_long_as_the_model_is_surprised() -> None:
    receiver = load_pair().receiver
    ids = receiver.tokenizer("The release is planned for Friday.").input_ids
    bits = following_nats(receiver.model, None, ids) * (len(ids) - 1) / math.log(2)
    assert kv.coded_bytes(receiver.model, ids) == pytest.approx(bits / 8)
    assert 0 < kv.coded_bytes(receiver.model, ids) < kv.coded_bytes(receiver.model, [*ids, *ids[::-1]])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Cases with questions, some of them of what nobody said; and texts alone, one of them twice."""
    for name, words in (("train", 30), ("test", 6)):
        said = Question("Who?", "Mara", "said"), Question("When?", "not said", "absent")
        cases = [
            Case(f"{name} {n}", f"{name} {n}: Mara has the ticket of the day.", said[n % 3 == 0 :])
            for n in range(words)
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", cases)
    texts = [f"Text {n} goes on and on and ends." for n in (*range(12), 3)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path


def wanted(**given: Any) -> Namespace:
    usual = {"seed": 7, "n": 3, "texts": 8, "apart": 3, "characters": 99, "data": None, "asked": None}
    return Namespace(**usual | given)


def test_what_is_asked_is_in_no_text_that_teaches(files: Path) -> None:
    """Facts are canaries behind texts alone, and what was said where cases are named; a text is in one place only."""
    for given, topic in (
        ({"data": files / "texts.jsonl"}, ""),
        ({"data": files / "train.jsonl", "asked": files / "test.jsonl"}, "Who?"),
        ({"data": files / "train.jsonl", "asked": files / "train.jsonl"}, "Who?"),
    ):
        facts, training, apart = kv_align._cases(wanted(**given))
        assert (3, 8, 3) == (len(facts), len(training), len(apart))
        assert {topic} == {question.text for case in facts for question in case.questions}
        cut = {f"{beginning} {end}" for beginning, end in apart}
        assert 14 == len({case.context for case in (*facts, *training)} | cut)
    train = files / "train.jsonl"  # all that can be asked are asked: what teaches is drawn from the others
    facts, training, apart = kv_align._cases(wanted(data=train, asked=train, n=20, apart=2))
    assert not {case.context for case in facts} & ({case.context for case in training} | {" ".join(a) for a in apart})
    facts, _, apart = kv_align._cases(wanted())
    assert {"lookup"} == {question.kind for case in facts for question in case.questions}
    assert all(end and beginning for beginning, end in apart)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"asked": "test"}, "expected --data beside --asked"),
        ({"data": "texts", "asked": "test"}, "expected questions in .*, got texts without"),
        ({"data": "train", "asked": "test", "n": 300}, "expected 300 texts to draw from, got 4"),
        ({"data": "texts", "texts": 99}, "expected 102 texts to draw from, got 12"),
        ({"data": "texts", "characters": 31}, "expected 11 texts to draw from, got 10"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(files: Path, given: Any, said: str) -> None:
    named = {name: files / f"{value}.jsonl" if name in ("data", "asked") else value for name, value in given.items()}
    with pytest.raises(SystemExit, match=said):
        kv_align._cases(wanted(**named))
