"""What a run keeps: nothing that the disk damaged passes for what was written, and no second run writes there."""

import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ilcp.errors import ConfigError, StorageError
from ilcp.files import held
from ilcp.training import Phrasebook, StateStore, fit
from ilcp.training.checkpoint import BEFORE, CHECKPOINT, HEAD_BYTES, has_checkpoint, read_checkpoint, write_checkpoint
from ilcp.training.log import Log, read_log
from ilcp.training.loop import Run
from ilcp.training.reader import Reader
from ilcp.training.tensors import write_tensors
from ilcp.training.tuning import tuned
from tests.helpers import ROOT, present
from tests.taught import cases, make_hyperparameters, make_network

STATE = {"step": 7, "weights": {"w": torch.arange(48.0).reshape(6, 8)}, "best": None}
LAYERS = (0, 2)
train = partial(fit, source=cases, validation=cases(10_000, 16))
wanted = partial(make_hyperparameters, learning_rate=3e-3, validate_every=2, validation_contexts=16, seed=4)


def flipped(content: bytes, rng: random.Random) -> bytes:
    """The content with one bit of it turned over."""
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def test_no_flipped_bit_of_a_checkpoint_goes_unseen(tmp_path: Path) -> None:
    """Whatever bit is another, and wherever the file ends early: damage is said, and no other number loaded."""
    write_checkpoint(tmp_path, STATE)
    file, rng = tmp_path / CHECKPOINT, random.Random(0)
    whole = file.read_bytes()
    places = [flipped(whole, rng) for _ in range(300)]
    places += [bytes([whole[0] ^ 1 << bit]) + whole[1:] for bit in range(8)]  # which hides that there is a digest
    for content in (*places, *(whole[: rng.randrange(len(whole))] for _ in range(20)), b""):
        file.write_bytes(content)
        with pytest.raises(StorageError, match=r"expected a checkpoint in .*checkpoint.pt, got a damaged file"):
            read_checkpoint(tmp_path)
    file.write_bytes(whole)
    weights: Any = STATE["weights"]
    assert torch.equal(weights["w"], read_checkpoint(tmp_path)[0]["weights"]["w"])


def test_a_checkpoint_without_its_digest_is_none(tmp_path: Path) -> None:
    """What torch alone wrote, or what lost its head, is damaged, and the one before it is taken."""
    write_checkpoint(tmp_path, STATE)
    write_checkpoint(tmp_path, STATE | {"step": 8})
    whole = (tmp_path / CHECKPOINT).read_bytes()
    torch.save(STATE, tmp_path / "plain")
    for content in (whole[HEAD_BYTES:], (tmp_path / "plain").read_bytes(), b""):
        (tmp_path / CHECKPOINT).write_bytes(content)
        state, file = read_checkpoint(tmp_path)
        assert (7, BEFORE) == (state["step"], file.name)
    (tmp_path / BEFORE).unlink()
    with pytest.raises(StorageError, match="does not begin with the digest that every checkpoint has"):
        read_checkpoint(tmp_path)


