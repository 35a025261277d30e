"""The instrument, on codecs whose answers are known, and its figures."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ilcp
from ilcp.codec.context import Context
from ilcp.codec.folder import attach_evidence
from ilcp.codec.memory import Memory, TextMemory
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, DecodeError, StorageError, UnmeasuredError
from ilcp.evidence import Evidence
from ilcp.handoff import Receiver, Sender
from ilcp.identity import ANY
from ilcp.measure import (
    Citation,
    Computed,
    Measured,
    Report,
    compare,
    load_report,
    payload,
    provenance,
    run,
    save_report,
)
from ilcp.measure.bootstrap import Bootstrap
from ilcp.measure.fitting import SPARE_TOKENS, Fitting
from ilcp.measure.items import Arm, Items, f1
from ilcp.measure.page import page
from ilcp.measure.plots import plots
from ilcp.measure.report import plain
from ilcp.models.prompt import answer_ids
from ilcp.tasks import Case, Question, case_files, thin
from ilcp_codecs.text import HeadCodec
from tests.helpers import noting, present
from tests.spoiled import spoiled

PER_KIND = {"lookup": 2, "join": 1, "absent": 1, "code": 1}
CASES = [thin(case, PER_KIND, number) for number, case in enumerate(case_files("validation", 5, 12, facts=8))]
FEW = [thin(case, {"lookup": 2, "join": 0, "absent": 0, "code": 0}, 0) for case in CASES[:5]]
MAIN = ("text", "none", "message", "mismatched")
OLD_REPORT = Path(__file__).parent / "golden" / "report-format-1.json"


class Known:
    """A codec whose message is the number of a text that it holds: what it tells is decided by ``texts``."""

    layers: tuple[int, ...] = ()
    evidence = None

    def __init__(self, texts: dict[str, str]):
        self.texts = list(texts.values())
        self.number = {context: number for number, context in enumerate(texts)}
        self.spec = CodecSpec("known", 2, "text", (2,))
        self.trained = Trained(ANY, ANY, str(sum(map(len, self.texts))))

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        return self.number[present(context.text)].to_bytes(2, "big")

    def decode(self, payload: bytes) -> Memory:
        number = int.from_bytes(payload, "big")
        if number >= len(self.texts):
            raise DecodeError(f"expected a number below {len(self.texts)}, got {number}")
        return TextMemory(self.texts[number])


def measured(pair, codec, cases=CASES, **options) -> Report:
    """A run of the embedded receiver under any codec."""
    sender = Sender(pair.sender.model, pair.sender.tokenizer, codec)
    receiver = Receiver(pair.receiver.model, pair.receiver.tokenizer, codec, allow_unmeasured=True)
    return run(sender, receiver, cases, task="known", seed=3, **(dict[str, Any](texts={}, repetitions=0) | options))


def shifted(by: int) -> dict[str, str]:
    """Each context with the one ``by`` places further."""
    contexts = [case.context for case in CASES]
    return dict(zip(contexts, contexts[by:] + contexts[:by], strict=True))


@pytest.fixture(scope="module")
def perfect(pair) -> Report:
    """A codec that sends the text."""
    return measured(pair, Known({case.context: case.context for case in CASES}), texts={"head": HeadCodec()})


def test_a_codec_that_sends_the_text_recovers_one(perfect) -> None:
    """Recovery 1 in every metric, no answer differs from the full text's, and the content gain is sure."""
    for metric in ("exact", "f1", "log_likelihood"):
        assert 1.0 == perfect.recovery("message", of=metric).value
    assert 0.0 == perfect.churn("message", "text").value
    assert perfect.content_gain().low > 0.3
    assert perfect.verdict().startswith("The message carries content")


def test_two_ends_that_are_swapped_are_refused_by_name(pair) -> None:
    """A receiver where the sender belongs is named before anything is measured."""
    with pytest.raises(ConfigError, match=r"expected an ilcp.Sender as sender, got Receiver"):
        run(pair.receiver, pair.sender, CASES, task="x")


def test_a_codec_that_says_nothing_recovers_zero(pair) -> None:
    """The same words for every case: recovery near that of nothing, a content gain of zero, and the verdict."""
    report = measured(pair, Known({case.context: "Coffee ran out early." for case in CASES}), arms=MAIN)
    assert present(report.recovery("message")).value < 0.15
    assert 0.0 == report.content_gain().value == report.content_gain(of="log_likelihood").value
    assert report.verdict().startswith("CARRIES NOTHING")
    assert not report.evidence().holds


