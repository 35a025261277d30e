"""The spool: what its file, its disk, its leases and the processes that share it may do to a message."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ilcp.message import MAX_MESSAGE_BYTES
from ilcp.transport import (
    AddressError,
    Capabilities,
    ConflictError,
    Connection,
    CorruptError,
    DiskFullError,
    FullError,
    LeaseLostError,
    NotWritableError,
    Settings,
    UnreachableError,
    connect,
)
from ilcp.transport.schema import SCHEMA
from ilcp.transport.spool import FILE
from ilcp.transport.store import MAX_TOLD_BYTES, RESERVE_BYTES, Store
from tests.transport_model import BARE, Clock


def make_store(path: object, clock: Clock, **more: Any) -> Store:
    """Makes a store with small settings."""
    options: dict[str, Any] = dict(clock=clock, dedup_s=60.0, max_bytes=1 << 20, max_name_bytes=1 << 20)
    return Store(str(path), Settings(**({"power_safe": False} | options | more)))


def test_two_receivers_share_one_spool(tmp_path: Path) -> None:
    """Two processes draining one name get every message once between them."""
    url, n = f"spool://{tmp_path}", 60
    with connect(url, settings=Settings(power_safe=False)) as c:
        for number in range(n):
            c.send(BARE, to="planner", handoff_id=str(number))
    code = """
import sys
from ilcp.transport import connect
with connect(sys.argv[1], name="planner") as c:
    while (delivery := c.receive(0.3)) is not None:
        print(delivery.handoff_id)
        delivery.ack()
"""
    both = [subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    got = [process.communicate(timeout=60)[0].split() for process in both]
    assert sorted(map(str, range(n))) == sorted(got[0] + got[1])
    assert [sorted(part, key=int) for part in got] == got


def test_a_receiver_killed_before_its_ack_loses_nothing(tmp_path: Path) -> None:
    """After kill -9 between receive and ack the message comes again when the lease ends, not before."""
    url = f"spool://{tmp_path}"
    code = """
import signal, sys
from ilcp.transport import Settings, connect
with connect(sys.argv[1], name="planner", settings=Settings(lease_s=1)) as c:
    print(c.receive(5).handoff_id, flush=True)
    signal.pause()
"""
    with connect(url, name="planner") as c:
        c.send(BARE, to="planner", handoff_id="a")
        process = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert "a\n" == process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert c.receive() is None
        again = c.receive(5)
        assert again is not None
        assert ("a", 2, BARE) == (again.handoff_id, again.attempt, again.message)
        again.ack()


def test_a_file_that_is_no_spool_is_refused(tmp_path: Path) -> None:
    """Garbage, another program's database and a later version are each refused, and left as they are."""
    file = tmp_path / FILE
    file.write_bytes(b"not a database at all " * 100)
    with pytest.raises(CorruptError, match=r"file is not a database; move the file away"):
        connect(f"spool://{tmp_path}").__enter__()
    assert file.read_bytes().startswith(b"not a database")
    file.unlink()
    other = sqlite3.connect(file)
    other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(CorruptError, match="expected an ilcp spool of version 3"):
        connect(f"spool://{tmp_path}").__enter__()


def test_a_spool_is_its_accounts_alone(tmp_path: Path) -> None:
    """The folder that is made, the database and what SQLite keeps beside it are closed to others, old ones too."""
    for made in (False, True):
        folder = tmp_path / str(made)
        if made:
            folder.mkdir(0o755)
            make_store(folder / FILE, Clock()).close()
            (folder / FILE).chmod(0o644)
        with connect(f"spool://{folder}", name="planner") as c:
            c.send(BARE, to="planner")
            assert {0o600} == {file.stat().st_mode & 0o777 for file in folder.iterdir()}
            assert 3 == len(list(folder.iterdir()))
        assert (0o755 if made else 0o700) == folder.stat().st_mode & 0o777


