"""The contract that every registered codec keeps, and what is particular to each."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import ilcp
from ilcp.codec.context import Context
from ilcp.codec.registry import codec_class, codec_names
from ilcp.codec.spec import CodecSpec
from ilcp.errors import DecodeError, EncodeError, IdentityError, IlcpError
from ilcp.tasks import case_files
from ilcp_codecs.text import HeadCodec, LmCodec, PlainCodec, TailCodec, ZstdCodec
from ilcp_codecs.text.codecs import MAX_TEXT_BYTES
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork
from ilcp_codecs.vae.bottleneck import Bottleneck, dequantise, quantise
from ilcp_codecs.vae.pooler import SameTokenAttention

DOCUMENT = next(iter(case_files("validation", 0, 1))).context


@pytest.fixture(scope="module")
def zstd() -> ZstdCodec:
    """A zstd codec with a dictionary of a few hundred dossiers."""
    return ZstdCodec.fit((case.context for case in case_files("train", 0, 400)), 1000)


@pytest.fixture(scope="module")
def ready(small, zstd) -> Iterator[dict[str, Any]]:
    """The codecs that need more than a length; on one thread, because a step of a small model is too little for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {
        "vae": small.codec,
        "text-zstd": zstd,
        "text-lm": LmCodec(small.sender.model, small.sender.tokenizer, 4000),
    }
    torch.set_num_threads(threads)


@pytest.fixture(params=codec_names())
def codec(request, ready):
    """Every registered codec, ready to use."""
    return ready.get(request.param) or codec_class(request.param)(4000)


@pytest.fixture
def context(small, request) -> Context:
    """A context that has what any codec reads; a short one where a model reads it token by token."""
    by_token = "codec" in request.fixturenames and request.getfixturevalue("codec").spec.name == "text-lm"
    text = DOCUMENT[:300] if by_token else DOCUMENT
    return Context(text=text, states=small.sender.read(text).states)


def test_all_built_in_codecs_are_registered() -> None:
    """The built-in codecs come through the same entry points as anybody's."""
    assert {"vae", "text-plain", "text-head", "text-tail", "text-zstd", "text-lm"} <= set(codec_names())


def test_payload_is_deterministic_and_within_the_spec(codec, context) -> None:
    """The same context gives the same bytes, at most ``spec.payload_bytes`` of them."""
    payload = codec.encode(context)
    assert payload == codec.encode(context)
    assert 1 <= len(payload) <= codec.spec.payload_bytes


def test_decode_needs_the_payload_only_and_is_deterministic(codec, context, tmp_path) -> None:
    """A codec loaded from disk elsewhere decodes the same memory from the same bytes."""
    payload = codec.encode(context)
    ilcp.save(codec, tmp_path / "codec", card="# a test codec\n")
    again = ilcp.load(tmp_path / "codec")
    first, second = codec.decode(payload), again.decode(payload)
    assert codec.trained.codec_id(codec.spec) == again.trained.codec_id(again.spec)
    assert first.text == second.text
    assert first.vectors is None or torch.equal(first.vectors, second.vectors)


def test_a_shorter_payload_can_be_asked_for(codec, context) -> None:
    """``payload_bytes`` bounds the payload, and what comes out decodes."""
    if codec.spec.name == "text-plain":
        with pytest.raises(EncodeError, match="at most 40 bytes"):
            codec.encode(context, 40)
        return
    length = codec.spec.prefixes[0] if codec.spec.prefixes else 40
    payload = codec.encode(context, length)
    assert 1 <= len(payload) <= length
    assert codec.decode(payload) is not None


def test_lengths_out_of_the_spec_are_refused(codec, context) -> None:
    """No payload of zero bytes or of one too many is made or taken."""
    too_long = codec.spec.payload_bytes + 1
    for length in (0, too_long):
        with pytest.raises(EncodeError, match="payload_bytes"):
            codec.encode(context, length)
        with pytest.raises(DecodeError, match=f"got {length}"):
            codec.decode(bytes(length))


