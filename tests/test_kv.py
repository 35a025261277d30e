"""Keys and values as a message: exact at their own place, turned elsewhere, rounded, refused where they do not fit."""

import struct
from copy import deepcopy
from dataclasses import replace
from hashlib import blake2b
from typing import Any, ClassVar

import msgspec
import pytest
import torch

from ilcp import Receiver, Sender, TextMemory
from ilcp.codec import Context
from ilcp.codec.keys_values import KeysValues, turned
from ilcp.codec.memory import CacheMemory
from ilcp.embedded import load_pair
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError
from ilcp.models.fingerprint import identify
from ilcp.models.forward import Prefill, embed
from ilcp.models.kv import placed, read_kv
from ilcp.models.rope import ropes_of
from ilcp.tasks import case_files
from ilcp.testing import CodecContract
from ilcp_codecs.kv import ExactCodec, Int4Codec, Int8Codec, PcaCodec
from ilcp_codecs.kv.codecs import shape_of
from ilcp_codecs.kv.container import MAGIC, read_header
from ilcp_codecs.kv.transform import ERRORS, allotted, packed, packed_sizes, unpacked
from tests.families import FAMILIES, SLIDING_TOKENS, build
from tests.helpers import make_tokenizer

TOKENIZER = make_tokenizer(300)
DECODERS = [name for name, family in FAMILIES.items() if family.receiver]
FIXED = ("gpt2",)  # learned positions, added to the embeddings
TEXT = "The ticket is owned by Mara. The affected region is Bergen, and the root cause was an expired certificate."
QUESTION = "Which region is affected?"
CODECS = (ExactCodec, Int8Codec, Int4Codec)
decoders = pytest.mark.parametrize("family", DECODERS)
both = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def ends(model: Any, codec: Any, **options: Any) -> tuple[Sender, Receiver]:
    """A sender and a receiver of one model."""
    return Sender(model, TOKENIZER, codec), Receiver(model, TOKENIZER, codec, allow_unmeasured=True, **options)


def llama_kv(dtype: torch.dtype = torch.float32) -> KeysValues:
    """Keys and values of a few tokens of a tiny Llama."""
    model = build("llama", len(TOKENIZER), dtype)
    return read_kv(model, list(range(2, 14)), 3, ropes_of(model))


class KvContract(CodecContract):
    """What every codec has to keep, of one that reads keys and values."""

    kind: ClassVar[Any]

    @pytest.fixture
    def codec(self) -> Any:
        """A codec of a tiny Llama."""
        return self.kind.of(build("llama", len(TOKENIZER)), TOKENIZER)

    @pytest.fixture
    def context(self) -> Context:
        """A context of it."""
        return Context(text="twelve tokens", kv=llama_kv())


class TestExact(KvContract):
    """The codec that loses nothing."""

    kind = ExactCodec


class TestInt8(KvContract):
    """The codec of eight bits."""

    kind = Int8Codec


class TestInt4(KvContract):
    """The codec of four bits."""

    kind = Int4Codec


def fitted(family: str = "llama", bytes_per_token: float = 40.0) -> PcaCodec:
    """A codec of principal components, of a tiny model."""
    texts = [f"{TEXT} Case {number}: nobody but {number * 7} knows why." for number in range(8)]
    model = build(family, len(TOKENIZER))  # of random weights: no text tells it anything, and ``fit`` would refuse
    caches = [read_kv(model, TOKENIZER(text).input_ids, 0, ropes_of(model)) for text in texts]
    return PcaCodec.fit_caches(identify(model, TOKENIZER), shape_of(model), caches, bytes_per_token=bytes_per_token)


class TestPca(KvContract):
    """The codec of principal components."""

    @pytest.fixture
    def codec(self) -> Any:
        """A codec of a tiny Llama."""
        return fitted()


