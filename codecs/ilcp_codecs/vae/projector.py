"""The gated projector: each slot of the latent becomes one memory vector of the receiver.

::

    z_hat "batch slots dims" --linear, plus slot embedding (zero at the start)--> h "batch slots width"
      --silu(gate h) * (value h), linear--> y "batch slots hidden"
      memory = place + (scale * sigmoid(open h) * y / rms(y)) colour

``place`` is a constant of each slot, by which the receiver finds it; ``colour`` is the square root of a covariance.
Both start as the memory should be spread, so that y has to learn no more than which of the possible values it is.

The slot embeddings start at zero, because random ones drown the payload. The last gate lets a slot that knows nothing
say nothing; it starts almost open.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.errors import ConfigError
from ilcp.nn.whitening import principal_axes
from ilcp_codecs.vae.config import VaeConfig

__all__ = ["Projector"]


class Projector(nn.Module):
    """Memory ``"batch slots hidden"`` from the quantised latent ``"batch slots dims"``."""

    colour: Tensor

    def __init__(self, config: VaeConfig):
        super().__init__()
        width = config.projector_width
        self.enter = nn.Linear(config.dims, width)
        self.slot = nn.Parameter(torch.zeros(config.slots, width))
        self.gate = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.leave = nn.Linear(width, config.receiver_hidden)
        self.open = nn.Linear(width, 1)
        nn.init.constant_(self.open.bias, 3.0)
        self.scale = nn.Parameter(torch.ones(()))
        self.place = nn.Parameter(torch.zeros(config.slots, config.receiver_hidden))
        self.register_buffer("colour", torch.eye(config.receiver_hidden))

    @torch.no_grad()
    def match(self, memory: Tensor) -> None:
        """Starts from memory of this kind: ``"n slots hidden"``, or ``"n 1 hidden"`` where all slots are alike.

        Slots that are about no topic, behind those that are, start in the middle of them.

        Raises:
            ConfigError: more topics than slots.
        """
        if memory.shape[1] > len(self.place):
            raise ConfigError(f"expected memory of up to {len(self.place)} slots, one per topic, got {memory.shape[1]}")
        places = memory.mean(0)
        self.place.copy_(places.mean(0).expand_as(self.place))
        self.place[: len(places)] = places
        _, values, vectors = principal_axes((memory - memory.mean(0)).flatten(0, 1))
        self.colour.copy_(vectors * values.sqrt() @ vectors.T)

    def forward(self, z_hat: Tensor) -> Tensor:
        h = self.enter(z_hat) + self.slot
        y = self.leave(F.silu(self.gate(h)) * self.value(h))
        said = self.scale * torch.sigmoid(self.open(h)) * F.rms_norm(y, y.shape[-1:])
        return self.place + said @ self.colour
