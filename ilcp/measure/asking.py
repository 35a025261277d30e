"""Every arm is asked of every case; a case that fails is left out and said to be, and the rest goes on.

::

    arm --fails--> which cases fail by themselves? (halved until they are found)
        none       which do beside the next one, whose message some arms give them?
        few        they leave the report, with all that was asked of them, and the arm is asked again
        too many   the arm is not measured, and a note says why; one without which there is no verdict ends the run

What is measured takes hours, and what fails is of any kind: a codec, a tokenizer, a full memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from traceback import clear_frames
from typing import Any

from ilcp.errors import ConfigError, DecodeError, EncodeError, IlcpError
from ilcp.measure.arms import ArmSpec
from ilcp.measure.items import Items
from ilcp.measure.report import Report
from ilcp.measure.scoring import Scorer
from ilcp.measure.verdict import ESSENTIAL
from ilcp.tasks.cases import Case

__all__ = ["Asking", "narrowed", "reason"]

MOST_LEFT_OUT = 0.1  # of the cases, for the sake of an arm that the verdict can do without
NO_SENDERS = ("zero", "random")  # payloads that a codec may refuse, since no sender made them


class Asking:
    """The cases that are still asked about, and the arms that they have.

    Args:
        specs_of: gives the arms of any of the cases.
        scorer_of: asks a receiver about any of the cases.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        specs_of: Callable[[Sequence[Case]], list[ArmSpec]],
        scorer_of: Callable[[Sequence[Case]], Scorer],
    ):
        self._specs_of, self._scorer_of = specs_of, scorer_of
        self._take(cases)

    def _take(self, cases: Sequence[Case]) -> None:
        self.cases = list(cases)
        self._specs = {spec.name: spec for spec in self._specs_of(cases)}
        self._scorer = self._scorer_of(cases)

    def add(self, report: Report, name: str) -> Report:
        """Returns the report with the arm of that name, or with a note in its place.

        Raises:
            Exception: an arm without which there is no verdict cannot be asked of two cases; whatever was raised.
        """
        while name in self._specs:
            try:
                return _asked(report, self._specs[name], self._scorer)
            except Exception as error:  # of any kind: see above
                clear_frames(error.__traceback__)  # which hold the memory that the others need
                everything = range(len(self.cases))
                failing = self._failing(report, name, everything) or self._beside_the_next(report, name)
                kept = [number for number in everything if number not in failing]
                most = len(self.cases) - 2 if name in ESSENTIAL else int(MOST_LEFT_OUT * len(self.cases))
                if not 0 < len(failing) <= most:
                    if name in ESSENTIAL:
                        raise
                    return replace(report, notes=(*report.notes, f"{name}: not measured, {reason(error)}"))
                report = narrowed(report, kept, {self.cases[at].id: why for at, why in failing.items()})
                self._take([self.cases[number] for number in kept])
        return report  # the cases that had it are left out

    def _failing(self, report: Report, name: str, numbers: Sequence[int]) -> dict[int, str]:
        """Returns the cases for which the arm fails without all others, each with the reason."""
        error = self._error(report, name, numbers)
        if error is None:
            return {}
        if len(numbers) == 1:
            return {numbers[0]: f"{name}: {reason(error)}"}
        half = len(numbers) // 2
        return self._failing(report, name, numbers[:half]) | self._failing(report, name, numbers[half:])

    def _beside_the_next(self, report: Report, name: str) -> dict[int, str]:
        """Returns the cases for which the arm fails beside the next one, each with the reason."""
        pairs = ((number, sorted({number, (number + 1) % len(self.cases)})) for number in range(len(self.cases)))
        found = {number: self._error(report, name, both) for number, both in pairs}
        return {number: f"{name}: {reason(error)}" for number, error in found.items() if error is not None}

    def _error(self, report: Report, name: str, numbers: Sequence[int]) -> Exception | None:
        """Returns what is raised where these cases alone are asked."""
        part = [self.cases[number] for number in numbers]
        spec = next((spec for spec in self._specs_of(part) if spec.name == name), None)
        try:
            if spec is not None:
                _asked(narrowed(report, numbers), spec, self._scorer_of(part))
            return None
        except Exception as error:  # as above
            clear_frames(error.__traceback__)
            return error


def _asked(report: Report, spec: ArmSpec, scorer: Scorer) -> Report:
    """Adds an arm; a text codec may need more bytes than there are, and a codec may refuse what no sender made."""
    refusals: tuple[type[Exception], ...] = (DecodeError,) if spec.name in NO_SENDERS else ()
    if spec.family == "text of equal bytes":
        refusals = (DecodeError, EncodeError, ConfigError)
    try:
        given = spec.make()
    except refusals as error:
        return replace(report, notes=(*report.notes, f"{spec.name}: not measured, the codec refuses it ({error})"))
    return replace(report, arms={**report.arms, spec.name: scorer.arm(spec, given, report.arms.get("none"))})


def reason(error: Exception) -> str:
    """Returns what an error says, in one line; of one that is not ours its kind too."""
    said = " ".join(str(error).split())
    return said if isinstance(error, IlcpError) else f"{type(error).__name__}: {said}"


def narrowed(report: Report, numbers: Sequence[int], left_out: dict[str, str] | None = None) -> Report:
    """Returns the report with the documents of these numbers, in order; ``left_out`` says why others are not."""
    items = report.items
    place = {old: new for new, old in enumerate(numbers)}
    asked = [at for at, document in enumerate(items.documents) if document in place]

    def some(column: Sequence[Any], of: Sequence[int]) -> tuple[Any, ...]:
        return tuple(column[at] for at in of) if column else ()

    documents = {name: some(getattr(items, name), numbers) for name in ("cases", "entropy_bits")}
    by_question = ("kinds", "questions", "golds", "worth_bits", "stands_for", "alternatives")
    questions = {name: some(getattr(items, name), asked) for name in by_question}
    arms = {}
    for name, arm in report.arms.items():
        columns: dict[str, Any] = {each: some(getattr(arm, each), asked) for each in ("answers", "nats", "new_nats")}
        columns |= {each: some(getattr(arm, each), numbers) for each in ("payload_bytes", "wire_bytes")}
        arms[name] = replace(arm, **columns)
    left_out = left_out or {}
    return replace(
        report,
        items=Items(documents=tuple(place[items.documents[at]] for at in asked), **documents, **questions),
        arms=arms,
        left_out=(*report.left_out, *left_out),
        notes=(*report.notes, *(f"case {case!r}: left out, {why}" for case, why in left_out.items())),
    )
