"""Measures what a message costs beside its payload: microseconds to write and read it, against msgspec and protobuf.

    python benchmarks/wire.py [--rounds 200] [--only bare sealed encrypted] [--json FILE]

Every row writes and reads the same 80 bytes of payload, the sealed and encrypted rows with an id, an expiry and a MAC
or tag. ``msgspec`` and ``protobuf`` do the same job: they write and read the same fields, and the same BLAKE2b check or
MAC is made over their bytes and compared; what they leave out are the limits, the canonical form and the texts of
refusals. Each figure is the median over rounds of the mean of 200 calls. Then the bytes of each kind of message, and
the time to encrypt and decrypt a blob. Last, the time to refuse what was made to be costly, per kB.

Goals: bare <= 5 us, sealed <= 10 us, both steps together; refusing <= 1 ms per kB.
"""

import argparse
import contextlib
import hashlib
import hmac
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from rich.console import Console
from rich.table import Table

from ilcp.errors import DecodeError
from ilcp.measure import provenance
from ilcp.message import MAX_MESSAGE_BYTES, Blob, Message, Seal, verified
from ilcp.message.encryption import SEGMENT_BYTES, decrypted_blob, encrypted_blob
from ilcp.message.keys import KeyRing
from ilcp.message.replay import ReplayCache

CODEC_ID, PAYLOAD, KEY = os.urandom(8), os.urandom(80), os.urandom(32)
LITERALS = ("J3X4P2", "2024-05-17")
ALIKE = tuple(f"INC-2024-{n:04d}" for n in range(12))
CALLS = 200
KINDS = ("bare", "sealed", "encrypted")
BLOB_SEGMENTS, BLOB_ROUNDS = (1, 16, 64), 20
GOALS_US = {"bare": 5.0, "sealed": 10.0}

Row = tuple[Callable[[], bytes], Callable[[bytes], Any]]


class Plain(msgspec.Struct, array_like=True, frozen=True):
    """The fields of a bare message, as msgspec would carry them."""

    version: int
    codec_id: bytes
    payload: bytes


