"""The HTTP ingress, as a well-behaved client, a hostile one and an operator meet it."""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ilcp.errors import EncodeError
from ilcp.message import MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, Message
from ilcp.transport import (
    MEDIA_TYPE,
    AddressError,
    Capabilities,
    ConflictError,
    Connection,
    FullError,
    RefusedError,
    Settings,
    UnreachableError,
    connect,
    connect_async,
)
from ilcp.transport.app import MIN_TOKEN, ingress
from ilcp.transport.door import Door, listening
from ilcp.transport.serve import configured
from ilcp.transport.telemetry import LOGGER, Sparing
from tests.transport_model import BARE, SEALED, certificate, needs_openssl

TOKEN = "correct-horse-battery"
GOOD = {"authorization": f"Bearer {TOKEN}"}
MEDIA = {"content-type": MEDIA_TYPE}
SEND = MEDIA | {"ilcp-handoff-id": "a"}
PATH = "/v1/planner"


@dataclass
class Served:
    """A running ingress, and the spool behind it."""

    url: str
    spool: str

    @contextlib.contextmanager
    def behind(self) -> Iterator[Connection]:
        """Gives what the receiver has: a connection to the spool."""
        with connect(self.spool, name="planner", settings=Settings(power_safe=False)) as c:
            yield c

    def taken(self) -> list[tuple[str, bytes]]:
        """Takes what is in the spool."""
        found = []
        with self.behind() as c:
            while (delivery := c.receive()) is not None:
                found.append((delivery.handoff_id, delivery.message))
                delivery.ack()
        return found


@contextlib.contextmanager
def served(spool: Path, *tls: Path, max_bytes: int = 64 << 20) -> Iterator[Served]:
    """What ``ilcp serve`` runs, in a thread, on a free port, in front of a spool in this folder."""
    url, started = f"spool://{spool}", threading.Event()

    async def work() -> None:
        async with connect_async(url, settings=Settings(max_bytes=max_bytes, power_safe=False)) as c:
            app = ingress(c, "planner", token=TOKEN, hosts=["planner.example"])
            running.append(uvicorn.Server(configured(app, *tls)))
            started.set()
            await running[0].serve(sockets=[door])

    running: list[uvicorn.Server] = []
    thread = threading.Thread(target=lambda: asyncio.run(work()))
    door = listening("127.0.0.1", 0)
    thread.start()
    try:
        assert started.wait(20)
        while not running[0].started:
            assert thread.is_alive(), "uvicorn did not start"
            time.sleep(0.01)
        yield Served(f"http{'s' if tls else ''}://localhost:{door.getsockname()[1]}", url)
    finally:
        running[0].should_exit = True
        thread.join()
        door.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Runs one ingress for the tests that leave nothing in it."""
    with served(tmp_path_factory.mktemp("spool")) as running:
        yield running


@pytest.fixture(autouse=True)
def _quick_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong tokens are answered late, which most tests need not wait for."""
    monkeypatch.setattr("ilcp.transport.app.WRONG_S", 0.0)


def ask(server: Served, method: str, path: str, **more: Any) -> httpx.Response:
    """Makes one request, with the right token unless other headers are given."""
    headers = {**GOOD, **more.pop("headers", {})}
    return httpx.request(method, server.url + path, headers=headers, **more)


def once(asked: Callable[[], httpx.Response], status: int) -> httpx.Response:
    """Asks again and again, and returns the first answer with this status."""
    end = time.monotonic() + 10
    while (answer := asked()).status_code != status:
        assert time.monotonic() < end, f"status {answer.status_code}"
        time.sleep(0.02)
    return answer


