"""Checks that a model can send, or receive.

A receiver takes embeddings in place of tokens and attends backwards only. The families of ``TESTED`` are checked by the
tests (SUPPORT.md has the outcomes) and cost nothing here. Any other decoder has to pass a quick check of its
own: a forward pass of a few tokens, by their ids and by their embeddings, has to give the same logits. What cannot work
is refused by name. A model wrapped by peft counts as what it wraps.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ilcp.errors import ConfigError
from ilcp.models.adapter import unwrapped, vocabulary_size
from ilcp.models.reading import capture_batch
from ilcp.nn.inference import evaluating

__all__ = ["TESTED", "forward_takes", "require_receiver", "require_sender", "require_tokenizer"]

TESTED = frozenset(
    ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2", "gpt_neox")
)  # by config.model_type
ENCODERS = frozenset(("bert",))  # tested as senders
PROBE_TOKENS = 6
SLACK = 1e-4  # of the largest value: rounding stays below it, a scale or an input left out far above
SLACK_ULPS = 4.0  # the same for half precision, in units of its last place at 1


def forward_takes(model: Any, name: str) -> bool:
    """Says whether the model's ``forward`` has an argument of that name."""
    return name in signature(unwrapped(model).forward).parameters


def require_tokenizer(tokenizer: Any, side: str) -> None:
    """Refuses a missing tokenizer.

    Raises:
        ConfigError: the tokenizer is None.
    """
    if tokenizer is None:
        raise ConfigError(
            f"expected the {side}'s tokenizer, got None: load it from the model's own folder "
            "(AutoTokenizer.from_pretrained)"
        )


def require_receiver(model: Any) -> None:
    """Refuses a model that cannot attend to memory vectors in place of tokens.

    Raises:
        ConfigError: the text names the model, says what it lacks and what to do.
    """
    inner = unwrapped(model)
    name, model_type = type(inner).__name__, _model_type(inner)
    _refuse_two_halves(inner, "receiver", "take a decoder (AutoModelForCausalLM)")
    _refuse_prompt_learning(model)
    _refuse_offloaded(inner, "receiver")
    if getattr(inner, "_is_stateful", False):
        raise ConfigError(
            f"expected a receiver that attends to its prompt, got {name}: {model_type} is a recurrent (state-space) "
            "model, whose state cannot hold left padding or a copied cache; take a decoder with attention throughout"
        )
    if not (hasattr(inner, "can_generate") and inner.can_generate()):
        raise ConfigError(
            f"expected a causal language model as receiver, got {name}, which generates nothing: an encoder can be a "
            "sender only; load a decoder with AutoModelForCausalLM"
        )
    if not forward_takes(inner, "inputs_embeds"):
        raise ConfigError(
            f"expected a receiver whose forward takes inputs_embeds, got {name} without it: "
            "memory vectors have no way in; take another family (SUPPORT.md lists the tested ones)"
        )
    if model_type not in TESTED:
        _check_receiver(inner)


def require_sender(model: Any) -> None:
    """Refuses a model whose hidden states cannot be captured.

    Raises:
        ConfigError: the text names the model, says what it lacks and what to do.
    """
    if not hasattr(model, "get_input_embeddings"):
        raise ConfigError(
            f"expected a loaded transformers model as sender, got {type(model).__name__}: load it with "
            "AutoModelForCausalLM.from_pretrained(...)"
        )
    inner = unwrapped(model)
    _refuse_two_halves(inner, "sender", "pass its encoder (model.get_encoder()) or take a decoder")
    _refuse_offloaded(inner, "sender")
    if _model_type(inner) not in TESTED | ENCODERS:
        _check_sender(inner)


def _model_type(model: Any) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", "")) or type(model).__name__


def _refuse_two_halves(model: Any, side: str, way_out: str) -> None:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ConfigError(
            f"expected a model of one half as {side}, got {type(model).__name__}: {_model_type(model)} is an "
            f"encoder-decoder, whose prompt and answer live in different halves; {way_out}"
        )


def _refuse_offloaded(model: Any, side: str) -> None:
    away = next((name for name, weight in model.named_parameters() if weight.is_meta), None)
    if away is not None:
        raise ConfigError(
            f"expected a {side} whose weights are in memory, got {type(model).__name__} with {away} on the meta "
            "device: it is offloaded or was never loaded; load it onto one device, without device_map='auto', in a "
            "smaller dtype if need be"
        )


