"""The benchmark beside `avp`: what it does where avp is not installed, and what its committed result holds."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from ilcp.embedded import Pair
from ilcp.measure import Measured
from ilcp.tasks import case_files
from tests.helpers import BENCHMARKS, committed_result, load_script, run_python

COLUMNS = ("ilcp", "avp", "avp_0", "avp_receiver", "avp_receiver_0", "avp_cross")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The script, as a module."""
    return load_script("peer_avp")


@pytest.fixture(scope="module")
def report() -> ModuleType:
    """What makes its figures, as a module."""
    return load_script("peer_avp_report")


@pytest.fixture
def record() -> dict:
    """The committed result."""
    return committed_result("peer-avp")


def test_without_avp_it_says_how_to_get_it(tmp_path: Path) -> None:
    """Where the named interpreter does not exist, the script says how to make one, ends well and writes nothing."""
    file, nowhere = tmp_path / "result.json", tmp_path / "nowhere"
    done = run_python(BENCHMARKS / "peer_avp.py", "--avp-python", nowhere, "--json", file)
    assert 0 == done.returncode, done.stderr
    assert f"no interpreter with avp at {nowhere}" in done.stdout
    assert "pip install -c constraints.txt torch==2.13.0 transformers avp==0.6.2" in done.stdout
    assert not file.exists()


def test_a_failed_operation_is_answered_and_the_next_is_served(benchmark: ModuleType) -> None:
    """The peer's process names what went wrong, one answer per request, and stays; here it fails for want of avp."""
    client = benchmark.Client(Path(sys.executable))
    try:
        for name in ("_answer", "__init__", "nonsense"):
            with pytest.raises(benchmark.PeerError, match=f"expected an operation, got '{name}'"):
                client.ask(name)
        with pytest.raises(benchmark.PeerError, match="ModuleNotFoundError: No module named 'avp'"):
            client.ask("load", sender="a", receiver="b")
        with pytest.raises(benchmark.PeerError, match="KeyError: 'sender'"):
            client.ask("fan_out", model="sender", steps=1, text="text", questions=[])
    finally:
        client.close()


def test_an_ended_process_is_an_error(benchmark: ModuleType, tmp_path: Path) -> None:
    """A process that ends without an answer is told, with the end of what it wrote to standard error."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho broken >&2\n")
    script.chmod(0o755)
    client = benchmark.Client(script)
    try:
        with pytest.raises(benchmark.PeerError, match="the peer's process ended during 'load': broken"):
            client.ask("load")
    finally:
        client.close()


def test_flips_are_counted_by_what_refuses_them(benchmark: ModuleType) -> None:
    """Each flip reaches the reader as exactly one changed bit; refusals are counted by their error."""

    def take(data: bytes) -> None:
        assert 1 == int.from_bytes(data, "big").bit_count()
        if data[0]:
            raise ValueError("refused")

    expected = {"tried": 16, "refused": 8, "errors": {"builtins.ValueError": 8}}
    assert expected == benchmark.flip(take, bytes(2), range(16))


def test_ilcp_is_measured_by_the_same_steps(benchmark: ModuleType, report: ModuleType, pair: Pair) -> None:
    """ilcp's record has every step and arm that the peer's has, and the bytes of a real message."""
    case = next(case_files("test", 3, 1))
    found = benchmark.ilcp_hand_off(pair, case.context, benchmark.lookups(case)[0].text)
    assert len(pair.sender.encode(case.context)) == found["bytes"]
    assert {*report.HAND_OFF, "first token, full text"} == set(found["times"])
    assert set(report.ARMS) == set(found["answers"])


def test_the_committed_result_has_its_rows(report: ModuleType, record: dict) -> None:
    """Every row has every column, as a measured figure or nothing; what can be measured for both is there for both."""
    assert COLUMNS == report.COLUMNS == tuple(record["columns"])
    rows = {row.pop("what"): row for row in record["rows"]}
    expected = {"bytes on the wire", "bytes of the text handed over"}
    expected |= {f"{step}, {which}" for step in report.TIMES for which in ("median", "99th percentile")}
    expected |= {f"look-ups right, {where}" for where in report.ARMS.values()}
    expected |= {f"single flipped bits refused, {where} the payload" for where in ("inside", "outside")}
    expected |= {"hand-offs whose 8 answers to one question agree"}
    expected |= {"hand-offs that answer 8 questions in turn as 8 fresh copies do"}
    assert expected == set(rows)
    for row in rows.values():
        assert set(COLUMNS) == set(row)
        figures = {column: Measured(**figure) for column, figure in row.items() if figure is not None}
        assert {"ilcp", "avp"} <= set(figures)
        assert all(figure.n >= 50 for figure in figures.values())
    assert rows["bytes on the wire"]["avp_cross"] is None


def test_the_committed_findings_say_how(record: dict) -> None:
    """Every finding is a yes or no for each of the two, with how it was found."""
    assert len({finding["what"] for finding in record["findings"]}) == len(record["findings"]) >= 9
    for finding in record["findings"]:
        for side in ("ilcp", "avp"):
            assert isinstance(finding[side]["yes"], bool)
            assert finding[side]["how"]


def test_the_committed_result_names_the_peer_and_no_machine(record: dict) -> None:
    """The peer's versions are recorded; its interpreter is named by the documented path, not by this machine's."""
    assert {"python", "avp", "torch", "transformers"} <= set(record["provenance"]["peer"])
    assert record["provenance"]["peer"]["avp"].startswith("0.6.")
    assert not any(Path(word).is_absolute() for word in record["provenance"]["command"].split())
