"""The loop: it learns, it resumes to the same weights, and it refuses what cannot work."""

import json
import os
import random
import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ilcp.errors import ConfigError, StorageError, TrainingError
from ilcp.models.forward import PADDING, answer_logits, embed
from ilcp.tasks import Case, Question
from ilcp.tasks.telling import TELL
from ilcp.training import Hyperparameters, Models, Phrasebook, calibrate, fit, write_phrasebook
from ilcp.training import packed as packed_module
from ilcp.training.batch import Batcher
from ilcp.training.checkpoint import BEFORE, read_checkpoint, write_checkpoint
from ilcp.training.objective import Objective, alignment_loss, targets_of
from ilcp.training.packed import memory_logits, text_logits
from ilcp.training.reader import Reader
from ilcp.training.validation import Validator
from ilcp_codecs.vae import VaeConfig, VaeNetwork
from tests.helpers import make_model
from tests.taught import WORDS, cases, make_blurred, make_hyperparameters, make_network

network = make_network
hyperparameters = partial(
    make_hyperparameters,
    steps=60,
    contexts=16,
    learning_rate=3e-3,
    warmup_steps=5,
    validate_every=20,
    validation_contexts=16,
    seed=4,
)


def objective(models: Models, wanted: Hyperparameters) -> Objective:
    """What a run with that recipe would minimise."""
    return Objective(models, wanted, Reader(models, (0, 1, 2), wanted))


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything that training changes."""
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def small_run(models, tmp_path_factory) -> SimpleNamespace:
    """A codec after 60 steps, with what its run came to and left."""
    folder, learner = tmp_path_factory.mktemp("small"), network()
    result = fit(learner, models, cases, cases(10_000, 16), hyperparameters(), folder)
    return SimpleNamespace(network=learner, result=result, log=(folder / "log.jsonl").read_text().splitlines())


def test_a_small_run_improves_on_its_start(small_run) -> None:
    """After 60 steps the message is worth more than nothing, and more than another case's message."""
    validation = small_run.result.validation
    assert 60 == small_run.result.steps
    assert 3 == len(small_run.log)
    assert validation.log_likelihood["message"] > validation.log_likelihood["none"] + 0.2
    assert validation.log_likelihood["message"] > validation.log_likelihood["mismatched"] + 0.2
    assert validation.recovery > 0.2