def test_a_message_goes_in_over_http_and_comes_out_of_the_spool(server: Served) -> None:
    """What is sent is kept once per id, and is the receiver's to take; other content under the id is refused."""
    with connect(server.url, settings=Settings(token=TOKEN)) as c:
        assert ("a", False) == c.send(BARE, to="planner", handoff_id="a")
        assert ("a", True) == c.send(BARE, to="planner", handoff_id="a")
        assert ("01" * 8, False) == c.send(SEALED, to="planner")
        with pytest.raises(ConflictError, match="known under a, got another"):
            c.send(Message(bytes(8), b"another").to_bytes(), to="planner", handoff_id="a")
        largest = Message(bytes(8), bytes(MAX_PAYLOAD_BYTES)).to_bytes()
        c.send(largest, to="planner", handoff_id="largest")
    assert [("a", BARE), ("01" * 8, SEALED), ("largest", largest)] == server.taken()


def test_nothing_is_received_over_http(server: Served) -> None:
    """A name, which receiving needs, is refused with the way out, and no path hands anything out."""
    with pytest.raises(AddressError, match="take from the spool behind it, or use NATS"):
        connect(server.url, name="planner", settings=Settings(token=TOKEN)).__enter__()
    with pytest.raises(AddressError, match="take from the spool behind it"), connect("https://localhost", name="a"):
        pass
    for how in ("receive?lease_s=1", "ack", "nack", "extend"):
        assert 404 == ask(server, "POST", f"{PATH}/{how}").status_code
    assert 405 == ask(server, "PUT", f"{PATH}/capabilities", content=b"{}").status_code


def test_one_address_is_one_receivers(server: Served) -> None:
    """Another name, dead letters included, is no path of this ingress, for messages and for capabilities."""
    with connect(server.url, settings=Settings(token=TOKEN)) as c:
        for call in (lambda: c.send(BARE, to="critic"), lambda: c.capabilities("critic")):
            with pytest.raises(AddressError, match="expected a receiver of that name"):
                call()
    assert 404 == ask(server, "POST", "/v1/planner-dead", headers=SEND, content=BARE).status_code


def test_a_sender_reads_what_the_receiver_told_its_spool(server: Served) -> None:
    """Capabilities are told to the spool, and read over HTTP."""
    told = Capabilities(("00" * 8,), sealed=True)
    with server.behind() as mine, connect(server.url, settings=Settings(token=TOKEN)) as c:
        mine.publish(told)
        assert told == c.capabilities("planner")


def test_an_app_of_the_receivers_own_may_hold_the_ingress(tmp_path: Path) -> None:
    """Mounted below a path, in front of an open connection, it takes messages as ``ilcp serve`` does."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    async def main() -> None:
        async with connect_async(f"spool://{tmp_path}", name="planner") as mine:
            app = Starlette(routes=[Mount("/agents", ingress(mine, "planner", token=TOKEN))])
            url = "http://localhost/agents"
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url, headers=GOOD) as client:
                assert 202 == (await client.post(PATH, headers=SEND, content=BARE)).status_code
            delivery = await mine.receive()
            assert delivery is not None
            assert BARE == delivery.message

    asyncio.run(main())
    with pytest.raises(AddressError, match="connection to a spool"):
        ingress(SimpleConnection(), "planner", token=TOKEN)  # type: ignore[arg-type]


class SimpleConnection:
    """A connection to something else than a store."""

    _backend = object()


@pytest.mark.parametrize(
    "token", ["", "x", "x" * (MIN_TOKEN - 1), "two words are long enough", "schlüssel" * 3, "x" * 1025]
)
def test_a_token_that_can_be_guessed_or_not_be_shown_is_refused(tmp_path: Path, token: str) -> None:
    """A short token, an empty one, and one that no header carries serve nobody, wherever the ingress listens."""

    async def main() -> None:
        async with connect_async(f"spool://{tmp_path}") as c:
            ingress(c, "planner", token=token)

    with pytest.raises(AddressError, match="expected a token"):
        asyncio.run(main())


@pytest.mark.parametrize("token", [None, "wrong", TOKEN + "x", TOKEN[:-1]])
def test_without_the_token_nothing_is_let_in(server: Served, token: str | None) -> None:
    """No token, another, a longer and a shorter one are refused by name."""
    with pytest.raises(RefusedError, match="expected entry from"):
        connect(server.url, settings=Settings(token=token)).__enter__()


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1"), ("GET", "/metrics"), ("POST", PATH), ("POST", "/v1/a"), ("GET", f"{PATH}/capabilities")],
)
@pytest.mark.parametrize("given_", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer \xff"])
def test_every_door_but_health_has_the_lock(server: Served, method: str, path: str, given_: str | None) -> None:
    """Each path answers 401 to each wrong authorization, whatever the name, and keeps nothing."""
    raw = [(k.encode(), v.encode("latin-1")) for k, v in SEND.items()]
    raw += [] if given_ is None else [(b"authorization", given_.encode("latin-1"))]
    answer = httpx.request(method, server.url + path, headers=raw, content=BARE if method != "GET" else None)
    assert (401, "Bearer") == (answer.status_code, answer.headers["www-authenticate"])
    assert [] == server.taken()
    assert 200 == httpx.get(server.url + "/health").status_code


def test_a_wrong_token_is_answered_late_and_keeps_nobody_waiting(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each guess takes its time; meanwhile the right token is answered at once."""
    monkeypatch.setattr("ilcp.transport.app.WRONG_S", 1.5)
    answers: list[int] = []
    guess = threading.Thread(target=lambda: answers.append(httpx.get(server.url + "/v1").status_code))
    began = time.monotonic()
    guess.start()
    assert 200 == ask(server, "GET", "/v1").status_code
    assert [] == answers
    guess.join()
    assert [401] == answers
    assert time.monotonic() - began >= 1.5


