"""The HTTP endpoint, as a well-behaved client, a hostile one and an operator meet it."""

import asyncio
import contextlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ilcp.message import MAX_MESSAGE_BYTES
from ilcp.transport import MEDIA_TYPE, FullError, LeaseLostError, RefusedError, Settings, connect
from ilcp.transport.app import endpoint
from ilcp.transport.backend import Lease
from ilcp.transport.spool import StoreBackend, open_memory, open_spool
from tests.transport_model import certificate, free_port, needs_openssl

TOKEN = "correct-horse"
GOOD = {"authorization": f"Bearer {TOKEN}"}


@dataclass
class Served:
    """A running endpoint."""

    url: str
    backend: StoreBackend
    loop: asyncio.AbstractEventLoop

    def waiting(self) -> int:
        """Counts the messages that its store holds."""
        return asyncio.run_coroutine_threadsafe(self.backend.waiting(), self.loop).result(10)[0]


@contextlib.contextmanager
def served(max_at_once: int = 256, max_receivers: int = 256, max_bytes: int = 64 << 20, **tls: Any) -> Iterator[Served]:
    """uvicorn in a thread, on a free port, in front of a store in memory."""
    port, loop = free_port(), asyncio.new_event_loop()
    backend = loop.run_until_complete(open_memory(urlsplit(f"memory://http-{port}"), Settings(max_bytes=max_bytes)))
    app = endpoint(backend, token=TOKEN, max_at_once=max_at_once, max_receivers=max_receivers)
    config = uvicorn.Config(app, port=port, log_config=None, lifespan="off", timeout_graceful_shutdown=1, **tls)
    server = uvicorn.Server(config)

    def work() -> None:
        loop.run_until_complete(server.serve())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            time.sleep(0.01)
        yield Served(f"http{'s' if tls else ''}://localhost:{port}", backend, loop)
    finally:
        server.should_exit = True
        thread.join()
        loop.run_until_complete(backend.close())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """Runs one endpoint for the tests that leave nothing in it."""
    with served() as running:
        yield running


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


