"""The weights that a codec itself holds, looked at again at each use: others decode silently to something else."""

from collections.abc import Callable
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ilcp.errors import IdentityError
from ilcp.models.state import Samples

__all__ = ["OwnWeights"]

HELD = ("_modules", "_parameters", "_buffers")
Held = nn.Module | dict[str, Tensor]


class OwnWeights:
    """A codec's network, or its tensors by name, as they were when their digest was right."""

    def __init__(self, held: Held):
        self._seen: _Seen | None = _Seen(held)

    def require(self, held: Held, digest: Callable[[], str], expected: str) -> None:
        """Refuses others than the codec was made of; hashes them only where something was written to since.

        Args:
            held: what the codec computes with now.
            digest: of ``held``.

        Raises:
            IdentityError: the text says that it is the codec's own weights.
        """
        before = self._seen
        if before is not None and before.same(held):
            return
        now = _Seen(held)
        if before is not None and (found := digest()) != expected:
            raise IdentityError(
                f"expected codec weights {expected}, got {found}: the codec's own weights were changed in memory "
                "since it was made or loaded; load it again, or make a codec of what was trained on"
            )
        self._seen = now

    def __getstate__(self) -> dict[str, Any]:
        return {"_seen": None}  # marks are of tensors here: those of a copy are as they were copied


class _Seen:
    """Tensors and what counts the writes to them."""

    def __init__(self, held: Held):
        self._root = held
        modules = held.modules() if isinstance(held, nn.Module) else ()
        self._dicts = [each for module in modules for name in HELD if (each := vars(module)[name])] or [held]
        self._values = list(chain.from_iterable(map(dict.values, self._dicts)))
        self._tensors: list[Any] = [each for each in self._values if isinstance(each, Tensor)]
        self._storages = [StorageWeakRef(each.untyped_storage()) for each in self._tensors]  # keep their addresses
        self._counts, self._samples = self._now(), Samples(self._tensors)

    def same(self, held: Held) -> bool:
        if held is not self._root or sum(map(len, self._dicts)) != len(self._values):
            return False
        there = chain.from_iterable(map(dict.values, self._dicts))
        return all(map(is_, there, self._values)) and self._counts == self._now() and self._samples.same()

    def _now(self) -> list[Any]:
        if any(map(Tensor.is_inference, self._tensors)):  # they count no writes
            return [float("nan")]
        tensors = self._tensors
        stores = [each._cdata for each in map(Tensor.untyped_storage, tensors)]
        return [stores, [each._version for each in tensors], [*map(Tensor.stride, tensors)]]
