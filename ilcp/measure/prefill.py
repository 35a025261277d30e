"""The receiver's bare forward pass to its first token: cold, and with the document's tokens in a prefix cache.

::

    cold      prompt "tokens hidden" --forward--> logits of the last position
    cached    document's tokens --forward, once--> cache;  copy of the cache, the rest of the prompt --forward--> logits

``generate`` does the same and much besides: on a small model its fixed work is most of the time to the first token.
"""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ilcp.errors import ConfigError, EncodeError
from ilcp.handoff import Receiver
from ilcp.models.forward import Prefill, embed
from ilcp.models.prompt import layout, text_ids

__all__ = ["CachedText", "cache_text"]


@dataclass(frozen=True)
class CachedText:
    """A document in the receiver's prefix cache: ``cache`` holds ``tokens`` of the prompt, ``rest`` are the others'
    embeddings, ``"rest hidden"``. Never changed by use: each pass takes a copy."""

    cache: Any
    tokens: int
    rest: Tensor

    def copy(self) -> Any:
        """Copies the cache, for one pass."""
        return copy.deepcopy(self.cache)

    def first_logits(self, prefill: Prefill, cache: Any) -> Tensor:
        """Computes logits ``"vocabulary"`` of the whole prompt from a ``copy`` of the cache and the other tokens."""
        logits: Tensor = prefill.outputs(self.rest, cache, self.tokens).logits[0, -1]
        return logits


def cache_text(receiver: Receiver, context: str, question: str) -> CachedText:
    """Pre-fills the prompt's tokens as far as they belong to ``context`` alone: what a server's prefix cache holds.

    Raises:
        EncodeError: no token of the prompt belongs to the context alone.
        ConfigError: the model keeps no such cache.
    """
    whole = text_ids(receiver.tokenizer, context, question)
    alone = layout(receiver.tokenizer, question).prefix + tuple(
        receiver.tokenizer(context, add_special_tokens=False).input_ids
    )
    same = (mine == other for mine, other in zip(whole[:-1], alone, strict=False))
    tokens = next((place for place, equal in enumerate(same) if not equal), min(len(whole) - 1, len(alone)))
    if tokens == 0:
        raise EncodeError("expected a prompt that begins with the context, got one whose first token differs with it")
    prompt = embed(receiver.model, whole).detach()
    cache = getattr(Prefill(receiver.model).outputs(prompt[:tokens]), "past_key_values", None)
    if cache is None:
        raise ConfigError(f"expected past_key_values, got none: {type(receiver.model).__name__} keeps no prefix cache")
    return CachedText(cache, tokens, prompt[tokens:])
