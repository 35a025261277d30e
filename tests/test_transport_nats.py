"""NATS JetStream: what is particular to it, and what holds when its server dies. Needs a nats-server."""

import asyncio
import base64
import contextlib
import gc
import json
import logging
import ssl
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import pytest
from nats.js import JetStreamContext, api
from nats.js.errors import APIError
from nats.js.kv import KeyValue

from ilcp.errors import MissingExtraError
from ilcp.message import MAX_MESSAGE_BYTES
from ilcp.transport import (
    AddressError,
    ConflictError,
    FullError,
    LeaseLostError,
    ProtocolError,
    RefusedError,
    Settings,
    UnreachableError,
    connect,
    connect_async,
)
from ilcp.transport.backend import LEAST_BYTES
from ilcp.transport.nats import SETTLED, TOLD, NatsBackend, open_nats
from ilcp.transport.nats_client import NO_ROOM, STREAM, SUBJECT, connected
from tests.transport_model import (
    NATS_SERVER,
    NEEDS_NATS,
    NatsServer,
    RealClock,
    certificate,
    free_port,
    nats_server,
    needs_openssl,
    wait_for_port,
)

pytestmark = NEEDS_NATS


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """Runs a server of the test's own."""
    running = NatsServer(tmp_path)
    yield running
    running.kill()


