"""How a receiver takes memory: ways to generate, several memories, chat messages, several codecs, an existing cache.

Memory is made of real token embeddings throughout, so that transformers itself says what is right: ``model.generate``
on the same tokens as text.
"""

import re
import runpy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache, TextStreamer
from transformers.cache_utils import DynamicLayer

from ilcp import Memory, Receiver, SoftPrompt, TextMemory
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError, UnmeasuredError
from ilcp.message import Message
from ilcp.models.forward import embed
from ilcp.models.prompt import MEMORY_HERE, answer_ids, layout, pieces, text_ids
from ilcp_codecs.text import PlainCodec
from tests.chat_templates import CHAT_TEMPLATES, CLOSINGS, KINDS, tokenizer_of
from tests.families import build
from tests.helpers import make_tokenizer, text_of, vectors_of

DOCUMENT = "The ticket is owned by Mara. The affected region is Bergen."
OTHER = "Jonas saw it first, in Oslo."
QUESTION = "Which region is affected?"
TOKENIZER = make_tokenizer(300)
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": dict(do_sample=True, temperature=0.8, top_p=0.9),
    "beams": dict(num_beams=3),
    "beams that stop early": dict(num_beams=4, early_stopping=True, length_penalty=0.2),
}


def receiver_of(family: str, tokenizer: Any = TOKENIZER, **options: Any) -> Receiver:
    """A random receiver whose codec fits every model."""
    return Receiver(build(family, len(tokenizer)), tokenizer, PlainCodec(), allow_unmeasured=True, **options)


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "gpt2"])
def receiver(request) -> Receiver:
    """One receiver per way to place tokens: rotated, rotated with sliding windows, learned."""
    return receiver_of(request.param)


@pytest.fixture(scope="module")
def llama() -> Receiver:
    """For what does not depend on the family."""
    return receiver_of("llama")


def ids_of(text: str) -> list[int]:
    """Token ids of a text alone."""
    return list(TOKENIZER(text, add_special_tokens=False).input_ids)


def spelled(receiver: Receiver, text: str = DOCUMENT) -> Memory:
    """Memory made of the text's own embeddings."""
    return SoftPrompt(embed(receiver.model, ids_of(text)))


def written(receiver: Receiver, row: tuple[int, ...], tokens: int = 12, **options: Any) -> str:
    """What transformers itself answers to a prompt of token ids."""
    ids = torch.tensor([row])
    options = {"do_sample": False, "pad_token_id": 1, "attention_mask": torch.ones_like(ids), **options}
    out = receiver.model.generate(ids, max_new_tokens=tokens, **options)
    return str(TOKENIZER.decode(out[0, len(row) :], skip_special_tokens=True)).strip()


def snapshot(cache: Any) -> list[torch.Tensor]:
    """A copy of all keys and values."""
    return [tensor.clone() for layer in cache.layers for tensor in (layer.keys, layer.values)]


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_generate_does_what_it_does_to_text(receiver, way: str) -> None:
    """Greedy, seeded sampling and beams give transformers' own answer to the same tokens as text, cached or not."""
    row, memory = text_ids(TOKENIZER, DOCUMENT, QUESTION), spelled(receiver)
    cache = receiver.prefill(memory)
    torch.manual_seed(5)
    expected = written(receiver, row, **WAYS[way])
    for options in ({}, {"cache": cache}):
        torch.manual_seed(5)
        assert expected == receiver.generate(memory, QUESTION, max_new_tokens=12, **options, **WAYS[way])
    assert expected


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_a_batch_of_different_memories_answers_row_by_row(receiver, way: str) -> None:
    """Rows with memories of different lengths, text or nothing each get the answer that they get alone."""
    sources = [spelled(receiver), spelled(receiver, OTHER), TextMemory(OTHER), None]
    together = receiver.answers([(source, QUESTION) for source in sources], max_new_tokens=8, **WAYS[way])
    rows = [text_ids(TOKENIZER, text, QUESTION) for text in (DOCUMENT, OTHER, OTHER, "")]
    assert [written(receiver, row, 8, **WAYS[way]) for row in rows] == together


class Heard(TextStreamer):
    """Keeps what is streamed."""

    def __init__(self, **options: Any):
        super().__init__(TOKENIZER, skip_special_tokens=True, **options)
        self.parts: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """One piece more."""
        self.parts.append(text)


