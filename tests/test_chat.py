"""Chat messages as other programs write them: parts, null contents, calls, prefill; and templates that drop words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ilcp import MEMORY_HERE, Receiver, Sender, TextMemory
from ilcp.errors import ConfigError, EncodeError
from ilcp.message import Message
from ilcp.models.chat import messages_of, require_template, require_written, spoken, through_template
from ilcp.models.prompt import pieces, text_ids
from ilcp.tasks import read_jsonl
from ilcp_codecs.text import PlainCodec
from tests.chat_templates import CHAT_TEMPLATES, tokenizer_of
from tests.helpers import make_model, make_tokenizer, sender_of

DOCUMENT, QUESTION = "The ticket J3X4P2 is owned by Mara.", "Who owns it?"
TEMPLATES = {
    "prints whatever it gets": None,  # the helpers' own
    "reads only texts": "{% for m in messages %}<|user|>{% if m['content'] is string %}{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
}
CALL = {"type": "function", "function": {"name": "find_owner", "arguments": {"ticket": "J3X4P2"}}}
CALLING = (
    "{% for m in messages %}<|user|>{{ m['role'] }}: {{ m['content'] }}"
    "{% for call in m['tool_calls'] %}{{ call['function'] | tojson }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def parts(*texts: str) -> list[dict[str, str]]:
    """A content as a list of text parts."""
    return [{"type": "text", "text": text} for text in texts]


def tokenizer_with(template: str | None) -> Any:
    """A tokenizer with that template, or the helpers' own."""
    return make_tokenizer(300) if template is None else make_tokenizer(300, template=template)


@pytest.mark.parametrize("template", TEMPLATES)
def test_text_parts_are_the_text(template: str) -> None:
    """A sender makes the same message of parts as of their text, another of other words, and finds their literals."""
    sender = sender_of(make_model(300), tokenizer_with(TEMPLATES[template]))
    whole = [{"role": "user", "content": f"{DOCUMENT}\n{QUESTION}"}]
    apart = [{"role": "user", "content": parts(DOCUMENT, QUESTION)}]
    assert sender.encode(whole) == sender.encode(apart) == sender.encode_batch([apart])[0]
    assert sender.read(whole).text == sender.read(apart).text
    other = [{"role": "user", "content": parts("Somebody else.", QUESTION)}]
    assert sender.read(other).text != sender.read(apart).text
    assert ("J3X4P2",) == Message.from_bytes(sender.encode(apart, literals="auto")).literals
    for same in (
        ("a", "b"),
        [{"text": "a"}, "b"],
        [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}],
    ):
        assert "a\nb" == messages_of([{"role": "user", "content": same}])[0]["content"]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("contexts", [[None], [DOCUMENT], [""], []], ids=["memory", "text", "empty", "nothing"])
def test_a_marker_in_a_part_is_a_place_in_every_arm(template: str, contexts: list[str | None]) -> None:
    """The prompt of parts is that of their text, and no character of the marker is left in it."""
    tokenizer = tokenizer_with(TEMPLATES[template])
    apart = [{"role": "user", "content": parts(f"Known: {MEMORY_HERE}", QUESTION)}]
    whole = [{"role": "user", "content": f"Known: {MEMORY_HERE}\n{QUESTION}"}]
    prompt = pieces(tokenizer, apart, contexts)
    assert prompt == pieces(tokenizer, whole, contexts)
    said = "".join(tokenizer.decode(ids) for ids in prompt)
    assert QUESTION in said
    assert not set(MEMORY_HERE) & {"\ue000", "\ue001"} & set(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            [{"type": "image_url", "image_url": {"url": "a.png"}}],
            "part 0 of message 0 as a text, .* one of type 'image_url'",
        ),
        (
            parts("a") + [{"type": "image"}],
            "part 1 of message 0 .* got one of type 'image': models are handed texts only",
        ),
        ([{"type": "text"}], "part 0 of message 0"),
        ([7], "expected part 0 of message 0 as a str, got int"),
        ([{"type": "text", "text": 7}], "expected part 0 of message 0 as a str, got int"),
        (7, "the content of message 0 as a text or a list of text parts, got int"),
        ({"answer": 7}, "the content of message 0 as a text or a list of text parts, got dict: write it as a text"),
        (b"a", "got bytes: decode it first"),
    ],
)
def test_what_no_text_can_say_is_refused_at_both_ends(small: Any, content: Any, said: str) -> None:
    """Images and other parts are named with their message and place, at the sender and in every arm of the receiver."""
    chat = [{"role": "user", "content": content}]
    with pytest.raises(EncodeError, match=said):
        small.sender.encode(chat)
    for memory in (TextMemory(DOCUMENT), None):
        with pytest.raises(EncodeError, match=said):
            small.receiver.generate(memory, chat)


