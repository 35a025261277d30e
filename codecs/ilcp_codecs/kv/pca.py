"""Keys and values in a basis of their own, with bits where they count.

::

    keys of all heads, turned back, of one layer "tokens heads*width" --Transform--> codes --planes
    values of all heads of one layer             "tokens heads*width" --Transform--> codes --planes

The first tokens stay exact. The basis is fitted to a few texts, which ``fit`` reads, and is what the codec's folder
holds. Bits are allotted over all layers at once, keys and values alike, each weighed by its own spread.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ilcp.codec.context import Context
from ilcp.codec.keys_values import KeysValues
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, DecodeError, IdentityError, StorageError
from ilcp.files import require_readable
from ilcp.folders import inside
from ilcp.identity import ModelIdentity, digest_all
from ilcp.models.fingerprint import identify
from ilcp.models.kv import following_nats, read_kv
from ilcp.models.rope import ropes_of
from ilcp_codecs.kv.codecs import FIRST, KvCodec, Pair, Shapes, require_settings
from ilcp_codecs.kv.container import MAX_CACHE_BYTES
from ilcp_codecs.kv.quantise import exact_planes, exact_sizes, from_exact
from ilcp_codecs.kv.transform import MOST_BITS, Transform, allotted, fitted, packed, packed_sizes, unpacked

__all__ = ["PcaCodec"]

WEIGHTS = "model.safetensors"
SIDES, PARTS = ("keys", "values"), ("mean", "basis", "spread", "bits")
LEAST_TOKENS = 32  # of a text whose end is foretold from its beginning
ROWS_PER_DIMENSION = 4  # of the calibration texts; a basis from fewer is theirs, and no other text's


class PcaCodec(KvCodec):
    """A basis for each layer's keys and for its values; made by ``fit`` or ``ilcp.load``."""

    name: ClassVar[str] = "kv-pca"
    turned = False

    def __init__(self, model: ModelIdentity, tensors: Mapping[str, Tensor], *, limit: int = MAX_CACHE_BYTES):
        super().__init__(model, limit=limit)
        self.tensors = dict(tensors)
        self.trained = Trained(model, model, _digest(self.tensors))
        layers = len(tensors) // (len(PARTS) * len(SIDES))
        self._transforms = [[_transform(tensors, side, layer) for side in SIDES] for layer in range(layers)]

    @classmethod
    def fit(
        cls, model: Any, tokenizer: Any, texts: Iterable[str], *, bytes_per_token: float, limit: int = MAX_CACHE_BYTES
    ) -> Self:
        """Returns the codec of a loaded model, fitted to texts such as those that it will be used on.

        Args:
            bytes_per_token: of what is not kept exact, as the codes alone take.

        Raises:
            ConfigError: the texts are too short, the budget is none that the model's dimensions can take, or a memory
                of the beginnings of these texts says less of their ends than nothing does.
        """
        ropes, rows = ropes_of(model), [tokenizer(text).input_ids for text in texts]
        read = [read_kv(model, row, 0, ropes) for row in rows]
        codec = cls.fit_caches(identify(model, tokenizer), read, bytes_per_token=bytes_per_token, limit=limit)
        codec.require_worth(model, [row for row in rows if len(row) > LEAST_TOKENS])
        return codec

    def require_worth(self, model: Any, rows: Sequence[Sequence[int]]) -> None:
        """Refuses a codec whose memories are worse than none.

        Args:
            rows: ids of texts: the first three quarters of each are the memory, the others are to be foretold.

        Raises:
            ConfigError: with the nats of a token by the memory, by the exact cache, and by nothing.
        """
        ropes = ropes_of(model)
        nats = {"memory": 0.0, "exact": 0.0, "nothing": 0.0}
        for row in rows:
            held = 3 * len(row) // 4
            kv = read_kv(model, row[:held], 0, ropes)
            memory = self.decode(self.encode(Context(kv=kv))).in_prompt(0, 0.0)
            assert isinstance(memory, KeysValues)
            for name, given in (("memory", memory), ("exact", kv), ("nothing", None)):
                nats[name] += following_nats(model, given, row[held:])
        if rows and not nats["memory"] < nats["nothing"]:
            shown = ", ".join(f"{name} {total / len(rows):.3f}" for name, total in nats.items())
            raise ConfigError(
                f"expected memories that are better than none on the texts given, got nats a token: {shown}; allow "
                "more bytes per token"
            )

    @classmethod
    def fit_caches(
        cls, model: ModelIdentity, caches: Sequence[KeysValues], *, bytes_per_token: float, limit: int = MAX_CACHE_BYTES
    ) -> Self:
        """Returns the codec fitted to keys and values that were read already.

        Raises:
            ConfigError: as ``fit``.
        """
        level = [kv.at(None) if all(kv.ropes) else kv for kv in caches]
        found: dict[str, Tensor] = {}
        spreads = []
        for layer in range(len(level[0].keys) if level else 0):
            for side in SIDES:
                x = torch.cat([_rows(getattr(kv, side)[layer][:, FIRST:]) for kv in level])
                if len(x) < ROWS_PER_DIMENSION * x.shape[1]:
                    raise ConfigError(
                        f"expected {ROWS_PER_DIMENSION * x.shape[1]} tokens or more to fit to, got {len(x)} behind the "
                        f"first {FIRST} of each text: give more texts, or longer ones"
                    )
                mean, basis, spread = fitted(x)
                name = f"{side}.{layer}."
                found |= {name + "mean": mean.half(), name + "basis": basis.half(), name + "spread": spread.half()}
                spreads.append((name, spread.square() / spread.square().sum()))
        if not found:
            raise ConfigError("expected texts to fit to, got none")
        total = round(8 * bytes_per_token)
        most = MOST_BITS * sum(len(each) for _, each in spreads)
        if not 0 < total <= most:
            raise ConfigError(f"expected bytes_per_token above 0 and up to {most // 8}, got {bytes_per_token}")
        bits = allotted(torch.cat([each for _, each in spreads]), total)
        parts = bits.split([len(each) for _, each in spreads])
        found |= {f"{name}bits": own.clone() for (name, _), own in zip(spreads, parts, strict=True)}
        return cls(model, found, limit=limit)

    def settings(self) -> dict[str, int]:
        """Returns how many first tokens are exact."""
        return {"first": FIRST}

    def planes(self, pair: Pair, layer: int) -> Iterator[bytes]:
        """Yields of keys and then of values: the byte planes of the first tokens, and codes by their bits."""
        for each, transform in zip(pair, self._transforms[layer], strict=True):
            yield from exact_planes(each[:, :FIRST])
            if each.shape[1] > FIRST:
                codes = transform.codes(_rows(each[:, FIRST:]))
                for (bits, _), own in zip(transform.counts, codes, strict=True):
                    yield packed(own, bits)

    def sizes(self, shapes: Shapes, dtype: torch.dtype, layer: int) -> list[int]:
        """Returns the same lengths."""
        found = []
        for (heads, held, width), transform in zip(shapes, self._of(layer, shapes), strict=True):
            found += exact_sizes(heads * min(held, FIRST) * width, dtype)
            if held > FIRST:
                found += [packed_sizes((held - FIRST) * count, bits) for bits, count in transform.counts]
        return found

    def pair(self, planes: Sequence[Any], shapes: Shapes, dtype: torch.dtype, layer: int) -> Pair:
        """Returns keys and values, those of the basis behind the exact ones."""
        left = iter(planes)
        keys, values = (
            self._joined(left, shape, transform, dtype)
            for shape, transform in zip(shapes, self._of(layer, shapes), strict=True)
        )
        return keys, values

    def _joined(
        self, planes: Iterator[Any], shape: tuple[int, int, int], transform: Transform, dtype: torch.dtype
    ) -> Tensor:
        heads, held, width = shape
        first = from_exact([next(planes) for _ in range(dtype.itemsize)], (heads, min(held, FIRST), width), dtype)
        if held <= FIRST:
            return first
        tokens = held - FIRST
        codes = [unpacked(next(planes), (tokens, count), bits) for bits, count in transform.counts]
        rest = rearrange(transform.values(codes, tokens), "tokens (heads width) -> heads tokens width", heads=heads)
        return torch.cat([first, rest.to(dtype)], 1)

    def _of(self, layer: int, shapes: Shapes) -> list[Transform]:
        """Returns the transforms of a layer.

        Raises:
            DecodeError: there are none of these shapes.
        """
        found = self._transforms[layer] if layer < len(self._transforms) else []
        if [len(each.mean) for each in found] != [heads * width for heads, _, width in shapes]:
            raise DecodeError(f"expected keys and values as this codec was fitted to, got {shapes} as layer {layer}")
        return found

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes the transforms; returns the limit."""
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, folder / WEIGHTS)
        return {"limit": self.limit}

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec that ``save_files`` wrote.

        Raises:
            StorageError: the file is missing, damaged, or of other shapes.
            IdentityError: it is not what the codec was saved with.
        """
        require_settings(folder, trained, settings)
        file = inside(folder, WEIGHTS)
        require_readable(file)
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise StorageError(f"expected the transforms in {file}, got: {error}; fetch the codec again") from error
        _require_transforms(tensors, file)
        if _digest(tensors) != trained.weights:
            raise IdentityError(f"expected transforms {trained.weights}, got {_digest(tensors)}: fetch the codec again")
        return cls(trained.sender, tensors, limit=settings["limit"])


