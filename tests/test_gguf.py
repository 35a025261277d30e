"""Models from GGUF files: what is loaded, how it is identified, and what is refused. The files are written here."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
import transformers
from jinja2.exceptions import SecurityError

import ilcp
from ilcp.errors import ConfigError, MissingExtraError
from ilcp.models import sources
from ilcp.models.fingerprint import identify, weights_digest
from ilcp.models.loading import load_model
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork
from tests.helpers import TEMPLATE, make_model, make_tokenizer, noting

KINDS = ("F32", "F16", "Q8_0")
TEXT = "Ana 2024, y  más:\n- <|user|> über"


def write_gguf(
    file: Path, model: Any, tokenizer: Any, kind: str = "F32", *, without: str = "", **fields: Any
) -> dict[str, torch.Tensor]:
    """Writes a Llama as llama.cpp does; returns the weights that its reader should find, by transformers' names.

    Args:
        without: leaves out the weights whose name has this in it.
        fields: metadata that are texts, over the usual ones; an empty one is left out.
    """
    config = model.config
    writer = gguf.GGUFWriter(file, fields.pop("architecture", "llama"))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    record = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {token["content"] for token in record["added_tokens"]}
    if fields.get("vocabulary", "gpt2"):
        writer.add_tokenizer_model(fields.get("vocabulary", "gpt2"))
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in special else 1 for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in record["model"]["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(1)
        writer.add_add_bos_token(False)
    if isinstance(template := fields.get("template", tokenizer.chat_template), str):
        writer.add_chat_template(template)
    elif template is not None:
        writer.add_uint32("tokenizer.chat_template", template)
    written = _add_weights(writer, model, gguf.GGMLQuantizationType[kind], without)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _add_weights(writer: Any, model: Any, kind: Any, without: str) -> dict[str, torch.Tensor]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    written = {}
    for name, tensor in model.state_dict().items():
        if without and without in name:
            continue
        array = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp pairs the halves of a rotated head
            heads = model.config.num_attention_heads
            array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        used = kind if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(array, used)
        writer.add_tensor(names.get_name(name, (".weight",)), packed, raw_dtype=used)
        whole = gguf.quants.quantize(tensor.numpy(), used)  # rows are packed one by one: their order changes nothing
        written[name] = torch.from_numpy(gguf.quants.dequantize(whole, used).copy())
    return written


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A random Llama and its tokenizer, and a folder with a GGUF of it of every kind."""
    folder = tmp_path_factory.mktemp("gguf")
    tokenizer = make_tokenizer(300)
    model = make_model(len(tokenizer), seed=1)
    weights = {kind: write_gguf(folder / f"{kind}.gguf", model, tokenizer, kind) for kind in KINDS}
    return SimpleNamespace(folder=folder, model=model, tokenizer=tokenizer, weights=weights)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_the_model_that_it_was_made_of(made, kind: str) -> None:
    """Weights as they were written, the tokenizer's ids of a text, the chat template; whole numbers are unpacked."""
    model, tokenizer = load_model(made.folder / f"{kind}.gguf")
    plain = make_model(len(made.tokenizer), seed=1)
    plain.load_state_dict(made.weights[kind])
    assert weights_digest(plain) == weights_digest(model)
    for text in (TEXT, "<|endoftext|>"):  # the second is GPT-2's, and no token of this vocabulary
        assert made.tokenizer(text).input_ids == tokenizer(text).input_ids
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert tokenizer.chat_template == TEMPLATE
    assert len(tokenizer) == len(made.tokenizer)  # no more than the model has embeddings
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == model.config.eos_token_id == 1
    assert tokenizer.bos_token == "<s>"
    ids = torch.arange(12).unsqueeze(0)
    torch.testing.assert_close(plain(ids).logits, model(ids).logits)
    assert not model.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_identified_like_the_folder_that_it_is_saved_to(
    made, tmp_path, caplog, kind: str, dtype: str
) -> None:
    """Saved and loaded again in the same dtype: the same identity, and no word of a quantisation."""
    model, tokenizer = load_model(f"{made.folder}:{kind}.gguf", dtype=dtype)
    assert not getattr(model, "is_quantized", False)
    assert not hasattr(model.config, "quantization_config")
    assert "packed" not in caplog.text  # transformers 5, where it computes with the file's blocks
    assert str(model.dtype) == f"torch.{dtype}"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "quantization" not in (tmp_path / "config.json").read_text()
    assert identify(model, tokenizer) == identify(*load_model(tmp_path, dtype=dtype))


