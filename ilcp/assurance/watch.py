"""The state of what is watched, per codec, tenant and end: how many messages, what was decided, and what was won by
betting that they have changed.

It survives restarts in a SQLite file, and processes of one host may share it. An alarm stands until somebody has looked
into it: ``reset`` begins anew. It holds counts and capital, no message and no text.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from threading import Lock
from typing import Any

from ilcp.assurance.martingale import ALARM, MOST, START, Canary, Jumper
from ilcp.database import Database
from ilcp.errors import ConfigError, StorageError
from ilcp.records import read_record, shown

__all__ = ["State", "Watch"]

APPLICATION_ID = 0x696C7761  # "ilwa"
MOST_TENANT = 200  # characters
MOST_VIEWS = 80
Key = tuple[str, str, str, str]  # codec, reference, tenant, place
KEYS = ("codec_id", "reference", "tenant", "place")
FRESH = (*Jumper.fresh().capital, Jumper.fresh().asleep)
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS states (
        codec TEXT, reference TEXT, tenant TEXT, place TEXT, state TEXT NOT NULL,
        PRIMARY KEY (codec, reference, tenant, place)) WITHOUT ROWID""",
)


@dataclass(frozen=True, slots=True)
class State:
    """What is known of one codec's messages for one tenant at one end ("sender", "receiver" or "canary")."""

    codec_id: str
    reference: str
    tenant: str
    place: str
    messages: int = 0
    decided: Mapping[str, int] = field(default_factory=dict)
    capital: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # on bets, and what sleeps, by kind of view
    views: int = 1  # that share the starting capital
    peak: float = START
    alarm_unix_s: int = 0
    alarm_at: int = 0  # the number of the message
    last_unix_s: int = 0
    canary: Canary | None = None

    @property
    def value(self) -> float:
        """All capital over what it began with, of which a hundredfold is an alarm; of canaries what the fault won."""
        if self.canary is not None:
            return self.canary.values[0]
        won = sum(sum(each) for each in self.capital.values())
        return (won + START * (self.views - len(self.capital))) / self.views

    @property
    def alarmed(self) -> bool:
        """Says whether an alarm stands."""
        return self.alarm_at > 0

    @property
    def sound(self) -> bool:
        """Says whether messages can have led to it: who wrote a file may be anybody."""
        counts = (self.messages, self.alarm_unix_s, self.alarm_at, self.last_unix_s, *self.decided.values())
        held = [*self.capital.values(), *((self.canary.against_usual, self.canary.against_lost) if self.canary else ())]
        return (
            min(counts) >= 0
            and max(1, len(self.capital)) <= self.views <= MOST_VIEWS
            and {len(each) for each in self.capital.values()} <= {len(FRESH)}
            and all(0 <= won <= MOST for each in held for won in each)
            and 0 <= self.peak < float("inf")
            and (self.canary is None or self.canary.sound)
        )

    def bet(self, ranks: Mapping[str, tuple[float, float]], views: int) -> "State":
        """Returns the state after one message, of whose views p-values, and how far each may be off, are given."""
        capital = dict(self.capital)
        for name, (p, off) in ranks.items():
            kind = name.split("/")[0]  # payloads of all lengths are one sequence: each has one p-value
            *laid, asleep = capital.get(kind, FRESH)
            jumper = Jumper(tuple(laid), asleep=asleep).bet(p, off)
            capital[kind] = (*jumper.capital, jumper.asleep)
        return self._looked(self.messages + 1, capital=capital, views=max(views, len(capital)))

    def told(self, test: Canary) -> "State":
        """Returns the state of canaries after an answer."""
        return self._looked(test.asked, canary=test)

    def decide(self, action: str) -> "State":
        """Returns the state with one more decision of that name."""
        return replace(self, decided={**self.decided, action: self.decided.get(action, 0) + 1})

    def to_json(self) -> str:
        """Returns all but whose state it is."""
        held = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in KEYS}
        return json.dumps(held | {"canary": None if self.canary is None else asdict(self.canary)})

    def _looked(self, messages: int, **changed: Any) -> "State":
        now = int(time.time())
        state = replace(self, messages=messages, last_unix_s=now, **changed)
        value = state.value
        if value > self.peak:
            state = replace(state, peak=value)
        return replace(state, alarm_unix_s=now, alarm_at=messages) if value >= ALARM and not self.alarmed else state