def test_a_spool_that_another_account_may_have_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's folder, one where others may write, and a link at the database's place: each text says what to do."""
    (folder := tmp_path / "open").mkdir()
    folder.chmod(0o777)
    with pytest.raises(NotWritableError, match=r"nobody else may write, got .*open of mode 777: chmod go-w"):
        connect(f"spool://{folder}").__enter__()
    (folder := tmp_path / "link").mkdir()
    (folder / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotWritableError, match=r"expected a file at .*, got a link or something else: remove it"):
        connect(f"spool://{folder}").__enter__()
    assert not (tmp_path / "elsewhere").exists()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(NotWritableError, match=rf"of this account's own, got user {me}'s.*name another place"):
        connect(f"spool://{tmp_path}/link").__enter__()


@pytest.mark.parametrize("page", range(12))
def test_a_damaged_page_is_named_or_does_no_harm(tmp_path: Path, page: int) -> None:
    """Whatever page is overwritten, a call says that the spool is damaged, or all that was sent comes as it was."""
    sent = {str(number): bytes([number]) * 400 for number in range(20)}
    with connect(f"spool://{tmp_path}", settings=Settings(power_safe=False)) as c:
        for handoff_id, message in sent.items():
            c.send(message, to="planner", handoff_id=handoff_id)
    file = tmp_path / FILE
    content = bytearray(file.read_bytes())
    assert page * 4096 < len(content)
    content[page * 4096 : (page + 1) * 4096] = b"\xa5" * 4096
    file.write_bytes(content)
    got: dict[str, bytes] = {}
    named = True
    with contextlib.suppress(CorruptError), connect(f"spool://{tmp_path}", name="planner") as c:
        while (delivery := c.receive()) is not None:
            got[delivery.handoff_id] = delivery.message
            delivery.ack()
        c.send(BARE, to="planner")
        c.publish(Capabilities(()))
        named = False
    assert got.items() <= sent.items()
    assert named or got == sent


def test_half_a_schema_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool whose making fails half-way is as if it had not begun, and can be made by the next."""
    monkeypatch.setattr("ilcp.transport.schema.SCHEMA", (*SCHEMA[:3], "no statement"))
    with pytest.raises(CorruptError, match="syntax error"):
        make_store(tmp_path / FILE, Clock())
    monkeypatch.undo()
    make_store(tmp_path / FILE, Clock()).close()


def test_a_closed_store_says_so() -> None:
    """After close a call says that the spool is not open, and not that its file is damaged."""
    store = make_store(":memory:", Clock())
    store.close()
    for call in (store.waiting, lambda: store.put("a", "b", b"c"), lambda: store.settle("a", "1.x", None)):
        with pytest.raises(UnreachableError, match="expected an open spool"):
            call()


def test_what_nobody_got_does_not_count_as_an_attempt() -> None:
    """A lease that is given back because its receiver had gone leaves no trace in ``attempt``, and ends only once."""
    store = make_store(":memory:", Clock())
    store.put("planner", "a", BARE)
    for _ in range(2):
        lease = store.take("planner", 30)
        assert lease is not None
        assert 1 == lease.attempt
        store.settle("planner", lease.token, 0.0, unseen=True)
        with pytest.raises(LeaseLostError):
            store.settle("planner", lease.token, 0.0, unseen=True)


def test_a_full_spool_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    """What does not fit is refused, what is there is still handed out, and an acknowledgement makes room."""
    settings = Settings(max_bytes=MAX_MESSAGE_BYTES + 128)
    with connect(f"spool://{tmp_path}", name="planner", settings=settings) as c:
        c.send(bytes(MAX_MESSAGE_BYTES), to="planner", handoff_id="a")
        with pytest.raises(FullError, match=r"expected room for 27 bytes .*got 1 waiting messages.*raise max_bytes"):
            c.send(BARE, to="planner", handoff_id="b")
        assert c.send(bytes(MAX_MESSAGE_BYTES), to="planner", handoff_id="a").duplicate
        delivery = c.receive()
        assert delivery is not None
        delivery.ack()
        assert not c.send(BARE, to="planner", handoff_id="b").duplicate


def test_a_full_disk_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    """When SQLite finds no room for a page, the message is refused, and the others can still be acknowledged."""
    store = make_store(tmp_path / FILE, Clock())
    store._db.execute("PRAGMA max_page_count = 30")
    kept: list[int] = []

    def fill() -> None:
        for number in range(100):
            store.put("planner", str(number), bytes(3000))
            kept.append(number)

    with pytest.raises(DiskFullError, match="expected room on the disk"):
        fill()
    assert kept
    for number in kept:
        lease = store.take("planner", 30)
        assert lease is not None
        assert str(number) == lease.handoff_id
        store.settle("planner", lease.token, None)
    assert store.take("planner", 30) is None
    store.close()


