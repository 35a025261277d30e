"""What the configuration of low-rank weights may say: peft never reads it, because it believes what it reads.

Releases of peft import a module that the file names, run its names of layers as regular expressions, initialise by
methods that change the model's own weights, and unpickle weights that are no safetensors. So of a file only plain LoRA
(arXiv 2106.09685) is taken, its layers by name, and ``ilcp.models.adapter`` hands peft what is made of it here.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ilcp.codec.folder import ADAPTER_FILES
from ilcp.folders import inside, read_json, shapes_of
from ilcp.records import shown

__all__ = ["low_rank_config"]

NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)  # of a layer: no expression of it takes long to match
MOST_NAMES = 10_000  # more layers than any model has by name
MOST_RANK = 1 << 14  # as wide as the layers of the largest models: a rank beyond it is not low
LOW_RANK_A = ".lora_A.", ".lora_embedding_A"
# What decides nothing about weights that are there: where they come from, who wrote them, how they were begun.
SAID = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "megatron_core"),
    *("peft_version", "qalora_group_size", "revision", "runtime_config"),
)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= MOST_RANK


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MOST_NAMES and all(map(_is_name, value))


def _of_names(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(_is_name(name) and fits(each) for name, each in value.items())


# What decides how the weights are used, with what it may be; of anything else the file may say nothing.
TAKEN: Mapping[str, Callable[[Any], bool]] = {
    "peft_type": lambda value: value == "LORA",
    "task_type": lambda value: value in (None, "CAUSAL_LM", "FEATURE_EXTRACTION"),
    "r": _is_rank,
    "lora_alpha": _is_number,
    "lora_dropout": lambda value: value == 0 or (_is_number(value) and value < 1),
    "target_modules": _are_names,
    "rank_pattern": _of_names(_is_rank),
    "alpha_pattern": _of_names(_is_number),
    "bias": lambda value: value == "none",
    "use_rslora": lambda value: isinstance(value, bool),
    "fan_in_fan_out": lambda value: isinstance(value, bool),
}
NEEDED = ("peft_type", "r", "lora_alpha", "target_modules")


def low_rank_config(root: Path, folder: Path) -> dict[str, Any]:
    """Returns what the files of low-rank weights in ``folder`` say of them, as arguments of peft's ``LoraConfig``.

    Args:
        root: the folder that all files have to lie in: that of a codec, or ``folder`` itself.

    Raises:
        OSError, ilcp.errors.StorageError, safetensors.SafetensorError: as ``inside``, ``read_json`` and ``shapes_of``.
        ValueError: they are of another kind, or the weights are not of the rank that is said.
    """
    config, weights = (str((folder / name).relative_to(root)) for name in ADAPTER_FILES)
    record = read_json(inside(root, config))
    if not isinstance(record, dict):
        raise ValueError(f"{ADAPTER_FILES[0]} that is no table")
    for name, value in record.items():
        known = TAKEN.get(name)
        if (known is None and name not in SAID and value not in (None, False, [], {})) or (known and not known(value)):
            raise ValueError(
                f"{name} = {shown(value)} in {ADAPTER_FILES[0]}: taken are plain low-rank weights (LORA) without "
                "biases, for layers by their names"
            )
    lacking = [name for name in NEEDED if name not in record]
    if lacking:
        raise ValueError(f"{ADAPTER_FILES[0]} without {', '.join(lacking)}")
    ranks = {shape[0] for name, (shape, _) in shapes_of(inside(root, weights)).items() if _is_low_rank(name, shape)}
    said = {record["r"], *(record.get("rank_pattern") or {}).values()}
    if not ranks or max(said) > max(ranks):  # peft makes room for what is said before it looks at the weights
        raise ValueError(f"weights of ranks {sorted(ranks)}, where {ADAPTER_FILES[0]} says {sorted(said)}")
    return {name: value for name, value in record.items() if name in TAKEN and name != "peft_type"}


def _is_low_rank(name: str, shape: tuple[int, ...]) -> bool:
    return any(each in name for each in LOW_RANK_A) and len(shape) == 2 and 0 not in shape
