"""The errors of the way. Each is a ``TransportError``, and none means that a message was half delivered.

Some have a second parent in `ilcp.errors`, whose blame is theirs too: who handles wrong arguments, or the disk, of the
whole library in one place meets them there.

    AddressError       also a ``ConfigError``: the caller's argument
    CorruptError       also a ``StorageError``: the file on the disk
    DiskFullError      also a ``StorageError``: there is no room on it
    NotWritableError   also a ``StorageError``: its permissions

A message that is no bytes, empty or over the limit is an ``EncodeError`` as everywhere: mend the message.
"""

from ilcp.errors import ConfigError, StorageError, TransportError

__all__ = [
    "AddressError",
    "BlobError",
    "CapabilityError",
    "ConflictError",
    "CorruptError",
    "DiskFullError",
    "FullError",
    "LeaseLostError",
    "NotWritableError",
    "ProtocolError",
    "RefusedError",
    "UnreachableError",
]


class AddressError(ConfigError, TransportError):
    """An address, a name, an id or a setting that no transport takes: mend the argument."""


class UnreachableError(TransportError, OSError):
    """Nobody answers there, or not in time. What was sent may have arrived: send it again under the same id."""


class RefusedError(TransportError, PermissionError):
    """The other side does not accept our credentials, or we do not accept its certificate."""


class FullError(TransportError):
    """There is no room now; ``retry_after_s`` says when to try again, where the other side said so."""

    def __init__(self, text: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class DiskFullError(StorageError, FullError):
    """The spool's disk has no room for a message: free some."""


class NotWritableError(StorageError, UnreachableError):
    """The spool's folder or file cannot be made or written: mend its permissions, or choose another place."""


class CorruptError(StorageError, TransportError):
    """The spool's file is damaged, or is no spool."""


class BlobError(TransportError):
    """A blob is not there, or is not the bytes that its name says; the text has its digest. Put it again.

    A message that names it is not lost: give it back (``nack``), and it is handed out again.
    """


class ConflictError(TransportError):
    """Another message is known under this hand-off id, and this one is not kept: send it under a fresh id.

    Who reused no id of their own has met somebody else's message: a forged one, where bare messages are sent.
    """


class LeaseLostError(TransportError):
    """A delivery was settled too late or otherwise before: it was, or will be, handed out again."""


class ProtocolError(TransportError):
    """The other side speaks, but not as an ilcp ingress does."""


class CapabilityError(TransportError):
    """Sender and receiver have no way of sending in common, and none is made up."""
