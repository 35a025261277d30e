"""Which of torch's attentions computes where every batch has another shape."""

from contextlib import AbstractContextManager

from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["many_shapes"]


def many_shapes() -> AbstractContextManager[None]:
    """Keeps cuDNN's attention out for the length of the ``with``: it plans every new shape anew, for 63 ms a call.

    That was measured on an H200, where a training step of 31 ms took 1.4 s. Elsewhere nothing changes.
    """
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
