"""A watch's file is hostile until it was read: what a stranger puts there, and who may put anything there."""

import json
import os
import sqlite3
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilcp.assurance import Canary, State, Watch
from ilcp.assurance.watch import FRESH
from ilcp.errors import ConfigError, StorageError
from tests.helpers import closed_to_others

OF = ("c0de", "reference", "", "receiver")
SOUND = {"messages": 1, "capital": {"received": list(FRESH)}, "views": 1}
CANARY = asdict(Canary(0.8, 0.4))
HOSTILE: dict[str, Any] = {
    "no JSON": "{",
    "no text": b"\xff\xfe\x00",
    "a number": 7,
    "a list": "[]",
    "text": '"x"',
    "lists without end": "[" * 100_000,
    "an unknown key": {"evil": 1},
    "its own key": {"codec_id": "another"},
    "its own place": {"place": "sender"},
    "no views": {"views": 0},
    "fewer views than capital": {"views": 1, "capital": {"received": list(FRESH), "probed": list(FRESH)}},
    "too many views": {"views": 81},
    "counts below zero": {"messages": -1},
    "decisions below zero": {"decided": {"accept": -1}},
    "an alarm before the first message": {"alarm_at": -1},
    "too few bets": {"capital": {"received": [1.0]}},
    "no bets": {"capital": {"received": []}},
    "capital that is none": {"capital": {"received": [float("nan"), *FRESH[1:]]}},
    "capital without end": {"capital": {"received": [float("inf"), *FRESH[1:]]}},
    "debts": {"capital": {"received": [-1.0, 9.0, *FRESH[2:]]}},
    "a peak that is none": {"peak": float("nan")},
    "a whole number without end": {"messages": 10**400},
    "words for numbers": {"messages": "1"},
    "a canary that nothing may win": {"canary": {**CANARY, "usual": 1.0}},
    "a canary that all lose": {"canary": {**CANARY, "lost": 0.0}},
    "a canary of fewer stakes": {"canary": {**CANARY, "against_usual": [1.0]}},
    "a canary in debt": {"canary": {**CANARY, "against_lost": [-1.0] * 5}},
    "a canary with more right than asked": {"canary": {**CANARY, "right": 1}},
}


def held(path: Path, state: Any, key: tuple[Any, ...] = OF) -> None:
    """Puts a row into a watch's file."""
    if isinstance(state, dict):
        state = json.dumps(SOUND | state)
    with sqlite3.connect(path) as database:
        database.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?)", (*key, state))
    database.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A watch's file."""
    Watch(tmp_path / "watch.sqlite").close()
    return tmp_path / "watch.sqlite"


def step(state: State) -> State:
    """What an end does with a state."""
    return (
        state.told((state.canary or Canary(0.8, 0.4)).told(True)).bet({"received/80": (0.5, 0.01)}, 1).decide("accept")
    )


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_state_is_refused(path: Path, hostile: str) -> None:
    """Whatever stands there: a StorageError that says what to do, from each way to read it; others go on."""
    held(path, HOSTILE[hostile])
    with Watch(path) as watch:
        for ask in (watch.states, lambda: watch.change(*OF, step), lambda: watch.look(*OF)):
            with pytest.raises(StorageError, match=r"expected .* got"):
                ask()
        assert {"accept": 1} == watch.change("other", *OF[1:], step).decided
        assert 1 == watch.reset(OF[0])
        assert 1 == len(watch.states())


@pytest.mark.parametrize("key", [(b"\xff", "r", "", "receiver"), (7, "r", "", "receiver")])
def test_a_hostile_key_is_refused(path: Path, key: tuple[Any, ...]) -> None:
    """As is one of another type."""
    held(path, {}, key)
    with Watch(path) as watch:
        if isinstance(key[0], int):  # a column of text makes text of it
            assert "7" == watch.states()[0].codec_id
        else:
            with pytest.raises(StorageError, match="codec_id"):
                watch.states()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*asdict(State(*OF)), "evil"])


