"""Sender, receiver, memory and prompt: what crosses the hop, and what is refused on the way."""

import copy
import pickle

import pytest
import torch

import ilcp
from ilcp import KeyRing, Memory, Message, Receiver, Sender, SoftPrompt, TextMemory
from ilcp.codec.memory import CacheMemory
from ilcp.errors import (
    AuthenticationError,
    ConfigError,
    DecodeError,
    EncodeError,
    ExpiredError,
    IdentityError,
    ReplayError,
)
from ilcp.handoff.passes import Limits, packed, passes, sequences
from ilcp.message import Seal
from ilcp.message.replay import ReplayCache
from ilcp.models.forward import answer_logits, answer_scores, embed, has_room, require_room
from ilcp.models.prompt import MEMORY_HERE, answer_ids, layout, pieces, text_ids
from ilcp.models.reading import read_ids
from ilcp.tasks import case_files
from tests.helpers import make_model, make_tokenizer, vectors_of

CASE = next(iter(case_files("validation", 3, 1)))
SHORT = next(iter(case_files("validation", 3, 1, facts=2))).context
QUESTION = "Which region is affected?"
KEY = bytes(range(32))


def test_one_hop_end_to_end(pair) -> None:
    """A document becomes 100 bytes, the bytes become memory, and the receiver answers from it with a str."""
    message = pair.sender.encode(CASE.context)
    memory = pair.receiver.decode(message)
    assert 100 == len(message)
    assert isinstance(message, bytes)
    answers = {pair.receiver.generate(source, QUESTION) for source in (message, memory)}
    assert 1 == len(answers)
    assert isinstance(answers.pop(), str)
    assert pair.path.joinpath("config.json").is_file()


def test_the_same_memory_serves_any_number_of_calls(pair) -> None:
    """Two calls with one memory give the same answer, and no call changes the memory or the models."""
    memory = pair.receiver.decode(pair.sender.encode(CASE.context))
    before = memory.vectors
    weights = copy.deepcopy(pair.receiver.model.state_dict())
    first = [pair.receiver.generate(memory, question.text) for question in CASE.questions[:4]]
    second = [pair.receiver.generate(memory, question.text) for question in CASE.questions[:4]]
    assert first == second
    assert torch.equal(before, memory.vectors)
    assert all(torch.equal(value, weights[name]) for name, value in pair.receiver.model.state_dict().items())


def test_a_memory_cannot_be_changed() -> None:
    """Neither setting an attribute nor writing into the vectors it hands out changes a memory."""
    memory = SoftPrompt(torch.ones(2, 3))
    memory.vectors.zero_()
    assert torch.equal(torch.ones(2, 3), memory.vectors)
    with pytest.raises(AttributeError, match="immutable"):
        memory._held = torch.zeros(2, 3)
    with pytest.raises(DecodeError, match="NaN or infinity"):
        SoftPrompt(torch.full((2, 3), float("nan")))
    with pytest.raises(TypeError, match="abstract"):
        Memory()  # type: ignore[abstract, call-arg]


def test_a_memory_is_one_of_three_kinds() -> None:
    """The union is closed: nobody adds a kind from elsewhere, and each kind is a ``Memory``."""
    for base in (Memory, SoftPrompt, TextMemory, CacheMemory):
        with pytest.raises(
            TypeError,
            match="expected a SoftPrompt, TextMemory or CacheMemory, got a subclass Other: the kinds are closed",
        ):
            type("Other", (base,), {"__module__": "elsewhere"})
    assert all(isinstance(each, Memory) for each in (SoftPrompt(torch.ones(2, 3)), TextMemory("a")))


def test_a_memory_says_what_stands_in_its_place() -> None:
    """Text stands as it is, whatever the receiver; vectors only where width and norm are the receiver's."""
    vectors = torch.ones(2, 4)
    assert "a" == TextMemory("a").in_prompt(4, 1.0)
    assert torch.equal(vectors, SoftPrompt(vectors).in_prompt(4, 1.0))
    for hidden, norm, found in ((5, 1.0, "of width 5, got width 4"), (4, 0.06, "norm up to 1.8 .*, got 2")):
        with pytest.raises(DecodeError, match=found):
            SoftPrompt(vectors).in_prompt(hidden, norm)


