"""`ilcp serve` as a process: what it serves, what it refuses to begin with, and how its sockets are made."""

import asyncio
import contextlib
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import typer
import uvicorn
from typer.testing import CliRunner

from ilcp.cli.send import _settings, receive, send, serve
from ilcp.errors import StorageError
from ilcp.transport import AddressError, RefusedError, Settings, UnreachableError, connect
from ilcp.transport.door import listening, most_connections
from ilcp.transport.spool import FILE
from tests.transport_model import BARE, free_port

TOKEN = "correct-horse-battery"
SERVE = """
import sys, typer
from ilcp.cli.send import serve
typer.run(serve)
"""


def begin(spool: Path, *words: str, token: str | None = None) -> None:
    """Calls ``ilcp serve`` in this process, and raises what it raises; it must not come to serving."""
    app = typer.Typer()
    app.command()(serve)
    ask = ["--spool", str(spool), "--as", "planner", "--port", "0", *words]
    with patch.object(uvicorn.Server, "serve", side_effect=AssertionError("it serves")):
        done = CliRunner(env={"ILCP_TOKEN": token}).invoke(app, ask)
    assert done.exception is not None
    raise done.exception


def test_a_token_of_the_environment_is_for_whoever_is_asked_for_one(tmp_path: Path, monkeypatch) -> None:
    """No spool is, nor who shows credentials; a token that was given is passed on."""
    monkeypatch.setenv("ILCP_TOKEN", TOKEN)
    shown = tmp_path / "a.creds"
    assert TOKEN == _settings("nats://host:4222", None, None, None).token
    assert None is _settings("nats://host:4222", None, None, shown).token
    assert None is _settings("SPOOL:///folder", None, None, None).token
    assert "given" == _settings("nats://host:4222", "given", None, shown).token


def test_serve_send_and_receive_as_processes(tmp_path: Path) -> None:
    """A message goes through ``ilcp serve``, which is killed (-9) and started again, from file to file.

    The receiver takes it from the spool, whatever token is in its environment."""
    app = typer.Typer()
    app.command()(send)
    app.command()(receive)
    port, spool = free_port(), tmp_path / "spool"
    file = tmp_path / "m.ilcp"
    file.write_bytes(BARE)
    environment = {"ILCP_TOKEN": TOKEN}

    def start() -> subprocess.Popen[str]:
        words = ["--port", str(port), "--spool", str(spool), "--as", "planner", "--log-json"]
        line = [sys.executable, "-c", SERVE, *words]
        process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        return process

    via = ["--via", f"http://127.0.0.1:{port}"]
    runner = CliRunner(env=environment)
    first = start()
    try:
        done = runner.invoke(app, ["send", str(file), *via, "--to", "planner", "--id", "case-1"])
        assert (0, f"case-1  {len(BARE)} bytes to planner: sent\n") == (done.exit_code, done.stdout), done.exception
        done = runner.invoke(app, ["send", str(file), *via, "--to", "planner", "--id", "case-1"])
        assert "was there already" in done.stdout
    finally:
        first.kill()
        first.communicate()
    done = runner.invoke(app, ["receive", *via, "--as", "planner", "--out", str(tmp_path / "in")])
    assert "take from the spool behind it" in str(done.exception)
    second = start()
    try:
        done = runner.invoke(app, ["send", str(file), *via, "--to", "planner", "--id", "case-1"])
        assert "was there already" in done.stdout
        out = ["--via", f"SPOOL://{spool}", "--as", "planner", "--out", str(tmp_path / "in"), "--timeout"]
        done = runner.invoke(app, ["receive", *out, "2"])
        assert 0 == done.exit_code, done.exception
        assert file.read_bytes() == (tmp_path / "in" / "case-1.ilcp").read_bytes()
        done = runner.invoke(app, ["receive", *out, "0"])
        assert 4 == done.exit_code
    finally:
        second.terminate()
        second.communicate(timeout=20)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--as", "a.b"], "expected a receiver's name"),
        (["--as", "planner-dead"], "expected a receiver's name"),
        (["--host", "0.0.0.0", "--token", "x"], "expected a token of at least 16"),
        (["--token", "x"], "expected a token of at least 16"),
        (["--certificate", "none.pem", "--key", "none.pem"], "expected a certificate"),
        (["--certificate", "none.pem"], "expected a certificate and its key, or neither"),
        (["--key", "none.pem"], "expected a certificate and its key, or neither"),
        (["--token", "two words are long enough"], "expected a token"),
        (["--token", "schlüssel" * 3], "expected a token"),
    ],
)
def test_serve_refuses_what_is_unsafe_or_missing(tmp_path: Path, words: list[str], said: str) -> None:
    """A token can neither be guessed nor fail to be shown; a certificate has to be there, with its key."""
    with pytest.raises(AddressError, match=said):
        begin(tmp_path, *words)


