"""Keys and values taken from a model that reads a text, and put in the place of memories in another prompt.

::

    ids of a prompt --read_kv--> KeysValues of its last tokens
    embedded text, KeysValues, embedded text ... --placed--> a cache up to the last KeysValues, what is left to be read

Text before and between the memories is read where it stands; the tokens of a memory are read by nobody again. A cache
of a layer with a sliding window holds the window only, as transformers keeps it; one for packed prompts
(``ilcp.models.packing``) holds every position, zeros where a window has left one behind, which no mask lets be seen.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ilcp.codec.keys_values import KeysValues, Rope, held_tokens
from ilcp.errors import DecodeError, EncodeError
from ilcp.models.adapter import unwrapped
from ilcp.models.forward import Prefill, embed
from ilcp.models.prefix_cache import beginning_of, require_cache
from ilcp.models.rope import layer_windows
from ilcp.models.support import forward_takes
from ilcp.nn.inference import inference

__all__ = ["following_nats", "placed", "read_kv", "require_fit", "taken"]


@inference(unwrapped)
def read_kv(model: Any, ids: Sequence[int], start: int, ropes: tuple[Rope, ...]) -> KeysValues:
    """Returns keys and values of a prompt's tokens from ``start`` on.

    What stands before them is read by itself first, as a receiver reads it: so they are its own, bit by bit, where its
    prompt begins alike.

    Raises:
        ConfigError: the model keeps no cache of keys and values.
    """
    from transformers import DynamicCache

    cache, prefill = DynamicCache(config=model.config), Prefill(model)
    if start:
        prefill.outputs(embed(model, ids[:start]), cache)
    prefill.outputs(embed(model, ids[start:]), cache, start)
    return taken(cache, model, start, ropes)


def taken(cache: Any, model: Any, start: int, ropes: tuple[Rope, ...]) -> KeysValues:
    """Returns what a cache holds from position ``start`` on.

    Raises:
        EncodeError: it is no cache, or one in which a memory stands: what came of that was never read.
        ConfigError: as ``require_cache``.
    """
    if not hasattr(cache, "get_seq_length"):
        raise EncodeError(
            f"expected a text, ids, a finished call's outputs or its past_key_values, got {type(cache).__name__}"
        )
    if beginning_of(cache) is not None:
        raise EncodeError("expected a cache of what was read, got one that was pre-filled for a memory: read the text")
    require_cache(cache, model, cache.get_seq_length() + 1)
    windows = layer_windows(model)
    tokens = cache.get_seq_length() - start
    keys, values = [], []
    for layer, window in zip(cache.layers, windows, strict=True):
        held = held_tokens(tokens, window)
        kept = layer.keys.shape[2]
        keys.append(layer.keys[0, :, kept - held :].detach().clone())
        values.append(layer.values[0, :, kept - held :].detach().clone())
    return KeysValues(tuple(keys), tuple(values), tokens, start, ropes, windows)


def require_fit(kv: KeysValues, own: KeysValues) -> None:
    """Refuses keys and values that are not of the shape of the receiver's ``own``.

    Raises:
        DecodeError: with what differs.
    """
    for what, expected, got in (
        ("windows of its layers", own.windows, kv.windows),
        ("heads and widths", _widths(own), _widths(kv)),
        ("dtype", own.dtype, kv.dtype),
        ("turns of its keys", own.ropes, kv.ropes),
    ):
        if expected != got:
            shown = f"{str(expected)[:80]}, got {str(got)[:80]}"
            raise DecodeError(f"expected keys and values with this receiver's {what}, {shown}: they are for another")


def _widths(kv: KeysValues) -> list[tuple[int, ...]]:
    pairs = zip(kv.keys, kv.values, strict=True)
    return [(keys.shape[0], keys.shape[2], values.shape[0], values.shape[2]) for keys, values in pairs]


@inference(unwrapped)
def placed(model: Any, rows: Sequence[Tensor | KeysValues], *, whole: bool = False) -> Any:
    """Returns a cache of embedded text ``"tokens hidden"`` and memories in their order, the last one a memory.

    Args:
        whole: keeps every position of layers with a sliding window too, as packed prompts need it.

    Raises:
        DecodeError: a memory's keys cannot stand there.
        ConfigError: the model keeps no such cache.
    """
    from transformers import DynamicCache

    cache = DynamicCache() if whole else DynamicCache(config=model.config)
    prefill = Prefill(model)
    position = 0
    for row in rows:
        if isinstance(row, Tensor):
            if len(row):
                prefill.outputs(row, cache, position)
            position += len(row)
        else:
            _append(cache, row.at(position).to(model.device), whole)
            position += row.tokens
    if not whole:
        require_cache(cache, model, position + 1)
    return cache


@inference(unwrapped)
def following_nats(model: Any, kv: KeysValues | None, ids: Sequence[int]) -> float:
    """Returns the mean loss of all tokens but the first of those that follow a memory at the beginning, or nothing."""
    cache, position = (None, 0) if kv is None else (placed(model, [kv]), kv.tokens)
    row = torch.tensor([ids], device=model.device)
    places = {"position_ids": torch.arange(position, position + len(ids), device=model.device)[None]}
    logits = model(
        row,
        attention_mask=torch.ones(1, position + len(ids), dtype=torch.long, device=model.device),
        past_key_values=cache,
        use_cache=True,
        **(places if forward_takes(model, "position_ids") else {}),
    ).logits[0, :-1]
    return float(F.cross_entropy(logits.float(), row[0, 1:]))


def _append(cache: Any, kv: KeysValues, whole: bool) -> None:
    for layer, (keys, values) in enumerate(zip(kv.keys, kv.values, strict=True)):
        gone = kv.tokens - keys.shape[1]
        if gone and whole:
            keys, values = (F.pad(each, (0, 0, gone, 0)) for each in (keys, values))
        cache.update(keys[None], values[None], layer)
        if gone and not whole:
            cache.layers[layer].cumulative_length += gone
