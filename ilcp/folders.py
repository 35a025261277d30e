"""Folders of strangers: what is an id on a hub and what a path, what is fetched, and which files of a folder are read.

Whoever wrote a codec's or a model's folder may have put anything into it. So a hub is asked for what a caller named and
for files of known kinds, and of a folder only regular files that lie in it are opened: no link out of it, whose target
saving or publishing would give away, and no pipe or device, which never ends.
"""

import json
import os
import re
import stat
from collections.abc import Iterable
from errno import EFBIG, EINVAL, ENOENT
from pathlib import Path
from typing import Any, BinaryIO

from ilcp.errors import ConfigError, StorageError

__all__ = [
    "MOST_BYTES",
    "fetched",
    "inside",
    "is_hub_id",
    "missing",
    "open_regular",
    "read_json",
    "read_whole",
    "regular",
    "shapes_of",
    "slip",
]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
MOST_DEPTH = 64  # of tables in tables: what walks through them needs no more than Python's stack has
MOST_JSON_BYTES = 64 << 20  # ten times a large tokenizer: a configuration beyond it is none
MOST_BYTES = 1 << 30  # of what is read whole: read, it takes several times as much
USUAL_BYTES = 1 << 20  # of files that do not say how long they are, as in /proc
AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # a pipe is opened, and refused, without waiting for who writes to it


def is_hub_id(source: str | Path) -> bool:
    """Says whether a source that is no folder here is an id on a hub: ``owner/name``.

    Where a folder of the owner's name is, it is a path that was mistyped, and no hub is asked.
    """
    return isinstance(source, str) and bool(HUB_ID.fullmatch(source)) and not os.path.exists(source.split("/")[0])


def slip(source: str | Path) -> str:
    """Says, to end a sentence with, why what is written as an id was taken for a path; empty where it was not."""
    if isinstance(source, str) and HUB_ID.fullmatch(source) and not is_hub_id(source):
        return f" (a folder {source.split('/')[0]!r} lies here, so that no hub is asked for it)"
    return ""


def fetched(hub_id: str, patterns: Iterable[str], what: str, **hub: Any) -> Path:
    """Returns the local copy of those files of a hub's repository whose names match one of the patterns.

    Args:
        what: it should be, in words.
        hub: as huggingface_hub's ``snapshot_download`` takes it.

    Raises:
        ConfigError: they cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), **hub))
    except Exception as error:  # the hub's client and its transport raise many kinds, all of which mean this
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"expected {what}, got {hub_id!r}: {first}") from error


def inside(folder: Path, name: str) -> Path:
    """Returns the file of that name in a folder, if it is a regular one that lies there.

    A hub's cache is made of links into a folder beside it, which counts as well.

    Raises:
        OSError: there is none, or it cannot be looked at.
        StorageError: it is no regular file, or leads out of the folder.
    """
    try:
        home, real = Path(os.path.realpath(folder)), Path(os.path.realpath(folder / name, strict=True))
    except ValueError:  # of a name that no file has
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(folder / name)) from None
    blobs = (parent.parent / "blobs" for parent in (home, *home.parents) if parent.name == "snapshots")
    if not any(real.is_relative_to(place) for place in (home, *blobs)):
        raise StorageError(f"expected a file that lies in {folder}, got {name}, a link out of it: copy the file there")
    return regular(folder / name)


def regular(file: Path) -> Path:
    """Returns the file, if it is a regular one or a link to one: no pipe and no device, which never end.

    Raises:
        OSError: there is none, or it cannot be looked at.
        StorageError: it is of another kind.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise StorageError(f"expected a regular file {file}, got another kind: remove it")
    return file


def open_regular(file: str | Path) -> BinaryIO:
    """Opens a file to read, if it is a regular one or a link to one: pipes and devices may never end.

    Raises:
        OSError: there is none, it cannot be opened, or it is of another kind.
        ValueError: no file has such a name.
    """
    opened = open(file, "rb", opener=lambda path, flags: os.open(path, flags | AT_ONCE))  # noqa: SIM115  # given on
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise OSError(EINVAL, "a pipe or a device, which may never end: keep what it gives in a file", str(file))
    return opened


def read_whole(file: str | Path) -> bytes:
    """Returns what a regular file held when it was opened.

    Raises:
        OSError: as ``open_regular``, or it is too long to be read whole.
        ValueError: no file has such a name.
    """
    with open_regular(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > MOST_BYTES:
            raise OSError(EFBIG, f"{size:,} bytes, more than the {MOST_BYTES:,} that are read", str(file))
        return opened.read(size or USUAL_BYTES)


def missing(path: str | Path) -> str:
    """Says why nothing is found at a path: "no such file or directory", or whatever keeps it from being looked at."""
    try:
        os.stat(path)
    except OSError as error:
        return (error.strerror or "unreadable").lower()
    except ValueError as error:  # a name that no file has
        return str(error)
    return "no such file"  # but something else


def read_json(file: Path) -> Any:
    """Reads a file of JSON.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON in UTF-8, or too long to be a configuration.
    """
    if file.stat().st_size > MOST_JSON_BYTES:
        raise ValueError(f"{file.stat().st_size} bytes, more than the {MOST_JSON_BYTES >> 20} MiB of any configuration")
    try:
        text = read_whole(file).decode("utf-8-sig")
        record = json.loads(text)
        if "\\u" in text:  # halves of surrogate pairs, which nothing can be written with
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError(str(error)) from error
    level = [record]
    for _ in range(MOST_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for some in inner for each in some]
    if level:
        raise ValueError(f"more than {MOST_DEPTH} levels of tables and lists in each other")
    return record


def shapes_of(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns shape and type ("F32") of each tensor of a safetensors file, as its header says; reads no weight.

    Raises:
        OSError, safetensors.SafetensorError: there is none, or it is damaged.
    """
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # no dict
        return {name: (tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
