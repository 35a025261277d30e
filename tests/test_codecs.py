"""The contract that every registered codec keeps, and what is particular to each."""

import copy
import json
import random
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import ilcp
from ilcp.codec.context import Context
from ilcp.codec.folder import attach_evidence
from ilcp.codec.protocols import is_trainable
from ilcp.codec.registry import codec_class, codec_names
from ilcp.codec.spec import CodecSpec
from ilcp.embedded import HERE
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError, StorageError
from ilcp.inputs import hidden
from ilcp.models.forward import embedding_norm
from ilcp.tasks import case_files
from ilcp.testing import CodecContract
from ilcp_codecs.text import HeadCodec, LmCodec, PlainCodec, TailCodec, ZstdCodec
from ilcp_codecs.text.codecs import MAX_TEXT_BYTES
from ilcp_codecs.trace import Trace, TraceCodec
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork
from ilcp_codecs.vae.bottleneck import Bottleneck, dequantise, quantise
from ilcp_codecs.vae.pooler import SameTokenAttention
from tests.helpers import present, text_of, vectors_of
from tests.prepared import PREPARED
from tests.spoiled import spoiled
from tests.test_kv import TOKENIZER
from tests.test_trace import PLAN, frozen, traced

GOLDEN = Path(__file__).parent / "golden"
DOCUMENT = next(iter(case_files("validation", 0, 1))).context


@pytest.fixture(scope="module")
def zstd() -> ZstdCodec:
    """A zstd codec with a dictionary of a few hundred dossiers."""
    return ZstdCodec.fit((case.context for case in case_files("train", 0, 400)), 1000)


@pytest.fixture(scope="module")
def lm(small) -> LmCodec:
    """A codec under a small language model."""
    return LmCodec(small.sender.model, small.sender.tokenizer, 4000)


@pytest.fixture
def context(small) -> Context:
    """A dossier, with its states."""
    return Context(text=DOCUMENT, states=small.sender.read(DOCUMENT).states)


class TestVae(CodecContract):
    """The flagship keeps the contract, as a codec of states that learns."""

    sender_hidden = 32

    @pytest.fixture
    def codec(self, small) -> VaeCodec:
        return small.codec

    @pytest.fixture
    def embedding_norm(self, small) -> float:
        return embedding_norm(small.receiver.model)

    @pytest.fixture
    def models(self, small) -> tuple[Any, Any]:
        return small.sender.model, small.receiver.model


class TestPlain(CodecContract):
    """The whole text keeps the contract."""

    codec = PlainCodec(4000)


class TestHead(CodecContract):
    """The beginning of the text keeps the contract."""

    codec = HeadCodec(4000)


class TestTail(CodecContract):
    """The end of the text keeps the contract."""

    codec = TailCodec(4000)


class TestZstd(CodecContract):
    """Text under zstd keeps the contract."""

    @pytest.fixture
    def codec(self, zstd) -> ZstdCodec:
        return zstd


class TestLm(CodecContract):
    """Text under a language model keeps the contract; a model reads it token by token, so the examples are fewer."""

    examples = 20

    @pytest.fixture
    def codec(self, lm) -> LmCodec:
        return lm


class TestTrace(CodecContract):
    """Latent traces keep the contract; the agents of a tiny Llama wrote the one that is its context."""

    @pytest.fixture
    def codec(self) -> TraceCodec:
        return TraceCodec.of(frozen(), TOKENIZER, PLAN)

    @pytest.fixture
    def context(self) -> Trace:
        return traced()


def test_every_registered_codec_is_under_the_contract() -> None:
    """Each built-in codec comes through the entry points that everybody's codec uses, and has its tests."""
    tested = {"vae", "facts", "text-plain", "text-head", "text-tail", "text-zstd", "text-lm"}
    tested |= {"kv-exact", "kv-int8", "kv-int4", "kv-pca", "kv-compact", "kv-align", "trace"}
    assert tested == {name for name in codec_names() if codec_class(name).__module__.startswith("ilcp_codecs.")}


def test_plain_says_what_does_not_fit(context) -> None:
    """A limit that the text exceeds is refused with both numbers: this codec never cuts."""
    with pytest.raises(EncodeError, match="at most 40 bytes"):
        PlainCodec().encode(context, 40)


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
    assert torch.allclose(memory[0], vectors_of(codec.decode(codec.encode(context))), atol=1e-6)


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
    assert present(network.pooler.queries.grad).abs().sum() > 0


