"""``ilcp audit``: a record is kept, shown, verified, erased from and witnessed from the command line."""

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ilcp.audit import Draft, Guardian, Key, Ledger, Recorder, Signer
from ilcp.audit.guardian import settings_for
from ilcp.cli import app
from ilcp.cli.audit import _name_of
from ilcp.cli.exit_codes import NOT_SOUND
from ilcp.errors import ConfigError
from ilcp.signing import seed_in
from ilcp.transport import AddressError, connect
from tests.helpers import environment, run_example


def run(*words: object, code: int = 0) -> str:
    """Calls ``ilcp audit``; what it raises is raised."""
    done = CliRunner().invoke(app, ["audit", *map(str, words)], catch_exceptions=False)
    assert code == done.exit_code, done.output
    return done.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger ``l`` of four hand-offs, under the key in ``k``."""
    place = tmp_path / "audit"
    for each in (place, place / "spool"):
        each.mkdir(mode=0o700)
    url = f"spool://{place / 'spool'}"
    with Recorder(url, "planner", run="monday") as one, Recorder(url, "writer", run="tuesday") as two:
        one.record("sent", {"message_bytes": 100, "codec": "vae"}, {"literals": ["INC-20391"]})
        one.record("refused", {}, {"reason": "expected a text, got \x1b[31mnothing"})
        one.record("sent", {"message_bytes": 90, "codec": "vae"})
        two.record("received", {})
    signer = Signer("example/ledger", seed_in(place / "k"))
    with connect(url, name="guardian", settings=settings_for(url)) as c, Ledger(place / "l", signer) as ledger:
        Guardian(ledger, c).work()
    return place


def copied(source: Path, target: Path) -> None:
    one, other = sqlite3.connect(source), sqlite3.connect(target)
    one.backup(other)
    one.close()
    other.close()


def key_of(folder: Path) -> Key:
    with Ledger(folder / "l") as ledger:
        return ledger.keys[-1]


def test_what_was_handed_over_is_listed_and_shown(folder: Path) -> None:
    """By run, by event, the newest last; nothing of a record steers the terminal."""
    lines = run("log", folder / "l").splitlines()
    assert 5 == len(lines)
    assert lines[1].endswith("sent  planner 1 of run monday  100 bytes, vae")
    assert "refused  planner 2 of run monday  expected a text, got \\x1b[31mnothing" in lines[2]
    assert 3 == len(run("log", folder / "l", "--run", "monday").splitlines())
    (received,) = run("log", folder / "l", "--event", "received", "--json").splitlines()
    assert "writer" == json.loads(received)["fields"]["producer"]
    assert lines[-1:] == run("log", folder / "l", "--last", 1).splitlines()
    shown = json.loads(run("show", folder / "l", 1))
    assert ({"literals": ["INC-20391"]}, []) == (shown["personal"], shown["erased"])
    assert 100 == shown["entry"]["fields"]["message_bytes"]
    assert all(len(each) == 64 for each in shown["proof"])
    said = run("diff", folder / "l", 1, 3).splitlines()
    assert {"message_bytes: 100 in 1, 90 in 3", "sequence: 1 in 1, 3 in 3"} <= set(said)
    assert not any(line.startswith("codec:") for line in said)
    with pytest.raises(ConfigError, match="expected an entry from 0 to 4, got 9"):
        run("show", folder / "l", 9)


def test_a_copy_is_verified_and_what_was_changed_in_it_is_said(folder: Path) -> None:
    key, file = key_of(folder), folder / "export.jsonl"
    assert "5 entries in" in run("export", folder / "l", "--out", file)
    assert "planner, run monday: all of 1 to 3" in run("verify", file, "--key", key)
    found = json.loads(run("verify", file, "--json"))
    (planner, _) = found["complete"]
    assert (True, "planner", "monday", 3) == (found["sound"], planner["producer"], planner["run"], planner["complete"])
    run("export", folder / "l", "--out", folder / "run.jsonl", "--run", "tuesday")
    assert "writer, run tuesday: all of 1 to 1" in run("verify", folder / "run.jsonl", "--key", key)
    file.write_text(file.read_text().replace('\\"planner\\"', '\\"Planner\\"'))
    assert "NOT SOUND: root: the checkpoint of 5 entries is of others" in run("verify", file, code=NOT_SOUND)
    assert not json.loads(run("verify", file, "--json", code=NOT_SOUND))["sound"]
    other = Signer("example/ledger", bytes(32)).key
    assert "NOT SOUND: signature" in run("verify", folder / "l", "--key", other, code=NOT_SOUND)
    with pytest.raises(ConfigError, match="expected a key as name"):
        run("verify", file, "--key", "bad")
    with pytest.raises(ConfigError, match="expected a ledger or an export"):
        run("verify", folder / "nothing")


def test_a_witness_keeps_a_checkpoint_and_says_what_no_longer_begins_with_it(folder: Path, tmp_path: Path) -> None:
    state, copy = tmp_path / "state", tmp_path / "copy"
    copied(folder / "l", copy)
    assert "kept the checkpoint of 5 entries" in run("witness", folder / "l", "--state", state)
    run("erase", folder / "l", 1, "literals", "--key", folder / "k", "--by", "officer", "--because", "asked")
    assert "kept the checkpoint of 6 entries" in run("witness", folder / "l", "--state", state)
    kept = state.read_text()
    assert "rolled back: there were 6 entries" in run("witness", copy, "--state", state, code=NOT_SOUND)
    assert kept == state.read_text()
    assert "cannot be told" not in run("verify", folder / "l", "--key", key_of(folder), "--checkpoint", state)


def test_what_is_erased_retired_and_rotated_is_said(folder: Path) -> None:
    said = run("erase", folder / "l", 1, "literals", "--key", folder / "k", "--by", "officer", "--because", "she asked")
    assert "erased literals of entry 1; entry 5 says so" in said
    assert {"literals": None} == json.loads(run("show", folder / "l", 1))["personal"]
    assert "entry 1: literals erased by officer, because she asked" in run("verify", folder / "l")
    owner = ("--key", folder / "k", "--by", "a rule")
    assert "nothing is as old" in run("retire", folder / "l", *owner)
    with pytest.raises(ConfigError, match="expected at least 6 months, got 0"):
        run("retire", folder / "l", *owner, "--months", 0)
    first = key_of(folder)
    assert "signs as example/ledger+" in run("rotate", folder / "l", "--key", folder / "k", "--new", folder / "k2")
    assert first != key_of(folder)
    assert "sound: readable" in run("verify", folder / "l", "--key", first)
    with pytest.raises(ConfigError, match="expected the key that signs"):
        run("retire", folder / "l", *owner)
    with pytest.raises(ConfigError, match="got no such file"):
        run("retire", folder / "l", "--key", folder / "k3", "--by", "a rule")


def test_a_guardian_enters_until_it_is_told_to_end(folder: Path) -> None:
    """A process of its own; another one for the same ledger is refused; SIGTERM ends it well."""
    url, words = f"spool://{folder / 'spool'}", [sys.executable, "-m", "ilcp", "audit", "guard"]
    options = ["--via", url, "--key", str(folder / "k"), "--name", "example/ledger"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    guardian = subprocess.Popen([*words, str(folder / "l"), *options], **pipes)
    assert guardian.stdout is not None
    assert "guards" in guardian.stdout.readline()
    with Recorder(url, "planner", run="wednesday", unrecorded="never", timeout_s=60) as audit:
        assert 1 == audit.record("sent", {})
    second = subprocess.run([*words, str(folder / "l"), *options], **pipes, timeout=60, check=False)
    assert (2, True) == (second.returncode, "for one process at a time" in second.stderr)
    guardian.send_signal(signal.SIGTERM)
    said, _ = guardian.communicate(timeout=60)
    assert (0, True) == (guardian.returncode, "ended: 6 entries; what comes now waits" in said)
    assert "planner, run wednesday: all of 1 to 1" in run("verify", folder / "l")


def test_a_guardian_that_nobody_could_reach_is_refused(folder: Path) -> None:
    key = ("--key", folder / "k", "--name", "example/ledger")
    with pytest.raises(ConfigError, match="expected an address that other processes reach"):
        run("guard", folder / "l", "--via", "memory://x", *key)
    with pytest.raises(AddressError, match="expected a transport to receive from"):
        run("guard", folder / "l", "--via", "https://localhost:1", *key)
    with pytest.raises(ConfigError, match="expected a ledger's name"):
        run("guard", folder / "l", "--via", "spool:///x", "--key", folder / "k", "--name", "a b")


def test_the_example_is_audited(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir(mode=0o700)
    said = run_example("audited_handoff.py", tmp_path / "place")
    assert "answer: Brno" in said
    assert "auditor: planner, run monday: all of 1 to 1" in said
    assert "auditor: sound: " in said
    assert "cannot be told" not in said


def test_who_erases_is_told_of_accounts_of_the_same(folder: Path) -> None:
    """What a hand-off's account still says is named, until that is erased too."""
    with Ledger(folder / "l", Signer("example/ledger", seed_in(folder / "k"))) as ledger:
        handoff_id = "h" * 32
        (of,) = ledger.append([Draft("handoff", {"run": "r", "handoff_id": handoff_id}, {"literals": ["INC-1"]})])
        fields = {"of": of, "run": "r", "handoff_id": handoff_id}
        (account,) = ledger.append([Draft("account", fields, {"gloss": [], "summary": "INC-1 is open."})])
    options = ("--key", folder / "k", "--by", "the officer", "--because", "asked")
    said = f"entry {account} is of the same hand-off, and still has gloss, summary"
    assert said in run("erase", folder / "l", of, "literals", *options).replace("\n", " ")
    assert "of the same hand-off" not in run("erase", folder / "l", account, "gloss", "summary", *options)


