"""The command line, as a person meets it."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import typer

import ilcp
from ilcp import errors, transport
from ilcp.cli import app, main
from ilcp.cli.common import PlainConsole, interruptible
from ilcp.cli.exit_codes import ERROR_CODES, OTHER_CODES, exit_code
from ilcp.cli.measure import _left
from ilcp.embedded import HERE
from ilcp.embedded.domain import OutsideWarning
from ilcp.errors import IlcpError, StorageError
from ilcp.message import MAX_MESSAGE_BYTES, Message
from ilcp.tasks import case_files
from tests.helpers import wait_for

ILCP = [sys.executable, "-m", "ilcp"]
CASE = next(iter(case_files("test", 21, 1)))
FOREIGN = "The mitochondrion is an organelle; it makes ATP. Photosynthesis, by contrast, stores light as sugar."
CONFIG, ENCODE, DECODE, STORAGE = (
    exit_code(kind("x")) for kind in (errors.ConfigError, errors.EncodeError, errors.DecodeError, errors.StorageError)
)


@dataclass(frozen=True)
class Done:
    """A finished command: its exit code, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``ilcp`` as its entry point does, in this process: what a command imports is loaded once for all tests."""

    def call(*words: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["ilcp", *words])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    return call


def test_version_and_help(run: Run) -> None:
    """--version prints the version; --help names the commands and shows how to begin in Python."""
    assert f"ilcp {ilcp.__version__}\n" == run("--version").stdout
    shown = run("--help").stdout
    assert all(word in shown for word in ("demo", "inspect", "measure", "compare", "load_pair", "100"))


def test_the_program_is_started_by_its_name_and_by_its_module() -> None:
    """``python -m ilcp`` and the ``ilcp`` beside that Python are one program."""
    for start in (ILCP, [str(Path(sys.executable).with_name("ilcp"))]):
        done = subprocess.run([*start, "--version"], capture_output=True, text=True, timeout=120, check=False)
        assert (0, f"ilcp {ilcp.__version__}\n") == (done.returncode, done.stdout), done.stderr


def test_each_error_has_an_exit_code_of_its_own() -> None:
    """Listed classes and what is no error share no code; a class that is not listed has its parent's."""
    codes = [code for code, _ in ERROR_CODES.values()] + list(OTHER_CODES)
    assert len(codes) == len(set(codes))
    known = [kind for name in errors.__all__ if issubclass(kind := getattr(errors, name), IlcpError)]
    assert set(ERROR_CODES) == {kind for kind in known if kind.__bases__[0] is IlcpError}
    for kind in known:
        parent = kind.__bases__[0]
        expected = 1 if kind is IlcpError else ERROR_CODES[kind if kind in ERROR_CODES else _listed(parent)][0]
        assert expected == exit_code(kind("x"))


def _listed(kind: type) -> type[IlcpError]:
    return kind if kind in ERROR_CODES else _listed(kind.__bases__[0])


def test_an_error_of_two_blames_exits_as_the_one_to_mend() -> None:
    """A wrong address is wrong use, and a full, closed or damaged disk is the storage's: not the way's."""
    assert ERROR_CODES[errors.ConfigError][0] == exit_code(transport.AddressError("x"))
    for kind in (transport.CorruptError, transport.DiskFullError, transport.NotWritableError):
        assert ERROR_CODES[errors.StorageError][0] == exit_code(kind("x"))


def test_the_help_lists_every_exit_code(run: Run) -> None:
    """``ilcp --help`` shows the table, code and words."""
    shown = " ".join(run("--help").stdout.split())
    for code, words in (OTHER_CODES | dict(ERROR_CODES.values())).items():
        assert f" {code} {words}" in shown


@pytest.mark.parametrize(
    "kind", [*ERROR_CODES, errors.ReplayError, errors.MismatchedCodecError], ids=lambda k: k.__name__
)
def test_an_error_ends_a_command_with_its_code_and_one_sentence(run: Run, monkeypatch, kind: type[IlcpError]) -> None:
    """Whatever command raises it: the text on standard error, in brackets or not, and nothing on standard output."""

    def fail() -> None:
        raise kind("expected [this], got that")

    monkeypatch.setattr(app, "registered_commands", [])
    app.command("fail")(fail)
    done = run("fail")
    assert (exit_code(kind("")), "") == (done.returncode, done.stdout)
    assert "ilcp: expected [this], got that\n" == done.stderr


