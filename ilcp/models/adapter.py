"""A receiver that is adapted to its codec: low-rank weights (LoRA, arXiv 2106.09685) beside its own, through peft.

They are trained along with the codec, saved in its folder, and part of the receiver's identity: the receiver without
them, or with others, is refused.
"""

import json
from pathlib import Path
from typing import Any

from ilcp.codec.folder import ADAPTER
from ilcp.errors import EncodeError

__all__ = ["adapt", "new_adapter", "save_adapter", "unwrapped"]


def new_adapter(model: Any, rank: int) -> Any:
    """The peft model around ``model``, which gets untrained low-rank weights at every linear layer: as yet no change.

    Raises:
        EncodeError: peft is not installed, or the rank is not positive.
    """
    if rank < 1:
        raise EncodeError(f"expected adapter_rank to be at least 1, got {rank}")
    peft = _peft()
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def save_adapter(adapter: Any, folder: Path) -> None:
    """Writes the low-rank weights (safetensors) and their configuration into ``folder``."""
    adapter.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # the codec's card says it all
    config = folder / "adapter_config.json"
    record = json.loads(config.read_text(encoding="utf-8"))
    record["base_model_name_or_path"] = None  # a path of this machine; the codec's identity says which model it is
    config.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def adapt(model: Any, codec: Any) -> Any:
    """The receiver that ``codec`` was trained for, from the model without its adapter; the model itself if it has none.

    Args:
        model: the receiver; its layers are wrapped in place.
        codec: as ``ilcp.load`` gives it.

    Raises:
        EncodeError: peft is not installed, or the adapter's files are damaged.
    """
    folder = getattr(codec, "folder", None)
    if folder is None or not (folder / ADAPTER).is_dir():
        return model
    peft = _peft()
    try:
        return peft.PeftModel.from_pretrained(model, str(folder / ADAPTER)).eval()
    except Exception as error:  # peft, safetensors and torch raise many kinds, all of which mean this
        raise EncodeError(f"expected the receiver's adapter in {folder / ADAPTER}, got: {error}") from error


def unwrapped(model: Any) -> Any:
    """The model itself, without peft's wrapper; low-rank weights stay in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise EncodeError(
            "expected peft for a receiver with an adapter, got none: pip install 'ilcp[train]'"
        ) from error
    return peft
