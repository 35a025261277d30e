"""Files that appear whole or not at all."""

from pathlib import Path

from ilcp.errors import EncodeError

__all__ = ["write_whole"]


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes beside the file and renames: whoever reads it finds the old content or the new, never a part.

    Raises:
        EncodeError: the disk is full, or not to be written to; nothing is left behind, and what was there stays.
    """
    draft = path.with_name(path.name + ".draft")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise EncodeError(f"expected room for {path}, got: {error}; free space, or choose another place") from error