def test_streaming_says_the_answer_piece_by_piece(receiver) -> None:
    """The streamer hears the answer that is returned, and that of the text, whether or not it skips the prompt."""
    expected, memory = Heard(skip_prompt=True), spelled(receiver)
    written(receiver, text_ids(TOKENIZER, DOCUMENT, QUESTION), streamer=expected)
    for skip in (True, False):
        heard = Heard(skip_prompt=skip)
        answer = receiver.generate(memory, QUESTION, max_new_tokens=12, streamer=heard)
        assert answer == "".join(heard.parts).strip() == "".join(expected.parts).strip()
    with pytest.raises(ConfigError, match="expected one answer to stream, got 2"):
        receiver.answers([(memory, QUESTION)] * 2, streamer=Heard())


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(receiver) -> None:
    """The answer is the text's own up to the stop string, alone, in a batch and with several stop strings."""
    row, memory = text_ids(TOKENIZER, DOCUMENT, QUESTION), spelled(receiver)
    whole = written(receiver, row)
    stop = next(char for char in whole[2:] if char.isascii() and char.isprintable() and not char.isspace())
    raw = written(receiver, row, stop_strings=[stop], tokenizer=TOKENIZER)
    assert stop in raw
    assert len(raw) < len(whole)
    expected = whole.partition(stop)[0].strip()
    for stops in (stop, [stop], ["never said", stop]):
        assert expected == receiver.generate(memory, QUESTION, max_new_tokens=12, stop_strings=stops)
    other = receiver.answers([(memory, QUESTION), (None, QUESTION)], max_new_tokens=12, stop_strings=[stop])
    assert [expected, written(receiver, text_ids(TOKENIZER, "", QUESTION)).partition(stop)[0].strip()] == other


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (dict(inputs_embeds=None), "inputs_embeds: the prompt is made from the message"),
        (dict(input_ids=None, attention_mask=None), "attention_mask, input_ids"),
        (dict(max_length=40), "pass max_new_tokens="),
        (dict(past_key_values=None), "pass it as cache="),
        (dict(num_return_sequences=2), "the answer is one str"),
        (dict(generation_config=None), "pass its fields one by one"),
        (dict(prompt_lookup_num_tokens=2), "needs a prompt of token ids"),
        (dict(guidance_scale=1.5, negative_prompt_ids=None), "guidance_scale, negative_prompt_ids"),
        (dict(custom_generate="a/b"), "code from elsewhere does not know"),
        (dict(encoder_repetition_penalty=2.0), "encoder_repetition_penalty: it needs a prompt of token ids"),
        (dict(encoder_no_repeat_ngram_size=2), "encoder_no_repeat_ngram_size: it needs a prompt of token ids"),
        (dict(adapter_names=["a"]), "the codec is for the adapters that are active"),
        (dict(no_such_option=1), r"generate takes, got no_such_option: .*`model_kwargs` are not used"),
        (dict(num_beams=2, early_stopping=7), "got early_stopping, num_beams: .*early_stopping"),
        (dict(max_new_tokens=0), "max_new_tokens to be a whole number from 1, got 0"),
        (dict(max_new_tokens=None), "whole number from 1, got None"),
    ],
)
def test_options_that_the_receiver_decides_are_refused_by_name(llama, option, text: str) -> None:
    """What would contradict the prompt or the answer's form is refused with what to do instead."""
    with pytest.raises(ConfigError, match=text):
        llama.generate(None, QUESTION, **option)
    with pytest.raises(ConfigError, match=text):
        llama.answers([(None, QUESTION)], **option)


@pytest.mark.parametrize(
    "option",
    [
        {"cache_implementation": "offloaded"},
        {"cache_implementation": "offloaded_static"},
        {"cache_implementation": "quantized"},
        {"streamer": "stdout"},
        {"logits_processor": [3]},
        {"nonsense": 1},
    ],
    ids=lambda option: "-".join(map(str, option.values())),
)
def test_options_that_transformers_cannot_do_here_are_named(llama, option) -> None:
    """A cache that wants a GPU or a package, and objects that are none of what is called for: one sentence each."""
    if torch.cuda.is_available() and "offloaded" in str(option):
        pytest.skip("works with a GPU")
    with pytest.raises(ConfigError, match=f"options that transformers' generate takes, got {next(iter(option))}: .+"):
        llama.generate(None, QUESTION, max_new_tokens=2, **option)