@pytest.mark.parametrize("token", [None, ""])
def test_serve_makes_up_a_token_and_prints_it_once(tmp_path: Path, token: str | None) -> None:
    """Without a token, also where a secret was not filled in, nobody gets in but with the one that is printed."""
    spool = tmp_path / "[b] is no markup"
    line = [sys.executable, "-c", SERVE, "--port", "0", "--spool", str(spool), "--as", "planner", "--log-json"]
    environment = {} if token is None else {"ILCP_TOKEN": token}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert f" into {spool} at " in first
    url = first.split()[-1]
    name, _, made_up = process.stdout.readline().strip().partition("=")
    with pytest.raises(RefusedError):
        connect(url).__enter__()
    with connect(url, settings=Settings(token=made_up)) as c:
        c.send(BARE, to="planner", handoff_id="a")
    process.terminate()
    said = process.communicate(timeout=20)
    assert ("ILCP_TOKEN", 43) == (name, len(made_up))
    assert made_up not in "".join(said)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_serve_closes_its_spool_when_it_is_told_to_stop(tmp_path: Path, number: int, code: int) -> None:
    """After SIGTERM and Ctrl-C the spool is one file, without a log beside it, and the exit says what ended it."""
    line = [sys.executable, "-c", SERVE, "--port", "0", "--spool", str(tmp_path), "--as", "planner"]
    environment = {"ILCP_TOKEN": TOKEN}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    with connect(url, settings=Settings(token=TOKEN)) as c:
        c.send(BARE, to="planner", handoff_id="a")
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert (code, [FILE]) == (process.returncode, sorted(p.name for p in tmp_path.iterdir()))
    assert "Traceback" not in said


def test_receive_says_that_there_is_no_room(tmp_path: Path) -> None:
    """Where the file cannot be written it is the disk's fault, and the message is still there for the next."""
    (tmp_path / "in").write_text("no folder")
    with connect(f"spool://{tmp_path}/spool", name="planner") as c:
        c.send(b"a message", to="planner", handoff_id="a")
        with pytest.raises(StorageError, match=r"expected to be able to write .*/in/message\.ilcp"):
            receive(f"spool://{tmp_path}/spool", "planner", to=tmp_path / "in")
        (tmp_path / "in").unlink()
        with (
            patch.object(sys.modules["ilcp.cli.send"], "write_whole", side_effect=StorageError("full")),
            pytest.raises(StorageError, match=r"expected room for a message in .*it is still there"),
        ):
            receive(f"spool://{tmp_path}/spool", "planner", to=tmp_path / "in")
        delivery = c.receive()
        assert delivery is not None
        assert ("a", 1) == (delivery.handoff_id, delivery.attempt)


def test_receives_own_failures_make_no_dead_letters(tmp_path: Path) -> None:
    """However often a conflicting file stops it, as under a supervisor, the message stays, and is the next to come."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.ilcp").write_bytes(b"another recipient's")
    with connect(f"spool://{tmp_path}/spool", name="planner") as c:
        c.send(b"a message", to="planner", handoff_id="a")
        for _ in range(Settings().max_deliveries + 1):
            with pytest.raises(StorageError, match="another message at"):
                receive(f"spool://{tmp_path}/spool", "planner", to=tmp_path / "in", timeout_s=0)
        delivery = c.receive()
        assert delivery is not None
        assert ("a", 1) == (delivery.handoff_id, delivery.attempt)


def test_receive_writes_nothing_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that is a path, whatever transport let it through, names no file."""
    import ilcp.transport

    delivery = SimpleNamespace(handoff_id="../../outside", message=b"x")
    fake = SimpleNamespace(receive=lambda timeout_s: delivery)
    monkeypatch.setattr(ilcp.transport, "connect", lambda *_, **__: contextlib.nullcontext(fake))
    (tmp_path / "a" / "in").mkdir(parents=True)
    with pytest.raises(AddressError, match="expected a hand-off's id as"):
        receive("spool:///x", "planner", to=tmp_path / "a" / "in")
    assert [] == [p for p in tmp_path.rglob("*") if p.is_file()]


def test_serve_says_that_a_port_is_taken(tmp_path: Path) -> None:
    """Two endpoints cannot have one port."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UnreachableError, match="Address already in use; choose another"),
    ):
        begin(tmp_path, "--port", str(taken.getsockname()[1]))


def test_small_answers_do_not_wait_for_each_other() -> None:
    """What `ilcp serve` accepts has TCP_NODELAY: without it a body waits 40 ms for the receipt of its head."""

    async def main() -> int:
        seen = asyncio.get_running_loop().create_future()

        def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listening("127.0.0.1", 0) as door:
            async with await asyncio.start_server(accepted, sock=door):
                _, writer = await asyncio.open_connection(*door.getsockname()[:2])
                writer.close()
                return int(await seen)

    assert asyncio.run(main())


def test_a_socket_accepts_what_the_process_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond, TLS handshakes included, is closed at once; with room it goes on, and no descriptor runs out."""
    monkeypatch.setattr("ilcp.transport.door.MAX_CONNECTIONS", 2)
    monkeypatch.setattr("ilcp.transport.door.BACKLOG", 1)
    with contextlib.ExitStack() as stack, listening("127.0.0.1", 0) as door:

        def arrive() -> socket.socket:
            stack.enter_context(socket.create_connection(door.getsockname()))
            return stack.enter_context(door.accept()[0])

        first, *_ = (arrive() for _ in range(3))
        with pytest.raises(ConnectionAbortedError):
            arrive()
        first.close()
        assert arrive().fileno() >= 0


def test_few_file_descriptors_are_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process may open little, fewer connections are kept, and some descriptors are left for the spool."""
    for files, most in ((1024, 704), (400, 80), (100, 1), (1 << 20, 1000), (resource.RLIM_INFINITY, 1000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert most == most_connections()