@given(st.dictionaries(NAMES, json_values, max_size=3))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_whatever_a_state_says_it_is_read_or_refused(state: dict[str, Any]) -> None:
    """No other error comes of it, neither where it is read nor where it is gone on from."""
    with TemporaryDirectory() as folder, Watch(f"{folder}/watch") as watch:
        with cast(Any, watch)._file.transaction() as database:
            database.execute("INSERT INTO states VALUES (?, ?, ?, ?, ?)", (*OF, json.dumps(SOUND | state)))
        try:
            (found,) = watch.states()
        except StorageError:
            return
        assert 0 <= found.value < float("inf")
        assert watch.change(*OF, step).messages >= 0


def test_a_file_that_is_no_watch_is_left_alone(tmp_path: Path) -> None:
    """Damage, another database and a missing folder are each a StorageError that names the file; so is a closed one."""
    junk, other = tmp_path / "junk", tmp_path / "other"
    junk.write_bytes(b"no database" * 100)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE states (name TEXT)")
    database.close()
    for file in (junk, other, tmp_path / "no folder" / "watch.sqlite"):
        with pytest.raises(StorageError, match=f"expected a watch in {file}, got"):
            Watch(file)
    assert b"no database" * 100 == junk.read_bytes()
    closed = Watch(tmp_path / "closed")
    closed.close()
    with pytest.raises(StorageError, match=f"expected a watch in {tmp_path / 'closed'}"):
        closed.states()


def test_a_replay_cache_is_no_watch(tmp_path: Path) -> None:
    """Nor the other way: the two files of one account are told apart."""
    from ilcp.errors import ReplayCacheError
    from ilcp.message.replay import ReplayCache

    ReplayCache(tmp_path / "replay.sqlite").close()
    with pytest.raises(StorageError, match="got another database: name another file"):
        Watch(tmp_path / "replay.sqlite")
    Watch(tmp_path / "watch.sqlite").close()
    with pytest.raises(ReplayCacheError, match="got another database: name another file"):
        ReplayCache(tmp_path / "watch.sqlite")


def test_a_watch_that_was_taken_away_says_so(path: Path) -> None:
    """What is counted into a file that is not at its place nobody finds again."""
    with Watch(path) as watch:
        watch.change(*OF, step)
        path.unlink()
        with pytest.raises(
            StorageError, match=r"was removed or replaced, so that nothing says what was won; open it ag"
        ):
            watch.change(*OF, step)


def test_a_watch_that_others_could_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can write to it can end an alarm: it is closed to others, and refused where it cannot be."""
    closed_to_others(tmp_path, monkeypatch, Watch, lambda watch: watch.change(*OF, step), StorageError)


def test_a_forked_child_shares_the_file(path: Path) -> None:
    """A child counts over a connection of its own, though another thread of its parent was inside."""
    with Watch(path) as watch:
        watch.change(*OF, step)
        cast(Any, watch)._file._lock.acquire()
        child = os.fork()
        if child == 0:  # no assertion may leave this block: pytest would go on twice
            code = 1
            try:
                counted = watch.change(*OF, step).decided == {"accept": 2}
                code = 0 if counted and len(cast(Any, watch)._file._inherited) == 1 else 2
            finally:
                os._exit(code)
        cast(Any, watch)._file._lock.release()
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert {"accept": 3} == watch.change(*OF, step).decided


@pytest.mark.parametrize("tenant", ["a\x1b[31m", "x" * 201, "\ud800", "two\nlines", 7])
def test_a_tenant_is_a_name(tenant: Any) -> None:
    """Printable, and not without end: it stands in tables and metrics."""
    with Watch() as watch, pytest.raises(ConfigError, match="expected a tenant as up to 200 printable characters"):
        watch.change("c0de", "reference", tenant, "receiver", step)