def test_guesses_take_no_place_of_those_with_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all places of guesses are taken, another guess is told so, and the right token is answered."""
    monkeypatch.setattr("ilcp.transport.app.WRONG_S", 1.5)
    monkeypatch.setattr("ilcp.transport.app.MAX_AT_ONCE", 1)

    async def main() -> list[int]:
        async with connect_async(f"spool://{tmp_path}") as c:
            app = httpx.ASGITransport(ingress(c, "planner", token=TOKEN))
            async with httpx.AsyncClient(transport=app, base_url="http://localhost") as client:
                guesses = [asyncio.create_task(client.get("/v1")) for _ in range(2)]
                await asyncio.sleep(0.5)
                right = await client.get("/v1", headers=GOOD)
                return [right.status_code, *sorted([(await guess).status_code for guess in guesses])]

    assert [200, 401, 429] == asyncio.run(main())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:1"}, 202),
        ({"host": "planner.example"}, 202),
        ({"host": "PLANNER.example.:443"}, 202),
        ({"host": "10.0.0.1"}, 202),
        ({"host": "[::1]:80"}, 202),
        ({"host": "evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": "[::1].evil.example"}, 403),
        ({"host": "127.0.0.1:80.evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "1.2.3.4.evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
    ],
)
def test_no_web_page_gets_in(server: Served, headers: dict[str, str], status: int) -> None:
    """A name that was pointed here, any origin, and what a form can send are refused, even with the token."""
    fresh = token_hex(8)
    answer = ask(server, "POST", PATH, headers=SEND | {"ilcp-handoff-id": fresh} | headers, content=BARE)
    assert status == answer.status_code, answer.text
    assert [(fresh, BARE)][: status == 202] == server.taken()


@pytest.mark.parametrize("wrong", ["a b:c", "http://planner.example", "[::1", ""])
def test_a_host_that_is_none_lets_nobody_in(wrong: str) -> None:
    """What is no name of a host is refused, and an address that the ingress listens on allows nothing by accident."""

    async def main(*hosts: str) -> int:
        async with connect_async("memory://hosts") as c:
            app = ingress(c, "planner", token=TOKEN, hosts=hosts)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                return (await client.get("/health", headers={"host": "::1"})).status_code

    with pytest.raises(AddressError, match="expected hosts as names"):
        asyncio.run(main(wrong))
    assert 403 == asyncio.run(main("::1"))


def test_a_large_body_is_refused_before_it_is_read(server: Served) -> None:
    """A declared length over the limit is answered with 413 although not one byte of the body was sent."""
    with contextlib.closing(half_sent(server, MAX_MESSAGE_BYTES + 1)) as s:
        assert s.recv(100).startswith(b"HTTP/1.1 413")
    assert [] == server.taken()


def half_sent(server: Served, length: int = len(BARE)) -> socket.socket:
    """Opens a connection that sends a head, and not its body."""
    port = urlsplit(server.url).port
    assert port is not None
    s = socket.create_connection(("localhost", port), 10)
    lines = [f"POST {PATH} HTTP/1.1", "host: localhost", *(f"{k}: {v}" for k, v in (GOOD | SEND).items())]
    s.sendall("\r\n".join([*lines, f"content-length: {length}", "", ""]).encode())
    return s


def test_a_body_that_does_not_come_keeps_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not send the body is answered with 408 after a time, and its place is free for others."""
    monkeypatch.setattr("ilcp.transport.app.BODY_S", 0.2)
    monkeypatch.setattr("ilcp.transport.app.MAX_AT_ONCE", 2)
    with served(tmp_path) as small:
        with contextlib.ExitStack() as stack:
            half = [stack.enter_context(half_sent(small)) for _ in range(2)]
            assert [b"HTTP/1.1 408"] * 2 == [s.recv(100)[:12] for s in half]
            assert 200 == ask(small, "GET", "/v1").status_code
        assert [] == small.taken()