def test_batches_and_caches_that_cannot_be_are_refused(llama) -> None:
    """A batch of none, a cache for many answers, and a cache beside a kind of cache each get a sentence."""
    memory = spelled(llama)
    for batch in (0, -1, 1.5):
        for ask in (lambda n: llama.answers([(None, "")], batch=n), lambda n: llama.score([(None, "", "a")], batch=n)):
            with pytest.raises(ConfigError, match=f"expected batch to be a whole number from 1, got {batch}"):
                ask(batch)
    cache = llama.prefill(memory)
    with pytest.raises(ConfigError, match="cache: it is one prompt's; pass it to generate"):
        llama.answers([(memory, QUESTION)], cache=cache)
    with pytest.raises(ConfigError, match="cache= and cache_implementation='static': leave one of them out"):
        llama.generate(memory, QUESTION, cache=cache, cache_implementation="static")


LEAKS: list[dict[str, Any]] = [
    dict(num_beams=3, num_return_sequences=2),
    dict(return_dict_in_generate=True, output_scores=True),
    dict(repetition_penalty=9.0),
    dict(no_repeat_ngram_size=1),
    dict(stop_strings=["e", "a", "o", " "]),
    dict(do_sample=True, temperature=3.0),
    dict(max_time=0.0),
    dict(suppress_tokens=list(range(40, 200))),
    dict(forced_eos_token_id=1),
]


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: "-".join(leak))
def test_the_models_own_generation_config_changes_no_answer(leak) -> None:
    """Without any option the answer is the greedy one, and one str, whatever the model's configuration asks for; what
    the caller asks for is done as without that configuration."""
    receiver = receiver_of("llama")
    memory = spelled(receiver)
    ways: tuple[dict[str, Any], ...] = ({}, dict(num_beams=3), dict(stop_strings=["e"]))
    expected = [receiver.generate(memory, QUESTION, max_new_tokens=8, **way) for way in ways]
    for name, value in leak.items():
        setattr(receiver.model.generation_config, name, value)
    assert expected == [receiver.generate(memory, QUESTION, max_new_tokens=8, **way) for way in ways]
    cache = receiver.prefill(memory)
    assert expected[0] == receiver.generate(memory, QUESTION, max_new_tokens=8, cache=cache)


def test_any_of_the_models_end_tokens_ends_an_exact_answer() -> None:
    """Where the closing token is one of the model's ends, another of them counts; where it is none, only itself."""
    receiver = receiver_of("llama")
    row = torch.tensor([text_ids(TOKENIZER, "", QUESTION)])
    mask = torch.ones_like(row)
    said = receiver.model.generate(row, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=1)
    said = said[0, row.shape[1] :].tolist()
    texts = [TOKENIZER.decode(said[:end]) for end in range(1, len(said))]
    end = next(at for at, text in enumerate(texts, 1) if ids_of(text) == said[:at] and said[at] not in said[:at])
    (answer, stop), ends = (texts[end - 1], said[end]), receiver.model.generation_config
    for declared, expected in ((1, False), ([1, stop], True), ([stop], False)):
        ends.eos_token_id = declared
        (score,) = receiver.score([(None, QUESTION, answer)])
        assert expected == score.exact
    ends.eos_token_id = [1, stop]
    assert answer + TOKENIZER.decode([stop]) == receiver.generate(None, QUESTION, max_new_tokens=20)
    assert not receiver.score([(None, QUESTION, texts[end - 1] + "x")])[0].exact


def test_several_memories_stand_as_several_texts_would(receiver) -> None:
    """A sequence of memories, and a mix of vectors and text, is the prompt of the texts, an empty line between them."""
    expected = embed(receiver.model, text_ids(TOKENIZER, f"{DOCUMENT}\n\n{OTHER}", QUESTION))
    vectors = [spelled(receiver), spelled(receiver, OTHER)]
    texts = [TextMemory(DOCUMENT), TextMemory(OTHER)]
    for memories in (vectors, texts, [vectors[0], texts[1]], [texts[0], vectors[1]], [vectors[0], None, texts[1]]):
        assert torch.equal(expected, receiver.prompt(memories, QUESTION))
    answer = receiver.generate(vectors, QUESTION, max_new_tokens=8)
    assert answer == receiver.generate(None, QUESTION, context=[DOCUMENT, OTHER], max_new_tokens=8)
    assert answer == receiver.generate(vectors, QUESTION, max_new_tokens=8, cache=receiver.prefill(vectors))
    assert answer != receiver.generate(vectors[::-1], QUESTION, max_new_tokens=8)
    (score,) = receiver.score([(vectors, QUESTION, "Bergen")])
    assert score == receiver.score([(texts, QUESTION, "Bergen")])[0]


