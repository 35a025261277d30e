"""Identity at weight level: what is hashed, what is not, what cannot be, and how a change is noticed in use."""

import copy
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch

from ilcp import Receiver, Sender
from ilcp.codec.folder import ADAPTER
from ilcp.codec.spec import Trained
from ilcp.errors import ConfigError, IdentityError, MissingExtraError, StorageError
from ilcp.identity import ANY, ModelIdentity, require_same
from ilcp.models import probe
from ilcp.models.adapter import adapt, new_adapter
from ilcp.models.fingerprint import Known, identify, weights_digest
from ilcp.models.state import hashed, marks
from ilcp.training.begun import STUDY, same_config
from ilcp.training.config import TrainingConfig
from ilcp.training.selfstudy import SelfStudy
from ilcp_codecs.text import PlainCodec
from tests.families import build, reconfigured
from tests.helpers import make_model, make_tokenizer, noting, sender_of
from tests.prepared import PREPARED


def test_the_digest_is_of_the_weights_and_nothing_else(tmp_path) -> None:
    """Saving and loading keeps the digest; another seed of the same configuration has another."""
    model = make_model(64, seed=1)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert weights_digest(model) == weights_digest(again)
    assert weights_digest(model) != weights_digest(make_model(64, seed=2))


def test_one_flipped_weight_is_another_model() -> None:
    """The smallest change of any tensor changes the digest."""
    model = make_model(64, seed=1)
    before = weights_digest(model)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-4
        after = weights_digest(model)
        assert before != after
        before = after


def test_using_a_tokenizer_does_not_change_its_identity() -> None:
    """Padding and truncation, set by the last call, are no part of what a tokenizer is."""
    model, tokenizer = make_model(300), make_tokenizer(300)
    before = identify(model, tokenizer)
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=3)
    assert before == identify(model, tokenizer)


def test_any_fits_every_model() -> None:
    """A text codec's identity refuses nobody."""
    require_same("receiver", ANY, ModelIdentity(weights="w"))


def test_every_differing_part_is_named() -> None:
    """The error lists each part with what was expected and what came."""
    expected = ModelIdentity("w", "t", "c", "full", "")
    with pytest.raises(IdentityError, match=r"tokenizer \(expected t, got x\); adapters \(expected none, got lora\)"):
        require_same("sender", expected, ModelIdentity("w", "x", "c", "full", "lora"))


def test_a_damaged_identity_record_is_refused() -> None:
    """A config with a field too few is refused with both lists."""
    with pytest.raises(IdentityError, match="expected identity fields"):
        ModelIdentity.from_dict({"weights": "w"})


def test_rows_in_another_order_are_another_model_of_any_size(tmp_path, monkeypatch) -> None:
    """All of a large model from a folder is hashed each time, without a home to keep anything in."""
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = torch.nn.Linear(4096, 4097, bias=False).requires_grad_(False)
    model.weight.copy_(torch.arange(model.weight.numel()).reshape(model.weight.shape) % 7)
    vars(model)["config"] = SimpleNamespace(_name_or_path=str(tmp_path))
    before = weights_digest(model)
    model.weight[:2] = model.weight[:2].flip(0)
    assert before != weights_digest(model)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", lambda: pytest.fail("asked for a home"))
    model.weight[:2] = model.weight[:2].flip(0)
    assert before == weights_digest(model)


def test_what_is_wrong_with_an_adapter_is_said_by_its_error(tmp_path, monkeypatch) -> None:
    """A rank below one, damaged files, and peft that is not installed: an argument, a file, a package."""
    model, codec = make_model(300, seed=1), SimpleNamespace(folder=tmp_path)
    assert adapt(model, codec) is model
    with pytest.raises(ConfigError, match="expected adapter_rank to be at least 1, got 0"):
        new_adapter(model, 0)
    (tmp_path / ADAPTER).mkdir()
    with pytest.raises(StorageError, match="expected the receiver's adapter in"):
        adapt(model, codec)
    monkeypatch.setitem(sys.modules, "peft", None)
    for call in (lambda: new_adapter(model, 2), lambda: adapt(model, codec)):
        with pytest.raises(MissingExtraError, match=r"expected peft for a receiver.*pip install 'ilcp\[train\]'"):
            call()


