"""Hand-offs while sender, receiver and server are killed (-9) at random: what is lost, repeated, out of order.

    python benchmarks/faults.py [--only kills|scenarios] [--transports spool nats http] [--n 2000] [--kill-every-s 2]

Two senders hand on n/2 messages each; a sender that is killed begins again at the first one it had no receipt for,
under the same id. Two receivers compete, and each writes a hand-off down (id, time) when it gets it, before it
acknowledges it, and when the acknowledgement returned. Counted afterwards, from those books alone:

- *lost*: sent with a receipt and never handed out; or got, not acknowledged by anybody, and never handed out again.
- *acknowledgement unknown*: the receiver was killed while it acknowledged; the message did not come again.
- *handed out after its acknowledgement returned*: to either of them; the promise is 0.
- *redelivered*: handed out again although no acknowledgement had returned: at-least-once, one per killed hand.
- *out of order*: a first hand-out that comes after a later one of the same sender to the same receiver, as when a
  receiver was killed between getting a message and writing it down.

The committed figures are those of --n 100000. nats-server has to be on the path for NATS. `fault_scenarios.py` has what
else can go wrong. Exit status 1 says that a promise was not held. What a run leaves out stays in the file.
"""

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ilcp.errors import TransportError
from ilcp.transport import LeaseLostError, Settings, connect

