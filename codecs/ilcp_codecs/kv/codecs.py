"""Codecs whose payload is the cache itself.

::

    KeysValues --planes--> container --unpack--> KeysValues --> CacheMemory
      exact    keys as they are turned, values            byte planes of both: nothing is lost
      rounded  keys turned back, values                   first tokens as exact; codes of 8 or 4 bits of all others:
                                                          a scale for each channel of the keys, each token of the values

One model writes and reads: its identity is sender and receiver at once, but for ``kv-align``'s. An approximate cache
stands in a prompt as a memory and is never taken for the cache of a text that was read.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
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
from ilcp.models.kv import read_kv
from ilcp.models.reading import window_tokens
from ilcp.models.rope import ropes_of
from ilcp.models.support import require_receiver
from ilcp_codecs.kv.container import (
    FORMAT,
    MAX_TOKENS,
    Header,
    Layer,
    Shape,
    identity_of,
    pack,
    read_header,
    shape_from,
    unpack,
)
from ilcp_codecs.kv.quantise import (
    exact_planes,
    exact_sizes,
    from_exact,
    from_rounded,
    rounded_planes,
    rounded_sizes,
)

__all__ = ["FIRST", "CodedCodec", "ExactCodec", "Int4Codec", "Int8Codec", "KvCodec", "Sizes3", "own_shape", "shape_of"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST = 4  # tokens kept exact: attention rests on them, and their keys are far larger than others

Pair = tuple[Tensor, Tensor]  # keys and values of a layer, "heads tokens head"
Sizes3 = tuple[int, int, int]
Shapes = tuple[Sizes3, Sizes3]  # of a layer's keys and values, "heads tokens head"


class KvCodec(ABC):
    """A base for codecs of one model's keys and values; ``of`` makes one.

    Args:
        model: whose caches they are.
        shape: what these look like; a cache of another shape, or of more tokens, is refused.
    """

    name: ClassVar[str]
    turned: ClassVar[bool]  # whether keys lie as they were turned
    layers: tuple[int, ...] = ()
    questions: tuple[str, ...] = ()  # that a sender asks of its own cache, to see what they look at

    def __init__(self, model: ModelIdentity, shape: Shape):
        self.spec = CodecSpec(self.name, min(shape.most_bytes, MAX_BLOB_BYTES), "cache")
        self.trained = Trained(model, model)
        self.evidence: Evidence | None = None
        self.folder: Path | None = None
        self.shape = self.reads = shape  # of what decode gives, and of what encode takes

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, tokens: int | None = None) -> Self:
        """Returns the codec of a loaded model.

        Args:
            tokens: the most that a cache may stand for; None for the model's window.

        Raises:
            ConfigError: the model cannot be identified, keeps no keys and values, or has no such window.
        """
        return cls(identify(model, tokenizer), shape_of(model, tokens))

    @classmethod
    def for_model(
        cls, model: Any, tokenizer: Any, budget: str = "", *, texts: Iterable[str] = (), questions: Iterable[str] = ()
    ) -> Self:
        """Returns the codec that a command line names as ``NAME`` or ``NAME:BUDGET``.

        Args:
            budget: what the method spends, in its own words; empty for its usual.
            texts: such as it will be used on, for a method that is fitted.
            questions: such as the receiver will ask, for a method that looks at what they look at.

        Raises:
            ConfigError: it has no such budget, or as ``of``.
        """
        cls.require_budget(budget)
        return cls._within(model, tokenizer, budget, texts, questions)

    @classmethod
    def _within(cls, model: Any, tokenizer: Any, budget: str, texts: Iterable[str], questions: Iterable[str]) -> Self:
        """Returns the codec of a budget that ``require_budget`` let pass; empty: the usual."""
        return cls.of(model, tokenizer)

    @classmethod
    def require_budget(cls, budget: str) -> None:
        """Refuses what ``for_model`` takes for no budget, before a model is loaded.

        Raises:
            ConfigError: with what it may be.
        """
        if budget:
            raise ConfigError(f"expected {cls.name} alone, got {cls.name}:{budget[:40]}: it has no budget")

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the container of a context's keys and values.

        Raises:
            EncodeError: the context has none, they are another model's or not finite, or take more than
                ``payload_bytes``.
            ConfigError: keys and values are of a dtype that no container holds.
        """
        limit, kv = self.spec.length(payload_bytes), self.own(context)
        payload = self.container(kv)
        if len(payload) > limit:
            raise EncodeError(
                f"expected a cache of at most {limit} bytes, got {len(payload)} of {kv.tokens} tokens: hand off a "
                "shorter text, or choose a codec of fewer bits"
            )
        return payload

    def own(self, context: Context) -> KeysValues:
        """Returns a context's keys and values, if they are this codec's model's.

        Raises:
            EncodeError, ConfigError: as ``encode``.
        """
        if context.kv is None:
            raise EncodeError(f"expected a context with keys and values for codec {self.name!r}, got none")
        self._require_own(context.kv)
        return context.kv

    def container(self, kv: KeysValues) -> bytes:
        """Returns the container of keys and values, which are not looked at again."""
        if not self.turned and all(kv.ropes):
            kv = kv.at(None)
        header = Header(
            format=FORMAT,
            method=self.name,
            settings=self.settings(),
            model=identity_of(self.trained.receiver),
            dtype=dtype_name(kv.dtype),
            tokens=kv.tokens,
            start=kv.start,
            layers=self.shape.layers,
            ropes=self.shape.ropes,
        )
        pairs = enumerate(zip(kv.keys, kv.values, strict=True))
        return pack(header, (plane for layer, pair in pairs for plane in self.planes(pair, layer)))

    def _require_own(self, kv: KeysValues) -> None:
        dtypes = {each.dtype for each in (*kv.keys, *kv.values)}
        if len(dtypes) != 1 or not dtypes <= set(DTYPES.values()):
            named = sorted(map(str, dtypes))
            raise ConfigError(f"expected keys and values in one of {', '.join(DTYPES)}, got {named}: load the model so")
        if Shape.of(kv, self.reads.tokens) != self.reads or kv.tokens > self.reads.tokens:
            raise EncodeError(
                f"expected keys and values of this codec's model, at most {self.reads.tokens} tokens, got others "
                f"of {kv.tokens}: make a codec of the model that they are of"
            )
        if not all(bool(torch.isfinite(each).all()) for each in (*kv.keys, *kv.values)):
            raise EncodeError("expected finite keys and values, got NaN or infinity: the sender's weights are damaged")

    def decode(self, payload: bytes) -> Memory:
        """Returns the memory of keys and values that a payload stands for.

        Raises:
            DecodeError: it is no container of this codec and model, or damaged.
        """
        header, begin = read_header(payload)
        if (header.method, header.settings) != (self.name, self.settings()):
            raise DecodeError(f"expected a cache by {self.name}, got one by {header.method}, or with other settings")
        if header.model != identity_of(self.trained.receiver):
            raise DecodeError("expected a cache for this codec's model, got another model's: it would be read as noise")
        if (header.layers, header.ropes) != (self.shape.layers, self.shape.ropes):
            raise DecodeError(
                "expected the layers and ropes of this codec's model, got others: it would be read as noise"
            )
        if header.tokens > self.shape.tokens:
            raise DecodeError(f"expected a cache of at most {self.shape.tokens} tokens, got {header.tokens}: drop it")
        if header.dtype not in DTYPES:
            raise DecodeError(f"expected keys and values in {', '.join(DTYPES)}, got {header.dtype[:40]!r}")
        dtype = DTYPES[header.dtype]
        shapes = [_shapes(layer, header.tokens) for layer in header.layers]
        sizes = [self.sizes(shape, dtype, layer) for layer, shape in enumerate(shapes)]
        planes = iter(unpack(payload, header, begin, [size for each in sizes for size in each]))
        pairs = [
            self.pair(_taken(planes, len(own)), shape, dtype, layer)
            for layer, (own, shape) in enumerate(zip(sizes, shapes, strict=True))
        ]
        return CacheMemory(self.shape.keys_values(pairs, header.tokens, header.start))

    def settings(self) -> dict[str, int]:
        """Returns what the container says of the method beside its name."""
        return {}

    @abstractmethod
    def planes(self, pair: Pair, layer: int) -> Iterator[bytes]:
        """Yields the planes of one layer's keys and values."""

    @abstractmethod
    def sizes(self, shapes: Shapes, dtype: torch.dtype, layer: int) -> list[int]:
        """Returns how long these planes are, by the shapes alone."""

    @abstractmethod
    def pair(self, planes: Sequence[Any], shapes: Shapes, dtype: torch.dtype, layer: int) -> Pair:
        """Returns the keys and values of one layer out of its planes."""

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes nothing; returns the shape."""
        shape: dict[str, Any] = msgspec.to_builtins(self.shape)
        return shape

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec with those settings.

        Raises:
            StorageError: the settings are not those of such a codec, or there are two models.
        """
        return cls(trained.sender, own_shape(folder, trained, settings))


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
        return [size for shape in shapes for size in exact_sizes(math.prod(shape), dtype)]

    def pair(self, planes: Sequence[Any], shapes: Shapes, dtype: torch.dtype, layer: int) -> Pair:
        """Returns keys and values put together again."""
        half = len(planes) // 2
        keys, values = (
            from_exact(list(own), shape, dtype)
            for own, shape in zip((planes[:half], planes[half:]), shapes, strict=True)
        )
        return keys, values


