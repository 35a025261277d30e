"""A reader that learns from traces, a rule that learns along, and what a run of it keeps."""

import os
import signal
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ilcp.codec.memory import CacheMemory
from ilcp.errors import ConfigError, Interrupted
from ilcp.handoff import Receiver
from ilcp.models.adapter import new_adapter
from ilcp.models.forward import embed
from ilcp.models.kv import placed
from ilcp.models.prompt import layout
from ilcp.tasks import Case, Question
from ilcp.training import Hyperparameters, Models
from ilcp.training.log import LOG, read_log
from ilcp.training.result import Result
from ilcp_codecs.kv.ends import End
from ilcp_codecs.text import HeadCodec
from ilcp_codecs.trace import Plan, Rule
from ilcp_codecs.trace import learning as learning_module
from ilcp_codecs.trace.learning import Learning, learn
from ilcp_codecs.trace.traces import Traces, Written
from tests.taught import WORDS, cases, make_hyperparameters, make_models
from tests.test_trace import PLAN
from tests.test_trace_store import counted

OTHER_NAME = dict(zip(WORDS, (*WORDS[1:], WORDS[0]), strict=True))
ONE = Plan(("everything",), 0, "norm")

hyperparameters = partial(
    make_hyperparameters,
    steps=30,
    adapter_learning_rate=0.02,
    adapter_after=0.0,
    blank_share=0.0,
    teacher_floor=0.0,
    warmup_steps=2,
    validate_every=30,
    validation_contexts=16,
)


@pytest.fixture(autouse=True)
def _no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer to draw than to learn."""
    monkeypatch.setattr("ilcp.training.log.draw_curve", lambda _: None)


@dataclass
class Pair:
    """The models of a training, and its writers' end."""

    models: Models
    end: End

    def traces(self, plan: Plan = PLAN, **options: Any) -> Traces:
        """Traces by them."""
        return Traces(self.end, plan, Rule(plan.rule, self.models.sender), **options)

    def held(self) -> list[torch.Tensor]:
        """A copy of the adapter's weights."""
        return [each.detach().clone() for each in self.models.adapted()]


def pair() -> Pair:
    """A model that was taught to read names, as writer, and as reader with an adapter that changes nothing yet."""
    taught = make_models()
    tokenizer, reader = taught.receiver_tokenizer, deepcopy(taught.receiver)
    torch.manual_seed(0)
    adapter = new_adapter(reader, 4)
    models = Models(taught.receiver, tokenizer, adapter.get_base_model(), tokenizer, adapter)
    return Pair(models, End.of("writer", taught.receiver, tokenizer))


def renamed(start: int, n: int) -> list[Case]:
    """Notes about which another name than theirs is the answer: the reader has something to learn."""
    found = []
    for case in cases(start, n):
        (question,) = case.questions
        found.append(replace(case, questions=(Question(question.text, OTHER_NAME[question.answer]),)))
    return found


def learned(own: Pair, folder: Path, learning: Learning, *, resume: bool = False, **changes: Any) -> Result:
    """What a training on notes brought."""
    wanted = hyperparameters(**changes)
    return learn(own.models, learning, renamed, renamed(10_000, 16), wanted, folder, resume=resume)


def log_of(folder: Path) -> list[dict[str, Any]]:
    """What a run wrote down."""
    return read_log(folder / LOG)


def test_a_reader_learns_and_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = pair()
    traces = own.traces(folder=tmp_path / "traces")
    bare = {id(each) for each in own.models.adapted()}
    others = [p for side in (own.models.sender, own.models.receiver) for p in side.parameters() if id(p) not in bare]
    before, wanted = [each.clone() for each in others], [each.requires_grad for each in others]
    start = own.held()
    learned(pair(), tmp_path / "first", Learning(own.traces()), steps=1)
    result = learned(own, tmp_path, Learning(traces))
    assert log_of(tmp_path)[-1]["last_loss"] < 0.3 * log_of(tmp_path / "first")[0]["last_loss"]
    before_it = log_of(tmp_path / "first")[0]["validation_log_likelihood"]["message"]
    assert result.validation.log_likelihood["message"] > before_it + 2
    assert result.validation.exact["message"] > 0.7
    assert result.validation.gain_low > 1
    assert {"none", "mismatched", "message"} == {*result.validation.exact}
    assert all(map(torch.equal, before, others))
    assert wanted == [each.requires_grad for each in others]
    assert not all(map(torch.equal, start, own.held()))
    assert {} == traces.rule.tensors()
    passes = counted(monkeypatch)
    own.traces(folder=tmp_path / "traces").of_cases([*renamed(0, 8 * 30), *renamed(10_000, 16)])
    assert [] == passes  # the traces of all that was read are there