def test_a_codec_that_leaks_the_answers_prior_has_no_content_gain(pair) -> None:
    """Answers that are right by habit count as nothing: another case's message says the same."""
    prior = " ".join(f"The {role} is Mara." for role in ("owner", "reporter"))
    report = measured(pair, Known({case.context: prior for case in CASES}), arms=MAIN)
    assert 0.0 == report.content_gain().value
    assert 0.0 == report.churn("message", "mismatched").value


def test_a_codec_that_sends_another_case_has_negative_gain(pair) -> None:
    """If the message is the next case's, then the previous case's message, the control, is the right one."""
    report = measured(pair, Known(shifted(-1)), arms=MAIN)
    assert present(report.content_gain(of="log_likelihood").high) < 0
    assert report.content_gain().value < 0


def test_every_arm_answers_every_question(perfect) -> None:
    """All arms that the codec and the task have are there, with one entry per question, and sizes that are ``len``."""
    expected = {
        "text",
        "none",
        "message",
        "literals-2",
        "literals-mismatched",
        "mismatched",
        "zero",
        "head-2",
        "oracle-2",
        "index",
    }
    assert expected == set(perfect.arms)
    assert any(note.startswith("random: not measured") for note in perfect.notes)
    assert all(len(perfect.items) == len(arm.nats) for arm in perfect.arms.values())
    assert {22} == set(perfect.arms["message"].wire_bytes)
    assert {2} == set(perfect.arms["head-2"].payload_bytes)
    assert {21} == set(perfect.arms["index"].wire_bytes)


def test_the_limits_are_limits(pair) -> None:
    """The whole record answers everything, in as many bytes as the entropy needs; one byte answers one choice."""
    report = measured(pair, Known(shifted(0)), arms=("none", "index"))
    assert all(answer is None for kind, answer in zip(report.items.kinds, report.arms["index"].answers, strict=True)
               if kind in ("lookup", "absent"))  # fmt: skip
    for case in CASES:
        fact_code = present(case.fact_code)
        whole = fact_code.encode(80)
        assert abs(8 * len(whole) - present(case.entropy_bits)) <= 8
        assert {q.text: q.answer for q in case.questions}.items() <= dict(fact_code.answers(whole)).items()


def test_text_of_equal_bytes_has_no_more_than_its_rival(pair) -> None:
    """At each length the text's payload fills what the message may have, and no more."""
    wanted: dict[str, Any] = dict(lengths=[80, 40], texts={"head": HeadCodec()}, arms=("head-80", "head-40"))
    arms = run(pair.sender, pair.receiver, FEW, task="x", repetitions=0, **wanted).arms
    assert {length: set(arms[f"head-{length}"].payload_bytes) for length in (80, 40)} == {80: {80}, 40: {40}}


def test_delivered_bits_end_at_the_entropy(perfect) -> None:
    """Full certainty delivers the document's entropy, nothing delivers at most nothing, and shares have that scale."""
    sure = replace(perfect.arms["message"], name="sure", new_nats=(0.0,) * len(perfect.items))
    report = replace(perfect, arms={**perfect.arms, "sure": sure})
    found = report.delivered("sure")
    assert np.mean(report.items.entropy_bits) == pytest.approx(found["bits per document"].value, rel=0.03)
    assert 1.0 == pytest.approx(found["share of the document's entropy"].value, rel=0.03)
    assert report.delivered("none")["bits per document"].value < 1.0
    assert found["bits per document"].value / 16 == pytest.approx(found["share of payload bits"].value)


def test_joins_count_their_new_part_only(perfect) -> None:
    """The person of a join is another question's answer; its log-likelihood is not in what the join tells anew."""
    arm = perfect.arms["none"]
    joins = [index for index, kind in enumerate(perfect.items.kinds) if kind == "join"]
    lookups = [index for index, kind in enumerate(perfect.items.kinds) if kind == "lookup"]
    assert joins
    assert all(arm.new_nats[index] > arm.nats[index] for index in joins)
    assert all(arm.new_nats[index] == arm.nats[index] for index in lookups)


