"""The replay cache: once per key and id, in one process or several, within its bounds, whatever the clock does."""

import copy
import multiprocessing
import os
import pickle
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import ilcp
from ilcp.errors import (
    AuthenticationError,
    ConfigError,
    DecodeError,
    ExpiredError,
    ReplayCacheError,
    ReplayError,
)
from ilcp.handoff import Receiver, Sender
from ilcp.message import Message, Seal
from ilcp.message.format import CLOCK_SKEW_S
from ilcp.message.keys import KeyRing
from ilcp.message.replay import ReplayCache
from tests.helpers import closed_to_others

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
NOW = 1_800_000_000


def seal(number: int, ttl_s: int = 60) -> Seal:
    """A seal with that id, valid for so long from NOW on."""
    return Seal(number.to_bytes(8, "big"), NOW + ttl_s)


@pytest.fixture(params=["memory", "file"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReplayCache]:
    """A cache of each kind."""
    with ReplayCache(None if request.param == "memory" else tmp_path / "replay.sqlite", max_entries=5) as made:
        yield made


def test_a_handoff_is_let_in_once_per_key_and_id(cache: ReplayCache) -> None:
    """The second time is a ReplayError, of the AuthenticationError family; another id or key is another hand-off."""
    cache.admit(KEY, seal(1), now_unix_s=NOW)
    for _ in range(2):
        with pytest.raises(ReplayError, match="for the first time, got 0000000000000001 again") as caught:
            cache.admit(KEY, seal(1), now_unix_s=NOW)
        assert isinstance(caught.value, AuthenticationError)
    cache.admit(KEY, seal(2), now_unix_s=NOW)
    cache.admit(OTHER, seal(1), now_unix_s=NOW)
    assert 3 == len(cache)


def test_an_id_is_remembered_as_long_as_its_message_is_valid_and_no_longer(cache: ReplayCache) -> None:
    """To the last second of a message's life its replay is refused; from then on the message itself is too late."""
    cache.admit(KEY, seal(1), now_unix_s=NOW)
    last = NOW + 60 + CLOCK_SKEW_S - 1
    with pytest.raises(ReplayError):
        cache.admit(KEY, seal(1), now_unix_s=last)
    with pytest.raises(ExpiredError, match="it is over"):
        cache.admit(KEY, seal(1), now_unix_s=last + 1)
    assert 0 == len(cache)


def test_a_clock_that_is_set_back_lets_nothing_in_again(cache: ReplayCache) -> None:
    """What was forgotten stays refused when the clock goes back; what expires later than that is let in at once."""
    cache.admit(KEY, seal(1, ttl_s=60), now_unix_s=NOW)
    cache.admit(KEY, seal(2, ttl_s=9000), now_unix_s=NOW + 5000)  # 1 is forgotten here
    with pytest.raises(ExpiredError, match="the clock was set back"):
        cache.admit(KEY, seal(1, ttl_s=60), now_unix_s=NOW)
    cache.admit(KEY, seal(3, ttl_s=61), now_unix_s=NOW)
    with pytest.raises(ReplayError):
        cache.admit(KEY, seal(2, ttl_s=9000), now_unix_s=NOW)


def test_a_full_cache_refuses_what_is_new_and_forgets_nothing(cache: ReplayCache) -> None:
    """At max_entries nothing unexpired gives way: the new one is refused for now, and let in when room is free."""
    for number in range(5):
        cache.admit(KEY, seal(number, ttl_s=60 + number), now_unix_s=NOW)
    with pytest.raises(ReplayCacheError, match="expected room for one more hand-off, got 5 unexpired ones"):
        cache.admit(KEY, seal(9, ttl_s=600), now_unix_s=NOW)
    with pytest.raises(ReplayError):
        cache.admit(KEY, seal(0), now_unix_s=NOW)
    cache.admit(KEY, seal(9, ttl_s=600), now_unix_s=NOW + 60 + CLOCK_SKEW_S)
    assert 5 == len(cache)


def test_a_replay_error_says_what_another_holder_of_the_key_may_have_done(cache: ReplayCache) -> None:
    """An id is known by its key, not by its content, so that the text tells no one to drop a genuine message."""
    cache.admit(KEY, seal(1), now_unix_s=NOW)
    with pytest.raises(ReplayError, match="acknowledge it, unless it says something new; then another holder of its"):
        cache.admit(KEY, seal(1), now_unix_s=NOW)


def test_what_is_forgotten_on_purpose_is_let_in_once_more(cache: ReplayCache) -> None:
    """``forget`` undoes one ``admit``, and nothing where there was none."""
    cache.admit(KEY, seal(1), now_unix_s=NOW)
    cache.forget(KEY, seal(1))
    cache.forget(KEY, seal(2))
    assert 0 == len(cache)
    cache.admit(KEY, seal(1), now_unix_s=NOW)
    with pytest.raises(ReplayError):
        cache.admit(KEY, seal(1), now_unix_s=NOW)


class Model(RuleBasedStateMachine):
    """A cache and a dictionary, under the same calls and a clock that goes either way."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ReplayCache(max_entries=4)
        self.seen: dict[bytes, int] = {}
        self.forgotten, self.now = 0, NOW

    @rule(step_s=st.integers(-50, 80))
    def wait(self, step_s: int) -> None:
        """The clock goes on, or is set back."""
        self.now += step_s

    @rule(number=st.integers(0, 7), ttl_s=st.integers(1, 200))
    def admit(self, number: int, ttl_s: int) -> None:
        """One message, new or old."""
        made = Seal(bytes([number]) * 8, self.now + ttl_s)
        until = made.expires_unix_s + CLOCK_SKEW_S
        gone = {name for name, end in self.seen.items() if end <= self.now}
        self.forgotten = max([self.forgotten, *(self.seen.pop(name) for name in gone)])
        expected: type[Exception] | None = None
        if until <= self.forgotten:
            expected = ExpiredError
        elif made.handoff_id in self.seen:
            expected = ReplayError
        elif len(self.seen) >= 4:
            expected = ReplayCacheError
        else:
            self.seen[made.handoff_id] = until
        found: type[Exception] | None = None
        try:
            self.cache.admit(KEY, made, now_unix_s=self.now)
        except (ExpiredError, ReplayError, ReplayCacheError) as error:
            found = type(error)
        assert expected is found

    @rule(number=st.integers(0, 7))
    def forget(self, number: int) -> None:
        """One message is given up."""
        self.seen.pop(bytes([number]) * 8, None)
        self.cache.forget(KEY, Seal(bytes([number]) * 8, NOW))

    @invariant()
    def counts_agree(self) -> None:
        """The counter that bounds the cache is the number of entries."""
        assert len(self.seen) == len(self.cache)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, deadline=None, derandomize=True, database=None)


class Watched(sqlite3.Connection):
    """Another process makes the same cache while this one looks whether the file is one."""

    others: ClassVar[list[threading.Thread]] = []

    def execute(self, sql: str, *values: Any) -> Any:
        found = super().execute(sql, *values)
        if sql == "PRAGMA application_id" and not self.others:
            path = self.execute("PRAGMA database_list").fetchone()[2]
            self.others.append(threading.Thread(target=lambda: ReplayCache(path).close()))
            self.others[0].start()
            self.others[0].join(0.5)
        return found


def test_a_cache_that_another_process_is_making_is_no_other_database(tmp_path: Path, monkeypatch) -> None:
    """The look and the making are one step; who comes second waits for it."""
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: real(*args, **options, factory=Watched))
    with ReplayCache(tmp_path / "replay.sqlite") as cache:
        cache.admit(KEY, seal(1), now_unix_s=NOW)
        Watched.others[0].join(60)
        assert 1 == len(cache)
    assert not Watched.others[0].is_alive()


def _admit_all(path: Path, numbers: list[int], out: Any, together: Any) -> None:
    with ReplayCache(path) as cache:
        together.wait(60)
        for number in numbers:
            try:
                cache.admit(KEY, seal(number), now_unix_s=NOW)
                out.put(number)
            except ReplayError:
                pass
    out.put(None)


def test_several_processes_let_each_handoff_in_once(tmp_path: Path) -> None:
    """Four processes that meet the same 200 messages in one file let each in exactly once, all together."""
    context = multiprocessing.get_context("spawn")
    out, together = context.Queue(), context.Barrier(4)
    numbers = list(range(200))
    workers = [
        context.Process(target=_admit_all, args=(tmp_path / "replay.sqlite", numbers[n:] + numbers[:n], out, together))
        for n in (0, 50, 100, 150)
    ]
    for worker in workers:
        worker.start()
    let_in: list[int] = []
    for _ in workers:
        let_in += iter(lambda: out.get(timeout=60), None)
    for worker in workers:
        worker.join(60)
    assert Counter(numbers) == Counter(let_in)


def test_threads_share_a_cache(tmp_path: Path) -> None:
    """Eight threads with one cache let each message in exactly once."""
    with ReplayCache(tmp_path / "replay.sqlite") as cache, ThreadPoolExecutor(8) as pool:

        def first(number: int) -> bool:
            try:
                cache.admit(KEY, seal(number % 50), now_unix_s=NOW)
            except ReplayError:
                return False
            return True

        assert 50 == sum(pool.map(first, range(400)))


def test_a_forked_child_shares_the_file_and_harms_nothing(tmp_path: Path) -> None:
    """A child sees what its parent let in and the parent what the child did, each over a connection of its own."""
    with ReplayCache(tmp_path / "replay.sqlite") as cache:
        cache.admit(KEY, seal(1), now_unix_s=NOW)
        inherited = cache._file._database
        child = os.fork()
        if child == 0:  # no assertion may leave this block: pytest would go on twice
            code = 1
            try:
                cache.admit(KEY, seal(2), now_unix_s=NOW)
                cache.admit(KEY, seal(1), now_unix_s=NOW)
            except ReplayError:
                code = 0 if [inherited] == cache._file._inherited else 2
            finally:
                os._exit(code)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with pytest.raises(ReplayError):
            cache.admit(KEY, seal(2), now_unix_s=NOW)


def test_what_was_let_in_outlives_the_process_and_no_key_is_stored(tmp_path: Path) -> None:
    """A cache that is opened again remembers; its file holds ids, but neither key nor payload."""
    path = tmp_path / "replay.sqlite"
    with ReplayCache(path) as cache:
        cache.admit(KEY, seal(1), now_unix_s=NOW)
    with ReplayCache(path) as cache, pytest.raises(ReplayError):
        cache.admit(KEY, seal(1), now_unix_s=NOW)
    held = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert KEY not in held
    assert (1).to_bytes(8, "big") in held


def test_a_file_that_is_no_cache_is_named_and_lets_nothing_in(tmp_path: Path) -> None:
    """Damage, another database, a missing folder and a closed cache are each a ReplayCacheError, never an open door."""
    junk = tmp_path / "junk"
    junk.write_bytes(b"no database" * 100)
    other = tmp_path / "other"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE seen (name TEXT)")
    database.close()
    for path in (junk, other, tmp_path / "no folder" / "replay.sqlite"):
        with pytest.raises(ReplayCacheError, match=f"expected a replay cache in {path}, got"):
            ReplayCache(path)
    cache = ReplayCache()
    cache.close()
    with pytest.raises(ReplayCacheError, match="this process's memory"):
        cache.admit(KEY, seal(1), now_unix_s=NOW)
    with pytest.raises(ConfigError, match="expected max_entries and max_ttl_s of at least 1, got 0"):
        ReplayCache(max_entries=0)
    with sqlite3.connect(other) as database:  # and nothing was written into it
        assert [("seen",)] == database.execute("SELECT name FROM sqlite_master").fetchall()
    database.close()
    with ReplayCache(tmp_path / "counted") as cache:
        assert 1 == cache._file._database.execute("PRAGMA synchronous").fetchone()[0]  # NORMAL, as the docstring says
        cache._file._database.execute("DELETE FROM state")
        with pytest.raises(ReplayCacheError, match="without its counters"):
            cache.admit(KEY, seal(1), now_unix_s=NOW)


def test_no_key_may_fill_the_cache_for_years(cache: ReplayCache) -> None:
    """What is valid for longer than the cache remembers is not let in, and takes no room."""
    for_ever = Seal(bytes(8), 2**32 - 1)
    with pytest.raises(ReplayCacheError, match="expected a message valid for at most 604800 s"):
        cache.admit(KEY, for_ever, now_unix_s=NOW)
    assert 0 == len(cache)


def test_a_fork_while_another_thread_is_inside_does_not_hang_the_child(tmp_path: Path) -> None:
    """The child gets a lock of its own."""
    with ReplayCache(tmp_path / "replay.sqlite") as cache:
        cache._file._lock.acquire()
        child = os.fork()
        if child == 0:
            signal.alarm(5)
            cache.admit(KEY, seal(1), now_unix_s=NOW)
            os._exit(0)
        cache._file._lock.release()
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_copy_shares_the_file_and_there_is_none_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one copy lets in no other does, in whatever folder it is unpickled; a cache in memory has no copy."""
    monkeypatch.chdir(tmp_path)
    with ReplayCache("replay.sqlite", max_entries=7, max_ttl_s=90_000) as cache:
        pickled = pickle.dumps(cache)
        monkeypatch.chdir(tmp_path.parent)
        for number, other in enumerate((pickle.loads(pickled), copy.deepcopy(cache))):
            assert (7, 90_000) == (other.max_entries, other.max_ttl_s)
            cache.admit(KEY, seal(number), now_unix_s=NOW)
            with pytest.raises(ReplayError):
                other.admit(KEY, seal(number), now_unix_s=NOW)
            other.close()
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(ConfigError, match=r"expected a replay cache with a path.*ReplayCache\('replay.sqlite'\)"):
            duplicate(ReplayCache())


def test_a_full_disk_lets_nothing_in_and_the_cache_recovers(tmp_path: Path) -> None:
    """Where an entry cannot be written the message is not let in; when there is room again, it is, once."""
    with ReplayCache(tmp_path / "replay.sqlite") as cache:
        pages = cache._file._database.execute("PRAGMA page_count").fetchone()[0]
        cache._file._database.execute(f"PRAGMA max_page_count = {pages}")

        def fill() -> None:
            for number in range(2000):
                cache.admit(KEY, seal(number), now_unix_s=NOW)

        with pytest.raises(ReplayCacheError, match="full"):
            fill()
        entries = len(cache)
        cache._file._database.execute("PRAGMA max_page_count = 1000000")
        cache.admit(KEY, seal(entries), now_unix_s=NOW)
        with pytest.raises(ReplayError):
            cache.admit(KEY, seal(entries), now_unix_s=NOW)


def test_an_interrupted_step_leaves_nothing_behind(cache: ReplayCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of an entry takes the whole entry back, and the next one finds the cache in order."""

    def interrupted(key: bytes, seal: Seal) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("ilcp.message.replay._id", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.admit(KEY, seal(1), now_unix_s=NOW)
    cache.admit(KEY, seal(1), now_unix_s=NOW)
    assert 1 == len(cache)


@pytest.mark.parametrize("made_again", [False, True], ids=["removed", "removed and made again"])
def test_a_cache_that_was_taken_away_lets_nothing_in(tmp_path: Path, made_again: bool) -> None:
    """A file that is not at its place any more does not say what other processes let in: nothing is new to it."""
    file = tmp_path / "replay.sqlite"
    with ReplayCache(file) as cache:
        cache.admit(KEY, seal(1), now_unix_s=NOW)
        file.unlink()
        with ReplayCache(file if made_again else None) as other:
            other.admit(KEY, seal(2), now_unix_s=NOW)
            for ask in (lambda: cache.admit(KEY, seal(2), now_unix_s=NOW), lambda: cache.forget(KEY, seal(1))):
                with pytest.raises(ReplayCacheError, match="was removed or replaced"):
                    ask()


def test_a_cache_that_others_could_have_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can write to it lets old messages in again: it is closed to others, and refused where it cannot be."""
    closed_to_others(
        tmp_path, monkeypatch, ReplayCache, lambda cache: cache.admit(KEY, seal(1), now_unix_s=NOW), ReplayCacheError
    )


def test_a_receiver_decodes_a_sealed_message_once(small: Any) -> None:
    """With a cache the second decoding is refused, whoever generates; the memory of the first serves on."""
    models = small.receiver.model, small.receiver.tokenizer, small.codec
    ring = KeyRing(OTHER, (KEY,))
    end = Receiver(*models, key=ring, replay=ReplayCache(), allow_unmeasured=True)
    sender = Sender(small.sender.model, small.sender.tokenizer, small.codec, key=KEY)
    message = sender.encode("Mara owns the ticket.")
    memory = end.decode(message)
    assert end.generate(memory, "Who?") == end.generate(memory, "Who?")
    for call in (end.decode, lambda wire: end.generate(wire, "Who?"), lambda wire: end.answers([(wire, "Who?")])):
        with pytest.raises(ReplayError):
            call(message)
    assert end.decode(sender.encode("Mara owns the ticket."))  # another id
    with pytest.raises(ConfigError, match="expected a key beside the replay cache, got none"):
        Receiver(*models, replay=ReplayCache(), allow_unmeasured=True)


def test_what_a_receiver_refuses_does_not_use_up_its_id(small: Any) -> None:
    """Forged, late and mismatched messages leave the cache as it is: mended, the same hand-off is let in."""
    cache, clock = ReplayCache(), [float(NOW)]
    models = small.receiver.model, small.receiver.tokenizer, small.codec
    end = Receiver(*models, key=KEY, replay=cache, clock=lambda: clock[0], allow_unmeasured=True)
    payload = small.codec.encode(small.sender.read("Mara owns the ticket."))
    genuine = Message(small.codec.trained.codec_id(small.codec.spec), payload, seal(7))
    mismatched = Message(bytes(8), payload, seal(7))
    clock[0] = NOW + 60 + CLOCK_SKEW_S
    for wire in (genuine.to_bytes(OTHER), mismatched.to_bytes(KEY), genuine.to_bytes(KEY)):
        with pytest.raises(Exception, match=r"expected .* got"):
            end.decode(wire)
    clock[0] = NOW + 60 + CLOCK_SKEW_S - 1
    with pytest.raises(Exception, match="expected a message of codec"):
        end.decode(mismatched.to_bytes(KEY))
    nonsense = Message(genuine.codec_id, payload[:-1], seal(7)).to_bytes(KEY)  # no length that the codec has
    with pytest.raises(DecodeError):
        end.decode(nonsense)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        end.generate(genuine.to_bytes(KEY), "Who?", max_new_tokens=0)
    assert 0 == len(cache)
    assert end.decode(genuine.to_bytes(KEY))
    assert 1 == len(cache)
    end.forget(genuine.to_bytes(KEY))  # the work failed
    assert 0 == len(cache)
    assert end.decode(genuine.to_bytes(KEY))
    end.key = None
    with pytest.raises(ConfigError, match="expected a key beside the replay cache"):
        end.decode(genuine.to_bytes(KEY))


def test_a_receiver_and_a_sender_rotate_while_they_work(small: Any) -> None:
    """Keys assigned to working ends count from the next message on, and no message of the rotation is lost."""
    models = small.receiver.model, small.receiver.tokenizer, small.codec
    ring = KeyRing(KEY)
    end = Receiver(*models, key=ring, allow_unmeasured=True)
    sender = Sender(small.sender.model, small.sender.tokenizer, small.codec, key=ring)
    before = sender.encode("Mara owns the ticket.")
    end.key = ring.accepting(OTHER)
    sender.key = end.key.promoting(OTHER)
    after = sender.encode("Mara owns the ticket.")
    assert end.decode(before)
    assert end.decode(after)
    end.key = sender.key.without(KEY)
    assert end.decode(after)
    with pytest.raises(AuthenticationError):
        end.decode(before)


def test_the_embedded_pair_takes_ring_and_cache() -> None:
    """``load_pair`` hands the ring to both ends and the cache to the receiver; a cache without a key is refused."""
    pair = ilcp.load_pair(key=KeyRing(KEY), replay=ReplayCache(), assurance=None)  # no dossier
    message = pair.sender.encode("Mara owns the ticket.", literals="auto")
    assert 127 == len(message)
    assert pair.receiver.decode(message)
    with pytest.raises(ReplayError):
        pair.receiver.decode(message)
    with pytest.raises(ConfigError, match="expected a key beside the replay cache"):
        ilcp.load_pair(replay=ReplayCache())
