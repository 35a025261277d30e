"""The checks of bytes and whole numbers that a caller gives; bytes are never quoted, because they may be a key."""

from ilcp.errors import EncodeError

__all__ = ["require_bytes", "require_int"]


def require_bytes(name: str, value: object, low: int, high: int) -> bytes:
    """The value, if it is bytes of `low` to `high` length. The length is told, never the value: it may be a key.

    Raises:
        EncodeError: it is not.
    """
    if not isinstance(value, bytes):
        raise EncodeError(f"expected {name} as bytes, got {type(value).__name__}")
    if not low <= len(value) <= high:
        raise EncodeError(f"expected {name} of {low if low == high else f'{low} to {high}'} bytes, got {len(value)}")
    return value


def require_int(name: str, value: object, low: int, high: int) -> int:
    """The value, if it is an int (and no bool) from `low` to `high`.

    Raises:
        EncodeError: it is not.
    """
    if type(value) is not int or not low <= value <= high:
        raise EncodeError(f"expected {name} as a whole number from {low} to {high}, got {value!r}")
    return value
