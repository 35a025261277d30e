"""Places that a person names on the command line: too long, closed, endless, taken, full, or named twice in a file."""

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import ilcp
from ilcp import folders
from ilcp.cli import main
from ilcp.cli.exit_codes import CLOSED, exit_code
from ilcp.cli.measure import _beside
from ilcp.embedded import HERE
from ilcp.errors import ConfigError, DecodeError, IlcpError, StorageError, UnmeasuredError
from ilcp.evidence import Evidence, require_signed, signed, trusted_keys
from ilcp.files import held
from ilcp.folders import read_whole
from ilcp.inputs import read_text
from ilcp.message import Message
from ilcp.models.sources import folder_of, gguf_file
from ilcp.records import renamed
from ilcp.signing import public_key
from tests.taught import write_cases

ILCP = [sys.executable, "-m", "ilcp"]
WRONG, STORAGE, JUNK = (exit_code(kind()) for kind in (ConfigError, StorageError, DecodeError))
LONG = "n" * 300
SEED = bytes(range(32))

Ends = Callable[..., tuple[int, str]]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ends:
    """Runs ``ilcp`` in a new folder, where no model can be loaded; returns the exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ilcp.embedded.load_pair", lambda *_, **__: None)
    (tmp_path / "text.txt").write_text("Mara, Oslo.")
    write_cases(tmp_path / "cases.jsonl", 200)

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ilcp", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    return call


TRAIN = ("train", "--sender", "/nowhere", "--receiver", "/nowhere")
NAMED: list[tuple[str, ...]] = [
    ("measure", "embedded", "--task", "cases.jsonl", "--json", "PLACE"),
    ("measure", "embedded", "--task", "cases.jsonl", "--html", "PLACE"),
    ("measure", "embedded", "--task", "cases.jsonl", "--png", "PLACE"),
    ("measure", "embedded", "--task", "PLACE"),
    ("measure", "some", "--task", "cases.jsonl", "--attach", "--sign", "PLACE"),
    ("compare", "PLACE", "PLACE"),
    ("inspect", "PLACE"),
    ("encode", "PLACE"),
    ("encode", "text.txt", "--out", "PLACE"),
    ("encode", "text.txt", "--codec", "PLACE"),
    ("encode", "text.txt", "--sender", "PLACE"),
    ("demo", "--document", "PLACE", "--ask", "Who?"),
    ("receive", "--via", "spool:///nowhere", "--as", "b", "--out", "PLACE"),
    (*TRAIN, "--data", "cases.jsonl", "--out", "PLACE"),
    (*TRAIN, "--data", "PLACE", "--out", "codec"),
    (*TRAIN, "--data", "cases.jsonl", "--out", "codec", "--recipe", "PLACE"),
    ("train", "--sender", "PLACE", "--receiver", "PLACE", "--data", "cases.jsonl", "--out", "codec"),
]
WRITTEN = ("--json", "--html", "--png", "--out", "--codec", "--sender")  # or a folder
READ = [words for words in NAMED if words[words.index("PLACE") - 1] not in WRITTEN]


@pytest.mark.parametrize("words", NAMED, ids=" ".join)
@pytest.mark.parametrize("place", [f"./{LONG}", "closed/in/it"], ids=["long", "closed"])
def test_no_place_ends_in_a_traceback(ends: Ends, monkeypatch, words: tuple[str, ...], place: str) -> None:
    """A name that no file can have, or a folder of somebody else's: each option that takes a path says why it cannot
    be used, by the code of wrong use or of the disk."""

    def closed(name: str) -> Callable[..., Any]:
        plain = getattr(os, name)

        def call(path: Any, *rest: Any, **options: Any) -> Any:
            if "closed/" in str(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return plain(path, *rest, **options)

        return call

    os.mkdir("closed")
    for name in ("stat", "lstat", "mkdir", "open", "listdir"):
        monkeypatch.setattr(os, name, closed(name))
    code, said = ends(*(place if word == "PLACE" else word for word in words))
    assert code in (WRONG, STORAGE)
    assert ("permission denied" if place.startswith("closed") else "name too long") in said.lower().replace("\n", " ")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pipe", "a pipe or a device, which may never end"),
        ("/dev/zero", "a pipe or a device"),
        ("sparse", "2,147,483,648"),
    ],
)
@pytest.mark.parametrize("words", READ, ids=" ".join)
def test_what_never_ends_is_no_file_to_read(ends: Ends, tmp_path: Path, words, file: str, said: str) -> None:
    """Each option that names a file to read refuses a pipe, a device and more than can be held, at once."""
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "sparse", "wb") as sparse:
        sparse.truncate(2 << 30)
    code, told = ends(*(file if word == "PLACE" else word for word in words))
    assert (JUNK if (words[0], file) == ("inspect", "sparse") else WRONG) == code
    assert said in " ".join(told.split())


def test_a_file_is_read_as_far_as_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound it is read whole, beyond it is refused; what says it is empty and is not, as in /proc, is read."""
    monkeypatch.setattr(folders, "MOST_BYTES", 10)
    (tmp_path / "file").write_bytes(b"0123456789")
    assert b"0123456789" == read_whole(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"0123456789+")
    with pytest.raises(OSError, match="11 bytes, more than the 10 that are read"):
        read_whole(tmp_path / "file")
    if os.path.exists("/proc/self/status"):
        assert b"Pid" in read_whole("/proc/self/status")


