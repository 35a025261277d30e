"""Hours of work do not end in an exception: what cannot be is refused before, and what fails is said and left out."""

import json
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE

import ilcp
from ilcp.codec.context import Context
from ilcp.codec.memory import Memory, TextMemory
from ilcp.codec.seen import seen_by, write_seen
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, DecodeError, EncodeError, MissingExtraError, UnmeasuredError
from ilcp.handoff import Receiver, Sender
from ilcp.identity import ANY
from ilcp.measure import Report, equal_texts, load_report, run
from ilcp.measure.fitting import SPARE_TOKENS, Fitting
from ilcp.measure.run import require_cases
from ilcp.models.prompt import text_ids
from ilcp.models.reading import window_tokens
from ilcp.tasks import Case, Question, case_files, read_jsonl, thin
from ilcp.tasks.written import merged, write_jsonl
from ilcp.training import Hyperparameters, Models
from ilcp.training import log as log_module
from ilcp.training import selfstudy as selfstudy_module
from ilcp.training.batch import require_fitting
from ilcp.training.config import read_config
from ilcp.training.lesson import facts_stage
from ilcp.training.log import Log
from ilcp.training.pace import length_text, say
from ilcp.training.selfstudy import SelfStudy, stretch, study
from ilcp.training.tuning import reading_stage
from ilcp.training.validation import Validation
from tests.helpers import make_tokenizer, noting, present, train_tokenizer
from tests.taught import make_hyperparameters, write_cases

CASES = [thin(case, {"lookup": 2, "join": 0, "absent": 0, "code": 0}, 0) for case in case_files("test", 3, 6, facts=4)]
MAIN = ("text", "none", "message", "mismatched")


class Told:
    """A codec that sends the number of a text, and fails where it is told to: at encoding, or at decoding."""

    layers: tuple[int, ...] = ()
    evidence = None
    folder: Path | None = None

    def __init__(self, error: Exception | None = None, at: str = "", number: int = 2):
        self.error, self.at, self.number = error, at, number
        self.spec, self.trained = CodecSpec("told", 2, "text", (2,)), Trained(ANY, ANY, "1")
        self.texts = [case.context for case in CASES]

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        number = self.texts.index(present(context.text))
        self._fail(number, "encode")
        return number.to_bytes(2, "big")

    def decode(self, payload: bytes) -> Memory:
        number = int.from_bytes(payload, "big")
        if number >= len(self.texts):
            raise DecodeError("expected a number that there is")
        self._fail(number, "decode")
        return TextMemory(self.texts[number])

    def _fail(self, number: int, at: str) -> None:
        if self.error is not None and self.at == at and self.number in (number, -1):
            raise self.error


def measured(pair: Any, codec: Any, cases: list[Case] = CASES, **options: Any) -> Report:
    """A run of the embedded receiver under a codec."""
    sender = Sender(pair.sender.model, pair.sender.tokenizer, codec)
    receiver = Receiver(pair.receiver.model, pair.receiver.tokenizer, codec, allow_unmeasured=True)
    given = dict[str, Any](task="told", seed=3, texts={}, repetitions=0, arms=MAIN) | options
    return run(sender, receiver, cases, **given)


# ---- measuring


@pytest.mark.parametrize(
    ("error", "at", "said"),
    [
        (EncodeError("too odd"), "encode", "message: too odd"),
        (RuntimeError("out of\nmemory"), "encode", "message: RuntimeError: out of memory"),
        (DecodeError("not finite"), "decode", "message: not finite"),
    ],
)
def test_a_case_that_fails_is_left_out_and_said(pair, tmp_path, error, at, said) -> None:
    """The report is that of a run without it, says which and why, and is gone on with when it was interrupted."""
    report = measured(pair, Told(error, at), keep=tmp_path / "report.json")
    case = CASES[2].id
    assert (case,) == report.left_out
    assert (f"case {case!r}: left out, {said}",) == report.notes
    without = measured(pair, Told(), [each for each in CASES if each.id != case])
    assert without.items == report.items
    for name in MAIN:
        assert without.arms[name].nats == pytest.approx(report.arms[name].nats, abs=1e-3)
    assert report.evidence().n == len(CASES) - 1
    assert load_report(tmp_path / "report.json") == report
    half = replace(report, complete=False, arms={name: report.arms[name] for name in ("text", "none")})
    from ilcp.measure import save_report

    save_report(half, tmp_path / "half.json")
    assert report.arms == measured(pair, Told(error, at), keep=tmp_path / "half.json").arms


