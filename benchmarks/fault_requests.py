"""What the live HTTP ingress makes of malformed requests, wrong tokens and idle connections; see `fault_scenarios.py`.

A malformed request is bytes on a socket of its own. Each kind is made so that nothing in it can be meant as a whole
message: whatever is kept, or answered with a 2xx or a 5xx, breaks the promise.
"""

import random
import re
import socket
import sqlite3
import string
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from fault_shared import MESSAGE, TOKEN, free_port, patient, start

from ilcp.message import MAX_MESSAGE_BYTES
from ilcp.transport import MEDIA_TYPE, connect
from ilcp.transport.app import BODY_S, MAX_AT_ONCE
from ilcp.transport.spool import spool_file

Row = dict[str, Any]
ENDPOINT = """
import sys
from pathlib import Path
from ilcp.transport.serve import serve
serve(Path(sys.argv[1]), "planner", port=int(sys.argv[2]), token=sys.argv[3])
"""
ANSWER_S = BODY_S + 5.0
AUTHORIZED = f"authorization: Bearer {TOKEN}"
ID = "ilcp-handoff-id: bad"
MEDIA = f"content-type: {MEDIA_TYPE}\r\n{ID}"
WHOLE = f"content-length: {len(MESSAGE)}"
GUESSERS = 64
IDLE_S = 1.0
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"


def request(path: str, *headers: str, body: bytes = b"", method: str = "POST", last: bool = True) -> bytes:
    """Writes a request as bytes; latin-1, so that any byte can be written."""
    first, then = [f"{method} {path} HTTP/1.1", "host: localhost", AUTHORIZED], ["connection: close"] if last else []
    return "\r\n".join([*first, *headers, *then, "", ""]).encode("latin-1") + body


def good(rng: random.Random) -> bytes:
    """Writes what would be kept if it came whole."""
    return request("/v1/planner", MEDIA, WHOLE, body=MESSAGE)


def truncated(rng: random.Random) -> bytes:
    whole = good(rng)
    return whole[: rng.randrange(1, len(whole))]


def oversized(rng: random.Random) -> bytes:
    if rng.random() < 0.2:  # a head without an end, beyond what any server reads
        return request("/v1/planner", MEDIA, "x: " + "a" * rng.randrange(70_000, 100_000))
    length = rng.choice([MAX_MESSAGE_BYTES + 1, 10**6, 2**31, 2**32, 2**63, 2**64, 10**14, 10**40])
    return request("/v1/planner", MEDIA, f"content-length: {length}", body=rng.randbytes(rng.randrange(50)))


def wrong_length(rng: random.Random) -> bytes:
    lengths = ["-1", "+5", "0x5", "5, 6", "", "1e3", "5.0", "five", "\xb2", "0", "5\r\ncontent-length: 6", "5;", "0 5"]
    return request("/v1/planner", MEDIA, f"content-length: {rng.choice(lengths)}", body=b"hello")


def chunked(rng: random.Random) -> bytes:
    coding = rng.choice(["chunked", "Chunked", "gzip, chunked", "chunked, chunked", "identity", "\x0bchunked"])
    length = rng.choice([[], [], ["content-length: 5"], ["content-length: 3"], [f"content-length: {len(CHUNKS)}"]])
    body = rng.choice(
        [CHUNKS, b"z\r\n", b"-5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n", b"5;a=b\r\nhello\r\n0\r\n\r\n"]
    )
    if coding in ("identity", "\x0bchunked") and length:  # else the message could be read as one of that length
        length = []
    return request("/v1/planner", MEDIA, f"transfer-encoding: {coding}", *length, body=body)


def bad_header(rng: random.Random) -> bytes:
    lines = ["no colon", "x : y", " x: y", "x: a\x00b", "x: a\rb", ": y", "x\x7f: y", "host: y", "(x): y"]
    ids = ["../x", "a b", "a" * 65, "", "a/b", "a.b", "%61", "'--", "a\tb"]
    lines += [f"ilcp-handoff-id: {known}" for known in ids]
    return request("/v1/planner", rng.choice(lines), MEDIA, WHOLE, body=MESSAGE)


def non_ascii(rng: random.Random) -> bytes:
    letter = rng.choice(["\xe9", "\xff", "\xc3\xa9", "\xf0\x9f\x90\x98", "\x80"])
    path, name, value, media = "/v1/planner", "x", "ok", MEDIA
    match rng.randrange(5):
        case 0:
            path += letter
        case 1:
            name += letter
        case 2:
            name, value = "ilcp-handoff-id", letter
        case 3:
            media += letter
        case 4:
            path += "%" + letter.encode("latin-1").hex()[:2]
    return request(path, f"{name}: {value}", media, WHOLE, body=MESSAGE)


