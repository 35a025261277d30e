"""``benchmarks/gpu.py``: parts that are put together, limits that are kept, and the smoke stage on a CPU."""

import hashlib
import io
import json
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ilcp import embedded
from ilcp.errors import ConfigError
from ilcp.tasks import case_files
from ilcp.tasks.written import write_jsonl
from tests.helpers import load_script

gpu = load_script("gpu")
parts = load_script("gpu_parts")
items = load_script("gpu_items")
DEVICE = {"name": "some GPU", "memory_bytes": 1}


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    """A folder to which a model's folder and a GGUF file were carried in parts of 5,000 bytes."""
    model = tmp_path / "made" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "made" / "small.gguf").write_bytes(b"GGUF" * 2000)
    for name in ("tiny", "small.gguf"):
        parts.pack(tmp_path / "made" / name, tmp_path / "carried", 5000)
    return tmp_path / "carried"


def test_what_was_packed_is_put_together(carried: Path) -> None:
    """Folder and file are as they were, from parts of the size asked for; a second call leaves them as they are."""
    assert max(file.stat().st_size for file in carried.glob("*.part*")) == 5000
    listed = (carried / "SHA256SUMS").read_text().split()[1::2]
    assert sorted(file.name for file in carried.glob("*.part*")) == listed
    assert None is parts.model_at(carried, "tiny")
    assert [] == parts.join(carried)
    made = carried.parent / "made"
    for name in ("tiny/config.json", "tiny/model.safetensors", "small.gguf"):
        assert (made / name).read_bytes() == (carried / name).read_bytes()
    assert carried / "tiny" == parts.model_at(carried, "tiny")
    assert carried / "small.gguf" == parts.model_at(carried, "small")
    (carried / "tiny" / "config.json").write_text("mine")
    assert [] == parts.join(carried)
    assert "mine" == (carried / "tiny" / "config.json").read_text()


