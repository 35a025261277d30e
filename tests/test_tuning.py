"""A receiver that learns to read first: the adapter's own stage, the teacher that it makes, and what follows it."""

import os
import random
import signal
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ilcp.errors import ConfigError, Interrupted, StorageError, TrainingError
from ilcp.models.adapter import adapt, new_adapter, save_adapter
from ilcp.models.fingerprint import identify
from ilcp.nn.half import round_to_half
from ilcp.tasks import Case, Question
from ilcp.training import Hyperparameters, Models, fit, tune
from ilcp.training import stage as stage_module
from ilcp.training import tuning as tuning_module
from ilcp.training.batch import Batcher
from ilcp.training.checkpoint import read_checkpoint, write_checkpoint
from ilcp.training.log import Log, draw_curve, read_log
from ilcp.training.objective import Objective
from ilcp.training.packed import text_logits
from ilcp.training.precision import precision
from ilcp.training.reader import Reader
from ilcp.training.tuning import tuned
from ilcp.training.validation import Validator
from tests.helpers import make_model, make_tokenizer, present
from tests.taught import cases, make_blurred, make_hyperparameters, make_network

hyperparameters = partial(
    make_hyperparameters,
    steps=60,
    reader_share=0.3,
    reader_contexts=8,
    reader_learning_rate=0.02,
    validation_contexts=16,
    warmup_steps=2,
)


@pytest.fixture(scope="module", autouse=True)
def _few_validations() -> Iterator[None]:
    """Two, and without a curve, which takes longer than the steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "VALIDATIONS", 2)
        patch.setattr("ilcp.training.log.draw_curve", lambda _: None)
        yield


def validator_of(models: Models, wanted: Hyperparameters) -> Validator:
    """A validator of cases that no training sees."""
    return Validator(models, cases(10_000, 16), wanted, Reader(models, (0, 1, 2), wanted))


def tuned_in(folder: Path, models: Models, **changes: Any) -> tuple[dict[str, Any], Validator]:
    """What the stage brought in a folder, and the validator that watched it."""
    resume = changes.pop("resume", False)
    wanted = hyperparameters(**changes)
    validator = validator_of(models, wanted)
    return tune(models, cases, validator, wanted, folder, resume=resume), validator


@pytest.fixture(scope="module")
def reading(tmp_path_factory, _few_validations) -> Models:
    """A pair whose receiver was tuned to read; copy it before it is trained."""
    models = make_blurred()
    tuned_in(tmp_path_factory.mktemp("reading"), models)
    return models


def held(models: Models) -> list[torch.Tensor]:
    """A copy of the adapter's weights."""
    return [parameter.detach().clone() for parameter in models.adapted()]


def same(left: Any, right: Any) -> bool:
    """Whether two lists of tensors are equal bit by bit."""
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


# ---- the stage


def test_the_adapter_alone_learns_to_read(tmp_path, capsys) -> None:
    """From nothing right to nearly all, said before and after; the models under the adapter stay as they were."""
    models = make_blurred()
    learned = {id(parameter) for parameter in models.adapted()}
    bare = [p for side in (models.sender, models.receiver) for p in side.parameters() if id(p) not in learned]
    before = [parameter.clone() for parameter in bare]
    brought, validator = tuned_in(tmp_path, models)
    assert same(before, bare)
    assert 0.2 > brought["before"]["exact"]
    assert 0.8 < brought["after"]["exact"] == round(validator.reading.exact["text"], 4)
    assert brought["after"]["log_likelihood"] > brought["before"]["log_likelihood"] + 5
    assert (16, 18) == (brought["questions"], brought["steps"])
    assert brought == tuned(tmp_path)
    assert "before it is tuned, the receiver answers 0.062 exact" in capsys.readouterr().err
    assert "exact" in validator.said()
    validator.require_teacher()


