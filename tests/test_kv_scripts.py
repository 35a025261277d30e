"""The scripts that measure caches: what they ask, what they count, and that nothing is measured twice."""

import json
import math
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ilcp
from ilcp.embedded import load_pair
from ilcp.measure import save_report
from ilcp.models.kv import following_nats, read_kv
from ilcp.models.rope import ropes_of
from ilcp.tasks import Case, Question
from ilcp.tasks.load import task
from ilcp.tasks.written import write_jsonl
from tests.helpers import load_script

axis, axis_peers, kv, kv_align = map(load_script, ("axis", "axis_peers", "kv", "kv_align"))


def test_the_axis_goes_on_where_it_stopped_and_keeps_what_was_measured(tmp_path: Path, monkeypatch) -> None:
    """A preset that was measured is not measured again; the record names all that was handed over, and its pair."""
    pair, asked = load_pair(), task("case-files", n=3, seed=7)
    options: dict[str, Any] = {"task": asked.name, "seed": 7, "repetitions": 0, "texts": {}}
    arms = ["text", "none", "message", "mismatched"]
    latent = ilcp.measure.run(pair.sender, pair.receiver, asked.cases, arms=arms, **options)
    save_report(latent, tmp_path / "own.json")
    names = {"report": "own.json", "runs": "runs", "out": ".", "avp-python": "nowhere"}
    folders = [part for name, at in names.items() for part in (f"--{name}", str(tmp_path / at))]
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


class Coarse:
    """Stands for the quantised layer of transformers, which needs hqq: it gives back whole numbers."""

    def __init__(self, **_: Any): ...

    def update(self, *both: torch.Tensor) -> None:
        assert 0 == both[0].shape[2] % 8
        one = {"scale": torch.zeros(1), "zero": torch.zeros(1)}
        self._quantized_keys, self._quantized_values = ((each.round().to(torch.int8), one) for each in both)

    def _dequantize(self, coded: Any) -> torch.Tensor:
        return coded[0].float()


def test_a_peer_s_quantised_cache_keeps_what_fills_no_byte(monkeypatch) -> None:
    monkeypatch.setattr("transformers.cache_utils.HQQQuantizedLayer", Coarse)
    receiver = load_pair().receiver
    ids = receiver.tokenizer("The release is planned for Friday, says Mara Lindqvist of Bergen.").input_ids
    kv_read = read_kv(receiver.model, ids[:19], 0, ropes_of(receiver.model))
    rounded, size = kv.by_hqq(kv_read, 4)
    layers, heads, head = len(kv_read.keys), *kv_read.keys[0].shape[::2]
    assert 2 * layers * (heads * head * (16 + 3 * 4) + 2 * 4) == size  # a byte a number, three tokens of four, and meta
    for before, after in zip((*kv_read.keys, *kv_read.values), (*rounded.keys, *rounded.values), strict=True):
        assert torch.equal(before[:, :16].round(), after[:, :16])
        assert torch.equal(before[:, 16:], after[:, 16:])
        assert before.shape == after.shape


class Peer:
    """Stands for a process with avp: it has the answers to every other question."""

    def __init__(self, python: Path):
        self.open = True

    def ask(self, do: str, **given: Any) -> Any:
        if do == "load":
            return {"avp": "0"}
        assert ("answers", "receiver") == (do, given["model"])
        case = next(case for case in ASKED.cases if case.context == given["text"])
        gold = {question.text: question.answer for question in case.questions}
        found = [gold[each] if n % 2 else "Nobody" for n, each in enumerate(given["questions"])]
        return {"bytes": 1000 + given["steps"], "answers": found}

    def close(self) -> None:
        CLOSED.append(self)


ASKED = task("case-files", n=3, seed=7)
CLOSED: list[Peer] = []


def test_peers_lie_on_the_axis_by_what_they_answered(monkeypatch, tmp_path: Path) -> None:
    """A peer's answers are right or wrong as the receiver's are; its bytes are its own, and it says no likelihood."""
    pair = load_pair()
    options: dict[str, Any] = {"task": ASKED.name, "seed": 7, "repetitions": 0, "texts": {}}
    arms = ["text", "none", "message", "mismatched"]
    latent = ilcp.measure.run(pair.sender, pair.receiver, ASKED.cases, arms=arms, **options)
    monkeypatch.setattr(axis_peers, "Client", Peer)
    monkeypatch.setattr(axis_peers, "find_spec", lambda _: None)
    (tmp_path / "python").touch()
    offers, versions = axis_peers.measured(latent, pair, ASKED.cases, tmp_path / "python")
    assert (["avp-20", "avp-0"], [1020, 1000]) == ([one.codec for one in offers], [one.mean_bytes for one in offers])
    text, none = (latent.mean(name).value for name in ("text", "none"))
    for one in offers:
        assert (0.5 - none) / (text - none) == pytest.approx(one.recovery.value)
        assert (None, False) == (one.recovery_nats, one.readable)
    assert ({"avp": {"avp": "0"}}, 1) == (versions, len(CLOSED))
    assert ([], {}) == axis_peers.measured(latent, pair, ASKED.cases, tmp_path / "nowhere")
    assert ["no interpr", "no hqq: pi"] == [said[:10] for said in axis_peers.missing(tmp_path / "nowhere")]


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