def _refuse_prompt_learning(model: Any) -> None:
    configs = getattr(model, "peft_config", None)
    for config in configs.values() if isinstance(configs, dict) else ():
        if getattr(config, "is_prompt_learning", False):
            raise ConfigError(
                f"expected a receiver whose prompt holds what it is given, got {type(model).__name__} with "
                f"{type(config).__name__}: it puts virtual tokens of its own before the prompt; take a LoRA, or the "
                "model without it"
            )


@torch.no_grad()
def _check_receiver(model: Any) -> None:
    """Refuses a model that gives other logits for embeddings than for their tokens, or lets a token see a later one."""
    name = f"{type(model).__name__} (model type {_model_type(model)}, which ilcp's tests do not cover)"
    ids = _probe_ids(model)
    try:
        by_ids = _evaluated(model, input_ids=ids).logits
        by_embeddings = _evaluated(model, inputs_embeds=model.get_input_embeddings()(ids)).logits
        changed = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
        otherwise = _evaluated(model, input_ids=changed).logits
    except Exception as error:  # any model may be passed here, and each fails in its own way
        raise ConfigError(
            f"expected a receiver that takes a prompt as embeddings, got {name}, whose check failed: "
            f"{type(error).__name__}: {error}; take a tested family (SUPPORT.md)"
        ) from error
    slack = max(SLACK, SLACK_ULPS * torch.finfo(by_ids.dtype).eps)
    apart = _apart(by_ids, by_embeddings)
    if not apart <= slack:
        raise ConfigError(
            f"expected the same logits from tokens and from their embeddings, got {name}, where they differ by "
            f"{apart:.2g} of the largest: it reads more of a token than its embedding; take a family of SUPPORT.md"
        )
    apart = _apart(by_ids[:, :-1], otherwise[:, :-1])
    if not apart <= slack:
        raise ConfigError(
            f"expected a receiver that reads forwards only, got {name}, where a later token changes earlier logits by "
            f"{apart:.2g} of the largest: an encoder can be a sender only; load a decoder with AutoModelForCausalLM"
        )


@torch.no_grad()
def _check_sender(model: Any) -> None:
    """Refuses a model that has not one state per token and layer, or whose hooks see other states than it reports."""
    name = f"{type(model).__name__} (model type {_model_type(model)}, which ilcp's tests do not cover)"
    ids = _probe_ids(model)
    try:
        outputs = _evaluated(model, input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        shapes = {tuple(states.shape[:2]) for states in outputs.hidden_states}
    except Exception as error:  # any model may be passed here, and each fails in its own way
        raise ConfigError(
            f"expected a sender whose forward gives hidden states, got {name}, whose check failed: "
            f"{type(error).__name__}: {error}; take a tested family (SUPPORT.md)"
        ) from error
    if shapes != {tuple(ids.shape)}:
        raise ConfigError(
            f"expected hidden states of shape {tuple(ids.shape)} for {PROBE_TOKENS} tokens, got {sorted(shapes)} from "
            f"{name}: there is not one state per token; take a tested family (SUPPORT.md)"
        )
    try:
        captured = capture_batch(model, ids, torch.ones_like(ids), range(len(outputs.hidden_states)))
        apart = [_apart(a, b.to(a.device)) for a, b in zip(outputs.hidden_states, captured.unbind(1), strict=True)]
    except Exception as error:
        raise ConfigError(
            f"expected a sender whose layers can be captured one by one, got {name}: {error}; "
            "take a tested family (SUPPORT.md)"
        ) from error
    slack = max(SLACK, SLACK_ULPS * torch.finfo(captured.dtype).eps)
    wrong = next((layer for layer, difference in enumerate(apart) if not difference <= slack), None)
    if wrong is not None:
        raise ConfigError(
            f"expected to capture the hidden states that the model reports, got {name}, where those of layer {wrong} "
            f"differ by {apart[wrong]:.2g} of the largest; take a tested family (SUPPORT.md)"
        )


def _probe_ids(model: Any) -> Tensor:
    """Returns a few ids from all over the vocabulary, ``"1 tokens"``."""
    vocabulary = vocabulary_size(model)
    ids: Sequence[int] = [vocabulary * (index + 1) // (PROBE_TOKENS + 2) for index in range(PROBE_TOKENS)]
    return torch.tensor([ids], device=model.device)


def _evaluated(model: Any, **inputs: Any) -> Any:
    """Runs one pass in evaluation mode, without a cache, and returns its outputs."""
    with evaluating(model):
        return model(**inputs, use_cache=False) if forward_takes(model, "use_cache") else model(**inputs)


def _apart(a: Tensor, b: Tensor) -> float:
    """Returns the largest difference as a share of the largest value of ``a``; NaN where either holds a NaN."""
    return float((a.float() - b.float()).abs().max() / a.float().abs().max().clamp(min=1e-12))
