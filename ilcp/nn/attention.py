"""Which of torch's attentions computes where every batch has another shape."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["many_shapes"]


@contextmanager
def many_shapes() -> Iterator[None]:
    """Keeps cuDNN's attention out for the length of the ``with``: it plans every new shape anew, for 63 ms a call.

    That was measured on an H200, where a training step of 31 ms took 1.4 s. Elsewhere nothing changes.
    """
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield
