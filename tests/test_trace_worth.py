"""What steps are worth to a reader, how many a task wants, and the commands that say so."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import ilcp
from ilcp.cli import app
from ilcp.codec.memory import CacheMemory
from ilcp.errors import ConfigError, Interrupted
from ilcp.handoff import Receiver
from ilcp.measure.figures import Measured
from ilcp.tasks import Case, case_files, thin
from ilcp.tasks.written import write_jsonl
from ilcp_codecs.text import HeadCodec
from ilcp_codecs.trace import Plan, TraceCodec
from ilcp_codecs.trace import tuning as tuning_module
from ilcp_codecs.trace import worth as worth_module
from ilcp_codecs.trace.config import TraceConfig
from ilcp_codecs.trace.controls import CONTROLS, changed
from ilcp_codecs.trace.job import TRACES, cases_of
from ilcp_codecs.trace.traces import Traces, Written
from ilcp_codecs.trace.tuning import _curve, tune
from ilcp_codecs.trace.worth import StepsWorth, steps_worth, sureness
from tests.helpers import noting
from tests.taught import cases
from tests.test_kv import TOKENIZER
from tests.test_trace import PLAN, frozen
from tests.test_trace_job import EMBEDDED, SHORT, short
from tests.test_trace_training import Pair, pair, stopping

TAIL = 5  # of a note's last tokens, among which its name stands


@pytest.fixture(autouse=True)
def _no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer to draw than to learn."""
    monkeypatch.setattr("ilcp.training.log.draw_curve", lambda _: None)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> TraceConfig:
    """Of this module."""
    return short(tmp_path_factory.mktemp("ready"))


@pytest.fixture(scope="module")
def own() -> Pair:
    """A model that reads the name in a note, as writer and as reader."""
    return pair()


def worth_of(own: Pair, plan: Plan, asked: list[Case], **options: Any) -> StepsWorth:
    """What the steps of a plan are worth to a reader that nobody tuned."""
    codec = TraceCodec.of(own.models.sender, own.models.sender_tokenizer, plan)
    return steps_worth(codec, own.models, asked, **options)


# ---- the worth of steps


def test_what_is_measured_is_what_a_receiver_answers_behind_each_control(own: Pair) -> None:
    """Exact match and nats of the trace, and of every control with the next case as the other one."""
    asked = cases(20_000, 12)
    found = worth_of(own, PLAN, asked, seed=3)
    reader = Receiver(own.models.receiver, own.models.receiver_tokenizer, HeadCodec(), allow_unmeasured=True)
    traces = own.traces(PLAN)
    written = [*traces.of_cases(asked[:8]), *traces.of_cases(asked[8:])]  # as they are written there, to the last bit
    arms: dict[str, list[Written]] = {"trace": written}
    for control in CONTROLS:
        others = [*written[1:], written[0]]
        arms[control] = [
            changed(a, 3, control, case.context, seed=3, other=b)
            for case, a, b in zip(asked, written, others, strict=True)
        ]
    assert {*arms} == {*found.exact} == {*found.nats} == {*found.perplexity}
    assert {*CONTROLS} == {*found.gains} == {*found.churn} == {*found.gains_nats}
    for name, given in arms.items():
        memories = [CacheMemory(each.kv) for each in given]
        questions = [case.questions[0] for case in asked]
        scores = reader.score([(one, q.text, q.answer) for one, q in zip(memories, questions, strict=True)])
        assert found.nats[name] == pytest.approx(sum(s.log_likelihood_nats for s in scores) / 12, abs=2e-3)
        answers = reader.answers([(one, q.text) for one, q in zip(memories, questions, strict=True)])
        right = [answer == q.answer for answer, q in zip(answers, questions, strict=True)]
        assert found.exact[name] == pytest.approx(sum(right) / 12)
        if name != "trace":
            assert found.gains[name].value == pytest.approx(found.exact["trace"] - found.exact[name])
            assert found.gains_nats[name].value == pytest.approx(found.nats["trace"] - found.nats[name], abs=1e-5)
    assert found.perplexity["trace"][0] >= 1
    assert found.n == 12


