"""The parts of a report: the questions, and what one arm answered to each."""

import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ilcp.errors import ConfigError
from ilcp.measure.figures import Measured
from ilcp.records import read_record
from ilcp.tasks.cases import Case

__all__ = ["FAMILIES", "JOINT", "LOG_LIKELIHOOD", "Arm", "Items", "f1"]

FAMILIES = ("text", "message", "literals", "control", "text of equal bytes", "limit", "hops")
LOG_LIKELIHOOD = "log_likelihood"
JOINT = "joint"  # of a document, not of a question: all of its questions are right, as in joint goal accuracy
DECIMALS = 4  # of a log-likelihood as it is kept: the fifth differs from machine to machine
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Items:
    """The questions, one entry each; ``entropy_bits`` and ``cases`` have one entry per document.

    ``alternatives`` are the spellings that are as right as the gold answer; the column is empty where no question has
    any.
    """

    cases: tuple[str, ...]
    entropy_bits: tuple[float | None, ...]
    documents: tuple[int, ...]
    kinds: tuple[str, ...]
    questions: tuple[str, ...]
    golds: tuple[str, ...]
    worth_bits: tuple[float | None, ...]
    stands_for: tuple[float, ...]
    alternatives: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        columns = ("kinds", "questions", "golds", "worth_bits", "stands_for")
        for name in (*columns, *(("alternatives",) if self.alternatives else ())):
            if len(getattr(self, name)) != len(self):
                raise ConfigError(f"expected {len(self)} {name}, one per question, got {len(getattr(self, name))}")
        n = len(self.entropy_bits)
        if len(self.cases) != n:
            raise ConfigError(f"expected {n} cases, one per document, got {len(self.cases)}")
        if not n or set(self.documents) != set(range(n)):
            shown = ", ".join(map(str, sorted(set(self.documents))[:9])) or "none"
            raise ConfigError(f"expected documents numbered from 0 to {n - 1}, each with a question, got {shown}")

    def __len__(self) -> int:
        return len(self.documents)

    @classmethod
    def of(cls, cases: Sequence[Case]) -> "Items":
        """Lists the questions of the cases, in order."""
        asked = [(number, question) for number, case in enumerate(cases) for question in case.questions]
        others = tuple(tuple(one for one in q.answers if one != q.answer) for _, q in asked)
        return cls(
            cases=tuple(case.id for case in cases),
            entropy_bits=tuple(case.entropy_bits for case in cases),
            documents=tuple(number for number, _ in asked),
            kinds=tuple(question.kind for _, question in asked),
            questions=tuple(question.text for _, question in asked),
            golds=tuple(question.answer for _, question in asked),
            worth_bits=tuple(question.entropy_bits for _, question in asked),
            stands_for=tuple(question.stands_for for _, question in asked),
            alternatives=others if any(others) else (),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns all columns that are not empty, as JSON takes them."""
        return {name: list(column) for name, column in asdict(self).items() if column}

    @cached_property
    def accepted(self) -> list[tuple[str, ...]]:
        """All right answers of each question, the gold one first."""
        alternatives = self.alternatives or ((),) * len(self)
        return [(gold, *others) for gold, others in zip(self.golds, alternatives, strict=True)]

    @property
    def weights(self) -> Floats:
        """The number of questions of the case that each one stands for."""
        return np.array(self.stands_for, dtype=np.float64)

    def prior_bits(self, none: "Arm") -> Floats:
        """Returns what each answer is worth, in bits; where the task does not know, the cross-entropy with nothing."""
        nothing = -none.new_nats_array / np.log(2)
        known = [own if bits is None else bits for bits, own in zip(self.worth_bits, nothing, strict=True)]
        return np.array(known, dtype=np.float64)


@dataclass(frozen=True)
class Arm:
    """The receiver's answers in one arm.

    ``answers`` holds None where the greedy answer is the gold one (another accepted spelling is as right, and stands
    there as it is); it is empty where answers go on (continuations).
    ``nats`` is the gold answer's log-likelihood, ``new_nats`` that of its part which no other question asks for.
    ``payload_bytes`` and ``wire_bytes`` have one entry per document (a whole message, everything counted), none where
    nothing crosses. ``rival_of`` names the message arm of as many bytes.
    """

    name: str
    family: str
    answers: tuple[str | None, ...]
    nats: tuple[float, ...]
    new_nats: tuple[float, ...]
    payload_bytes: tuple[int, ...] = ()
    wire_bytes: tuple[int, ...] = ()
    rival_of: str | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(f"expected a family of {', '.join(FAMILIES)}, got {self.family!r}")
        if not np.isfinite(self.nats).all():
            number = int(np.argmin(np.isfinite(self.nats)))
            raise ConfigError(
                f"expected finite log-likelihoods in arm {self.name!r}, got {self.nats[number]} at question {number}: "
                "the receiver's weights are damaged, or its dtype overflows"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns all columns, as JSON takes them: each answer's text once, ``new_nats`` only where it differs."""
        texts = sorted({answer for answer in self.answers if answer is not None})
        number = {text: place for place, text in enumerate(texts)}
        differs = {str(n): new for n, (old, new) in enumerate(zip(self.nats, self.new_nats, strict=True)) if old != new}
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        record = {name: list(column) if isinstance(column, tuple) else column for name, column in columns.items()}
        answers = [None if answer is None else number[answer] for answer in self.answers]
        return record | {"new_nats": differs, "texts": texts, "answers": answers}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], where: str) -> Self:
        """Reads the arm that ``to_dict`` wrote.

        Raises:
            ConfigError: a column is missing, unknown or of another type.
        """
        stored = read_record(_StoredArm, record, where)
        columns = {field.name: getattr(stored, field.name) for field in fields(cls)}
        columns["answers"] = tuple(None if number is None else stored.texts[number] for number in stored.answers)
        columns["new_nats"] = tuple(stored.new_nats.get(str(n), nats) for n, nats in enumerate(stored.nats))
        return cls(**columns)

    @cached_property
    def new_nats_array(self) -> Floats:
        """``new_nats`` as an array."""
        return np.array(self.new_nats, dtype=np.float64)

    def texts(self, items: Items) -> list[str]:
        """Returns the greedy answers."""
        return [gold if answer is None else answer for gold, answer in zip(items.golds, self.answers, strict=True)]

    def scores(self, of: str, items: Items) -> Floats:
        """Returns one score per question: exact match or token F1 with the best of the accepted spellings, or the
        log-likelihood of the gold one in nats.

        Raises:
            ConfigError: another name, or exact match or F1 of answers that go on.
        """
        if of == LOG_LIKELIHOOD:
            return np.array(self.nats, dtype=np.float64)
        if of not in ("exact", "f1") or not self.answers:
            raise ConfigError(f"expected 'exact', 'f1' (of answers that end) or {LOG_LIKELIHOOD!r}, got {of!r}")
        answered = zip(self.texts(items), items.accepted, strict=True)
        if of == "exact":
            return np.array([answer in accepted for answer, accepted in answered], dtype=np.float64)
        return np.array([max(f1(answer, gold) for gold in accepted) for answer, accepted in answered])

    def sizes(self) -> dict[str, Measured]:
        """Returns the mean bytes of payload and of the whole message; empty where nothing crosses."""
        n = len(self.wire_bytes)
        if not n:
            return {}
        return {
            "payload": Measured(float(np.mean(self.payload_bytes)), "B", n),
            "wire": Measured(float(np.mean(self.wire_bytes)), "B", n),
        }


@dataclass(frozen=True)
class _StoredArm:
    """An arm as JSON holds it: ``answers`` are numbers of ``texts``, ``new_nats`` is by question."""

    name: str
    family: str
    answers: tuple[int | None, ...]
    nats: tuple[float, ...]
    new_nats: Mapping[str, float]
    texts: tuple[str, ...]
    payload_bytes: tuple[int, ...]
    wire_bytes: tuple[int, ...]
    rival_of: str | None


def f1(answer: str, gold: str) -> float:
    """Returns the token F1, as in SQuAD: words in lower case and without punctuation, counted."""
    given, wanted = (Counter(_words(text)) for text in (answer, gold))
    common = (given & wanted).total()
    return 2 * common / (given.total() + wanted.total()) if common else float(given == wanted)


def _words(text: str) -> list[str]:
    return text.lower().translate(str.maketrans("", "", string.punctuation)).split()
