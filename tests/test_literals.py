"""Literals: what ``auto`` picks, what they cost on the wire, and where the receiver reads them."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ilcp.codec.context import Context
from ilcp.codec.memory import SoftPrompt, TextMemory
from ilcp.errors import ConfigError, DecodeError, EncodeError
from ilcp.handoff import Receiver, Sender
from ilcp.message import Message, describe
from ilcp.message.literals import AUTO_BYTES, MAX_LITERALS_BYTES, auto, line
from ilcp.models.forward import embed
from ilcp.models.prompt import GAP, MEMORY_HERE, pieces
from ilcp.tasks import case_files

QUESTION = "Which code?"
LITERALS = ("J3X4P2", "2024-05-17")
TEXT = "Mara closed J3X4P2 on 2024-05-17."
THOROUGH = settings(max_examples=200, deadline=None, derandomize=True, database=None)

PICKED = [
    ("The reference code is J3X4P2.", ("J3X4P2",)),
    ("(INC-20391), v1.2.3; ERR_TIMEOUT!", ("INC-20391", "v1.2.3", "ERR_TIMEOUT")),
    ("id 3f2504e0-4f89-11d3-9a0c-0305e82c3301", ("3f2504e0-4f89-11d3-9a0c-0305e82c3301",)),
    ("Write to mara.b@example.org, today.", ("mara.b@example.org",)),
    ("See <https://example.org/a?b=1#c>.", ("https://example.org/a?b=1#c",)),
    (
        "In /etc/hosts, ~/x, ../y, C:\\temp\\a and src/ilcp/message.py:",
        ("/etc/hosts", "~/x", "../y", "C:\\temp\\a", "src/ilcp/message.py"),
    ),
    (
        "On 2024-05-17, 17.5.2024 or 5/17/24 at 2024-05-17T08:30:00Z",
        ("2024-05-17", "17.5.2024", "5/17/24", "2024-05-17T08:30:00Z"),
    ),
    ("1,204 calls, 3.14, $99.50, 99.9%, 10:30 and 4711", ("1,204", "3.14", "$99.50", "99.9%", "10:30", "4711")),
    ("Mara and/or Ilse: 15 of 61 minutes, yes - no", ()),
    ("J3X4P2 J3X4P2, J3X4P2.", ("J3X4P2",)),
    ("INC-20391's owner, J3X4P2’s: the 2nd and 15th", ("INC-20391", "J3X4P2")),
    ('code=K9Z8 user_id=4711 {"n":4711} J3X4P2—then', ("K9Z8", "4711", "J3X4P2")),
    ("订单号12345已发货给马拉", ("12345",)),
    ("工单INC-20391于2024-05-17关闭。", ("INC-20391", "2024-05-17")),
    ("請見「J3X4P2」、K9Z8及https://example.org/a。", ("J3X4P2", "K9Z8", "https://example.org/a")),
    ("联系mara@example.org。或jonas@example.org，谢谢", ("mara@example.org", "jonas@example.org")),
    ("コードはJ3X4P2です。INC-20391은 닫혔다", ("J3X4P2", "INC-20391")),
    ("رمز INC-20391، ثم J3X4P2؟ कोड K9Z8।", ("INC-20391", "J3X4P2", "K9Z8")),
    ("见https://example.org/a查看, /home/用户/a1.txt, C:\\用户\\a1.txt, mara@例子.org", ()),
    ("https://zh.wikipedia.org/wiki/中文", ()),
    ("Straße123 naïve7 ＩＮＣ－２０３９１", ()),
    (
        "[mara](mailto:mara@example.org) [J3X4P2](https://example.org/J3X4P2)",
        ("mara@example.org", "J3X4P2", "https://example.org/J3X4P2"),
    ),
    (
        "[a](https://example.org/a_(b)), (https://example.org/c_(d))",
        ("https://example.org/a_(b)", "https://example.org/c_(d)"),
    ),
    ("E-mail:mara@example.org;jonas@example.org,", ("mara@example.org", "jonas@example.org")),
    (
        '<a href="https://example.org/a">K9Z8</a> </strong> {"url":"https://example.org/b","n":4711}',
        ("https://example.org/a", "K9Z8", "https://example.org/b", "4711"),
    ),
    ("_J3X4P2_ **K9Z8** `INC-20391` ~~A1~~ A2-", ("J3X4P2", "K9Z8", "INC-20391")),
    ("INC-20391→INC-20392 ✅J3X4P2", ("INC-20391", "INC-20392", "J3X4P2")),
    ("−5.25 and 37.5° and ≥100", ("−5.25", "37.5", "100")),
    ("code\u200bJ3X4P2 \u200eK9Z8\u200f INC-20391\ufeff A1\xad", ("J3X4P2", "K9Z8", "INC-20391", "A1")),
    ("INC-\u200b20391 J3X4\u200bP2 https://exa\u200bmple.org 12\u20603456", ()),
    ("https://a.org/1,https://b.org/2", ("https://a.org/1", "https://b.org/2")),
    ("see https://example.org/a?b=1&c=2</s><|im_end|>", ("https://example.org/a?b=1&c=2",)),
    ("", ()),
]


@pytest.mark.parametrize(("text", "expected"), PICKED, ids=[text[:20] or "empty" for text, _ in PICKED])
def test_auto_picks_what_its_table_says(text: str, expected: tuple[str, ...]) -> None:
    """Codes, e-mails, URLs, paths, dates and numbers, without the marks around them; no words, no small counts.

    In any script and markup; where a string might be cut off, none.
    """
    assert expected == auto(text, MAX_LITERALS_BYTES)


def test_auto_serves_codes_first_and_keeps_the_texts_order() -> None:
    """Where the budget ends numbers give way to codes, and what is left stands as in the text."""
    text = "4711 2024-05-17 J3X4P2 1,204 K9Z8"
    assert ("J3X4P2", "K9Z8") == auto(text, 11)
    assert ("J3X4P2",) == auto(text, 10)
    assert ("4711", "J3X4P2", "K9Z8") == auto(text, 16)
    assert ("2024-05-17", "J3X4P2", "K9Z8") == auto(text, 22)
    assert () == auto(text, 0)
    with pytest.raises(ConfigError, match="expected a budget of 0 to 1024 bytes, got 1025"):
        auto(text, 1025)


@THOROUGH
@given(st.text("aZ09-_./:@,$ \n\té€\ue000\u2028()[]文。\u200b", max_size=300), st.integers(0, MAX_LITERALS_BYTES))
def test_whatever_auto_picks_can_be_sent_and_occurs_in_the_text(text: str, budget: int) -> None:
    """Any text gives literals that a message takes, within the budget, each of them in the text."""
    picked = auto(text, budget)
    assert len("\n".join(picked).encode()) <= budget or not picked
    assert all(each in text for each in picked)
    message = Message(bytes(8), b"!", literals=picked)
    assert message == Message.from_bytes(message.to_bytes())


@pytest.mark.parametrize(
    "hostile",
    ["a" * 10**6, "-._" * 10**5 + "a", "@." * 10**5, "a1-" * 10**5, "1," * 10**5, "a " * 10**5]
    + ["文a" * 10**5, "a\u200b" * 10**5, ")" * 10**6, ":a" * 10**5, "a://" * 10**5, "](" * 10**5, ",a" * 10**5],
)
def test_auto_takes_time_in_proportion_to_the_text(hostile: str) -> None:
    """No text makes an expression run away: a megabyte takes less than two seconds of a processor."""
    start_s = time.process_time()
    auto(hostile)
    assert time.process_time() - start_s < 2


def test_a_code_is_in_every_dossiers_literals_at_a_few_bytes() -> None:
    """Of the embedded task's dossiers ``auto`` finds the code, and a message grows by 20 bytes at most on average."""
    cases = list(case_files("test", 5, 50))
    grown = []
    for case in cases:
        picked = auto(case.context)
        codes = [question.answer for question in case.questions if "code" in question.text.lower()]
        assert set(codes) <= set(picked)
        grown.append(len(Message(bytes(8), bytes(80), literals=picked).to_bytes()) - 100)
    assert sum(grown) / len(grown) <= 20


