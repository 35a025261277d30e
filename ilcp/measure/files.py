"""Reports in files: written whole, read and checked, gone on with."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ilcp.codec.protocols import Codec
from ilcp.errors import ConfigError, StorageError
from ilcp.files import write_whole
from ilcp.folders import read_whole
from ilcp.measure.asking import narrowed
from ilcp.measure.figures import provenance
from ilcp.measure.items import Items
from ilcp.measure.report import Report
from ilcp.tasks.cases import Case

__all__ = ["UNFINISHED", "is_same", "load_report", "resumed", "save_report", "unfinished"]

UNFINISHED = ".unfinished"  # ends the name of a report beside a finished one


def load_report(path: str | Path) -> Report:
    """Returns the report in a JSON file.

    Raises:
        ConfigError: the file cannot be read, is no report, or holds a figure that its answers do not give.
    """
    try:
        record = json.loads(read_whole(path).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"expected a readable report, got {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"expected a report as JSON, got something else in {path}: {error}") from error
    try:
        return Report.from_dict(record)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def save_report(report: Report, path: str | Path | None) -> None:
    """Writes the report as JSON, whole or not at all; None is nowhere.

    Raises:
        StorageError: the file or its folder cannot be written.
    """
    if path is None:
        return
    path = Path(path)
    lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in report.to_dict().items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"expected a folder for {path}, got: {error}; choose another place") from error
    write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")


def unfinished(keep: Path | None) -> Path | None:
    """Returns where an unfinished report is kept: in its own place, or beside the finished one that stands there."""
    if keep is None or not os.path.exists(keep) or not load_report(keep).complete:
        return keep
    return keep.with_name(keep.name + UNFINISHED)


def is_same(report: Report, codec: Codec, cases: Sequence[Case], *, task: str, seed: int) -> bool:
    """Tells whether a report is of this measurement by this code, finished or not."""
    made = codec.trained.codec_id(codec.spec).hex(), task, seed, provenance()["commit"]
    found = report.codec["codec_id"], report.task, report.seed, report.provenance["commit"]
    return made == found and report.items == Items.of(report.kept(cases))


def resumed(fresh: Report, keep: Path | None) -> Report:
    """Returns what an interrupted run of the same measurement left in ``keep``, or ``fresh``.

    Raises:
        ConfigError: ``keep`` holds another run, or no report.
    """
    if keep is None or not os.path.exists(keep):
        return fresh
    found = load_report(keep)
    left = [number for number, case in enumerate(fresh.items.cases) if case not in found.left_out]
    fresh = narrowed(fresh, left) if left and found.left_out else fresh
    for name, wanted, kept in (
        ("task", fresh.task, found.task),
        ("seed", fresh.seed, found.seed),
        ("questions", fresh.items, found.items),
        ("codec", fresh.codec["codec_id"], found.codec["codec_id"]),
        ("commit", fresh.provenance["commit"], found.provenance["commit"]),
    ):
        if wanted != kept:
            raise ConfigError(
                f"expected an interrupted run of the same {name} in {keep}, got another: remove it or name another file"
            )
    return found