def test_an_export_is_a_file_or_pages(folder: Path) -> None:
    """Pages for people, lines for machines, or both; neither is asked for by mistake alone."""
    out = run("export", folder / "l", "--html", folder / "html", "--out", folder / "lines")
    assert "4 hand-offs" in out
    assert {"index.html", "handoff-1.html"} <= {file.name for file in (folder / "html").iterdir()}
    assert (folder / "lines").is_file()
    with pytest.raises(ConfigError, match="--out FILE, --html FOLDER"):
        run("export", folder / "l")


def test_evidence_is_not_written_over_and_a_run_has_to_be_there(folder: Path) -> None:
    run("export", folder / "l", "--out", folder / "e")
    with pytest.raises(ConfigError, match="it may be evidence"):
        run("export", folder / "l", "--out", folder / "e")
    with pytest.raises(ConfigError, match="a run of this ledger"):
        run("export", folder / "l", "--out", folder / "f", "--run", "sunday")


def test_a_part_witnesses_nothing_and_what_is_no_checkpoint_is_the_caller_s_fault(folder: Path) -> None:
    """Neither is said of the ledger."""
    run("export", folder / "l", "--out", folder / "part", "--run", "monday")
    with pytest.raises(ConfigError, match="a whole export to witness"):
        run("witness", folder / "part", "--state", folder / "state")
    (folder / "x").write_text("no checkpoint")
    with pytest.raises(ConfigError, match="expected a checkpoint in"):
        run("verify", folder / "l", "--checkpoint", folder / "x")


