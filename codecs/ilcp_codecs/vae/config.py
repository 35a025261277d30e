"""The shape of a VAE codec: frozen, and it checks its own arithmetic."""

from dataclasses import asdict, dataclass
from typing import Any

from ilcp.errors import EncodeError

__all__ = ["VaeConfig"]


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """Every number that decides a shape, a bit or a byte.

    ``slots * dims * bits`` is the payload in bits; ``prefixes`` (bytes, ascending) may cut it anywhere: a dimension
    that is not there whole counts as unknown. Bits are interleaved over the slots (see ``order``); the first
    ``urgent_dims`` of the first ``urgent_slots`` come before all others.
    """

    sender_layers: tuple[int, ...]
    sender_hidden: int
    receiver_hidden: int
    slots: int = 16
    dims: int = 40
    bits: int = 1
    prefixes: tuple[int, ...] = (10, 20, 40, 80)
    width: int = 192
    heads: int = 6
    blocks: int = 2
    projector_width: int = 512
    nearness: float = 1.0  # how strongly a query starts out reading its own stretch of the text; 0: never
    echo: bool = False  # whether each token hears what stands beside the same word elsewhere
    own_codes: bool = False  # whether each slot has a matrix of its own from what it read to its code
    urgent_slots: int = 0
    urgent_dims: int = 0

    def __post_init__(self) -> None:
        whole = (self.slots, self.dims, self.width, self.heads, self.blocks, self.projector_width)
        numbers = (*whole, *self.sender_layers, *self.prefixes)
        if not all(isinstance(number, int) for number in numbers) or min(whole) < 1:
            raise EncodeError(
                "expected whole numbers from 1 for slots, dims, width, heads, blocks and projector_width, and whole "
                f"numbers in sender_layers and prefixes, got {numbers}"
            )
        if self.bits not in (1, 2, 4):
            raise EncodeError(f"expected 1, 2 or 4 bits per dimension, got {self.bits}")
        if not self.prefixes or sorted(set(self.prefixes)) != list(self.prefixes) or self.prefixes[0] < 1:
            raise EncodeError(f"expected prefixes in ascending order from 1 byte, got {self.prefixes}")
        if self.slots * self.dims * self.bits != 8 * self.payload_bytes:
            raise EncodeError(
                f"expected slots x dims x bits to be 8 x {self.payload_bytes} bytes, "
                f"got {self.slots} x {self.dims} x {self.bits} = {self.slots * self.dims * self.bits} bits"
            )
        if self.width % self.heads:
            raise EncodeError(f"expected width to be a multiple of heads, got {self.width} and {self.heads}")
        if not (0 <= self.urgent_slots <= self.slots and 0 <= self.urgent_dims <= self.dims):
            raise EncodeError(
                f"expected at most {self.slots} urgent_slots and {self.dims} urgent_dims, "
                f"got {self.urgent_slots} and {self.urgent_dims}"
            )
        if not self.sender_layers or min(self.sender_layers) < 0:
            raise EncodeError(f"expected the sender's layers to read, from 0, got {self.sender_layers}")

    @property
    def payload_bytes(self) -> int:
        """The longest payload."""
        return self.prefixes[-1]

    def order(self) -> list[int]:
        """Where each bit of the payload comes from, numbered as in ``"(slots dims bits)"``."""

        def turn(place: int) -> tuple[bool, int, int, int]:
            slot, dim, bit = place // (self.dims * self.bits), place // self.bits % self.dims, place % self.bits
            return slot >= self.urgent_slots or dim >= self.urgent_dims, dim, bit, slot

        return sorted(range(8 * self.payload_bytes), key=turn)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "VaeConfig":
        """The configuration that ``to_dict`` wrote.

        Raises:
            EncodeError: a field is missing or unknown.
        """
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise EncodeError(f"expected the fields of a VaeConfig, got {sorted(record)}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON takes them."""
        return asdict(self)
