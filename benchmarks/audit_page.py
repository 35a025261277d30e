"""The auditor's page under strangers, under kills, and over ledgers of many sizes.

    python benchmarks/audit_page.py        # writes benchmarks/results/audit-page.json

- *hostile*: requests of a stranger to a server of its own: random paths, methods, heads, bytes that are no HTTP. None
  may be let in. As many of a reader who may see one run: none may show a word of another one.
- *kills*: a reader looks at page after page while the server is killed (-9) at random: every page that was shown has to
  be on record.
- *times*: how long each page takes to come, p50 of some views, in ledgers of 10^3 to 10^5 hand-offs, and the first view
  of all, which counts.

Exit status 1 says that somebody was let in, or a view was lost.
"""

import argparse
import http.client
import json
import random
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ilcp.audit import Draft, Guardian, Ledger, Signer
from ilcp.audit.guardian import settings_for
from ilcp.files import write_whole
from ilcp.measure import provenance
from ilcp.transport import connect

HERE = Path(__file__).parent
SIGNER = Signer("benchmark/ledger", bytes(range(32)))
TOKEN, OTHER = "t" * 43, "u" * 43
SECRET = "tuesday"  # the run that one reader may not see
SIZES = (1_000, 10_000, 100_000)
PAGES = ("/", "/inventory", "/handoffs", "/handoffs?flag=differs", "/activity", "/retention", "/signoff", "/handoffs/3")
ASKED = ("run", "event", "flag", "before", "first_day")
HOSTS = ("127.0.0.1", "127.0.0.1", "localhost", "evil.example")
MORE = ("X-Nothing: 1", "X-Forwarded-For: 127.0.0.1", "X-Original-URL: /", "Content-Length: 5", "Range: bytes=0-9")
METHODS = ("GET",) * 6 + ("HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "\x00GET", "G" * 3000)
LOOK_S = 0.3  # at an answer that does not come
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "audit-page.json")
    args = parser.parse_args()
    what = "the auditor's page under strangers, under kills, and over many entries"
    record: Figures = {"what": what, "seed": args.seed}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in {"hostile": hostile, "kills": kills, "times": times}.items():
            place = Path(folder) / name
            (place / "spool").mkdir(mode=0o700, parents=True)
            record[name] = part(place, args)
            print(name, json.dumps(record[name]), flush=True)
    write_whole(args.json, json.dumps(record | {"provenance": provenance()}, indent=1) + "\n")
    hostile_found = record["hostile"]
    sys.exit(bool(hostile_found["let in"] or hostile_found["told of another run"] or record["kills"]["lost"]))


def hostile(place: Path, args: argparse.Namespace) -> Figures:
    """Returns how a server answered strangers, and a reader of one run."""
    rng = random.Random(args.seed)
    ledger_of(place, 200)
    by_status: dict[str, Counter[str]] = {"stranger": Counter(), "reader of one run": Counter()}
    told = 0
    with served(place) as port:
        for number in range(2 * args.requests):
            who = "stranger" if number % 2 else "reader of one run"
            raw = request(rng, OTHER if who == "reader of one run" else "")
            answer = raw_answer(port, raw)
            status = answer.split(b" ", 2)[1].decode() if answer.startswith(b"HTTP/1.1 ") else "closed"
            by_status[who][status] += 1
            body = answer.partition(b"\r\n\r\n")[2]
            asked_for = raw.split(b"\r\n", 1)[0]
            told += SECRET.encode() in body and SECRET.encode() not in asked_for and who == "reader of one run"
        alive = asked(port, "/", TOKEN)[0]
    return {
        "requests": args.requests,
        "let in": sum(n for status, n in by_status["stranger"].items() if status.startswith("2")),
        "told of another run": told,
        "failed": sum(n for each in by_status.values() for status, n in each.items() if status.startswith("5")),
        "answers": {who: dict(sorted(counts.items())) for who, counts in by_status.items()},
        "alive afterwards": alive == 200,
    }


def kills(place: Path, args: argparse.Namespace) -> Figures:
    """Returns how many pages were shown while servers were killed, and how many of them are not on record."""
    rng = random.Random(args.seed)
    ledger_of(place, 200)
    shown = Counter[str]()
    for number in range(args.kills):
        with served(place) as port:
            ends = time.monotonic() + rng.uniform(0.05, 0.6)
            while time.monotonic() < ends:
                page = f"/handoffs?run={number}"
                with suppress(OSError, http.client.HTTPException):
                    shown[page] += asked(port, page, TOKEN)[0] == 200
    via = f"spool://{place / 'spool'}"
    recorded = Counter[str]()
    with connect(via, name="guardian", settings=settings_for(via)) as c, Ledger(place / "l", SIGNER) as ledger:
        while Guardian(ledger, c).work(1.0):
            pass
        for entry in ledger.entries(kinds=["handoff"], run="views"):
            recorded[str(entry.fields["page"])] += 1
    lost = sum(max(0, count - recorded[page]) for page, count in shown.items())
    return {"kills": args.kills, "shown": shown.total(), "recorded": recorded.total(), "lost": lost}


