"""``ilcp calibrate``, ``ilcp canary`` and ``ilcp watch``, as a person and as a monitor meets them."""

import json
import shutil
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from typer.testing import CliRunner

import ilcp
from ilcp.assurance import REFERENCE, Canary, Policy, Reference, Watch
from ilcp.assurance.metrics import WatchMetrics, exposition
from ilcp.cli import app
from ilcp.cli.exit_codes import ALARMED, exit_code
from ilcp.embedded import HERE
from ilcp.errors import ConfigError, IdentityError, IlcpError, StorageError
from ilcp.measure import calibrating, sequential
from ilcp.measure.calibrating import _probe, calibrate
from ilcp.tasks import Case, Question, case_files
from tests.test_assurance_files import bet

CODEC, OF = "c0de" * 4, ("c0de" * 4, "reference", "", "receiver")
WRONG_USE, DAMAGED = exit_code(ConfigError("")), exit_code(StorageError(""))


def run(*words: object, code: int = 0) -> str:
    """What a command prints; it has to end with this code."""
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    found = exit_code(done.exception) if isinstance(done.exception, IlcpError) else done.exit_code
    assert code == found, (done.output, done.exception)
    return f"{done.output}{done.exception}" if isinstance(done.exception, IlcpError) else done.output


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """A watch in which an alarm stands at one tenant's receiver, and none at the sender."""
    path = tmp_path / "watch.sqlite"
    with Watch(path) as watch:
        for _ in range(30):
            watch.change(CODEC, "reference", "acme [/x]", "receiver", partial(bet, p=0.001))
        watch.change(CODEC, "reference", "", "sender", bet)
        watch.change(CODEC, "reference", "", "canary", lambda state: state.told(Canary(0.8, 0.4).told(True)))
    return path


def test_a_watch_is_shown(watched: Path) -> None:
    """A table, with names that no markup eats, and JSON that says the same."""
    shown = run("watch", watched)
    for word in (CODEC, "acme [/x]", "accept 30", "since message", "1 of 1 right: undecided", "sender", "canary"):
        assert word in shown
    states = json.loads(run("watch", watched, "--json"))
    assert ["canary", "sender", "receiver"] == [state["place"] for state in states]
    assert {"codec_id", "reference", "tenant", "place", "messages", "decided", "value", "alarm_at"} <= set(states[0])
    assert states[2]["value"] >= 100 > states[1]["value"]


def test_a_monitor_is_told_by_the_exit_code_and_by_prometheus(watched: Path) -> None:
    """18 while an alarm stands, 0 after somebody looked; gauges and counters of each state."""
    run("watch", watched, "--check", code=ALARMED)
    told = run("watch", watched, "--prometheus", "--check", code=ALARMED)
    labels = f'{{codec_id="{CODEC}",place="receiver",reference="reference",tenant="acme [/x]"}}'
    assert f"ilcp_assurance_alarm{labels} 1.0" in told
    assert f"ilcp_assurance_messages_total{labels} 30.0" in told
    assert f'ilcp_assurance_decisions_total{{codec_id="{CODEC}",decision="accept",place="receiver"' in told
    assert 'place="sender",reference="reference",tenant=""} 0.0' in told
    with Watch(watched) as watch:
        assert exposition(watch) == told
        assert 4 == len(list(WatchMetrics(watch).collect()))
    run("watch", watched, "--reset", CODEC, "--tenant", "acme [/x]")
    assert 2 == len(json.loads(run("watch", watched, "--json", "--check")))


def test_what_cannot_be_shown_or_reset_says_why(watched: Path, tmp_path: Path) -> None:
    """A codec that nobody watches, no file (which is not made), and one that is no watch (which is not changed)."""
    assert "that is watched, got 'nobody'" in run("watch", watched, "--reset", "nobody", code=WRONG_USE)
    assert "got none" in run("watch", tmp_path / "none", code=WRONG_USE)
    assert not (tmp_path / "none").exists()
    (tmp_path / "junk").write_text("no watch at all" * 100)
    run("watch", tmp_path / "junk", code=DAMAGED)
    with Watch(tmp_path / "new"):
        assert "nothing was judged yet" in run("watch", tmp_path / "new", "--check")


def test_hostile_names_steer_no_terminal(tmp_path: Path) -> None:
    """What stands in a file as a codec's id is shown as it is, escaped."""
    with Watch(tmp_path / "watch.sqlite") as watch, cast(Any, watch)._file.transaction() as database:
        database.execute("INSERT INTO states VALUES (?, '', '', 'x', '{}')", ("\x1b[2J[/red]",))
    shown = run("watch", tmp_path / "watch.sqlite")
    assert "\x1b[2J" not in shown
    assert "[/red]" in shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded codec's folder, to write into."""
    return Path(shutil.copytree(HERE / "codec", tmp_path_factory.mktemp("own") / "codec"))


def own(folder: Path) -> tuple[Any, ...]:
    """The folder, and the embedded models."""
    return folder, "--sender", HERE / "sender", "--receiver", HERE / "receiver"


