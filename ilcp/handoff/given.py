"""What a sender and a receiver are made with: codecs and what can be called, checked by what they offer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ilcp.codec.protocols import Codec
from ilcp.errors import ConfigError

__all__ = ["codecs_of", "require_able", "require_codec"]


def require_able(name: str, given: Any, method: str, what: str) -> None:
    """Refuses what has no such method.

    Raises:
        ConfigError: with the name, and what was expected.
    """
    if not hasattr(given, method):
        raise ConfigError(f"expected {name} to be {what}, got {type(given).__name__}")


def require_codec(codec: Any) -> None:
    """Refuses what is no codec.

    Raises:
        ConfigError: with what it is.
    """
    if not (hasattr(codec, "spec") and hasattr(codec, "trained")):
        shown = repr(codec) if isinstance(codec, str) else type(codec).__name__
        raise ConfigError(f"expected a codec, got {shown}: load it with ilcp.load(<its folder, or its id on the hub>)")


def codecs_of(codec: Any) -> tuple[Codec, ...]:
    """Returns one codec or several as a tuple.

    Raises:
        ConfigError: there is none, or one is no codec.
    """
    codecs = tuple(codec) if isinstance(codec, Iterable) and not isinstance(codec, str | bytes) else (codec,)
    if not codecs:
        raise ConfigError("expected a codec or several, got none: load the sender's with ilcp.load")
    for each in codecs:
        if not all(hasattr(each, name) for name in ("spec", "trained", "decode")):
            shown = repr(each) if each is None or isinstance(each, str | Path) else type(each).__name__
            raise ConfigError(f"expected a codec, got {shown}: load it with ilcp.load(folder_or_hub_id)")
    return codecs
