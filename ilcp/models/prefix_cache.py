"""Keys and values of the beginning of a prompt that were computed before: checked, and copied for each use.

``transformers.generate`` writes into the cache it is given. A copy keeps the caller's as it is, so that one prefix
serves any number of answers. Admitted are the layers that hold what they were given, whole or the last window of it; a
layer that was rounded, preallocated or summed up is refused by name.
"""

import copy
from typing import Any

from ilcp.errors import EncodeError

__all__ = ["copied", "require_cache"]

ADMITTED = ("DynamicLayer", "DynamicSlidingWindowLayer")  # exactly these: their subclasses hold something else


def require_cache(cache: Any, model: Any, prompt_tokens: int) -> None:
    """Refuses what is no cache of the first tokens of one prompt of this model.

    Raises:
        EncodeError: it is no cache of dynamic layers, was made for another model or a batch, holds gradients, or leaves
            no token of the prompt to read.
    """
    way_out = "make it with Receiver.prefill, or with a DynamicCache"
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise EncodeError(f"expected a transformers cache with layers, got {type(cache).__name__}: {way_out}")
    unfit = sorted({type(layer).__name__ for layer in layers} - set(ADMITTED))
    if unfit:
        raise EncodeError(f"expected a cache of {' or '.join(ADMITTED)} layers, got {', '.join(unfit)}: {way_out}")
    filled = [layer.keys for layer in layers if layer.get_seq_length()]
    expected = int(model.config.get_text_config().num_hidden_layers)
    if len(filled) != expected or len({layer.get_seq_length() for layer in layers}) != 1:
        raise EncodeError(
            f"expected a cache of {expected} layers with as many positions each, got {len(filled)} filled layers "
            f"of {sorted({layer.get_seq_length() for layer in layers})} positions: {way_out} of this model"
        )
    if filled[0].shape[0] != 1 or filled[0].dtype != model.dtype:
        raise EncodeError(
            f"expected a cache of one sequence in {model.dtype}, got {filled[0].shape[0]} in {filled[0].dtype}: "
            f"{way_out} of this model"
        )
    if any(keys.requires_grad for keys in filled):
        raise EncodeError("expected a cache without gradients, got one with them: compute it under torch.no_grad()")
    held = int(cache.get_seq_length())
    if held > prompt_tokens - 1:
        raise EncodeError(
            f"expected a cache of at most {prompt_tokens - 1} of the prompt's {prompt_tokens} tokens, got {held}: "
            "the last token has to be read to answer; the cache holds the first positions of this same prompt"
        )


def copied(cache: Any, rows: int = 1) -> Any:
    """A copy of a checked cache, repeated for ``rows`` beams."""
    mine = copy.deepcopy(cache)
    if rows > 1:
        mine.batch_repeat_interleave(rows)
    return mine
