"""The shape of a VAE codec: frozen, and it checks its own arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ilcp.errors import ConfigError, IlcpError
from ilcp.message import MAX_PAYLOAD_BYTES
from ilcp.records import read_record, shown

__all__ = ["MOST", "MOST_BLOCKS", "MOST_LAYERS", "SETTINGS", "VaeConfig"]

# A folder's author may be anybody: these are believed before a weight is looked at.
MOST = 1 << 20  # of any size: no model is a million wide, and products of three stay far from 64 bits
MOST_BLOCKS = 64  # each is modules of its own, whatever the weights are
MOST_LAYERS = 1024  # that are read of a sender: deeper ones are not known
MOST_PREFIXES = 64  # each takes a mask as long as the latent
MOST_BIAS = 1e4  # attention to one's own stretch of the text alone: more is no other, and float32 has an end
# Files of before say these; the field that each became.
EARLIER = {
    "nearness": "locality_bias",
    "echo": "same_token_attention",
    "own_codes": "per_slot_mu",
    "urgent_slots": "priority_slots",
    "urgent_dims": "priority_dims",
}


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """Every number that decides a shape, a bit or a byte.

    ``slots * dims * bits`` is the payload in bits; ``prefixes`` (bytes, ascending) may cut it anywhere: a dimension
    that is not there whole counts as unknown. Bits are interleaved over the slots (see ``order``); the first
    ``priority_dims`` of the first ``priority_slots`` come before all others.

    Raises:
        ConfigError: numbers contradict each other; the text prints them.
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
    locality_bias: float = 1.0  # how strongly a query starts out reading its own stretch of the text; 0: never
    same_token_attention: bool = False  # each token attends to what stands beside the same word elsewhere
    per_slot_mu: bool = False  # each slot has a matrix of its own from what it read to its code
    priority_slots: int = 0
    priority_dims: int = 0

    def __post_init__(self) -> None:
        shape = (self.slots, self.dims, self.width, self.heads, self.blocks, self.projector_width)
        whole = (*shape, self.sender_hidden, self.receiver_hidden)
        numbers = (*whole, *self.sender_layers, *self.prefixes)
        if not all(isinstance(number, int) for number in numbers) or min(whole) < 1 or max(numbers) > MOST:
            raise ConfigError(
                f"expected whole numbers from 1 to {MOST} for slots, dims, width, heads, blocks, projector_width, "
                f"sender_hidden and receiver_hidden, and such in sender_layers and prefixes, got {numbers[:20]}"
            )
        if self.blocks > MOST_BLOCKS or len(self.prefixes) > MOST_PREFIXES or len(self.sender_layers) > MOST_LAYERS:
            raise ConfigError(
                f"expected at most {MOST_BLOCKS} blocks, {MOST_PREFIXES} prefixes and {MOST_LAYERS} sender_layers, got "
                f"{self.blocks}, {len(self.prefixes)} and {len(self.sender_layers)}"
            )
        if not abs(self.locality_bias) <= MOST_BIAS:
            raise ConfigError(f"expected a locality_bias of at most {MOST_BIAS:g}, got {self.locality_bias}")
        if self.bits not in (1, 2, 4):
            raise ConfigError(f"expected 1, 2 or 4 bits per dimension, got {self.bits}")
        if not self.prefixes or sorted(set(self.prefixes)) != list(self.prefixes) or self.prefixes[0] < 1:
            raise ConfigError(f"expected prefixes in ascending order from 1 byte, got {shown(self.prefixes)}")
        if self.payload_bytes > MAX_PAYLOAD_BYTES:
            raise ConfigError(f"expected prefixes of up to {MAX_PAYLOAD_BYTES} bytes, got {self.payload_bytes}")
        if self.slots * self.dims * self.bits != 8 * self.payload_bytes:
            raise ConfigError(
                f"expected slots x dims x bits to be 8 x {self.payload_bytes} bytes, "
                f"got {self.slots} x {self.dims} x {self.bits} = {self.slots * self.dims * self.bits} bits"
            )
        if self.width % self.heads:
            raise ConfigError(f"expected width to be a multiple of heads, got {self.width} and {self.heads}")
        if not (0 <= self.priority_slots <= self.slots and 0 <= self.priority_dims <= self.dims):
            raise ConfigError(
                f"expected at most {self.slots} priority_slots and {self.dims} priority_dims, "
                f"got {self.priority_slots} and {self.priority_dims}"
            )
        if not self.sender_layers or min(self.sender_layers) < 0:
            raise ConfigError(f"expected the sender's layers to read, from 0, got {shown(self.sender_layers)}")

    @property
    def payload_bytes(self) -> int:
        """The longest payload."""
        return self.prefixes[-1]

    def order(self) -> list[int]:
        """Returns where each bit of the payload comes from, numbered as in ``"(slots dims bits)"``."""

        slot, dim, bit = np.indices((self.slots, self.dims, self.bits)).reshape(3, -1)
        late = (slot >= self.priority_slots) | (dim >= self.priority_dims)
        order: list[int] = np.lexsort((slot, bit, dim, late)).tolist()  # the last decides first
        return order

    @classmethod
    def from_dict(
        cls, record: Mapping[str, Any], where: str = "a VaeConfig", *, error: type[IlcpError] = ConfigError
    ) -> "VaeConfig":
        """Returns the configuration that ``asdict`` wrote, now or under the names of before.

        Args:
            where: the record's place, for people.
            error: what is raised.

        Raises:
            IlcpError: ``error``: a field is missing, unknown, given twice or of another type, or the numbers contradict
                each other.
        """
        twice = [f"{old} and {new}" for old, new in EARLIER.items() if old in record and new in record]
        if twice:
            raise error(f"expected one name for each number in {where}, got {', '.join(twice)}: keep the latter")
        return read_record(cls, {EARLIER.get(name, name): value for name, value in record.items()}, where, error=error)


# What a recipe may set: all that the two models do not decide.
SETTINGS = (
    *(field.name for field in fields(VaeConfig) if field.name not in ("sender_hidden", "receiver_hidden")),
    *EARLIER,
)
