"""What else can go wrong, a scenario each, and the promise that is kept: `benchmarks/faults.py` runs and writes them.

Each gives plain counts and ``held``, whether they are as ``promise`` says. `fault_requests.py` has those of the HTTP
endpoint; the others are here: a full disk, a clock that jumps, a receiver that is slower than its lease, and messages
that somebody recorded and sends again.
"""

import multiprocessing
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from fault_requests import malformed_requests, wrong_tokens
from faults import MESSAGE, address, patient, start

from ilcp.errors import ReplayError, TransportError
from ilcp.message import Message, Seal, verified
from ilcp.message.replay import ReplayCache
from ilcp.transport import Connection, Delivery, FullError, LeaseLostError, Settings, connect

Row = dict[str, Any]
DISK_BYTES = 24 << 20
BALLAST_BYTES = 6 << 20
JUMP_S = 3600.0
KEY = bytes(range(32))


def scenarios(seed: int) -> list[Row]:
    """All of them, one after the other, each with a random generator of its own."""
    return [
        told(full_disk),
        told(jumping_clock, 3000, random.Random(seed)),
        told(slow_receiver, "spool", 100),
        told(slow_receiver, "nats", 100),
        told(malformed_requests, 10_000, random.Random(seed)),
        told(wrong_tokens, 1000, random.Random(seed)),
        told(replay_by_transport, 1000),
        told(replay_to_two_processes, 1000),
    ]


def told(scenario: Callable[..., Row], *args: Any) -> Row:
    """What a scenario counts; one that breaks off has not held."""
    try:
        return scenario(*args)
    except Exception as error:
        return {"scenario": scenario.__name__, "error": repr(error)[:300], "held": False}


def full_disk() -> Row:
    """A spool on a disk that it fills itself; then others take what is left, and give all of it back."""
    with tempfile.TemporaryDirectory() as scratch, disk(Path(scratch)) as (home, what):
        receipts: list[str] = []
        got: list[str] = []
        refused = other = 0

        def send(numbers: range) -> int:
            """How many of them have a receipt."""
            nonlocal refused, other
            before = len(receipts)
            for number in numbers:
                try:
                    receipts.append(c.send(bytes(20_000), to="planner", handoff_id=str(number)).handoff_id)
                except FullError:
                    refused += 1
                except Exception:
                    other += 1
            return len(receipts) - before

        def receive(most: int) -> int:
            """How many were handed out and acknowledged."""
            nonlocal other
            before = len(got)
            try:
                got.extend(delivery.handoff_id for delivery in islice(drained(c), most))
            except TransportError:
                other += 1
            return len(got) - before

        with connect(f"spool://{home}/spool", name="planner") as c:
            kept = send(range(900))
            handed_out = receive(20)
            if what.startswith("tmpfs"):
                fill(home / "foreign")
            else:
                c._inner._backend._store._db.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]
            nothing = send(range(900, 940))
            if what.startswith("tmpfs"):
                for file in ("foreign", "ballast"):
                    (home / file).unlink()
            else:
                c._inner._backend._store._db.execute("PRAGMA max_page_count = 1000000")  # type: ignore[attr-defined]
            again = send(range(940, 980))
            receive(1000)
    lost, unasked = len(set(receipts) - set(got)), len(set(got) - set(receipts))
    return {
        "scenario": "full disk",
        "transport": "spool",
        "disk": what,
        "promise": "what does not fit is refused with FullError and not kept; a disk that the spool itself filled still"
        " hands out; nothing with a receipt is lost; with room made it goes on",
        "kept_before_full": kept,
        "handed_out_while_full": handed_out,
        "kept_when_others_took_the_rest": nothing,
        "kept_after_room": again,
        "refused_with_full_error": refused,
        "other_errors": other,
        "lost": lost,
        "kept_though_refused": unasked,
        "handed_out_twice": len(got) - len(set(got)),
        "held": refused > 0
        and (handed_out, again) == (20, 40)
        and other == lost == unasked == 0
        and len(got) == len(set(got)),
    }


