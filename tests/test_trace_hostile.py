"""Payloads of traces that strangers made: what is no trace of this codec's is refused with words, and nothing else."""

import json
import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import pytest

from ilcp import Sender
from ilcp.codec import Context
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError
from ilcp_codecs.kv import ExactCodec
from ilcp_codecs.kv.container import MAGIC as KV_MAGIC
from ilcp_codecs.trace import Rule, TraceCodec
from ilcp_codecs.trace.codec import MAGIC, MAX_HEADER_BYTES
from tests.families import build
from tests.test_kv import QUESTION, TEXT, TOKENIZER
from tests.test_trace import PLAN, frozen, traced
from tests.test_trace_codec import codec_of, reader_of

AT = len(MAGIC) + 4


def body_of(payload: bytes) -> int:
    """Where the cache of a payload begins."""
    return AT + struct.unpack_from("<I", payload, len(MAGIC))[0] + 16


def lied(payload: bytes, head: bytes) -> bytes:
    """The payload with another header, whose check is right."""
    begin = MAGIC + struct.pack("<I", len(head)) + head
    return begin + blake2b(begin, digest_size=16).digest() + payload[body_of(payload) :]


def test_every_truncation_and_every_changed_byte_is_refused_or_another_memory() -> None:
    """Of the header all are refused; of the cache too, or it is another memory, which is no trace to write on."""
    codec = codec_of()
    payload = codec.encode(traced())
    body, own = body_of(payload), codec.decode(payload).digest()
    for length in [*range(body + 20), *range(body + 20, len(payload), 997)]:
        with pytest.raises(DecodeError):
            codec.decode(payload[:length])
    for at in range(body):
        changed = bytearray(payload)
        changed[at] ^= 1 << at % 8
        with pytest.raises(DecodeError):
            codec.decode(bytes(changed))
    for at in range(body, len(payload), 97):
        changed = bytearray(payload)
        changed[at] ^= 1 << at % 8
        with pytest.raises(DecodeError):
            codec.trace(bytes(changed))
        try:
            memory = codec.decode(bytes(changed))
        except DecodeError:
            continue
        assert own != memory.digest()
    with pytest.raises(DecodeError):
        codec.decode(payload + b"\0")


def record(**changes: Any) -> Callable[[list[dict[str, Any]]], bytes]:
    """Makes a header of segments of which the first has some fields changed."""

    def of(segments: list[dict[str, Any]]) -> bytes:
        return spelt([segments[0] | changes, *segments[1:]])

    return of