CHAT = [
    {"role": "system", "content": f"Known: {MEMORY_HERE}"},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": f"And: {MEMORY_HERE}\n\n{QUESTION}"},
]


def test_markers_say_where_the_memories_stand(receiver) -> None:
    """Memories stand at the markers in order, as texts do, in any message; nothing stands there without a message."""
    contents = [f"Known: {DOCUMENT}", "Hello.", "Yes?", f"And: {OTHER}\n\n{QUESTION}"]
    chat = [{**message, "content": content} for message, content in zip(CHAT, contents, strict=True)]
    rendered = TOKENIZER.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    expected = tuple(ids_of(rendered))
    texts = [TextMemory(DOCUMENT), TextMemory(OTHER)]
    prompt = receiver.prompt([spelled(receiver, f" {DOCUMENT}"), spelled(receiver, f" {OTHER}")], CHAT)
    assert torch.equal(embed(receiver.model, expected), prompt)
    assert torch.equal(embed(receiver.model, expected), receiver.prompt(texts, CHAT))
    assert written(receiver, expected) == receiver.generate(None, CHAT, context=[DOCUMENT, OTHER], max_new_tokens=12)
    nothing = TOKENIZER.decode(pieces(TOKENIZER, CHAT, [])[0])
    assert rendered.replace(DOCUMENT, "").replace(OTHER, "") == nothing
    assert [CHAT[0]["content"], CHAT[3]["content"]] == [f"Known: {MEMORY_HERE}", f"And: {MEMORY_HERE}\n\n{QUESTION}"]


def test_without_a_marker_memories_open_the_last_user_message(receiver) -> None:
    """Chat messages without a marker are asked as a question is, behind the earlier turns; a lone one is a text's."""
    memory = spelled(receiver)
    lone = [{"role": "user", "content": QUESTION}]
    assert torch.equal(receiver.prompt(memory, QUESTION), receiver.prompt(memory, lone))
    turns: list[dict[str, Any]] = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": None}, *lone]
    opened = [turns[0], {**turns[1], "content": ""}, {"role": "user", "content": f"{DOCUMENT}\n\n{QUESTION}"}]
    rendered = TOKENIZER.apply_chat_template(opened, tokenize=False, add_generation_prompt=True)
    assert torch.equal(embed(receiver.model, ids_of(rendered)), receiver.prompt(memory, turns))
    inside = f"Given {MEMORY_HERE}, which?"
    assert tuple(ids_of(f"<|user|>Given {DOCUMENT}, which?<|assistant|>")) == text_ids(TOKENIZER, DOCUMENT, inside)


def test_chats_without_a_place_are_refused(llama) -> None:
    """Too many or too few markers, no user's text, no template: each text says what to do."""
    memory = spelled(llama)
    for memories in ([memory], [memory] * 3, [TextMemory(OTHER)]):
        with pytest.raises(EncodeError, match=rf"as many markers as memories, got 2 and {len(memories)}: put ilcp"):
            llama.generate(memories, CHAT)
    with pytest.raises(EncodeError, match=r"a text of the user's, where the memory can stand, got \['assistant'\]"):
        llama.generate(memory, [{"role": "assistant", "content": "Yes?"}])
    with pytest.raises(EncodeError, match="part 0 of message 0 as a text"):
        llama.generate(memory, [{"role": "user", "content": [{"type": "image"}]}])
    plain = make_tokenizer(300, template=None)
    with pytest.raises(EncodeError, match=r"no chat template, got chat messages: set tokenizer\.chat_template"):
        receiver_of("llama", tokenizer=plain).generate(memory, CHAT)
    with pytest.raises(ConfigError, match="got str"):
        llama.generate([memory, "a text"], QUESTION)
    with pytest.raises(DecodeError, match="width 31"):
        llama.generate([memory, SoftPrompt(torch.zeros(1, 31))], QUESTION)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ([{"role": "user"}], "message 0 without content"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "message 1 without role"),
        (["hi"], "got str as message 0"),
        ({"role": "user", "content": "a"}, "got a single one: put it into a list"),
        (None, "as a str or as chat messages, got NoneType"),
        (5, "got int"),
        (b"hi", "got bytes"),
        ([], "expected chat messages, got none"),
        ([{"role": "user", "content": 5}], "the content of message 0 as a text or a list of text parts, got int"),
    ],
)
def test_questions_that_are_none_are_refused(llama, question, text: str) -> None:
    """Whatever is neither a text nor chat messages gets a sentence, with the message by its index."""
    for tokenizer in (TOKENIZER, make_tokenizer(300, template=None)):
        with pytest.raises(EncodeError, match=text if tokenizer.chat_template else "expected"):
            pieces(tokenizer, question, [None])
    with pytest.raises(EncodeError, match=text):
        llama.generate(spelled(llama), question)