def test_padding_does_not_change_the_latent(small, context) -> None:
    """A document encodes to the same latent alone and padded in a batch."""
    states = context.states[None]
    padded = torch.nn.functional.pad(states, (0, 0, 0, 7), value=3.0)
    mask = torch.ones(1, padded.shape[2])
    mask[:, -7:] = 0
    attending = VaeNetwork(replace(small.codec.config, same_token_attention=True)).eval()
    torch.nn.init.eye_(present(attending.pooler.echo).out.weight)
    for network in (small.codec.network, attending):
        with torch.no_grad():
            alone, _ = network.bottleneck(network.pooler(states, torch.ones(1, states.shape[2])))
            batched, _ = network.bottleneck(network.pooler(padded, mask))
        assert torch.allclose(alone, batched, atol=1e-4)


@torch.no_grad()
def test_same_token_attention_brings_what_stands_beside_the_same_word_elsewhere() -> None:
    """A word that occurs twice gets the tokens around its other occurrence, and no other word changes."""
    torch.manual_seed(0)
    attend = SameTokenAttention(VaeConfig((0,), 24, 8, width=48, heads=6))
    words = torch.nn.functional.rms_norm(torch.randn(40, 24), (24,))
    attend.calibrate(words.unsqueeze(0), torch.ones(1, 40))
    document = [5, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 5, 13]  # word 5 twice, far apart; 13 stands beside its second
    states, x = words[document].unsqueeze(0), torch.randn(1, len(document), 48)
    mask = torch.ones(1, len(document))
    assert torch.equal(attend(states, x, mask), x)  # the identity at the start
    torch.nn.init.eye_(attend.out.weight)
    added = (attend(states, x, mask) - x)[0]
    torch.testing.assert_close(added[0], x[0, 8:14].sum(0), rtol=0.05, atol=0.05)
    torch.testing.assert_close(added[12], x[0, 0:5].sum(0), rtol=0.05, atol=0.05)
    assert added[1:12].abs().max() < 0.1  # no other word occurs twice
    mask[0, 12:] = 0
    assert (attend(states, x, mask) - x)[0, 0].abs().max() < 0.1  # padding adds nothing


def test_same_token_attention_knows_words_by_the_first_layer(small) -> None:
    """Its words are the first layer's states at unit RMS, whatever the layers above say."""
    network = VaeNetwork(replace(small.codec.config, same_token_attention=True)).eval()
    seen: list[torch.Tensor] = []
    present(network.pooler.echo).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    states, mask = torch.randn(2, len(network.layers), 30, network.config.sender_hidden), torch.ones(2, 30)
    network.pooler(states, mask)
    torch.testing.assert_close(seen[0], torch.nn.functional.rms_norm(states[:, 0], states.shape[-1:]))


def test_two_slots_that_read_the_same_differ_by_a_mu_of_their_own() -> None:
    """Each slot has a matrix of its own: alike at the start, with gradients of its own."""
    config = VaeConfig((0,), 24, 8, width=48, heads=6, per_slot_mu=True)
    linear = Bottleneck(config).to_mu
    same = torch.randn(1, 1, 48).expand(1, config.slots, 48)
    assert torch.equal(linear(same)[0, 0], linear(same)[0, 1])  # one matrix at the start
    linear(same)[0, 0].sum().backward()
    gradient = present(linear.weight.grad)
    assert gradient[0].abs().max() > 0
    assert gradient[1:].abs().max() == 0


def test_a_configuration_of_before_is_read_under_its_earlier_names() -> None:
    """``config.json`` as the first version wrote it gives today's fields; what nobody knows is named."""
    record = json.loads((GOLDEN / "codec-config.json").read_text(encoding="utf-8"))["settings"]
    config = VaeConfig.from_dict(record)
    assert (0.0, True, True) == (config.locality_bias, config.same_token_attention, config.per_slot_mu)
    assert (20, 8) == (config.priority_slots, config.priority_dims)
    assert config == VaeConfig.from_dict(json.loads(json.dumps(asdict(config))))
    assert set(record) <= {*VaeCodec.settings(), "sender_hidden", "receiver_hidden"}  # a recipe may say them too
    with pytest.raises(ConfigError, match="a key of a VaeConfig, got 'slot'; did you mean 'slots'"):
        VaeConfig.from_dict(record | {"slot": 3})
    with pytest.raises(ConfigError, match="one name for each number in a VaeConfig, got echo and same_token_attention"):
        VaeConfig.from_dict(record | {"same_token_attention": False})
    with pytest.raises(StorageError, match=r"a whole number for 'dims' in settings of x, got 'many'"):
        VaeConfig.from_dict(record | {"dims": "many"}, "settings of x", error=StorageError)