def test_parts_of_one_file_lie_in_the_models_folder(carried: Path) -> None:
    """As ``split`` and ``sha256sum`` make them: the list stands beside them, a folder further down."""
    folder = carried / "split"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    lines = []
    for number in range(12):  # the tenth is not the second
        (folder / f"model.safetensors.part{number}").write_bytes(content := bytes([number]) * 3)
        lines.append(f"{hashlib.sha256(content).hexdigest()} *model.safetensors.part{number}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))
    assert [] == parts.join(carried)
    assert b"".join(bytes([number]) * 3 for number in range(12)) == (folder / "model.safetensors").read_bytes()


def test_packing_again_replaces_the_parts_of_before(carried: Path) -> None:
    """No part of a larger version stays, in the folder or in the list."""
    (carried.parent / "made" / "small.gguf").write_bytes(b"GGUF")
    parts.pack(carried.parent / "made" / "small.gguf", carried, 5000)
    assert ["small.gguf.part00"] == [file.name for file in carried.glob("small*")]
    assert [] == parts.join(carried)
    assert b"GGUF" == (carried / "small.gguf").read_bytes()


@pytest.mark.parametrize("name", ["tiny.tar.part01", "small.gguf.part01"])
def test_a_wrong_byte_is_refused(carried: Path, name: str) -> None:
    """The part is named; nothing of its set appears or stays behind, and the other set is put together."""
    content = bytearray((carried / name).read_bytes())
    content[7] ^= 1
    (carried / name).write_bytes(content)
    before = set(carried.iterdir())
    (said,) = parts.join(carried)
    assert f"expected {carried / name} with SHA-256" in said
    assert "carry it again" in said
    whole = {"tiny.tar.part01": "small.gguf", "small.gguf.part01": "tiny"}[name]
    assert before | {carried / whole} == set(carried.iterdir())


def test_half_a_set_is_said(carried: Path) -> None:
    """Which parts are there, and which have to be carried as well."""
    (carried / "tiny.tar.part01").unlink()
    (said,) = parts.join(carried)
    number = len(list(carried.glob("tiny.tar.part*"))) + 1
    assert f"expected tiny.tar in {number} parts, got {number - 1} of them in {carried}: carry tiny.tar.part01" in said
    assert not (carried / "tiny").exists()


def test_an_archive_that_leads_out_of_its_folder_is_refused(carried: Path) -> None:
    """Whoever made the parts writes nowhere else."""
    for old in carried.iterdir():
        old.unlink()
    with tarfile.open(carried.parent / "bad.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    parts.pack(carried.parent / "bad.tar", carried)
    (said,) = parts.join(carried)
    assert "expected a tar archive in the parts of bad.tar" in said
    assert not (carried.parent / "outside").exists()
    assert not (carried / "bad").exists()


def test_a_list_of_something_else_is_refused(carried: Path) -> None:
    """A line without a digest is quoted; a name that leads elsewhere is no name."""
    for line in ("tiny.tar.part00", f"{'0' * 64}  ../tiny.tar.part00"):
        (carried / "SHA256SUMS").write_text(line)
        (said,) = parts.join(carried)
        assert f"got {line!r}" in said


def test_nothing_to_pack_is_refused(tmp_path: Path) -> None:
    """A folder that is not there is the caller's mistake."""
    with pytest.raises(ConfigError, match="expected a model's folder or file to pack"):
        parts.pack(tmp_path / "none", tmp_path / "out")


# --- limits and resumption -------------------------------------------------------------------------------------------


class Clock:
    """A clock that goes on when an item runs, and items that take the seconds given by name."""

    def __init__(self, seconds: dict[str, float], reasons: dict[str, str] | None = None):
        self.now, self.seconds, self.reasons = 100.0, seconds, reasons or {}
        self.ran: list[tuple[str, float]] = []

    def __call__(self) -> float:
        return self.now

    def launch(self, words: Sequence[str], limit_s: float) -> str:
        file = Path(words[words.index("--draft") + 1])
        self.ran.append((file.stem, limit_s))
        self.now += self.seconds[file.stem]
        file.write_text(json.dumps({"n": 3, "models": {"sender": {"weights": "w"}}, "value": 5}))
        return self.reasons.get(file.stem, "")


def item(name: str, limit_s: float, **more: Any) -> Any:
    return gpu.Item(name, "for a test", limit_s, ("gpu_items.py", "smoke"), **more)


@pytest.fixture
def session(tmp_path: Path) -> Callable[..., Any]:
    """Makes a session of 100 seconds with a clock of its own; results and work stay from one to the next."""

    def make(clock: Clock, **more: Any) -> Any:
        given = dict(ends_s=clock.now + 100, clock=clock, launch=clock.launch, sources="abc", models=tmp_path) | more
        return gpu.Session(tmp_path / "results", tmp_path / "work", DEVICE, **given)

    return make


def test_the_whole_stays_below_its_limit(session, capsys) -> None:
    """An item begins only where its own limit fits into what is left; a shorter one behind it still does."""
    clock = Clock({"a": 30, "b": 20, "c": 10, "d": 40})
    four = [item("a", 60), item("b", 70), item("c", 60), item("d", 50)]
    assert session(clock).go(four)
    assert [("a", 60), ("b", 70), ("d", 50)] == clock.ran  # 30 + 70 fits exactly; then 50 are left
    said = capsys.readouterr().out
    assert "c: is left for the next call: it may take 60 s, and 50 s are left" in said
    assert "1 left for the next call, 0 not complete" in said
    assert session(clock).go(four)
    assert ("c", 60) == clock.ran[3]


def test_what_is_done_is_skipped(session, tmp_path, capsys) -> None:
    """For this code, device and seed; a result of another of them, or an incomplete one, is made again."""
    clock = Clock({"a": 1})
    assert session(clock).go([item("a", 60)])
    record = json.loads((tmp_path / "results" / "gpu-a.json").read_text())
    assert (3, 7, True, {"value": 5}) == tuple(record[key] for key in ("n", "seed", "complete", "result"))
    assert DEVICE == record["device"]
    assert {"sender": {"weights": "w"}} == record["provenance"]["models"]
    assert record["provenance"]["versions"]["torch"]
    session(clock).go([item("a", 60)])
    assert 1 == len(clock.ran)
    assert "a: is done already" in capsys.readouterr().out
    session(clock, sources="other").go([item("a", 60)])
    session(clock, seed=8).go([item("a", 60)])
    assert 3 == len(clock.ran)
    (tmp_path / "results" / "gpu-a.json").write_text(json.dumps(record | {"complete": False}))
    session(clock, commit="1234").go([item("a", 60)])
    assert 4 == len(clock.ran)
    assert "1234" == json.loads((tmp_path / "results" / "gpu-a.json").read_text())["provenance"]["commit"]


def test_an_item_that_was_cut_keeps_its_part(session, tmp_path, capsys) -> None:
    """The result says why it is not complete; the call fails, the next item runs, and another call tries again."""
    clock = Clock({"a": 5, "b": 5}, {"a": "it was ended"})
    assert not session(clock).go([item("a", 60), item("b", 60)])
    record = json.loads((tmp_path / "results" / "gpu-a.json").read_text())
    assert (False, "it was ended", {"value": 5}) == tuple(record[key] for key in ("complete", "reason", "result"))
    assert "a: not complete after 5 s: it was ended" in capsys.readouterr().out
    clock.reasons.clear()
    assert session(clock).go([item("a", 60), item("b", 60)])
    assert ["a", "b", "a"] == [name for name, _ in clock.ran]


def test_a_signal_leaves_what_is_done(session, tmp_path) -> None:
    """What the item that ran had written is kept as incomplete, and nothing else begins."""
    clock = Clock({"a": 5, "b": 5})

    def ended(words: Sequence[str], limit_s: float) -> str:
        clock.launch(words, limit_s)
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        session(clock, launch=ended).go([item("a", 60), item("b", 60)])
    assert [("a", 60)] == clock.ran
    record = json.loads((tmp_path / "results" / "gpu-a.json").read_text())
    assert (False, "it was ended by a signal") == (record["complete"], record["reason"])


def test_an_item_waits_for_its_models_and_for_the_one_before(session, tmp_path, capsys) -> None:
    """Both are said, and neither is a failure."""
    clock = Clock({"a": 1, "b": 1})
    needs = [item("a", 9, models=("tiny",)), item("b", 9, after="a")]
    assert session(clock).go(needs)
    assert session(clock, models=None).go(needs[:1])
    said = capsys.readouterr().out
    assert f"a: is left for the next call: expected a model tiny in {tmp_path}, got none that is whole" in said
    assert "b: is left for the next call: it comes after a, which is not complete" in said
    assert "expected --models with tiny, got none" in said
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    assert session(clock).go(needs)
    assert ["a", "b"] == [name for name, _ in clock.ran]


def test_a_device_that_fails_the_smoke_stage_is_asked_no_more(session) -> None:
    """Nothing behind it begins."""
    clock = Clock({"smoke": 1, "b": 1}, {"smoke": "exit code 1"})
    assert not session(clock).go([gpu.SMOKE, item("b", 9)])
    assert ["smoke"] == [name for name, _ in clock.ran]


def test_the_usual_call_begins_the_first_training_and_its_measurement() -> None:
    """Nine minutes hold the first three items at their limits; every item fits into a call of its own."""
    left_s = 60 * 9 - gpu.MARGIN_S
    assert sum(each.limit_s for each in gpu.ITEMS[:3]) <= left_s - 15  # and the start of the script
    assert max(each.limit_s for each in gpu.ITEMS) < left_s
    assert ["smoke", "smollm2-smollm2-train", "smollm2-smollm2-measure"] == [each.name for each in gpu.ITEMS[:3]]


@pytest.mark.parametrize("body", ["pass", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_a_process_is_ended_within_its_limit(monkeypatch, body) -> None:
    """Also one that does not heed the signal; one that ends by itself is as it says."""
    monkeypatch.setattr(gpu, "GRACE_S", 1.0)
    started = time.monotonic()
    assert "ended to stay within its 2 s" in gpu.launch(("-c", f"{body}\nimport time; time.sleep(99)"), 2.0)
    assert time.monotonic() - started < 60  # it was not waited for
    assert "" == gpu.launch(("-c", ""), 60.0)
    assert "exit code 3 (see above)" == gpu.launch(("-c", "raise SystemExit(3)"), 60.0)


def test_what_a_result_depends_on_is_in_its_digest(tmp_path, monkeypatch) -> None:
    """A recipe, a script and the data: another of them, and the item is done again."""
    for name in ("gpu_parts.py", "conversations.py", "conversations/a-b.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("one")
    found = [gpu.digest_of_sources(data)]
    for file in (tmp_path / "gpu_parts.py", tmp_path / "conversations" / "a-b.toml", data / "train.jsonl"):
        file.write_text("two")
        found.append(gpu.digest_of_sources(data))
    assert 4 == len(set(found))


def test_a_second_signal_leaves_no_process(monkeypatch) -> None:
    """What holds the device is ended, however this script is."""

    class Child:
        killed = False

        def poll(self) -> int | None:
            return -9 if self.killed else None

        def terminate(self) -> None:
            """Does not heed it."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                raise SystemExit(143)
            return -9

        def kill(self) -> None:
            self.killed = True

    child = Child()
    with pytest.raises(SystemExit):
        gpu.end(child)
    assert child.killed


# --- the script ------------------------------------------------------------------------------------------------------


def in_process(words: Sequence[str], limit_s: float) -> str:
    """Runs a script of the folder as ``launch`` does, here and without a limit."""
    script = load_script(Path(words[0]).stem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(words))
        try:
            script.main()
        except SystemExit as done:
            return f"exit code {done.code}" if done.code else ""
    return ""


def start(monkeypatch: pytest.MonkeyPatch, *words: object) -> Any:
    """Runs the script, and returns its exit code."""
    known = "--minutes", "999"  # the script counts from its process's start, which is that of all tests here
    monkeypatch.setattr(sys, "argv", ["gpu.py", *known, *map(str, words)])
    monkeypatch.setattr(gpu, "launch", in_process)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")  # and as before afterwards
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as done:
        gpu.main()
    return done.value.code


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_the_smoke_stage_runs_on_a_cpu(monkeypatch, tmp_path, capsys) -> None:
    """A training with an adapted receiver, its measurement and the steps of a hand-off, by the items' own code."""
    assert 0 == start(monkeypatch, "--smoke", "--work", tmp_path)
    record = json.loads((tmp_path / "gpu-smoke.json").read_text())
    assert record["complete"]
    checks = record["result"]["checks"]
    assert ["computes", "trains and measures", "steps at real sizes"] == list(checks)
    assert not any("failed" in check for check in checks.values())
    assert (16, 4) == (checks["trains and measures"]["evidence"]["n"], checks["trains and measures"]["n"])
    assert "cpu" == record["device"]["name"]
    assert {"sender", "receiver"} == set(record["provenance"]["models"])
    assert "trains and measures: as expected" in capsys.readouterr().out
    monkeypatch.setitem(items.WORKS, "smoke", None)
    assert 0 == start(monkeypatch, "--smoke", "--work", tmp_path)  # is done


def test_what_fails_is_said_in_the_smoke_stage(monkeypatch, tmp_path, capsys) -> None:
    """The others are tried all the same; the result names the error, and the exit code is 1."""

    def broken(args: Any) -> dict:
        raise RuntimeError("no kernel image")

    for name in ("tiny_training", "tiny_scale"):
        monkeypatch.setattr(items, name, lambda args: {})
    monkeypatch.setattr(items, "product", broken)
    assert 1 == start(monkeypatch, "--smoke", "--work", tmp_path)
    record = json.loads((tmp_path / "gpu-smoke.json").read_text())
    assert not record["complete"]
    assert "RuntimeError: no kernel image" == record["result"]["checks"]["computes"]["failed"]
    assert "failed" not in record["result"]["checks"]["steps at real sizes"]
    assert "computes: RuntimeError: no kernel image" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys) -> None:
    """Nothing begins, and the way to try it is named."""
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert 2 == start(monkeypatch, "--models", tmp_path, "--work", tmp_path)
    said = capsys.readouterr().err
    assert "expected a GPU, got torch.cuda.is_available() = False and device cpu" in said
    assert "--smoke" in said


def test_what_reads_models_asks_no_server(monkeypatch, tmp_path) -> None:
    """Also the items' processes, which inherit the environment."""
    monkeypatch.setattr(gpu.Session, "go", lambda self, items: True)
    assert 0 == start(monkeypatch, "--smoke", "--work", tmp_path)
    assert "1" == gpu.os.environ["HF_HUB_OFFLINE"]


def test_pack_is_a_word_of_the_script(monkeypatch, tmp_path, capsys) -> None:
    """It makes parts of the megabytes that are asked for, and says what to carry."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF" * 1000)
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "pack", str(tmp_path / "model.gguf"), "--out", str(tmp_path), "--megabytes", "0.002"]
    )
    gpu.main()
    assert [f"model.gguf.part0{n}" for n in range(2)] == sorted(file.name for file in tmp_path.glob("*.part*"))
    assert "carry SHA256SUMS" in capsys.readouterr().out


def test_what_is_not_there_is_named(tmp_path) -> None:
    """A pair without its data, or without a model, is refused before anything is loaded."""
    given = dict(pair="smollm2-gemma3", work=tmp_path, models=tmp_path, device="cpu", seed=7, minutes=1.0)
    with pytest.raises(ConfigError, match=r"expected train\.jsonl and test\.jsonl in --data, got None"):
        items.train(items.argparse.Namespace(data=None, **given))
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("")
    with pytest.raises(ConfigError, match="expected a model smollm2 in"):
        items.train(items.argparse.Namespace(data=tmp_path, **given))


def test_an_alignment_is_an_item(monkeypatch, tmp_path) -> None:
    """It maps the first model's cache to the second's, and leaves every stage where figures are committed."""
    for name, side in (("smollm2", "sender"), ("gemma3", "receiver")):
        (tmp_path / name).symlink_to(embedded.HERE / side)
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", case_files("train", 3, 26))
    options = items.kv_align.options()
    options.set_defaults(n=3, texts=24, apart=2)
    monkeypatch.setattr(items.kv_align, "options", lambda: options)
    given = dict(pair="smollm2-gemma3", models=tmp_path, data=tmp_path, device="cpu", seed=7, work=tmp_path)
    made = items.align(items.argparse.Namespace(**given, minutes=0.02, results=tmp_path, commit="abc"))
    record = json.loads((tmp_path / made["file"]).read_text())
    assert (3, "abc", {"sender", "receiver"}) == (made["n"], record["provenance"]["commit"], set(made["models"]))
    stages = list(record["stages"])
    assert ["own reading", "closed form"] == stages[:2]
    assert "minutes" in stages[-1]
    (each,) = (one for one in gpu.ITEMS if one.name == "smollm2-gemma3-align")
    assert {"gpu_items.py", "align", "smollm2-gemma3"} <= set(each.words)


def test_a_size_of_scale_is_kept_and_shown(monkeypatch, tmp_path, session) -> None:
    """The item keeps what ``scale.py`` wrote, and the table of sizes shows it beside the others."""
    tables = load_script("tables")
    shutil.copyfile(tables.RESULTS / "scale-cpu.json", tmp_path / "scale-cpu.json")
    size = gpu.of_size("tiny", 60)
    made = session(Clock({}), launch=in_process, torch_device="cpu")
    made.results = tmp_path
    assert made.go([size])
    record = json.loads((tmp_path / "gpu-scale-tiny.json").read_text())
    assert {"tiny"} == set(record["provenance"]["models"])
    assert 6 == record["n"]
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (row,) = [line for line in tables.scale().splitlines() if "tiny to tiny | 1,024" in line]
    assert "not run: expected a document" in row


def test_what_was_done_on_a_gpu_has_a_table(monkeypatch, tmp_path) -> None:
    """Without a result a sentence says so; an item that is not complete says why."""
    tables: ModuleType = load_script("tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "Nothing was run on a GPU so far" in tables.gpu()
    exact = {"text": 0.5, "message": 0.25, "mismatched": 0.125, "none": 0.0}
    training = {"steps": 20, "reader": {"steps": 38}, "validation": {"validation_exact": exact}}
    record = {"item": "a-b-train", "device": DEVICE, "seconds": 12.3, "complete": False, "reason": "time was over"}
    (tmp_path / "gpu-a-b-train.json").write_text(json.dumps(record | {"result": {"training": training}}))
    (row,) = [line for line in tables.gpu().splitlines() if "a-b-train" in line]
    assert row == ("| a-b-train | some GPU | 12 s | no: time was over | 38 + 20 | 0.500 | 0.250 | 0.125 | 0.000 |")
