"""Floating-point operations of a pre-fill: by formula, and by a counter under eager attention.

The formula is the usual one for a dense decoder: two per weight and token, and ``4 * layers * width`` per pair of
tokens, halved because a token attends to what is before it only. The counter counts what eager attention really
multiplies, the masked half included; under fused attention it would count no attention at all.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ilcp.measure.figures import Computed

__all__ = ["count_flops", "eager_attention", "model_sizes", "prefill_flops"]

FORMULA = "2 * weights * tokens + 4 * layers * width * tokens**2 / 2 + 2 * head"


def model_sizes(model: Any) -> dict[str, int]:
    """Returns what the formula asks of a model: ``weights`` outside embeddings and head, ``layers``, attention's
    ``width``, and the weights of the ``head``, which serves the last position only."""
    config, head = model.config, model.get_output_embeddings().weight
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    apart = {id(weight): weight.numel() for weight in [head, *tables]}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "weights": sum(weight.numel() for weight in model.parameters() if id(weight) not in apart),
        "layers": config.num_hidden_layers,
        "width": config.num_attention_heads * head_dim,
        "head": head.numel(),
    }


def prefill_flops(sizes: Mapping[str, float], tokens: int) -> Computed:
    """Computes the operations of a forward pass over ``tokens`` up to the first new token's logits.

    ``sizes`` is what ``model_sizes`` returns.
    """
    value = 2 * sizes["weights"] * tokens + 4 * sizes["layers"] * sizes["width"] * tokens**2 / 2 + 2 * sizes["head"]
    return Computed(value, "FLOP", FORMULA, dict(sizes) | {"tokens": tokens})


@torch.no_grad()
def count_flops(work: Callable[[], object]) -> int:
    """Counts the operations of the matrix products and convolutions that torch runs in ``work``."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return int(counter.get_total_flops())


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Writes attention out as matrix products inside the block, so that the counter sees it; as before afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
