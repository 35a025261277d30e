"""A second decoder of Message v1, v2 and v3, written from the specification alone: nothing of ilcp is imported here.

It reads with a cursor, field by field, where ``ilcp.message`` unpacks with a library and packs again. ``decode``
returns the fields, or raises ``Refused`` with the kind of refusal.
"""

import hashlib
import re
from typing import Any

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

HEADERS = {0xA0: (0, 1), 0xD9: (1, 32), 0xDA: (2, 256), 0xC4: (1, 1), 0xC5: (2, 256)}
LITERAL = re.compile("(?! )[^\x00-\x1f\x7f-\x9f\u2028\u2029\ue000-\uf8ff]+(?<! )")


class Refused(Exception):
    """The message is malformed or damaged ("decode"), not authentic ("authentication"), or too late ("expired")."""


class Cursor:
    """Reads from the left; whatever is not there, or not as it has to be, is refused."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, n: int, exactly: bytes | None = None) -> bytes:
        """Takes n bytes, which have to be those given."""
        part = self.data[self.at : self.at + n]
        need(len(part) == n and (exactly is None or part == exactly))
        self.at += n
        return part

    def sized(self, kinds: dict[int, tuple[int, int]]) -> tuple[int, bytes]:
        """Takes a header byte and the bytes it announces; ``kinds`` has its length's bytes and the least length."""
        first = self.take(1)[0]
        kind = 0xA0 if first & 0xE0 == 0xA0 else first
        need(kind in kinds)
        width, least = kinds[kind]
        n = int.from_bytes(self.take(width), "big") if width else first & 0x1F
        need(n >= least)
        return kind, self.take(n)


def need(true: bool, kind: str = "decode") -> None:
    """Refuses where it is not so."""
    if not true:
        raise Refused(kind)


def decode(data: bytes, key: bytes | None, now_unix_s: int) -> dict[str, Any]:
    """Reads the fields of a message; a key asks for a sealed or encrypted one."""
    need(21 <= len(data) <= 66653)
    read = Cursor(data)
    fields = read.take(1)[0] - 0x90
    version = read.take(1)[0]
    need(version in (1, 2, 3))
    if version == 3:
        return hidden(read, fields, key, now_unix_s)
    fields -= 2 * (version - 1)
    need(4 <= fields <= 7)
    sealed, beside = fields >= 6, bool(fields & 1)
    read.take(2, b"\xc4\x08")
    found: dict[str, Any] = {"codec_id": read.take(8), "handoff_id": None, "expires_unix_s": None, "literals": []}
    found["payload"] = read.sized({0xC4: (1, 2 - version), 0xC5: (2, 256)})[1]
    if version == 2:
        found["blob"] = blob(read)
    if sealed:
        found |= seal(read)
    kind, content = read.sized(HEADERS) if beside else (0, b"")
    need(len(content) <= 1024)
    covered = data[: read.at]
    size = 16 if sealed else 4
    read.take(2, bytes([0xC4, size]))
    tag = read.take(size)
    need(read.at == len(data))
    need(sealed == (key is not None), "authentication")
    right = hashlib.blake2b(covered, digest_size=size, key=key or b"").digest()
    need(tag == right, "authentication" if sealed else "decode")
    if beside:
        found["literals"] = literals(kind, content)
    need(not sealed or now_unix_s < found["expires_unix_s"] + 30, "expired")
    return found


def hidden(read: Cursor, fields: int, key: bytes | None, now_unix_s: int) -> dict[str, Any]:
    """Reads the rest of an encrypted message."""
    need(fields in (5, 7))
    read.take(2, b"\xc4\x08")
    found: dict[str, Any] = {"codec_id": read.take(8), "literals": []}
    if fields == 7:
        found["blob"] = blob(read)
    found |= seal(read)
    ciphertext = read.sized({0xC4: (1, 0), 0xC5: (2, 2**8), 0xC6: (4, 2**16)})[1]
    least = 18 if fields == 5 else 17
    need(read.at == len(read.data) and least <= len(ciphertext) <= 66578)
    need(key is not None, "authentication")
    own = hashlib.blake2b(key=key or b"", digest_size=32, person=b"ilcp encryption").digest()
    nonce = found["handoff_id"] + found["expires_unix_s"].to_bytes(4, "big")
    try:
        plain = AESGCMSIV(own).decrypt(nonce, ciphertext, read.data[: -len(ciphertext)])
    except InvalidTag:
        raise Refused("authentication") from None
    inside = Cursor(plain)
    if plain[0] == 0xA0:
        inside.take(1)
    else:
        kind, content = inside.sized(HEADERS)
        need(len(content) <= 1024)
        found["literals"] = literals(kind, content)
    found["payload"] = plain[inside.at :]
    need(least - 17 <= len(found["payload"]) <= 65535)
    need(now_unix_s < found["expires_unix_s"] + 30, "expired")
    return found


def seal(read: Cursor) -> dict[str, Any]:
    """Reads id and expiry."""
    read.take(2, b"\xc4\x08")
    handoff_id = read.take(8)
    read.take(1, b"\xce")
    expires = int.from_bytes(read.take(4), "big")
    need(expires >= 2**16)
    return {"handoff_id": handoff_id, "expires_unix_s": expires}


def blob(read: Cursor) -> tuple[int, bytes]:
    """Reads the size, in the shortest form, and the digest."""
    first = read.take(1)[0]
    width, least = {0xCC: (1, 128), 0xCD: (2, 2**8), 0xCE: (4, 2**16), 0xCF: (8, 2**32)}.get(first, (0, 1))
    size = int.from_bytes(read.take(width), "big") if width else first
    need(least <= size <= (2**36 if width else 127))
    read.take(2, b"\xc4\x20")
    return size, read.take(32)


def literals(kind: int, content: bytes) -> list[str]:
    """Reads the strings of a field, from text or from a frame."""
    text = content
    if kind in (0xC4, 0xC5):
        need(content[0] in (0x20, 0x60) and len(content) >= (2 if content[0] == 0x20 else 3))
        n = content[1] if content[0] == 0x20 else int.from_bytes(content[1:3], "little") + 256
        need(1 <= n <= 1024)
        stream = zstandard.ZstdDecompressor().decompressobj()
        try:
            text = stream.decompress(b"\x28\xb5\x2f\xfd" + content)
        except zstandard.ZstdError:
            raise Refused("decode") from None
        need(stream.eof and not stream.unused_data and len(text) == n)
        need((2 if kind == 0xC4 else 3) + len(content) < (1 if n < 32 else 2 if n < 256 else 3) + n)
    try:
        found = text.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise Refused("decode") from None
    need(all(LITERAL.fullmatch(each) for each in found) and len(set(found)) == len(found))
    return found
