"""A trace as a message: it comes back bit by bit or is said to be rounded, and what is no such payload is refused."""

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ilcp
import ilcp.trace as door
from ilcp import Sender
from ilcp.codec import Context
from ilcp.codec.keys_values import turned
from ilcp.codec.memory import CacheMemory
from ilcp.errors import (
    ConfigError,
    DecodeError,
    EncodeError,
    IdentityError,
    ReplayError,
    StorageError,
    UnmeasuredError,
)
from ilcp.message.replay import ReplayCache
from ilcp_codecs.kv import CompactCodec, ExactCodec
from ilcp_codecs.kv.tensors import WEIGHTS
from ilcp_codecs.trace import Plan, Reader, Rule, Segment, Trace, TraceCodec, Writer, written
from ilcp_codecs.trace.codec import CARRIERS
from ilcp_codecs.trace.plan import chosen
from tests.families import build
from tests.helpers import Folder, run_example, run_python, sender_of, vectors_of
from tests.test_kv import QUESTION, TEXT, TOKENIZER
from tests.test_trace import PARTS, PLAN, frozen, traced

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
STEPS = replace(PLAN, keep="steps")


def codec_of(plan: Plan = PLAN, **options: Any) -> TraceCodec:
    """A codec of the tiny Llama that wrote ``traced``."""
    return TraceCodec.of(frozen(), TOKENIZER, plan, **options)


def reader_of(*codecs: Any, **options: Any) -> Reader:
    """A reader of these codecs that nobody measured."""
    return Reader(frozen(), TOKENIZER, list(codecs), allow_unmeasured=True, **options)


def kv_of(memory: Any) -> Any:
    """The keys and values of a memory that has to have some."""
    assert isinstance(memory, CacheMemory)
    return memory.kv


# ---- there and back


def test_an_exact_carrier_brings_the_very_trace() -> None:
    codec, trace = codec_of(), traced()
    payload = codec.encode(trace)
    again = codec.trace(payload)
    assert (trace.segments, trace.digest, "") == (again.segments, again.digest, again.carried)
    assert trace.kept.digest() == again.kept.digest() == kv_of(codec.decode(payload)).digest()
    assert codec.memory(trace).digest() == codec.decode(payload).digest()
    later = PLAN.writers(frozen(), TOKENIZER)[0].write("Well?", again)
    assert (later.segments[-1].before, later.segments[-1].on) == (trace.digest, "")


@pytest.mark.parametrize("carrier", CARRIERS[1:])
def test_a_rounded_trace_says_so_and_may_be_written_on(carrier: str) -> None:
    """It is near; who goes on says what he stood on, also where it then travels by an exact carrier."""
    codec, exact, trace = codec_of(carrier=carrier), codec_of(), traced()
    again = codec.trace(codec.encode(trace))
    assert (carrier, trace.segments) == (again.carried, again.segments)
    slack = 0.02 if carrier == "kv-int8" else 0.3
    for one, other in zip(again.kept.at(trace.kept.start).values, trace.kept.values, strict=True):
        assert float((one - other).abs().max()) <= slack * float(other.abs().max())
        assert not torch.equal(one, other)
    planner, critic = PLAN.writers(frozen(), TOKENIZER)
    later = planner.write("Well?", again)
    assert ["", "", carrier] == [segment.on for segment in later.segments]
    assert (later.segments[-1].before, later.carried) == (trace.digest, carrier)
    later.require_whole()  # of what was rounded nothing is known
    with pytest.raises(DecodeError, match="'planner' wrote"):
        replace(later, carried="").require_whole()
    relayed = exact.trace(exact.encode(later))
    assert (carrier, later.kept.digest()) == (relayed.carried, relayed.kept.digest())
    assert carrier == critic.write("And then?", relayed).segments[-1].on
    assert carrier == exact.trace(exact.encode(again)).carried  # before anybody went on


