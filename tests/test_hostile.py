"""Bytes that a hostile peer may send: two decoders agree, memory and time stay bounded, doctored payloads are refused.

``fuzz/`` searches the same functions, guided by coverage and for longer.
"""

import contextlib
import copy
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.limits import Limits
from fuzz.run import TARGETS
from ilcp.codec.memory import NORM_BAND, Memory, SoftPrompt
from ilcp.errors import AuthenticationError, DecodeError, ExpiredError
from ilcp.handoff import Receiver
from ilcp.message import MAX_MESSAGE_BYTES, Message
from ilcp.testing.strategies import bare_messages, hostile_bytes, sealed_messages, with_check, with_ciphertext, with_mac
from tests.helpers import ROOT, run_python, vectors_of
from tests.second_decoder import Refused, decode

VECTORS = json.loads((ROOT / "tests" / "golden" / "v1" / "vectors.json").read_text(encoding="utf-8"))
KEY = bytes(range(0x40, 0x60))
NOW = 1893455999
THOROUGH = settings(max_examples=400, deadline=None, derandomize=True, database=None)
# Reading copies the message, its payload and what it is compared with; 192 KiB inside zstd are not Python's to see.
ALLOCATION_FACTOR, ALLOCATION_BYTES, ZSTD_BYTES = 5, 32 << 10, 192 << 10


def ours(wire: bytes, key: bytes | None, now: int) -> dict[str, Any] | str:
    """The fields that ilcp reads, or its refusal; any other exception gets through and fails the test."""
    try:
        message = Message.from_bytes(wire, key=key, now_unix_s=now)
    except ExpiredError:
        return "expired"
    except AuthenticationError:
        return "authentication"
    except DecodeError:
        return "decode"
    return {
        "codec_id": message.codec_id,
        "payload": message.payload,
        "handoff_id": None if message.seal is None else message.seal.handoff_id,
        "expires_unix_s": None if message.seal is None else message.seal.expires_unix_s,
        "literals": list(message.literals),
    } | ({} if message.blob is None else {"blob": (message.blob.size_bytes, message.blob.digest)})


def theirs(wire: bytes, key: bytes | None, now: int) -> dict[str, Any] | str:
    """The fields that the second decoder reads, or its refusal."""
    try:
        return decode(wire, key, now)
    except Refused as refused:
        return str(refused)


def case(vector: dict[str, Any]) -> tuple[bytes, bytes | None, int]:
    """Bytes, key and time of a vector."""
    key = None if vector["key"] is None else bytes.fromhex(vector["key"])
    return bytes.fromhex(vector["hex"]), key, vector["now_unix_s"]


@pytest.mark.parametrize("reader", [ours, theirs])
@pytest.mark.parametrize("vector", VECTORS["accepted"], ids=lambda vector: vector["name"])
def test_both_decoders_read_every_golden_vector(vector: dict[str, Any], reader: Callable[..., Any]) -> None:
    """Each accepted vector of the JSON gives the fields that stand beside it."""
    found = reader(*case(vector))
    assert isinstance(found, dict)
    assert {name: vector[name] for name in found} == {
        name: value.hex() if isinstance(value, bytes) else value for name, value in found.items()
    }


@pytest.mark.parametrize("reader", [ours, theirs])
@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_both_decoders_refuse_every_negative_vector(vector: dict[str, Any], reader: Callable[..., Any]) -> None:
    """Each refused vector of the JSON is refused, for the blame that stands beside it."""
    assert vector["refusal"].removesuffix("Error").lower() == reader(*case(vector))


