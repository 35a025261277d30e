"""Connections that are closed, forked or in doubt, and deliveries whose end has come."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ilcp.transport import (
    AddressError,
    AsyncDelivery,
    Connection,
    LeaseLostError,
    Settings,
    UnreachableError,
    connect,
    connect_async,
    spool,
)
from ilcp.transport.backend import Lease
from ilcp.transport.spool import StoreBackend
from ilcp.transport.store import Store
from tests.helpers import ROOT, run_python
from tests.transport_model import BARE, Clock, by_portal

Opened = Callable[..., AbstractContextManager[Connection]]
SPOKEN_OF = "expected an open connection of this process, got one that is closed or from before a fork"


both_ways = pytest.mark.parametrize("opened", [connect, by_portal])


@both_ways
def test_a_closed_connection_says_so(tmp_path: Path, opened: Opened) -> None:
    """After the with every call is the caller's mistake, also that of a delivery, and leaves no coroutine behind."""
    with opened(f"spool://{tmp_path}", name="planner") as c:
        c.send(BARE, to="planner")
        delivery = c.receive()
        assert delivery is not None
    for call in (c.receive, delivery.ack, delivery.nack, lambda: c.send(BARE, to="planner")):
        with pytest.raises(AddressError, match=SPOKEN_OF):
            call()


@pytest.mark.parametrize("opened", ["connect({url}, name='planner')", "by_portal({url}, name='planner')"])
def test_a_fork_cannot_use_its_parents_connection(tmp_path: Path, opened: str) -> None:
    """A forked child is told so at once, leaves the with in peace, and the parent's connection still works.

    Nor does the child wait for what another thread of its parent was about to let go of."""
    code = f"""
import os, signal, sys
from ilcp.transport import AddressError, connect
from tests.transport_model import by_portal
with {opened.format(url="sys.argv[1]")} as c:
    lock = c._inner._inner._store._lock
    lock.acquire()
    child = os.fork()
    if not child:
        signal.alarm(10)
        try:
            c.send(b"x", to="planner")
        except AddressError as error:
            print(error, flush=True)
    else:
        assert os.waitpid(child, 0)[1] == 0
        lock.release()
        c.send(b"y", to="planner")
        assert c.receive(1).message == b"y"
"""
    done = run_python("-c", code, f"spool://{tmp_path}", timeout_s=30, cwd=ROOT)
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith(SPOKEN_OF)


def test_a_fork_cannot_use_its_parents_async_connection(tmp_path: Path) -> None:
    """Nor does a forked child wait for ever in an ``async with``: each call says so, and the with is left in peace."""
    code = """
import asyncio, os, signal, sys
from ilcp.transport import AddressError, Capabilities, connect_async
async def main():
    async with connect_async(sys.argv[1], name="planner") as c:
        await c.send(b"x", to="planner", handoff_id="a")
        delivery = await c.receive()
        child = os.fork()
        if not child:
            signal.alarm(10)
            calls = (lambda: c.send(b"x", to="planner"), c.receive, lambda: c.capabilities("planner"), delivery.ack)
            for call in (*calls, lambda: c.publish(Capabilities(())), delivery.nack, delivery.extend):
                try:
                    await call()
                except AddressError as error:
                    print(error, flush=True)
        else:
            assert os.waitpid(child, 0)[1] == 0
            await delivery.ack()
    if not child:
        os._exit(0)  # the loop is the parent's: to close it would take it from there too
asyncio.run(main())
"""
    done = run_python("-c", code, f"spool://{tmp_path}", timeout_s=60, cwd=ROOT)
    assert [7, 0] == [done.stdout.count(SPOKEN_OF), done.returncode], done.stderr


