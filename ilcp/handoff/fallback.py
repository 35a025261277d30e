"""The text in place of a message that nobody showed to carry anything, where the caller allowed it.

Both ends say so: ``Sender.encode(..., otherwise="text")`` hands the text over by codec ``text-plain``, and
``Receiver(..., [codec, PlainCodec()], otherwise="text")`` takes it. The message names its codec, a warning the reason.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from ilcp.codec.protocols import Codec
from ilcp.codec.registry import codec_class
from ilcp.errors import ConfigError, UnmeasuredError
from ilcp.evidence import require_evidence, require_signed, trusted_keys
from ilcp.handoff.sources import said
from ilcp.message import Message

if TYPE_CHECKING:
    from ilcp.handoff.sender import Sender

__all__ = ["FallbackWarning", "Otherwise", "accepted", "as_text", "in_text"]

Otherwise = Literal["text"] | None
TEXT = "text-plain"


class FallbackWarning(UserWarning):
    """A text was handed over in place of a message, or a codec without evidence was left out, as the caller allowed."""


def in_text(sender: "Sender", source: Any, literals: Any, otherwise: Otherwise) -> bytes | None:
    """Returns the source's text as a message, where the sender's codec has no evidence that holds; None where it has.

    Raises:
        EncodeError: the source has no text, or the text is too long for a message.
        ConfigError: ``otherwise`` is something else.
    """
    _require_otherwise(otherwise)
    because = _against(sender.codec)
    if because is None or sender.codec.spec.name == TEXT:
        return None
    return as_text(sender, source, literals, str(because))


def as_text(
    sender: "Sender", source: Any, literals: Any, because: str, judged: Mapping[str, Any] = MappingProxyType({})
) -> bytes:
    """Returns the source's text as a message, warns why, and tells the sender's record, ``judged`` too.

    Raises:
        EncodeError: the source has no text, or the text is too long for a message.
    """
    from ilcp.handoff.sender import Sender

    warnings.warn(f"the text is handed over in place of a message: {because}", FallbackWarning, stacklevel=4)
    options: dict[str, Any] = dict(key=sender.key, audience=sender.audience, ttl_s=sender.ttl_s)
    options["encrypt"] = sender.encrypt
    codec: Any = codec_class(TEXT)
    other = Sender(sender.model, sender.tokenizer, codec(), template=sender.template, **options)
    message = other.encode(source, literals=literals)
    if sender.audit is not None:
        made = Message.from_bytes(message, key=sender.key, audience=sender.audience)
        text = said(source, other.read(source))
        sender.audit.sent(message, other.codec, made.literals, because, payload=made.payload, source=text, **judged)
    return message


def accepted(
    codecs: Sequence[Codec], trust: Iterable[str | bytes] | None, allow_unmeasured: bool, otherwise: Otherwise
) -> tuple[Codec, ...]:
    """Returns the codecs that a receiver takes: all, or with ``otherwise`` those whose evidence holds, and the text.

    Raises:
        ConfigError: ``otherwise`` is something else, or without a codec for the text.
        UnmeasuredError, MissingExtraError: as ``Receiver``.
    """
    _require_otherwise(otherwise)
    if otherwise and TEXT not in (each.spec.name for each in codecs):
        raise ConfigError(f"expected a codec {TEXT} beside otherwise='text', got none: give [codec, PlainCodec()]")
    trusted = () if trust is None else trusted_keys(trust)
    found = []
    for each in codecs:
        text = otherwise and each.spec.name == TEXT
        because = None if text else _against(each, trusted, allow_unmeasured)
        if because is None:
            found.append(each)
        elif otherwise:
            warnings.warn(f"{each.spec.name} is left out, only text is taken: {because}", FallbackWarning, stacklevel=3)
        else:
            raise because
    return tuple(found)


def _require_otherwise(otherwise: Any) -> None:
    if otherwise not in (None, "text"):
        raise ConfigError(f"expected otherwise='text' or None, got {otherwise!r}")


def _against(codec: Codec, trusted: Sequence[str] = (), allow_unmeasured: bool = False) -> UnmeasuredError | None:
    """Returns what keeps a codec from being taken; None where its evidence holds, or nobody wants any."""
    codec_id = codec.trained.codec_id(codec.spec).hex()
    try:
        if trusted:
            require_signed(codec.evidence, trusted, codec_id)
        if not allow_unmeasured:
            require_evidence(codec.evidence, codec_id)
    except UnmeasuredError as error:
        return error
    return None
