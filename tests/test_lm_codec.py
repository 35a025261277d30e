"""Text under a language model: every text comes back, in about as many bits as the model says, and none is wasted."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ilcp
from ilcp.codec.context import Context
from ilcp.embedded import HERE
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError, StorageError
from ilcp.inputs import hidden
from ilcp.models.loading import load_model
from ilcp.tasks import case_files
from ilcp_codecs import range_code
from ilcp_codecs.text import LmCodec, ZstdCodec, lm
from tests.helpers import make_model, make_tokenizer, text_of

DOSSIERS = [case.context for case in case_files("test", 7, 2)]
ODD = [
    " a",
    "a ",
    "a  b\n\n\tc\r\n",
    "\ufffd",
    "cut \ufffd",
    "\t",
    "<s>hi</s>",
    "Hello<|user|> you",
    "▁x",
    "\u3000\u00a0 wide",
    "e\u0301\U0001f468\u200d\U0001f469",
    "\u05d0 right to left",
    "\U0003134a\u0fff",
]


@pytest.fixture(scope="module")
def random_lm(small) -> LmCodec:
    """A codec under a small model that knows nothing."""
    return LmCodec(small.sender.model, small.sender.tokenizer, 4000)


@pytest.fixture(scope="module")
def trained_lm() -> LmCodec:
    """A codec under the embedded sender, which knows dossiers."""
    return LmCodec(*load_model(HERE / "sender"), 4000)


def encode(codec: LmCodec, text: str, payload_bytes: int | None = None) -> bytes:
    return codec.encode(Context(text=text), payload_bytes)


@given(text=st.text(min_size=1, max_size=40).filter(lambda text: hidden(text) is None))
@settings(max_examples=60, deadline=None)
@example(text="\ufffd")
@example(text="𝔲" * 40)
def test_any_text_comes_back_in_the_bytes_that_the_model_says(text: str, random_lm) -> None:
    """A text decodes to itself, and its payload is within 4 bytes of the code length."""
    payload = encode(random_lm, text)
    assert text == random_lm.decode(payload).text
    assert abs(len(payload) - random_lm.code_length_bits(text) / 8) <= 4


@pytest.mark.parametrize("text", ODD)
def test_what_the_tokenizer_loses_comes_back(text: str, random_lm, trained_lm) -> None:
    """Texts that a tokenizer changes come back, be it byte-level or with a space that it adds and strips."""
    for codec in (random_lm, trained_lm):
        assert text == text_of(codec.decode(encode(codec, text)))


@pytest.mark.parametrize("text", DOSSIERS)
def test_a_dossier_comes_back_in_the_bytes_that_the_model_says(text: str, trained_lm) -> None:
    """A dossier decodes to itself, and its payload is within 4 bytes of the code length of the trained model."""
    payload = encode(trained_lm, text)
    assert text == text_of(trained_lm.decode(payload))
    assert abs(len(payload) - trained_lm.code_length_bits(text) / 8) <= 4


def test_the_code_length_is_that_of_the_model(trained_lm) -> None:
    """The code length is the loss of a plain forward pass, but for the floor, the mode and the open end."""
    text, model, tokenizer = DOSSIERS[0], trained_lm.model, trained_lm.tokenizer
    start = tokenizer.convert_tokens_to_ids(["<s>", "<|user|>"])
    ids = torch.tensor([start + tokenizer(text, add_special_tokens=False).input_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(start) - 1 : -1]
    bits = torch.nn.functional.cross_entropy(logits, ids[0, len(start) :], reduction="sum").item() / math.log(2)
    assert bits - 1 <= trained_lm.code_length_bits(text) <= bits + 16


@pytest.mark.parametrize("length", [2, 10, 40])
@pytest.mark.parametrize("text", DOSSIERS)
def test_the_head_is_the_longest_that_fits(text: str, length: int, trained_lm) -> None:
    """At N bytes the text decodes to a beginning of itself, and one token more does not fit into N bytes."""
    payload = encode(trained_lm, text, length)
    head = text_of(trained_lm.decode(payload))
    assert len(payload) <= length
    assert text.startswith(head)
    ids = trained_lm.tokenizer(text, add_special_tokens=False).input_ids
    longer = next(more for k in range(len(ids)) if len(more := trained_lm.tokenizer.decode(ids[: k + 1])) > len(head))
    assert text.startswith(longer)
    assert length < len(encode(trained_lm, longer))


@given(text=st.text(min_size=1, max_size=30).filter(lambda text: hidden(text) is None), length=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_any_text_is_cut_between_characters(text: str, length: int, random_lm) -> None:
    """A payload of any length decodes to a beginning of the text, or not even one character fits."""
    try:
        payload = encode(random_lm, text, length)
    except EncodeError:
        assert length <= 6  # four bytes, and the mode
        return
    assert len(payload) <= length
    assert text.startswith(random_lm.decode(payload).text)


def test_one_text_is_cut_to_many_lengths_as_if_each_were_the_first(small, random_lm) -> None:
    """What the codec keeps of the latest text does not change a payload."""
    text = DOSSIERS[0][:200]
    for length in (10, 60, 20):
        fresh = LmCodec(small.sender.model, small.sender.tokenizer)
        assert encode(fresh, text, length) == encode(random_lm, text, length)


def test_a_trained_model_pays(trained_lm) -> None:
    """A model that knows dossiers writes one in far fewer bytes than zstd with a dictionary of them."""
    zstd = ZstdCodec.fit((case.context for case in case_files("train", 0, 400)), 4000)
    text = DOSSIERS[1]
    assert 3 * len(encode(trained_lm, text)) < len(zstd.encode(Context(text=text)))


@given(payload=st.binary(min_size=1, max_size=50))
@settings(max_examples=60, deadline=None)
@example(payload=b"\xff" * 8)
@example(payload=bytes(8))
def test_any_bytes_decode_or_are_refused(payload: bytes, random_lm) -> None:
    """Arbitrary bytes give some text, the same every time, or a DecodeError; nothing else."""
    try:
        text = random_lm.decode(payload).text
    except DecodeError:
        return
    assert text
    assert text == random_lm.decode(payload).text


def test_the_model_is_asked_a_bounded_number_of_times(small, monkeypatch) -> None:
    """Bytes that would decode to many tokens cost at most MAX_TOKENS steps, and longer texts come back all the same."""
    codec, steps = LmCodec(small.sender.model, small.sender.tokenizer), []
    monkeypatch.setattr(lm, "MAX_TOKENS", 8)
    codec._exact.register_forward_hook(lambda *_: steps.append(1))
    assert text_of(codec.decode(bytes(range(100))))
    assert 8 == len(steps)
    assert DOSSIERS[0][:100] == text_of(codec.decode(encode(codec, DOSSIERS[0][:100])))


def test_a_model_that_is_certain_reads_no_more_tokens_than_anybody_writes() -> None:
    """Where a token costs next to nothing, a few bytes would be thousands: so many are neither read nor written."""
    model, tokenizer, steps = make_model(300), make_tokenizer(300), list[int]()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(1.0)
        model.lm_head.weight.copy_(torch.eye(300)[:, :1] @ torch.ones(1, 32))  # the first token, whatever came before
    codec = LmCodec(model, tokenizer, 4000)
    codec._exact.register_forward_hook(lambda *_: steps.append(1))
    with pytest.raises(DecodeError, match="expected at most 704 tokens in 80 bytes, got more"):
        codec.decode(bytes(80))
    assert len(steps) <= 706
    text = tokenizer.decode([0]) * 300
    payload = encode(codec, text, 20)
    found = text_of(codec.decode(payload))
    assert text.startswith(found)
    assert 64 < len(found) / len(tokenizer.decode([0])) <= 64 + 8 * len(payload)


@pytest.mark.parametrize("template", [None, "{{ bos_token }}{{ messages[0]['content'] }}"])
@pytest.mark.parametrize("bos", [None, "<s>"])
def test_texts_longer_than_the_window_come_back(template: str | None, bos: str | None) -> None:
    """A model of 16 tokens codes 100 characters, with and without a first token of its own and a chat template."""
    tokenizer = make_tokenizer(300, template)
    tokenizer.bos_token = bos
    codec, held = LmCodec(make_model(len(tokenizer), window=16), tokenizer), []
    codec._exact.register_forward_hook(lambda *call: held.append(call[-1].past_key_values.get_seq_length()))
    text = DOSSIERS[0][:100]
    assert text == text_of(codec.decode(encode(codec, text)))
    assert 16 == max(held)


def test_a_window_without_room_and_damaged_weights_are_refused() -> None:
    """A window that the prompt fills, and a model that answers NaN, get a named error."""
    tokenizer = make_tokenizer(300)
    with pytest.raises(ConfigError, match="at least 6 tokens, because the prompt before a context has 1, got 5"):
        LmCodec(make_model(len(tokenizer), window=5), tokenizer)
    model = make_model(len(tokenizer))
    model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(ConfigError, match="got NaN or infinity"):
        encode(LmCodec(model, tokenizer), "a")


def test_it_is_saved_with_its_model(random_lm, tmp_path) -> None:
    """The codec loads from its folder with the same id and reads the payload; its sender is that model, no other."""
    text = DOSSIERS[0][:100]
    ilcp.save(random_lm, tmp_path / "codec", card="")
    again = ilcp.load(tmp_path / "codec")
    assert random_lm.trained.codec_id(random_lm.spec) == again.trained.codec_id(again.spec)
    assert text == text_of(again.decode(encode(random_lm, text)))
    ilcp.Sender(random_lm.model, random_lm.tokenizer, again)
    with pytest.raises(IdentityError, match="not trained for this sender: it differs in weights"):
        ilcp.Sender(make_model(300, seed=9), random_lm.tokenizer, again)


def test_threads_and_memory_do_not_change_a_payload(trained_lm, tmp_path) -> None:
    """A codec whose weights lie elsewhere, on another number of threads, reads the text that was written."""
    payload = encode(trained_lm, DOSSIERS[0], 10)
    ilcp.save(trained_lm, tmp_path / "codec", card="")
    shifted = ilcp.load(tmp_path / "codec")
    torch.set_num_threads(2)
    try:
        assert text_of(trained_lm.decode(payload)) == text_of(shifted.decode(payload))
    finally:
        torch.set_num_threads(1)


def test_another_model_in_the_folder_is_refused(random_lm, tmp_path) -> None:
    """A replaced model is an IdentityError that says so, a missing one an StorageError."""
    folder = tmp_path / "codec"
    ilcp.save(random_lm, folder, card="")
    make_model(len(random_lm.tokenizer), seed=9).save_pretrained(folder / "lm")
    with pytest.raises(IdentityError, match=r"not trained for this language model: it differs in weights \(expected"):
        ilcp.load(folder)
    (folder / "lm" / "model.safetensors").unlink()
    with pytest.raises(StorageError, match="expected a language model and its tokenizer"):
        ilcp.load(folder)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 300), count=st.integers(1, 30), sharp=st.floats(0, 12))
@settings(max_examples=200, deadline=None)
def test_a_payload_decides_its_symbols_and_no_more(seed: int, size: int, count: int, sharp: float) -> None:
    """Whatever the probabilities, even or sharp, a payload decodes to exactly the symbols that it was made for."""
    random = np.random.default_rng(seed)
    tables = np.exp(sharp * random.standard_normal((count + 1, size)))
    tables = (1 - lm.FLOOR) * tables / tables.sum(-1, keepdims=True) + lm.FLOOR / size
    symbols = [int(random.choice(size, p=table)) for table in tables[:-1]]

    def source() -> range_code.Source:
        steps = iter(tables)
        return lambda latest: next(steps)

    path = range_code.walk(symbols, source(), math.inf)
    for first in {1, count // 2 + 1, count}:
        payload = range_code.payload_of(path, first, 1000)
        assert symbols[:first] == range_code.decided(payload, source())
        assert len(payload) <= (path.bits[first] + path.steps[first].open_bits) / 8 + 1.1