def test_a_codecs_folder_of_before_loads_with_the_same_weights_names(tmp_path) -> None:
    """The embedded codec's folder, with the config.json of the first version, is the codec that it was."""
    shutil.copytree(HERE / "codec", tmp_path / "codec")
    shutil.copyfile(GOLDEN / "codec-config.json", tmp_path / "codec" / "config.json")
    codec = ilcp.load(tmp_path / "codec")
    assert "167afcc98521e789" == codec.trained.codec_id(codec.spec).hex()
    assert isinstance(codec, VaeCodec)
    names = set(codec.network.state_dict())
    assert {"pooler.echo.like.weight", "pooler.blocks.0.nearness", "bottleneck.to_mu.weight"} <= names
    ilcp.save(codec, tmp_path / "again")
    assert "locality_bias" in json.loads((tmp_path / "again" / "config.json").read_text())["settings"]
    assert codec.trained.codec_id(codec.spec) == ilcp.load(tmp_path / "again").trained.codec_id(codec.spec)


def test_what_a_codec_reads_is_checked_in_one_place() -> None:
    """A spec that reads what nobody knows is refused with what there is; each kind says whether the sender runs."""
    with pytest.raises(ConfigError, match="expected a codec to read 'states' or 'text' or 'cache', got 'kv'"):
        CodecSpec("x", 80, "kv")
    assert [True, False, True] == [CodecSpec("x", 80, reads).runs_sender for reads in ("states", "text", "cache")]


def test_codecs_that_learn_are_told_from_those_that_do_not(small) -> None:
    """The protocol is seen of a codec and of its class."""
    assert is_trainable(small.codec)
    assert is_trainable(VaeCodec)
    assert not is_trainable(PlainCodec(80))
    assert not is_trainable(PlainCodec)


def test_configurations_check_their_arithmetic() -> None:
    """A VAE whose bits do not fill its bytes, and a spec whose prefixes do not end at its length, are refused."""
    with pytest.raises(ConfigError, match="16 x 39 x 1 = 624 bits"):
        VaeConfig((0,), 8, 8, dims=39)
    with pytest.raises(ConfigError, match="1, 2 or 4 bits"):
        VaeConfig((0,), 8, 8, bits=3)
    with pytest.raises(ConfigError, match="last prefix"):
        CodecSpec("x", 80, "states", (10, 40))


@given(
    text=st.text(min_size=1, max_size=200).filter(lambda text: not any(map(hidden, text))), length=st.integers(4, 120)
)
def test_head_and_tail_cut_between_characters(text: str, length: int) -> None:
    """Cut text is valid UTF-8, a beginning or an end of the text, and as long as fits."""
    raw = text.encode()
    head = text_of(HeadCodec().decode(HeadCodec().encode(Context(text=text), length)))
    tail = text_of(TailCodec().decode(TailCodec().encode(Context(text=text), length)))
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
    bomb = zstd._compressor().compress(text)
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


@pytest.mark.parametrize("nothing", [None, 3])
def test_what_is_no_folder_is_refused_by_name(nothing: Any) -> None:
    """Neither a path nor an id: the sentence says what was expected."""
    with pytest.raises(ConfigError, match=r"expected a codec's folder or its id on a hub, got (NoneType|int)"):
        ilcp.load(nothing)


def test_whoever_may_read_the_config_may_read_the_weights(small, tmp_path) -> None:
    """A codec on a shared disk loads for colleagues: no file of its folder is closed to who can read another."""
    ilcp.save(small.codec, tmp_path / "codec", card="A card")
    assert 1 == len({file.stat().st_mode for file in (tmp_path / "codec").iterdir()})


