"""One model's keys and values out of another's: for each layer of the receiver a linear map of some of the sender's.

::

    sender's KeysValues, turned back --source layers side by side--> "tokens features" @ weight + bias
      --> receiver's KeysValues of no position --eight bits--> container of the receiver

The memory has as many tokens as the sender read, each at a position of its own, whatever the receiver's tokenizer would
have made of the text: so the sender needs nothing of the receiver but this codec. ``ilcp_codecs.kv.aligning`` finds the
map; ``ilcp align`` does so, and measures what it carries.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from ilcp.codec.context import Context
from ilcp.codec.keys_values import KeysValues
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, EncodeError, IdentityError, StorageError
from ilcp.identity import ModelIdentity
from ilcp.models.own_weights import OwnWeights
from ilcp_codecs.kv.codecs import DTYPES, Int8Codec
from ilcp_codecs.kv.container import Layer, Shape, shape_from
from ilcp_codecs.kv.tensors import WEIGHTS, Shapes, digest_of, rows_of, tensors_in

if TYPE_CHECKING:
    from ilcp_codecs.kv.aligning import Aligner

__all__ = ["AlignedCodec", "Ends", "applied", "features", "split", "width_of", "windowless"]

Sources = tuple[tuple[int, ...], ...]  # for each layer of the receiver the layers of the sender


@dataclass(frozen=True, slots=True)
class Ends:
    """Both models as the codec knows them: who they are, what their caches look like, in which dtype is decoded."""

    sender: ModelIdentity
    receiver: ModelIdentity
    reads: Shape
    gives: Shape
    dtype: str


class AlignedCodec(Int8Codec):
    """Maps for each layer of the receiver; made by ``ilcp_codecs.kv.aligning.Aligner``, or by ``ilcp.load``.

    Args:
        ends: of both models.
        sources: for each layer of the receiver the layers of the sender that it is made of.
        tensors: ``weight.N`` ``"features outputs"`` and ``bias.N`` ``"outputs"`` of layer N, float32; features are the
            keys and then the values of each source, head by head, outputs the same of the receiver.

    Raises:
        ConfigError: keys of one of the models cannot be turned, or a source is no layer whose tokens all stay.
    """

    name: ClassVar[str] = "kv-align"

    def __init__(self, ends: Ends, sources: Sequence[Sequence[int]], tensors: Mapping[str, Tensor]):
        super().__init__(ends.receiver, ends.gives)
        if not all(ends.reads.ropes) or not all(ends.gives.ropes):
            raise ConfigError(
                "expected two models whose keys can be turned (RoPE), got another: its keys stay in place"
            )
        self.ends, self.reads = ends, ends.reads
        self.sources: Sources = tuple(tuple(each) for each in sources)
        known = [number for number, layer in enumerate(ends.reads.layers) if windowless(layer, ends.reads.tokens)]
        wanted = len(ends.gives.layers)
        if len(self.sources) != wanted or not all(each and {*each} <= {*known} for each in self.sources):
            raise ConfigError(f"expected some of the layers {known} as sources of each of {wanted}, got {sources}")
        self.tensors = dict(tensors)
        self.trained = Trained(ends.sender, ends.receiver, self._digest())
        self._own_weights = OwnWeights(self.tensors)

    def _digest(self) -> str:
        return digest_of(self.tensors, [repr(self.sources).encode()])

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, tokens: int | None = None) -> Self:
        """Refuses one model.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("expected two models to align, got one: see ilcp_codecs.kv.Aligner, or 'ilcp align'")

    @classmethod
    def aligner(
        cls, sender: Any, sender_tokenizer: Any, receiver: Any, receiver_tokenizer: Any, *, tokens: int | None = None
    ) -> "Aligner":
        """Returns what finds such a codec for two loaded models.

        Raises:
            ConfigError: as ``Aligner``.
        """
        from ilcp_codecs.kv.aligning import Aligner

        return Aligner(sender, sender_tokenizer, receiver, receiver_tokenizer, tokens=tokens)

    def own(self, context: Context) -> KeysValues:
        """Returns the receiver's keys and values out of a context's, if these are the sender's.

        Raises:
            EncodeError, ConfigError: as ``KvCodec.own``.
        """
        return self.mapped(super().own(context))

    @torch.inference_mode()
    def mapped(self, kv: KeysValues) -> KeysValues:
        """Returns the receiver's keys and values, of no position, out of the sender's.

        Raises:
            EncodeError: they are larger than the receiver's dtype holds.
            IdentityError: the maps were changed in memory since the codec was made.
        """
        self._own_weights.require(self.tensors, self._digest, self.trained.weights)
        layers, dtype = range(len(self.sources)), DTYPES[self.ends.dtype]
        maps = [partial(_linear, self.tensors[f"weight.{number}"], self.tensors[f"bias.{number}"]) for number in layers]
        pairs = applied(kv.at(None).to("cpu"), self.sources, maps, self.ends.gives)
        cast = [(keys.to(dtype), values.to(dtype)) for keys, values in pairs]
        if not all(bool(each.isfinite().all()) for pair in cast for each in pair):
            raise EncodeError(f"expected mapped keys and values that {self.ends.dtype} holds, got larger ones")
        return self.ends.gives.keys_values(cast, kv.tokens, None)

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes the maps; returns shapes, sources and dtype."""
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, folder / WEIGHTS)
        shapes: dict[str, Any] = msgspec.to_builtins({"reads": self.ends.reads, "gives": self.ends.gives})
        return shapes | {"sources": [list(each) for each in self.sources], "dtype": self.ends.dtype}

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec that ``save_files`` wrote.

        Raises:
            StorageError: the file is missing, damaged, or of other shapes, or the settings are none of such a codec.
            IdentityError: it is not what the codec was saved with.
        """
        reads, gives = (shape_from(settings.get(name), f"{name} in {folder}") for name in ("reads", "gives"))
        sources: Any = settings.get("sources")
        dtype = settings.get("dtype")
        if dtype not in DTYPES or {*settings} != {"reads", "gives", "sources", "dtype"} or not _are_sources(sources):
            raise StorageError(f"expected the settings of {cls.name} in {folder}, got others: fetch the codec again")
        ends = Ends(trained.sender, trained.receiver, reads, gives, str(dtype))
        tensors = tensors_in(folder, _shapes(ends, sources), "a weight and a bias for each layer of the receiver")
        codec = cls(ends, sources, tensors)
        if codec.trained.weights != trained.weights:
            raise IdentityError(f"expected maps {trained.weights}, got {codec.trained.weights}: fetch the codec again")
        return codec


