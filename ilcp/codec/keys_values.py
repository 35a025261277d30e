"""What a model computed of a run of tokens, as its attention reads it: keys and values, layer by layer.

::

    keys[layer], values[layer]   "heads held head", in the model's dtype

A layer with a sliding window holds the last ``window - 1`` tokens only, any other all of them. Rotary models turn each
key by its position (RoPE, arXiv 2104.09864): the first half of the turned dimensions against the second. What matters
to attention is the difference of two positions, so keys that stood at one place are turned by the difference to stand
at another; values are the same everywhere. Of a model that marks positions in another way keys stay where they stood.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ilcp.errors import ConfigError, DecodeError
from ilcp.identity import digest_all

__all__ = ["KeysValues", "Rope", "held_tokens", "raw_bytes", "turned"]

Rope = tuple[float, ...]  # radians per position of each pair of dimensions; empty where a layer's keys cannot be turned


def held_tokens(tokens: int, window: int) -> int:
    """Returns how many of so many tokens a layer of that window holds; a window of 0 is none."""
    return min(tokens, window - 1) if window else tokens


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values of ``tokens`` consecutive tokens of one prompt.

    ``start`` is the position at which the keys' first token stands, None where the keys are not turned at all;
    ``ropes`` and ``windows`` are those of each layer, a window of 0 being none.

    Raises:
        DecodeError: the shapes contradict each other.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    tokens: int
    start: int | None
    ropes: tuple[Rope, ...]
    windows: tuple[int, ...]

    def __post_init__(self) -> None:
        layers = len(self.keys)
        if not layers or {len(self.values), len(self.ropes), len(self.windows)} != {layers}:
            counts = f"{layers}, {len(self.values)}, {len(self.ropes)} and {len(self.windows)}"
            raise DecodeError(f"expected keys, values, ropes and windows of as many layers, got {counts}")
        for layer, (keys, values, window) in enumerate(zip(self.keys, self.values, self.windows, strict=True)):
            held = held_tokens(self.tokens, window)
            if keys.ndim != 3 or values.shape[:2] != keys.shape[:2] or keys.shape[1] != held:
                raise DecodeError(
                    f"expected keys and values of {held} tokens in layer {layer}, got shapes {tuple(keys.shape)} and "
                    f"{tuple(values.shape)}"
                )
        if self.start is None and not all(self.ropes):
            raise DecodeError("expected keys that can be turned, where they are of no position, got others")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of keys and values."""
        return self.keys[0].dtype

    @property
    def size_bytes(self) -> int:
        """The bytes that keys and values take in memory."""
        return sum(each.nbytes for each in (*self.keys, *self.values))

    def at(self, start: int | None) -> "KeysValues":
        """Returns the same with its first token standing at that position; None for keys of no position.

        Raises:
            DecodeError: keys of this model stay where they stood.
        """
        if start == self.start:
            return self
        fixed = [layer for layer, rope in enumerate(self.ropes) if not rope]
        if fixed:
            raise DecodeError(
                f"expected a memory that stands at position {self.start}, got position {start}: this model's keys "
                "cannot be turned; ask in the prompt that the sender read the text in"
            )
        moved = []
        for keys, rope in zip(self.keys, self.ropes, strict=True):
            first = self.tokens - keys.shape[1]  # what fell out of the window stands before it
            own = torch.arange(first, self.tokens, dtype=torch.float64)
            if self.start is None or start is None:
                by = own + start if start is not None else -(own + (self.start or 0))
            else:
                by = torch.full_like(own, start - self.start)
            moved.append(turned(keys, by, rope))
        return replace(self, keys=tuple(moved), start=start)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "KeysValues":
        """Returns the same on that device, in that dtype."""
        keys = tuple(each.to(device, dtype) for each in self.keys)
        return replace(self, keys=keys, values=tuple(each.to(device, dtype) for each in self.values))

    def digest(self) -> bytes:
        """Returns 16 bytes that are the same for equal keys and values that stand at the same place."""
        outside = repr((self.tokens, self.start, self.ropes, self.windows, self.dtype)).encode()
        return digest_all([outside, *(raw_bytes(each) for each in (*self.keys, *self.values))])


def turned(keys: Tensor, by: Tensor, rope: Sequence[float]) -> Tensor:
    """Returns keys ``"heads tokens head"``, each token's turned by that many positions, ``"tokens"`` float64.

    It is computed in float32 and comes back in the keys' dtype.

    Raises:
        ConfigError: there are more pairs to turn than the keys have dimensions for.
    """
    pairs = len(rope)
    if 2 * pairs > keys.shape[-1]:
        raise ConfigError(f"expected keys of {2 * pairs} dimensions or more to turn, got {keys.shape[-1]}")
    angles = by[:, None] * torch.tensor(rope, dtype=torch.float64)
    cos, sin = (each.float().to(keys.device) for each in (angles.cos(), angles.sin()))
    wide = keys.float()
    first, second = wide[..., :pairs], wide[..., pairs : 2 * pairs]
    out = [first * cos - second * sin, second * cos + first * sin, wide[..., 2 * pairs :]]
    return torch.cat(out, -1).to(keys.dtype)


def raw_bytes(tensor: Tensor) -> memoryview:
    """Returns a tensor's numbers as they lie in memory, for a digest."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
