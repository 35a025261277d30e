"""What each end can know of a message before it is used, as numbers.

::

    Context --codec.encode_observed--> payload, Observed (the unrounded latent, and how sure of it the codec is)
    payload --codec.observe, or bit by bit--> Observed            of codecs whose payloads have fixed lengths
    keys and values --fixed queries--> attention "layers heads head" --> cosine to the usual one, and sizes

A codec that has more to show than its payload has the two methods; both are free.
"""

from math import ceil
from typing import Any

import numpy as np

from ilcp.assurance.reference import MOST_DIMS, bits_of
from ilcp.assurance.shape import Array
from ilcp.assurance.view import Observed

__all__ = ["attention_of", "encoded", "received"]

QUERY_SEED = 20
SMALL = 1e-9


def encoded(
    codec: Any, context: Any, payload_bytes: int | None, attention: Array | None = None
) -> tuple[bytes, Observed | None]:
    """Returns a context's payload, and what the sender's end knows of it; None where nothing is.

    Args:
        attention: the usual one, of a reference.

    Raises:
        EncodeError, ConfigError: as ``codec.encode``.
    """
    if hasattr(codec, "encode_observed"):
        payload, observed = codec.encode_observed(context, payload_bytes)
        return payload, _bounded(observed)
    payload = codec.encode(context, payload_bytes)
    if context.kv is not None:
        return payload, None if attention is None else _attended(context.kv, attention)
    return payload, _bounded(bits_of(payload)) if codec.spec.prefixes else None


def received(codec: Any, payload: bytes, memory: Any, attention: Array | None = None) -> dict[str, Observed]:
    """Returns what the receiver's end knows of a message, by the name of the view; empty where nothing is.

    Args:
        attention: as in ``encoded``.
    """
    if hasattr(codec, "observe"):
        return {"received": _bounded(codec.observe(payload))}
    if codec.spec.prefixes:
        return {f"received/{len(payload)}": _bounded(bits_of(payload))}
    keys_values = getattr(memory, "kv", None)
    if keys_values is None or attention is None:
        return {}
    return {"received": _attended(keys_values, attention)}


def attention_of(keys_values: Any) -> Array:
    """Returns what fixed random queries read out of keys and values, ``"layers heads head"``."""
    outputs = []
    rng = np.random.default_rng(QUERY_SEED)
    for layer_keys, layer_values in zip(keys_values.keys, keys_values.values, strict=True):
        keys, values = _numbers(layer_keys), _numbers(layer_values)
        queries = rng.standard_normal((keys.shape[0], keys.shape[2]), dtype=np.float32)
        logits = np.einsum("hd,htd->ht", queries, keys) / max(_size(keys), SMALL)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        outputs.append(np.einsum("ht,htd->hd", weights / weights.sum(1, keepdims=True), values))
    widest = max(each.shape[-1] for each in outputs)
    most = max(each.shape[0] for each in outputs)
    padded = [np.pad(each, ((0, most - each.shape[0]), (0, widest - each.shape[1]))) for each in outputs]
    return np.stack(padded).astype(np.float32)


def _attended(keys_values: Any, usual: Array) -> Observed:
    """Returns, of each head, the cosine of its attention to the usual one, and its length; of each layer sizes."""
    with np.errstate(all="ignore"):
        outputs = attention_of(keys_values)
        if outputs.shape != usual.shape:
            return Observed(np.zeros(0, dtype=np.float32))  # of no view's shape: as unusual as can be
        lengths = np.linalg.norm(outputs, axis=-1)
        cosines = (outputs * usual).sum(-1) / np.maximum(lengths * np.linalg.norm(usual, axis=-1), SMALL)
        sizes = [_size(_numbers(each)) for each in (*keys_values.keys, *keys_values.values)]
        parts = (cosines.ravel(), np.log(lengths.ravel() + SMALL), np.log(np.array(sizes) + SMALL))
    return _bounded(Observed(np.concatenate(parts).astype(np.float32)))


def _numbers(tensor: Any) -> Array:
    found: Array = tensor.detach().float().cpu().numpy()
    return found


def _size(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


def _bounded(observed: Observed) -> Observed:
    """Returns an observation of no more dimensions than a reference holds: every so many of them."""
    return Observed(observed.vector[:: max(1, ceil(len(observed.vector) / MOST_DIMS))], observed.scalars)