def test_what_is_said_to_be_exact_has_to_be() -> None:
    """A rounded trace that is not said to have been rounded is refused by whoever encodes, decodes or reads it."""
    rounded, exact = codec_of(carrier="kv-int8"), codec_of()
    again = rounded.trace(rounded.encode(traced()))
    lying = replace(again, carried="")
    with pytest.raises(EncodeError, match="'planner' wrote, got others: 0"):
        exact.encode(lying)
    with pytest.raises(DecodeError, match="'planner' wrote, got others: 0"):
        exact.memory(lying)
    payload = exact.encode(again)
    head = payload.replace(b'"carried":"kv-int8"', b'"carried":""')
    length = struct.unpack_from("<I", payload, 8)[0] - len("kv-int8")
    head = head[:8] + struct.pack("<I", length) + head[12:]
    begin, rest = head[: 12 + length], head[12 + length + 16 :]
    forged = begin + blake2b(begin, digest_size=16).digest() + rest
    for opens in (exact.decode, exact.trace):
        with pytest.raises(DecodeError, match="'planner' wrote, got others: 0"):
            opens(forged)


def test_every_rounding_on_the_way_is_named() -> None:
    four, eight = codec_of(carrier="kv-int4"), codec_of(carrier="kv-int8")
    twice = eight.trace(eight.encode(four.trace(four.encode(traced()))))
    assert twice.carried == "kv-int4, kv-int8"
    assert eight.trace(eight.encode(twice)).carried == "kv-int4, kv-int8"


def test_roles_that_no_header_holds_are_not_encoded() -> None:
    """What is encoded is decoded, too: with long roles in letters that JSON escapes there are fewer of them."""
    codec, segment = codec_of(), traced().segments[0]
    segments: list[Segment] = []
    for _ in range(256):
        before = segments[-1].digest() if segments else ""
        long = "\u4e00" * 80
        segments.append(replace(segment, role=long, rule=long, before=before, prompt_tokens=1, steps=0))
    kv = traced().kept
    many = chosen(kv.at(None), [0] * 256)
    trace = Trace(kv=many, segments=tuple(segments), carried="kv-int8")
    with pytest.raises(EncodeError, match=r"a header of at most 262144 bytes, got .*: shorten the roles"):
        codec.encode(trace)


def test_the_steps_alone_follow_one_another_and_nobody_writes_on_them() -> None:
    codec, trace = codec_of(STEPS), traced()
    payload = codec.encode(trace)
    found = kv_of(codec.decode(payload))
    assert (6, None) == (found.tokens, found.start)
    assert codec.memory(trace).digest() == codec.decode(payload).digest()
    places = [place for _, steps in trace.spans() for place in steps]
    start = trace.kept.start
    assert start is not None
    by = torch.tensor([7.0 + at - (start + place) for at, place in enumerate(places)], dtype=torch.float64)
    for keys, own, rope in zip(found.at(7).keys, trace.kept.keys, trace.kept.ropes, strict=True):
        torch.testing.assert_close(keys, turned(own[:, places], by, rope), rtol=1e-4, atol=1e-4)
    for values, own in zip(found.values, trace.kept.values, strict=True):
        assert torch.equal(own[:, places], values)
    with pytest.raises(DecodeError, match="its steps alone: hand over all of it"):
        codec.trace(payload)
    with pytest.raises(EncodeError, match=r"segments of 3 steps to hand over, got \[3, 3, 1\]"):
        codec.encode(PLAN.writers(frozen(), TOKENIZER)[0].write("Well?", trace, steps=1))
    family = "gemma3_text"
    with pytest.raises(ConfigError, match="without sliding windows"):
        TraceCodec.of(frozen(family), TOKENIZER, STEPS).encode(traced(PLAN, family))


@pytest.mark.parametrize("family", ["gemma3_text", "mistral", "gpt_neox"])
def test_other_families_come_back_too(family: str) -> None:
    codec, trace = TraceCodec.of(frozen(family), TOKENIZER, PLAN), traced(PLAN, family)
    again = codec.trace(codec.encode(trace))
    assert (trace.digest, trace.kept.digest()) == (again.digest, again.kept.digest())


