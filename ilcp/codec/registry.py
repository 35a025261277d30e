"""Installed codecs by name, found through the entry-point group ``ilcp.codecs``."""

from importlib import metadata
from typing import Any

from ilcp.errors import ConfigError
from ilcp.records import shown

__all__ = ["codec_class", "codec_names"]

ENTRY_POINTS = "ilcp.codecs"


def codec_names() -> tuple[str, ...]:
    """Returns the names of all installed codecs."""
    return tuple(sorted({entry.name for entry in metadata.entry_points(group=ENTRY_POINTS)}))


def codec_class(name: str) -> Any:
    """Returns the class of an installed codec.

    Raises:
        ConfigError: no such codec is installed.
    """
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            return entry.load()
    raise ConfigError(f"expected one of the installed codecs ({', '.join(codec_names()) or 'none'}), got {shown(name)}")
