"""Every transport does what the model does, whatever is sent, received, given back, crashed or left to expire."""

import contextlib

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ilcp.transport import ConflictError, Connection, Delivery, LeaseLostError, Settings
from tests.transport_model import KINDS, Clock, Entry, Kind, Model, RealClock

NAMES = ("planner", "critic")
QUEUES = (*NAMES, "planner-dead", "critic-dead")
MAX_DELIVERIES = 3
IDS = ("a", "b", "c", "d")
LEASE_S, DEDUP_S = 30.0, 600.0
REAL_LEASE_S = 0.6
DELAYS_S = (None, None, 0.0, 0.0, 7.0)  # None: acknowledged, else given back for so long
WAITS_S = (0.2 * LEASE_S, 0.6 * LEASE_S, 1.1 * LEASE_S, 0.95 * DEDUP_S, 1.05 * DEDUP_S)
MAX_REAL_EXPIRIES = 1


class Hops(RuleBasedStateMachine):
    """One sender, two receivers, a model."""

    kind: Kind

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock() if self.kind.moves_clock else RealClock()
        self.lease_s = LEASE_S if self.kind.moves_clock else REAL_LEASE_S
        most = MAX_DELIVERIES if self.kind.moves_clock else 100
        self.model = Model(self.lease_s, DEDUP_S, most, self.clock)
        self.held: list[tuple[str, Entry, Delivery]] = []
        self.stack = contextlib.ExitStack()
        self.ends: dict[str, Connection] = {}
        self.closing: dict[str, contextlib.ExitStack] = {}
        self.expiries = 0
        theirs = Settings(lease_s=self.lease_s, max_deliveries=most, clock=self.clock)
        self.door = self.stack.enter_context(self.kind.opened(theirs))
        for name in QUEUES:
            self._open(name)

    def _open(self, name: str) -> None:
        self.closing[name] = contextlib.ExitStack()
        self.ends[name] = self.closing[name].enter_context(self.door(name))

    @rule(name=st.sampled_from(NAMES), handoff_id=st.sampled_from(IDS), message=st.binary(min_size=1, max_size=200))
    def send(self, name: str, handoff_id: str, message: bytes) -> None:
        """A message is kept once per name and id, the first of them; another one is refused."""
        known = self.model.send(name, handoff_id, message)
        if known is None:
            with pytest.raises(ConflictError, match=f"known under {handoff_id}, got another"):
                self.ends[NAMES[0]].send(message, to=name, handoff_id=handoff_id)
        else:
            assert (handoff_id, known) == self.ends[NAMES[0]].send(message, to=name, handoff_id=handoff_id)

    @precondition(lambda self: any(self.model.queues.values()))
    @rule(which=st.integers(0), message=st.sampled_from([None, b"another"]))
    def send_again(self, which: int, message: bytes | None) -> None:
        """What was sent before, waiting, held, settled or long forgotten, is known as long as it should be."""
        known = [(name, entry) for name, queue in self.model.queues.items() for entry in queue]
        name, entry = known[which % len(known)]
        self.send(name, entry.handoff_id, message or entry.message)

    @rule(name=st.sampled_from(QUEUES))
    def receive(self, name: str) -> None:
        """The oldest free message, or none."""
        free = self.model.free(name)
        self.model.bury(name)
        delivery = self.ends[name].receive(timeout_s=5 if free and not self.kind.moves_clock else 0)
        if not free:
            assert delivery is None
            return
        assert delivery is not None
        entry = free[0] if self.kind.keeps_order else next(e for e in free if e.handoff_id == delivery.handoff_id)
        self.model.take(entry)
        assert (entry.handoff_id, entry.message, entry.attempt) == (
            delivery.handoff_id,
            delivery.message,
            delivery.attempt,
        )
        self.held.append((name, entry, delivery))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0), delay_s=st.sampled_from(DELAYS_S))
    def settle(self, which: int, delay_s: float | None) -> None:
        """Who still holds a message can end it (None) or give it back; who lost it is told so."""
        _, entry, delivery = self.held.pop(which % len(self.held))
        holds = entry.settled_s is None and entry.attempt == delivery.attempt and entry.free_s > self.clock()
        back_s = None if delay_s is None else delay_s * self.kind.moves_clock
        with contextlib.nullcontext() if holds else pytest.raises(LeaseLostError):
            delivery.ack() if back_s is None else delivery.nack(back_s)
        if holds and back_s is None:
            entry.settled_s = self.clock()
        elif holds and back_s is not None:
            entry.free_s = self.clock() + back_s

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0))
    def extend(self, which: int) -> None:
        """Who still holds a message holds it for another lease from now on; who lost it is told so."""
        _, entry, delivery = self.held[which % len(self.held)]
        holds = entry.settled_s is None and entry.attempt == delivery.attempt and entry.free_s > self.clock()
        with contextlib.nullcontext() if holds else pytest.raises(LeaseLostError):
            delivery.extend()
        if holds:
            entry.free_s = self.clock() + self.lease_s

    @precondition(lambda self: any(map(self.model.free, QUEUES)))
    @rule(which=st.integers(0), delay_s=st.sampled_from(DELAYS_S))
    def work(self, which: int, delay_s: float | None) -> None:
        """A message is received and settled at once, and the next receive meets what that left."""
        names = [name for name in QUEUES if self.model.free(name)]
        self.receive(names[which % len(names)])
        self.settle(len(self.held) - 1, delay_s)
        self.receive(names[which % len(names)])

    @precondition(lambda self: self.kind.moves_clock and any(map(self.model.free, QUEUES)))
    @rule(which=st.integers(0))
    def overstay(self, which: int) -> None:
        """Until a lease ends its message is nobody else's; then it is the next one's."""
        names = [name for name in QUEUES if self.model.free(name)]
        for seconds in (0.6 * self.lease_s, 0.5 * self.lease_s, 0.0):
            self.receive(names[which % len(names)])
            self.wait(seconds)

    @precondition(lambda self: self.kind.moves_clock and self.held)
    @rule(which=st.integers(0))
    def forget(self, which: int) -> None:
        """What was settled is known for so long, and not longer."""
        name, entry, _ = self.held[which % len(self.held)]
        self.settle(which, None)
        for part in (0.95, 0.1):
            self.wait(part * DEDUP_S)
            self.send(name.removesuffix("-dead"), entry.handoff_id, entry.message)

    @precondition(lambda self: self.held)
    @rule(name=st.sampled_from(QUEUES))
    def crash(self, name: str) -> None:
        """A receiver that goes away keeps its leases until they end; its successor waits for that."""
        self.closing[name].close()
        self.held = [item for item in self.held if item[0] != name]
        self._open(name)

    @precondition(lambda self: not self.kind.moves_clock and self.expiries < MAX_REAL_EXPIRIES)
    @rule()
    def expire(self) -> None:
        """Every lease ends."""
        self.expiries += 1
        self.clock.advance(self.lease_s * 1.1)

    @precondition(lambda self: self.kind.moves_clock)
    @rule(seconds=st.sampled_from(WAITS_S))
    def wait(self, seconds: float) -> None:
        """Time passes: less than a lease, a lease, almost as long as what was settled is known, or longer."""
        self.clock.advance(seconds)

    @invariant()
    def nothing_is_handed_out_that_was_not_sent(self) -> None:
        """Held messages are messages of the model."""
        assert all(delivery.message == entry.message for _, entry, delivery in self.held)

    def teardown(self) -> None:
        """In the end everything that was sent and not settled comes, and nothing else."""
        try:
            self.clock.advance(self.lease_s * 1.1)
            for name in QUEUES:
                while self.model.free(name):
                    self.receive(name)
                    self.held[-1][2].ack()
                    self.held[-1][1].settled_s = self.clock()
                self.model.bury(name)
                assert self.ends[name].receive() is None
        finally:
            for name in QUEUES:
                self.closing[name].close()
            self.stack.close()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_transport_agrees_with_the_model(kind: Kind) -> None:
    """Send, receive, acknowledge, give back, crash, repeat, expire and forget end as the model says, in any order."""
    machine = type(f"Hops_{kind.name}", (Hops,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60 if kind.moves_clock else 4,
            stateful_step_count=30 if kind.moves_clock else 20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