def by_another(url: str, work: Callable[[JetStreamContext], Awaitable[Any]]) -> Any:
    """Returns what ``work`` returns, done by a client that is none of ours."""

    async def run() -> Any:
        client = await nats.connect(url)
        try:
            return await work(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(run())


def waiting(url: str) -> int:
    """Counts the messages in the stream."""
    return int(by_another(url, lambda stream: stream.stream_info(STREAM)).state.messages)


def test_what_was_acknowledged_stays_so_when_the_server_is_killed(server: NatsServer) -> None:
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


def test_a_server_that_is_away_is_said_and_found_again(server: NatsServer) -> None:
    """While the server is down a send fails by name and may be repeated; a waiting receiver goes on by itself."""
    with connect(server.url, name="planner", settings=Settings(timeout_s=1)) as c:
        assert c.receive() is None
        server.kill()
        with pytest.raises(UnreachableError, match="it may have been done: try again"):
            c.send(b"x", to="planner", handoff_id="a")
        server.start()
        with contextlib.suppress(UnreachableError):
            c.send(b"x", to="planner", handoff_id="a")
        c.send(b"x", to="planner", handoff_id="a")
        delivery = c.receive(10)
        assert delivery is not None
        assert "a" == delivery.handoff_id
        delivery.ack()
        assert c.receive(0.5) is None


def test_a_dead_server_is_no_empty_queue(server: NatsServer) -> None:
    """Who does not wait is told within the timeout, who waits when the time is over; only a server says that there is
    nothing. How soon the client hears of the death is the machine's affair."""
    settings = Settings(timeout_s=0.7)
    with connect(server.url, name="planner", settings=settings) as c:
        assert c.receive() is None
        server.kill()
        for wait_s in (0.0, 0.8):
            start = time.monotonic()
            with pytest.raises(UnreachableError):
                c.receive(wait_s)
            assert wait_s <= time.monotonic() - start < wait_s + settings.timeout_s + 2


def test_a_receive_outlasts_a_server_that_comes_back(server: NatsServer) -> None:
    """A server that dies under a waiting receiver, and is started again, hands out to it what comes then."""

    def again() -> None:
        server.kill()
        time.sleep(0.1)
        server.start()
        with connect(server.url) as sender:
            sender.send(b"x", to="planner", handoff_id="a")

    with connect(server.url, name="planner", settings=Settings(lease_s=10)) as c:
        assert c.receive() is None
        thread = threading.Timer(0.1, again)
        thread.start()
        delivery = c.receive(15)
        thread.join()
        assert delivery is not None
        assert "a" == delivery.handoff_id


@pytest.mark.parametrize("wait_first_s", [0.0, 0.1])
def test_a_consumer_that_was_removed_is_made_again(
    server: NatsServer, wait_first_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message comes although somebody removed the consumer, before the receive or while it waits."""

    def remove() -> None:
        by_another(server.url, lambda stream: stream.delete_consumer(STREAM, "planner"))
        with connect(server.url) as sender:
            sender.send(b"x", to="planner", handoff_id="a")

    monkeypatch.setattr("ilcp.transport.nats.GRACE_S", 0.3)
    with connect(server.url, name="planner", settings=Settings(timeout_s=1)) as c:
        assert c.receive() is None
        thread = threading.Timer(wait_first_s, remove)
        thread.start()
        if not wait_first_s:
            thread.join()
        delivery = c.receive(3 if wait_first_s else 0.5)
        thread.join()
        assert delivery is not None
        assert "a" == delivery.handoff_id


NO_HANDOFFS = {
    "no id": ({}, b"rubbish"),
    "as if nobody answered": ({"Status": "503"}, b"rubbish"),
    "as if there were none": ({"Status": "404", "Nats-Msg-Id": "critic.x"}, b"rubbish"),
    "an id of another name": ({"Nats-Msg-Id": "critic.x"}, b"rubbish"),
    "an id of another message": ({"Nats-Msg-Id": "planner.y"}, b"rubbish"),
    "an id that no transport takes": ({"Nats-Msg-Id": "planner.a b"}, b"rubbish"),
    "no byte": ({"Nats-Msg-Id": "planner.x"}, b""),
    "too many bytes": ({"Nats-Msg-Id": "planner.x"}, bytes(MAX_MESSAGE_BYTES + 1)),
}


@pytest.mark.parametrize("what", NO_HANDOFFS)
def test_what_is_no_hand_off_is_removed(server: NatsServer, caplog: pytest.LogCaptureFixture, what: str) -> None:
    """What others put into the stream is removed and logged, and the receiver gets the hand-off behind it."""
    headers, body = NO_HANDOFFS[what]
    with connect(server.url, name="planner") as c, caplog.at_level(logging.INFO, "ilcp.transport"):
        by_another(server.url, lambda stream: stream.publish(f"{SUBJECT}.planner.x", body, headers=headers or None))
        assert 1 == waiting(server.url)
        assert c.receive() is None
        assert 0 == waiting(server.url)
        assert [("dropped: not a hand-off", "planner")] == [(r.getMessage(), vars(r)["queue"]) for r in caplog.records]
        by_another(server.url, lambda stream: stream.publish(f"{SUBJECT}.planner.x", body, headers={"Status": "503"}))
        c.send(b"x", to="planner", handoff_id="a")
        delivery = c.receive()
        assert delivery is not None
        assert ("a", b"x") == (delivery.handoff_id, delivery.message)


def test_a_hand_off_may_have_a_status_of_its_own(server: NatsServer) -> None:
    """A header of its sender's is not taken for the server's word that there is nothing."""
    with connect(server.url, name="planner") as c:
        headers = {"Nats-Msg-Id": "planner.x", "Status": "404"}
        by_another(server.url, lambda stream: stream.publish(f"{SUBJECT}.planner.x", b"x", headers=headers))
        delivery = c.receive()
        assert delivery is not None
        assert ("x", b"x") == (delivery.handoff_id, delivery.message)


def slow_look_up(monkeypatch: pytest.MonkeyPatch, *times_s: float) -> None:
    """Makes the look-ups of what is settled take so long, and then no time."""
    left, look_up = list(times_s), NatsBackend._settled_as

    async def slow(self: NatsBackend, key: str) -> bytes | None:
        await asyncio.sleep(left.pop(0) if left else 0)
        return await look_up(self, key)

    monkeypatch.setattr(NatsBackend, "_settled_as", slow)


def test_a_lease_is_never_longer_than_the_servers(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that passes between the server's hand-out and ours is the lease's, also for who had waited for long."""
    with connect(server.url, name="planner", settings=Settings(lease_s=1)) as c:
        thread = threading.Timer(0.6, c.send, (b"x",), {"to": "planner", "handoff_id": "a"})
        thread.start()
        slow_look_up(monkeypatch, 0, 0.25)  # the send's, and the receive's
        delivery = c.receive(5)
        assert delivery is not None
        assert 0.3 < delivery.until_s - time.time() < 0.75
        while (again := c.receive(1)) is None:
            pass
        assert again.attempt > 1  # on a slow machine a hand-out may end on the way
        assert delivery.until_s <= time.time()


def test_a_lease_that_ended_on_the_way_is_not_given(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that came too late is somebody else's: who waits gets it anew, who does not is told."""
    with connect(server.url, name="planner", settings=Settings(lease_s=0.5)) as c:
        c.send(b"x", to="planner", handoff_id="a")
        slow_look_up(monkeypatch, 0.6, 0.6)
        with pytest.raises(UnreachableError, match="try again"):
            c.receive()
        delivery = c.receive(5)
        assert delivery is not None
        assert 3 == delivery.attempt
        assert 0.2 < delivery.until_s - time.time() <= 0.5
        delivery.ack()
        assert 0 == waiting(server.url)


def test_an_acknowledgement_outlives_its_lease(server: NatsServer) -> None:
    """What would forget an acknowledgement too early is refused, in our settings and in the bucket that is there."""
    with pytest.raises(AddressError, match=r"2 times lease_s 60 or longer, got dedup_s 119"):
        connect(server.url, settings=Settings(dedup_s=119)).__enter__()
    with connect(server.url, name="planner", settings=Settings(dedup_s=10, lease_s=5)) as c:
        assert c.receive() is None
    with connect(server.url, name="planner", settings=Settings(lease_s=5)) as c:
        assert c.receive() is None
    with (
        connect(server.url, name="critic") as c,
        pytest.raises(AddressError, match=r"2 times lease_s 60 or longer, got dedup_s 10 "),
    ):
        c.receive()
    assert 10 == by_another(server.url, lambda stream: stream.stream_info(f"KV_{SETTLED}")).config.max_age


def test_an_id_that_waits_is_kept_once_however_long(server: NatsServer) -> None:
    """After ``dedup_s`` a message that nobody has received is still known, and so is one that is held."""
    with connect(server.url, name="planner", settings=Settings(lease_s=0.3, dedup_s=0.6)) as c:
        assert not c.send(b"x", to="planner", handoff_id="a").duplicate
        RealClock().advance(0.8)
        assert c.send(b"x", to="planner", handoff_id="a").duplicate
        delivery = c.receive(1)
        assert delivery is not None
        assert c.send(b"x", to="planner", handoff_id="a").duplicate
        assert b"x" == delivery.message
        delivery.ack()
        assert c.receive(0.5) is None
        assert not c.send(b"x", to="critic", handoff_id="a").duplicate


def make_stream(server: NatsServer, **options: Any) -> None:
    """Makes the stream as somebody else would."""
    config = api.StreamConfig(name=STREAM, **options)
    by_another(server.url, lambda stream: stream.add_stream(config))


def test_a_stream_of_that_name_that_is_not_ours(server: NatsServer) -> None:
    """A stream with other subjects, or that keeps more than one message per id, or grows for ever, is refused."""
    once: dict[str, Any] = dict(max_msgs_per_subject=1, discard=api.DiscardPolicy.NEW, discard_new_per_subject=True)
    ours: dict[str, Any] = dict(subjects=[f"{SUBJECT}.*.*"], retention=api.RetentionPolicy.WORK_QUEUE)
    limits: dict[str, Any] = dict(max_bytes=1 << 20, max_age=60.0, duplicate_window=60.0)
    for options, said in (
        ({"subjects": [f"{SUBJECT}.*"]}, r"with subjects \['ilcp\.handoffs\.\*\.\*'\], got \['ilcp\.handoffs\.\*'\]"),
        (limits | ours | {"retention": api.RetentionPolicy.LIMITS}, "with retention workqueue, got limits: empty it"),
        (limits | ours, "with discard new, got old"),
        (limits | ours | once | {"max_bytes": -1}, "with a max_bytes, got none: give it one"),
        (limits | ours | once | {"max_age": None}, "with a max_age, got none: give it one"),
    ):
        make_stream(server, **options)
        with pytest.raises(ProtocolError, match=f"expected ilcp-handoffs {said}"):
            connect(server.url).__enter__()
        by_another(server.url, lambda stream: stream.delete_stream(STREAM))
    make_stream(server, **limits, **ours, **once)
    with connect(server.url) as c:
        assert not c.send(b"x", to="planner").duplicate


@pytest.mark.parametrize("lease_s", [4.1, 0.3, 1 / 3])
def test_a_lease_is_itself(server: NatsServer, lease_s: float) -> None:
    """A second receiver with the same lease is no other one, whatever becomes of it in nanoseconds."""
    for _ in range(2):
        with connect(server.url, name="planner", settings=Settings(lease_s=lease_s)) as c:
            assert c.receive() is None


@pytest.mark.parametrize("more", ["/a", "?a", "#a"])
def test_an_address_is_a_host_and_a_port(server: NatsServer, more: str) -> None:
    """What else stands in an address would have no effect, so it is refused."""
    with pytest.raises(AddressError, match="expected nats://host:port, got"):
        asyncio.run(open_nats(urlsplit(server.url + more), Settings()))


class ToldError(Exception):
    """An error that can be looked for."""


def test_a_connection_keeps_one_error(server: NatsServer) -> None:
    """What nats-py tells of a connection is kept for a message only, and not for as long as it lives."""

    async def alive() -> list[bool]:
        client = await connected(server.url, Settings())
        told = [ToldError() for _ in range(3)]
        kept = [weakref.ref(error) for error in told]
        while told:
            await client._error_cb(told.pop())
        gc.collect()
        found = [ref() is not None for ref in kept]
        await client.close()
        return found

    assert [True, False, False] == asyncio.run(alive())


def test_another_lease_for_the_same_name_is_refused(server: NatsServer) -> None:
    """A name has one lease; a receiver that wants another is told which one holds."""
    with connect(server.url, name="planner", settings=Settings(lease_s=7)) as c:
        assert c.receive() is None
    with (
        connect(server.url, name="planner", settings=Settings(lease_s=8)) as c,
        pytest.raises(AddressError, match=r"expected lease_s 7, .*got 8"),
    ):
        c.receive()


def test_a_full_stream_says_so(server: NatsServer) -> None:
    """What does not fit into the stream is refused by name."""
    with connect(server.url, settings=Settings(max_bytes=LEAST_BYTES)) as c:
        c.send(bytes(40_000), to="planner")
        with pytest.raises(FullError, match="expected room in the stream"):
            c.send(bytes(40_000), to="planner")


def test_another_token_is_refused(tmp_path: Path) -> None:
    """A server with a token lets nobody in without it, and says so at once."""
    server = NatsServer(tmp_path, "--auth", "correct")
    try:
        for token in (None, "wrong"):
            with pytest.raises(RefusedError, match="expected entry to the NATS server"):
                connect(server.url, settings=Settings(token=token)).__enter__()
        with connect(server.url, name="a", settings=Settings(token="correct")) as c:
            assert c.receive() is None
    finally:
        server.kill()


def crosses(url: str, **more: Any) -> None:
    """Sends, receives and acknowledges a message, with these settings."""
    with connect(url, name="planner", settings=Settings(**more)) as c:
        c.send(b"x", to="planner")
        delivery = c.receive(5)
        assert delivery is not None
        delivery.ack()


@contextlib.contextmanager
def secure_server(folder: Path, end: str = "491231000000Z") -> Iterator[tuple[str, ssl.SSLContext]]:
    """Gives the host and port of a server that requires TLS, and a context that trusts its certificate."""
    folder.mkdir()
    cert, key = certificate(folder, "200101000000Z", end)
    with nats_server("--tls", "--tlscert", str(cert), "--tlskey", str(key)) as url:
        yield url.replace("nats://127.0.0.1", "localhost"), ssl.create_default_context(cafile=cert)


@needs_openssl
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


@needs_openssl
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
    """Writes what ``nsc`` would: a JWT in which one key says something of another (or of itself)."""

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


def test_credentials_that_are_none(server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_lease_that_ended_is_not_extended(server: NatsServer) -> None:
    """What arrives at the server too late is answered by it, and holds nothing: somebody else has the message."""

    async def main() -> None:
        async with connect_async(server.url, name="planner", settings=Settings(lease_s=1.0)) as c:
            await c.send(b"x", to="planner", handoff_id="a")
            first = await c.receive(5)
            assert first is not None
            await asyncio.sleep(1.2)
            second = await c.receive(5)
            assert second is not None
            with pytest.raises(LeaseLostError, match="got one that ended"):
                await c._backend.extend("planner", first._lease, 1.0)

    asyncio.run(main())


def test_other_content_under_a_known_id_is_refused(server: NatsServer) -> None:
    """Another message is no duplicate while the first waits, is held, was settled, or was no hand-off at all."""

    def refused() -> None:
        with pytest.raises(ConflictError, match="expected the message that is known under a, got another"):
            c.send(b"genuine", to="planner", handoff_id="a")

    with connect(server.url, name="planner") as c:
        c.send(b"forged", to="planner", handoff_id="a")
        refused()
        delivery = c.receive(5)
        assert delivery is not None
        refused()
        delivery.ack()
        refused()
        assert c.send(b"forged", to="planner", handoff_id="a").duplicate
        headers = {"Nats-Msg-Id": "critic.b"}
        by_another(server.url, lambda stream: stream.publish(f"{SUBJECT}.planner.b", b"rubbish", headers=headers))
        assert c.receive() is None
        with pytest.raises(ConflictError):
            c.send(b"genuine", to="critic", handoff_id="b")
        server.kill()  # it forgets the ids; what was settled is written down
        server.start()
        wait_for_port(server.port)
        refused()
        assert c.send(b"forged", to="planner", handoff_id="a").duplicate
        assert c.receive(0.5) is None


def test_a_poisoned_message_blocks_nothing(server: NatsServer) -> None:
    """What was handed out so often and never acknowledged goes to the dead letters, under its id, which stays known."""
    settings = Settings(max_deliveries=2)
    with (
        connect(server.url, name="planner", settings=settings) as c,
        connect(server.url, name="planner-dead", settings=settings) as dead,
    ):
        for handoff_id in ("poison", "good"):
            c.send(handoff_id.encode(), to="planner", handoff_id=handoff_id)
        seen: list[str] = []
        while (delivery := c.receive()) is not None and len(seen) < 9:
            seen.append(delivery.handoff_id)
            delivery.ack() if delivery.handoff_id == "good" else delivery.nack()
        assert ["good", "poison", "poison"] == sorted(seen)
        assert c.send(b"poison", to="planner", handoff_id="poison").duplicate
        for _ in range(4):
            delivery = dead.receive(5)
            assert delivery is not None
            assert ("poison", b"poison") == (delivery.handoff_id, delivery.message)
            delivery.nack()
        delivery = dead.receive(5)
        assert delivery is not None
        delivery.ack()
        assert 0 == waiting(server.url)


def test_what_cannot_become_a_dead_letter_comes_again(server: NatsServer) -> None:
    """Where another message lies under its id among the dead letters, it is handed out later, and blocks nothing."""
    with connect(server.url, name="planner", settings=Settings(max_deliveries=1, lease_s=1)) as c:
        headers = {"Nats-Msg-Id": "planner-dead.a"}
        by_another(server.url, lambda stream: stream.publish(f"{SUBJECT}.planner-dead.a", b"x", headers=headers))
        c.send(b"poison", to="planner", handoff_id="a")
        delivery = c.receive(5)
        assert delivery is not None
        delivery.nack()
        assert c.receive() is None
        c.send(b"good", to="planner", handoff_id="b")
        delivery = c.receive(5)
        assert delivery is not None
        assert "b" == delivery.handoff_id
        delivery.ack()
        assert 2 == waiting(server.url)


def test_nothing_grows_for_ever(server: NatsServer) -> None:
    """The stream and the buckets have their limits at the server, and unread mail goes when it is too old."""
    with connect(server.url, name="planner", settings=Settings(max_age_s=2, dedup_s=2, lease_s=1)) as c:
        c.send(b"x", to="planner", handoff_id="a")
        kept = by_another(server.url, lambda stream: stream.stream_info(STREAM)).config
        assert (64 << 20, 2) == (kept.max_bytes, kept.max_age)
        assert MAX_MESSAGE_BYTES < kept.max_msg_size < 2 * MAX_MESSAGE_BYTES
        for info in (lambda s: s.stream_info(f"KV_{SETTLED}"), lambda s: s.stream_info(f"KV_{TOLD}")):
            assert 0 < by_another(server.url, info).config.max_bytes <= 256 << 20
        RealClock().advance(2.5)
        assert c.receive() is None
        assert not c.send(b"y", to="planner", handoff_id="a").duplicate
    with pytest.raises(AddressError, match="expected dedup_s of at most max_age_s 300, got 600"):
        connect(server.url, settings=Settings(max_age_s=300)).__enter__()
    with pytest.raises(AddressError, match="expected no max_name_bytes with nats://"):
        connect(server.url, settings=Settings(max_name_bytes=1 << 20)).__enter__()


def test_an_acknowledgement_needs_no_room(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the bucket of acknowledgements is full, they still end what they are for, and it is logged."""

    async def full(*_: object) -> None:
        raise APIError(err_code=NO_ROOM[0], description="maximum bytes exceeded")

    with connect(server.url, name="planner") as c, caplog.at_level(logging.INFO, "ilcp.transport"):
        c.send(b"x", to="planner", handoff_id="a")
        delivery = c.receive(5)
        assert delivery is not None
        monkeypatch.setattr(KeyValue, "put", full)
        delivery.ack()
        assert 0 == waiting(server.url)
    assert f"no room in {SETTLED}" in [record.getMessage() for record in caplog.records]
