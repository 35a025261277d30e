"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError  # loads no torch

from ilcp.errors import StorageError

__all__ = ["replacing", "write_whole"]


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
        try:
            yield draft
            if durable:
                _sync(draft)
            draft.replace(path)
            if durable:
                _sync(path.parent)
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # the second wraps a full disk
        raise StorageError(f"expected room for {path}, got: {error}; free space, or choose another place") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