def test_literals_cost_their_bytes_and_one_each(small: Any) -> None:
    """A short one costs one byte more than itself; without any, a message has not one byte more."""
    plain = small.sender.encode(TEXT)
    assert len(plain) + 1 + len("J3X4P2") == len(small.sender.encode(TEXT, literals=["J3X4P2"]))
    assert len(plain) + 1 + len("J3X4P2\n2024-05-17") == len(small.sender.encode(TEXT, literals="auto"))
    nothings: tuple[Any, ...] = (None, [], ())
    for nothing in nothings:
        assert plain == small.sender.encode(TEXT, literals=nothing)
    assert plain == small.sender.encode(TEXT)


def test_what_is_alike_is_compressed_and_what_is_not_is_left_alone() -> None:
    """zstd is used only where the message becomes shorter by it."""
    alike = tuple(f"INC-2024-{n:04d}" for n in range(70))
    wire = Message(bytes(8), b"!", literals=alike).to_bytes()
    assert len(wire) < 21 + len("\n".join(alike)) // 2
    assert alike == Message.from_bytes(wire).literals
    short = Message(bytes(8), b"!", literals=("ab",)).to_bytes()
    assert b"\xa2ab" in short
    assert 24 == len(short)


def test_a_senders_list_is_taken_each_once_in_order_and_need_not_occur(small: Any) -> None:
    """A list may repeat itself and name what the text does not; the receiver's memory carries it, immutable."""
    message = small.sender.encode(TEXT, literals=["2024-05-17", "T-1", "2024-05-17"])
    memory = small.receiver.decode(message)
    assert ("2024-05-17", "T-1") == memory.literals
    assert () == small.receiver.decode(small.sender.encode(TEXT)).literals
    with pytest.raises(AttributeError, match="immutable"):
        memory._literals = ()
    assert "J3X4P2" not in repr(memory.beside(LITERALS))
    assert ("2024-05-17", "T-1") == memory.literals


