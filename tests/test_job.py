"""From two folders of weights to a measured codec: the command, what it leaves, how it is stopped and goes on."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import ilcp
from ilcp.cli import app
from ilcp.codec import HubCodec
from ilcp.codec.seen import seen_by
from ilcp.errors import ConfigError, IdentityError, Interrupted, StorageError, TrainingError, UnmeasuredError
from ilcp.message import describe
from ilcp.models.adapter import save_adapter
from ilcp.tasks import read_jsonl
from ilcp.training import StateStore
from ilcp.training import finish as finish_module
from ilcp.training import job as job_module
from ilcp.training.checkpoint import CHECKPOINT, read_checkpoint
from ilcp.training.log import read_log
from ilcp.training.tuning import _TextObjective
from tests.helpers import environment, noting, present, run_python, wait_for
from tests.taught import cases, make_blurred, make_models, save_models, write_cases

RECIPE = """
seed = 3
[codec]
name = "vae"
slots = 4
dims = 16
prefixes = [4, 8]
width = 32
heads = 4
projector_width = 64
[training]
steps = {steps}
contexts = 16
questions = 1
learning_rate = 6e-3
warmup_steps = 5
validate_every = 20
checkpoint_minutes = 0.0001
bfloat16 = false
{more}
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> SimpleNamespace:
    """Folders of a taught pair, and a file of cases."""
    root = tmp_path_factory.mktemp("home")
    models = make_models()
    sender, receiver = save_models(models, root)
    data = write_cases(root / "cases.jsonl", 320)
    return SimpleNamespace(root=root, models=models, sender=sender, receiver=receiver, data=data)


@pytest.fixture(scope="session")
def home(place) -> SimpleNamespace:
    """The same, and a codec trained between them in 40 steps."""
    return SimpleNamespace(**vars(place), codec=ilcp.train(recipe(place), out=place.root / "codec"))


def recipe(home: SimpleNamespace, steps: int = 40, more: str = "", name: str = "recipe.toml") -> Path:
    """A recipe file for the taught pair."""
    head = f'sender = "{home.sender}"\nreceiver = "{home.receiver}"\ndata = "{home.data}"'
    file = home.root / name
    file.write_text(head + RECIPE.format(steps=steps, more=more), encoding="utf-8")
    return file


def started(*words: object) -> subprocess.Popen[str]:
    """``ilcp`` as a process of its own, running."""
    line = [sys.executable, "-m", "ilcp", *map(str, words)]
    return subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True)


def test_a_trained_codec_is_a_proven_folder(home) -> None:
    """Weights, configuration, card and curve; the proof holds, and the receiver answers from the message alone."""
    folder = home.root / "codec"
    names = {"model.safetensors", "config.json", "README.md", "curve.png", "log.jsonl", "seen.jsonl"}
    assert names == {file.name for file in folder.iterdir()}
    record = json.loads((folder / "config.json").read_text())
    assert {"spec", "trained", "training", "evidence", "settings"} <= record.keys()
    assert 40 == record["training"]["steps"] == record["training"]["recipe"]["steps"]
    assert 3 == record["training"]["seed"]
    assert record["training"]["provenance"]["versions"]["torch"]
    assert home.codec.evidence.holds
    pair = ilcp.load_pair(folder)
    fresh = cases(50_000, 12)
    right = [
        pair.receiver.generate(pair.sender.encode(case.context), "Who?") == case.questions[0].answer for case in fresh
    ]
    assert sum(right) >= 10
    assert 28 == len(pair.sender.encode(fresh[0].context))


def test_the_card_has_every_arm_with_its_interval(home) -> None:
    """It says what the codec is for, what was measured beside the controls, its limits, and how to load it."""
    card = (home.root / "codec" / "README.md").read_text()
    for said in (
        "sender to receiver, 8 bytes",
        "ilcp.load(",
        "## Limits",
        "| mismatched | 28 |",
        "| text |",
        "content gain",
    ):
        assert said in card
    shares = home.codec.folder / "config.json"
    assert {"sender", "receiver", "codec"} == set(json.loads(shares.read_text())["training"]["time_shares"])


