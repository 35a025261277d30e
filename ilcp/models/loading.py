"""Loads models and tokenizers from a folder or a hub."""

from pathlib import Path
from typing import Any

from ilcp.errors import ConfigError
from ilcp.nn.device import usable_device

__all__ = ["DTYPES", "load_model"]

DTYPES = ("float32", "bfloat16", "float16")


def load_model(
    source: str | Path, *, dtype: str = "float32", device: Any = "cpu", encoder: bool = False
) -> tuple[Any, Any]:
    """Returns a model in evaluation mode and its tokenizer; a folder is read without asking any server.

    Args:
        source: a folder written by ``save_pretrained``, or a model's id on the hub. No code from it is run.
        dtype: of the weights in memory; it is part of the model's identity.
        encoder: also takes models that are no causal language models (a sender needs hidden states only).

    Raises:
        ConfigError: there is no such model, no tokenizer beside it, or no such device; or the dtype is unknown.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import logging

    if dtype not in DTYPES:
        raise ConfigError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
    device = usable_device(str(device))
    local = _local(source)
    bars = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()  # a bar for a load of a few milliseconds is noise
    try:
        config = AutoConfig.from_pretrained(str(source), local_files_only=local)
        causal = bool(set(config.architectures or ()) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))
        kind = AutoModel if encoder and not causal else AutoModelForCausalLM
        model = kind.from_pretrained(str(source), local_files_only=local, dtype=dtype).to(device)
    except Exception as error:  # transformers, hub and safetensors raise many kinds, all of which mean this
        raise ConfigError(f"expected a language model in {source}, got: {error}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=local)
    except Exception as error:
        raise ConfigError(
            f"expected the model's tokenizer beside it in {source}, got: {error}; save it there with save_pretrained"
        ) from error
    return model.eval(), tokenizer


def _local(source: str | Path) -> bool:
    """Says whether the source is a folder (not a hub id), and refuses what can be neither."""
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise ConfigError(f"expected a model's folder with a config.json, got {source}: no such file")
        return True
    parts = str(source).split("/")
    if isinstance(source, Path) or len(parts) > 2 or not all(part.strip(".") for part in parts):
        raise ConfigError(f"expected a model's folder with a config.json, got {source}: no such file")
    return False
