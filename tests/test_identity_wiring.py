"""What decides a loaded model's function and is no weight: whatever changes it after the check is refused, and whatever
leaves it as it was goes on."""

import copy
import gc
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ilcp import Receiver, Sender
from ilcp.codec.context import Context
from ilcp.codec.spec import Trained
from ilcp.errors import IdentityError
from ilcp.identity import ANY
from ilcp.models import fingerprint
from ilcp.models.fingerprint import Known, identify
from ilcp.models.kv import read_kv
from ilcp.models.rope import ropes_of
from ilcp.models.wiring import Wiring
from ilcp_codecs.text import PlainCodec
from ilcp_codecs.trace import TraceCodec, Writer
from tests import test_kv, test_kv_align
from tests.families import build
from tests.helpers import make_tokenizer, noting, sender_of

Undo = Callable[[], Any] | None
TOKENIZER = make_tokenizer(300)


class Steering:
    """A hook whose strength is a number that it holds."""

    def __init__(self, strength: float):
        self.strength = strength

    def __call__(self, _: Any, __: Any, output: Any) -> Any:
        return (output[0] + self.strength, *output[1:]) if isinstance(output, tuple) else output + self.strength


def _layer(model: Any) -> Any:
    return model.model.layers[1]


def _patch(owner: Any, name: str, other: Callable[[Any], Any], *, put_back: bool = False) -> Undo:
    before = getattr(owner, name)
    setattr(owner, name, other(before))
    return (lambda: setattr(owner, name, before)) if put_back else None


def _turned(forward: Any) -> Any:
    """A layer whose positions alone turn the other way."""
    return lambda *args, position_embeddings, **named: forward(
        *args, position_embeddings=(position_embeddings[0], -position_embeddings[1]), **named
    )


def _half(attention: Any) -> Any:
    return lambda *args, **named: (attention(*args, **named)[0] / 2, None)


def _registered(model: Any) -> Undo:
    kinds = type(ALL_ATTENTION_FUNCTIONS)._global_mapping
    before = kinds["sdpa"]
    kinds["sdpa"] = _half(before)
    return lambda: kinds.update(sdpa=before)


def _everywhere(model: Any) -> Undo:
    twice = register_module_forward_hook(lambda module, _, output: 2 * output if type(module) is nn.Linear else None)
    return twice.remove


def _swapped(model: Any) -> None:
    model.model.layers._modules.update({"0": model.model.layers[1], "1": model.model.layers[0]})


CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "frequencies written": ("llama", lambda m: m.model.rotary_emb.inv_freq.mul_(0.5)),
    "frequencies written unseen": ("llama", lambda m: m.model.rotary_emb.inv_freq.data.mul_(0.5)),
    "frequencies replaced": ("llama", lambda m: setattr(m.model.rotary_emb, "inv_freq", torch.rand(4))),
    "scale of positions": ("llama", lambda m: setattr(m.model.rotary_emb, "attention_scaling", 1.5)),
    "positions of one layer": ("llama", lambda m: _patch(_layer(m).self_attn, "forward", _turned)),
    "hook that steers": ("llama", lambda m: _layer(m).register_forward_hook(Steering(1.0))),
    "hook before a layer": (
        "llama",
        lambda m: _layer(m).register_forward_pre_hook(lambda _, args: (2 * args[0].flip(1), *args[1:])),
    ),
    "hook behind the last layer": ("llama", lambda m: m.lm_head.register_forward_hook(lambda *given: 2 * given[2])),
    "hook everywhere": ("llama", _everywhere),
    "forward of an instance": ("llama", lambda m: _patch(_layer(m).mlp, "forward", lambda old: lambda x: 2 * old(x))),
    "forward of a class": (
        "llama",
        lambda m: _patch(type(_layer(m).mlp), "forward", lambda old: lambda own, x: 2 * old(own, x), put_back=True),
    ),
    "function of a file": (
        "llama",
        lambda m: _patch(
            sys.modules[type(m).__module__],
            "apply_rotary_pos_emb",
            lambda _: lambda q, k, *_, **__: (q, k),
            put_back=True,
        ),
    ),
    "kind of attention registered anew": ("llama", _registered),
    "submodule": ("llama", lambda m: setattr(_layer(m).mlp, "act_fn", nn.ReLU())),
    "order of layers": ("llama", _swapped),
    "scale of attention": ("llama", lambda m: setattr(_layer(m).self_attn, "scaling", 2.0)),
    "epsilon": ("llama", lambda m: setattr(m.model.norm, "variance_epsilon", 1.0)),
    "limit of logits inside": ("gemma2", lambda m: setattr(_layer(m).self_attn, "attn_logit_softcapping", 0.5)),
    "limit of logits behind": ("gemma2", lambda m: setattr(m.config, "final_logit_softcapping", 0.5)),
    "window": ("mistral", lambda m: setattr(m.config, "sliding_window", 4)),
    "all weights unseen": ("llama", lambda m: [weight.data.mul_(1.1) for weight in m.parameters()]),
}
SAME: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "eager attention": ("llama", lambda m: m.set_attn_implementation("eager")),
    "eager attention by the configuration": ("mistral", lambda m: setattr(m.config, "_attn_implementation", "eager")),
    "hook that listens": ("llama", lambda m: _layer(m).register_forward_hook(lambda *_: None)),
    "module like it": ("llama", lambda m: setattr(m.model, "rotary_emb", copy.deepcopy(m.model.rotary_emb))),
    "dropout": ("llama", lambda m: setattr(_layer(m).self_attn, "attention_dropout", 0.5)),
    "training": ("llama", lambda m: m.train()),
    "name": ("llama", lambda m: setattr(m.config, "_name_or_path", "elsewhere")),
    "configuration like it": ("llama", lambda m: setattr(_layer(m).self_attn, "config", copy.deepcopy(m.config))),
}


