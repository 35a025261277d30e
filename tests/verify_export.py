"""Verifies a ledger's export without ilcp: what a stranger would write from the format's description.

    python verify_export.py EXPORT KEY [OLDER-CHECKPOINT-FILE]        needs cryptography alone; exits 1 where it differs

KEY is the guardian's public key as it gives it (name+id+key). Floats in personal values are compared as Python writes
them, which is RFC 8785's way but for the very large and very small.
"""

import hashlib
import json
import sys
from base64 import b64decode
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def joined(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    middle = 1 << (len(leaves) - 1).bit_length() - 1
    return joined(root_of(leaves[:middle]), root_of(leaves[middle:]))


def read(note: str) -> tuple[str, int, bytes]:
    name, size, root, *_ = note.split("\n")
    return name, int(size), b64decode(root)


def check(note: str, key: str) -> None:
    body, _, lines = note.partition("\n\n")
    public = b64decode(key.split("+", 2)[2])[1:]
    for line in lines.splitlines():
        _, name, coded = line.split(" ")
        if name == key.split("+")[0] and b64decode(coded)[:4].hex() == key.split("+")[1]:
            Ed25519PublicKey.from_public_bytes(public).verify(b64decode(coded)[4:], f"{body}\n".encode())
            return
    raise ValueError("the checkpoint is not signed by this key")


def main(export: str, key: str, older: str | None = None) -> None:
    head, *rows = map(json.loads, Path(export).read_text(encoding="utf-8").splitlines())
    note = head["checkpoints"][-1]
    check(note, key)
    _, size, root = read(note)
    leaves = []
    for row in rows:
        leaf = row["leaf"]
        leaves.append(bytes.fromhex(row["hash"]) if leaf is None else hashlib.sha256(b"\0" + leaf.encode()).digest())
        for name, held in row["personal"].items():
            value = json.dumps([row["number"], name, held["value"]], separators=(",", ":"), ensure_ascii=False)
            salted = b"ilcp audit 1\0" + bytes.fromhex(held["salt"]) + value.encode()
            assert json.loads(leaf)["commitments"][name] == hashlib.sha256(salted).hexdigest(), (row["number"], name)
    assert [row["number"] for row in rows] == list(range(size)), "entries are missing"
    assert root_of(leaves) == root, "the entries are not those of the checkpoint"
    if older:
        _, before, was = read(Path(older).read_text(encoding="utf-8"))
        assert before <= size, "the ledger was longer"
        assert root_of(leaves[:before]) == was, "the ledger does not begin with what it was"
    print(f"{size} entries, as signed")


if __name__ == "__main__":
    main(*sys.argv[1:])