class CodedCodec(KvCodec):
    """The first tokens of keys and of values byte plane by byte plane, the rest of each as its own method codes it.

    ``side`` is 0 for keys and 1 for values; ``shape`` is that of the rest, ``"heads tokens head"``.
    """

    turned = False

    def settings(self) -> dict[str, int]:
        """Returns how many first tokens are exact."""
        return {"first": FIRST}

    def planes(self, pair: Pair, layer: int) -> Iterator[bytes]:
        """Yields of keys and then of values: the byte planes of the first tokens, and what the rest is coded as."""
        for side, each in enumerate(pair):
            yield from exact_planes(each[:, :FIRST])
            if each.shape[1] > FIRST:
                yield from self.coded(each[:, FIRST:], layer, side)

    def sizes(self, shapes: Shapes, dtype: torch.dtype, layer: int) -> list[int]:
        """Returns the same lengths."""
        found = []
        for side, (heads, held, width) in enumerate(shapes):
            found += exact_sizes(heads * min(held, FIRST) * width, dtype)
            if held > FIRST:
                found += self.coded_sizes((heads, held - FIRST, width), layer, side)
        return found

    def pair(self, planes: Sequence[Any], shapes: Shapes, dtype: torch.dtype, layer: int) -> Pair:
        """Returns keys and values, the coded tokens behind the exact ones."""
        left = iter(planes)
        keys, values = (self._joined(left, shape, dtype, layer, side) for side, shape in enumerate(shapes))
        return keys, values

    def _joined(self, planes: Iterator[Any], shape: Sizes3, dtype: torch.dtype, layer: int, side: int) -> Tensor:
        heads, held, width = shape
        first = from_exact(_taken(planes, dtype.itemsize), (heads, min(held, FIRST), width), dtype)
        if held <= FIRST:
            return first
        return torch.cat([first, self.decoded(planes, (heads, held - FIRST, width), layer, side).to(dtype)], 1)

    @abstractmethod
    def coded(self, rest: Tensor, layer: int, side: int) -> Iterator[bytes]:
        """Yields the planes of the rest."""

    @abstractmethod
    def coded_sizes(self, shape: Sizes3, layer: int, side: int) -> list[int]:
        """Returns how long these planes are."""

    @abstractmethod
    def decoded(self, planes: Iterator[Any], shape: Sizes3, layer: int, side: int) -> Tensor:
        """Returns the rest in float32, out of as many planes as it takes."""


