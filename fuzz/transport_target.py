"""The receive side of every transport, without sockets: what a peer answers, asks, publishes, or left in a spool.

The first byte of an input picks the side (``SIDES``); the others are told by it in its own form, as text with bytes in
it (see ``fuzz/transport_*.py``). Each input meets the same state: what it changed is put back.
"""

from collections.abc import Callable

from fuzz.limits import Limits
from fuzz.transport_client import answered, answered_raw
from fuzz.transport_nats import delivered
from fuzz.transport_server import asked
from fuzz.transport_spool import found, told

__all__ = ["SIDES", "one_input"]

ALL: tuple[Callable[[bytes], None], ...] = (answered, answered_raw, asked, delivered, found, told)
SIDES = ALL + (answered, asked, delivered, found) * 2 + (asked, delivered)  # the slow and the simple ones less often

# An answer of 64 KiB that is JSON may be a list of 20,000 empty lists: 30 times its size. What httpx, Starlette and
# SQLite's rows take for themselves is less than half of the rest.
LIMITS = Limits(factor=64, more_bytes=512 << 10, floor_ms=5.0)


def one_input(data: bytes) -> None:
    """Fails where a side raises anything but the errors that it may, keeps what it must not, or costs too much."""
    side = SIDES[data[0] % len(SIDES) if data else 0]
    LIMITS.of(data, side, data[1:])
