"""The memory that comes out of a hand-off, which the receiver attends to.

``Memory`` is closed: it is a ``SoftPrompt`` (vectors in the receiver's embedding space), a ``TextMemory``, or a
``CacheMemory`` (keys and values that its attention reads). Beside each stand the literals of its message, which the
receiver reads as one line of text. Each kind says what stands in its place in a prompt (``in_prompt``), so that another
kind is a class here and a line in ``ilcp.handoff``. A memory is immutable: what it hands out is a copy, so that no call
can change what the next call reads.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Self, final

import torch
from torch import Tensor

from ilcp.codec.keys_values import KeysValues
from ilcp.errors import ConfigError, DecodeError
from ilcp.identity import digest
from ilcp.inputs import require_text
from ilcp.message.literals import require_literals

__all__ = ["CacheMemory", "Memory", "SoftPrompt", "TextMemory"]

# A soft prompt far outside the band of real embeddings steers a receiver into garbage; trained projectors stay within
# a few times the embedding norm, so a factor of 30 refuses only what no trained decoder makes.
NORM_BAND = 30.0


class Memory(ABC):
    """Immutable memory of one hand-off: a ``SoftPrompt``, ``TextMemory`` or ``CacheMemory``, and its literals."""

    __slots__ = ("_held", "_literals")

    _held: Any
    _literals: tuple[str, ...]

    def __init_subclass__(cls, **options: Any) -> None:
        if cls.__module__ != __name__:
            raise TypeError(
                f"expected a SoftPrompt, TextMemory or CacheMemory, got a subclass {cls.__name__}: the kinds are closed"
            )
        super().__init_subclass__(**options)

    def __init__(self, held: Any, literals: tuple[str, ...]):
        self._held = held
        self._literals = require_literals(literals)

    @property
    def literals(self) -> tuple[str, ...]:
        """The exact strings that travelled beside the payload, in their order."""
        return self._literals

    def beside(self, literals: tuple[str, ...]) -> Self:
        """Returns this memory with those literals beside it; this one stays as it is.

        Raises:
            EncodeError: no message can carry them.
        """
        return type(self)(self._held, literals)

    @abstractmethod
    def in_prompt(self, hidden: int, embedding_norm: float) -> str | Tensor | KeysValues:
        """Returns what stands in this memory's place in a prompt: text, vectors ``"memory hidden"``, or a cache.

        Args:
            hidden: the width of the receiver's embeddings.
            embedding_norm: their mean norm.

        Raises:
            DecodeError: the memory is not for such a receiver; the text says what was expected and what came.
        """

    @abstractmethod
    def digest(self) -> bytes:
        """Returns 16 bytes that are the same for equal memories; literals do not count."""

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name) or name not in Memory.__slots__:
            raise AttributeError(f"a memory is immutable: {name!r} cannot be set; decode the message again instead")
        object.__setattr__(self, name, value)

    def _shown(self, held: str) -> str:
        beside = f", {len(self._literals)} literals" if self._literals else ""
        return f"{type(self).__name__}({held}{beside})"


@final
class SoftPrompt(Memory):
    """Memory of vectors ``"memory hidden"`` float32, in the receiver's embedding space.

    >>> SoftPrompt(torch.zeros(16, 48)).shape
    (16, 48)

    Raises:
        DecodeError: the vectors have another shape, or are not finite.
        ConfigError: they are no tensor.
    """

    __slots__ = ()

    def __init__(self, vectors: Tensor, literals: tuple[str, ...] = ()):
        if not isinstance(vectors, Tensor):
            raise ConfigError(f"expected memory vectors as a tensor 'memory hidden', got {type(vectors).__name__}")
        if vectors.ndim != 2:
            raise DecodeError(f"expected memory vectors 'memory hidden', got shape {tuple(vectors.shape)}")
        if not bool(torch.isfinite(vectors).all()):
            raise DecodeError("expected finite memory vectors, got NaN or infinity: the codec's weights are damaged")
        super().__init__(vectors.detach().clone().float(), literals)

    @property
    def vectors(self) -> Tensor:
        """A copy of the vectors, ``"memory hidden"`` float32."""
        vectors: Tensor = self._held.clone()
        return vectors

    @property
    def shape(self) -> tuple[int, int]:
        """The number of vectors, and their width."""
        memory, hidden = self._held.shape
        return memory, hidden

    def in_prompt(self, hidden: int, embedding_norm: float) -> Tensor:
        """Returns a copy of the vectors ``"memory hidden"``.

        Raises:
            DecodeError: they are of another width, or outside the norm band of the receiver's embeddings.
        """
        if self.shape[1] != hidden:
            raise DecodeError(
                f"expected memory vectors of width {hidden}, got width {self.shape[1]}: "
                "this memory is not for this receiver"
            )
        largest = float(self._held.norm(dim=-1).max()) if len(self._held) else 0.0
        if largest > NORM_BAND * embedding_norm:
            raise DecodeError(
                f"expected memory vectors of norm up to {NORM_BAND * embedding_norm:.3g} "
                f"({NORM_BAND:g} times the receiver's embedding norm), got {largest:.3g}"
            )
        return self.vectors

    def digest(self) -> bytes:
        """Returns the digest of shape and vectors."""
        return digest(repr(self.shape).encode(), self._held.cpu().numpy().tobytes())

    def __repr__(self) -> str:
        return self._shown("{} vectors of width {}".format(*self.shape))


@final
class TextMemory(Memory):
    """Memory of text, which every receiver reads with its own tokenizer.

    >>> TextMemory("The ticket is owned by Mara.").text
    'The ticket is owned by Mara.'

    Raises:
        ConfigError: the text is no str of whole characters.
    """

    __slots__ = ()

    def __init__(self, text: str, literals: tuple[str, ...] = ()):
        text = require_text(text, "the text of a memory", error=ConfigError, may_be_empty=True)
        super().__init__(text, literals)

    @property
    def text(self) -> str:
        """The text."""
        text: str = self._held
        return text

    def in_prompt(self, hidden: int, embedding_norm: float) -> str:
        """Returns the text, whatever the receiver's embeddings are."""
        return self.text

    def digest(self) -> bytes:
        """Returns the digest of the text."""
        return digest(self.text.encode())

    def __repr__(self) -> str:
        return self._shown(f"text of {len(self.text)} characters")