def test_standard_input_has_the_bound_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is piped in without an end is refused, and not kept for ever."""
    monkeypatch.setattr("ilcp.inputs.MOST_BYTES", 1 << 20)
    with open("/dev/zero", encoding="utf-8") as zeros:
        monkeypatch.setattr(sys, "stdin", zeros)
        with pytest.raises(ConfigError, match="more than the 1,048,576"):
            read_text("-")


def test_what_is_kept_of_a_measurement_has_a_name_that_a_file_can_have() -> None:
    """However long the codec's, its own is short enough, and another for another codec."""
    first, second = _beside("é" * 250, 1), _beside("é" * 250, 2)
    assert first != second
    assert len(os.fsencode(f"{first}.unfinished")) < 255


# --- standard output ---------------------------------------------------------------------------------------------


@pytest.fixture
def message(tmp_path: Path) -> str:
    """A file with a message."""
    (tmp_path / "message").write_bytes(Message(bytes(8), b"payload").to_bytes())
    return str(tmp_path / "message")


WRITES = [("inspect", "FILE"), ("inspect", "FILE", "--json"), ("--help",), ("--version",)]


@pytest.mark.parametrize("words", WRITES, ids=" ".join)
def test_a_full_output_ends_in_a_sentence(message: str, words: tuple[str, ...]) -> None:
    """It is the disk's fault, and said so by its code."""
    named = [message if word == "FILE" else word for word in words]
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*ILCP, *named], stdout=full, stderr=subprocess.PIPE, text=True, timeout=100)
    assert STORAGE == done.returncode, done.stderr
    assert "expected room for the output, got: [Errno 28]" in done.stderr
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


@pytest.mark.parametrize("words", WRITES, ids=" ".join)
def test_an_output_that_nobody_reads_ends_quietly(message: str, words: tuple[str, ...]) -> None:
    """The code is a shell's for SIGPIPE, which the help lists, and no defect's."""
    named = [message if word == "FILE" else word for word in words]
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run([*ILCP, *named], stdout=writes, stderr=subprocess.PIPE, text=True, timeout=100)
    os.close(writes)
    assert (CLOSED, "") == (done.returncode, done.stderr)


def test_a_full_standard_error_leaves_the_code_as_it_is() -> None:
    """Where the sentence cannot be written, the exit code still says whose fault it is."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*ILCP, "inspect", "/nowhere"], stderr=full, stdout=subprocess.PIPE, timeout=100)
    assert WRONG == done.returncode


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_was_closed_before_the_start_is_written_nowhere(message: str, closing: str) -> None:
    """Without standard output or error a command does what it does."""
    command = f"{shlex.quote(sys.executable)} -m ilcp inspect {shlex.quote(message)} {closing}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=100)
    assert (0, "") == (done.returncode, done.stderr)


# --- blame -------------------------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_looked_at_is_not_said_to_be_missing(tmp_path: Path) -> None:
    """A name that is too long, or a file in the place of a folder, has its own words at each way to name a model."""
    (tmp_path / "file").touch()
    for read in (folder_of, gguf_file):
        for place, said in ((f"./{LONG}.gguf", "file name too long"), (f"{tmp_path}/file/a.gguf", "not a directory")):
            with pytest.raises(ConfigError, match=said):
                read(place)
    with pytest.raises(ConfigError, match="file name too long"):
        gguf_file(f"{tmp_path}:{LONG}.gguf")


def evidence() -> Evidence:
    """The embedded codec's, as its folder has it."""
    found = ilcp.load(HERE / "codec").evidence
    assert found is not None
    return found


def test_a_key_without_a_signature_has_signed_nothing() -> None:
    """Evidence that names who is trusted and has no signature is said to be none that is signed."""
    made = signed(evidence(), SEED, "00", "11")
    with pytest.raises(UnmeasuredError, match="got none that is signed"):
        require_signed(replace(made, signature=""), trusted_keys([made.measured_by]), made.codec_id)


