"""NATS JetStream: what is particular to it, and what holds when its server dies. Needs a nats-server."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ilcp.message import MAX_MESSAGE_BYTES
from ilcp.transport import AddressError, FullError, ProtocolError, RefusedError, Settings, UnreachableError, connect
from tests.transport_model import NATS_SERVER, NO_NATS, free_port, nats_server, wait_for_port

pytestmark = pytest.mark.skipif(NATS_SERVER is None, reason=NO_NATS)


class Server:
    """A server that can be killed and started again on its port and folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._words = [str(NATS_SERVER), "-a", "127.0.0.1", "-p", str(self.port), *options]
        self._words += ["-js", "-sd", str(folder)]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own."""
    running = Server(tmp_path)
    yield running
    running.kill()


def test_what_was_acknowledged_stays_so_when_the_server_is_killed(server: Server) -> None:
    """After kill -9 and a new start, a message that is sent again under a settled id is not handed out again."""
    with connect(server.url, name="planner") as c:
        c.send(b"x", to="planner", handoff_id="done")
        c.send(b"y", to="planner", handoff_id="open")
        delivery = c.receive(5)
        assert delivery is not None
        assert "done" == delivery.handoff_id
        delivery.ack()
        server.kill()
        server.start()
        c.send(b"x", to="planner", handoff_id="done")
        c.send(b"y", to="planner", handoff_id="open")
        delivery = c.receive(10)
        assert delivery is not None
        assert ("open", b"y") == (delivery.handoff_id, delivery.message)
        delivery.ack()
        assert c.receive(0.5) is None


def test_a_server_that_is_away_is_said_and_found_again(server: Server) -> None:
    """While the server is down a send fails by name and may be repeated; a waiting receiver goes on by itself."""
    with connect(server.url, name="planner", settings=Settings(timeout_s=2)) as c:
        assert c.receive() is None
        server.kill()
        with pytest.raises(UnreachableError, match="it may have been done: try again"):
            c.send(b"x", to="planner", handoff_id="a")
        assert c.receive(0.5) is None
        server.start()
        with contextlib.suppress(UnreachableError):
            c.send(b"x", to="planner", handoff_id="a")
        c.send(b"x", to="planner", handoff_id="a")
        delivery = c.receive(10)
        assert delivery is not None
        assert "a" == delivery.handoff_id
        delivery.ack()
        assert c.receive(0.5) is None


def test_another_lease_for_the_same_name_is_refused(server: Server) -> None:
    """A name has one lease; a receiver that wants another is told which one holds."""
    with connect(server.url, name="planner", settings=Settings(lease_s=7)) as c:
        assert c.receive() is None
    with (
        connect(server.url, name="planner", settings=Settings(lease_s=8)) as c,
        pytest.raises(AddressError, match=r"expected lease_s 7, .*got 8"),
    ):
        c.receive()


def test_a_full_stream_says_so(server: Server) -> None:
    """What does not fit into the stream is refused by name."""
    with connect(server.url, settings=Settings(max_bytes=MAX_MESSAGE_BYTES)) as c:
        c.send(bytes(40_000), to="planner")
        with pytest.raises(FullError, match="expected room in the stream"):
            c.send(bytes(40_000), to="planner")


def test_another_token_is_refused(tmp_path: Path) -> None:
    """A server with a token lets nobody in without it, and says so at once."""
    server = Server(tmp_path, "--auth", "correct")
    try:
        for token in (None, "wrong"):
            with pytest.raises(RefusedError, match="expected entry to the NATS server"):
                connect(server.url, settings=Settings(token=token)).__enter__()
        with connect(server.url, name="a", settings=Settings(token="correct")) as c:
            assert c.receive() is None
    finally:
        server.kill()


def test_credentials_that_are_not_there(server: Server) -> None:
    """A credentials file that cannot be read is the caller's mistake."""
    with pytest.raises(AddressError, match=r"expected credentials that can be read.*nowhere\.creds"):
        connect(server.url, settings=Settings(credentials=Path("nowhere.creds"), timeout_s=2)).__enter__()


def test_a_server_without_jetstream(tmp_path: Path) -> None:
    """A plain NATS server keeps nothing, so it is refused."""
    config = tmp_path / "plain.conf"
    port = free_port()
    config.write_text(f"listen: 127.0.0.1:{port}\n")
    process = subprocess.Popen([str(NATS_SERVER), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        with pytest.raises(ProtocolError, match="-js"):
            connect(f"nats://127.0.0.1:{port}").__enter__()
    finally:
        process.kill()
        process.wait()


def test_two_receivers_of_one_name_share_its_messages() -> None:
    """Each message goes to one of them."""
    with nats_server() as url, connect(url, name="planner") as one, connect(url, name="planner") as two:
        for number in range(20):
            one.send(b"x", to="planner", handoff_id=str(number))
        got = []
        for number in range(20):
            delivery = (one, two)[number % 2].receive(5)
            assert delivery is not None
            delivery.ack()
            got.append(delivery.handoff_id)
        assert [str(number) for number in range(20)] == got
        assert one.receive() is None