def test_what_is_watched_is_what_a_receiver_answers_behind_the_memory(tmp_path: Path) -> None:
    """Its own trace, another case's, and nothing: the means are those of a receiver's calls."""
    own = pair()
    result = learned(own, tmp_path, Learning(own.traces()), steps=1, adapter_learning_rate=1e-9)
    receiver = Receiver(own.models.receiver, own.models.receiver_tokenizer, HeadCodec(), allow_unmeasured=True)
    asked = renamed(10_000, 16)
    memories = [CacheMemory(each.kv) for each in own.traces().of_cases(asked)]
    arms: dict[str, list[Any]] = {
        "message": [*memories],
        "mismatched": [memories[-1], *memories[:-1]],
        "none": [None] * 16,
    }
    for name, given in arms.items():
        items = [
            (one, case.questions[0].text, case.questions[0].answer) for one, case in zip(given, asked, strict=True)
        ]
        scores = receiver.score(items)
        mean = sum(score.log_likelihood_nats for score in scores) / 16
        assert mean == pytest.approx(result.validation.log_likelihood[name], abs=1e-3)
        assert sum(score.exact for score in scores) / 16 == pytest.approx(result.validation.exact[name])


def frontier(text: str) -> list[list[list[int]]]:
    """What each step of two agents should hold: some tokens, or nobody knows."""
    return [[[5], [], [7, 9]], [[11]]]


def test_a_rule_learns_along_and_every_term_is_told(tmp_path: Path) -> None:
    """The loss is their weighted sum; the rule's weights move, and with them what the writers write."""
    own = pair()
    traces = own.traces(replace(PLAN, rule="learned"))
    before, wrote = traces.rule.tensors(), traces.live(["Note 1: it was Mara."])[0].kv.digest()
    before = {name: value.clone() for name, value in before.items()}
    learning = Learning(
        traces,
        everything=own.traces(ONE),
        learns_rule=True,
        frontier=frontier,
        kl_weight=0.5,
        states_weight=0.25,
        frontier_weight=0.1,
    )
    learned(own, tmp_path, learning, steps=3, validate_every=3, learning_rate=0.01)
    (line,) = log_of(tmp_path)
    terms = ("cross_entropy", "kl", "states", "frontier", "loss")
    assert all(line[name] > 0 and line[name] < 100 for name in terms)
    said = line["cross_entropy"] + 0.5 * line["kl"] + 0.25 * line["states"] + 0.1 * line["frontier"]
    assert line["loss"] == pytest.approx(said, abs=5e-4)
    for name, value in traces.rule.tensors().items():
        assert not torch.equal(value, before[name])
        assert bool(value.isfinite().all())
    assert wrote != traces.live(["Note 1: it was Mara."])[0].kv.digest()


def test_a_rule_that_is_not_trained_stays(tmp_path: Path) -> None:
    own = pair()
    traces = own.traces(replace(PLAN, rule="learned"))
    before = {name: value.clone() for name, value in traces.rule.tensors().items()}
    learned(own, tmp_path, Learning(traces), steps=2)
    assert all(torch.equal(value, before[name]) for name, value in traces.rule.tensors().items())


def test_behind_everything_the_reader_is_its_own_teacher(tmp_path: Path) -> None:
    """Where a trace is that of one agent who read all, without steps, nothing is apart; elsewhere something is."""
    for plan, apart in ((ONE, False), (PLAN, True)):
        own = pair()
        folder = tmp_path / plan.agents[0]
        learning = Learning(own.traces(plan), everything=own.traces(ONE), kl_weight=1.0, states_weight=1.0)
        learned(own, folder, learning, steps=1)
        (line,) = log_of(folder)
        for name in ("kl", "states"):
            assert (line[name] > 1e-3) is apart
            assert line[name] >= 0


@torch.no_grad()
def states_where_an_answer_begins(own: Pair, memory: Written, question: str) -> list[torch.Tensor]:
    """The reader's states of the last token before its answer, of each layer."""
    model, place = own.models.receiver, layout(own.models.receiver_tokenizer, question)
    cache = placed(model, [embed(model, place.prefix), memory.kv])
    found = model(
        inputs_embeds=embed(model, place.suffix)[None], past_key_values=cache, output_hidden_states=True
    ).hidden_states[1:]
    return [each[0, -1] for each in found]


def test_states_are_compared_where_each_answer_begins(tmp_path: Path) -> None:
    """Answers of any length: in each layer the mean distance, in deviations of those behind everything."""
    own = pair()
    questions = Question("Who?", "Mara"), Question("Who was it?", "Jonas and Ilse and Tomas")
    long = [replace(case, questions=questions) for case in cases(0, 8)]
    learning = Learning(own.traces(), everything=own.traces(ONE), states_weight=1.0)
    wanted = hyperparameters(steps=1, questions=2)
    learn(own.models, learning, lambda first, n: long[:n], renamed(10_000, 16), wanted, tmp_path)
    fresh = pair()
    ours, everything = (
        [
            states_where_an_answer_begins(fresh, one, q.text)
            for one in fresh.traces(plan).of_cases(long)
            for q in questions
        ]
        for plan in (PLAN, ONE)
    )
    apart = []
    for a, b in zip(zip(*ours, strict=True), zip(*everything, strict=True), strict=True):
        here, there = torch.stack(a), torch.stack(b)
        apart.append(float((here - there).abs().mean() / there.std()))
    assert log_of(tmp_path)[0]["states"] == pytest.approx(sum(apart) / len(apart), rel=2e-3)