def test_the_best_reading_stays_and_a_stage_that_makes_it_no_better_ends(tmp_path, monkeypatch) -> None:
    """At a ruinous rate the stage gives up after its patience, and the receiver reads as it did at the start."""
    monkeypatch.setattr(stage_module, "VALIDATIONS", 12)
    models = make_blurred(noise=0.0)
    start = held(models)
    brought, _ = tuned_in(tmp_path, models, reader_learning_rate=50.0)
    assert tuning_module.PATIENCE == brought["steps"] < 12
    assert same(start, models.adapted())
    assert brought["before"] == brought["after"]
    again = make_blurred(noise=0.0)
    tuned_in(tmp_path, again, reader_learning_rate=50.0, resume=True)
    assert same(start, again.adapted())


def test_a_stage_that_was_stopped_ends_with_the_same_weights(tmp_path, monkeypatch) -> None:
    """Ctrl-C at a step, then resume: bit for bit the undisturbed weights; what is over is taken up without a step."""
    whole, cut = make_blurred(), make_blurred()
    brought, _ = tuned_in(tmp_path / "whole", whole)
    terms, calls = tuning_module._TextObjective.terms, []

    def interrupted(*args) -> dict[str, torch.Tensor]:
        calls.append(args)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return terms(*args)

    monkeypatch.setattr(tuning_module._TextObjective, "terms", interrupted)
    with pytest.raises(Interrupted, match=r"stopped at step 5; .*reader holds a checkpoint"):
        tuned_in(tmp_path / "cut", cut)
    assert tuned(tmp_path / "cut") is None
    fresh = make_blurred()
    with pytest.raises(ConfigError, match="resume=True"):
        tuned_in(tmp_path / "cut", fresh)
    again, _ = tuned_in(tmp_path / "cut", make_blurred(), resume=True)
    assert again | {"minutes": 0} == brought | {"minutes": 0}
    assert 18 == len(calls)
    fresh = make_blurred()
    assert again == tuned_in(tmp_path / "cut", fresh, resume=True)[0]
    assert 18 == len(calls)
    assert same(held(whole), held(fresh))
    (tmp_path / "cut" / "reader" / "brought.json").write_text("{")
    with pytest.raises(StorageError, match=r"expected a run's own record in .*brought\.json, got: .*; remove it"):
        tuned(tmp_path / "cut")


def test_the_stage_has_its_share_of_the_budget() -> None:
    """Steps and minutes are a share of the run's; the rest of what a codec's run asks for is left out."""
    stage = tuning_module.reading_stage(hyperparameters(steps=100, minutes=30.0, reader_share=0.1, blank_share=0.5))
    assert (10, pytest.approx(3.0), 0.02) == (stage.steps, stage.minutes, stage.adapter_learning_rate)
    assert 0 == stage.blanks(8)
    for change, fragment in (
        ({"reader_share": 1.0}, "reader_share from 0 to below 1, got 1.0"),
        ({"reader_contexts": 0}, "reader_contexts to be at least 1, got 0"),
        ({"reader_learning_rate": 0.0}, "reader_learning_rate to be positive"),
        ({"reader_weight": -1.0}, "reader_weight to be 0 or more"),
        ({"adapter_after": 1.5}, "adapter_after from 0 to 1, got 1.5"),
    ):
        with pytest.raises(ConfigError, match=fragment):
            hyperparameters(**change)


def test_a_log_says_what_the_tuning_brought_and_is_drawn(tmp_path) -> None:
    """A line without a validation, and validations with fewer arms, are no obstacle to the curve."""
    log = Log(tmp_path)
    log.write({"step": 0, "reader": {"steps": 3}})
    for step in (3, 4):
        log.write({"step": step, "loss": 1.0, "reading": 1.0, "validation_log_likelihood": {"text": -1.0}})
    assert present(draw_curve(log.file)).read_bytes().startswith(b"\x89PNG")
    assert [0, 3, 4] == [record["step"] for record in read_log(log.file)]


# ---- the teacher


