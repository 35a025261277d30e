"""A replay cache: it lets each sealed hand-off in once, per key and hand-off id, until the message's own expiry.

    message, key = verified(data, key=ring)      # ilcp.message: whole, undamaged, under a key, in time
    cache.admit(key, message.seal)               # the first time only

``Receiver(..., replay=ReplayCache("replay.sqlite"))`` does the same for every message that it decodes.

Without a path the cache is the process's own; with one it is a SQLite file, shared by the processes of one host (never
over a network file system: its locks are not to be trusted). It stores no key, payload or literal, but who can write to
the file can let old messages in again, so that it has to lie in a folder where nobody else may write. A commit
survives the death of the process; the last ones before a power cut may be lost (WAL, synchronous=NORMAL), and those
messages can come once more.

**Bounds.** An entry takes about 100 bytes and goes when its message has expired for good. At `max_entries` of them the
cache refuses what is new, because forgetting an unexpired one would let it in again: that is a ``ReplayCacheError``,
and the message may be delivered later. So `max_entries` is the rate of messages times their time to live.

**Holders of a key.** What is remembered is the id, not the content. Who has the key, and sees an id on its way, can
write another message under it; if that one comes first, the genuine one is a ``ReplayError``.

**At least once.** A transport that delivers again after a crash meets its own first delivery here: a receiver that died
between admitting and acknowledging gets a ``ReplayError``. Who would rather work twice than never calls ``forget`` when
the work has failed, and lets a message that killed its process expire.

**Clocks.** The cache remembers the latest expiry that it has forgotten. If the clock is set back, messages up to that
one cannot be distinguished from forgotten ones, and are refused as expired; later ones are not touched.
"""

import sqlite3
import time
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ilcp.database import Database
from ilcp.errors import ConfigError, ExpiredError, ReplayCacheError, ReplayError
from ilcp.message.checks import require_now
from ilcp.message.format import CLOCK_SKEW_S
from ilcp.message.seal import Seal

__all__ = ["MAX_ENTRIES", "ReplayCache"]

APPLICATION_ID = 0x696C7263  # "ilrc"
MAX_TTL_S = 7 * 86_400  # who may write for longer could fill the cache for every other key
MAX_ENTRIES = 100_000  # 10 MB; 27 messages a second with an hour to live
LOST = "so that nothing says what is new; make the cache anew"
_KEY_ID_BYTES = 8  # which key: only a handful ever meet in one cache

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS seen (id BLOB PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS seen_until ON seen (until)",
    """CREATE TABLE IF NOT EXISTS state (
        one INTEGER PRIMARY KEY CHECK (one = 1), entries INTEGER NOT NULL, forgotten INTEGER NOT NULL)""",
    "INSERT OR IGNORE INTO state VALUES (1, 0, 0)",
)


