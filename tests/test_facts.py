"""The codec of facts: its payload, its lesson, and the way from a file of questions to a message of a few bytes."""

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ilcp
from ilcp.codec.context import Context
from ilcp.errors import ConfigError, StorageError
from ilcp.identity import ANY, ModelIdentity
from ilcp.measure import calibrate
from ilcp.models.forward import embedding_norm
from ilcp.tasks import Case, Question
from ilcp.testing import CodecContract
from ilcp.training.batch import Batcher
from ilcp.training.facts import Told, facts_of, topics_of, value_tokens
from ilcp.training.objective import Objective
from ilcp.training.reader import Reader
from ilcp_codecs.facts import FactsCodec, FactsNetwork
from ilcp_codecs.facts.agenda import Agenda, Code
from ilcp_codecs.facts.codec import _in_turn
from ilcp_codecs.facts.network import Latent
from tests.helpers import make_tokenizer, noting, vectors_of
from tests.taught import WORDS, cases, make_hyperparameters, make_models, save_models, write_cases

TINY = dict(width=32, heads=4, speller_width=32, blocks=1)
TOPICS, MOST = 6, 4


def make_agenda(seed: int = 0) -> Agenda:
    """Makes the chances of topics of which the second is said with the first, and values of one to four tokens."""
    rng = np.random.default_rng(seed)
    said = rng.random((400, TOPICS)) < 0.3
    said[:, 1] = said[:, 0]
    counts = rng.integers(1, 50, (TOPICS, MOST))
    return Agenda.fit(said, counts, whole_dims=8, token_dims=5)


AGENDA = make_agenda()


@st.composite
def codes(draw: Any) -> Code:
    """Draws facts as a payload may hold them."""
    topics = sorted(draw(st.sets(st.integers(0, TOPICS - 1))))
    lengths = tuple(draw(st.integers(1, MOST)) for _ in topics)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = tuple(rng.choice([-1, 1], AGENDA.bits_of(length)).astype(np.int8) for length in lengths)
    return Code(tuple(topics), lengths, bits)


@given(code=codes(), size=st.integers(1, 80))
def test_a_payload_says_the_first_of_the_facts_and_nothing_else(code: Code, size: int) -> None:
    """In any number of bytes: what is decided is right, and with room for all of it all of it is there."""
    payload = AGENDA.encode(code, size)
    assert 1 <= len(payload) <= size
    found = AGENDA.decode(payload)
    assert payload == AGENDA.encode(code, 80)[:size]
    assert set(found.topics) <= set(code.topics)
    if any(bits.any() for bits in found.bits):
        assert (code.topics, code.lengths) == (found.topics, found.lengths)
        for wanted, bits in zip(code.bits, found.bits, strict=True):
            assert (wanted[bits != 0] == bits[bits != 0]).all()
            assert size < 40 or (wanted == bits).all()


def test_a_payload_is_no_longer_than_its_facts() -> None:
    """One fact takes a few bytes whatever there is room for."""
    code = Code((2,), (1,), (np.ones(13, dtype=np.int8),))
    assert len(AGENDA.encode(code, 80)) <= 4
    assert AGENDA.encode(code, 80) == AGENDA.encode(code, 40)


def test_topics_that_come_together_cost_little() -> None:
    """A topic that is always said with another adds next to nothing to the payload."""
    one, both = (
        Code(topics, (1,) * len(topics), (np.ones(13, dtype=np.int8),) * len(topics)) for topics in ((0,), (0, 1))
    )
    alone = Code((1,), (1,), one.bits)
    flags = [len(AGENDA.encode(Code(c.topics, c.lengths, c.bits), 80)) for c in (both, one, alone)]
    assert flags[0] <= flags[1] + 2 <= flags[2] + 4


@given(payload=st.binary(min_size=1, max_size=60))
def test_any_payload_says_something(payload: bytes) -> None:
    """Bytes that no sender made decode to topics of the codec, with lengths that it has."""
    found = AGENDA.decode(payload)
    assert set(found.topics) <= set(range(TOPICS))
    assert all(1 <= length <= MOST for length in found.lengths)
    assert [AGENDA.bits_of(length) for length in found.lengths] == [len(bits) for bits in found.bits]


@pytest.fixture(scope="module")
def pair() -> Any:
    """The taught pair."""
    return make_models()


@pytest.fixture(scope="module")
def untaught(pair) -> FactsNetwork:
    """A network of one topic that was found in cases."""
    torch.manual_seed(0)
    return FactsCodec.untrained_for(pair, TINY, told(cases(0, 40))).eval()


