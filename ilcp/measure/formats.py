"""Reads the words that older reports are written in: format 1 becomes format 2."""

from collections.abc import Mapping
from typing import Any

from ilcp.evidence import EARLIER_ARMS
from ilcp.records import renamed

__all__ = ["FORMAT", "FORMATS", "translated"]

FORMAT = 2
FORMATS = (1, FORMAT)  # that are read
METRICS = {"nats": "log_likelihood", "recovery, nats": "recovery, log_likelihood"}


def translated(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a report's record in the words of format 2; one that is in them already, as it is.

    Kinds of question are the task's own words, and stay.
    """
    found = dict(record)
    if found["format"] != 1:
        return found
    found["format"] = FORMAT
    found["answers_end"] = found.pop("closed")
    arms = renamed(found["arms"], EARLIER_ARMS, "the report's arms")
    found["arms"] = {name: {**arm, "name": name} for name, arm in arms.items()}
    found["notes"] = [_note(note) for note in found["notes"]]
    found["figures"] = _figures(found["figures"])
    return found


def _note(note: str) -> str:
    name, colon, rest = note.partition(": ")
    return EARLIER_ARMS.get(name, name) + colon + rest


def _figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(figures)
    for table in ("arms", "bytes", "delivered", "churn", "bits per byte"):
        if table in found:
            found[table] = renamed(found[table], EARLIER_ARMS, f"the report's {table}")
    if "arms" in found:
        found["arms"] = {arm: _metrics(kinds) for arm, kinds in found["arms"].items()}
    if "content gain" in found:
        found["content gain"] = _metrics(found["content gain"])
    return found


def _metrics(kinds: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {kind: renamed(scores, METRICS, "the report") for kind, scores in kinds.items()}
