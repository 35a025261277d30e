"""Where the memory sits: the receiver's prompt, cut at the places of the memories.

::

    with memories   ids | memory vectors | ids | memory vectors | ids
    with text       ids of the same prompt, each text standing where its memory stood
    with nothing    ids of the same prompt without context

A question is a text, or chat messages that go through the receiver's chat template (``ilcp.models.chat``). Where a
content holds ``MEMORY_HERE`` a memory stands there, one marker for each in order; without a marker all memories open
the last user's message, each followed by an empty line. A question that is a text is the user's only message; for a
model without a chat template the prompt is the beginning-of-sequence token, that message and a line break. An empty
question asks for a plain continuation.

The ids before a memory and after it are those that the whole prompt has with a text in the memory's place. Tokenizers
make that a decision, since many write the space between two words into the second one, and some (sentencepiece's) open
every text with a space that nobody wrote. So one space before a memory belongs to the memory, as it does to a word, and
what follows is cut as the continuation of a text, not as the beginning of one: no seam gets a space of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any

from ilcp.errors import ConfigError, EncodeError
from ilcp.inputs import require_text
from ilcp.models.chat import Chat, messages_of, require_written, through_template

__all__ = [
    "MEMORY_HERE",
    "Layout",
    "Span",
    "answer_ids",
    "continuation",
    "layout",
    "pieces",
    "text_ids",
    "texts_ids",
]

MEMORY_HERE = "\ue000ilcp\ue001"  # private-use characters: no text carries them by accident
GAP = "\n\n"
ANCHORS = ("x", ".", "\n", "\u00b6")  # ends of a text; the first that does not grow together with what follows is taken

Span = tuple[int, int]  # of characters


@dataclass(frozen=True, slots=True)
class Layout:
    """Token ids before and after the memory."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def layout(tokenizer: Any, question: str | Chat, template: Mapping[str, Any] | None = None) -> Layout:
    """Returns the prompt around one memory.

    Raises:
        EncodeError, ConfigError: as ``pieces``.
    """
    return Layout(*pieces(tokenizer, question, [None], template))


def text_ids(
    tokenizer: Any, context: str, question: str | Chat, template: Mapping[str, Any] | None = None
) -> tuple[int, ...]:
    """Returns token ids of the prompt with ``context`` as text; an empty context is left out, with its gap.

    Raises:
        EncodeError, ConfigError: as ``pieces``.
    """
    return pieces(tokenizer, question, [context], template)[0]


def texts_ids(tokenizer: Any, asked: Sequence[tuple[str, str]]) -> list[tuple[int, ...]]:
    """Returns ``text_ids`` of many pairs of a context and a question, which a fast tokenizer works on side by side.

    Raises:
        EncodeError, ConfigError: as ``pieces``.
    """
    whole = [_render(tokenizer, question, _held([context], ()), 0, {}) for context, question in asked]
    return [tuple(ids) for ids in tokenizer(whole, add_special_tokens=False, verbose=False).input_ids] if whole else []


def answer_ids(tokenizer: Any, answer: str, *, end: bool = True) -> tuple[int, ...]:
    """Returns token ids of an answer, and of the token that ends it unless ``end`` is false.

    That is the token which the chat template writes behind an assistant's message, if it is a special or added one
    (Gemma's ``<end_of_turn>``, ChatML's ``<|im_end|>``), else the tokenizer's end-of-sequence token.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    closing = _closing(tokenizer, template, tokenizer.eos_token_id) if end else None
    own = _ids(tokenizer, require_text(answer, "an answer", may_be_empty=True))
    return (*own, *(() if closing is None else (closing,)))


def pieces(
    tokenizer: Any,
    question: str | Chat,
    contexts: Sequence[str | None],
    template: Mapping[str, Any] | None = None,
    lines: Sequence[str] = (),
) -> tuple[tuple[int, ...], ...]:
    """Returns token ids before, between and after the memories of vectors: one more than there are of them.

    Args:
        tokenizer: the receiver's.
        question: a text or chat messages; its markers say where the memories stand.
        contexts: for each memory its text, or None where it is vectors. With no contexts at all, or an empty text,
            nothing stands at the marker.
        template: arguments for the chat template beside the messages, such as ``{"enable_thinking": False}``.
        lines: for each memory the line of text that follows it, an empty line between; empty for none.

    Raises:
        EncodeError: the question is neither a text nor chat messages, there are not as many markers as memories, a text
            holds a marker itself, there is no user's message or no chat template, or the template refuses the messages
            or leaves out what one says.
        ConfigError: the chat template drops, repeats or changes a message that holds a memory.
    """
    vectors = sum(context is None for context in contexts)
    whole = _render(tokenizer, question, _held(contexts, lines), vectors, template or {})
    if not vectors:
        return (_ids(tokenizer, whole),)
    parts = whole.split(MEMORY_HERE)
    before = [part.removesuffix(" ") for part in parts[:-1]]
    opening = _ids(tokenizer, before[0])
    return (opening, *(continuation(tokenizer, part)[0] for part in [*before[1:], parts[-1]]))


def _held(contexts: Sequence[str | None], lines: Sequence[str]) -> list[str]:
    """Returns the text that stands in each memory's place, with its line; vectors have a marker again."""
    spoilt = [index for index, context in enumerate(contexts) if context is not None and MEMORY_HERE in context]
    if spoilt:
        raise EncodeError(
            f"expected contexts that are text, got context {spoilt[0]} with ilcp.MEMORY_HERE in it: the marker "
            "stands in the question only; take it out of the text"
        )
    pairs = zip_longest(contexts, lines[: len(contexts)], fillvalue="")
    return [GAP.join(filter(None, (MEMORY_HERE if context is None else context, line))) for context, line in pairs]