def test_null_beside_a_tools_call_is_nothing() -> None:
    """A null content is an empty one: no template prints Python's None; the call's name and words are there."""
    sender = sender_of(make_model(300), tokenizer_with(CALLING))
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "Mara"},
    ]
    text = str(sender.read(turns).text)
    assert "None" not in text
    assert "find_owner" in text
    assert "J3X4P2" in text
    empty = [turns[0], {**turns[1], "content": ""}, turns[2]]
    assert sender.encode(empty) == sender.encode(turns)
    asked = [*turns, {"role": "user", "content": f"{MEMORY_HERE} So?"}]
    assert "None" not in "".join(map(sender.tokenizer.decode, pieces(sender.tokenizer, asked, [None])))


@pytest.mark.parametrize(
    "calls", [5, {"function": {"name": "f"}}, [5], [{"function": "f"}], [{"function": None}], [{}], [{"name": ""}]]
)
def test_calls_of_tools_in_another_form_are_refused_by_index(small: Any, calls: Any, tmp_path: Path) -> None:
    """At every door: no call without a name says that a content was written, and no other form crashes."""
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Words.", "tool_calls": calls}]
    with pytest.raises(EncodeError, match="expected the tool calls of message 1 as a list"):
        small.sender.encode(chat)
    with pytest.raises(EncodeError, match="expected the tool calls of message 1 as a list"):
        small.receiver.generate(None, [*chat, {"role": "user", "content": "So?"}])
    file = tmp_path / "log.jsonl"
    file.write_text(json.dumps({"messages": chat}))
    with pytest.raises(ConfigError, match="expected the tool calls of message 1 as a list"):
        list(read_jsonl(file))


def test_arguments_of_the_template_are_named(small: Any) -> None:
    """A list in their place says what was expected."""
    with pytest.raises(ConfigError, match="expected arguments of the chat template in a dict, got list"):
        require_template(["enable_thinking"])  # type: ignore[arg-type]


def test_words_that_a_template_leaves_out_are_missed_in_every_arm() -> None:
    """A template that drops a role, cuts a text or forgets a call is refused, not obeyed in silence."""
    drops_tools = "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}"
    cuts = "{% for m in messages %}<|user|>{{ m['content'][:9] }}{% endfor %}"
    reads_parts = (
        "{% for m in messages %}<|user|>{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
    )
    told: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    tool = [{"role": "tool", "content": "Mara, by the list."}, *told]
    calls: list[dict[str, Any]] = [{"role": "assistant", "content": "", "tool_calls": [CALL]}, *told]
    for template, chat, index in ((drops_tools, tool, 0), (cuts, tool, 0), (reads_parts, told, 0), (None, calls, 0)):
        tokenizer = tokenizer_with(template)
        with pytest.raises(
            EncodeError, match=rf"leaves out or changes message {index} \(role '{chat[index]['role']}'\)"
        ):
            sender_of(make_model(300), tokenizer).encode(chat)
        for contexts in ([None], [DOCUMENT], []):
            with pytest.raises((EncodeError, ConfigError), match=r"expected (the|a) chat template"):
                pieces(tokenizer, chat, contexts)


def test_what_a_template_leaves_out_on_purpose_is_not_missed() -> None:
    """The thoughts before an answer, the spaces at its ends, and a tool's words as JSON are a template's own affair."""
    thinking = tokenizer_of("bytes", CHAT_TEMPLATES["thinking"])
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<think>Let me see.</think>\n\nMara."},
        {"role": "user", "content": "Sure?"},
    ]
    assert "Let me see" not in str(sender_of(make_model(len(thinking)), thinking).read(turns).text)
    as_json = "{% for m in messages %}<|user|>{{ m['content'] | tojson }}{% endfor %}"
    sender = sender_of(make_model(300), tokenizer_with(as_json))
    assert '\\"owner\\"' in str(sender.read([{"role": "tool", "content": '{"owner":\n"Mara"} '}]).text)
    require_written([{"role": "assistant", "content": "Well.", "tool_calls": [CALL]}], "find_owner(J3X4P2)")


def test_a_marker_where_no_memory_can_stand_is_refused_in_every_arm() -> None:
    """In a call's arguments, or a name, a marker would stay in the prompt as it is."""
    tokenizer = tokenizer_with(CALLING)
    call = {"function": {"name": "find", "arguments": {"text": MEMORY_HERE}}}
    chat: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "user", "content": QUESTION},
    ]
    for contexts in ([None], [DOCUMENT], []):
        with pytest.raises(ConfigError, match="this template has no place for a memory"):
            pieces(tokenizer, chat, contexts)


