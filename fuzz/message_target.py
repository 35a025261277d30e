"""``Message.from_bytes`` and ``describe`` over any bytes: of all versions and kinds, with literals and without.

The first byte of an input says what becomes of the others: they are read as they come, without a key (0) or with one
(1), or get the check (2), the MAC (3) or the ciphertext (4) that is right for them, so that the search gets past it.
"""

from typing import Any

from fuzz.limits import Limits
from ilcp.errors import AuthenticationError, DecodeError, ExpiredError
from ilcp.message import Message, describe
from ilcp.testing.strategies import with_check, with_ciphertext, with_mac
from tests.second_decoder import Refused, decode

__all__ = ["one_input"]

KEY = bytes(range(0x40, 0x60))
NOW = 1893455999
LIMITS = Limits(factor=5, more_bytes=32 << 10)  # as the specification states them
WAYS = (
    lambda data: (data, None),
    lambda data: (data, KEY),
    lambda data: (with_check(data), None),
    lambda data: (with_mac(data, KEY), KEY),
    lambda data: (with_ciphertext(*apart(data), KEY), KEY),
)


def apart(data: bytes) -> tuple[bytes, bytes]:
    """Splits what an encrypted message shows, up to its expiry, from what it hides."""
    sizes = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
    shown = 27 + (sizes.get(data[12], 1) + 34 if data[0] == 0x97 else 0) if len(data) > 12 else 0
    return data[:shown], data[shown:]


def one_input(data: bytes) -> None:
    """Fails where ilcp raises another error, costs too much, or the second decoder sees another message or blame."""
    wire, key = WAYS[data[0] % 5 if data else 0](data[1:])
    described = _described(wire, key)
    try:
        message = LIMITS.of(wire, Message.from_bytes, wire, key=key, now_unix_s=NOW)
    except DecodeError as error:
        blames = ((ExpiredError, "expired"), (AuthenticationError, "authentication"))
        expected: Any = next((blame for kind, blame in blames if isinstance(error, kind)), "decode")
        if not str(error).startswith("expected "):
            raise
        assert described == (expected == "expired"), "describe() and from_bytes() differ"
    else:
        assert described
        again = message.to_bytes(key)
        assert message == Message.from_bytes(again, key=key, now_unix_s=NOW)
        assert again == wire or len(again) == len(wire) or message.literals, "another encoding was accepted"
        expected = {"codec_id": message.codec_id, "payload": message.payload, "literals": list(message.literals)}
        seal, blob = message.seal, message.blob
        expected |= {"handoff_id": seal and seal.handoff_id, "expires_unix_s": seal and seal.expires_unix_s}
        expected |= {} if blob is None else {"blob": (blob.size_bytes, blob.digest)}
    try:
        found: Any = decode(wire, key, NOW)
    except Refused as refused:
        found = str(refused)
    assert expected == found, f"the second decoder says {found!r}, ilcp says {expected!r}"


def _described(wire: bytes, key: bytes | None) -> bool:
    try:
        description = describe(wire, key=key)
    except DecodeError:
        return False
    assert len(wire) == sum(part.size_bytes for part in description.parts)
    return description.check != "not verified: no key given"
