"""Shared by the benchmarks of transports: the message, servers and processes that are started, and what they write.

The processes themselves are in `fault_roles.py`.
"""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ilcp.errors import TransportError
from ilcp.message import Message
from ilcp.transport import Connection, Settings, connect

ROLES = Path(__file__).parent / "fault_roles.py"
MESSAGE = Message(bytes(8), bytes(range(80))).to_bytes()  # 100 bytes
TOKEN = "Correct-Horse-42"
LEASE_S = 2.0


def address(name: str, home: Path) -> tuple[str, str, list[str] | None]:
    """Says where to send to and where to receive from, and what has to run there."""
    port, spool = free_port(), f"spool://{home / 'spool'}"
    if name == "spool":
        return spool, spool, None
    if name == "http":
        return f"http://127.0.0.1:{port}", spool, role("serve", home / "spool", port)
    binary = shutil.which("nats-server")
    if binary is None:
        sys.exit("expected nats-server on the path, got none: apt-get install nats-server, or leave nats out")
    nats = f"nats://127.0.0.1:{port}"
    return nats, nats, [binary, "-js", "-a", "127.0.0.1", "-p", port, "-sd", str(home / "nats")]


def settings_for(url: str, **more: Any) -> Settings:
    """Makes the settings of a connection, with the token where one is asked for."""
    return Settings(lease_s=LEASE_S, token=TOKEN if url.startswith("http") else None, **more)


def free_port() -> str:
    """Finds a port that nobody listened on a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def role(name: str, *words: object) -> list[str]:
    """Gives the command line of one process."""
    return [sys.executable, str(ROLES), name, *map(str, words)]


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """Starts a process that says nothing."""
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines(path: Path) -> list[str]:
    """Reads the whole lines of a book; a killed process may have left half of one."""
    return more(path, 0)[0]


def more(path: Path, start: int) -> tuple[list[str], int]:
    """Reads the whole lines from a byte on, and says which byte comes after them."""
    if not path.exists():
        return [], start
    with open(path, "rb") as file:
        file.seek(start)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    return [line for line in whole.decode("ascii").split("\n") if line.endswith(".")], start + len(whole)


@contextmanager
def patient(url: str, name: str | None, settings: Settings | None = None) -> Iterator[Connection]:
    """Connects once somebody answers."""
    with ExitStack() as stack:
        while True:
            try:
                c = stack.enter_context(connect(url, name=name, settings=settings or settings_for(url)))
                break
            except TransportError:
                time.sleep(0.1)
        yield c
