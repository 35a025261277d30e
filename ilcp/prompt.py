"""Where the memory sits: the receiver's prompt, cut at the places of the memories.

::

    with memories   ids | memory vectors | ids | memory vectors | ids
    with text       ids of the same prompt, each text standing where its memory stood
    with nothing    ids of the same prompt without context

A question is a text, or chat messages that go through the receiver's chat template. Where a content holds
``MEMORY_HERE`` a memory stands there, one marker for each in order; without a marker all memories open the last user's
message, each followed by an empty line. A question that is a text is the user's only message; for a model without a
chat template the prompt is the beginning-of-sequence token, that message and a line break. An empty question asks for a
plain continuation.

The ids before a memory and after it are those that the whole prompt has with a text in the memory's place. Tokenizers
make that a decision, since many write the space between two words into the second one, and some (sentencepiece's) open
every text with a space that nobody wrote. So one space before a memory belongs to the memory, as it does to a word, and
what follows is cut as the continuation of a text, not as the beginning of one: no seam gets a space of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ilcp.errors import EncodeError

__all__ = ["MEMORY_HERE", "Chat", "Layout", "answer_ids", "layout", "pieces", "text_ids"]

MEMORY_HERE = "\ue000ilcp\ue001"  # private-use characters: no text carries them by accident
GAP = "\n\n"
ANCHORS = ("x", ".", "\n", "\u00b6")  # ends of a text; the first that does not grow together with what follows is taken

Chat = Sequence[Mapping[str, Any]]  # messages with "role" and "content", as a chat template takes them


@dataclass(frozen=True, slots=True)
class Layout:
    """Token ids before and after the memory."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def layout(tokenizer: Any, question: str | Chat) -> Layout:
    """The prompt around a memory.

    Raises:
        EncodeError: as ``pieces``.
    """
    return Layout(*pieces(tokenizer, question, [None]))


def text_ids(tokenizer: Any, context: str, question: str | Chat) -> tuple[int, ...]:
    """Token ids of the prompt with ``context`` as text; an empty context is left out, with its gap.

    Raises:
        EncodeError: as ``pieces``.
    """
    return pieces(tokenizer, question, [context])[0]


def answer_ids(tokenizer: Any, answer: str, *, end: bool = True) -> tuple[int, ...]:
    """Token ids of an answer, closed by the end-of-sequence token unless ``end`` is false."""
    closing = (tokenizer.eos_token_id,) if end and tokenizer.eos_token_id is not None else ()
    return (*_ids(tokenizer, answer), *closing)


def pieces(tokenizer: Any, question: str | Chat, contexts: Sequence[str | None]) -> tuple[tuple[int, ...], ...]:
    """Token ids before, between and after the memories of vectors: one more than there are of them.

    Args:
        tokenizer: the receiver's.
        question: a text or chat messages; its markers say where the memories stand.
        contexts: for each memory its text, or None where it is vectors. With no contexts at all, or an empty text,
            nothing stands at the marker.

    Raises:
        EncodeError: there are not as many markers as memories, there is no user's message or no chat template, or the
            template drops, repeats or changes a message that holds a memory.
    """
    vectors = sum(context is None for context in contexts)
    parts = _render(tokenizer, question, contexts, vectors).split(MEMORY_HERE) if vectors else None
    if parts is None:
        return (_ids(tokenizer, _render(tokenizer, question, contexts, 0)),)
    before = [part.removesuffix(" ") for part in parts[:-1]]
    opening = _ids(tokenizer, before[0])
    return (opening, *(_continuation(tokenizer, part) for part in [*before[1:], parts[-1]]))


def _render(tokenizer: Any, question: str | Chat, contexts: Sequence[str | None], vectors: int) -> str:
    """The prompt as text, a marker standing for each memory of vectors."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(question, str):
        chat = [{"role": "user", "content": question}]
    elif template:
        chat = [dict(message) for message in question]
    else:
        raise EncodeError(
            "expected a question as text, because this tokenizer has no chat template, got chat messages: "
            "set tokenizer.chat_template, or ask in one text"
        )
    holding = _place(chat, contexts)
    if not template:
        body = chat[0]["content"]
        return (tokenizer.bos_token or "") + body + ("\n" if question else "")
    text = _through_template(tokenizer, chat)
    if vectors and text.count(MEMORY_HERE) != vectors:
        raise EncodeError(
            f"expected the chat template to hold the user's message once, got {text.count(MEMORY_HERE)} places for "
            f"{vectors} memories: this template has no place for a memory; use one that keeps each message once"
        )
    changed = [message["content"] for message in holding if message["content"].strip() not in text] if vectors else []
    if changed:
        shown = changed[0].replace(MEMORY_HERE, "[memory]")
        raise EncodeError(
            f"expected the chat template to leave the message around the memory as it is, got {shown!r} changed: "
            "use a template that takes away no more than the spaces at its ends"
        )
    return text


def _place(chat: list[dict[str, Any]], contexts: Sequence[str | None]) -> list[dict[str, Any]]:
    """Puts the contexts into the contents of ``chat``; returns the messages that hold one."""
    held = [MEMORY_HERE if context is None else context for context in contexts]
    marked = [message for message in chat if MEMORY_HERE in _content(message)]
    markers = sum(_content(message).count(MEMORY_HERE) for message in marked)
    if markers and contexts and markers != len(contexts):
        raise EncodeError(
            f"expected as many markers as memories, got {markers} and {len(contexts)}: put ilcp.prompt.MEMORY_HERE "
            "once for each memory, or nowhere, so that all of them open the last user's message"
        )
    if markers:
        filling = iter(held)
        for message in marked:
            start, *others = message["content"].split(MEMORY_HERE)
            message["content"] = start + "".join(next(filling, "") + other for other in others)
        return marked
    asked = next((message for message in reversed(chat) if message.get("role") == "user"), None)
    if asked is None or not isinstance(asked["content"], str):
        raise EncodeError(
            "expected chat messages with a text of the user's, where the memory can stand, got "
            f"{[message.get('role') for message in chat]}: add one, or put ilcp.prompt.MEMORY_HERE into a content"
        )
    asked["content"] = GAP.join(part for part in (*held, asked["content"]) if part)
    return [asked]


def _content(message: Mapping[str, Any]) -> str:
    """The text of a message; parts that are no text (a tool's call, an image) hold no marker."""
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _through_template(tokenizer: Any, chat: Chat) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = [message.get("role") for message in chat]
        raise EncodeError(f"expected messages that the chat template takes, got roles {roles}: {error}") from error


def _continuation(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of ``text`` where it goes on after another text, without the space that some tokenizers begin with."""
    if not text:
        return ()
    for anchor in ANCHORS:
        head, whole = _ids(tokenizer, anchor), _ids(tokenizer, anchor + text)
        if whole[: len(head)] == head:
            return whole[len(head) :]
    return _ids(tokenizer, text)


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids) if text else ()
