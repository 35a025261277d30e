"""What assurance leaves on record, in spans and on the auditor's page; what old signatures and hostile bytes bring."""

import json
import math
import random
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ilcp
from ilcp import ReplayCache
from ilcp.assurance import Judgement, Observed, Policy, Reference, View, Watch
from ilcp.assurance.observing import attention_of, encoded, received
from ilcp.audit import Draft, Recorder
from ilcp.audit.page.doubts import decided, is_alarm, is_doubt
from ilcp.embedded import Pair
from ilcp.errors import ConfigError, DecodeError, DoubtError, UnmeasuredError
from ilcp.evidence import Evidence, require_signed, signed
from ilcp.handoff import FallbackWarning
from ilcp.message import Message
from ilcp.signing import public_key, signature
from tests.calibrated import Ends, ends_in

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def ends(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """A calibrated pair."""
    return ends_in(tmp_path_factory.mktemp("calibrated") / "codec", small)


class Told:
    """A record that keeps what it is told."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def sent(self, message: bytes, codec: Any, literals: Any = (), fell_back: str = "", **more: Any) -> None:
        self.entries.append({"event": "fell back" if fell_back else "sent", **more})

    def received(self, message: bytes, codec: Any, literals: Any = (), **more: Any) -> None:
        self.entries.append({"event": "received", **more})

    def refused(self, because: Exception, message: bytes = b"") -> None:
        assurance = getattr(because, "assurance", None)
        self.entries.append({"event": "refused", "message": message, "assurance": assurance})


def handed(ends: Ends, action: Any, audit: Any) -> None:
    """Hands over in doubt, both ends telling."""
    sender = ends.sender(assurance=Policy(action), audit=audit)
    receiver = ends.receiver(assurance=Policy(action, text=lambda wire: "The text."), audit=audit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in (lambda: sender.encode(ends.odd_context()), lambda: receiver.decode(ends.odd())):
            if action == "refuse":
                with pytest.raises(DoubtError):
                    call()
            else:
                call()


@pytest.mark.parametrize("action", ["accept", "warn", "refuse", "text"])
def test_each_decision_is_on_record(ends: Ends, action: Any) -> None:
    """At both ends: what was decided and why, the p-value, the evidence, and which reference; nothing of the text."""
    audit = Told()
    handed(ends, action, audit)
    events = {"refuse": ["refused"] * 2, "text": ["fell back", "received"]}.get(action, ["sent", "received"])
    assert events == [entry["event"] for entry in audit.entries]
    for entry in audit.entries:
        told = entry["assurance"]
        assert (action, ends.reference.digest, False) == (told["decision"], told["reference"], told["alarm"])
        assert 0 <= told["p_value"] < 1 / 121
        assert 0.5 < told["evidence"] < 2
        assert "is unlike those calibrated on: p = " in told["reason"]
        assert {"decision", "reason", "reference", "p_value", "evidence", "alarm"} == set(told)
        Draft("handoff", {"assurance": told})  # which takes what JSON holds exactly


def test_usual_messages_are_on_record_too(ends: Ends) -> None:
    """Without a reason; and a record is told nothing where nothing was judged, so that others' keep working."""
    audit = Told()
    sender, receiver = ends.sender(assurance=Policy(), audit=audit), ends.receiver(audit=audit)
    receiver.decode(sender.encode(ends.texts[0]))
    assert [None, None] == [entry["assurance"].get("reason") for entry in audit.entries]
    assert ["accept", "accept"] == [entry["assurance"]["decision"] for entry in audit.entries]

    class Earlier:
        """A record of before there was assurance."""

        def sent(self, message: bytes, codec: Any, literals: Any = (), fell_back: str = "", *, payload: bytes = b"",
                 source: str | None = None) -> None: ...  # fmt: skip

        def received(self, message: bytes, codec: Any, literals: Any = ()) -> None: ...

        def refused(self, because: Exception, message: bytes = b"") -> None: ...

    earlier: Any = Earlier()
    receiver = ends.receiver(audit=earlier, assurance=None)
    assert receiver.decode(ends.sender(audit=earlier).encode(ends.texts[0]))


def test_a_verified_message_says_what_was_found(ends: Ends) -> None:
    """Read back before it is sent, it is on record as every other."""
    audit = Told()
    ends.sender(assurance=Policy(), audit=audit).verified(ends.texts[0], ends.receiver(), 200, {"Who?": "Mara"})
    assert ["accept"] == [entry["assurance"]["decision"] for entry in audit.entries]


@pytest.mark.parametrize("action", ["warn", "refuse", "text"])
def test_a_recorder_enters_it(ends: Ends, action: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the fields that stay, of refused hand-offs as well."""
    seen: list[tuple[str, Mapping[str, Any]]] = []

    def tell(self: Any, event: str, about: Mapping[str, Any], *more: Any, **options: Any) -> int:
        Draft(event, about)
        seen.append((event, about))
        return len(seen)

    monkeypatch.setattr(Recorder, "_tell", tell)
    with Recorder("memory://record", "planner") as audit:
        handed(ends, action, audit)
    assert 2 == len(seen)
    assert [action] * 2 == [about["assurance"]["decision"] for _, about in seen]
    assert all(is_doubt(about) and not is_alarm(about) for _, about in seen)
    assert [action == "refuse"] * 2 == [about.get("error") == "DoubtError" for _, about in seen]


def test_a_span_says_what_was_decided(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused or not, at both ends; nothing of it is text, and where nothing was judged there is nothing."""
    trace = pytest.importorskip("opentelemetry.trace")
    spans: list[dict[str, Any]] = []

    class Span(trace.NonRecordingSpan):  # type: ignore[name-defined]
        def set_attributes(self, attributes: Any) -> None:
            spans.append(dict(attributes))

        def is_recording(self) -> bool:
            return True

    monkeypatch.setattr(trace, "get_current_span", lambda *_: Span(trace.INVALID_SPAN_CONTEXT))
    for action in ("warn", "refuse", "text"):
        spans.clear()
        handed(ends, action, None)
        assert [action] * 2 == [span["ilcp.assurance.decision"] for span in spans]
        for span in spans:
            assert 0 <= span["ilcp.assurance.p_value"] < 1 / 121
            assert ends.reference.digest == span["ilcp.assurance.reference"]
            assert all(name.startswith("ilcp.assurance.") for name in span)
            assert all(isinstance(value, str | bool | float) for value in span.values())
    spans.clear()
    ends.receiver(assurance=None).decode(ends.odd())
    assert [] == spans


def test_a_fall_back_is_counted_once(ends: Ends) -> None:
    """The text in a message's place is one decision of the sender's, and the text itself is judged by nobody."""
    watch = Watch()
    sender = ends.sender(assurance=Policy("text", watch=watch))
    with pytest.warns(FallbackWarning, match="in place of a message: its latent is unlike those calibrated on"):
        sender.encode(ends.odd_context())
    (state,) = watch.states()
    assert (1, {"text": 1}, "sender") == (state.messages, state.decided, state.place)


HOSTILE: tuple[Any, ...] = (
    "<script>alert(1)</script>", "\x00\x1b[31m\x07\r\n", "\u202eevil", "x" * 100_000, {"a": ["b"]}, [], 1e308, 2**63,
    -1, True, None, math.inf, math.nan,
)  # fmt: skip


@pytest.mark.parametrize("field", ["decision", "reason", "p_value", "evidence", "alarm", "reference"])
def test_the_page_shows_hostile_values_as_they_are(field: str) -> None:
    """One line that prints, of bounded length, whatever stands in the record; nothing breaks."""
    for value in HOSTILE:
        fields = {"assurance": {"decision": "warn", "reason": "because", field: value}}
        told = decided(fields)
        assert told.isprintable()
        assert len(told) < 1500
        assert told.startswith("Compared with the messages that its codec was calibrated on (p-value ")
        is_doubt(fields), is_alarm(fields)


def test_the_page_says_each_decision_in_words() -> None:
    """And nothing where nobody judged, or where what is there is no judgement."""
    for decision, words in (("accept", "accepted"), ("warn", "taken with a warning"), ("refuse", "it was refused"),
                            ("text", "its text was taken")):  # fmt: skip
        action: Any = decision
        judged = Judgement(action, "so", p=0.00123, evidence=7.0, reference="r")
        told = decided({"assurance": judged.told()})
        assert words in told
        assert "p-value 0.00123; evidence that messages have changed 7 : 1" in told
        assert told.endswith("because so.")
    for none in ({}, {"assurance": None}, {"assurance": "warn"}, {"assurance": [1]}):
        assert "" == decided(none)
        assert not is_doubt(none)
        assert not is_alarm(none)
    assert is_doubt({"error": "DoubtError"})
    assert is_alarm({"assurance": {"alarm": True}})
    assert not is_alarm({"assurance": {"alarm": "no"}})


SEED = bytes(range(32))
ARMS = {"message": 0.9, "mismatched": 0.1}
MEASURED = Evidence("c0de", "cases", 200, 0, "exact match", 0.8, 0.7, 0.9, ARMS, "abc")


def test_signatures_of_before_hold_and_bind_what_came_later() -> None:
    """Evidence that was signed when there were no dates is read and holds; a date put in, taken out or moved, it does
    not, and neither does another release."""
    trust = [public_key(SEED)]
    known = replace(MEASURED, task_digest="t", settings_digest="s", measured_by=trust[0])
    earlier = {name: value for name, value in asdict(known).items() if name not in ("measured_unix_s", "transformers")}
    content = b"ilcp evidence 2\0" + json.dumps(earlier, sort_keys=True).encode()  # as it was signed then
    earlier["signature"] = signature(SEED, content)
    of = Evidence.from_dict(earlier)
    assert signed(MEASURED, SEED, "t", "s") == of
    require_signed(Evidence.from_dict(json.loads(json.dumps(earlier))), trust, "c0de")
    later = signed(replace(MEASURED, measured_unix_s=1_800_000_000, transformers="5.1.0"), SEED, "t", "s")
    require_signed(Evidence.from_dict(asdict(later)), trust, "c0de")
    for changed in (
        replace(of, measured_unix_s=1), replace(of, transformers="5.1.0"), replace(later, measured_unix_s=0),
        replace(later, transformers=""), replace(later, measured_unix_s=1_800_000_001),
        replace(later, transformers="4"),
    ):  # fmt: skip
        with pytest.raises(UnmeasuredError, match="that it did not sign"):
            require_signed(changed, trust, "c0de")


def test_hostile_payloads_of_the_right_length_are_judged_and_never_break(pair: Pair) -> None:
    """2,000 random payloads, of each of the embedded codec's lengths: a p-value from 0 to 1 and no error; of those
    of full length 99 in a hundred are in doubt. Other lengths are refused."""
    codec, rng = pair.receiver.codec, random.Random(21)
    receiver = ilcp.Receiver(pair.receiver.model, pair.receiver.tokenizer, codec, assurance=Policy("accept", "accept"))
    codec_id, doubted = codec.trained.codec_id(codec.spec), 0
    for number in range(2000):
        length = codec.spec.prefixes[number % len(codec.spec.prefixes)]
        found = receiver.judged(Message(codec_id, rng.randbytes(length)).to_bytes())
        assert found.p is not None
        assert 0 <= found.p <= 1
        assert math.isfinite(found.evidence)
        doubted += bool(found.because) and length == codec.spec.payload_bytes
    assert doubted >= 0.99 * 500
    for payload in (b"\x00", bytes(79), bytes(81), bytes(65_535)):
        with pytest.raises((DecodeError, ConfigError)):
            receiver.judged(Message(codec_id, payload).to_bytes())
    for payload in (bytes(80), b"\xff" * 80, b"\x55" * 80):
        assert receiver.judged(Message(codec_id, payload).to_bytes()).because


def test_what_is_refused_before_is_never_judged(ends: Ends) -> None:
    """Damaged, forged and late messages, and those of another length, are no evidence of anything."""
    watch = Watch()
    receiver = ends.receiver(key=KEY, replay=ReplayCache(), assurance=Policy("accept", watch=watch))
    wire = bytearray(ends.sender(key=KEY).encode(ends.texts[0]))
    wire[30] ^= 1
    codec_id = ends.codec.trained.codec_id(ends.codec.spec)
    for message in (bytes(wire), ends.odd(), Message(codec_id, bytes(15)).to_bytes(), b""):
        with pytest.raises(DecodeError):
            receiver.decode(message)
    assert [] == watch.states()


def test_what_is_observed_is_what_is_sent(ends: Ends) -> None:
    """The payload is that of ``encode``, at each length; the latent beside it is the whole one, the same each time."""
    context = ends.sender().read(ends.texts[0])
    payload, observed = ends.codec.encode_observed(context)
    assert ends.codec.encode(context) == payload
    for length in ends.codec.spec.prefixes:
        part, again = ends.codec.encode_observed(context, length)
        assert payload[:length] == part
        assert np.array_equal(observed.vector, again.vector)
        assert observed.scalars == again.scalars
    assert (8 * 16, np.float32, 1) == (len(observed.vector), observed.vector.dtype, len(observed.scalars))
    bits = received(ends.codec, payload, None)["received/16"].vector
    assert np.array_equal(np.unpackbits(np.frombuffer(payload, np.uint8)) * 2.0 - 1, bits)


def test_what_is_of_another_shape_is_as_unusual_as_can_be(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a reference that has another number of dimensions, or of numbers beside them: a doubt and no other error."""
    usual = ends.sender().encode(ends.texts[0])
    for dims, scalars in ((3, 0), (128, 1)):
        rng = np.random.default_rng(2)
        some = [Observed(rng.standard_normal(dims).astype(np.float32), (0.5,) * scalars) for _ in range(100)]
        reference = replace(ends.reference, views={"received/16": View.fit(some)})
        monkeypatch.setattr(Reference, "of", lambda codec, reference=reference: reference)
        assert (ends.receiver().judged(usual).p or 0) < 1 / 41
        assert ends.receiver().judged(usual).because


def cache(seed: int, heads: int = 2, tokens: int = 5, scale: float = 1.0) -> Any:
    """Keys and values of two layers."""
    import torch

    made = torch.Generator().manual_seed(seed)
    keys, values = (
        [scale * torch.randn(heads, tokens, 4, generator=made) for _ in range(2)] for _ in ("keys", "values")
    )
    return SimpleNamespace(keys=keys, values=values)


def test_caches_are_observed_by_how_attention_reads_them() -> None:
    """The same numbers each time; of another shape, of NaN or of enormous values what comes is of no view's shape, or
    infinitely far, and no warning."""
    codec: Any = SimpleNamespace(spec=SimpleNamespace(prefixes=()))
    usual = attention_of(cache(1))
    assert (2, 2, 4) == usual.shape
    own = received(codec, b"", SimpleNamespace(kv=cache(1)), usual)["received"].vector
    np.testing.assert_allclose(np.ones(4), own[:4], rtol=1e-5)
    assert 2 * 2 * 2 + 2 * 2 == len(own)
    assert 0 == len(received(codec, b"", SimpleNamespace(kv=cache(1, heads=3)), usual)["received"].vector)
    for scale in (math.nan, 1e30, 0.0):
        vector = received(codec, b"", SimpleNamespace(kv=cache(1, scale=scale)), usual)["received"].vector
        assert own.shape == vector.shape
    assert {} == received(codec, b"", SimpleNamespace(kv=cache(1)), None)
    assert {} == received(codec, b"", SimpleNamespace(), usual)
    text: Any = SimpleNamespace(spec=codec.spec, encode=lambda context, most: b"x")
    assert (b"x", None) == encoded(text, SimpleNamespace(kv=None), None)
