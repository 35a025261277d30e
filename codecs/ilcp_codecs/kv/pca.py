"""Keys and values in a basis of their own, with bits where they count.

::

    keys of all heads, turned back, of one layer "tokens heads*width" --Transform--> codes --planes
    values of all heads of one layer             "tokens heads*width" --Transform--> codes --planes

The first tokens stay exact. The basis is fitted to a few texts, which ``fit`` reads, and is what the codec's folder
holds. Bits are allotted over all layers at once, keys and values alike, each weighed by its own spread.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from ilcp.codec.context import Context
from ilcp.codec.keys_values import KeysValues
from ilcp.codec.memory import Memory
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, IdentityError, StorageError
from ilcp.identity import ModelIdentity
from ilcp.inputs import listed, require_text
from ilcp.models.fingerprint import identify
from ilcp.models.kv import following_nats, read_kv
from ilcp.models.own_weights import OwnWeights
from ilcp.models.reading import window_tokens
from ilcp.models.rope import ropes_of
from ilcp_codecs.kv.codecs import FIRST, CodedCodec, Sizes3, own_shape, shape_of
from ilcp_codecs.kv.container import Shape
from ilcp_codecs.kv.tensors import WEIGHTS, Shapes, digest_of, rows_of, tensors_in
from ilcp_codecs.kv.transform import MOST_BITS, Transform, allotted, fitted, packed, packed_sizes, unpacked

__all__ = ["PcaCodec"]

SIDES, PARTS = ("keys", "values"), ("mean", "basis", "spread", "bits")
LEAST_TOKENS = 32  # of a text whose end is foretold from its beginning
ROWS_PER_DIMENSION = 4  # of the calibration texts; a basis from fewer is theirs, and no other text's


MOST_DIGITS = 9  # of a budget
FITTED_TEXTS = 64  # at most, where it is made by name
PRESETS = {"4bit": 4, "2bit": 2, "1bit": 1}  # for each of a token's numbers, on average


class PcaCodec(CodedCodec):
    """A basis for each layer's keys and for its values; made by ``fit`` or ``ilcp.load``.

    Budgets of ``for_model`` are ``4bit``, ``2bit`` (the usual) and ``1bit``, for each of a token's numbers on average,
    or bytes a token.
    """

    name: ClassVar[str] = "kv-pca"

    def __init__(self, model: ModelIdentity, shape: Shape, tensors: Mapping[str, Tensor]):
        super().__init__(model, shape)
        self.tensors = dict(tensors)
        self.trained = Trained(model, model, digest_of(self.tensors))
        self._own_weights = OwnWeights(self.tensors)
        layers = range(len(shape.layers))
        self._transforms = [[_transform(tensors, side, layer) for side in SIDES] for layer in layers]

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the payload, as every codec of caches does; IdentityError where a basis was changed in memory."""
        self._own_weights.require(self.tensors, lambda: digest_of(self.tensors), self.trained.weights)
        return super().encode(context, payload_bytes)

    def decode(self, payload: bytes) -> Memory:
        """Returns the memory, as every codec of caches does; IdentityError where a basis was changed in memory."""
        self._own_weights.require(self.tensors, lambda: digest_of(self.tensors), self.trained.weights)
        return super().decode(payload)

    @classmethod
    def fit(cls, model: Any, tokenizer: Any, texts: Iterable[str], *, bytes_per_token: float) -> Self:
        """Returns the codec of a loaded model, fitted to texts such as those that it will be used on.

        Args:
            texts: of each so much is read as the model's window holds.
            bytes_per_token: of what is not kept exact, as the codes alone take.

        Raises:
            EncodeError: one of the texts is none, or empty.
            ConfigError: they are no list, too short, or too few; the budget is none that the model's dimensions can
                take; or a memory of the beginnings of these texts says less of their ends than nothing does.
        """
        named = enumerate(listed(texts, "texts in a list", "text", error=ConfigError))
        read_from = [tokenizer(require_text(text, f"text {n}"), verbose=False).input_ids for n, text in named]
        ropes, rows = ropes_of(model), [row[: window_tokens(model)] for row in read_from]
        read = [read_kv(model, row, 0, ropes) for row in rows]
        codec = cls.fit_caches(identify(model, tokenizer), shape_of(model), read, bytes_per_token=bytes_per_token)
        codec.require_worth(model, rows)
        return codec

    @classmethod
    def _within(cls, model: Any, tokenizer: Any, budget: str, texts: Iterable[str], questions: Iterable[str]) -> Self:
        """Returns the codec fitted to the first of ``texts``, within the budget.

        Raises:
            ConfigError: there are no texts; or as ``fit``.
        """
        texts, budget = list(islice(texts, FITTED_TEXTS)), budget or "2bit"
        if not texts:
            raise ConfigError(
                f"expected texts to fit {cls.name} to, got none: give some like those it is for (--samples)"
            )
        numbers = sum(layer.heads * (layer.key_width + layer.value_width) for layer in shape_of(model).layers)
        most = PRESETS[budget] * numbers / 8 if budget in PRESETS else int(budget)
        return cls.fit(model, tokenizer, texts, bytes_per_token=most)

    @classmethod
    def require_budget(cls, budget: str) -> None:
        """Refuses what is none of the above.

        Raises:
            ConfigError: with what it may be.
        """
        if budget and budget not in PRESETS and not (budget.isdecimal() and len(budget) <= MOST_DIGITS):
            raise ConfigError(f"expected {', '.join(PRESETS)} or bytes a token behind {cls.name}:, got {budget[:40]!r}")

    @classmethod
    def fit_caches(
        cls, model: ModelIdentity, shape: Shape, caches: Sequence[KeysValues], *, bytes_per_token: float
    ) -> Self:
        """Returns the codec fitted to keys and values that were read already; nobody looks whether it is worth it.

        Raises:
            ConfigError: as ``fit``.
        """
        level = [kv.at(None) if all(kv.ropes) else kv for kv in caches]
        found: dict[str, Tensor] = {}
        spreads = []
        for layer in range(len(shape.layers)):
            for side in SIDES:
                rows = [rows_of(getattr(kv, side)[layer][:, FIRST:].cpu()) for kv in level]
                name, (mean, basis, spread) = f"{side}.{layer}.", _fitted(rows)
                found |= {name + "mean": mean.half(), name + "basis": basis.half(), name + "spread": spread.half()}
                spreads.append((name, spread.square() / spread.square().sum()))
        if not all(bool(each.isfinite().all()) for each in found.values()):
            raise ConfigError("expected keys and values that half precision can hold, got larger ones: use kv-int8")
        most = MOST_BITS * sum(len(each) for _, each in spreads) // 8
        if not 1 / 8 <= bytes_per_token <= most:
            raise ConfigError(f"expected bytes_per_token above 0 and up to {most}, got {bytes_per_token}")
        bits = allotted(torch.cat([each for _, each in spreads]), round(8 * bytes_per_token))
        parts = bits.split([len(each) for _, each in spreads])
        found |= {f"{name}bits": own.clone() for (name, _), own in zip(spreads, parts, strict=True)}
        return cls(model, shape, found)

    def require_worth(self, model: Any, rows: Sequence[Sequence[int]]) -> None:
        """Refuses a codec whose memories are worse than none.

        Args:
            rows: ids of texts: the first three quarters of each are the memory, the others are to be foretold.

        Raises:
            ConfigError: with the nats of a token by the memory, by the exact cache, and by nothing.
        """
        ropes, rows = ropes_of(model), [row for row in rows if len(row) > LEAST_TOKENS]
        nats = {"memory": 0.0, "exact": 0.0, "nothing": 0.0}
        for row in rows:
            held = 3 * len(row) // 4
            kv = read_kv(model, row[:held], 0, ropes)
            memory = self.decode(self.encode(Context(kv=kv))).in_prompt(0, 0.0)
            assert isinstance(memory, KeysValues)
            for name, given in (("memory", memory), ("exact", kv), ("nothing", None)):
                nats[name] += following_nats(model, given, row[held:])
        if not rows:
            raise ConfigError(
                f"expected a text of more than {LEAST_TOKENS} tokens to try it on, got none: give longer ones"
            )
        if not nats["memory"] < nats["nothing"]:
            shown = ", ".join(f"{name} {total / len(rows):.3f}" for name, total in nats.items())
            raise ConfigError(
                f"expected memories that are better than none on the texts given, got nats a token: {shown}; allow "
                "more bytes per token"
            )

    def coded(self, rest: Tensor, layer: int, side: int) -> Iterator[bytes]:
        """Yields the codes of all components of as many bits together."""
        transform = self._transforms[layer][side]
        for (bits, _), own in zip(transform.counts, transform.codes(rows_of(rest.cpu())), strict=True):
            yield packed(own, bits)

    def coded_sizes(self, shape: Sizes3, layer: int, side: int) -> list[int]:
        """Returns the same lengths."""
        return [packed_sizes(shape[1] * count, bits) for bits, count in self._transforms[layer][side].counts]

    def decoded(self, planes: Iterator[Any], shape: Sizes3, layer: int, side: int) -> Tensor:
        """Returns what the codes stand for."""
        (heads, tokens, _), transform = shape, self._transforms[layer][side]
        codes = [unpacked(next(planes), (tokens, count), bits) for bits, count in transform.counts]
        return rearrange(transform.values(codes, tokens), "tokens (heads width) -> heads tokens width", heads=heads)

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes the transforms; returns the shape."""
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, folder / WEIGHTS)
        return super().save_files(folder)

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec that ``save_files`` wrote.

        Raises:
            StorageError: the file is missing, damaged, or of other shapes.
            IdentityError: it is not what the codec was saved with.
        """
        shape = own_shape(folder, trained, settings)
        what = f"{', '.join(PARTS)} of keys and values of each layer"
        tensors = tensors_in(folder, _shapes(shape), what)
        if any(int(each.max()) > MOST_BITS for name, each in tensors.items() if name.endswith("bits")):
            raise StorageError(f"expected up to {MOST_BITS} bits in {folder / WEIGHTS}, got more: damaged")
        codec = cls(trained.sender, shape, tensors)
        if codec.trained.weights != trained.weights:
            raise IdentityError(
                f"expected transforms {trained.weights}, got {codec.trained.weights}: fetch the codec again"
            )
        return codec


def _shapes(shape: Shape) -> Shapes:
    """Returns which tensors a shape needs."""
    wanted: dict[str, tuple[tuple[int, ...], str]] = {}
    for number, layer in enumerate(shape.layers):
        for side, width in zip(SIDES, (layer.key_width, layer.value_width), strict=True):
            dims = layer.heads * width
            tensors = (((dims,), "F16"), ((dims, dims), "F16"), ((dims,), "F16"), ((dims,), "U8"))
            wanted |= {f"{side}.{number}.{part}": each for part, each in zip(PARTS, tensors, strict=True)}
    return wanted


def _fitted(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.cat(list(rows)) if rows else torch.zeros(0, 1)
    if len(x) < ROWS_PER_DIMENSION * x.shape[1]:
        raise ConfigError(
            f"expected {ROWS_PER_DIMENSION * x.shape[1]} tokens or more to fit to, got {len(x)} behind the first "
            f"{FIRST} of each text: give more texts, or longer ones"
        )
    return fitted(x)


def _transform(tensors: Mapping[str, Tensor], side: str, layer: int) -> Transform:
    mean, basis, spread, bits = (tensors[f"{side}.{layer}.{name}"] for name in PARTS)
    return Transform(mean.float(), basis.float(), spread.float(), bits)
