"""The gated projector: each slot of the latent becomes one memory vector of the receiver.

::

    z_hat "batch slots dims" --linear, plus slot embedding (zero at the start)--> h "batch slots width"
      --silu(gate h) * (value h), linear--> y "batch slots hidden"
      memory = scale * sigmoid(open h) * y / rms(y)      scale starts at the receiver's embedding RMS

The slot embeddings start at zero, because random ones drown the payload. The last gate lets a slot that knows nothing
say nothing; it starts almost open.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp_codecs.vae.config import VaeConfig

__all__ = ["Projector"]


class Projector(nn.Module):
    """Memory ``"batch slots hidden"`` from the quantised latent ``"batch slots dims"``."""

    def __init__(self, config: VaeConfig, embedding_rms: float = 1.0):
        super().__init__()
        width = config.projector_width
        self.enter = nn.Linear(config.dims, width)
        self.slot = nn.Parameter(torch.zeros(config.slots, width))
        self.gate = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.leave = nn.Linear(width, config.receiver_hidden)
        self.open = nn.Linear(width, 1)
        nn.init.constant_(self.open.bias, 3.0)
        self.scale = nn.Parameter(torch.tensor(embedding_rms))

    def forward(self, z_hat: Tensor) -> Tensor:
        h = self.enter(z_hat) + self.slot
        y = self.leave(F.silu(self.gate(h)) * self.value(h))
        return self.scale * torch.sigmoid(self.open(h)) * F.rms_norm(y, y.shape[-1:])
