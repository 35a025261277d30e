"""What a batch's questions tell of its contexts: for a codec that learns facts, beside what it learns by the receiver.

A value is a text of the receiver's tokens, as they follow another word; where its parts stand in the context is given
in the sender's tokens, found by its characters wherever the value is written as it is.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ilcp.models.prompt import Span, continuation
from ilcp.tasks.cases import Case

__all__ = ["Fact", "Told", "facts_of", "facts_of_case", "topics_of", "value_tokens"]

LEAST = 8  # cases in which a topic is said: of fewer nothing is learned


@dataclass(frozen=True, slots=True)
class Fact:
    """A topic's number, the value's token ids, and for each of them the sender's tokens that hold it."""

    topic: int
    ids: tuple[int, ...]
    where: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Told:
    """Facts of a batch: ``contexts`` and ``topics`` ``"facts"`` (numbers; contexts ascend), ``ids`` ``"facts places"``
    of the receiver's tokens, -1 behind the value's end, and ``where`` ``"facts places tokens"``, true for each token of
    the sender's that holds that part of the value."""

    contexts: Tensor
    topics: Tensor
    ids: Tensor
    where: Tensor

    @classmethod
    def of(cls, facts: Sequence[Sequence[Fact]], places: int, tokens: int, device: Any = "cpu") -> "Told":
        """Returns the facts of each context, up to ``places`` tokens of a value, in contexts of up to ``tokens``."""
        rows = [(context, fact) for context, own in enumerate(facts) for fact in own]
        ids = torch.full((len(rows), places), -1)
        where = torch.zeros(len(rows), places, tokens, dtype=torch.bool)
        for at, (_, fact) in enumerate(rows):
            kept = fact.ids[:places]
            ids[at, : len(kept)] = torch.tensor(kept)
            for place, found in enumerate(fact.where[:places]):
                where[at, place, [token for token in found if token < tokens]] = True
        contexts = torch.tensor([context for context, _ in rows], dtype=torch.long)
        topics = torch.tensor([fact.topic for _, fact in rows], dtype=torch.long)
        return cls(*(part.to(device) for part in (contexts, topics, ids, where)))


def facts_of(case: Case, topics: Mapping[str, int], sender_tokenizer: Any, receiver_tokenizer: Any) -> list[Fact]:
    """Returns what the questions of a case say of ``topics`` (name to number): one fact each, the first one."""
    found = {topics[topic]: value for topic, value in facts_of_case(case).items() if topic in topics}
    offsets = _offsets(sender_tokenizer, case.context)
    facts = []
    for topic, value in sorted(found.items()):
        ids, spans = value_tokens(receiver_tokenizer, value)
        facts.append(Fact(topic, ids, _where(case.context, value, spans, offsets)))
    return facts


def facts_of_case(case: Case) -> dict[str, str]:
    """Returns what the questions of a case say, by topic: of several facts about one, the first."""
    found: dict[str, str] = {}
    for question in case.questions:
        for topic, value in question.facts if question.said else ():
            found.setdefault(topic, value)
    return found


def topics_of(cases: Iterable[Case]) -> tuple[str, ...]:
    """Returns the topics, in order, that enough cases say something about for a codec to learn them."""
    often = Counter(topic for case in cases for topic in facts_of_case(case))
    return tuple(sorted(topic for topic, count in often.items() if count >= LEAST))


def value_tokens(tokenizer: Any, value: str) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    """Returns the token ids of a value that follows another word, and each one's characters (empty where unknown)."""
    ids, offsets = continuation(tokenizer, " " + value)
    return ids, tuple((max(0, a - 1), max(0, b - 1)) for a, b in offsets)  # without the space


def _offsets(tokenizer: Any, text: str) -> list[Span]:
    if not tokenizer.is_fast:
        return []
    return list(tokenizer(text, return_offsets_mapping=True, verbose=False).offset_mapping)


def _where(text: str, value: str, spans: Sequence[Span], offsets: Sequence[Span]) -> tuple[tuple[int, ...], ...]:
    """Returns for each part of the value the tokens that hold it, wherever the text has the value as whole words."""
    found: list[set[int]] = [set() for _ in spans]
    folded, sought = text.lower(), value.lower()
    if len(folded) != len(text) or len(sought) != len(value):  # a few letters change their length: as it is written
        folded, sought = text, value
    start = folded.find(sought)
    while start >= 0 and sought:
        end = start + len(sought)
        whole = not (folded[start - 1 : start].isalnum() or folded[end : end + 1].isalnum())
        for place, (first, last) in enumerate(spans if whole else ()):
            a, b = start + first, start + max(last, first + 1)
            found[place] |= {token for token, (left, right) in enumerate(offsets) if left < b and right > a}
        start = folded.find(sought, start + 1)
    return tuple(tuple(sorted(tokens)) for tokens in found)