def test_too_many_at_once_is_429(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a send is turned away at the door; health still answers, and what was let in goes on."""
    monkeypatch.setattr("ilcp.transport.app.MAX_AT_ONCE", 2)
    with served(tmp_path) as small, contextlib.ExitStack() as stack:
        held = [stack.enter_context(half_sent(small)) for _ in range(2)]
        answer = once(lambda: ask(small, "GET", "/v1"), 429)
        assert "1" == answer.headers["retry-after"]
        assert 200 == httpx.get(small.url + "/health").status_code
        for s in held:
            s.sendall(BARE)
        assert {b"HTTP/1.1 202", b"HTTP/1.1 200"} == {s.recv(100)[:12] for s in held}
        assert 200 == ask(small, "GET", "/v1").status_code


def idle(server: Served, n: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Opens connections that say nothing."""
    port = urlsplit(server.url).port
    return [stack.enter_context(socket.create_connection(("localhost", port), 10)) for _ in range(n)]


def test_connections_that_say_nothing_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the one that was idle for longest is closed, so a request is answered beside any number."""
    monkeypatch.setattr("ilcp.transport.door.MAX_CONNECTIONS", 20)
    with served(tmp_path) as small, contextlib.ExitStack() as stack:
        silent = idle(small, 60, stack)
        began = time.monotonic()
        assert 202 == ask(small, "POST", PATH, headers=SEND, content=BARE).status_code
        assert time.monotonic() - began < 5
        for s in silent[:40]:
            s.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert b"" == s.recv(1)


def test_connections_that_are_busy_without_the_token_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody else is idle, what is at a request without the token for longest makes room, and the token stays."""
    monkeypatch.setattr("ilcp.transport.door.MAX_CONNECTIONS", 4)
    monkeypatch.setattr("ilcp.transport.app.WRONG_S", 3.0)
    with served(tmp_path) as small, contextlib.ExitStack() as stack:
        half = stack.enter_context(half_sent(small))
        half.sendall(BARE[:1])
        for s in idle(small, 3, stack):
            s.sendall(b"GET /v1 HTTP/1.1\r\nhost: localhost\r\n\r\n")
            time.sleep(0.1)
        assert 200 == ask(small, "GET", "/v1").status_code
        half.sendall(BARE[1:])
        assert b"HTTP/1.1 202" == half.recv(12)


def test_who_does_not_read_its_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that only sends, until nothing more goes in either direction, is closed after the time of a head."""
    monkeypatch.setattr("ilcp.transport.door.HEAD_S", 0.3)
    made = Door.connection_made

    def narrow(self: Door, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        made(self, transport)

    monkeypatch.setattr(Door, "connection_made", narrow)
    with served(tmp_path) as small, contextlib.ExitStack() as stack:
        (s,) = idle(small, 1, stack)
        s.settimeout(5)
        with pytest.raises(ConnectionError):
            s.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 1_000_000)


@pytest.mark.parametrize("said", [b"", b"POST /v1/planner HT", b"GET /health HTTP/1.1\r\nhost: x\r\nx: "])
def test_a_head_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """A connection is closed when no request has begun in time, also behind an answered one."""
    monkeypatch.setattr("ilcp.transport.door.HEAD_S", 0.3)
    with served(tmp_path) as small, contextlib.ExitStack() as stack:
        first, second = idle(small, 2, stack)
        second.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert second.recv(12) == b"HTTP/1.1 200"
        for s in (first, second):
            s.sendall(said)
            with contextlib.suppress(ConnectionResetError):
                while s.recv(1000):
                    pass


MALFORMED = {
    "no such path": ("GET", "/v2", {}, None, 404),
    "no such method": ("DELETE", PATH, {}, None, 405),
    "a path that ends in a stroke": ("GET", "/v1/", {}, None, 404),
    "a path that is spelled otherwise": ("POST", "/v1/%70lanner", SEND, BARE, 404),
    "a prefix that is spelled otherwise": ("GET", "/%76%31", {}, None, 404),
    "a name that is none": ("POST", "/v1/a.b", SEND, BARE, 404),
    "an id that is none": ("POST", PATH, MEDIA | {"ilcp-handoff-id": "../x"}, BARE, 400),
    "another id than the seal's": ("POST", PATH, SEND, SEALED, 400),
    "no id": ("POST", PATH, MEDIA, BARE, 400),
    "no media type": ("POST", PATH, {}, BARE, 415),
    "an empty body": ("POST", PATH, SEND, b"", 400),
    "no message": ("POST", PATH, SEND, b"x" * 100, 400),
    "a damaged message": ("POST", PATH, SEND, BARE[:-1] + b"x", 400),
    "a body of no length": ("POST", PATH, SEND, iter([BARE]), 411),
    "a body in chunks beside its length": (
        "POST",
        PATH,
        SEND | {"content-length": "1", "transfer-encoding": "chunked"},
        b"1\r\nx\r\n0\r\n\r\n",
        411,
    ),
    "a body over the limit": ("POST", PATH, SEND, bytes(MAX_MESSAGE_BYTES + 1), 413),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_answered_with_its_fault(server: Served, case: str) -> None:
    """Each fault has its status, an error in words where it is ours, and leaves nothing behind."""
    method, path, headers, body, status = MALFORMED[case]
    answer = ask(server, method, path, headers=headers, content=body)
    assert status == answer.status_code, answer.text
    if answer.headers["content-type"] == "application/json":
        assert "expected" in answer.json()["error"]
    assert [] == server.taken()


@settings(max_examples=100, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "PATCH"]),
    path=st.sampled_from([PATH, "/v1/a", f"{PATH}/receive", f"{PATH}/capabilities", "/metrics", "/x"]),
    headers=st.dictionaries(
        st.sampled_from(["content-type", "content-length", "ilcp-handoff-id", "authorization", "host", "origin"]),
        st.sampled_from([MEDIA_TYPE, f"Bearer {TOKEN}", "localhost", "case-1", str(len(BARE))])
        | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip),
        max_size=4,
    ),
    body=st.just(BARE) | st.just(SEALED) | st.binary(max_size=100),
)
@example("POST", PATH, GOOD | SEND, BARE)
@example("POST", PATH, GOOD | MEDIA, SEALED)
def test_no_request_breaks_the_ingress(method: str, path: str, headers: dict[str, str], body: bytes) -> None:
    """Whatever is asked, the answer is no 5xx, and just a whole message with token, id and media type is kept."""

    async def main() -> tuple[int, int]:
        async with connect_async("memory://any-request", name="planner") as c:
            app = ingress(c, "planner", token=TOKEN)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                answer = await client.request(method, path, headers=headers, content=body)
            return answer.status_code, int(await c.receive() is not None)

    status, kept = asyncio.run(main())
    may = (method, path, headers.get("content-type")) == ("POST", PATH, MEDIA_TYPE) and body in (BARE, SEALED)
    may = may and headers.get("authorization", "").lower().startswith("bearer ") and "origin" not in headers
    assert status < 500
    assert kept == (status == 202) <= may
    if headers in (GOOD | SEND, GOOD | MEDIA) and may and (body == SEALED) == (headers == GOOD | MEDIA):
        assert 202 == status


def test_a_full_spool_is_429_and_the_sender_tries_again(tmp_path: Path) -> None:
    """A send waits for room within its time; without any it says when to come again, and a receiver can make some."""
    whole = Message(bytes(8), bytes(MAX_PAYLOAD_BYTES)).to_bytes()
    with served(tmp_path, max_bytes=MAX_MESSAGE_BYTES + 128) as small:
        with connect(small.url, settings=Settings(token=TOKEN, timeout_s=0.5)) as c:
            c.send(whole, to="planner", handoff_id="a")
            with pytest.raises(FullError, match=r"expected room .* in the spool, got 1 waiting") as caught:
                c.send(whole, to="planner", handoff_id="b")
            assert 1.0 == caught.value.retry_after_s
            assert str(tmp_path) not in str(caught.value)
        reader = threading.Timer(0.5, small.taken)
        with connect(small.url, settings=Settings(token=TOKEN, timeout_s=20)) as c:
            reader.start()
            assert ("b", False) == c.send(whole, to="planner", handoff_id="b")
        reader.join()
        assert [("b", whole)] == small.taken()


def test_a_send_is_repeated_until_somebody_answers(tmp_path: Path) -> None:
    """While the ingress is down a send is tried again under its id, within its time, and then said to have failed."""
    with contextlib.ExitStack() as stack:
        with served(tmp_path) as first:
            c = stack.enter_context(connect(first.url, settings=Settings(token=TOKEN, timeout_s=1)))
            assert not c.send(BARE, to="planner", handoff_id="a").duplicate
        began = time.monotonic()
        with pytest.raises(UnreachableError):
            c.send(BARE, to="planner", handoff_id="b")
        assert 0.2 < time.monotonic() - began < 5


def test_metrics_and_health(server: Served) -> None:
    """Prometheus sees requests by operation and status, duplicates, and what waits for this name; no name, no id."""
    with connect(server.url, settings=Settings(token=TOKEN)) as c, connect(server.spool, name="critic") as other:
        c.send(BARE, to="planner", handoff_id="case-9")
        c.send(BARE, to="planner", handoff_id="case-9")
        other.send(BARE, to="critic")
        text = ask(server, "GET", "/metrics").text
        found = other.receive()
        assert found is not None
        found.ack()
    assert [("case-9", BARE)] == server.taken()
    assert 'ilcp_requests_total{operation="send",status="202"}' in text
    assert "ilcp_handoffs_waiting 1.0" in text
    assert "planner" not in text
    assert "case-9" not in text
    assert {"status": "ok"} == httpx.get(server.url + "/health").json()


def test_health_names_no_folder_and_is_no_work(tmp_path: Path) -> None:
    """Who has no token learns that the spool cannot be read, not where it is, and cannot keep it busy by asking."""

    async def main() -> tuple[httpx.Response, int]:
        async with connect_async(f"spool://{tmp_path}") as c:
            backend: Any = c._backend
            backend._store.close()
            asked, waiting = [], backend.waiting
            backend.waiting = lambda name: asked.append(1) or waiting(name)  # type: ignore[func-returns-value]
            app = ingress(c, "planner", token=TOKEN)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                answers = [await client.get("/health") for _ in range(20)]
            return answers[0], len(asked)

    answer, looks = asyncio.run(main())
    assert 503 == answer.status_code
    assert str(tmp_path) not in answer.text
    assert looks < 20


def test_health_does_not_wait_for_a_locked_spool(tmp_path: Path) -> None:
    """While another one holds the store, health says so within a second."""

    async def main() -> tuple[int, float]:
        async with connect_async(f"spool://{tmp_path}") as c:
            backend: Any = c._backend
            app = ingress(c, "planner", token=TOKEN)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                backend._store._lock.acquire()
                threading.Timer(3, backend._store._lock.release).start()
                began = time.monotonic()
                return (await client.get("/health")).status_code, time.monotonic() - began

    status, seconds = asyncio.run(main())
    assert 503 == status
    assert seconds < 1


def test_after_a_fork_every_path_says_so(tmp_path: Path) -> None:
    """An ingress whose connection is the parent process's blames neither the message nor waits for ever: 503."""

    async def main() -> list[httpx.Response]:
        async with connect_async(f"spool://{tmp_path}") as c:
            app = ingress(c, "planner", token=TOKEN)
            c._pid -= 1
            try:
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=GOOD) as client:
                    paths = "/v1", "/health", "/metrics", f"{PATH}/capabilities"
                    sent = await client.post(PATH, headers=SEND, content=BARE)
                    return [sent, *[await client.get(path) for path in paths]]
            finally:
                c._pid += 1

    for answer in asyncio.run(main()):
        assert 503 == answer.status_code
        assert "from before a fork: connect again, and make the ingress in the process" in answer.text


