"""References and watches as files: whole or refused, whoever wrote them, however many use them, whenever one dies."""

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

import ilcp
from ilcp.assurance import REFERENCE, Calibrated, Canary, Observed, Policy, Reference, State, View, Watch
from ilcp.assurance.martingale import START
from ilcp.assurance.reference import MOST_BYTES, PARTS
from ilcp.errors import IdentityError, StorageError
from ilcp_codecs.vae import VaeCodec
from tests.calibrated import TEXTS, Ends, ends_in
from tests.helpers import environment, present

CODEC, OF = "c0de" * 4, ("c0de" * 4, "reference", "", "receiver")


def reference(**known: Any) -> Reference:
    """A small one."""
    rng = np.random.default_rng(3)
    views = {
        name: View.fit([Observed(rng.standard_normal(3).astype(np.float32), (0.5,)) for _ in range(100)])
        for name in ("sent", "received/16")
    }
    calibrated = Calibrated(CODEC, "cases", "00", 100, 1, "abc", "5.0.0", (("Who?", "Mara"),))
    return Reference(views, replace(calibrated, **known), np.ones((2, 2, 3), np.float32))


@pytest.fixture(scope="module")
def ends(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """A calibrated pair."""
    return ends_in(tmp_path_factory.mktemp("calibrated") / "codec", small)


def test_a_reference_comes_back_to_the_byte(tmp_path: Path) -> None:
    """Scores, digest and file are those that were written, whatever order its views were in."""
    made = reference()
    made.write(tmp_path)
    found = Reference.read(tmp_path, CODEC)
    assert made.to_bytes() == found.to_bytes() == (tmp_path / REFERENCE).read_bytes()
    assert made.digest == found.digest
    assert made.calibrated == found.calibrated
    odd = Observed(np.full(3, 2, np.float32), (0.1,))
    assert made.views["sent"].score(odd) == found.views["sent"].score(odd)
    assert made.digest == replace(made, views=dict(reversed(list(made.views.items())))).digest
    assert made.digest != reference(n=101).digest


def without(name: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tensors.items() if key != name}


def put(name: str, value: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, name: np.asarray(value)}


def recorded(changes: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    record = json.loads(bytes(tensors["record"])) | changes
    return put("record", np.frombuffer(json.dumps(record).encode(), np.uint8), tensors)


def said(text: bytes, tensors: dict[str, Any]) -> dict[str, Any]:
    return put("record", np.frombuffer(text, np.uint8), tensors)


def many(tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        **without("attention", tensors),
        **{f"{n}.{part}": tensors[f"sent.{part}"] for n in range(81) for part in PARTS},
    }


F32, F64 = np.float32, np.float64
LONG = np.zeros(2049, F32)
SPHERE = np.eye(2049, dtype=F32)[np.tril_indices(2049)]
DAMAGE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a part is missing": partial(without, "sent.scale"),
    "another part": partial(put, "sent.more", np.zeros(3)),
    "no view's name": partial(put, "more", np.zeros(3)),
    "no record": partial(without, "record"),
    "float scores": partial(put, "sent.scores", np.zeros(40, F32)),
    "double mean": partial(put, "sent.mean", np.zeros(3, F64)),
    "double shapes": lambda some: put(
        "sent.covariance", np.array([1.0, 0, 1, 0, 0, 1]), put("sent.mean", np.zeros(3), some)
    ),
    "whole numbers": partial(put, "sent.covariance", np.ones(6, np.int64)),
    "a negative scale": partial(put, "sent.scale", [1.0, -1.0, 1.0]),
    "a scale of nothing": partial(put, "sent.scale", [1.0, 0.0, 1.0]),
    "scores that do not ascend": partial(put, "sent.scores", [2.0, 1.0]),
    "no scores": partial(put, "sent.scores", np.zeros(0)),
    "scores in a table": partial(put, "sent.scores", np.zeros((2, 2))),
    "a score that is none": partial(put, "sent.scores", [0.0, np.nan]),
    "an infinite score": partial(put, "sent.scores", [0.0, np.inf]),
    "a centre that is none": partial(put, "sent.centre", [0.0, np.nan, 0.0]),
    "a mean that is none": partial(put, "sent.mean", np.array([0, np.nan, 0], F32)),
    "fewer centres than scales": partial(put, "sent.centre", [0.0, 0.0]),
    "a covariance that is none": partial(put, "sent.covariance", np.array([1, 5, 1, 5, 5, 1], F32)),
    "a covariance of nothing": partial(put, "sent.covariance", np.zeros(6, F32)),
    "an infinite covariance": partial(put, "sent.covariance", np.full(6, np.inf, F32)),
    "a covariance of another size": partial(put, "sent.covariance", np.ones(5, F32)),
    "a mean in a table": partial(put, "sent.mean", np.zeros((3, 1), F32)),
    "a mean that is a number": partial(put, "sent.mean", np.zeros((), F32)),
    "a mean of 2,049": lambda some: put("sent.covariance", SPHERE, put("sent.mean", LONG, some)),
    "too many views": many,
    "attention that is none": partial(put, "attention", np.full((2, 2, 3), np.nan, F32)),
    "attention in words": partial(put, "attention", np.ones((2, 2, 3), np.int8)),
    "an unknown key": partial(recorded, {"evil": 1}),
    "another format": partial(recorded, {"format": "2"}),
    "a number as text": partial(recorded, {"n": "many"}),
    "more right than asked": partial(recorded, {"right": 7}),
    "too long a probe": partial(recorded, {"probe": [["Who?", "Mara"]] * 65}),
    "an empty answer": partial(recorded, {"probe": [["Who?", " "]]}),
    "a probe of one": partial(recorded, {"probe": [["Who?"]]}),
    "a list": partial(said, b"[]"),
    "no JSON": partial(said, b"{"),
    "no text": partial(said, b"\xff\xfe"),
    "lists without end": partial(said, b"[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_reference_is_refused(tmp_path: Path, damage: str) -> None:
    """Whatever is wrong with it: a StorageError that names the file and what to do, and no end judges by it."""
    (tmp_path / REFERENCE).write_bytes(save(DAMAGE[damage](load(reference().to_bytes()))))
    with pytest.raises(StorageError, match=rf"expected a reference in .*{REFERENCE}, got: .*; calibrate again"):
        Reference.read(tmp_path, CODEC)


def test_bytes_that_are_no_reference_are_refused(tmp_path: Path) -> None:
    """Cut anywhere, or claiming what is not there: refused before it takes memory; so is what is too large."""
    whole, file = reference().to_bytes(), tmp_path / REFERENCE
    huge = json.dumps({"sent.mean": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    header = len(huge).to_bytes(8, "little") + huge
    for data in (*(whole[:n] for n in range(0, len(whole), 97)), b"\xff" * 64, header, (1 << 62).to_bytes(8, "little")):
        file.write_bytes(data)
        with pytest.raises(StorageError, match="calibrate again"):
            Reference.read(tmp_path, CODEC)
    os.truncate(file, MOST_BYTES + 1)
    with pytest.raises(StorageError, match=r"67,108,865 bytes, more than the 67,108,864 of any; calibrate again"):
        Reference.read(tmp_path, CODEC)


def test_only_a_file_of_the_folder_is_read(tmp_path: Path) -> None:
    """A link out of it, to nowhere, a pipe and a folder are refused, and never taken for no reference at all."""
    (tmp_path / "codec").mkdir()
    reference().write(tmp_path)
    file = tmp_path / "codec" / REFERENCE
    codec = SimpleNamespace(
        folder=file.parent, trained=SimpleNamespace(codec_id=lambda _: bytes.fromhex(CODEC)), spec=None
    )
    assert Reference.of(codec) is None
    links = (partial(file.symlink_to, target) for target in (tmp_path / REFERENCE, "nowhere"))
    makes: list[Callable[[], Any]] = [*links, partial(os.mkfifo, file), file.mkdir]
    for make in makes:
        make()
        with pytest.raises(StorageError, match="expected a"):
            Reference.of(codec)
        file.rmdir() if file.is_dir() else file.unlink()
    assert Reference.of(SimpleNamespace()) is None


def test_another_codecs_reference_judges_nothing(ends: Ends, tmp_path: Path) -> None:
    """An end with a folder of which only the reference is another's is not made, and the text says what to do."""
    ilcp.save(ends.codec, tmp_path / "codec")
    reference().write(tmp_path / "codec")
    codec = ilcp.load(tmp_path / "codec")
    for make in (ends.receiver, lambda codec: ilcp.Sender(*own(ends), codec, assurance=Policy())):
        with pytest.raises(IdentityError, match=f"got that of {CODEC}: calibrate again with 'ilcp calibrate'"):
            make(codec)
    ends.receiver(codec, assurance=None)


def own(ends: Ends) -> tuple[Any, Any]:
    """A sender's model and tokenizer."""
    return ends.models.sender.model, ends.models.sender.tokenizer


def test_a_reference_goes_where_its_codec_goes(ends: Ends, tmp_path: Path) -> None:
    """Saved in another folder, as the hub's mixin saves as well, or over itself, a codec keeps what was calibrated."""
    held = (ends.codec.folder / REFERENCE).read_bytes()
    ilcp.save(ends.codec, tmp_path / "one")
    ends.codec.save_pretrained(tmp_path / "two")
    ilcp.save(ilcp.load(tmp_path / "one"), tmp_path / "one")
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert held == (folder / REFERENCE).read_bytes()
        found = ends.receiver(ilcp.load(folder)).judged(ends.odd())
        assert ends.reference.digest == found.reference


def test_a_reference_does_not_outlive_its_codec(ends: Ends, small: Any, tmp_path: Path) -> None:
    """Another codec that is saved into the folder is judged by nothing, until it is calibrated; the same one that was
    made once more keeps its own; a damaged reference goes."""
    folder = tmp_path / "codec"
    ilcp.save(ends.codec, folder)
    ilcp.save(small.codec, folder)  # the same weights, from memory
    assert ends.reference.digest == ends.receiver(ilcp.load(folder)).judged(ends.odd()).reference
    other = copy.deepcopy(small.codec.network)
    other.projector.scale.data.mul_(1.01)
    retrained = VaeCodec.from_network(other, small.codec.trained.sender, small.codec.trained.receiver)
    ilcp.save(retrained, folder)
    assert not (folder / REFERENCE).exists()
    assert "" == ends.receiver(ilcp.load(folder)).judged(_message(ends, retrained)).reference
    (folder / REFERENCE).write_bytes(b"damaged")
    ilcp.save(small.codec, folder)
    assert not (folder / REFERENCE).exists()


def _message(ends: Ends, codec: Any) -> bytes:
    return ilcp.Sender(*own(ends), codec).encode(TEXTS[0])


def test_a_reference_holds_no_text_and_no_payload(ends: Ends) -> None:
    """No word of the texts that it was made of, and no payload, is in the file: it is a summary."""
    held = (ends.codec.folder / REFERENCE).read_bytes()
    assert not [word for text in TEXTS[:300] for word in text.split() if len(word) > 6 and word.encode() in held]
    sender = ends.sender()
    payloads = [ends.codec.encode(context) for context in sender.read_batch(TEXTS[:300], 32)]
    assert not [payload for payload in payloads if payload in held or payload.hex().encode() in held]


def bet(state: State, p: float = 0.5) -> State:
    return state.bet({"received/16": (p, 0.01)}, 1).decide("accept")


def test_a_watch_outlives_its_process(tmp_path: Path) -> None:
    """Closed, opened again, copied and pickled, it goes on where it was, and holds one row a state; one in memory
    begins anew in a copy."""
    path = tmp_path / "watch.sqlite"
    with Watch(path) as watch:
        first = watch.change(*OF, bet)
        told = watch.change(*OF[:3], "canary", lambda state: state.told(Canary(0.8, 0.4).told(True)))
    with Watch(path) as watch:
        assert [told, first] == watch.states()
        for other in (copy.copy(watch), pickle.loads(pickle.dumps(watch)), copy.deepcopy(Policy(watch=watch)).watch):
            assert other is not None
            assert first.messages + 1 == other.change(*OF, bet).messages
            first = watch.states()[1]
            other.close()
    memory = Watch()
    memory.change(*OF, bet)
    assert [] == copy.deepcopy(memory).states()


def test_an_alarm_stands_until_it_is_reset(tmp_path: Path) -> None:
    """However usual what comes then; a reset begins anew, for one codec and tenant."""
    with Watch(tmp_path / "watch.sqlite") as watch:
        others = ((OF[0], OF[1], "acme", "receiver"), ("other", *OF[1:]))
        for key in (OF, *others):
            for _ in range(40):
                watch.change(*key, partial(bet, p=0.001))
        at = watch.states()[0].alarm_at
        assert 0 < at < 20
        for _ in range(2000):
            state = watch.change(*OF, partial(bet, p=0.5))
        assert (True, at) == (state.alarmed, state.alarm_at)
        assert state.value < state.peak / 1000
        assert state.peak >= 100
        assert 1 == watch.reset(OF[0])
        assert [True, True] == [each.alarmed for each in watch.states()]
        fresh = watch.change(*OF, bet)
        assert (1, False) == (fresh.messages, fresh.alarmed)
        assert fresh.value == pytest.approx(START, rel=0.02)
        assert 0 == watch.reset("nobody")


COUNT = """
import sys
from ilcp.assurance import Watch

with Watch(sys.argv[1]) as watch:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(100):
        watch.change(*sys.argv[2:], lambda state: state.bet({"received/16": (0.5, 0.01)}, 1).decide("accept"))
"""


def test_several_processes_count_all_messages(tmp_path: Path) -> None:
    """Three processes that write 100 each into one file: 300 are there, and the capital of 300 bets."""
    path = tmp_path / "watch.sqlite"
    line = [sys.executable, "-c", COUNT, str(path), *OF]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment()}
    workers = [subprocess.Popen(line, **pipes) for _ in range(3)]
    assert ["ready\n"] * 3 == [present(worker.stdout).readline() for worker in workers]
    for worker in workers:
        present(worker.stdin).write("go\n")
        present(worker.stdin).flush()
    for worker in workers:
        worker.communicate(timeout=60)
    assert [0, 0, 0] == [worker.returncode for worker in workers]
    alone = State(*OF)
    for _ in range(300):
        alone = bet(alone)
    with Watch(path) as watch:
        (state,) = watch.states()
    assert (300, {"accept": 300}) == (state.messages, state.decided)
    assert alone.value == pytest.approx(state.value)


def test_a_killed_process_leaves_whole_states(tmp_path: Path) -> None:
    """Killed in the middle of writing: what was told is there, and the next process goes on."""
    path = tmp_path / "watch.sqlite"
    with Watch(path) as watch:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            while True:
                os.write(writing, b"%d\n" % watch.change(*OF, bet).messages)
        told = b""
        while told.count(b"\n") < 20:
            told += os.read(reading, 100)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(writing)
        while rest := os.read(reading, 1000):
            told += rest
        os.close(reading)
        count = told.count(b"\n")
        (state,) = watch.states()
        assert state.messages in (count, count + 1)  # it may have died between the two
        assert state.messages + 1 == watch.change(*OF, bet).messages


def test_an_interrupted_step_leaves_a_state_as_it_was(tmp_path: Path) -> None:
    """Ctrl-C, or a defect, in the middle of a step takes it back whole."""
    with Watch(tmp_path / "watch.sqlite") as watch:
        before = watch.change(*OF, bet)

        def interrupted(state: State) -> State:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            watch.change(*OF, interrupted)
        assert before == watch.look(*OF)
        assert 2 == watch.change(*OF, bet).messages