def test_measure_and_encode_find_the_models_that_the_codec_names(home, tmp_path) -> None:
    """``ilcp measure CODEC --task FILE`` needs no other option; ``ilcp encode`` takes a corpus and can be run again."""
    folder = str(home.root / "codec")
    task = write_cases(tmp_path / "task.jsonl", 12, start=70_000)
    shown = CliRunner().invoke(app, ["measure", folder, "--task", str(task), "--repetitions", "0"])
    assert 0 == shown.exit_code, shown.output
    assert "The message carries content" in shown.output
    files = []
    for case in cases(80_000, 3):
        files.append(tmp_path / f"{case.id}.txt")
        files[-1].write_text(case.context)
    (tmp_path / "empty.txt").write_text(" ")
    words = ["encode", *map(str, [*files, tmp_path / "empty.txt"]), "--codec", folder, "--out", str(tmp_path / "sent")]
    first, second = CliRunner().invoke(app, words), CliRunner().invoke(app, words)
    assert "3 encoded, 0 were there, 1 failed" in first.output
    assert "0 encoded, 3 were there, 1 failed" in second.output
    assert 5 == first.exit_code == second.exit_code
    sent = (tmp_path / "sent" / f"{files[0].name}.ilcp").read_bytes()
    assert sent == ilcp.load_pair(folder).sender.encode(files[0].read_text())
    assert home.codec.trained.codec_id(home.codec.spec).hex() == describe(sent).codec_id


@pytest.fixture(scope="module")
def killed(home) -> Path:
    """What ``kill -9`` in the middle left of a run: the folder beside the codec's."""
    out = home.root / "killed" / "codec"
    process = started("train", "--recipe", recipe(home), "--out", out)
    wait_for(out.with_name("codec.run") / CHECKPOINT, process)
    process.kill()
    process.communicate(timeout=60)
    assert not out.exists()
    return out.with_name("codec.run")


@pytest.fixture(scope="module")
def ended(home) -> Path:
    """What a polite end in the middle left of a run, which says so."""
    out = home.root / "ended" / "codec"
    process = started("train", "--recipe", recipe(home), "--out", out)
    wait_for(out.with_name("codec.run") / CHECKPOINT, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    state = read_checkpoint(out.with_name("codec.run"))[0]
    assert 130 == process.returncode
    assert f"interrupted; stopped at step {state['step']}" in said
    assert not out.exists()
    return out.with_name("codec.run")


@pytest.mark.parametrize("end", ["killed", "ended"])
def test_a_run_that_was_killed_ends_with_the_same_weights(home, tmp_path, request, end) -> None:
    """kill -9, or a polite end, in the middle; then --resume: bit for bit the weights of the undisturbed run."""
    shutil.copytree(request.getfixturevalue(end), tmp_path / "codec.run")
    state = read_checkpoint(tmp_path / "codec.run")[0]
    assert 0 < state["step"] < 40
    words = ["train", "--recipe", str(recipe(home)), "--out", str(tmp_path / "codec"), "--resume"]
    resumed = CliRunner().invoke(app, words)
    assert 0 == resumed.exit_code, resumed.output
    undisturbed = load_file(home.root / "codec" / "model.safetensors")
    again = load_file(tmp_path / "codec" / "model.safetensors")
    assert undisturbed.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in undisturbed.items())
    steps = [record["step"] for record in read_log(tmp_path / "codec" / "log.jsonl")]
    assert [20, 40] == steps
    assert not (tmp_path / "codec.run" / "states").exists()


def test_two_processes_make_the_loss_of_one(home, tmp_path) -> None:
    """``accelerate launch`` with two CPU processes and the same global batch: the same loss to 1e-4, step by step."""
    more = "collapse_after = 1.0\nrate_weight = 1e-3\nreconstruction_weight = 0.3\nreconstruction_share = 1.0"
    file = recipe(home, 12, more, "twelve.toml")
    text = file.read_text().replace("validate_every = 20", "validate_every = 1")
    file.write_text(text.replace("learning_rate = 6e-3", "learning_rate = 3e-3"))
    ilcp.train(file, out=tmp_path / "one", device="cpu")
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--mixed_precision=no")
    words = ("-m", "ilcp", "train", "--recipe", file, "--out", tmp_path / "two", "--device", "cpu")
    done = run_python(*launcher, *words, timeout_s=240)
    assert (tmp_path / "two.run" / "log.jsonl").exists(), done.stderr
    logs = {name: read_log(tmp_path / f"{name}.run" / "log.jsonl") for name in ("one", "two")}
    assert 12 == len(logs["one"]) == len(logs["two"])
    for one, two in zip(logs["one"], logs["two"], strict=True):
        assert one["step"] == two["step"]
        for term in ("last_loss", "cross_entropy", "kl", "blank", "paid_bits", "reconstruction"):
            assert two[term] == pytest.approx(one[term], abs=1e-4)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in logs)
    for part in ("projector.leave.weight", "pooler.queries", "bottleneck.to_mu.weight"):
        assert torch.allclose(one[part].float(), two[part].float(), atol=2e-3)
    assert [1, 2] == [
        json.loads((tmp_path / name / "config.json").read_text())["training"]["processes"] for name in logs
    ]