@pytest.mark.parametrize("vector", VECTORS["accepted"], ids=lambda vector: vector["name"])
def test_every_flipped_bit_and_every_truncation_is_refused_by_both(vector: dict[str, Any]) -> None:
    """No bit of a golden message can change and no byte be cut off or added; both decoders blame the same."""
    wire, key, now = case(vector)
    changed = [wire[:n] for n in range(len(wire))] + [wire + b"\x00", wire + wire]
    for bit in range(8 * len(wire)):
        flipped = bytearray(wire)
        flipped[bit // 8] ^= 1 << bit % 8
        changed.append(bytes(flipped))
    for each in changed:
        refusal = ours(each, key, now)
        assert isinstance(refusal, str)
        assert refusal == theirs(each, key, now)


@THOROUGH
@given(st.one_of(hostile_bytes(KEY), bare_messages().map(Message.to_bytes)), st.sampled_from([None, KEY]))
def test_both_decoders_agree_on_hostile_bytes(wire: bytes, key: bytes | None) -> None:
    """Whatever comes, the two decoders read the same fields or refuse it for the same blame."""
    assert theirs(wire, key, NOW) == ours(wire, key, NOW)


@THOROUGH
@given(sealed_messages(), st.integers(-40, 40))
def test_both_decoders_agree_on_time(message: Message, late_s: int) -> None:
    """Around its expiry a message is valid for both, or too late for both."""
    assert message.seal is not None
    now = min(message.seal.expires_unix_s + late_s, 2**32 - 1)
    assert theirs(message.to_bytes(KEY), KEY, now) == ours(message.to_bytes(KEY), KEY, now)


def _large() -> dict[str, tuple[bytes, bytes | None]]:
    """What is made to be costly: the largest messages, lengths that lie, frames that would expand."""
    head = b"\x01\xc4\x08" + bytes(8)
    body = b"\x95" + head + b"\xc4\x01!"
    seal = b"\xc4\x08" + bytes(8) + b"\xce\x70\xdb\xd8\x80"
    full = b"\xc5\xff\xff" + bytes(2**16 - 1)
    zeros = b"\x60\x00\x03\x55\x00\x00\x10\x61\x61\x01\x00"  # what says 1024 bytes and means to be repeats
    unique = "\n".join(f"{n:x}" for n in range(300))[:1023].encode() + b"!"
    return {
        "largest, encrypted": (
            with_ciphertext(b"\x95\x03" + head[1:] + seal, b"\xda\x04\x00" + unique + full[3:], KEY),
            KEY,
        ),
        "largest, encrypted otherwise": (
            with_ciphertext(b"\x95\x03" + head[1:] + seal, b"\xa0" + full[3:], KEY[::-1]),
            KEY,
        ),
        "largest, bare": (with_check(b"\x95" + head + full + b"\xda\x04\x00" + unique), None),
        "largest, sealed": (with_mac(b"\x97" + head + full + seal + b"\xda\x04\x00" + unique, KEY), KEY),
        "largest, wrong check": (with_check(b"\x94" + head + full)[:-1] + b"!", None),
        "frame says 4 GB": (with_check(body + b"\xc4\x06\xa0\xff\xff\xff\xff!"), None),
        "frame says 1 KB": (with_check(body + b"\xc4\x0b" + zeros), None),
        "frame wants a large window": (with_check(body + b"\xc4\x06\x00\xff\x01\x00\x00!"), None),
        "nested": (b"\x94\x01" + b"\x91" * (MAX_MESSAGE_BYTES - 2), None),
        "nested in the literals": (body + b"\x91" * (MAX_MESSAGE_BYTES - len(body)), None),
        "nested a little in the literals": (body + b"\x91" * 900, None),
        "one too many": (bytes(MAX_MESSAGE_BYTES + 1), None),
        "10 MB": (bytes(10_000_000), None),
    }


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("name", _large())
def test_reading_allocates_and_takes_no_more_than_stated(name: str, kind: type) -> None:
    """At most 5 times the message and 32 KiB of Python's memory, and 1 ms per kB and one over; 10 MB cost nothing."""
    wire, key = _large()[name]
    wire = kind(wire)
    times_s = []
    for _ in range(5):  # the first one also loads what is loaded once
        start_s = time.perf_counter()
        with contextlib.suppress(DecodeError):
            Message.from_bytes(wire, key=key, now_unix_s=NOW)
        times_s.append(time.perf_counter() - start_s)
    tracemalloc.start()
    try:
        with contextlib.suppress(DecodeError):
            Message.from_bytes(wire, key=key, now_unix_s=NOW)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = min(len(wire), MAX_MESSAGE_BYTES)
    assert peak <= ALLOCATION_FACTOR * size + ALLOCATION_BYTES
    assert min(times_s) < 1e-6 * size + 1e-3


def test_zstd_takes_no_more_than_stated() -> None:
    """Its context is what the specification allows; frames that want a window of their own are refused before it."""
    assert zstandard.estimate_decompression_context_size() <= ZSTD_BYTES


def doctored(codec: Any, make: Callable[[], Memory]) -> Any:
    """Returns a codec whose weights say one thing and whose memory is another, as a poisoned or damaged one gives."""
    found = copy.copy(codec)
    found.decode = lambda _: make()
    return found


def _vectors(value: float, hidden: int = 48) -> Callable[[], Memory]:
    return lambda: SoftPrompt(torch.full((2, hidden), value))


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (_vectors(float("nan")), "expected finite memory vectors, got NaN or infinity"),
        (_vectors(float("inf")), "expected finite memory vectors, got NaN or infinity"),
        (_vectors(-float("inf")), "expected finite memory vectors, got NaN or infinity"),
        (_vectors(3e38), "times the receiver's embedding norm), got inf"),
        (_vectors(1e4), "times the receiver's embedding norm), got 6.93e+04"),
        (_vectors(0.0, hidden=47), "expected memory vectors of width 48, got width 47"),
    ],
)
def test_a_payload_that_authenticates_but_decodes_to_nonsense_is_refused(
    small: Any, make: Callable[[], Memory], fragment: str
) -> None:
    """NaN, infinity, another width and norms out of the band are refused where the message is decoded."""
    sender = small.sender
    end = Receiver(
        small.receiver.model, small.receiver.tokenizer, doctored(small.codec, make), key=KEY, allow_unmeasured=True
    )
    sealed = type(sender)(sender.model, sender.tokenizer, small.codec, key=KEY).encode("Mara owns the ticket.")
    with pytest.raises(DecodeError) as caught:
        end.decode(sealed)
    assert fragment in str(caught.value)