def test_what_acknowledgements_need_of_the_disk_is_left_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less than the reserve left, messages are refused and what is there is handed out; freed pages are room."""
    store, left = make_store(tmp_path / FILE, Clock(), max_bytes=64 << 20), RESERVE_BYTES + 5000
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=left, f_frsize=1))
    store.put("planner", "a", bytes(5000))
    left = RESERVE_BYTES + 39_999
    with pytest.raises(
        DiskFullError, match=rf"room on the disk for 40000 bytes .*got {left}, of which {RESERVE_BYTES}"
    ):
        store.put("planner", "b", bytes(40_000))
    left = 0
    assert not store.put("planner", "a", bytes(5000))
    lease = store.take("planner", 30)
    assert lease is not None
    store.settle("planner", lease.token, None)
    left = RESERVE_BYTES
    store.put("planner", "c", bytes(4000))
    store.close()


def test_a_clock_that_is_set_back_holds_no_message_for_ever(tmp_path: Path) -> None:
    """A lease from the future is void: the message comes again at once, and who held it is refused."""
    clock = Clock()
    store = make_store(tmp_path / FILE, clock)
    store.put("planner", "a", BARE)
    lease = store.take("planner", 30)
    assert lease is not None
    clock.advance(-3600)
    with pytest.raises(LeaseLostError, match="expected a lease that is held"):
        store.settle("planner", lease.token, None)
    again = store.take("planner", 30)
    assert again is not None
    assert 2 == again.attempt
    store.close()


def test_a_lease_that_was_not_given_settles_nothing() -> None:
    """Neither a made-up token nor one of another name or of a lease that ended ends anything."""
    clock = Clock()
    store = make_store(":memory:", clock)
    store.put("planner", "a", BARE)
    for token in ("", "1", "1.", "1.None", "x.y", "-1.0", "9" * 40 + ".a"):
        with pytest.raises(LeaseLostError):
            store.settle("planner", token, None)
    lease = store.take("planner", 30)
    assert lease is not None
    with pytest.raises(LeaseLostError):
        store.settle("critic", lease.token, None)
    clock.advance(30)
    with pytest.raises(LeaseLostError):  # it ended, though nobody else has it yet
        store.settle("planner", lease.token, None)
    assert (1, len(BARE) + 128) == store.waiting()
    store.close()


@pytest.mark.parametrize(("power_safe", "level"), [(True, 2), (False, 1)])
def test_what_is_acknowledged_is_synced_as_promised(tmp_path: Path, power_safe: bool, level: int) -> None:
    """With power_safe, put and ack run under synchronous=FULL (2); a lease does not; the journal is the WAL."""
    store = make_store(tmp_path / FILE, Clock(), power_safe=power_safe)

    def now() -> int:
        return int(store._db.execute("PRAGMA synchronous").fetchone()[0])

    store.put("planner", "a", BARE)
    put = now()
    lease = store.take("planner", 30)
    assert lease is not None
    take = now()
    store.settle("planner", lease.token, None)
    assert (level, 1, level) == (put, take, now())
    assert ("wal",) == store._db.execute("PRAGMA journal_mode").fetchone()
    store.close()


@pytest.mark.parametrize("made_again", [False, True], ids=["removed", "removed and made again"])
def test_a_spool_that_was_taken_away_is_said(tmp_path: Path, made_again: bool) -> None:
    """A message for a file that nobody would find again is not kept in silence; no receiver waits there for ever."""
    url = f"spool://{tmp_path}/spool"
    calls: list[Callable[[Connection], object]] = [
        lambda c: c.send(BARE, to="planner"),
        lambda c: c.receive(),
        lambda c: c.receive(60),
        lambda c: c.publish(Capabilities(("00" * 8,))),
        lambda c: c.capabilities("planner"),
    ]
    with connect(url, name="planner") as c:
        c.send(BARE, to="planner")
        held = c.receive()
        assert held is not None
        shutil.rmtree(tmp_path / "spool")
        with contextlib.ExitStack() as others:
            if made_again:
                others.enter_context(connect(url)).send(BARE, to="planner", handoff_id="theirs")
            for call in (*calls, lambda _: held.extend(), lambda _: held.ack()):
                with pytest.raises(UnreachableError, match="the folder was removed or replaced; connect again"):
                    call(c)
    with connect(url, name="planner") as c:
        found = c.receive()
        assert (["theirs"] if made_again else []) == [each.handoff_id for each in (found,) if each is not None]


def test_a_poisoned_message_blocks_nothing() -> None:
    """What was handed out so often and never acknowledged goes to the dead letters, and the one behind it comes."""
    settings = Settings(max_deliveries=3)
    with (
        connect("memory://poison", name="planner", settings=settings) as c,
        connect("memory://poison", name="planner-dead", settings=settings) as dead,
    ):
        for handoff_id in ("poison", "good"):
            c.send(BARE, to="planner", handoff_id=handoff_id)
        seen = []
        for _ in range(4):
            delivery = c.receive()
            assert delivery is not None
            seen.append(delivery.handoff_id)
            delivery.nack()
        assert ["poison"] * 3 + ["good"] == seen
        assert c.send(BARE, to="planner", handoff_id="poison").duplicate
        for _ in range(5):  # there it stays, until somebody acknowledges it
            delivery = dead.receive()
            assert delivery is not None
            assert ("poison", BARE) == (delivery.handoff_id, delivery.message)
            delivery.nack()
        with pytest.raises(AddressError, match="what ends so are a name's dead letters"):
            c.send(BARE, to="planner-dead")


def test_mail_that_nobody_reads_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """After ``max_age_s`` an unread message goes and is forgotten, and that is logged; one that is held stays."""
    clock = Clock()
    store = make_store(":memory:", clock, max_age_s=100.0)
    store.put("planner", "read", BARE)
    clock.advance(1)
    lease = store.take("planner", 200)
    assert lease is not None
    store.put("planner", "unread", BARE)
    clock.advance(101)
    with caplog.at_level("INFO", "ilcp.transport"):
        assert store.take("planner", 30) is None
    assert ["dropped 1 that nobody acknowledged within max_age_s"] == [each.getMessage() for each in caplog.records]
    assert (1, len(BARE) + 128) == store.waiting()
    store.settle("planner", lease.token, None)
    assert store.put("planner", "unread", BARE)


def test_one_name_leaves_room_for_the_others() -> None:
    """A name that nobody reads fills its own share, dead letters included, and no other's; what is read makes room."""
    store = make_store(":memory:", Clock(), max_bytes=4 << 20, max_name_bytes=None, max_deliveries=1)
    for number in range(17):
        store.put("unread", str(number), bytes(60_000))
    with pytest.raises(FullError, match=r"got 17 waiting messages of unread that take .*raise max_name_bytes"):
        store.put("unread", "17", bytes(60_000))
    assert store.put("read", "a", bytes(60_000))
    for _ in range(2):
        lease = store.take("unread", 30)
        assert lease is not None
        store.settle("unread", lease.token, 0.0)
    with pytest.raises(FullError, match="17 waiting messages of unread"):
        store.put("unread", "more", bytes(60_000))
    lease = store.take("unread-dead", 30)
    assert lease is not None
    store.settle("unread-dead", lease.token, None)
    assert store.put("unread", "more", bytes(60_000))


