"""Adapts a receiver to its codec: low-rank weights (LoRA, arXiv 2106.09685) beside its own, through peft.

They are trained along with the codec, saved in its folder, and part of the receiver's identity: the receiver without
them, or with others, is refused.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from ilcp.codec.folder import ADAPTER, ADAPTER_FILES
from ilcp.errors import ConfigError, IlcpError, MissingExtraError, StorageError
from ilcp.files import require_readable, settle, write_whole
from ilcp.folders import inside, read_json, read_whole, shapes_of
from ilcp.models.adapter_config import low_rank_config

__all__ = [
    "LOW_RANK",
    "SCALING",
    "Tuned",
    "adapt",
    "adapter_files",
    "bare_name",
    "begun_adapter",
    "innermost",
    "new_adapter",
    "plain",
    "require_adapter",
    "save_adapter",
    "tuned_layers",
    "unwrapped",
    "vocabulary_size",
    "with_adapter",
]

LOW_RANK = ".lora_"  # in the names of the weights that peft adds
WRAPPERS = (".base_layer.", "._orig_mod.")  # parts of names where peft added weights, and where torch compiled
SCALING = 2  # of what low-rank weights add, where they were made here


def new_adapter(model: Any, rank: int) -> Any:
    """Wraps ``model`` with untrained low-rank weights at every linear layer, which do not change its outputs yet.

    They are float32, whatever the model's own are: a step of training is smaller than half precision can tell.

    Raises:
        ConfigError: the rank is not positive.
        MissingExtraError: peft is not installed.
    """
    if rank < 1:
        raise ConfigError(f"expected adapter_rank to be at least 1, got {rank}")
    peft = _peft()
    config = peft.LoraConfig(r=rank, lora_alpha=SCALING * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def begun_adapter(model: Any, folder: Path) -> Any:
    """Wraps ``model`` with the low-rank weights of ``folder``, such as a codec's receiver-adapter, to train them on.

    Raises:
        ConfigError: the folder holds none for this model.
        MissingExtraError: peft is not installed.
    """
    require_adapter(folder)
    return _adapted(model, folder, folder, "low-rank weights for the receiver", ConfigError, train=True)


def with_adapter(model: Any, folder: Path | None) -> Any:
    """Returns the receiver with the low-rank weights of ``folder``, or as it is; raises as ``begun_adapter``."""
    return model if folder is None else begun_adapter(model, folder).get_base_model().eval()


def adapter_files(folder: Path) -> dict[str, bytes]:
    """Returns the files of low-rank weights, without the path of the model that they were made beside.

    Raises:
        ConfigError, MissingExtraError: as ``require_adapter``; or a file cannot be read.
    """
    require_adapter(folder)
    config, weights = ADAPTER_FILES
    record = {**read_json(folder / config), "base_model_name_or_path": None}
    try:
        content = read_whole(folder / weights)
    except OSError as error:
        raise ConfigError(f"expected readable weights as adapter in {folder}, got: {error}") from error
    return {config: (json.dumps(record, indent=2) + "\n").encode(), weights: content}


def require_adapter(folder: Path) -> None:
    """Refuses a folder that holds no low-rank weights, before a model is loaded for them.

    Raises:
        ConfigError: it has none, or such as are not taken.
        MissingExtraError: peft is not installed.
    """
    lacking = [name for name in ADAPTER_FILES if not os.path.isfile(folder / name)]
    if lacking:
        raise ConfigError(f"expected a folder of low-rank weights as adapter, got {folder}: no {lacking[0]}")
    _peft()
    try:
        low_rank_config(folder, folder)
    except (OSError, ValueError, StorageError) as error:
        raise ConfigError(f"expected low-rank weights as adapter in {folder}, got: {error}") from error


def save_adapter(adapter: Any, folder: Path) -> None:
    """Writes the low-rank weights (safetensors, in 16 bits) and their configuration into ``folder``."""
    halves = {name: weight.half() for name, weight in adapter.state_dict().items() if LOW_RANK in name}
    adapter.save_pretrained(str(folder), safe_serialization=True, state_dict=halves)
    (folder / "README.md").unlink(missing_ok=True)  # the codec's card says it all
    config = folder / ADAPTER_FILES[0]
    record = json.loads(config.read_text(encoding="utf-8"))
    record["base_model_name_or_path"] = None  # a path of this machine; the codec's identity says which model it is
    write_whole(config, json.dumps(record, indent=2) + "\n")
    settle(folder)


def adapt(model: Any, codec: Any) -> Any:
    """Returns the receiver that ``codec`` was trained for: ``model`` with the codec's adapter, or as it is without one.

    Args:
        model: the receiver; its layers are wrapped in place.
        codec: as ``ilcp.load`` gives it.

    Raises:
        MissingExtraError: peft is not installed.
        StorageError: the adapter's files are damaged.
    """
    folder = getattr(codec, "folder", None)
    if folder is None or not os.path.isdir(folder / ADAPTER):
        return model
    return _adapted(model, folder, folder / ADAPTER, "the receiver's adapter", StorageError).eval()


def _adapted(model: Any, root: Path, folder: Path, what: str, refusal: type[IlcpError], *, train: bool = False) -> Any:
    """Wraps ``model`` with the low-rank weights of ``folder``, inside ``root``; raises ``refusal`` where they are not
    its own, or not such as ``ilcp.models.adapter_config`` takes."""
    peft = _peft()
    try:
        for name in ADAPTER_FILES:
            require_readable(inside(root, str((folder / name).relative_to(root))))
        config = peft.LoraConfig(**low_rank_config(root, folder), inference_mode=not train)
        adapter = peft.get_peft_model(model, config, low_cpu_mem_usage=True)  # on meta: nothing takes memory yet
        try:
            _fill(adapter, folder / ADAPTER_FILES[1])
        except Exception:
            adapter.unload()
            raise
        return adapter
    except Exception as error:  # peft, safetensors and torch raise many kinds, all of which mean this
        raise refusal(f"expected {what} in {folder}, got: {error}") from error


def _fill(adapter: Any, file: Path) -> None:
    """Takes the low-rank weights of a file, if they are all of the adapter's, in its shapes, and no others."""
    peft = _peft()
    wanted, found = peft.get_peft_model_state_dict(adapter, save_embedding_layers=False), shapes_of(file)
    lacking, strange = (
        [name for name in one if name not in other] for one, other in ((wanted, found), (found, wanted))
    )
    said = [f"no {', '.join(lacking[:3])}"] if lacking else []
    said += [f"weights for layers that this model does not have ({', '.join(strange[:3])})"] if strange else []
    if said:
        raise ValueError("; ".join(said))
    for name, weight in wanted.items():
        if found[name][0] != tuple(weight.shape):
            raise ValueError(
                f"{name} of shape {found[name][0]}, where its configuration makes it {tuple(weight.shape)}"
            )
    weights = load_file(file)
    peft.set_peft_model_state_dict(adapter, weights, low_cpu_mem_usage=True)
    for name, parameter in adapter.named_parameters():  # peft rounds them to the model's dtype: no bit may be lost
        own = weights.get(name.replace(".default", ""))
        if own is not None:
            parameter.data = own.float().to(parameter.device)