def applied(
    kv: KeysValues, sources: Sequence[Sequence[int]], maps: Sequence[Callable[[Tensor], Tensor]], gives: Shape
) -> list[tuple[Tensor, Tensor]]:
    """Returns each layer's keys and values of a receiver, of the tokens that its window holds, out of a sender's."""
    return [
        split(one(features(kv, own)[-layer.held(kv.tokens) :]), layer)
        for own, one, layer in zip(sources, maps, gives.layers, strict=True)
    ]


def features(kv: KeysValues, sources: Sequence[int]) -> Tensor:
    """Returns float32 ``"tokens features"``: keys and values of these layers, head by head, side by side."""
    return torch.cat([rows_of(each) for source in sources for each in (kv.keys[source], kv.values[source])], 1)


def split(rows: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """Returns keys and values ``"heads tokens head"`` of a layer out of ``"tokens outputs"``."""
    widths = (layer.heads * layer.key_width, layer.heads * layer.value_width)
    keys, values = (
        rearrange(part, "tokens (heads width) -> heads tokens width", heads=layer.heads)
        for part in rows.split(widths, 1)
    )
    return keys, values


def width_of(layers: Sequence[Layer]) -> int:
    """Returns how many numbers these layers keep of a token."""
    return sum(layer.heads * (layer.key_width + layer.value_width) for layer in layers)


def windowless(layer: Layer, tokens: int) -> bool:
    """Says whether a layer keeps all of so many tokens."""
    return layer.held(tokens) == tokens


def _are_sources(sources: Any) -> bool:
    return isinstance(sources, list) and all(
        isinstance(each, list) and all(type(one) is int for one in each) for each in sources
    )


def _linear(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return x @ weight + bias


def _shapes(ends: Ends, sources: Sequence[Sequence[int]]) -> Shapes:
    """Returns which tensors the sources need."""
    wanted: dict[str, tuple[tuple[int, ...], str]] = {}
    layers = dict(enumerate(ends.reads.layers))
    for number, (layer, own) in enumerate(zip(ends.gives.layers, sources, strict=False)):
        inputs, outputs = width_of([layers[each] for each in own if each in layers]), width_of([layer])
        wanted |= {f"weight.{number}": ((inputs, outputs), "F32"), f"bias.{number}": ((outputs,), "F32")}
    return wanted
