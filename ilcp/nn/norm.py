"""RMS norm in single precision, whatever autocast made of its input: torch has no fused one of mixed precision."""

from torch import Tensor, nn

__all__ = ["FloatNorm"]


class FloatNorm(nn.RMSNorm):
    """``nn.RMSNorm`` of ``"... width"`` as float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())
