"""What was decided about a message that may be unlike those of its codec's calibration, in words."""

from collections.abc import Mapping
from typing import Any

from ilcp.audit.page.words import said

__all__ = ["decided", "is_alarm", "is_doubt"]

DECISIONS = {
    "accept": "it was accepted",
    "warn": "it was taken with a warning",
    "refuse": "it was refused",
    "text": "its text was taken in its place",
}


def is_doubt(fields: Mapping[str, Any]) -> bool:
    """Says whether an entry tells of a doubt, or of an alarm that stood."""
    told = fields.get("assurance")
    return fields.get("error") == "DoubtError" or (isinstance(told, dict) and bool(told.get("reason")))


def is_alarm(fields: Mapping[str, Any]) -> bool:
    """Says whether an alarm stood."""
    told = fields.get("assurance")
    return isinstance(told, dict) and told.get("alarm") is True


def decided(fields: Mapping[str, Any]) -> str:
    """Says in a sentence what was found and decided; empty where nobody judged."""
    told = fields.get("assurance")
    if not isinstance(told, dict):
        return ""
    decision = DECISIONS.get(str(told.get("decision")), said(told.get("decision"), 40))
    of, won = (_number(told.get(name)) for name in ("p_value", "evidence"))
    because = f", because {said(told['reason'], 400)}" if told.get("reason") else ""
    found = f"p-value {of}; evidence that messages have changed {won} : 1, 100 : 1 being an alarm"
    return f"Compared with the messages that its codec was calibrated on ({found}), {decision}{because}."


def _number(value: Any) -> str:
    return f"{value:.3g}" if type(value) in (int, float) else "not told"