def of_json(value: Any) -> bytes:
    """JSON as the specification says it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def spelt(segments: Any, carried: Any = "") -> bytes:
    """A header of these segments."""
    return of_json({"carried": carried, "segments": segments})


def segments_of(payload: bytes) -> list[dict[str, Any]]:
    """What the header of a payload says of its segments."""
    found: list[dict[str, Any]] = json.loads(payload[AT : body_of(payload) - 16])["segments"]
    return found


HOSTILE: dict[str, tuple[Callable[[list[dict[str, Any]]], bytes], str]] = {
    "spaces": (lambda own: spelt(own) + b" ", "another spelling"),
    "a key twice": (lambda own: spelt(own).replace(b"[{", b'[{"steps":3,', 1), "another spelling"),
    "keys unsorted": (lambda own: b'{"segments":' + of_json(own) + b',"carried":""}', "another spelling"),
    "letters not escaped": (
        lambda own: spelt([own[0] | {"role": "é"}, *own[1:]]).replace(b"\\u00e9", "é".encode()),
        "another spelling",
    ),
    "no list": (lambda own: spelt(own[0]), "a list for 'segments'"),
    "no objects": (lambda own: spelt([1, 2]), "a table for 'segments"),
    "a bare list": (lambda own: of_json(own), "the header of a trace, got"),
    "no JSON": (lambda own: b"\xff\xfe", "the header of a trace, got"),
    "nothing": (lambda own: b"", "the header of a trace, got"),
    "too deep": (lambda own: b"[" * 100_000, "the header of a trace, got"),
    "far too deep": (lambda own: b'{"carried":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "the header of a trace, got"),
    "no segments": (lambda own: of_json({"carried": ""}), "expected 'segments' in a trace's header"),
    "none": (lambda own: spelt([]), "1 to 256 segments, got 0"),
    "another carrier": (lambda own: spelt(own, "kv-pca"), "carried by kv-int8, kv-int4 or exact"),
    "control characters in it": (lambda own: spelt(own, "\x1b[2J"), "carried by kv-int8, kv-int4 or exact"),
    "no carrier": (lambda own: spelt(own, None), "a text in quotes for 'carried'"),
    "257": (lambda own: spelt([own[0]] * 257), "1 to 256 segments, got 257"),
    "unknown field": (record(more=1), "expected a key of .*, got 'more'"),
    "missing field": (
        lambda own: spelt([{name: value for name, value in own[0].items() if name != "model"}]),
        "expected 'model' in",
    ),
    "negative tokens": (record(prompt_tokens=-5), "at least one token"),
    "no tokens": (record(prompt_tokens=0), "at least one token"),
    "fraction": (record(prompt_tokens=1.5), "a whole number for .*prompt_tokens'"),
    "true": (record(steps=True), "a whole number for .*steps'"),
    "huge tokens": (record(prompt_tokens=1 << 60), "keys and values of 115"),
    "huge beyond words": (record(prompt_tokens=1 << 80), "whole number"),
    "steps over the limit": (record(steps=4097), "0 to 4096 steps"),
    "fewer tokens": (record(prompt_tokens=1), "keys and values of .* tokens, got 80: damaged"),
    "control characters": (record(role="a\x1b[31m"), "printable"),
    "line break": (record(role="a\nb"), "printable"),
    "half a character": (record(role="\ud800"), "the header of a trace, got|printable"),
    "long role": (record(role="x" * 81), "at most 80"),
    "another model": (record(model="0" * 32), "segments of this codec's model, got another's"),
    "numbers for texts": (record(rule=7), "a text in quotes for .*rule'"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_header_that_lies_is_refused_with_its_check_right(how: str) -> None:
    codec = codec_of()
    payload = codec.encode(traced())
    make, words = HOSTILE[how]
    own = segments_of(payload)
    assert payload == lied(payload, spelt(own))
    spoilt = lied(payload, make(own))
    for read in (codec.decode, codec.trace):
        with pytest.raises(DecodeError, match=words):
            read(spoilt)


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER_BYTES, MAX_HEADER_BYTES + 1, 2**31, 2**32 - 1])
def test_a_length_that_is_not_the_headers_is_refused(length: int) -> None:
    codec = codec_of()
    payload = codec.encode(traced())
    for rest in (payload[AT:], bytes(MAX_HEADER_BYTES + 64)):
        with pytest.raises(DecodeError, match=r"a header of .* bytes and its check|fits its check"):
            codec.decode(MAGIC + struct.pack("<I", length) + rest)


def test_a_header_longer_than_any_is_refused_by_its_length_even_if_all_else_is_right() -> None:
    codec = codec_of()
    payload = codec.encode(traced())
    with pytest.raises(DecodeError, match=f"a header of {MAX_HEADER_BYTES + 1} bytes and its check"):
        codec.decode(lied(payload, b" " * (MAX_HEADER_BYTES + 1)))


def test_segments_whose_order_was_changed_are_no_trace_to_write_on() -> None:
    codec = codec_of()
    payload = codec.encode(traced())
    own = segments_of(payload)
    with pytest.raises(DecodeError, match="expected segment 0 to stand on nothing"):
        codec.trace(lied(payload, spelt(own[::-1])))


def test_what_is_no_trace_is_not_taken_for_one() -> None:
    codec, trace = codec_of(), traced()
    exact = ExactCodec.of(frozen(), TOKENIZER).encode(Context(kv=trace.kept))
    assert exact.startswith(KV_MAGIC)
    for payload in (exact, b"", MAGIC, MAGIC + b"\0\0\0"):
        with pytest.raises(DecodeError, match="not one"):
            codec.decode(payload)
    with pytest.raises(EncodeError, match="expected a Trace, got Context: let a Writer write one"):
        codec.encode(Context(kv=trace.kept))
    with pytest.raises(EncodeError, match=r"a trace of at most 2000 bytes, got .*: write less of it"):
        codec.encode(trace, 2000)
    short = codec_of(tokens=20)
    with pytest.raises(EncodeError, match="at most 20 tokens"):
        short.encode(trace)


def test_another_models_trace_is_refused_wherever_it_comes() -> None:
    model = build("llama", len(TOKENIZER), seed=1)
    other, codec = TraceCodec.of(model, TOKENIZER, PLAN), codec_of()
    trace = other.write(model, TOKENIZER, TEXT)
    with pytest.raises(EncodeError, match="a trace of this codec's model, got a segment of another's"):
        codec.encode(trace)
    with pytest.raises(DecodeError, match="another model's"):
        codec.decode(other.encode(trace))
    with pytest.raises(IdentityError, match="got a segment of another's"):
        reader_of(codec).generate(trace, QUESTION)
    with pytest.raises(IdentityError, match="expected a message of codec"):
        reader_of(codec).open(Sender(model, TOKENIZER, other).encode(trace))


def test_no_codec_is_made_of_what_is_none() -> None:
    with pytest.raises(ConfigError, match="a carrier of kv-exact, kv-int8, kv-int4, got 'kv-pca'"):
        codec_of(carrier="kv-pca")
    with pytest.raises(ConfigError, match=r"the weights of rule 'ridge', got \['bias', 'weight'\]"):
        codec_of(rule=Rule("learned", frozen()))
    with pytest.raises(ConfigError, match="tokens from 1 to the model's 256, got 257"):
        codec_of(tokens=257)
