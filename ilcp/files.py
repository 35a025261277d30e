"""Files that appear whole or not at all."""

import os
from pathlib import Path

from ilcp.errors import EncodeError

__all__ = ["write_whole"]


def write_whole(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Writes beside the file and renames: whoever reads it finds the old content or the new, never a part.

    With ``durable`` both the content and the name are on the disk when this returns, whatever happens to the power.

    Raises:
        EncodeError: the disk is full, or not to be written to; nothing is left behind, and what was there stays.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        with open(draft, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise EncodeError(f"expected room for {path}, got: {error}; free space, or choose another place") from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