class Watch:
    """States, in a file or in this process's memory; safe between threads and processes.

    Args:
        path: a SQLite file of this account's own, made if it is not there; None for this process alone.

    Raises:
        StorageError: the file cannot be opened, is no watch, or is another account's or could be.
    """

    def __init__(self, path: str | Path | None = None):
        lost = "so that nothing says what was won; open it again"
        self._file = None if path is None else Database(path, "a watch", APPLICATION_ID, _SCHEMA, lost, StorageError)
        self.path = None if self._file is None else self._file.path
        self._lock = Lock()
        self._known: dict[Key, tuple[str, State]] = {}  # what was written, or read, last; without a file, all there is

    def change(
        self, codec_id: str, reference: str, tenant: str, place: str, step: Callable[[State], State] | None
    ) -> State:
        """Returns a state after one step, which nobody else sees half of; without a step, as it is.

        Raises:
            StorageError: the file cannot be read or written.
            ConfigError: the tenant's name is none.
        """
        key = (codec_id, reference, tenant_name(tenant), place)
        if self._file is None:
            with self._lock:
                state = self._known[key][1] if key in self._known else State(*key)
                if step is not None:
                    state = step(state)
                    self._known[key] = ("", state)
                return state
        with self._file.transaction() as database:
            query = "SELECT state FROM states WHERE codec = ? AND reference = ? AND tenant = ? AND place = ?"
            row = database.execute(query, key).fetchone()
            state = State(*key) if row is None else self._read(key, row[0])
            if step is None:
                return state
            state = step(state)
            held = state.to_json()
            database.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?)", (*key, held))
            self._known[key] = (held, state)
        return state

    def look(self, codec_id: str, reference: str, tenant: str, place: str) -> State:
        """Returns a state as it is; raises as ``change``."""
        return self.change(codec_id, reference, tenant, place, None)

    def states(self) -> list[State]:
        """Returns all states, in the order of codecs, tenants and places.

        Raises:
            StorageError: as ``change``.
        """
        if self._file is None:
            with self._lock:
                found = [state for _, state in self._known.values()]
            return sorted(found, key=lambda state: (state.codec_id, state.tenant, state.place, state.reference))
        with self._file.transaction() as database:
            rows = database.execute("SELECT * FROM states ORDER BY codec, tenant, place, reference").fetchall()
        return [self._read(row[:4], row[4]) for row in rows]

    def reset(self, codec_id: str, tenant: str = "") -> int:
        """Begins anew for a codec and tenant, once somebody has looked into an alarm; returns how many states went.

        Raises:
            StorageError: as ``change``.
        """
        if self._file is None:
            with self._lock:
                gone = [key for key in self._known if (key[0], key[2]) == (codec_id, tenant)]
                for key in gone:
                    del self._known[key]
            return len(gone)
        with self._file.transaction() as database:
            query = "DELETE FROM states WHERE codec = ? AND tenant = ?"
            return database.execute(query, (codec_id, tenant)).rowcount

    def close(self) -> None:
        """Closes the file; what it holds stays."""
        if self._file is not None:
            self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Makes a copy, or what is unpickled, open the same file; one of a process's memory begins anew."""
        return type(self), (self.path,)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, key: Key, held: Any) -> State:
        known = self._known.get(key)
        if known is not None and known[0] == held:
            return known[1]
        where = f"the watch in {self.path}"
        try:
            record = json.loads(held)
        except (TypeError, ValueError, RecursionError) as error:
            raise StorageError(f"expected a state in {where}, got {shown(held)}: remove the file") from error
        if not isinstance(record, dict) or record.keys() & {*KEYS}:
            raise StorageError(f"expected a state in {where}, got {shown(held)}: remove the file")
        state = read_record(State, record | dict(zip(KEYS, key, strict=True)), where, error=StorageError)
        if not state.sound:
            raise StorageError(
                f"expected a state in {where}, got {shown(held)}, which no messages lead to: remove the file"
            )
        return state


def tenant_name(tenant: str) -> str:
    """Returns the name of a tenant.

    Raises:
        ConfigError: it is none.
    """
    given: Any = tenant
    if not isinstance(given, str) or len(tenant) > MOST_TENANT or not (tenant == "" or tenant.isprintable()):
        raise ConfigError(f"expected a tenant as up to {MOST_TENANT} printable characters, got {shown(tenant)}")
    return tenant