def test_the_frontier_is_what_the_models_own_head_says_of_each_step(tmp_path: Path) -> None:
    """The state before the first step, and after each, in turn; what nobody knows does not count."""
    own = pair()
    traces = own.traces(replace(PLAN, rule="learned"))
    texts = [case.context for case in renamed(0, 8)]
    nats = []
    with torch.no_grad():
        for one in traces.live(texts):
            for agent, known in enumerate(frontier("")):
                said = own.models.sender.get_output_embeddings()(one.states[agent]).log_softmax(-1)
                nats += [float(said[step, tokens].mean()) for step, tokens in enumerate(known) if tokens]
    learned(own, tmp_path, Learning(traces, learns_rule=True, frontier=frontier, frontier_weight=1.0), steps=1)
    assert log_of(tmp_path)[0]["frontier"] == pytest.approx(-sum(nats) / len(nats), abs=1e-3)


def test_a_frontier_is_learned(tmp_path: Path) -> None:
    """A rule that is told what its steps should hold says it with less surprise; one that is not told does not."""
    found = []
    for weight in (5.0, 1e-9):
        own = pair()
        traces = own.traces(replace(PLAN, rule="learned"))
        learning = Learning(traces, learns_rule=True, frontier=frontier, frontier_weight=weight)
        folder = tmp_path / str(weight)
        learned(own, folder, learning, steps=12, validate_every=1, learning_rate=0.02)
        found.append([line["frontier"] for line in log_of(folder)][-1])
    assert found[0] < found[1] - 0.3


def test_a_pipeline_of_texts_learns_too_and_writes_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, passes = pair(), counted(monkeypatch)
    learning = Learning(own.traces(), text=lambda text: text.replace("it was", "that was"), kl_weight=1.0)
    result = learned(own, tmp_path, learning, validate_every=5)
    log = log_of(tmp_path)
    assert log[-1]["last_loss"] < 0.7 * log[0]["last_loss"]
    assert result.validation.exact["message"] > 0.8 > result.validation.exact["mismatched"]
    assert [] == passes
    assert "kl" not in log[0]


def test_what_a_pipeline_of_texts_says_is_what_is_read(tmp_path: Path) -> None:
    """A text that says nothing teaches nothing: the message is no better than another case's."""
    own = pair()
    result = learned(own, tmp_path, Learning(own.traces(), text=lambda _: "Nothing was said."), steps=3)
    assert result.validation.log_likelihood["message"] == pytest.approx(
        result.validation.log_likelihood["mismatched"], abs=1e-4
    )


def test_the_loss_of_a_pipeline_of_texts_is_behind_what_it_says(tmp_path: Path) -> None:
    """A text that says the wanted name itself leaves nothing to learn; the case's own, which says another, does."""

    def said(text: str) -> str:
        return next(text.replace(name, other) for name, other in OTHER_NAME.items() if name in text)

    losses = []
    read: list[Callable[[str], str]] = [said, str.strip]
    for number, text in enumerate(read):
        own, folder = pair(), tmp_path / str(number)
        learned(own, folder, Learning(own.traces(), text=text), steps=1)
        losses.append(log_of(folder)[0]["cross_entropy"])
    assert losses[0] < 0.5
    assert losses[1] > 1


def stopping(monkeypatch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Sends Ctrl-C to this process in a step of the next run; returns the numbers of all steps."""
    terms, seen = learning_module._TraceObjective.terms, list[int]()

    def stopped(*args: Any) -> Any:
        seen.append(args[3])
        if step == len(seen):
            os.kill(os.getpid(), signal.SIGINT)
        return terms(*args)

    monkeypatch.setattr(learning_module._TraceObjective, "terms", stopped)
    return seen


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapter and rule, bit by bit; what there is is not begun anew by mistake."""

    def run(name: str, resume: bool = False) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        own = pair()
        traces = own.traces(replace(PLAN, rule="learned"))
        learned(own, tmp_path / name, Learning(traces, learns_rule=True), resume=resume, steps=6, validate_every=6)
        return own.held(), traces.rule.tensors()

    adapter, rule = run("whole")
    seen = stopping(monkeypatch, 3)
    with pytest.raises(Interrupted, match=r"stopped at step 3; .*cut holds a checkpoint"):
        run("cut")
    with pytest.raises(ConfigError, match="resume"):
        run("cut")
    again, rule_again = run("cut", resume=True)
    assert [0, 1, 2, 3, 4, 5] == seen
    assert all(map(torch.equal, adapter, again))
    assert all(torch.equal(value, rule_again[name]) for name, value in rule.items())


def test_hyperparameters_of_another_run_are_refused(tmp_path: Path) -> None:
    own = pair()
    wanted: Hyperparameters = hyperparameters(steps=1)
    learn(own.models, Learning(own.traces()), renamed, renamed(10_000, 16), wanted, tmp_path)
    with pytest.raises(ConfigError, match="contexts"):
        learned(pair(), tmp_path, Learning(own.traces()), resume=True, steps=2, contexts=4)
