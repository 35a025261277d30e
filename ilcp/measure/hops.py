"""What is left after several hops: the same message handed on, and one made anew at each hop.

::

    forwarded    message --> message --> ...             the bytes are parsed and packed again; they must not change
    re-encoded   message --> memory --> the receiver answers every question from it --> notes (text)
                   notes + the hop's own text --> the sender reads them --> message --> ...
    text         text of equal bytes --> notes: that text + the hop's own --> text of equal bytes --> ...

The receiver cannot write into the sender's states; what a hop has understood crosses to the next sender as the notes
that it can state. ``Case.rewrite`` says how, and what each hop adds of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from ilcp.codec.context import Context
from ilcp.codec.memory import TextMemory
from ilcp.codec.protocols import Codec
from ilcp.errors import ConfigError
from ilcp.handoff import Receiver, Sender
from ilcp.measure.arms import ArmInput, ArmSpec
from ilcp.message import Message
from ilcp.tasks.cases import Case, Rewrite

__all__ = ["forwarded", "hop_specs"]

MAX_ANSWER_TOKENS = 16


def forwarded(sender: Sender, receiver: Receiver, wire: bytes, hops: int) -> bytes:
    """Returns the message after so many hops that only pass it on: parsed, and packed again."""
    for _ in range(hops):
        wire = sender.pack(Message.from_bytes(wire, key=receiver.key, audience=receiver.audience).payload)
    return wire


def hop_specs(
    sender: Sender,
    receiver: Receiver,
    cases: Sequence[Case],
    *,
    length: int,
    texts: Mapping[str, Codec],
    hops: int,
) -> Iterator[ArmSpec]:
    """Yields the arms ``forwarded-k``, ``reencoded-k`` and ``NAME-hops-k`` for ``k`` from 1 to ``hops``.

    Each ``make`` goes on from the hop before it, so they have to be made in order.
    """
    relay = _Relay(sender, receiver, cases, length)
    chains = {f"{name}-hops": _TextChain(codec, cases, length) for name, codec in texts.items()}

    def passed_on(hop: int) -> ArmInput:
        return _arrived(receiver, [forwarded(sender, receiver, wire, hop) for wire in relay.wires(1)])

    for hop in range(1, hops + 1):
        yield ArmSpec(f"forwarded-{hop}", "hops", partial(passed_on, hop))
        yield ArmSpec(f"reencoded-{hop}", "hops", partial(relay.after, hop))
        for name, chain in chains.items():
            yield ArmSpec(f"{name}-{hop}", "hops", partial(chain.after, hop))


def _arrived(receiver: Receiver, wires: Sequence[bytes]) -> ArmInput:
    read = (Message.from_bytes(wire, key=receiver.key, audience=receiver.audience) for wire in wires)
    payload = tuple(len(message.payload) for message in read)
    return ArmInput([receiver.decode(wire) for wire in wires], payload, tuple(map(len, wires)))


class _Relay:
    """Messages that every hop decodes, states in words, and encodes again with its own text."""

    def __init__(self, sender: Sender, receiver: Receiver, cases: Sequence[Case], length: int):
        self.sender, self.receiver, self.cases, self.length = sender, receiver, cases, length
        self.rewrites = _rewrites(cases)
        self._wires: list[list[bytes]] = []  # wires by hop

    def wires(self, hop: int) -> list[bytes]:
        """Returns the messages of that hop; the first are the sender's own."""
        while len(self._wires) < hop:
            texts = self._notes(len(self._wires)) if self._wires else [case.context for case in self.cases]
            self._wires.append([self.sender.encode(text, payload_bytes=self.length) for text in texts])
        return self._wires[hop - 1]

    def after(self, hop: int) -> ArmInput:
        """Returns what arrives after so many hops."""
        return _arrived(self.receiver, self.wires(hop))

    def _notes(self, hop: int) -> list[str]:
        asked = [
            (memory, question)
            for memory, rewrite in zip(map(self.receiver.decode, self._wires[-1]), self.rewrites, strict=True)
            for question in rewrite.questions
        ]
        answers = iter(self.receiver.answers(asked, max_new_tokens=MAX_ANSWER_TOKENS))
        return [r.notes({question: next(answers) for question in r.questions}, hop) for r in self.rewrites]


class _TextChain:
    """Text of equal bytes that every hop reads and cuts again, with its own text behind it."""

    def __init__(self, codec: Codec, cases: Sequence[Case], length: int):
        self.codec, self.cases, self.length = codec, cases, length
        self.rewrites = _rewrites(cases)
        self._wires: list[list[bytes]] = []

    def after(self, hop: int) -> ArmInput:
        """Returns what arrives after so many hops."""
        while len(self._wires) < hop:
            if self._wires:
                texts = [
                    f"{self._read(wire).text} {rewrite.remark(len(self._wires))}"
                    for wire, rewrite in zip(self._wires[-1], self.rewrites, strict=True)
                ]
            else:
                texts = [case.context for case in self.cases]
            self._wires.append([self._write(text) for text in texts])
        wires = self._wires[hop - 1]
        payloads = tuple(len(Message.from_bytes(wire).payload) for wire in wires)
        return ArmInput([self._read(wire) for wire in wires], payloads, tuple(map(len, wires)))

    def _write(self, text: str) -> bytes:
        codec_id = self.codec.trained.codec_id(self.codec.spec)
        return Message(codec_id, self.codec.encode(Context(text=text), self.length)).to_bytes()

    def _read(self, wire: bytes) -> TextMemory:
        memory = self.codec.decode(Message.from_bytes(wire).payload)
        assert isinstance(memory, TextMemory)  # the chain is made of text codecs only
        return memory


def _rewrites(cases: Sequence[Case]) -> list[Rewrite]:
    found = [case.rewrite for case in cases if case.rewrite is not None]
    if len(found) < len(cases):
        raise ConfigError("expected cases with a rewrite, which says how an agent writes them down, got some without")
    return found
