"""Measures what the codec's design is worth: seven designs under the same training, at the same 80 bytes.

    python benchmarks/variants.py --phrasebook FILE       # writes benchmarks/results/variants.json

All see the same documents in the same order, the same phrasebook and the same seed, whole payloads only. The budget is
counted in steps, because a minute buys fewer of them beside other work. It is a fraction of the shipped codec's, and so
is the task (lists of six facts in place of dossiers): the figures compare designs, and say nothing about the best that
one can reach. The same command goes on with a run that was interrupted.
"""

import argparse
import copy
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F
from train_codec import NAMES, PER_KIND, bare_case, latents, make_phrasebook

from ilcp.codec.context import Context
from ilcp.codec.memory import Memory, SoftPrompt
from ilcp.codec.spec import CodecSpec
from ilcp.embedded import HERE
from ilcp.errors import DecodeError, EncodeError
from ilcp.handoff import Receiver, Sender
from ilcp.measure import Measured, Report, run
from ilcp.measure.report import plain
from ilcp.models.fingerprint import identify
from ilcp.models.loading import load_model
from ilcp.tasks import Case
from ilcp.tasks.case_files import KINDS, TOPICS, compose
from ilcp.tasks.cases import thin
from ilcp.tasks.load import PER_KIND as ASKED
from ilcp.training import Hyperparameters, Models, Phrasebook, calibrate, fit
from ilcp.training.log import LOG
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork
from ilcp_codecs.vae.bottleneck import dequantise, quantise
from ilcp_codecs.vae.pooler import Pooler, unit_states
from ilcp_codecs.vae.projector import Projector

TASK = "lists of six facts"
STATED = 6  # facts of a document; the shipped codec's task states 17 among other text, more than the budget teaches
FIRST = (250, 48, 2)  # until this step, so many documents per step, of so many facts at most
NAMING_STEPS, ALIGNMENT_STEPS = 400, 150
RATE_WEIGHT = 3e-4  # nats of loss per bit, of the Gaussian: 0.2 at 640 bits
CELLS = 4  # of a dimension of the Gaussian: two bits
FITTED_CASES = 400  # training documents that cells and chances are counted on
LONGEST_BYTES = 160  # of the entropy-coded: twice what fair bits take