@pytest.mark.parametrize("wrong", [None, "", "2", -1.0, float("nan")])
def test_a_time_that_is_none_is_refused(wrong: Any) -> None:
    """Nothing passes for no time at all but zero."""
    with connect("memory://times", name="planner") as c:
        c.send(BARE, to="planner")
        with pytest.raises(AddressError, match="timeout_s"):
            c.receive(wrong)
        delivery = c.receive(0)
        assert delivery is not None
        with pytest.raises(AddressError, match="delay_s"):
            delivery.nack(wrong)
        delivery.nack(0)


@both_ways
def test_a_thread_that_waits_is_told_when_another_closes(tmp_path: Path, opened: Opened) -> None:
    """Leaving the with ends a receive that waits in another thread, by a name that says it, and takes no message."""
    caught: list[BaseException] = []

    def work() -> None:
        try:
            c.receive(20)
        except BaseException as error:
            caught.append(error)

    with opened(f"spool://{tmp_path}", name="planner") as c:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join(5)
    assert [UnreachableError] * 4 == [type(error) for error in caught]
    assert "another thread closed" in str(caught[0])


@both_ways
def test_an_interrupt_ends_a_receive_that_waits(tmp_path: Path, opened: Opened) -> None:
    """Ctrl-C comes out of a receive at once; the connection goes on, and gets what is sent afterwards, once."""
    main = threading.main_thread().ident
    assert main is not None
    with opened(f"spool://{tmp_path}", name="planner") as c:
        timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            c.receive(20)
        assert time.monotonic() - began < 10
        timer.join()
        c.send(BARE, to="planner")
        time.sleep(0.1)  # a receive that went on would have it by now
        delivery = c.receive(5)
        assert delivery is not None
        assert 1 == delivery.attempt


def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on Ctrl-C comes just after each of a store's transactions is on the disk."""
    transaction = Store._transaction

    @contextmanager
    def interrupted(self: Store, sync: str) -> Iterator[None]:
        with transaction(self, sync):
            yield
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "_transaction", interrupted)


@pytest.mark.parametrize("url", ["memory://interrupted", "spool://{folder}"])
@pytest.mark.parametrize("place", ["_begin", "_named_errors"])
def test_an_interrupt_at_a_transactions_beginning_leaves_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, place: str
) -> None:
    """Ctrl-C on the line behind BEGIN, or behind a COMMIT, breaks nothing: the next call works, also another's."""
    address = url.format(folder=tmp_path)
    with connect(address, name="planner") as c, connect(address, name="planner") as other:
        c.send(BARE, to="planner", handoff_id="a")
        real = getattr(Store, place)

        def begin(self: Store) -> None:
            real(self)
            raise KeyboardInterrupt

        @contextmanager
        def named(self: Store) -> Iterator[None]:
            with real(self):
                yield
            raise KeyboardInterrupt

        monkeypatch.setattr(Store, place, begin if place == "_begin" else named)
        with pytest.raises(KeyboardInterrupt):
            c.send(BARE, to="planner", handoff_id="b")
        monkeypatch.setattr(Store, place, real)
        other.send(BARE, to="planner", handoff_id="c")
        assert c.receive() is not None


def test_an_interrupt_takes_no_message_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ctrl-C comes when a message was just leased, and nobody has it, it is free again at once."""
    with connect(f"spool://{tmp_path}", name="planner") as c:
        c.send(BARE, to="planner", handoff_id="a")
        interrupt_after(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            c.receive()
        delivery = c.receive()
        assert delivery is not None
        assert ("a", 1) == (delivery.handoff_id, delivery.attempt)


def test_an_interrupted_ack_is_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An acknowledgement that Ctrl-C broke off may be done: it can be repeated, and not taken back."""
    with connect(f"spool://{tmp_path}", name="planner") as c:
        c.send(BARE, to="planner")
        delivery = c.receive()
        assert delivery is not None
        interrupt_after(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            delivery.ack()
        with pytest.raises(LeaseLostError, match="whose acknowledgement may have arrived"):
            delivery.nack()
        delivery.ack()


def test_a_store_is_called_without_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither memory:// nor spool:// starts a thread or a loop for a program that has none."""
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: pytest.fail("a loop was made"))
    before = threading.active_count()
    for url in ("memory://no-loop", f"spool://{tmp_path}"):
        with connect(url, name="planner") as c:
            c.send(BARE, to="planner")
            assert c.receive() is not None
            assert before == threading.active_count()