def test_the_demo_as_json_has_its_keys(run: Run, monkeypatch) -> None:
    """The demo's JSON holds four hops with both ways, the controls, and where the figures come from."""
    from ilcp.embedded import demo

    monkeypatch.setattr(demo, "run_demo", partial(demo.run_demo, documents=2))
    done = run("demo", "--json")
    assert 0 == done.returncode, done.stderr
    result = json.loads(done.stdout)
    assert 2 == result["documents"]
    assert ["router", "planner", "reasoner", "finaliser"] == [hop["name"] for hop in result["hops"]]
    assert {"message", "none", "mismatched", "text"} == set(result["controls"])
    for hop in result["hops"]:
        assert {"prefilled_tokens", "wire_bytes", "first_token_ms", "right"} == set(hop["latent"]) == set(hop["text"])
        assert 100 == hop["latent"]["wire_bytes"]
        assert hop["latent"]["prefilled_tokens"] < hop["text"]["prefilled_tokens"]
        assert hop["questions"] > 0
    assert {"commit", "versions", "machine"} <= set(result["provenance"])


def test_every_hop_has_its_own_questions() -> None:
    """The hops share the attributes out: each look-up form is some hop's by its own words, and every hop has some."""
    from ilcp.embedded.demo import HOPS, hop_of
    from ilcp.tasks import Question
    from ilcp.tasks.dossier import ATTRIBUTES

    forms = [question for attribute in ATTRIBUTES for question in attribute.questions]
    assert set(HOPS) == {hop_of(Question(form, "x")) for form in forms}
    assert all(any(word in form for words in HOPS.values() for word in words) for form in forms)


def test_a_dossier_of_the_users_own(run: Run, tmp_path: Path) -> None:
    """A document of the known kind is answered from the message, beside nothing and the full text."""
    file = tmp_path / "dossier.txt"
    file.write_text(CASE.context)
    done = run("demo", "--document", str(file), "--ask", "Which region is affected?", "--json")
    assert 0 == done.returncode, done.stderr
    result = json.loads(done.stdout)
    assert result["outside"] is False
    assert 100 == result["message_bytes"]
    (answer,) = result["answers"]
    assert answer["known"] is True
    assert {"question", "known", "message", "none", "text"} == set(answer)
    assert "Which region is affected?" == answer["question"]
    assert next(q.answer for q in CASE.questions if q.facts[0][0] == "region") == answer["message"] == answer["text"]


def test_a_text_outside_is_said_to_be_outside(run: Run, tmp_path: Path) -> None:
    """A text of another kind is not answered; the figures that show it are printed, and the exit code is 3."""
    file = tmp_path / "other.txt"
    file.write_text(FOREIGN)
    done = run("demo", "--document", str(file), "--ask", "What makes ATP?")
    assert 3 == done.returncode
    assert re.search(r"outside what the embedded pair knows: .* \d+\.\d+ bits per byte", done.stderr.replace("\n", " "))
    assert "" == done.stdout


def test_inspect_says_what_a_message_is(run: Run, pair, tmp_path: Path) -> None:
    """Version, kind, codec, sizes and check, in words and as JSON, from a file or standard input."""
    message = pair.sender.encode(CASE.context)
    (tmp_path / "message.bin").write_bytes(message)
    shown = run("inspect", str(tmp_path / "message.bin")).stdout
    assert all(
        word in shown for word in ("bare message, version 1, 100 bytes", "payload", "valid", "the embedded pair's")
    )
    found = json.loads(run("inspect", "-", "--json", stdin=message).stdout)
    assert 100 == found["total_bytes"] == sum(part["size_bytes"] for part in found["parts"])