@contextmanager
def disk(scratch: Path) -> Iterator[tuple[Path, str]]:
    """A folder on a small disk of its own and what it is; where none can be mounted, SQLite is told to stop early."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(scratch)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        yield scratch, f"max_page_count, because nothing could be mounted: {done.stderr.strip()[:100]}"
        return
    try:
        (scratch / "ballast").write_bytes(bytes(BALLAST_BYTES))
        yield scratch, f"tmpfs of {DISK_BYTES} bytes, {BALLAST_BYTES} of them taken at first"
    finally:
        subprocess.run(["umount", str(scratch)], check=True)


def fill(path: Path) -> None:
    """A file that takes all that is left."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def drained(c: Connection) -> Iterator[Delivery]:
    """What there is, each one acknowledged."""
    while (delivery := c.receive()) is not None:
        delivery.ack()
        yield delivery


class JumpingClock:
    """The time of day, off by some seconds."""

    def __init__(self) -> None:
        self.off_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.off_s


def jumping_clock(n: int, rng: random.Random) -> Row:
    """One sender, two receivers that hold up to eight messages each, and a clock that jumps by an hour, to and fro."""
    clock = JumpingClock()
    settings = Settings(lease_s=30.0, dedup_s=2 * JUMP_S, clock=clock, power_safe=False)
    hands: dict[str, int] = {}
    acked: set[str] = set()
    after_ack = redelivered = late = forward = back = duplicates = repeats = 0
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        sender, *receivers = (
            stack.enter_context(connect(f"spool://{home}", name="planner", settings=settings)) for _ in range(3)
        )
        held: tuple[list[Delivery], ...] = ([], [])
        sent = 0
        for _ in range(20 * n):
            if len(acked) == n:
                break
            if sent < n:
                sender.send(MESSAGE, to="planner", handoff_id=str(sent))
                sent += 1
                if sent % 10 == 0:  # and one again, as after a doubtful error
                    repeats += 1
                    again = str(rng.randrange(sent))
                    duplicates += sender.send(MESSAGE, to="planner", handoff_id=again).duplicate
            if rng.random() < 0.01:
                clock.off_s = JUMP_S - clock.off_s
                forward, back = forward + (clock.off_s > 0), back + (clock.off_s == 0)
            who = rng.randrange(2)
            delivery = receivers[who].receive()
            if delivery is not None:
                known = delivery.handoff_id
                hands[known] = hands.get(known, 0) + 1
                after_ack += known in acked
                redelivered += hands[known] > 1 and known not in acked
                held[who].append(delivery)
            if held[who] and (len(held[who]) >= 8 or delivery is None):
                try:
                    oldest = held[who].pop(rng.randrange(len(held[who])))
                    oldest.ack()
                    acked.add(oldest.handoff_id)
                except LeaseLostError:
                    late += 1
        clock.off_s = JUMP_S
        sender.send(MESSAGE, to="planner", handoff_id="last")
        lost_hold = receivers[0].receive()
        clock.off_s = 0.0
        next_hold = receivers[1].receive()
        at_once = lost_hold is not None and refuses(lost_hold.ack) and next_hold is not None
        if next_hold is not None:
            next_hold.ack()
        nothing_left = sender.receive() is None
    return {
        "scenario": "clock jumps by an hour",
        "transport": "spool",
        "promise": "nothing is lost, nothing is handed out after its acknowledgement, and every id is known again",
        "sent": sent,
        "jumps_forward": forward,
        "jumps_back": back,
        "lost": sent - len(hands),
        "handed_out_after_its_acknowledgement": after_ack,
        "redelivered": redelivered,
        "late_acknowledgements_refused": late,
        "sent_again": repeats,
        "known_again": duplicates,
        "a_lease_from_the_future_is_void_at_once": at_once,
        "held": len(hands) == len(acked) == sent == n
        and after_ack == 0
        and duplicates == repeats
        and at_once
        and nothing_left
        and min(forward, back, late, redelivered) > 0,
    }