def test_an_empty_context_is_refused(codec) -> None:
    """A context with nothing in it cannot be encoded."""
    with pytest.raises(EncodeError, match="expected"):
        codec.encode(Context())


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_bytes_decode_or_are_refused(data, small, ready) -> None:
    """Arbitrary bytes give a finite memory of the right shape and norm, or a DecodeError; nothing else."""
    name = data.draw(st.sampled_from(codec_names()))
    codec = ready.get(name) or codec_class(name)(4000)
    lengths = st.sampled_from(codec.spec.prefixes) if codec.spec.prefixes else st.integers(1, 300)
    payload = data.draw(lengths.flatmap(lambda n: st.binary(min_size=n, max_size=n)))
    try:
        memory = codec.decode(payload)
    except DecodeError:
        assert codec.spec.reads == "text"  # every payload of a latent is a latent
        return
    if memory.text is None:
        norm = small.receiver.model.get_input_embeddings().weight.norm(dim=-1).mean().item()
        assert memory.checked_vectors(small.codec.config.receiver_hidden, norm).isfinite().all()


def test_prefixes_are_prefixes(small, context) -> None:
    """A shorter latent is a prefix of the longer, so that a message can be cut on its way."""
    whole = small.codec.encode(context)
    for length in small.codec.spec.prefixes:
        assert whole[:length] == small.codec.encode(context, length)