def test_loading_draws_no_random_number_and_asks_for_no_default_dtype(tmp_path) -> None:
    """Whatever dtype torch makes by default, codecs and the embedded pair load, encode and answer alike; and the random
    numbers that come next are those that would have come."""
    expected, message = ilcp.load_pair(), ilcp.load_pair().sender.encode(DOCUMENT)
    answer = expected.receiver.generate(message, "Which region is affected?", max_new_tokens=4)
    score = expected.receiver.score([(message, "Which region is affected?", answer)])
    before = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()  # the global one
    torch.set_default_dtype(torch.bfloat16)
    try:
        pair = ilcp.load_pair()
        assert message == pair.sender.encode(DOCUMENT)
        assert answer == pair.receiver.generate(message, "Which region is affected?", max_new_tokens=4)
        assert score == pair.receiver.score([(message, "Which region is affected?", answer)])
        lm = LmCodec(pair.sender.model, pair.sender.tokenizer, 400)
        ilcp.save(lm, tmp_path)
        assert lm.encode(Context(text="Mara")) == ilcp.load(tmp_path).encode(Context(text="Mara"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before[0], torch.get_rng_state())
    assert repr(before[1:]) == repr((np.random.get_state(legacy=False), random.getstate()))


@pytest.mark.parametrize("kind", ["peft: LoRA on the embeddings", "peft: embeddings of new tokens"])
def test_a_codec_is_made_for_models_with_an_adapter_around_their_embeddings(kind: str) -> None:
    """The width of the memory is that of the embeddings inside."""
    model = PREPARED[kind]().model
    assert 64 == VaeCodec.untrained(model, model, {"width": 32, "heads": 4}).config.receiver_hidden


def test_a_network_left_in_training_mode_encodes_and_decodes_as_ever(small, context) -> None:
    """A codec whose network somebody trains on gives one message and one memory, and the mode stays as it was."""
    payload = small.codec.encode(context)
    memory, rough = small.codec.decode(payload), small.codec.decode_unrounded(context)
    small.codec.network.train()
    try:
        assert payload == small.codec.encode(context)
        assert memory.digest() == small.codec.decode(payload).digest()
        assert rough.digest() == small.codec.decode_unrounded(context).digest()
        assert small.codec.network.bottleneck.training
    finally:
        small.codec.network.eval()


def test_damaged_weights_and_mismatched_folders_are_refused(small, tmp_path) -> None:
    """A replaced weight, a missing file, a wrong format and another codec's folder each get a named error."""
    folder = tmp_path / "codec"
    ilcp.save(small.codec, folder, card="")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(IdentityError, match="expected codec weights"):
        ilcp.load(folder)
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(StorageError, match="expected the codec's weights"):
        ilcp.load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 9}))
    with pytest.raises(StorageError, match="format 1, got 9"):
        ilcp.load(folder)
    with pytest.raises(ConfigError, match="no such file or directory"):
        ilcp.load(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="choose another"):
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
    before, after = (vectors_of(each.decode(payload)) for each in (small.codec, codec))
    assert torch.allclose(before, after, atol=2e-3)


def test_unknown_codec_names_are_refused_with_the_known_ones() -> None:
    """Asking for a codec that is not installed lists those that are."""
    with pytest.raises(ConfigError, match="text-head, text-lm, text-plain"):
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
    with pytest.raises(ConfigError, match="up to 8 slots, one per topic"):
        network.projector.match(embedding.reshape(100, 9, -1))


def _damage(folder: Path, **changes: Any) -> None:
    """Changes keys of a codec's config.json."""
    config = folder / "config.json"
    record = json.loads(config.read_text(encoding="utf-8"))
    if "evidence" in changes:  # under one name
        record.pop("proof", None)
    config.write_text(json.dumps(record | changes), encoding="utf-8")


