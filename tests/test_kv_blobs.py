"""Memories too large for a message: the message names a blob, and the receiver fetches it."""

import pytest

from ilcp import Message, Receiver, Sender
from ilcp.codec.memory import CacheMemory
from ilcp.errors import ConfigError, DecodeError, EncodeError
from ilcp.message import Blob
from ilcp_codecs.kv import ExactCodec
from tests.families import build
from tests.helpers import Folder, make_tokenizer, present

TOKENIZER = make_tokenizer(300)
TEXT = "The ticket is owned by Mara, who knows nothing. The affected region is Bergen, for the third time. " * 2


def test_a_large_payload_is_put_as_a_blob_and_a_small_one_is_not() -> None:
    """What fits stays in a message of version 1; what does not is named by version 2, and gives the same memory."""
    model, blobs = build("gpt_neox", len(TOKENIZER), hidden=64), Folder()
    codec = ExactCodec.of(model, TOKENIZER)
    sender = Sender(model, TOKENIZER, codec, blobs=blobs)
    small, large = sender.encode("Mara owns it."), sender.encode(TEXT)
    assert (1, None) == (Message.from_bytes(small).version, Message.from_bytes(small).blob)
    named = Message.from_bytes(large)
    assert (2, b"") == (named.version, named.payload)
    assert len(large) < 80 < 65535 < present(named.blob).size_bytes
    receiver = Receiver(model, TOKENIZER, codec, allow_unmeasured=True, blobs=blobs)
    memory = receiver.decode(large)
    assert isinstance(memory, CacheMemory)
    assert codec.decode(next(iter(blobs.kept.values()))).digest() == memory.digest()
    assert receiver.generate(large, "Who?") == receiver.generate(None, "Who?", context=TEXT)


def test_without_a_place_for_blobs_both_ends_say_so() -> None:
    """A sender with nowhere to put a large payload, and a receiver with nowhere to look for it, name what to give."""
    model = build("gpt_neox", len(TOKENIZER), hidden=64)
    codec = ExactCodec.of(model, TOKENIZER)
    with pytest.raises(EncodeError, match="give Sender or load_pair an open connection"):
        Sender(model, TOKENIZER, codec).encode(TEXT)
    message = Sender(model, TOKENIZER, codec, blobs=Folder()).encode(TEXT)
    with pytest.raises(ConfigError, match="expected blobs=, got none"):
        Receiver(model, TOKENIZER, codec, allow_unmeasured=True).decode(message)


def test_a_blob_that_is_another_or_longer_than_any_payload_is_refused() -> None:
    """Bytes that are not those that the message names decode to nothing, and what no payload can be is not fetched."""
    model, blobs = build("gpt_neox", len(TOKENIZER), hidden=64), Folder()
    codec = ExactCodec.of(model, TOKENIZER)
    sender = Sender(model, TOKENIZER, codec, blobs=blobs)
    receiver = Receiver(model, TOKENIZER, codec, allow_unmeasured=True, blobs=blobs)
    one, other = (sender.encode(text) for text in (TEXT, TEXT.upper()))
    first, second = (present(Message.from_bytes(message).blob) for message in (one, other))
    blobs.kept[first] = blobs.kept[second]
    with pytest.raises(DecodeError, match="the blob that the message names, got other bytes"):
        receiver.decode(one)
    assert isinstance(receiver.decode(other), CacheMemory)
    huge = Message(Message.from_bytes(one).codec_id, b"", blob=Blob(1 << 35, first.digest)).to_bytes()
    with pytest.raises(DecodeError, match=f"at most {codec.spec.payload_bytes} bytes, got 0 and a blob of {1 << 35}"):
        receiver.decode(huge)