class FlatPooler(Pooler):
    """``"batch 1 width"``: the pooled slots side by side, through the first layer of an MLP."""

    def __init__(self, config: VaeConfig):
        super().__init__(config)
        self.mix = nn.Linear(config.slots * config.width, config.projector_width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        slots = super().forward(states, mask)
        return F.silu(self.mix(rearrange(slots, "batch slots width -> batch 1 (slots width)")))


class FlatProjector(Projector):
    """All memory vectors ``"batch slots hidden"`` from one latent ``"batch 1 dims"``, by one gated MLP."""

    def __init__(self, config: VaeConfig):
        super().__init__(config)
        del self.slot
        self.enter = nn.Linear(config.slots * config.dims, config.projector_width)
        self.leave = nn.Linear(config.projector_width, config.slots * config.receiver_hidden)

    def forward(self, z_hat: Tensor) -> Tensor:
        h = self.enter(z_hat)
        y = rearrange(self.leave(F.silu(self.gate(h)) * self.value(h)), "b 1 (s h) -> b s h", s=len(self.place))
        told = self.scale * torch.sigmoid(self.open(h)) * F.rms_norm(y, y.shape[-1:])
        return self.place + told @ self.colour


class MeanPooler(Pooler):
    """Every slot from the same vector: the mean of the tokens."""

    def __init__(self, config: VaeConfig):
        super().__init__(config)
        del self.queries, self.blocks
        self.spread = nn.Linear(config.width, config.slots * config.width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        x = self.enter(unit_states(states))
        for mixer in self.mixers:
            x = mixer(x, mask)
        mean = reduce(x * mask.unsqueeze(-1), "b t w -> b w", "sum") / mask.sum(1, keepdim=True)
        return self.leave(rearrange(self.spread(mean), "b (s w) -> b s w", w=x.shape[-1]))


class GaussianCodec(VaeCodec):
    """mu, rounded after training to the nearest of its dimension's cells (``network.cells`` ``"slots dims cells"``)."""

    @property
    def cells(self) -> Tensor:
        """The cells ``"slots dims cells"`` that ``fit`` made."""
        return self.network.get_buffer("cells")

    @staticmethod
    def fit(network: VaeNetwork, z: Tensor) -> VaeNetwork:
        """Returns the network with cells of least squared error on ``z`` ``"n slots dims"`` (Lloyd's rounds)."""
        cells = rearrange(torch.quantile(z, (torch.arange(CELLS) + 0.5) / CELLS, dim=0), "c s d -> s d c")
        for _ in range(30):  # enough for them to stand still
            nearest = F.one_hot((z.unsqueeze(-1) - cells).abs().argmin(-1), CELLS).float()
            held = nearest.sum(0)
            cells = torch.where(held > 0, torch.einsum("n s d c, n s d -> s d c", nearest, z) / held, cells)
        network.register_buffer("cells", cells)
        return network

    @torch.no_grad()
    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Encodes as the shipped codec does, with the cells of this one."""
        self.spec.length(payload_bytes)
        codes = (self._latent(context).unsqueeze(-1) - self.cells).abs().argmin(-1)
        planes = np.unpackbits(codes.numpy().astype(np.uint8)[..., None], axis=-1)
        return np.packbits(planes[..., -self.config.bits :]).tobytes()

    @torch.no_grad()
    def decode(self, payload: bytes) -> Memory:
        """Decodes as the shipped codec does, with the cells of this one."""
        c = self.config
        if len(payload) != c.payload_bytes:
            raise DecodeError(f"expected a payload of {c.payload_bytes} bytes, got {len(payload)}")
        planes = np.unpackbits(np.frombuffer(payload, dtype=np.uint8)).reshape(c.slots, c.dims, c.bits)
        codes = torch.from_numpy(planes @ 2 ** np.arange(c.bits - 1, -1, -1))
        z_hat = self.cells.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
        return SoftPrompt(self.network.projector(z_hat[None])[0])


class EntropyCodec(VaeCodec):
    """The shipped codec's bits through a range coder, under the chance of each (``network.chances``)."""

    def __init__(self, network: VaeNetwork, trained: Any):
        super().__init__(network, trained)
        self.spec = CodecSpec("vae-entropy", LONGEST_BYTES, "states")
        chances = network.get_buffer("chances").flatten().numpy()
        self._expected = constriction.stream.model.Bernoulli(perfect=False), chances

    @staticmethod
    def fit(network: VaeNetwork, z: Tensor) -> VaeNetwork:
        """Returns a copy with the chance of a one in each bit of ``z`` ``"n slots dims"``, add-one smoothed."""
        network = copy.deepcopy(network)
        network.register_buffer("chances", (quantise(z, 1).sum(0) + 1).double() / (len(z) + 2))
        return network

    @torch.no_grad()
    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the shortest range code of these bits.

        Raises:
            EncodeError: it is longer than ``payload_bytes``.
        """
        bits = quantise(self._latent(context), 1).flatten().numpy().astype(np.int32)
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(bits, *self._expected)
        whole = encoder.get_compressed().astype(">u4").tobytes().ljust(LONGEST_BYTES, b"\0")
        for size in range(1, self.spec.length(payload_bytes) + 1):
            for above in (0, 1):  # the code's beginning, or the next number of as many bytes: either may do
                payload = ((int.from_bytes(whole[:size]) + above) % 256**size).to_bytes(size)
                if np.array_equal(self._bits(payload), bits):
                    return payload
        raise EncodeError(f"expected a range code of at most {size} bytes, got a longer one")

    @torch.no_grad()
    def decode(self, payload: bytes) -> Memory:
        """Decodes as the shipped codec does."""
        bits = self._bits(payload)
        if bits is None:
            raise DecodeError("expected a range code, got bytes that no encoder writes")
        codes = torch.from_numpy(bits).reshape(1, self.config.slots, self.config.dims)
        return SoftPrompt(self.network.projector(dequantise(codes, 1))[0])

    def _bits(self, payload: bytes) -> Any:
        words = -(-len(payload) // 4) + 2  # the coder looks two words ahead
        padded = np.frombuffer(payload.ljust(4 * words, b"\0"), dtype=">u4").astype(np.uint32)
        try:
            return constriction.stream.queue.RangeDecoder(padded).decode(*self._expected)
        except AssertionError:  # constriction's answer to bits that no encoder writes
            return None


def slots(config: VaeConfig, bits: int, *, continuous: bool = False) -> VaeNetwork:
    """Returns the shipped network with so many bits per dimension, and so many fewer dimensions."""
    network = VaeNetwork(replace(config, bits=bits, dims=config.dims // bits))
    network.continuous = continuous  # the projector reads the sample as it is
    return network


def flat(config: VaeConfig) -> VaeNetwork:
    """Returns a network with one latent of all bits in the place of slots."""
    network = VaeNetwork(replace(config, slots=1, dims=config.slots * config.dims, width=config.projector_width))
    network.pooler, network.projector = FlatPooler(config), FlatProjector(config)
    return network


def mean_pooling(config: VaeConfig) -> VaeNetwork:
    """Returns the shipped network with its learned queries taken out."""
    network = VaeNetwork(config)
    network.pooler = MeanPooler(config)
    return network


@dataclass(frozen=True)
class Variant:
    """One design: its network, made from the shipped shape, and the class of its codec."""

    name: str
    what: str
    network: Callable[[VaeConfig], VaeNetwork] = VaeNetwork
    codec: Any = VaeCodec
    trained_as: str = ""  # the variant whose training it shares


VARIANTS = (
    Variant(
        "slots, 1 bit",
        "32 slots x 20 dimensions x 1 bit: the shipped codec without same-token attention and mu per slot",
        partial(slots, bits=1),
    ),
    Variant("slots, 2 bits", "32 slots x 10 dimensions x 2 bits", partial(slots, bits=2)),
    Variant("slots, 4 bits", "32 slots x 5 dimensions x 4 bits", partial(slots, bits=4)),
    Variant("flat", "one MLP to 640 dimensions x 1 bit, one MLP to all memory vectors", flat),
    Variant("mean pooling", "the mean of the tokens in place of learned queries", mean_pooling),
    Variant("Gaussian", "rounded after training, to 2 bits", partial(slots, bits=2, continuous=True), GaussianCodec),
    Variant("entropy-coded", "the same bits in a range code", codec=EntropyCodec, trained_as="slots, 1 bit"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/variants"), help="logs and checkpoints")
    parser.add_argument("--phrasebook", type=Path, help="the file of one; without it, one is written first")
    parser.add_argument("--only", nargs="*", default=[v.name for v in VARIANTS], help="names of variants")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "variants.json")
    for name, default in (("steps", 1200), ("minutes", 60.0), ("seed", 11), ("documents", 100), ("test-seed", 7)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.set_defaults(phrasebook_steps=(400, 300))  # of the two parts of ``make_phrasebook``
    args = parser.parse_args()
    torch.set_num_threads(1)

    models = Models(*load_model(HERE / "sender"), *load_model(HERE / "receiver"))
    hyperparameters = hyperparameters_of(args)
    phrasebook = Phrasebook.load(args.phrasebook) if args.phrasebook else make_phrasebook(models, hyperparameters, args)
    cases = [thin(case, ASKED, i) for i, case in enumerate(documents("test", args.test_seed, 0, args.documents))]
    trained: dict[str, tuple[VaeNetwork, dict[str, Any]]] = {}
    record: dict[str, Any] = {"variants": [], "task": TASK, "seed": args.seed, "n_documents": args.documents}
    for variant in [v for v in VARIANTS if v.name in args.only]:
        key = variant.trained_as or variant.name
        if key not in trained:
            trained[key] = trained_network(
                variant, models, hyperparameters, phrasebook, args.out / key.replace(", ", "-")
            )
        network, training = trained[key]
        codec = codec_of(variant, network, models, args.seed)
        sender = Sender(models.sender, models.sender_tokenizer, codec)
        receiver = Receiver(models.receiver, models.receiver_tokenizer, codec, allow_unmeasured=True)
        report = run(sender, receiver, cases, task=TASK, seed=args.test_seed, texts={}, repetitions=0)
        line = {"name": variant.name, "what": variant.what, **training, "figures": plain(figures_of(report))}
        record["variants"].append(line)
        record["reference"] = {arm: {k: asdict(report.mean(arm, k)) for k in KINDS} for arm in ("text", "none")}
        record["provenance"] = report.provenance
        args.json.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(row_of(line), flush=True)


def hyperparameters_of(args: argparse.Namespace) -> Hyperparameters:
    """Returns the shipped codec's hyperparameters, cut short."""
    shipped = dict(contexts=16, questions=14, per_kind=PER_KIND, learning_rate=2e-3, alignment_weight=2.0)
    warmup: dict[str, Any] = dict(naming_steps=NAMING_STEPS, alignment_steps=ALIGNMENT_STEPS, topics=TOPICS)
    budget = dict(steps=args.steps, minutes=args.minutes, validate_every=150, validation_contexts=24, seed=args.seed)
    return Hyperparameters(**(warmup | shipped | budget))


def config_of(models: Models) -> VaeConfig:
    """Returns the shipped codec's shape, without prefixes, same-token attention and mu per slot."""
    sender, receiver = models.sender.config, models.receiver.config
    shape: dict[str, Any] = dict(slots=32, dims=20, prefixes=(80,), blocks=3, projector_width=384, locality_bias=0.0)
    return VaeConfig(tuple(range(sender.num_hidden_layers + 1)), sender.hidden_size, receiver.hidden_size, **shape)


def documents(split: str, seed: int, start: int, n: int) -> list[Case]:
    """Returns documents of a few facts in a sentence each and nothing beside them; half of the offices are in."""
    names = [f"{split}/{seed}/{number}" for number in range(start, start + n)]
    rngs = [random.Random(f"variants {name}") for name in names]
    return [compose(name, rng, rng.sample(NAMES, STATED), bare=True) for name, rng in zip(names, rngs, strict=True)]


def trained_network(
    variant: Variant, models: Models, hyperparameters: Hyperparameters, phrasebook: Phrasebook, folder: Path
) -> tuple[VaeNetwork, dict[str, Any]]:
    """Returns the variant's network after training, and the training's record: steps, minutes and the curve."""
    torch.manual_seed(hyperparameters.seed)
    network = variant.network(config_of(models))
    network.full_share = 1.0
    hyperparameters = replace(hyperparameters, rate_weight=RATE_WEIGHT * network.continuous)
    calibrate(network, models, documents("train", hyperparameters.seed, 0, 64), hyperparameters, phrasebook)
    validation = documents("validation", hyperparameters.seed, 0, hyperparameters.validation_contexts)

    def source(start: int, n: int) -> list[Case]:
        """Returns the same cases for all variants: single sentences first."""
        until, count, most = FIRST
        rng = random.Random(f"variants {hyperparameters.seed}/{start}")
        if start // n < until:
            return [bare_case(rng, rng.randint(1, most)) for _ in range(count)]
        return documents("train", hyperparameters.seed, start, n)

    result = fit(network, models, source, validation, hyperparameters, folder, phrasebook=phrasebook, resume=True)
    kept = ("step", "minutes", "naming", "alignment", "cross_entropy", "rate_bits", "recovery")
    log = map(json.loads, (folder / LOG).read_text(encoding="utf-8").splitlines())
    curve = [{name: line[name] for name in kept if name in line} for line in log]
    parameters = sum(p.numel() for p in network.parameters())
    return network.eval(), dict(parameters=parameters, steps=result.steps, minutes=result.minutes, curve=curve)


@torch.no_grad()
def codec_of(variant: Variant, network: VaeNetwork, models: Models, seed: int) -> VaeCodec:
    """Returns the codec of a trained network; where it has cells or chances, they are counted on training documents."""
    if hasattr(variant.codec, "fit"):
        texts = [case.context for case in documents("train", seed, 0, FITTED_CASES)]
        parts = (texts[start : start + 50] for start in range(0, len(texts), 50))
        network = variant.codec.fit(network, torch.cat([latents(network, models, part) for part in parts]))
    sender = identify(models.sender, models.sender_tokenizer)
    return variant.codec.from_network(network, sender, identify(models.receiver, models.receiver_tokenizer))


def figures_of(report: Report) -> dict[str, Measured | None]:
    """Returns the message's figures; a recovery is None where the full text is not surely better than nothing."""
    return {kind: report.mean("message", kind) for kind in (*KINDS, "all")} | {
        "all, before rounding": report.mean("continuous"),
        "recovery": report.recovery("message"),
        "recovery, look-up": report.recovery("message", "lookup"),
        "recovery, nats": report.recovery("message", of="log_likelihood"),
        "content gain": report.content_gain(),
        "delivered": report.delivered("message")["bits per document"],
        **report.arms["message"].sizes(),
    }


def row_of(line: Mapping[str, Any]) -> str:
    """Returns one line of the printed table."""
    told = [f"{name} {figure['value']:.3g}" for name, figure in line["figures"].items() if figure is not None]
    return f"{line['name']} ({line['parameters'] / 1e6:.2f} M, {line['minutes']} min): {', '.join(told)}"


if __name__ == "__main__":
    main()
