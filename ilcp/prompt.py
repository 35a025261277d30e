"""Where the memory sits: the receiver's prompt, cut in two at the place of the context.

::

    with memory     prefix ids | memory vectors | suffix ids
    with text       ids of the same prompt, the text standing where the memory stood
    with nothing    ids of the same prompt without context

With a chat template the context opens the user's message and the question follows it after an empty line; without one
the prompt is ``context``, an empty line, ``question``, a line break. An empty question asks for a plain continuation.
"""

from dataclasses import dataclass
from typing import Any

from ilcp.errors import EncodeError

__all__ = ["Layout", "answer_ids", "layout", "text_ids"]

PLACE = "\ue000ilcp\ue001"  # private-use characters: no text carries them by accident
GAP = "\n\n"


@dataclass(frozen=True, slots=True)
class Layout:
    """Token ids before and after the memory."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def layout(tokenizer: Any, question: str) -> Layout:
    """The prompt around a memory.

    Raises:
        EncodeError: the chat template drops, repeats or changes the user's message.
    """
    halves = _render(tokenizer, PLACE, question).split(PLACE)
    if len(halves) != 2:
        raise EncodeError(
            f"expected the chat template to hold the user's message once, got it {len(halves) - 1} times: "
            "this template has no place for a memory"
        )
    return Layout(_ids(tokenizer, halves[0]), _ids(tokenizer, halves[1]))


def text_ids(tokenizer: Any, context: str, question: str) -> tuple[int, ...]:
    """Token ids of the prompt with ``context`` as text; an empty context is left out, with its gap."""
    return _ids(tokenizer, _render(tokenizer, context, question))


def answer_ids(tokenizer: Any, answer: str, *, end: bool = True) -> tuple[int, ...]:
    """Token ids of an answer, closed by the end-of-sequence token unless ``end`` is false."""
    closing = (tokenizer.eos_token_id,) if end and tokenizer.eos_token_id is not None else ()
    return (*_ids(tokenizer, answer), *closing)


def _render(tokenizer: Any, context: str, question: str) -> str:
    body = GAP.join(part for part in (context, question) if part)
    if getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": body}]
        return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    start = tokenizer.bos_token or ""
    return start + body + ("\n" if question else "")


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids) if text else ()