@pytest.mark.parametrize(
    "junk",
    [b"", b"not a message", b"\x94\x01" + b"\xff" * 98, b"\0" * (MAX_MESSAGE_BYTES + 1)],
    ids=["nothing", "a text", "a beginning", "too much"],
)
def test_inspect_refuses_garbage(run: Run, junk: bytes) -> None:
    """Garbage gets one sentence that says what was expected, no traceback, and the exit code of hostile bytes."""
    done = run("inspect", "-", stdin=junk)
    assert DECODE == done.returncode
    assert "expected" in done.stderr


def test_a_process_of_its_own_ends_without_a_traceback() -> None:
    """What a shell sees of garbage: the code, one sentence, no traceback."""
    done = subprocess.run([*ILCP, "inspect", "-"], input=b"junk", capture_output=True, timeout=120, check=False)
    assert (DECODE, b"") == (done.returncode, done.stdout)
    assert b"expected" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("inspect", "no-such-file"), "expected a readable message file, got no-such-file"),
        (("demo", "--document", "no-such-file", "--ask", "Who?"), "expected a readable text file, got no-such-file"),
        (("demo", "--ask", "Who?"), "expected --document and --ask together"),
        (("demo", "--document", __file__, "--ask", ""), "expected a question in --ask"),
        (("measure", "embedded", "--hops=-1"), "should be greater than or equal to 0"),
        (("measure", "embedded", "--task", "no-such-file"), "expected a readable file of cases, got no-such-file"),
        (("measure", "no-such-codec"), "expected a codec's folder with a config.json, got no-such-codec"),
        (("measure", "embedded", "--attach"), "expected a codec's folder to --attach"),
        (("compare", "no-such-file", "other"), "expected a readable report, got no-such-file"),
        (("demo", "--no-such-option"), "No such option: --no-such-option"),
    ],
)
def test_wrong_use_is_explained(run: Run, words: tuple[str, ...], fragment: str) -> None:
    """A missing file, half a pair of options, an unknown one: one sentence, exit code 2."""
    done = run(*words)
    assert 2 == CONFIG == done.returncode
    assert fragment in done.stderr.replace("\n", " ")


def test_home_is_the_users_behind_an_equals_sign_too(run: Run, tmp_path: Path, monkeypatch) -> None:
    """A shell leaves ``--out=~/place`` as it is; no folder of that name is made."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(next(case_files("test", 7, 1)).context)
    assert 0 == run("encode", "a.txt", "--out=~/messages").returncode
    assert (tmp_path / "home" / "messages" / "a.txt.ilcp").exists()
    assert not (tmp_path / "~").exists()


def test_encode_names_the_files_that_fail_and_goes_on(run: Run, tmp_path: Path) -> None:
    """The first failure gives the exit code, the other files are encoded; a folder that cannot be made ends it."""
    good, empty, gone = tmp_path / "good.txt", tmp_path / "empty.txt", tmp_path / "gone.txt"
    good.write_text(CASE.context, encoding="utf-8")
    empty.touch()
    out = ("--out", str(tmp_path / "messages"))
    done = run("encode", str(empty), str(gone), str(good), *out)
    assert (ENCODE, "1 encoded, 0 were there, 2 failed\n") == (done.returncode, done.stdout)
    assert all(f"ilcp: {file}: expected" in done.stderr for file in (empty, gone))
    done = run("encode", str(gone), str(empty), str(good), *out)
    assert (CONFIG, "0 encoded, 1 were there, 2 failed\n") == (done.returncode, done.stdout)
    done = run("encode", str(good), "--out", str(good / "messages"))
    assert STORAGE == done.returncode
    assert f"expected to be able to write {good}" in done.stderr


def test_a_files_name_is_shown_as_it_is_and_steers_no_terminal(run: Run, tmp_path: Path, monkeypatch) -> None:
    """Brackets are no markup in the bar and in a failure's line, and control characters are written out."""
    good, bad = tmp_path / "[b]good\x1b]0;x.txt", tmp_path / "[b]bad.txt"
    good.write_text(CASE.context, encoding="utf-8")
    bad.write_bytes(b"\xff")
    monkeypatch.setattr(
        sys.modules["ilcp.cli.encode"], "err", PlainConsole(stderr=True, force_terminal=True, width=200)
    )
    done = run("encode", str(bad), str(good), "--out", str(tmp_path / "messages"))
    assert (CONFIG, "1 encoded, 0 were there, 1 failed\n") == (done.returncode, done.stdout)
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.stderr)
    assert f"ilcp: {bad}: expected UTF-8 text in {bad}, got" in said
    assert "encoding [b]good\\x1b]0;x.txt" in said
    assert "\x1b" not in said


