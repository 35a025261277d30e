"""The arms: every way of telling the receiver, on the same documents.

::

    text              the receiver reads the document
    message-N         the sender's message with a payload of N bytes; the longest is called "message"
    literals-N        the same with the document's literals beside the latent, as ``literals="auto"`` picks them; only
                      where there are any
    literals-other    another case's latent beside the document's own literals: what these are worth alone
    continuous        its latent before it is rounded (where the codec can say it): encoder loss without rounding
    none              nothing
    zero, random      a payload of zero bytes; of random bytes
    other             another case's message: what shows that the message itself matters
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
from functools import cache, partial
from typing import Any

from ilcp.codec.context import Context
from ilcp.codec.memory import Memory
from ilcp.codec.protocols import Codec
from ilcp.errors import EncodeError
from ilcp.handoff import Receiver, Sender
from ilcp.message import CODEC_ID_BYTES, Message, literals
from ilcp.tasks.cases import Case

__all__ = ["ArmInput", "ArmSpec", "arm_specs"]

RECORD = bytes(CODEC_ID_BYTES)  # the codec id of what no codec made: it weighs as much as any


@dataclass(frozen=True)
class ArmInput:
    """What the receiver is told of each case, and what crossed for it.

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
    """All arms that this codec and this task have, the message's first. ``lengths`` of payloads: the longest first."""
    contexts = [sender.read(case.context) for case in cases]
    names = {length: f"message-{length}" if number else "message" for number, length in enumerate(lengths)}

    @cache  # the message, another case's, and the sizes of zeros and noise
    def sent(length: int) -> list[bytes]:
        return [sender.codec.encode(context, length) for context in contexts]

    nothing: list[tuple[str, ...]] = [()] * len(cases)
    found = [literals.auto(case.context) for case in cases]

    def across(payloads: Sequence[bytes], beside: Sequence[tuple[str, ...]] = nothing) -> ArmInput:
        wires = list(map(sender.pack, payloads, beside))
        crossed = [payload + literals.to_field(own) for payload, own in zip(payloads, beside, strict=True)]
        return ArmInput([receiver.decode(wire) for wire in wires], _sizes(crossed), _sizes(wires))

    def message(length: int, shift: int = 0, beside: Sequence[tuple[str, ...]] = nothing) -> ArmInput:
        return across(sent(length)[shift:] + sent(length)[:shift], beside)

    @cache
    def coded(name: str) -> list[list[bytes]]:
        """The payloads of each case, at all lengths in a row: a codec may remember the last text that it worked on."""
        return [[texts[name].encode(Context(text=case.context), length) for length in lengths] for case in cases]

    def text(name: str, length: int) -> ArmInput:
        return _text(texts[name], [payloads[lengths.index(length)] for payloads in coded(name)])

    yield ArmSpec("text", "text", partial(_plain, cases))
    yield ArmSpec("none", "control", lambda: ArmInput([None] * len(cases)))
    for length in lengths:
        yield ArmSpec(names[length], "message", partial(message, length))
    if any(found):
        for length in lengths:
            yield ArmSpec(f"literals-{length}", "literals", partial(message, length, beside=found))
        yield ArmSpec("literals-other", "control", partial(message, lengths[0], shift=1, beside=found))
    yield ArmSpec("other", "control", partial(message, lengths[0], shift=1))  # ``run`` refuses two equal contexts
    yield ArmSpec("zero", "control", lambda: across([bytes(len(payload)) for payload in sent(lengths[0])]))
    yield ArmSpec("random", "control", lambda: across(_noise(sent(lengths[0]), seed)))
    unrounded: Any = getattr(sender.codec, "decode_unrounded", None)
    if unrounded is not None:
        yield ArmSpec("continuous", "limit", lambda: ArmInput([unrounded(context) for context in contexts]))
    for length in lengths:
        for name in texts:
            yield ArmSpec(f"{name}-{length}", "text of equal bytes", partial(text, name, length), names[length])
        if all(case.fact_code is not None for case in cases):
            yield ArmSpec(f"oracle-{length}", "limit", partial(_oracle, cases, length))
    if any(question.choices for case in cases for question in case.questions):
        yield ArmSpec("index", "limit", partial(_index, cases))


def _noise(payloads: Sequence[bytes], seed: int) -> list[bytes]:
    rng = random.Random(f"ilcp random payload {seed}")
    return [rng.randbytes(len(payload)) for payload in payloads]


def _plain(cases: Sequence[Case]) -> ArmInput:
    payloads = [case.context.encode() for case in cases]
    wires = [Message(RECORD, payload).to_bytes() for payload in payloads]
    return ArmInput([Memory(text=case.context) for case in cases], _sizes(payloads), _sizes(wires))


def _text(codec: Codec, payloads: Sequence[bytes]) -> ArmInput:
    codec_id = codec.trained.codec_id(codec.spec)
    wires = [Message(codec_id, payload).to_bytes() for payload in payloads]
    memories = [codec.decode(Message.from_bytes(wire).payload) for wire in wires]
    return ArmInput(memories, _sizes(payloads), _sizes(wires))


def _oracle(cases: Sequence[Case], length: int) -> ArmInput:
    payloads = [case.fact_code.encode(length) for case in cases if case.fact_code is not None]
    wires = [Message(RECORD, payload).to_bytes() for payload in payloads]
    read = [
        case.fact_code.answers(Message.from_bytes(wire).payload)
        for case, wire in zip(cases, wires, strict=True)
        if case.fact_code is not None
    ]
    return ArmInput([None] * len(cases), _sizes(payloads), _sizes(wires), read)


def _index(cases: Sequence[Case]) -> ArmInput:
    """One byte per question that has choices; where the answer is none of them, the byte behind the last."""
    answers, payloads = [], []
    for case in cases:
        read: dict[str, str] = {}
        for question in case.questions:
            if question.choices is None or len(question.choices) > 255:
                continue
            choices = (*question.choices, *({question.answer} - set(question.choices)))
            payload = bytes([choices.index(question.answer)])
            read[question.text] = choices[Message.from_bytes(Message(RECORD, payload).to_bytes()).payload[0]]
            payloads.append(payload)
        answers.append(read)
    if not payloads:
        raise EncodeError("expected questions with at most 255 choices for the answer's index, got none")
    wire = len(Message(RECORD, payloads[0]).to_bytes())
    return ArmInput([None] * len(cases), (1,) * len(cases), (wire,) * len(cases), answers)


def _sizes(many: Sequence[bytes]) -> tuple[int, ...]:
    return tuple(map(len, many))