@pytest.mark.parametrize("token", [None, "wrong", TOKEN + "x", TOKEN[:-1]])
def test_without_the_token_nothing_is_let_in(server: Served, token: str | None) -> None:
    """No token, another, a longer and a shorter one are refused by name."""
    with pytest.raises(RefusedError, match="expected entry from"):
        connect(server.url, settings=Settings(token=token)).__enter__()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1"),
        ("GET", "/metrics"),
        ("POST", "/v1/a"),
        ("POST", "/v1/a/receive?lease_s=1"),
        ("POST", "/v1/a/ack"),
        ("POST", "/v1/a/nack"),
        ("POST", "/v1/a/extend?lease_s=1"),
        ("PUT", "/v1/a/capabilities"),
        ("GET", "/v1/a/capabilities"),
    ],
)
@pytest.mark.parametrize("given_", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer \xff"])
def test_every_door_but_health_has_the_lock(server: Served, method: str, path: str, given_: str | None) -> None:
    """Each path answers 401 to each wrong authorization, and keeps nothing."""
    headers = {"content-type": MEDIA_TYPE}
    raw = [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]
    raw += [] if given_ is None else [(b"authorization", given_.encode("latin-1"))]
    answer = httpx.request(method, server.url + path, headers=raw, content=b"x" if method != "GET" else None)
    assert (401, "Bearer") == (answer.status_code, answer.headers["www-authenticate"])
    assert 0 == server.waiting()
    assert 200 == httpx.get(server.url + "/health").status_code


def test_a_large_body_is_refused_before_it_is_read(server: Served) -> None:
    """A declared length over the limit is answered with 413 although not one byte of the body was sent."""
    port = urlsplit(server.url).port
    assert port is not None
    with socket.create_connection(("localhost", port), 5) as s:
        head = f"POST /v1/a HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: {MEDIA_TYPE}\r\n"
        s.sendall(f"{head}content-length: {MAX_MESSAGE_BYTES + 1}\r\n\r\n".encode())
        assert s.recv(100).startswith(b"HTTP/1.1 413")
    assert 0 == server.waiting()


def half_sent(server: Served) -> socket.socket:
    """Opens a connection that sends a head, and not its body."""
    port = urlsplit(server.url).port
    assert port is not None
    s = socket.create_connection(("localhost", port), 10)
    head = f"POST /v1/a HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: {MEDIA_TYPE}\r\n"
    s.sendall(f"{head}content-length: 4\r\n\r\n".encode())
    return s


def test_a_body_that_does_not_come_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not send the body is answered with 408 after a time, and its place is free for others."""
    monkeypatch.setattr("ilcp.transport.app.BODY_S", 0.2)
    with served(max_at_once=2) as small:
        with contextlib.ExitStack() as stack:
            half = [stack.enter_context(half_sent(small)) for _ in range(2)]
            assert [b"HTTP/1.1 408"] * 2 == [s.recv(100)[:12] for s in half]
            assert 200 == ask(small, "GET", "/v1").status_code
        assert 0 == small.waiting()


MALFORMED = {
    "no such path": ("GET", "/v2", {}, None, 404),
    "no such method": ("DELETE", "/v1/a", {}, None, 405),
    "a name that is none": ("POST", "/v1/a.b", {"content-type": MEDIA_TYPE}, b"x", 400),
    "an id that is none": ("POST", "/v1/a", {"content-type": MEDIA_TYPE, "ilcp-handoff-id": "../x"}, b"x", 400),
    "no media type": ("POST", "/v1/a", {}, b"x", 415),
    "another media type": ("POST", "/v1/a", {"content-type": "text/plain"}, b"x", 415),
    "an empty body": ("POST", "/v1/a", {"content-type": MEDIA_TYPE}, b"", 400),
    "a body of no length": ("POST", "/v1/a", {"content-type": MEDIA_TYPE}, iter([b"x"]), 411),
    "a body in chunks beside its length": (
        "POST",
        "/v1/a",
        {"content-type": MEDIA_TYPE, "content-length": "1", "transfer-encoding": "chunked"},
        b"1\r\nx\r\n0\r\n\r\n",
        411,
    ),
    "a body over the limit": ("POST", "/v1/a", {"content-type": MEDIA_TYPE}, bytes(MAX_MESSAGE_BYTES + 1), 413),
    "no lease time": ("POST", "/v1/a/receive", {}, None, 400),
    "a lease for ever": ("POST", "/v1/a/receive?lease_s=inf", {}, None, 400),
    "a wait that is none": ("POST", "/v1/a/receive?lease_s=1&wait_s=nan", {}, None, 400),
    "a wait into the past": ("POST", "/v1/a/receive?lease_s=1&wait_s=-1", {}, None, 400),
    "a wait too long": ("POST", "/v1/a/receive?lease_s=1&wait_s=1e9", {}, None, 400),
    "a number of letters": ("POST", "/v1/a/receive?lease_s=x", {}, None, 400),
    "a number of another script": ("POST", "/v1/a/receive?lease_s=%EF%BC%91", {}, None, 400),
    "a number as in Python's source": ("POST", "/v1/a/receive?lease_s=1_0", {}, None, 400),
    "a path that ends in a stroke": ("GET", "/v1/", {}, None, 404),
    "no lease": ("POST", "/v1/a/ack", {}, None, 409),
    "a made-up lease": ("POST", "/v1/a/ack", {"ilcp-lease": "1.00"}, None, 409),
    "a lease of SQL": ("POST", "/v1/a/nack", {"ilcp-lease": "1.' OR 1=1 --"}, None, 409),
    "capabilities that are none": ("PUT", "/v1/a/capabilities", {}, b"{}", 400),
    "capabilities too large": ("PUT", "/v1/a/capabilities", {}, bytes(1 << 17), 413),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_answered_with_its_fault(server: Served, case: str) -> None:
    """Each fault has its status, an error in words where it is ours, and leaves nothing behind."""
    method, path, headers, body, status = MALFORMED[case]
    answer = ask(server, method, path, headers=headers, content=body)
    assert status == answer.status_code, answer.text
    if status not in (404, 405):
        assert "expected" in answer.json()["error"]
    assert 0 == server.waiting()


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "PATCH"]),
    path=st.sampled_from(["/v1/a", "/v1/a/receive", "/v1/a/ack", "/v1/a/nack", "/v1/a/capabilities", "/metrics", "/x"]),
    query=st.dictionaries(st.sampled_from(["lease_s", "wait_s", "delay_s"]), st.text(max_size=6), max_size=2),
    headers=st.dictionaries(
        st.sampled_from(["content-type", "content-length", "ilcp-lease", "ilcp-handoff-id", "authorization"]),
        st.just(MEDIA_TYPE) | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip),
        max_size=4,
    ),
    body=st.binary(max_size=100),
)
@example("POST", "/v1/a", {}, {"content-type": MEDIA_TYPE}, b"x")
@example("POST", "/v1/a", {}, {"content-type": MEDIA_TYPE, "ilcp-handoff-id": MEDIA_TYPE}, b"x")
def test_no_request_breaks_the_endpoint(
    method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
) -> None:
    """Whatever is asked, the answer is no 5xx, and just what is a message with its media type is kept."""

    async def main() -> tuple[int, int]:
        backend = await open_memory(urlsplit("memory://any-request"), Settings())
        app = endpoint(backend, token=None)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            answer = await client.request(method, path, params=query, headers=headers, content=body)
        waiting = await backend.waiting()
        await backend.close()
        return answer.status_code, waiting[0]

    status, kept = asyncio.run(main())
    given_ = headers.get("ilcp-handoff-id")
    sent = (method, path, headers.get("content-type")) == ("POST", "/v1/a", MEDIA_TYPE) and 0 < len(body)
    sent = sent and (given_ is None or re.fullmatch("[A-Za-z0-9_-]{1,64}", given_) is not None)
    assert status < 500
    if "content-length" in headers:  # it may tell something else than the body
        assert kept == (status == 201) <= sent
    else:
        assert (201 if sent else status, int(sent)) == (status, kept)


def test_a_lease_that_was_not_given_acknowledges_nothing(server: Served) -> None:
    """A client that makes up a lease is refused, and the message is still there for who gets it."""
    with connect(server.url, name="a", settings=Settings(token=TOKEN)) as c:
        c.send(b"x", to="a")
        delivery = c.receive(5)
        assert delivery is not None
        forged = Lease("1." + "0" * 16, "x", b"x", 1, 0.0)
        with pytest.raises(LeaseLostError):
            c._caller.call(c._inner._backend.settle, "a", forged, retry_in_s=None)
        assert 1 == server.waiting()
        delivery.ack()
        assert 0 == server.waiting()


def test_a_full_spool_is_429_with_a_time() -> None:
    """When the store is full the sender is told when to come again, and a receiver can still make room."""
    with (
        served(max_bytes=MAX_MESSAGE_BYTES + 128) as small,
        connect(small.url, name="a", settings=Settings(token=TOKEN)) as c,
    ):
        c.send(bytes(MAX_MESSAGE_BYTES), to="a")
        with pytest.raises(FullError, match="expected room") as caught:
            c.send(bytes(10), to="a")
        assert 1.0 == caught.value.retry_after_s
        delivery = c.receive(5)
        assert delivery is not None
        delivery.ack()
        c.send(bytes(10), to="a")


def test_too_many_at_once_is_429() -> None:
    """Beyond the limit a send is turned away at the door; health, ack and nack, which make room, still answer."""
    with served(max_at_once=2) as small, contextlib.ExitStack() as stack:
        held = [stack.enter_context(half_sent(small)) for _ in range(2)]
        answer = once(lambda: ask(small, "GET", "/v1"), 429)
        assert "1" == answer.headers["retry-after"]
        assert 200 == httpx.get(small.url + "/health").status_code
        assert [409, 409] == [ask(small, "POST", f"/v1/a/{how}").status_code for how in ("ack", "nack")]
        for s in held:
            s.sendall(b"body")
            assert s.recv(100).startswith(b"HTTP/1.1 201")
        assert 200 == ask(small, "GET", "/v1").status_code


def test_waiting_receivers_lock_nobody_out() -> None:
    """With all of their places taken one more receiver is turned away, while messages still come and are settled."""
    headers = {"content-type": MEDIA_TYPE}
    with served(max_at_once=2, max_receivers=3) as small:
        ask(small, "POST", "/v1/a", headers=headers, content=b"first")
        held = ask(small, "POST", "/v1/a/receive?lease_s=60")
        url = small.url + "/v1/b/receive?lease_s=60&wait_s=15"

        def wait() -> None:
            while httpx.post(url, headers=GOOD, timeout=30).status_code == 429:  # the asking below has its place
                time.sleep(0.02)

        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        once(lambda: ask(small, "POST", "/v1/b/receive?lease_s=60"), 429)
        assert 201 == ask(small, "POST", "/v1/a", headers=headers, content=b"second").status_code
        lease = {"ilcp-lease": held.headers["ilcp-lease"]}
        assert 204 == ask(small, "POST", "/v1/a/ack", headers=lease).status_code
        for _ in threads:
            ask(small, "POST", "/v1/b", headers=headers, content=b"for one of them")
        for thread in threads:
            thread.join()


def test_a_receiver_that_hung_up_gets_nothing(server: Served) -> None:
    """A message that comes after a waiting receiver has gone is not leased to it."""
    with connect(server.url, name="gone", settings=Settings(token=TOKEN)) as c:
        with contextlib.suppress(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/gone/receive?lease_s=60&wait_s=5", headers=GOOD, timeout=0.3)
        c.send(b"x", to="gone")
        delivery = c.receive(8)
        assert delivery is not None
        delivery.ack()


def test_metrics_and_health(server: Served) -> None:
    """Prometheus sees requests by operation and status, duplicates, and what waits; no name and no id is in it."""
    with connect(server.url, name="metred", settings=Settings(token=TOKEN)) as c:
        c.send(b"x", to="metred", handoff_id="case-9")
        c.send(b"x", to="metred", handoff_id="case-9")
        text = ask(server, "GET", "/metrics").text
        delivery = c.receive()
        assert delivery is not None
        delivery.ack()
    assert 'ilcp_requests_total{operation="send",status="201"}' in text
    assert "ilcp_duplicates_total 1.0" in text
    assert "ilcp_handoffs_waiting 1.0" in text
    assert "metred" not in text
    assert "case-9" not in text
    assert {"status": "ok"} == httpx.get(server.url + "/health").json()


def test_health_names_no_folder(tmp_path: Path) -> None:
    """Who has no token learns that the spool cannot be read, and not where it is."""

    async def main() -> httpx.Response:
        backend = await open_spool(urlsplit(f"spool://{tmp_path}"), Settings())
        backend._store.close()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(endpoint(backend)), base_url="http://x") as client:
            answer = await client.get("/health")
        await backend.close()
        return answer

    answer = asyncio.run(main())
    assert 503 == answer.status_code
    assert str(tmp_path) not in answer.text


@needs_openssl
def test_tls_takes_the_certificate_that_it_was_told_to_trust(tmp_path: Path) -> None:
    """With the endpoint's certificate trusted a message crosses; without, it is refused by name."""
    cert, key = certificate(tmp_path, "200101000000Z", "491231000000Z")
    with served(ssl_certfile=cert, ssl_keyfile=key) as secure:
        trust = Settings(token=TOKEN, tls=ssl.create_default_context(cafile=cert))
        with connect(secure.url, name="a", settings=trust) as c:
            c.send(b"x", to="a")
            delivery = c.receive(5)
            assert delivery is not None
            delivery.ack()
        with pytest.raises(RefusedError, match="certificate that can be trusted"):
            connect(secure.url, settings=Settings(token=TOKEN)).__enter__()


@needs_openssl
def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    """A certificate whose time is over is refused although it is trusted, and the text says why."""
    cert, key = certificate(tmp_path, "200101000000Z", "200102000000Z")
    with served(ssl_certfile=cert, ssl_keyfile=key) as secure:
        trust = Settings(token=TOKEN, tls=ssl.create_default_context(cafile=cert))
        with pytest.raises(RefusedError, match="expired"):
            connect(secure.url, settings=trust).__enter__()


def test_json_of_an_answer(server: Served) -> None:
    """What the endpoint says of a kept message is JSON with its id."""
    answer = ask(server, "POST", "/v1/json", headers={"content-type": MEDIA_TYPE, "ilcp-handoff-id": "i"}, content=b"x")
    assert (201, {"handoff_id": "i", "duplicate": False}) == (answer.status_code, json.loads(answer.content))
    with connect(server.url, name="json", settings=Settings(token=TOKEN)) as c:
        delivery = c.receive(5)
        assert delivery is not None
        delivery.ack()
