"""What a model's configuration says of its size, against what its files hold: the first is anybody's word.

transformers makes a module for every layer that a configuration counts, and memory for every number that it says and
no file holds. Both are compared with the headers of the weights first, which no weight is read for.
"""

from math import prod
from pathlib import Path
from typing import Any

import torch

from ilcp.folders import read_json, shapes_of

__all__ = ["require_depth", "require_held"]

# What families call their number of layers.
LAYERS = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
)
PACKED = 8  # numbers in a byte of a file, at most: one bit each
MORE = 1 << 28  # numbers that no file holds, such as masks and rotations


def require_depth(folder: Path) -> None:
    """Refuses a configuration with more layers than there are tensors: each layer has one at least.

    Raises:
        ValueError, OSError, safetensors.SafetensorError: or there are no weights to read.
    """
    most = sum(len(shapes_of(file)) for file in folder.glob("*.safetensors"))
    if not most:
        raise ValueError("no weights in safetensors: save them there with save_pretrained")
    _require_depth(read_json(folder / "config.json"), most)


def _require_depth(config: Any, most: int) -> None:
    for name, value in config.items() if isinstance(config, dict) else ():
        if name in LAYERS and isinstance(value, int | float) and not 0 <= value <= most:
            raise ValueError(f"{name} = {value} in config.json, and {most} tensors")
        _require_depth(value, most)


def require_held(kind: Any, config: Any, folder: Path) -> None:
    """Refuses a configuration that makes a much larger model than the files can hold.

    Args:
        kind: the class of transformers that makes a model of ``config``; here it makes one without memory.

    Raises:
        ValueError: with both sizes; transformers raises others of what it cannot make.
    """
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=False)
    numbers = sum(prod(tensor.shape) for tensor in (*model.parameters(), *model.buffers()))
    if numbers > PACKED * held + MORE:
        raise ValueError(f"{numbers} numbers as config.json says, and {held} bytes of weights")