def test_who_is_refused_writes_no_log(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Of a thousand refusals a minute some are logged, with the peer's own address, and one says how many were not."""
    with caplog.at_level("INFO", LOGGER), httpx.Client(base_url=server.url) as client:
        for _ in range(80):
            client.get("/v1", headers={"x-forwarded-for": "6.6.6.6"})
    refused = [each for each in caplog.records if "refused" in each.getMessage()]
    assert 0 < len(refused) <= 60
    assert {"127.0.0.1", "::1"} >= {vars(each)["peer"] for each in refused}
    sparing, line = Sparing(most=2, every_s=0.5), logging.makeLogRecord({"msg": "refused"})
    assert [True, True, False, False] == [sparing.filter(line) for _ in range(4)]
    time.sleep(0.6)
    assert sparing.filter(line)
    assert "refused (2 more were not logged)" == line.msg


@needs_openssl
def test_tls_takes_the_certificate_that_it_was_told_to_trust(tmp_path: Path) -> None:
    """With the certificate of the ingress trusted a message crosses; without, it is refused by name."""
    cert, key = certificate(tmp_path, "200101000000Z", "491231000000Z")
    with served(tmp_path / "spool", cert, key) as secure:
        trust = Settings(token=TOKEN, tls=ssl.create_default_context(cafile=cert))
        with connect(secure.url, settings=trust) as c:
            c.send(BARE, to="planner", handoff_id="a")
        assert [("a", BARE)] == secure.taken()
        with pytest.raises(RefusedError, match="certificate that can be trusted"):
            connect(secure.url, settings=Settings(token=TOKEN)).__enter__()


@needs_openssl
def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    """A certificate whose time is over is refused although it is trusted, and the text says why."""
    cert, key = certificate(tmp_path, "200101000000Z", "200102000000Z")
    with served(tmp_path / "spool", cert, key) as secure:
        trust = Settings(token=TOKEN, tls=ssl.create_default_context(cafile=cert))
        with pytest.raises(RefusedError, match="expired"):
            connect(secure.url, settings=trust).__enter__()


def test_what_is_no_message_is_not_sent(server: Served) -> None:
    """Bytes that are no message are the sender's to mend, and so is a message that does not fit."""
    with connect(server.url, settings=Settings(token=TOKEN)) as c:
        for wrong in (b"", b"x", BARE[:-1], bytes(MAX_MESSAGE_BYTES + 1)):
            with pytest.raises(EncodeError, match="expected a message"):
                c.send(wrong, to="planner", handoff_id="a")
    assert [] == server.taken()
