"""A producer's outbox: what is told to the guardian lies in a file at once, and a thread takes it to the transport.

A hand-off then waits for one write to a file. A killed process loses nothing of it: what its outbox still holds is sent
by the next one that opens a recorder with the same folder. A file belongs to whoever holds its lock.
"""

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

from ilcp.errors import StorageError, TransportError
from ilcp.files import NO_FOLLOW, PRIVATE, file_id, locked, own_folder

__all__ = ["Outbox"]

SUFFIX, ASIDE = ".outbox", ".aside"
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 5.0  # between two tries at a transport that cannot be reached
LOOK_S = 0.2  # at whether the outbox is being closed


class Outbox:
    """One process's outbox in a folder.

    Args:
        folder: of this account's own; made where there is none.
        name: of this outbox in it, which no other one has.
        send: takes a line to the transport; where that is away or full, it is tried again.
        check: raises where a line that another process left is none.

    Raises:
        StorageError: the folder, or a file in it, cannot be made or is another's.
    """

    def __init__(self, folder: Path, name: str, send: Callable[[bytes], None], check: Callable[[bytes], object]):
        own_folder(folder)
        self._folder, self._file = folder, folder / f"{name}{SUFFIX}"
        self._send, self._check = send, check
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._lock, self._closing, self._left = threading.Lock(), threading.Event(), 0
        self._pid = os.getpid()
        self._handle = self._made()
        self._thread = threading.Thread(target=self._work, name="ilcp outbox", daemon=True)
        self._thread.start()

    def _made(self) -> int:
        """Makes the file, and holds its lock before another process may take it for one that nobody has any more."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW
        while True:
            try:
                handle = os.open(self._file, flags, PRIVATE)
            except OSError as error:
                raise StorageError(f"expected to make an outbox at {self._file}, got: {error}") from error
            if locked(handle) and file_id(handle) == file_id(self._file):
                return handle
            os.close(handle)

    def put(self, line: bytes) -> None:
        """Keeps a line; once this returns, a killed process does not lose it.

        Raises:
            StorageError: there is no room; nothing of it is kept.
        """
        with self._lock:
            if self._handle < 0 or os.getpid() != self._pid:
                raise StorageError(f"expected an open outbox of this process, got {self._file.name}: open another one")
            before = os.fstat(self._handle).st_size
            try:
                if os.write(self._handle, line + b"\n") == len(line) + 1:
                    self._left += 1
                    self._lines.put(line)
                    return
                raise OSError("only a part of it was written")
            except OSError as error:
                os.ftruncate(self._handle, before)
                raise StorageError(f"expected room in {self._file}, got: {error}; free space") from error

    @property
    def left(self) -> int:
        """How many lines the transport does not have yet."""
        return self._left

    def close(self, timeout_s: float) -> None:
        """Waits so long for the transport to take what is left; what it does not take stays in the file."""
        if self._handle < 0 or os.getpid() != self._pid:  # a fork's file is its parent's
            return
        self._closing.set()
        self._thread.join(timeout_s)
        with self._lock:
            if not self._left:
                self._file.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1

    def _work(self) -> None:
        for line in self._orphans():
            if not self._sent(line, checked=False):
                return
        while not (self._closing.is_set() and self._lines.empty()):
            try:
                line = self._lines.get(timeout=LOOK_S)
            except Empty:
                continue
            if not self._sent(line):
                return
            with self._lock:
                self._left -= 1
                if not self._left and self._handle >= 0:
                    os.ftruncate(self._handle, 0)

    def _sent(self, line: bytes, checked: bool = True) -> bool:
        """Sends a line, however often it takes; False where the outbox is closed meanwhile.

        What no transport will ever take is set aside, so that the next ones go on.
        """
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                if not checked:
                    self._check(line)
                self._send(line)
                return True
            except Exception as error:  # of any kind: a thread that ends takes nothing away any more
                if not isinstance(error, TransportError | StorageError) and self._set_aside(line, error):
                    return True
                if self._closing.wait(pause_s):
                    return False
                pause_s = min(2 * pause_s, LAST_PAUSE_S)

    def _set_aside(self, line: bytes, error: Exception) -> bool:
        """Puts a line into a file of its own; False where there is no room: it stays, and is tried again."""
        aside = self._folder / f"{self._file.stem}{ASIDE}"
        try:
            with open(aside, "ab", opener=partial(os.open, mode=PRIVATE)) as file:
                file.write(line + b"\n")
        except OSError:
            return False
        warnings.warn(f"a record cannot be sent, and is set aside in {aside}: {error}", RuntimeWarning, stacklevel=2)
        return True

    def _orphans(self) -> Iterator[bytes]:
        """Yields the lines of outboxes whose processes have ended, each file until it is removed."""
        for file in sorted(self._folder.glob(f"*{SUFFIX}")):
            if file == self._file:
                continue
            try:
                handle = os.open(file, os.O_RDONLY | NO_FOLLOW)
            except OSError:
                continue
            with os.fdopen(handle, "rb") as opened:
                if not locked(opened.fileno()):
                    continue
                whole = [line for line in opened.read().split(b"\n")[:-1] if line.strip(b"\0 ")]
                yield from whole  # a line that was cut off was never handed over
                file.unlink(missing_ok=True)
