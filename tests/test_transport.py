"""The transports one by one: what they promise, what they refuse and how, and what they leave behind."""

import asyncio
import contextlib
import inspect
import json
import logging
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilcp import transport
from ilcp.errors import ConfigError, DecodeError, EncodeError, MissingExtraError, StorageError, TransportError
from ilcp.message import MAX_MESSAGE_BYTES
from ilcp.transport import (
    AddressError,
    Capabilities,
    CapabilityError,
    Choice,
    Connection,
    CorruptError,
    DiskFullError,
    FullError,
    LeaseLostError,
    NotWritableError,
    Settings,
    UnreachableError,
    choose,
    connect,
    connect_async,
    telemetry,
)
from tests.helpers import run_python
from tests.transport_model import BARE, KINDS, SEALED, Kind, free_port

THIRD_PARTY = {"torch", "transformers", "httpx", "starlette", "uvicorn", "nats", "prometheus_client", "anyio"}
THIRD_PARTY |= {"opentelemetry"}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def end(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """Gives a connection named ``planner`` over each transport."""
    kind: Kind = request.param
    with kind.opened(Settings(lease_s=30)) as door, door("planner") as connection:
        yield connection


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import ilcp.transport", set()),
        ("from ilcp.transport import connect\nwith connect('memory://a') as c: c.capabilities", set()),
        ("import ilcp.transport.http", {"httpx"}),
        ("import ilcp.transport.nats", {"nats"}),
        ("import ilcp.transport.app", {"starlette", "prometheus_client", "anyio"}),
    ],
)
def test_each_library_is_loaded_only_for_its_scheme(statement: str, loaded: set[str]) -> None:
    """The package loads no torch and no third-party library; a scheme loads its own."""
    done = run_python("-I", "-c", f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')")
    assert 0 == done.returncode, done.stderr
    assert loaded == THIRD_PARTY & set(done.stdout.split())


@pytest.mark.parametrize(("url", "library", "extra"), [("http://a", "httpx", "http"), ("nats://a", "nats", "nats")])
def test_a_missing_library_names_its_extra(url: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a scheme's library the error says what to install."""
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"ilcp.transport.{extra}", raising=False)
    with pytest.raises(MissingExtraError, match=rf"pip install 'ilcp\[{extra}\]'"), connect(url):
        pass


@pytest.mark.parametrize(("url", "extra"), [("http://a", "http"), ("nats://a", "nats")])
def test_a_missing_loop_names_its_extra(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs a loop for a program without one comes with the scheme's extra too."""
    monkeypatch.setitem(sys.modules, "anyio.from_thread", None)
    monkeypatch.delitem(sys.modules, "ilcp.transport.portal", raising=False)
    with pytest.raises(MissingExtraError, match=rf"anyio.* pip install 'ilcp\[{extra}\]'"), connect(url):
        pass


def test_an_ingress_without_its_libraries_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a service mounts is loaded when it is asked for, and says what to install."""
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.delitem(sys.modules, "ilcp.transport.app", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'ilcp\[http\]'"):
        _ = transport.ingress
    with pytest.raises(AttributeError, match="no attribute 'egress'"):
        _ = transport.egress


def test_the_private_names_of_nats_py_exist() -> None:
    """What is overridden of nats-py's client, and read of it, is there, and is what it was."""
    nats_client = pytest.importorskip("ilcp.transport.nats_client")
    theirs = nats_client.Client
    assert ("_connect_command", "_process_headers", "_server_info") == nats_client.PRIVATE
    assert {} == theirs()._server_info
    assert inspect.iscoroutinefunction(theirs._process_headers)
    assert ["self", "headers"] == list(inspect.signature(theirs._process_headers).parameters)
    assert ["self"] == list(inspect.signature(theirs._connect_command).parameters)
    source = inspect.getsource(theirs)
    assert "self._connect_command()" in source
    assert "self._process_headers(" in source


def test_an_error_of_two_blames_is_caught_by_both() -> None:
    """A wrong address is the caller's mistake, a bad or full disk the disk's, as well as errors of a transport."""
    assert issubclass(AddressError, TransportError)
    assert issubclass(AddressError, ConfigError)
    assert issubclass(AddressError, ValueError)
    for kind, parent in (
        (CorruptError, TransportError),
        (DiskFullError, FullError),
        (NotWritableError, UnreachableError),
    ):
        assert issubclass(kind, parent)
        assert issubclass(kind, StorageError)


def test_a_spool_that_cannot_be_made_is_the_disks_fault(tmp_path: Path) -> None:
    """Below a file there is no folder: the error is the storage's, and says where."""
    (tmp_path / "file").write_text("no folder")
    said = pytest.raises(NotWritableError, match=r"expected a folder that can be made, got .*file/spool")
    with said, connect(f"spool://{tmp_path}/file/spool"):
        pass


def test_capabilities_of_the_wrong_type_are_the_callers_mistake() -> None:
    """What no receiver can say is refused where it is written."""
    with pytest.raises(ConfigError, match="16 hex digits each, got 'x'"):
        Capabilities(("x",))
    with pytest.raises(ConfigError, match=r"versions of 1 to 255, got \(0,\)"):
        Capabilities((), versions=(0,))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host", "expected a scheme of memory, spool, http"),
        ("", "expected a scheme"),
        ("spool://", "absolute path"),
        ("spool://host/folder", "absolute path"),
        ("memory://a/b", "expected memory://name"),
        ("http://", "expected http://host:port"),
        ("http://host:x", "expected an address"),
        ("http://xn--:1", "expected an address that httpx takes"),
        ("http://a\0b:1", "expected an address of printable characters"),
        ("http://a/\udc80", "expected an address of printable characters"),
        ("http://a#b", "without \\? and #"),
        ("memory://a#b", "without \\? and #"),
        ("spool:///x/a#b", "without \\? and #"),
        ("spool:///x/a?b", "without \\? and #"),
        ("spool:///tmp/a%00b", "names none: embedded null byte"),
        ("spool:///tmp/a%ff", "names none"),
        (b"memory://a", "expected an address"),
        ("nats://me:secret@host", "without credentials"),
        ("nats://host/x", "expected nats://host:port"),
    ],
)
def test_an_address_that_is_none_is_refused(url: Any, said: str) -> None:
    """Each wrong address gets a sentence; credentials in one are not repeated."""
    with pytest.raises(AddressError, match=said) as caught, connect(url):
        pass
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("memory://a", {"token": "x"}),
        ("http://a", {"max_bytes": 1 << 20}),
        ("http://a", {"tls": ssl.create_default_context()}),  # the token would go in the clear
    ],
)
def test_a_setting_without_effect_is_refused(url: str, settings: dict[str, Any]) -> None:
    """What a scheme does not use is not silently ignored."""
    with pytest.raises(AddressError, match=f"expected no {next(iter(settings))}"):
        connect(url, settings=Settings(**settings)).__enter__()