def plain(module: Any) -> Any:
    """Returns what ``torch.compile`` wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def unwrapped(model: Any) -> Any:
    """Returns the model without the wrappers of ``torch.compile`` and peft; low-rank weights stay in it."""
    model = plain(model)
    return plain(model.get_base_model()) if hasattr(model, "get_base_model") else model


def innermost(module: Any) -> Any:
    """Returns a model's own module inside all that peft may have put around it."""
    for name in ("base_layer", "original_module", "token_adapter"):  # the last stands for the one before it
        inside = getattr(module, "_modules", {}).get(name)
        if inside is not None:
            return innermost(inside)
    return module


def vocabulary_size(model: Any) -> int:
    """Returns how many tokens the model has embeddings for."""
    return int(innermost(model.get_input_embeddings()).num_embeddings)


def bare_name(name: str) -> str:
    """Returns the name of a module or weight as it is without the wrappers of ``torch.compile`` and peft."""
    for wrapper in WRAPPERS:
        name = f".{name}".replace(wrapper, ".").removeprefix(".")
    return name


class Tuned(NamedTuple):
    """What decides how a layer that peft put into a model computes, beside its weights."""

    adapters: tuple[str, ...]
    active: tuple[str, ...]
    disabled: bool
    merged: tuple[str, ...]
    scaling: tuple[tuple[str, float], ...]

    @property
    def in_effect(self) -> tuple[str, ...]:
        """The adapters that change what the layer's own weights compute; a merged one is part of these."""
        return () if self.disabled or self.merged else self.active


def tuned_layers(model: Any) -> dict[str, Tuned]:
    """Returns by name what peft put into a model, itself or through transformers, as it is now."""
    return {
        bare_name(name): _tuned(module)
        for name, module in unwrapped(model).named_modules()
        if isinstance(getattr(type(module), "disable_adapters", None), property)
    }


def _tuned(layer: Any) -> Tuned:
    held: list[Any] = [getattr(layer, name, None) for name in getattr(layer, "adapter_layer_names", ())]
    adapters = {adapter for each in held if hasattr(each, "keys") for adapter in each.keys()}  # noqa: SIM118  # no dict
    scaling = getattr(layer, "scaling", None)
    factors = {adapter: float(factor) for adapter, factor in scaling.items()} if isinstance(scaling, dict) else {}
    return Tuned(
        tuple(sorted(adapters)),
        tuple(sorted(layer.active_adapters)),
        bool(layer.disable_adapters),
        tuple(sorted(layer.merged_adapters)),
        tuple(sorted(factors.items())),
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError.of("peft", "for a receiver with an adapter", "train") from error
    return peft
