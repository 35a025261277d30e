"""The examples of transports run as a reader would run them: two processes, and an answer on the other side."""

import re
from pathlib import Path

import pytest

from ilcp.tasks import case_files
from tests.helpers import EXAMPLES, load_script, run_example
from tests.transport_model import NEEDS_NATS, nats_server


def check(said: str) -> None:
    """Both messages of 100 bytes crossed, and the receiver answers as the dossiers say."""
    answers = [
        (str(number), next(q.answer for q in case.questions if "region" in q.text and "affected" in q.text))
        for number, case in enumerate(case_files("test", seed=7, n=2))
    ]
    assert ["0", "1"] == re.findall(r"as 100 bytes, \w+-(\d); the receiver reads it", said)
    assert answers == re.findall(r"receiver: \w+-(\d): Which region is affected\? (\w+)", said)


def test_two_processes_share_a_spool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sender and receiver, each its own process, with a folder between; again in it, they see new hand-offs only."""
    check(run_example("two_processes.py", tmp_path))
    again = load_script("two_processes", EXAMPLES)  # here, because two more processes would load all of it again
    again.send(f"spool://{tmp_path}")
    again.receive(f"spool://{tmp_path}")
    check(capsys.readouterr().out)


@pytest.mark.parametrize("example", [pytest.param("over_nats.py", marks=NEEDS_NATS)])
def test_two_processes_over_nats(example: str) -> None:
    """The same over a NATS server."""
    with nats_server() as url:
        check(run_example(example, url))