@pytest.mark.parametrize(
    "settings",
    [
        {"lease_s": 0},
        {"lease_s": float("nan")},
        {"dedup_s": -1},
        {"max_bytes": 1},
        {"max_bytes": None},
        {"token": 5},
        {"tls": True},
        {"credentials": "a.creds"},
    ],
)
def test_settings_outside_their_limits_are_refused(settings: dict[str, Any]) -> None:
    """A lease of nothing, a time that is none, a spool smaller than a message and another type are mistakes."""
    with pytest.raises(AddressError, match=next(iter(settings))):
        Settings(**settings)


def test_settings_show_no_token() -> None:
    """What prints or logs its settings does not print the token."""
    assert "correct-horse" not in repr(Settings(token="correct-horse"))


@pytest.mark.parametrize("scheme", ["http", "nats"])
def test_a_server_that_is_not_there(scheme: str) -> None:
    """Where nobody listens, connecting fails with the address in the text."""
    url = f"{scheme}://127.0.0.1:{free_port()}"
    with pytest.raises(UnreachableError, match=url), connect(url, settings=Settings(timeout_s=1)):
        pass


@pytest.mark.parametrize("message", ["text", None, b"", bytes(MAX_MESSAGE_BYTES + 1)])
def test_what_is_no_message_is_not_sent(end: Connection, message: object) -> None:
    """No bytes, none of them and too many are the caller's mistake, and nothing is kept."""
    with pytest.raises(EncodeError, match="expected a message"):
        end.send(message, to="planner")  # type: ignore[arg-type]
    assert end.receive() is None


def test_the_largest_message_arrives(end: Connection) -> None:
    """What the wire format allows, every transport carries."""
    message = bytes(range(256)) * 256 + bytes(MAX_MESSAGE_BYTES - 65536)
    end.send(message, to="planner")
    delivery = end.receive(5)
    assert delivery is not None
    assert message == delivery.message
    delivery.ack()


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "a b", "ä", "x" * 65, None])
def test_names_that_no_transport_takes(name: Any) -> None:
    """A name is a path segment and a subject token as it stands, or it is refused before anything is sent."""
    with connect("memory://names") as c, pytest.raises(AddressError, match="expected a receiver's name as"):
        c.send(BARE, to=name)
    with pytest.raises(AddressError, match="expected"), connect("memory://names", name=name or "") as c:
        pass


