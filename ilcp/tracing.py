"""OpenTelemetry's spans, where its API is installed; a look and nothing else where it is not."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

__all__ = ["mark", "recording", "tracing"]


def mark(attributes: Mapping[str, str | int | float | bool]) -> None:
    """Writes attributes into the span that is open, if there is one."""
    if (api := tracing()) is not None:
        api.get_current_span().set_attributes(attributes)


def recording() -> bool:
    """Says whether a span is open that keeps what is written into it."""
    return (api := tracing()) is not None and bool(api.get_current_span().is_recording())


@cache
def tracing() -> Any:
    """Returns the API, None where it is not installed."""
    try:
        return import_module("opentelemetry.trace")
    except ImportError:
        return None
