"""The seam between hand-offs and the methods behind them: what every codec offers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ilcp.codec.context import Context
from ilcp.codec.memory import Memory
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.evidence import Evidence

__all__ = ["Codec"]


@runtime_checkable
class Codec(Protocol):
    """The seam. Encoding is deterministic, decoding needs nothing but the payload, and neither changes the codec.

    ``evidence`` is what was measured of it, as found in its folder. A codec that can also say its latent before
    rounding has ``decode_unrounded(context) -> Memory``, for measuring only.
    """

    spec: CodecSpec
    trained: Trained
    evidence: Evidence | None

    @property
    def layers(self) -> tuple[int, ...]:
        """The sender's layers whose states ``encode`` reads, 0 being the embedding; empty where it reads text."""
        ...

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """The payload, at most ``payload_bytes`` long (None: the codec's own length).

        Raises:
            EncodeError: the context has nothing that this codec reads, or there is no payload of that length.
        """
        ...

    def decode(self, payload: bytes) -> Memory:
        """The memory that a payload stands for.

        Raises:
            DecodeError: the payload has another length, or does not decode.
        """
        ...

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes weights into ``folder``; returns what ``load_files`` needs beside them, as JSON."""
        ...

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> "Codec":
        """The codec that ``save_files`` wrote."""
        ...
