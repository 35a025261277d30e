"""The errors of ilcp: one family, and a name for whose fault it is.

``EncodeError`` says that *you* gave something wrong; ``DecodeError`` says that *your peer* did. Every text reads
*expected ..., got ..., because / what to do*. Any other exception that hostile bytes bring out of ilcp is a bug.
"""

__all__ = [
    "AuthenticationError",
    "DecodeError",
    "EncodeError",
    "ExpiredError",
    "IdentityError",
    "IlcpError",
    "Interrupted",
    "OtherCodecError",
    "ReplayCacheError",
    "ReplayError",
    "TransportError",
    "UnprovenError",
]


class IlcpError(Exception):
    """Anything that ilcp raises on purpose."""


class EncodeError(IlcpError, ValueError):
    """The caller gave something that cannot be encoded: mend the argument."""


class DecodeError(IlcpError, ValueError):
    """The bytes of the peer cannot be decoded: mend the sender, or drop the message."""


class AuthenticationError(DecodeError):
    """A sealed message does not verify under the key that the receiver holds."""


class ExpiredError(DecodeError):
    """A sealed message verifies, but its time is over."""


class ReplayError(AuthenticationError):
    """A sealed message verifies, but its hand-off id was used before: acknowledge it, and do nothing again."""


class IdentityError(IlcpError):
    """Two parts of a hand-off do not belong together; the text names the part that differs."""


class OtherCodecError(IdentityError, DecodeError):
    """A message was made by a codec that this receiver does not hold: load the sender's, or drop the message."""


class UnprovenError(IlcpError):
    """A codec was not measured, or what was measured says that its message carries nothing."""


class TransportError(IlcpError):
    """A message could not be moved."""


class ReplayCacheError(IlcpError):
    """A replay cache cannot say whether a message is new, so it was not used: mend the cache, and deliver it again."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a long run; the text says what was kept, and the same call goes on with it."""
