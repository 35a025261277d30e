"""What a model's configuration says of its size, against what its files hold: the first is anybody's word.

transformers makes a list for some numbers that a configuration says, a module for every layer that it counts, memory
for every number that no file holds, and opens the files that an index names. All are looked at first, and compared
with the headers of the weights, which no weight is read for.
"""

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch

from ilcp.folders import inside, read_json, shapes_of
from ilcp.records import shown

__all__ = ["require_counts", "require_depth", "require_held"]

SAFE, INDEX = ".safetensors", ".safetensors.index.json"
# What families call their number of layers.
LAYERS = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
)
# What counts things of which lists are made: labels, layers by their kind, experts, tokens beyond the vocabulary; not
# positions, widths, or words, of which there are more.
COUNTS = re.compile(
    r"(?:^|_)(?:num|n)_(?!pos|ctx|emb|vocab|tok|inner|word|param|step|sample)"
    r"|(?:labels|experts|layers|blocks|extra_ids|offset)$"
)
MOST_COUNTED = 1 << 16  # three times the 21,843 labels of the largest set of pictures
MOST_EXPERTS = 1 << 12  # twice the 2,048 of Switch: each is a module in every layer
MOST_LISTED = 1 << 20  # of a number in a list, which may count too: four times the largest vocabularies
MADE_TWICE = 2  # numbers of the model to one of a file: a head may be new where it is not the embedding
PACKED = 8  # numbers in a byte of a quantised file, at most: one bit each
MORE_NUMBERS, MORE_BYTES = 1 << 20, 1 << 28  # that no file holds: of small new weights, and of masks and rotations


def require_counts(folder: Path) -> None:
    """Refuses configurations of model and tokenizer that count more than any model has, before transformers counts.

    Raises:
        ValueError, OSError: or one is none.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            _require_counts(read_json(folder / name), name)


def _require_counts(record: Any, file: str, name: str = "") -> None:
    if isinstance(record, dict):
        for key, value in record.items():
            _require_counts(value, file, key)
            most = MOST_EXPERTS if "experts" in key else MOST_COUNTED
            if COUNTS.search(key) and isinstance(value, int | float) and value > most:
                raise ValueError(f"{key} = {shown(value)} in {file}: {most} at most, more than any model has")
    elif isinstance(record, list):
        leaves = list(_leaves(record))
        counted = sum(leaf for leaf in leaves if isinstance(leaf, int | float))
        if counted * sum(isinstance(leaf, str) for leaf in leaves) > MOST_LISTED:  # words, and how often each comes
            raise ValueError(f"{shown(counted)} times words in {name} of {file}: {MOST_LISTED} at most")
        for value in record:
            _require_counts(value, file, name)
            if isinstance(value, int | float) and value > MOST_LISTED:
                raise ValueError(f"{shown(value)} in {name} of {file}: {MOST_LISTED} at most, more than any counts")


def _leaves(value: Any) -> Iterator[Any]:
    if not isinstance(value, list):
        yield value
        return
    for inner in value:
        yield from _leaves(inner)


def require_depth(folder: Path) -> None:
    """Refuses a configuration with more layers than there are tensors: each layer has one at least.

    Raises:
        ValueError, OSError, safetensors.SafetensorError: or there are no weights to read.
    """
    most = sum(len(shapes_of(file)) for file in _weights(folder))
    _require_depth(read_json(folder / "config.json"), most)


def _require_depth(config: Any, most: int) -> None:
    for name, value in config.items() if isinstance(config, dict) else ():
        if name in LAYERS and isinstance(value, int | float) and not 0 <= value <= most:
            raise ValueError(f"{name} = {shown(value)} in config.json, and {most} tensors")
        _require_depth(value, most)


def _weights(folder: Path) -> list[Path]:
    """Returns the files of weights that transformers loads: one, or those that an index names.

    Raises:
        ValueError, OSError, ilcp.errors.StorageError: there are none, or they are no safetensors in the folder.
    """
    named = {index.name: _named(folder, index) for index in folder.glob(f"*{INDEX}")}
    said = read_json(folder / "config.json").get("transformers_weights")
    for name in ("model.safetensors", f"model{INDEX}") if said is None else (str(said),):
        if name in named:
            return named[name]
        if _is_safe(name) and (folder / name).exists():
            return [inside(folder, name)]
    if said is not None:
        raise ValueError(f"transformers_weights = {shown(said)} in config.json, and no safetensors of that name")
    raise ValueError("no weights in safetensors: save them there with save_pretrained")


def _named(folder: Path, index: Path) -> list[Path]:
    record = read_json(inside(folder, index.name))
    files = record.get("weight_map") if isinstance(record, dict) else None
    wrong = [name for name in files.values() if not _is_safe(name)] if isinstance(files, dict) else [record]
    if wrong or not files:
        raise ValueError(f"{shown(wrong[0])} in {index.name}: an index names safetensors beside it")
    return [inside(folder, name) for name in sorted(set(files.values()))]


def _is_safe(name: Any) -> bool:
    """Says whether a name is that of safetensors, without a folder before it."""
    return isinstance(name, str) and name.endswith(SAFE) and not re.search(r"[/\\:\0]", name)


def require_held(kind: Any, config: Any, folder: Path) -> None:
    """Refuses a configuration that makes a much larger model than the files hold.

    Args:
        kind: the class of transformers that makes a model of ``config``; here it makes one without memory.

    Raises:
        ValueError: with both sizes; transformers raises others of what it cannot make.
    """
    files = _weights(folder)
    held = sum(file.stat().st_size for file in files)
    numbers = sum(prod(shape) for file in files for shape, _ in shapes_of(file).values())
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=False)
    quantised = getattr(config, "quantization_config", None) is not None
    most = (PACKED * held if quantised else MADE_TWICE * numbers) + MORE_NUMBERS
    made = sum(tensor.numel() for tensor in model.parameters())
    beside = sum(tensor.numel() * tensor.element_size() for tensor in model.buffers())
    if made > most or beside > PACKED * held + MORE_BYTES:
        raise ValueError(
            f"{made} numbers as config.json says, {beside} bytes beside, and {numbers} in {held} bytes of weights"
        )
