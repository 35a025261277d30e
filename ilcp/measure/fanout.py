"""One message for many receiver's calls: do they leave the memory as it was, and answer as with one of their own."""

from collections.abc import Sequence
from dataclasses import dataclass

from ilcp.errors import ConfigError
from ilcp.handoff import Receiver
from ilcp.measure.figures import Measured

__all__ = ["FanOut", "fan_out"]


@dataclass(frozen=True, slots=True)
class FanOut:
    """One memory for many calls: how many answers equal a fresh memory's, and how many calls left it as it was."""

    identical: Measured
    unchanged: Measured


def fan_out(
    receiver: Receiver, message: bytes, questions: Sequence[str], receivers: int = 8, *, max_new_tokens: int = 32
) -> FanOut:
    """Measures whether one memory, decoded once, serves ``receivers`` calls per question, questions interleaved.

    Raises:
        ConfigError: fewer than two calls or two questions: nothing would be interleaved.
        DecodeError, IdentityError: as ``Receiver.decode``.
    """
    if receivers < 2 or len(set(questions)) < 2:
        raise ConfigError(f"expected at least 2 receivers and 2 questions, got {receivers} and {len(set(questions))}")
    alone = {question: receiver.generate(message, question, max_new_tokens=max_new_tokens) for question in questions}
    memory = receiver.decode(message)
    before = memory.digest()
    identical = unchanged = 0
    for _ in range(receivers):
        for question in questions:
            identical += receiver.generate(memory, question, max_new_tokens=max_new_tokens) == alone[question]
            unchanged += memory.digest() == before
    n = receivers * len(questions)
    return FanOut(Measured(identical / n, "", n), Measured(unchanged / n, "", n))
