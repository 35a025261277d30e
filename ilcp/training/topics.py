"""Topics of questions that name none: what is asked in nearly the same words is the same fact.

::

    wordings, the commonest first --trigrams of characters--> unit vectors
    each joins the topic with the nearest first wording, unless a context is asked about both
    a topic that enough contexts are asked about stays, called by its commonest wording

Who asks two questions about one context wants two facts, unless both have one answer: that is what keeps "Number of
rooms" apart from "Number of beds". Two facts under one topic cost a codec more than one fact under two, so wordings
are merged only where they are close; paraphrases in quite other words stay apart.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ilcp.errors import ConfigError
from ilcp.tasks.cases import Case, Question

__all__ = ["with_topics"]

LEAST = 8  # contexts that a topic is asked about: of fewer a codec learns nothing
NEAR = 0.8  # cosine of the trigrams of two wordings
GRAM = 3  # characters


@dataclass(slots=True)
class _Topic:
    """How a topic is worded, each wording with its count, and what each context answers: nothing where it is absent."""

    wordings: Counter[str] = field(default_factory=Counter)
    answers: dict[str, frozenset[str]] = field(default_factory=dict)

    def absorb(self, other: "_Topic") -> None:
        """Adds the other's wordings and answers."""
        self.wordings.update(other.wordings)
        for context, answers in other.answers.items():
            self.answers[context] = self.answers.get(context, frozenset()) | answers

    def contradicts(self, other: "_Topic") -> bool:
        """Says whether a context is asked about both, and does not give them one answer."""
        shared = self.answers.keys() & other.answers.keys()
        return any(self.answers[context].isdisjoint(other.answers[context]) for context in shared)

    @property
    def name(self) -> str:
        """The commonest wording."""
        return min(self.wordings, key=lambda wording: (-self.wordings[wording], wording))


def with_topics(cases: Iterable[Case], *, least: int = LEAST, near: float = NEAR) -> list[Case]:
    """Returns the cases with a topic for each question without facts, which then says its answer about that topic.

    The order of the cases and questions makes no difference.

    Args:
        least: contexts that a topic must be asked about; rarer questions stay without.
        near: the cosine of their trigrams from which on two wordings may be one topic; above 1, only equal ones are.

    Raises:
        ConfigError: ``least`` is below 1.
    """
    if least < 1:
        raise ConfigError(f"expected least to be a number of contexts from 1, got {least}")
    cases = list(cases)
    asked = _asked(cases)
    found = _clustered(asked, near)
    names = {wording: topic.name for wording, topic in found.items() if len(topic.answers) >= least}

    def told(question: Question) -> Question:
        name = names.get(_folded(question.text)) if _nameless(question) else None
        return question if name is None else replace(question, facts=((name, question.answer),))

    return [replace(case, questions=tuple(map(told, case.questions))) for case in cases]


def _asked(cases: Iterable[Case]) -> dict[str, _Topic]:
    """Returns each wording as a topic of its own."""
    found: dict[str, _Topic] = {}
    for case in cases:
        for question in filter(_nameless, case.questions):
            wording = " ".join(question.text.split())
            answers = frozenset(map(_folded, question.answers)) if question.said else frozenset[str]()
            topic = found.setdefault(_folded(wording), _Topic())
            topic.absorb(_Topic(Counter([wording]), {case.context: answers}))
    return found


def _clustered(asked: dict[str, _Topic], near: float) -> dict[str, _Topic]:
    """Returns the topic of each wording."""
    order = sorted(asked, key=lambda wording: (-len(asked[wording].answers), wording))
    nearest = _nearest(order, near)
    found: dict[str, _Topic] = {}
    for number, wording in enumerate(order):
        own = asked[wording]
        earlier = (found[order[other]] for other in nearest(number) if asked[order[other]] is found[order[other]])
        home = next((topic for topic in earlier if not topic.contradicts(own)), own)
        if home is not own:
            home.absorb(own)
        found[wording] = home
    return found


def _nearest(wordings: Sequence[str], near: float) -> Callable[[int], NDArray[np.intp]]:
    """Returns a function: number of a wording -> those of the earlier ones that are near, the nearest first.

    The vectors stay sparse, and no table of all pairs is made: there may be tens of thousands of wordings.
    """
    counted = [Counter(f" {wording} "[at : at + GRAM] for at in range(len(wording))) for wording in wordings]
    column = {gram: number for number, gram in enumerate(dict.fromkeys(gram for grams in counted for gram in grams))}
    rows = np.repeat(np.arange(len(counted)), list(map(len, counted)))
    columns = np.array([column[gram] for grams in counted for gram in grams], dtype=np.intp)
    values = np.array([count for grams in counted for count in grams.values()], dtype=np.float64)
    values /= np.sqrt(np.bincount(rows, values**2, minlength=len(counted)))[rows]
    by_row = np.split(np.arange(len(rows)), np.cumsum(np.bincount(rows))[:-1])
    by_column = np.split(np.argsort(columns, kind="stable"), np.cumsum(np.bincount(columns))[:-1])

    def nearest(number: int) -> NDArray[np.intp]:
        own = by_row[number]
        hits = [by_column[at] for at in columns[own]]
        each = np.repeat(values[own], list(map(len, hits)))
        met = np.concatenate(hits)
        cosines = np.bincount(rows[met], each * values[met], minlength=len(wordings))[:number].round(9)
        close = np.flatnonzero(cosines >= near)
        return close[np.argsort(-cosines[close], kind="stable")]

    return nearest


def _nameless(question: Question) -> bool:
    return bool(question.text.strip()) and not question.facts


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
