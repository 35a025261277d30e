"""From cases to a measured reader of traces: what a run is made of, what it refuses, and what it leaves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ilcp
from ilcp.errors import ConfigError, IdentityError, Interrupted, UnmeasuredError
from ilcp.handoff import Receiver
from ilcp.measure import Report
from ilcp.models.adapter import adapt
from ilcp.models.loading import load_model
from ilcp.tasks.graphs import graphs
from ilcp.tasks.written import write_jsonl
from ilcp_codecs.trace import Reader, TraceCodec
from ilcp_codecs.trace import job as job_module
from ilcp_codecs.trace.config import TraceConfig, read_trace_config
from ilcp_codecs.trace.job import TRACES, cases_of, train
from tests.taught import make_models, write_cases
from tests.test_trace_training import stopping

SHORT = {"steps": 4, "contexts": 4, "questions": 1, "validate_every": 4, "bfloat16": False, "warmup_steps": 1}
EMBEDDED = Path(ilcp.embedded.__file__).parent / "receiver"


@pytest.fixture(autouse=True)
def _no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer to draw than to learn."""
    monkeypatch.setattr("ilcp.training.log.draw_curve", lambda _: None)


def short(folder: Path) -> TraceConfig:
    """The configuration of a short run: a model that was taught to read names, and notes with one each, on the disk."""
    taught = make_models()
    taught.receiver.save_pretrained(folder / "model")
    taught.receiver_tokenizer.save_pretrained(folder / "model")
    data = write_cases(folder / "notes.jsonl", 164)
    return TraceConfig(str(folder / "model"), data, folder / "out", steps=2, training=SHORT, test_cases=16)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> TraceConfig:
    """Of this module."""
    return short(tmp_path_factory.mktemp("ready"))