def test_a_receiver_needs_a_name() -> None:
    """Without one there is nothing to receive."""
    with connect("memory://nameless") as c, pytest.raises(AddressError, match="name='planner'"):
        c.receive()


def test_the_id_of_a_hand_off(end: Connection) -> None:
    """A sealed message's own; a bare one's is given, or fresh with each send; another than its own is refused."""
    assert ("01" * 8, False) == end.send(SEALED, to="planner")
    assert ("01" * 8, True) == end.send(SEALED, to="planner")
    assert ("case-1", False) == end.send(BARE, to="planner", handoff_id="case-1")
    assert end.send(BARE, to="planner").handoff_id != end.send(BARE, to="planner").handoff_id
    with pytest.raises(AddressError, match=f"expected handoff_id {'01' * 8}"):
        end.send(SEALED, to="planner", handoff_id="mine")


def test_a_delivery_is_settled_once(end: Connection) -> None:
    """To repeat the same is harmless; to change one's mind is refused; what is done stays done."""
    end.send(BARE, to="planner", handoff_id="a")
    first = end.receive(5)
    assert first is not None
    first.nack()
    first.nack()
    with pytest.raises(LeaseLostError, match="after its nack: a"):
        first.ack()
    second = end.receive(5)
    assert second is not None
    assert (1, 2) == (first.attempt, second.attempt)
    second.ack()
    second.ack()
    with pytest.raises(LeaseLostError, match="after its ack: a"):
        second.nack()
    assert end.send(BARE, to="planner", handoff_id="a").duplicate
    assert end.receive() is None


def test_who_holds_a_message_may_hold_it_for_longer(end: Connection) -> None:
    """``extend`` begins the lease anew, as often as it is asked before the end; what is settled cannot be held."""
    end.send(BARE, to="planner")
    delivery = end.receive(5)
    assert delivery is not None
    first = delivery.until_s
    time.sleep(0.05)
    assert first < delivery.extend() == delivery.until_s
    assert end.receive() is None
    delivery.ack()
    with pytest.raises(LeaseLostError, match="expected extend of a delivery that is held, got one after its ack"):
        delivery.extend()


def test_what_is_given_back_may_wait(end: Connection) -> None:
    """A delay keeps a message back for so long."""
    end.send(BARE, to="planner")
    delivery = end.receive(5)
    assert delivery is not None
    began = time.monotonic()
    delivery.nack(delay_s=0.5)
    assert end.receive() is None
    assert end.receive(5) is not None
    assert 0.4 < time.monotonic() - began < 3


def test_a_receiver_tells_what_it_reads(end: Connection) -> None:
    """The last word counts; who has told nothing is not guessed at."""
    with pytest.raises(CapabilityError, match="expected planner to have told"):
        end.capabilities("planner")
    for told in (Capabilities(("00" * 8,)), Capabilities(("11" * 8, "22" * 8), sealed=True, text=True)):
        end.publish(told)
        assert told == end.capabilities("planner")


def test_a_codec_in_common_is_chosen_by_the_senders_preference() -> None:
    """The sender's order decides."""
    theirs = Capabilities(("aa" * 8, "bb" * 8))
    assert Choice("bb" * 8, False, "the receiver reads it") == choose(["cc" * 8, "bb" * 8, "aa" * 8], theirs)


def test_text_is_sent_only_where_it_was_asked_for() -> None:
    """No codec in common raises; text has to be wanted by one end and taken by the other, and the choice says so."""
    with pytest.raises(CapabilityError, match="ask for text=True"):
        choose(["cc" * 8], Capabilities((), text=True))
    with pytest.raises(CapabilityError, match="takes no text"):
        choose(["cc" * 8], Capabilities(()), text=True)
    choice = choose(["cc" * 8], Capabilities((), text=True), text=True)
    assert choice.codec_id is None
    assert "text, as asked" in choice.why


@pytest.mark.parametrize("theirs", [Capabilities(("aa" * 8,), sealed=True), Capabilities(("aa" * 8,), versions=(2,))])
def test_a_seal_or_a_version_is_never_dropped(theirs: Capabilities) -> None:
    """A receiver of sealed messages, or of another version, is not sent something lesser, not even with text=True."""
    with pytest.raises(CapabilityError, match=r"expected (sealed|a receiver)"):
        choose(["aa" * 8], theirs, text=True)
    with pytest.raises(CapabilityError, match="expected bare"):
        choose(["aa" * 8], Capabilities(("aa" * 8,)), sealed=True)