def slow_receiver(transport: str, n: int) -> Row:
    """A receiver that holds n messages for longer than its lease, while another one gets and acknowledges them."""
    lease_s = 2.0
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        url, server = address(transport, Path(scratch))
        if server is not None:
            process = start(server)
            stack.callback(process.wait)
            stack.callback(process.kill)
        stack.enter_context(patient(url, None))
        settings = Settings(lease_s=lease_s)
        slow, quick = (stack.enter_context(connect(url, name="planner", settings=settings)) for _ in range(2))
        sent = [quick.send(MESSAGE, to="planner").handoff_id for _ in range(n)]
        held = [delivery for _ in sent if (delivery := slow.receive(5)) is not None]
        time.sleep(1.5 * lease_s)
        second: list[Delivery] = []
        while len(second) < n and (delivery := quick.receive(5)) is not None:
            second.append(delivery)
            if len(second) % 2:  # half are acknowledged before the late one asks, half after it
                delivery.ack()
        refused = sum(refuses(delivery.ack) for delivery in held)
        past_its_clock = sum(refuses(partial(slow._caller.call, asked, late)) for late in held)
        for delivery in second:
            delivery.ack()
        third = quick.receive(1.5 * lease_s)
    again = sum(delivery.attempt > 1 for delivery in second)
    return {
        "scenario": "slow receiver",
        "transport": transport,
        "promise": "what is held too long goes to the next, and a late acknowledgement is refused"
        + (", by the store too" if transport == "spool" else " by its own end; the server knows no better"),
        "sent": n,
        "lease_s": lease_s,
        "went_to_the_next": again,
        "lost": len(set(sent) - {delivery.handoff_id for delivery in second}),
        "late_acknowledgements": len(held),
        "late_acknowledgements_refused": refused,
        "refused_by_the_other_end": past_its_clock,
        "handed_out_after_its_acknowledgement": int(third is not None),
        "held": n == len(held) == again == len({delivery.handoff_id for delivery in second}) == refused
        and (transport != "spool" or past_its_clock == n)
        and third is None,
    }


async def asked(delivery: Delivery) -> None:
    """The acknowledgement as it goes on its way, without the look at the receiver's own clock that comes before it."""
    inner = delivery._inner
    await inner._backend.settle(inner._name, inner._lease, retry_in_s=None)


def refuses(acknowledge: Callable[[], None]) -> bool:
    """Whether an acknowledgement comes too late."""
    try:
        acknowledge()
    except LeaseLostError:
        return True
    return False


def sealed(n: int) -> list[bytes]:
    """n messages, each with an id of its own, good for an hour."""
    return [Message(bytes(8), bytes(80), Seal.fresh(ttl_s=3600)).to_bytes(KEY) for _ in range(n)]


def replay_by_transport(n: int) -> Row:
    """Each of n sealed messages is sent again while it waits, and again after its acknowledgement."""
    recorded = sealed(n)
    with tempfile.TemporaryDirectory() as home, connect(f"spool://{home}", name="planner") as c:
        kept = sum(not c.send(message, to="planner").duplicate for message in recorded)
        waiting = sum(c.send(message, to="planner").duplicate for message in recorded)
        out = [delivery.message for delivery in drained(c)]
        acknowledged = sum(c.send(message, to="planner").duplicate for message in recorded)
        again = sum(1 for _ in drained(c))
    return {
        "scenario": "replay through the spool",
        "transport": "spool",
        "promise": "a recorded message is known again by its id, while it waits and after its acknowledgement",
        "sent": kept,
        "known_while_waiting": waiting,
        "handed_out": len(out),
        "known_after_acknowledgement": acknowledged,
        "handed_out_again": again,
        "held": kept == waiting == len(out) == acknowledged == n and out == recorded and again == 0,
    }


def replay_to_two_processes(n: int) -> Row:
    """Two processes with one replay cache are given the same n sealed messages at the same time, twice over."""
    recorded, context = sealed(n), multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as home:
        both, books = context.Barrier(2), [context.Queue(), context.Queue()]
        workers = [context.Process(target=admit, args=(Path(home) / "replay", recorded, both, book)) for book in books]
        for worker in workers:
            worker.start()
        admitted = [book.get(timeout=120) for book in books]
        for worker in workers:
            worker.join()
    times = [sum(each.count(number) for each in admitted) for number in range(n)]
    return {
        "scenario": "replay to two processes",
        "transport": "none: one ReplayCache file",
        "promise": "each message is let in exactly once between the two",
        "messages": n,
        "offered": 4 * n,
        "let_in_by_each": [len(each) for each in admitted],
        "let_in_never": times.count(0),
        "let_in_more_than_once": sum(count > 1 for count in times),
        "held": times == [1] * n,
    }


def admit(path: Path, recorded: list[bytes], both: Any, book: Any) -> None:
    """One of the processes: which messages it let in."""
    let_in: list[int] = []
    with ReplayCache(path) as cache:
        both.wait()
        for number in [*range(len(recorded))] * 2:
            message, key = verified(recorded[number], key=KEY)
            assert key is not None
            assert message.seal is not None
            try:
                cache.admit(key, message.seal)
            except ReplayError:
                continue
            let_in.append(number)
    book.put(let_in)