@pytest.fixture(scope="module")
def whole(ready: TraceConfig) -> tuple[TraceConfig, Report]:
    """A run that nobody stopped, of a rule that learns along."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ilcp.training.log.draw_curve", lambda _: None)
        config = replace(ready, rule="learned", out=ready.out.with_name("whole"))
        return config, train(config)


# ---- the configuration


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "best"}, "a rule of norm"),
        ({"agents": ()}, "agents as 1 to 256 roles"),
        ({"steps": -1}, "0 to 4096 steps"),
        ({"prompt": "none"}, r"\{text\} in it once"),
        ({"keep": "steps", "steps": 0}, "'steps' where there are some"),
        ({"learns_rule": True}, "a rule of learned, pause to learn, got 'soft': it has no weights"),
        ({"frontier_weight": 1.0}, "a rule that learns beside frontier_weight, got 'soft'"),
        ({"frontier_weight": 1.0, "rule": "learned", "learns_rule": False}, "a rule that learns beside"),
        ({"carrier": "kv-pca"}, "a carrier of kv-exact, kv-int8, kv-int4, got 'kv-pca'"),
        ({"kl_weight": -1.0}, "kl_weight to be 0 or more"),
        ({"states_weight": float("inf")}, "states_weight to be 0 or more"),
        ({"traces_gb": float("nan")}, "traces_gb to be 0 or more"),
        ({"dtype": "int8"}, "dtype to be one of"),
        ({"seed": -1}, "a seed of 0 or more"),
        ({"adapter_rank": 0}, "a rank of 1 or more"),
        ({"test_cases": 15}, "test_cases to be at least 16, got 15: fewer prove nothing"),
        ({"out": Path("..")}, "a folder with a name of its own"),
        ({"training": {"seed": 1}}, "seed at the top of the recipe"),
        ({"training": {"step": 1}}, r"a key of \[training\] of a trace, got 'step'; did you mean 'steps'"),
        ({"training": {"steps": 0}}, "steps to be at least 1"),
    ],
)
def test_what_no_run_can_be_made_of_is_refused(ready: TraceConfig, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(ready, **changes)


def test_a_recipe_is_read_and_what_is_given_goes_before_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'model = "a"\ndata = "b.jsonl"\nout = "c"\nagents = ["x", "y"]\n[training]\nsteps = 7\nminutes = 2\n'
    )
    found = read_trace_config(recipe, steps=3, training_steps=9, rule=None, out=tmp_path / "d")
    assert (found.model, found.agents, found.steps, found.rule) == ("a", ("x", "y"), 3, "soft")
    assert (found.hyperparameters().steps, found.hyperparameters().minutes) == (9, 2)
    assert found.work == tmp_path / "d.run"
    assert (200, 4, 1e-3) == (
        (usual := read_trace_config(model="a", data="b", out="c").hyperparameters()).steps,
        usual.contexts,
        usual.adapter_learning_rate,
    )
    for text, words in (
        ('model = "a"\n', r"expected data, out in .*recipe\.toml, got nothing: give --data, --out"),
        ('model = "a"\ndata = "b"\nout = "c"\nstep = 1\n', "got 'step'; did you mean 'steps'"),
        ('model = "a"\ndata = "b"\nout = "c"\nsteps = 1.5\n', "a whole number for 'steps'"),
        ('training = 7\nmodel = "a"\ndata = "b"\nout = "c"\n', r"a table \[training\]"),
        ("model = [", "recipe"),
    ):
        recipe.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_trace_config(recipe)
    with pytest.raises(ConfigError, match="expected model, data, out in the recipe, got nothing"):
        read_trace_config()


def lines(file: Path, records: list[dict[str, Any]]) -> Path:
    """Writes records as a file of cases."""
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return file


REFUSED: dict[str, tuple[Callable[[TraceConfig, Path], TraceConfig], str]] = {
    "too few cases": (
        lambda own, at: replace(own, data=write_cases(at / "few.jsonl", 159)),
        "at least 160 cases .*159",
    ),
    "continuations": (
        lambda own, at: replace(
            own, data=lines(at / "c.jsonl", [{"context": str(n), "continuation": "on"} for n in range(160)])
        ),
        "expected questions in .*, got continuations",
    ),
    "what is there": (lambda own, at: replace(own, out=at), "a new folder for the codec, got .*, which is there"),
    "a file": (lambda own, at: replace(own, out=at / "there"), "a new folder for the codec, got .*, which is there"),
    "too long a case": (
        lambda own, at: replace(
            own,
            data=lines(
                at / "long.jsonl",
                [
                    {
                        "id": f"n{n}",
                        "context": f"{n} Mara" + " owns" * 260 * (n == 5),
                        "question": "Who?",
                        "answer": "Mara",
                    }
                    for n in range(164)
                ],
            ),
        ),
        "traces of at most .* tokens, questions and answers included, got .* for case 'n5'",
    ),
    "too many steps": (
        lambda own, at: replace(own, steps=130),
        r"got \d+ \+ \d+ for case .*: shorten it, take fewer steps",
    ),
    "more contexts than cases": (
        lambda own, at: replace(own, training={**SHORT, "contexts": 500}),
        "contexts of at most the 132 cases to learn from, got 500",
    ),
    "no model": (lambda own, at: replace(own, model=str(at / "gone")), "gone"),
    "no data": (lambda own, at: replace(own, data=at / "gone.jsonl"), "gone"),
    "no adapter": (lambda own, at: replace(own, adapter=at), "a folder of low-rank weights as adapter"),
    "no frontier": (
        lambda own, at: replace(own, rule="learned", frontier_weight=1.0),
        "cases with a frontier beside frontier_weight, got none",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_run_that_cannot_be_is_refused_before_a_step(
    what: str, ready: TraceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a sentence of its own, and nothing in the place of the codec."""
    (tmp_path / "there").write_text("mine")
    change, words = REFUSED[what]
    config = change(replace(ready, out=tmp_path / "out"), tmp_path)
    monkeypatch.setattr(job_module, "learn", lambda *_, **__: pytest.fail("something was trained"))
    with pytest.raises(ConfigError, match=words):
        train(config)
    assert not (tmp_path / "out").exists()
    assert "mine" == (tmp_path / "there").read_text()