def wrong_media_type(rng: random.Random) -> bytes:
    types = [
        "text/plain",
        "application/json",
        MEDIA_TYPE + "; charset=x",
        MEDIA_TYPE + "x",
        MEDIA_TYPE.upper(),
        "",
        "*/*",
    ]
    return request("/v1/planner", f"content-type: {rng.choice(types)}", ID, WHOLE, body=MESSAGE)


def traversal(rng: random.Random) -> bytes:
    up = rng.choice(["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..\\", "..%5c", "....//", "%252e%252e%252f", "..;/"])
    end = rng.choice(["etc/passwd", "v1/planner", "handoffs.sqlite", "planner%00", ""])
    path = rng.choice(["/v1/", "/", "//", "/v1/planner/"]) + up * rng.randrange(1, 6) + end
    return request(path, MEDIA, WHOLE, body=MESSAGE, method=rng.choice(["POST", "GET", "PUT"]))


def web_page(rng: random.Random) -> bytes:
    host = rng.choice(["evil.example", "localhost.evil.example", "1.2.3.4.evil.example", "-", "[::1", "x:y"])
    origin = rng.choice(["http://evil.example", "null", "http://localhost", "https://127.0.0.1", "file://"])
    whole = request("/v1/planner", *rng.choice([[], [f"origin: {origin}"]]), MEDIA, WHOLE, body=MESSAGE)
    return whole if b"origin" in whole else whole.replace(b"host: localhost", f"host: {host}".encode())


def garbage(rng: random.Random) -> bytes:
    begins = [b"", b"", b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n", b"\r\n" * 50, b"{}"]
    return rng.choice(begins) + rng.randbytes(rng.randrange(1, 2000))


def no_such_door(rng: random.Random) -> bytes:
    method = rng.choice(["DELETE", "PATCH", "TRACE", "OPTIONS", "post", "X" * 300, "PUT", "LOCK", "PROPFIND"])
    path = rng.choice(["/v1/planner", "/v1/planner/ack", "/v2/planner", "/v1/critic", "*", "http://y/v1/planner"])
    return request(path, MEDIA, WHOLE, body=MESSAGE, method=method)


def pipelined(rng: random.Random) -> bytes:
    kinds = [wrong_media_type, web_page, no_such_door, traversal, bad_header, chunked]
    several = [rng.choice(kinds)(rng).replace(b"connection: close\r\n", b"") for _ in range(rng.randrange(1, 5))]
    return b"".join(several) + wrong_media_type(rng)


def half_open(rng: random.Random) -> bytes:
    """Writes the head and half a body, after which nothing comes."""
    return request("/v1/planner", MEDIA, "content-length: 100", body=rng.randbytes(rng.randrange(100)))


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    truncated,
    oversized,
    wrong_length,
    chunked,
    bad_header,
    non_ascii,
    wrong_media_type,
    traversal,
    web_page,
    garbage,
    no_such_door,
    pipelined,
)
CUT = (truncated, garbage)  # the sender says that it has ended: no server can know otherwise


@contextmanager
def served() -> Iterator[tuple[int, str, Path]]:
    """Runs an ingress, and gives its port, its address, and the file of its spool."""
    with tempfile.TemporaryDirectory() as home:
        port = free_port()
        process = start([sys.executable, "-c", ENDPOINT, home, port, TOKEN])
        try:
            url = f"http://127.0.0.1:{port}"
            with patient(url, None):
                yield int(port), url, spool_file(Path(home))
        finally:
            process.kill()
            process.wait()


def kept(file: Path) -> int:
    """Counts the messages that a spool ever kept and still remembers."""
    with closing(sqlite3.connect(file)) as db:
        return int(db.execute("SELECT count(*) FROM handoffs").fetchone()[0])


def malformed_requests(n: int, rng: random.Random) -> Row:
    """Sends n requests of all kinds in turn, then more half-open ones than the ingress serves at once."""
    seen: dict[str, Counter[str]] = {kind.__name__: Counter() for kind in (*KINDS, half_open)}
    half = n // (len(KINDS) + 1)
    with served() as (port, url, file):
        for kind in [KINDS[number % len(KINDS)] for number in range(n - half)]:
            s = opened(port, kind(rng))
            seen[kind.__name__].update(answers(s, time.monotonic() + ANSWER_S, end=kind in CUT))
        waiting = [opened(port, half_open(rng)) for _ in range(half)]
        until_s = time.monotonic() + ANSWER_S
        for s in waiting:
            seen[half_open.__name__].update(answers(s, until_s, end=False))
        remaining = kept(file)
        with patient(url, None) as c, connect(f"spool://{file.parent}", name="planner") as behind:
            c.send(MESSAGE, to="planner", handoff_id="good")
            delivery = behind.receive(5)
            answered = delivery is not None and delivery.message == MESSAGE and delivery.handoff_id == "good"
    by_status = sum(seen.values(), Counter())
    wrong = sum(count for status, count in by_status.items() if status[0] in "25")
    return {
        "scenario": "malformed requests",
        "transport": "http",
        "promise": "no 5xx, no 2xx, nothing kept, every whole request answered in time, and a good one afterwards",
        "requests": n,
        "answers_by_status": dict(sorted(by_status.items())),
        "answers_by_kind": {kind: dict(sorted(counts.items())) for kind, counts in seen.items()},
        "answered_5xx": sum(count for status, count in by_status.items() if status[0] == "5"),
        "half_open_at_once": len(waiting),
        "requests_that_the_ingress_serves_at_once": MAX_AT_ONCE,
        "kept": remaining,
        "good_request_answered_afterwards": answered,
        "held": wrong == remaining == by_status["no answer in time"] == 0 and answered and len(waiting) > MAX_AT_ONCE,
    }


