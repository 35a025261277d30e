"""The examples of transports run as a reader would run them: two processes, and an answer on the other side."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ilcp.tasks import case_files
from tests.transport_model import NATS_SERVER, NO_NATS, nats_server

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def said_by(name: str, word: object) -> str:
    """What an example prints, run in a process of its own."""
    line = [sys.executable, EXAMPLES / name, str(word)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert 0 == run.returncode, run.stderr
    return run.stdout


def check(said: str) -> None:
    """Both messages of 100 bytes crossed, and the receiver answers as the dossiers say."""
    answers = [
        (str(number), next(q.answer for q in case.questions if "region" in q.text and "affected" in q.text))
        for number, case in enumerate(case_files("test", seed=7, n=2))
    ]
    assert ["0", "1"] == re.findall(r"as 100 bytes, \w+-(\d); the receiver reads it", said)
    assert answers == re.findall(r"receiver: \w+-(\d): Which region is affected\? (\w+)", said)


def test_two_processes_share_a_spool(tmp_path: Path) -> None:
    """Sender and receiver, each its own process, with a folder between them."""
    for _ in range(2):  # again in the same folder: new hand-offs, not the old ones
        check(said_by("two_processes.py", tmp_path))


@pytest.mark.skipif(NATS_SERVER is None, reason=NO_NATS)
def test_two_processes_over_nats() -> None:
    """The same over a NATS server."""
    with nats_server() as url:
        check(said_by("over_nats.py", url))