def test_a_receiver_below_the_floor_is_refused_with_what_to_do() -> None:
    """Half right is below a floor of 0.6: tune it, or longer, another one, or no floor; continuations have none."""
    models = make_blurred()
    wanted = hyperparameters(teacher_floor=0.6)
    assert 0.3 == Hyperparameters(steps=1).teacher_floor
    validator = validator_of(replace(models, adapter=None), wanted)
    validator.read()
    validator.reading = replace(validator.reading, exact=dict.fromkeys(validator.reading.exact, 0.5), gain_low=1.0)
    with pytest.raises(
        TrainingError,
        match=r"reach 0\.6 exact match \(teacher_floor\), got 0\.500 over 16 questions: tune it to read "
        r"\(--adapt-receiver\), choose a receiver that reads better, or set teacher_floor = 0",
    ):
        validator.require_teacher()
    validator.models = models
    with pytest.raises(TrainingError, match=r"tune it longer \(reader_share\) or on more cases"):
        validator.require_teacher()
    validator.hyperparameters = replace(wanted, answers_end=False)
    validator.require_teacher()
    assert "exact match says nothing of continuations: teacher_floor does not apply" in validator.said()
    validator.reading = replace(validator.reading, gain_low=0.0)
    with pytest.raises(TrainingError, match="better with the full text than with another case's"):
        validator.require_teacher()


@pytest.mark.parametrize("halved", [False, True])
def test_targets_come_from_the_adapter_as_the_first_stage_left_it(halved: bool) -> None:
    """Whatever is trained later, teaching() says what was said before; gradients are those of a run without it."""
    models = make_blurred()
    with torch.no_grad():
        for parameter in models.adapted():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = Batcher(models, hyperparameters()).batch(cases(0, 8), random.Random(0))
    wanted = hyperparameters(kl_weight=1.0, adapter_after=0.0, bfloat16=halved)
    device = models.receiver.device
    with torch.no_grad(), precision(device, wanted):
        first = text_logits(models, batch.rows, batch.texts)[0]
    models = models.with_teacher()
    with torch.no_grad(), precision(device, wanted):
        for parameter in models.adapted():
            parameter.add_(0.05 * torch.randn_like(parameter))
        moved = text_logits(models, batch.rows, batch.texts)[0]
        with models.teaching():
            taught = text_logits(models, batch.rows, batch.texts)[0]
        after = text_logits(models, batch.rows, batch.texts)[0]
    assert torch.equal(first, taught)
    assert torch.equal(moved, after)
    assert not torch.allclose(first, moved)
    network = make_network().train()

    def gradients(models: Models, weight: float) -> list[torch.Tensor]:
        objective = Objective(models, replace(wanted, kl_weight=weight), Reader(models, (0, 1, 2), wanted))
        torch.manual_seed(0)
        terms = objective.terms(network, batch)
        (terms["cross_entropy"] + terms["reading"]).backward()
        found = [present(parameter.grad).clone() for parameter in models.adapted()]
        models.adapter.zero_grad()
        return found

    asked, plain = gradients(models, 1.0), gradients(replace(models, teacher=()), 0.0)
    assert same(plain, asked)
    assert any(gradient.abs().max() > 0 for gradient in asked)


def test_the_ends_are_read_by_the_tuned_receiver(reading, tmp_path) -> None:
    """A validation compares the message with the text as the adapter read it at the start, not as it came."""
    models = deepcopy(reading)
    wanted = hyperparameters(steps=2, adapter_after=0.0, adapter_learning_rate=10.0, teacher_floor=0.9)
    result = fit(make_network(), models, cases, cases(10_000, 16), wanted, tmp_path)
    assert result.validation.exact["text"] > 0.9
    again = fit(make_network(), deepcopy(reading), cases, cases(10_000, 16), wanted, tmp_path, resume=True)
    assert result.validation == again.validation


# ---- both together


