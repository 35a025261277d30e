"""The texts that a codec has seen in training: digests of them lie in its folder, none of the texts themselves.

A measurement of the same texts says less than it seems to; with this it can tell.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ilcp.codec.protocols import Codec
from ilcp.errors import StorageError
from ilcp.folders import inside, read_whole
from ilcp.identity import digest

__all__ = ["SEEN", "seen_by", "write_seen"]

SEEN = "seen.jsonl"
CHARACTERS = 16  # of a digest: two of a million texts meet once in 37 million runs


def write_seen(folder: Path, texts: Iterable[str]) -> None:
    """Writes the digests of ``texts`` into a codec's folder, one on a line.

    Raises:
        OSError: there is no room.
    """
    (folder / SEEN).write_text("".join(f'"{_digest(text)}"\n' for text in texts), encoding="utf-8")


def seen_by(codec: Codec) -> Callable[[str], bool]:
    """Returns what says of a text whether the codec was trained on it; no text where its folder does not tell."""
    known: set[str] = set()
    folder = getattr(codec, "folder", None)
    with suppress(OSError, ValueError, StorageError):  # what is none tells nothing
        if folder is not None:
            known.update(line.strip('"') for line in read_whole(inside(folder, SEEN)).decode().splitlines())
    return lambda text: bool(known) and _digest(text) in known


def _digest(text: str) -> str:
    return digest(text.encode("utf-8", "surrogatepass")).hex()[:CHARACTERS]