def test_any_accepted_spelling_is_right(pair, tmp_path) -> None:
    """Exact match and F1 take the best spelling, also of stored answers; the log-likelihood stays that of one."""
    options: dict[str, Any] = dict(arms=(*MAIN, "index"))
    plain_one = measured(pair, Known(shifted(0)), FEW, **options)
    other = [
        replace(
            case, questions=tuple(replace(q, answer="Nobody", answers=("Nobody", q.answer)) for q in case.questions)
        )
        for case in FEW
    ]
    report = measured(pair, Known(shifted(0)), other, **options)
    for arm in report.arms:
        was, now = (np.array(one.arms[arm].scores("exact", one.items)) for one in (plain_one, report))
        assert was.tolist() == now.tolist(), arm
        assert (report.arms[arm].scores("f1", report.items) >= now).all()
    assert report.mean("text").value > 0.5 > 0.0 == report.churn("text", "text").value
    assert report.mean("text", of="log_likelihood").value < plain_one.mean("text", of="log_likelihood").value - 1
    assert {0.0} == set(report.arms["index"].nats)
    save_report(report, tmp_path / "report.json")
    assert report == load_report(tmp_path / "report.json")
    assert [q.answer for case in FEW for q in case.questions] == [also for (also,) in report.items.alternatives]
    assert "alternatives" not in plain_one.to_dict()["items"]
    with pytest.raises(ConfigError, match="expected 10 alternatives, one per question, got 1"):
        replace(report.items, alternatives=(("x",),))


def test_room_is_left_for_the_longest_spelling(pair) -> None:
    """An answer may be as long as any accepted spelling before it is cut off."""
    spelled = Question("Who?", "Mara", answers=("Mara", "Mara of Ghent, in person"))
    model, tokenizer = pair.receiver.model, pair.receiver.tokenizer
    room = Fitting(model, tokenizer).answer_room
    longest, shortest = (room(q) - SPARE_TOKENS for q in (spelled, Question("Who?", "Mara")))
    assert len(answer_ids(tokenizer, "Mara of Ghent, in person")) == longest > shortest


def judged(right: dict[str, str], kinds: str) -> Report:
    """A report of arms that answer rightly where there is a 1: documents apart by blanks, a letter per question."""
    documents = kinds.split()
    asked = [(number, kind) for number, letters in enumerate(documents) for kind in letters]
    n = len(asked)
    items = Items(
        cases=tuple(f"case {number}" for number in range(len(documents))),
        entropy_bits=(None,) * len(documents),
        documents=tuple(number for number, _ in asked),
        kinds=tuple(kind for _, kind in asked),
        questions=("?",) * n,
        golds=("yes",) * n,
        worth_bits=(None,) * n,
        stands_for=(1.0,) * n,
    )
    arms = {
        name: Arm(name, "message", tuple(None if one == "1" else "no" for one in found if one != " "), nats, nats)
        for nats in ((-1.0,) * n,)
        for name, found in right.items()
    }
    return Report("t", 0, True, {"codec_id": "ab"}, items, arms, {"commit": "c"})


def test_joint_is_the_share_of_cases_that_are_all_right(tmp_path) -> None:
    """A case counts where all its questions are right, of a kind or of all, and without any of the kind not at all."""
    report = judged({"message": "110 11 10 1", "mismatched": "110 01 10 0"}, "ssa sa ss a")
    assert ("exact", "joint", "f1", "log_likelihood") == report.metrics
    joint = {kind: report.mean("message", kind, of="joint") for kind in ("all", "s", "a")}
    assert {"all": (0.5, 4), "s": (2 / 3, 3), "a": (2 / 3, 3)} == {k: (one.value, one.n) for k, one in joint.items()}
    assert (0.5, 4) == (report.content_gain(of="joint").value, report.content_gain(of="joint").n)
    assert 1 / 3 == pytest.approx(report.content_gain("s", of="joint").value)
    alone = Bootstrap(range(4), seed=0).of(lambda x: x, np.array([0.0, 1.0, 0.0, 1.0]))
    assert alone == joint["all"]
    assert report.figures()["arms"]["message"]["a"]["joint"] == joint["a"]
    assert ("exact", "f1", "log_likelihood") == judged({"message": "101"}, "s s a").metrics
    record = json.loads(json.dumps(report.to_dict()))
    assert report == Report.from_dict(record)
    record["figures"]["arms"]["message"]["all"]["joint"]["value"] = 0.75
    with pytest.raises(ConfigError, match=r"at figures / arms / message / all / joint / value.*got 0\.75"):
        Report.from_dict(record)
    record["figures"] = {"arms": {"message": {"colour": 1}}}
    with pytest.raises(ConfigError, match="at figures / arms / message, because"):
        Report.from_dict(record)


