"""Canaries: questions whose answers bind what only the document says, asked through the real pair.

The one layer that finds what reads fluently and knows nothing: another case's message is answered from as fluently.
One question of each document, so that no answer hangs on another; the test stops as soon as the evidence is in.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ilcp.assurance.martingale import Canary, margin
from ilcp.assurance.reference import Calibrated, Reference
from ilcp.errors import ConfigError
from ilcp.handoff import Receiver, Sender
from ilcp.tasks import Case, Question

__all__ = ["canary", "canary_of", "right_answers"]


def question_of(case: Case, number: int) -> Question:
    """Returns the question of a case that stands for it: another one from case to case, said by the text if any is."""
    asked = [each for each in case.questions if each.said] or list(case.questions)
    return asked[number % len(asked)]


def right_answers(sender: Sender, receiver: Receiver, cases: Sequence[Case]) -> tuple[int, int, int]:
    """Returns how many cases were asked, how many answers were right from the own message, and from the next case's."""
    cases = [case for case in cases if case.questions]
    if len(cases) < 2:
        return 0, 0, 0
    memories = [_memory(sender, case) for case in cases]
    asked = [question_of(case, number) for number, case in enumerate(cases)]
    own = _right(receiver, memories, asked)
    others = _right(receiver, [*memories[1:], memories[0]], asked)
    return len(cases), sum(own), sum(others)


def canary_of(calibrated: Calibrated) -> Canary:
    """Returns the test of a codec whose canaries were counted when it was calibrated.

    A sound pair is right more often than the share then, less what a share of so many may be off; a broken pair no
    more often than half-way between that and another case's message.

    Raises:
        ConfigError: there were none, or too few, to tell the two apart.
    """
    n = calibrated.canaries
    usual = calibrated.right / n - margin(n) if n else 0.0
    others = calibrated.right_by_others / n + margin(n) if n else 1.0
    if not others < usual:
        raise ConfigError(
            f"expected canaries that tell the message from another's, got {calibrated.right} of {n} right against "
            f"{calibrated.right_by_others}: calibrate with more cases that have questions, or of another kind"
        )
    return Canary(min(usual, 0.99), max((usual + others) / 2, 0.01))


def canary(
    sender: Sender,
    receiver: Receiver,
    reference: Reference,
    cases: Iterable[Case],
    *,
    told: Callable[[Canary], Any] = lambda test: None,
) -> Canary:
    """Asks one question of each case until the evidence is in, or the cases end; returns the test.

    Args:
        cases: of the kind that the codec was calibrated on, other ones each time.
        told: is given the test after each answer.

    Raises:
        ConfigError: as ``canary_of``.
        EncodeError, DecodeError: as the two ends. No policy judges canaries: what they are for is finding out.
    """
    test = canary_of(reference.calibrated)
    for number, case in enumerate(case for case in cases if case.questions):
        asked = question_of(case, number)
        (right,) = _right(receiver, [_memory(sender, case)], [asked])
        test = test.told(right)
        told(test)
        if test.verdict:
            break
    return test


def _right(receiver: Receiver, memories: Sequence[Any], asked: Sequence[Question]) -> list[bool]:
    """Says of each answer whether it is right: word by word, or without a question the likeliest of its pool."""
    pairs = zip(memories, asked, strict=True)
    scores = iter(receiver.score([(memory, each.text, answer) for memory, each in pairs for answer in _answers(each)]))
    right = []
    for each in asked:
        found = {answer: next(scores) for answer in _answers(each)}
        likeliest = max(found, key=lambda answer: found[answer].log_likelihood_nats)
        right.append(found[each.answer].exact if len(found) == 1 else likeliest == each.answer)
    return right


def _answers(question: Question) -> tuple[str, ...]:
    return question.choices if question.choices and not question.text else (question.answer,)


def _memory(sender: Sender, case: Case) -> Any:
    return sender.codec.decode(sender.codec.encode(sender.read(case.context)))