@pytest.mark.parametrize(
    "mistake", ["{{ messages[0]['content'] + 1 }}", "{{ messages[7].x.y }}", "{{ 1 / 0 }}", "{% if"]
)
def test_whatever_a_template_raises_is_an_encode_error(mistake: str) -> None:
    """A template's own mistakes come out with the roles, and do not keep an answer from being closed."""
    tokenizer = make_tokenizer(300, template=mistake)
    with pytest.raises(EncodeError, match=r"the chat template takes, got roles \['user'\]: \w+: "):
        layout(tokenizer, QUESTION)
    assert 1 == answer_ids(tokenizer, "Bergen")[-1]


def test_tool_calls_need_no_content(llama) -> None:
    """A message that calls a tool may lack a content, as chat templates allow."""
    turns: list[dict[str, Any]] = [{"role": "assistant", "tool_calls": []}, {"role": "user", "content": QUESTION}]
    assert QUESTION in TOKENIZER.decode(pieces(TOKENIZER, turns, [None])[1])


def test_a_marker_in_a_memorys_own_text_is_refused(llama) -> None:
    """Text that was handed over cannot open a place for another memory: the peer's is a DecodeError, the caller's an
    EncodeError."""
    spoilt = f"Mara {MEMORY_HERE}"
    message = Message(llama.codec.trained.codec_id(llama.codec.spec), spoilt.encode()).to_bytes()
    for ask in (llama.decode, lambda m: llama.generate([m, spelled(llama)], QUESTION)):
        with pytest.raises(DecodeError, match=r"got one with ilcp\.MEMORY_HERE in it"):
            ask(message)
    for contexts in (spoilt, ["Oslo", spoilt]):
        with pytest.raises(EncodeError, match=f"got context {len(contexts) - 1 if contexts is not spoilt else 0} with"):
            llama.generate(None, QUESTION, context=contexts)


def test_what_is_no_codec_is_refused(llama) -> None:
    """A name, a path or nothing in place of a codec is named, with how to load one."""
    wrong: tuple[tuple[Any, str], ...] = (
        ("my-codec", "'my-codec'"),
        (None, "None"),
        ([llama.codec, "b"], "'b'"),
        (5, "int"),
    )
    for codec, shown in wrong:
        with pytest.raises(ConfigError, match=rf"expected a codec, got {shown}: load it with ilcp\.load"):
            Receiver(llama.model, TOKENIZER, codec, allow_unmeasured=True)


class Named(PlainCodec):
    """A codec of an identity of its own, whose memories say it."""

    def decode(self, payload: bytes) -> Memory:
        """The payload's text behind the identity."""
        return TextMemory(f"{self.trained.weights}: {text_of(super().decode(payload))}")


def test_several_codecs_serve_one_receiver() -> None:
    """The message's codec id picks the codec; an unknown one is refused with all that are known."""
    model = build("llama", len(TOKENIZER))
    codecs = [Named(weights="a"), Named(weights="b", payload_bytes=80)]
    ids = [codec.trained.codec_id(codec.spec) for codec in codecs]
    receiver = Receiver(model, TOKENIZER, codecs, allow_unmeasured=True)
    assert (codecs[0], tuple(codecs)) == (receiver.codec, receiver.codecs)
    messages = [Message(number, payload).to_bytes() for number, payload in zip(ids, (b"Mara", b"Oslo"), strict=True)]
    assert ["a: Mara", "b: Oslo"] == [text_of(receiver.decode(message)) for message in messages]
    assert receiver.generate(messages, "Who?") == receiver.generate(None, "Who?", context=["a: Mara", "b: Oslo"])
    with pytest.raises(
        IdentityError, match=rf"{ids[0].hex()} \(text-plain\) or {ids[1].hex()} \(text-plain\), got one"
    ):
        receiver.decode(Message(bytes(8), b"Mara").to_bytes())
    with pytest.raises(IdentityError, match=ids[0].hex()):
        Receiver(model, TOKENIZER, codecs[:1], allow_unmeasured=True).decode(messages[1])
    with pytest.raises(ConfigError, match="expected a codec or several, got none"):
        Receiver(model, TOKENIZER, [])


