"""Identifies a loaded model by digests of weights, tokenizer, chat template, dtype class and adapters.

The digest of a large model is kept in a cache, keyed by path, size and modification time of its weight files and by a
sum over every tensor in memory, so that a second load is quick and weights changed since the load do not pass.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilcp.errors import ConfigError, StorageError
from ilcp.files import write_whole
from ilcp.identity import ModelIdentity, digest, digest_all
from ilcp.models.adapter import LOW_RANK, unwrapped

__all__ = ["identify", "weights_digest"]

SLICE = 1 << 24  # elements
CACHE_FROM_BYTES = 64 << 20  # under 64 MiB hashing takes less than 0.1 s and needs no cache
WRAPPED = ".base_layer."  # what peft calls the weights that it adds others to
SCALED = b"embeddings are scaled where they are looked up"
DTYPE_CLASSES = {"float32": "full", "float64": "full", "bfloat16": "half", "float16": "half"}


def identify(model: Any, tokenizer: Any) -> ModelIdentity:
    """Returns the identity of a model and its tokenizer, as they are in memory now.

    Raises:
        ConfigError: the tokenizer is None, or has more tokens than the model has embeddings.
    """
    if tokenizer is None:
        raise ConfigError("expected the model's tokenizer, got None: load it from the model's folder")
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocabulary:
        raise ConfigError(
            f"expected a tokenizer of at most {vocabulary} tokens (the model's embeddings), got {len(tokenizer)}: "
            "this tokenizer does not belong to this model; load both from the same folder"
        )
    dtype = str(model.dtype).removeprefix("torch.")
    weights = weights_digest(model)
    return ModelIdentity(
        weights=(digest(weights, SCALED) if _embeds_scaled(model) else weights).hex(),
        tokenizer=_tokenizer_digest(tokenizer).hex(),
        chat_template=digest(str(getattr(tokenizer, "chat_template", None) or "").encode()).hex(),
        dtype=DTYPE_CLASSES.get(dtype, dtype),
        adapters=_adapters(model),
    )


def weights_digest(model: nn.Module) -> bytes:
    """Returns the digest, 16 bytes, of every parameter and saved buffer by name. Tied weights count once.

    A low-rank adapter is left out: the weights below it are those of the model without it.
    """
    tensors = _tensors(model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    key = _cache_key(model, tensors) if size >= CACHE_FROM_BYTES else None
    cached = _cache_read().get(key) if key else None
    if cached:
        return bytes.fromhex(cached)
    result = digest_all(part for name in sorted(tensors) for part in _tensor_parts(name, tensors[name]))
    if key:
        _cache_write(key, result.hex())
    return result


def _embeds_scaled(model: Any) -> bool:
    """Says whether the embedding module does more than look up a row.

    Gemma 2 scales there under transformers 5, and behind it under 4.57: the same weights, another embedding space.
    """
    module = model.get_input_embeddings()
    with torch.no_grad():
        vector = module(torch.zeros(1, dtype=torch.long, device=module.weight.device))[0]
    return not torch.equal(vector, module.weight[0])


def _adapters(model: Any) -> str:
    """Returns the names of peft's adapters and the digest of the low-rank weights; empty without adapters."""
    added = {name: tensor for name, tensor in unwrapped(model).named_parameters() if LOW_RANK in name}
    if not added:
        return ",".join(sorted(getattr(model, "peft_config", None) or ()))
    names = ",".join(sorted({name.split(LOW_RANK)[1].split(".")[1] for name in added}))  # lora_A.default.weight
    return f"{names}:{digest_all(part for name in sorted(added) for part in _tensor_parts(name, added[name])).hex()}"


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    model = unwrapped(model)
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    saved = set(model.state_dict())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {name.replace(WRAPPED, "."): tensor for name, tensor in tensors.items() if LOW_RANK not in name}


def _tensor_parts(name: str, tensor: Tensor) -> tuple[bytes, bytes]:
    flat = tensor.detach().reshape(-1).cpu().contiguous()
    header = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
    return header, flat.view(torch.uint8).numpy().tobytes()


def _tokenizer_digest(tokenizer: Any) -> bytes:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    record = json.loads(backend.to_str())
    for state in ("padding", "truncation"):  # set by the last call, not part of what the tokenizer is
        record.pop(state, None)
    return digest(json.dumps(record, sort_keys=True).encode())


def _cache_key(model: nn.Module, tensors: dict[str, Tensor]) -> str | None:
    path = str(getattr(getattr(model, "config", None), "_name_or_path", None) or "")
    place = Path(path)
    files = [place] if place.is_file() else []  # a GGUF
    if path and place.is_dir():
        files = sorted([*place.glob("*.safetensors"), *place.glob("*.bin")])
    if not files:
        return None
    stats = [f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}".encode() for file in files]
    sums = [f"{name} {t.dtype} {tuple(t.shape)} {_sums(t)}".encode() for name, t in sorted(tensors.items())]
    return digest(*stats, *sums).hex()


def _sums(tensor: Tensor) -> tuple[float, float]:
    """Returns sum and sum of squares: a change of any element shows in one of them, but for rounding."""
    total = squares = 0.0
    for part in tensor.detach().reshape(-1).split(SLICE):  # double precision takes four times the room of half
        total += float(part.double().sum())
        squares += float(part.double().square().sum())
    return total, squares


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ilcp" / "weights.json"


def _cache_read() -> dict[str, str]:
    try:
        record = json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        return {}  # no cache, or a damaged one: hash again
    return record if isinstance(record, dict) else {}


def _cache_write(key: str, value: str) -> None:
    file = _cache_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(_cache_read() | {key: value}))
    except (OSError, StorageError):
        return  # a read-only home costs time, not correctness