def _render(
    tokenizer: Any, question: str | Chat, held: Sequence[str], vectors: int, template: Mapping[str, Any]
) -> str:
    """Returns the prompt as text, a marker standing for each memory of vectors."""
    chat = _messages(question)
    plain = not getattr(tokenizer, "chat_template", None)
    if plain and not isinstance(question, str):
        raise EncodeError(
            "expected a question as text, because this tokenizer has no chat template, got chat messages: "
            "set tokenizer.chat_template, or ask in one text"
        )
    holding = _place(chat, held)
    if plain:
        body: str = chat[0]["content"]
        return (tokenizer.bos_token or "") + body + ("\n" if body else "")
    text = through_template(tokenizer, chat, template)
    if text.count(MEMORY_HERE) != vectors:
        raise ConfigError(
            f"expected the chat template to hold the user's message once, got {text.count(MEMORY_HERE)} places for "
            f"{vectors} memories: this template has no place for a memory; use one that keeps each message once"
        )
    changed = [message["content"] for message in holding if message["content"].strip() not in text]
    if changed:
        shown = changed[0].replace(MEMORY_HERE, "[memory]")
        raise ConfigError(
            f"expected the chat template to leave the message around the memory as it is, got {shown!r} changed: "
            "use a template that takes away no more than the spaces at its ends"
        )
    require_written(chat, text)
    return text


def _messages(question: Any) -> list[dict[str, Any]]:
    """Returns the chat, as messages of our own to write into."""
    if not isinstance(question, str):
        return messages_of(question, "a question as a str or as chat messages")
    text = require_text(question, "a question", may_be_empty=True)
    return messages_of([{"role": "user", "content": text}])


def _place(chat: list[dict[str, Any]], held: Sequence[str]) -> list[dict[str, Any]]:
    """Writes what each memory's place holds into the contents of ``chat``; returns the messages that hold one."""
    marked = [message for message in chat if MEMORY_HERE in message.get("content", "")]
    markers = sum(message["content"].count(MEMORY_HERE) for message in marked)
    if markers and held and markers != len(held):
        raise EncodeError(
            f"expected as many markers as memories, got {markers} and {len(held)}: put ilcp.MEMORY_HERE "
            "once for each memory, or nowhere, so that all of them open the last user's message"
        )
    if markers:
        filling = iter(held)
        for message in marked:
            start, *others = message["content"].split(MEMORY_HERE)
            message["content"] = start + "".join(next(filling, "") + other for other in others)
        return marked
    asked = next((message for message in reversed(chat) if message["role"] == "user" and "content" in message), None)
    if asked is None:
        if not any(held):
            return []
        raise EncodeError(
            "expected chat messages with a text of the user's, where the memory can stand, got "
            f"{[message['role'] for message in chat]}: add one, or put ilcp.MEMORY_HERE into a content"
        )
    asked["content"] = GAP.join(part for part in (*held, asked["content"]) if part)
    return [asked]


@lru_cache(maxsize=8)  # rendering would be most of the work for every single answer
def _closing(tokenizer: Any, chat_template: str, end: int | None) -> int | None:
    """Returns the token that ends an answer: the template's, or else ``end``."""
    if not chat_template:
        return end
    turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": MEMORY_HERE}]
    try:
        _, *behind = through_template(tokenizer, turn, asked=False).split(MEMORY_HERE)
    except EncodeError:
        return end
    first = continuation(tokenizer, behind[0])[0][:1] if len(behind) == 1 else ()
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return first[0] if first and first[0] in special else end


def continuation(tokenizer: Any, text: str) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    """Returns token ids of ``text`` behind another text, without the space that some tokenizers begin with.

    Beside them stands where each one's characters are in ``text``, of a tokenizer that knows.
    """
    if not text:
        return (), ()
    spans = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
    for anchor in ANCHORS:
        head, whole = _ids(tokenizer, anchor), tokenizer(anchor + text, add_special_tokens=False, **spans)
        ids = tuple(whole.input_ids)
        if ids[: len(head)] == head:
            offsets = whole.get("offset_mapping", ())[len(head) :]
            return ids[len(head) :], tuple((a - len(anchor), b - len(anchor)) for a, b in offsets)
    return _ids(tokenizer, text), ()


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids) if text else ()