def test_a_report_goes_through_json_and_nothing_can_be_typed_into_it(perfect, tmp_path) -> None:
    """The file gives the same report; a figure that its answers do not give is refused, and so is another version."""
    file = tmp_path / "report.json"
    save_report(perfect, file)
    assert perfect == load_report(file)
    record = json.loads(file.read_text())
    assert record["verdict"] == perfect.verdict()
    record["figures"]["arms"]["message"]["lookup"]["exact"]["value"] = 0.999
    file.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"at figures / arms / message / lookup / exact / value.*got 0\.999"):
        load_report(file)
    file.write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(ConfigError, match="of format 1 or 2, got 99"):
        load_report(file)
    file.write_text("{")
    with pytest.raises(ConfigError, match="as JSON"):
        load_report(file)
    with pytest.raises(ConfigError, match="readable report"):
        load_report(tmp_path / "none.json")


def test_a_report_of_the_version_before_loads_draws_and_compares() -> None:
    """Format 1 said "closed", "other" and "nats": its report loads with the same figures, is drawn, and compares."""
    record = json.loads(OLD_REPORT.read_text(encoding="utf-8"))
    assert (1, True) == (record["format"], record["closed"])
    report = load_report(OLD_REPORT)
    assert report.answers_end
    renamed = {"other": "mismatched", "literals-other": "literals-mismatched"}
    assert [renamed.get(name, name) for name in record["arms"]] == list(report.arms)
    for old in record["arms"]:
        now = renamed.get(old, old)
        assert record["figures"]["arms"][old]["all"]["nats"]["value"] == report.mean(now, of="log_likelihood").value
    assert record["figures"]["content gain"]["all"]["exact"]["value"] == report.content_gain().value
    assert {"recovery", "first token", "kinds"} == set(plots(report))
    assert "another case&#39;s message" in page(report)
    changes = compare(report, Report.from_dict(json.loads(json.dumps(report.to_dict())))).changes
    assert {0.0} == {change.difference.value for change in changes}


def test_a_report_of_the_version_before_is_checked_like_any_other() -> None:
    """A figure that the old report's answers do not give is refused, under today's name; so is a missing column."""
    record = json.loads(OLD_REPORT.read_text(encoding="utf-8"))
    record["figures"]["arms"]["other"]["all"]["nats"]["value"] = 0.5
    with pytest.raises(ConfigError, match="at figures / arms / mismatched / all / log_likelihood / value"):
        Report.from_dict(record)
    for spoil in (
        lambda record: record.pop("closed"),
        lambda record: record.update(arms=7),
        lambda record: record.update(colour="blue"),
        lambda record: record.update(seed="seven"),
        lambda record: record["items"].update(kinds=[1]),
        lambda record: record["arms"]["text"].pop("nats"),
        lambda record: record["arms"]["text"].update(answers=["none"]),
        lambda record: record["arms"]["text"].update(answers=[99] * len(record["items"]["kinds"])),
        lambda record: record["arms"]["text"].update(colour="blue"),
    ):
        record = json.loads(OLD_REPORT.read_text(encoding="utf-8"))
        spoil(record)
        with pytest.raises(ConfigError, match="expected"):
            Report.from_dict(record)


