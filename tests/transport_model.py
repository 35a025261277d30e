"""What a transport does, in the fewest words, and how each transport is set up to be compared with it.

The model knows no lease token, no SQL and no network: a list of entries per name, and a clock.
"""

import contextlib
import itertools
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pytest

from ilcp.message import Message, Seal
from ilcp.transport import Connection, Settings, connect, connect_async
from ilcp.transport.portal import connected_by_portal

SEALED = Message(bytes(8), b"payload", Seal(b"\x01" * 8, 2**31)).to_bytes(bytes(range(16)))
BARE = Message(bytes(8), b"payload").to_bytes()
NATS_SERVER = shutil.which("nats-server")
OPENSSL = shutil.which("openssl")
# A mark that `-m` selects by, and the reason that a skipped test gives.
NEEDS_NATS = [pytest.mark.nats, pytest.mark.skipif(NATS_SERVER is None, reason="nats-server is not installed")]
NEEDS_OPENSSL = [pytest.mark.openssl, pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")]

T = TypeVar("T")
Door = Callable[[str], AbstractContextManager[Connection]]


class Clock:
    """A clock that stands until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class RealClock(Clock):
    """The clock of a server that takes no other: to let time pass is to wait, so leases are short there."""

    def __call__(self) -> float:
        return time.time()

    def advance(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            time.sleep(0.02)


@dataclass
class Entry:
    """One hand-off, as the model sees it."""

    handoff_id: str
    message: bytes
    attempt: int = 0
    free_s: float = 0.0
    settled_s: float | None = None
    dead: bool = False


@dataclass
class Model:
    """Queues by name, oldest first."""

    lease_s: float
    dedup_s: float
    max_deliveries: int
    clock: Clock
    queues: dict[str, list[Entry]] = field(default_factory=dict)

    def send(self, name: str, handoff_id: str, message: bytes) -> bool | None:
        """Keeps a message, and says whether it is a duplicate; None: another one is known under the id."""
        queue = self.queues.setdefault(name, [])
        queue[:] = [e for e in queue if e.settled_s is None or self.clock() - e.settled_s <= self.dedup_s]
        for entry in queue:
            if entry.handoff_id == handoff_id:
                return True if entry.message == message else None
        queue.append(Entry(handoff_id, message))
        return False

    def free(self, name: str) -> list[Entry]:
        """Lists what may be handed out now, oldest first."""
        dead, now = name.endswith("-dead"), self.clock()
        queue = self.queues.get(name.removesuffix("-dead"), [])
        free = [e for e in queue if e.settled_s is None and e.free_s <= now and e.dead == dead]
        while free and self._is_given_up(free[0]):
            del free[0]
        return free

    def bury(self, name: str) -> None:
        """Does what a receive does first: what comes up once too often is a dead letter from then on."""
        for entry in self.queues.get(name, []):
            if entry.settled_s is None and entry.free_s <= self.clock() and not entry.dead:
                if not self._is_given_up(entry):
                    return
                entry.dead = True

    def _is_given_up(self, entry: Entry) -> bool:
        return not entry.dead and entry.attempt >= self.max_deliveries

    def take(self, entry: Entry) -> None:
        """Hands the entry out."""
        entry.attempt += 1
        entry.free_s = self.clock() + self.lease_s


@dataclass(frozen=True)
class Kind:
    """One transport: how to set it up, whether its clock can be moved, and whether it keeps order when it repeats."""

    name: str
    opened: Callable[[Settings], AbstractContextManager[Door]]
    moves_clock: bool = True
    keeps_order: bool = True


def by_portal(url: str, *, name: str | None = None) -> AbstractContextManager[Connection]:
    """Connects as ``nats`` does it, through an event loop in another thread, to whatever the address is."""
    return connected_by_portal(connect_async(url, name=name))


@contextmanager
def memory(settings: Settings) -> Iterator[Door]:
    """Opens a name of its own; one connection stays open, because the store ends with the last."""
    url = f"memory://{next(_NUMBERS)}"
    with connect(url, settings=settings):
        yield lambda name: connect(url, name=name, settings=settings)


@contextmanager
def spool(settings: Settings) -> Iterator[Door]:
    """Opens a folder of its own, and a file handle per connection, as processes have it."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = replace(settings, power_safe=False)  # what a power cut may do is another test's
        yield lambda name: connect(f"spool://{folder}", name=name, settings=theirs)


@contextmanager
def nats(settings: Settings) -> Iterator[Door]:
    """Runs a server of its own, on a free port, with an empty folder."""
    with nats_server() as url:
        theirs = Settings(lease_s=settings.lease_s)
        yield lambda name: connect(url, name=name, settings=theirs)


@contextmanager
def nats_server(*options: str, folder: Path | None = None, port: int | None = None) -> Iterator[str]:
    """Runs a server, and gives its address."""
    with contextlib.ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = NatsServer(home, *options, port=port)
        stack.callback(server.kill)
        yield server.url


class NatsServer:
    """A server that can be killed and started again on its port and folder."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._words = [str(NATS_SERVER), "-js", "-a", "127.0.0.1", "-p", str(self.port), "-sd", str(folder), *options]
        self.start()

    def start(self) -> None:
        """Starts it, and returns once it listens."""
        self._process = subprocess.Popen(self._words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_port(self.port)
        except AssertionError:
            self.kill()
            raise

    def kill(self) -> None:
        """Ends it as kill -9 does."""
        self._process.kill()
        self._process.wait()


def needs_openssl(test: T) -> T:
    """Marks a test that makes certificates."""
    selected, skipped = NEEDS_OPENSSL
    marked: T = selected(skipped(test))  # type: ignore[assignment]
    return marked


def free_port() -> int:
    """Finds a port that nobody listened on a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for_port(port: int, timeout_s: float = 20.0) -> None:
    """Returns once somebody listens."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end, f"nobody listens on {port}"
            time.sleep(0.02)


CA = """
[ca]
default_ca = one
[one]
database = {folder}/index.txt
serial = {folder}/serial
new_certs_dir = {folder}
default_md = sha256
policy = any
x509_extensions = names
copy_extensions = none
[any]
commonName = supplied
[names]
subjectAltName = DNS:localhost
"""


def certificate(folder: Path, start: str, end: str) -> tuple[Path, Path]:
    """Makes a self-signed certificate for localhost, good between two times (YYMMDDHHMMSSZ), and its key."""
    assert OPENSSL is not None
    cert, key, request, config = (folder / name for name in ("cert.pem", "key.pem", "request.pem", "ca.conf"))
    config.write_text(CA.format(folder=folder))
    (folder / "index.txt").touch()
    (folder / "serial").write_text("01\n")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    for words in (
        ["req", "-new", *curve, "-keyout", key, "-out", request],
        ["ca", "-batch", "-notext", "-selfsign", "-config", config, "-keyfile", key, "-in", request, "-out", cert]
        + ["-startdate", start, "-enddate", end],
    ):
        subprocess.run([OPENSSL, *map(str, words)], capture_output=True, check=True)
    return cert, key


KINDS = (
    Kind("memory", memory),
    Kind("spool", spool),
    pytest.param(Kind("nats", nats, moves_clock=False, keeps_order=False), marks=NEEDS_NATS),
)
_NUMBERS = itertools.count()
