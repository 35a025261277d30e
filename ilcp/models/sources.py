"""Says where a model is: in a folder, in a GGUF file, or on a hub; what is fetched is a folder like any other."""

import os
import re
from pathlib import Path
from typing import Any

from ilcp.codec.folder import ADAPTER_FILES
from ilcp.errors import ConfigError, StorageError
from ilcp.files import require_readable
from ilcp.folders import fetched, inside, is_hub_id, missing, read_json, slip
from ilcp.records import shown

__all__ = ["FETCHED", "TEMPLATES", "at_home", "folder_of", "gguf_file"]

SUFFIX = ".gguf"
# Of a hub's repository: no code, no pickles, no weights in other formats.
FETCHED = ("*.json", "*.jinja", "*.txt", "*.model", "model*.safetensors")
TEMPLATES = "additional_chat_templates"  # the one folder below a model's own that transformers looks into
# Models of the hub's first years have no owner in their ids; since then every id has one.
OWNERLESS = (
    *("albert-", "bert-", "camembert-base", "ctrl", "distilbert-", "distilgpt2", "distilroberta-", "gpt2"),
    *("openai-gpt", "roberta-", "t5-", "transfo-xl-", "xlm-", "xlnet-"),
)


def at_home(source: str | Path) -> str | Path:
    """Returns the source, with the home in the place of a ``~`` at its beginning: no hub id begins so."""
    if not str(source).startswith("~"):
        return source
    return Path(os.path.expanduser(source)) if isinstance(source, Path) else os.path.expanduser(source)


def gguf_file(source: str | Path, *, download: bool = True) -> Path | None:
    """Returns the GGUF file that ``source`` names, fetched if it is on the hub; None for any other kind of source.

    Args:
        source: ``path/to/model.gguf``, ``folder:file.gguf`` or ``owner/name:file.gguf``.
        download: asks the hub for it; otherwise the copy has to be here.

    Raises:
        ConfigError: there is no such file, or it is no GGUF.
    """
    text = str(source)
    if os.path.isdir(text):  # which says no of every text that is no path; Path's own raises for some
        return None
    if os.path.isfile(text):
        return _checked(Path(text))
    place, colon, name = text.partition(":")
    if not colon:
        if text.lower().endswith(SUFFIX):
            raise ConfigError(f"expected a GGUF file, got {text}: {missing(text)}")
        return None
    if not place or ":" in name or not name.lower().endswith(SUFFIX):
        raise ConfigError(f"expected folder:file{SUFFIX} or owner/name:file{SUFFIX}, got {text!r}")
    if not os.path.isdir(place):
        return _checked(_fetched(place, name, download))
    if not os.path.isfile(Path(place) / name):
        because = f"{missing(Path(place) / name)}{_beside(Path(place))}"
        raise ConfigError(f"expected a GGUF file {name} in {place}, got: {because}")
    return _checked(Path(place) / name)


def folder_of(source: str | Path, *, download: bool = True) -> Path:
    """Returns a model's folder: the one that ``source`` names, or the local copy of a hub's repository of that id.

    Args:
        source: a folder, or an id on the hub.
        download: asks the hub for it; otherwise the copy has to be here.

    Raises:
        ConfigError: it is a folder without a model or with more than one, a path to nothing, no id that a hub could
            know, or cannot be fetched.
    """
    if os.path.isdir(source):
        return _readable(Path(source))
    hub_id = require_id(source)
    return _readable(
        fetched(hub_id, FETCHED, "a language model", ignore_patterns=["*/*"], local_files_only=not download)
    )


def require_id(source: str | Path) -> str:
    """Returns the id on a hub, and refuses what is a path to nothing, or no id that a hub could know.

    Raises:
        ConfigError: with what was expected.
    """
    text = str(source)
    if "/" not in text and isinstance(source, str) and (text.startswith(OWNERLESS) or (text and _cached(text))):
        return text
    if is_hub_id(source):
        return text
    if "/" in text or os.sep in text or isinstance(source, Path) or not text.strip("."):
        raise ConfigError(
            f"expected a model's folder with a config.json, got {source}: {missing(source)}{slip(source)}"
        )
    raise ConfigError(
        f"expected a model's folder, a GGUF file or a hub id (owner/name), got {source}: there is no such folder"
    )


