"""What the record of hand-offs costs, how it grows, and what of it can be changed without being found.

    python benchmarks/audit.py [--only latency acknowledged growth tampering kills kills_nats]    # results/audit.json

- *latency*: hand-offs of the embedded pair, encode and decode, with ``audit=`` at both ends, an outbox each, and
  without, by turns.
- *acknowledged*: from telling the guardian, a process of its own, to its receipt; each on the disk, one producer.
- *growth*: appending one more entry, proving one and checking the proof, in ledgers of 10^3 to 10^6 entries.
- *tampering*: random edits of a ledger's file and of exports, verified with the guardian's key and an older checkpoint:
  bits of either, rows (a column, a body, a salt, a value, a hash), what is missing, two rows exchanged, the whole
  written anew under another key, a copy of before. A flipped bit may change nothing that is read, as in the free room
  of a page: it counts as such only where all that a ledger says is equal.
- *kills*: producers and guardians killed (-9) at random over a spool, until so many hand-offs are entered.
- *kills_nats*: the same over NATS, whose server is killed too.

What a run leaves out stays in the file. Exit status 1 says that an edit was not found, or a record lost.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ilcp
from ilcp.audit import Draft, Guardian, Ledger, Recorder, Signer, export, parsed, verify
from ilcp.audit.entries import Entry
from ilcp.audit.guardian import settings_for
from ilcp.audit.sequences import gaps
from ilcp.audit.tables import SCHEMA
from ilcp.audit.tree import includes, leaf_hash
from ilcp.embedded import load_pair
from ilcp.errors import AuditError
from ilcp.files import write_whole
from ilcp.measure import provenance
from ilcp.tasks import case_files
from ilcp.transport import connect

HERE = Path(__file__).parent
SIGNER, THIEF = Signer("benchmark/ledger", bytes(range(32))), Signer("benchmark/ledger", bytes(32))
SIZES = (1_000, 10_000, 100_000, 1_000_000)
ENTRIES = 30  # of the ledger that is tampered with
LEASE_S = 2.0
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", nargs="*", help=argparse.SUPPRESS)  # of a process that this script starts
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--n", type=int, default=500, help="hand-offs with and without, and receipts")
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--handoffs", type=int, default=20_000, help="while processes are killed")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="entries of the largest ledger")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "audit.json")
    args = parser.parse_args()
    if args.role:
        ROLES[args.role[0]](*args.role[1:])
        return
    torch.set_num_threads(1)
    record: Figures = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            place = Path(folder) / name
            place.mkdir(mode=0o700)
            record[name] = PARTS[name](place, args)
            print(name, json.dumps(record[name]), flush=True)
    trained = load_pair().sender.codec.trained
    origin = provenance(sender=trained.sender.exact, receiver=trained.receiver.exact)
    write_whole(args.json, json.dumps(record | {"seed": args.seed, "n": args.n, "provenance": origin}, indent=1) + "\n")
    sys.exit(bool(record.get("tampering", {}).get("missed") or record.get("kills", {}).get("lost")))


def latency(place: Path, args: argparse.Namespace) -> Figures:
    """Returns what a hand-off takes with and without a record, and the ratios of the two."""
    pair, url = load_pair(), f"spool://{place}"
    ends = {
        "sender": (pair.sender.model, pair.sender.tokenizer),
        "receiver": (pair.receiver.model, pair.receiver.tokenizer),
    }
    texts = [case.context for case in case_files("test", args.seed, args.n)]
    times: dict[str, list[float]] = {"with": [], "without": []}
    box = place / "outbox"
    with Recorder(url, "planner", outbox=box) as one, Recorder(url, "writer", outbox=box) as two:
        told = [
            (
                ilcp.Sender(*ends["sender"], pair.sender.codec, audit=sent),
                ilcp.Receiver(*ends["receiver"], pair.receiver.codec, audit=got),
            )
            for sent, got in ((one, two), (None, None))
        ]
        for number, text in enumerate(texts):
            pairs = list(zip(("with", "without"), told, strict=True))
            for name, (sender, receiver) in pairs[:: 1 if number % 2 else -1]:
                started = time.perf_counter()
                receiver.decode(sender.encode(text))
                times[name].append(1000 * (time.perf_counter() - started))
    found = {name: percentiles(values[10:]) for name, values in times.items()}
    ratios = {at: found["with"][at] / found["without"][at] for at in ("p50", "p99")}
    return {"ms": found, "with / without": ratios, "n": len(texts) - 10}


def acknowledged(place: Path, args: argparse.Namespace) -> Figures:
    """Returns the time until a producer has the receipt of what it told, with a guardian in a process of its own."""
    url, ledger = f"spool://{place}", place / "ledger.sqlite"
    guardian, times = start("guardian", url, ledger), []
    try:
        safe = settings_for(url)  # each record on the disk before the guardian has it, too
        with Recorder(url, "planner", unrecorded="never", timeout_s=60, settings=safe) as audit:
            for number in range(args.n + 10):
                started = time.perf_counter()
                audit.record("sent", about(number))
                times.append(1000 * (time.perf_counter() - started))
    finally:
        guardian.kill()
        guardian.wait()
    assert verify(ledger, keys=[SIGNER.key], witnessed=[audit.checkpoint]).sound
    return {"ms": percentiles(times[10:]), "n": args.n}


def growth(place: Path, args: argparse.Namespace) -> list[Figures]:
    """Returns what one more entry and one proof take, by how many entries there are."""
    rows, rng = [], random.Random(args.seed)
    with Ledger(place / "ledger.sqlite", SIGNER) as ledger:
        numbers = count(1)
        for size in (size for size in SIZES if size <= args.most):
            while ledger.size < size:
                ledger.append([draft(next(numbers)) for _ in range(min(1000, size - ledger.size))])
            times: dict[str, list[float]] = {"append": [], "prove": [], "check": []}
            for _ in range(200):
                times["append"].append(timed(partial(ledger.append, [draft(next(numbers))])))
                newest, number = parsed(ledger.checkpoint()), rng.randrange(ledger.size)
                proof = ledger.inclusion(number, newest.size)
                times["prove"].append(timed(partial(ledger.inclusion, number, newest.size)))
                entry = ledger.entry(number)
                assert entry is not None
                leaf = leaf_hash(entry.to_bytes())
                assert includes(newest.root, newest.size, number, leaf, proof)
                times["check"].append(timed(partial(includes, newest.root, newest.size, number, leaf, proof)))
            size_bytes = (place / "ledger.sqlite").stat().st_size
            row = {"entries": size, "bytes_an_entry": size_bytes / ledger.size, "proof_hashes": len(proof)}
            rows.append(row | {f"{name}_ms": percentiles(values) for name, values in times.items()})
            print(rows[-1], flush=True)
    return rows


def tampering(place: Path, args: argparse.Namespace) -> Figures:
    """Returns how many edits were found, by kind; and those which changed nothing that a ledger says."""
    path, rng = place / "ledger.sqlite", random.Random(args.seed)
    with Ledger(path, SIGNER) as ledger:
        ledger.append([draft(number) for number in range(1, ENTRIES // 2)])
        ledger.erase(3, ["literals"], by="x", because="y")
        copied(path, place / "before.sqlite")
        ledger.append([draft(number) for number in range(ENTRIES // 2, ENTRIES)])
        note = ledger.checkpoint()
        exports = {name: place / f"{name}.jsonl" for name in ("whole", "run")}
        export(ledger, exports["whole"])
        export(ledger, exports["run"], "run")
    said = {each: told(each) for each in (path, *exports.values())}
    tried: Counter[str] = Counter()
    found: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    checks: Counter[str] = Counter()
    missed = []
    kinds = [*(partial(flipped, of) for of in said), *(partial(changed, path, what) for what in ROWS)]
    kinds += [partial(whole_anew, path), partial(before, path)]
    for trial in range(args.edits):
        edit = kinds[trial % len(kinds)]
        copy = edit(place / f"edit-{trial}", rng)
        name = edit_name(edit)
        tried[name] += 1
        result = verify(copy, keys=[SIGNER.key], witnessed=[] if copy.suffix == ".run" else [note])
        if not result.sound:
            found[name] += 1
            checks[result.findings[0].check] += 1
        elif name.startswith("a bit") and told(copy) == said[edit.args[0]]:
            unread[name] += 1
        else:
            missed.append(f"{trial}: {name}")
        for each in (copy, copy.with_name(copy.name + "-wal"), copy.with_name(copy.name + "-shm")):
            each.unlink(missing_ok=True)
    return {
        "edits": args.edits,
        "tried": dict(tried),
        "found": dict(found),
        "unread": dict(unread),
        "missed": missed,
        "first found by": dict(checks),
    }


def kills(place: Path, args: argparse.Namespace) -> Figures:
    """Returns what became of records while producers and the guardian were killed, over a spool."""
    return killing(f"spool://{place}", place, args)


def kills_nats(place: Path, args: argparse.Namespace) -> Figures:
    """Returns the same over NATS, whose server is killed too; it keeps its stream in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise SystemExit("expected nats-server, got none: install it, or leave out kills_nats")
    words = [program, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(place / "stream")]

    def started() -> subprocess.Popen[bytes]:
        return subprocess.Popen(words, stderr=subprocess.DEVNULL)

    servers = [started()]
    time.sleep(1.0)

    def server_killed() -> None:
        kill(servers.pop())
        servers.append(started())

    try:
        return killing(f"nats://127.0.0.1:{port}", place, args, server_killed)
    finally:
        kill(servers.pop())


