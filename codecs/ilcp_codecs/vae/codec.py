"""The VAE codec behind the seam (context to bytes, bytes to memory), and the network that training sees."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from ilcp.assurance.view import Observed
from ilcp.codec.context import Context
from ilcp.codec.memory import Memory, SoftPrompt
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import DecodeError, IlcpError
from ilcp.nn.distributed import rank, shard_rng, world
from ilcp.nn.half import round_to_half
from ilcp_codecs.states import StatesCodec, by_network
from ilcp_codecs.vae.bottleneck import Bottleneck, dequantise, quantise
from ilcp_codecs.vae.config import SETTINGS, VaeConfig
from ilcp_codecs.vae.pooler import Pooler
from ilcp_codecs.vae.projector import Projector

__all__ = ["NAME", "VaeCodec", "VaeNetwork"]

NAME = "vae"


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

    def round_to_half(self) -> None:
        """Rounds every weight to the nearest that 16 bits hold, so that the file is half as large."""
        round_to_half(self.state_dict().values())

    @property
    def layers(self) -> tuple[int, ...]:
        """The sender's layers that are read."""
        return self.config.sender_layers

    @property
    def latent_size(self) -> int:
        """How many numbers a latent is."""
        return self.config.slots * self.config.dims

    def latent(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``z_hat`` ``"batch slots dims"``, whole, and ``rate_bits`` ``"batch"``."""
        z, rate_bits = self.bottleneck(self.pooler(states, mask))
        return z if self.continuous else self.bottleneck.z_hat(z), rate_bits

    def memory_of(self, z_hat: Tensor) -> Tensor:
        """Returns memory ``"batch slots hidden"``; in training, of random prefixes."""
        memory: Tensor = self.projector(z_hat * self._random_prefix(len(z_hat)))
        return memory

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        z_hat, rate_bits = self.latent(states, mask)
        return self.memory_of(z_hat), rate_bits

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
        sent = torch.zeros(
            8 * c.payload_bytes, device="cpu", dtype=torch.float32
        )  # where the weights are not there yet
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


class VaeCodec(StatesCodec):
    """The flagship codec. Made by training (``from_network``) or by ``ilcp.load``; never changed by use."""

    reads = 6

    def __init__(self, network: VaeNetwork, trained: Trained):
        super().__init__(network, trained)
        self.spec = CodecSpec(NAME, self.config.payload_bytes, "states", self.config.prefixes)
        self._order = np.array(self.config.order())
        self._known = {length: network.known(length) for length in self.config.prefixes}

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Returns the fields of ``VaeConfig`` that the models do not decide, and the names that they had before."""
        return SETTINGS

    @classmethod
    def _network(cls, settings: Mapping[str, Any], where: str, error: type[IlcpError]) -> VaeNetwork:
        return VaeNetwork(VaeConfig.from_dict(settings, where, error=error))

    @by_network
    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the payload of a context's states; a shorter one is a prefix of the longer.

        Raises:
            EncodeError: the context has no states, states of another sender, or NaN.
            ConfigError: there is no payload of that length.
        """
        return self.encode_observed(context, payload_bytes)[0]

    @by_network
    def encode_observed(self, context: Context, payload_bytes: int | None = None) -> tuple[bytes, Observed]:
        """Returns the payload as ``encode``, and the latent before it is quantised, beside it its mean log variance.

        Raises:
            EncodeError, ConfigError: as ``encode``.
        """
        length = self.spec.length(payload_bytes)
        slots = self.network.pooler(*self._states(context))
        z = self.network.bottleneck(slots)[0][0]
        log_var = float(self.network.bottleneck.to_log_var(slots).mean())
        return self._payload(z)[:length], Observed(z.float().flatten().cpu().numpy(), (log_var,))

    @by_network
    def decode_unrounded(self, context: Context) -> Memory:
        """Returns the memory of the latent before it is quantised, which no payload holds: for measuring only.

        Raises:
            EncodeError: as ``encode``.
        """
        return SoftPrompt(self.network.projector(self._latent(context)[None])[0])

    @by_network
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

    def _payload(self, z: Tensor) -> bytes:
        """Returns the longest payload of a latent ``"slots dims"``."""
        codes = quantise(z, self.config.bits).cpu().numpy().astype(np.uint8)
        planes = np.unpackbits(codes[..., None], axis=-1, bitorder="little", count=self.config.bits)[..., ::-1]
        return np.packbits(planes.reshape(-1)[self._order]).tobytes()

    def _latent(self, context: Context) -> Tensor:
        """Returns the latent ``"slots dims"`` before it is quantised."""
        z: Tensor = self.network.bottleneck(self.network.pooler(*self._states(context)))[0][0]
        return z
