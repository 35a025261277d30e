"""The devices that torch can compute on here."""

import torch

from ilcp.errors import ConfigError

__all__ = ["usable_device"]


def usable_device(device: str) -> torch.device:
    """Returns a device of that name, on which torch computes.

    Raises:
        ConfigError: there is none of that name here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all three
        first = str(error).splitlines()[0]
        raise ConfigError(f"expected a device of this machine such as 'cpu', got {device!r}: {first}") from error