def test_a_peers_overlong_text_is_the_peers_fault_and_names_its_item() -> None:
    """Text that leaves no question room is a DecodeError, and in a batch each error says whose item it is."""
    model, codec = build("llama", len(TOKENIZER)), PlainCodec()
    receiver = Receiver(model, TOKENIZER, codec, allow_unmeasured=True)
    number = codec.trained.codec_id(codec.spec)
    short, long = (Message(number, text).to_bytes() for text in (b"Mara", b"word " * 12_000))
    with pytest.raises(DecodeError, match=r"expected a memory of text of at most .* drop it"):
        receiver.decode(long)
    for wrong, error in ((long, DecodeError), (short[:-1], DecodeError), (TextMemory("word " * 12_000), EncodeError)):
        for call in (
            lambda wrong=wrong: receiver.answers([(short, "Who?"), (wrong, "Who?")]),
            lambda wrong=wrong: receiver.answers([(short, "Who?"), (wrong, "Who?")], do_sample=True),
            lambda wrong=wrong: receiver.score([(short, "Who?", "Mara"), (wrong, "Who?", "Mara")]),
        ):
            with pytest.raises(error, match=r"^item 1: expected"):
                call()


def test_a_peers_overlong_literals_are_the_peers_fault(small) -> None:
    """Literals that leave no question room are a DecodeError too, beside vectors and beside text."""
    literals = tuple(f"A{number}-{number * 7919}" for number in range(80))
    codec = PlainCodec()
    reader = Receiver(small.receiver.model, small.receiver.tokenizer, codec, allow_unmeasured=True)
    with pytest.raises(DecodeError, match=r"expected literals beside a memory of at most 256 tokens .* drop it"):
        small.receiver.decode(small.sender.encode("Mara owns it.", literals=literals))
    with pytest.raises(DecodeError, match=r"expected a memory of text of at most 256 tokens .* drop it"):
        reader.decode(Message(codec.trained.codec_id(codec.spec), b"Mara", literals=literals).to_bytes())
    memory = small.receiver.decode(small.sender.encode("Mara owns it."))
    spent = {size: len(small.receiver.prompt(memory.beside(("7" * size,)), "")) for size in range(1, 300)}
    most = max(size for size, tokens in spent.items() if tokens < 256)
    over = min(size for size, tokens in spent.items() if tokens >= 260)  # the empty line between them is not counted
    assert spent[over] - 256 < len(vectors_of(memory))  # so that its vectors decide
    assert small.receiver.decode(small.sender.encode("Mara owns it.", literals=["7" * most]))
    with pytest.raises(DecodeError, match="literals beside a memory"):
        small.receiver.decode(small.sender.encode("Mara owns it.", literals=["7" * over]))


def test_each_of_several_codecs_is_checked(small, pair) -> None:
    """A codec for another receiver, or one without proof, is refused behind a good one too."""
    model, tokenizer, good = pair.receiver.model, pair.receiver.tokenizer, pair.receiver.codec
    assert Receiver(model, tokenizer, [good]).codec is good
    with pytest.raises(IdentityError, match="not trained for this receiver"):
        Receiver(model, tokenizer, [good, small.codec], allow_unmeasured=True)
    with pytest.raises(UnmeasuredError, match="one that was not"):
        Receiver(model, tokenizer, [good, PlainCodec()])


def test_any_cache_of_the_prompts_beginning_is_taken(receiver) -> None:
    """A cache of any of the prompt's first tokens, from a plain forward, gives the same answers again and again, with
    full layers too where the model has sliding ones; and it is not written into."""
    memory = spelled(receiver)
    prompt = receiver.prompt(memory, QUESTION)
    expected = receiver.generate(memory, QUESTION, max_new_tokens=8)
    for held in (1, 7, len(prompt) - 1):
        for given in (None, DynamicCache()):
            with torch.no_grad():
                embeds = prompt[None, :held]
                cache = receiver.model(inputs_embeds=embeds, past_key_values=given, use_cache=True).past_key_values
            before = snapshot(cache)
            for _ in range(2):
                assert expected == receiver.generate(memory, QUESTION, max_new_tokens=8, cache=cache)
            assert all(torch.equal(a, b) for a, b in zip(before, snapshot(cache), strict=True))
            assert held == cache.get_seq_length()


def test_a_prefill_copies_nothing(llama, monkeypatch) -> None:
    """What was computed for the caller is checked as it is; a copy is made where an answer writes into it."""
    copies: list[Any] = []
    monkeypatch.setattr("ilcp.models.prefix_cache.copy.deepcopy", copies.append)
    llama.prefill(spelled(llama))
    assert [] == copies


