"""The record of hand-offs, as both ends tell of them to whatever has three methods, such as ``ilcp.audit.Recorder``."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from ilcp.codec.protocols import Codec
from ilcp.errors import AuditError, IlcpError

__all__ = ["Audit", "telling_refusals"]

P = ParamSpec("P")
T = TypeVar("T")


class Audit(Protocol):
    """Is told of hand-offs; each call raises AuditError where one may not go on unrecorded."""

    def sent(
        self,
        message: bytes,
        codec: Codec,
        literals: Sequence[str] = (),
        fell_back: str = "",
        *,
        payload: bytes = b"",
        source: str | None = None,
        assurance: Mapping[str, Any] | None = None,
    ) -> None:
        """Is told of a message that is about to be handed over, its payload and the text that it was made of.

        ``fell_back`` says why it is the text. ``assurance``, which is given only where there is one, says what was
        decided about the message.
        """

    def received(
        self, message: bytes, codec: Codec, literals: Sequence[str] = (), *, assurance: Mapping[str, Any] | None = None
    ) -> None:
        """Is told of a message that a receiver has taken, and of what was decided about it."""

    def refused(self, because: Exception, message: bytes = b"") -> None:
        """Is told that no message was made, or that one was not taken."""


def telling_refusals(method: Callable[P, T]) -> Callable[P, T]:
    """Has the end's ``audit`` told what its method refuses; a message that it was given goes along."""

    @wraps(method)
    def told(*args: P.args, **options: P.kwargs) -> T:
        try:
            return method(*args, **options)
        except IlcpError as error:
            end: Any = args[0]
            if end.audit is not None and not isinstance(error, AuditError):
                given = args[1] if len(args) > 1 else options.get("message")
                with suppress(AuditError):  # what was refused goes nowhere, recorded or not: its error says more
                    end.audit.refused(error, bytes(given) if isinstance(given, bytes | bytearray | memoryview) else b"")
            raise

    return told
