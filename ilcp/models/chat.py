"""Chat messages: what callers may give, and the chat template that writes them.

::

    chat --messages_of--> messages whose contents are texts --through_template--> text --require_written--> the same

A content may be a list of text parts, as the interfaces of hosted models have it, or ``None`` where a tool is called;
both become texts here, because many templates print whatever else they get, or leave it out. What no text can say (an
image) is refused. And since a template is a program of its author's, what it wrote is compared with what was said.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ilcp.errors import ConfigError, EncodeError
from ilcp.inputs import listed, require_text, seen

__all__ = ["Chat", "messages_of", "require_template", "require_written", "spoken", "through_template", "words_of"]

Chat = Sequence[Mapping[str, Any]]  # messages with "role" and "content", as a chat template takes them

CALLS = ("tool_calls", "function_call")
TEXT_PARTS = ("text", "input_text", "output_text")
GOES_ON = "continue_final_message"
THOUGHT_ENDS = "</think>"  # templates of reasoning models leave out what an assistant's content has before it
DECIDED = {  # arguments of apply_chat_template that are no template's own
    **dict.fromkeys(
        ("tokenize", "return_tensors", "return_dict", "padding", "truncation", "max_length"), "a text is made"
    ),
    **dict.fromkeys(("conversation", "messages"), "they are given with each call"),
    "add_generation_prompt": f"an answer is opened where one is asked for; {GOES_ON}=True goes on with an assistant's",
    "return_assistant_tokens_mask": "nobody reads it",
}


def require_template(template: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the arguments for a chat template, if they are the caller's to choose.

    Raises:
        ConfigError: with the names of those that are not, and why.
    """
    if not isinstance(template, Mapping | None):
        raise ConfigError(
            f"expected arguments of the chat template in a dict, got {type(template).__name__}: write {{'name': value}}"
        )
    decided = sorted(DECIDED.keys() & (template or {}).keys())
    if decided:
        reasons = "; ".join(f"{name}: {DECIDED[name]}" for name in decided)
        raise ConfigError(f"expected arguments of the chat template's own, got {', '.join(decided)} ({reasons})")
    return dict(template or {})


def messages_of(chat: Any, expected: str = "a list of chat messages") -> list[dict[str, Any]]:
    """Returns a chat as messages of our own to write into, each content a text.

    Raises:
        EncodeError: it is no chat, a message lacks something, or a content is no text; the text says which.
    """
    if isinstance(chat, Mapping):
        raise EncodeError("expected a list of chat messages, got a single one: put it into a list, [{'role': ...}]")
    messages = [_message(message, index) for index, message in enumerate(listed(chat, expected, "message"))]
    if not messages:
        raise EncodeError("expected chat messages, got none")
    contents = "".join(message.get("content", "") for message in messages)
    if contents.strip() and not seen(contents):
        raise EncodeError("expected a question or a chat that says something, got characters of which none can be seen")
    return messages


