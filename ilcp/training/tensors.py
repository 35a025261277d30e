"""Tensors of a run in files, each with its digest: a bit that the disk flipped is no other number, but none at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ilcp.files import replacing
from ilcp.identity import digest_all

__all__ = ["checked", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], words: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file for its owner only, with ``words`` and each tensor's digest, which covers them, beside.

    Raises:
        StorageError: the disk is full, or not to be written to.
    """
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    words = dict(words or {})
    digests = {name: _digest(tensor, words) for name, tensor in kept.items()}
    with replacing(path, private=True) as draft:
        save_file(kept, draft, metadata=digests | words)


def checked(opened: Any, name: str) -> Tensor:
    """Returns a tensor of a file that ``safe_open`` gave, if it has the digest that was written.

    Raises:
        ValueError: it is not what was written, or without a digest.
        SafetensorError: there is none, or the file is damaged.
    """
    tensor: Tensor = opened.get_tensor(name)
    beside, names = opened.metadata() or {}, set(opened.keys())
    got = _digest(tensor, {key: value for key, value in beside.items() if key not in names})
    if beside.get(name) != got:
        raise ValueError(f"{name} with digest {got} where {beside.get(name, 'none')} was written")
    return tensor


def _digest(tensor: Tensor, words: Mapping[str, str]) -> str:
    tensor = tensor.detach().cpu()
    about = f"{tensor.dtype} {tuple(tensor.shape)} {sorted(words.items())}".encode()
    return digest_all([about, tensor.reshape(-1).view(torch.uint8).numpy().data]).hex()