def test_a_cache_is_really_used(llama) -> None:
    """A cache of other tokens changes the answer: what it holds is not computed again."""
    memory = spelled(llama)
    prompt = llama.prompt(memory, QUESTION)
    with torch.no_grad():
        cache = llama.model(inputs_embeds=prompt.flip(0)[None, :-1], use_cache=True).past_key_values
    answers = {llama.generate(memory, QUESTION, max_new_tokens=8, cache=given) for given in (None, cache)}
    assert 2 == len(answers)


class Rounded(DynamicLayer):
    """Stands for layers that do not hold what they were given."""


def test_caches_that_are_not_this_prompts_are_refused(llama) -> None:
    """Too long, of another memory, written into, of a batch, of another model or kind: each is refused by name."""
    memory = spelled(llama)

    def cached(rows: torch.Tensor, model: Any = llama.model) -> Any:
        return model(inputs_embeds=rows, use_cache=True).past_key_values

    prompt = llama.prompt(memory, QUESTION)
    own, mismatched = llama.prefill(memory), llama.prefill(spelled(llama, OTHER))
    touched = llama.prefill(memory)
    touched.update(*(torch.zeros(1, 2, 1, 8),) * 2, 0)
    touched.update(*(torch.zeros(1, 2, 1, 8),) * 2, 1)
    with torch.no_grad():
        whole, batch = cached(prompt[None]), cached(prompt[None, :4].repeat(2, 1, 1))
        half = cached(prompt[None, :4].bfloat16(), build("llama", 300, torch.bfloat16))
        deep = cached(prompt[None, :4], build("llama", 300, layers=3))
        rounded = cached(prompt[None, :4])
    rounded.layers[1] = Rounded()
    static = StaticCache(config=llama.model.config, max_cache_len=64)
    refused = [
        (whole, rf"at most {len(prompt) - 1} of the prompt's {len(prompt)} tokens, got {len(prompt)}"),
        (mismatched, "pre-filled for another memory"),
        (touched, "pre-filled for another memory, another beginning of the chat, or that was written into since"),
        (batch, "of one sequence in torch.float32, got 2 in torch.float32"),
        (half, "got 1 in torch.bfloat16"),
        (deep, "a cache of 2 layers with as many positions each, got 3"),
        (DynamicCache(), "got 0 filled layers"),
        (rounded, "got Rounded: make it with Receiver.prefill"),
        (static, "got StaticLayer"),
        (cached(prompt[None, :4]), "without gradients"),
        (tuple((layer.keys, layer.values) for layer in own.layers), "got tuple"),
    ]
    for cache, text in refused:
        with pytest.raises(ConfigError, match=text):
            llama.generate(memory, QUESTION, cache=cache)
    with pytest.raises(EncodeError, match="a memory of vectors to pre-fill, got none"):
        llama.prefill(TextMemory(DOCUMENT), QUESTION)
    with pytest.raises(EncodeError, match="at most 256 tokens"):
        llama.prefill(SoftPrompt(torch.zeros(256, 32)))


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES, None])
@pytest.mark.parametrize("kind", KINDS)
def test_no_seam_gets_a_token_of_its_own(kind: str, template: str | None) -> None:
    """The ids before and after the memory are those of the whole text: with the text's ids between them nothing is
    added, no space and no second <s>, whatever the tokenizer opens a text with."""
    tokenizer = tokenizer_of(kind, CHAT_TEMPLATES.get(template or ""))
    whole, place = text_ids(tokenizer, DOCUMENT, QUESTION), layout(tokenizer, QUESTION)
    between = whole[len(place.prefix) : len(whole) - len(place.suffix)]
    assert (*place.prefix, *between, *place.suffix) == whole
    assert DOCUMENT == tokenizer.decode(between).removeprefix(" ")
    begins = template in (None, "llama3", "mistral", "gemma", "olmo", "a system prompt in the user's")
    assert int(begins) == whole.count(0) == place.prefix.count(0)
    body = f"{DOCUMENT}\n\n{QUESTION}"
    chat = [{"role": "user", "content": body}]
    text = (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) if template else f"<s>{body}\n"
    )
    before, _, after = text.partition(DOCUMENT)
    assert tuple(tokenizer(text, add_special_tokens=False).input_ids) == whole
    for shown, ids in ((before, place.prefix), (after, place.suffix)):
        assert shown.replace(" ", "") == tokenizer.decode(ids).replace(" ", "")


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES, None])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_closed_as_the_template_closes_it(kind: str, template: str | None) -> None:
    """The last id of an answer is the special token that the template writes behind an assistant's message, else
    </s>; the others are the answer's own."""
    tokenizer = tokenizer_of(kind, CHAT_TEMPLATES.get(template or ""))
    *own, closing = answer_ids(tokenizer, "Bergen")
    assert CLOSINGS.get(template or "", "</s>") == tokenizer.decode([closing])
    assert tuple(own) == answer_ids(tokenizer, "Bergen", end=False)


