"""Caches measured as every other message: the same questions and controls, their bytes counted, few of them held."""

import gc
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ilcp
from ilcp import Receiver, Sender
from ilcp.cli import app
from ilcp.codec.memory import CacheMemory
from ilcp.embedded import load_pair
from ilcp.errors import ConfigError, UnmeasuredError
from ilcp.measure import Report, load_report, run
from ilcp.measure.caches import Held
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
    assert any("since the sender asks its questions each time" in note for note in found.notes)
    assert found.cost is None


def test_no_more_than_a_few_caches_are_held_and_each_is_decoded_once() -> None:
    """Of hundreds of cases they would take gigabytes; what is asked in parts is answered as it is at once."""
    sender, receiver = ends(Int4Codec)
    made: list[int] = []
    gc.collect()
    most, others = 0, sum(isinstance(each, CacheMemory) for each in gc.get_objects())
    with ilcp.connect("memory://few") as blobs:
        sender.blobs = receiver.blobs = blobs
        wires = [sender.encode(case.context) for case in CASES]

        class Few(Held):
            at_once = 2

            def __getitem__(self, number: int) -> Any:  # type: ignore[override]
                nonlocal most
                memory: Any = super().__getitem__(number)
                made.append(number)
                most = max(most, sum(isinstance(each, CacheMemory) for each in gc.get_objects()) - others)
                return memory

        scorer = Scorer(receiver, CASES)
        few, all_of = scorer.ask(Few(wires, receiver.decode)), scorer.ask([receiver.decode(wire) for wire in wires])
    assert made == list(range(len(CASES)))
    assert most == Few.at_once
    assert few.answers == all_of.answers
    assert few.nats == pytest.approx(all_of.nats, abs=1e-3)


def test_a_run_reads_sealed_messages_for_as_long_as_it_takes_encodes_once_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sender, receiver = ends(Int4Codec)
    sender.key = receiver.key = bytes(range(32))
    sender.ttl_s = 5
    receiver.clock = iter(range(int(time.time()), 2**40, 3600)).__next__  # an hour at each message
    encoded: list[str] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plain = Sender.encode

    def counting(self: Sender, source: Any, **options: Any) -> bytes:
        encoded.append(source)
        return plain(self, source, **options)

    monkeypatch.setattr(Sender, "encode", counting)
    found = run(sender, receiver, CASES, task="t", repetitions=0)
    assert found.complete
    assert encoded == [case.context for case in CASES]
    assert not list(tmp_path.iterdir())
    assert (sender.ttl_s, sender.blobs) == (5, None)


@pytest.mark.parametrize(
    ("options", "words"), [({"hops": 2}, "no hops and no budgets"), ({"budgets": [100]}, "no hops and no budgets")]
)
def test_what_is_not_measured_of_caches_is_refused_before_anything_runs(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(*ends(), CASES, task="t", **options)


def test_a_receiver_that_decodes_once_is_refused(tmp_path: Path) -> None:
    sender, receiver = ends()
    receiver.replay = ilcp.ReplayCache()
    with pytest.raises(ConfigError, match="without a replay cache"):
        run(sender, receiver, CASES, task="t")


def test_a_case_beyond_the_codecs_tokens_is_left_out_and_named() -> None:
    sender, _ = ends()
    read = {case.id: sender.read(case.context).kv for case in CASES}
    sizes = {name: kv.tokens for name, kv in read.items() if kv is not None}
    most = sorted(sizes.values())[-2]
    beyond = tuple(name for name, tokens in sizes.items() if tokens > most)
    assert beyond
    found = run(*ends(ExactCodec, tokens=most), CASES, task="t", repetitions=0)
    assert found.left_out == beyond
    assert any("at most" in note and beyond[0] in note for note in found.notes)


def test_a_loaded_pair_is_one_model_at_both_ends_and_takes_blobs(tmp_path: Path) -> None:
    ilcp.save(ends()[0].codec, tmp_path / "codec")
    where = Path(ilcp.embedded.__file__).parent / "receiver"
    with ilcp.connect("memory://pair") as blobs:
        pair = load_pair(tmp_path / "codec", receiver=where, allow_unmeasured=True, blobs=blobs)
        memory = pair.receiver.decode(pair.sender.encode(CASES[0].context))
    assert isinstance(memory, CacheMemory)


def test_arms_of_caches_are_asked_for_by_name() -> None:
    assert set(run(*ends(), CASES, task="t", arms=["text", "none"], repetitions=0).arms) == {"text", "none"}


def test_times_count_the_blob_in_and_tell_what_the_receiver_reads() -> None:
    found = run(*ends(), CASES, task="t", arms=["text", "none"], repetitions=50)
    assert not found.notes
    assert found.cost is not None
    assert found.fan_out is not None
    assert found.fan_out.identical.value == found.fan_out.unchanged.value == 1.0
    figures = found.cost.figures()
    sizes = [figures[name].value for name in ("message", "message, blob")]
    assert sizes[0] > sizes[1] > 100_000
    read, text = (figures[f"tokens, {name}"].value for name in ("message", "text"))
    assert 0 < read < 40 < text
    assert figures["tokens not pre-filled"].value == text - read
    assert figures["prefill, message"].value < figures["prefill, text"].value
    assert not {"KV bytes not built", "FLOPs by formula, message"} & figures.keys()  # neither is so of a cache
    assert 0 < found.cost.flops["message"] < found.cost.flops["text"] / 2
    assert Report.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_documents_that_the_codec_does_not_take_are_no_lengths_of_the_times() -> None:
    found = run(*ends(ExactCodec, tokens=300), CASES, task="t", arms=["text", "none"], repetitions=50)
    assert found.cost is not None
    assert [point.tokens for point in found.cost.points][-1] <= 300
