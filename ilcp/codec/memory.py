"""What comes out of a hand-off: memory that the receiver attends to.

A memory is either vectors in the receiver's embedding space (a soft prompt) or text; beside it stand the literals of
its message, which the receiver reads as one line of text. It is immutable: ``vectors`` hands out a copy, so that no
call can change what the next call reads.
"""

import torch
from torch import Tensor

from ilcp.errors import DecodeError
from ilcp.message.literals import check_literals

__all__ = ["Memory"]

# A soft prompt far outside the band of real embeddings steers a receiver into garbage; trained projectors stay within
# a few times the embedding norm, so a factor of 30 refuses only what no trained decoder makes.
NORM_BAND = 30.0


class Memory:
    """Immutable memory of one hand-off: ``vectors`` ``"memory hidden"`` float32, or ``text``; and ``literals``.

    >>> Memory(text="The ticket is owned by Mara.").text
    'The ticket is owned by Mara.'
    """

    __slots__ = ("_literals", "_text", "_vectors")

    def __init__(self, *, vectors: Tensor | None = None, text: str | None = None, literals: tuple[str, ...] = ()):
        if (vectors is None) == (text is None):
            raise DecodeError("expected a memory of either vectors or text, got both or neither")
        if vectors is not None and vectors.ndim != 2:
            raise DecodeError(f"expected memory vectors 'memory hidden', got shape {tuple(vectors.shape)}")
        if vectors is not None and not bool(torch.isfinite(vectors).all()):
            raise DecodeError("expected finite memory vectors, got NaN or infinity: the codec's weights are damaged")
        self._vectors = None if vectors is None else vectors.detach().clone().float()
        self._text = text
        self._literals = check_literals(literals)

    def beside(self, literals: tuple[str, ...]) -> "Memory":
        """This memory with those literals beside it; this one stays as it is.

        Raises:
            EncodeError: no message can carry them.
        """
        return Memory(vectors=self._vectors, text=self._text, literals=literals)

    @property
    def literals(self) -> tuple[str, ...]:
        """The exact strings that travelled beside the payload, in their order."""
        return self._literals

    @property
    def text(self) -> str | None:
        """The text of a text codec's memory, else None."""
        return self._text

    @property
    def vectors(self) -> Tensor | None:
        """A copy of the vectors, ``"memory hidden"`` float32; None for text."""
        return None if self._vectors is None else self._vectors.clone()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the vectors; None for text."""
        return None if self._vectors is None else tuple(self._vectors.shape)

    def checked_vectors(self, hidden: int, embedding_norm: float) -> Tensor:
        """A copy of the vectors, if they are of width ``hidden`` and within the norm band of the receiver's embeddings.

        Raises:
            DecodeError: the text says what was expected and what came.
        """
        vectors = self.vectors
        if vectors is None or vectors.shape[1] != hidden:
            found = "text" if vectors is None else f"width {vectors.shape[1]}"
            raise DecodeError(
                f"expected memory vectors of width {hidden}, got {found}: this memory is not for this receiver"
            )
        largest = float(vectors.norm(dim=-1).max()) if len(vectors) else 0.0
        if largest > NORM_BAND * embedding_norm:
            raise DecodeError(
                f"expected memory vectors of norm up to {NORM_BAND * embedding_norm:.3g} "
                f"({NORM_BAND:g} times the receiver's embedding norm), got {largest:.3g}"
            )
        return vectors

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name) or name not in self.__slots__:
            raise AttributeError(f"a memory is immutable: {name!r} cannot be set; decode the message again instead")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        beside = f", {len(self._literals)} literals" if self._literals else ""
        if self._text is not None:
            return f"Memory(text of {len(self._text)} characters{beside})"
        return f"Memory(vectors {self.shape}{beside})"