def test_an_async_connection_says_that_it_is_closed() -> None:
    """Used after the async with it is unreachable, and a receive that waits meanwhile is told the same."""

    async def main() -> None:
        async with connect_async("memory://closed", name="planner") as c:
            waiting = asyncio.create_task(c.receive(20))
            await asyncio.sleep(0.05)
        for late in (waiting, c.receive(), c.send(BARE, to="planner")):
            with pytest.raises(UnreachableError, match="one that is closed"):
                await late

    asyncio.run(main())


def test_a_name_in_memory_ends_with_its_last_connection() -> None:
    """While one is connected the messages are there; then they are gone, also where a closed connection is kept."""
    with connect("memory://ends") as first:
        with connect("memory://ends", name="a") as second:
            first.send(BARE, to="a")
        with connect("memory://ends", name="a") as third:
            delivery = third.receive()
            assert delivery is not None
            delivery.nack()
    with connect("memory://ends", name="a") as fourth:
        assert fourth.receive() is None
    assert (None, "a", "a") == (first.name, second.name, third.name)


def test_threads_that_connect_at_once_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two who connect to a name at the same time get one store."""
    together, duplicates = threading.Barrier(2, timeout=10), []

    def slow(path: str, settings: Settings) -> Store:
        time.sleep(0.1)
        return Store(path, settings)

    monkeypatch.setattr(spool, "Store", slow)

    def work() -> None:
        together.wait()
        with connect("memory://at-once") as c:
            duplicates.append(c.send(BARE, to="a", handoff_id="same").duplicate)
            together.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [False, True] == sorted(duplicates)


def test_a_name_in_memory_has_one_size() -> None:
    """Who connects with another size than the first is told, and not ignored."""
    with connect("memory://one-size"), pytest.raises(AddressError, match="expected dedup_s, max_bytes"):
        connect("memory://one-size", settings=Settings(dedup_s=5)).__enter__()


class Doubtful(StoreBackend):
    """Does nothing, and says that it got no answer."""

    def __init__(self) -> None:
        self.asked: list[float | None] = []
        self.reached = False

    async def settle(self, name: str, lease: Lease, *, retry_in_s: float | None, unseen: bool = False) -> None:
        self.asked.append(retry_in_s)
        if not self.reached:
            raise UnreachableError("nobody answered")


def test_after_a_doubtful_ack_there_is_no_nack() -> None:
    """An acknowledgement that may have arrived is not taken back, but may be repeated."""

    async def main() -> None:
        backend, clock = Doubtful(), Clock()
        settings = Settings(clock=clock)
        delivery = AsyncDelivery(backend, "a", Lease("t", "i", BARE, 1, clock() + 60), settings)
        with pytest.raises(UnreachableError):
            await delivery.ack()
        backend.reached = True
        with pytest.raises(LeaseLostError, match="whose acknowledgement may have arrived: i"):
            await delivery.nack()
        await delivery.ack()
        assert [None, None] == backend.asked

    asyncio.run(main())


def test_a_clock_that_is_set_back_gives_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the usual clock the lease also ends when its time has passed, whatever the clock says."""

    async def main() -> None:
        backend = Doubtful()
        delivery = AsyncDelivery(backend, "a", Lease("t", "i", BARE, 1, time.time() + 60), Settings())
        late_s = time.monotonic() + 61
        monkeypatch.setattr(time, "monotonic", lambda: late_s)
        for settle in (delivery.ack, delivery.nack):
            with pytest.raises(LeaseLostError, match="after its lease ended"):
                await settle()
        assert not backend.asked

    asyncio.run(main())
