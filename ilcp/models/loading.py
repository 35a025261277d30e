"""Models and tokenizers from a folder or a hub, as a hand-off needs them."""

from pathlib import Path
from typing import Any

from ilcp.errors import EncodeError
from ilcp.nn.device import usable_device

__all__ = ["DTYPES", "load_model"]

DTYPES = ("float32", "bfloat16", "float16")


def load_model(
    source: str | Path, *, dtype: str = "float32", device: Any = "cpu", encoder: bool = False
) -> tuple[Any, Any]:
    """A model in evaluation mode, and its tokenizer; a folder is read without asking any server.

    Args:
        source: a folder written by ``save_pretrained``, or a model's id on the hub. No code from it is run.
        dtype: of the weights in memory; it is part of the model's identity.
        encoder: admits models that are no causal language models (a sender needs its states only).

    Raises:
        EncodeError: there is no such model, no tokenizer beside it, or no such device; or the dtype is unknown.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import logging

    if dtype not in DTYPES:
        raise EncodeError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
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
        raise EncodeError(f"expected a language model in {source}, got: {error}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=local)
    except Exception as error:
        raise EncodeError(
            f"expected the model's tokenizer beside it in {source}, got: {error}; save it there with save_pretrained"
        ) from error
    return model.eval(), tokenizer


def _local(source: str | Path) -> bool:
    """Whether it is a folder; what can be neither folder nor id is refused."""
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise EncodeError(f"expected a model's folder with a config.json, got {source}: no such file")
        return True
    parts = str(source).split("/")
    if isinstance(source, Path) or len(parts) > 2 or not all(part.strip(".") for part in parts):
        raise EncodeError(f"expected a model's folder with a config.json, got {source}: no such file")
    return False
