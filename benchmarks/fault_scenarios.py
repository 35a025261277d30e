"""What else can go wrong, a scenario each, and the promise that is kept: `benchmarks/faults.py` runs and writes them.

Each gives plain counts and ``held``, whether they are as ``promise`` says. `fault_requests.py` has those of the HTTP
ingress; the others are here: a full disk, a clock that jumps, a receiver that is slower than its lease, and messages
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

from fault_requests import idle_connections, malformed_requests, wrong_tokens
from fault_shared import MESSAGE, address, patient, start

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
    """Runs all of them, one after the other, each with a random generator of its own."""
    return [
        told(full_disk),
        told(jumping_clock, 3000, random.Random(seed)),
        told(slow_receiver, "spool", 100),
        told(slow_receiver, "nats", 100),
        told(malformed_requests, 10_000, random.Random(seed)),
        told(wrong_tokens, 1000, random.Random(seed)),
        told(idle_connections, 2000),
        told(replay_by_transport, 1000),
        told(replay_to_two_processes, 1000),
    ]


def told(scenario: Callable[..., Row], *args: Any) -> Row:
    """Returns what a scenario counts; one that breaks off has not held."""
    try:
        return scenario(*args)
    except Exception as error:
        return {"scenario": scenario.__name__, "error": repr(error)[:300], "held": False}


class Filler:
    """Sends and receives over a spool whose disk is full now and then, and keeps the books."""

    def __init__(self, c: Connection) -> None:
        self.c = c
        self.receipts: list[str] = []
        self.got: list[str] = []
        self.refused = self.other = 0

    def send(self, numbers: range) -> int:
        """Sends them, and counts those that have a receipt."""
        before = len(self.receipts)
        for number in numbers:
            try:
                self.receipts.append(self.c.send(bytes(20_000), to="planner", handoff_id=str(number)).handoff_id)
            except FullError:
                self.refused += 1
            except Exception:
                self.other += 1
        return len(self.receipts) - before

    def receive(self, most: int) -> int:
        """Receives and acknowledges, and counts how many."""
        before = len(self.got)
        try:
            self.got.extend(delivery.handoff_id for delivery in islice(drained(self.c), most))
        except TransportError:
            self.other += 1
        return len(self.got) - before


def full_disk() -> Row:
    """Fills a spool's disk by the spool itself; then others take what is left, and give all of it back."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        disk(Path(scratch)) as (home, what),
        connect(f"spool://{home}/spool", name="planner", settings=Settings(max_name_bytes=64 << 20)) as c,
    ):
        books, mounted = Filler(c), what.startswith("tmpfs")
        kept = books.send(range(900))
        handed_out = books.receive(20)
        fill(home / "others") if mounted else allow_pages(c, 1)
        nothing = books.send(range(900, 940))
        if mounted:
            for file in ("others", "ballast"):
                (home / file).unlink()
        else:
            allow_pages(c, 1_000_000)
        again = books.send(range(940, 980))
        books.receive(1000)
    receipts, got = books.receipts, books.got
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
        "refused_with_full_error": books.refused,
        "other_errors": books.other,
        "lost": lost,
        "kept_though_refused": unasked,
        "handed_out_twice": len(got) - len(set(got)),
        "held": books.refused > 0
        and (handed_out, again) == (20, 40)
        and books.other == lost == unasked == 0
        and len(got) == len(set(got)),
    }


def allow_pages(c: Connection, most: int) -> None:
    """Stops SQLite at so many pages, as a disk would."""
    backend: Any = c._inner._backend
    backend._store._db.execute(f"PRAGMA max_page_count = {most}")


