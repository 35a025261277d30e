"""The text in place of a message that carries nothing: only where the caller said so, and said aloud."""

import warnings
from dataclasses import replace
from typing import Any

import pytest

from ilcp import Receiver, Sender, TextMemory
from ilcp.errors import ConfigError, EncodeError, MismatchedCodecError, UnmeasuredError
from ilcp.evidence import Evidence
from ilcp.handoff import FallbackWarning
from ilcp.message import Message
from ilcp.message.literals import line
from ilcp_codecs.text import HeadCodec, PlainCodec

TEXT = "The ticket is owned by Mara, and the affected region is Bergen."
QUESTION = "Which region is affected?"
ARMS = {"message": 0.9, "mismatched": 0.1}
SHOWN = Evidence("", "cases", 200, 0, "exact match", 0.8, 0.7, 0.9, ARMS, "abc")


@pytest.fixture
def ends(small: Any) -> Any:
    """A sender and what makes a receiver, of a codec whose evidence is as given."""

    def of(evidence: Evidence | None, **options: Any) -> tuple[Sender, Any]:
        codec = small.codec
        known = None if evidence is None else replace(evidence, codec_id=codec.trained.codec_id(codec.spec).hex())
        codec.evidence = known
        sender = Sender(small.sender.model, small.sender.tokenizer, codec, **options)
        own = small.receiver.model, small.receiver.tokenizer

        def receiver(**more: Any) -> Receiver:
            return Receiver(*own, [codec, PlainCodec()], **{**options, **more})

        return sender, receiver

    yield of
    small.codec.evidence = None


def codec_of(message: bytes) -> bytes:
    """The id in a message."""
    return Message.from_bytes(message).codec_id


@pytest.mark.parametrize("evidence", [None, replace(SHOWN, content_gain=0.8, low=-0.1)])
def test_without_evidence_the_text_crosses_and_a_warning_says_why(ends: Any, evidence: Evidence | None) -> None:
    sender, receiver_of = ends(evidence)
    with pytest.warns(FallbackWarning, match=r"the text is handed over in place of a message: expected a co"):
        message = sender.encode(TEXT, otherwise="text", literals=["INC-7"])
    plain = PlainCodec()
    assert codec_of(message) == plain.trained.codec_id(plain.spec)
    with pytest.warns(FallbackWarning, match="vae is left out, only text is taken"):
        receiver = receiver_of(otherwise="text")
    assert [each.spec.name for each in receiver.codecs] == ["text-plain"]
    memory = receiver.decode(message)
    assert memory.digest() == TextMemory(TEXT).digest()
    assert memory.literals == ("INC-7",)
    said = receiver.generate(None, QUESTION, context=f"{TEXT}\n\n{line(('INC-7',))}")
    assert receiver.generate(message, QUESTION) == said
    with pytest.raises(MismatchedCodecError):
        receiver.decode(sender.encode(TEXT))


def test_with_evidence_the_message_crosses_and_nothing_is_said(ends: Any) -> None:
    sender, receiver_of = ends(SHOWN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = sender.encode(TEXT, otherwise="text")
        receiver = receiver_of(otherwise="text")
    assert message == sender.encode(TEXT)
    assert receiver.decode(message).shape[0] > 0
    assert len(receiver.codecs) == 2


def test_evidence_that_nobody_trusted_signed_is_none_where_somebody_is_to_be_trusted(ends: Any) -> None:
    _, receiver_of = ends(SHOWN)
    with pytest.warns(FallbackWarning, match="vae is left out, only text is taken: expected evidence that somebody"):
        receiver = receiver_of(otherwise="text", trust=["ab" * 32])
    assert [each.spec.name for each in receiver.codecs] == ["text-plain"]
    with pytest.raises(UnmeasuredError, match="expected evidence that somebody trusted signed"):
        receiver_of(trust=["ab" * 32])


def test_nobody_falls_back_unasked(ends: Any) -> None:
    sender, receiver_of = ends(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert codec_of(sender.encode(TEXT)) == sender.codec.trained.codec_id(sender.codec.spec)
    with pytest.raises(UnmeasuredError):
        receiver_of()


def test_a_sealed_fallback_is_sealed(ends: Any) -> None:
    sender, receiver_of = ends(None, key=bytes(range(32)), audience="b")
    with pytest.warns(FallbackWarning):
        message, receiver = sender.encode(TEXT, otherwise="text"), receiver_of(otherwise="text")
    assert receiver.decode(message).digest() == TextMemory(TEXT).digest()


def test_wrong_ways_are_refused_by_name(ends: Any, small: Any) -> None:
    sender, receiver_of = ends(None)
    with pytest.raises(ConfigError, match="otherwise='text' or None, got 'summary'"):
        sender.encode(TEXT, otherwise="summary")
    with pytest.raises(ConfigError, match="otherwise='text' or None, got True"):
        receiver_of(otherwise=True)
    own = small.receiver.model, small.receiver.tokenizer
    with pytest.raises(ConfigError, match="a codec text-plain beside otherwise='text'"):
        Receiver(*own, [small.codec, HeadCodec()], otherwise="text")
    with pytest.warns(FallbackWarning), pytest.raises(EncodeError, match="at most 65535 bytes"):
        sender.encode("long " * 20_000, otherwise="text")