def test_an_embedding_that_scales_is_another_model(monkeypatch) -> None:
    """Gemma 2 scales where it looks up under transformers 5, not under 4: the same weights, not the same receiver."""
    tokenizer = make_tokenizer(300)
    plain, scaling = (make_model(300, seed=1) for _ in range(2))
    look_up = scaling.get_input_embeddings()
    monkeypatch.setattr(look_up, "forward", lambda ids: 8 * torch.nn.Embedding.forward(look_up, ids))
    assert weights_digest(plain) == weights_digest(scaling)
    with pytest.raises(IdentityError, match="differs in weights"):
        require_same("receiver", identify(plain, tokenizer), identify(scaling, tokenizer))


def test_a_low_rank_adapter_is_named_beside_the_weights_under_it() -> None:
    """Wrapping for LoRA leaves the weights' digest; the adapter's own weights decide the rest, wrapped or bare."""
    tokenizer, model = make_tokenizer(300), make_model(300, seed=1)
    before = identify(model, tokenizer)
    torch.manual_seed(0)
    adapter = new_adapter(model, 2)
    after = identify(adapter, tokenizer)
    assert (before.weights, "") == (after.weights, before.adapters)
    assert after.adapters.startswith("default:")
    assert after == identify(adapter.get_base_model(), tokenizer)
    with torch.no_grad():
        next(value for name, value in adapter.named_parameters() if "lora_B" in name)[0, 0] = 1.0
    assert after.adapters != identify(adapter, tokenizer).adapters


def test_an_adapter_that_is_not_in_effect_does_not_count() -> None:
    """Switched off, or loaded beside the active one, an adapter changes nothing; merged, it is part of the weights."""
    tokenizer, one, two = make_tokenizer(300), PREPARED["peft: LoRA, active"]().model, None
    plain = PREPARED["peft: LoRA, switched off"]()
    assert identify(plain.model.get_base_model(), tokenizer) == identify(plain.model, tokenizer)
    assert identify(plain.model, tokenizer) == identify(one.unload(), tokenizer)
    two = PREPARED["peft: two LoRAs, one active"]().model
    two.set_adapter("default")
    alone = PREPARED["peft: LoRA, active"]().model
    assert identify(alone, tokenizer) == identify(two, tokenizer)
    merged = PREPARED["peft: LoRA, merged"]().model
    assert identify(merged, tokenizer) == identify(alone.merge_and_unload(), tokenizer)


def test_what_is_unusual_of_an_adapter_is_said() -> None:
    """Scaling beside that of ilcp's own adapters, and a merged one that is switched off, which peft takes out again."""
    tokenizer, prepared = make_tokenizer(300), PREPARED["peft: LoRA, active"]()
    assert "default scaled by 4.0 in " in identify(prepared.model, tokenizer).adapters
    prepared.change()
    assert "default scaled by 16.0 in " in identify(prepared.model, tokenizer).adapters
    merged = PREPARED["peft: LoRA, merged"]().model
    merged.base_model.disable_adapter_layers()
    assert identify(merged, tokenizer).adapters.startswith(":switched off, but merged in ")


class Odd(torch.Tensor):
    """A tensor that might hold anything."""


@pytest.mark.parametrize(
    ("weight", "kind"),
    [
        (torch.eye(3).to_sparse(), r"Tensor \(torch.sparse_coo\)"),
        (torch.eye(3).as_subclass(Odd), "Odd"),
        (torch.eye(3, device="meta"), "Tensor"),
    ],
)
def test_weights_that_cannot_be_hashed_are_named(weight: torch.Tensor, kind: str) -> None:
    """A sparse tensor, one of an unknown class and one that was never loaded: refused with their name and kind."""
    module = torch.nn.Module()
    module.register_buffer("strange", weight)
    with pytest.raises(ConfigError, match=f"got .*strange as a {kind}.*cannot be hashed"):
        weights_digest(module)


def test_what_a_module_saves_beside_its_weights_is_hashed() -> None:
    """Extra state and values in a state dict count, whatever they are; an object that may say anything is refused."""
    module = torch.nn.Linear(2, 2)
    module.get_extra_state = lambda: {"scale": 2.0}  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="_extra_state as a object"):
        list(hashed("_extra_state", object()))
    assert list(hashed("a", [1, torch.float16])) != list(hashed("a", [1, torch.float32]))
    assert list(hashed("a", {"b": (1, None)})) == list(hashed("a", {"b": (1, None)}))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.lm_head.weight.mul_(2),
        lambda model: model.lm_head.weight.copy_(model.lm_head.weight.clone()),
        lambda model: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.clone())),
        lambda model: model.half().float(),
        lambda model: model.double().float(),
        lambda model: setattr(model.lm_head.weight, "data", model.lm_head.weight.data.clone()),
        lambda model: model.load_state_dict(model.state_dict()),
    ],
)
def test_whatever_writes_to_a_weight_leaves_a_mark(change: Callable[[Any], Any]) -> None:
    """In place, by replacement, by conversion there and back, by loading; a pass of the model leaves none."""
    model = make_model(64, seed=1).requires_grad_(False)
    before = marks(model)
    model(torch.tensor([[5, 6]]))
    assert before == marks(model)
    change(model)
    assert before != marks(model)


