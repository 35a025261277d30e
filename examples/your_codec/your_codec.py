"""A codec of your own: the first and the last sentences of a text, as many as fit.

::

    text --sentences--> first, last, second, last but one, ... --while they fit--> "first … last" --UTF-8--> payload

What opens a document names its matter, and what ends it says how the matter stands: between the two, most can be left
out. It reads text and gives text, so it fits every sender and every receiver.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ilcp.codec import CodecSpec, Context, TextMemory, Trained
from ilcp.errors import DecodeError, EncodeError
from ilcp.evidence import Evidence
from ilcp.identity import ANY

__all__ = ["EndsCodec"]

NAME = "text-ends"
LEFT_OUT = " … "
SENTENCE = re.compile(r"[^.!?]+(?:[.!?]+|$)")


class EndsCodec:
    """The first and the last sentences of a text, in at most ``payload_bytes`` of UTF-8."""

    layers: tuple[int, ...] = ()  # of the sender's that are read: none, for it reads the text

    def __init__(self, payload_bytes: int = 80):
        self.spec = CodecSpec(NAME, payload_bytes, "text")
        self.trained = Trained(ANY, ANY)
        self.evidence: Evidence | None = None
        self.folder: Path | None = None

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the sentences as UTF-8.

        Raises:
            EncodeError: there is no text, or not even one sentence fits.
        """
        limit = self.spec.length(payload_bytes)
        if not context.text or not context.text.strip():
            raise EncodeError(f"expected a context with text for codec {NAME!r}, got none")
        sentences = [sentence.strip() for sentence in SENTENCE.findall(context.text) if sentence.strip()]
        kept = ""
        for count in range(1, len(sentences) + 1):
            longer = _ends(sentences, count)
            if len(longer.encode("utf-8")) > limit:
                break
            kept = longer
        if not kept:
            raise EncodeError(f"expected a sentence of at most {limit} bytes, got longer ones: allow a longer payload")
        return kept.encode("utf-8")

    def decode(self, payload: bytes) -> TextMemory:
        """Returns the sentences.

        Raises:
            DecodeError: the payload is empty, too long, or no UTF-8.
        """
        if not 1 <= len(payload) <= self.spec.payload_bytes:
            raise DecodeError(f"expected a payload of 1 to {self.spec.payload_bytes} bytes, got {len(payload)}")
        try:
            return TextMemory(payload.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DecodeError(f"expected UTF-8 text, got {error.reason} at byte {error.start}") from error

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes nothing: the spec says it all."""
        return {}

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec with that spec."""
        return cls(spec.payload_bytes)


def _ends(sentences: list[str], count: int) -> str:
    """Returns ``count`` sentences, the first and the last in turn, with a mark where some are left out."""
    first, last = sentences[: (count + 1) // 2], sentences[len(sentences) - count // 2 :]
    between = LEFT_OUT if count < len(sentences) and last else " "
    return between.join(filter(None, (" ".join(first), " ".join(last))))