@pytest.mark.parametrize(
    ("literals", "fragment"),
    [
        ("J3X4P2", "expected literals as 'auto' or a list of str, got a str of 6 characters: put it in a list"),
        (["a", ""], "expected literal 1 without spaces around it, got an empty one"),
        (["a", 7], "expected literal 1 as a str, got int"),
        ([["a"]], "expected literals as 'auto' or a list of str, got list"),
        (7, "expected literals as 'auto' or a list of str, got int"),
        (["two\nlines"], "expected literal 0 as one line of text, got U+000A at character 3"),
        ([MEMORY_HERE], "got U+E000 at character 0"),
        (["x" * 1025], "expected literals of at most 1024 bytes together, got 1025: send fewer"),
    ],
)
def test_literals_that_cannot_be_sent_are_the_callers_fault(small: Any, literals: Any, fragment: str) -> None:
    """What is no list of lines is refused by its place in the list, before anything is computed of it."""
    with pytest.raises(EncodeError) as caught:
        small.sender.encode(TEXT, literals=literals)
    assert fragment in str(caught.value)


def test_auto_reads_what_chat_messages_say_and_not_their_template(small: Any) -> None:
    """A code at the end of a turn is whole, and nothing of the template is picked."""
    turns = [
        {"role": "user", "content": "The code is J3X4P2"},
        {"role": "assistant", "content": "Noted K9Z8, at https://example.org/a"},
    ]
    expected = ("J3X4P2", "K9Z8", "https://example.org/a")
    for message in (small.sender.encode(turns, literals="auto"), *small.sender.encode_batch([turns], literals="auto")):
        assert expected == Message.from_bytes(message).literals


def test_a_literal_that_spells_a_control_token_is_refused(small: Any) -> None:
    """The end of a turn in a literal would let whoever wrote the document speak for somebody else."""
    end = small.receiver.tokenizer.eos_token
    message = small.sender.encode("Mara owns the ticket.", literals=[f"A9{end}yes"])
    with pytest.raises(DecodeError, match="control token"):
        small.receiver.decode(message)


