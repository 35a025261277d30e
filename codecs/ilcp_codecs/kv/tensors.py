"""Tensors of caches' codecs: the rows that a layer's keys or values make, and weights out of a folder that is hostile.

``"heads tokens width"`` --rows--> ``"tokens heads*width"``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ilcp.errors import StorageError
from ilcp.files import require_readable
from ilcp.folders import inside, shapes_of
from ilcp.identity import digest_all

__all__ = ["WEIGHTS", "Shapes", "digest_of", "rows_of", "tensors_in"]

WEIGHTS = "model.safetensors"
Shapes = Mapping[str, tuple[tuple[int, ...], str]]  # of each tensor its shape, and its dtype as safetensors calls it


def rows_of(each: Tensor) -> Tensor:
    """Returns float32 ``"tokens heads*width"`` of keys or values, head by head."""
    return rearrange(each.float(), "heads tokens width -> tokens (heads width)")


def tensors_in(folder: Path, wanted: Shapes, what: str) -> dict[str, Tensor]:
    """Returns the tensors of a codec's folder, which are looked at before one takes memory.

    Args:
        what: they are, in words.

    Raises:
        StorageError: the file is missing, damaged, holds others than ``wanted``, or numbers that are not finite.
    """
    file = inside(folder, WEIGHTS)
    require_readable(file)
    try:
        if shapes_of(file) != dict(wanted):
            raise StorageError(f"expected {what} in {file}, got others")
        tensors = load_file(file)
    except SafetensorError as error:
        raise StorageError(f"expected {what} in {file}, got: {error}; fetch the codec again") from error
    if not all(bool(each.isfinite().all()) for each in tensors.values()):
        raise StorageError(f"expected finite numbers in {file}, got others: damaged")
    return tensors


def digest_of(tensors: Mapping[str, Tensor], more: Iterable[bytes] = ()) -> str:
    """Returns a digest of tensors, whatever their order, and of ``more`` before them."""
    return digest_all([*more, *(tensors[name].numpy().tobytes() for name in sorted(tensors))]).hex()
