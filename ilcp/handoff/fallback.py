"""The text in place of a message that nobody showed to carry anything, where the caller allowed it.

Both ends say so: ``Sender.encode(..., otherwise="text")`` hands the text over by codec ``text-plain``, and
``Receiver(..., [codec, PlainCodec()], otherwise="text")`` takes it. The message names its codec, a warning the reason.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ilcp.codec.protocols import Codec
from ilcp.codec.registry import codec_class
from ilcp.errors import ConfigError, UnmeasuredError
from ilcp.evidence import require_evidence, require_signed, trusted_keys

if TYPE_CHECKING:
    from ilcp.handoff.sender import Sender

__all__ = ["FallbackWarning", "Otherwise", "accepted", "in_text"]

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
    because = _unproven(sender.codec, otherwise)
    if because is None:
        return None
    from ilcp.handoff.sender import Sender

    warnings.warn(f"the text is handed over in place of a message: {because}", FallbackWarning, stacklevel=3)
    options: dict[str, Any] = dict(key=sender.key, audience=sender.audience, ttl_s=sender.ttl_s)
    codec: Any = codec_class(TEXT)
    other = Sender(sender.model, sender.tokenizer, codec(), template=sender.template, **options)
    return other.encode(source, literals=literals)


def accepted(
    codecs: Sequence[Codec], trust: Iterable[str | bytes] | None, allow_unmeasured: bool, otherwise: Otherwise
) -> tuple[Codec, ...]:
    """Returns the codecs that a receiver takes: all, or with ``otherwise`` those whose evidence holds, and the text.

    Raises:
        ConfigError: ``otherwise`` is something else, or without a codec for the text.
        UnmeasuredError, MissingExtraError: as ``Receiver``.
    """
    if otherwise is not None and not any(_is_text(each, otherwise) for each in codecs):
        raise ConfigError(f"expected a codec {TEXT} beside otherwise='text', got none: give [codec, PlainCodec()]")
    trusted = () if trust is None else trusted_keys(trust)
    found = []
    for each in codecs:
        codec_id = each.trained.codec_id(each.spec).hex()
        try:
            if otherwise is None or not _is_text(each, otherwise):
                if trusted:
                    require_signed(each.evidence, trusted, codec_id)
                if not allow_unmeasured:
                    require_evidence(each.evidence, codec_id)
        except UnmeasuredError as error:
            if otherwise is None:
                raise
            warnings.warn(f"{each.spec.name} is left out, only text is taken: {error}", FallbackWarning, stacklevel=3)
            continue
        found.append(each)
    return tuple(found)


def _is_text(codec: Codec, otherwise: Any) -> bool:
    if otherwise != "text":
        raise ConfigError(f"expected otherwise='text' or None, got {otherwise!r}")
    return codec.spec.name == TEXT


def _unproven(codec: Codec, otherwise: Any) -> str | None:
    """Says why a codec's message is not relied on; None where its evidence holds."""
    if _is_text(codec, otherwise):
        return None
    try:
        require_evidence(codec.evidence, codec.trained.codec_id(codec.spec).hex())
    except UnmeasuredError as error:
        return str(error)
    return None