def _message(message: Any, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise EncodeError(
            f"expected chat messages with 'role' and 'content', got {type(message).__name__} as message {index}"
        )
    missing = [name for name, others in (("role", ()), ("content", CALLS)) if not {name, *others} & message.keys()]
    if missing:
        raise EncodeError(
            f"expected chat messages with 'role' and 'content', got message {index} without {' and '.join(missing)}"
        )
    require_text(message["role"], f"the role of message {index}")
    own = dict(message)
    if "content" in own:
        own["content"] = _content(own["content"], f"message {index}")
    _require_calls(own, f"message {index}")
    return own


def _require_calls(message: Mapping[str, Any], where: str) -> None:
    """Refuses tool calls that are not in the usual form."""
    calls, single = message.get("tool_calls") or [], message.get("function_call")
    expected = f"the tool calls of {where} as a list of {{'function': {{'name': ..., 'arguments': ...}}}}"
    if isinstance(calls, Mapping):
        raise EncodeError(f"expected {expected}, got {type(calls).__name__}: put it into a list")
    for call in (*listed(calls, expected, "call"), *(() if single is None else (single,))):
        function = call.get("function", call) if isinstance(call, Mapping) else call
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise EncodeError(f"expected {expected}, got {call!r:.100}: name the function that is called")
        arguments = function.get("arguments", "")
        require_text(name, f"a call of {where}", may_be_empty=True)
        if isinstance(arguments, str):
            require_text(arguments, f"a call of {where}", may_be_empty=True)


def _content(content: Any, where: str) -> str:
    """Returns a content as one text, its parts on lines of their own."""
    if content is None:
        return ""
    if isinstance(content, str):
        return require_text(content, f"the content of {where}", may_be_empty=True)
    expected = f"the content of {where} as a text or a list of text parts"
    if isinstance(content, Mapping):
        raise EncodeError(f"expected {expected}, got {type(content).__name__}: write it as a text")
    parts = enumerate(listed(content, expected, "part"))
    return "\n".join(_part(part, f"part {number} of {where}") for number, part in parts)


def _part(part: Any, where: str) -> str:
    if isinstance(part, Mapping):
        kind = part.get("type", "text")
        if kind not in TEXT_PARTS or "text" not in part:
            raise EncodeError(
                f"expected {where} as a text, {{'type': 'text', 'text': ...}}, got one of type {kind!r}: "
                "models are handed texts only; leave it out, or say it in words"
            )
        part = part["text"]
    return require_text(part, where, may_be_empty=True)


def through_template(
    tokenizer: Any, chat: Chat, template: Mapping[str, Any] | None = None, *, asked: bool = True
) -> str:
    """Returns the chat as text; the template opens an answer where one is ``asked`` for.

    With ``continue_final_message`` among the template's arguments, an assistant's message at the end stays open: the
    answer goes on with it.

    Raises:
        EncodeError: the template refuses the messages, or writes no text.
    """
    options = dict(template or {})
    goes_on = options.pop(GOES_ON, None)
    going_on = {GOES_ON: goes_on} if goes_on and chat[-1].get("role") == "assistant" else {}
    try:
        text = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=asked and not going_on, **going_on, **options
        )
    except Exception as error:  # a template runs code of its author's: what it raises is of any kind
        roles = [message.get("role") for message in chat]
        raise EncodeError(
            f"expected messages that the chat template takes, got roles {roles}: {type(error).__name__}: {error}"
        ) from error
    return require_text(text, "what the chat template writes", may_be_empty=True)


def require_written(chat: Chat, text: str) -> None:
    """Refuses the ``text`` of a template that left out, cut or changed what a message says.

    A content counts without the thought before it, and not at all beside a tool's call, whose name counts: templates
    leave those out on purpose. A content may stand there as JSON.

    Raises:
        EncodeError: with the message's index and role.
    """
    for index, message in enumerate(chat):
        names = [name for name, _ in _calls(message)]
        content = message.get("content", "").rpartition(THOUGHT_ENDS)[2].strip()
        told = content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text
        if not all(name in text for name in names) or not (told or names):
            raise EncodeError(
                f"expected a chat template that writes what each message says, got one that leaves out or changes "
                f"message {index} (role {message.get('role')!r}): say it in a role and a form that the template keeps"
            )


def spoken(chat: Chat) -> str:
    """Returns the chat as its words, a paragraph per message, without any template: for who reads text alone.

    What a message was thought with and kept apart from its content (``reasoning_content``) is not said.
    """
    return "\n\n".join(f"{message.get('name') or message['role']}: {words_of(message)}".strip() for message in chat)


def words_of(message: Mapping[str, Any]) -> str:
    """Returns what a message of ``messages_of`` says: its content, and the tools that it calls, a line each."""
    calls = (f"{name} {arguments}".strip() for name, arguments in _calls(message))
    return "\n".join(filter(None, (message.get("content", ""), *calls)))


def _calls(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields name and arguments of each tool that a message calls."""
    calls = message.get("tool_calls") or ()
    for call in (*calls, *filter(None, (message.get("function_call"),))):
        function = call.get("function", call)
        arguments = function.get("arguments", "")
        said = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)
        yield function["name"], said