def test_auto_needs_a_text(small: Any) -> None:
    """Ids and states alone say nothing that could be picked; a list goes with them."""
    ids = small.sender.tokenizer(TEXT).input_ids
    with pytest.raises(EncodeError, match="expected a text for literals='auto', got ids or states alone"):
        small.sender.encode(ids, literals="auto")
    assert small.sender.encode(ids, literals=["J3X4P2"]) == small.sender.encode(TEXT, literals=["J3X4P2"])


def test_a_batch_picks_for_each_source(small: Any) -> None:
    """``encode_batch`` gives what ``encode`` gives one by one; a list for a whole batch is refused, a source named."""
    texts = [TEXT, "Nothing to pick.", "K9Z8 and /etc/hosts."]
    one_by_one = [small.receiver.decode(small.sender.encode(text, literals="auto")).literals for text in texts]
    together = [small.receiver.decode(wire).literals for wire in small.sender.encode_batch(texts, literals="auto")]
    assert [LITERALS, (), ("K9Z8", "/etc/hosts")] == one_by_one == together
    with pytest.raises(ConfigError, match="expected literals as 'auto' or None for a batch, got list"):
        small.sender.encode_batch(texts, literals=["J3X4P2"])
    states = Context(states=small.sender.read(TEXT).states)
    with pytest.raises(EncodeError, match="source 1: expected a text for literals='auto'"):
        small.sender.encode_batch([TEXT, states], literals="auto")


def test_sealed_literals_are_covered_by_the_mac_and_not_shown(small: Any) -> None:
    """They travel under the seal; a description counts their bytes and does not say them."""
    key = bytes(range(32))
    sender = Sender(small.sender.model, small.sender.tokenizer, small.codec, key=key)
    end = Receiver(small.receiver.model, small.receiver.tokenizer, small.codec, key=key, allow_unmeasured=True)
    wire = sender.encode(TEXT, literals="auto")
    assert LITERALS == end.decode(wire).literals
    shown = describe(wire, key=key)
    assert [("literals header", 1), ("literals", 17)] == [(part.name, part.size_bytes) for part in shown.parts[10:12]]
    assert "J3X4P2" not in repr(shown)


# --- where the receiver reads them --------------------------------------------------------------------------------


def rows(receiver: Receiver, memories: Any, question: Any, contexts: Sequence[str | None]) -> torch.Tensor:
    """The prompt as it should be: the pieces of that layout with each memory's vectors between."""
    held = [memory.vectors for memory in memories if isinstance(memory, SoftPrompt)]
    texts = [embed(receiver.model, ids) for ids in pieces(receiver.tokenizer, question, contexts)]
    parts = texts[:1]
    for vectors, after in zip(held, texts[1:], strict=True):
        parts += [vectors, after]
    return torch.cat(parts)


def test_without_literals_the_prompt_is_what_it_was(small: Any) -> None:
    """A memory without literals, and none at all, give the bits of the prompt that had no room for any."""
    memory = small.receiver.decode(small.sender.encode(TEXT))
    for memories, contexts in (([memory], [None]), ([TextMemory(TEXT)], [TEXT]), ([None], [""]), ([], [])):
        expected = rows(small.receiver, memories, QUESTION, contexts)
        assert torch.equal(expected, small.receiver.prompt(memories, QUESTION))


def test_literals_stand_as_one_line_right_after_their_memory(small: Any) -> None:
    """The prompt is that of memory, an empty line, the line, an empty line and the question, in one user's turn."""
    bare = small.receiver.decode(small.sender.encode(TEXT))
    memory = bare.beside(LITERALS)
    said = line(LITERALS)
    assert "Verbatim: J3X4P2 | 2024-05-17" == said
    marked = f"{MEMORY_HERE}{GAP}{said}{GAP}{QUESTION}"
    assert torch.equal(small.receiver.prompt(bare, marked), small.receiver.prompt(memory, QUESTION))
    text = TextMemory(TEXT, literals=LITERALS)
    spoken = TextMemory(f"{TEXT}{GAP}{said}")
    assert torch.equal(small.receiver.prompt(spoken, QUESTION), small.receiver.prompt(text, QUESTION))
    assert len(small.receiver.prompt(bare, QUESTION)) < len(small.receiver.prompt(memory, QUESTION))