# ---- folders


def learned(by: float = 0.1) -> TraceCodec:
    """A codec of a rule that was trained."""
    rule = Rule("learned", frozen())
    with torch.no_grad():
        rule.weight.add_(by * torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))
    return codec_of(replace(PLAN, rule="learned"), rule=rule)


def test_a_plan_a_carrier_and_a_rules_weights_are_codecs_of_their_own() -> None:
    codecs = [codec_of(), codec_of(STEPS), codec_of(replace(PLAN, steps=4)), codec_of(carrier="kv-int8")]
    codecs += [codec_of(replace(PLAN, rule="learned")), learned(), learned(0.2)]
    assert len(codecs) == len({codec.trained.codec_id(codec.spec) for codec in codecs})


def test_a_folder_keeps_plan_carrier_and_a_rules_weights(tmp_path: Path) -> None:
    codec = learned()
    ilcp.save(codec, tmp_path / "codec")
    again = ilcp.load(tmp_path / "codec")
    assert isinstance(again, TraceCodec)
    assert (codec.plan, codec.carrier) == (again.plan, again.carrier)
    assert all(torch.equal(value, again.tensors[name]) for name, value in codec.tensors.items())
    assert codec.trained.codec_id(codec.spec) == again.trained.codec_id(again.spec)
    trace = again.write(frozen(), TOKENIZER, TEXT)
    assert trace.digest == codec.write(frozen(), TOKENIZER, TEXT).digest
    assert trace.digest != codec_of(codec.plan).write(frozen(), TOKENIZER, TEXT).digest
    with pytest.raises(UnmeasuredError):
        Reader(frozen(), TOKENIZER, again)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"plan": {"agents": []}}, StorageError, "agents as 1 to 256 roles"),
        ({"plan": {"agent": "x"}}, StorageError, "a key of the plan in .*, got 'agent'"),
        ({"plan": 7}, StorageError, "a table in the plan"),
        ({"plan": replace(PLAN, rule="learned", steps=9).to_dict()}, IdentityError, "expected plan and rule"),
        ({"carrier": "kv-int8"}, IdentityError, "expected plan and rule"),
        ({"carrier": "kv-pca"}, StorageError, "a carrier of kv-exact"),
        ({"carrier": None}, StorageError, "a carrier of kv-exact"),
        ({"weights": False}, IdentityError, "expected plan and rule"),
        ({"weights": 1}, StorageError, "plan, carrier, shape and weights"),
        ({"more": 1}, StorageError, "plan, carrier, shape and weights"),
        ({"shape": {}}, StorageError, "the settings in"),
    ],
)
def test_settings_of_no_such_codec_are_refused(
    changes: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    codec = learned()
    settings = codec.save_files(tmp_path) | changes
    with pytest.raises(error, match=words):
        TraceCodec.load_files(tmp_path, codec.spec, codec.trained, settings)


def test_weights_that_are_not_those_that_were_saved_are_refused(tmp_path: Path) -> None:
    codec = learned()
    settings = codec.save_files(tmp_path)
    file = tmp_path / WEIGHTS
    whole, tensors = file.read_bytes(), load_file(file)
    bad: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: save_file(tensors | {"bias": tensors["bias"] + 1}, file), IdentityError, "expected plan and rule"),
        (lambda: save_file({"bias": tensors["bias"]}, file), StorageError, "the rule 'learned'"),
        (lambda: save_file({"weight": tensors["weight"]}, file), StorageError, "the rule 'learned'"),
        (lambda: save_file(tensors | {"weight": tensors["weight"][:7].clone()}, file), StorageError, "'learned'"),
        (lambda: file.write_bytes(whole[:-9]), StorageError, "the rule's weights in"),
        (lambda: file.write_bytes(b"none"), StorageError, "the rule's weights in"),
        (file.unlink, StorageError, "the rule's weights in"),
    ]
    for spoil, error, words in bad:
        spoil()
        with pytest.raises(error, match=words):
            TraceCodec.load_files(tmp_path, codec.spec, codec.trained, settings)


