"""What the documents say is what the code does: examples run, tables equal their results."""

import doctest
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ilcp
from ilcp.measure import load_report

ROOT = Path(__file__).resolve().parent.parent
DOCTESTED = (
    "ilcp",
    "ilcp.message.keys",
    "ilcp.message.literals",
    "ilcp.measure",
    "ilcp.codec.memory",
    "ilcp.message",
    "ilcp.tasks",
    "ilcp.transport",
    "ilcp.transport.capabilities",
)
WITHOUT_MODELS = ("faults", "fuzz", "load", "wire")


@pytest.mark.parametrize("name", DOCTESTED)
def test_docstring_examples_run(name: str) -> None:
    """The examples in a module's docstring give what they say, and there is at least one."""
    found = doctest.testmod(importlib.import_module(name))
    assert 0 == found.failed
    assert found.attempted > 0


def test_the_readme_example_runs() -> None:
    """The README's first Python block runs as it stands and prints the message's size."""
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120, check=False)
    assert 0 == done.returncode, done.stderr
    assert "100 Brno unknown Brno" == done.stdout.strip()


def test_the_readme_hands_on_between_two_processes(tmp_path: Path) -> None:
    """The two blocks of "Across machines", each in a process of its own: the receiver answers, and nothing is left."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(# the (?:receiver|sender)'s process\n.*?)```", page, re.DOTALL)
    receiver, sender = (block.replace("spool:///tmp/handoffs", f"spool://{tmp_path}") for block in blocks)
    said = []
    for block in (sender, receiver):
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120, check=False)
        assert 0 == done.returncode, done.stderr
        said.append(done.stdout.strip())
    assert ["", "Brno"] == said
    with ilcp.connect(f"spool://{tmp_path}", name="planner") as c:
        assert c.receive() is None


def test_tables_equal_their_results() -> None:
    """No figure in a table differs from the committed JSON it was made from."""
    done = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda file: file.name)
def test_results_say_where_they_come_from(file: Path) -> None:
    """Every committed result names seed, commit, versions, machine, command and the models' identities."""
    record = json.loads(file.read_text(encoding="utf-8"))
    assert isinstance(record["seed"], int)
    assert record["provenance"]["models"] or file.stem in WITHOUT_MODELS
    if "verdict" in record:
        assert load_report(file).complete  # makes every figure anew, and refuses one that does not follow
    assert {"commit", "versions", "machine", "command", "models"} <= set(record["provenance"])


def test_a_changed_table_is_noticed(tmp_path: Path) -> None:
    """The check can fail: one digit changed in a table makes the page differ from its results."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        tables = importlib.import_module("tables")
    finally:
        sys.path.pop(0)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    names = ("figures", "cost")
    assert page == tables.render(page, names)
    cell = re.search(r"\| content gain, all questions \| (\S+)", page)
    assert cell is not None
    changed = page.replace(cell.group(1), "9.999", 1)
    assert changed != tables.render(changed, names)