def test_marks_without_a_change_cost_time_only(monkeypatch) -> None:
    """A model that was written to with what it held is hashed once more, and goes on."""
    tokenizer, model, hashings = make_tokenizer(300), make_model(300, seed=1).requires_grad_(False), list[int]()
    known = Known("sender", [identify(model, tokenizer)])
    monkeypatch.setattr("ilcp.models.fingerprint.weights_digest", noting(weights_digest, hashings, lambda model: 1))
    for _ in range(3):
        known.require(model, tokenizer)
    model.lm_head.weight.mul_(1)
    for _ in range(3):
        known.require(model, tokenizer)
    assert 2 == len(hashings)
    known = pickle.loads(pickle.dumps(known))
    known.require(model, tokenizer)
    assert 3 == len(hashings)


def test_inference_tensors_are_looked_at_each_time() -> None:
    """They count no writes: a model that was copied in inference mode is hashed anew, and a change is noticed."""
    with torch.inference_mode():
        model = copy.deepcopy(make_model(300, seed=1))
    known = Known("sender", [identify(model, tokenizer := make_tokenizer(300))])
    known.require(model, tokenizer)
    with torch.inference_mode():
        model.lm_head.weight.add_(1)
    with pytest.raises(IdentityError, match="weights"):
        known.require(model, tokenizer)


CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_theta": 100.0}),
    ("llama", {"rope_theta": 20_000.0}),
    ("llama", {"rms_norm_eps": 0.1}),
    ("llama", {"hidden_act": "gelu"}),
    ("mistral", {"sliding_window": 4}),
    ("gemma3_text", {"query_pre_attn_scalar": 2}),
    ("gpt2", {"activation_function": "relu"}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("bert", {"hidden_act": "silu"}),
]


