"""Checks of the bytes and whole numbers that a caller gives; bytes are never quoted, because they may be a key."""

from ilcp.errors import ConfigError, EncodeError, IlcpError

__all__ = ["require_bytes", "require_int", "require_now"]

MAX_UNIX_S = 2**32 - 1  # uint32; February 2106


def require_bytes(name: str, value: object, low: int, high: int, *, error: type[IlcpError] = EncodeError) -> bytes:
    """Returns the value, if it is bytes of `low` to `high` length. The text tells the length, never the value.

    Raises:
        IlcpError: `error`, where it is not.
    """
    if not isinstance(value, bytes):
        raise error(f"expected {name} as bytes, got {type(value).__name__}")
    if not low <= len(value) <= high:
        raise error(f"expected {name} of {low if low == high else f'{low} to {high}'} bytes, got {len(value)}")
    return value


def require_int(name: str, value: object, low: int, high: int, *, error: type[IlcpError] = EncodeError) -> int:
    """Returns the value, if it is an int (and no bool) from `low` to `high`.

    Raises:
        IlcpError: `error`, where it is not.
    """
    if type(value) is not int or not low <= value <= high:
        raise error(f"expected {name} as a whole number from {low} to {high}, got {value!r}")
    return value


def require_now(now_unix_s: object) -> int:
    """Returns the time that a caller gave in place of the system's clock.

    Raises:
        ConfigError: it is no time from 1970 to 2106.
    """
    return require_int("now_unix_s", now_unix_s, 0, MAX_UNIX_S, error=ConfigError)