def test_bits_are_interleaved_over_the_slots(small) -> None:
    """The first bytes carry the first dimensions of every slot."""
    known = small.codec.network.known(2)
    assert (8, 16) == tuple(known.shape)
    assert torch.equal(known[:, :2], torch.ones(8, 2))
    assert 0 == known[:, 2:].sum()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_payload_and_training_agree_on_the_latent(bits: int, small, context) -> None:
    """What decode reads from the bytes is the latent that the network trained with, at every bit depth."""
    torch.manual_seed(bits)
    config = VaeConfig((0, 1, 2), 32, 48, slots=8, dims=16 // bits, bits=bits, prefixes=(8, 16), width=32, heads=4)
    network = VaeNetwork(config).eval()
    codec = VaeCodec.from_network(network, small.codec.trained.sender, small.codec.trained.receiver)
    with torch.no_grad():
        memory, _ = network(context.states[None], torch.ones(1, context.tokens))
    assert torch.allclose(memory[0], codec.decode(codec.encode(context)).vectors, atol=1e-6)


@given(bits=st.sampled_from([1, 2, 4]), values=st.lists(st.floats(-9, 9), min_size=1, max_size=20))
def test_quantiser_codes_are_within_range_and_ordered(bits: int, values: list[float]) -> None:
    """Codes fit their bits, keep the order of the values, and dequantise into [-1, 1]."""
    z = torch.tensor(sorted(values))
    codes = quantise(z, bits)
    assert 0 <= codes.min()
    assert codes.max() < 2**bits
    assert torch.equal(codes, codes.sort().values)
    assert dequantise(codes, bits).abs().max() <= 1


def test_the_straight_through_gradient_reaches_the_encoder(small) -> None:
    """A loss on the memory moves the pooler: rounding does not stop the gradient."""
    network = VaeNetwork(small.codec.config).train()
    memory, rate_bits = network(torch.randn(4, 3, 10, 32), torch.ones(4, 10))
    (memory.square().mean() * torch.randn(())).backward()
    assert rate_bits.shape == (4,)
    assert network.pooler.queries.grad.abs().sum() > 0


def test_padding_does_not_change_the_latent(small, context) -> None:
    """A document encodes to the same latent alone and padded in a batch."""
    states = context.states[None]
    padded = torch.nn.functional.pad(states, (0, 0, 0, 7), value=3.0)
    mask = torch.ones(1, padded.shape[2])
    mask[:, -7:] = 0
    echoing = VaeNetwork(replace(small.codec.config, same_token_attention=True)).eval()
    torch.nn.init.eye_(echoing.pooler.echo.out.weight)
    for network in (small.codec.network, echoing):
        with torch.no_grad():
            alone, _ = network.bottleneck(network.pooler(states, torch.ones(1, states.shape[2])))
            batched, _ = network.bottleneck(network.pooler(padded, mask))
        assert torch.allclose(alone, batched, atol=1e-4)


@torch.no_grad()
def test_an_echo_brings_what_stands_beside_the_same_word_elsewhere() -> None:
    torch.manual_seed(0)
    echo = SameTokenAttention(VaeConfig((0,), 24, 8, width=48, heads=6))
    words = torch.nn.functional.rms_norm(torch.randn(40, 24), (24,))
    echo.calibrate(words.unsqueeze(0), torch.ones(1, 40))
    document = [5, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 5, 13]  # word 5 twice, far apart; 13 stands beside its second
    states, x = words[document].unsqueeze(0), torch.randn(1, len(document), 48)
    mask = torch.ones(1, len(document))
    assert torch.equal(echo(states, x, mask), x)  # silent at the start
    torch.nn.init.eye_(echo.out.weight)
    heard = (echo(states, x, mask) - x)[0]
    torch.testing.assert_close(heard[0], x[0, 8:14].sum(0), rtol=0.05, atol=0.05)
    torch.testing.assert_close(heard[12], x[0, 0:5].sum(0), rtol=0.05, atol=0.05)
    assert heard[1:12].abs().max() < 0.1  # no other word is said twice
    mask[0, 12:] = 0
    assert (echo(states, x, mask) - x)[0, 0].abs().max() < 0.1  # what is padded is not heard


def test_an_echo_knows_words_by_the_first_layer(small) -> None:
    """Whatever the layers above say."""
    network = VaeNetwork(replace(small.codec.config, same_token_attention=True)).eval()
    seen: list[torch.Tensor] = []
    network.pooler.echo.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    states, mask = torch.randn(2, len(network.layers), 30, network.config.sender_hidden), torch.ones(2, 30)
    network.pooler(states, mask)
    torch.testing.assert_close(seen[0], torch.nn.functional.rms_norm(states[:, 0], states.shape[-1:]))


def test_two_slots_that_read_the_same_differ_by_their_own_codes() -> None:
    config = VaeConfig((0,), 24, 8, width=48, heads=6, per_slot_mu=True)
    linear = Bottleneck(config).to_mu
    same = torch.randn(1, 1, 48).expand(1, config.slots, 48)
    assert torch.equal(linear(same)[0, 0], linear(same)[0, 1])  # one matrix at the start
    linear(same)[0, 0].sum().backward()
    assert linear.weight.grad[0].abs().max() > 0
    assert linear.weight.grad[1:].abs().max() == 0


def test_configurations_check_their_arithmetic() -> None:
    """A VAE whose bits do not fill its bytes, and a spec whose prefixes do not end at its length, are refused."""
    with pytest.raises(EncodeError, match="16 x 39 x 1 = 624 bits"):
        VaeConfig((0,), 8, 8, dims=39)
    with pytest.raises(EncodeError, match="1, 2 or 4 bits"):
        VaeConfig((0,), 8, 8, bits=3)
    with pytest.raises(EncodeError, match="last prefix"):
        CodecSpec("x", 80, "states", (10, 40))


@given(text=st.text(min_size=1, max_size=200), length=st.integers(4, 120))
def test_head_and_tail_cut_between_characters(text: str, length: int) -> None:
    """Cut text is valid UTF-8, a beginning or an end of the text, and as long as fits."""
    raw = text.encode()
    head = HeadCodec().decode(HeadCodec().encode(Context(text=text), length)).text
    tail = TailCodec().decode(TailCodec().encode(Context(text=text), length)).text
    assert text.startswith(head)
    assert text.endswith(tail)
    assert min(len(raw), length) - 3 <= len(head.encode()) <= length


def test_zstd_sends_more_text_than_plain_in_the_same_bytes(zstd) -> None:
    """The dictionary pays: 80 bytes of zstd hold more of the document than 80 bytes of text."""
    payload = zstd.encode(Context(text=DOCUMENT), 80)
    text = zstd.decode(payload).text
    assert len(payload) <= 80
    assert DOCUMENT.startswith(text)
    assert len(text) > 80


def test_a_zstd_bomb_is_refused(zstd) -> None:
    """A frame that expands beyond the limit, or asks for a large window, is refused before the text is built."""
    text = b"a" * (MAX_TEXT_BYTES + 1000)
    bomb = zstd._compressor.compress(text)
    assert len(bomb) < 500
    with pytest.raises(DecodeError, match="expected a text of at most"):
        zstd.decode(bomb)
    wide = zstandard.ZstdCompressionParameters(window_log=23, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    with pytest.raises(DecodeError, match="expected a zstd frame"):
        zstd.decode(zstandard.ZstdCompressor(compression_params=wide).compress(text))


def test_plain_never_cuts() -> None:
    """The plain codec refuses what does not fit, and says which codecs cut."""
    with pytest.raises(EncodeError, match=r"got 6: codec 'text-head' or 'text-tail' cuts"):
        PlainCodec(5).encode(Context(text="abcdef"))


def test_damaged_weights_and_foreign_folders_are_refused(small, tmp_path) -> None:
    """A replaced weight, a missing file, a wrong format and a foreign folder each get a named error."""
    folder = tmp_path / "codec"
    ilcp.save(small.codec, folder, card="")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(IdentityError, match="expected codec weights"):
        ilcp.load(folder)
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(EncodeError, match="expected the codec's weights"):
        ilcp.load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 9}))
    with pytest.raises(EncodeError, match="format 1, got 9"):
        ilcp.load(folder)
    with pytest.raises(EncodeError, match="no such file or directory"):
        ilcp.load(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(EncodeError, match="choose another"):
        ilcp.save(small.codec, tmp_path / "other", card="")


def test_nan_states_and_nan_weights_are_refused(small, context) -> None:
    """NaN is stopped at both ends: going into an encoder, and coming out of a decoder."""
    with pytest.raises(EncodeError, match="NaN"):
        small.codec.encode(Context(states=torch.full((3, 5, 32), float("nan"))))
    network = VaeNetwork(small.codec.config)
    network.projector.scale.data.fill_(np.inf)
    broken = type(small.codec).from_network(network, small.codec.trained.sender, small.codec.trained.receiver)
    with pytest.raises(DecodeError, match="NaN or infinity"):
        broken.decode(bytes(16))


def test_rounded_weights_take_half_the_bytes_and_change_little(small, context, tmp_path) -> None:
    """What 16 bits hold is stored in 16 bits and loads to the very same codec; the memory hardly moves."""
    network = copy.deepcopy(small.codec.network)
    network.round_to_half()
    codec = VaeCodec.from_network(network, small.codec.trained.sender, small.codec.trained.receiver)
    for name, each in (("whole", small.codec), ("rounded", codec)):
        ilcp.save(each, tmp_path / name, card="# a test codec\n")
    whole, rounded = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "rounded"))
    assert rounded < 0.6 * whole
    again = ilcp.load(tmp_path / "rounded")
    assert codec.encode(context) == again.encode(context)
    payload = small.codec.encode(context)
    before, after = small.codec.decode(payload).vectors, codec.decode(payload).vectors
    assert torch.allclose(before, after, atol=2e-3)


