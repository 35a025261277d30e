"""A stranger's values as people read them: nothing of them breaks out of its place, or takes all of it."""

import json
from datetime import UTC, datetime
from typing import Any

from ilcp.audit.entries import LATEST_MS
from ilcp.audit.findings import in_line

__all__ = ["MOST_SHOWN", "listed", "moment", "paragraphs", "said", "share", "whole"]

MOST_SHOWN = 4000  # characters of one value


def said(value: Any, most: int = MOST_SHOWN) -> str:
    """Returns a value in one line: what cannot be printed, or turns the reading direction, is escaped."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return in_line(text[:most]) + _left_out(text, most)


def paragraphs(value: Any, most: int = MOST_SHOWN) -> list[str]:
    """Returns a text line by line, each as ``said`` gives it, and no more of it than that."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    lines = [in_line(line) for line in text[:most].split("\n") if line.strip()]
    return [*lines, *([_left_out(text, most).strip()] if len(text) > most else [])]


def _left_out(text: str, most: int) -> str:
    left = len(text) - most
    return f" ... and {left:,} more characters ('ilcp audit show' has all)" if left > 0 else ""


def listed(value: Any, most: int = MOST_SHOWN) -> str:
    """Returns a list of texts as one, with commas; anything else as ``said`` does."""
    return said(", ".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value, most)


def moment(unix_ms: Any) -> str:
    """Returns a time as people write it, in UTC."""
    if type(unix_ms) is not int or not 0 <= unix_ms <= LATEST_MS:
        return "at no known time"
    return f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%d %B %Y, %H:%M:%S} UTC".lstrip("0")


def whole(value: Any) -> int | None:
    """Returns a whole number; None for anything else."""
    return value if type(value) is int else None


def share(value: Any) -> str:
    """Returns a share from 0 to 1, or a figure with its interval, as people read it."""
    if isinstance(value, dict):
        bounds = [value.get(name) for name in ("low", "high")]
        interval = f" (between {share(bounds[0])} and {share(bounds[1])})" if all(map(_is_share, bounds)) else ""
        return share(value.get("value")) + interval
    return f"{100 * value:.0f} %" if _is_share(value) else "no figure"


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1
