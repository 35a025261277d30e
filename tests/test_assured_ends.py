"""What both ends do in doubt and while an alarm stands: every policy, whatever else a message is subject to."""

import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import ilcp
from ilcp import ReplayCache, TextMemory
from ilcp.assurance import AssuranceWarning, Judgement, Observed, Policy, Reference, State, View, Watch
from ilcp.errors import (
    ConfigError,
    DecodeError,
    DoubtError,
    EncodeError,
    ReplayError,
    StorageError,
    UnmeasuredError,
)
from ilcp.evidence import Evidence
from ilcp.handoff import FallbackWarning, assured
from ilcp.message import Message, Seal
from ilcp_codecs.text import PlainCodec
from tests.calibrated import PROBE, Ends, ends_in
from tests.helpers import noting, text_of

KEY = bytes(range(32))
UNLIKE = "is unlike those calibrated on: p = "
TEXT = "The text itself."


@pytest.fixture(scope="module")
def ends(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """A calibrated pair."""
    return ends_in(tmp_path_factory.mktemp("calibrated") / "codec", small)


def alarmed(state: State) -> State:
    """The state in which an alarm stands since the third message."""
    return replace(state, messages=3, alarm_at=3, alarm_unix_s=1, peak=123.0)


def alarm(watch: Watch, ends: Ends, tenant: str = "", place: str = "receiver") -> None:
    """Sets off an alarm."""
    codec_id = ends.codec.trained.codec_id(ends.codec.spec).hex()
    watch.change(codec_id, ends.reference.digest, tenant, place, alarmed)


def sealed(ends: Ends, number: int = 0) -> bytes:
    """An unusual message under a key."""
    return ends.odd(number, KEY, seal=Seal.fresh(ttl_s=600))


def done(call: Callable[[], Any]) -> str:
    """What an end did."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = call()
        except DoubtError:
            return "refuse"
    kinds = {each.category for each in caught}
    if isinstance(found, TextMemory) or (isinstance(found, bytes) and kinds == {FallbackWarning}):
        return "text"
    return "warn" if kinds == {AssuranceWarning} else "accept"


@pytest.mark.parametrize("action", ["accept", "warn", "refuse", "text"])
@pytest.mark.parametrize("cause", ["doubt", "alarm"])
def test_a_receiver_does_what_its_policy_says(ends: Ends, cause: str, action: Any) -> None:
    """In doubt of one message, or of all; sealed and let in once. What is refused may come again, for another policy;
    what is not was let in. A usual message without an alarm is taken without a word."""
    watch, cache = Watch(), ReplayCache()
    other: Any = {"doubt": "alarm", "alarm": "doubt"}[cause]
    policy = Policy(watch=watch, text=lambda wire: TEXT, **{cause: action, other: "accept"})
    receiver = ends.receiver(key=KEY, replay=cache, assurance=policy)
    usual = ends.sender(key=KEY).encode(ends.texts[0])
    assert "accept" == done(lambda: receiver.decode(usual))
    message = sealed(ends) if cause == "doubt" else ends.sender(key=KEY).encode(ends.texts[1])
    if cause == "alarm":
        alarm(watch, ends)
    assert action == done(lambda: receiver.decode(message))
    assert (1 if action == "refuse" else 2) == len(cache)
    if action == "refuse":
        assert "refuse" == done(lambda: receiver.decode(message))
        lenient = ends.receiver(key=KEY, replay=cache, assurance=None)
        assert lenient.decode(message)
    with pytest.raises(ReplayError):
        receiver.decode(message)
    (state,) = watch.states()
    assert 1 == state.decided[action] - (action == "accept")
    if cause == "alarm":
        watch.reset(state.codec_id)
        assert "accept" == done(lambda: receiver.decode(ends.sender(key=KEY).encode(ends.texts[2])))


@pytest.mark.parametrize(
    ("doubt", "alarmed", "both"),
    [("accept", "refuse", "refuse"), ("warn", "refuse", "refuse"), ("refuse", "warn", "refuse"),
     ("warn", "text", "text"), ("text", "accept", "text"), ("accept", "warn", "warn")],
)  # fmt: skip
def test_in_doubt_while_an_alarm_stands_the_stricter_counts(ends: Ends, doubt: Any, alarmed: Any, both: str) -> None:
    """An unusual message never has it easier than a usual one."""
    watch = Watch()
    alarm(watch, ends)
    policy = Policy(doubt, alarmed, watch=watch, text=lambda wire: TEXT)
    assert both == done(lambda: ends.receiver(assurance=policy).decode(ends.odd()))


@pytest.mark.parametrize("action", ["accept", "warn", "refuse", "text"])
@pytest.mark.parametrize("cause", ["doubt", "alarm"])
def test_a_sender_does_what_its_policy_says(ends: Ends, cause: str, action: Any) -> None:
    """``encode`` and ``encode_batch``; the text goes by its own codec, literals and all, sealed as every message."""
    watch = Watch()
    if cause == "alarm":
        alarm(watch, ends, place="sender")
    policy = Policy(watch=watch, **{"doubt": "accept", "alarm": "accept", cause: action})
    sender = ends.sender(assurance=policy, key=KEY)
    source = ends.odd_context() if cause == "doubt" else ends.texts[0]
    assert action == done(lambda: sender.encode(source, literals=["INC-7"]))
    usual = [] if cause == "alarm" else [ends.texts[0]]
    if action == "refuse":
        with pytest.raises(DoubtError, match=rf"source {len(usual)}: expected a message like those .*; send the text"):
            sender.encode_batch([*usual, source])
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wires = [sender.encode(source, literals=["INC-7"]), *sender.encode_batch([*usual, source])]
    text_id = PlainCodec().trained.codec_id(PlainCodec().spec)
    ids = [Message.from_bytes(wire, key=KEY).codec_id for wire in wires]
    expected = text_id if action == "text" else sender.codec_id
    assert [expected, *([sender.codec_id] * len(usual)), expected] == ids
    if action == "text":
        memory = ends.receiver([ends.codec, PlainCodec()], key=KEY).decode(wires[0])
        assert ((ends.texts[0]), ("INC-7",)) == (text_of(memory), memory.literals)


def test_a_text_that_is_not_there_cannot_be_taken(ends: Ends) -> None:
    """States without a text: a sender's policy of "text" ends in an EncodeError, never in a message in doubt."""
    sender = ends.sender(assurance=Policy(doubt="text"))
    with pytest.warns(FallbackWarning), pytest.raises(EncodeError):
        sender.encode(replace(ends.odd_context(), text=None))


@pytest.mark.parametrize("action", ["refuse", "text"])
def test_a_message_that_is_read_back_is_judged_too(ends: Ends, action: Any) -> None:
    """``verified`` makes no message in doubt; a text has no place in its budget, so that "text" refuses as well."""
    receiver = ends.receiver()
    for source, expected in ((ends.texts[0], True), (ends.odd_context(), False)):
        sender = ends.sender(assurance=Policy(doubt=action))
        questions = {"Who?": "Mara"}
        if expected:
            assert sender.verified(source, receiver, 200, questions).message
        else:
            with pytest.raises(DoubtError, match="its latent is unlike"):
                sender.encode(source, verify=receiver, budget_bytes=200, questions=questions)


@pytest.mark.parametrize("given", ["", 7, "\x00\ufffe", "x" * 100_000])
def test_a_text_that_a_policy_gives_has_to_be_one(ends: Ends, given: Any) -> None:
    """Empty, none, not plain or too long: refused, and the message may come again."""
    cache = ReplayCache()
    policy = Policy(doubt="text", text=lambda wire: given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((DecodeError, EncodeError)):
            ends.receiver(key=KEY, replay=cache, assurance=policy).decode(sealed(ends))
    assert 0 == len(cache)


def test_a_watch_that_fails_uses_up_no_id(ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that could not be judged is not taken, and is not lost either: it counts when it comes again."""
    failing = Watch()
    receiver = ends.receiver(assurance=Policy("accept", watch=failing))
    change = failing.change
    monkeypatch.setattr(failing, "change", lambda *_: pytest.fail("full"))
    with pytest.raises(pytest.fail.Exception):
        receiver.decode(ends.odd())
    monkeypatch.setattr(failing, "change", change)
    receiver.decode(ends.odd())
    assert [1] == [state.messages for state in failing.states()]
    cache, watch = ReplayCache(), Watch(tmp_path / "watch.sqlite")
    receiver = ends.receiver(key=KEY, replay=cache, assurance=Policy(watch=watch))
    message = ends.sender(key=KEY).encode(ends.texts[0])
    watch.close()
    with pytest.raises(StorageError, match="expected a watch"):
        receiver.decode(message)
    assert 0 == len(cache)


def test_a_message_counts_once_however_often_it_is_met(ends: Ends) -> None:
    """Asked forty questions, or delivered forty times, an unusual message is one piece of evidence, and found to be
    what it was; forty messages like it alarm."""
    watch = Watch()
    receiver = ends.receiver(assurance=Policy("accept", watch=watch))
    message = ends.odd()
    receiver.answers([(message, f"Which is number {n}?") for n in range(40)], max_new_tokens=1)
    (state,) = watch.states()
    assert (1, {"accept": 1}, False) == (state.messages, state.decided, state.alarmed)
    assert state.value < 3
    strict = ends.receiver(assurance=Policy("refuse", watch=watch))
    assert {"refuse"} == {done(lambda: strict.decode(message)) for _ in range(40)}
    assert 2 == watch.states()[0].messages  # each receiver has met it once
    lenient = ends.receiver(assurance=Policy("accept", "accept", watch=watch))
    for number in range(1, 41):
        lenient.decode(ends.odd(number))
    assert 0 < watch.states()[0].alarm_at < 30


def test_what_was_met_is_forgotten_in_the_end(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so many messages are remembered, the latest ones."""
    monkeypatch.setattr("ilcp.assurance.policy.MOST_SEEN", 3)
    watch = Watch()
    receiver = ends.receiver(assurance=Policy("accept", "accept", watch=watch))
    for number in (0, 1, 2, 3, 3, 1, 0):
        receiver.decode(ends.odd(number))
    assert 5 == watch.states()[0].messages
    assert receiver.guard is not None
    assert 3 == len(receiver.guard._seen)


def test_judging_alone_uses_up_nothing(ends: Ends) -> None:
    """``judged`` says what ``decode`` finds, of a message that was decoded before as well, and leaves id and evidence
    as they were."""
    cache, watch = ReplayCache(), Watch()
    receiver = ends.receiver(key=KEY, replay=cache, assurance=Policy("accept", watch=watch))
    message = sealed(ends)
    first = receiver.judged(message)
    assert (0, []) == (len(cache), watch.states())
    assert (first.p or 1) < 1 / 121
    assert UNLIKE in first.because
    receiver.decode(message)
    held = watch.states()
    again = receiver.judged(message)
    assert held == watch.states()
    assert again == receiver.judged(message)
    assert ends.reference.digest == first.reference == again.reference
    assert Judgement() == ends.receiver(key=KEY, assurance=None).judged(message)


def test_codecs_of_one_receiver_are_judged_each_by_its_own_and_tenants_apart(ends: Ends) -> None:
    """Text is read as it is and not judged; one tenant's alarm is none of another's, at the same receiver's codec."""
    watch = Watch()
    alarm(watch, ends, tenant="acme")
    usual, text = ends.sender().encode(ends.texts[0]), Message(PlainCodec().trained.codec_id(PlainCodec().spec), b"Hi")
    for tenant, expected in (("acme", "refuse"), ("other", "accept"), ("", "accept")):
        policy = Policy(alarm="refuse", watch=watch, tenant=tenant)
        receiver = ends.receiver([PlainCodec(), ends.codec], assurance=policy)
        assert expected == done(partial(receiver.decode, usual))
        assert "Hi" == text_of(receiver.decode(text.to_bytes()))
    assert {"acme", "other", ""} == {state.tenant for state in watch.states()}
    assert {ends.reference.digest} == {state.reference for state in watch.states()}


def test_a_codec_that_nobody_calibrated_is_not_judged(small: Any) -> None:
    """Neither end says a word, whatever its policy."""
    own = small.receiver.model, small.receiver.tokenizer
    watch = Watch()
    strict = Policy("refuse", "refuse", watch=watch)
    receiver = ilcp.Receiver(*own, small.codec, allow_unmeasured=True, assurance=strict)
    sender = ilcp.Sender(small.sender.model, small.sender.tokenizer, small.codec, assurance=strict)
    assert receiver.decode(sender.encode("anything at all"))
    assert [] == watch.states()


def test_every_so_manieth_message_is_probed(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three, each once, and each that is only judged; none where there is nothing to compare with, or 0."""
    rng = np.random.default_rng(1)
    view = View.fit([Observed(rng.standard_normal(2).astype(np.float32)) for _ in range(300)])
    reference = replace(ends.reference, views={**ends.reference.views, "probed": view})
    seen: list[Any] = []
    odd = Observed(np.full(2, 1e6, dtype=np.float32))
    monkeypatch.setattr(assured, "probed", noting(lambda *_: odd, seen, lambda *_: 1))
    usual = [ends.sender().encode(text) for text in ends.texts[:6]]
    for known, every, expected in ((reference, 3, 2), (reference, 1, 6), (reference, 0, 0), (ends.reference, 1, 0)):
        monkeypatch.setattr(Reference, "of", lambda codec, known=known: known)
        watch = Watch()
        receiver = ends.receiver(assurance=Policy("accept", probe_every=every, watch=watch))
        seen.clear()
        for message in (*usual, *usual):
            receiver.decode(message)
        assert expected == len(seen)
        assert ("probed" in receiver.judged(ends.sender().encode(ends.texts[7])).views) == (expected > 0)
        assert (1 + (expected > 0)) == watch.states()[0].views
    monkeypatch.setattr(Reference, "of", lambda codec: reference)
    receiver = ends.receiver(assurance=Policy(probe_every=1))
    found = [receiver.judged(usual[0]).because for _ in range(20)]  # ties are broken anew each time
    assert all("its effect on the receiver is unlike" in because for because in found)


def test_a_probe_is_what_the_receiver_scores(ends: Ends) -> None:
    """Nats of each answer behind the memory."""
    receiver = ends.receiver()
    memory = receiver.decode(ends.sender().encode(ends.texts[0]))
    scores = receiver.score([(memory, *each) for each in PROBE])
    found = assured.probed(receiver, memory, ends.reference)
    assert found is not None
    np.testing.assert_allclose([score.log_likelihood_nats for score in scores], found.vector, rtol=1e-5)


def test_a_probe_that_cannot_be_asked_is_the_references_fault(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's question that is longer than any window: a StorageError that says what to do, and no id is lost."""
    view = View.fit([Observed(np.full(1, n / 300, np.float32)) for n in range(300)])
    calibrated = replace(ends.reference.calibrated, probe=(("x " * 5000, "Mara"),))
    reference = Reference({**ends.reference.views, "probed": view}, calibrated)
    monkeypatch.setattr(Reference, "of", lambda codec: reference)
    cache = ReplayCache()
    receiver = ends.receiver(key=KEY, replay=cache, assurance=Policy(probe_every=1))
    with pytest.raises(StorageError, match=r"expected a probe .* that can be asked, got: .*; calibrate again"):
        receiver.decode(ends.sender(key=KEY).encode(ends.texts[0]))
    assert 0 == len(cache)


ARMS = {"message": 0.9, "mismatched": 0.1}
MEASURED = Evidence("", "cases", 200, 0, "exact match", 0.8, 0.7, 0.9, ARMS, "abc")
NOW, HERE = int(time.time()), transformers.__version__


@pytest.mark.parametrize(
    ("unix_s", "with_transformers", "days", "because"),
    [
        (NOW, HERE, 30, ""),
        (NOW - 40 * 86_400, HERE, 30, "it was measured 40 days ago, and 30 are allowed"),
        (NOW - 40 * 86_400, HERE, None, ""),
        (0, "", None, ""),
        (0, "", 30, "nothing says when it was measured, and 30 days are allowed"),
        (NOW, "3.9.1", None, f"it was measured with transformers 3.9.1, and {HERE} is installed"),
    ],
)
def test_evidence_expires(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, unix_s: int, with_transformers: str, days: float | None, because: str
) -> None:
    """Too old, of no known date, or of another major version of transformers: a doubt where an end is made."""
    codec_id = ends.codec.trained.codec_id(ends.codec.spec).hex()
    evidence = replace(MEASURED, codec_id=codec_id, measured_unix_s=unix_s, transformers=with_transformers)
    monkeypatch.setattr(ends.codec, "evidence", evidence)
    for make in (ends.sender, ends.receiver):
        make(assurance=Policy("accept", expires_days=days))
        if because:
            with pytest.warns(AssuranceWarning, match=f"the evidence of vae is in doubt: {because}; measure it again"):
                make(assurance=Policy("warn", expires_days=days))
            with pytest.raises(
                UnmeasuredError, match=f"one where {because}: measure it again with 'ilcp measure CODEC"
            ):
                make(assurance=Policy("refuse", expires_days=days))
        else:
            make(assurance=Policy("refuse", expires_days=days))


@pytest.mark.parametrize(
    "wrong",
    [{"doubt": "ask"}, {"alarm": None}, {"level": 0}, {"level": float("nan")}, {"probe_every": -1},
     {"probe_every": True}, {"expires_days": 0}, {"tenant": "x" * 201}, {"tenant": "a\nb"}, {"tenant": 7},
     {"watch": "watch.sqlite"}, {"text": "a text"}],
)  # fmt: skip
def test_a_policy_refuses_what_is_none(wrong: dict[str, Any]) -> None:
    """With what was expected."""
    with pytest.raises(ConfigError, match="expected "):
        Policy(**wrong)


def test_ends_refuse_a_policy_that_is_none(ends: Ends) -> None:
    """Another type; or a receiver that is to take a text that nobody gives: a sender has one."""
    for make in (ends.sender, ends.receiver):
        with pytest.raises(ConfigError, match=r"expected assurance as an ilcp.assurance.Policy or None, got str"):
            make(assurance="refuse")
    policies: tuple[dict[str, Any], ...] = ({"doubt": "text"}, {"alarm": "text"})
    for both in policies:
        with pytest.raises(ConfigError, match="expected text= beside a receiver's policy of 'text'"):
            ends.receiver(assurance=Policy(**both))
        ends.sender(assurance=Policy(**both))


def test_threads_share_a_receiver_and_its_watch(ends: Ends) -> None:
    """Eight threads take 200 messages: each is counted, none twice."""
    watch, gate = Watch(), threading.Barrier(8)
    receiver = ends.receiver(assurance=Policy("accept", "accept", watch=watch))
    messages = [ends.odd(number) for number in range(200)]

    def take(first: int) -> None:
        gate.wait(30)
        for message in messages[first::8]:
            receiver.decode(message)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, range(8)))
    (state,) = watch.states()
    assert (200, {"accept": 200}) == (state.messages, state.decided)