def _readable(folder: Path) -> Path:
    """Returns a folder with a model of its own, whose files can be read, are regular ones and lie in it."""
    try:
        for file in (folder / "config.json", *(file for kind in FETCHED for file in folder.glob(kind))):
            require_readable(inside(folder, file.name))
        for file in (*folder.glob(f"{TEMPLATES}/*"), *(file for file in folder.iterdir() if file.is_symlink())):
            if file.is_file():
                inside(folder, str(file.relative_to(folder)))
        if os.path.lexists(folder / ADAPTER_FILES[0]):
            raise ConfigError(
                f"expected a model's folder, got {folder} with low-rank weights in it ({ADAPTER_FILES[0]}): they may "
                "name another model, and code; load them with peft, and give the model itself"
            )
        _refuse_kernels(read_json(folder / "config.json"), folder)
        _refuse_elsewhere(folder)
    except FileNotFoundError:
        beside = _beside(folder)
        raise ConfigError(f"expected a model's folder with a config.json, got {folder}: no such file{beside}") from None
    except OSError as error:  # transformers would call it missing
        because = (error.strerror or "unreadable").lower()
        raise ConfigError(f"expected a model's folder that can be read, got {error.filename}: {because}") from error
    except (ValueError, StorageError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"expected a model's folder with a config.json, got {folder}: {error}") from error
    return folder


def _refuse_kernels(config: Any, folder: Path) -> None:
    """Refuses a configuration that has transformers fetch code to compute with: "owner/name" as implementation."""
    for name, value in config.items() if isinstance(config, dict) else ():
        named = value.values() if isinstance(value, dict) else (value,)
        if "_implementation" in name and any("/" in str(each) for each in named):
            raise ConfigError(
                f"expected no code from elsewhere in {folder}/config.json, got {name} = {shown(value)}: remove it"
            )
        _refuse_kernels(value, folder)


def _refuse_elsewhere(folder: Path) -> None:
    """Refuses a tokenizer's configuration that names files beyond its folder: transformers reads, and saves, them."""
    file = folder / "tokenizer_config.json"
    record = read_json(file) if file.exists() else {}
    for name, value in record.items() if isinstance(record, dict) else ():
        for each in value if isinstance(value, list) else (value,):
            at = folder / str(each) if name == "fast_tokenizer_files" else Path(str(each))
            if re.search("_files?$", name) and os.path.isfile(at) and not _lies_in(folder, at):
                raise ConfigError(f"expected no file from elsewhere in {file}, got {name} = {shown(each)}: remove it")


def _lies_in(folder: Path, file: Path) -> bool:
    return os.path.realpath(file.parent) == os.path.realpath(folder)


def _cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)
    except (OSError, ValueError):  # no hub could know such an id
        return False


def _fetched(place: str, name: str, download: bool) -> Path:
    """Returns one file of a hub repository, from the cache where it is there."""
    from huggingface_hub import hf_hub_download

    require_id(place)
    try:
        return Path(hf_hub_download(place, name, local_files_only=not download))
    except Exception as error:  # the hub's client raises many kinds, all of which mean this
        raise ConfigError(f"expected {name} in a folder or on the hub at {place}, got: {error}") from error


def _checked(file: Path) -> Path:
    try:
        with file.open("rb") as stream:
            begins = stream.read(4)
    except OSError as error:
        raise ConfigError(f"expected a readable GGUF file, got {file}: {error.strerror}") from error
    if begins != b"GGUF":
        folder = f": name the folder {file.parent}" if os.path.isfile(file.parent / "config.json") else ""
        raise ConfigError(
            f"expected a GGUF file, which begins with b'GGUF', or a model's folder, got {file}, which is no folder and "
            f"begins with {begins!r}{folder}"
        )
    return file


def _beside(folder: Path) -> str:
    """Names the GGUF files of a folder, as the rest of an error."""
    try:
        found = sorted(
            name for name in os.listdir(folder) if name.lower().endswith(SUFFIX) and os.path.isfile(folder / name)
        )
    except OSError:  # a folder that may be entered, and not be read
        return ""
    return f"; name one of its GGUF files: {', '.join(f'{folder}:{name}' for name in found)}" if found else ""