def test_a_damaged_config_gives_a_codec_or_a_named_error(small, tmp_path) -> None:
    """Whatever stands in the place of a key: the error names the file, and is the folder's, never Python's own.

    A codec that nobody has installed is the one ``ConfigError``: no byte is wrong, a package is missing.
    """
    folder = tmp_path / "codec"
    ilcp.save(small.codec, folder)
    config = folder / "config.json"
    record = json.loads(config.read_text(encoding="utf-8"))
    record["evidence"] = json.loads((HERE / "codec" / "config.json").read_text(encoding="utf-8"))["proof"]
    record["training"] = {"plan": {"sender": "a"}}
    for path, damaged in spoiled(record):
        config.write_text(json.dumps(damaged), encoding="utf-8")
        try:
            ilcp.load(folder)
            continue
        except (StorageError, IdentityError, ConfigError) as error:
            kind, said = type(error), str(error)
        except Exception as error:
            raise AssertionError(f"{path}: {error!r}") from error
        assert str(folder) in said, path
        assert kind is not IdentityError or re.match("expected codec weights|expected the codec spec", said), path
        assert kind is not ConfigError or "installed codecs" in said, path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": []}, r"a table for 'settings' in .*config\.json, got \[\]"),
        ({"settings": None}, r"a table for 'settings' in .*config\.json, got None"),
        ({"trained": {"receiver": {}, "weights": ""}}, r"expected 'sender' in trained of .*config\.json, got nothing"),
        ({"training": "x"}, r"a table or nothing for 'training' in .*config\.json, got 'x'"),
        ({"evidence": {"low": 1}}, r"config\.json: expected .* in the evidence, got nothing: measure again"),
    ],
)
def test_the_text_names_the_damaged_key_of_a_config(tmp_path, changes, said) -> None:
    """File, key, what was expected and what came."""
    shutil.copytree(HERE / "codec", tmp_path / "codec")
    _damage(tmp_path / "codec", **changes)
    with pytest.raises(StorageError, match=said):
        ilcp.load(tmp_path / "codec")


def test_numbers_of_a_config_that_contradict_each_other_are_damage(tmp_path) -> None:
    """They are no argument of the caller's; the text says them, and where they stand."""
    shutil.copytree(HERE / "codec", tmp_path / "codec")
    record = json.loads((tmp_path / "codec" / "config.json").read_text(encoding="utf-8"))
    for key, change, said in (
        ("settings", {"heads": 7}, "width to be a multiple of heads, got 192 and 7: settings in .*config.json"),
        ("settings", {"sender_hidden": -1}, "whole numbers from 1 to 1048576 for .*sender_hidden"),
        ("spec", {"payload_bytes": 0}, "payload_bytes from 1 to 65535, got 0: spec in .*config.json"),
    ):
        _damage(tmp_path / "codec", **{**record, key: record[key] | change})
        with pytest.raises(StorageError, match=said):
            ilcp.load(tmp_path / "codec")
    (tmp_path / "codec" / "config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(StorageError, match="expected JSON in"):
        ilcp.load(tmp_path / "codec")


def test_damaged_evidence_is_mended_by_measuring_again(tmp_path) -> None:
    """Who measures loads the codec without it; attaching new evidence makes the folder whole, card and all."""
    folder = tmp_path / "codec"
    shutil.copytree(HERE / "codec", folder)
    held = present(ilcp.load(folder).evidence)
    _damage(folder, evidence={"low": "x"})
    with pytest.raises(StorageError, match="measure again"):
        ilcp.load_pair(folder)
    assert ilcp.load_pair(folder, allow_unmeasured=True).sender.codec.evidence is None
    (folder / "README.md").write_bytes(b"\xff")
    with pytest.raises(StorageError, match=r"expected a card as text in .*README\.md"):
        attach_evidence(folder, held)
    (folder / "README.md").unlink()
    attach_evidence(folder, held)
    assert held == ilcp.load(folder).evidence
    assert held == ilcp.load_pair(folder, allow_unmeasured=True).sender.codec.evidence


def test_a_codec_cannot_be_saved_in_place_of_a_file_and_its_name_may_be_long(small, tmp_path) -> None:
    """A file in the folder's place is a StorageError; a folder's name may take what the file system gives."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="expected room for a codec"):
        ilcp.save(small.codec, tmp_path / "file")
    ilcp.save(small.codec, tmp_path / ("n" * 255))
    assert {"file", "n" * 255} == {path.name for path in tmp_path.iterdir()}


def test_a_damaged_dictionary_is_not_the_codecs(zstd, tmp_path) -> None:
    """Whatever stands in the dictionary's file: it is not the one that the codec was saved with."""
    ilcp.save(zstd, tmp_path / "codec")
    file = tmp_path / "codec" / "dictionary.zstd"
    whole = file.read_bytes()
    for damaged in (b"", b"junk", whole[:9], whole[:500], whole[:8] + bytes(4) + whole[12:]):
        file.write_bytes(damaged)
        with pytest.raises(IdentityError, match="expected dictionary"):
            ilcp.load(tmp_path / "codec")