def test_two_generations_stay_and_one_that_cannot_be_written_costs_none(tmp_path: Path, monkeypatch) -> None:
    """The latest and the one before; where the disk fails, be it writing, syncing or naming, the latest is read."""
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, STATE | {"step": step})
    assert {CHECKPOINT, BEFORE} == {file.name for file in tmp_path.iterdir()}
    assert {0o600} == {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for owner, name in ((Path, "write_bytes"), (os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            with pytest.raises(StorageError, match=r"No space left .*; the checkpoint before stays: free space, then"):
                write_checkpoint(tmp_path, STATE | {"step": 4})
        assert has_checkpoint(tmp_path)
        assert 3 == read_checkpoint(tmp_path)[0]["step"]
        write_checkpoint(tmp_path, STATE | {"step": 3})


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(models, tmp_path, capsys) -> None:
    """The run says so, makes those steps again, and ends with the weights that it had; no damaged file stays."""
    whole = make_network()
    train(whole, models, hyperparameters=wanted(steps=6), folder=tmp_path)
    assert [6, 4] == steps_kept(tmp_path)
    file = tmp_path / CHECKPOINT
    file.write_bytes(flipped(file.read_bytes(), random.Random(1)))
    again = make_network()
    train(again, models, hyperparameters=wanted(steps=6), folder=tmp_path, resume=True)
    assert "is missing or damaged, the one before it is taken" in " ".join(capsys.readouterr().err.split())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert [6, 4] == steps_kept(tmp_path)


def steps_kept(folder: Path) -> list[int]:
    """The steps of both generations, each read on its own."""
    alone = folder / "alone"
    alone.mkdir(exist_ok=True)
    steps = []
    for name in (CHECKPOINT, BEFORE):
        shutil.copyfile(folder / name, alone / CHECKPOINT)
        steps.append(read_checkpoint(alone)[0]["step"])
    return steps


def test_a_crash_between_two_names_is_a_run_that_goes_on(models, tmp_path) -> None:
    """Where only the one before has a name, the folder is a begun run's: it needs ``resume``, and goes on."""
    train(make_network(), models, hyperparameters=wanted(steps=2), folder=tmp_path)
    (tmp_path / CHECKPOINT).replace(tmp_path / BEFORE)
    with pytest.raises(ConfigError, match="resume=True"):
        train(make_network(), models, hyperparameters=wanted(steps=2), folder=tmp_path)
    assert 2 == train(make_network(), models, hyperparameters=wanted(steps=2), folder=tmp_path, resume=True).steps
    assert (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[]", b'{"loss": 1}', b'{"step": null}', b'"step"', b"[" * 100_000])
def test_a_damaged_line_of_a_log_ends_no_run(tmp_path: Path, line: bytes) -> None:
    """What is no line of a log is left out when a run goes on; the others stay."""
    log = Log(tmp_path)
    log.file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n{"step": 3}\n')
    log.forget_after(2)
    assert [{"step": 1}, {"step": 2}] == read_log(log.file)


@pytest.mark.parametrize("content", [b"{}", b'{"before": 1}', b'{"before": {}, "after": {}, "minutes": "x"}', b"[1]"])
def test_a_damaged_record_of_the_first_stage_is_named(tmp_path: Path, content: bytes) -> None:
    """What the stage brought is read for its minutes by a run that goes on: without them it is a StorageError."""
    (tmp_path / "reader").mkdir()
    write_checkpoint(tmp_path / "reader", STATE)
    (tmp_path / "reader" / "brought.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"expected a run's own record in .*brought.json, got"):
        tuned(tmp_path)


# ---- states and phrasebook


def test_no_flipped_bit_of_a_shard_goes_unseen(models, tmp_path) -> None:
    """What comes of a shard with another bit is the states as they were written, or none: they are computed anew."""
    texts = [case.context for case in cases(0, 2)]
    store = StateStore(tmp_path, models, LAYERS, make_hyperparameters(), 1 << 30)
    store.fill(Reader(models, LAYERS, make_hyperparameters(), store), texts)
    kept = {text: present(store.get(text)).clone() for text in texts}
    (file,) = store.folder.iterdir()
    assert 0o600 == file.stat().st_mode & 0o777
    whole, rng, lost = file.read_bytes(), random.Random(0), 0
    for _ in range(200):
        file.write_bytes(flipped(whole, rng))
        again = StateStore(tmp_path, models, LAYERS, make_hyperparameters(), 1 << 30)
        again._where = store._where
        for text in texts:
            found = again.get(text)
            lost += found is None
            assert found is None or torch.equal(kept[text], found)
    assert 150 < lost < 400


def test_states_without_their_digest_are_none(models, tmp_path: Path) -> None:
    """A shard whose digests are gone is computed again where it is asked for."""
    from safetensors.torch import load_file, save_file

    text = "It was Mara."
    store = StateStore(tmp_path, models, LAYERS, make_hyperparameters(), 1 << 30)
    store.fill(Reader(models, LAYERS, make_hyperparameters(), store), [text])
    (file,) = store.folder.iterdir()
    save_file(load_file(file), file)
    assert store.get(text) is None


def test_no_flipped_bit_of_a_phrasebook_goes_unseen(tmp_path: Path) -> None:
    """Its words, vectors and places are those that were written, or it is said to be none; so too without a digest."""
    book = Phrasebook({"Mara": 0, "Oslo": 1}, torch.ones(2, 3), torch.ones(1, 3))
    file, rng = tmp_path / "book", random.Random(0)
    book.save(file)
    whole = file.read_bytes()
    for _ in range(200):
        file.write_bytes(flipped(whole, rng))
        with suppress(StorageError):
            found = Phrasebook.load(file)
            assert book.words == found.words
            assert torch.equal(book.vectors, found.vectors)
            assert torch.equal(book.places, found.places)


def test_tensors_of_any_shape_have_a_digest(tmp_path: Path) -> None:
    """Scalars, empty ones, slices and half precision are written as they are."""
    tensors = {"a": torch.tensor(1.5), "b": torch.zeros(0, 3), "c": torch.ones(4, 6)[:, ::2], "d": torch.ones(3).half()}
    write_tensors(tmp_path / "file", tensors)
    assert (tmp_path / "file").stat().st_size


# ---- one run at a time


def test_two_runs_do_not_write_into_one_folder(models, tmp_path, monkeypatch) -> None:
    """The second is refused before it reads or writes anything, by the first one's process; later it may."""
    seen: list[str] = []

    def second(self: Run) -> None:
        if not seen:
            with pytest.raises(ConfigError, match=rf"one process at a time, got process {os.getpid()} on ") as caught:
                train(make_network(), models, hyperparameters=wanted(steps=2), folder=tmp_path, resume=True)
            seen.append(str(caught.value))
        save(self)

    save = Run.save
    monkeypatch.setattr(Run, "save", second)
    train(make_network(), models, hyperparameters=wanted(steps=2), folder=tmp_path)
    assert seen
    train(make_network(), models, hyperparameters=wanted(steps=2), folder=tmp_path, resume=True)


def test_a_training_holds_its_folder_from_the_models_on(tmp_path, monkeypatch) -> None:
    """Before a model is loaded a second ``ilcp train`` is refused; what the first does in the folder is its own."""
    import ilcp
    from tests.taught import write_cases

    monkeypatch.setattr("ilcp.training.job._models", lambda *_: pytest.fail("loaded"))
    words: dict[str, Any] = dict(sender="/nowhere", receiver="/nowhere", data=write_cases(tmp_path / "c.jsonl", 200))
    with held(tmp_path / "codec.run" / "run.lock"), pytest.raises(ConfigError, match="for one process at a time"):
        ilcp.train(**words, out=tmp_path / "codec")


def test_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    """A folder is refused with the number of the process that holds it, and free as soon as that is killed."""
    code = """
import signal, sys
from pathlib import Path
from ilcp.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""
    lock = tmp_path / "folder" / "lock"
    process = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert "held\n" == process.stdout.readline()
        with pytest.raises(ConfigError, match=f"got process {process.pid} on .*: wait for its end"), held(lock):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    with held(lock):
        assert lock.read_text().startswith(f"{os.getpid()} on ")


def test_a_lock_follows_no_link_and_shows_no_controls(tmp_path: Path) -> None:
    """What another put into the lock's place is neither emptied nor printed as it is."""
    target = tmp_path / "theirs"
    target.write_text("content")
    (tmp_path / "lock").symlink_to(target)
    with pytest.raises(StorageError, match="expected to be able to lock"), held(tmp_path / "lock"):
        pass
    assert "content" == target.read_text()
    (tmp_path / "lock").unlink()
    with held(tmp_path / "lock"):
        (tmp_path / "lock").write_text("\x1b[31m7")
        with pytest.raises(ConfigError, match=r"got process \\x1b\[31m7, which"), held(tmp_path / "lock"):
            pass


def test_a_lock_holds_on_a_full_disk_and_nothing_is_held_without_locks(tmp_path: Path, monkeypatch) -> None:
    """What says who holds it is for people; a file system that knows no locks is worked on as before there were any."""

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fails)
        with (
            held(tmp_path / "lock"),
            pytest.raises(ConfigError, match="one process at a time"),
            held(tmp_path / "lock"),
        ):
            pass
    monkeypatch.setattr(fcntl, "flock", lambda *_: fails())
    with held(tmp_path / "lock"), held(tmp_path / "lock"):
        pass