def test_no_case_is_in_two_parts(ready: TraceConfig) -> None:
    parts = cases_of(ready)
    contexts = [case.context for case in (*parts.training, *parts.validation, *parts.test)]
    assert len(contexts) == len(set(contexts)) == 164
    assert (16, 16) == (len(parts.validation), len(parts.test))
    assert cases_of(ready) == parts
    assert cases_of(replace(ready, seed=1)).test != parts.test


# ---- the run


def test_a_run_leaves_a_measured_reader(whole: tuple[TraceConfig, Report]) -> None:
    """Its evidence, rule and adapter in the folder, its log and test cases beside it; the traces are gone."""
    config, report = whole
    codec = ilcp.load(config.out)
    assert isinstance(codec, TraceCodec)
    assert (config.plan(), "kv-exact", {"weight", "bias"}) == (codec.plan, codec.carrier, {*codec.tensors})
    assert codec.evidence == report.evidence()
    assert report.evidence().n == 16
    for name in ("log.jsonl", "README.md", "receiver-adapter/adapter_model.safetensors"):
        assert (config.out / name).is_file()
    assert not (config.work / TRACES).exists()
    model, tokenizer = load_model(config.model)
    reader = Reader(adapt(model, codec), tokenizer, codec)  # measured, so nothing has to be allowed
    writer, _ = load_model(config.model)
    message = ilcp.Sender(writer, tokenizer, codec).encode("Note 7: it was\n\nMara, said Note 8.")
    assert reader.generate(reader.open(message), "Who?") == reader.generate(message, "Who?") == "Mara"
    with pytest.raises(IdentityError, match="receiver"):
        Receiver(writer, tokenizer, codec)  # without its adapter it is another
    with pytest.raises(ConfigError, match="which is there: choose another"):
        train(config)


def test_what_was_measured_is_what_steps_are_worth_of(whole: tuple[TraceConfig, Report]) -> None:
    """The report's message, and the trace that its controls stand beside, are one and the same."""
    config, report = whole
    codec = ilcp.load(config.out)
    writer, tokenizer = load_model(config.model)
    reader = adapt(load_model(config.model)[0], codec)
    models = ilcp.training.Models(writer, tokenizer, reader, tokenizer)
    test = [*ilcp.tasks.read_jsonl(config.work / "test.jsonl")]
    worth = ilcp.trace.steps_worth(codec, models, test, seed=config.seed)
    assert worth.n == 16
    assert worth.exact["trace"] == pytest.approx(report.mean("message").value)
    assert worth.nats["trace"] == pytest.approx(sum(report.arms["message"].nats) / 16, abs=1e-3)


def _retrained(*named: Any, **options: Any) -> Any:
    """The model of that name, of which somebody has trained a weight since."""
    model, tokenizer = load_model(*named, **options)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 0.1
    return model, tokenizer