def test_nothing_is_asked_of_a_chat_without_a_users_text(small: Any) -> None:
    """Where there is no memory, no place is needed: the control is asked what the message is asked."""
    chat = [{"role": "system", "content": "Say a name."}]
    tokenizer = small.receiver.tokenizer
    expected = tuple(tokenizer("<|user|>Say a name.<|assistant|>", add_special_tokens=False).input_ids)
    for contexts in ([], [""]):
        assert (expected,) == pieces(tokenizer, chat, contexts)
    assert isinstance(small.receiver.generate(None, chat, max_new_tokens=2), str)
    with pytest.raises(EncodeError, match="a text of the user's, where the memory can stand"):
        pieces(tokenizer, chat, [None])


PREFILL = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "It is"}]
TURNS = "{% for m in messages %}<|user|>{{ m['content'] }}</s>{% endfor %}"
TURNS += "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def test_an_answer_goes_on_with_an_assistants_message() -> None:
    """With ``continue_final_message`` the last message of an assistant stays open, in every arm; a question is asked as
    always."""
    tokenizer, goes_on = tokenizer_with(TURNS), {"continue_final_message": True}
    open_end = f"<|user|>{DOCUMENT}\n\n{QUESTION}</s><|user|>It is"
    ids = tuple(tokenizer(open_end, add_special_tokens=False).input_ids)
    assert ids == text_ids(tokenizer, DOCUMENT, PREFILL, goes_on)
    assert text_ids(tokenizer, DOCUMENT, QUESTION) == text_ids(tokenizer, DOCUMENT, QUESTION, goes_on)
    assert text_ids(tokenizer, DOCUMENT, PREFILL)[-1:] != ids[-1:]
    receiver = Receiver(make_model(300), tokenizer, PlainCodec(), allow_unmeasured=True, template=goes_on)
    memory = TextMemory(DOCUMENT)
    assert len(ids) == len(receiver.prompt(memory, PREFILL))
    answer = receiver.generate(memory, PREFILL, max_new_tokens=4)
    with torch.no_grad():
        row = torch.tensor([ids])
        out = receiver.model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip() == answer
    assert "It is" == through_template(tokenizer, PREFILL, goes_on)[-5:]


@pytest.mark.parametrize("name", ["add_generation_prompt", "tokenize", "return_tensors"])
def test_arguments_that_are_no_templates_own_are_refused_once(small: Any, name: str) -> None:
    """At both ends, when they are made, with what to pass in their place."""
    ends: tuple[Any, ...] = (
        lambda **more: Sender(small.sender.model, small.sender.tokenizer, small.codec, **more),
        lambda **more: Receiver(
            small.receiver.model, small.receiver.tokenizer, small.codec, allow_unmeasured=True, **more
        ),
    )
    for end in ends:
        with pytest.raises(ConfigError, match=f"expected arguments of the chat template's own, got {name} "):
            end(template={name: False})


def test_a_senders_chats_are_written_with_its_template_arguments() -> None:
    """What is passed for the chat template reaches it, of one chat and of a batch; a text has no template."""
    told = "{{ mood or 'calm' }}{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    model, tokenizer = make_model(300), tokenizer_with(told)
    plain = sender_of(model, tokenizer)
    moody = Sender(model, tokenizer, plain.codec, template={"mood": "wild"})
    chat = [{"role": "user", "content": DOCUMENT}]
    assert f"calm<|user|>{DOCUMENT}" == plain.read(chat).text
    assert f"wild<|user|>{DOCUMENT}" == moody.read(chat).text == moody.read_batch([chat])[0].text
    assert plain.encode(DOCUMENT) == moody.encode(DOCUMENT)


def test_a_text_codec_is_told_the_words_and_no_control_tokens(small: Any) -> None:
    """A chat goes as paragraphs, which the receiver of any model takes; a sender without a template can send it."""
    turns = [
        {"role": "user", "content": parts("Who", "owns it?")},
        {"role": "assistant", "name": "ann", "content": "Mara."},
    ]
    receiver = Receiver(small.receiver.model, small.receiver.tokenizer, PlainCodec(), allow_unmeasured=True)
    for template in (None, "{{ 1 / 0 }}"):
        sender = Sender(small.sender.model, small.sender.tokenizer, PlainCodec())
        sender.tokenizer = tokenizer_with(template)
        memory = receiver.decode(sender.encode(turns))
        assert isinstance(memory, TextMemory)
        assert "user: Who\nowns it?\n\nann: Mara." == memory.text
    called = messages_of([{"role": "assistant", "content": None, "tool_calls": [CALL]}])
    assert 'assistant: find_owner {"ticket": "J3X4P2"}' == spoken(called)