def test_a_key_in_capitals_is_the_same_key() -> None:
    """Hexadecimal digits have no case, whoever wrote them."""
    made = signed(evidence(), SEED, "00", "11")
    assert (made.measured_by,) == trusted_keys([made.measured_by.upper()])
    require_signed(made, trusted_keys([made.measured_by.upper()]), made.codec_id)


def test_the_public_key_is_said_before_anything_is_measured(ends: Ends) -> None:
    """Whoever is to trust it can be told at once; a measurement that fails has said it too."""
    Path("key").write_text(SEED.hex())
    code, said = ends("measure", "some", "--attach", "--sign", "key", "--task", "missing.jsonl")
    assert (WRONG, True) == (code, f"signs as {public_key(SEED)}\n" in said)


@pytest.mark.parametrize("where", ["codec_id", "evidence", "trained", "format"])
def test_what_a_folder_or_a_report_says_of_itself_steers_no_terminal(ends: Ends, where: str) -> None:
    """Controls, turned lines and brackets of a stranger's stand written out in the sentence that refuses them."""
    hostile = "\x1b]0;t\x07 [/b] \u202e"
    record = json.loads((HERE / "codec" / "config.json").read_text())
    shutil.copytree(HERE / "codec", "theirs")
    Path("theirs/config.json").write_text(json.dumps(record | {where: hostile, hostile: 1}))
    Path("report.json").write_text(json.dumps({"format": 2, where: hostile, hostile: {hostile: hostile}}))
    Path("recipe.toml").write_text(json.dumps(hostile) + " = 1", encoding="utf-8")
    for words in (
        ("encode", "text.txt", "--codec", "theirs"),
        ("compare", "report.json", "report.json"),
        (*TRAIN, "--data", "cases.jsonl", "--out", "codec", "--recipe", "recipe.toml"),
    ):
        code, said = ends(*words)
        assert not {"\x1b", "\x07", "\u202e"} & set(said)
        assert code or words[0] == "encode"


# --- what lies there already -------------------------------------------------------------------------------------


def test_a_training_that_was_refused_leaves_nothing_behind(ends: Ends, tmp_path: Path) -> None:
    """Its folder goes with the lock in it; one that was there before stays."""
    before = sorted(tmp_path.iterdir())
    assert WRONG == ends(*TRAIN, "--data", "cases.jsonl", "--out", "codec")[0]
    assert before == sorted(tmp_path.iterdir())
    (tmp_path / "codec.run").mkdir()
    assert WRONG == ends(*TRAIN, "--data", "cases.jsonl", "--out", "codec")[0]
    assert (tmp_path / "codec.run").is_dir()


def test_a_lock_that_was_removed_meanwhile_is_held_by_nobody(tmp_path: Path, monkeypatch) -> None:
    """Who waited for a file that its holder then removed does not work beside the next one."""
    flock = ilcp.files._lock

    def late(handle: int, lock: Path) -> None:
        lock.unlink()
        flock(handle, lock)

    monkeypatch.setattr("ilcp.files._lock", late)
    with pytest.raises(ConfigError, match="another process that ended there: try again"), held(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("both", [{"other": 0.1}, {"literals-other": 0.1, "literals-mismatched": 0.1}])
def test_evidence_with_both_names_of_an_arm_is_refused(both: dict[str, float]) -> None:
    """Neither wins silently; and so it is with evidence itself, whose name was another once."""
    record = asdict(evidence())
    with pytest.raises(UnmeasuredError, match="its earlier name, as well"):
        Evidence.from_dict(record | {"arms": record["arms"] | both})


def test_both_names_of_one_thing_are_refused_in_every_file(tmp_path: Path, ends: Ends) -> None:
    """In a recipe and in a codec's configuration too."""
    assert {"b": 1, "c": 2} == renamed({"a": 1, "c": 2}, {"a": "b"}, "it")
    Path("recipe.toml").write_text("[training]\nclose_answers = true\nanswers_end = false\n")
    code, said = ends(*TRAIN, "--data", "cases.jsonl", "--out", "codec", "--recipe", "recipe.toml")
    assert (WRONG, True) == (code, "got close_answers, its earlier name, as well" in " ".join(said.split()))
    codec = ilcp.load(HERE / "codec")
    ilcp.save(codec, tmp_path / "saved")
    record = json.loads((tmp_path / "saved" / "config.json").read_text())
    record["proof"] = record["evidence"]
    (tmp_path / "saved" / "config.json").write_text(json.dumps(record))
    with pytest.raises(IlcpError, match="got proof, its earlier name, as well"):
        ilcp.load(tmp_path / "saved")