def test_a_file_that_is_left_is_named_as_it_is(capsys) -> None:
    """Brackets are no markup where a command that was interrupted, or an output that failed, leaves a file."""
    with pytest.raises(typer.Exit), interruptible("[b]/report.json holds it"):
        raise KeyboardInterrupt
    with pytest.raises(StorageError), _left(Path("[b]/report.json")):
        raise StorageError("full")
    assert 2 == capsys.readouterr().err.count("[b]/report.json holds")


def test_a_trained_codecs_folder_is_named_as_it_is(run: Run, tmp_path: Path, monkeypatch) -> None:
    """Brackets in its name are no markup."""
    monkeypatch.setattr("ilcp.training.job.train_codec", lambda *_, **__: SimpleNamespace(evidence="measured"))
    named = ("--sender", "me/sender", "--receiver", "me/receiver", "--self-study", "--out", str(tmp_path / "[b]codec"))
    done = run("train", *named)
    assert (0, f"{tmp_path / '[b]codec'}: measured\n") == (done.returncode, done.stdout), done.stderr


def test_encode_tells_by_content_what_is_done(run: Run, tmp_path: Path) -> None:
    """A text that changed is encoded again however old its file seems; one that was only touched is not, nor is one
    whose mark was lost and whose message is there; a message of another text is replaced."""
    file, other = tmp_path / "a.txt", tmp_path / "b.txt"
    texts = [case.context for case in case_files("test", 21, 3)]
    words = ("encode", str(file), "--out", str(tmp_path / "messages"))
    message = tmp_path / "messages" / "a.txt.ilcp"

    def counted(text: str, seconds: int) -> str:
        file.write_text(text, encoding="utf-8")
        os.utime(file, (seconds, seconds))
        return run(*words).stdout.split(", 0 failed")[0]

    assert "1 encoded, 0 were there" == counted(texts[0], 2_000_000_000)
    first = message.read_bytes()
    assert "0 encoded, 1 were there" == counted(texts[0], 3_000_000_000)
    assert "1 encoded, 0 were there" == counted(texts[1], 1_000_000_000)
    second = message.read_bytes()
    assert first != second
    message.write_bytes(first)
    assert "1 encoded, 0 were there" == counted(texts[1], 1_000_000_000)
    assert second == message.read_bytes()
    (tmp_path / "messages" / ".encoded").write_bytes(b"\xff cut o")
    assert "0 encoded, 1 were there" == counted(texts[1], 1_000_000_000)
    other.write_text(texts[2], encoding="utf-8")
    assert "1 encoded, 1 were there" in run("encode", str(file), str(other), *words[2:]).stdout
    assert {0o600} == {found.stat().st_mode & 0o777 for found in (tmp_path / "messages").iterdir()}