class PlainSealed(msgspec.Struct, array_like=True, frozen=True):
    """The fields of a sealed one."""

    version: int
    codec_id: bytes
    payload: bytes
    handoff_id: bytes
    expires_unix_s: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "wire.json")
    parser.add_argument("--only", nargs="*", help="rows of these names, in place of all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ReplayCache(Path(folder) / "replay.sqlite") as shared:
        made = rows(ReplayCache(), shared).items()
        found = {name: timed(*row, args.rounds) for name, row in made if not args.only or name in args.only}
    blobs = [blob_times(n * SEGMENT_BYTES) for n in BLOB_SEGMENTS]
    refusals = {name: refusing(wire) for name, wire in costly().items()}
    table = Table("", "bytes", "write, us", "read, us", "both, us", "goal", title="median over rounds")
    for name, row in found.items():
        goal = f"{GOALS_US[name]:g}" if name in GOALS_US else ""
        shown = (f"{row[step]['median_us']:.2f}" for step in ("write", "read", "both"))
        table.add_row(name, str(row["bytes"]), *shown, goal)
    console = Console()
    console.print(table)
    kinds = Table("message", *KINDS, title="bytes")
    for name, row in sizes().items():
        kinds.add_row(name, *map(str, row.values()))
    console.print(kinds)
    for blob in blobs:
        times = ", ".join(f"{name} {blob[name]['median_ms']:.1f} ms (p50)" for name in ("encrypt", "decrypt", "digest"))
        console.print(f"blob of {blob['bytes']:,} bytes, {blob['more_bytes']} more encrypted, n={BLOB_ROUNDS}: {times}")
    for name, spent in refusals.items():
        console.print(f"refusing {name}: {spent:.4f} ms per kB (goal 1)")
    record = {
        "rows": found,
        "sizes": sizes(),
        "blobs": blobs,
        "refusals_ms_per_kb": refusals,
        "goals_us": GOALS_US,
        "seed": 0,
        "provenance": provenance(),
    }
    args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def rows(own: ReplayCache, shared: ReplayCache) -> dict[str, Row]:
    """Makes what is timed: each row's writer and reader."""
    ring = KeyRing(os.urandom(32), (os.urandom(32), KEY))

    def sealed(*literals: str, encrypted: bool = False) -> bytes:
        message = Message(CODEC_ID, PAYLOAD, Seal.fresh(ttl_s=600), literals=literals, encrypted=encrypted)
        return message.to_bytes(KEY)

    def admitted(cache: ReplayCache) -> Callable[[bytes], None]:
        def read(wire: bytes) -> None:
            message, key = verified(wire, key=KEY)
            if key is not None and message.seal is not None:
                cache.admit(key, message.seal)

        return read

    def key_read(wire: bytes) -> Message:
        return Message.from_bytes(wire, key=KEY)

    return {
        "bare": (lambda: Message(CODEC_ID, PAYLOAD).to_bytes(), Message.from_bytes),
        "bare, 2 literals": (lambda: Message(CODEC_ID, PAYLOAD, literals=LITERALS).to_bytes(), Message.from_bytes),
        "bare, 12 literals, zstd": (lambda: Message(CODEC_ID, PAYLOAD, literals=ALIKE).to_bytes(), Message.from_bytes),
        "sealed": (sealed, key_read),
        "sealed, third key of a ring": (sealed, lambda wire: Message.from_bytes(wire, key=ring)),
        "sealed, 2 literals": (lambda: sealed(*LITERALS), key_read),
        "encrypted": (lambda: sealed(encrypted=True), key_read),
        "encrypted, third key of a ring": (
            lambda: sealed(encrypted=True),
            lambda wire: Message.from_bytes(wire, key=ring),
        ),
        "encrypted, 2 literals": (lambda: sealed(*LITERALS, encrypted=True), key_read),
        "sealed, replay cache of the process": (sealed, admitted(own)),
        "sealed, replay cache in a file": (sealed, admitted(shared)),
        **msgspec_rows(),
        **protobuf_rows(),
    }


def msgspec_rows() -> dict[str, Row]:
    """Makes rows of the same fields and digests, carried by msgspec's msgpack."""
    encode = msgspec.msgpack.Encoder().encode
    bare, sealed = (msgspec.msgpack.Decoder(kind).decode for kind in (Plain, PlainSealed))
    return {
        "msgspec, bare": (
            lambda: checked(encode(Plain(1, CODEC_ID, PAYLOAD))),
            lambda wire: bare(unchecked(wire)),
        ),
        "msgspec, sealed": (
            lambda: checked(encode(PlainSealed(1, CODEC_ID, PAYLOAD, os.urandom(8), int(time.time()) + 600)), KEY),
            lambda wire: in_time(sealed(unchecked(wire, KEY))),
        ),
    }


def protobuf_rows() -> dict[str, Row]:
    """Makes rows of the same fields and digests, carried by protobuf; the descriptor is built here, without protoc."""
    file = descriptor_pb2.FileDescriptorProto(name="wire.proto", package="wire", syntax="proto3")
    kind = file.message_type.add(name="Handoff")
    number, data = descriptor_pb2.FieldDescriptorProto.TYPE_UINT32, descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
    fields = [
        ("version", number),
        ("codec_id", data),
        ("payload", data),
        ("handoff_id", data),
        ("expires_unix_s", number),
    ]
    for place, (name, its) in enumerate(fields, 1):
        kind.field.add(name=name, number=place, type=its, label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    handoff: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("wire.Handoff"))
    head = {"version": 1, "codec_id": CODEC_ID, "payload": PAYLOAD}

    def sealed() -> bytes:
        made = handoff(**head, handoff_id=os.urandom(8), expires_unix_s=int(time.time()) + 600)
        return checked(made.SerializeToString(), KEY)

    return {
        "protobuf, bare": (
            lambda: checked(handoff(**head).SerializeToString()),
            lambda wire: handoff.FromString(unchecked(wire)),
        ),
        "protobuf, sealed": (sealed, lambda wire: in_time(handoff.FromString(unchecked(wire, KEY)))),
    }


def checked(body: bytes, key: bytes = b"") -> bytes:
    """Appends the digest that a message of ilcp would carry."""
    return body + hashlib.blake2b(body, digest_size=16 if key else 4, key=key).digest()


def unchecked(wire: bytes, key: bytes = b"") -> bytes:
    """Returns the body, its digest compared."""
    size = 16 if key else 4
    body = wire[:-size]
    assert hmac.compare_digest(hashlib.blake2b(body, digest_size=size, key=key).digest(), wire[-size:])
    return body


def in_time(message: Any) -> Any:
    """Returns the message, its expiry compared with the clock."""
    assert time.time() < message.expires_unix_s
    return message


def timed(write: Callable[[], bytes], read: Callable[[bytes], Any], rounds: int) -> dict[str, Any]:
    """Measures the microseconds of each step, over rounds of ``CALLS`` calls; every message is read once."""
    spent: dict[str, list[float]] = {"write": [], "read": [], "both": []}
    wires: list[bytes] = []
    for number in range(rounds + 3):
        start_s = time.perf_counter()
        wires = [write() for _ in range(CALLS)]
        written_s = time.perf_counter()
        for wire in wires:
            read(wire)
        end_s = time.perf_counter()
        if number >= 3:  # the first rounds warm up
            spent["write"].append((written_s - start_s) / CALLS * 1e6)
            spent["read"].append((end_s - written_s) / CALLS * 1e6)
            spent["both"].append((end_s - start_s) / CALLS * 1e6)
    return {"bytes": len(wires[0])} | {name: summary(values) for name, values in spent.items()}


def summary(values: list[float]) -> dict[str, float]:
    """Summarises rounds as median, 95th percentile, least (which a busy machine disturbs least) and count."""
    p95 = quantiles(values, n=20)[-1]
    return {"median_us": median(values), "p95_us": p95, "best_us": min(values), "rounds": len(values)}


def sizes() -> dict[str, dict[str, int]]:
    """Counts the bytes of messages, alone and with what may stand beside their payload, of each kind."""
    seal, blob = Seal.fresh(ttl_s=600), Blob(40 * SEGMENT_BYTES, bytes(32))
    beside: dict[str, dict[str, Any]] = {
        "80 bytes": {},
        "80 bytes, 2 literals": {"literals": LITERALS},
        "80 bytes, 12 literals, zstd": {"literals": ALIKE},
        "240 bytes": {"payload": bytes(240)},
        "65,535 bytes": {"payload": bytes(2**16 - 1)},
        "a blob of 40 MiB": {"payload": b"", "blob": blob},
    }
    found = {}
    for name, fields in beside.items():
        given = {"payload": PAYLOAD} | fields
        bare = Message(CODEC_ID, **given).to_bytes()
        under = (Message(CODEC_ID, seal=seal, encrypted=on, **given).to_bytes(KEY) for on in (False, True))
        found[name] = dict(zip(KINDS, map(len, (bare, *under)), strict=True))
    return found


def blob_times(size_bytes: int) -> dict[str, Any]:
    """Measures the milliseconds to encrypt and decrypt a blob, beside the digest that names it in any case."""
    plain, nonce = os.urandom(size_bytes), Seal.fresh(ttl_s=600).nonce
    hidden = encrypted_blob(KEY, nonce, plain)
    steps: dict[str, Callable[[], Any]] = {
        "encrypt": lambda: encrypted_blob(KEY, nonce, plain),
        "decrypt": lambda: decrypted_blob(KEY, nonce, hidden),
        "digest": lambda: Blob.of(plain),
    }
    found: dict[str, Any] = {"bytes": size_bytes, "more_bytes": len(hidden) - size_bytes}
    for name, step in steps.items():
        spent_ms = []
        for _ in range(BLOB_ROUNDS):
            start_s = time.perf_counter()
            step()
            spent_ms.append((time.perf_counter() - start_s) * 1e3)
        found[name] = {"median_ms": median(spent_ms), "best_ms": min(spent_ms), "rounds": BLOB_ROUNDS}
    return found


def costly() -> dict[str, bytes]:
    """Makes messages that a hostile peer may send to keep a reader busy; each is refused."""
    large = Message(CODEC_ID, bytes(2**16 - 1)).to_bytes()
    frame = Message(CODEC_ID, PAYLOAD, literals=tuple(f"INC-2024-{n:04d}" for n in range(70))).to_bytes()
    return {
        "the largest with a wrong check": large[:-1] + bytes([large[-1] ^ 1]),
        "a frame with a wrong check": frame[:-1] + bytes([frame[-1] ^ 1]),
        "100 bytes with a wrong check": Message(CODEC_ID, PAYLOAD).to_bytes()[:-1] + b"!",
        "nested arrays": b"\x94\x01" + b"\x91" * (MAX_MESSAGE_BYTES - 2),
        "nested literals": b"\x95" + large[1:12] + b"\xc4\x01!" + b"\x91" * (MAX_MESSAGE_BYTES - 15),
        "10 MB": bytes(10_000_000),
    }


def refusing(wire: bytes) -> float:
    """Measures the milliseconds per kB of a refusal, the best of 50: a bound on the code, not on the machine."""
    best = float("inf")
    for _ in range(50):
        start_s = time.perf_counter()
        with contextlib.suppress(DecodeError):
            Message.from_bytes(wire)
        best = min(best, time.perf_counter() - start_s)
    return best * 1e3 / (len(wire) / 1000)


if __name__ == "__main__":
    main()
