"""NATS JetStream: what is particular to it, and what holds when its server dies. Needs a nats-server."""

import base64
import contextlib
import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ilcp.message import MAX_MESSAGE_BYTES
from ilcp.transport import (
    AddressError,
    FullError,
    MissingExtraError,
    ProtocolError,
    RefusedError,
    Settings,
    UnreachableError,
    connect,
)
from tests.transport_model import NATS_SERVER, NO_NATS, certificate, free_port, nats_server, wait_for_port

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


def crosses(url: str, **more: Any) -> None:
    """A message is sent, received and acknowledged, with these settings."""
    with connect(url, name="planner", settings=Settings(**more)) as c:
        c.send(b"x", to="planner")
        delivery = c.receive(5)
        assert delivery is not None
        delivery.ack()


@contextlib.contextmanager
def secure_server(folder: Path, end: str = "491231000000Z") -> Iterator[tuple[str, ssl.SSLContext]]:
    """The host and port of a server that requires TLS, and a context that trusts its certificate."""
    folder.mkdir()
    cert, key = certificate(folder, "200101000000Z", end)
    with nats_server("--tls", "--tlscert", str(cert), "--tlskey", str(key)) as url:
        yield url.replace("nats://127.0.0.1", "localhost"), ssl.create_default_context(cafile=cert)


@pytest.mark.parametrize("scheme", ["tls", "nats"])
def test_tls_takes_the_certificate_that_it_was_told_to_trust(tmp_path: Path, scheme: str) -> None:
    """With the server's certificate trusted a message crosses; by the system's or another's trust it is refused."""
    with secure_server(tmp_path / "one") as (where, trust), secure_server(tmp_path / "two") as (_, other):
        crosses(f"{scheme}://{where}", tls=trust)
        for settings in (Settings(), Settings(tls=other)):
            with pytest.raises(RefusedError, match=r"expected trust .*self-signed certificate"):
                connect(f"{scheme}://{where}", settings=settings).__enter__()
        with pytest.raises(RefusedError, match="IP address mismatch"):
            connect(f"{scheme}://{where.replace('localhost', '127.0.0.1')}", settings=Settings(tls=trust)).__enter__()


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    """A certificate whose time is over is refused although it is trusted, and the text says why."""
    with (
        secure_server(tmp_path / "old", "200102000000Z") as (where, trust),
        pytest.raises(RefusedError, match="certificate has expired"),
    ):
        connect(f"tls://{where}", settings=Settings(tls=trust)).__enter__()


@pytest.mark.parametrize(("scheme", "tls"), [("tls", False), ("nats", True)])
def test_what_asks_for_tls_never_goes_without(tmp_path: Path, scheme: str, tls: bool) -> None:
    """A server without TLS is refused before it has read the token, whether the scheme or the settings ask for it."""
    log = tmp_path / "log"
    settings = Settings(token="correct", tls=ssl.create_default_context() if tls else None)
    with nats_server("--auth", "correct", "-DV", "-l", str(log), folder=tmp_path / "js") as url:
        with pytest.raises(RefusedError, match="expected a NATS server that requires TLS"):
            connect(url.replace("nats", scheme), settings=settings).__enter__()
        assert "[CONNECT" not in log.read_text()
        crosses(url, token="correct")
        assert "[CONNECT" in log.read_text()


def signed(nkeys: Any, signer: Any, subject: Any, kind: str, **claims: object) -> str:
    """What ``nsc`` would write: a JWT in which one key says something of another (or of itself)."""

    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    said = {"type": kind, "version": 2, **claims}
    who = {"iss": signer.public_key.decode(), "sub": subject.public_key.decode(), "name": kind, "jti": kind, "iat": 1}
    text = part({"typ": "JWT", "alg": "ed25519-nkey"}) + b"." + part({**who, "nats": said})
    return (text + b"." + base64.urlsafe_b64encode(signer.sign(text)).rstrip(b"=")).decode()


def test_credentials_let_in_whom_the_account_signed(tmp_path: Path) -> None:
    """A .creds file whose user an account of the server's operator signed is let in; none, or another's key, is not."""
    nkeys = pytest.importorskip("nkeys", reason="credentials need nkeys")

    def pair(number: int, prefix: int) -> Any:
        return nkeys.from_seed(bytearray(nkeys.encode_seed(bytes([number]) * 32, prefix)))

    operator = pair(1, nkeys.PREFIX_BYTE_OPERATOR)
    system, account = pair(2, nkeys.PREFIX_BYTE_ACCOUNT), pair(3, nkeys.PREFIX_BYTE_ACCOUNT)
    user, other = pair(4, nkeys.PREFIX_BYTE_USER), pair(5, nkeys.PREFIX_BYTE_USER)
    any_number = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
    limits = {**dict.fromkeys(any_number, -1), "wildcards": True}
    store = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    accounts = {
        system.public_key.decode(): signed(nkeys, operator, system, "account", limits=limits),
        account.public_key.decode(): signed(nkeys, operator, account, "account", limits=limits | store),
    }
    config = tmp_path / "server.conf"
    config.write_text(
        f"operator: {signed(nkeys, operator, operator, 'operator')}\n"
        f"system_account: {system.public_key.decode()}\n"
        f"resolver: MEMORY\nresolver_preload: {json.dumps(accounts)}\n"
    )
    jwt = signed(nkeys, account, user, "user", subs=-1, data=-1, payload=-1)

    def creds(name: str, key: Any) -> Path:
        jwt_part = f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n"
        seed_part = f"-----BEGIN USER NKEY SEED-----\n{key.seed.decode()}\n------END USER NKEY SEED------\n"
        (tmp_path / name).write_text(jwt_part + "\n" + seed_part)
        return tmp_path / name

    with nats_server("-c", str(config), folder=tmp_path / "js") as url:
        crosses(url, credentials=creds("user.creds", user))
        for credentials in (None, creds("other.creds", other)):
            with pytest.raises(RefusedError, match="expected entry to the NATS server"):
                connect(url, settings=Settings(credentials=credentials)).__enter__()


def test_credentials_that_are_none(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not there, one that holds something else, and nothing to read them with, are each told."""

    def refused(error: type[Exception], said: str, file: Path) -> None:
        with pytest.raises(error, match=said):
            connect(server.url, settings=Settings(credentials=file, timeout_s=2)).__enter__()

    refused(AddressError, r"expected credentials that can be read.*nowhere\.creds", Path("nowhere.creds"))
    file = tmp_path / "file.creds"
    file.write_text("nothing of the kind")
    refused(AddressError, r"expected a user's JWT and seed in .*file\.creds", file)
    file.write_text("-----BEGIN NATS USER JWT-----\n-----BEGIN USER NKEY SEED-----\n")
    monkeypatch.setitem(sys.modules, "nkeys", None)
    refused(MissingExtraError, r"pip install 'ilcp\[nats\]'", file)


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