def test_what_receivers_say_of_themselves_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of names cannot fill the disk with capabilities; who has told already may tell anew."""
    monkeypatch.setattr("ilcp.transport.store.MAX_TOLD_BYTES", 100)
    assert 1 << 20 < MAX_TOLD_BYTES < 1 << 30
    store = make_store(":memory:", Clock())
    store.publish("planner", bytes(60))
    with pytest.raises(FullError, match="expected at most 100 bytes of capabilities"):
        store.publish("critic", bytes(60))
    store.publish("planner", bytes(90))


@pytest.mark.parametrize("settled", [False, True])
def test_other_content_under_a_known_id_is_refused(tmp_path: Path, settled: bool) -> None:
    """While the first waits and after its acknowledgement, another message is no duplicate, and the first is kept."""
    with connect(f"spool://{tmp_path}", name="planner") as c:
        c.send(b"forged", to="planner", handoff_id="a")
        if settled:
            delivery = c.receive()
            assert delivery is not None
            delivery.ack()
        with pytest.raises(ConflictError, match="expected the message that is known under a, got another"):
            c.send(b"genuine", to="planner", handoff_id="a")
        assert c.send(b"forged", to="planner", handoff_id="a").duplicate
        assert not c.send(b"genuine", to="critic", handoff_id="a").duplicate


def test_a_spool_of_version_1_is_taken_over(tmp_path: Path) -> None:
    """What waits in a file of before comes, is known by its content, and counts in its name's share."""
    file = tmp_path / FILE
    old = sqlite3.connect(file)
    for statement in (*SCHEMA, "PRAGMA user_version = 1"):
        old.execute(statement)
    add = "INSERT INTO handoffs (name, id, message) VALUES ('planner', ?, ?)"
    old.executemany(add, [("a", b"waiting"), ("b", b"settled")])
    old.execute("UPDATE handoffs SET message = NULL, settled_s = 1e12 WHERE id = 'b'")
    old.commit()
    old.close()
    with connect(f"spool://{tmp_path}", name="planner") as c:
        assert c.send(b"waiting", to="planner", handoff_id="a").duplicate
        assert c.send(b"whatever", to="planner", handoff_id="b").duplicate  # nobody wrote down what it was
        with pytest.raises(ConflictError):
            c.send(b"another", to="planner", handoff_id="a")
        delivery = c.receive()
        assert delivery is not None
        assert ("a", b"waiting", 1) == (delivery.handoff_id, delivery.message, delivery.attempt)
    store = make_store(file, Clock())
    assert [("planner", 1, len(b"waiting") + 128)] == store._db.execute("SELECT * FROM names").fetchall()
    store.close()