def told(some: list[Case]) -> list[Case]:
    """Gives the cases' questions the topic that they have."""
    return [
        Case(c.id, c.context, tuple(Question(q.text, q.answer, facts=(("who", q.answer),)) for q in c.questions))
        for c in some
    ]


class TestFacts(CodecContract):
    """The codec of facts keeps the contract, as a codec of states that learns."""

    sender_hidden = 32

    @pytest.fixture
    def codec(self, untaught) -> FactsCodec:
        models = (ModelIdentity(end, "tokenizer", "", "full") for end in ("sender", "receiver"))
        return FactsCodec.from_network(untaught, *models)

    shape: ClassVar[Any] = {**TINY, "topics": ("a", "b"), "questions": ("A?", "B?"), "words": 40}

    @pytest.fixture
    def models(self, pair) -> tuple[Any, Any]:
        return pair.sender, pair.receiver

    @pytest.fixture
    def embedding_norm(self, pair) -> float:
        return embedding_norm(pair.receiver)


def test_what_is_found_in_the_cases_is_what_it_spells_with(untaught, pair) -> None:
    """Its topic and question are the cases'; every token of a value is a word, with the receiver's own embedding."""
    assert ("who",) == untaught.topics == untaught.config.topics
    assert ("Who?",) == untaught.config.questions
    ids = set(value_tokens(pair.receiver_tokenizer, "Mara")[0])
    assert ids <= set(untaught.vocabulary.tolist())
    table = pair.receiver.get_input_embeddings().weight
    assert torch.equal(table[untaught.vocabulary], untaught.speller.embeddings)
    name = pair.receiver_tokenizer("who:", add_special_tokens=False).input_ids
    fact = untaught.speller.fact(0, untaught.speller.embeddings[:2])
    assert torch.equal(fact[: len(name)], table[name])
    assert len(name) + 2 + 1 == len(fact)


def test_cases_without_topics_are_refused(pair) -> None:
    """The text says what to do."""
    with pytest.raises(ConfigError, match="give each question a topic, or train another codec"):
        FactsCodec.untrained_for(pair, TINY, cases(0, 40))


def test_a_value_is_pointed_at_wherever_it_stands() -> None:
    """Each token of the value is found, in any case of letters, as whole words only, in the sender's own tokens."""
    sender, receiver = make_tokenizer(300), make_tokenizer(320)
    context = "Maradona knows mara, and Mara knows him."
    case = Case("a", context, (Question("Who?", "Mara", facts=(("who", "Mara"),)),))
    (fact,) = facts_of(case, {"who": 0}, sender, receiver)
    assert " Mara" == receiver.decode(fact.ids)
    offsets = sender(context, return_offsets_mapping=True).offset_mapping
    held = {token for where in fact.where for token in where}
    assert {15, 16, 17, 18, 25, 26, 27, 28} <= {c for token in held for c in range(*offsets[token])}
    assert all(offsets[token][1] > 14 for token in held)


def test_what_was_not_said_is_no_fact() -> None:
    """Questions of the kind "absent" teach no value, and rare topics none at all."""
    asked = (
        Question("Who?", "Mara", facts=(("who", "Mara"),)),
        Question("Where?", "not said", "absent", facts=(("where", "not said"),)),
    )
    some = [Case(str(n), f"It was Mara. {n}", asked) for n in range(10)]
    assert ("who",) == topics_of(some)
    assert () == topics_of(some[:4])


def test_a_batch_tells_its_facts_by_context() -> None:
    """Contexts ascend, values are cut at the last place and padded with -1."""
    tokenizer = make_tokenizer(300)
    facts = [facts_of(case, {"who": 0}, tokenizer, tokenizer) for case in told(cases(0, 3))]
    batch = Told.of(facts, 2, 64)
    assert [0, 1, 2] == batch.contexts.tolist()
    assert (3, 2) == batch.ids.shape
    assert (3, 2, 64) == batch.where.shape
    assert [list(own[0].ids[:2]) for own in facts] == [[i for i in row if i >= 0] for row in batch.ids.tolist()]


RECIPE = """
seed = 3
[codec]
width = 32
heads = 4
blocks = 1
speller_width = 32
[training]
steps = 4
contexts = 8
facts_steps = {lesson}
facts_learning_rate = 8e-3
learning_rate = 1e-3
warmup_steps = 5
validate_every = 4
bfloat16 = false
"""


