"""Keys and values of the beginning of a prompt that were computed before: checked, and copied for each use.

``transformers.generate`` writes into the cache it is given. A copy keeps the caller's as it is, so that one prefix
serves any number of answers. Admitted are the layers that hold what they were given, whole or the last window of it; a
layer that was rounded, preallocated or summed up is refused by name.
"""

import copy
from typing import Any

from torch import Tensor

from ilcp.errors import ConfigError
from ilcp.identity import digest
from ilcp.models.forward import Prefill

__all__ = ["beginning_of", "copied", "prefilled", "require_cache"]

MARK = "_ilcp_beginning"  # of a cache: the digest of what it was pre-filled for
ADMITTED = ("DynamicLayer", "DynamicSlidingWindowLayer")  # exactly these: their subclasses hold something else


def prefilled(model: Any, beginning: Tensor, cache: Any = None) -> Any:
    """Returns a cache of the model's keys and values for the embedded tokens ``"tokens hidden"``, marked as theirs.

    What ``cache`` holds of their first ones is not read; it grows to be the one that is returned.

    Raises:
        ConfigError: as ``require_cache``: now, and not at the first question.
    """
    held = 0 if cache is None else cache.get_seq_length()
    if held < len(beginning):
        cache = Prefill(model).outputs(beginning[held:], cache, held).past_key_values
    require_cache(cache, model, len(beginning) + 1)
    setattr(cache, MARK, _digest(beginning))
    return cache


def beginning_of(cache: Any) -> bytes | None:
    """Returns the digest of what a cache was pre-filled for, also of a copy of it; None where that is not known."""
    return getattr(cache, MARK, None)


def copied(cache: Any, model: Any, prompt: Tensor, rows: int) -> Any:
    """Returns a copy of a cache for ``rows`` beams that answer the prompt ``"tokens hidden"``.

    Raises:
        ConfigError: as ``require_cache``; or the cache was pre-filled for another beginning than this prompt's.
    """
    require_cache(cache, model, len(prompt))
    known = beginning_of(cache)
    if known is not None and known != _digest(prompt[: cache.get_seq_length()]):
        raise ConfigError(
            f"expected a cache of this prompt's first {cache.get_seq_length()} tokens, got one that was pre-filled "
            "for another memory, another beginning of the chat, or that was written into since: pre-fill again"
        )
    own = copy.deepcopy(cache)
    if rows > 1:
        own.batch_repeat_interleave(rows)
    return own


def require_cache(cache: Any, model: Any, prompt_tokens: int) -> None:
    """Refuses what is no cache of the first tokens of one prompt of this model.

    Raises:
        ConfigError: it is no cache of dynamic layers, was made for another model or a batch, holds gradients, or leaves
            no token of the prompt to read.
    """
    way_out = "make it with Receiver.prefill, or with a DynamicCache"
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise ConfigError(f"expected a transformers cache with layers, got {type(cache).__name__}: {way_out}")
    unfit = sorted({type(layer).__name__ for layer in layers} - set(ADMITTED))
    if unfit:
        raise ConfigError(f"expected a cache of {' or '.join(ADMITTED)} layers, got {', '.join(unfit)}: {way_out}")
    filled = [layer.keys for layer in layers if layer.get_seq_length()]
    expected = int(model.config.get_text_config().num_hidden_layers)
    if len(filled) != expected or len({layer.get_seq_length() for layer in layers}) != 1:
        raise ConfigError(
            f"expected a cache of {expected} layers with as many positions each, got {len(filled)} filled layers "
            f"of {sorted({layer.get_seq_length() for layer in layers})} positions: {way_out} of this model"
        )
    if filled[0].shape[0] != 1 or filled[0].dtype != model.dtype:
        raise ConfigError(
            f"expected a cache of one sequence in {model.dtype}, got {filled[0].shape[0]} in {filled[0].dtype}: "
            f"{way_out} of this model"
        )
    if any(keys.requires_grad for keys in filled):
        raise ConfigError("expected a cache without gradients, got one with them: compute it under torch.no_grad()")
    held = int(cache.get_seq_length())
    if held > prompt_tokens - 1:
        raise ConfigError(
            f"expected a cache of at most {prompt_tokens - 1} of the prompt's {prompt_tokens} tokens, got {held}: "
            "the last token has to be read to answer; the cache holds the first positions of this same prompt"
        )


def _digest(prompt: Tensor) -> bytes:
    return digest(prompt.float().cpu().contiguous().numpy().tobytes())