def test_a_run_that_was_stopped_goes_on_to_the_same_reader(
    whole: tuple[TraceConfig, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --resume it is refused, and so is another configuration; what was never begun cannot go on."""
    config = replace(whole[0], out=tmp_path / "cut", data=tmp_path / "notes.jsonl")
    data = whole[0].data.read_bytes()
    config.data.write_bytes(data)
    with pytest.raises(ConfigError, match=r"expected a run in .*, got none: leave --resume out"):
        train(config, resume=True)
    seen = stopping(monkeypatch, 2)
    with pytest.raises(Interrupted, match="holds a checkpoint"):
        train(config)
    assert not config.out.exists()
    with pytest.raises(ConfigError, match=r"expected no run in .*, got one with a checkpoint: pass --resume"):
        train(config)
    with monkeypatch.context() as other:
        other.setattr(job_module, "load_model", _retrained)
        with pytest.raises(ConfigError, match="got another model identity: "):
            train(config, resume=True)
    changed: dict[str, Any] = {"steps": 1, "rule": "pause", "kl_weight": 0.5, "seed": 1, "keep": "steps"}
    for name, value in changed.items():
        with pytest.raises(ConfigError, match=f"got another .*{name}.*: take it back, or choose another"):
            train(_with(config, name, value), resume=True)
    with pytest.raises(ConfigError, match="got another training"):
        train(replace(config, training={**SHORT, "contexts": 2}), resume=True)
    (tmp_path / "more.jsonl").write_bytes(data)
    with pytest.raises(ConfigError, match="got another data: "):
        train(replace(config, data=tmp_path / "more.jsonl"), resume=True)
    config.data.write_bytes(data.replace(b"it was", b"that was"))
    with pytest.raises(ConfigError, match="got another data digest: "):
        train(config, resume=True)
    config.data.write_bytes(data)
    assert [0, 1] == seen
    report = train(config, resume=True)
    assert [0, 1, 2, 3] == seen
    assert report.evidence().n == 16
    for name in ("receiver-adapter/adapter_model.safetensors", "model.safetensors"):
        ours, theirs = load_file(config.out / name), load_file(whole[0].out / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def _with(config: TraceConfig, name: str, value: Any) -> TraceConfig:
    """The configuration with one field changed."""
    changes: dict[str, Any] = {name: value}
    return replace(config, **changes)


def test_a_reader_that_nobody_measured_is_refused(
    ready: TraceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stopped the measuring: the folder is whole, says so, and has no evidence."""

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "measure", stopped)
    config = replace(ready, out=tmp_path / "out", training={**SHORT, "steps": 1}, carrier="kv-int8")
    with pytest.raises(Interrupted, match=r"is whole in .*, but not measured: 'ilcp measure"):
        train(config)
    assert not (config.work / TRACES).exists()
    codec = ilcp.load(config.out)
    model, tokenizer = load_model(config.model)
    model = adapt(model, codec)
    with pytest.raises(UnmeasuredError):
        Receiver(model, tokenizer, codec)
    assert Receiver(model, tokenizer, codec, allow_unmeasured=True).codec.spec.name == "trace"


def test_a_frontier_in_the_cases_is_learned_from(tmp_path: Path, ready: TraceConfig) -> None:
    """Of every word the first token that is no space, as the writers' tokenizer has it behind one."""
    file = tmp_path / "graphs.jsonl"
    write_jsonl(file, [replace(g.case, questions=g.case.questions[:1]) for g in graphs("train", 0, 160)])
    config = replace(
        ready, model=str(EMBEDDED), data=file, rule="learned", frontier_weight=0.5, out=tmp_path / "out",
        training={**SHORT, "steps": 1, "validate_every": 1},
    )  # fmt: skip
    found = job_module.trained(config, cases_of(config), tmp_path / "work")
    (line,) = [json.loads(each) for each in (tmp_path / "work" / "log.jsonl").read_text().splitlines()]
    assert line["loss"] == pytest.approx(line["cross_entropy"] + 0.5 * line["frontier"], abs=1e-3)
    tokenizer = found.models.sender_tokenizer
    case = found.cases.training[0]
    ids = job_module._frontier(found.cases, tokenizer)(case.context)
    assert 2 == len(ids) == len(case.frontier)
    for agents, words in zip(ids, case.frontier, strict=True):
        for own, known in zip(agents, words, strict=True):
            said = [tokenizer.decode(token) for token in own]
            assert all(
                word.startswith(piece.strip()) and piece.strip() for piece, word in zip(said, known, strict=True)
            )


def test_a_reader_may_begin_with_weights_that_are_there(whole: tuple[TraceConfig, Report], tmp_path: Path) -> None:
    config = replace(whole[0], adapter=whole[0].out / "receiver-adapter", out=tmp_path / "out")
    models, end = job_module.prepared(config)
    there = load_file(whole[0].out / "receiver-adapter" / "adapter_model.safetensors")
    begun = {name: value for name, value in models.adapter.named_parameters() if "lora_" in name}
    assert len(there) == len(begun)
    assert any(value.abs().sum() > 0 for name, value in begun.items() if "lora_B" in name)
    assert end.identity.digest() != ilcp.load(whole[0].out).trained.receiver.digest()
