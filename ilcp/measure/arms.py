"""The arms: everything that the receiver can be told of the same documents.

::

    text              the receiver reads the document
    message-N         the sender's message with a payload of N bytes; the longest is called "message"
    literals-N        the same with the document's literals beside the latent, as ``literals="auto"`` picks them; only
                      where there are any
    literals-mismatched  another case's latent beside the document's own literals: what these are worth alone
    continuous        its latent before it is rounded (where the codec can say it): encoder loss without rounding
    none              nothing
    zero, random      a payload of zero bytes; of random bytes
    mismatched        another case's message: what shows that the message itself matters
    head-N, tail-N,   text of as many bytes: its beginning, its end, compressed with zstd, and
    zstd-N, lm-N      coded arithmetically under the sender's own language model
    oracle-N          the task's own entropy code of the facts: the limit
    index             the number of the right choice, one byte per question: what a message is worth that knows
                      the question

Whatever crosses is serialised, parsed and decoded again; sizes are ``len(bytes)`` of whole messages.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from ilcp.codec.context import Context
from ilcp.codec.memory import Memory, TextMemory
from ilcp.codec.protocols import Codec, is_trainable
from ilcp.errors import ConfigError
from ilcp.handoff import Receiver, Sender
from ilcp.message import CODEC_ID_BYTES, Message, literals
from ilcp.tasks.cases import Case

__all__ = ["NO_CODEC", "ArmInput", "ArmSpec", "arm_specs", "as_text", "sizes", "text_input"]

NO_CODEC = bytes(CODEC_ID_BYTES)  # the codec id of what no codec made: it weighs as much as any


@dataclass(frozen=True)
class ArmInput:
    """The memories that the receiver is given of each case, and the bytes that crossed for them.

    ``answers`` (question -> answer, per case) stands in the place of a receiver, for arms whose bytes *are* answers.
    """

    memories: Sequence[Memory | None]
    payload_bytes: tuple[int, ...] = ()
    wire_bytes: tuple[int, ...] = ()
    answers: Sequence[Mapping[str, str]] | None = None


@dataclass(frozen=True)
class ArmSpec:
    """One arm: its name, its family, the message arm it rivals, and how it is made.

    ``make`` raises DecodeError where the codec refuses such a payload.
    """

    name: str
    family: str
    make: Callable[[], ArmInput] = field(repr=False)
    rival_of: str | None = None


def arm_specs(
    sender: Sender,
    receiver: Receiver,
    cases: Sequence[Case],
    *,
    lengths: Sequence[int],
    texts: Mapping[str, Codec],
    seed: int,
) -> Iterator[ArmSpec]:
    """Yields all arms that this codec and this task have, the message's first.

    Args:
        lengths: of payloads, in bytes, the longest first.
        texts: text codecs by name.
        seed: of the random payloads.
    """
    inputs = _Inputs(sender, receiver, cases, lengths, texts)
    longest = lengths[0]
    names = {length: "message" if length == longest else f"message-{length}" for length in lengths}
    yield ArmSpec("text", "text", partial(text_input, cases))
    yield ArmSpec("none", "control", lambda: ArmInput([None] * len(cases)))
    for length in lengths:
        yield ArmSpec(names[length], "message", partial(inputs.message, length))
    if any(inputs.literals):
        for length in lengths:
            yield ArmSpec(f"literals-{length}", "literals", partial(inputs.message, length, own_literals=True))
        mismatched = partial(inputs.message, longest, shift=1, own_literals=True)
        yield ArmSpec("literals-mismatched", "control", mismatched)
    yield ArmSpec("mismatched", "control", partial(inputs.message, longest, shift=1))  # contexts differ
    yield ArmSpec("zero", "control", lambda: inputs.across([bytes(len(one)) for one in inputs.payloads(longest)]))
    yield ArmSpec("random", "control", lambda: inputs.across(_noise(inputs.payloads(longest), seed)))
    codec = sender.codec
    if is_trainable(codec):
        unrounded = codec.decode_unrounded
        yield ArmSpec("continuous", "limit", lambda: ArmInput([unrounded(one) for one in inputs.contexts]))
    for length in lengths:
        for name in texts:
            yield ArmSpec(f"{name}-{length}", "text of equal bytes", partial(inputs.text, name, length), names[length])
        if all(case.fact_code is not None for case in cases):
            yield ArmSpec(f"oracle-{length}", "limit", partial(_oracle, cases, length))
    if any(question.choices for case in cases for question in case.questions):
        yield ArmSpec("index", "limit", partial(_index, cases))


class _Inputs:
    """Makes what the receiver is told; what several arms share is encoded once."""

    def __init__(
        self,
        sender: Sender,
        receiver: Receiver,
        cases: Sequence[Case],
        lengths: Sequence[int],
        texts: Mapping[str, Codec],
    ):
        self.sender, self.receiver, self.cases, self.lengths, self.texts = sender, receiver, cases, lengths, texts
        self.literals = [literals.auto(case.context) for case in cases]
        self._payloads: dict[int, list[bytes]] = {}
        self._coded: dict[str, list[list[bytes]]] = {}

    @cached_property
    def contexts(self) -> list[Context]:
        """Each case as the sender reads it."""
        return [self.sender.read(case.context) for case in self.cases]

    def payloads(self, length: int) -> list[bytes]:
        """Encodes each case in ``length`` bytes."""
        if length not in self._payloads:
            self._payloads[length] = [self.sender.codec.encode(context, length) for context in self.contexts]
        return self._payloads[length]

    def across(self, payloads: Sequence[bytes], beside: Sequence[tuple[str, ...]] | None = None) -> ArmInput:
        """Packs, parses and decodes payloads, with the literals ``beside`` them."""
        beside = [()] * len(payloads) if beside is None else beside
        wires = list(map(self.sender.pack, payloads, beside))
        crossed = [payload + literals.to_field(own) for payload, own in zip(payloads, beside, strict=True)]
        return ArmInput([self.receiver.decode(wire) for wire in wires], sizes(crossed), sizes(wires))

    def message(self, length: int, *, shift: int = 0, own_literals: bool = False) -> ArmInput:
        """Sends each case's message, or that of the case ``shift`` places on, with the case's own literals or none."""
        payloads = self.payloads(length)
        return self.across(payloads[shift:] + payloads[:shift], self.literals if own_literals else None)

    def text(self, name: str, length: int) -> ArmInput:
        """Sends each case by a text codec in at most as many bytes as its own payload of that ``length`` has."""
        codec = self.texts[name]
        if name not in self._coded:  # all lengths in a row: a codec may remember the last text that it worked on
            most = zip(*(map(len, self.payloads(size)) for size in self.lengths), strict=True)
            self._coded[name] = [
                [codec.encode(Context(text=case.context), size) for size in sizes]
                for case, sizes in zip(self.cases, most, strict=True)
            ]
        return as_text(codec, [payloads[self.lengths.index(length)] for payloads in self._coded[name]])


def _noise(payloads: Sequence[bytes], seed: int) -> list[bytes]:
    rng = random.Random(f"ilcp random payload {seed}")
    return [rng.randbytes(len(payload)) for payload in payloads]


def text_input(cases: Sequence[Case]) -> ArmInput:
    payloads = [case.context.encode() for case in cases]
    wires = [Message(NO_CODEC, payload).to_bytes() for payload in payloads]
    return ArmInput([TextMemory(case.context) for case in cases], sizes(payloads), sizes(wires))


def as_text(codec: Codec, payloads: Sequence[bytes]) -> ArmInput:
    """Packs, parses and decodes what a text codec made of each case."""
    codec_id = codec.trained.codec_id(codec.spec)
    wires = [Message(codec_id, payload).to_bytes() for payload in payloads]
    memories = [codec.decode(Message.from_bytes(wire).payload) for wire in wires]
    return ArmInput(memories, sizes(payloads), sizes(wires))


def _oracle(cases: Sequence[Case], length: int) -> ArmInput:
    payloads = [case.fact_code.encode(length) for case in cases if case.fact_code is not None]
    wires = [Message(NO_CODEC, payload).to_bytes() for payload in payloads]
    read = [
        case.fact_code.answers(Message.from_bytes(wire).payload)
        for case, wire in zip(cases, wires, strict=True)
        if case.fact_code is not None
    ]
    return ArmInput([None] * len(cases), sizes(payloads), sizes(wires), read)


def _index(cases: Sequence[Case]) -> ArmInput:
    """Sends one byte per question that has choices; where the answer is none of them, the byte behind the last."""
    answers, payloads = [], []
    for case in cases:
        read: dict[str, str] = {}
        for question in case.questions:
            if question.choices is None or len(question.choices) > 255:
                continue
            choices = (*question.choices, *({question.answer} - set(question.choices)))
            payload = bytes([choices.index(question.answer)])
            read[question.text] = choices[Message.from_bytes(Message(NO_CODEC, payload).to_bytes()).payload[0]]
            payloads.append(payload)
        answers.append(read)
    if not payloads:
        raise ConfigError("expected questions with at most 255 choices for the answer's index, got none")
    wire = len(Message(NO_CODEC, payloads[0]).to_bytes())
    return ArmInput([None] * len(cases), (1,) * len(cases), (wire,) * len(cases), answers)


def sizes(many: Sequence[bytes]) -> tuple[int, ...]:
    """Returns the length of each."""
    return tuple(map(len, many))