def _require_transforms(tensors: Mapping[str, Tensor], file: Path) -> None:
    layers = len(tensors) // (len(PARTS) * len(SIDES))
    names = {f"{side}.{layer}.{part}" for side in SIDES for layer in range(layers) for part in PARTS}
    if not layers or set(tensors) != names:
        raise StorageError(f"expected {', '.join(PARTS)} of keys and values of each layer in {file}, got others")
    for side, layer in ((side, layer) for side in SIDES for layer in range(layers)):
        mean, basis, spread, bits = (tensors[f"{side}.{layer}.{part}"] for part in PARTS)
        dims = len(mean) if mean.ndim == 1 else 0
        shapes = [tuple(each.shape) for each in (basis, spread, bits)]
        if not dims or shapes != [(dims, dims), (dims,), (dims,)] or bits.dtype != torch.uint8:
            raise StorageError(f"expected a basis of as many components as dimensions in {file}, got {shapes}")
        if int(bits.max()) > MOST_BITS or not all(bool(each.isfinite().all()) for each in (mean, basis, spread)):
            raise StorageError(f"expected finite numbers and up to {MOST_BITS} bits in {file}, got others: damaged")


def _rows(each: Tensor) -> Tensor:
    return rearrange(each.float(), "heads tokens width -> tokens (heads width)")


def _transform(tensors: Mapping[str, Tensor], side: str, layer: int) -> Transform:
    mean, basis, spread, bits = (tensors[f"{side}.{layer}.{name}"] for name in PARTS)
    return Transform(mean.float(), basis.float(), spread.float(), bits)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return digest_all(tensors[name].numpy().tobytes() for name in sorted(tensors)).hex()
