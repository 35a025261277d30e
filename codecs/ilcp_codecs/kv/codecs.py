"""Codecs whose payload is the cache itself.

::

    KeysValues --planes--> container --unpack--> KeysValues --> CacheMemory
      exact    keys as they are turned, values            byte planes of both: nothing is lost
      rounded  keys turned back, values                   first tokens as exact; codes of 8 or 4 bits of all others:
                                                          a scale for each channel of the keys, each token of the values

One model writes and reads: its identity is sender and receiver at once. An approximate cache stands in a prompt as a
memory and is never taken for the cache of a text that was read.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ilcp.codec.context import Context
from ilcp.codec.keys_values import KeysValues
from ilcp.codec.memory import CacheMemory, Memory
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, DecodeError, EncodeError, StorageError
from ilcp.evidence import Evidence
from ilcp.identity import ModelIdentity
from ilcp.message import MAX_BLOB_BYTES
from ilcp.models.fingerprint import identify
from ilcp_codecs.kv.container import MAX_CACHE_BYTES, Header, Layer, identity_of, pack, read_header, unpack
from ilcp_codecs.kv.quantise import (
    exact_planes,
    exact_sizes,
    from_exact,
    from_rounded,
    rounded_planes,
    rounded_sizes,
)

__all__ = ["FIRST", "ExactCodec", "Int4Codec", "Int8Codec", "KvCodec", "Pair", "Shapes", "require_settings"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST = 4  # tokens kept exact: attention rests on them, and their keys are far larger than others

Pair = tuple[Tensor, Tensor]  # keys and values of a layer, "heads tokens head"


class KvCodec(ABC):
    """A base for codecs of one model's keys and values.

    Args:
        model: whose cache it is; ``of`` finds it out.
        limit: the most bytes that a payload may unpack to.
    """

    name: ClassVar[str]
    turned: ClassVar[bool]  # whether keys lie as they were turned
    layers: tuple[int, ...] = ()

    def __init__(self, model: ModelIdentity, *, limit: int = MAX_CACHE_BYTES):
        self.spec = CodecSpec(self.name, MAX_BLOB_BYTES, "cache")
        self.trained = Trained(model, model)
        self.evidence: Evidence | None = None
        self.folder: Path | None = None
        self.limit = limit

    @classmethod
    def of(cls, model: Any, tokenizer: Any, **settings: Any) -> Self:
        """Returns the codec of a loaded model.

        Raises:
            ConfigError: the model cannot be identified, or a setting is none of this codec's.
        """
        return cls(identify(model, tokenizer), **settings)

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the container of a context's keys and values.

        Raises:
            EncodeError: the context has none, or they take more than ``payload_bytes``.
            ConfigError: keys and values are of a dtype that no container holds.
        """
        limit = self.spec.length(payload_bytes)
        kv = context.kv
        if kv is None:
            raise EncodeError(f"expected a context with keys and values for codec {self.name!r}, got none")
        named = {dtype: name for name, dtype in DTYPES.items()}
        if kv.dtype not in named:
            raise ConfigError(f"expected keys and values in {', '.join(DTYPES)}, got {kv.dtype}: load the model in one")
        if not self.turned and all(kv.ropes):
            kv = kv.at(None)
        ropes = sorted(set(kv.ropes))
        layers = tuple(
            Layer(keys.shape[0], keys.shape[2], values.shape[2], window, ropes.index(rope))
            for keys, values, window, rope in zip(kv.keys, kv.values, kv.windows, kv.ropes, strict=True)
        )
        header = Header(
            format=1,
            method=self.name,
            settings=self.settings(),
            model=identity_of(self.trained.sender),
            dtype=named[kv.dtype],
            tokens=kv.tokens,
            start=kv.start,
            layers=layers,
            ropes=tuple(ropes),
        )
        pairs = enumerate(zip(kv.keys, kv.values, strict=True))
        planes = (plane for layer, pair in pairs for plane in self.planes(pair, layer))
        payload = pack(header, planes)
        if len(payload) > limit:
            raise EncodeError(
                f"expected a cache of at most {limit} bytes, got {len(payload)} of {kv.tokens} tokens: hand off a "
                "shorter text, or choose a codec of fewer bits"
            )
        return payload

    def decode(self, payload: bytes) -> Memory:
        """Returns the memory of keys and values that a payload stands for.

        Raises:
            DecodeError: it is no container of this codec and model, or damaged.
        """
        header, begin = read_header(payload)
        if header.method != self.name or header.settings != self.settings():
            raise DecodeError(
                f"expected a cache by {self.name} {self.settings() or ''}, got {header.method} {header.settings or ''}"
            )
        if header.model != identity_of(self.trained.sender):
            raise DecodeError("expected a cache of this codec's model, got another model's: it would be read as noise")
        if header.dtype not in DTYPES:
            raise DecodeError(f"expected keys and values in {', '.join(DTYPES)}, got {header.dtype!r}")
        dtype = DTYPES[header.dtype]
        shapes = [_shapes(layer, header.tokens) for layer in header.layers]
        sizes = [self.sizes(shape, dtype, layer) for layer, shape in enumerate(shapes)]
        planes = iter(unpack(payload, header, begin, [size for each in sizes for size in each], self.limit))
        pairs = [
            self.pair(_taken(planes, len(own)), shape, dtype, layer)
            for layer, (own, shape) in enumerate(zip(sizes, shapes, strict=True))
        ]
        return CacheMemory(
            KeysValues(
                keys=tuple(keys for keys, _ in pairs),
                values=tuple(values for _, values in pairs),
                tokens=header.tokens,
                start=header.start,
                ropes=tuple(header.ropes[layer.rope] for layer in header.layers),
                windows=tuple(layer.window for layer in header.layers),
            )
        )

    def settings(self) -> dict[str, int]:
        """Returns what the container says of the method beside its name."""
        return {}

    @abstractmethod
    def planes(self, pair: Pair, layer: int) -> Iterator[bytes]:
        """Yields the planes of one layer's keys and values."""

    @abstractmethod
    def sizes(self, shapes: "Shapes", dtype: torch.dtype, layer: int) -> list[int]:
        """Returns how long these planes are, by the shapes alone."""

    @abstractmethod
    def pair(self, planes: Sequence[Any], shapes: "Shapes", dtype: torch.dtype, layer: int) -> Pair:
        """Returns the keys and values of one layer out of its planes."""

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes nothing; returns the settings."""
        return {"limit": self.limit}

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec with those settings.

        Raises:
            StorageError: the settings are not those of such a codec, or there are two models.
        """
        require_settings(folder, trained, settings)
        return cls(trained.sender, limit=settings["limit"])


