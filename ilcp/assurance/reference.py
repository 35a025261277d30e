"""What is usual of a codec's messages, in its folder: ``reference.safetensors``, which ``ilcp calibrate`` writes.

::

    sent             the unrounded latent, and what the codec says of its own sureness     the sender knows it
    received/80      a payload of 80 bytes, bit by bit, or how attention reads a cache     the receiver knows it
    probed           nats of a few fixed answers behind the memory                         the receiver asks its model

It is a summary of a calibration split that no training has seen: means, covariances and ranks, no message. Whoever
writes a codec's folder can write another reference, as other evidence: its digest is on record with every decision.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from ilcp.assurance.shape import Array, Shape
from ilcp.assurance.view import Observed, View
from ilcp.errors import ConfigError, IdentityError, StorageError
from ilcp.files import write_whole
from ilcp.folders import inside, read_whole
from ilcp.identity import digest
from ilcp.records import read_record

__all__ = ["REFERENCE", "Calibrated", "Reference", "bits_of", "forget_others"]

REFERENCE = "reference.safetensors"
FORMAT = "1"
MOST_BYTES = 64 << 20  # two views of 2,048 dimensions are 17 MB
MOST_VIEWS, MOST_DIMS, MOST_PROBES = 80, 2048, 64
PARTS = ("mean", "covariance", "centre", "scale", "scores")


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Of which codec, on what, and how well canary questions were answered then: of ``canaries``, a share ``right``,
    and ``right_by_others`` behind another case's message. ``probe`` holds questions and the answers that are scored."""

    codec_id: str
    task: str
    cases_digest: str
    n: int
    seed: int
    commit: str
    transformers: str
    probe: tuple[tuple[str, str], ...] = ()
    canaries: int = 0
    right: int = 0
    right_by_others: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.right <= self.canaries and 0 <= self.right_by_others <= self.canaries):
            raise ConfigError("expected no more right answers than canaries")
        if len(self.probe) > MOST_PROBES:
            raise ConfigError(f"expected at most {MOST_PROBES} answers of a probe, got {len(self.probe)}")
        if any(not answer.strip() for _, answer in self.probe):
            raise ConfigError("expected answers of a probe, got an empty one")


@dataclass(frozen=True)
class Reference:
    """The views of a codec's messages, by name, the mean attention of caches (see ``attention_of``) and what they were
    calibrated on."""

    views: Mapping[str, View]
    calibrated: Calibrated
    attention: Array | None = None

    @classmethod
    def of(cls, codec: Any) -> "Reference | None":
        """Returns the reference in the folder that a codec was loaded from; None where there is none.

        Raises:
            StorageError, IdentityError: as ``read``.
        """
        folder = getattr(codec, "folder", None)
        if folder is None or not os.path.lexists(Path(folder) / REFERENCE):
            return None
        return cls.read(Path(folder), codec.trained.codec_id(codec.spec).hex())

    @classmethod
    def read(cls, folder: Path, codec_id: str) -> "Reference":
        """Reads the reference in a codec's folder.

        Raises:
            StorageError: it is damaged, or larger than one is.
            IdentityError: it is another codec's.
        """
        try:
            file = inside(folder, REFERENCE)
            if file.stat().st_size > MOST_BYTES:
                raise ValueError(f"{file.stat().st_size:,} bytes, more than the {MOST_BYTES:,} of any")
            found = cls.from_bytes(read_whole(file))
        except StorageError:
            raise
        except Exception as error:  # of safetensors, of numpy, of the file system: all mean this
            raise StorageError(
                f"expected a reference in {folder / REFERENCE}, got: {error}; calibrate again"
            ) from error
        if found.calibrated.codec_id != codec_id:
            raise IdentityError(
                f"expected the reference of codec {codec_id} in {folder}, got that of {found.calibrated.codec_id}: "
                "calibrate again with 'ilcp calibrate'"
            )
        return found

    @classmethod
    def from_bytes(cls, data: bytes) -> "Reference":
        """Reads what ``to_bytes`` wrote.

        Raises:
            ValueError, or what safetensors raises: it is none.
        """
        tensors = dict(load(data))
        record = json.loads(bytes(tensors.pop("record")).decode())
        if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
            raise ValueError(f"no record of format {FORMAT}")
        attention = tensors.pop("attention", None)
        names = {name.rpartition(".")[0] for name in tensors}
        if len(names) > MOST_VIEWS or {f"{name}.{part}" for name in names for part in PARTS} != {*tensors}:
            raise ValueError("parts missing, too many, or unknown")
        for name in names:
            if tensors[f"{name}.mean"].size > MOST_DIMS:
                raise ValueError(f"a view of {tensors[f'{name}.mean'].size} dimensions, {MOST_DIMS} at most")
        views = {name: _view(*(tensors[f"{name}.{part}"] for part in PARTS)) for name in sorted(names)}
        if attention is not None and not (attention.dtype == np.float32 and np.isfinite(attention).all()):
            raise ValueError("attention that is not finite, or of other numbers")
        return cls(views, read_record(Calibrated, record, "its record"), attention)

    def to_bytes(self) -> bytes:
        """Returns the file."""
        record = json.dumps(asdict(self.calibrated) | {"format": FORMAT}).encode()
        tensors: dict[str, NDArray[Any]] = {"record": np.frombuffer(record, dtype=np.uint8)}
        for name, view in self.views.items():
            shape = view.shape
            parts: tuple[NDArray[Any], ...] = (shape.mean, shape.covariance, view.centre, view.scale, view.scores)
            tensors |= {f"{name}.{part}": value for part, value in zip(PARTS, parts, strict=True)}
        if self.attention is not None:
            tensors["attention"] = self.attention
        return save(tensors)

    def write(self, folder: Path) -> None:
        """Puts it into a codec's folder, whole.

        Raises:
            StorageError: there is no room.
        """
        write_whole(folder / REFERENCE, self.to_bytes())

    @cached_property
    def digest(self) -> str:
        """16 bytes in hex, by which it is known on record."""
        return digest(self.to_bytes()).hex()


def _view(mean: Array, covariance: Array, *others: NDArray[Any]) -> View:
    if {mean.dtype, covariance.dtype} != {np.dtype(np.float32)} or {each.dtype for each in others} != {
        np.dtype(np.float64)
    }:
        raise ValueError("numbers of other types")
    return View(Shape(mean, covariance), *others)


def forget_others(folder: Path, codec_id: str) -> None:
    """Removes the reference in a codec's folder, where it is that of another codec, or none."""
    try:
        Reference.read(folder, codec_id)
    except (StorageError, IdentityError):
        (folder / REFERENCE).unlink(missing_ok=True)


def bits_of(payload: bytes) -> Observed:
    """Returns a payload as its bits, -1 and 1."""
    bits = np.unpackbits(np.frombuffer(payload, dtype=np.uint8))
    return Observed(bits.astype(np.float32) * 2 - 1)