def test_what_the_verdict_needs_and_cannot_have_ends_the_run(pair) -> None:
    """Where every case fails in the message's own arm, the error is its own; nothing is left to report on."""
    with pytest.raises(EncodeError, match="too odd"):
        measured(pair, Told(EncodeError("too odd"), "encode", -1))


def test_an_arm_that_cannot_be_measured_is_a_note(pair, monkeypatch) -> None:
    """A baseline that breaks costs itself and no case, and so do the times."""

    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("no such thing")

    bad: Any = SimpleNamespace(encode=broken, decode=broken)
    monkeypatch.setattr(sys.modules["ilcp.measure.run"], "cost", broken)  # the package has a function of that name
    report = measured(pair, Told(), texts={"bad": bad}, arms=(*MAIN, "bad-2"), repetitions=50)
    assert (
        "bad-2: not measured, RuntimeError: no such thing",
        "cost, fan-out: not measured, RuntimeError: no such thing",
    ) == (report.notes)
    assert report.complete
    assert len(CASES) == report.n


def test_what_cannot_be_measured_is_refused_before_it_is(pair, tmp_path, monkeypatch) -> None:
    """Too few repetitions, a place that cannot be written, an arm that there is not: nobody is asked anything first."""
    monkeypatch.setattr(Receiver, "score", lambda *_, **__: pytest.fail("asked"))
    (tmp_path / "file").touch()
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"repetitions": 10}, "at least 50 repetitions, got 10"),
        ({"keep": tmp_path / "file" / "report.json"}, "expected to be able to write .*report.json"),
        ({"keep": tmp_path}, "expected a file to write to, got the folder"),
        ({"arms": ("txt",)}, "expected arms of"),
    ]
    for options, said in refusals:
        with pytest.raises(ilcp.errors.IlcpError, match=said):
            measured(pair, Told(), **options)