def test_the_frozen_models_stay_as_they_were(models, tmp_path) -> None:
    """Training changes the codec alone, and puts the receiver's attention back."""
    before = weights(models.receiver) | {f"sender {k}": v for k, v in weights(models.sender).items()}
    attention = models.receiver.config._attn_implementation
    fit(network(), models, cases, cases(10_000, 16), hyperparameters(steps=3), tmp_path)
    after = weights(models.receiver) | {f"sender {k}": v for k, v in weights(models.sender).items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert attention == models.receiver.config._attn_implementation


def test_an_interrupted_run_resumes_to_the_same_weights(models, tmp_path, monkeypatch) -> None:
    """Stopped by Ctrl-C in the middle of step 8 and resumed, a run ends with the weights of an undisturbed one."""
    undisturbed = network()
    wanted = hyperparameters(steps=20)
    fit(undisturbed, models, cases, cases(10_000, 16), wanted, tmp_path / "whole")
    calls = []

    def interrupted(*args) -> dict[str, torch.Tensor]:
        calls.append(terms(*args))
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return calls[-1]

    terms = Objective.terms
    monkeypatch.setattr(Objective, "terms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), models, cases, cases(10_000, 16), wanted, tmp_path / "cut")
    monkeypatch.undo()
    resumed = network()
    result = fit(resumed, models, cases, cases(10_000, 16), wanted, tmp_path / "cut", resume=True)
    assert 20 == result.steps
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in undisturbed.state_dict().items())


def test_a_checkpoint_is_not_overwritten_nor_resumed_with_another_recipe(models, tmp_path) -> None:
    """A folder with a checkpoint needs resume=True, and then the same recipe; the difference is named."""
    fit(network(), models, cases, cases(10_000, 16), hyperparameters(steps=2), tmp_path)
    with pytest.raises(ConfigError, match="resume=True"):
        fit(network(), models, cases, cases(10_000, 16), hyperparameters(steps=2), tmp_path)
    with pytest.raises(ConfigError, match=r"learning_rate \(was 0.003, is 0.1\)"):
        fit(
            network(),
            models,
            cases,
            cases(10_000, 16),
            hyperparameters(steps=2, learning_rate=0.1),
            tmp_path,
            resume=True,
        )


def test_a_checkpoint_of_before_goes_on_and_a_damaged_one_is_named(models, tmp_path) -> None:
    """Hyperparameters under their old names are those of today; what is no checkpoint is said to be damaged."""
    wanted = hyperparameters(steps=2)
    fit(network(), models, cases, cases(10_000, 16), wanted, tmp_path)
    state = read_checkpoint(tmp_path)[0]
    state["recipe"]["close_answers"] = state["recipe"].pop("answers_end")
    write_checkpoint(tmp_path, state)
    assert 2 == fit(network(), models, cases, cases(10_000, 16), wanted, tmp_path, resume=True).steps
    write_checkpoint(tmp_path, {"step": 2})
    (tmp_path / BEFORE).unlink()
    with pytest.raises(StorageError, match=r"expected a checkpoint in .*, got a damaged file"):
        fit(network(), models, cases, cases(10_000, 16), wanted, tmp_path, resume=True)


def test_a_checkpoint_that_lacks_something_is_damaged(models, tmp_path) -> None:
    """A key that is gone or another thing, weights or moments of another shape: all is named before the run goes on."""
    wanted = hyperparameters(steps=2, patience=2, validate_every=1)
    fit(network(), models, cases, cases(10_000, 16), wanted, tmp_path)
    state = read_checkpoint(tmp_path)[0]

    def reshaped(tensors: dict) -> dict:
        return {
            name: tensor[..., :1] if torch.is_tensor(tensor) and tensor.dim() else tensor
            for name, tensor in tensors.items()
        }

    weights = state["weights"] | {"network": reshaped(state["weights"]["network"])}
    optimizer = state["optimizer"] | {"state": {n: reshaped(held) for n, held in state["optimizer"]["state"].items()}}
    assert state["best"] is not None
    damaged = [{name: value for name, value in state.items() if name != gone} for gone in state]
    damaged += [state | {name: "x"} for name in state]
    damaged += [state | {"weights": weights}, state | {"optimizer": optimizer}, state | {"best": (1.0, weights)}]
    for each in damaged:
        write_checkpoint(tmp_path, each)
        (tmp_path / BEFORE).unlink(missing_ok=True)
        with pytest.raises(StorageError, match=r"expected a checkpoint in .*, got a damaged file"):
            fit(network(), models, cases, cases(10_000, 16), wanted, tmp_path, resume=True)


def test_a_run_below_a_file_is_a_storage_error(models, tmp_path) -> None:
    """A folder that cannot be made is the disk's fault, and named."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"expected a folder for the run, got .*file/run"):
        fit(network(), models, cases, cases(10_000, 16), hyperparameters(steps=1), tmp_path / "file" / "run")


def test_asking_everything_twice_makes_no_surer(models, small_run) -> None:
    """The interval of the gain is over documents, as a report's: questions about one document are not independent."""
    lows = []
    for count in (1, 2):
        wanted = hyperparameters(questions=count)
        asked = [replace(case, questions=case.questions * count) for case in cases(10_000, 16)]
        validator = Validator(models, asked, wanted, Reader(models, (0, 1, 2), wanted))
        found = validator.measure(small_run.network)
        assert found.gain_low < found.gain_nats
        lows.append(found.gain_low)
    assert lows[0] == pytest.approx(lows[1], abs=1e-6)


def test_training_does_not_start_without_a_teacher(models, tmp_path) -> None:
    """A receiver that gains nothing from the full text, or too little, is refused with its figures."""
    untaught = Models(
        models.sender,
        models.sender_tokenizer,
        make_model(len(models.receiver_tokenizer), 48, seed=9),
        models.receiver_tokenizer,
    )
    with pytest.raises(TrainingError, match="better with the full text than with another case's, got"):
        fit(network(), untaught, cases, cases(10_000, 16), hyperparameters(), tmp_path / "a")
    assert all(p.requires_grad for p in untaught.receiver.parameters())
    assert "sdpa" == untaught.receiver.config._attn_implementation
    with pytest.raises(TrainingError, match=r"reach 1\.1 exact match \(teacher_floor\), got 1\.000"):
        fit(network(), models, cases, cases(10_000, 16), hyperparameters(teacher_floor=1.1), tmp_path / "b")


def test_a_loss_that_is_not_finite_stops_the_run(models, tmp_path) -> None:
    """NaN weights stop the run at its first step, with the step's number."""
    broken = network()
    broken.projector.scale.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="finite loss, got nan at step 0"):
        fit(broken, models, cases, cases(10_000, 16), hyperparameters(), tmp_path)