class RoundedCodec(CodedCodec):
    """The rest rounded to ``bits``: a scale for each channel of the keys, and for each token of the values."""

    bits: ClassVar[int]

    def coded(self, rest: Tensor, layer: int, side: int) -> Iterator[bytes]:
        """Yields codes, and scales."""
        yield from rounded_planes(rest, self.bits, side + 1)

    def coded_sizes(self, shape: Sizes3, layer: int, side: int) -> list[int]:
        """Returns the same lengths."""
        return rounded_sizes(shape, self.bits, side + 1)

    def decoded(self, planes: Iterator[Any], shape: Sizes3, layer: int, side: int) -> Tensor:
        """Returns what codes and scales stand for."""
        return from_rounded(_taken(planes, 2), shape, self.bits, side + 1)


class Int8Codec(RoundedCodec):
    """Eight bits: as good as the text in all that was measured, a little more than half as long as bfloat16."""

    name = "kv-int8"
    bits = 8


class Int4Codec(RoundedCodec):
    """Four bits: a quarter of bfloat16."""

    name = "kv-int4"
    bits = 4


def dtype_name(dtype: torch.dtype) -> str:
    """Returns what a container calls a dtype, one of ``DTYPES``."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def shape_of(model: Any, tokens: int | None = None) -> Shape:
    """Returns what a loaded model's caches look like, for so many tokens at most, or as many as its window has.

    Raises:
        ConfigError: the model keeps no keys and values, or has no such window.
    """
    most = window_tokens(model)
    if tokens is not None and (type(tokens) is not int or not 1 <= tokens <= most):
        raise ConfigError(f"expected tokens from 1 to the model's {most}, got {tokens!r}")
    require_receiver(model)
    return Shape.of(read_kv(model, [0], 0, ropes_of(model)), min(tokens or most, MAX_TOKENS))


def own_shape(folder: Path, trained: Trained, settings: Mapping[str, Any]) -> Shape:
    """Returns the shape in a codec's settings.

    Raises:
        StorageError: there is none, or there are two models.
    """
    if trained.sender != trained.receiver:
        raise StorageError(f"expected one model at both ends of a cache's codec in {folder}, got two: save it again")
    return shape_from(dict(settings), f"the settings in {folder}")


def _shapes(layer: Layer, tokens: int) -> Shapes:
    held = layer.held(tokens)
    return (layer.heads, held, layer.key_width), (layer.heads, held, layer.value_width)


def _taken(planes: Iterator[Any], count: int) -> list[Any]:
    return list(islice(planes, count))
