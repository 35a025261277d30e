"""Caches measured as every other message: the same questions and controls, their bytes counted, few of them held."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ilcp
from ilcp import Receiver, Sender
from ilcp.cli import app
from ilcp.embedded import load_pair
from ilcp.errors import ConfigError, EncodeError, UnmeasuredError
from ilcp.measure import Report, load_report, run
from ilcp.measure.arms import ArmInput, ArmSpec
from ilcp.measure.caches import AT_ONCE, Held
from ilcp.measure.scoring import Scorer
from ilcp.tasks import case_files
from ilcp_codecs.kv import CompactCodec, ExactCodec, Int4Codec

CASES = [
    replace(case, questions=case.questions[number % 3 :: 5]) for number, case in enumerate(case_files("test", 7, 5))
]


def ends(kind: Any = ExactCodec, **options: Any) -> tuple[Sender, Receiver]:
    """Both ends of the embedded receiver's model."""
    own = load_pair().receiver
    codec = kind.of(own.model, own.tokenizer, **options)
    return Sender(own.model, own.tokenizer, codec), Receiver(own.model, own.tokenizer, codec, allow_unmeasured=True)


def exactly(report: Report, name: str) -> tuple[Any, ...]:
    """What an arm answered."""
    return report.arms[name].answers


@pytest.fixture(scope="module")
def report() -> Report:
    """A report of the exact cache."""
    return run(*ends(), CASES, task="case files", repetitions=0)


def test_an_exact_cache_is_worth_the_text_and_anothers_is_not(report: Report) -> None:
    assert set(report.arms) == {"text", "none", "message", "mismatched"}
    assert exactly(report, "message") == exactly(report, "text")
    assert exactly(report, "mismatched") != exactly(report, "text")
    assert report.arms["message"].nats == pytest.approx(
        report.arms["text"].nats, abs=0.1
    )  # words meet otherwise at its end
    said = report.verdict()
    assert said.startswith("The message carries content")
    assert "the text itself takes fewer bytes" in said


def test_a_blobs_bytes_are_the_messages(report: Report) -> None:
    sender, receiver = ends()
    with ilcp.connect("memory://measured") as blobs:
        sender.blobs = receiver.blobs = blobs
        for case, payload, wire in zip(
            CASES, report.arms["message"].payload_bytes, report.arms["message"].wire_bytes, strict=True
        ):
            message = sender.encode(case.context)
            parsed = ilcp.Message.from_bytes(message)
            assert parsed.blob is not None
            assert payload == parsed.blob.size_bytes > 65_535
            assert wire == payload + len(message)


def test_evidence_lets_a_receiver_take_the_codec(tmp_path: Path) -> None:
    codec, folder = ends()[0].codec, tmp_path / "codec"
    ilcp.save(codec, folder)
    own = load_pair().receiver
    with pytest.raises(UnmeasuredError):
        Receiver(own.model, own.tokenizer, ilcp.load(folder))
    where = Path(ilcp.embedded.__file__).parent / "receiver"
    kept = tmp_path / "report.json"
    options = ["--n", "4", "--receiver", str(where), "--json", str(kept), "--attach", "--repetitions", "0"]
    done = CliRunner().invoke(app, ["measure", str(folder), "--task", "case-files", *options])
    assert done.exit_code == 0, done.output
    assert Receiver(own.model, own.tokenizer, ilcp.load(folder)).codec.evidence is not None
    assert json.loads(kept.read_text())["codec"]["name"] == "kv-exact"
    assert load_report(kept).complete


def test_fewer_bytes_are_arms_of_their_own_where_a_codec_has_them() -> None:
    questions = [question.text for question in CASES[0].questions]
    found = run(*ends(CompactCodec, questions=questions, share=1.0), CASES, task="t", lengths=(400_000, 100_000))
    assert {"message", "message-100000"} <= set(found.arms)
    sizes = found.arms["message-100000"].payload_bytes
    assert max(sizes) <= 100_000 < min(found.arms["message"].payload_bytes)
    assert any("not measured of caches" in note for note in found.notes)


def test_no_more_than_a_few_caches_are_held_and_each_is_decoded_once() -> None:
    """Of hundreds of cases they would take gigabytes; what is asked in parts is answered as it is at once."""
    sender, receiver = ends(Int4Codec)
    made: list[int] = []
    with ilcp.connect("memory://few") as blobs:
        sender.blobs = receiver.blobs = blobs
        wires = [sender.encode(case.context) for case in CASES]

        class Few(Held):
            at_once = 2

            def __getitem__(self, number: int) -> Any:  # type: ignore[override]
                made.append(number)
                return super().__getitem__(number)

        scorer = Scorer(receiver, CASES)
        few, all_of = scorer.ask(Few(wires, receiver.decode)), scorer.ask([receiver.decode(wire) for wire in wires])
    assert made == list(range(len(CASES)))
    assert few.answers == all_of.answers
    assert few.nats == pytest.approx(all_of.nats, abs=1e-3)
    assert AT_ONCE < 100


@pytest.mark.parametrize(
    ("options", "words"), [({"hops": 2}, "no hops and no budgets"), ({"budgets": [100]}, "no hops and no budgets")]
)
def test_what_is_not_measured_of_caches_is_refused_before_anything_runs(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(*ends(), CASES, task="t", **options)


def test_a_case_beyond_the_codecs_tokens_is_left_out_and_named() -> None:
    own = load_pair().receiver
    longest = max(len(own.tokenizer(case.context).input_ids) for case in CASES)
    with pytest.raises(EncodeError, match="at most"):
        run(*ends(ExactCodec, tokens=longest // 4), CASES, task="t", repetitions=0)


def test_arms_of_caches_are_specs_as_others_are() -> None:
    """A caller that asks for one by name gets it."""
    found = run(*ends(), CASES, task="t", arms=["text", "none"], repetitions=0)
    assert set(found.arms) == {"text", "none"}
    assert ArmSpec("x", "control", lambda: ArmInput([])).rival_of is None
