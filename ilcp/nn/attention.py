"""Which of torch's attentions computes where every batch has another shape."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

__all__ = ["many_shapes"]


class _Left:
    """How many ``with`` blocks want cuDNN left out now, and whether it was let in before the first of them."""

    lock, inside, before = Lock(), 0, True


@contextmanager
def many_shapes() -> Iterator[None]:
    """Keeps cuDNN's attention out for the length of the ``with``: it plans every new shape anew, which takes far longer
    than to compute it (a profile of training steps on an H200).

    Other attentions stay as the caller set them. The switch is the process's, whatever thread asks.
    """
    with _Left.lock:
        if not _Left.inside:
            _Left.before = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)
        _Left.inside += 1
    try:
        yield
    finally:
        with _Left.lock:
            _Left.inside -= 1
            if not _Left.inside:
                torch.backends.cuda.enable_cudnn_sdp(_Left.before)