def test_every_term_of_the_loss_reaches_the_network(models) -> None:
    """Cross-entropy, rate, distillation and blank payloads are finite, and together they are the loss."""
    learner = network().train()
    wanted = hyperparameters(kl_weight=0.5, rate_weight=0.01, blank_share=0.25)
    batch = Batcher(models, wanted).batch(cases(0, 16), random.Random(0))
    terms = objective(models, wanted).terms(learner, batch)
    parts = terms["cross_entropy"] + 0.01 * terms["paid_bits"] + 0.5 * terms["kl"] + 0.25 * terms["blank"]
    assert parts.item() == pytest.approx(terms["loss"].item(), rel=1e-5)
    assert all(value.isfinite() for value in terms.values())
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())


def test_packed_questions_equal_separate_prompts(models) -> None:
    """Questions of one sequence get the logits that each would get alone, those in words of their own around it too."""
    asked = (
        Question("Who?", "Mara", facts=(("who", "Mara"),)),
        Question("Who was it, once more?", "Jonas"),
        Question("Who", "Ilse"),
    )
    told = [Case("x", f"It was Mara. Ticket {'A9' * n}.", asked) for n in (1, 3, 2, 1, 2, 1)]
    wanted = hyperparameters(questions=3, literals_share=0.5, blank_share=0.0, telling_share=0.5)
    batch = Batcher(models, wanted).batch(told, random.Random(0))
    beside = ["A9" in models.receiver_tokenizer.decode(row.suffix) for row in batch.rows]
    open_ = [row.question == TELL for row in batch.rows]
    # Some contexts' rows begin with a line of literals, some ask to say what the memory says, and some do both.
    assert {(False, False), (True, False), (False, True), (True, True)} == set(zip(beside, open_, strict=True))
    assert 2 == len({row.prefix for row in batch.rows})
    memory = torch.randn(6, 4, 48) * 0.02
    with torch.no_grad():
        packed, labels = memory_logits(models, batch.rows, memory)
        for index, row in enumerate(batch.rows):
            parts = [embed(models.receiver, row.prefix), memory[row.context], embed(models.receiver, row.suffix)]
            alone, answer = answer_logits(models.receiver, [torch.cat(parts)], [row.answer])
            known = labels[index] != PADDING
            assert torch.equal(answer[0], labels[index][known])
            assert torch.allclose(alone[0], packed[index][known], atol=1e-4)