def test_a_sender_from_a_file_reaches_a_receiver_from_the_folder(made, tmp_path) -> None:
    """What the one encodes, the other decodes: a codec fits the model, wherever it was loaded from."""
    model, tokenizer = load_model(made.folder / "Q8_0.gguf", encoder=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(3)
    config = VaeConfig((0, 1, 2), 32, 32, slots=8, dims=16, prefixes=(4, 16), width=32, heads=4, projector_width=32)
    identity = identify(model, tokenizer)
    network = VaeNetwork(config)
    network.projector.match(model.get_input_embeddings().weight.detach().unsqueeze(1))
    codec = VaeCodec.from_network(network, identity, identity)
    message = ilcp.Sender(model, tokenizer, codec).encode("Ana has three keys.")
    receivers = [
        ilcp.Receiver(*load_model(source), codec, allow_unmeasured=True)
        for source in (made.folder / "Q8_0.gguf", tmp_path)
    ]
    first, second = (receiver.generate(message, "keys?", max_new_tokens=8) for receiver in receivers)
    assert first == second


def test_nothing_beside_the_file_is_read(made, tmp_path) -> None:
    """A tokenizer, a template, an adapter and code in the file's folder change nothing, and are not run."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text(json.dumps({"auto_map": {"AutoTokenizer": "evil.Evil"}, "chat_template": "no"}))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere/else"}')
    (tmp_path / "evil.py").write_text("raise SystemExit")
    make_tokenizer(280).save_pretrained(tmp_path / "other")
    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "other" / "tokenizer.json").read_bytes())
    file = tmp_path / "weights.GGUF"  # as some spell it
    file.write_bytes((made.folder / "F16.gguf").read_bytes())
    assert identify(*load_model(file)) == identify(*load_model(made.folder / "F16.gguf"))


def test_a_template_of_the_file_stays_in_the_sandbox(made, tmp_path) -> None:
    """A chat template that reaches for the interpreter is refused when it is filled in."""
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    write_gguf(tmp_path / "evil.gguf", made.model, made.tokenizer, template=template)
    tokenizer = load_model(tmp_path / "evil.gguf")[1]
    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{0}/none.gguf", r"expected a GGUF file, got .*none\.gguf: no such file"),
        ("{0}/none/none.gguf", r"got .*none\.gguf: no such file"),
        ("{0}:none.gguf", r"GGUF file none\.gguf in .*no such file or directory; name one .*F16\.gguf, .*Q8_0\.gguf"),
        ("{0}:F16.gguf:F32.gguf", r"expected folder:file\.gguf or owner/name:file\.gguf, got .*F32\.gguf'"),
        ("{0}:F16.bin", r"expected folder:file\.gguf"),
        (":F16.gguf", r"expected folder:file\.gguf"),
        ("{0}/none:F16.gguf", r"model's folder with a config\.json, got .*none: no such file"),
        ("{0}", r"config\.json, got .*: no such file; name one of its GGUF files: .*:F16\.gguf"),
    ],
)
def test_a_source_that_names_no_file_is_refused(made, source: str, text: str) -> None:
    """Each text says what is missing, and where there are GGUF files beside it, how to name them."""
    with pytest.raises(ConfigError, match=text):
        load_model(source.format(made.folder))


def test_a_file_that_is_no_whole_model_is_refused(made, tmp_path) -> None:
    """A folder of that name, another format, a cut file, an unknown architecture, absent weights or tokenizer."""
    file = tmp_path / "model.gguf"
    file.mkdir()
    with pytest.raises(ConfigError, match=r"folder with a config\.json, got .*model\.gguf: no such file"):
        load_model(file)
    file.rmdir()
    for content in (b"", b"PK\x03\x04 zip"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"begins with b'GGUF', or a model's folder, got .*model\.gguf"):
            load_model(file)
    whole = (made.folder / "F32.gguf").read_bytes()
    for size in (4, 1000, 9000, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"expected a whole GGUF file of an architecture .*model\.gguf, got "):
            load_model(file)
    write_gguf(file, made.model, made.tokenizer, architecture="rwkv9")
    with pytest.raises(ConfigError, match=r"that transformers reads.*rwkv9"):
        load_model(file)
    write_gguf(file, made.model, made.tokenizer, without="layers.1.mlp.up_proj")
    with pytest.raises(ConfigError, match=r"every weight of LlamaForCausalLM .*none for 1 of them, .*1\.mlp\.up_proj"):
        load_model(file)
    write_gguf(file, made.model, made.tokenizer, vocabulary="")
    with pytest.raises(ConfigError, match=r"a tokenizer in the GGUF file .*model\.gguf, got "):
        load_model(file)
    write_gguf(file, made.model, made.tokenizer, template=7)
    with pytest.raises(ConfigError, match="expected a text as chat template"):
        load_model(file)


def test_flipped_bytes_give_a_model_or_a_sentence(made, tmp_path) -> None:
    """Whatever single byte of the header changes, there is a model or a ConfigError, and nothing else."""
    whole, file = (made.folder / "Q8_0.gguf").read_bytes(), tmp_path / "model.gguf"
    generator = torch.Generator().manual_seed(5)
    for position in torch.randint(4, 1200, (8,), generator=generator).tolist():
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        try:
            assert load_model(file)[0].config.model_type
        except ConfigError:
            continue


def test_a_file_of_a_hub_repository_is_fetched_alone(made, monkeypatch) -> None:
    """``owner/name:file.gguf`` asks the hub for that file only; what the hub's client raises is one sentence."""
    import huggingface_hub

    asked = []

    def download(*given: str, local_files_only: bool) -> str:
        assert not local_files_only
        asked.append(given)
        if given[1] != "F16.gguf":
            raise OSError("404")
        return str(made.folder / "F16.gguf")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    identity = identify(*load_model("me/mine-GGUF:F16.gguf"))
    assert identity == identify(*load_model(made.folder / "F16.gguf"))
    with pytest.raises(ConfigError, match=r"expected none\.gguf in a folder or on the hub at me/mine, got: 404"):
        load_model("me/mine:none.gguf")
    assert [("me/mine-GGUF", "F16.gguf"), ("me/mine", "none.gguf")] == asked


def test_a_name_that_is_neither_folder_nor_id_asks_no_hub(monkeypatch) -> None:
    """A name without an owner is asked for if it is of the hub's first years or in the cache; others are refused."""
    import huggingface_hub

    asked: list[str] = []

    def ask(source: str, **_: Any) -> Any:
        asked.append(source)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", ask)
    for name in ("sender", "sender:model.gguf"):
        with pytest.raises(ConfigError, match=r"a hub id \(owner/name\), got sender: there is no such folder"):
            load_model(name)
    assert [] == asked
    monkeypatch.setattr(sources, "_cached", lambda name: name == "kept")
    for name in ("gpt2", "bert-base-uncased", "kept", "me/mine"):
        with pytest.raises(ConfigError, match=f"a language model, got '{name}': no network"):
            load_model(name)
    assert ["gpt2", "bert-base-uncased", "kept", "me/mine"] == asked


def test_transformers_is_told_at_each_load_to_run_no_code(made, tmp_path, monkeypatch) -> None:
    """Of folders and of GGUF files: configuration, model and tokenizer, where it would ask the user if it were not."""
    for part in (made.model, made.tokenizer):
        part.save_pretrained(tmp_path)
    told: list[Any] = []
    for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "PreTrainedTokenizerFast"):
        kind = getattr(transformers, name)
        calls = {way: getattr(kind, way) for way in ("from_pretrained", "from_config") if hasattr(kind, way)}
        noted = {
            way: noting(call, told, lambda *_, **options: options.get("trust_remote_code"))
            for way, call in calls.items()
        }
        monkeypatch.setattr(transformers, name, SimpleNamespace(**noted))
    load_model(tmp_path)
    assert [False] * 4 == told
    load_model(made.folder / "F16.gguf")
    assert [False] * 7 == told


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named_with_its_extra(made, monkeypatch, package: str) -> None:
    """Without what reads GGUF files, the text gives the pip command."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"expected {package} to read a GGUF file.*'ilcp\[gguf\]'"):
        load_model(made.folder / "F16.gguf")
