"""OpenTelemetry's spans, where its API is installed; a look and nothing else where it is not."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

__all__ = ["mark", "tracing"]


def mark(attributes: Mapping[str, str | int | float | bool]) -> None:
    """Writes attributes into the span that is open, if there is one."""
    if (api := tracing()) is not None:
        api.get_current_span().set_attributes(attributes)


@cache
def tracing() -> Any:
    """Returns the API, None where it is not installed."""
    try:
        return import_module("opentelemetry.trace")
    except ImportError:
        return None