def test_what_could_not_be_checked_is_not_said_to_be_sound(folder: Path) -> None:
    sound = run("verify", folder / "l").rpartition("sound: ")[2]
    assert not {"signature", "witness"} & set(sound.split(", "))
    kept = folder / "kept"
    kept.write_text(Ledger(folder / "l").checkpoint())
    assert "signature, witness" in run("verify", folder / "l", "--key", key_of(folder), "--checkpoint", kept)


def test_who_rotates_or_retires_is_told_what_follows(folder: Path) -> None:
    """The next key's file, and which entries are gone; a guardian takes the ledger's own name."""
    assert "start the guardian anew with --key" in run(
        "rotate", folder / "l", "--key", folder / "k", "--new", folder / "k2"
    ).replace("\n", " ")
    options = ("--key", folder / "k2", "--by", "the rule")
    with pytest.raises(ConfigError, match="--below-six"):
        run("retire", folder / "l", *options, "--months", 0)
    assert "entries 1 to 4" in run("retire", folder / "l", *options, "--months", 0, "--below-six")
    assert "example/ledger" == _name_of(folder / "l")
    assert "ilcp/ledger" == _name_of(folder / "none")


def test_an_export_of_one_run_has_no_erasure_of_another(folder: Path) -> None:
    """But its own, so that it can be verified."""
    signer = Signer("example/ledger", seed_in(folder / "k"))
    with Ledger(folder / "l", signer) as ledger:
        (other,) = ledger.append([Draft("handoff", {"run": "tuesday"}, {"literals": ["x"]})])
        for number, why in ((1, "monday asked"), (other, "tuesday asked")):
            ledger.erase(number, ["literals"], by="the officer", because=why)
    run("export", folder / "l", "--out", folder / "part", "--run", "monday")
    text = (folder / "part").read_text()
    assert ("monday asked" in text, "tuesday asked" in text) == (True, False)
    assert "sound" in run("verify", folder / "part", "--key", key_of(folder))
