"""Fewer tokens of a cache: those that questions look at stay, as far from what follows as they stood."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import ilcp
from ilcp import Receiver, Sender
from ilcp.codec import Context
from ilcp.codec.keys_values import KeysValues, held_tokens, turned
from ilcp.codec.memory import CacheMemory
from ilcp.embedded import load_pair
from ilcp.errors import ConfigError, EncodeError, IdentityError, StorageError
from ilcp.models.attended import MOST_TOKENS, attended
from ilcp.models.generate_options import end_ids
from ilcp.models.kv import read_kv
from ilcp.models.prompt import pieces
from ilcp.models.rope import layer_windows, ropes_of
from ilcp.tasks import case_files
from ilcp_codecs.kv import CompactCodec, Int8Codec
from ilcp_codecs.kv.codecs import shape_of
from ilcp_codecs.kv.compact import compacted
from tests.families import FAMILIES, SLIDING_TOKENS, build
from tests.test_kv import QUESTION, TEXT, TOKENIZER, KvContract, llama_kv

QUESTIONS = (QUESTION, "Who owns the ticket?")
DECODERS = [name for name, family in FAMILIES.items() if family.receiver]
FIXED = ("gpt2",)
WINDOWED = [name for name in DECODERS if any(layer_windows(build(name, len(TOKENIZER))))]


def codec_of(model: Any, share: float = 0.5, **options: Any) -> CompactCodec:
    """A codec of a model, with two questions."""
    return CompactCodec.of(model, TOKENIZER, questions=QUESTIONS, share=share, **options)


def evenly(kv: KeysValues) -> tuple[torch.Tensor, ...]:
    """Attention that counts up, so that the last tokens count most."""
    return tuple(torch.arange(float(keys[..., 0].numel())).view(keys.shape[:2]) for keys in kv.keys)


class TestCompact(KvContract):
    """The codec of fewer tokens."""

    @pytest.fixture
    def codec(self) -> Any:
        """A codec of a tiny Llama."""
        return codec_of(build("llama", len(TOKENIZER)))

    @pytest.fixture
    def context(self) -> Context:
        """A context of it, of which somebody asked something."""
        kv = llama_kv()
        return Context(text="twelve tokens", kv=kv, attended=evenly(kv))


@pytest.mark.parametrize("family", [name for name in DECODERS if name not in FIXED])
def test_attention_to_a_cache_is_what_the_model_itself_shows(family: str) -> None:
    model = build(family, len(TOKENIZER))
    model.set_attn_implementation("eager")  # all along: in some releases another one caps less
    ids, before = TOKENIZER(TEXT).input_ids, [2, 3]
    kv = read_kv(model, [*before, *ids], len(before), ropes_of(model))
    found = attended(model, TOKENIZER, before, kv, [QUESTION], {})
    assert [each.shape for each in found] == [keys.shape[:2] for keys in kv.keys]
    asked = pieces(TOKENIZER, QUESTION, [None], {})[-1]
    row = [*before, *ids, *asked]
    said = model.generate(torch.tensor([row]), max_new_tokens=MOST_TOKENS, do_sample=False)[0].tolist()
    said = said[:-1] if said[-1] in end_ids(model) else said  # nothing is read behind an answer's end
    weights = model(torch.tensor([said]), output_attentions=True).attentions
    for own, keys, shown in zip(found, kv.keys, weights, strict=True):
        heads, held, _ = keys.shape
        end = len(before) + len(ids)
        here = shown[0, :, end:, end - held : end]
        expected = here.reshape(heads, -1, held).amax(1)
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-4)


def test_a_model_that_is_asked_computes_on_as_it_did() -> None:
    model = build("llama", len(TOKENIZER))
    kind = model.config._attn_implementation
    attended(model, TOKENIZER, [], llama_kv(), [QUESTION], {})
    assert model.config._attn_implementation == kind != "eager"


def test_what_counts_most_stays_in_order_and_as_far_from_what_follows() -> None:
    kv = llama_kv().at(0)
    chosen = [7, 2, 4]  # of nine
    counts = tuple(torch.zeros(keys.shape[:2]).index_fill(1, torch.tensor(chosen), 1.0) for keys in kv.keys)
    left = compacted(kv, counts, 3).at(0)
    assert left.tokens == 3
    for keys, values, old_keys, old_values, rope in zip(
        left.keys, left.values, kv.keys, kv.values, kv.ropes, strict=True
    ):
        assert torch.equal(values, old_values[:, sorted(chosen)])
        # Nine tokens became three: what follows stands six places nearer the beginning, and so do they.
        expected = turned(old_keys[:, sorted(chosen)], torch.full((3,), -6.0, dtype=torch.float64), rope)
        torch.testing.assert_close(keys, expected, rtol=1e-4, atol=1e-5)


def test_each_head_keeps_its_own_tokens() -> None:
    kv = llama_kv()
    assert kv.keys[0].shape[0] > 1
    counts = [torch.zeros(keys.shape[:2]) for keys in kv.keys]
    for head in range(kv.keys[0].shape[0]):
        counts[0][head, head + 1] = 1.0
    left = compacted(kv, tuple(counts), 1)
    for head in range(kv.keys[0].shape[0]):
        assert torch.equal(left.values[0][head, 0], kv.values[0][head, head + 1])


def test_all_tokens_are_the_cache_of_eight_bits() -> None:
    model = build("llama", len(TOKENIZER))
    kv = llama_kv()
    whole = codec_of(model, 1.0).decode(codec_of(model, 1.0).encode(Context(kv=kv, attended=evenly(kv))))
    eight = Int8Codec.of(model, TOKENIZER)
    plain = eight.decode(eight.encode(Context(kv=kv)))
    assert isinstance(whole, CacheMemory)
    assert isinstance(plain, CacheMemory)
    assert all(torch.equal(a, b) for a, b in zip(whole.kv.keys, plain.kv.keys, strict=True))


def test_a_receiver_answers_by_the_tokens_that_its_questions_look_at() -> None:
    pair = load_pair()
    model, tokenizer = pair.receiver.model, pair.receiver.tokenizer
    case = next(iter(case_files(split="test", seed=7, n=1)))
    questions = [question.text for question in case.questions]
    rates = {}
    for share, asked in ((1.0, questions), (0.2, questions), (0.2, ["Who wrote the last novel about whales?"])):
        codec = CompactCodec.of(model, tokenizer, questions=asked, share=share)
        with ilcp.connect("memory://compact") as blobs:
            sender = Sender(model, tokenizer, codec, blobs=blobs)
            receiver = Receiver(model, tokenizer, codec, blobs=blobs, allow_unmeasured=True)
            memory = receiver.decode(sender.encode(case.context))
            scored = receiver.score([(memory, question.text, question.answer) for question in case.questions])
        rates[share, asked is questions] = sum(sum(each.token_nats) for each in scored) / len(scored)
    nothing = pair.receiver.score([(None, question.text, question.answer) for question in case.questions])
    none = sum(sum(each.token_nats) for each in nothing) / len(nothing)
    assert (rates[0.2, True] - none) / (rates[1.0, True] - none) > 0.8
    assert rates[0.2, True] > rates[0.2, False]


@pytest.mark.parametrize("family", WINDOWED)
def test_layers_with_windows_keep_what_their_window_holds(family: str) -> None:
    model = build(family, len(TOKENIZER))
    ropes = ropes_of(model)
    ids = [2 + number % 200 for number in range(2 * SLIDING_TOKENS)]
    kv = read_kv(model, ids, 0, ropes)
    for tokens in (2, SLIDING_TOKENS + 3):
        left = compacted(kv, evenly(kv), tokens)
        whole, moved = kv.at(0), left.at(0)
        for keys, old, rope, window in zip(moved.keys, whole.keys, kv.ropes, kv.windows, strict=True):
            kept, by = held_tokens(tokens, window), float(tokens - kv.tokens)  # the last ones, as ``evenly`` counts
            assert keys.shape[1] == kept
            expected = turned(old[:, -kept:], torch.full((kept,), by, dtype=torch.float64), rope)
            torch.testing.assert_close(keys, expected, rtol=1e-3, atol=1e-4)


def test_a_budget_leaves_as_many_tokens_as_fit() -> None:
    kv = llama_kv()
    codec, context = codec_of(build("llama", len(TOKENIZER)), 1.0), Context(kv=kv, attended=evenly(kv))
    whole = len(codec.encode(context))
    sizes = []
    for limit in (whole, whole - 1, (whole + len(codec.encode(context, whole // 2))) // 2):
        payload = codec.encode(context, limit)
        assert len(payload) <= limit
        memory = codec.decode(payload)
        assert isinstance(memory, CacheMemory)
        sizes.append(memory.tokens)
    assert sizes[0] == kv.tokens > sizes[1] >= sizes[2] >= 1
    for limit in range(len(codec.encode(context, whole // 2)), whole, 97):  # nearly as many as fit
        kept = codec.decode(codec.encode(context, limit))
        assert isinstance(kept, CacheMemory)
        best = max(n for n in range(1, kv.tokens + 1) if len(codec.container(compacted(kv, evenly(kv), n))) <= limit)
        assert kept.tokens >= best - 1
    with pytest.raises(EncodeError, match="room for one token"):
        codec.encode(context, 100)


def test_what_was_measured_of_one_choice_is_none_of_another(tmp_path: Path) -> None:
    """Two shares, or other questions, are two codecs; a folder that says otherwise than it was saved is refused."""
    model = build("llama", len(TOKENIZER))
    codecs = [
        codec_of(model, 0.5),
        codec_of(model, 0.25),
        CompactCodec.of(model, TOKENIZER, questions=["Why?"], share=0.5),
    ]
    assert len({codec.trained.codec_id(codec.spec) for codec in codecs}) == 3
    record = codecs[0].save_files(tmp_path) | {"share": 0.25}
    with pytest.raises(IdentityError, match="questions and share"):
        CompactCodec.load_files(tmp_path, codecs[0].spec, codecs[0].trained, record)


def test_a_folder_keeps_questions_and_share(tmp_path: Path) -> None:
    codec = codec_of(build("llama", len(TOKENIZER)), 0.25)
    ilcp.save(codec, tmp_path / "codec")
    again = ilcp.load(tmp_path / "codec")
    assert isinstance(again, CompactCodec)
    assert (again.questions, again.share) == (QUESTIONS, 0.25)
    context = Context(kv=llama_kv(), attended=evenly(llama_kv()))
    assert again.encode(context) == codec.encode(context)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"questions": None}, "questions in a list"),
        ({"questions": []}, "1 to 256 questions"),
        ({"questions": [7]}, "question 0"),
        ({"questions": "Who?"}, "got str"),
        ({"questions": ["x" * 2001]}, "at most 2000 characters"),
        ({"questions": [f"Who {ilcp.MEMORY_HERE}?"]}, "MEMORY_HERE"),
        ({"share": 0}, "a share above 0"),
        ({"share": float("nan")}, "a share above 0"),
        ({"share": True}, "a share above 0"),
    ],
)
def test_settings_of_no_such_codec_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = build("llama", len(TOKENIZER))
    codec = codec_of(model)
    record = codec.save_files(tmp_path) | settings
    with pytest.raises(StorageError, match=words):
        CompactCodec.load_files(tmp_path, codec.spec, codec.trained, record)
    with pytest.raises(ConfigError, match=words):
        CompactCodec(codec.trained.sender, shape_of(model), record["questions"], record["share"])


def test_a_context_of_which_nobody_asked_anything_is_refused() -> None:
    codec, kv = codec_of(build("llama", len(TOKENIZER))), llama_kv()
    with pytest.raises(EncodeError, match="what was looked at"):
        codec.encode(Context(kv=kv))
    wrong = evenly(kv)[:-1]
    with pytest.raises(EncodeError, match="one finite number for each token"):
        codec.encode(Context(kv=kv, attended=wrong))
    spoilt = (torch.full_like(wrong[0], float("nan")), *evenly(kv)[1:])
    with pytest.raises(EncodeError, match="one finite number for each token"):
        codec.encode(Context(kv=kv, attended=spoilt))


def test_keys_that_cannot_be_turned_are_refused_before_anything_is_read() -> None:
    model = build("gpt2", len(TOKENIZER))
    with pytest.raises(ConfigError, match="keys can be turned"):
        codec_of(model)


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = build("llama", len(TOKENIZER))
    model.held = threading.Lock()
    try:
        with pytest.raises(ConfigError, match="whose modules can be copied"):
            attended(model, TOKENIZER, [], llama_kv(), [QUESTION], {})
    finally:
        del model.held


def test_questions_that_leave_no_room_for_an_answer_are_refused() -> None:
    model = build("llama", len(TOKENIZER))
    kv = llama_kv()
    with pytest.raises(EncodeError, match="a cache, question 0 of the codec and an answer"):
        attended(model, TOKENIZER, [], kv, [QUESTION * 2000], {})
