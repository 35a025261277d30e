"""The configuration of ``ilcp train``: recipes, files of before, and what cannot be used is refused by name."""

import json
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

import ilcp
from ilcp.errors import ConfigError, MissingExtraError, StorageError
from ilcp.models.loading import load_model
from ilcp.nn.distributed import init_device
from ilcp.training import begun as begun_module
from ilcp.training.config import read_config
from ilcp.training.log import Log, draw_curve, read_log
from tests.helpers import make_tokenizer, present
from tests.taught import write_cases


def test_a_recipe_file_and_options_make_one_configuration(tmp_path) -> None:
    """Options go before the file; tables are merged key by key."""
    file = tmp_path / "recipe.toml"
    file.write_text(
        'sender="a"\nreceiver="b"\nout="c"\nseed=4\n[self_study]\ntexts=900\n[training]\nsteps=7\n[codec]\nbits=2'
    )
    config = read_config(file, receiver="d", steps=8, codec={"slots": 2})
    assert ("a", "d", Path("c"), 4) == (config.sender, config.receiver, config.out, config.seed)
    assert 900 == present(config.self_study).texts
    assert {"bits": 2, "slots": 2} == dict(config.codec)
    assert (8, 4) == (config.hyperparameters(answers_end=True).steps, config.hyperparameters(answers_end=True).seed)
    assert (False, 1) == (
        config.hyperparameters(answers_end=False).answers_end,
        config.hyperparameters(answers_end=False).questions,
    )
    assert Path("c.run") == config.work


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('sender="a"\nreciever="b"', r"got 'reciever'; did you mean 'receiver'\?"),
        ("[training]\nstep=3", r"a key of \[training\], got 'step'; did you mean 'steps'\?"),
        ("[self_study]\ntext=3", r"a key of \[self_study\], got 'text'; did you mean 'texts'\?"),
        ('data="x"\n[self_study]\n', "either data or self_study, got both"),
        ("", "either data or self_study, got neither"),
        ('data="x"\n[training]\nsteps="many"', "a whole number for 'steps'"),
        ('data="x"\n[training]\nlearning_rate=true', "a number for 'learning_rate'"),
        ('data="x"\n[training]\nblank_share=2', "blank_share from 0"),
        ('data="x"\n[training]\nseed=2', "seed at the top"),
        ('data="x"\n[training]\ncross_entropy_weight=0\nkl_weight=0', "nothing would be learned"),
        ('data="x"\nadapter_rank=4', "adapt_receiver = true beside adapter_rank = 4"),
        ('data="x"\ntoo_long="cut"', "'refuse' or 'skip'"),
        ('data="x"\nseed=-1', "seed to be 0 or more"),
        ('data="x"\nstates_gb=inf', "states_gb to be 0 or more, got inf"),
        ('data="x"\ntest_cases=3', "test_cases to be at least 16, got 3"),
        ("data=3", "for 'data' in .*, got 3"),
        ('data="x"\n[training]\nbfloat16="false"', "expected true or false.* for 'bfloat16' in .*, got 'false'"),
        ('data="x"\n[training]\nfree_bits=[1.0]', r"expected a list .*for 'free_bits' in \[training\], got \[1\.0\]"),
        ('data="x"\n[training]\nweight_decay=-1.0', "weight_decay to be 0 or more"),
        ('data="x"\n[training]\nper_kind={lookup=0}', "per_kind to be at least 1"),
        ('data="x"\n[training]\nnaming_steps=5', "expected topics for naming_steps"),
        ('data="x"\ntraining=3', r"a table \[training\]"),
        ("data=", "in TOML"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(tmp_path, text: str, said: str) -> None:
    """The text names the key, what it could have been, or what it contradicts."""
    file = tmp_path / "recipe.toml"
    head = "" if "reciever" in text else 'sender="a"\nreceiver="b"\nout="c"\n'
    file.write_text(head + text)
    with pytest.raises(ConfigError, match=said):
        read_config(file)


def test_recipes_and_logs_of_before_still_load(tmp_path) -> None:
    """A hyperparameter and the columns of a log are read under the names that they had, and drawn."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('sender="a"\nreceiver="b"\nout="c"\ndata="d"\n[training]\nclose_answers=false')
    assert read_config(recipe).hyperparameters(answers_end=True).answers_end is False
    arms = {"none": -3.0, "foreign": -2.5, "message": -1.0, "text": -0.5}
    old = {"step": 1, "loss": 2.0, "validation_nats": arms, "validation_exact": arms}
    log = Log(tmp_path)
    log.file.write_text(json.dumps(old) + "\n" + '{"step": 2, "cut')
    assert draw_curve(log.file) is None  # a dot says nothing
    new = {"none": -3.0, "mismatched": -2.5, "message": -1.0, "text": -0.5}
    assert [{"step": 1, "loss": 2.0, "validation_log_likelihood": new, "validation_exact": new}] == read_log(log.file)
    with open(log.file, "a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(old | {"step": 2}) + "\n")
    assert present(draw_curve(log.file)).read_bytes().startswith(b"\x89PNG")
    log.forget_after(1)
    assert "foreign" not in log.file.read_text()


def test_a_run_of_before_goes_on_and_a_damaged_record_of_it_is_named(tmp_path) -> None:
    """What began a run is compared under today's names; a file that holds no such record is ours, and damaged."""
    file = tmp_path / "plan.json"
    file.write_text('{"sender": "a", "training": {"close_answers": true, "minutes": Infinity}}')
    assert {"answers_end": True, "minutes": float("inf")} == begun_module._kept(file)["training"]
    for damaged in ("[]", "{", '{"training": 3}', "{}"):
        file.write_text(damaged)
        with pytest.raises(StorageError, match=r"expected the configuration of a run in .*plan\.json, got: .*; remove"):
            begun_module._kept(file)


def test_a_missing_package_comes_with_its_command(tmp_path, monkeypatch) -> None:
    """TensorBoard, and accelerate where several processes were started: the text says how to get it."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"tensorboard to write event files.*pip install 'ilcp\[tensorboard\]'"):
        Log(tmp_path, tensorboard=True)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MissingExtraError, match=r"accelerate for several processes.*pip install 'ilcp\[train\]'"):
        init_device("cpu")


def test_what_is_missing_is_named(tmp_path) -> None:
    """Both models and the folder are needed; a recipe that is not there is named."""
    with pytest.raises(
        ConfigError, match=r"expected receiver, out in the recipe, got nothing: .* give --receiver, --out"
    ):
        read_config(sender="a", self_study=True)
    with pytest.raises(ConfigError, match=r"readable recipe, got .*none\.toml: no such file"):
        read_config(tmp_path / "none.toml")


# ---- models that cannot be used


def test_a_model_in_place_of_its_folder_is_refused_by_name() -> None:
    """Training loads the models itself: an object, as ``Sender`` takes it, gets a sentence that says what to give."""
    with pytest.raises(ConfigError, match="expected sender as a folder, a hub id or a GGUF file, got object: save"):
        read_config(sender=object(), receiver="b", data="d", out="c")


def test_models_that_cannot_be_used_are_refused_by_name(models, tmp_path) -> None:
    """No folder, no tokenizer beside the model, another model's tokenizer, an encoder as receiver."""
    from tests.taught import save_models

    sender, receiver = save_models(models, tmp_path)
    data = write_cases(tmp_path / "cases.jsonl", 200)
    given = dict(sender=sender, receiver=receiver, data=data, out=tmp_path / "codec", steps=1)
    with pytest.raises(ConfigError, match=r"a model's folder with a config.json, got .*/nowhere: no such file"):
        ilcp.train(**given | {"sender": f"{tmp_path}/nowhere"})
    bare = tmp_path / "bare"
    models.sender.save_pretrained(bare)
    with pytest.raises(ConfigError, match=r"expected the model's tokenizer beside it in .*bare"):
        ilcp.train(**given | {"sender": bare})
    make_tokenizer(340).save_pretrained(bare)
    with pytest.raises(ConfigError, match="tokenizer of at most 300 tokens"):
        ilcp.train(**given | {"sender": bare})
    encoder = tmp_path / "encoder"
    BertModel(
        BertConfig(vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    ).save_pretrained(encoder)
    models.receiver_tokenizer.save_pretrained(encoder)
    with pytest.raises(ConfigError, match="BertModel"):
        ilcp.train(**given | {"receiver": encoder})
    assert isinstance(load_model(encoder, encoder=True)[0], BertModel)
    with pytest.raises(ConfigError, match=r"a key of \[codec\], got 'slot'; did you mean 'slots'"):
        ilcp.train(**given, codec={"name": "vae", "slot": 3})
    with pytest.raises(ConfigError, match="expected a codec that learns, got 'text-plain'"):
        ilcp.train(**given, codec={"name": "text-plain"})
    with pytest.raises(ConfigError, match="slots x dims x bits to be 8 x 80"):
        ilcp.train(**given, codec={"slots": 3})
    with pytest.raises(ConfigError, match="whole numbers from 1 to 1048576 for slots"):
        ilcp.train(**given, codec={"name": "vae", "heads": 0})
    with pytest.raises(ConfigError, match="a device of this machine such as 'cpu', got 'cuda:77'"):
        ilcp.train(**given, device="cuda:77")
    with pytest.raises(ConfigError, match="a folder with a name of its own for --out"):
        ilcp.train(**given | {"out": "."})
    with pytest.raises(ConfigError, match=r"a readable file of cases, got .*none\.jsonl"):
        ilcp.train(**given | {"data": tmp_path / "none.jsonl", "out": tmp_path / "other"})
    assert not (tmp_path / "codec").exists()
    assert not (tmp_path / "other.run").exists()


def test_data_that_cannot_be_used_is_refused_by_line(models, tmp_path) -> None:
    """A line that is no JSON, too few lines, two kinds of answers, a context over the receiver's window."""
    from tests.taught import save_models

    sender, receiver = save_models(models, tmp_path)
    data = write_cases(tmp_path / "cases.jsonl", 200)
    given = dict(sender=sender, receiver=receiver, data=data, out=tmp_path / "codec", steps=1)
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:7], '{"context": ', *lines[7:]]))
    with pytest.raises(ConfigError, match=r"cases.jsonl:8: expected one JSON object per line"):
        ilcp.train(**given)
    data.write_text("\n".join(lines[:20]))
    with pytest.raises(ConfigError, match=r"at least 160 cases .*got 20"):
        ilcp.train(**given)
    data.write_text("\n".join([*lines, json.dumps({"context": "It was.", "continuation": "Mara."})]))
    with pytest.raises(ConfigError, match="either questions or continuations, got both"):
        ilcp.train(**given)
    long = json.dumps({"id": "long", "context": "It was Mara. " * 99, "question": "Who?", "answer": "Mara"})
    data.write_text("\n".join([*lines, long]))
    with pytest.raises(ConfigError, match=r"case 'long' to fit into the receiver's window of 256 tokens, got \d+"):
        ilcp.train(**given)
    small = dict(slots=2, dims=8, prefixes=[2], width=32, heads=4, projector_width=32)
    codec = ilcp.train(**given, too_long="skip", codec=small, training={"contexts": 8, "validate_every": 1})
    assert 200 == sum(json.loads((present(codec.folder) / "config.json").read_text())["training"]["cases"].values())
