"""The command line, as a person meets it."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ilcp
from ilcp.tasks import case_files

ILCP = [sys.executable, "-m", "ilcp"]
CASE = next(iter(case_files("test", 21, 1)))


def run(*words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """``ilcp`` in a process of its own."""
    return subprocess.run([*ILCP, *words], input=stdin, capture_output=True, timeout=120, check=False)


def test_version_and_help() -> None:
    """--version prints the version; --help names the commands and shows how to begin in Python."""
    assert f"ilcp {ilcp.__version__}\n".encode() == run("--version").stdout
    shown = run("--help").stdout.decode()
    assert all(word in shown for word in ("demo", "inspect", "measure", "compare", "load_pair", "100"))


def test_the_demo_as_json_has_its_keys() -> None:
    """The demo's JSON holds four hops with both ways, the controls, and where the figures come from."""
    done = run("demo", "--json")
    assert 0 == done.returncode, done.stderr.decode()
    result = json.loads(done.stdout)
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


def test_a_dossier_of_the_users_own(tmp_path: Path) -> None:
    """A document of the known kind is answered from the message, beside nothing and the full text."""
    file = tmp_path / "dossier.txt"
    file.write_text(CASE.context)
    done = run("demo", "--document", str(file), "--ask", "Which region is affected?", "--json")
    assert 0 == done.returncode, done.stderr.decode()
    result = json.loads(done.stdout)
    assert result["outside"] is False
    assert 100 == result["message_bytes"]
    (answer,) = result["answers"]
    assert answer["known"] is True
    assert {"question", "known", "message", "none", "text"} == set(answer)
    assert "Which region is affected?" == answer["question"]
    assert next(q.answer for q in CASE.questions if q.facts[0][0] == "region") == answer["message"] == answer["text"]


def test_a_text_outside_is_said_to_be_outside(tmp_path: Path) -> None:
    """A text of another kind is not answered; the figures that show it are printed, and the exit code is 3."""
    file = tmp_path / "other.txt"
    file.write_text(
        "The mitochondrion is an organelle; it makes ATP. Photosynthesis, by contrast, stores light as sugar."
    )
    done = run("demo", "--document", str(file), "--ask", "What makes ATP?")
    assert 3 == done.returncode
    assert re.search(
        r"outside what the embedded pair knows: .* \d+\.\d+ bits per byte", done.stderr.decode().replace("\n", " ")
    )
    assert b"" == done.stdout


def test_inspect_says_what_a_message_is(pair, tmp_path: Path) -> None:
    """Version, kind, codec, sizes and check, in words and as JSON, from a file or standard input."""
    message = pair.sender.encode(CASE.context)
    (tmp_path / "message.bin").write_bytes(message)
    shown = run("inspect", str(tmp_path / "message.bin")).stdout.decode()
    assert all(
        word in shown for word in ("bare message, version 1, 100 bytes", "payload", "valid", "the embedded pair's")
    )
    found = json.loads(run("inspect", "-", "--json", stdin=message).stdout)
    assert 100 == found["total_bytes"] == sum(part["size_bytes"] for part in found["parts"])


@pytest.mark.parametrize("junk", [b"", b"not a message", b"\x94\x01" + b"\xff" * 98, b"\0" * 70_000])
def test_inspect_refuses_garbage(junk: bytes) -> None:
    """Garbage gets one sentence that says what was expected, no traceback, and exit code 2."""
    done = run("inspect", "-", stdin=junk)
    assert 2 == done.returncode
    assert b"expected" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("inspect", "no-such-file"), "expected a readable message file, got no-such-file"),
        (("demo", "--document", "no-such-file", "--ask", "Who?"), "expected a readable text file, got no-such-file"),
        (("demo", "--ask", "Who?"), "expected --document and --ask together"),
        (("measure", "embedded", "--task", "no-such-file"), "expected a readable file of cases, got no-such-file"),
        (("measure", "no-such-codec"), "expected a codec's folder with a config.json, got no-such-codec"),
        (("measure", "embedded", "--attach"), "expected a codec's folder to --attach"),
        (("compare", "no-such-file", "other"), "expected a readable report, got no-such-file"),
    ],
)
def test_wrong_use_is_explained(words: tuple[str, ...], fragment: str) -> None:
    """A missing file or half a pair of options: one sentence, exit code 2."""
    done = run(*words)
    assert 2 == done.returncode
    assert fragment in done.stderr.decode().replace("\n", " ")
    assert b"Traceback" not in done.stderr


def test_measure_keeps_draws_proves_and_compares(tmp_path) -> None:
    """One call on a file of two cases gives the verdict, JSON, a page and plots, and proves the codec or says no."""
    tasks, kept, page = tmp_path / "cases.jsonl", tmp_path / "report.json", tmp_path / "report.html"
    lines = [
        {
            "context": case.context,
            "questions": [
                {"question": q.text, "answer": q.answer, "choices": list(q.choices)}
                for q in case.questions
                if q.kind == "lookup"
            ],
        }
        for case in case_files("validation", 21, 2)
    ]
    tasks.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    folder = tmp_path / "codec"
    shutil.copytree(Path(ilcp.__file__).parent / "embedded" / "codec", folder)
    options = ("--n", "2", "--repetitions", "0", "--json", str(kept), "--html", str(page), "--png", str(tmp_path))
    done = run("measure", str(folder), "--task", str(tasks), *options, "--attach")
    assert 0 == done.returncode, done.stderr.decode()
    shown = done.stdout.decode()
    assert shown.startswith("The message carries content")
    assert "lm-40" in shown
    record = json.loads(kept.read_text(encoding="utf-8"))
    assert record["verdict"] in " ".join(shown.split("\n")[:1])
    assert "recovery.png" in {file.name for file in tmp_path.iterdir()}
    assert "<svg" in page.read_text(encoding="utf-8")
    evidence = json.loads((folder / "config.json").read_text(encoding="utf-8"))["evidence"]
    assert ("cases.jsonl", 2) == (evidence["task"], evidence["n"])
    compared = run("compare", str(kept), str(kept), "--json")
    assert 0 == compared.returncode, compared.stderr.decode()
    assert {0} == {change["changed"] for change in json.loads(compared.stdout)["changes"]}


def test_an_interrupted_measurement_says_what_is_left(tmp_path) -> None:
    """Ctrl-C ends with one sentence and exit code 130, and the file holds the arms that were done."""
    kept = tmp_path / "report.json"
    words = ("measure", "embedded", "--n", "40", "--repetitions", "0", "--json", str(kept))
    process = subprocess.Popen(
        [*ILCP, *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever runs the tests may ignore it
    )
    try:
        deadline = time.monotonic() + 100
        while not kept.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert 130 == process.returncode, said.decode()
    assert "holds what was measured so far" in " ".join(said.decode().split())
    assert not json.loads(kept.read_text(encoding="utf-8"))["complete"]