def killing(
    url: str, place: Path, args: argparse.Namespace, server_killed: Callable[[], None] | None = None
) -> Figures:
    """Kills producers, the guardian and, where there is one, the server at random, and counts what was entered."""
    path, rng = place / "ledger.sqlite", random.Random(args.seed)
    told_of: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    producers = count(1)
    guardian = start("guardian", url, path)
    active: dict[str, Any] = {}
    while told_of.total() < args.handoffs:
        while len(active) < 2:
            name = f"producer-{next(producers)}"
            active[name] = start("producer", url, name, place / name)
        time.sleep(rng.uniform(0.2, 1.5))
        if server_killed is not None and rng.random() < 0.2:
            server_killed()
            killed["server"] += 1
        elif rng.random() < 0.5:
            kill(guardian)
            killed["guardian"] += 1
            guardian = start("guardian", url, path)
        else:
            name = rng.choice(list(active))
            kill(active.pop(name))
            killed["producer"] += 1
        active = {name: process for name, process in active.items() if process.poll() is None}
        for name in (file.name for file in place.glob("producer-*")):
            told_of[name] = len(told_by(place / name))
        if guardian.poll() is not None:
            guardian = start("guardian", url, path)
    for process in (*active.values(), guardian):
        kill(process)
    for name in (file.name for file in place.glob("producer-*")):
        told_of[name] = len(told_by(place / name))
    with Recorder(url, "last", outbox=place / "outbox"):  # which sends what the killed ones had not
        while list((place / "outbox").glob("producer-*.outbox")):
            time.sleep(0.1)
    with (
        connect(url, name="guardian", settings=replace(settings_for(url), lease_s=LEASE_S)) as c,
        Ledger(path, SIGNER) as ledger,
    ):
        quiet = time.monotonic()
        while time.monotonic() - quiet < 3 * LEASE_S:
            if Guardian(ledger, c).work(0.5):
                quiet = time.monotonic()
        came = {who: found for (who, _, _), found in ledger.sequences().items()}
        twice = sum(1 for _ in ledger.entries(kinds=["conflict", "unreadable"]))
    last = {who: found[-1][1] for who, found in came.items()}
    lost = sum(
        not any(first <= number <= end for first, end in came.get(name, []))
        for name in told_of
        for number in told_by(place / name)
    )
    missing = sum(end - first + 1 for found in came.values() for first, end in gaps(found))
    result = verify(path, keys=[SIGNER.key])
    return {
        "told": told_of.total(),
        "entered": sum(last.values()) - missing,
        "kills": dict(killed),
        "lost": lost,
        "said to be missing": missing,
        "contradicting": twice,
        "twice": len([each for each in result.findings if each.check == "sequence"]),
        "sound": result.sound,
    }