Shapes = tuple[tuple[int, int, int], tuple[int, int, int]]


class ExactCodec(KvCodec):
    """Keys and values as the model computed them, byte plane by byte plane: nothing is lost."""

    name = "kv-exact"
    turned = True

    def planes(self, pair: Pair, layer: int) -> Iterator[bytes]:
        """Yields the byte planes of keys, then of values."""
        for each in pair:
            yield from exact_planes(each)

    def sizes(self, shapes: Shapes, dtype: torch.dtype, layer: int) -> list[int]:
        """Returns the number of values for each byte of one."""
        return [size for shape in shapes for size in exact_sizes(_count(shape), dtype)]

    def pair(self, planes: Sequence[Any], shapes: Shapes, dtype: torch.dtype, layer: int) -> Pair:
        """Returns keys and values put together again."""
        half = len(planes) // 2
        keys, values = (
            from_exact(list(own), shape, dtype)
            for own, shape in zip((planes[:half], planes[half:]), shapes, strict=True)
        )
        return keys, values


class RoundedCodec(KvCodec):
    """Keys and values rounded to ``bits``, but for the first tokens."""

    bits: ClassVar[int]
    turned = False

    def settings(self) -> dict[str, int]:
        """Returns how many first tokens are exact."""
        return {"first": FIRST}

    def planes(self, pair: Pair, layer: int) -> Iterator[bytes]:
        """Yields of keys and then of values: the byte planes of the first tokens, codes, scales."""
        for each, axis in zip(pair, (1, 2), strict=True):
            yield from exact_planes(each[:, :FIRST])
            if each.shape[1] > FIRST:
                yield from rounded_planes(each[:, FIRST:], self.bits, axis)

    def sizes(self, shapes: Shapes, dtype: torch.dtype, layer: int) -> list[int]:
        """Returns the same lengths."""
        found = []
        for (heads, held, width), axis in zip(shapes, (1, 2), strict=True):
            found += exact_sizes(heads * min(held, FIRST) * width, dtype)
            if held > FIRST:
                found += rounded_sizes((heads, held - FIRST, width), self.bits, axis)
        return found

    def pair(self, planes: Sequence[Any], shapes: Shapes, dtype: torch.dtype, layer: int) -> Pair:
        """Returns keys and values, the rounded tokens behind the exact ones."""
        left = iter(planes)
        keys, values = (self._joined(left, shape, axis, dtype) for shape, axis in zip(shapes, (1, 2), strict=True))
        return keys, values

    def _joined(self, planes: Iterator[Any], shape: tuple[int, int, int], axis: int, dtype: torch.dtype) -> Tensor:
        heads, held, width = shape
        first = from_exact(_taken(planes, dtype.itemsize), (heads, min(held, FIRST), width), dtype)
        if held <= FIRST:
            return first
        rounded = from_rounded(_taken(planes, 2), (heads, held - FIRST, width), self.bits, axis)
        return torch.cat([first, rounded.to(dtype)], 1)


class Int8Codec(RoundedCodec):
    """Eight bits: as good as the text in all that was measured, a little more than half as long as bfloat16."""

    name = "kv-int8"
    bits = 8


class Int4Codec(RoundedCodec):
    """Four bits: a quarter of bfloat16."""

    name = "kv-int4"
    bits = 4


def require_settings(folder: Path, trained: Trained, settings: Mapping[str, Any]) -> None:
    """Refuses settings that no codec of keys and values has.

    Raises:
        StorageError: there are others than a limit in bytes, or two models.
    """
    limit = settings.get("limit")
    if trained.sender != trained.receiver or set(settings) != {"limit"} or type(limit) is not int or limit < 1:
        raise StorageError(f"expected one model and a limit in bytes in {folder}, got {dict(settings)}: save it again")


def _shapes(layer: Layer, tokens: int) -> Shapes:
    held = layer.held(tokens)
    return (layer.heads, held, layer.key_width), (layer.heads, held, layer.value_width)


def _count(shape: tuple[int, int, int]) -> int:
    heads, held, width = shape
    return heads * held * width


def _taken(planes: Iterator[Any], count: int) -> list[Any]:
    return list(islice(planes, count))
