"""The errors of ilcp: one family, and a name for whose fault it is.

================== ======================================================== =========================================
error              whose fault                                              what to do
================== ======================================================== =========================================
EncodeError        yours: a text, ids, literals, a prompt or a payload      mend what is to be encoded
ConfigError        yours: an argument, a model, a recipe or a file          mend the argument or the file
StorageError       your disk's: full, not writable, or a file is damaged    free space, or choose another place
TrainingError      the run's: a teacher that cannot read, collapse, NaN     change the data or the recipe
MissingExtraError  your environment's: a package is not installed           run the pip command in the text
IdentityError      two parts do not belong together                         load the part that the text names
UnmeasuredError    a codec was not measured, or carries nothing             measure it, or train it further
DecodeError        your peer's: bytes that are no message                   mend the sender, or drop the message
TransportError     the way's: nobody there, no room, a lease that ended     see ``ilcp.transport``
ReplayCacheError   the replay cache's: it cannot say what is new            mend the cache, and deliver again
AuditError         the record's: what is handed over cannot be entered      see to the guardian, then hand over again
DoubtError         a message is unlike its codec's calibration, or alarmed  look into it, send the text, or calibrate
================== ======================================================== =========================================

Texts say what was expected, what came and what to do. Any other exception that hostile bytes bring out of ilcp is a
bug.
"""

from typing import Any, Self

__all__ = [
    "AuditError",
    "AuthenticationError",
    "ConfigError",
    "DecodeError",
    "DoubtError",
    "EncodeError",
    "ExpiredError",
    "IdentityError",
    "IlcpError",
    "Interrupted",
    "MismatchedCodecError",
    "MissingExtraError",
    "ReplayCacheError",
    "ReplayError",
    "StorageError",
    "TrainingError",
    "TransportError",
    "UnmeasuredError",
]


class IlcpError(Exception):
    """Anything that ilcp raises on purpose."""


class EncodeError(IlcpError, ValueError):
    """What the caller gave cannot be encoded: mend the text, ids, literals, prompt or payload."""


class ConfigError(IlcpError, ValueError):
    """An argument, a model, a recipe or a file of the caller's is not what it should be: mend it."""


class StorageError(IlcpError):
    """A file cannot be written, read back or trusted: free space, mend permissions, or choose another place."""


class TrainingError(IlcpError):
    """A training cannot go on: the teacher cannot read, the message carries nothing, or a number is NaN."""


class MissingExtraError(IlcpError, ImportError):
    """A package is not installed; the text gives the pip command that brings it."""

    @classmethod
    def of(cls, package: str, purpose: str, extra: str) -> Self:
        """Makes the error for ``package``, needed ``purpose`` ("to draw plots"), which ``ilcp[extra]`` brings."""
        return cls(
            f"expected {package} {purpose}, got no such package: pip install 'ilcp[{extra}]', or in a checkout of ilcp "
            f"pip install -e '.[{extra}]'"
        )


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


class MismatchedCodecError(IdentityError, DecodeError):
    """A message was made by a codec that this receiver does not hold: load the sender's, or drop the message."""


class UnmeasuredError(IlcpError):
    """A codec was not measured, or what was measured says that its message carries nothing."""


class TransportError(IlcpError):
    """A message could not be moved."""


class ReplayCacheError(IlcpError):
    """A replay cache cannot say whether a message is new, so it was not used: mend the cache, and deliver it again."""


class AuditError(IlcpError):
    """A hand-off cannot be put on record, and may not go on without: see to the guardian, then hand over again."""


class DoubtError(IlcpError):
    """A message is unlike those its codec was calibrated on, or an alarm stands, and the policy refuses it then.

    ``assurance`` is what was found, as it goes on record; None where nobody said.
    """

    assurance: dict[str, Any] | None = None


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a long run; the text says what was kept, and the same call goes on with it."""