@final
class CacheMemory(Memory):
    """Memory of keys and values, which the receiver's attention reads and nobody reads again.

    Raises:
        DecodeError: they are not finite.
        ConfigError: they are no ``KeysValues``.
    """

    __slots__ = ()

    def __init__(self, kv: KeysValues, literals: tuple[str, ...] = ()):
        if not isinstance(kv, KeysValues):
            raise ConfigError(f"expected KeysValues, got {type(kv).__name__}: decode a message of a cache")
        if not all(bool(torch.isfinite(each).all()) for each in (*kv.keys, *kv.values)):
            raise DecodeError("expected finite keys and values, got NaN or infinity: the cache is damaged")
        own = replace(kv, keys=tuple(map(torch.clone, kv.keys)), values=tuple(map(torch.clone, kv.values)))
        super().__init__(own, literals)

    @property
    def kv(self) -> KeysValues:
        """A copy of the keys and values."""
        kv: KeysValues = self._held
        return replace(kv, keys=tuple(map(torch.clone, kv.keys)), values=tuple(map(torch.clone, kv.values)))

    @property
    def tokens(self) -> int:
        """The number of tokens that it stands for."""
        tokens: int = self._held.tokens
        return tokens

    def in_prompt(self, hidden: int, embedding_norm: float) -> KeysValues:
        """Returns a copy of the keys and values; whether they are of the receiver's shape is seen where they stand."""
        return self.kv

    def digest(self) -> bytes:
        """Returns the digest of keys, values and their place."""
        digest: bytes = self._held.digest()
        return digest

    def __repr__(self) -> str:
        kv: KeysValues = self._held
        return self._shown(f"{kv.tokens} tokens in {len(kv.keys)} layers, {kv.size_bytes} bytes")
