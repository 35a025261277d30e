"""How a model turns its keys by their positions: looked up in its rotary embedding, and tried before it is believed."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ilcp.codec.keys_values import Rope, turned
from ilcp.models.adapter import unwrapped, vocabulary_size
from ilcp.nn.inference import inference

__all__ = ["layer_windows", "ropes_of"]

TRIED_TOKENS, TRIED_AT = 4, 7  # a few tokens, at the beginning and behind it
SLACK, SLACK_ULPS = 1e-3, 8.0  # of the largest key; in half precision, units of its last place at 1
MOVING = ("dynamic", "longrope")  # kinds of rope whose turns depend on the length of the prompt


def layer_windows(model: Any) -> tuple[int, ...]:
    """Returns the sliding window of each layer, 0 for none."""
    config = model.config.get_text_config()
    window = int(getattr(config, "sliding_window", None) or 0)
    default = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or default
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def ropes_of(model: Any) -> tuple[Rope, ...]:
    """Returns for each layer the radians that a position turns each pair of a key's dimensions by.

    They are empty, for all layers, of a model whose keys do not turn as ``ilcp.codec.keys_values`` does it: its keys
    stay where they stood.
    """
    inner = unwrapped(model)
    found = _looked_up(inner)
    return found if all(found) and _hold(inner, found) else ((),) * len(found)


def _looked_up(model: Any) -> tuple[Rope, ...]:
    windows = layer_windows(model)
    buffers = {
        name: tuple(buffer.double().tolist())
        for name, buffer in model.named_buffers()
        if name.endswith("inv_freq") and "original" not in name
    }
    kinds = {str(getattr(module, "rope_type", "")) for module in model.modules()}
    if not buffers or any(moving in kind for kind in kinds for moving in MOVING):
        return ((),) * len(windows)
    local = [rope for name, rope in buffers.items() if "local" in name or "sliding" in name]
    other = [rope for name, rope in buffers.items() if "local" not in name and "sliding" not in name] or local
    return tuple((local or other)[0] if window else other[0] for window in windows)


@inference(unwrapped)
def _hold(model: Any, ropes: Iterable[Rope]) -> bool:
    """Says whether keys of a few tokens, turned so, are those that the model makes of them further back."""
    ids = [vocabulary_size(model) * (index + 1) // (TRIED_TOKENS + 2) for index in range(TRIED_TOKENS)]
    here, there = (_keys(model, ids, start) for start in (0, TRIED_AT))
    slack = max(SLACK, SLACK_ULPS * torch.finfo(here[0].dtype).eps)
    by = torch.full((TRIED_TOKENS,), float(TRIED_AT), dtype=torch.float64)
    for rope, first, second in zip(ropes, here, there, strict=True):
        if 2 * len(rope) > first.shape[-1]:
            return False
        apart = (turned(first, by, rope).float() - second.float()).abs().max()
        if not float(apart) <= slack * float(second.float().abs().max()):
            return False
    return True


def _keys(model: Any, ids: list[int], start: int) -> list[Tensor]:
    from transformers import DynamicCache

    cache = DynamicCache()
    row = torch.tensor([ids], device=model.device)
    places = torch.arange(start, start + len(ids), device=model.device)[None]
    model(
        input_ids=row,
        attention_mask=torch.ones_like(row),
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
    )
    return [layer.keys[0] for layer in cache.layers]