def written(home: Path, lesson: int) -> Path:
    """Writes a recipe for the taught pair, whose models and cases it makes where they are not there yet."""
    if not (home / "cases.jsonl").exists():
        save_models(make_models(), home)
        write_cases(home / "cases.jsonl", 200)
    head = "\n".join(f'{side} = "{home / side}"' for side in ("sender", "receiver"))
    file = home / f"recipe-{lesson}.toml"
    file.write_text(f'{head}\ndata = "{home / "cases.jsonl"}"\n{RECIPE.format(lesson=lesson)}', encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> SimpleNamespace:
    """A codec out of a file of questions that come again, by the default path of ``ilcp train``."""
    root = tmp_path_factory.mktemp("facts")
    return SimpleNamespace(root=root, codec=ilcp.train(written(root, 100), out=root / "codec"))


def test_questions_that_come_again_make_a_codec_of_facts(trained) -> None:
    """Without a word about it in the recipe: the frozen receiver answers from messages of a few bytes."""
    assert "facts" == trained.codec.spec.name
    assert trained.codec.evidence.holds
    pair = ilcp.load_pair(trained.root / "codec")
    fresh = cases(50_000, 12)
    messages = [pair.sender.encode(case.context) for case in fresh]
    right = [
        pair.receiver.generate(message, "Who?") == case.questions[0].answer
        for message, case in zip(messages, fresh, strict=True)
    ]
    assert sum(right) >= 10
    assert max(map(len, messages)) < 40
    record = json.loads((trained.root / "codec" / "config.json").read_text())
    assert ["Who?"] == record["settings"]["questions"]


def test_a_codec_says_what_a_payload_says(trained) -> None:
    """For people: the topic, and the tokens of the value as the receiver spells them."""
    pair = ilcp.load_pair(trained.root / "codec")
    case = cases(60_000, 1)[0]
    payload = ilcp.Message.from_bytes(pair.sender.encode(case.context)).payload
    codec: Any = pair.sender.codec
    ((topic, ids),) = codec.facts(payload)
    assert "Who?" == topic
    assert case.questions[0].answer == pair.receiver.tokenizer.decode(ids).strip()


def test_a_codec_of_facts_is_calibrated_by_what_it_heard(trained, tmp_path: Path) -> None:
    """Both ends see topics and lengths, not bits; one that heard nothing is in doubt."""
    pair = ilcp.load_pair(trained.root / "codec", assurance=None)
    reference = calibrate(pair.sender, pair.receiver, cases(70_000, 150), task="told", batch=32)
    assert {"sent", "received", "probed"} == reference.views.keys()
    codec: Any = pair.sender.codec
    usual = pair.sender.read(cases(80_000, 1)[0].context)
    observed = codec.encode_observed(usual)[1]
    silent = replace(observed, vector=-10 * abs(observed.vector))
    view = reference.views["sent"]
    assert view.score(observed) < view.score(silent)
    assert view.scores[-1] < view.score(silent)
    payload = codec.encode(usual)
    assert [len(codec.facts(payload))] == [int(codec.observe(payload).vector.sum())]
    assert codec.observe(payload).scalars[1] == len(payload)


def test_what_is_recalled_is_heard_and_spelled(trained) -> None:
    """A value counts only under a topic that the message would say, and only word for word."""
    pair: Any = ilcp.load_pair(trained.root / "codec")
    network = copy.deepcopy(pair.sender.codec.network)
    (case,) = cases(60_000, 1)
    numbers = {topic: number for number, topic in enumerate(network.topics)}
    states = pair.sender.read(case.context).states[None]
    mask = torch.ones(1, states.shape[2])

    def recalled(value: str) -> bool:
        own = replace(case, questions=(Question("Who?", value, facts=(("Who?", value),)),))
        facts = facts_of(own, numbers, pair.sender.tokenizer, pair.receiver.tokenizer)
        return bool(network.recalled(states, mask, Told.of([facts], network.places, states.shape[2])).all())

    assert recalled(case.questions[0].answer)
    assert not recalled(next(word for word in WORDS if word != case.questions[0].answer))
    network.extractor.often.fill_(-100.0)
    assert not recalled(case.questions[0].answer)


@pytest.mark.parametrize("name", ["words.safetensors", "speller.safetensors"])
def test_a_changed_file_of_weights_is_noticed(trained, tmp_path, name) -> None:
    """What lies in a file of its own, so that none is large, is weights of the codec like any other."""
    import shutil

    folder = Path(shutil.copytree(trained.root / "codec", tmp_path / "codec"))
    assert (folder / name).stat().st_size > 100 < (folder / "model.safetensors").stat().st_size
    (folder / name).write_bytes(b"nothing")
    with pytest.raises(StorageError, match="expected the codec's weights"):
        ilcp.load(folder)


def test_a_stopped_lesson_goes_on_as_if_it_had_not(tmp_path) -> None:
    """The weights are those of a run that was never stopped."""
    written(tmp_path, 6)
    ilcp.train(tmp_path / "recipe-6.toml", out=tmp_path / "whole")
    calls = 0

    def stop(*_: Any) -> bool:
        nonlocal calls
        calls += 1
        return calls == 3

    from ilcp.training.lesson import _Lesson

    original = _Lesson._heed
    try:
        _Lesson._heed = lambda self, interrupted: original(self, stop)  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            ilcp.train(tmp_path / "recipe-6.toml", out=tmp_path / "halved")
    finally:
        _Lesson._heed = original  # type: ignore[method-assign]
    again = ilcp.train(tmp_path / "recipe-6.toml", out=tmp_path / "halved", resume=True)
    assert ilcp.load(tmp_path / "whole").trained.weights == again.trained.weights


@pytest.mark.parametrize("kept", [0, 5, 16, 17, 30, 52])
def test_training_keeps_the_bits_that_a_payload_sends_first(untaught, monkeypatch, kept: int) -> None:
    """A sample that is cut holds the value's bits as a whole, then bit by bit those of each token, and no others."""
    length, most, config = 2, untaught.places, untaught.config
    network = copy.deepcopy(untaught).train()
    monkeypatch.setattr(network, "_kept", lambda lengths: torch.full_like(lengths, kept))
    z = Latent(torch.full((1, config.whole_dims), -1.0), torch.full((1, most, config.token_dims), -1.0))
    (whole,), (tokens,) = network.rounded(z, torch.tensor([length]))
    left = config.whole_dims + length * config.token_dims - kept
    assert [-1] * kept + [1] * left == _in_turn(whole, tokens[:length]).tolist()  # 0 is not below
    assert not tokens[length:].any()


def test_a_step_through_the_receiver_reads_the_sender_once(pair, monkeypatch) -> None:
    """Memory and lesson take the same states."""
    torch.manual_seed(0)
    network = FactsCodec.untrained_for(pair, TINY, told(cases(0, 40))).train()
    wanted = make_hyperparameters(topics=network.topics, blank_share=0.0)
    reader = Reader(pair, network.layers, wanted)
    read: list[Any] = []
    monkeypatch.setattr(reader, "states", noting(reader.states, read, lambda texts: texts))
    batch = Batcher(pair, wanted).batch(told(cases(0, 8)), random.Random(0))
    assert {"cross_entropy", "facts", "loss"} <= Objective(pair, wanted, reader).terms(network, batch).keys()
    assert 1 == len(read)


@pytest.mark.parametrize("heard", [-100.0, 100.0])
def test_a_step_with_one_fact_or_none_can_be_trained(pair, heard: float) -> None:
    """Through the receiver, where nothing is heard or one thing is, and in a lesson that tells of as much."""
    torch.manual_seed(0)
    network = FactsCodec.untrained_for(pair, TINY, told(cases(0, 40))).train()
    with torch.no_grad():
        network.extractor.often.fill_(heard)
    states, mask = torch.randn(1, len(network.layers), 6, 32), torch.ones(1, 6)
    (memory,), _ = network(states, mask)
    assert (len(memory) > 0) == (heard > 0)
    assert bool(memory.isfinite().all())
    facts = facts_of(told(cases(0, 1))[0], {"who": 0}, pair.sender_tokenizer, pair.receiver_tokenizer)[:1]
    for own in (facts, []):
        loss = network.fact_losses(states, mask, Told.of([own], network.places, 6))["loss"]
        assert bool(loss.isfinite())


def test_nothing_said_is_a_message_too(untaught) -> None:
    """A context about which no topic was said gives a payload that decodes to no vectors."""
    network = copy.deepcopy(untaught)
    with torch.no_grad():
        network.extractor.often.fill_(-100.0)
    codec = FactsCodec.from_network(network, ANY, ANY)
    states = torch.randn(len(codec.layers), 5, 32, generator=torch.Generator().manual_seed(1))
    payload = codec.encode(Context(text="x", states=states))
    assert 1 == len(payload)
    assert (0, 48) == vectors_of(codec.decode(payload)).shape
