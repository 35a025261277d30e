"""The HTTP ingress, called as ASGI: any method, path, query, headers and body.

An input is ``METHOD PATH?QUERY``, lines of headers, an empty line, the body. A method in capitals comes with the
token, one in small letters with what the headers say. The ingress is for ``a``, for whom a message is there.
"""

import re
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote_to_bytes

import ilcp.transport.app
from fuzz.transport_client import LOOP, NOW_S
from ilcp.errors import DecodeError
from ilcp.message import MAX_MESSAGE_BYTES, describe
from ilcp.transport.app import ingress
from ilcp.transport.backend import MEDIA_TYPE, Settings, content_digest
from ilcp.transport.connection import AsyncConnection
from ilcp.transport.spool import StoreBackend
from ilcp.transport.store import Store

__all__ = ["AUTHORIZED", "asked", "in_front_of", "memory_store", "status_of"]

TOKEN = "correct-horse-battery"
AUTHORIZED = (b"authorization", f"Bearer {TOKEN}".encode())
WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
RESTORE = (
    "DELETE FROM handoffs",
    "DELETE FROM names",
    "INSERT INTO handoffs (number, name, id, message, digest, sent_s, over_s) "
    f"VALUES (1, 'a', 'known', x'6d', x'{content_digest(b'm').hex()}', {NOW_S}, {NOW_S + 60})",
    "UPDATE sqlite_sequence SET seq = 1",
)
SETTINGS = Settings(clock=lambda: NOW_S, power_safe=False)
Headers = list[tuple[bytes, bytes]]
ilcp.transport.app.WRONG_S = 0.0


def memory_store() -> Store:
    """Makes a store in memory, whose clock stands still."""
    return Store(":memory:", SETTINGS)


def in_front_of(store: Store) -> Any:
    """Makes an ingress for ``a``."""
    return ingress(AsyncConnection(StoreBackend(store), None, SETTINGS), "a", token=TOKEN)


STORE = memory_store()
APP = in_front_of(STORE)


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
    if not method.islower():
        scope["headers"].insert(0, AUTHORIZED)
    try:
        _check(scope, body, LOOP.run_until_complete(status_of(APP, scope, body)))
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


def _check(scope: dict[str, Any], body: bytes, status: int) -> None:
    method, headers = scope["method"], dict(reversed(scope["headers"]))
    changed = STORE._db.total_changes != STATE["changes"]
    assert status < 500, f"status {status}"
    assert not changed or (method, status) == ("POST", 202), f"{method} changed the store with status {status}"
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    if (scheme.lower(), given) != (b"bearer", TOKEN.encode()):
        assert status in (401, 403, 404, 405) or scope["path"] == "/health", f"status {status} without the token"
        assert not changed, "changed without the token"
        return
    kept = STORE._db.execute("SELECT name, id, message FROM handoffs WHERE number > 1").fetchall()
    known = _well_formed(scope, headers, body)
    sends = (method, scope["path"]) == ("POST", "/v1/a") and _from_outside(headers)
    assert (status in (200, 202, 409)) >= (sends and known is not None), f"a send was answered with {status}"
    assert len(kept) == (status == 202), f"{len(kept)} messages were kept with status {status}"
    if kept:
        assert sends, "a request that is no send was kept"
        assert ("a", known, body) == kept[0]


def _from_outside(headers: dict[bytes, bytes]) -> bool:
    """Says whether no web page can have sent it: a host that is no name, and no origin."""
    host = headers.get(b"host", b"").decode("latin-1")
    found = re.fullmatch(r"(?:\[(?P<six>[^\]]+)\]|(?P<name>[^][:]*))(?::[0-9]*)?", host)
    named = "" if found is None else (found["six"] or found["name"]).rstrip(".").lower()
    try:
        local = named in ("", "localhost") or bool(ip_address(named))
    except ValueError:
        local = False
    return b"origin" not in headers and found is not None and local


def _well_formed(scope: dict[str, Any], headers: dict[bytes, bytes], body: bytes) -> str | None:
    """Reads the id of a send as ``ilcp.transport.api`` has it; None where it is no send."""
    given = headers.get(b"ilcp-handoff-id")
    right = headers.get(b"content-type") == MEDIA_TYPE.encode() and b"transfer-encoding" not in headers
    right = right and _declared(scope["headers"]) == len(body)
    if not right or not 1 <= len(body) <= MAX_MESSAGE_BYTES:
        return None
    try:
        own = describe(body).handoff_id
    except DecodeError:
        return None
    if given is not None and not WORD.fullmatch(given.decode("latin-1")):
        return None
    if given is not None and own is not None and own != given.decode("latin-1"):
        return None
    return own or (given.decode("latin-1") if given is not None else None)


def _declared(headers: Headers) -> int | None:
    """Reads the first content-length, if it is one."""
    text = next((value for name, value in headers if name == b"content-length"), b"")
    return int(text) if text.isdigit() and len(text) <= 15 else None
