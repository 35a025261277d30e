"""The embedded default: a small sender, a small receiver and a trained codec, loaded offline from package data.

``benchmarks/train_pair.py`` and ``benchmarks/train_codec.py`` made the files; each folder says how, with seed, time
and score.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilcp.codec import load
from ilcp.errors import EncodeError
from ilcp.handoff import Receiver, Sender

__all__ = ["Pair", "load_model", "load_pair"]

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Pair:
    """A sender, a receiver, and the folder of the codec between them."""

    sender: Sender
    receiver: Receiver
    path: Path


def load_pair(
    codec: str | Path | None = None,
    *,
    sender: str | Path | None = None,
    receiver: str | Path | None = None,
    key: bytes | None = None,
    allow_unproven: bool = False,
) -> Pair:
    """The embedded pair, with its own codec or the one in folder ``codec``; or a pair of your own, from local folders.

    Args:
        sender, receiver: folders of causal language models; None for the embedded ones.
        codec: a folder written by ``ilcp.save``; None for the embedded codec.
        key: 16 to 64 bytes; messages are then sealed (127 bytes) and bare ones refused.
        allow_unproven: takes a codec whose content gain was not measured, or is not above zero.

    Raises:
        EncodeError: the folder holds no codec.
        IdentityError: the codec was trained for another pair.
        UnprovenError: the codec's content gain was not measured, or is not above zero.
    """
    path = HERE / "codec" if codec is None else Path(codec)
    method = load(path)
    return Pair(
        Sender(*load_model(sender or HERE / "sender"), method, key=key),
        Receiver(*load_model(receiver or HERE / "receiver"), method, key=key, allow_unproven=allow_unproven),
        path,
    )


def load_model(folder: str | Path) -> tuple[Any, Any]:
    """A causal language model and its tokenizer from a local folder, in float32, without asking any server.

    Raises:
        EncodeError: the folder is missing, or holds no model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if not (Path(folder) / "config.json").is_file():
        raise EncodeError(f"expected a model's folder with a config.json, got {folder}: no such file")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar for a load of a few milliseconds is noise
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers, tokenizers and safetensors raise many kinds, all of which mean this
        raise EncodeError(f"expected a causal language model and its tokenizer in {folder}, got: {error}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return model.eval(), tokenizer