@contextmanager
def disk(scratch: Path) -> Iterator[tuple[Path, str]]:
    """Gives a folder on a small disk, and what that is; where none can be mounted, SQLite is told to stop early."""
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
    """Writes a file that takes all that is left."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def drained(c: Connection) -> Iterator[Delivery]:
    """Receives what there is, and acknowledges each one."""
    while (delivery := c.receive()) is not None:
        delivery.ack()
        yield delivery


class JumpingClock:
    """The time of day, off by some seconds."""

    def __init__(self) -> None:
        self.off_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.off_s


class Jumps:
    """One sender, two receivers that hold up to eight messages each, a clock that jumps, and the books."""

    def __init__(
        self, sender: Connection, receivers: list[Connection], clock: JumpingClock, rng: random.Random
    ) -> None:
        self.sender, self.receivers, self.clock, self.rng = sender, receivers, clock, rng
        self.held: tuple[list[Delivery], ...] = ([], [])
        self.hands: dict[str, int] = {}
        self.acked: set[str] = set()
        self.sent = self.after_ack = self.redelivered = self.late = 0
        self.forward = self.back = self.duplicates = self.repeats = 0

    def step(self, n: int) -> None:
        """Sends one, perhaps jumps, and has one of the receivers receive and acknowledge."""
        if self.sent < n:
            self.send()
        if self.rng.random() < 0.01:
            self.clock.off_s = JUMP_S - self.clock.off_s
            self.forward, self.back = self.forward + (self.clock.off_s > 0), self.back + (self.clock.off_s == 0)
        who = self.rng.randrange(2)
        held, delivery = self.held[who], self.receivers[who].receive()
        if delivery is not None:
            known = delivery.handoff_id
            self.hands[known] = self.hands.get(known, 0) + 1
            self.after_ack += known in self.acked
            self.redelivered += self.hands[known] > 1 and known not in self.acked
            held.append(delivery)
        if held and (len(held) >= 8 or delivery is None):
            try:
                oldest = held.pop(self.rng.randrange(len(held)))
                oldest.ack()
                self.acked.add(oldest.handoff_id)
            except LeaseLostError:
                self.late += 1

    def send(self) -> None:
        """Sends the next one, and now and then one again, as after a doubtful error."""
        self.sender.send(MESSAGE, to="planner", handoff_id=str(self.sent))
        self.sent += 1
        if self.sent % 10 == 0:
            self.repeats += 1
            again = str(self.rng.randrange(self.sent))
            self.duplicates += self.sender.send(MESSAGE, to="planner", handoff_id=again).duplicate

    def future_lease_is_void(self) -> bool:
        """Checks that a lease that seems to begin in the future is refused, and its message handed out, at once."""
        self.clock.off_s = JUMP_S
        self.sender.send(MESSAGE, to="planner", handoff_id="last")
        lost_hold = self.receivers[0].receive()
        self.clock.off_s = 0.0
        next_hold = self.receivers[1].receive()
        void = lost_hold is not None and refuses(lost_hold.ack) and next_hold is not None
        if next_hold is not None:
            next_hold.ack()
        return void


def jumping_clock(n: int, rng: random.Random) -> Row:
    """Hands on n messages while the clock of all jumps by an hour, to and fro."""
    clock = JumpingClock()
    settings = Settings(lease_s=30.0, dedup_s=2 * JUMP_S, max_deliveries=1000, clock=clock, power_safe=False)
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        sender, *receivers = (
            stack.enter_context(connect(f"spool://{home}", name="planner", settings=settings)) for _ in range(3)
        )
        books = Jumps(sender, receivers, clock, rng)
        for _ in range(20 * n):
            if len(books.acked) == n:
                break
            books.step(n)
        at_once = books.future_lease_is_void()
        nothing_left = sender.receive() is None
    return {
        "scenario": "clock jumps by an hour",
        "transport": "spool",
        "promise": "nothing is lost, nothing is handed out after its acknowledgement, and every id is known again",
        "sent": books.sent,
        "jumps_forward": books.forward,
        "jumps_back": books.back,
        "lost": books.sent - len(books.hands),
        "handed_out_after_its_acknowledgement": books.after_ack,
        "redelivered": books.redelivered,
        "late_acknowledgements_refused": books.late,
        "sent_again": books.repeats,
        "known_again": books.duplicates,
        "a_lease_from_the_future_is_void_at_once": at_once,
        "held": len(books.hands) == len(books.acked) == books.sent == n
        and books.after_ack == 0
        and books.duplicates == books.repeats
        and at_once
        and nothing_left
        and min(books.forward, books.back, books.late, books.redelivered) > 0,
    }


def slow_receiver(transport: str, n: int) -> Row:
    """Has a receiver hold n messages for longer than its lease, while another one gets and acknowledges them."""
    lease_s = 2.0
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        url, _, server = address(transport, Path(scratch))
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
    """Sends the acknowledgement on its way without the look at the receiver's own clock that comes before it."""
    inner = delivery._inner
    await inner._backend.settle(inner._name, inner._lease, retry_in_s=None)


def refuses(acknowledge: Callable[[], None]) -> bool:
    """Says whether an acknowledgement comes too late."""
    try:
        acknowledge()
    except LeaseLostError:
        return True
    return False


def sealed(n: int) -> list[bytes]:
    """Makes n messages, each with an id of its own, good for an hour."""
    return [Message(bytes(8), bytes(80), Seal.fresh(ttl_s=3600)).to_bytes(KEY) for _ in range(n)]


def replay_by_transport(n: int) -> Row:
    """Sends each of n sealed messages again while it waits, and again after its acknowledgement."""
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
    """Gives two processes with one replay cache the same n sealed messages at the same time, twice over."""
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
    """Is one of the processes, and tells which messages it let in."""
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