def test_the_marks_of_encode_go_through_no_link(run: Run, tmp_path: Path) -> None:
    """What somebody put in their place is not written to; the message is kept, and the text says what is wrong."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "a.txt").write_text(CASE.context, encoding="utf-8")
    (tmp_path / "messages").mkdir()
    (tmp_path / "messages" / ".encoded").symlink_to(tmp_path / "theirs")
    done = run("encode", str(tmp_path / "a.txt"), "--out", str(tmp_path / "messages"))
    assert (STORAGE, "0 encoded, 0 were there, 1 failed\n") == (done.returncode, done.stdout)
    assert "expected room in" in done.stderr
    assert "theirs" == (tmp_path / "theirs").read_text()


def test_receive_overwrites_no_other_message(run: Run, tmp_path: Path) -> None:
    """Two recipients' messages of one id do not meet in one file: the second stays in the spool until there is room
    elsewhere; one that is there already, as after a death before its acknowledgement, is acknowledged."""
    spool, folder = f"spool://{tmp_path}/spool", tmp_path / "got"
    one, two = (Message(bytes(8), bytes([number])).to_bytes() for number in (1, 2))
    with transport.connect(spool) as c:
        c.send(one, to="a", handoff_id="x")
        c.send(two, to="b", handoff_id="x")
        c.send(one, to="c", handoff_id="x")

    def receive(name: str, out: Path) -> Done:
        return run("receive", "--via", spool, "--as", name, "--out", str(out), "--timeout", "1")

    assert 0 == receive("a", folder).returncode
    assert 0o600 == (folder / "x.ilcp").stat().st_mode & 0o777
    done = receive("b", folder)
    assert STORAGE == done.returncode
    assert re.search("another message at .*x.ilcp, .*choose another --out; it is still there", _flat(done.stderr))
    assert one == (folder / "x.ilcp").read_bytes()
    assert 0 == receive("c", folder).returncode
    assert 0 == receive("b", tmp_path / "other").returncode
    assert two == (tmp_path / "other" / "x.ilcp").read_bytes()
    assert ["x.ilcp"] == [file.name for file in folder.iterdir()]


def _flat(text: str) -> str:
    return " ".join(text.split())


def test_encode_passes_over_what_cannot_be_written(run: Run, tmp_path: Path) -> None:
    """A name that is too long with its suffix is a failure of that file alone; a long one that fits is none."""
    long, longer, good = (tmp_path / name for name in ("n" * 250, "m" * 252, "good.txt"))
    for file in (long, longer, good):
        file.write_text(CASE.context, encoding="utf-8")
    done = run("encode", str(longer), str(long), str(good), "--out", str(tmp_path / "messages"))
    assert (STORAGE, "2 encoded, 0 were there, 1 failed\n") == (done.returncode, done.stdout)
    assert f"ilcp: {longer}: expected" in done.stderr


def test_no_file_stops_the_others(run: Run, tmp_path: Path, monkeypatch) -> None:
    """Whatever one brings about, a defect or too little memory too, is shown, and the next is encoded."""
    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for number, file in enumerate(files):
        file.write_text(f"{CASE.context} {number}", encoding="utf-8")
    encode = ilcp.Sender.encode

    def failing(self: Any, source: Any, **options: Any) -> bytes:
        if source.endswith(" 0"):
            raise MemoryError("no room")
        if source.endswith(" 1"):
            raise TypeError("a defect")
        return encode(self, source, **options)

    monkeypatch.setattr(ilcp.Sender, "encode", failing)
    done = run("encode", *map(str, files), "--out", str(tmp_path / "messages"))
    assert (1, "1 encoded, 0 were there, 2 failed\n") == (done.returncode, done.stdout)
    assert all(said in done.stderr for said in ("a.txt: Traceback", "MemoryError: no room", "TypeError: a defect"))
    assert ["c.txt.ilcp"] == [file.name for file in (tmp_path / "messages").glob("*.ilcp")]


def test_a_text_that_the_embedded_pair_cannot_carry_is_marked(run: Run, tmp_path: Path) -> None:
    """``ilcp encode`` encodes it, names it, and counts it; a dossier, with a byte-order mark or not, is as it was."""
    plain, marked, other = (tmp_path / name for name in ("plain.txt", "marked.txt", "other.txt"))
    plain.write_text(CASE.context, encoding="utf-8")
    marked.write_text(CASE.context, encoding="utf-8-sig")
    other.write_text(FOREIGN, encoding="utf-8")
    done = run("encode", str(plain), str(marked), str(other), "--out", str(tmp_path))
    assert (0, "3 encoded, 0 were there, 0 failed, 1 outside what the embedded pair knows\n") == (
        done.returncode,
        done.stdout,
    )
    assert f"ilcp: {other}: a text of {len(FOREIGN)} characters is outside what the embedded pair knows" in done.stderr
    assert 1 == done.stderr.count("outside")
    messages = [(tmp_path / f"{file.name}.ilcp").read_bytes() for file in (plain, marked)]
    assert messages[0] == messages[1]
    done = run("demo", "--document", "-", "--ask", "Which region is affected?", stdin=marked.read_bytes())
    assert (0, "") == (done.returncode, done.stderr)


def test_the_embedded_sender_warns_of_a_foreign_text_once() -> None:
    """Each way to make a message of it warns, once a text; what a dossier's message is, no warning says."""
    sender = ilcp.load_pair().sender
    with pytest.warns(OutsideWarning, match="a text of .* is outside what the embedded pair knows"):
        message = sender.encode(FOREIGN)
    assert message == sender.encode(FOREIGN)  # a warning would be an error here
    sender.encode_batch([CASE.context, FOREIGN])
    with sender.capture() as context, torch.no_grad():
        sender.model(**sender.tokenizer("Of mitochondria.", return_tensors="pt", return_token_type_ids=False))
    assert sender.encode(context)  # what was computed already is not computed again
    for come_in in (sender.encode, lambda text: sender.encode_batch([CASE.context, text])):
        with pytest.warns(OutsideWarning):
            come_in(FOREIGN + f" And so on, {come_in}.")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_is_not_utf8_is_written_to(encoding: str, tmp_path: Path, monkeypatch) -> None:
    """What it lacks is written as an escape: every message is received, and a question is answered and shown."""
    folder, written = tmp_path / "a \u2192 \udc80", io.BytesIO()

    def call(*words: str) -> int:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding))
        monkeypatch.setattr(sys, "argv", ["ilcp", *words])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                cast(io.TextIOWrapper, stream).detach()
        return 0

    (tmp_path / "dossier.txt").write_text(CASE.context, encoding="utf-8")
    with ilcp.connect(f"spool://{tmp_path}/spool") as c:
        for number in range(2):
            c.send(Message(bytes(8), bytes([number])).to_bytes(), to="me")
    assert 0 == call(
        "receive", "--via", f"spool://{tmp_path}/spool", "--as", "me", "--count", "2", "--out", str(folder)
    )
    assert 2 == len(list(folder.iterdir()))
    assert rb"a \u2192 \udc80" in written.getvalue()
    assert 0 == call("demo", "--document", str(tmp_path / "dossier.txt"), "--ask", "Which region [b] \u2192?")
    assert all(each in written.getvalue() for each in (rb"\u2192", b"[b]"))