# ---- the reader, and senders


def test_a_reader_takes_a_trace_as_it_takes_its_message() -> None:
    codec, trace = codec_of(), traced()
    sender, reader = Sender(frozen(), TOKENIZER, codec), reader_of(codec)
    message = sender.encode(trace)
    for question in (QUESTION, "Who owns the ticket?"):
        answer = reader.generate(trace, question, max_new_tokens=8)
        assert answer == reader.generate(message, question, max_new_tokens=8)
        assert [answer] * 2 == reader.answers([(trace, question), (message, question)], max_new_tokens=8)
    scores = reader.score([(given, QUESTION, "in Bergen") for given in (trace, message, None)])
    assert scores[0].token_nats == pytest.approx(scores[1].token_nats, abs=1e-4)
    assert abs(scores[0].log_likelihood_nats - scores[2].log_likelihood_nats) > 1e-2
    again = reader.open(message)
    assert (trace.segments, trace.kept.digest()) == (again.segments, again.kept.digest())
    with pytest.raises(ConfigError, match="a codec of traces to read one by, got none: make a TraceCodec"):
        reader_of(ExactCodec.of(frozen(), TOKENIZER)).generate(trace, QUESTION)


def test_a_sender_lets_the_plans_agents_write() -> None:
    codec = codec_of()
    sender, reader = Sender(frozen(), TOKENIZER, codec), reader_of(codec)
    found = reader.open(sender.encode(TEXT))
    assert (traced().digest, traced().kept.digest()) == (found.digest, found.kept.digest())
    assert ["planner", "critic"] == [segment.role for segment in found.segments]
    for source, kind in (([2, 3, 4], "list"), (torch.tensor([[2, 3]]), "Tensor")):
        with pytest.raises(EncodeError, match=f"a text for the codec's agents to read, or their Trace, got {kind}"):
            sender.encode(source)
    with pytest.raises(EncodeError, match="at least 2 words"):
        sender.encode("alone")


def test_opening_uses_up_an_id_and_a_refusal_does_not() -> None:
    codec, steps, exact = codec_of(), codec_of(STEPS), ExactCodec.of(frozen(), TOKENIZER)
    with ReplayCache() as replay:
        reader = reader_of(codec, steps, exact, key=KEY, replay=replay)
        message = Sender(frozen(), TOKENIZER, codec, key=KEY).encode(traced())
        assert traced().digest == reader.open(message).digest
        for again in (reader.open, reader.decode):
            with pytest.raises(ReplayError):
                again(message)
        for refused, error, words in ((steps, DecodeError, "steps alone"), (exact, ConfigError, "of 'kv-exact'")):
            other = Sender(frozen(), TOKENIZER, refused, key=KEY).encode(traced())
            with pytest.raises(error, match=words):
                reader.open(other)
            assert isinstance(reader.decode(other), CacheMemory)
            with pytest.raises(ReplayError):
                reader.decode(other)
        with pytest.raises(DecodeError):
            reader.open(Sender(frozen(), TOKENIZER, codec, key=OTHER_KEY).encode(traced()))


def test_what_is_opened_and_what_is_refused_goes_on_record() -> None:
    codec, steps, seen = codec_of(), codec_of(STEPS), list[tuple[str, str]]()
    record = SimpleNamespace(
        sent=lambda *_, **__: None,
        received=lambda message, codec, literals=(): seen.append(("received", codec.spec.name)),
        refused=lambda *args, **options: seen.append(("refused", "")),
    )
    reader = reader_of(codec, steps, audit=record)
    reader.open(Sender(frozen(), TOKENIZER, codec).encode(traced()))
    assert [("received", "trace")] == seen
    with pytest.raises(DecodeError, match="steps alone"):
        reader.open(Sender(frozen(), TOKENIZER, steps).encode(traced()))
    assert [("received", "trace"), ("refused", "")] == seen


