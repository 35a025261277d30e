"""Files: those that appear whole or not at all, places that are tried before the work, and files that are kept open."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError  # loads no torch

from ilcp.errors import StorageError

__all__ = ["file_id", "replacing", "require_readable", "require_writable", "usual_modes", "write_whole"]


def write_whole(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Replaces the file by ``content``: whoever reads it finds the old content or the new, never a part.

    Raises:
        StorageError: as ``replacing``.
    """
    with replacing(path, durable=durable) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Gives a draft beside ``path`` to be written inside the ``with``, which takes its place afterwards.

    Each draft has a name of its own, so that several writers do not meet in one. With ``durable`` both the content and
    the name are on the disk when the ``with`` ends, whatever happens to the power.

    Raises:
        StorageError: the disk is full, or not to be written to; nothing is left behind, and what was there stays.
    """
    draft = path.with_name(f".{token_hex(8)}.draft")  # a name of any length has room for it
    try:
        draft.touch(exist_ok=False)  # follows no link
        mode = draft.stat().st_mode
        try:
            yield draft
            draft.chmod(mode)  # safetensors puts a file of its own there, for its owner only
            if durable:
                _sync(draft)
            draft.replace(path)
            if durable:
                _sync(path.parent)
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # the second wraps a full disk
        raise StorageError(f"expected room for {path}, got: {error}; free space, or choose another place") from error


def require_writable(path: Path) -> None:
    """Tries, before the work, what will be done after it: makes the file's folder, and a draft beside the file.

    Raises:
        StorageError: the file could not be written.
    """
    if path.is_dir():
        raise StorageError(f"expected a file to write to, got the folder {path}: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{token_hex(8)}.draft")
        draft.touch(exist_ok=False)
        draft.unlink()
    except OSError as error:
        raise StorageError(f"expected to be able to write {path}, got: {error}; choose another place") from error


def require_readable(path: Path) -> None:
    """Opens a file that another library will read, because some call everything that they cannot open missing.

    Raises:
        OSError: it cannot be opened.
    """
    with open(path, "rb"):
        pass


def usual_modes(folder: Path) -> None:
    """Gives all files below ``folder`` the mode of a new one: safetensors writes for its owner only.

    Raises:
        OSError: one of them cannot be changed.
    """
    probe = folder / f".{token_hex(8)}.draft"
    probe.touch(exist_ok=False)
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def file_id(path: str | Path) -> tuple[int, int] | None:
    """Returns what tells the file at ``path`` from every other one; None where there is none.

    Who keeps a file open compares it: a file that was removed takes what is written, and nobody finds it again.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
