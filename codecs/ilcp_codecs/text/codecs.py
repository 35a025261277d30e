"""Four text codecs.

::

    plain   text --UTF-8--> payload, or an error where it does not fit
    head    text --UTF-8, first N bytes, cut before a broken character--> payload
    tail    text --UTF-8, last N bytes, cut after a broken character--> payload
    zstd    text --the longest head whose zstd frame (trained dictionary, no header extras) fits--> payload
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import zstandard

from ilcp.codec.context import Context
from ilcp.codec.memory import Memory, TextMemory
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError, StorageError
from ilcp.evidence import Evidence
from ilcp.folders import inside
from ilcp.identity import ANY, ModelIdentity
from ilcp.inputs import hidden, require_text
from ilcp.message import MAX_PAYLOAD_BYTES

__all__ = ["HeadCodec", "PlainCodec", "TailCodec", "ZstdCodec"]

DICTIONARY = "dictionary.zstd"
DICTIONARY_BYTES = 16 << 10  # about what a few thousand short texts can fill
MOST_DICTIONARY_BYTES = 1 << 20  # zstd's own limit for a trained one is far below
MAX_TEXT_BYTES = 1 << 20  # what one payload may expand to: 1 MiB is more text than a small receiver's window holds
WINDOW_LOG = 17  # what a frame may ask the decompressor to allocate: 128 KiB, more than any payload that fits
LEVEL = 19


class TextCodec(ABC):
    """A base for text codecs: text in, text out, any receiver; and any sender, but for a codec with a model."""

    name: str
    layers: tuple[int, ...] = ()
    folder: Path | None = None

    def __init__(self, payload_bytes: int = MAX_PAYLOAD_BYTES, weights: str = "", sender: ModelIdentity = ANY):
        self.spec = CodecSpec(self.name, payload_bytes, "text")
        self.evidence: Evidence | None = None
        self.trained = Trained(sender, ANY, weights)

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the payload of a context's text.

        Raises:
            EncodeError: the context has no text, one that hides something (``ilcp.inputs.hidden``), or none of it fits.
        """
        limit = self.spec.length(payload_bytes)
        if not context.text:
            raise EncodeError(f"expected a context with text for codec {self.spec.name!r}, got states only")
        text = require_text(context.text, "a context's text", may_be_empty=True)
        unseen = hidden(text)
        if unseen:  # every receiver would refuse the message
            raise EncodeError(f"expected a context's text of characters that are seen, got {unseen}: leave it out")
        payload = self._pack(text, limit)
        if not payload:
            raise EncodeError(f"expected room for at least one character, got {limit} bytes: allow a longer payload")
        return payload

    def decode(self, payload: bytes) -> Memory:
        """Returns the text that a payload stands for.

        Raises:
            DecodeError: the payload is empty, too long, or no UTF-8.
        """
        if not 1 <= len(payload) <= self.spec.payload_bytes:
            raise DecodeError(f"expected a payload of 1 to {self.spec.payload_bytes} bytes, got {len(payload)}")
        try:
            return TextMemory(self._unpack(payload).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DecodeError(f"expected UTF-8 text, got {error.reason} at byte {error.start}") from error

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes nothing, since there are no settings."""
        return {}

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec with that spec."""
        return cls(spec.payload_bytes)

    @abstractmethod
    def _pack(self, text: str, limit: int) -> bytes:
        """Returns at most ``limit`` bytes for ``text``; none at all where not even one character fits."""

    def _unpack(self, payload: bytes) -> bytes:
        return payload


class PlainCodec(TextCodec):
    """The whole text as UTF-8; never cut silently."""

    name = "text-plain"

    def _pack(self, text: str, limit: int) -> bytes:
        payload = text.encode("utf-8")
        if len(payload) > limit:
            raise EncodeError(
                f"expected a text of at most {limit} bytes, got {len(payload)}: codec 'text-head' or 'text-tail' cuts"
            )
        return payload


class HeadCodec(TextCodec):
    """The beginning of the text, as much as fits."""

    name = "text-head"

    def _pack(self, text: str, limit: int) -> bytes:
        return text.encode("utf-8")[:limit].decode("utf-8", errors="ignore").encode("utf-8")


class TailCodec(TextCodec):
    """The end of the text, as much as fits."""

    name = "text-tail"

    def _pack(self, text: str, limit: int) -> bytes:
        tail = text.encode("utf-8")[-limit:].decode("utf-8", errors="ignore")
        first = next(
            (place for place, each in enumerate(tail) if not hidden(each)), len(tail)
        )  # joins nothing any more
        return tail[first:].encode("utf-8")


class ZstdCodec(TextCodec):
    """The longest beginning of the text that fits when compressed with a dictionary trained on such texts."""

    name = "text-zstd"
    hub_files = (DICTIONARY,)

    def __init__(self, payload_bytes: int = MAX_PAYLOAD_BYTES, dictionary: bytes = b""):
        super().__init__(payload_bytes, _dictionary_digest(dictionary))
        self.dictionary = dictionary

    @classmethod
    def fit(cls, texts: Iterable[str], payload_bytes: int = MAX_PAYLOAD_BYTES) -> "ZstdCodec":
        """Returns a codec with a dictionary trained on ``texts``.

        Raises:
            ConfigError: the texts are too few or too short for a dictionary.
        """
        samples: list[bytes | bytearray | memoryview] = [
            require_text(text, f"text {number}", error=ConfigError, may_be_empty=True).encode("utf-8")
            for number, text in enumerate(texts)
        ]
        try:
            dictionary = zstandard.train_dictionary(DICTIONARY_BYTES, samples).as_bytes()
        except zstandard.ZstdError as error:
            raise ConfigError(f"expected enough texts for a dictionary, got {len(samples)} ({error})") from error
        return cls(payload_bytes, dictionary)

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes the dictionary."""
        (folder / DICTIONARY).write_bytes(self.dictionary)
        return {}

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec with its dictionary.

        Raises:
            StorageError: the dictionary is missing.
            IdentityError: it is not the one that the codec was saved with.
        """
        try:
            with inside(folder, DICTIONARY).open("rb") as file:
                dictionary = file.read(MOST_DICTIONARY_BYTES + 1)
        except OSError as error:
            raise StorageError(f"expected the dictionary {folder / DICTIONARY}, got: {error}") from error
        found = _dictionary_digest(dictionary)
        if found != trained.weights:  # before zstd reads it
            raise IdentityError(f"expected dictionary {trained.weights}, got {found}: fetch the codec again")
        codec = cls(spec.payload_bytes, dictionary)
        codec._frame(codec._compressor(), b"", 0)  # zstd looks at a dictionary when it first uses it
        return codec

    def _pack(self, text: str, limit: int) -> bytes:
        raw, compressor = text.encode("utf-8"), self._compressor()
        # The frame grows with the text but for a byte or two: search, then step back.
        low, high = 0, min(len(raw), MAX_TEXT_BYTES)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(self._frame(compressor, raw, middle)) <= limit else (low, middle - 1)
        while low and len(self._frame(compressor, raw, low)) > limit:
            low -= 1
        return self._frame(compressor, raw, low) if low else b""

    @staticmethod
    def _frame(compressor: zstandard.ZstdCompressor, raw: bytes, length: int) -> bytes:
        return compressor.compress(raw[:length].decode("utf-8", errors="ignore").encode("utf-8"))

    # Compressors, decompressors and what they make of a dictionary are for one thread: each call has its own.

    def _trained(self) -> zstandard.ZstdCompressionDict | None:
        return zstandard.ZstdCompressionDict(self.dictionary) if self.dictionary else None

    def _compressor(self) -> zstandard.ZstdCompressor:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL,
            window_log=WINDOW_LOG,
            write_content_size=False,
            write_checksum=False,
            write_dict_id=False,
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        )
        return zstandard.ZstdCompressor(dict_data=self._trained(), compression_params=parameters)

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        return zstandard.ZstdDecompressor(
            dict_data=self._trained(), max_window_size=1 << WINDOW_LOG, format=zstandard.FORMAT_ZSTD1_MAGICLESS
        )

    def _unpack(self, payload: bytes) -> bytes:
        decompressor = self._decompressor()
        try:
            text = decompressor.stream_reader(payload, read_across_frames=False).read(MAX_TEXT_BYTES + 1)
            if len(text) > MAX_TEXT_BYTES:
                raise DecodeError(f"expected a text of at most {MAX_TEXT_BYTES} bytes, got more: the frame is refused")
            frame = decompressor.decompressobj()  # the expansion is bounded now: see that the frame ends
            frame.decompress(payload)
        except zstandard.ZstdError as error:
            raise DecodeError(f"expected a zstd frame under this codec's dictionary, got: {error}") from error
        if not frame.eof or frame.unused_data:
            raise DecodeError(
                f"expected one whole zstd frame, got {len(payload)} bytes that are truncated or go on behind it"
            )
        return text


def _dictionary_digest(dictionary: bytes) -> str:
    return blake2b(dictionary, digest_size=16).hexdigest()