def known(family: str) -> tuple[Any, Known]:
    """A model, and its identity as it was checked once."""
    model = build(family, 300).requires_grad_(False)
    found = Known("receiver", [identify(model, TOKENIZER)])
    found.require(model, TOKENIZER)
    return model, found


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_function_after_the_check_is_refused(name: str) -> None:
    """Whatever way it comes about; and the model as it was before is not."""
    family, change = CHANGES[name]
    model, found = known(family)
    undo = change(model)
    try:
        with pytest.raises(IdentityError):
            found.require(model, TOKENIZER)
    finally:
        if callable(undo) and not isinstance(undo, nn.Module):
            undo()
    found.require(build(family, 300), TOKENIZER)


@pytest.mark.parametrize("name", SAME)
def test_what_leaves_the_function_as_it_is_goes_on(name: str) -> None:
    """What changes nothing beyond rounding is looked at once, and not again."""
    family, change = SAME[name]
    model, found = known(family)
    change(model)
    found.require(model, TOKENIZER)
    assert found._found is not None
    assert found._found.unchanged(model, TOKENIZER)


def test_a_hook_is_known_with_what_it_holds() -> None:
    """One that was there, and steered nothing, may not begin to; what a recorder collects is no change."""
    model, found = known("llama")
    hook, seen = Steering(0.0), list[Any]()
    _layer(model).register_forward_hook(hook)
    _layer(model).register_forward_hook(lambda *given: seen.append(given))
    found.require(model, TOKENIZER)
    collected = len(seen)
    model(torch.tensor([[5, 6]]))
    found.require(model, TOKENIZER)
    assert collected + 1 == len(seen)
    hook.strength = 1.0
    with pytest.raises(IdentityError, match="a hook or another method"):
        found.require(model, TOKENIZER)