@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(st.sampled_from(["codec_ids", "versions", "sealed", "text", "x"]), inner),
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_capabilities_of_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Whatever a peer publishes is capabilities or a DecodeError."""
    with contextlib.suppress(DecodeError):
        assert Capabilities.from_bytes(body).to_bytes()


def test_deeply_nested_capabilities_are_refused() -> None:
    """A body that would exhaust the stack is refused like any other."""
    with pytest.raises(DecodeError, match="RecursionError"):
        Capabilities.from_bytes(b"[" * 60_000)


def test_async_is_the_same(tmp_path: Path) -> None:
    """The asynchronous connection sends, receives, waits and settles as the other does."""

    async def main() -> None:
        async with connect_async(f"spool://{tmp_path}", name="planner") as c:
            waiting = asyncio.create_task(c.receive(5))
            await asyncio.sleep(0.05)
            receipt = await c.send(SEALED, to="planner")
            delivery = await waiting
            assert delivery is not None
            assert (SEALED, receipt.handoff_id) == (delivery.message, delivery.handoff_id)
            await delivery.ack()
            await c.publish(Capabilities(()))
            assert Capabilities(()) == await c.capabilities("planner")

    asyncio.run(main())


def test_a_receive_that_is_cancelled_takes_nothing_with_it(tmp_path: Path) -> None:
    """However the cancellation and the message cross, the next receiver gets it at once."""

    async def main() -> None:
        async with connect_async(f"spool://{tmp_path}", name="planner") as c:
            for number in range(30):
                await c.send(BARE, to="planner", handoff_id=str(number))
                waiting = asyncio.create_task(c.receive(5))
                await asyncio.sleep(number * 0.0002)
                waiting.cancel()
                try:
                    found = await waiting
                except asyncio.CancelledError:
                    found = await c.receive()
                assert found is not None, number
                assert str(number) == found.handoff_id
                await found.ack()

    asyncio.run(main())


def test_threads_share_a_connection(tmp_path: Path) -> None:
    """Eight threads sending over one connection lose nothing."""
    with connect(f"spool://{tmp_path}", name="planner", settings=Settings(power_safe=False)) as c:

        def work(who: int) -> None:
            for number in range(10):
                c.send(BARE, to="planner", handoff_id=f"{who}-{number}")

        threads = [threading.Thread(target=work, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        got = set()
        while (delivery := c.receive()) is not None:
            got.add(delivery.handoff_id)
            delivery.ack()
    assert {f"{who}-{number}" for who in range(8) for number in range(10)} == got


def test_leaving_the_with_leaves_no_thread(tmp_path: Path) -> None:
    """After the connection nothing of it runs on, also when the body raised."""
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), connect(f"spool://{tmp_path}", name="a") as c:
        1 / (c.receive(0.05) is not None)
    assert before == set(threading.enumerate())


def test_logs_have_the_id_and_never_the_message(caplog: pytest.LogCaptureFixture) -> None:
    """Each step is one record with the hand-off id; as JSON it is one line; no byte of the message is in any."""
    secret = b"the secret of the payload"
    with caplog.at_level(logging.INFO, logger=telemetry.LOGGER), connect("memory://logs", name="planner") as c:
        c.send(secret, to="planner", handoff_id="case-1")
        delivery = c.receive()
        assert delivery is not None
        delivery.ack()
    lines = [json.loads(telemetry.JsonFormatter().format(record)) for record in caplog.records]
    assert ["sent", "received", "acked"] == [line["event"] for line in lines]
    assert {"case-1"} == {line["handoff_id"] for line in lines}
    assert "secret" not in json.dumps(lines) + repr(c) + repr(delivery)
    assert {"time_unix_s", "level", "event", "queue", "handoff_id", "message_bytes", "duplicate"} == set(lines[0])


def test_spans_have_the_id_and_never_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send, receive and settle are spans with the conventions' attributes; without opentelemetry there are none."""
    trace = pytest.importorskip("opentelemetry.trace")
    seen = []

    class Tracer(trace.NoOpTracer):  # type: ignore[name-defined]
        def start_as_current_span(self, name: str, **more: Any) -> Any:
            seen.append((name, more["attributes"]))
            return super().start_as_current_span(name)

    monkeypatch.setattr(trace, "get_tracer", lambda *_: Tracer())
    with connect("memory://spans", name="planner") as c:
        c.send(b"secret", to="planner", handoff_id="case-1")
        delivery = c.receive()
        assert delivery is not None
        delivery.ack()
    assert [telemetry.SPAN_SEND, telemetry.SPAN_RECEIVE, telemetry.SPAN_SETTLE] == [name for name, _ in seen]
    assert all("case-1" == attributes[telemetry.ATTRIBUTE_ID] for _, attributes in seen)
    assert "secret" not in repr(seen)
    monkeypatch.setattr(telemetry, "tracing", lambda: None)
    with telemetry.span("anything") as span:
        assert span is None
