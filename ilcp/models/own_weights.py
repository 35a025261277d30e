"""The weights that a codec itself holds, looked at again at each use: others decode silently to something else."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ilcp.errors import IdentityError
from ilcp.models.state import Samples, tensor_marks
from ilcp.models.wiring import Wiring

__all__ = ["OwnWeights"]


class OwnWeights:
    """The marks of a codec's network, or of its tensors by name, as they were when their digest was right."""

    def __init__(self, held: nn.Module | Mapping[str, Tensor]):
        self._marks: Any = _marks(held)

    def require(self, held: nn.Module | Mapping[str, Tensor], digest: Callable[[], str], expected: str) -> None:
        """Refuses others than the codec was made of; hashes them only where something was written to since.

        Args:
            held: what the codec computes with now.
            digest: of ``held``.

        Raises:
            IdentityError: the text says that it is the codec's own weights.
        """
        if self._marks is not None and not _same(self._marks, held):
            now, found = _marks(held), digest()
            if found != expected:
                raise IdentityError(
                    f"expected codec weights {expected}, got {found}: the codec's own weights were changed in memory "
                    "since it was made or loaded; load it again, or make a codec of what was trained on"
                )
            self._marks = now
        elif self._marks is None:
            self._marks = _marks(held)

    def __getstate__(self) -> dict[str, Any]:
        return {"_marks": None}  # they are of tensors here: those of a copy are as they were copied


def _marks(held: nn.Module | Mapping[str, Tensor]) -> Any:
    if isinstance(held, nn.Module):
        return Wiring(held), Samples(held)
    return [(name, *tensor_marks(held[name], 0)) for name in sorted(held)]


def _same(before: Any, held: nn.Module | Mapping[str, Tensor]) -> bool:
    if not isinstance(held, nn.Module):
        return bool(before == _marks(held))
    wiring, samples = before
    return bool(wiring.unchanged(held) and samples.same())