def test_a_run_is_not_begun_twice_nor_gone_on_with_another_recipe(home, tmp_path, killed) -> None:
    """A folder with a codec is refused, a checkpoint needs --resume and the same recipe; differences are named."""
    with pytest.raises(ConfigError, match="holds a codec already: choose another --out"):
        ilcp.train(recipe(home), out=home.root / "codec")
    shutil.copytree(killed, tmp_path / "codec.run")
    with pytest.raises(ConfigError, match="pass --resume to go on"):
        ilcp.train(recipe(home), out=tmp_path / "codec")
    with pytest.raises(ConfigError, match=r"training.steps \(was 40, is 30\)"):
        ilcp.train(recipe(home, 30), out=tmp_path / "codec", resume=True)
    with pytest.raises(ConfigError, match=r"codec.slots \(was 4, is 8\)"):
        ilcp.train(recipe(home), out=tmp_path / "codec", resume=True, codec={"slots": 8, "dims": 8})
    other = write_cases(tmp_path / "other.jsonl", 320, start=5)
    with pytest.raises(ConfigError, match=r"data \(was .*data digest \(was"):
        ilcp.train(recipe(home), out=tmp_path / "codec", resume=True, data=other)


def test_a_full_disk_leaves_nothing_half_written(home, tmp_path) -> None:
    """Where no file may grow beyond 60 kB there is neither checkpoint nor codec, only a sentence; later all is well."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    few = recipe(home, 3, name="three.toml")
    words = ("-m", "ilcp", "train", "--recipe", few, "--out", tmp_path / "codec")
    full = run_python(*words, preexec_fn=small_files)
    assert full.returncode not in (0, 1)  # a code of its own, and no traceback
    assert "expected room for a checkpoint" in full.stderr
    assert "free space, then resume" in full.stderr
    left = [file for file in tmp_path.rglob("*") if "draft" in file.name or file.name == CHECKPOINT]
    assert [] == left
    assert not (tmp_path / "codec").exists()
    ilcp.train(few, out=tmp_path / "codec")
    assert 3 == json.loads((tmp_path / "codec" / "config.json").read_text())["training"]["steps"]


def test_an_adapted_receiver_is_part_of_the_codec(home, tmp_path, capsys) -> None:
    """A LoRA is trained along, saved beside the codec, loaded with it; the receiver without it is refused by name."""
    codec = ilcp.train(recipe(home, 20), out=tmp_path / "codec", adapt_receiver=True, adapter_rank=2)
    said = capsys.readouterr().err
    assert re.search(r"before it is tuned, the receiver answers .* exact .* from the full text", said)
    assert 2 == said.count("from another case's")
    made = json.loads((tmp_path / "codec" / "config.json").read_text())["training"]["reader"]
    assert (4, {"exact", "log_likelihood"}) == (made["steps"], made["after"].keys())
    assert {"step": 0, "reader": made} == read_log(tmp_path / "codec" / "log.jsonl")[0]
    card = (tmp_path / "codec" / "README.md").read_text()
    assert f"{made['after']['exact']:.3f} exact, {made['after']['log_likelihood']:.2f} nats an answer after it" in card
    assert {"adapter_config.json", "adapter_model.safetensors"} == {
        file.name for file in (tmp_path / "codec" / "receiver-adapter").iterdir()
    }
    tensors = load_file(tmp_path / "codec" / "receiver-adapter" / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in tensors.items() if "lora_B" in name)
    assert {torch.float16} == {value.dtype for value in tensors.values()}
    assert str(home.root) not in (tmp_path / "codec" / "receiver-adapter" / "adapter_config.json").read_text()
    fresh = make_models()
    with pytest.raises(IdentityError, match="differs in adapters"):
        ilcp.Receiver(fresh.receiver, fresh.receiver_tokenizer, codec, allow_unmeasured=True)
    adapted = ilcp.adapt(fresh.receiver, codec)
    receiver = ilcp.Receiver(adapted, fresh.receiver_tokenizer, codec, allow_unmeasured=True)
    pair = ilcp.load_pair(tmp_path / "codec", allow_unmeasured=True)
    message = pair.sender.encode("Note 1: it was Mara.")
    assert pair.receiver.generate(message, "Who?") == receiver.generate(message, "Who?")
    untouched = make_models()
    assert fresh.receiver_tokenizer.vocab == untouched.receiver_tokenizer.vocab
    assert codec.trained.receiver.weights == home.codec.trained.receiver.weights
    assert isinstance(codec, HubCodec)
    codec.save_pretrained(tmp_path / "copy")
    again = ilcp.load_pair(tmp_path / "copy", sender=home.sender, receiver=home.receiver, allow_unmeasured=True)
    assert pair.receiver.generate(message, "Who?") == again.receiver.generate(message, "Who?")


def test_a_receiver_may_start_with_the_adapter_of_another_codec(home, tmp_path, capsys) -> None:
    """It reads as it did there, before anything is trained; a folder without one is refused, as is half of a recipe."""
    made = home.root / "codec" / "receiver-adapter"
    with pytest.raises(ConfigError, match="expected a folder of low-rank weights as adapter"):
        ilcp.train(recipe(home), out=tmp_path / "codec", adapt_receiver=True, adapter=made)
    with pytest.raises(ConfigError, match="expected adapt_receiver = true beside adapter"):
        ilcp.train(recipe(home), out=tmp_path / "codec", adapter=made)
    blurred = make_blurred()
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in blurred.adapted():
            weight.copy_(0.05 * torch.randn_like(weight))
    save_adapter(blurred.adapter, tmp_path / "adapter")
    said = {}
    choices: dict[str, dict[str, Any]] = {"begun": {"adapter": tmp_path / "adapter"}, "fresh": {"adapter_rank": 4}}
    for out, options in choices.items():
        capsys.readouterr()
        file = recipe(home, 2, "reader_share = 0.0\nadapter_after = 1.0\ncollapse_after = 1.0")
        ilcp.train(file, out=tmp_path / out, adapt_receiver=True, **options)
        said[out] = said_of(capsys.readouterr().err)
    assert said["begun"] != said["fresh"]
    kept = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "begun/receiver-adapter")]
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())


def said_of(text: str) -> str:
    """Returns the line on how the receiver reads."""
    return next(line for line in text.splitlines() if line.startswith("the receiver answers"))


def test_a_receivers_first_stage_goes_on_where_it_was_stopped(home, tmp_path, monkeypatch) -> None:
    """A run that ended in it is not begun anew, needs --resume, and gives the codec the undisturbed receiver."""
    more = "reader_share = 0.9"
    stage, calls, readers = _TextObjective.terms, [], []

    def stopped(*args) -> dict[str, torch.Tensor]:
        calls.append(args)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return stage(*args)

    def halted(_, models, *args, **options) -> None:
        readers.append([parameter.detach().clone() for parameter in models.adapted()])
        raise Interrupted("enough")

    monkeypatch.setattr(_TextObjective, "terms", stopped)
    options: dict[str, Any] = {"out": tmp_path / "codec", "adapt_receiver": True, "adapter_rank": 2}
    with pytest.raises(Interrupted, match=r"stopped at step 3; .*codec\.run/reader holds a checkpoint"):
        ilcp.train(recipe(home, 6, more), **options)
    with pytest.raises(ConfigError, match="pass --resume to go on"):
        ilcp.train(recipe(home, 6, more), **options)
    with pytest.raises(ConfigError, match=r"training.steps \(was 6, is 5\)"):
        ilcp.train(recipe(home, 5, more), **options, resume=True)
    monkeypatch.setattr(job_module, "fit", halted)
    for out, resume in (("codec", True), ("whole", False)):
        with pytest.raises(Interrupted, match="enough"):
            ilcp.train(recipe(home, 6, more), **options | {"out": tmp_path / out}, resume=resume)
    assert 10 == len(calls)
    assert all(torch.equal(one, other) for one, other in zip(*readers, strict=True))


def test_the_codec_is_saved_before_it_is_measured(place, tmp_path, monkeypatch, capsys) -> None:
    """What ends the measuring leaves the trained codec, unmeasured and said to be; --resume, or ``ilcp measure
    --attach`` on the cases that were kept apart, measures it. What is measured is not measured again."""

    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("the power is gone")

    file, out = recipe(place, 2, "collapse_after = 1.0", "saved.toml"), tmp_path / "codec"
    with monkeypatch.context() as patched:
        patched.setattr(finish_module, "run", broken)
        with pytest.raises(RuntimeError, match="the power is gone"):
            ilcp.train(file, out=out)
    assert f"the trained codec is whole in {out}, but not measured: --resume" in capsys.readouterr().err
    trained = ilcp.load(out).trained
    assert ilcp.load(out).evidence is None
    assert "Not measured yet." in (out / "README.md").read_text()
    with pytest.raises(UnmeasuredError, match="got one that was not"):
        ilcp.load_pair(out)
    with pytest.raises(ConfigError, match="pass --resume to measure it"):
        ilcp.train(file, out=out)
    for folder in (out, tmp_path / "codec.run"):
        shutil.copytree(folder, tmp_path / "again" / folder.name)
    with monkeypatch.context() as patched:
        patched.setattr(finish_module, "attach_evidence", broken)  # as where the disk is full then
        with pytest.raises(RuntimeError):
            ilcp.train(file, out=out, resume=True)
    monkeypatch.setattr(finish_module, "run", lambda *_, **__: pytest.fail("measured again"))
    resumed = ilcp.train(file, out=out, resume=True)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["measure", str(tmp_path / "again/codec"), "--attach", "--repetitions", "0"])
    assert 0 == done.exit_code, done.output
    attached = ilcp.load(tmp_path / "again" / "codec")
    for codec in (resumed, attached):
        assert trained == codec.trained
        assert 32 == present(codec.evidence).n
        assert "Not measured yet" not in (present(codec.folder) / "README.md").read_text()
    assert ("cases.jsonl", "test.jsonl") == (present(resumed.evidence).task, present(attached.evidence).task)
    assert not list(tmp_path.glob("*.unfinished.json"))
    report = tmp_path / "codec.run" / "report.json"
    assert finish_module._kept_report(report, resumed, "another version") is None
    assert not report.exists()


def test_a_run_may_become_longer(home, tmp_path, ended) -> None:
    """--resume with more steps goes on to those; with fewer than it has been promised since, it is refused."""
    shutil.copytree(ended, tmp_path / "codec.run")
    codec = ilcp.train(recipe(home, 44, "teacher_floor = 0.1", "longer.toml"), out=tmp_path / "codec", resume=True)
    made = json.loads((present(codec.folder) / "config.json").read_text())["training"]
    assert (44, 44) == (made["steps"], made["recipe"]["steps"])
    shutil.move(tmp_path / "codec", tmp_path / "before")
    with pytest.raises(ConfigError, match=r"training.steps \(was 44, is 40\)"):
        ilcp.train(recipe(home), out=tmp_path / "codec", resume=True)


def test_a_codec_tells_what_it_was_trained_on(home, tmp_path, monkeypatch) -> None:
    """Measured on its own lines it says so; the test cases that its run kept apart are none of them."""
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(
        app, ["measure", str(home.root / "codec"), "--task", str(home.data), "--n", "20", "--repetitions", "0"]
    )
    assert 0 == shown.exit_code, shown.output
    found = re.search(r"OVERLAP: the codec was trained on (\d+) of the 20 cases", shown.output)
    assert 8 < int(present(found)[1]) < 20
    apart = {case.context for case in read_jsonl(home.root / "codec.run" / "test.jsonl")}
    assert 32 == len(apart)
    seen = seen_by(home.codec)
    assert not any(map(seen, apart))
    assert 288 == sum(seen(case.context) for case in read_jsonl(home.data))


def test_batches_that_cannot_be_made_are_refused_before_the_sender_reads(place, tmp_path, monkeypatch) -> None:
    """More contexts than cases, or none beside the blank ones: nothing is read for that first."""
    monkeypatch.setattr(StateStore, "fill", lambda *_: pytest.fail("read"))
    for more, said in (("contexts = 400", "contexts of at most the 256 cases"), ("blank_share = 0.99", "blank ones")):
        file = recipe(place, 2, more, "batches.toml")
        file.write_text(file.read_text().replace("contexts = 16\n" * more.startswith("contexts"), ""))
        with pytest.raises(ConfigError, match=said):
            ilcp.train(file, out=tmp_path / "codec")


def test_a_codec_goes_to_the_hub_and_back(home, tmp_path, monkeypatch) -> None:
    """``push_to_hub`` publishes the whole folder; ``load`` and ``from_pretrained`` of an id fetch the same."""
    import huggingface_hub

    from ilcp_codecs.vae import VaeCodec

    published = tmp_path / "published"

    def upload(self, *, folder_path, **_) -> str:
        shutil.copytree(folder_path, published)
        return "https://hub/me/my-codec"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_, **k: SimpleNamespace(repo_id=k["repo_id"]))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert "https://hub/me/my-codec" == home.codec.push_to_hub("me/my-codec")
    assert {file.name for file in (home.root / "codec").iterdir()} == {file.name for file in published.iterdir()}
    for name in ("README.md", "model.safetensors", "config.json"):
        assert (home.root / "codec" / name).read_bytes() == (published / name).read_bytes()
    asked: list[str] = []
    fetch = noting(lambda *_, **__: str(published), asked, lambda name, **_: name)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    fetched = ilcp.load("me/my-codec")
    assert {"me/my-codec"} == set(asked)
    assert home.codec.evidence == fetched.evidence
    assert isinstance(VaeCodec.from_pretrained(published), VaeCodec)
    home.codec.save_pretrained(tmp_path / "saved")
    home.codec.save_pretrained(tmp_path / "saved")  # twice: as transformers' own does
    assert home.codec.trained == ilcp.load(tmp_path / "saved").trained


def test_weights_that_lack_a_tensor_are_refused(home, tmp_path) -> None:
    """A missing weight is an error, not a random number; so is one that was changed."""
    shutil.copytree(home.root / "codec", tmp_path / "codec")
    file = tmp_path / "codec" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if name != "projector.scale"}, file)
    with pytest.raises(StorageError, match=r"Missing key.*projector\.scale"):
        ilcp.load(tmp_path / "codec")
    save_file(tensors | {"projector.scale": tensors["projector.scale"] * 2}, file)
    with pytest.raises(IdentityError, match="replaced or damaged"):
        ilcp.load(tmp_path / "codec")


def test_a_codec_that_collapses_is_not_made(home, tmp_path) -> None:
    """Where the message says no more than another's half-way, the run stops with its figures; nothing is published."""
    file = recipe(home, 60, "rate_weight = 50.0\ncollapse_after = 0.5\n")
    with pytest.raises(TrainingError, match=r"after 50% of the run, got a content gain of .*collapsed"):
        ilcp.train(file, out=tmp_path / "codec")
    assert not (tmp_path / "codec").exists()
    assert (tmp_path / "codec.run" / "curve.png").exists()


def test_a_run_that_gets_no_better_ends_early_with_its_best(home, tmp_path) -> None:
    """With patience, a learning rate that ruins what was learned ends the run, and the best weights are kept."""
    file = recipe(home, 400, "patience = 1\n")
    text = file.read_text().replace("learning_rate = 6e-3", "learning_rate = 1e-2")
    file.write_text(text.replace("validate_every = 20", "validate_every = 10"))
    codec = ilcp.train(file, out=tmp_path / "codec")
    log = read_log(tmp_path / "codec.run" / "log.jsonl")
    assert log[-1]["step"] < 400
    assert max(record["recovery"] for record in log) > log[-1]["recovery"]
    assert present(codec.evidence).holds


def test_an_unproven_codec_says_so(home, tmp_path) -> None:
    """One step makes no codec: it is saved with its measurement, and a receiver refuses it."""
    ilcp.train(recipe(home, 1), out=tmp_path / "codec")
    with pytest.raises(UnmeasuredError, match="content gain"):
        ilcp.load_pair(tmp_path / "codec")
    assert "CARRIES NOTHING" in (tmp_path / "codec" / "README.md").read_text()