def test_unknown_codec_names_are_refused_with_the_known_ones() -> None:
    """Asking for a codec that is not installed lists those that are."""
    with pytest.raises(IlcpError, match="text-head, text-lm, text-plain"):
        codec_class("telepathy")


def test_calibration_whitens_the_entry_and_colours_the_exit(small) -> None:
    """After it, the entry's outputs vary alike in all directions, and the memory lies where the embeddings lie."""
    torch.manual_seed(3)
    network = VaeNetwork(small.codec.config).eval()
    states = torch.randn(4, len(network.layers), 500, network.config.sender_hidden)
    states[..., 0] *= 20  # one direction that drowns the others
    embedding = torch.randn(900, network.config.receiver_hidden) * 0.3 + 2.0
    network.calibrate(states, torch.ones(4, 500), embedding.unsqueeze(1))
    unit = torch.nn.functional.rms_norm(states, states.shape[-1:]).permute(0, 2, 1, 3).flatten(2)
    entered = network.pooler.enter(unit).flatten(0, 1)
    assert torch.allclose(entered.T.cov(), torch.eye(entered.shape[1]), atol=0.05)
    told = network.blank(64).detach() - embedding.mean(0)
    assert told.square().mean().sqrt().item() == pytest.approx(0.3, rel=0.2)
    with pytest.raises(EncodeError, match="up to 8 slots, one per topic"):
        network.projector.match(embedding.reshape(100, 9, -1))