@pytest.mark.parametrize(("family", "changes"), CONFIGURATIONS)
def test_the_same_weights_under_another_configuration_are_another_model(family, changes) -> None:
    """What decides the function and is no weight is noticed by what the model makes of a sentence."""
    tokenizer, model = make_tokenizer(300), build(family, 300)
    other = reconfigured(model, changes)
    expected, actual = identify(model, tokenizer), identify(other, tokenizer)
    assert expected == actual
    assert expected.digest() == actual.digest()
    with pytest.raises(IdentityError, match=r"states, which are .*% apart .* its configuration is another"):
        require_same("sender", expected, actual)
    require_same("sender", expected, identify(reconfigured(model, {}), tokenizer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rounding_of_half_precision_is_no_other_configuration(dtype) -> None:
    """A model in either half precision is the same one, under another base of its positions it is not."""
    tokenizer, model = make_tokenizer(300), build("llama", 300)
    expected = replace(identify(model, tokenizer), weights="", dtype="half")
    half = replace(identify(copy.deepcopy(model).to(dtype), tokenizer), weights="")
    require_same("receiver", expected, half)
    other = reconfigured(model, {"rope_theta": 100.0}).to(dtype)
    with pytest.raises(IdentityError, match="states"):
        require_same("receiver", expected, replace(identify(other, tokenizer), weights=""))


def test_an_identity_of_before_states_were_kept_is_still_known() -> None:
    """A record without them is read and compared by the rest; damaged ones are refused, whatever they hold."""
    identity = identify(make_model(300, seed=1), make_tokenizer(300))
    assert identity.states
    before = ModelIdentity.from_dict(identity.exact)
    assert before.digest() == identity.digest()
    require_same("sender", before, identity)
    require_same("sender", identity, before)
    for states in ("1 2 x", "nan 1", "inf", " ".join(["1e308"] * 32), "1 " * 1000):
        with pytest.raises(IdentityError, match="expected states as numbers with a space between"):
            ModelIdentity.from_dict(identity.exact | {"states": states})
    require_same("sender", identity, ModelIdentity.from_dict(identity.exact | {"states": "1 2"}))  # of another version


@pytest.mark.parametrize("name", ["dynamic int8", "plain"])
def test_states_are_kept_only_where_the_same_model_makes_them_again(name) -> None:
    """What is rounded between the layers of a quantised model is a step apart on another machine."""
    model = build("llama", 300)
    if name != "plain":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    assert bool(identify(model, make_tokenizer(300)).states) == (name == "plain")


def test_a_model_that_cannot_read_the_sentence_has_no_states(monkeypatch) -> None:
    """Its identity is made of the rest, whatever its forward raises: what cannot be used is refused elsewhere."""
    model, tokenizer = make_model(300, seed=1), make_tokenizer(300)
    known = identify(model, tokenizer)
    monkeypatch.setattr(probe, "continuation", lambda *_: ((), ()))
    assert ("", known) == ((found := identify(model, tokenizer)).states, found)
    monkeypatch.undo()
    monkeypatch.setattr(probe, "read_ids", lambda *_: (torch.full((1, 48, 32), 1e12), 1))
    assert ("", known) == ((found := identify(model, tokenizer)).states, found)
    monkeypatch.undo()
    monkeypatch.setattr(model.model, "forward", lambda **_: SimpleNamespace(moe=None))
    assert ("", known) == ((found := identify(model, tokenizer)).states, found)


def test_a_run_does_not_go_on_with_the_same_weights_under_another_configuration(tmp_path) -> None:
    """States that were read under the one are none of the other's; rounding is no difference, nor a run of before."""
    config = TrainingConfig(sender="a", receiver="b", self_study=SelfStudy(), out=tmp_path / "codec")
    model, tokenizer = build("llama", 300), make_tokenizer(300)
    one, other = (identify(each, tokenizer) for each in (model, reconfigured(model, {"rope_theta": 100.0})))
    (config.work / "facts").mkdir(parents=True)
    (config.work / STUDY).write_text("")
    same_config(config, (one, one), torch.device("cpu"))
    numbers = [float(number) for number in one.states.split()]
    nearly = replace(one, states=" ".join(f"{number * 1.001:.5g}" for number in numbers))
    for same in (one, nearly, replace(one, states="")):
        same_config(config, (same, one), torch.device("cpu"))
    same_config(config, (one, one), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"got a difference in sender identity\.states"):
        same_config(config, (other, one), torch.device("cpu"))


def test_autocast_does_not_change_an_identity() -> None:
    """The states are those of the model's own precision, whatever the caller runs it in."""
    model, tokenizer = make_model(300, seed=1), make_tokenizer(300)
    with torch.autocast("cpu", torch.bfloat16):
        inside = identify(model, tokenizer)
    assert inside.states == identify(model, tokenizer).states


def test_a_sender_of_a_learned_prompt_is_refused_before_its_first_use() -> None:
    """No pass of the layers alone contains virtual tokens."""
    model = peft.get_peft_model(make_model(300), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ConfigError, match="learned prompt is not part of the model"):
        sender_of(model, make_tokenizer(300))
    assert Sender(model, make_tokenizer(300), PlainCodec()).encode("Mara")  # a codec of text runs no model


def test_a_receiver_notices_another_model_at_its_next_use() -> None:
    """A weight, a chat template and a token that came after the receiver was made: every call that runs it refuses."""

    def receiver() -> Receiver:
        model, tokenizer = make_model(320, seed=1).requires_grad_(False), make_tokenizer(300)
        codec = PlainCodec()
        codec.trained = Trained(ANY, identify(model, tokenizer), codec.trained.weights)
        return Receiver(model, tokenizer, codec, allow_unmeasured=True)

    changes: list[Callable[[Receiver], Any]] = [
        lambda receiver: receiver.model.model.norm.weight.add_(1),
        lambda receiver: setattr(receiver.tokenizer, "chat_template", "{{ messages[0].content }}"),
        lambda receiver: receiver.tokenizer.add_tokens(["<new>"]),
        lambda receiver: setattr(receiver, "model", make_model(320, seed=2)),
    ]
    calls: list[Callable[[Receiver], Any]] = [
        lambda receiver: receiver.generate(None, "Who?", max_new_tokens=1),
        lambda receiver: receiver.score([(None, "Who?", "Mara")]),
        lambda receiver: receiver.answers([(None, "Who?")], max_new_tokens=1),
        lambda receiver: receiver.prefill(None, "Who?"),
    ]
    for change in changes:
        changed = receiver()
        calls[0](changed)
        change(changed)
        for call in calls:
            with pytest.raises(IdentityError, match="not trained for this receiver"):
                call(changed)