def test_template_arguments_reach_every_prompt() -> None:
    """What is passed for the chat template decides prompts, answers, scores and prefills; nothing passed changes
    nothing, and what the template cannot take is refused."""
    tokenizer, arguments = tokenizer_of("bytes", CHAT_TEMPLATES["thinking"]), {"enable_thinking": False}
    loud, silent = receiver_of("llama", tokenizer), receiver_of("llama", tokenizer, template=arguments)
    chat = [{"role": "user", "content": f"{DOCUMENT}\n\n{QUESTION}"}]
    memory = SoftPrompt(embed(loud.model, tokenizer(DOCUMENT, add_special_tokens=False).input_ids))
    for receiver, given in ((loud, {}), (silent, arguments)):
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **given)
        assert ("</think>" in text) == bool(given)
        prompt = embed(receiver.model, tokenizer(text, add_special_tokens=False).input_ids)
        assert torch.equal(prompt, receiver.prompt(memory, QUESTION))
        assert torch.equal(prompt, receiver.prompt(TextMemory(DOCUMENT), QUESTION))
        assert text_ids(tokenizer, DOCUMENT, QUESTION, given)[-4:] == layout(tokenizer, QUESTION, given).suffix[-4:]
        expected = receiver.generate(memory, QUESTION, max_new_tokens=6)
        assert expected == receiver.generate(memory, QUESTION, max_new_tokens=6, cache=receiver.prefill(memory))
    asked = [(memory, QUESTION, "Bergen")]
    assert loud.score(asked) != silent.score(asked)


def test_trimmed_messages_are_taken_and_changed_ones_refused() -> None:
    """A template may take away spaces at a message's ends (Llama 3's and Gemma's do); one that changes, cuts, doubles
    or drops the message around a memory has no place for it."""
    trimming = tokenizer_of("bytes", CHAT_TEMPLATES["gemma"])
    for content in (f"  {MEMORY_HERE}\n\n{QUESTION} \n", f"{QUESTION} {MEMORY_HERE} "):
        before, after = pieces(trimming, [{"role": "user", "content": content}], [None])
        given = content.strip().partition(MEMORY_HERE)
        assert trimming.decode(before).endswith(f"user\n{given[0].strip()}")
        assert trimming.decode(after).startswith(f"{given[2]}<end_of_turn>")
    turn = "{{ messages[0]['content'] | %s }}"
    for change, text in (
        (turn % "replace('\n\n', ' ')", "got .*memory.* changed: use a template"),
        (turn % "truncate(20)", "changed"),
        (turn % "upper", "got 0 places for 1 memories: this template has no place"),
        ("{{ messages[0]['content'] }}" * 2, "got 2 places"),
        ("<|user|>", "got 0 places"),
    ):
        with pytest.raises(ConfigError, match=text):
            layout(tokenizer_of("bytes", change), QUESTION)


def test_roles_that_a_template_refuses_are_named() -> None:
    """What a template raises comes out as an EncodeError with the roles and the template's own words."""
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    with pytest.raises(EncodeError, match=r"roles \['system', 'user'\]: TemplateError: System role not supported"):
        pieces(tokenizer_of("bytes", CHAT_TEMPLATES["gemma"]), system, [None])
    with pytest.raises(EncodeError, match="roles must alternate"):
        pieces(tokenizer_of("bytes", CHAT_TEMPLATES["mistral"]), system[1:] * 2, [None])


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (
            "several_senders",
            r"decoded to SoftPrompt and TextMemory\n(.*\n)+answers with both: [1-9].* message, [1-9].* text",
        ),
        ("chat_messages", r"no marker             Oulu\n"),
    ],
)
def test_the_example_runs(example: str, said: str, capsys) -> None:
    """The example runs offline on the embedded pair, and says what its docstring promises."""
    runpy.run_path(f"examples/{example}.py", run_name="__main__")
    assert re.search(said, capsys.readouterr().out)
