"""What a sender takes: texts, chat messages and token ids, told apart and checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ilcp.codec.context import Context
from ilcp.errors import EncodeError

__all__ = ["is_messages", "is_text_or_ids", "one_row", "rendered", "said"]


def is_text_or_ids(source: Any) -> bool:
    """Checks whether a source is a text, chat messages or token ids, rather than something computed already."""
    if isinstance(source, Mapping):
        return "input_ids" in source or "role" in source  # from a tokenizer; a message, which will be refused
    return isinstance(source, str | Tensor) or hasattr(source, "__array__") or _is_list(source)


def _is_list(source: Any) -> bool:
    return isinstance(source, Sequence) and not isinstance(source, bytes)


def is_messages(source: Any) -> bool:
    """Checks whether a source is a list of chat messages."""
    return isinstance(source, Sequence) and any(isinstance(item, Mapping) for item in source)


def said(source: Any, context: Context) -> str | None:
    """Returns the text that literals are picked from: of chat messages their own words, without the template's."""
    if not is_messages(source):
        return context.text
    return "\n".join(message["content"] for message in source if isinstance(message.get("content"), str))


def rendered(tokenizer: Any, messages: Sequence[Any]) -> str:
    """Returns chat messages as the tokenizer's template writes them, with nothing begun behind the last.

    The template decides what messages may hold beside their roles (parts, tool calls).

    Raises:
        EncodeError: one has no role, none says anything, or there is no template that takes them.
    """
    for index, message in enumerate(messages):
        found = message.get("role") if isinstance(message, Mapping) else message
        if not isinstance(message, Mapping) or not isinstance(found, str):
            got = "none" if found is None else type(found).__name__
            raise EncodeError(
                f"expected message {index} to have a role that is a str, got {got}: "
                "write {'role': ..., 'content': ...}"
            )
    if not any(_says_something(message) for message in messages):
        raise EncodeError("expected messages that say something, got empty ones: there is nothing to hand off")
    if not getattr(tokenizer, "chat_template", None):
        raise EncodeError("expected a tokenizer with a chat template for messages, got one without: pass a text")
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=False)
    except Exception as error:  # a template raises what it likes, mostly about the order of roles
        raise EncodeError(f"expected messages that the tokenizer's chat template takes, got: {error}") from error
    if not text.strip():
        raise EncodeError("expected messages that the chat template renders as a text, got an empty one from it")
    return text


def _says_something(message: Mapping[str, Any]) -> bool:
    said = (value for name, value in message.items() if name != "role")
    return any(value.strip() if isinstance(value, str) else value for value in said)


def one_row(source: Any) -> list[int]:
    """Returns the ids of one sequence.

    Raises:
        EncodeError: it is something else that looks like a list; the text names it.
    """
    if isinstance(source, Mapping):
        if "input_ids" not in source:
            raise EncodeError("expected a list of messages, got one message: put it into a list, [{'role': ...}]")
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