def test_a_validation_never_asks_a_memory_to_say_what_it_says(models) -> None:
    wanted = hyperparameters(telling_share=1.0)
    reader = Reader(models, (0, 1, 2), wanted)
    rows = Validator(models, told(16, 10_000), wanted, reader).batch.rows
    assert {"Who?"} == {row.question for row in rows}
    learned = Batcher(models, wanted).batch(told(16, 10_000), random.Random(0)).rows
    assert 16 == sum(row.question == TELL for row in learned)


def test_long_contexts_are_read_in_parts_with_the_same_outcome(models, monkeypatch) -> None:
    """Logits, and gradients of the memory and the adapter, are those of one pass."""
    blurred = make_blurred()
    asked = (Question("Who?", "Mara"), Question("Who was it, once more?", "Jonas"))
    some = [Case("x", f"It was Mara. {'Yes. ' * n}", asked) for n in (9, 1, 5, 1)]
    batch = Batcher(blurred, hyperparameters(questions=2, blank_share=0.0)).batch(some, random.Random(1))
    found = []
    for limit in (10**9, 1):
        monkeypatch.setattr(packed_module, "MOST_PAIRS", limit)
        memory = (torch.randn(4, 4, 48, generator=torch.Generator().manual_seed(0)) * 0.02).requires_grad_()
        shapes: list[int] = []
        hook = blurred.receiver.register_forward_pre_hook(
            lambda _module, _args, named, shapes=shapes: shapes.append(len(named["inputs_embeds"])), with_kwargs=True
        )
        given = memory_logits(blurred, batch.rows, memory)
        read = text_logits(blurred, batch.rows, [batch.texts[row.context] for row in batch.rows])
        hook.remove()
        told = [logits[labels != PADDING].log_softmax(-1).square().mean() for logits, labels in (given, read)]
        loss = torch.stack(told).sum()
        gradients = torch.autograd.grad(loss, [memory, *blurred.adapted()])
        found.append((given[0][given[1] != PADDING], read[0][read[1] != PADDING], *gradients))
        assert ([4, 4] if limit > 1 else [1] * 8) == shapes
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, atol=1e-4)


def test_questions_of_one_text_share_one_reading(models) -> None:
    """The full text goes through the receiver once for all of its questions."""
    asked = (Question("Who?", "Mara"), Question("Who was it, once more?", "Jonas"), Question("Who", "Ilse"))
    told = [Case("x", f"It was Mara. {'Yes. ' * n}", asked) for n in (1, 3)]
    batch = Batcher(models, hyperparameters(questions=3, blank_share=0.0)).batch(told, random.Random(1))
    seen: list[torch.Size] = []
    hook = models.receiver.register_forward_pre_hook(
        lambda _module, _args, named: seen.append(named["inputs_embeds"].shape), with_kwargs=True
    )
    try:
        text_logits(models, batch.rows, [batch.texts[row.context] for row in batch.rows])
    finally:
        hook.remove()
    assert [2] == [shape[0] for shape in seen]


def told(n: int, start: int = 0) -> list[Case]:
    """One-fact documents whose question tells of a topic."""
    return [
        Case(c.id, c.context, (Question("Who?", c.questions[0].answer, facts=(("who", c.questions[0].answer),)),))
        for c in cases(start, n)
    ]


@pytest.fixture(scope="module")
def phrasebook(models) -> Phrasebook:
    """What the receiver of the one-fact documents can read."""
    wanted = hyperparameters(topics=("who",))
    batches = [Batcher(models, wanted).batch(told(16), random.Random(step)) for step in range(60)]
    return write_phrasebook(models, batches, wanted)