def test_encode_knows_a_sealed_message_that_is_there(run: Run, tmp_path: Path, pair) -> None:
    """Its payload's length is read without its key, so the run goes on, whatever length is asked for."""
    sealed = ilcp.Sender(pair.sender.model, pair.sender.tokenizer, pair.sender.codec, key=bytes(range(32)))
    files = [tmp_path / "sealed.txt", tmp_path / "good.txt"]
    for file in files:
        file.write_text(CASE.context, encoding="utf-8")
    (tmp_path / "sealed.txt.ilcp").write_bytes(sealed.encode(CASE.context, payload_bytes=40))
    words = ("encode", *map(str, files), "--out", str(tmp_path), "--bytes")
    done = run(*words, "40")
    assert (0, "1 encoded, 1 were there, 0 failed\n") == (done.returncode, done.stdout), done.stderr
    done = run(*words, "20")
    assert (0, "2 encoded, 0 were there, 0 failed\n") == (done.returncode, done.stdout), done.stderr


def test_the_place_of_a_model_is_asked_for_only_where_that_would_help(run: Run, tmp_path: Path) -> None:
    """Neither a device that is not there nor a damaged plan is mended by another place of the model."""
    shutil.copytree(HERE / "codec", tmp_path / "codec")
    config = tmp_path / "codec" / "config.json"
    record = json.loads(config.read_text(encoding="utf-8"))

    def plan(training: object) -> None:
        config.write_text(json.dumps(record | {"training": training}), encoding="utf-8")

    plan({"plan": {"receiver": str(tmp_path / "nowhere"), "dtype": "float32"}})
    with pytest.raises(errors.ConfigError, match="say where it is with receiver="):
        ilcp.load_pair(tmp_path / "codec")
    with pytest.raises(errors.ConfigError, match="expected a device of this machine") as caught:
        ilcp.load_pair(tmp_path / "codec", device="cuda:99")
    assert "receiver=" not in str(caught.value)
    damages: list[Any] = [
        {"plan": []},
        {"plan": {"sender": 7}},
        {"plan": {"receiver": []}},
        {"plan": {"dtype": "x"}},
        [1],
    ]
    for damaged in damages:
        plan(damaged)
        with pytest.raises(errors.StorageError, match=r"config\.json") as named:
            ilcp.load_pair(tmp_path / "codec")
        assert "receiver=" not in str(named.value)
    for none in (None, {}, {"plan": None}, {"plan": {"sender": None}}):
        plan(none)
        assert ilcp.load_pair(tmp_path / "codec")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A file of two short cases with a few look-ups each."""
    lines = []
    for case in case_files("validation", 21, 2, facts=4):
        asked = [question for question in case.questions if question.kind == "lookup"][:8]
        questions = [{"question": q.text, "answer": q.answer, "choices": list(q.choices or ())} for q in asked]
        lines.append(json.dumps({"context": case.context, "questions": questions}))
    (tmp_path / "cases.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "cases.jsonl"


def test_measure_keeps_draws_attaches_and_compares(run: Run, tasks, tmp_path) -> None:
    """One call on a file of two cases gives verdict, JSON, page and plots, and attaches the evidence to the codec."""
    kept, page = tmp_path / "report.json", tmp_path / "report.html"
    folder = tmp_path / "codec"
    shutil.copytree(Path(ilcp.__file__).parent / "embedded" / "codec", folder)
    options = ("--n", "2", "--repetitions", "0", "--json", str(kept), "--html", str(page), "--png", str(tmp_path))
    done = run("measure", str(folder), "--task", str(tasks), *options, "--attach")
    assert 0 == done.returncode, done.stderr
    shown = done.stdout
    assert shown.startswith("The message carries content")
    assert "lm-40" in shown
    record = json.loads(kept.read_text(encoding="utf-8"))
    assert record["verdict"] in " ".join(shown.split("\n")[:1])
    assert "recovery.png" in {file.name for file in tmp_path.iterdir()}
    assert "<svg" in page.read_text(encoding="utf-8")
    evidence = json.loads((folder / "config.json").read_text(encoding="utf-8"))["evidence"]
    assert ("cases.jsonl", 2) == (evidence["task"], evidence["n"])
    compared = run("compare", str(kept), str(kept), "--json")
    assert 0 == compared.returncode, compared.stderr
    assert {0} == {change["changed"] for change in json.loads(compared.stdout)["changes"]}


def test_places_and_numbers_are_tried_before_the_models_are_loaded(run: Run, tasks, tmp_path, monkeypatch) -> None:
    """An output that could not be written, or too few repetitions, are refused at once, for every output."""
    monkeypatch.setattr("ilcp.embedded.load_pair", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    words = ("measure", "embedded", "--task", str(tasks))
    (tmp_path / "file").touch()
    for option in ("--json", "--html", "--png"):
        done = run(*words, option, str(tmp_path / "file" / "there"))
        assert STORAGE == done.returncode, option
        assert "expected to be able to write" in done.stderr
    done = run(*words, "--repetitions", "5")
    assert (CONFIG, True) == (done.returncode, "at least 50 repetitions, got 5" in done.stderr)
    assert {"cases.jsonl", "file"} == {file.name for file in tmp_path.iterdir()}


def test_what_was_measured_is_kept_until_all_of_it_is_written(run: Run, tasks, tmp_path, monkeypatch) -> None:
    """Without --json a file in this folder holds it where an output fails; the same command goes on with that."""
    monkeypatch.chdir(tmp_path)
    words = ("measure", "embedded", "--task", str(tasks), "--n", "2", "--repetitions", "0", "--html", "page.html")
    with monkeypatch.context() as patched:
        patched.setattr("ilcp.measure.page.page", lambda _: [][0])
        with pytest.raises(IndexError):
            run(*words)
    (kept,) = tmp_path.glob("embedded-*.unfinished.json")
    assert json.loads(kept.read_text(encoding="utf-8"))["complete"]
    monkeypatch.setattr("ilcp.measure.run", lambda *_, **__: pytest.fail("measured again"))
    done = run(*words)
    assert 0 == done.returncode, done.stderr
    assert (tmp_path / "page.html").exists()
    assert not kept.exists()


def test_a_codec_without_cases_of_its_own_asks_for_some(run: Run, tmp_path) -> None:
    """A codec that no training here made is measured on what --task names, not on the demo's dossiers."""
    shutil.copytree(HERE / "codec", tmp_path / "codec")
    done = run("measure", str(tmp_path / "codec"))
    assert (CONFIG, True) == (done.returncode, "name others with --task" in done.stderr)