def test_norms_just_inside_the_band_are_let_through(small: Any) -> None:
    """The band is a limit, not a filter: what lies within it reaches the caller as it is."""
    norm = small.receiver._prompts.embedding_norm
    inside = 0.99 * NORM_BAND * norm / 48**0.5
    end = Receiver(
        small.receiver.model, small.receiver.tokenizer, doctored(small.codec, _vectors(inside)), allow_unmeasured=True
    )
    assert torch.equal(torch.full((2, 48), inside), vectors_of(end.decode(small.sender.encode("Mara owns it."))))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    payload=st.one_of(
        st.binary(max_size=20), st.sampled_from([2, 4, 8, 16]).flatmap(lambda n: st.binary(min_size=n, max_size=n))
    )
)
def test_any_payload_decodes_within_the_band_or_is_refused(small: Any, payload: bytes) -> None:
    """Random payloads of a codec's lengths give finite vectors that its receiver takes; others are a DecodeError."""
    if len(payload) not in small.codec.spec.prefixes:
        with pytest.raises(DecodeError):
            small.codec.decode(payload)
        return
    vectors = small.codec.decode(payload).in_prompt(48, small.receiver._prompts.embedding_norm)
    assert bool(torch.isfinite(vectors).all())


@pytest.mark.parametrize("target", TARGETS)
def test_the_fuzzer_runs_over_its_corpus(target: str, tmp_path: Path) -> None:
    """Each target takes its committed corpus and a few hundred inputs more without a finding, and counts them."""
    pytest.importorskip("atheris", reason="atheris is not installed: it has wheels for some Pythons only")
    options = ("--target", target, "--inputs", 300, "--json", tmp_path / "fuzz.json")
    done = run_python(ROOT / "fuzz" / "run.py", *options, timeout_s=300)
    assert 0 == done.returncode, done.stderr[-2000:]
    found = json.loads((tmp_path / "fuzz.json").read_text(encoding="utf-8"))
    assert 300 <= found["inputs"] <= 310  # libFuzzer may begin with one of its own
    assert f"{target}: {found['inputs']} inputs, no finding" in done.stdout
    assert 0 == found["targets"][target]["findings"]


def test_the_fuzzer_sees_what_costs_too_much() -> None:
    """Its limits fail for a call that is slow, or that allocates, each time; not for one that refuses cheaply."""
    limits = Limits(factor=4, more_bytes=32 << 10)
    refused = Message(bytes(8), bytes(80)).to_bytes()[:-1]
    with pytest.raises(DecodeError):
        limits.of(refused, Message.from_bytes, refused)
    limits.check_memory(refused, Message.from_bytes, refused)
    with pytest.raises(AssertionError, match="ms for 9 bytes"):
        limits.of(b"too slow!", lambda: sum(range(1_000_000)))
    with pytest.raises(AssertionError, match="32804 are allowed"):
        limits.check_memory(b"too large", lambda: bytes(32_900))