def test_a_report_without_the_arms_of_a_verdict_is_one(pair, tmp_path) -> None:
    """It is kept and says what it lacks; only evidence cannot be made of it."""
    report = measured(pair, Told(), arms=("text",), keep=tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == report
    assert "NOT JUDGED: without the arms none, message, mismatched" in report.verdict()
    with pytest.raises(UnmeasuredError, match="got none of none, message, mismatched"):
        report.evidence()


def test_a_receiver_that_cannot_read_is_not_the_messages_fault(pair) -> None:
    """Where the full text brings no more than nothing, the verdict says so, with what it reaches."""
    report = measured(pair, Told())
    none = report.arms["none"]
    blind = replace(report, arms={name: replace(none, name=name, family=report.arms[name].family) for name in MAIN})
    assert blind.verdict().startswith("UNDECIDED: the receiver does no better with the full text than with nothing")
    assert "CARRIES NOTHING" not in blind.verdict()


def test_a_share_of_next_to_nothing_is_no_recovery() -> None:
    """Ten times what the full text gives, where it gives 0.01 nats, is no 10.503; and zero is no division."""
    for text in (-5.0, -4.99):
        arms = {"none": -5.0, "mismatched": -5.0, "message": -4.9, "text": text}
        found = Validation(arms, dict.fromkeys(arms, 0.0), 0.1, 0.05)
        assert ("nats from the message", -4.9) == found.score
        assert "recovery" not in found.to_dict()
        assert "recovery not told, the full text gives nothing" in str(found)


def test_cases_of_the_training_are_told(pair, tmp_path) -> None:
    """Verdict and evidence say how many cases the codec was trained on; digests tell, no text lies in its folder."""
    codec = Told()
    codec.folder = tmp_path
    write_seen(tmp_path, [case.context for case in CASES[:4]])
    report = measured(pair, codec, keep=tmp_path / "report.json")
    assert "OVERLAP: the codec was trained on 4 of the 6 cases" in report.verdict()
    assert "told (trained on 4 of them)" == report.evidence().task
    assert 4 == load_report(tmp_path / "report.json").seen
    assert CASES[0].context[:20] not in (tmp_path / "seen.jsonl").read_text()
    assert "OVERLAP" not in measured(pair, codec, CASES[4:]).verdict()


def test_cases_of_the_training_are_counted_without_those_left_out(pair, tmp_path) -> None:
    """Never more of them than there are; a list of them that somebody damaged says nothing and ends nothing."""
    codec: Any = Told(EncodeError("too odd"), "encode")
    codec.folder = tmp_path
    write_seen(tmp_path, [case.context for case in CASES])
    report = measured(pair, codec)
    assert (5, 5) == (report.seen, report.n)
    assert "told (trained on 5 of them)" == report.evidence().task
    for damaged in ('["a"]\n', "{}\n", "[" * 100_000):
        (tmp_path / "seen.jsonl").write_text(damaged)
        assert not seen_by(codec)(CASES[0].context)


def test_what_a_failed_pass_held_is_free_when_its_halves_are_asked(pair, monkeypatch) -> None:
    """Where the memory was not enough for all cases, it has to be there for some of them."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def arm(scorer: Any, spec: Any, given: Any, none: Any) -> Any:
        alive.append(sum(each() is not None for each in held))
        activations = torch.zeros(9)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("ilcp.measure.scoring.Scorer.arm", arm)
    with pytest.raises(torch.OutOfMemoryError):
        measured(pair, Told())
    assert {0} == set(alive)


def test_texts_too_few_for_a_dictionary_leave_zstd_without(pair) -> None:
    """The baselines of a training on few or short texts are made all the same."""
    codec: Any = equal_texts(pair.sender, ["a", "b"])["zstd"]
    assert b"" == codec.dictionary


# ---- what fits


def test_one_rule_says_what_fits(pair) -> None:
    """At the edge of the window, training and measuring let the same cases in; and what is let in can be measured."""
    receiver = pair.receiver
    question = Question("Who?", "Mara")
    answers = [Question("Who?", "Mara", answers=("Mara", "Mara, I should think, if anybody at all")), question]
    room = window_tokens(receiver.model)
    text = "It was Mara. "
    frozen: Any = SimpleNamespace(receiver=receiver.model, receiver_tokenizer=receiver.tokenizer)
    allowed = set[bool]()
    for asked in answers:
        length = len(text_ids(receiver.tokenizer, text, asked.text))
        times = room // max(1, len(text_ids(receiver.tokenizer, text * 2, asked.text)) - length)
        for count in range(times - 8, times + 2):
            case = Case("edge", text * count, (asked,))
            fits = Fitting(receiver.model, receiver.tokenizer).misfit(case) is None
            allowed.add(fits)
            for refuse in (
                lambda case=case: require_cases([case, CASES[0]], receiver),
                lambda case=case: require_fitting(frozen, [case], make_hyperparameters()),
            ):
                with _raising(None if fits else ConfigError, "fit into the receiver's window"):
                    refuse()
    assert {True, False} == allowed
    assert SPARE_TOKENS > 0


def test_a_case_at_the_edge_is_asked_beside_one_with_a_long_answer(pair) -> None:
    """Each answer has room of its own; where another case's text has none for it, that case alone is left out."""
    receiver, question = pair.receiver, Question("Who?", "Mara")
    count = window_tokens(receiver.model) // 4
    while Fitting(receiver.model, receiver.tokenizer).misfit(Case("full", "It was Mara. " * count, (question,))):
        count -= 1
    full = Case("full", "It was Mara. " * count, (question,))
    long = Case("long", "It was Ilse.", (Question("Who?", "nobody but Ilse, as far as anybody in the office knows"),))
    cases = [long, full, *(Case(name, f"It was {name}.", (Question("Who?", name),)) for name in ("Jonas", "Tomas"))]
    codec = Told()
    codec.texts = [case.context for case in cases]
    assert () == measured(pair, codec, cases, arms=("text", "none", "message")).left_out
    report = measured(pair, codec, cases)
    assert ("long",) == report.left_out
    assert "case 'long': left out, mismatched: expected a prompt and answer of at most 1024" in report.notes[0]


@contextmanager
def _raising(kind: type[Exception] | None, said: str) -> Iterator[None]:
    if kind is None:
        yield
        return
    with pytest.raises(kind, match=said):
        yield


# ---- self-study


def models_of(small: SimpleNamespace) -> Models:
    """The small pair, as a training takes it."""
    return Models(small.sender.model, small.sender.tokenizer, small.receiver.model, small.receiver.tokenizer)


def spelling(template: str | None = None) -> Any:
    """A tokenizer that spells characters."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return train_tokenizer(
        tokenizer,
        ["a"],
        template,
        vocab_size=0,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


def test_texts_are_as_long_whatever_the_tokenizer() -> None:
    """Tokens of one character are four times as many; of the usual ones none is added."""
    usual: Any = lambda text, **_: SimpleNamespace(input_ids=text.split())  # noqa: E731
    assert (4, 1) == (stretch(spelling()), stretch(usual))
    assert stretch(make_tokenizer(300)) >= 1


def test_self_study_keeps_only_what_can_be_asked(small, tmp_path, monkeypatch) -> None:
    """A text beyond the receiver's window, or with our own marker in it, is left out as it is written."""
    lines = [
        {"context": "It was Mara.", "continuation": "She said so."},
        {"context": "It was Mara. " * 99, "continuation": "She said so."},
        {"context": f"It was {ilcp.MEMORY_HERE}.", "continuation": "She said so."},
    ]
    monkeypatch.setattr(selfstudy_module, "_continuations", lambda *_: iter(lines))
    found = study(models_of(small), SelfStudy(kind="continuation", texts=3, batch=3), tmp_path / "cases.jsonl", seed=0)
    assert ["It was Mara."] == [case.context for case in found]


def test_texts_of_no_use_are_noticed_at_the_first_batch(small, tmp_path, monkeypatch) -> None:
    """Where none of the first texts can be cut, the other thousands are not written."""
    calls: list[int] = []
    none: Callable[..., Iterator[Any]] = noting(lambda *_: iter(()), calls, lambda *_: 1)
    monkeypatch.setattr(selfstudy_module, "_continuations", none)
    with pytest.raises(ConfigError, match=r"can be cut into 150 characters .* got none of 64: raise tokens"):
        study(models_of(small), SelfStudy(kind="continuation", batch=32), tmp_path / "cases.jsonl", seed=0)
    assert 2 == len(calls)


# ---- a run and what it says


def test_a_curve_that_cannot_be_drawn_ends_no_run(tmp_path, monkeypatch, capsys) -> None:
    """The log goes on, and the trouble is said once."""
    monkeypatch.setattr(log_module, "draw_curve", lambda _: [][0])
    log = Log(tmp_path)
    for step in (1, 2):
        log.write({"step": step})
    assert 2 == len(log.file.read_text().splitlines())
    assert 1 == capsys.readouterr().err.count("the run goes on")


def test_a_run_says_how_long_it_may_become() -> None:
    """Steps, contexts and minutes stand in its first lines, whether they were given or not."""
    assert "3,000 steps of 16 contexts: the first minute" in length_text(Hyperparameters(steps=3000))
    assert "20 steps of 8 contexts, in 1 h 30 min at most" in length_text(Hyperparameters(20, minutes=90, contexts=8))
    wanted = Hyperparameters(20, contexts=8, facts_steps=100)
    whole = length_text(wanted, {"learning to read": reading_stage(wanted), "learning facts": facts_stage(wanted)})
    assert whole.startswith(
        "4 steps of 4 contexts learning to read, then 100 steps of 16 contexts learning facts, then 20 steps of 8 "
        "contexts through the receiver: the first minute"
    )


def test_a_short_run_has_a_short_lesson() -> None:
    """Steps mean what they say, also where the codec learns without the receiver first; a recipe may say otherwise."""
    given = dict[str, Any](sender="a", receiver="b", data="c", out="d")

    def lesson(**training: int) -> int:
        return read_config(**given, training=training).hyperparameters(True, facts=True).facts_steps

    assert (100, 3000, 3000, 7) == (lesson(steps=20), lesson(), lesson(steps=9000), lesson(steps=20, facts_steps=7))


def test_a_console_that_is_gone_ends_no_run(tmp_path) -> None:
    """A pipe that nobody reads, and one that cannot write a character, cost the line."""
    with open(tmp_path / "closed", "w") as closed:
        pass
    with open(tmp_path / "ascii", "w", encoding="ascii") as narrow:
        for file in (closed, narrow):
            say(Console(file=file), "step 40 of 3,000 · 3.20 s a step")


def test_a_training_is_refused_before_the_models_are_loaded(tmp_path, monkeypatch) -> None:
    """Too few cases or texts, two kinds of answers, TensorBoard that is missing, nothing to resume, a place below a
    file: the models are not even looked for."""
    few = write_cases(tmp_path / "few.jsonl", 20)
    enough = write_cases(tmp_path / "enough.jsonl", 200)
    (tmp_path / "file").touch()
    given: dict[str, Any] = dict(sender="/nowhere", receiver="/nowhere", out=tmp_path / "codec")
    with pytest.raises(ConfigError, match=r"at least 160 cases .* got 20"):
        ilcp.train(**given, data=few)
    with pytest.raises(ConfigError, match=r"expected a run to go on with in .*codec\.run, got none"):
        ilcp.train(**given, data=enough, resume=True)
    with pytest.raises(ilcp.errors.StorageError, match="expected to be able to lock"):
        ilcp.train(**given | {"out": tmp_path / "file" / "codec"}, data=enough)
    with pytest.raises(ConfigError, match="texts of self_study to be at least 160"):
        ilcp.train(**given, self_study={"texts": 9})
    monkeypatch.setattr("ilcp.training.config.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"tensorboard .*pip install -e '\.\[tensorboard\]'"):
        ilcp.train(**given, data=enough, tensorboard=True)


def test_a_recipe_may_name_the_home(small, tmp_path, monkeypatch) -> None:
    """``~`` is the home in a recipe's paths and in a model's place, and no id of a hub."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = read_config(sender="a", receiver="b", data="~/cases.jsonl", out="~/codec")
    assert (tmp_path / "cases.jsonl", tmp_path / "codec") == (config.data, config.out)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/models/none: no such file"):
        ilcp.models.loading.load_model("~/models/none")
    ilcp.save(small.codec, tmp_path / "mine")
    assert small.codec.trained == ilcp.load("~/mine").trained


def test_cases_are_read_as_they_were_written(tmp_path) -> None:
    """Answers, spellings, choices, kinds and topics of questions, and several continuations of one text."""
    facts = (("place", "Oslo"),)
    asked = Question("Where?", "Oslo", "place", choices=("Oslo", "Bergen"), facts=facts, answers=("Oslo", "oslo"))
    goes_on = tuple(Question("", said, "continuation") for said in ("Then.", "Later."))
    cases = [Case("a", "In Oslo.", (asked, Question("Who?", "Mara"))), Case("b", "It began.", goes_on)]
    write_jsonl(tmp_path / "cases.jsonl", cases)
    assert cases == merged(read_jsonl(tmp_path / "cases.jsonl"))


def test_ids_of_written_cases_are_their_own(tmp_path) -> None:
    """Also where a line took the id that several continuations of one text would get."""
    file = tmp_path / "cases.jsonl"
    cases = [
        Case("x", "It began.", tuple(Question("", said, "continuation") for said in ("Then.", "Later."))),
        Case("x#1", "It ended.", (Question("", "Then.", "continuation"),)),
        Case("y", "In Oslo.", (Question("Where?", "Oslo"), Question("", "It rained.", "continuation"))),
    ]
    write_jsonl(file, cases)
    assert ["x", "x#2", "x#1", "y", "y#1"] == [case.id for case in read_jsonl(file)]
    assert cases == merged(read_jsonl(file))


def test_a_question_with_a_marker_is_not_trained_on(tmp_path) -> None:
    """The memory would stand elsewhere than beside the other questions about it."""
    marked = [Case(str(n), f"Mara has {n}.", (Question(f"{ilcp.MEMORY_HERE} Who?", "Mara"),)) for n in range(40)]
    write_jsonl(tmp_path / "cases.jsonl", marked)
    with pytest.raises(ConfigError, match=r"expected questions without ilcp\.MEMORY_HERE to train on.* '0'"):
        ilcp.train(sender="none", receiver="none", data=tmp_path / "cases.jsonl", out=tmp_path / "codec")


def test_saved_files_are_everybodys_as_far_as_others_are(small, tmp_path) -> None:
    """Weights have the mode that the umask gives to every file: safetensors writes for its owner only."""
    before = os.umask(0o027)
    try:
        ilcp.save(small.codec, tmp_path / "codec", card="# A card")
    finally:
        os.umask(before)
    assert {0o640} == {file.stat().st_mode & 0o777 for file in (tmp_path / "codec").iterdir()}
    assert 0o750 == (tmp_path / "codec").stat().st_mode & 0o777


def test_what_may_not_be_read_is_not_called_missing(small, tmp_path, monkeypatch) -> None:
    """Weights of a codec or of a model that another account owns: the text says that permission is denied."""

    def denied(path: Path) -> None:
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied", str(path))

    ilcp.save(small.codec, tmp_path / "codec")
    small.sender.model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=rf"config\.json, which is no folder .*: name the folder {tmp_path}/model"):
        ilcp.models.loading.load_model(tmp_path / "model" / "config.json")
    monkeypatch.setattr("ilcp_codecs.states.require_readable", denied)
    monkeypatch.setattr("ilcp.models.sources.require_readable", denied)
    with pytest.raises(ilcp.errors.StorageError, match="Permission denied"):
        ilcp.load(tmp_path / "codec")
    with pytest.raises(
        ConfigError, match=r"a model's folder that can be read, got .*model.safetensors: permission denied"
    ):
        ilcp.models.loading.load_model(tmp_path / "model")


def test_an_adapter_has_the_usual_modes(small, tmp_path) -> None:
    """The receiver's low-rank weights lie in a folder of their own, and are as readable as the rest."""
    from ilcp.models.adapter import new_adapter, save_adapter

    torch.manual_seed(0)
    save_adapter(new_adapter(deepcopy(small.receiver.model), 2), tmp_path / "adapter")
    probe = tmp_path / "probe"
    probe.touch()
    assert {probe.stat().st_mode} == {file.stat().st_mode for file in (tmp_path / "adapter").iterdir()}
    assert "peft_type" in json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())


def test_low_rank_weights_that_may_not_be_read_are_not_called_missing(small, tmp_path, monkeypatch) -> None:
    """At both doors: a codec's own adapter, and one that a training starts with."""
    from ilcp.models.adapter import ADAPTER, adapt, begun_adapter, new_adapter, save_adapter

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    model = deepcopy(small.receiver.model)
    save_adapter(new_adapter(deepcopy(model), 2), tmp_path / ADAPTER)
    monkeypatch.setattr("ilcp.models.adapter.require_readable", denied)
    with pytest.raises(ilcp.errors.StorageError, match=r"the receiver's adapter in .*Permission denied"):
        adapt(model, SimpleNamespace(folder=tmp_path))
    with pytest.raises(ConfigError, match=r"low-rank weights for the receiver in .*Permission denied"):
        begun_adapter(model, tmp_path / ADAPTER)
