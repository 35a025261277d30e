"""A small pair that was calibrated: its codec's folder, with a reference of 300 texts, what is usual and what not."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ilcp
from ilcp import Receiver, Sender
from ilcp.assurance import Calibrated, Reference, View
from ilcp.assurance.observing import encoded, received
from ilcp.codec.context import Context
from ilcp.message import Message
from ilcp.tasks import case_files

__all__ = ["Ends", "ends_in"]

PROBE = (("Who owns it?", "Quux"), ("Where is it?", "Xyzzy"))
TEXTS = tuple(case.context[:120] for case in case_files("train", 5, 330))


@dataclass(frozen=True)
class Ends:
    """A codec that was loaded from its folder, the models of a small pair, and texts that no reference has seen."""

    codec: Any
    models: Any
    texts: Sequence[str]
    reference: Reference

    def sender(self, **options: Any) -> Sender:
        """A sender."""
        return Sender(self.models.sender.model, self.models.sender.tokenizer, self.codec, **options)

    def receiver(self, codec: Any = None, **options: Any) -> Receiver:
        """A receiver."""
        own = self.models.receiver
        return Receiver(own.model, own.tokenizer, codec or self.codec, allow_unmeasured=True, **options)

    def odd(self, number: int = 0, key: bytes | None = None, **options: Any) -> bytes:
        """A message that no sender made: a random payload."""
        payload = random.Random(number).randbytes(16)
        codec_id = self.codec.trained.codec_id(self.codec.spec)
        return Message(codec_id, payload, **options).to_bytes(key)

    def odd_context(self, number: int = 0) -> Context:
        """States a hundred times as large as any, with a text beside them."""
        usual = self.sender().read(self.texts[number])
        assert usual.states is not None
        return replace(usual, states=-100 * usual.states.flip(0))


def ends_in(folder: Path, small: Any) -> Ends:
    """Saves a small pair's codec in a folder, calibrates it there, and loads it."""
    ilcp.save(small.codec, folder)
    codec, sender = ilcp.load(folder), small.sender
    seen: dict[str, list[Any]] = {}
    for context in sender.read_batch(TEXTS[:300], 32):
        payload, sent = encoded(codec, context, None)
        seen.setdefault("sent", []).append(sent)
        for length in (4, 16):
            seen.setdefault(f"received/{length}", []).append(
                received(codec, payload[:length], None)[f"received/{length}"]
            )
    known = Calibrated(codec.trained.codec_id(codec.spec).hex(), "cases", "00", 300, 5, "abc", "5.0.0", PROBE)
    reference = Reference({name: View.fit(each) for name, each in seen.items()}, known)
    reference.write(folder)
    return Ends(codec, small, TEXTS[300:], reference)
