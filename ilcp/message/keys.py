"""The keys of sealed messages: one that seals, and a few that are still, or already, believed.

    >>> old, new = bytes(range(32)), bytes(range(1, 33))
    >>> KeyRing(old).accepting(new).promoting(new).without(old) == KeyRing(new)
    True

**Rotation without downtime.** Each step is rolled out everywhere before the next one begins; at every moment each
receiver believes every key that some sender still seals with:

 1. receivers: `ring = ring.accepting(new)`. Senders go on with the old key.
 2. senders, and whatever does both: `ring = ring.promoting(new)`. The old key stays believed.
 3. when the last message under the old key has expired (the senders' `ttl_s` plus twice `ilcp.message.CLOCK_SKEW_S`
    after step 2: their clock may be early, and a receiver's late): `ring = ring.without(old)`, and the old key is
    destroyed.

A ring is immutable; `sender.key` and `receiver.key` may be assigned at any time, and count from the next message on.
A key that leaked skips to 2 and 3 at once: messages under it are lost, which is the purpose.

Each key believed costs a refused message one more MAC, and whoever holds any of them can steer the receiver: see the
threat model of ``ilcp.message``. Which one verified is not told to the sender.
"""

from dataclasses import dataclass
from hashlib import blake2b

from ilcp.errors import ConfigError
from ilcp.message.checks import require_bytes

__all__ = ["MAX_KEYS", "MAX_KEY_BYTES", "MIN_KEY_BYTES", "Key", "KeyRing", "keys_of", "require_audience", "sealing_key"]

MIN_KEY_BYTES = 16  # below 128 bits the key, not the MAC, is what one would guess
MAX_KEY_BYTES = 64  # BLAKE2b takes no longer key
MAX_AUDIENCE_BYTES = 256
MAX_KEYS = 4  # an old, a current and a next one, and one to spare; each costs a forged message about 1 us


@dataclass(frozen=True, slots=True, repr=False)
class KeyRing:
    """The key that seals, and those that are accepted beside it, tried in this order; 16 to 64 bytes each.

    Raises:
        ConfigError: a key of another type or length or of one byte only, the same key twice, or more than 4 keys.
    """

    current: bytes
    accepted: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.accepted, tuple):
            raise ConfigError(f"expected accepted as a tuple of keys, got {type(self.accepted).__name__}")
        for key in self.keys:
            _require_key(key)
        if len(self.keys) > MAX_KEYS:
            raise ConfigError(f"expected at most {MAX_KEYS} keys in a ring, got {len(self.keys)}: retire one first")
        if len(set(self.keys)) < len(self.keys):
            raise ConfigError("expected each key once in a ring, got one twice: leave it out of accepted")

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Lists all keys that verify a message, the current one first."""
        return (self.current, *self.accepted)

    def accepting(self, key: bytes) -> "KeyRing":
        """Returns this ring, which also believes `key`.

        Raises:
            ConfigError: it is no key, the ring has it already, or the ring is full.
        """
        return KeyRing(self.current, (*self.accepted, key))

    def promoting(self, key: bytes) -> "KeyRing":
        """Returns this ring, sealing with `key`; the key that sealed until now stays believed.

        Raises:
            ConfigError: the ring does not accept `key` yet: receivers must know it before a sender uses it.
        """
        if key not in self.keys:
            raise ConfigError("expected a key that the ring accepts, got another: roll out accepting(key) first")
        return KeyRing(key, tuple(each for each in self.keys if each != key))

    def without(self, key: bytes) -> "KeyRing":
        """Returns this ring, which no longer believes `key`.

        Raises:
            ConfigError: it is the current key, or none of the ring.
        """
        if key not in self.accepted:
            got = "the current one: promote another first" if key == self.current else "a key that it does not have"
            raise ConfigError(f"expected a key that the ring accepts beside the current one, got {got}")
        return KeyRing(self.current, tuple(each for each in self.accepted if each != key))

    def __repr__(self) -> str:
        return f"KeyRing({len(self.keys)} keys)"


Key = bytes | KeyRing


def keys_of(key: Key | None, audience: str | None = None) -> tuple[bytes, ...]:
    """Returns the keys that verify: none, one, or those of a ring; with an audience, what each makes of it.

    Raises:
        ConfigError: neither a ring nor a key of 16 to 64 bytes, or an audience that is none or stands alone.
    """
    keys = key.keys if isinstance(key, KeyRing) else () if key is None else (_require_key(key),)
    if audience is None:
        return keys
    require_audience(audience, key)
    return tuple(
        blake2b(audience.encode(), key=each, digest_size=32, person=b"ilcp audience").digest() for each in keys
    )


def sealing_key(key: Key | None, audience: str | None = None) -> bytes | None:
    """Returns the key that seals: the one given, or the current one of a ring; with an audience, what it makes of it.

    Raises:
        ConfigError: as ``keys_of``.
    """
    return next(iter(keys_of(key, audience)), None)


def require_audience(audience: object, key: Key | None) -> None:
    """Checks the name of whom messages are sealed for.

    Raises:
        ConfigError: it is no text of 1 to 256 bytes, or there is no key beside it.
    """
    if audience is None:
        return
    size = len(audience.encode(errors="replace")) if isinstance(audience, str) else 0
    if not isinstance(audience, str) or not audience.isprintable() or not 0 < size <= MAX_AUDIENCE_BYTES:
        got = f"{size} bytes" if isinstance(audience, str) else type(audience).__name__
        raise ConfigError(f"expected audience as 1 to {MAX_AUDIENCE_BYTES} bytes of printable text, got {got}")
    if key is None:
        raise ConfigError("expected a key beside the audience, got none: a bare message is anybody's")


def _require_key(key: object) -> bytes:
    found = require_bytes("key", key, MIN_KEY_BYTES, MAX_KEY_BYTES, error=ConfigError)
    if len(set(found)) == 1:
        raise ConfigError("expected a key of random bytes, got one byte again and again: secrets.token_bytes(32)")
    return found