class ReplayCache:
    """The hand-offs that were let in and have not expired; safe to share between threads, and with a path processes.

    Args:
        path: a SQLite file, made if it is not there; None for a cache of this process alone.
        max_entries: how many unexpired hand-offs are remembered at most.
        max_ttl_s: messages that are valid for longer are not let in.

    Raises:
        ConfigError: `max_entries` or `max_ttl_s` is below 1.
        ReplayCacheError: the file cannot be opened, is no replay cache, or is another account's or could be.
    """

    def __init__(self, path: str | Path | None = None, *, max_entries: int = MAX_ENTRIES, max_ttl_s: int = MAX_TTL_S):
        if max_entries < 1 or max_ttl_s < 1:
            raise ConfigError(f"expected max_entries and max_ttl_s of at least 1, got {max_entries} and {max_ttl_s}")
        self.max_entries, self.max_ttl_s = max_entries, max_ttl_s
        self._file = Database(path, "a replay cache", APPLICATION_ID, _SCHEMA, LOST, ReplayCacheError)
        self.path = self._file.path

    def admit(self, key: bytes, seal: Seal, *, now_unix_s: int | None = None) -> None:
        """Remembers a hand-off that was verified under `key`; returns if, and only if, it is the first of its id.

        Raises:
            ReplayError: it was let in before, by whichever process.
            ExpiredError: it has expired, or may be a forgotten one, because the clock was set back.
            ReplayCacheError: the cache is full or cannot be read or written; the message was not let in.
            ConfigError: a `now_unix_s` that is no time.
        """
        now = int(time.time()) if now_unix_s is None else require_now(now_unix_s)
        until = seal.expires_unix_s + CLOCK_SKEW_S
        with self._file.transaction() as database:
            entries, forgotten = self._without_expired(database, now)
            if until <= max(forgotten, now):
                because = "it is over" if until <= now else "the clock was set back: check it"
                raise ExpiredError(f"expected a message valid beyond {max(forgotten, now)}, got {until}: {because}")
            if until > now + self.max_ttl_s + 2 * CLOCK_SKEW_S:
                raise ReplayCacheError(
                    f"expected a message valid for at most {self.max_ttl_s} s, got one for {until - now}: "
                    "shorten the sender's ttl_s, or raise max_ttl_s"
                )
            if database.execute("SELECT 1 FROM seen WHERE id = ?", (_id(key, seal),)).fetchone():
                raise ReplayError(
                    f"expected a hand-off for the first time, got {seal.handoff_id.hex()} again: acknowledge it, "
                    "unless it says something new; then another holder of its key has written under its id first"
                )
            if entries >= self.max_entries:
                raise ReplayCacheError(
                    f"expected room for one more hand-off, got {entries} unexpired ones: "
                    "deliver it later, and raise max_entries or shorten the senders' ttl_s"
                )
            database.execute("INSERT INTO seen VALUES (?, ?)", (_id(key, seal), until))
            database.execute("UPDATE state SET entries = entries + 1")

    def forget(self, key: bytes, seal: Seal) -> None:
        """Lets a hand-off in once more, because the work on it failed; nothing happens if it is not remembered.

        Raises:
            ReplayCacheError: the cache cannot be read or written.
        """
        with self._file.transaction() as database:
            gone = database.execute("DELETE FROM seen WHERE id = ?", (_id(key, seal),)).rowcount
            database.execute("UPDATE state SET entries = entries - ?", (gone,))

    def close(self) -> None:
        """Closes the file. What was let in stays remembered in it."""
        self._file.close()

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Makes a copy, or what is unpickled in another process, open the same file.

        Raises:
            ConfigError: there is no file: what one copy lets in, the other would let in again.
        """
        if self.path is None:
            raise ConfigError(
                "expected a replay cache with a path to copy or pickle, got one in this process's memory, of which a "
                "copy would let every message in again: give it a file, as in ReplayCache('replay.sqlite')"
            )
        limits = {"max_entries": self.max_entries, "max_ttl_s": self.max_ttl_s}
        return partial(type(self), self.path, **limits), ()

    def __enter__(self) -> "ReplayCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Counts the hand-offs that are remembered, expired ones that nobody has asked past included."""
        with self._file.transaction() as database:
            return self._state(database)[0]

    def _state(self, database: sqlite3.Connection) -> tuple[int, int]:
        """Returns how many entries there are, and the latest expiry that was forgotten."""
        row = database.execute("SELECT entries, forgotten FROM state").fetchone()
        if row is None:
            place = self._file.name
            raise ReplayCacheError(f"expected a replay cache in {place}, got one without its counters: remove it")
        return row[0], row[1]

    def _without_expired(self, database: sqlite3.Connection, now: int) -> tuple[int, int]:
        """Forgets what has expired; returns how many entries are left, and the latest expiry that ever went."""
        gone, latest = database.execute("SELECT count(*), max(until) FROM seen WHERE until <= ?", (now,)).fetchone()
        if gone:
            database.execute("DELETE FROM seen WHERE until <= ?", (now,))
            database.execute("UPDATE state SET entries = entries - ?, forgotten = max(forgotten, ?)", (gone, latest))
        return self._state(database)


def _id(key: bytes, seal: Seal) -> bytes:
    """Joins a digest of the key, never the key itself, and the id: another key's holder cannot use up these ids."""
    return blake2b(key, digest_size=_KEY_ID_BYTES, person=b"ilcp replay").digest() + seal.handoff_id
