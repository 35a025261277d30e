"""Says where a model is: in a folder, in a GGUF file, or on a hub."""

import os
from pathlib import Path

from ilcp.errors import ConfigError
from ilcp.files import require_readable

__all__ = ["at_home", "gguf_file", "in_folder"]

SUFFIX = ".gguf"
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


def gguf_file(source: str | Path) -> Path | None:
    """Returns the GGUF file that ``source`` names, fetched if it is on the hub; None for any other kind of source.

    Args:
        source: ``path/to/model.gguf``, ``folder:file.gguf`` or ``owner/name:file.gguf``.

    Raises:
        ConfigError: there is no such file, or it is no GGUF.
    """
    text = str(source)
    if Path(text).is_dir():
        return None
    if Path(text).is_file():
        return _checked(Path(text))
    place, colon, name = text.partition(":")
    if not colon:
        if text.lower().endswith(SUFFIX):
            raise ConfigError(f"expected a GGUF file, got {text}: no such file")
        return None
    if not place or ":" in name or not name.lower().endswith(SUFFIX):
        raise ConfigError(f"expected folder:file{SUFFIX} or owner/name:file{SUFFIX}, got {text!r}")
    if not Path(place).is_dir():
        return _checked(_fetched(place, name))
    if not (Path(place) / name).is_file():
        raise ConfigError(f"expected a GGUF file {name} in {place}, got no such file{_beside(Path(place))}")
    return _checked(Path(place) / name)


def in_folder(source: str | Path) -> bool:
    """Says whether ``source`` is a model's folder (not a hub id), and refuses what can be neither.

    Raises:
        ConfigError: it is a folder without a model, a path to nothing, or no id that a hub could know.
    """
    if Path(source).is_dir():
        try:
            for file in (Path(source) / "config.json", *Path(source).glob("*.safetensors")):
                require_readable(file)
        except FileNotFoundError:
            beside = _beside(Path(source))
            raise ConfigError(
                f"expected a model's folder with a config.json, got {source}: no such file{beside}"
            ) from None
        except OSError as error:  # transformers would call it missing
            because = (error.strerror or "unreadable").lower()
            raise ConfigError(f"expected a model's folder that can be read, got {error.filename}: {because}") from error
        return True
    parts = str(source).split("/")
    if isinstance(source, Path) or len(parts) > 2 or not all(part.strip(".") for part in parts):
        raise ConfigError(f"expected a model's folder with a config.json, got {source}: no such file")
    if len(parts) == 1 and not parts[0].startswith(OWNERLESS) and not _cached(parts[0]):
        raise ConfigError(
            f"expected a model's folder, a GGUF file or a hub id (owner/name), got {source}: there is no such folder"
        )
    return False


def _cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)


def _fetched(place: str, name: str) -> Path:
    """Returns one file of a hub repository, from the cache where it is there."""
    from huggingface_hub import hf_hub_download

    in_folder(place)  # refuses what is neither
    try:
        return Path(hf_hub_download(place, name))
    except Exception as error:  # the hub's client raises many kinds, all of which mean this
        raise ConfigError(f"expected {name} in a folder or on the hub at {place}, got: {error}") from error


def _checked(file: Path) -> Path:
    try:
        with file.open("rb") as stream:
            begins = stream.read(4)
    except OSError as error:
        raise ConfigError(f"expected a readable GGUF file, got {file}: {error.strerror}") from error
    if begins != b"GGUF":
        folder = f": name the folder {file.parent}" if (file.parent / "config.json").is_file() else ""
        raise ConfigError(
            f"expected a GGUF file, which begins with b'GGUF', or a model's folder, got {file}, which is no folder and "
            f"begins with {begins!r}{folder}"
        )
    return file


def _beside(folder: Path) -> str:
    """Names the GGUF files of a folder, as the rest of an error."""
    found = sorted(file.name for file in folder.iterdir() if file.name.lower().endswith(SUFFIX) and file.is_file())
    return f"; name one of its GGUF files: {', '.join(f'{folder}:{name}' for name in found)}" if found else ""
