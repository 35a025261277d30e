"""The outside of a codec: its lengths, what it reads, and whom it was trained for."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from ilcp.errors import EncodeError
from ilcp.identity import ModelIdentity, digest
from ilcp.message import CODEC_ID_BYTES, MAX_PAYLOAD_BYTES

__all__ = ["CodecSpec", "Trained"]


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """The outside of a codec: its name, what it reads, and how long its payloads are.

    ``payload_bytes`` is the largest payload; ``prefixes`` are the lengths at which a learned payload may be cut
    (ascending, the last one is ``payload_bytes``), empty where payloads are as long as they come out.
    """

    name: str
    payload_bytes: int
    reads: Literal["states", "text"]
    prefixes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.payload_bytes <= MAX_PAYLOAD_BYTES:
            raise EncodeError(f"expected payload_bytes from 1 to {MAX_PAYLOAD_BYTES}, got {self.payload_bytes}")
        if self.reads not in ("states", "text"):
            raise EncodeError(f"expected a codec to read 'states' or 'text', got {self.reads!r}")
        if self.prefixes and (sorted(set(self.prefixes)) != list(self.prefixes) or self.prefixes[0] < 1):
            raise EncodeError(f"expected prefixes in ascending order from 1 byte, got {self.prefixes}")
        if self.prefixes and self.prefixes[-1] != self.payload_bytes:
            raise EncodeError(f"expected the last prefix to be payload_bytes={self.payload_bytes}, got {self.prefixes}")

    def length(self, payload_bytes: int | None) -> int:
        """The payload length that a caller's ``payload_bytes`` means; None is the longest.

        Raises:
            EncodeError: the codec has no payload of that length.
        """
        if payload_bytes is None:
            return self.payload_bytes
        allowed = self.prefixes or range(1, self.payload_bytes + 1)
        if payload_bytes not in allowed:
            shown = ", ".join(map(str, self.prefixes)) or f"1 to {self.payload_bytes}"
            raise EncodeError(
                f"expected payload_bytes to be one of {shown} for codec {self.name!r}, got {payload_bytes}"
            )
        return payload_bytes


@dataclass(frozen=True, slots=True)
class Trained:
    """Whom a codec was trained for, and the digest of what training left in it."""

    sender: ModelIdentity
    receiver: ModelIdentity
    weights: str = ""

    def codec_id(self, spec: CodecSpec) -> bytes:
        """The eight bytes that a message carries: spec, codec weights, sender and receiver in one digest."""
        outside = json.dumps(asdict(spec), sort_keys=True).encode()
        return digest(outside, self.weights.encode(), self.sender.digest(), self.receiver.digest())[:CODEC_ID_BYTES]