@decoders
@both
@pytest.mark.parametrize("start", [0, 5])
def test_at_its_own_place_a_cache_is_the_models_own_bit_by_bit(family: str, dtype: torch.dtype, start: int) -> None:
    """Logits of what follows are those that the model gives behind a cache it has just made, in every family; windows
    that are shorter than the text included."""
    model = build(family, len(TOKENIZER), dtype)
    ids = torch.randint(2, len(TOKENIZER), (40,), generator=torch.Generator().manual_seed(1)).tolist()
    before, text, after = ids[:start], ids[start:33], ids[33:]
    codec = ExactCodec.of(model, TOKENIZER)
    memory = codec.decode(codec.encode(Context(kv=read_kv(model, before + text, start, ropes_of(model)))))
    assert isinstance(memory, CacheMemory)
    prefill = Prefill(model)
    own = prefill.outputs(embed(model, before), None).past_key_values if before else None
    own = prefill.outputs(embed(model, text), own, start).past_key_values
    expected = prefill.outputs(embed(model, after), own, 33).logits
    cache = placed(model, [embed(model, before), memory.kv])
    assert torch.equal(expected, prefill.outputs(embed(model, after), cache, 33).logits)


@decoders
@both
def test_elsewhere_a_cache_is_that_of_the_text_there(family: str, dtype: torch.dtype) -> None:
    """Turned to another position, keys are those that the model computes at that position, up to rounding; of a model
    whose keys cannot be turned, the move is refused."""
    model = build(family, len(TOKENIZER), dtype)
    ropes = ropes_of(model)
    kv = read_kv(model, list(range(2, 20)), 0, ropes)
    if family in FIXED:
        with pytest.raises(DecodeError, match="stands at position 0, got position 9"):
            kv.at(9)
        return
    assert all(ropes)
    slack = 1e-5 if dtype == torch.float32 else 0.05
    row, places = torch.tensor([list(range(2, 20))]), torch.arange(9, 27)[None]
    with torch.no_grad():
        there = model(row, attention_mask=torch.ones_like(row), position_ids=places, use_cache=True).past_key_values
    for moved, layer in zip(kv.at(9).keys, there.layers, strict=True):
        expected = layer.keys[0, :, -moved.shape[1] :].float()
        assert float((moved.float() - expected).abs().max()) <= slack * float(expected.abs().max())


