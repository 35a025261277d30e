"""How keys and values lie in bytes. This docstring is the specification; integers are little-endian.

    part      bytes  what
    magic         8  69 6c 63 70 2d 6b 76 0a ("ilcp-kv", line feed)
    length        4  h, up to 2**20
    header        h  JSON in UTF-8, fields in the order of ``Header``, no spaces, numbers as short as they can be
    check        16  BLAKE2b, digest size 16, of all before it
    planes      ...  one behind the other, each as long as the header says; behind the last one nothing

The header says whose cache it is (``model``: digests of weights, tokenizer, chat template and adapters, the dtype, and
numbers of its states), how many ``tokens``, at which position the first one stood (``start``; null where keys are not
turned), and of each layer ``[heads, key width, value width, window, number of its rope]``; ``ropes`` lists radians per
position of each pair of dimensions. A layer with a window holds the last ``window - 1`` tokens.

``planes`` lists for each plane ``[bytes here, bytes unpacked]``. Where both are equal the plane stands as it is, else
as one zstd frame (RFC 8878) with its content size. What a plane unpacked means is its ``method``'s: the classes of
``ilcp_codecs.kv.codecs`` say so. A reader knows its model's ``Shape``: it refuses other layers and ropes than these,
more tokens than the model's window has, and planes of other lengths than follow; all before it unpacks any.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from hashlib import blake2b
from typing import Any

import msgspec
import zstandard

from ilcp.codec.keys_values import KeysValues, held_tokens
from ilcp.errors import ConfigError, DecodeError, EncodeError, IlcpError, StorageError
from ilcp.identity import ModelIdentity

__all__ = [
    "FORMAT",
    "MAX_TOKENS",
    "Header",
    "Layer",
    "Shape",
    "framed",
    "identity_of",
    "pack",
    "read_header",
    "shape_from",
    "unframed",
    "unpack",
]

MAGIC = b"ilcp-kv\n"
FORMAT = 1
MAX_HEADER_BYTES = 1 << 20  # a thousand layers' planes take a tenth
MAX_LAYERS, MAX_TOKENS, MAX_WIDTH = 1024, 1 << 24, 1 << 16  # more than any model has, and far below what overflows
LEVEL = 1  # of zstd: the planes that shrink do so at any level
CHECK_BYTES = 16

Sizes = tuple[int, int]


class Layer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The shape of one layer's keys and values, and the number of its rope in ``Header.ropes``."""

    heads: int
    key_width: int
    value_width: int
    window: int
    rope: int

    def held(self, tokens: int) -> int:
        """Returns how many of so many tokens the layer holds."""
        return held_tokens(tokens, self.window)


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model's caches look like: its layers, its ropes, and how many tokens its window has."""

    layers: tuple[Layer, ...]
    ropes: tuple[tuple[float, ...], ...]
    tokens: int

    @classmethod
    def of(cls, kv: KeysValues, tokens: int) -> "Shape":
        """Returns the shape of the model whose keys and values these are, for caches of so many tokens at most."""
        ropes = sorted(set(kv.ropes))
        layers = tuple(
            Layer(keys.shape[0], keys.shape[2], values.shape[2], window, ropes.index(rope))
            for keys, values, window, rope in zip(kv.keys, kv.values, kv.windows, kv.ropes, strict=True)
        )
        return cls(layers, tuple(ropes), tokens)

    def keys_values(self, pairs: Sequence[tuple[Any, Any]], tokens: int, start: int | None) -> KeysValues:
        """Returns keys and values of each layer as one cache of so many tokens.

        Raises:
            DecodeError: they are not of this shape.
        """
        keys, values = zip(*pairs, strict=True)
        ropes, windows = zip(*((self.ropes[layer.rope], layer.window) for layer in self.layers), strict=True)
        return KeysValues(keys, values, tokens, start, ropes, windows)

    @property
    def most_bytes(self) -> int:
        """The bytes that no container takes more than: of a header, and of each number and each scale in full."""
        held = [(layer, layer.held(self.tokens)) for layer in self.layers]
        numbers = sum(layer.heads * tokens * (layer.key_width + layer.value_width) for layer, tokens in held)
        scales = sum(layer.heads * (tokens + layer.key_width) for layer, tokens in held)
        return MAX_HEADER_BYTES + 4 * numbers + 8 * scales


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands before the planes."""

    format: int
    method: str
    settings: dict[str, int]
    model: dict[str, str]
    dtype: str
    tokens: int
    start: int | None
    layers: tuple[Layer, ...]
    ropes: tuple[tuple[float, ...], ...]
    planes: tuple[Sizes, ...] = ()


def pack(header: Header, planes: Iterable[bytes]) -> bytes:
    """Returns the container of planes.

    Raises:
        EncodeError: the header is too long.
    """
    press = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress
    stored, sizes = [], []
    for plane in planes:
        frame = press(plane)
        kept = frame if len(frame) < len(plane) else plane
        stored.append(kept)
        sizes.append((len(kept), len(plane)))
    head = msgspec.json.encode(msgspec.structs.replace(header, planes=tuple(sizes)))
    if len(head) > MAX_HEADER_BYTES:
        raise EncodeError(f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {len(head)}: too many layers")
    return b"".join([framed(MAGIC, head), *stored])


def read_header(payload: bytes | memoryview) -> tuple[Header, int]:
    """Returns the header of a container, checked, and where its planes begin.

    Raises:
        DecodeError: it is none, damaged, or of sizes that no model has.
    """
    head, begin = unframed(payload, MAGIC, MAX_HEADER_BYTES, "a container of keys and values")
    try:
        header = msgspec.json.decode(head, type=Header)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DecodeError(f"expected the header of a container, got: {error}") from error
    if msgspec.json.encode(header) != head:
        raise DecodeError("expected a header spelt as the specification says, got another spelling of it")
    _require_sound(header)
    return header, begin


def framed(magic: bytes, head: bytes) -> bytes:
    """Returns a header as every payload of ours begins: magic, length, header, check."""
    begin = magic + struct.pack("<I", len(head)) + head
    return begin + blake2b(begin, digest_size=CHECK_BYTES).digest()


def unframed(payload: bytes | memoryview, magic: bytes, most: int, what: str) -> tuple[bytes, int]:
    """Returns the header that ``framed`` framed, and where it ends.

    Args:
        most: bytes that a header may have.
        what: the payload is, in words.

    Raises:
        DecodeError: it is no such payload, or damaged.
    """
    data = memoryview(payload)
    if bytes(data[: len(magic)]) != magic or len(data) < len(magic) + 4:
        raise DecodeError(f"expected {what}, got {bytes(data[:8])!r} at its beginning: not one")
    (length,) = struct.unpack_from("<I", data, len(magic))
    body = len(magic) + 4 + length
    if length > most or len(data) < body + CHECK_BYTES:
        raise DecodeError(f"expected a header of {length} bytes and its check, got {len(data)} in all: truncated")
    if blake2b(data[:body], digest_size=CHECK_BYTES).digest() != data[body : body + CHECK_BYTES]:
        raise DecodeError("expected a header that fits its check, got another: damaged; fetch it again")
    return bytes(data[len(magic) + 4 : body]), body + CHECK_BYTES


def _require_sound(header: Header) -> None:
    if header.format != FORMAT:
        raise DecodeError(f"expected format {FORMAT}, got {header.format}: update ilcp, here or where it was written")
    if header.start is not None and not 0 <= header.start <= MAX_TOKENS:
        raise DecodeError(f"expected a start from 0 to {MAX_TOKENS}, got {header.start}")
    require_shape(Shape(header.layers, header.ropes, header.tokens), DecodeError)
    try:
        ModelIdentity.from_dict(header.model, "a container's model", error=DecodeError)
    except ConfigError as error:
        raise DecodeError(str(error)) from error


def require_shape(shape: Shape, error: type[IlcpError]) -> None:
    """Refuses what no model's caches look like.

    Raises:
        IlcpError: ``error``, with what was expected.
    """
    if not 1 <= len(shape.layers) <= MAX_LAYERS or not 1 <= shape.tokens <= MAX_TOKENS:
        got = f"{len(shape.layers)} and {shape.tokens}"
        raise error(f"expected 1 to {MAX_LAYERS} layers and 1 to {MAX_TOKENS} tokens, got {got}")
    for number, layer in enumerate(shape.layers):
        widths = (layer.heads, layer.key_width, layer.value_width)
        if not all(1 <= width <= MAX_WIDTH for width in widths) or not (layer.window == 0 or 2 <= layer.window):
            raise error(f"expected heads, widths and a window that a model can have, got {layer} as {number}")
        if not 0 <= layer.rope < len(shape.ropes) or 2 * len(shape.ropes[layer.rope]) > layer.key_width:
            raise error(f"expected one of {len(shape.ropes)} ropes, none wider than the keys, in layer {number}")


def shape_from(record: Any, where: str) -> Shape:
    """Reads the shape that ``msgspec.to_builtins`` wrote.

    Raises:
        StorageError: it is none; the text names the place ``where``.
    """
    try:
        shape = msgspec.convert(record, Shape)
    except msgspec.ValidationError as error:
        raise StorageError(f"expected the shape of a model's caches in {where}, got: {error}") from error
    require_shape(shape, StorageError)
    return shape


def unpack(payload: bytes | memoryview, header: Header, begin: int, sizes: Sequence[int]) -> list[Any]:
    """Returns the planes, each unpacked to the size that its method computed from the header.

    Raises:
        DecodeError: the planes are of other sizes, or do not unpack.
    """
    data = memoryview(payload)
    if [unpacked for _, unpacked in header.planes] != list(sizes):
        raise DecodeError(f"expected {len(sizes)} planes as long as the layers say, got others in the header")
    ends = sum(stored for stored, _ in header.planes if stored >= 0)
    if any(not 0 <= stored <= size for stored, size in header.planes) or begin + ends != len(data):
        raise DecodeError(f"expected planes of {ends} bytes behind the header, got {len(data) - begin}")
    unpress = zstandard.ZstdDecompressor()
    planes: list[Any] = []
    for stored, size in header.planes:
        piece = data[begin : begin + stored]
        begin += stored
        planes.append(piece if stored == size else _unpressed(unpress, piece, size))
    return planes


def _unpressed(unpress: Any, piece: memoryview, size: int) -> bytes:
    try:
        if zstandard.frame_content_size(piece) != size:
            raise DecodeError(f"expected a frame of {size} bytes, got {zstandard.frame_content_size(piece)}")
        plane: bytes = unpress.decompress(piece, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DecodeError(f"expected a whole zstd frame of {size} bytes, got: {error}") from error
    if len(plane) != size:
        raise DecodeError(f"expected a frame of {size} bytes, got {len(plane)}")
    return plane


def identity_of(model: ModelIdentity) -> dict[str, str]:
    """Returns an identity as the header has it."""
    return {name: str(value) for name, value in asdict(model).items()}
