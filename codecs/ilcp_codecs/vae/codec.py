"""The VAE codec behind the seam (context to bytes, bytes to memory), and the network that training sees."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ilcp.codec.context import Context
from ilcp.codec.folder import CONFIG, HubCodec
from ilcp.codec.memory import Memory, SoftPrompt
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError, StorageError
from ilcp.evidence import Evidence
from ilcp.identity import ModelIdentity
from ilcp.models.fingerprint import weights_digest
from ilcp.nn.distributed import rank, shard_rng, world
from ilcp_codecs.vae.bottleneck import Bottleneck, dequantise, quantise
from ilcp_codecs.vae.config import SETTINGS, VaeConfig
from ilcp_codecs.vae.pooler import Pooler
from ilcp_codecs.vae.projector import Projector

__all__ = ["NAME", "VaeCodec", "VaeNetwork"]

NAME = "vae"
WEIGHTS = "model.safetensors"
LAYERS = 6  # of the sender that a codec reads unless it is told which


class VaeNetwork(nn.Module):
    """Pooler, bottleneck and projector; differentiable from states to memory.

    ::

        states "batch layers tokens hidden", mask "batch tokens"
          --> slots --> z --> z_hat, cut to a random prefix --> memory "batch slots hidden", rate_bits "batch"
    """

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.config = config
        self.pooler = Pooler(config)
        self.bottleneck = Bottleneck(config)
        self.projector = Projector(config)
        self.full_share = 0.4  # of the training samples keep the whole payload; the others share the shorter prefixes
        self.continuous = False  # measuring only: hand the unquantised latent to the projector
        self._masks = torch.stack([self.known(length) for length in config.prefixes])

    def calibrate(self, states: Tensor, mask: Tensor, memory: Tensor) -> None:
        """Fits the entry to states ``"batch layers tokens hidden"``, the exit to memory ``"n slots hidden"``."""
        self.pooler.calibrate(states, mask)
        self.projector.match(memory)

    @torch.no_grad()
    def round_to_half(self) -> None:
        """Rounds every weight to the nearest that 16 bits hold, so that the file is half as large."""
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())

    @property
    def layers(self) -> tuple[int, ...]:
        """The sender's layers that are read."""
        return self.config.sender_layers

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        z, rate_bits = self.bottleneck(self.pooler(states, mask))
        z_hat = z if self.continuous else self.bottleneck.z_hat(z)
        return self.projector(z_hat * self._random_prefix(len(z))), rate_bits

    def blank(self, count: int) -> Tensor:
        """Returns memory ``"share slots hidden"`` of payloads that no sender made: zero bytes, and random bytes.

        ``count`` is that of all processes; ``share`` is this one's.
        """
        shape = (count, self.config.slots, self.config.dims)
        codes = torch.randint(0, 2**self.config.bits, shape, device=self.projector.scale.device)
        codes[: count // 2] = 0
        codes = codes[rank() :: world()]
        memory: Tensor = self.projector(dequantise(codes, self.config.bits))
        return memory

    def known(self, payload_bytes: int) -> Tensor:
        """Returns ``"slots dims"``: 1 for each dimension that a payload of that length carries, 0 for the others."""
        c = self.config
        sent = torch.zeros(8 * c.payload_bytes)
        sent[c.order()[: 8 * payload_bytes]] = 1
        return rearrange(sent, "(slots dims bits) -> slots dims bits", bits=c.bits, slots=c.slots).amin(-1)

    def _random_prefix(self, batch: int) -> Tensor:
        if not self.training or self.full_share == 1 or len(self.config.prefixes) == 1:
            return torch.ones(())
        masks = self._masks
        shorter = len(masks) - 1
        shares = torch.tensor([(1 - self.full_share) / shorter] * shorter + [self.full_share])
        chosen = masks[shard_rng(batch, lambda rows: torch.multinomial(shares, rows, replacement=True))]
        return chosen.to(self.projector.scale.device)


class VaeCodec(HubCodec):
    """The flagship codec. Made by training (``from_network``) or by ``ilcp.load``; never changed by use."""

    def __init__(self, network: VaeNetwork, trained: Trained):
        self.network = network.eval().requires_grad_(False)
        self.config = network.config
        self.trained = trained
        self.evidence: Evidence | None = None
        self.spec = CodecSpec(NAME, self.config.payload_bytes, "states", self.config.prefixes)
        self._order = np.array(self.config.order())
        self._known = {length: network.known(length) for length in self.config.prefixes}

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Returns the fields of ``VaeConfig`` that the models do not decide, and the names that they had before."""
        return SETTINGS

    @classmethod
    def untrained(cls, sender: Any, receiver: Any, settings: Mapping[str, Any]) -> VaeNetwork:
        """Returns a network for two models; without ``sender_layers`` it reads a few layers, far apart.

        Raises:
            ConfigError: the settings contradict each other.
        """
        count = sender.config.num_hidden_layers
        chosen = {round(step * count / (LAYERS - 1)) for step in range(LAYERS)}
        values = {
            "sender_layers": tuple(sorted(chosen)),
            "sender_hidden": sender.config.hidden_size,
            "receiver_hidden": receiver.get_input_embeddings().embedding_dim,
        }
        config = VaeConfig.from_dict(values | dict(settings), "[codec]")
        if max(config.sender_layers) > count:
            raise ConfigError(f"expected sender_layers from 0 to {count} (the last state), got {config.sender_layers}")
        return VaeNetwork(config)

    @classmethod
    def from_network(cls, network: VaeNetwork, sender: ModelIdentity, receiver: ModelIdentity) -> "VaeCodec":
        """Returns the codec out of a trained network."""
        return cls(network, Trained(sender, receiver, weights_digest(network).hex()))

    @property
    def layers(self) -> tuple[int, ...]:
        """The sender's layers that ``encode`` reads."""
        return self.config.sender_layers

    @torch.no_grad()
    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the payload of a context's states; a shorter one is a prefix of the longer.

        Raises:
            EncodeError: the context has no states, states of another sender, or NaN.
            ConfigError: there is no payload of that length.
        """
        length = self.spec.length(payload_bytes)
        codes = quantise(self._latent(context), self.config.bits).cpu().numpy().astype(np.uint8)
        planes = np.unpackbits(codes[..., None], axis=-1, bitorder="little", count=self.config.bits)[..., ::-1]
        return np.packbits(planes.reshape(-1)[self._order]).tobytes()[:length]

    @torch.no_grad()
    def decode_unrounded(self, context: Context) -> Memory:
        """Returns the memory of the latent before it is quantised, which no payload holds: for measuring only.

        Raises:
            EncodeError: as ``encode``.
        """
        return SoftPrompt(self.network.projector(self._latent(context)[None])[0])

    @torch.no_grad()
    def decode(self, payload: bytes) -> Memory:
        """Returns memory of one vector per slot.

        Raises:
            DecodeError: the payload has none of the codec's lengths, or the vectors are not finite.
        """
        if len(payload) not in self.spec.prefixes:
            shown = ", ".join(map(str, self.spec.prefixes))
            raise DecodeError(f"expected a payload of {shown} bytes for codec {NAME!r}, got {len(payload)}")
        c = self.config
        planes = np.zeros(8 * c.payload_bytes, dtype=np.uint8)
        planes[self._order[: 8 * len(payload)]] = np.unpackbits(np.frombuffer(payload, dtype=np.uint8))
        codes = planes.reshape(c.slots, c.dims, c.bits) @ (2 ** np.arange(c.bits - 1, -1, -1, dtype=np.uint8))
        z_hat = dequantise(torch.from_numpy(codes), c.bits) * self._known[len(payload)]
        return SoftPrompt(self.network.projector(z_hat[None].to(self.network.projector.scale.device))[0])

    def _latent(self, context: Context) -> Tensor:
        """Returns the latent ``"slots dims"`` before it is quantised."""
        states = context.states
        expected = (len(self.config.sender_layers), self.config.sender_hidden)
        if states is None or (states.shape[0], states.shape[2]) != expected or states.shape[1] == 0:
            found = "none" if states is None else f"shape {tuple(states.shape)}"
            raise EncodeError(f"expected states of {expected[0]} layers and width {expected[1]}, got {found}")
        if not bool(torch.isfinite(states).all()):
            raise EncodeError("expected finite hidden states, got NaN or infinity: the sender's weights are damaged")
        states = states.to(self.network.projector.scale.device)
        mask = torch.ones(1, states.shape[1], device=states.device)
        z: Tensor = self.network.bottleneck(self.network.pooler(states[None], mask))[0][0]
        return z

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes the weights, in 16 bits where that loses nothing; returns the configuration."""
        save_file({name: _lean(tensor) for name, tensor in self.network.state_dict().items()}, folder / WEIGHTS)
        return asdict(self.config)

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> "VaeCodec":
        """Returns the codec that ``save_files`` wrote.

        Raises:
            StorageError: the weights are missing, damaged, or of another shape.
            IdentityError: the weights are not those the codec was saved with.
        """
        network = VaeNetwork(VaeConfig.from_dict(settings, f"settings in {folder / CONFIG}", error=StorageError))
        try:
            network.load_state_dict(load_file(folder / WEIGHTS), strict=True)
        except Exception as error:  # safetensors and torch raise several kinds, all of which mean this
            raise StorageError(f"expected the codec's weights in {folder / WEIGHTS}, got: {error}") from error
        found = weights_digest(network).hex()
        if found != trained.weights:
            raise IdentityError(
                f"expected codec weights {trained.weights}, got {found} in {folder / WEIGHTS}: "
                "the file was replaced or damaged; fetch the codec again"
            )
        codec = cls(network, trained)
        if codec.spec != spec:
            raise IdentityError(f"expected the codec spec {spec}, got {codec.spec} from its settings in {folder}")
        return codec


def _lean(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if tensor.is_floating_point() and torch.equal(half.float(), tensor.float()) else tensor
