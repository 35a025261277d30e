"""The bottleneck: a beta-VAE whose sample is quantised inside training.

::

    slots "batch slots width" --linear (mu: one for all slots, or one per slot)--> mu, log_var "batch slots dims"
      mu --BatchNorm, no affine--> mu            scale, not rounding, is what a quantiser dies of
      training:  z = mu + exp(log_var / 2) * noise        inference: z = mu
      z --quantise, straight-through--> z_hat "batch slots dims", in [-1, 1]
      rate_bits "batch" = KL(N(mu, var) || N(0, 1)) / ln 2

Codes are integers from 0 to 2**bits - 1; z_hat is the middle of its cell; a dimension that was cut off is 0.
"""

import math

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from ilcp.nn.distributed import SyncedNorm, shard_rng
from ilcp_codecs.vae.config import VaeConfig

__all__ = ["Bottleneck", "dequantise", "quantise", "straight_through"]

LOG_VAR_RANGE = (-8.0, 1.0)  # e-8: noise far below the finest cell; e1: noise that drowns a unit-variance mu
CELL_SPAN = 1.5  # cells divide [-1.5, 1.5] evenly: 87 % of a unit normal, the outer cells take the rest


def quantise(z: Tensor, bits: int) -> Tensor:
    """Returns codes 0 to ``2**bits - 1`` (int64) of ``z`` ``"..."``, in its shape."""
    levels = 2**bits
    cells: Tensor = (z + CELL_SPAN) * (levels / (2 * CELL_SPAN))
    return cells.floor().clamp(0, levels - 1).long()


def dequantise(codes: Tensor, bits: int) -> Tensor:
    """Returns the middle of each code's cell, ``"..."`` as ``codes``, scaled so that the outermost are -1 and 1."""
    top = 2**bits - 1
    middles: Tensor = codes.float() * (2 / top) - 1
    return middles


def straight_through(z: Tensor, bits: int) -> Tensor:
    """Returns the quantised ``z`` ``"..."``, in its shape; its gradient is that of ``z`` inside the cells, else 0."""
    exact = dequantise(quantise(z, bits), bits)
    inside = z.clamp(-CELL_SPAN, CELL_SPAN)
    return inside + (exact - inside).detach()


class SlotLinear(nn.Module):
    """A linear layer with a matrix per slot: ``"batch slots dims"`` from ``"batch slots width"``.

    Slots that read the same words can encode different things about them only if their codes come from different
    matrices.
    """

    def __init__(self, config: VaeConfig):
        super().__init__()
        one = nn.Linear(config.width, config.dims)
        self.weight = nn.Parameter(
            repeat(one.weight.detach(), "dims width -> slots dims width", slots=config.slots).clone()
        )
        self.bias = nn.Parameter(repeat(one.bias.detach(), "dims -> slots dims", slots=config.slots).clone())

    def forward(self, slots: Tensor) -> Tensor:
        return torch.einsum("b s w, s d w -> b s d", slots, self.weight) + self.bias


class Bottleneck(nn.Module):
    """Latent ``z`` and its rate from slots, and ``z_hat`` from ``z``."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.config = config
        self.to_mu = SlotLinear(config) if config.per_slot_mu else nn.Linear(config.width, config.dims)
        self.to_log_var = nn.Linear(config.width, config.dims)
        nn.init.zeros_(self.to_log_var.weight)
        nn.init.constant_(self.to_log_var.bias, -3.0)  # start near the deterministic code
        self.norm = SyncedNorm(config.slots * config.dims, affine=False)

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``z`` ``"batch slots dims"`` (a sample in training, mu otherwise) and ``rate_bits`` ``"batch"``."""
        mu = self.norm(rearrange(self.to_mu(slots), "b s d -> b (s d)"))
        mu = rearrange(mu, "b (s d) -> b s d", s=self.config.slots)
        log_var = self.to_log_var(slots).clamp(*LOG_VAR_RANGE)
        kl_nats = 0.5 * (mu.square() + log_var.exp() - 1 - log_var)
        rate_bits = reduce(kl_nats, "b s d -> b", "sum") / math.log(2)
        if not self.training:
            return mu, rate_bits
        noise = shard_rng(len(mu), lambda rows: torch.randn(rows, *mu.shape[1:], device=mu.device))
        return mu + (0.5 * log_var).exp() * noise, rate_bits

    def z_hat(self, z: Tensor) -> Tensor:
        """Returns the quantised ``"batch slots dims"``, as ``straight_through``."""
        return straight_through(z, self.config.bits)