# --- edits ------------------------------------------------------------------------------------------------------------

OF_ENTRY, BEHIND = "WHERE number = {n}", "WHERE number > {n}"
ROWS = {
    "a column": f"UPDATE leaves SET run = 'other' {OF_ENTRY}",
    "a body": f"UPDATE leaves SET body = CAST(replace(body, 'sent', 'Sent') AS BLOB) {OF_ENTRY}",
    "a time in a body": f"UPDATE leaves SET body = CAST(replace(body, 'ms\":1', 'ms\":2') AS BLOB) {OF_ENTRY}",
    "a salt": f"UPDATE personal SET salt = randomblob(32) {OF_ENTRY}",
    "a value": f"UPDATE personal SET value = CAST('[\"x\"]' AS BLOB) {OF_ENTRY}",
    "a value gone": f"DELETE FROM personal {OF_ENTRY}",
    "a hash": "UPDATE nodes SET hash = randomblob(32) WHERE level = 0 AND place = {n}",
    "a subtree's hash": "UPDATE nodes SET hash = randomblob(32) WHERE level = 1 AND place = {n} / 2",
    "a row gone": f"DELETE FROM leaves {OF_ENTRY}",
    "a body gone": f"UPDATE leaves SET body = NULL {OF_ENTRY}",
    "rows exchanged": f"UPDATE leaves SET number = -1 {OF_ENTRY}; "
    "UPDATE leaves SET number = {n} WHERE number = {n} + 1; UPDATE leaves SET number = {n} + 1 WHERE number = -1",
    "cut off": f"DELETE FROM leaves {BEHIND}; DELETE FROM personal {BEHIND}; "
    "DELETE FROM nodes WHERE level = 0 AND place > {n}",
}
WHOLE = [number for number in range(1, ENTRIES - 1) if number not in (3, ENTRIES // 2 - 1, ENTRIES // 2)]


def flipped(source: Path, copy: Path, rng: random.Random) -> Path:
    """Flips one bit."""
    data = bytearray(source.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    copy = copy.with_suffix(".run" if source.stem == "run" else source.suffix)
    copy.write_bytes(data)
    return copy


def changed(source: Path, what: str, copy: Path, rng: random.Random) -> Path:
    """Changes rows of a random entry, of one that has everything."""
    shutil.copy(source, copy)
    db = sqlite3.connect(copy, isolation_level=None)
    db.execute("DROP INDEX numbered")  # which would refuse some of it
    db.executescript(ROWS[what].format(n=rng.choice(WHOLE)))
    db.execute(next(each for each in SCHEMA if "INDEX numbered" in each))
    db.close()
    return copy


def whole_anew(source: Path, copy: Path, rng: random.Random) -> Path:
    """Writes everything anew under another key, one entry of it changed."""
    with Ledger(source) as old:
        drafts = [Draft(entry.kind, dict(entry.fields)) for entry in old.entries(kinds=["handoff"])]
    place = rng.randrange(len(drafts))
    drafts[place] = Draft("handoff", {**drafts[place].fields, "event": "received"})
    with Ledger(copy, THIEF) as new:
        new.append(drafts)
    return copy


def before(source: Path, copy: Path, rng: random.Random) -> Path:
    """Puts a copy of before in its place."""
    shutil.copy(source.with_name("before.sqlite"), copy)
    return copy


def edit_name(edit: Any) -> str:
    """Names an edit."""
    names: dict[Callable[..., Path], str] = {whole_anew: "written anew under another key", before: "a copy of before"}
    if edit.func is flipped:
        return f"a bit of {'the file' if edit.args[0].suffix == '.sqlite' else 'an export'}"
    return edit.args[1] if edit.func is changed else names[edit.func]


def told(path: Path) -> tuple[Any, ...]:
    """Returns everything that a copy says."""
    if path.suffix == ".sqlite":
        with Ledger(path) as ledger:
            entries: list[Entry] = list(ledger.entries())
            return entries, [ledger.personal(entry.number) for entry in entries], ledger.checkpoints()
    return (path.read_bytes(),)


def copied(source: Path, target: Path) -> None:
    """Copies a ledger that is open."""
    one, other = sqlite3.connect(source), sqlite3.connect(target)
    one.backup(other)
    one.close()
    other.close()


# --- processes --------------------------------------------------------------------------------------------------------


def guardian(url: str, ledger: str) -> None:
    """Is the guardian's process."""
    with (
        connect(url, name="guardian", settings=replace(settings_for(url), lease_s=LEASE_S)) as c,
        Ledger(Path(ledger), SIGNER) as opened,
    ):
        Guardian(opened, c).serve(lambda: True, 0.05)


def producer(url: str, name: str, book: str) -> None:
    """Is a producer's process: it writes down what it was let go on with, as one that hands over would go on then."""
    box = Path(book).parent / "outbox" if int(name.rpartition("-")[2]) % 2 else None  # every other one has an outbox
    with Recorder(url, name, run="run", outbox=box, unrecorded="told") as audit, Path(book).open("w") as file:
        while True:
            with suppress(AuditError):  # the transport is away: this hand-off does not go on
                file.write(f"{audit.record('sent', about(0))}\n")
                file.flush()
            time.sleep(0.002)


ROLES: dict[str, Callable[..., None]] = {"guardian": guardian, "producer": producer}


def start(*words: object) -> subprocess.Popen[bytes]:
    """Starts this script in a role."""
    return subprocess.Popen([sys.executable, __file__, *map(str, words)])


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills it."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def told_by(book: Path) -> list[int]:
    """Returns the numbers that a producer wrote down."""
    return [int(line) for line in book.read_text().split("\n")[:-1]] if book.exists() else []


def about(number: int) -> Figures:
    """Returns what is told of a hand-off, as large as what a sender tells."""
    identity = dict.fromkeys(("weights", "tokenizer", "chat_template", "dtype", "adapters"), f"{number:032x}")
    evidence = {"content_gain": 0.82, "low": 0.81, "high": 0.83, "n": 200, "seed": 7, "task": "case-files"}
    digests = {"message_sha256": f"{number:064x}", "handoff_id": f"{number:032x}", "codec_id": f"{number:016x}"}
    return {**digests, "message_bytes": 100, "sender": identity, "receiver": identity, "evidence": evidence}


def draft(number: int) -> Draft:
    """Returns an entry of a hand-off."""
    known = {"producer": "planner", "run": "run", "part": "part", "sequence": number, "event": "sent"}
    return Draft("handoff", about(number) | known, {"literals": [f"INC-{number}"]})


def timed(work: Callable[[], Any]) -> float:
    """Returns how many ms it takes."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Returns the median and the 99th percentile."""
    return {"p50": statistics.median(values), "p99": float(np.percentile(values, 99))}


PARTS: dict[str, Callable[[Path, argparse.Namespace], Any]] = {
    "latency": latency,
    "acknowledged": acknowledged,
    "growth": growth,
    "tampering": tampering,
    "kills": kills,
    "kills_nats": kills_nats,
}

if __name__ == "__main__":
    main()