HERE = Path(__file__).parent
MESSAGE = bytes(range(100))
LEASE_S = 2.0
SENDERS = RECEIVERS = 2
PATIENCE_S = 15.0  # without any hand-off for so long, the run has ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["kills", "scenarios"])
    parser.add_argument("--transports", nargs="+", choices=["spool", "nats", "http"], default=["spool", "nats"])
    parser.add_argument("--n", type=int, default=2000, help="hand-offs per transport")
    parser.add_argument("--kill-every-s", type=float, default=2.0, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "faults.json")
    parser.add_argument("--role", choices=["send", "receive", "serve"], help=argparse.SUPPRESS)
    parser.add_argument("--words", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role is not None:
        {"send": send, "receive": receive, "serve": serve}[args.role](*args.words)
        return
    from ilcp.measure import provenance  # loads torch, which the short-lived processes do without

    there = json.loads(args.json.read_text(encoding="utf-8")) if args.only and args.json.exists() else {}
    failed = False
    if args.only != "scenarios":
        rows = [faulted(name, args.n, args.kill_every_s, random.Random(args.seed)) for name in args.transports]
        there |= {
            "what": "hand-offs counted while sender, receiver and server processes were killed (-9) at random",
            "n": args.n,
            "seed": args.seed,
            "kill_every_s": args.kill_every_s,
            "lease_s": LEASE_S,
            "message_bytes": len(MESSAGE),
            "provenance": provenance(),
            "rows": rows,
        }
        for row in rows:
            print(json.dumps(row))
        failed |= any(row["lost"] or row["handed_out_after_its_acknowledgement"] for row in rows)
        failed |= any(row["sent_with_receipt"] < args.n // SENDERS * SENDERS for row in rows)
    if args.only != "kills":
        from fault_scenarios import scenarios

        known = {"seed": args.seed, "provenance": provenance()}  # of the rows, where there are any
        there = {**known, **there, "scenarios": scenarios(args.seed)}
        there |= {f"scenarios_{what}": value for what, value in known.items()}
        for row in there["scenarios"]:
            print(json.dumps(row))
        failed |= not all(row["held"] for row in there["scenarios"])
    args.json.write_text(json.dumps(there, indent=1) + "\n", encoding="utf-8")
    sys.exit(int(failed))


def faulted(name: str, n: int, kill_every_s: float, rng: random.Random) -> dict[str, Any]:
    """One transport under fire."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        url, server = address(name, home)
        commands: dict[str, list[str]] = {} if server is None else {"server": server}
        commands |= {f"receiver-{who}": role("receive", url, home / f"received-{who}") for who in range(RECEIVERS)}
        commands |= {
            f"sender-{who}": role("send", url, who, n // SENDERS, home / f"sent-{who}") for who in range(SENDERS)
        }
        started = time.monotonic()
        kills = fire(commands, home, n // SENDERS * SENDERS, kill_every_s, rng)
        seconds = time.monotonic() - started
        return {"transport": name, "seconds": round(seconds, 1), "kills": kills, **counted(home)}


def address(name: str, home: Path) -> tuple[str, list[str] | None]:
    """Where to connect to, and what has to run there."""
    port = free_port()
    if name == "spool":
        return f"spool://{home / 'spool'}", None
    if name == "http":
        return f"http://127.0.0.1:{port}", role("serve", home / "spool", port)
    binary = shutil.which("nats-server")
    if binary is None:
        sys.exit("expected nats-server on the path, got none: apt-get install nats-server, or leave nats out")
    return f"nats://127.0.0.1:{port}", [binary, "-js", "-a", "127.0.0.1", "-p", port, "-sd", str(home / "nats")]


def free_port() -> str:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def role(name: str, *words: object) -> list[str]:
    """The command line of one process."""
    return [sys.executable, __file__, "--role", name, "--words", *map(str, words)]


def fire(commands: dict[str, list[str]], home: Path, n: int, kill_every_s: float, rng: random.Random) -> dict[str, int]:
    """Starts all, kills one at a time and starts it again, until everything is acknowledged.

    Where nothing moves any longer, because the machine is too busy to start what was killed, the killing ends first.
    """
    running = {name: start(words) for name, words in commands.items()}
    kills = dict.fromkeys(commands, 0)
    acked: set[str] = set()
    read, moved, next_kill = [0] * RECEIVERS, time.monotonic(), time.monotonic() + 0.5
    try:
        while len(acked) < n:
            time.sleep(0.05)
            if time.monotonic() - moved > PATIENCE_S:
                if next_kill == float("inf"):
                    break
                moved, next_kill = time.monotonic(), float("inf")
            for name, process in running.items():
                if process.poll() not in (None, 0):  # a sender that has sent everything ends with 0, and stays so
                    running[name] = start(commands[name])
            for who in range(RECEIVERS):
                new, read[who] = more(home / f"received-{who}", read[who])
                found = {line.split()[1] for line in new if line.startswith("acked")}
                if found - acked:
                    moved = time.monotonic()
                    acked |= found
            if time.monotonic() >= next_kill:
                name = rng.choice([name for name, process in running.items() if process.poll() is None])
                running[name].kill()
                running[name].wait()
                kills[name] += 1
                running[name] = start(commands[name])
                next_kill = time.monotonic() + rng.expovariate(1 / kill_every_s)
        time.sleep(2 * LEASE_S)  # whatever would be handed out once more is given the time to be
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return kills


def start(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines(path: Path) -> list[str]:
    """The whole lines of a book; a killed process may have left half of one."""
    return more(path, 0)[0]


def more(path: Path, start: int) -> tuple[list[str], int]:
    """The whole lines from a byte on, and the byte after them."""
    if not path.exists():
        return [], start
    with open(path, "rb") as file:
        file.seek(start)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    return [line for line in whole.decode("ascii").split("\n") if line.endswith(".")], start + len(whole)


def counted(home: Path) -> dict[str, Any]:
    """What the books say."""
    sent = {line.split()[1] for who in range(SENDERS) for line in lines(home / f"sent-{who}")}
    acking, acked, hands = set[str](), set[str](), dict[str, int]()
    latest = dict.fromkeys(((reader, str(who)) for reader in range(RECEIVERS) for who in range(SENDERS)), -1)
    twice = redelivered = disorder = 0
    books = [(line.split(), reader) for reader in range(RECEIVERS) for line in lines(home / f"received-{reader}")]
    for (what, handoff_id, _), reader in sorted(books, key=lambda entry: int(entry[0][2].rstrip("."))):
        if what != "got":
            {"acking": acking, "acked": acked}[what].add(handoff_id)
            continue
        hands[handoff_id] = hands.get(handoff_id, 0) + 1
        if handoff_id in acked:
            twice += 1
        elif hands[handoff_id] > 1:
            redelivered += 1
        else:
            who, number = handoff_id.split("-")
            disorder += int(number) < latest[reader, who]
            latest[reader, who] = max(latest[reader, who], int(number))
    return {
        "sent_with_receipt": len(sent),
        "handed_out": len(hands),
        "lost": len(sent - set(hands)) + len(set(hands) - acking - acked),
        "acknowledgement_unknown": len(acking - acked),
        "handed_out_after_its_acknowledgement": twice,
        "redelivered": redelivered,
        "out_of_order": disorder,
    }


def send(url: str, who: str, n: str, book: str) -> None:
    """Sends what has no receipt yet; an error is answered by trying again under the same id."""
    done = len(lines(Path(book)))
    with patient(url, None) as c, open(book, "ab", buffering=0) as file:
        while done < int(n):
            try:
                c.send(MESSAGE, to="planner", handoff_id=f"{who}-{done}")
            except TransportError:
                time.sleep(0.05)
                continue
            os.write(file.fileno(), f"\nsent {who}-{done} {time.monotonic_ns()}.\n".encode())
            done += 1


def receive(url: str, book: str) -> None:
    """Receives until it is killed."""
    with patient(url, "planner") as c, open(book, "ab", buffering=0) as file:
        while True:
            try:
                delivery = c.receive(1.0)
                if delivery is None:
                    continue
                os.write(file.fileno(), f"\ngot {delivery.handoff_id} {time.monotonic_ns()}.\n".encode())
                os.write(file.fileno(), f"\nacking {delivery.handoff_id} {time.monotonic_ns()}.\n".encode())
                delivery.ack()
                os.write(file.fileno(), f"\nacked {delivery.handoff_id} {time.monotonic_ns()}.\n".encode())
            except (LeaseLostError, TransportError):
                time.sleep(0.05)


def serve(folder: str, port: str) -> None:
    """The HTTP endpoint."""
    from ilcp.transport.serve import serve as serving

    serving(Path(folder), port=int(port))


def patient(url: str, name: str | None, settings: Settings | None = None) -> Any:
    """A connection, once somebody answers."""
    while True:
        manager = connect(url, name=name, settings=settings or Settings(lease_s=LEASE_S))
        try:
            opened = manager.__enter__()
        except TransportError:
            time.sleep(0.1)
            continue
        return _Held(manager, opened)


class _Held:
    """An entered connection, to be left by ``with``."""

    def __init__(self, manager: Any, opened: Any) -> None:
        self._manager, self._opened = manager, opened

    def __enter__(self) -> Any:
        return self._opened

    def __exit__(self, *error: object) -> None:
        self._manager.__exit__(None, None, None)


if __name__ == "__main__":
    main()