def test_memories_copy_compare_and_show_themselves() -> None:
    """A copy has the digest of its original, another memory has another, and literals are shown by their number."""
    kinds = (SoftPrompt(torch.ones(2, 3)), SoftPrompt(torch.ones(3, 2)), TextMemory("a"), TextMemory("b"))
    assert 4 == len({each.digest() for each in kinds})
    for each in kinds:
        assert each.digest() == each.beside(("A1",)).digest() == copy.deepcopy(each).digest()
    assert "SoftPrompt(2 vectors of width 3, 1 literals)" == repr(kinds[0].beside(("A1",)))
    assert "TextMemory(text of 1 characters)" == repr(kinds[2])


@pytest.mark.parametrize("duplicate", [lambda end: pickle.loads(pickle.dumps(end)), copy.deepcopy])
def test_both_ends_can_be_copied_and_pickled(pair, duplicate) -> None:
    """A copy, here or in another process, encodes and answers alike, and pre-fills caches of its own."""
    document = next(iter(case_files("test", 7, 1))).context
    message = pair.sender.encode(document)
    asked = "Which region is affected?"
    answer = pair.receiver.generate(message, asked, cache=pair.receiver.prefill(message))
    sender, receiver = duplicate(pair.sender), duplicate(pair.receiver)
    assert message == sender.encode(document)
    assert answer == receiver.generate(message, asked)
    assert answer == receiver.generate(duplicate(receiver.decode(message)), asked, cache=receiver.prefill(message))


def test_text_ids_and_finished_outputs_encode_alike(small) -> None:
    """A text, its ids, and the hidden states of a forward that was run anyway give the same message."""
    ids = small.sender.tokenizer(SHORT).input_ids
    with torch.no_grad():
        outputs = small.sender.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    expected = small.sender.encode(SHORT)
    assert expected == small.sender.encode(ids)
    assert expected == small.sender.encode(torch.tensor([ids]))
    assert expected == small.sender.encode(outputs)