def test_a_large_trace_is_opened_from_its_blob() -> None:
    model, blobs = build("llama", len(TOKENIZER), layers=8), Folder()
    codec = TraceCodec.of(model, TOKENIZER, PLAN)
    trace = codec.write(model, TOKENIZER, TEXT)
    message = Sender(model, TOKENIZER, codec, blobs=blobs).encode(trace)
    assert len(message) < 70_000 < len(codec.encode(trace))
    assert [1] == [len(blobs.kept)]
    reader = Reader(model, TOKENIZER, codec, blobs=blobs, allow_unmeasured=True)
    assert trace.kept.digest() == reader.open(message).kept.digest()
    blobs.kept = {name: bytes(len(held)) for name, held in blobs.kept.items()}
    with pytest.raises(DecodeError, match="expected the blob that the message names"):
        reader.open(message)
    with pytest.raises(ConfigError, match="expected blobs="):
        Reader(model, TOKENIZER, codec, allow_unmeasured=True).open(message)


def test_codecs_of_caches_and_of_states_take_a_trace() -> None:
    """Exact, compacted to what a question looks at, and by states, where the writers kept them."""
    model, trace = frozen(), traced()
    exact = ExactCodec.of(model, TOKENIZER)
    memory = reader_of(exact).decode(Sender(model, TOKENIZER, exact).encode(trace))
    assert trace.kept.digest() == kv_of(memory).digest()
    compact = CompactCodec.of(model, TOKENIZER, questions=[QUESTION], share=0.5)
    assert trace.kept.tokens // 2 == kv_of(compact.decode(_payload(compact, trace))).tokens
    agents = [Writer(model, TOKENIZER, role=role, steps=0, layers=(0, 1, 2)) for role in PLAN.agents]
    kept = written(agents, PARTS)
    sender = sender_of(model, TOKENIZER)
    codec: Any = sender.codec
    found = codec.decode(codec.encode(kept))
    assert torch.equal(vectors_of(found), vectors_of(codec.decode(codec.encode(Context(states=kept.states)))))
    assert sender.encode(kept) == sender.encode(Context(states=kept.states))


def _payload(codec: Any, trace: Trace) -> bytes:
    """What a sender of that codec hands over of a trace."""
    sender = Sender(frozen(), TOKENIZER, codec)
    return ilcp.message.Message.from_bytes(sender.encode(trace)).payload


# ---- the door


def test_every_name_of_the_door_leads_to_something() -> None:
    assert {"Plan", "Reader", "Trace", "TraceCodec", "Writer", "read_trace_config", "steps_worth", "train"} <= {
        *door.NAMES
    }
    for name in door.NAMES:
        assert getattr(door, name) is not None
    assert {*door.NAMES} <= {*dir(door)}
    assert (door.Trace, door.TraceCodec, door.Writer) == (Trace, TraceCodec, Writer)
    with pytest.raises(AttributeError, match=re.escape("module 'ilcp.trace' has no attribute 'gone'")):
        _ = door.gone


def test_the_door_alone_loads_no_torch() -> None:
    code = "import sys, ilcp.trace as door, ilcp.cli.trace\nprint(len(dir(door)), *sys.modules)"
    loaded = run_python("-I", "-c", code)
    assert 0 == loaded.returncode, loaded.stderr
    assert "ilcp.trace" in loaded.stdout.split()
    assert set() == {"torch", "transformers", "ilcp_codecs"} & {*loaded.stdout.split()}


def test_the_example_has_a_trace_and_texts_beside_it() -> None:
    """Three agents; what they leave is as good as the text, nearly, and what they say is not."""
    said = run_example("trace_pipeline.py")
    assert 3 == said.count(" tokens read, 5 steps")
    right = {name: int(count) for name, count in re.findall(r"from (.*): (\d+) of 25 right", said)}
    assert right["trace"] > 15 > right["what was said, 40 tokens each"]
    assert right["the text"] > 15