def test_a_quantised_model_is_compared_with_itself() -> None:
    """No states of it are kept in a codec; here it rounds alike, so its positions may not change either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(build("llama", 300), {nn.Linear}, torch.qint8)
    found = Known("receiver", [identify(model, TOKENIZER)])
    for _ in range(2):
        found.require(model, TOKENIZER)
    _layer(model).register_forward_hook(lambda *_: None)
    found.require(model, TOKENIZER)
    model.model.rotary_emb.inv_freq.mul_(0.5)
    with pytest.raises(IdentityError, match="states"):
        found.require(model, TOKENIZER)


def test_a_model_that_no_longer_reads_is_refused() -> None:
    """What was put into it raises: the sentence has no states any more."""
    model, found = known("llama")
    _patch(model.model, "forward", lambda _: lambda **_: int("no number"))
    with pytest.raises(IdentityError, match="no longer reads a sentence to an end"):
        found.require(model, TOKENIZER)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_plain_use_is_never_looked_at_again(monkeypatch, family: str) -> None:
    """No way to answer leaves a mark, nor does training mode: a sentence is read when the receiver is made."""
    read: list[int] = []
    monkeypatch.setattr(fingerprint, "heard", noting(fingerprint.heard, read, lambda *_: 1))
    model, codec = build(family, 300), PlainCodec()
    codec.trained = Trained(ANY, identify(model, TOKENIZER), codec.trained.weights)
    receiver = Receiver(model, TOKENIZER, codec, allow_unmeasured=True)
    for _ in range(2):
        receiver.generate(None, "Who?", context="Mara", max_new_tokens=2)
        receiver.generate(None, "Who?", max_new_tokens=2, do_sample=True)
        receiver.score([(None, "Who?", "Mara")])
        receiver.answers([(None, "Who?")], max_new_tokens=2, num_beams=2)
        model.train()
        assert receiver._known._found is not None
        assert receiver._known._found.unchanged(model, TOKENIZER)
    assert [1] == read


def test_marks_keep_no_weight_alive() -> None:
    """What a model held is gone when the model is."""
    model = build("llama", 300)
    marks, weight = Wiring(model), StorageWeakRef(model.lm_head.weight.untyped_storage())
    assert marks.unchanged(model)
    del model
    gc.collect()
    assert weight.expired()


def test_a_captures_own_hooks_are_no_change_and_its_calls_are_looked_at() -> None:
    """An open capture leaves the model as it was; a call inside it of a changed one is refused, if it is put back."""
    sender = sender_of(build("llama", 300).requires_grad_(False), TOKENIZER)
    row = torch.tensor([[5, 6, 7]])
    before = Wiring(sender.model)
    with sender.capture() as capture:
        assert before == Wiring(sender.model)
        sender.model.generate(row, max_new_tokens=2)
    assert sender.encode(capture)
    for call in (sender.model, lambda ids: sender.model.generate(ids, max_new_tokens=2)):
        with sender.capture():
            hook = _layer(sender.model).register_forward_hook(Steering(1.0))
            with pytest.raises(IdentityError):
                call(row)
            hook.remove()
        assert sender.read("Mara").states is not None


def test_every_door_of_a_sender_asks() -> None:
    """A context, a text, a batch, and a capture: none goes through a sender whose model has changed."""
    sender = sender_of(build("llama", 300), TOKENIZER)
    context = sender.read("Mara")
    _layer(sender.model).self_attn.scaling = 2.0
    doors: list[Callable[[Sender], Any]] = [
        lambda each: each.encode("Mara"),
        lambda each: each.encode(context),
        lambda each: each.read(Context(text="Mara", states=context.states)),
        lambda each: each.encode_batch(["Mara"]),
        lambda each: each.capture(),
    ]
    for door in doors:
        with pytest.raises(IdentityError):
            door(sender)


def test_a_codecs_own_weights_are_looked_at_again() -> None:
    """Written to or replaced in memory they are refused by name, at either end; moved there and back they are not."""
    sender = sender_of(build("llama", 300), TOKENIZER)
    codec: Any = sender.codec
    context, payload = sender.read("Mara"), codec.encode(sender.read("Mara"))
    codec.network.double().float()
    assert payload == codec.encode(context)
    for change in (lambda weight: weight.add_(0.1), lambda weight: weight.data.add_(0.1)):
        other = copy.deepcopy(codec)
        other.decode(payload)
        for weight in other.network.parameters():
            change(weight)
        for call in (lambda one: one.encode(context), lambda one: one.decode(payload)):
            with pytest.raises(IdentityError, match="codec's own weights were changed in memory"):
                call(other)
    with torch.inference_mode():  # whose tensors count no writes
        other = copy.deepcopy(codec)
        other = type(codec)(other.network, codec.trained)
        assert payload == other.encode(context)
        next(other.network.parameters()).add_(0.1)
    with pytest.raises(IdentityError, match="codec's own weights were changed in memory"):
        other.encode(context)
    assert payload == codec.encode(context)


@pytest.mark.parametrize("made", [lambda: test_kv.fitted(), lambda: test_kv_align.fitted().codec()])
@pytest.mark.parametrize("change", ["in place", "another"])
def test_a_cache_codecs_own_tensors_are_looked_at_again(made: Callable[[], Any], change: str) -> None:
    """A basis or a map that is written to, or replaced: the codec no longer encodes."""
    codec, model = made(), build("llama", len(test_kv.TOKENIZER))
    context = Context(kv=read_kv(model, test_kv.TOKENIZER(test_kv.TEXT).input_ids, 0, ropes_of(model)))
    assert codec.encode(context)
    name = next(iter(codec.tensors))
    if change == "another":
        codec.tensors[name] = codec.tensors[name] + 1
    else:
        codec.tensors[name].add_(1)
    with pytest.raises(IdentityError, match="codec's own weights were changed in memory"):
        codec.encode(context)


def test_a_writer_asks_whenever_it_writes_or_says() -> None:
    """One whose model has changed does neither; a codec of traces lets no model write that computes something else."""
    model, text = build("llama", 300), "Mara has a lease."
    codec = TraceCodec.of(model, TOKENIZER)
    codec.writing(model, TOKENIZER)
    writer = Writer(model, TOKENIZER, role="clerk")
    _layer(model).self_attn.scaling = 2.0
    for call in (writer.write, lambda told: writer.say(told, tokens=2)):
        with pytest.raises(IdentityError, match="not trained for this writer"):
            call(text)
    with pytest.raises(IdentityError, match="not trained for this writer"):
        codec.writing(model, TOKENIZER)