def test_a_finished_generate_call_encodes_without_a_second_pass(small) -> None:
    """The states of prompt and continuation come out of ``generate``'s outputs; the model is not called again."""
    ids = torch.tensor([small.sender.tokenizer(SHORT).input_ids])
    outputs = small.sender.model.generate(
        ids,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    states, _ = read_ids(small.sender.model, outputs.sequences[0, :-1].tolist(), small.codec.layers)
    calls: list[int] = []
    hook = small.sender.model.model.register_forward_hook(lambda *_: calls.append(1))
    small.sender.read(outputs)  # the new hook first hears the sentence by which the model is known
    calls.clear()
    context = small.sender.read(outputs)
    hook.remove()
    assert not calls
    assert states.shape == context.states.shape
    assert torch.allclose(states, context.states, atol=1e-4)


def test_outputs_without_states_or_of_a_batch_are_refused(small) -> None:
    """The error says how to call the model so that its outputs can be encoded."""
    row = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        bare = small.sender.model(input_ids=row)
        batch = small.sender.model(input_ids=row.repeat(2, 1), output_hidden_states=True)
    with pytest.raises(EncodeError, match="output_hidden_states=True"):
        small.sender.encode(bare)
    with pytest.raises(EncodeError, match="a batch of 2"):
        small.sender.encode(batch)


def test_long_texts_are_read_in_windows_and_no_token_is_lost(small) -> None:
    """A text of several windows yields one state per token; the first window's states are those of a short text."""
    text = " ".join(case.context for case in case_files("validation", 1, 3))
    ids = small.sender.tokenizer(text).input_ids
    context = small.sender.read(text)
    window = small.sender.model.config.max_position_embeddings
    assert len(ids) > 2 * window
    assert context.windows > 2
    assert len(ids) == context.tokens
    first, _ = read_ids(small.sender.model, ids[:window], small.codec.layers)
    kept = window - window // 8
    assert torch.allclose(first[:, :kept], context.states[:, :kept], atol=1e-5)
    assert len(small.sender.encode(text)) == len(small.sender.encode(SHORT))


def test_shorter_prefixes_make_shorter_messages(small) -> None:
    """``payload_bytes`` shortens the message byte by byte, and an unknown length names the known ones."""
    sizes = {n: len(small.sender.encode(SHORT, payload_bytes=n)) for n in (2, 4, 8, 16)}
    assert {2: 22, 4: 24, 8: 28, 16: 36} == sizes
    with pytest.raises(ConfigError, match="2, 4, 8, 16 for codec 'vae', got 3"):
        small.sender.encode(SHORT, payload_bytes=3)


@pytest.mark.parametrize(("source", "fragment"), [("", "empty"), (" \n", "empty"), ([], "at least one token")])
def test_nothing_to_encode_is_refused(small, source, fragment: str) -> None:
    """Empty text and empty ids get an EncodeError, not an empty message."""
    with pytest.raises(EncodeError, match=fragment):
        small.sender.encode(source)


def test_ids_of_another_tokenizer_are_refused(small) -> None:
    """An id beyond the model's embeddings is named, in place of an index error."""
    with pytest.raises(EncodeError, match="does not belong to this model"):
        small.sender.encode([1, 99_999])


def test_damaged_messages_are_refused(small) -> None:
    """A truncated message, a flipped bit, junk behind it: each is a DecodeError."""
    message = small.sender.encode(SHORT)
    for damaged in (message[:-1], message + b"!", bytes([message[0]]) + bytes([message[1] ^ 4]) + message[2:], b""):
        with pytest.raises(DecodeError):
            small.receiver.generate(damaged, QUESTION)


def test_a_message_of_another_codec_is_refused_by_identity(small) -> None:
    """A well-formed message with another codec id is an IdentityError that shows both ids."""
    codec_id = small.codec.trained.codec_id(small.codec.spec)
    other = Message(bytes(8), bytes(16)).to_bytes()
    with pytest.raises(IdentityError, match=rf"{codec_id.hex()}.*{'00' * 8}"):
        small.receiver.decode(other)


def test_another_checkpoint_of_the_same_configuration_is_refused(small) -> None:
    """One changed weight is another model: sender and receiver refuse it, and name the weights."""
    for side, end in ((Sender, small.sender), (Receiver, small.receiver)):
        changed = copy.deepcopy(end.model)
        next(changed.parameters()).data[0, 0] += 1e-3
        with pytest.raises(
            IdentityError, match=rf"not trained for this {side.__name__.lower()}: it differs in weights"
        ):
            side(changed, end.tokenizer, small.codec)


def test_another_tokenizer_template_or_dtype_is_refused_by_name(small) -> None:
    """The text names the part that differs: tokenizer, chat template or dtype."""
    receiver = small.receiver
    another = make_tokenizer(280)
    with pytest.raises(IdentityError, match="differs in tokenizer"):
        Receiver(receiver.model, another, small.codec)
    template = make_tokenizer(320, template="{{ messages[0]['content'] }}")
    with pytest.raises(IdentityError, match="differs in chat template"):
        Receiver(receiver.model, template, small.codec)
    with pytest.raises(IdentityError, match=r"differs in weights .* dtype \(expected full, got half\)"):
        Receiver(copy.deepcopy(receiver.model).bfloat16(), receiver.tokenizer, small.codec)
    with pytest.raises(ConfigError, match="at most 64 tokens"):
        Receiver(make_model(64), receiver.tokenizer, small.codec)


def test_sealed_hops(small) -> None:
    """With one key on both ends messages are sealed; a wrong key, no key, an old one and a bare one are refused."""
    sender = Sender(small.sender.model, small.sender.tokenizer, small.codec, key=KEY)
    receiver = Receiver(small.receiver.model, small.receiver.tokenizer, small.codec, key=KEY, allow_unmeasured=True)
    message = sender.encode(SHORT)
    assert len(small.sender.encode(SHORT)) + 27 == len(message)
    assert torch.equal(
        vectors_of(receiver.decode(message)), vectors_of(small.receiver.decode(small.sender.encode(SHORT)))
    )
    wrong = Receiver(
        small.receiver.model, small.receiver.tokenizer, small.codec, key=bytes(range(1, 33)), allow_unmeasured=True
    )
    for end, data in ((wrong, message), (small.receiver, message), (receiver, small.sender.encode(SHORT))):
        with pytest.raises(AuthenticationError):
            end.decode(data)
    payload = Message.from_bytes(message, key=KEY).payload
    old = Message(small.codec.trained.codec_id(small.codec.spec), payload, Seal(bytes(8), 2**16)).to_bytes(KEY)
    with pytest.raises(ExpiredError):
        receiver.decode(old)


def test_memory_of_another_width_or_norm_is_refused(small) -> None:
    """Vectors for another receiver, or far outside its embeddings' norm, do not reach the model."""
    with pytest.raises(DecodeError, match="expected memory vectors of width 48, got width 47"):
        small.receiver.generate(SoftPrompt(torch.zeros(2, 47)), QUESTION)
    with pytest.raises(DecodeError, match="norm"):
        small.receiver.generate(SoftPrompt(torch.full((2, 48), 1e4)), QUESTION)


def test_prompts_that_do_not_fit_or_say_nothing_are_refused(small) -> None:
    """A context beyond the receiver's window is refused with both numbers, and so is message and context at once."""
    long = " ".join(case.context for case in case_files("validation", 1, 2))
    with pytest.raises(EncodeError, match="at most 256 tokens"):
        small.receiver.generate(None, QUESTION, context=long)
    with pytest.raises(ConfigError, match="got both"):
        small.receiver.generate(small.sender.encode(SHORT), QUESTION, context=SHORT)
    with pytest.raises(ConfigError, match="got str"):
        small.receiver.generate("a message", QUESTION)
    with pytest.raises(ConfigError, match="expected a context as a str or several in a list, got int"):
        small.receiver.generate(None, QUESTION, context=5)
    with pytest.raises(EncodeError, match="expected context 0 as a str, got int"):
        small.receiver.generate(None, QUESTION, context=[5])
    with pytest.raises(ConfigError, match="expected the text of a memory as a str, got int"):
        TextMemory(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected memory vectors as a tensor 'memory hidden', got list"):
        SoftPrompt([[1.0]])  # type: ignore[arg-type]


def test_a_window_is_checked_with_its_answer(small) -> None:
    """A prompt fits with its answer to the last token of the window, and one more is refused with what to do."""
    model = small.receiver.model
    assert has_room(model, 250, 6)
    require_room(model, 250, 6)
    assert not has_room(model, 250, 7)
    with pytest.raises(EncodeError, match=r"expected case 'a' of at most 256 tokens .*, got 250 \+ 7: leave it out"):
        require_room(model, 250, 7, what="case 'a'", way_out="leave it out")


def test_lines_follow_what_stands_in_a_memorys_place(small) -> None:
    """Text, vectors and nothing get their line behind them, at markers as without, and no more."""
    tokenizer = small.receiver.tokenizer
    marked = f"{MEMORY_HERE}\n\n{MEMORY_HERE}\n\n{MEMORY_HERE}\n\nWho?"
    for question in ("Who?", marked):
        before, after = pieces(tokenizer, question, ["Text.", None, ""], lines=["A1", "B2", "C3"])
        assert "<|user|>Text.\n\nA1\n\n" == tokenizer.decode(before)
        assert "\n\nB2\n\nC3\n\nWho?<|assistant|>" == tokenizer.decode(after)


def test_memory_of_real_embeddings_equals_text(small) -> None:
    """Memory made of the text's own embeddings gives the logits of the text: the place and the mask are right."""
    receiver = small.receiver
    ids = receiver.tokenizer(SHORT, add_special_tokens=False).input_ids
    place = layout(receiver.tokenizer, QUESTION)
    memory = SoftPrompt(embed(receiver.model, ids))
    as_memory = receiver.prompt(memory, QUESTION)
    as_text = receiver.prompt(TextMemory(SHORT), QUESTION)
    assert text_ids(receiver.tokenizer, SHORT, QUESTION) == (*place.prefix, *ids, *place.suffix)
    assert torch.equal(as_text, as_memory)


def test_the_memory_sits_inside_the_chat_template() -> None:
    """With a template the memory stands where the user's message begins; without one it stands first."""
    tokenizer = make_tokenizer(300)
    place = layout(tokenizer, QUESTION)
    assert "<|user|>" == tokenizer.decode(place.prefix)
    assert f"\n\n{QUESTION}<|assistant|>" == tokenizer.decode(place.suffix)
    plain = make_tokenizer(300, template=None)
    assert ("<s>", f"\n\n{QUESTION}\n") == tuple(
        plain.decode(part) for part in (layout(plain, QUESTION).prefix, layout(plain, QUESTION).suffix)
    )
    mute = make_tokenizer(300, template="<|user|>")
    with pytest.raises(ConfigError, match="no place for a memory"):
        layout(mute, QUESTION)


def test_scores_do_not_depend_on_the_batch(small) -> None:
    """Left padding changes nothing: each score in a batch equals the score alone."""
    memory = small.receiver.decode(small.sender.encode(SHORT))
    items = [(memory, QUESTION, "Bergen"), (None, "Who?", "Mara, Oslo"), (TextMemory(SHORT), QUESTION, "unknown")]
    together = small.receiver.score(items)
    alone = [small.receiver.score([item])[0] for item in items]
    for a, b in zip(together, alone, strict=True):
        assert a.exact == b.exact
        assert a.log_likelihood_nats == pytest.approx(b.log_likelihood_nats, abs=1e-3)


def test_a_memory_is_read_once_for_all_questions_about_it(small) -> None:
    """What the prompts about equal memories begin with goes through the model once, in scoring and in answering."""
    wire = small.sender.encode(SHORT)
    model, seen = small.receiver.model, []
    asked = [(source, question) for question in ("Who?", "Which region?", "What is it") for source in (wire, None)]
    hook = model.register_forward_pre_hook(
        lambda _module, _args, named: seen.append(named["position_ids"].shape), with_kwargs=True
    )
    try:
        small.receiver.generate(None, "Who?")  # the new hook first hears the sentence by which the model is known
        seen.clear()
        small.receiver.score([(*item, "no") for item in asked])
        scoring = list(seen)
        seen.clear()
        small.receiver.answers(asked, max_new_tokens=2)
    finally:
        hook.remove()
    lengths = [len(small.receiver.prompt(small.receiver.decode(wire), question)) for _, question in asked[::2]]
    for (read, common), (_, rests) in (scoring, seen[:2]):
        assert 2 == read  # the message's, and the one about nothing
        assert common > 8  # the memory's vectors at least
        assert common + rests < sum(lengths) - common
    assert 2 == len(scoring)
    assert seen[2:] in ([], [(2, 3)])  # a step has a token of each prompt, unless none goes on


@pytest.mark.parametrize(("batch", "tokens", "logits"), [(5, 999, 999), (99, 110, 999), (99, 999, 14)])
def test_passes_hold_no_more_than_they_may(monkeypatch, batch: int, tokens: int, logits: int) -> None:
    """Every prompt is in one pass, each pass is within its limits or one sequence, and like lengths meet."""
    limits = Limits(batch=batch, vocabulary=10, new=2)
    torch.manual_seed(0)
    monkeypatch.setattr("ilcp.handoff.passes.PASS_TOKENS", tokens)
    monkeypatch.setattr("ilcp.handoff.passes.PASS_LOGITS", 10 * logits)
    monkeypatch.setattr("ilcp.handoff.passes.RESTS_TOKENS", 30)
    monkeypatch.setattr("ilcp.handoff.passes.RESTS_TOKENS_LONG", 40)
    beginnings = [torch.rand(length, 4) for length in (50, 3, 30, 4, 48, 3)]
    groups = [
        (range(4 * at, 4 * at + 4), [torch.cat([beginning, torch.rand(5 + tail, 4)]) for tail in range(4)])
        for at, beginning in enumerate(beginnings)
    ]
    said = [torch.rand(length, 4) for length in (0, 1, 2, 3)]
    asked = [each for numbers, prompts in groups for each in sequences(numbers, prompts, said, limits)]
    for each in asked:
        assert sum(map(len, each.rests)) + 2 * len(each.numbers) <= max(30, min(40, len(each.beginning)))
    parts = list(passes(asked, limits))
    assert sorted(number for part in parts for each in part for number in each.numbers) == list(range(24))
    for part in parts:
        if len(part) > 1:
            together = packed(part)
            new = 2 * max(len(each.numbers) for each in part)
            assert len(part) * (together.segment.shape[1] + new) <= tokens
            assert len(part) * together.kept <= logits
        assert sum(len(each.numbers) for each in part) <= batch
    lengths = [len(each.beginning) for part in parts for each in part]
    assert lengths == sorted(lengths)
    assert any(len(part) > 1 for part in parts)


def test_exact_means_what_generate_says(pair) -> None:
    """``score(...).exact`` is true exactly where greedy ``generate`` gives the answer."""
    memory = pair.receiver.decode(pair.sender.encode(CASE.context))
    asked = CASE.questions[::3]
    scores = pair.receiver.score([(memory, question.text, question.answer) for question in asked])
    generated = [pair.receiver.generate(memory, question.text) == question.answer for question in asked]
    assert generated == [score.exact for score in scores]


def test_answer_scores_count_answers_only() -> None:
    """Padding has no loss, and one wrong token makes an answer inexact."""
    labels = torch.tensor([[-1, 2], [1, 2]])
    logits = torch.full((2, 2, 3), -20.0)
    logits[0, 1, 2] = logits[1, 0, 0] = logits[1, 1, 2] = 20.0
    (nats, exact), (wrong_nats, wrong) = answer_scores(logits, labels)
    assert [0.0] == pytest.approx(nats, abs=1e-6)
    assert (True, False) == (exact, wrong)
    assert 2 == len(wrong_nats)
    assert sum(wrong_nats) < -30


def test_answer_logits_line_up_with_a_plain_forward(small) -> None:
    """The batched, left-padded pass gives the logits of a plain pass over the same ids."""
    model, tokenizer = small.receiver.model, small.receiver.tokenizer
    prompt, answer = text_ids(tokenizer, "", QUESTION), answer_ids(tokenizer, "Bergen")
    with torch.no_grad():
        plain = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        longer = embed(model, [5] * 40)
        logits, labels = answer_logits(model, [embed(model, prompt), longer], [answer, answer[:1]])
    assert list(answer) == labels[0, -len(answer) :].tolist()
    assert torch.allclose(plain, logits[0, -len(answer) :], atol=1e-4)


def test_the_public_names_are_the_documented_ones() -> None:
    """Every public name resolves, and an unknown one is an AttributeError."""
    assert all(getattr(ilcp, name) for name in ilcp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'teleport'"):
        ilcp.teleport  # noqa: B018


def test_a_message_for_one_receiver_is_refused_by_another(small) -> None:
    """With an audience a seal is for one name: another, and nobody by name, do not verify, though the key is theirs."""
    sender, receiver = small.sender, small.receiver

    def end(audience: str | None, key: bytes | KeyRing | None = KEY) -> Receiver:
        return Receiver(
            receiver.model, receiver.tokenizer, small.codec, key=key, audience=audience, allow_unmeasured=True
        )

    sealed = {
        audience: type(sender)(sender.model, sender.tokenizer, small.codec, key=KEY, audience=audience).encode(SHORT)
        for audience in ("planner", "critic", None)
    }
    assert 1 == len({len(message) for message in sealed.values()})
    for written, message in sealed.items():
        for reads in sealed:
            if reads == written:
                end(reads).decode(message)
                continue
            with pytest.raises(AuthenticationError, match="for another audience"):
                end(reads).decode(message)
    ring = KeyRing(bytes(range(1, 33)), (KEY,))
    assert end("planner", ring).decode(sealed["planner"])
    with pytest.raises(ConfigError, match="expected a key beside the audience"):
        end("planner", None)
    for wrong in ("", "x" * 257, "a\nb", b"planner", 5):
        with pytest.raises(ConfigError, match="expected audience as 1 to 256 bytes"):
            end(wrong)  # type: ignore[arg-type]


def test_the_replay_cache_knows_a_message_for_an_audience(small) -> None:
    """A message that was sealed for this receiver is let in once, and may be forgotten."""
    sender = type(small.sender)(small.sender.model, small.sender.tokenizer, small.codec, key=KEY, audience="planner")
    end = Receiver(
        small.receiver.model,
        small.receiver.tokenizer,
        small.codec,
        key=KEY,
        audience="planner",
        replay=ReplayCache(),
        allow_unmeasured=True,
    )
    message = sender.encode(SHORT)
    end.decode(message)
    with pytest.raises(ReplayError):
        end.decode(message)
    end.forget(message)
    end.decode(message)