def test_what_is_no_message_is_not_sent(run: Run, tmp_path: Path) -> None:
    """A file of something else is refused by ``send`` and ``inspect``, with its true size; nothing is kept of it."""
    file, spool = tmp_path / "cases.jsonl", f"spool://{tmp_path}/spool"
    for content, said in (
        (b'{"context": "x"}\n', "cases.jsonl holds no message"),
        (b"x" * 88_123, f"at most {MAX_MESSAGE_BYTES:,} bytes in .*, got 88,123: it is none"),
    ):
        file.write_bytes(content)
        for words in (("send", str(file), "--via", spool, "--to", "planner"), ("inspect", str(file))):
            done = run(*words)
            assert DECODE == done.returncode
            assert re.search(said, done.stderr.replace("\n", " ")), done.stderr
    with transport.connect(spool, name="planner") as c:
        assert c.receive() is None


@pytest.mark.parametrize("words", [("send", "a.ilcp", "--to", "x"), ("receive", "--as", "x")])
def test_what_ends_with_the_command_is_no_place_for_a_message(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    """A queue of this process alone is refused before anything is said to be sent, or waited for."""
    (tmp_path / "a.ilcp").write_bytes(Message(bytes(8), b"payload").to_bytes())
    command, *others = (str(tmp_path / word) if word.endswith(".ilcp") else word for word in words)
    done = run(command, *others, "--via", "memory://x")
    assert CONFIG == done.returncode
    assert "expected an address that other processes reach, got memory://x" in done.stderr.replace("\n", " ")


def test_a_folder_among_the_files_stops_none_of_them(run: Run, tmp_path: Path) -> None:
    """It is named, and passed over, as whatever else cannot be read."""
    text = tmp_path / "a.txt"
    text.write_text(next(case_files("test", 7, 1)).context)
    (tmp_path / "folder").mkdir()
    done = run("encode", str(tmp_path / "folder"), str(text), "--out", str(tmp_path / "out"))
    assert "expected a readable text file, got" in done.stderr.replace("\n", " ")
    assert "1 encoded, 0 were there, 1 failed" in done.stdout
    assert (tmp_path / "out" / "a.txt.ilcp").exists()


def test_train_without_anything_names_its_flags(run: Run) -> None:
    """What is missing is said as it is given on this command line."""
    done = run("train")
    assert CONFIG == done.returncode
    assert "give --sender, --receiver, --out" in done.stderr


def test_an_interrupted_measurement_says_what_is_left(tasks, tmp_path) -> None:
    """Ctrl-C ends with one sentence and exit code 130, and the file holds the arms that were done."""
    kept = tmp_path / "report.json"
    words = ("measure", "embedded", "--task", str(tasks), "--repetitions", "0", "--json", str(kept))
    process = subprocess.Popen(
        [*ILCP, *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever runs the tests may ignore it
    )
    try:
        wait_for(kept, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert 130 == process.returncode, said.decode()
    assert "holds what was measured so far" in " ".join(said.decode().split())
    assert not json.loads(kept.read_text(encoding="utf-8"))["complete"]