def test_the_receiver_answers_from_the_phrasebook(models, phrasebook, tmp_path) -> None:
    """Its memory makes the frozen receiver say the words, its file loads to the same, and no topic is an error."""
    wanted = hyperparameters(topics=("who",))
    batch = Batcher(models, wanted).batch(told(16), random.Random(0))
    with torch.no_grad():
        logits, labels = memory_logits(models, batch.rows, phrasebook.memory(batch))
    right = ((logits.argmax(-1) == labels) | (labels == PADDING)).all(-1).float().mean()
    assert right > 0.9
    phrasebook.save(tmp_path / "phrasebook.safetensors")
    again = Phrasebook.load(tmp_path / "phrasebook.safetensors")
    assert set(WORDS) == set(again.words)
    assert torch.equal(phrasebook.memory(batch), again.memory(batch))
    with pytest.raises(ConfigError, match="give Question"):
        write_phrasebook(models, [Batcher(models, wanted).batch(cases(0, 4), random.Random(0))], wanted)


def test_the_warm_up_teaches_a_topic_its_slot(models, phrasebook, tmp_path) -> None:
    """After naming and alignment alone, without a pass through the receiver, the receiver answers from the message."""
    wanted = hyperparameters(steps=120, naming_steps=80, alignment_steps=40, alignment_weight=1.0, topics=("who",))
    torch.manual_seed(0)
    learner = VaeNetwork(
        VaeConfig((0, 1, 2), 32, 48, slots=1, dims=16, prefixes=(2,), width=32, heads=4, projector_width=64)
    )
    calibrate(learner, models, told(16), wanted, phrasebook)
    result = fit(
        learner, models, lambda start, n: told(n, start), cases(10_000, 16), wanted, tmp_path, phrasebook=phrasebook
    )
    assert result.validation.exact["message"] > 0.9
    assert result.validation.exact["mismatched"] < 0.6
    assert result.validation.exact["none"] < 0.6
    record = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert "cross_entropy" not in record


def test_a_memory_out_of_the_phrasebook_lacks_nothing(models, phrasebook) -> None:
    """Its alignment loss is nil, that of bare places is one; a batch that tells nothing is refused."""
    wanted = hyperparameters(alignment_weight=1.0, topics=("who",))
    batch = Batcher(models, wanted).batch(told(16), random.Random(0))
    assert alignment_loss(targets_of(phrasebook, batch, phrasebook.memory(batch))).item() < 1e-4
    empty = phrasebook.places.repeat(16, 1, 1)
    assert alignment_loss(targets_of(phrasebook, batch, empty)).item() == pytest.approx(1.0)
    untold = Batcher(models, wanted).batch(cases(0, 4), random.Random(0))
    with pytest.raises(ConfigError, match="give Question"):
        targets_of(phrasebook, untold, torch.zeros(4, 1, 48))


def test_a_context_beyond_a_window_is_read_in_windows_or_refused(models, tmp_path) -> None:
    """What is too long for the sender is read in windows, none cut; too long for the receiver, it has no full text."""
    text = "It was Mara. " * 200
    states, mask = Reader(models, (0, 1, 2), hyperparameters()).states([text, "It was Mara."])
    assert len(models.sender_tokenizer(text).input_ids) == int(mask[0].sum()) == states.shape[2]
    long = [Case(name, text, (Question("Who?", "Mara"),)) for name in "ab"]
    with pytest.raises(ConfigError, match=r"case 'a' to fit into the receiver's window of 256 tokens, got \d+ for"):
        fit(network(), models, cases, long, hyperparameters(), tmp_path)


def test_recipes_check_their_values() -> None:
    """A recipe names the value that makes no sense."""
    for change, fragment in (
        ({"steps": 0}, "steps to be at least 1, got 0"),
        ({"contexts": 1}, "contexts to be at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate to be positive"),
        ({"naming_steps": 5}, "expected topics for naming_steps"),
        ({"alignment_weight": 1.0}, "expected topics for naming_steps, alignment_steps or alignment_weight"),
        ({"blank_share": 1.0}, "blank_share from 0 to below 1, got 1.0"),
        ({"telling_share": 1.5}, "telling_share from 0 to 1, got 1.5"),
        ({"telling_tokens": 0}, "telling_tokens to be at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=fragment):
            hyperparameters(**change)
