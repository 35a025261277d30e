"""Checkpoints: what a ledger's tree was at one time, signed, as the signed notes of C2SP write it.

::

    ilcp.example/ledger                              the ledger's name, which is its key's name too
    1234                                             how many entries
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=     the root of its tree
    time 1764172800000                               unix ms, by the guardian's clock

    — ilcp.example/ledger Az3grlgt...                key id and Ed25519 signature, a line for each key

Whoever keeps one can tell later whether the ledger still begins with what it stood for (``ilcp.audit.tree.extends``). A
public key is written ``name+key id+key``, as notes write it. Sources: C2SP signed-note, tlog-checkpoint.
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ilcp.audit.tree import HASH_BYTES
from ilcp.errors import DecodeError
from ilcp.records import shown
from ilcp.signing import is_signed, public_key, signature

__all__ = ["Checkpoint", "Key", "Signer", "parsed", "signers"]

ED25519 = b"\x01"  # the kind of a note's key
KEY_ID_BYTES = 4
MOST_CHARACTERS = 4096  # of a checkpoint: some signatures, each of a hundred
MOST_ENTRIES = 1 << 53  # as JSON counts
NAME = re.compile(r"[A-Za-z0-9._/-]{1,100}")
BODY = re.compile(r"(?P<origin>[^\n]+)\n(?P<size>0|[1-9]\d{0,15})\n(?P<root>[^\n]+)\ntime (?P<time>0|[1-9]\d{0,15})\n")
SIGNED_LINE = re.compile(r"— (?P<name>[^ \n]+) (?P<signature>[A-Za-z0-9+/=]+)")


@dataclass(frozen=True, slots=True)
class Key:
    """The public half of a guardian's key, under a name.

    Raises:
        DecodeError: the name, or the key in hex, is none.
    """

    name: str
    public: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise DecodeError(f"expected a ledger's name of letters, digits and . _ / -, got {shown(self.name)}")
        if not re.fullmatch(r"[0-9a-f]{64}", self.public):
            raise DecodeError(f"expected a public key of 32 bytes in hex, got {shown(self.public)}")

    @property
    def id(self) -> bytes:
        """What a signature names its key by."""
        return sha256(f"{self.name}\n".encode() + ED25519 + bytes.fromhex(self.public)).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64encode(ED25519 + bytes.fromhex(self.public)).decode()}"

    @classmethod
    def parse(cls, text: str) -> "Key":
        """Reads what ``str`` wrote.

        Raises:
            DecodeError: it is no such key.
        """
        name, _, rest = text.strip().partition("+")
        given, _, coded = rest.partition("+")
        held = _bytes(coded)
        if held[:1] != ED25519 or len(held) != 1 + HASH_BYTES:
            raise DecodeError(f"expected a key as name+id+base64 of an Ed25519 key, got {shown(text)}")
        key = cls(name, held[1:].hex())
        if key.id.hex() != given:
            raise DecodeError(f"expected key id {key.id.hex()} of this name and key, got {shown(given)}")
        return key


@dataclass(frozen=True, slots=True)
class Signer:
    """A guardian's key: who holds it, and nobody else, can say what the ledger is."""

    name: str
    seed: bytes

    def __repr__(self) -> str:
        return f"Signer({self.name!r})"

    @property
    def key(self) -> Key:
        """The public half."""
        return Key(self.name, public_key(self.seed))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree's size and root under a ledger's name, at a time (unix ms)."""

    origin: str
    size: int
    root: bytes
    time_unix_ms: int

    @property
    def body(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\ntime {self.time_unix_ms}\n"

    def signed(self, *by: Signer) -> str:
        """Returns the note, with a signature of each signer."""
        lines = []
        for each in by:
            made = bytes.fromhex(signature(each.seed, self.body.encode()))
            lines.append(f"— {each.name} {b64encode(each.key.id + made).decode()}\n")
        return f"{self.body}\n{''.join(lines)}"


def parsed(note: Any) -> Checkpoint:
    """Reads a checkpoint; who signed it is not asked.

    Raises:
        DecodeError: it is none.
    """
    if not isinstance(note, str) or len(note) > MOST_CHARACTERS:
        raise DecodeError(f"expected a checkpoint of at most {MOST_CHARACTERS} characters, got {shown(note)}")
    found = BODY.fullmatch(note.partition("\n\n")[0] + "\n")
    if found is not None:
        root = _bytes(found["root"])
        if NAME.fullmatch(found["origin"]) and len(root) == HASH_BYTES and int(found["size"]) <= MOST_ENTRIES:
            return Checkpoint(found["origin"], int(found["size"]), root, int(found["time"]))
    raise DecodeError(f"expected a checkpoint (name, size, root, time), got {shown(note)}")


def signers(note: str, keys: Iterable[Key]) -> list[Key]:
    """Returns those of the keys whose signatures a checkpoint bears, and which sign for its ledger.

    Raises:
        DecodeError: it is no checkpoint.
        MissingExtraError: cryptography is not installed.
    """
    checkpoint = parsed(note)
    lines = note.partition("\n\n")[2]
    found = [SIGNED_LINE.fullmatch(line) for line in lines.removesuffix("\n").split("\n")]
    held = [(line["name"], _bytes(line["signature"])) for line in found if line]
    return [
        key
        for key in keys
        if key.name == checkpoint.origin
        and any(
            name == key.name
            and coded[:KEY_ID_BYTES] == key.id
            and is_signed(key.public, checkpoint.body.encode(), coded[KEY_ID_BYTES:].hex())
            for name, coded in held
        )
    ]


def _bytes(coded: str) -> bytes:
    """Returns what base64 stands for; nothing where it is none, or not spelt as it would be written."""
    try:
        found = b64decode(coded, validate=True)
    except (NotBase64, ValueError):
        return b""
    return found if b64encode(found).decode() == coded else b""
