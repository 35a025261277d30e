"""What a sender takes: texts, chat messages and token ids, told apart, checked, and put together for its passes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ilcp.codec.context import Context
from ilcp.errors import EncodeError
from ilcp.inputs import mending, seen
from ilcp.models.chat import messages_of, require_written, through_template
from ilcp.models.reading import MAX_TOKENS

__all__ = [
    "is_messages",
    "is_text_or_ids",
    "one_row",
    "passes",
    "rendered",
    "require_length",
    "require_outputs",
    "said",
    "saying",
]

PASS_TOKENS = 8192  # of a pass of several texts, padding included; a text that is longer is read alone
MAX_CHARACTERS = 16 * MAX_TOKENS  # no language has so many characters to a token


def is_text_or_ids(source: Any) -> bool:
    """Checks whether a source is a text, chat messages or token ids, rather than something computed already."""
    if isinstance(source, Mapping):
        return "input_ids" in source or "role" in source  # from a tokenizer; a message, which will be refused
    return isinstance(source, str | Tensor) or hasattr(source, "__array__") or _is_list(source)


def _is_list(source: Any) -> bool:
    return isinstance(source, Sequence) and not isinstance(source, bytes | bytearray | memoryview)


def is_messages(source: Any) -> bool:
    """Checks whether a source is a list of chat messages."""
    return isinstance(source, Sequence) and any(isinstance(item, Mapping) for item in source)


def said(source: Any, context: Context) -> str | None:
    """Returns the text that literals are picked from: of chat messages their own words, without the template's."""
    if not is_messages(source):
        return context.text
    return "\n".join(message["content"] for message in messages_of(source) if "content" in message)


def rendered(tokenizer: Any, messages: Any, template: Mapping[str, Any]) -> str:
    """Returns chat messages as the tokenizer's template writes them, with nothing begun behind the last.

    Raises:
        EncodeError: one is no message, none says anything, or there is no template that takes and keeps them.
    """
    chat = saying(messages)
    if not getattr(tokenizer, "chat_template", None):
        raise EncodeError("expected a tokenizer with a chat template for messages, got one without: pass a text")
    text = through_template(tokenizer, chat, template, asked=False)
    if not seen(text):
        raise EncodeError("expected messages that the chat template renders as a text, got an empty one from it")
    require_written(chat, text)
    return text


def saying(messages: Any) -> list[dict[str, Any]]:
    """Returns chat messages, if one of them says something.

    Raises:
        EncodeError: one is no message, or none says anything.
    """
    chat = messages_of(messages)
    told = (value for message in chat for name, value in message.items() if name != "role")
    if not any(seen(value) if isinstance(value, str) else value for value in told):
        raise EncodeError("expected messages that say something, got empty ones: there is nothing to hand off")
    return chat


def require_length(text: str) -> str:
    """Returns a text, if it is not so long that a tokenizer would work on it for minutes.

    Raises:
        EncodeError: with its length and the limit.
    """
    if len(text) > MAX_CHARACTERS:
        raise EncodeError(
            f"expected a text of at most {MAX_CHARACTERS:,} characters, got {len(text):,}: encode its parts one by one"
        )
    return text


def require_outputs(source: Any) -> None:
    """Refuses what is neither a text, messages, ids nor a model's outputs.

    Raises:
        EncodeError: with its type, and what to do.
    """
    if not hasattr(source, "hidden_states"):
        raise EncodeError(
            "expected a text, chat messages, token ids, a capture, or a model's outputs, got "
            f"{type(source).__name__}{mending(source)}"
        )


def one_row(source: Any) -> list[int]:
    """Returns the ids of one sequence.

    Raises:
        EncodeError: it is something else that looks like a list; the text names it.
    """
    if isinstance(source, Mapping):
        if "input_ids" not in source:
            raise EncodeError("expected a list of chat messages, got a single one: put it into a list, [{'role': ...}]")
        return _unpadded(source)
    if _is_list(source) and any(isinstance(item, str) for item in source):
        raise EncodeError(
            f"expected one text, got a list of {len(source)}: encode them with sender.encode_batch(texts), "
            "or one by one"
        )
    try:
        row = torch.as_tensor(source)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EncodeError(
            f"expected a text, messages, token ids or model outputs, got {type(source).__name__}: {error}"
        ) from error
    if row.numel() and (row.is_floating_point() or row.is_complex() or row.dtype == torch.bool):
        raise EncodeError(f"expected whole numbers as token ids, got {row.dtype}: pass hidden states as model outputs")
    if row.ndim > 2 or (row.ndim == 2 and len(row) != 1):
        raise EncodeError(f"expected the ids of one sequence, got shape {tuple(row.shape)}: encode row by row")
    ids: list[int] = row.reshape(-1).tolist()
    return ids


def _unpadded(encoding: Mapping[str, Any]) -> list[int]:
    """Returns the ids that a tokenizer made of one text, without its padding."""
    ids, mask = one_row(encoding["input_ids"]), encoding.get("attention_mask")
    seen = [1] * len(ids) if mask is None else one_row(mask)
    return [token for token, known in zip(ids, seen, strict=True) if known]


def passes(order: Sequence[int], lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Yields ``order``, shortest first, in groups of at most ``batch`` sources and PASS_TOKENS tokens."""
    chosen: list[int] = []
    for index, tokens in zip(order, lengths, strict=True):
        if chosen and (len(chosen) == batch or (len(chosen) + 1) * tokens > PASS_TOKENS):
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen
