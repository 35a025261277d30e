"""What strangers put into a model's folder: files of elsewhere, pickles behind an index, sizes that take all memory."""

import json
import logging
import os
import pickle
import resource
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ilcp
from ilcp.errors import ConfigError, StorageError
from ilcp.models.loading import load_model
from ilcp_codecs.text import LmCodec
from tests.helpers import Evil, changed, make_model, make_tokenizer

TOKENIZER = make_tokenizer(300)
INDEX = "model.safetensors.index.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder, in a codec's."""
    ilcp.save(LmCodec(make_model(300), TOKENIZER, 80), tmp_path / "codec")
    return tmp_path / "codec" / "lm"


def refused(folder: Path, said: str) -> None:
    """Sees that a model's folder, as such and as a codec's, is refused with those words."""
    with pytest.raises(ConfigError, match=said):
        load_model(folder)
    with pytest.raises(StorageError, match=said):
        ilcp.load(folder.parent)


def indexed(folder: Path, name: Any) -> None:
    """Writes an index that names one file for every weight."""
    file = folder / "model.safetensors"
    if file.exists():
        file.rename(folder / "part.safetensors")
    weights = load_file(folder / "part.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))


@pytest.mark.parametrize("name", ["evil.bin", "../outside.safetensors", "/outside.safetensors", "a/b.safetensors", 3])
def test_an_index_names_safetensors_beside_it(model: Path, name: Any) -> None:
    """What an index of shards names is no pickle and lies in the folder; otherwise nothing of it is read."""
    indexed(model, "part.safetensors")
    shutil.copy(model / "part.safetensors", model.parent / "outside.safetensors")
    (model / "evil.bin").write_bytes(pickle.dumps(Evil()))
    assert load_model(model)
    assert ilcp.load(model.parent)
    indexed(model, name)
    refused(model, f"in {INDEX}: an index names safetensors beside it")
    assert not os.path.exists("/tmp/ilcp-evil-was-here")


def test_an_index_is_looked_at_before_it_is_read(model: Path) -> None:
    """One that is no table, too long, or names what is missing or lies elsewhere is refused."""
    indexed(model, "missing.safetensors")
    refused(model, "missing.safetensors")
    (model / "missing.safetensors").symlink_to("/etc/passwd")
    refused(model, "got (lm/)?missing.safetensors, a link out of it")
    (model / "missing.safetensors").unlink()
    (model / INDEX).write_text("[]")
    refused(model, "an index names safetensors beside it")
    with (model / INDEX).open("ab") as file:
        file.truncate(65 << 20)
    refused(model, "more than the 64 MiB")


@pytest.mark.parametrize("name", ["adapter_model.bin", "../outside.safetensors", "none.safetensors", ["x"]])
def test_a_configuration_names_weights_in_its_folder(model: Path, name: Any) -> None:
    """``transformers_weights`` is the name of safetensors that are there, or the folder is refused."""
    shutil.copy(model / "model.safetensors", model.parent / "outside.safetensors")
    (model / "adapter_model.bin").write_bytes(pickle.dumps(Evil()))
    changed(model / "config.json", transformers_weights="model.safetensors")
    assert load_model(model)
    changed(model / "config.json", transformers_weights=name)
    refused(model, "transformers_weights = .* and no safetensors of that name")


def test_only_weights_that_are_loaded_count(model: Path) -> None:
    """Other safetensors in the folder make no room for what a configuration says."""
    save_file({f"{number}": torch.zeros(1) for number in range(500)}, model / "other.safetensors")
    changed(model / "config.json", num_hidden_layers=400)
    refused(model, "num_hidden_layers = 400 in config.json, and 2. tensors")


@pytest.mark.parametrize(
    "name", ["additional_chat_templates/x.jinja", "chat_template.jinja", "source.spm", "vocab.json"]
)
def test_no_link_out_of_a_models_folder_is_read(model: Path, tmp_path: Path, name: str) -> None:
    """A link to a secret is refused by name, in the one folder below that transformers reads, too."""
    (model / "additional_chat_templates").mkdir()
    assert load_model(model)
    assert ilcp.load(model.parent)
    (tmp_path / "secret").write_text("key")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(tmp_path / "secret")
    refused(model, f"got (lm/)?{name}, a link out of it")


def test_a_codecs_model_has_files_only(model: Path, tmp_path: Path) -> None:
    """Folders below a codec's own model, and links to folders, are refused."""
    (model / "deep").mkdir()
    with pytest.raises(StorageError, match="a regular file"):
        ilcp.load(model.parent)
    (model / "deep").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jinja").write_text("key")
    (model / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    refused(model, "a link out of it")


@pytest.mark.parametrize(("name", "many"), [("vocab_file", False), ("tokenizer_file", False), ("more_files", True)])
def test_no_file_that_a_tokenizer_names_elsewhere_is_read(model: Path, tmp_path: Path, name: str, many: bool) -> None:
    """transformers would read it, and copy it where the tokenizer is saved; a path to nothing does nothing."""
    secret = tmp_path / "secret"
    changed(model / "tokenizer_config.json", **{name: [str(secret)] if many else str(secret)})
    secret.write_text("key")
    refused(model, f"no file from elsewhere in .*, got {name} = ")


def test_a_codec_with_a_model_of_its_own_names_it(model: Path) -> None:
    """An empty identity would fit every model in its folder."""
    record = json.loads((model.parent / "config.json").read_text())
    record["trained"]["sender"] = dict.fromkeys(record["trained"]["sender"], "")
    changed(model.parent / "config.json", **record)
    with pytest.raises(StorageError, match="expected the identity of the language model of codec 'text-lm'"):
        ilcp.load(model.parent)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("config.json", {"num_labels": 10**9}, "num_labels = 1000000000 in config.json: 65536 at most"),
        ("config.json", {"text_config": {"num_labels": 1e9}}, "num_labels = 1000000000"),
        ("config.json", {"num_experts": 10**5}, "num_experts = 100000 in config.json: 4096 at most"),
        (
            "config.json",
            {"attention_types": [[["global"], 2 * 10**9]]},
            "2000000000 times words in attention_types",
        ),
        ("config.json", {"attention_types": [[["global"], 10**5]] * 99}, "times words in attention_types of"),
        ("config.json", {"block_sizes": [3, 10**9]}, "1000000000 in block_sizes of"),
        ("config.json", {"vocab_size": 10**6}, "numbers as config.json says, .* bytes of weights"),
        ("config.json", {"intermediate_size": 10**6}, "numbers as config.json says, .* bytes of weights"),
        ("tokenizer_config.json", {"extra_ids": 10**9}, "extra_ids = 1000000000 in tokenizer_config.json"),
    ],
)
def test_no_count_of_a_configuration_is_believed(model: Path, file: str, changes: dict[str, Any], said: str) -> None:
    """What makes lists, modules and memory for nothing that a file holds is refused before it is made."""
    changed(model / "config.json", max_position_embeddings=10**7, rope_theta=10**9, labels_of=["a"])  # count nothing
    assert load_model(model)
    changed(model / file, **changes)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(model, said)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000


def test_names_in_a_file_do_not_steer_the_terminal(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers reports of tensors that a model has no place for is written out."""
    weights = load_file(model / "model.safetensors") | {"evil\x1b]0;title\x07 \x9b2J": torch.zeros(1)}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    stream = StringIO()
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [logging.StreamHandler(stream)])
    assert load_model(model)
    said = stream.getvalue()
    assert "evil\\x1b]0;title\\x07 \\x9b2J" in said
    assert {"\x1b", "\x07", "\x9b"}.isdisjoint(said)