def test_calibrating_writes_what_judges_from_then_on(folder: Path) -> None:
    """Whatever reference lay there, damaged or another codec's: with that, a codec's ends are not made."""
    other = Reference.from_bytes((folder / REFERENCE).read_bytes())
    for held, error in ((b"damaged", StorageError), (_of_another(other), IdentityError)):
        (folder / REFERENCE).write_bytes(held)
        with pytest.raises(error, match="calibrate again"):
            ilcp.load_pair(folder, sender=HERE / "sender", receiver=HERE / "receiver")
    told = run("calibrate", *own(folder), "--task", "case-files", "--n", 100, "--seed", 3)
    assert "sent (40 scores)" in told.replace("\n", " ")
    assert "received/80 (40 scores)" in told.replace("\n", " ")
    found = Reference.read(folder, ilcp.load(folder).trained.codec_id(ilcp.load(folder).spec).hex())
    assert (100, 3, "case-files") == (found.calibrated.n, found.calibrated.seed, found.calibrated.task)
    assert found.calibrated.right > 0.5 * found.calibrated.canaries > 10 * found.calibrated.right_by_others
    pair = ilcp.load_pair(folder, sender=HERE / "sender", receiver=HERE / "receiver", assurance=Policy("refuse"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = pair.sender.encode("Mara owns the ticket.")
    assert found.digest == pair.receiver.judged(message).reference
    assert pair.receiver.judged(message).because


def _of_another(reference: Reference) -> bytes:
    return replace(reference, calibrated=replace(reference.calibrated, codec_id=CODEC)).to_bytes()


def test_what_is_no_folder_cannot_be_calibrated(tmp_path: Path) -> None:
    """The embedded codec stays as it is, and no hub is asked for what is to be written into."""
    for name in ("embedded", tmp_path, "owner/name"):
        assert "expected a codec's folder to write into" in run("calibrate", name, code=WRONG_USE)


def test_a_canary_says_that_the_facts_come_through(tmp_path: Path) -> None:
    """Of the embedded pair: sound within some questions, and the watch holds what was asked."""
    told = run("canary", "embedded", "--task", "case-files", "--n", 60, "--seed", 9, "--watch", tmp_path / "w.sqlite")
    assert told.startswith("the facts come through: ")
    with Watch(tmp_path / "w.sqlite") as watch:
        (state,) = watch.states()
    assert state.canary is not None
    assert ("canary", "sound", False) == (state.place, state.canary.verdict, state.alarmed)
    assert state.messages == state.canary.asked < 60


def test_a_canary_finds_that_the_facts_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong answers end with 18 and an alarm that stands; so few that nothing is decided do not."""
    monkeypatch.setattr(sequential, "_right", lambda receiver, memories, asked: [False])
    line = ("canary", "embedded", "--task", "case-files", "--watch", tmp_path / "w.sqlite", "--tenant", "acme")
    assert "the evidence is not in: 0 of 2 right" in run(*line, "--n", 2)
    assert "the facts are lost: 0 of" in run(*line, "--n", 60, code=ALARMED)
    run("watch", tmp_path / "w.sqlite", "--check", code=ALARMED)
    with Watch(tmp_path / "w.sqlite") as watch:
        (state,) = watch.states()
    assert ("acme", True) == (state.tenant, state.alarmed)
    assert state.alarm_at == state.messages > 2


def test_a_canary_needs_a_calibration(folder: Path, tmp_path: Path) -> None:
    """Without one there is nothing to compare with."""
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns(REFERENCE))
    told = run("canary", *own(bare), "--task", "case-files", "--n", 2, code=WRONG_USE)
    assert "run 'ilcp calibrate' first" in told


def case(number: int, answer: str) -> Case:
    """A case with one question."""
    return Case(str(number), f"It says {answer}.", (Question("What?", answer),))


def test_a_probe_tells_of_no_single_case() -> None:
    """Only answers that five cases have are asked for, the most usual one of each question; however often a case
    repeats its own."""
    cases = [case(number, "usual") for number in range(5)] + [case(number, f"secret {number}") for number in range(60)]
    assert (("What?", "usual"),) == _probe(cases)
    assert () == _probe(cases[1:])
    often = Case("often", "x", tuple(Question("Who?", "secret") for _ in range(9)))
    assert () == _probe([often])
    many = [Case(str(n), "x", tuple(Question(f"Number {k}?", "yes") for k in range(20))) for n in range(6)]
    assert 8 == len(_probe(many))


def test_what_is_calibrated_holds_what_both_ends_will_know(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view of each length, of the latent, and of the probe for as many as are probed; too few cases are refused."""
    monkeypatch.setattr(calibrating, "MOST_PROBED", 101)
    monkeypatch.setattr(calibrating, "right_answers", lambda *_: (7, 5, 1))
    texts = [each.context[:100] for each in case_files("train", 1, 110)]
    cases = [Case(str(n), text, (Question("Who?", "Mara" if n % 2 else str(n)),)) for n, text in enumerate(texts)]
    found = calibrate(small.sender, small.receiver, cases, task="cases", seed=4)
    assert {"sent", "probed", *(f"received/{length}" for length in (2, 4, 8, 16))} == set(found.views)
    assert (44, 44, 41) == tuple(len(found.views[name].scores) for name in ("sent", "received/2", "probed"))
    known = found.calibrated
    assert (110, 4, 7, 5, 1, (("Who?", "Mara"),)) == (
        known.n, known.seed, known.canaries, known.right, known.right_by_others, known.probe
    )  # fmt: skip
    assert np.isfinite(found.views["probed"].scores).all()
    with pytest.raises(ConfigError, match="expected at least 100 cases to calibrate on, got 99: give more"):
        calibrate(small.sender, small.receiver, cases[:99], task="cases")
