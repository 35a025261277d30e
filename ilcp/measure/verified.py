"""Messages that know what they lost, against everything else that as many bytes on the wire can say.

::

    verified-N        the message of ``Sender.verified``: read back, with literals for what it lost, at most N bytes
    literals-only-N   no latent: as many facts in words as help most, chosen by asking the receiver in the same way
    lm-M, zstd-M ...  the text by a codec in M bytes, which makes N on the wire, where no message has M to compare with

What is known of a case is what the receiver answers from the full text, unless it is given.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial

from ilcp.codec.context import Context
from ilcp.codec.memory import TextMemory
from ilcp.codec.protocols import Codec
from ilcp.handoff import Receiver, Sender
from ilcp.handoff.verify import known_answers, mended, payload_within
from ilcp.measure.arms import NO_CODEC, ArmInput, ArmSpec, as_text, sizes
from ilcp.message import Message
from ilcp.message.literals import to_field
from ilcp.tasks.cases import Case

__all__ = ["verified_specs"]

ENVELOPE_BYTES = len(Message(NO_CODEC, b"!").to_bytes()) - 1  # around a payload of up to 255 bytes


def verified_specs(
    sender: Sender,
    receiver: Receiver,
    cases: Sequence[Case],
    *,
    budgets: Collection[int],
    lengths: Collection[int],
    texts: Mapping[str, Codec],
    known: Sequence[Mapping[str, str]] | None = None,
) -> Iterator[ArmSpec]:
    """Yields the arms at each budget, in bytes on the wire.

    Args:
        budgets: in bytes on the wire.
        lengths: of the payloads that other arms have text of equal bytes for.
        texts: text codecs by name.
        known: the answers of each case that the sender knows, by question; None for the receiver's from the full text.

    Raises:
        ConfigError: no message of the sender's fits a budget.
    """
    for budget in budgets:
        payload_within(sender, budget)
    inputs = _Inputs(sender, receiver, cases, known)
    for budget in sorted(budgets, reverse=True):
        name = f"verified-{budget}"
        yield ArmSpec(name, "literals", partial(inputs.verified, budget))
        yield ArmSpec(f"literals-only-{budget}", "text of equal bytes", partial(inputs.literals_only, budget), name)
        length = budget - ENVELOPE_BYTES
        if length not in lengths:
            for text, codec in texts.items():
                made = partial(_coded, codec, cases, length)
                yield ArmSpec(f"{text}-{length}", "text of equal bytes", made, name)


class _Inputs:
    """Makes what the receiver is told; what is known of each case is asked once."""

    def __init__(
        self, sender: Sender, receiver: Receiver, cases: Sequence[Case], known: Sequence[Mapping[str, str]] | None
    ):
        self.sender, self.receiver, self.cases, self._given = sender, receiver, cases, known

    @cached_property
    def known(self) -> list[dict[str, str]]:
        """The answers that are known of each case, by question."""
        if self._given is not None:
            return [dict(each) for each in self._given]
        return [
            known_answers(self.receiver, [question.text for question in case.questions], case.context)
            for case in self.cases
        ]

    def verified(self, budget_bytes: int) -> ArmInput:
        """Sends each case's message, read back and mended."""
        wires = [
            self.sender.verified(case.context, self.receiver, budget_bytes, known).message
            for case, known in zip(self.cases, self.known, strict=True)
        ]
        parsed = [Message.from_bytes(wire, key=self.receiver.key, audience=self.receiver.audience) for wire in wires]
        crossed = [message.payload + to_field(message.literals) for message in parsed]
        return ArmInput([self.receiver.decode(wire) for wire in wires], sizes(crossed), sizes(wires))

    def literals_only(self, budget_bytes: int) -> ArmInput:
        """Sends each case's facts as a text, chosen as literals are."""
        payloads = []
        for case, known in zip(self.cases, self.known, strict=True):
            fits = partial(_fit, budget_bytes)
            _, best = mended(self.receiver, lambda told: TextMemory(_text(told)), known, case.context, fits)
            payloads.append(_text(best.literals).encode() or b" ")
        wires = [Message(NO_CODEC, payload).to_bytes() for payload in payloads]
        read = [TextMemory(Message.from_bytes(wire).payload.decode().strip()) for wire in wires]
        return ArmInput(read, sizes(payloads), sizes(wires))


def _text(literals: Sequence[str]) -> str:
    return "".join(f"{literal}. " for literal in literals).rstrip()


def _fit(budget_bytes: int, literals: Sequence[str]) -> bool:
    return len(Message(NO_CODEC, _text(literals).encode()).to_bytes()) <= budget_bytes


def _coded(codec: Codec, cases: Sequence[Case], length: int) -> ArmInput:
    return as_text(codec, [codec.encode(Context(text=case.context), length) for case in cases])
