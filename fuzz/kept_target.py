"""What a run keeps in its folder, as a disk, a crash or somebody else may have left it: checkpoint, phrasebook, log.

The first byte of an input picks the side (``SIDES``). The others are changes to what was written there, four bytes each
(a place, the bits that are turned over there, and, of the last, how many bytes are missing at the end), or all that
there is in the file.
"""

import contextlib
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from ilcp.errors import StorageError
from ilcp.training.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from ilcp.training.log import LOG, Log, read_log
from ilcp.training.phrasebook import Phrasebook

__all__ = ["SIDES", "one_input"]

FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
PLACE = Path(FOLDER.name)
WEIGHTS = torch.arange(48.0).reshape(6, 8)
BOOK = Phrasebook({"Mara": 0, "Oslo": 1}, torch.ones(2, 3), torch.zeros(1, 3))
LINES = [{"step": step, "validation_log_likelihood": {"text": -0.5}, "loss": 1.0} for step in (1, 2)]
CHANGE = struct.Struct("<HBB")


def _whole() -> dict[str, bytes]:
    write_checkpoint(PLACE, {"step": 7, "weights": WEIGHTS})
    BOOK.save(PLACE / "book")
    (PLACE / LOG).write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return {name: (PLACE / name).read_bytes() for name in (CHECKPOINT, "book", LOG)}


WHOLE = _whole()


def checkpoint(content: bytes) -> None:
    """Fails where another number than was written is loaded, or anything but a StorageError comes out."""
    (PLACE / CHECKPOINT).write_bytes(content)
    with contextlib.suppress(StorageError):
        state, _ = read_checkpoint(PLACE)
        same = isinstance(state, dict) and state.get("step") == 7 and torch.equal(state["weights"], WEIGHTS)
        assert same or not content.startswith(WHOLE[CHECKPOINT][:16]), "a checkpoint with a digest, and other numbers"


def phrasebook(content: bytes) -> None:
    """Fails where anything but a phrasebook or a StorageError comes out."""
    (PLACE / "book").write_bytes(content)
    with contextlib.suppress(StorageError):
        Phrasebook.load(PLACE / "book")


def changed_phrasebook(content: bytes) -> None:
    """Fails where another phrasebook than was written is loaded."""
    (PLACE / "book").write_bytes(content)
    with contextlib.suppress(StorageError):
        found = Phrasebook.load(PLACE / "book")
        assert BOOK.words == found.words
        assert torch.equal(BOOK.vectors, found.vectors)
        assert torch.equal(BOOK.places, found.places)


def log(content: bytes) -> None:
    """Fails where a log ends a run that goes on: what is no line of it is left out."""
    (PLACE / LOG).write_bytes(content)
    Log(PLACE).forget_after(1)
    assert all(record["step"] <= 1 for record in read_log(PLACE / LOG))


# What is written there, how many changes are made to it at most (None: it is the input), and what is to hold. Who
# changes a phrasebook in several places at once can take its digests away: that is no disk.
SIDES: tuple[tuple[str, int | None, Callable[[bytes], None]], ...] = (
    (CHECKPOINT, 99, checkpoint),
    (CHECKPOINT, None, checkpoint),
    ("book", 1, changed_phrasebook),
    ("book", None, phrasebook),
    (LOG, 99, log),
    (LOG, None, log),
)


def one_input(data: bytes) -> None:
    """Hands the input to its side, as changes to what was written or as all that there is."""
    name, most, side = SIDES[data[0] % len(SIDES) if data else 0]
    side(data[1:] if most is None else _changed(WHOLE[name], data[1:], most))


def _changed(content: bytes, data: bytes, most: int) -> bytes:
    changes = [*CHANGE.iter_unpack(data[: len(data) - len(data) % CHANGE.size])][:most]
    changed = bytearray(content)
    for place, bits, _ in changes:
        changed[place % len(changed)] ^= bits
    return bytes(changed[: len(changed) - (changes[-1][2] if changes else 0)])
