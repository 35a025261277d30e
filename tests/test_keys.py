"""The key ring: what seals, what verifies, and a rotation that no message notices."""

import itertools

import pytest

from ilcp.errors import AuthenticationError, ConfigError
from ilcp.message import Message, Seal, describe, verified
from ilcp.message.format import CLOCK_SKEW_S
from ilcp.message.keys import MAX_KEYS, KeyRing

OLD, NEW, THIRD = (bytes(range(n, n + 32)) for n in (1, 2, 3))
NOW = 1_800_000_000
TTL_S = 3600


def sealed(key: bytes | KeyRing, now: int = NOW) -> bytes:
    """A message that lives an hour."""
    return Message(bytes(8), b"payload", Seal.fresh(ttl_s=TTL_S, now_unix_s=now)).to_bytes(key)


def test_a_ring_seals_with_its_current_key_and_verifies_with_each() -> None:
    """What a ring seals verifies under its current key alone; each of its keys verifies, no other does."""
    ring = KeyRing(NEW, (OLD,))
    assert Message.from_bytes(sealed(ring), key=NEW, now_unix_s=NOW).payload == b"payload"
    for key in (OLD, NEW):
        assert key == verified(sealed(key), key=ring, now_unix_s=NOW)[1]
        assert "valid under the key" == describe(sealed(key), key=ring).check
    for read in (Message.from_bytes, describe):
        with pytest.raises(AuthenticationError, match="expected a MAC that verifies under the key given"):
            read(sealed(THIRD), key=ring)
    with pytest.raises(AuthenticationError):
        Message.from_bytes(sealed(ring), key=OLD, now_unix_s=NOW)


def test_a_ring_refuses_a_bare_message_as_a_key_does() -> None:
    """Whoever holds keys believes no message without a seal."""
    with pytest.raises(AuthenticationError, match="expected a sealed message, got a bare one"):
        Message.from_bytes(Message(bytes(8), b"!").to_bytes(), key=KeyRing(OLD))
    with pytest.raises(ConfigError, match="got a bare one with a key"):
        Message(bytes(8), b"!").to_bytes(KeyRing(OLD))


def test_a_rotation_loses_no_message_and_ends_with_the_old_key_refused() -> None:
    """In the documented order, whoever has taken a step and whoever has not read each other at every moment."""
    ring = KeyRing(OLD)
    steps = [ring]
    steps.append(steps[-1].accepting(NEW))
    steps.append(steps[-1].promoting(NEW))
    for before, after in itertools.pairwise(steps):  # while a step is rolled out, some have it and some do not
        for sender, receiver in itertools.product((before, after), repeat=2):
            wire = sealed(sender)
            assert wire == Message.from_bytes(wire, key=receiver, now_unix_s=NOW).to_bytes(sender)
    last_old = sealed(steps[1])
    gone = NOW + TTL_S + CLOCK_SKEW_S
    assert Message.from_bytes(last_old, key=steps[2], now_unix_s=gone - 1)
    retired = steps[2].without(OLD)
    assert KeyRing(NEW) == retired
    with pytest.raises(AuthenticationError):
        Message.from_bytes(last_old, key=retired, now_unix_s=gone - 1)
    for sender, receiver in itertools.product((steps[2], retired), repeat=2):
        assert Message.from_bytes(sealed(sender), key=receiver, now_unix_s=NOW)


def test_a_promotion_that_receivers_do_not_know_is_refused() -> None:
    """The order of steps is kept by the ring itself."""
    with pytest.raises(ConfigError, match=r"expected a key that the ring accepts, got another: roll out accepting"):
        KeyRing(OLD).promoting(NEW)
    with pytest.raises(ConfigError, match="got the current one: promote another first"):
        KeyRing(OLD, (NEW,)).without(OLD)
    with pytest.raises(ConfigError, match="got a key that it does not have"):
        KeyRing(OLD).without(NEW)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((b"short",), "expected key of 16 to 64 bytes, got 5"),
        ((OLD, (bytes(range(65)),)), "expected key of 16 to 64 bytes, got 65"),
        ((OLD, ("k" * 32,)), "expected key as bytes, got str"),
        ((OLD, [NEW]), "expected accepted as a tuple of keys, got list"),
        ((OLD, (NEW, OLD)), "expected each key once in a ring, got one twice"),
        (
            (OLD, tuple(bytes(range(n, n + 16)) for n in range(9, 9 + MAX_KEYS))),
            "expected at most 4 keys in a ring, got 5",
        ),
    ],
)
def test_a_ring_that_cannot_be_is_refused_and_no_key_is_quoted(arguments: tuple[object, ...], fragment: str) -> None:
    """Keys of the wrong type, length or number are the caller's fault; neither text nor repr shows a key."""
    with pytest.raises(ConfigError) as caught:
        KeyRing(*arguments)  # type: ignore[arg-type]
    assert fragment in str(caught.value)
    assert OLD.hex() not in str(caught.value)
    assert "KeyRing(2 keys)" == repr(KeyRing(OLD, (NEW,)))


def test_every_tag_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key's MAC goes through hmac.compare_digest, whole, and in the ring's order."""
    import hmac

    compared: list[tuple[bytes, bytes]] = []
    genuine = hmac.compare_digest

    def watched(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return genuine(first, second)

    monkeypatch.setattr("ilcp.message.format.hmac.compare_digest", watched)
    wire = sealed(OLD)
    Message.from_bytes(wire, key=KeyRing(NEW, (THIRD, OLD)), now_unix_s=NOW)
    assert 3 == len(compared)
    assert {wire[-16:]} == {got for _, got in compared}
    assert [False, False, True] == [genuine(*pair) for pair in compared]