def opened(port: int, data: bytes) -> socket.socket:
    """Opens a connection and sends ``data``, as far as the ingress took it."""
    s = socket.create_connection(("127.0.0.1", port), ANSWER_S)
    with suppress(OSError):
        s.sendall(data)
    return s


def answers(s: socket.socket, until_s: float, *, end: bool) -> list[str]:
    """Reads the statuses that come until the ingress closes; ``end``: we say first that nothing more will come."""
    read = b""
    with s:
        try:
            if end:
                s.shutdown(socket.SHUT_WR)
            while True:
                s.settimeout(max(0.01, until_s - time.monotonic()))
                chunk = s.recv(65536)
                if not chunk:
                    break
                read += chunk
        except TimeoutError:
            return ["no answer in time"]
        except OSError:
            pass  # reset: what was said before it counts
    return [status.decode() for status in re.findall(rb"HTTP/1\.1 (\d{3})", read)] or ["closed without an answer"]


def wrong_tokens(n: int, rng: random.Random) -> Row:
    """Sends n requests for each way in which a token can be wrong, then one with the right token."""

    def other(make: Callable[[], str]) -> str:
        while (made := make()) == TOKEN:
            pass
        return made

    letters = string.ascii_letters + string.digits + "-"
    wrong: dict[str, Callable[[], str | None]] = {
        "another": lambda: "Bearer " + other(lambda: "".join(rng.choices(letters, k=len(TOKEN)))),
        "none": lambda: None,
        "other case": lambda: "Bearer " + other(lambda: "".join(rng.choice([a, a.swapcase()]) for a in TOKEN)),
        "prefix": lambda: "Bearer " + TOKEN[: rng.randrange(1, len(TOKEN))],
        "suffix": lambda: "Bearer " + TOKEN[rng.randrange(1, len(TOKEN)) :],
        "longer": lambda: "Bearer " + TOKEN + "".join(rng.choices(letters, k=rng.randrange(1, 20))),
        "empty": lambda: rng.choice(["Bearer ", "Bearer", ""]),
        "another scheme": lambda: rng.choice(["Basic ", "Token ", "", "Bearer:", "Bearer Bearer "]) + TOKEN,
    }
    let_in = {}
    with served() as (port, _, file), ThreadPoolExecutor(GUESSERS) as guessers:  # each guess is answered late

        def post(authorization: str | None) -> int:
            headers = {"content-type": MEDIA_TYPE, "ilcp-handoff-id": "guess"}
            headers |= {} if authorization is None else {"authorization": authorization}
            with closing(HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)) as c:
                c.request("POST", "/v1/planner", MESSAGE, headers)
                return c.getresponse().status

        for how, make in wrong.items():
            let_in[how] = sum(status != 401 for status in guessers.map(post, [make() for _ in range(n)]))
        remaining = kept(file)
        right = post(f"Bearer {TOKEN}")
    return {
        "scenario": "wrong tokens",
        "transport": "http",
        "promise": "only the token lets in",
        "requests_of_each": n,
        "let_in": let_in,
        "kept": remaining,
        "status_with_the_right_token": right,
        "held": not any(let_in.values()) and remaining == 0 and right == 202,
    }


def idle_connections(n: int) -> Row:
    """Opens n connections that say nothing, and asks beside them."""
    with served() as (port, _, _), ExitStack() as stack:
        for _ in range(n):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), ANSWER_S))
        began = time.monotonic()
        with closing(HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)) as c:
            c.request("GET", "/health")
            status = c.getresponse().status
        seconds = time.monotonic() - began
    return {
        "scenario": "idle connections",
        "transport": "http",
        "promise": f"health is answered within {IDLE_S:g} s",
        "idle": n,
        "status": status,
        "seconds": round(seconds, 3),
        "held": status == 200 and seconds < IDLE_S,
    }