def test_each_memory_of_several_has_its_own_line(small: Any) -> None:
    """Of several memories, vectors and text, each line follows its own; who has no literals has no line."""
    first = small.receiver.decode(small.sender.encode(TEXT))
    memories = [first.beside(("A1",)), first, TextMemory("Text.", literals=("B2",)), None]
    marked = GAP.join([MEMORY_HERE, line(["A1"]), MEMORY_HERE, "Text.", line(["B2"]), QUESTION])
    expected = small.receiver.prompt([first, first], marked)
    assert torch.equal(expected, small.receiver.prompt(memories, QUESTION))


def test_literals_follow_the_markers_of_chat_messages(small: Any) -> None:
    """Where a chat marks the places, each line stands right after its marker; contents that hold none stay."""
    first = small.receiver.decode(small.sender.encode(TEXT))
    chat = [
        {"role": "user", "content": f"One: {MEMORY_HERE} and two: {MEMORY_HERE}."},
        {"role": "user", "content": QUESTION},
    ]
    written = [{**chat[0], "content": f"One: {MEMORY_HERE} and two: {MEMORY_HERE}{GAP}{line(['B2'])}."}, chat[1]]
    expected = small.receiver.prompt([first, first], written)
    assert torch.equal(expected, small.receiver.prompt([first, first.beside(("B2",))], chat))
    with pytest.raises(EncodeError, match="expected as many markers as memories, got 2 and 1"):
        small.receiver.prompt(first.beside(("B2",)), chat)
    assert f"One: {MEMORY_HERE} and two: {MEMORY_HERE}." == chat[0]["content"]


def test_messages_with_literals_answer_and_prefill(small: Any) -> None:
    """``generate`` takes the message as it comes, a pre-filled cache of it too, with the answer of its memory."""
    message = small.sender.encode(TEXT, literals="auto")
    memory = small.receiver.decode(message)
    answer = small.receiver.generate(message, QUESTION, max_new_tokens=4)
    assert answer == small.receiver.generate(memory, QUESTION, max_new_tokens=4)
    cache = small.receiver.prefill(message)
    assert answer == small.receiver.generate(message, QUESTION, max_new_tokens=4, cache=cache)


def test_the_budget_of_auto_is_less_than_a_payload() -> None:
    """What ``auto`` adds is bounded by its constant, whatever the text."""
    text = " ".join(f"K{n}Z{n}" for n in range(500))
    assert AUTO_BYTES - 6 <= len("\n".join(auto(text)).encode()) <= AUTO_BYTES < 80


@pytest.mark.parametrize(
    "text",
    [
        "costs 1\u202f200,50 EUR",
        "costs 1\u00a0200,50 EUR",
        "costs 1 200,50 EUR",
        "code INC\xadA-20391",
        "code INC\u201320391",
        "call +49 30 1234567 now",
        "call tel:+49 30 1234567",
        "2024年05月17日",
    ],
)
def test_a_part_of_something_longer_is_not_picked(text: str) -> None:
    """Amounts and telephones with spaces in them, words with a hyphen that is none, dates in Han: none, not a piece."""
    assert () == auto(text)


def test_signs_of_html_end_words_and_stand_for_one_in_urls() -> None:
    """What an address is in a page's source is not what it is for a reader."""
    assert ("INC-20391", "2024-05-17") == auto("INC-20391&nbsp;2024-05-17")
    assert ("mara@example.org",) == auto("&lt;mara@example.org&gt;")
    assert ("https://x.org/a?b=1&c=2",) == auto("<a href='https://x.org/a?b=1&amp;c=2'>")


def test_long_words_take_no_longer_than_their_length() -> None:
    """No expression goes over a text without spaces again and again."""
    started = time.perf_counter()
    auto("a\u2013" * 100_000 + "1 " + "1\u00a0" * 100_000 + "+" * 100_000)
    assert time.perf_counter() - started < 10