def test_the_adapter_is_trained_along_late_and_goes_on_reading(reading, tmp_path, monkeypatch) -> None:
    """Until its share of the run is over it stays as it is; from then on it moves, with the full text in the loss."""
    models = deepcopy(reading)
    start, terms, seen = held(models), Objective.terms, []

    def noted(self, *args) -> dict[str, torch.Tensor]:
        found = terms(self, *args)
        seen.append((same(start, self.models.adapted()), "reading" in found))
        return found

    monkeypatch.setattr(Objective, "terms", noted)
    wanted = hyperparameters(steps=4, adapter_after=0.5, kl_weight=0.5)
    fit(make_network(), models, cases, cases(10_000, 16), wanted, tmp_path / "late")
    assert [(True, False), (True, False), (True, True), (False, True)] == seen
    start = held(models)
    del seen[:]
    fit(make_network(), models, cases, cases(10_000, 16), replace(wanted, adapter_after=1.0), tmp_path / "never")
    assert [(True, False)] * 4 == seen


def test_the_full_text_is_part_of_the_loss_of_both() -> None:
    """Its weight counts, and only one context is read for it."""
    models, wanted = make_blurred(), hyperparameters(adapter_after=0.0, reader_weight=0.25, blank_share=0.0)
    asked = [Case(c.id, c.context, (c.questions[0], Question("Who was it?", "Mara"))) for c in cases(0, 8)]
    batch = Batcher(models, replace(wanted, questions=2)).batch(asked, random.Random(0))
    objective = Objective(models, wanted, Reader(models, (0, 1, 2), wanted))
    terms = objective.terms(make_network().train(), batch)
    assert terms["loss"].item() == pytest.approx((terms["cross_entropy"] + 0.25 * terms["reading"]).item(), rel=1e-5)
    assert terms["reading"].item() == pytest.approx(objective.reading(batch, batch.rows[:2]).item(), rel=1e-5)


def test_a_codecs_run_of_before_goes_on(reading, tmp_path) -> None:
    """A checkpoint that knows nothing of the stage, written when the floor was another, is resumed."""
    models, wanted = deepcopy(reading), hyperparameters(steps=2, teacher_floor=0.5)
    fit(make_network(), models, cases, cases(10_000, 16), wanted, tmp_path)
    state = read_checkpoint(tmp_path)[0]
    state["recipe"] = {name: value for name, value in state["recipe"].items() if "reader" not in name}
    del state["recipe"]["adapter_after"]
    write_checkpoint(tmp_path, state)
    wanted = replace(wanted, teacher_floor=1.1)
    assert 2 == fit(make_network(), models, cases, cases(10_000, 16), wanted, tmp_path, resume=True).steps


# ---- what is saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_is_the_one_that_was_measured(tmp_path, dtype: torch.dtype) -> None:
    """Trained in float32, rounded to 16 bits, saved in them: who loads it has the very receiver, by its identity."""
    tokenizer, model = make_tokenizer(300), make_model(300, seed=1).to(dtype)
    torch.manual_seed(0)
    adapter = new_adapter(model, 2)
    learned = [value for name, value in adapter.named_parameters() if "lora_" in name]
    assert {torch.float32} == {weight.dtype for weight in learned}
    with torch.no_grad():
        for weight in learned:
            weight.add_(0.01 * torch.randn_like(weight))
    full = identify(adapter, tokenizer)
    round_to_half(learned)
    rounded = identify(adapter, tokenizer)
    assert full != rounded
    save_adapter(adapter, tmp_path / "receiver-adapter")
    file = tmp_path / "receiver-adapter" / "adapter_model.safetensors"
    assert {torch.float16} == {tensor.dtype for tensor in load_file(file).values()}
    assert len(learned) == len(load_file(file))
    codec: Any = type("Codec", (), {"folder": tmp_path})
    assert rounded == identify(adapt(make_model(300, seed=1).to(dtype), codec), tokenizer)