def ending(plan: Plan, tail: int) -> Any:
    """Makes traces whose steps are said to be the last tokens that one agent reads: what stands there is known."""

    def of(end: Any, _: Plan, rule: Any) -> Traces:
        def told(each: Written, text: str) -> Written:
            return replace(each, prompts=[each.kv.tokens - tail])

        return Traces(end, replace(plan, steps=0), rule, change=told)

    return of


def test_steps_that_a_reader_needs_bring_more_than_every_control(own: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the name itself stands in them."""
    plan = Plan(("one",), TAIL)
    monkeypatch.setattr(worth_module, "Traces", ending(plan, TAIL))
    found = worth_of(own, plan, cases(20_000, 32))
    assert found.exact["trace"] > 0.9
    for control in ("another's steps", "zero steps", "no steps"):
        assert f"more than {control} (+" in found.sentence()
        assert f"no more than {control}" not in found.sentence()
        assert found.gains[control].value > 0.3
        assert found.churn[control] > 0.3
    assert "in exact match over 32 questions about 32 cases." in found.sentence()


def test_steps_of_no_use_bring_no_more_than_any_control(own: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the full stop of a note, behind its name."""
    plan = Plan(("one",), 1)
    monkeypatch.setattr(worth_module, "Traces", ending(plan, 1))
    found = worth_of(own, plan, cases(20_000, 32))
    assert found.exact["trace"] > 0.9
    for control in CONTROLS[:-1]:
        assert f"not measurably more than {control} (" in found.sentence()
    assert found.gains["zero trace"].value > 0.3  # which is a control of the trace, not of its steps
    assert "zero trace" not in found.sentence()


def test_without_steps_nothing_is_said_to_come_of_them(own: Pair) -> None:
    found = worth_of(own, replace(PLAN, steps=0), cases(20_000, 8))
    assert (
        "The agents take no steps: what there is comes from the keys and values of their prompts." == found.sentence()
    )
    assert {"trace", "zero trace"} == {*found.exact}
    assert found.to_dict()["sentence"] == found.sentence()


def test_the_steps_alone_stand_beside_nothing(own: Pair) -> None:
    """Where only they are handed over, no steps are no memory: every control is measured."""
    plan = replace(PLAN, keep="steps")
    asked = cases(20_000, 8)
    found = worth_of(own, plan, asked)
    assert {"trace", *CONTROLS} == {*found.exact}
    reader = Receiver(own.models.receiver, own.models.receiver_tokenizer, HeadCodec(), allow_unmeasured=True)
    scores = reader.score([(None, case.questions[0].text, case.questions[0].answer) for case in asked])
    assert abs(found.nats["no steps"] - sum(s.log_likelihood_nats for s in scores) / 8) < 3
    assert found.nats["zero steps"] == pytest.approx(found.nats["zero trace"])


def figure(value: float, low: float, high: float) -> Measured:
    """A difference with its interval."""
    return Measured(value=value, unit="exact match", n=8, low=low, high=high)


def test_a_sentence_says_more_less_or_no_more_by_the_interval_alone() -> None:
    intervals = [(0.3, 0.1, 0.5), (-0.3, -0.5, -0.1), (0.2, 0.0, 0.4), (-0.2, -0.4, 0.0)]
    gains = {name: figure(*each) for name, each in zip(CONTROLS, [*intervals, (0.5, 0.4, 0.6)], strict=True)}
    said = StepsWorth(8, 4, 2, {}, {}, gains, {}, {}, {}).sentence()
    assert said == (
        "To this reader the steps bring more than shuffled steps (+0.300 [+0.100, +0.500]), less than another's steps "
        "(-0.300 [-0.500, -0.100]), not measurably more than zero steps (+0.200 [+0.000, +0.400]), not measurably more "
        "than no steps (-0.200 [-0.400, +0.000]), in exact match over 8 questions about 4 cases."
    )
    gains["zero trace"] = figure(0.0, 0.0, 0.0)
    exact = {"trace": 0.1, "zero trace": 0.1}
    nothing = StepsWorth(8, 4, 2, exact, {}, gains, {}, {}, {}).sentence()
    assert nothing.startswith("What the steps bring cannot be told: the reader answers no better")
    assert "(0.100 against 0.100, in exact match over 8 questions about 4 cases)" in nothing


def test_what_cannot_be_compared_is_refused(own: Pair) -> None:
    with pytest.raises(ConfigError, match=r"at least two cases .*, got 1"):
        worth_of(own, PLAN, cases(0, 1))


def test_of_sliding_windows_it_says_that_nothing_can_be_told() -> None:
    windowed: Any = SimpleNamespace(plan=PLAN, tensors={})
    models = ilcp.training.Models(frozen("gemma3_text"), TOKENIZER, frozen("gemma3_text"), TOKENIZER)
    found = steps_worth(windowed, models, cases(0, 4))
    assert {"trace"} == {*found.exact}
    assert not found.gains
    assert found.sentence().startswith("What the steps bring cannot be told: the model has sliding windows")


def test_sureness_is_mean_high_end_and_outliers() -> None:
    mean, high, outliers = sureness([1.0, 1.0, 2.0, 8.0])
    assert (mean, outliers) == (3.0, 0.25)
    assert 2 < high <= 8


# ---- how many steps


def test_the_choice_is_the_fewest_that_the_best_does_not_surely_beat() -> None:
    """By nats, with the interval over documents."""

    def answers(*nats: float) -> Any:
        return SimpleNamespace(nats=list(nats) * 8, exact=[True] * 8 * len(nats))

    documents = [*range(32)]
    near, below, alike = (-1.0, -1.1, -0.9, -1.0), (-5.0, -5.1, -4.9, -5.0), (-1.0, -1.1, -0.9, -0.9)
    curve = _curve({0: answers(*below), 2: answers(*near), 5: answers(*alike)}, documents, 0)
    assert curve.choice == 5  # surely better than 2, by the little there is
    assert curve.over_best[5].value == 0
    unsure, best = answers(-1.0, -3.0, -1.0, -3.0), answers(-3.0, -1.0, -2.9, -1.0)
    assert _curve({0: answers(*below), 2: unsure, 5: best}, documents, 0).choice == 2
    assert _curve({4: answers(-1.0, -2.0)}, [*range(16)], 0).choice == 4


def test_the_curve_chooses_the_fewest_steps_that_nothing_beats(
    ready: TraceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the cases that a run is watched on: what it learned from, and what measures it, have no part in it."""
    asked: list[Any] = []
    monkeypatch.setattr(tuning_module, "answered", noting(tuning_module.answered, asked, lambda *args: args[2]))
    config = replace(ready, out=tmp_path / "out", training={**SHORT, "steps": 2, "validate_every": 2})
    curve = tune(config, [2, 0, 2])
    assert [cases_of(config).validation] * 2 == asked
    assert [0, 2] == [*curve.exact] == [*curve.nats] == [*curve.over_best]
    assert curve.n == 16
    assert curve.choice == 0  # the names stand in the prompts: steps bring nothing
    best = max(curve.nats, key=lambda number: curve.nats[number].value)
    assert 0 == curve.over_best[best].value
    for number, over in curve.over_best.items():
        assert over.value == pytest.approx(curve.nats[number].value - curve.nats[best].value, abs=1e-6)
    kept = json.loads((config.out / "steps.json").read_text())
    assert (kept["choice"], kept["n"], {*kept["exact"]}) == (0, 16, {"0", "2"})
    assert not [*config.work.rglob("checkpoint.pt")]
    with pytest.raises(ConfigError, match="which is there"):
        tune(config, [0])


@pytest.mark.parametrize(
    ("changes", "steps", "words"),
    [
        ({}, [], "numbers of steps to try, got none"),
        ({"keep": "steps", "steps": 1}, [1], "keep = 'all' to find a number of steps"),
        ({}, [0, -1], "0 to 4096 steps, got -1"),
    ],
)
def test_numbers_that_cannot_be_tried_are_refused(
    ready: TraceConfig, tmp_path: Path, changes: dict[str, Any], steps: list[int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        tune(replace(ready, out=tmp_path / "out", **changes), steps)
    assert not (tmp_path / "out").exists()


# ---- the commands


def said(*words: object, code: int = 0) -> str:
    """What a command prints, in one line."""
    done = CliRunner().invoke(app, [*map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert code == done.exit_code, done.output
    return " ".join(done.output.split())


def test_the_commands_train_measure_and_tune(tmp_path: Path) -> None:
    """The embedded receiver, on dossiers, from a recipe and options."""
    file, recipe, out = tmp_path / "cases.jsonl", tmp_path / "recipe.toml", tmp_path / "out"
    wanted = {"lookup": 1, "join": 0, "absent": 0, "code": 0}
    write_jsonl(file, [thin(case, wanted, n) for n, case in enumerate(case_files("train", 0, 160, facts=2))])
    recipe.write_text("test_cases = 16\n[training]\ncontexts = 2\nquestions = 1\n")
    options = ["--recipe", recipe, "--model", EMBEDDED, "--data", file, "--training-steps", 1, "--agent", "one"]
    options += ["--agent", "two"]
    shown = said("trace", "train", *options, "--out", out, "--steps", 1, "--rule", "norm", "--carrier", "kv-int8")
    assert f"ilcp trace measure {out}" in shown
    codec = ilcp.load(out)
    assert isinstance(codec, TraceCodec)
    assert (("one", "two"), 1, "norm") == (codec.plan.agents, codec.plan.steps, codec.plan.rule)
    assert codec.evidence is not None
    shown = said("trace", "measure", out, "--model", EMBEDDED, "--n", 4, "--json", tmp_path / "figures.json")
    assert "the steps bring" in shown
    record = json.loads((tmp_path / "figures.json").read_text())
    assert (4, 1) == (record["steps"]["n"], record["steps"]["steps"])
    assert "zero trace" in shown
    shown = said("trace", "tune", *options, "--out", tmp_path / "curve", "--steps", "0,1")
    assert "Take" in shown
    assert "over 16 questions" in shown
    assert json.loads((tmp_path / "curve" / "steps.json").read_text())["choice"] in (0, 1)


def test_the_commands_refuse_what_is_none(tmp_path: Path, ready: TraceConfig) -> None:
    for words, match in (
        (("train",), "expected model, data, out"),
        (("train", "--model", "a", "--data", "b", "--out", "c", "--rule", "best"), "a rule of norm"),
        (("tune", "--model", "a", "--data", "b", "--out", "c", "--steps", "1,two"), "numbers with commas between"),
        (("measure", tmp_path / "gone"), "gone"),
    ):
        with pytest.raises(ilcp.errors.IlcpError, match=match):
            said("trace", *words)
    ilcp.save(ilcp.load_pair().sender.codec, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"a codec of traces, got 'vae': use ilcp measure"):
        said("trace", "measure", tmp_path / "other")


def test_ctrl_c_on_the_command_line_says_how_to_go_on(
    ready: TraceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("test_cases = 16\n[training]\ncontexts = 4\nquestions = 1\n")
    words = ["trace", "train", "--recipe", recipe, "--model", ready.model, "--data", ready.data, "--steps", 0]
    words += ["--out", tmp_path / "out", "--training-steps", 3]
    stopping(monkeypatch, 1)
    said(*words, code=130)
    assert [*(tmp_path / "out.run" / TRACES).rglob("*.safetensors")]  # what was written once is there for the rest
    assert f"{tmp_path / 'out'}:" in said(*words, "--resume")
    assert not (tmp_path / "out.run" / TRACES).exists()


def test_a_curve_that_was_stopped_goes_on_from_the_numbers_that_are_done(
    ready: TraceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done is not trained again, unless something else is asked for."""
    config = replace(ready, out=tmp_path / "out", training={**SHORT, "steps": 1})
    tried: list[int] = []
    train = tuning_module.trained

    def stopping_at(number: int) -> Any:
        def trained(config: TraceConfig, *rest: Any, **options: Any) -> Any:
            if config.steps == number:
                raise KeyboardInterrupt
            tried.append(config.steps)
            return train(config, *rest, **options)

        return trained

    monkeypatch.setattr(tuning_module, "trained", stopping_at(1))
    with pytest.raises(Interrupted, match=r"done are 0 of \[0, 1\]: the same command goes on"):
        tune(config, [0, 1])
    assert not (config.work / "trying").exists()
    monkeypatch.setattr(tuning_module, "trained", stopping_at(-1))
    assert {0, 1} == {*tune(config, [0, 1]).exact}
    assert tried == [0, 1]
    assert not config.work.exists()