def test_keys_come_back_from_any_place() -> None:
    """Turned back, and to and fro, keys are the same up to rounding; turned by nothing, the very same."""
    kv = llama_kv()
    assert kv.at(3) is kv
    for there in (None, 0, 77):
        again = kv.at(there).at(3)
        for one, other in zip(kv.keys, again.keys, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
        assert all(map(torch.equal, kv.values, again.values))
    whole = turned(kv.keys[0], torch.zeros(9, dtype=torch.float64), kv.ropes[0])
    assert torch.equal(whole, kv.keys[0])


@decoders
@pytest.mark.parametrize("kind", CODECS)
def test_a_receiver_answers_by_a_cache_as_by_the_text(family: str, kind: Any) -> None:
    """Generated, scored, batched and pre-filled, one memory is read alike; exact, it answers as the text does."""
    model = build(family, len(TOKENIZER))
    sender, receiver = ends(model, kind.of(model, TOKENIZER))
    memory = receiver.decode(sender.encode(TEXT))
    answer = receiver.generate(memory, QUESTION, max_new_tokens=8)
    cache = receiver.prefill(memory, QUESTION)
    assert answer == receiver.generate(memory, QUESTION, cache=cache, max_new_tokens=8)
    items = [(memory, QUESTION), (None, QUESTION), (memory, "Who?"), (TextMemory(TEXT), QUESTION)]
    answers = receiver.answers(items, max_new_tokens=8)
    assert answer == answers[0]
    assert receiver.generate(memory, "Who?", max_new_tokens=8) == answers[2]
    asked = [(given, question, "in Bergen") for given, question in items]
    scores = receiver.score(asked)
    alone = receiver.score(asked * 2, batch=1)  # a memory serves several passes
    for one, other in zip(scores * 2, alone, strict=True):
        assert abs(one.log_likelihood_nats - other.log_likelihood_nats) < 1e-3
    if kind is ExactCodec:
        assert answer == receiver.generate(None, QUESTION, context=TEXT, max_new_tokens=8)
        assert abs(scores[0].log_likelihood_nats - scores[3].log_likelihood_nats) < 1e-3
    if kind is not Int4Codec:
        assert abs(scores[0].log_likelihood_nats - scores[3].log_likelihood_nats) < 0.3
    assert abs(scores[0].log_likelihood_nats - scores[1].log_likelihood_nats) > 1e-3


def test_one_memory_serves_any_number_of_answers() -> None:
    """Eight answers from one memory are equal, beams and samples change nothing of it, and it stays what it was."""
    model = build("gemma3_text", len(TOKENIZER))
    sender, receiver = ends(model, ExactCodec.of(model, TOKENIZER))
    memory = receiver.decode(sender.encode(TEXT))
    before = memory.digest()
    answers = {receiver.generate(memory, QUESTION, max_new_tokens=8) for _ in range(8)}
    receiver.generate(memory, QUESTION, max_new_tokens=8, num_beams=3)
    receiver.generate([memory, memory], QUESTION, max_new_tokens=8)
    assert len(answers) == 1
    assert isinstance(memory, CacheMemory)
    memory.kv.keys[0].zero_()
    assert before == memory.digest()
    assert memory.tokens > SLIDING_TOKENS


def test_a_system_prompt_stands_before_a_cache_as_before_a_text() -> None:
    """Behind another beginning of the chat the memory is turned to its place; what it says stays the same in effect."""
    model = build("llama", len(TOKENIZER))
    sender, receiver = ends(model, ExactCodec.of(model, TOKENIZER))
    memory = receiver.decode(sender.encode(TEXT))
    chat = [{"role": "system", "content": "Say it shortly, and never guess."}, {"role": "user", "content": QUESTION}]
    by_cache, by_text, by_nothing = receiver.score([(m, chat, "in Bergen") for m in (memory, TextMemory(TEXT), None)])
    gained = by_text.log_likelihood_nats - by_nothing.log_likelihood_nats
    assert abs(by_cache.log_likelihood_nats - by_text.log_likelihood_nats) < abs(gained)
    assert isinstance(receiver.generate(memory, chat, max_new_tokens=4), str)


def test_a_cache_by_another_reading_is_never_taken_for_a_texts_prefix() -> None:
    """What was pre-filled for an approximate memory serves its own prompt, and is refused for the text's."""
    model = build("llama", len(TOKENIZER))
    sender, receiver = ends(model, Int4Codec.of(model, TOKENIZER))
    memory = receiver.decode(sender.encode(TEXT))
    cache = receiver.prefill(memory, QUESTION)
    with pytest.raises(ConfigError, match="pre-filled for another memory"):
        receiver.generate(None, QUESTION, context=TEXT, cache=cache)


def test_a_finished_calls_cache_is_handed_off_without_reading_again() -> None:
    """The outputs of a forward call, or their cache, give the message that its ids give."""
    model = build("llama", len(TOKENIZER))
    sender, _ = ends(model, ExactCodec.of(model, TOKENIZER))
    ids = TOKENIZER(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        outputs = model(ids, use_cache=True)
    assert sender.encode(ids) == sender.encode(outputs) == sender.encode(outputs.past_key_values)


def test_another_model_refuses_a_cache() -> None:
    """Other weights of the same shape are refused by identity, at the receiver's making and at the message."""
    one, other = (build("llama", len(TOKENIZER), seed=seed) for seed in (0, 1))
    codec = ExactCodec.of(one, TOKENIZER)
    message = Sender(one, TOKENIZER, codec).encode(TEXT)
    with pytest.raises(IdentityError, match="weights"):
        Receiver(other, TOKENIZER, codec, allow_unmeasured=True)
    receiver = Receiver(other, TOKENIZER, ExactCodec.of(other, TOKENIZER), allow_unmeasured=True)
    with pytest.raises(IdentityError, match="expected a message of codec"):
        receiver.decode(message)
    payload = codec.encode(Context(kv=llama_kv()))
    with pytest.raises(DecodeError, match="another model's"):
        ExactCodec.of(other, TOKENIZER).decode(payload)


def test_every_truncation_and_every_flipped_bit_of_the_header_is_refused() -> None:
    """No beginning of a container decodes, nor one with a bit turned over before its planes."""
    codec = ExactCodec.of(build("llama", len(TOKENIZER)), TOKENIZER)
    payload = codec.encode(Context(kv=llama_kv()))
    _, begin = read_header(payload)
    for length in [*range(begin + 40), *range(begin + 40, len(payload), 97)]:
        with pytest.raises(DecodeError):
            codec.decode(payload[:length])
    for bit in range(8 * begin):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecodeError):
            codec.decode(bytes(flipped))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "expected format 1"),
        ({"method": "kv-int8"}, "expected a cache by kv-exact"),
        ({"tokens": 10**9}, "1 to 16777216 tokens"),
        ({"ropes": [[1.0] * 4]}, "the layers and ropes of this codec's model"),
        ({"tokens": 8}, "planes as long as the layers say"),
        ({"start": -1}, "a start from 0"),
        ({"layers": []}, "1 to 1024 layers"),
        ({"layers": [[2, 8, 8, 0, 0]] * 2000}, "1 to 1024 layers"),
        ({"layers": [[2, 8, 8, 0, 7]] * 2}, "one of 1 ropes"),
        ({"layers": [[0, 8, 8, 0, 0]] * 2}, "widths and a window"),
        ({"layers": [[60000, 60000, 8, 0, 0]] * 2}, "the layers and ropes of this codec's model"),
        ({"tokens": 257}, "at most 256 tokens, got 257"),
        ({"planes": [[-1, 5]]}, "planes"),
        ({"dtype": "float64"}, "got 'float64'"),
        ({"ropes": [[1.0] * 9]}, "none wider than the keys"),
        ({"model": {}}, "identity fields"),
        ({"more": 1}, "unknown field"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_made_of_it(changes: dict[str, Any], words: str) -> None:
    """Sizes, names and fields that contradict each other or the limits are refused with words, check and all right."""
    codec = ExactCodec.of(build("llama", len(TOKENIZER)), TOKENIZER)
    payload = codec.encode(Context(kv=llama_kv()))
    (length,) = struct.unpack_from("<I", payload, len(MAGIC))
    at = len(MAGIC) + 4
    header = msgspec.json.decode(payload[at : at + length])
    head = msgspec.json.encode({**header, **changes})
    begin = MAGIC + struct.pack("<I", len(head)) + head
    lied = begin + blake2b(begin, digest_size=16).digest() + payload[at + length + 16 :]
    with pytest.raises(DecodeError, match=words):
        codec.decode(lied)


@pytest.mark.parametrize("kind", [*CODECS, PcaCodec])
def test_a_cache_of_more_tokens_than_the_window_is_refused_before_it_takes_memory(kind: Any) -> None:
    """A few bytes that stand for a large cache are refused by its tokens; also where a caller allows fewer."""
    small = fitted() if kind is PcaCodec else kind.of(build("llama", len(TOKENIZER)), TOKENIZER)
    wide = msgspec.structs.replace(small.shape, tokens=1 << 20)
    far = PcaCodec(small.trained.sender, wide, small.tensors) if kind is PcaCodec else kind(small.trained.sender, wide)
    kv, many = llama_kv(), 50_000
    zeros = tuple(torch.zeros(each.shape[0], many, each.shape[2]) for each in kv.keys)
    long = KeysValues(zeros, zeros, many, 0, kv.ropes, kv.windows)
    payload = far.encode(Context(kv=long))
    with pytest.raises(DecodeError, match="at most 256 tokens, got 50000"):
        small.decode(payload)
    if kind is not PcaCodec:
        few = kind.of(build("llama", len(TOKENIZER)), TOKENIZER, tokens=8)
        with pytest.raises(EncodeError, match="at most 8 tokens, got others of 9"):
            few.encode(Context(kv=kv))


def test_keys_and_values_that_are_not_the_codecs_are_refused_when_they_are_encoded() -> None:
    """Another model's layers, numbers that are not finite, and two dtypes at once are the sender's to mend."""
    codec, kv = ExactCodec.of(build("llama", len(TOKENIZER)), TOKENIZER), llama_kv()
    other = build("llama", len(TOKENIZER), layers=3)
    for each in (codec, fitted()):
        with pytest.raises(EncodeError, match="of this codec's model"):
            each.encode(Context(kv=read_kv(other, list(range(2, 14)), 3, ropes_of(other))))
        with pytest.raises(EncodeError, match="finite keys and values"):
            each.encode(Context(kv=replace(kv, values=tuple(each / 0 for each in kv.values))))
        with pytest.raises(ConfigError, match="in one of float32"):
            each.encode(Context(kv=replace(kv, values=tuple(map(torch.Tensor.half, kv.values)))))


def test_a_cache_that_ends_before_a_memory_of_keys_and_values_is_refused() -> None:
    """A caller's own cache of a prompt's first tokens cannot leave a memory to be read, and nobody embeds one."""
    model = build("llama", len(TOKENIZER))
    sender, receiver = ends(model, ExactCodec.of(model, TOKENIZER))
    memory = receiver.decode(sender.encode(TEXT))
    with torch.no_grad():
        short = Prefill(model).outputs(embed(model, [TOKENIZER.convert_tokens_to_ids("<|user|>")])).past_key_values
    with pytest.raises(ConfigError, match="up to the end of a memory of keys and values, got one of 1"):
        receiver.generate(memory, QUESTION, cache=short)
    with pytest.raises(ConfigError, match="got keys and values: call generate"):
        receiver.prompt(memory, QUESTION)


def test_a_cache_with_a_memory_in_it_is_known_wherever_it_goes() -> None:
    """A copy, another receiver and a sender refuse what was pre-filled for an approximate memory."""
    model = build("llama", len(TOKENIZER))
    sender, receiver = ends(model, Int4Codec.of(model, TOKENIZER))
    cache = receiver.prefill(receiver.decode(sender.encode(TEXT)), QUESTION)
    for other, given in ((receiver, deepcopy(cache)), (ends(model, Int4Codec.of(model, TOKENIZER))[1], cache)):
        with pytest.raises(ConfigError, match="pre-filled for another memory"):
            other.generate(None, QUESTION, context=TEXT, cache=given)
    with pytest.raises(EncodeError, match="pre-filled for a memory"):
        ends(model, ExactCodec.of(model, TOKENIZER))[0].encode(cache)
    with pytest.raises(EncodeError, match="past_key_values, got NoneType"):
        sender.encode(None)


def test_a_memory_of_other_heads_is_not_for_this_receiver() -> None:
    """Keys and values that a caller made of another shape are refused where they are to stand."""
    model = build("llama", len(TOKENIZER))
    _, receiver = ends(model, ExactCodec.of(model, TOKENIZER))
    kv = llama_kv()
    for changed in (
        replace(kv, keys=tuple(each[:1] for each in kv.keys), values=tuple(each[:1] for each in kv.values)),
        replace(kv, values=tuple(each[..., :3] for each in kv.values)),
        replace(kv, keys=tuple(map(torch.Tensor.half, kv.keys)), values=tuple(map(torch.Tensor.half, kv.values))),
    ):
        with pytest.raises(DecodeError, match="they are for another"):
            receiver.generate(CacheMemory(changed), QUESTION)


def test_what_a_memory_hands_out_is_a_copy() -> None:
    """Nothing that is done to it changes the memory."""
    memory = CacheMemory(llama_kv())
    before = memory.digest()
    memory.in_prompt(0, 0.0).keys[0].zero_()
    assert before == memory.digest()


def test_verifying_says_that_it_is_for_other_codecs() -> None:
    """A cache is not read back: it refuses by name, before anything runs."""
    model = build("llama", len(TOKENIZER))
    sender, receiver = ends(model, ExactCodec.of(model, TOKENIZER))
    with pytest.raises(ConfigError, match="to verify, got kv-exact"):
        sender.encode(TEXT, verify=receiver, budget_bytes=1000, questions=["Who?"])


def test_what_is_no_text_is_named() -> None:
    """A text too long for the window, another codec's context, and nothing to read behind the memory are refused."""
    model = build("llama", len(TOKENIZER), window=64)
    codec = ExactCodec.of(model, TOKENIZER)
    sender = Sender(model, TOKENIZER, codec)
    with pytest.raises(EncodeError, match="a text to read at once of at most 64 tokens"):
        sender.encode(TEXT * 3)
    with pytest.raises(EncodeError, match="with keys and values"):
        codec.encode(Context(text=TEXT))
    bare = make_tokenizer(300, template="{% for message in messages %}{{ message['content'] }}{% endfor %}")
    plain = ExactCodec.of(model, bare)
    memory = plain.decode(plain.encode(Context(kv=llama_kv())))
    with pytest.raises(EncodeError, match="a question to read behind"):
        Receiver(model, bare, plain, allow_unmeasured=True).generate(memory, "")


def test_more_bytes_are_nearer_to_the_cache() -> None:
    """The error of principal components falls with what a token may take, and the payload takes that much."""
    model = build("llama", len(TOKENIZER))
    kv = read_kv(model, TOKENIZER(TEXT).input_ids, 0, ropes_of(model))
    errors, sizes = [], []
    for bytes_per_token in (8, 16, 32, 64):
        codec = fitted(bytes_per_token=bytes_per_token)
        payload = codec.encode(Context(kv=kv))
        memory = codec.decode(payload)
        assert isinstance(memory, CacheMemory)
        level, found = kv.at(None), memory.kv
        pairs = zip((*level.keys, *level.values), (*found.keys, *found.values), strict=True)
        errors.append(sum(float((one - other).square().mean()) for one, other in pairs))
        sizes.append(len(payload))
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[0] / 20
    assert 0.8 < (sizes[3] - sizes[0]) / (56 * (kv.tokens - 4)) < 1.2


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2"])
def test_principal_components_work_where_layers_have_windows_and_where_keys_are_not_turned(family: str) -> None:
    """A model with windows, and one with learned positions, answer by such a memory."""
    codec = fitted(family, 64.0)
    model = build(family, len(TOKENIZER))
    sender, receiver = ends(model, codec)
    memory = receiver.decode(sender.encode(TEXT))
    by_cache, by_text = receiver.score([(each, QUESTION, "in Bergen") for each in (memory, TextMemory(TEXT))])
    assert abs(by_cache.log_likelihood_nats - by_text.log_likelihood_nats) < 2.0


def test_a_setting_that_is_worse_than_nothing_is_refused() -> None:
    """A codec whose memories foretell less than none do cannot be made, and the refusal has the figures."""

    class Wrecked(PcaCodec):
        """One whose memories are noise."""

        def decode(self, payload: bytes) -> CacheMemory:
            """Returns keys and values turned round."""
            memory = super().decode(payload)
            assert isinstance(memory, CacheMemory)
            kv = memory.kv
            return CacheMemory(replace(kv, values=tuple(-5 * each.flip(1) for each in kv.values)))

    pair = load_pair()
    model, tokenizer = pair.receiver.model, pair.receiver.tokenizer
    texts = [case.context * (1 + number % 2) for number, case in enumerate(case_files("train", 0, 8))]  # some too long
    codec = PcaCodec.fit(model, tokenizer, texts, bytes_per_token=256)
    wrecked = Wrecked(codec.trained.sender, codec.shape, codec.tensors)
    with pytest.raises(ConfigError, match=r"better than none .* memory .* exact .* nothing"):
        wrecked.require_worth(model, [tokenizer(text).input_ids for text in texts])


def test_texts_too_few_and_budgets_out_of_reach_are_refused() -> None:
    """A basis is not fitted to fewer tokens than tell it, nor for more or fewer bits than there can be."""
    model = build("llama", len(TOKENIZER))
    with pytest.raises(ConfigError, match="64 tokens or more to fit to, got"):
        PcaCodec.fit(model, TOKENIZER, ["Mara owns it."], bytes_per_token=32)
    with pytest.raises(ConfigError, match="to fit to, got 0"):
        PcaCodec.fit(model, TOKENIZER, [], bytes_per_token=32)
    for bytes_per_token in (0, -1, 1000, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="bytes_per_token above 0"):
            fitted(bytes_per_token=bytes_per_token)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_codes_of_any_bits_come_back(bits: int) -> None:
    """Codes packed into bits are the same when unpacked, whatever their number."""
    codes = torch.randint(0, 2**bits, (7, 5), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    plane = packed(codes, bits)
    assert len(plane) == packed_sizes(35, bits)
    assert torch.equal(codes, unpacked(plane, (7, 5), bits))


def test_bits_go_where_they_take_away_most() -> None:
    """No bit moved from one component to another makes the expected error smaller."""
    variances = torch.tensor([4.0, 1.0, 0.2, 1e-6])
    bits = allotted(variances, 9).tolist()
    assert sum(bits) == 9
    errors = torch.tensor(ERRORS)
    best = sum(float(v * errors[b]) for v, b in zip(variances, bits, strict=True))
    for one in range(4):
        for other in range(4):
            if one != other and bits[one]:
                moved = [b - (at == one) + (at == other) for at, b in enumerate(bits)]
                assert best <= sum(float(v * errors[b]) for v, b in zip(variances, moved, strict=True)) + 1e-9
