"""Loads models and tokenizers from a folder, a hub or a GGUF file."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from logging import LogRecord, getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer

from ilcp.errors import ConfigError, IlcpError, MissingExtraError
from ilcp.inputs import STEERING
from ilcp.models.adapter import vocabulary_size
from ilcp.models.believed import require_counts, require_depth, require_held
from ilcp.models.sources import at_home, folder_of, gguf_file
from ilcp.nn.device import usable_device

__all__ = ["DTYPES", "load_folder", "load_model"]

DTYPES = ("float32", "bfloat16", "float16")
COLOUR = re.compile("\x1b\\[[0-9;]*m")


def load_model(
    source: str | Path, *, dtype: str = "float32", device: Any = "cpu", encoder: bool = False, download: bool = True
) -> tuple[Any, Any]:
    """Returns a model in evaluation mode and its tokenizer; folders and files are read without asking any server.

    A GGUF file is a decoder with its tokenizer and chat template; what lies beside it is not read. Its weights are
    unpacked, so that the model can be trained on, saved, and is identified like the folder that it is saved to.

    Args:
        source: a folder written by ``save_pretrained``, a model's id on the hub, or a GGUF file
            (``path/to/model.gguf``, ``folder:file.gguf``, ``owner/name:file.gguf``). No code from it is run, and no
            pickle read: weights are safetensors.
        dtype: of the weights in memory; it is part of the model's identity.
        encoder: also takes models that are no causal language models (a sender needs hidden states only).
        download: fetches an id from the hub; false for one that a stranger named, which then has to be here already.

    Raises:
        ConfigError: there is no such model, no tokenizer with it, or no such device; or the dtype is unknown.
        MissingExtraError: a GGUF file is given, and what reads it is not installed.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
    device, source = usable_device(str(device)), at_home(source)
    file = gguf_file(source, download=download)
    if file is not None:
        model, tokenizer = _from_gguf(file, dtype)
    else:
        model, tokenizer = load_folder(folder_of(source, download=download), str(source), dtype, encoder)
    return model.to(device).eval(), tokenizer


def load_folder(folder: Path, source: str, dtype: str, encoder: bool = False) -> tuple[Any, Any]:
    """Returns the model in a folder of ``ilcp.models.sources.folder_of``, and its tokenizer.

    Args:
        source: what to call the folder.
        dtype: one of ``DTYPES``, or "auto" for that of its files.

    Raises:
        ConfigError: as ``load_model``.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    here: dict[str, Any] = dict(local_files_only=True, trust_remote_code=False)  # False: not even asked for
    with _quiet(), _refusing(f"a language model in {source}"):
        require_depth(folder)
        require_counts(folder)
        config = AutoConfig.from_pretrained(folder, **here)
        causal = bool(set(config.architectures or ()) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))
        kind = AutoModel if encoder and not causal else AutoModelForCausalLM
        require_held(kind, config, folder)
        model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, **here)
    with _quiet(), _refusing(f"the model's tokenizer beside it in {source}", "; save it there with save_pretrained"):
        return model, AutoTokenizer.from_pretrained(folder, **here)


def _from_gguf(file: Path, dtype: str) -> tuple[Any, Any]:
    """Loads a model and the tokenizer that its file describes."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtraError.of(package, "to read a GGUF file", "gguf")
    with _alone(file) as name, _quiet():
        with _refusing(f"a whole GGUF file of an architecture that transformers reads, {file}"):
            config = AutoConfig.from_pretrained(**name)
            model, loaded = AutoModelForCausalLM.from_pretrained(
                **name, config=config, dtype=dtype, output_loading_info=True, **_unpacked()
            )
        if loaded["missing_keys"]:  # transformers would draw them by chance
            lacking = sorted(loaded["missing_keys"])
            raise ConfigError(
                f"expected every weight of {type(model).__name__} in {file}, got none for {len(lacking)} of them, "
                f"such as {lacking[0]}: if the model is split into several files, merge them"
            )
        with _refusing(f"a tokenizer in the GGUF file {file}"):
            # Not AutoTokenizer, which parses the file once more for the same tokenizer in a class of the family's own.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(**name)
            if not isinstance(tokenizer.chat_template, str | None):
                raise ConfigError(f"expected a text as chat template in {file}, got {tokenizer.chat_template!r}")
            _drop_tokens_from(vocabulary_size(model), tokenizer)
            for token in ("bos_token", "eos_token", "unk_token", "pad_token"):  # transformers 4 mixes them up
                known = getattr(config, f"{token}_id", None)
                if known is not None and known != getattr(tokenizer, f"{token}_id"):
                    setattr(tokenizer, token, tokenizer.convert_ids_to_tokens(known))
    model.name_or_path = model.config._name_or_path = tokenizer.name_or_path = str(file)
    return model, tokenizer


def _drop_tokens_from(first: int, tokenizer: Any) -> None:
    """Drops the added tokens from id ``first`` on: transformers adds GPT-2's own to every vocabulary of its kind."""
    if len(tokenizer) > first:
        record = json.loads(tokenizer.backend_tokenizer.to_str())
        record["added_tokens"] = [token for token in record["added_tokens"] if token["id"] < first]
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(record))


@contextmanager
def _alone(file: Path) -> Iterator[dict[str, Any]]:
    """Gives the file as transformers takes it, in a folder of its own: configurations beside it would go before it."""
    with TemporaryDirectory(prefix="ilcp-gguf-") as folder:
        (Path(folder) / "model.gguf").symlink_to(file.resolve())
        alone = dict(pretrained_model_name_or_path=folder, gguf_file="model.gguf")
        yield alone | {"local_files_only": True, "trust_remote_code": False}


def _unpacked() -> dict[str, Any]:
    """Has transformers 5 unpack the weights and forget that they were packed, as 4 always does.

    It would otherwise call the model quantised, refuse to save it, and fetch kernels from a hub to compute with.
    """
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' bars, one for a load of a few milliseconds is noise, and writes out what would steer a
    terminal where it reports on names that a stranger's file has."""
    from transformers.utils import logging

    bars, handlers = logging.is_progress_bar_enabled(), list(getLogger("transformers").handlers)
    if bars:
        logging.disable_progress_bar()
    for handler in handlers:
        handler.addFilter(_written_out)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_written_out)
        if bars:
            logging.enable_progress_bar()


def _written_out(record: LogRecord) -> bool:
    """Takes the colours from a record, and writes its other controls as text."""
    record.msg, record.args = COLOUR.sub("", record.getMessage()).translate(STEERING), ()
    return True


@contextmanager
def _refusing(expected: str, advice: str = "") -> Iterator[None]:
    """Turns what transformers, the hub and safetensors raise, which is of many kinds, into the one that it means."""
    try:
        yield
    except IlcpError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"  # of a KeyError, the text alone says nothing
        raise ConfigError(f"expected {expected}, got {said}{advice}") from error
