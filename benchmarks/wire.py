"""Measures what a message costs beside its payload: microseconds to write and read it, against msgspec and protobuf.

    python benchmarks/wire.py [--rounds 200] [--json FILE]

Every row writes and reads the same 80 bytes of payload, the sealed rows with a MAC, an id and an expiry. ``msgspec``
and ``protobuf`` do the same job: they write and read the same fields, and the same BLAKE2b check or MAC is made over
their bytes and compared; what they leave out are the limits, the canonical form and the texts of refusals. Each figure
is the median over rounds of the mean of 200 calls. Last, the time to refuse what was made to be costly, per kB.

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
from ilcp.message import MAX_MESSAGE_BYTES, Message, Seal, verified
from ilcp.message.keys import KeyRing
from ilcp.message.replay import ReplayCache

CODEC_ID, PAYLOAD, KEY = os.urandom(8), os.urandom(80), os.urandom(32)
LITERALS = ("J3X4P2", "2024-05-17")
ALIKE = tuple(f"INC-2024-{n:04d}" for n in range(12))
CALLS = 200
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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ReplayCache(Path(folder) / "replay.sqlite") as shared:
        found = {name: timed(*row, args.rounds) for name, row in rows(ReplayCache(), shared).items()}
    refusals = {name: refusing(wire) for name, wire in costly().items()}
    table = Table("", "bytes", "write, us", "read, us", "both, us", "goal", title="median over rounds")
    for name, row in found.items():
        goal = f"{GOALS_US[name]:g}" if name in GOALS_US else ""
        shown = (f"{row[step]['median_us']:.2f}" for step in ("write", "read", "both"))
        table.add_row(name, str(row["bytes"]), *shown, goal)
    console = Console()
    console.print(table)
    for name, spent in refusals.items():
        console.print(f"refusing {name}: {spent:.4f} ms per kB (goal 1)")
    record = {
        "rows": found,
        "refusals_ms_per_kb": refusals,
        "goals_us": GOALS_US,
        "seed": 0,
        "provenance": provenance(),
    }
    args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def rows(own: ReplayCache, shared: ReplayCache) -> dict[str, Row]:
    """Makes what is timed: each row's writer and reader."""
    ring = KeyRing(os.urandom(32), (os.urandom(32), KEY))

    def sealed(*literals: str) -> bytes:
        return Message(CODEC_ID, PAYLOAD, Seal.fresh(ttl_s=600), literals=literals).to_bytes(KEY)

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
    """Summarises rounds as median, 95th percentile and count."""
    return {"median_us": median(values), "p95_us": quantiles(values, n=20)[-1], "rounds": len(values)}


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