def test_a_damaged_report_is_refused_or_compares(monkeypatch) -> None:
    """Whatever stands in the place of a column: a ConfigError, or a report of which every figure can be made."""
    monkeypatch.setattr("ilcp.measure.bootstrap.DRAWS", 3)
    monkeypatch.setattr("ilcp.measure.report._check_same", lambda *_: None)  # else nothing damaged would go further
    record = json.loads(OLD_REPORT.read_text(encoding="utf-8"))
    whole = Report.from_dict(record)
    arms = {name: record["arms"][name] for name in ("none", "message", "other")}
    record |= {"arms": arms, "figures": {"arms": {"other": {}}}}
    for path, damaged in spoiled(record, whole=("samples", "versions", "models")):
        try:
            found = Report.from_dict(damaged)
            compare(whole, replace(found, complete=True))
            found.to_dict()
            found.evidence()
        except (ConfigError, UnmeasuredError):
            continue
        except Exception as error:
            raise AssertionError(f"{path}: {error!r}") from error


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: r["items"]["kinds"].pop(), "expected 12 kinds, one per question, got 11"),
        (lambda r: r["items"]["golds"].append("x"), "expected 12 golds, one per question, got 13"),
        (lambda r: r["items"]["documents"].__setitem__(0, 6), "expected documents numbered from 0 to 5"),
        (lambda r: r["items"]["cases"].pop(), "expected 6 cases, one per document, got 5"),
        (lambda r: r.update(seed=-1), "expected a seed from 0, got -1"),
        (lambda r: r.update(codec={}), "expected 'codec_id' in the report's codec"),
        (lambda r: r.update(provenance={}), "expected 'commit' in the report's provenance"),
        (lambda r: r["arms"]["text"]["answers"].pop(), "expected 12 answers in arm 'text', one per question, got 11"),
        (lambda r: r["arms"]["text"]["wire_bytes"].pop(), "expected 6 wire_bytes in arm 'text'"),
        (lambda r: r["arms"]["text"]["payload_bytes"].__setitem__(0, 0), "expected payload_bytes from 1"),
    ],
)
def test_a_damaged_column_is_named(spoil, said, tmp_path) -> None:
    """The text names the file, the column, how many entries were expected and how many came."""
    record = json.loads(OLD_REPORT.read_text(encoding="utf-8"))
    spoil(record)
    (tmp_path / "report.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"report\.json: {said}"):
        load_report(tmp_path / "report.json")


def test_a_report_that_cannot_be_written_is_a_storage_error(perfect, tmp_path) -> None:
    """A folder where the file should be, or a file where its folder should be, is no fault of the report's."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "report.json", tmp_path / "folder"):
        with pytest.raises(StorageError, match="choose another place"):
            save_report(perfect, place)


def test_an_arm_that_there_is_not_is_refused(pair) -> None:
    """The arm's name stands in the error, and so do those that there are; nothing is asked before."""
    with pytest.raises(ConfigError, match=r"expected arms of .*mismatched.*, got other"):
        measured(pair, Known(shifted(0)), FEW, arms=("text", "other"))


def test_a_figure_is_measured_or_computed(perfect) -> None:
    """Every leaf of a report's figures is one of the two kinds, and a citation has to name source and setting."""

    def leaves(value):
        return [leaf for inner in value.values() for leaf in leaves(inner)] if isinstance(value, dict) else [value]

    found = leaves(perfect.figures())
    assert len(found) > 100
    assert {Measured, Computed} >= {type(figure) for figure in found}
    with pytest.raises(ConfigError, match="got no setting"):
        Citation("Ours is 3 times faster.", "a paper", " ")


def test_an_interrupted_run_is_kept_and_goes_on(pair, tmp_path, monkeypatch) -> None:
    """Ctrl-C leaves the arms that were done, marked incomplete; the next run takes them and asks for the rest."""
    codec, file = Known(shifted(0)), tmp_path / "kept.json"
    real, seen = Receiver.score, list[int]()

    def interrupted(self, items, **options):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(len(items))
        return real(self, items, **options)

    monkeypatch.setattr(Receiver, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(pair, codec, FEW, keep=file)
    left = load_report(file)
    assert not left.complete
    assert ["text", "none", "message"] == list(left.arms)
    assert left.verdict().startswith("INCOMPLETE")
    with pytest.raises(UnmeasuredError, match="complete"):
        left.evidence()
    seen.clear()
    monkeypatch.setattr(Receiver, "score", noting(real, seen, lambda *_, **__: 1))
    report = measured(pair, codec, FEW, keep=file)
    assert report.complete
    assert {arm for arm in report.arms if arm not in left.arms and report.arms[arm].family == "control"}
    assert len(seen) < len(report.arms)
    assert replace(report, provenance={}) == replace(measured(pair, codec, FEW), provenance={})
    assert load_report(file) == report


def test_a_finished_report_stays_until_the_new_one_is_finished(pair, perfect, tmp_path, monkeypatch) -> None:
    """Measuring into a file that holds a finished report does not destroy it when the new run is interrupted."""
    file = tmp_path / "report.json"
    save_report(perfect, file)
    codec, real, seen = Known(shifted(0)), Receiver.score, []

    def interrupted(self, items, **options):
        seen.append(len(items))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(self, items, **options)

    monkeypatch.setattr(Receiver, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(pair, codec, FEW, keep=file, arms=MAIN)
    assert perfect == load_report(file)
    assert ["text"] == list(load_report(tmp_path / "report.json.unfinished").arms)
    report = measured(pair, codec, FEW, keep=file, arms=MAIN)
    assert report == load_report(file)
    assert [file] == list(tmp_path.iterdir())


def test_another_run_is_not_gone_on_with(pair, tmp_path) -> None:
    """A kept run of other questions, another codec or another seed is refused by name."""
    file = tmp_path / "kept.json"
    report = measured(pair, Known(shifted(0)), FEW, arms=("text",))
    save_report(replace(report, complete=False), file)
    with pytest.raises(ConfigError, match="the same questions"):
        measured(pair, Known(shifted(0)), FEW[:4], keep=file)
    with pytest.raises(ConfigError, match="the same codec"):
        measured(pair, Known({case.context: "x" for case in CASES}), FEW, keep=file)


@pytest.mark.parametrize(
    ("cases", "error", "said"),
    [
        (CASES[:1], ConfigError, "at least two cases"),
        ([CASES[0], CASES[0]], ConfigError, "an id of its own"),
        ([CASES[0], replace(CASES[0], id="twin")], ConfigError, "a context of its own"),
        ([CASES[0], replace(CASES[1], questions=())], ConfigError, "questions about case"),
        (
            [CASES[0], replace(CASES[1], context="word " * 2000)],
            ConfigError,
            r"case .* to fit into the receiver's window of 1024 tokens",
        ),
    ],
)
def test_cases_that_cannot_be_measured_are_refused(pair, cases, error, said) -> None:
    """Too few, named twice, the same text twice, nothing asked, too long: each is an error that says so."""
    with pytest.raises(error, match=said):
        measured(pair, Known(shifted(0)), cases)


def test_a_models_nan_is_named(pair, monkeypatch) -> None:
    """A receiver that computes NaN gives an error with the arm and the question, not a figure."""
    real = Receiver.score

    def damaged(self, items, **options):
        scores = real(self, items, **options)
        return [replace(scores[0], token_nats=(float("nan"),)), *scores[1:]]

    monkeypatch.setattr(Receiver, "score", damaged)
    with pytest.raises(ConfigError, match="finite log-likelihoods in arm 'text', got nan at question 0"):
        measured(pair, Known(shifted(0)), FEW)


def test_continuations_are_judged_by_log_likelihood(pair) -> None:
    """Where answers go on, exact match means nothing and is not there; prior bits are those of nothing."""
    cases = [
        Case(case.id, case.context[:200], (Question("", case.context[201:260], "continuation"),)) for case in CASES
    ]
    report = measured(pair, Known({case.context: case.context for case in cases}), cases, answers_end=False, arms=MAIN)
    assert "log_likelihood" == report.metric
    assert {"log_likelihood", "recovery, log_likelihood"} >= set(report.figures()["arms"]["message"]["all"])
    assert report.arms["text"].nats == report.arms["message"].nats
    size = sum(len(q.answer.encode()) for case in cases for q in case.questions)
    nats = sum(report.arms["message"].nats)
    assert -nats / np.log(2) / size == pytest.approx(report.bits_per_byte("message").value)
    with pytest.raises(ConfigError, match="answers that end"):
        report.mean("message", of="exact")


def test_hops_forward_the_very_bytes_and_reencode_anew(pair) -> None:
    """A forwarded message answers as it did; a codec that sends the text loses nothing but what cannot be rewritten."""
    arms = ("message", *(f"{chain}-{hop}" for chain in ("forwarded", "reencoded") for hop in (1, 2)))
    report = run(pair.sender, pair.receiver, CASES[:3], task="hops", texts={}, repetitions=0, hops=2, arms=arms)
    for hop in (1, 2):
        assert report.arms["message"].answers == report.arms[f"forwarded-{hop}"].answers
    assert report.arms["message"].answers == report.arms["reencoded-1"].answers
    assert report.mean("reencoded-2", "lookup").value > 0.4


def test_compare_says_what_changed_and_what_flipped(perfect) -> None:
    """Differences are paired and signed; single answers that flip are counted even if the mean stays."""
    arm = perfect.arms["message"]
    answers = list(arm.answers)
    right = answers.index(None)
    wrong = next(index for index, answer in enumerate(answers) if answer is not None)
    answers[right], answers[wrong] = "Nobody", None
    after = replace(perfect, arms={**perfect.arms, "message": replace(arm, answers=tuple(answers))})
    change = next(c for c in compare(perfect, after).changes if (c.arm, c.kind) == ("message", "all"))
    assert (1, 1, 2) == (change.gained, change.lost, change.changed)
    assert 0.0 == change.difference.value
    assert not change.real
    assert all(c.changed == 0 for c in compare(perfect, perfect).changes)
    with pytest.raises(ConfigError, match="the same questions"):
        compare(perfect, replace(perfect, items=replace(perfect.items, golds=("x",) * len(perfect.items))))


def test_compare_says_which_report_was_interrupted(perfect) -> None:
    """The one, the other, or both."""
    half = replace(perfect, complete=False)
    for before, after, said in (
        (half, perfect, "before:"),
        (perfect, half, "after:"),
        (half, half, "before and after:"),
    ):
        with pytest.raises(ConfigError, match=f"got an interrupted one {said} finish"):
            compare(before, after)


def test_admission(pair, perfect, tmp_path) -> None:
    """A receiver takes a codec whose evidence holds, refuses others with their figures, obeys ``allow_unmeasured``."""
    folder = tmp_path / "codec"
    codec = ilcp.load(pair.path)
    codec.evidence = None
    ilcp.save(codec, folder, card="# A codec\n")
    with pytest.raises(UnmeasuredError, match="measured against its controls, got one that was not"):
        ilcp.load_pair(folder)
    assert ilcp.load_pair(folder, allow_unmeasured=True)
    codec_id = codec.trained.codec_id(codec.spec).hex()
    held = Evidence(codec_id, "a task", 9, 1, "exact match", 0.5, 0.4, 0.6, {"message": 0.9, "mismatched": 0.4}, "abc")
    attach_evidence(folder, held)
    assert held == ilcp.load(folder).evidence
    assert "| mismatched | 0.400 |" in (folder / "README.md").read_text()
    assert ilcp.load_pair(folder)
    arms = {"message": 0.5, "mismatched": 0.4}
    attach_evidence(folder, replace(held, content_gain=0.1, low=-0.1, high=0.3, arms=arms))
    assert 1 == (folder / "README.md").read_text().count("## Measured")
    with pytest.raises(UnmeasuredError, match=r"got content gain 0.100 \[-0.100, 0.300\].*mismatched 0.400.*task, n=9"):
        ilcp.load_pair(folder)
    with pytest.raises(UnmeasuredError, match="got that of"):
        attach_evidence(folder, perfect.evidence())
    with pytest.raises(UnmeasuredError, match="in the evidence, got nothing: measure again"):
        Evidence.from_dict({"low": 1})


def test_the_embedded_message_carries_the_facts(pair) -> None:
    """The receiver answers look-ups from the message, not from another case's, and better than from text as long."""
    arms = (*MAIN, "message-20", "literals-80", "literals-20", "literals-mismatched", "continuous", "head-80")
    options: dict[str, Any] = dict(texts={"head": HeadCodec()}, repetitions=0, lengths=[80, 20], arms=arms)
    report = run(pair.sender, pair.receiver, CASES, task="x", **options)
    assert report.mean("text", "lookup").value > 0.8
    assert present(report.recovery("message", "lookup")).value > 0.8
    assert present(report.content_gain("lookup").low) > 0.5
    assert present(report.difference("message", "head-80", "lookup").low) > 0.5
    assert {100} == set(report.arms["message"].wire_bytes)
    assert {107} == set(report.arms["literals-80"].wire_bytes)  # a code of six characters, and its header
    assert {87} == set(report.arms["literals-80"].payload_bytes)
    assert report.mean("literals-20", "code").value > 0.25 > report.mean("message-20", "code").value
    assert report.mean("literals-mismatched", "lookup").value < 0.25 < report.mean("literals-20", "lookup").value
    assert {"continuous"} <= set(report.arms)


def test_bootstrap_intervals_cover() -> None:
    """Over 200 synthetic samples of grouped data, the 95 % interval holds the true mean about 95 % of the time."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 3).tolist()
    covered = 0
    for trial in range(200):
        values = (rng.normal(size=(60, 1)) + 0.3 * rng.normal(size=(60, 3))).ravel()
        figure = Bootstrap(groups, seed=trial).of(lambda x: x, values)
        covered += present(figure.low) <= 0 <= present(figure.high)
    assert 0.90 <= covered / 200 <= 0.985


def test_bootstrap_draws_whole_documents() -> None:
    """Items of one document go together: their number does not narrow the interval."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=40)
    one = Bootstrap(range(40), seed=1).of(lambda x: x, values)
    many = Bootstrap(np.repeat(np.arange(40), 9).tolist(), seed=1).of(lambda x: x, np.repeat(values, 9))
    assert (one.low, one.high) == pytest.approx((many.low, many.high))


def test_the_price_is_part_of_the_report(pair, tmp_path, monkeypatch) -> None:
    """With repetitions, a report holds the times and the fan-out, and keeps them through JSON."""
    module = sys.modules["ilcp.measure.cost"]  # the package has a function of that name
    monkeypatch.setattr(module, "MIN_REPETITIONS", 3)  # that there are enough is the cost's business, not the report's
    monkeypatch.setattr(module, "LENGTH_REPETITIONS", 2)
    monkeypatch.setattr("ilcp.measure.timing.WARM_UP", 1)
    options: dict[str, Any] = dict(task="x", texts={}, arms=MAIN, repetitions=3)
    report = run(pair.sender, pair.receiver, FEW[:3], **options)
    save_report(report, tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == report
    figures = report.figures()
    assert 1.0 == figures["fan-out"]["identical answers"].value == figures["fan-out"]["memory unchanged"].value
    assert 3 == figures["cost"]["codec encodes"].n
    one = [replace(case, questions=(replace(case.questions[0], text="Who?"),)) for case in FEW[:3]]
    left_out = run(pair.sender, pair.receiver, one, **options)
    assert left_out.cost is None
    assert any("they need two questions of the task" in note for note in left_out.notes)


def test_f1_counts_words() -> None:
    """Words in common, without case and punctuation; two empty answers agree."""
    assert 1.0 == f1("Mara, Ghent", "mara ghent.")
    assert pytest.approx(2 / 3) == f1("Mara", "Mara, Ghent")
    assert 0.0 == f1("Jonas", "Mara")
    assert 1.0 == f1("", "!")


def test_an_arm_has_one_answer_per_question() -> None:
    """A report with a short arm is refused, and so is a family that does not exist."""
    items = Items.of(CASES[:2])
    arm = Arm("message", "message", (), (0.0,), (0.0,))
    with pytest.raises(ConfigError, match="one per question, got 1"):
        Report("t", 0, False, {}, items, {"message": arm}, {})
    with pytest.raises(ConfigError, match="a family of"):
        replace(arm, family="magic")


def test_payload_accounts_for_every_byte(pair) -> None:
    """The parts sum to the message, and what it stands for is measured or computed by a formula that holds."""
    text = next(iter(case_files("validation", 5, 1))).context
    message = pair.sender.encode(text)
    found = payload(message, text=text, sender=pair.sender, receiver=pair.receiver)
    assert 100 == found.message.value == sum(part.value for part in found.parts.values())
    assert len(text.encode()) == found.replaces["text, UTF-8"].value
    cache = found.replaces["receiver's KV cache, float32"]
    config = pair.receiver.model.config
    width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    tokens = found.replaces["receiver's tokens"].value
    assert isinstance(cache, Computed)
    assert 2 * config.num_hidden_layers * tokens * width * 4 == cache.value
    assert "computed: 2 * layers" in str(found)
    with pytest.raises(DecodeError):
        payload(message[:-1])
    with pytest.raises(ConfigError, match="a text beside"):
        payload(message, sender=pair.sender)


def test_kv_bytes_equal_a_real_cache(pair) -> None:
    """The KV formula is the size of a cache that the receiver really builds."""
    text = "The affected region is Bergen."
    ids = torch.tensor([pair.receiver.tokenizer(text, add_special_tokens=False).input_ids])
    with torch.no_grad():
        cache = pair.receiver.model(input_ids=ids, use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    found = payload(pair.sender.encode(text), text=text, receiver=pair.receiver)
    assert real == found.replaces["receiver's KV cache, float32"].value


def test_figures_say_where_they_come_from() -> None:
    """A measured figure prints n and interval, a computed one its formula, and provenance names versions."""
    assert "0.5 nats [0.400, 0.600] (measured, n=9)" == str(Measured(0.5, "nats", 9, 0.4, 0.6))
    assert "(computed: a / b; a=1, b=2)" in str(Computed(0.5, "", "a / b", {"a": 1, "b": 2}))
    where = provenance(sender=asdict(Measured(1, "", 1)))
    assert {"commit", "measured_unix_s", "versions", "python", "machine", "command", "models"} == set(where)
    assert {"a": [1, {"b": 2}]} == plain({"a": (1, {"b": 2})})
