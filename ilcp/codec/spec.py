"""The outside of a codec: its lengths, what it reads, and whom it was trained for."""

import json
from dataclasses import asdict, dataclass

from ilcp.errors import ConfigError
from ilcp.identity import ModelIdentity, digest
from ilcp.message import CODEC_ID_BYTES, MAX_BLOB_BYTES, MAX_PAYLOAD_BYTES
from ilcp.records import shown

__all__ = ["READS", "CodecSpec", "Trained"]

READS = {
    "states": True,
    "text": False,
    "cache": True,
}  # what a codec may read, and whether the sender's model has to run for it


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """The outside of a codec: its name, what it reads (one of ``READS``), and how long its payloads are.

    ``payload_bytes`` is the largest payload; ``prefixes`` are the lengths at which a learned payload may be cut
    (ascending, the last one is ``payload_bytes``), empty where payloads are as long as they come out.

    Raises:
        ConfigError: the numbers contradict each other, or no codec reads that.
    """

    name: str
    payload_bytes: int
    reads: str
    prefixes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.reads not in READS:
            raise ConfigError(f"expected a codec to read {' or '.join(map(repr, READS))}, got {shown(self.reads)}")
        most = MAX_BLOB_BYTES if self.reads == "cache" else MAX_PAYLOAD_BYTES
        if not 1 <= self.payload_bytes <= most:
            raise ConfigError(f"expected payload_bytes from 1 to {most}, got {self.payload_bytes}")
        if self.prefixes and (sorted(set(self.prefixes)) != list(self.prefixes) or self.prefixes[0] < 1):
            raise ConfigError(f"expected prefixes in ascending order from 1 byte, got {shown(self.prefixes)}")
        if self.prefixes and self.prefixes[-1] != self.payload_bytes:
            raise ConfigError(
                f"expected the last prefix to be payload_bytes={self.payload_bytes}, got {shown(self.prefixes)}"
            )

    @property
    def runs_sender(self) -> bool:
        """True where the sender's model has to compute what the codec reads; otherwise a text is enough."""
        return READS[self.reads]

    def length(self, payload_bytes: int | None) -> int:
        """Returns the payload length that a caller's ``payload_bytes`` means; None is the longest.

        Raises:
            ConfigError: the codec has no payload of that length.
        """
        if payload_bytes is None:
            return self.payload_bytes
        allowed = self.prefixes or range(1, self.payload_bytes + 1)
        if payload_bytes not in allowed:
            known = ", ".join(map(str, self.prefixes)) or f"1 to {self.payload_bytes}"
            raise ConfigError(
                f"expected payload_bytes to be one of {known} for codec {self.name!r}, got {payload_bytes}"
            )
        return payload_bytes


@dataclass(frozen=True, slots=True)
class Trained:
    """The two models that a codec was trained for, and the digest of what training left in it."""

    sender: ModelIdentity
    receiver: ModelIdentity
    weights: str = ""

    def codec_id(self, spec: CodecSpec) -> bytes:
        """Returns the eight bytes that a message carries: a digest of spec, codec weights, sender and receiver."""
        outside = json.dumps(asdict(spec), sort_keys=True).encode()
        return digest(outside, self.weights.encode(), self.sender.digest(), self.receiver.digest())[:CODEC_ID_BYTES]