def times(place: Path, args: argparse.Namespace) -> list[Figures]:
    """Returns how long pages take, by the size of the ledger."""
    found = []
    for size in SIZES:
        own = place / str(size)
        (own / "spool").mkdir(mode=0o700, parents=True)
        ledger_of(own, size)
        with served(own) as port:
            first = timed(port, "/")
            usual = {page: round(float(np.median([timed(port, page) for _ in range(9)])), 4) for page in PAGES}
        found.append({"handoffs": size, "first_s": round(first, 4), "p50_s": usual})
    return found


def ledger_of(place: Path, size: int) -> None:
    """Makes a ledger of hand-offs of two runs, every fourth with an account, and a file of readers."""
    with Ledger(place / "l", SIGNER) as ledger:
        for start in range(0, size, 1000):
            ledger.append([each for n in range(start, min(start + 1000, size)) for each in drafts(n)])
    readers = "".join(
        f'[[reader]]\nname = "{name}"\ntoken_sha256 = "{sha256(token.encode()).hexdigest()}"\nruns = {runs}\n'
        for name, token, runs in (("Jane", TOKEN, '"all"'), ("Bob", OTHER, '["monday"]'))
    )
    (place / "readers").write_text(readers)


def drafts(number: int) -> Iterator[Draft]:
    run = SECRET if number % 3 == 0 else "monday"
    digest = sha256(str(number).encode()).hexdigest()
    known = {"producer": f"planner-{run}", "run": run, "part": "p", "sequence": number + 1, "event": "sent"}
    about = {
        "message_bytes": 100,
        "message_sha256": digest,
        "handoff_id": digest[:32],
        "codec": "vae",
        "codec_id": "c0",
    }
    yield Draft("handoff", known | about, {"literals": [f"INC-{run}-{number}"]})
    if number % 4 == 0:
        lines = [{"question": f"Who, on {run}?", "answer": "Mara", "from_text": "Mara" if number % 8 else "Ivo"}]
        fields = {"of": 1 + number + (number + 3) // 4, "run": run, "handoff_id": digest[:32]}
        counts = {"asked": 1, "compared": 1, "differ": int(number % 8 == 0), "gloss_by": {"codec_id": "c0"}}
        yield Draft("account", fields | counts, {"gloss": lines, "summary": f"It was {run}."})


def request(rng: random.Random, token: str) -> bytes:
    """Makes up a request: what it asks for is random, and who asks is a stranger unless there is a token."""
    letters = string.ascii_letters + string.digits + "/.%?&=;:@~'\"<>\\{}[]|-_"
    number = rng.choice([rng.randint(0, 300), rng.randint(0, 10**20), -1])
    path = rng.choice(
        [
            "/" + "".join(rng.choices(letters, k=rng.randint(0, 80))),
            f"/handoffs/{number}",
            f"/compare?one={number}&other={rng.randint(0, 300)}",
            "/handoffs?" + "&".join(f"{name}={rng.choice(letters)}" for name in ASKED),
            f"/{rng.choice(['inventory', 'views', 'retention', 'activity', 'signoff', 'integrity', ''])}",
            "/handoffs/%2e%2e/%2e%2e/etc/passwd",
            f"/handoffs?run={SECRET}",
        ]
    )
    made_up = "".join(rng.choices(string.ascii_letters, k=rng.randint(0, 60)))
    scheme = rng.choice(["Bearer", "Basic", "bearer", "Digest", "Negotiate", ""])
    head = f"Bearer {token}" if token else rng.choice([f"{scheme} {made_up}", f"{scheme} {'A' * 4000}", ""])
    heads = [f"Host: {rng.choice(HOSTS)}", f"Authorization: {head}", rng.choice(MORE), "Connection: close"]
    whole = "\r\n".join([f"{rng.choice(METHODS)} {path} HTTP/1.1", *heads, "", "hello"])
    raw = whole.encode("utf-8", "replace")
    if not token and rng.random() < 0.1:
        return rng.randbytes(rng.randint(1, 2000)) + b"\r\n\r\n"
    return raw[: rng.randint(1, len(raw))] + b"\r\n\r\n" if rng.random() < 0.1 else raw


def raw_answer(port: int, data: bytes) -> bytes:
    """Returns whatever comes back; nothing, where the connection is closed."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=LOOK_S) as connection, suppress(OSError):
        connection.sendall(data)
        while part := connection.recv(1 << 16):
            found += part
    return found


def asked(port: int, page: str, token: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", page, headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def timed(port: int, page: str) -> float:
    began = time.perf_counter()
    status, _ = asked(port, page, TOKEN)
    assert status == 200, (page, status)
    return time.perf_counter() - began


@contextmanager
def served(place: Path) -> Iterator[int]:
    """Serves the ledger by a process, which is killed in the end, and gives its port."""
    options = ["--readers", place / "readers", "--via", f"spool://{place / 'spool'}"]
    command = [sys.executable, "-m", "ilcp", "audit", "serve", place / "l", *options]
    quiet: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(list(map(str, command)), text=True, **quiet) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield int(line.partition("http://127.0.0.1:")[2].partition(";")[0])
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    main()
