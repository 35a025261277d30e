"""Identifies a loaded model by digests of weights, tokenizer, chat template, dtype class and adapters, and by what it
makes of a sentence (``ilcp.models.probe``).

The weights are all state that the modules save (``ilcp.models.state``). Of adapters count those that are in effect: one
that is switched off or merged leaves a model that is known by the weights it computes with. What else decides the
function (``ilcp.models.wiring``) is no part of an identity: ``Known`` compares what the model makes of a sentence.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ilcp.errors import ConfigError, IdentityError
from ilcp.identity import ANY, HERE, ModelIdentity, digest, digest_all, require_same
from ilcp.models.adapter import (
    LOW_RANK,
    SCALING,
    Tuned,
    bare_name,
    innermost,
    tuned_layers,
    unwrapped,
    vocabulary_size,
)
from ilcp.models.probe import heard, sentence_states
from ilcp.models.state import PLAIN, Samples, hashed, marks, saved_state
from ilcp.models.wiring import Wiring

__all__ = ["Known", "identify", "weights_digest"]

SCALED = b"embeddings are scaled where they are looked up"
DTYPE_CLASSES = {"float32": "full", "float64": "full", "bfloat16": "half", "float16": "half"}


def identify(model: Any, tokenizer: Any) -> ModelIdentity:
    """Returns the identity of a model and its tokenizer, as they are in memory now.

    Raises:
        ConfigError: the tokenizer is None, or has more tokens than the model has embeddings; or the model holds weights
            that cannot be hashed, which the text names.
    """
    _require_fitting(model, tokenizer)
    dtype = str(model.dtype).removeprefix("torch.")
    weights = weights_digest(model)
    return ModelIdentity(
        weights=(digest(weights, SCALED) if _embeds_scaled(model) else weights).hex(),
        tokenizer=_tokenizer_digest(tokenizer).hex(),
        chat_template=digest(str(getattr(tokenizer, "chat_template", None) or "").encode()).hex(),
        dtype=DTYPE_CLASSES.get(dtype, dtype),
        adapters=_adapters(model),
        states=sentence_states(model, tokenizer),
    )


def weights_digest(model: nn.Module) -> bytes:
    """Returns the digest, 16 bytes, of all that the model's modules save, by name. Tied weights count once.

    A low-rank adapter is left out: the weights below it are those of the model without it.

    Raises:
        ConfigError: there is something that cannot be hashed; the text names it.
    """
    state = {name: value for name, value in saved_state(model).items() if LOW_RANK not in name}
    return digest_all(part for name in sorted(state) for part in hashed(name, state[name]))


class _Found(NamedTuple):
    """A model as it was when it was last found to be the one that is expected."""

    saved: Any
    tokenizer: Any
    wiring: Wiring
    samples: Samples
    identity: ModelIdentity
    heard: tuple[str, str]

    def unchanged(self, model: Any, tokenizer: Any) -> bool:
        return self.tokenizer == _tokenizer_marks(tokenizer) and self.wiring.unchanged(model) and self.samples.same()


class Known:
    """The identities that a model has to have wherever it is used, and the marks of the one that was last found so.

    Args:
        side: "sender" or "receiver", for people.
        expected: as the codecs hold it.
    """

    def __init__(self, side: str, expected: Sequence[ModelIdentity]):
        self._side, self._expected = side, tuple(each for each in expected if each != ANY)
        self._fits = False
        self._found: _Found | None = None

    def require(self, model: Any, tokenizer: Any) -> None:
        """Refuses another model, or one that has become another.

        It reads no weight but for a few numbers of one, unless something was written to since, an adapter was switched,
        merged or scaled, or the tokenizer has changed. Where the wiring has (``ilcp.models.wiring``), a sentence is
        read, and compared with what the model made of it at first.

        Raises:
            IdentityError: the text names the part that differs.
            ConfigError: as ``identify``.
        """
        if not self._expected:
            if not self._fits:
                _require_fitting(model, tokenizer)
                self._fits = True
            return
        before = self._found
        if before is None or not before.unchanged(model, tokenizer):
            self._found = self._looked_at(model, tokenizer, before)

    def _looked_at(self, model: Any, tokenizer: Any, before: _Found | None) -> _Found:
        saved, samples, wiring = (
            (marks(model), tuned_layers(model)),
            Samples(unwrapped(model).parameters()),
            Wiring(model),
        )
        now = _tokenizer_marks(tokenizer)
        same = before is not None and (saved, now) == (before.saved, before.tokenizer) and before.samples == samples
        if before is not None and same and wiring == before.wiring:
            return before._replace(wiring=wiring)
        identity = before.identity if before is not None and same else identify(model, tokenizer)
        for expected in self._expected:
            require_same(self._side, expected, identity)
        reads = heard(model, tokenizer)
        for earlier, later in zip(before.heard if before is not None else reads, reads, strict=True):
            require_same(self._side, replace(identity, states=earlier), replace(identity, states=later), HERE)
            if earlier and not later:
                raise IdentityError(
                    f"expected the {self._side} that was checked, got one that no longer reads a sentence to an end, "
                    "though its weights are the same: take out what was put into it since"
                )
        return _Found(saved, now, wiring, samples, identity, reads if before is None else before.heard)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_found": None}  # marks are of tensors here: a copy is looked at anew


def _require_fitting(model: Any, tokenizer: Any) -> None:
    if not hasattr(tokenizer, "get_vocab"):
        got = "None" if tokenizer is None else type(tokenizer).__name__
        raise ConfigError(f"expected the model's tokenizer, got {got}: load it from the model's folder")
    vocabulary = vocabulary_size(model)
    if len(tokenizer) > vocabulary:
        raise ConfigError(
            f"expected a tokenizer of at most {vocabulary} tokens (the model's embeddings), got {len(tokenizer)}: "
            "this tokenizer does not belong to this model; load both from the same folder"
        )


def _embeds_scaled(model: Any) -> bool:
    """Says whether the embedding module does more than look up a row.

    Gemma 2 scales there under transformers 5, and behind it under 4.57: the same weights, another embedding space.
    """
    module = innermost(model.get_input_embeddings())
    weight: Any = getattr(module, "weight", None)
    if type(weight) not in PLAIN:  # packed: no row to look at
        return False
    with torch.no_grad():
        vector = module(torch.zeros(1, dtype=torch.long, device=weight.device))[0]
    return not torch.equal(vector, weight[0])


def _adapters(model: Any) -> str:
    """Returns the names of the adapters in effect, the digest of their low-rank weights, and what is unusual of them.

    Empty without any. The weights of another kind of adapter count among the model's.
    """
    layers = tuned_layers(model)
    low_rank = {name: value for name, value in unwrapped(model).named_parameters() if LOW_RANK in name}
    added = {name: value for name, value in low_rank.items() if _adapter_of(name) in layers[_layer_of(name)].in_effect}
    names = {_adapter_of(name) for name in added}
    if not low_rank:
        active = {name for layer in layers.values() for name in layer.active}
        names = active or set(getattr(model, "peft_config", None) or ())
    parts = [",".join(sorted(names))]
    if added:
        parts.append(digest_all(part for name in sorted(added) for part in hashed(name, added[name])).hex())
    lora = set(map(_layer_of, low_rank))
    unusual = {name: said for name, layer in layers.items() if (said := _unusual(layer, name in lora))}
    if unusual:
        where = digest(*(f"{name} {said}".encode() for name, said in sorted(unusual.items())))
        parts.append(f"{', '.join(sorted(set(unusual.values())))} in {where.hex()}")
    return ":".join(parts)


def _layer_of(name: str) -> str:
    return bare_name(name.split(LOW_RANK)[0])


def _adapter_of(name: str) -> str:
    return name.split(LOW_RANK)[1].split(".")[1]  # lora_A.default.weight


def _unusual(layer: Tuned, low_rank: bool) -> str:
    """Returns what a layer does otherwise than with all its adapters active and scaled by ``SCALING``, but for what
    shows in the weights that count."""
    counts = layer.in_effect if low_rank else layer.adapters
    said = [f"{name} scaled by {factor}" for name, factor in layer.scaling if factor != SCALING and name in counts]
    if low_rank:
        said += ["switched off, but merged"] if layer.disabled and layer.merged else []
    elif (layer.active, layer.disabled, layer.merged) != (layer.adapters, False, ()):
        active = "none" if layer.disabled else "+".join(layer.active)
        said += [f"{active} active of {'+'.join(layer.adapters)}, merged {'+'.join(layer.merged) or 'none'}"]
    return " and ".join(said)


def _tokenizer_digest(tokenizer: Any) -> bytes:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    record = json.loads(backend.to_str())
    for state in ("padding", "truncation"):  # set by the last call, not part of what the tokenizer is
        record.pop(state, None)
    return digest(json.dumps(record, sort_keys=True).encode())


def _tokenizer_marks(tokenizer: Any) -> tuple[Any, ...]:
    """Returns what differs once the tokenizer was changed: the vocabulary, which is large, is only counted."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = (getattr(backend, name, None) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    states = [part.__getstate__() for part in parts if part is not None]
    return getattr(tokenizer, "chat_template", None), len(tokenizer), states
