"""The HTTP endpoint, called as ASGI: any method, path, query, headers and body.

An input is ``METHOD PATH?QUERY``, lines of headers, an empty line, the body. A method in small letters goes to an
endpoint that asks for a token. Two messages are there: a free one for ``a``, and one for ``b`` that is leased.
"""

import re
from typing import Any
from urllib.parse import unquote_to_bytes

from fuzz.transport_client import LOOP, NOW_S
from ilcp.errors import DecodeError
from ilcp.message import MAX_MESSAGE_BYTES, describe
from ilcp.transport.app import endpoint
from ilcp.transport.backend import MEDIA_TYPE, Lease
from ilcp.transport.spool import StoreBackend
from ilcp.transport.store import Store

__all__ = ["Impatient", "asked", "memory_store", "status_of"]

TOKEN = "correct"
LEASED = b"2.abcd"
WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
SENDS = re.compile(r"/v1/([A-Za-z0-9_-]{1,64})")
CHANGES = {("POST", 201), ("POST", 200), ("POST", 204), ("PUT", 204)}  # what may leave the store another
RESTORE = (
    "DELETE FROM handoffs",
    "DELETE FROM capabilities",
    "UPDATE totals SET messages = 0, bytes = 0",
    "INSERT INTO handoffs (number, name, id, message) VALUES (1, 'a', 'known', x'6d')",
    "INSERT INTO handoffs (number, name, id, message, attempt, lease, taken_s, free_s) "
    f"VALUES (2, 'b', 'held', x'6e', 1, 'abcd', {NOW_S}, {NOW_S + 60})",
    "UPDATE sqlite_sequence SET seq = 2",
)
Headers = list[tuple[bytes, bytes]]


class Impatient(StoreBackend):
    """A store's backend that waits for nobody."""

    async def take(self, name: str, lease_s: float, wait_s: float) -> Lease | None:
        return await super().take(name, lease_s, 0.0)


def memory_store() -> Store:
    """Makes a store in memory, whose clock stands still."""
    return Store(":memory:", clock=lambda: NOW_S, dedup_s=600.0, max_bytes=64 << 20, power_safe=False)


STORE = memory_store()
BACKEND = Impatient(STORE)
OPEN, LOCKED = endpoint(BACKEND), endpoint(BACKEND, token=TOKEN)


def _restore() -> int:
    for statement in RESTORE:
        STORE._db.execute(statement)
    return STORE._db.total_changes


STATE = {"changes": _restore()}


def asked(data: bytes) -> None:
    """Fails where a request brings out an exception or a 5xx, or is kept although it is no send, or without a token."""
    head, _, body = data.partition(b"\n\n")
    line, *lines = head.split(b"\n")
    word, _, target = line.partition(b" ")
    path, _, query = target.partition(b"?")
    method = word.decode("latin-1")
    headers = [(name.lower(), value.strip()) for name, _, value in (one.partition(b":") for one in lines)]
    scope: dict[str, Any] = {
        "method": method.upper(),
        "path": "/" + unquote_to_bytes(path).decode("utf-8", "replace").lstrip("/"),
        "query_string": bytes(byte for byte in query if 32 < byte < 127),  # as h11 lets through
        "headers": [(name, value) for name, value in headers if name.replace(b"-", b"").isalnum()],
    }
    locked = method.islower()
    try:
        status = LOOP.run_until_complete(status_of(LOCKED if locked else OPEN, scope, body))
        _check(scope, body, status, locked)
    finally:
        if STORE._db.total_changes != STATE["changes"]:
            STATE["changes"] = _restore()


async def status_of(app: Any, scope: dict[str, Any], body: bytes) -> int:
    """Returns the status of the one answer to a request, whose body comes in two parts, as far as it is declared."""
    declared = _declared(scope["headers"])
    parts = [(body[:5], True), (body[5:], declared is not None and len(body) < declared)]
    started: list[int] = []

    async def receive() -> dict[str, Any]:
        if not parts:
            return {"type": "http.disconnect"}
        part, more = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": more}

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            started.append(event["status"])
            for name, value in event["headers"]:
                assert b"\r" not in name + value
                assert b"\n" not in name + value

    common = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""}
    peers = {"client": ("peer", 1), "server": ("localhost", 80), "raw_path": scope["path"].encode()}
    await app({**common, **peers, **scope}, receive, send)
    assert len(started) == 1
    return started[0]


def _check(scope: dict[str, Any], body: bytes, status: int, locked: bool) -> None:
    method, headers = scope["method"], dict(reversed(scope["headers"]))
    changed = STORE._db.total_changes != STATE["changes"]
    assert status < 500, f"status {status}"
    assert not changed or (method, status) in CHANGES, f"{method} changed the store with status {status}"
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    if locked and (scheme.lower(), given) != (b"bearer", TOKEN.encode()):
        assert status in (401, 404, 405) or scope["path"] == "/health", f"status {status} without the token"
        assert not changed, "changed without the token"
        return
    if changed and (method, status) == ("POST", 204):
        lease = headers.get(b"ilcp-lease", b"").lstrip(b"0")  # a row's number may have zeros in front
        assert scope["path"] in ("/v1/b/ack", "/v1/b/nack"), f"{scope['path']} settled what was leased to b"
        assert lease == LEASED, f"{scope['path']} settled a lease that was not its own"
    kept = STORE._db.execute("SELECT name, id, message FROM handoffs WHERE number > 2").fetchall()
    known = _well_formed(scope, headers, body)
    sends = method == "POST" and SENDS.fullmatch(scope["path"]) is not None
    if sends:
        assert (status in (200, 201)) == (known is not None), f"a send was answered with {status}"
        assert len(kept) == (status == 201), f"{len(kept)} messages were kept with status {status}"
    if kept:
        assert sends, "a request that is no send was kept"
        assert (scope["path"][4:], body) == (kept[0][0], kept[0][2])
        assert known in ("", kept[0][1])


def _well_formed(scope: dict[str, Any], headers: dict[bytes, bytes], body: bytes) -> str | None:
    """Reads the id of a send as ``ilcp.transport.api`` has it, empty for a fresh one; None where it is no send."""
    given = headers.get(b"ilcp-handoff-id")
    right = headers.get(b"content-type") == MEDIA_TYPE.encode() and b"transfer-encoding" not in headers
    right = right and _declared(scope["headers"]) == len(body)
    if not right or not 1 <= len(body) <= MAX_MESSAGE_BYTES:
        return None
    try:
        own = describe(body).handoff_id
    except DecodeError:
        own = None
    if given is not None and not WORD.fullmatch(given.decode("latin-1")):
        return None
    if given is not None and own is not None and own != given.decode("latin-1"):
        return None
    return own or (given or b"").decode("latin-1")


def _declared(headers: Headers) -> int | None:
    """Reads the first content-length, if it is one."""
    text = next((value for name, value in headers if name == b"content-length"), b"")
    return int(text) if text.isdigit() and len(text) <= 15 else None
