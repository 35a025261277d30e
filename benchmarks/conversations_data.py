"""Conversations of customers with assistants, and histories made of them, as cases of ilcp.

::

    train|validation|test.jsonl --read--> conversations --histories: disjoint domains, by seed--> 1, 2 or 4 in a row
      --mixed--> cases to train on        --asked--> cases to measure on, new services as kinds of their own

A line of a file is {"id", "context", "questions": [{"question", "answers", "kind": "said" | "absent", "topic":
"Domain.slot"}, ...], "services_seen_in_training"?: bool}.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ilcp.tasks import Case, read_jsonl

__all__ = ["NEW", "Conversation", "asked", "histories", "mixed", "read", "said"]

NEW = ", new services"  # behind the kind of a question about services that no training conversation has
SHARES = {1: 0.7, 2: 0.15, 4: 0.15}  # of the training conversations that go into histories of each size


@dataclass(frozen=True)
class Conversation:
    """A conversation, or a history of several; ``seen`` says whether training conversations have all its services."""

    case: Case
    seen: bool = True

    @cached_property
    def domains(self) -> frozenset[str]:
        """What it is about: the first part of each topic."""
        facts = (fact for question in self.case.questions for fact in question.facts)
        return frozenset(topic.split(".")[0] for topic, _ in facts)


def read(file: Path, characters: float = float("inf")) -> list[Conversation]:
    """Reads the conversations of a file whose contexts have fewer ``characters``.

    Raises:
        ConfigError: the file cannot be read, or a line is no conversation.
    """
    cases = list(read_jsonl(file))
    records = (json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip())
    seen = [bool(record.get("services_seen_in_training", True)) for record in records]
    found = [Conversation(case, known) for case, known in zip(cases, seen, strict=True)]
    return [one for one in found if len(one.case.context) < characters]


def histories(conversations: Sequence[Conversation], size: int, seed: int) -> list[Conversation]:
    """Returns histories of ``size`` conversations each, as many as there are; each conversation is in one at most.

    Those of a history are about different domains, so that every question has one answer, and either all about services
    seen in training or all about others. The order is drawn by ``seed``; a history of one is the conversation.
    """
    if size == 1:
        return list(conversations)
    whole: list[list[Conversation]] = []
    begun: list[list[Conversation]] = []
    for one in random.Random(f"histories of {size}, {seed}").sample(conversations, len(conversations)):
        fitting = [
            group
            for group in begun
            if group[0].seen == one.seen and not any(one.domains & other.domains for other in group)
        ]
        group = max(fitting, key=len, default=[])
        group.append(one)
        if len(group) == 1:
            begun.append(group)
        elif len(group) == size:
            begun.remove(group)
            whole.append(group)
    return [_in_a_row(group) for group in whole]


def _in_a_row(group: Sequence[Conversation]) -> Conversation:
    cases = [one.case for one in group]
    return Conversation(
        Case(
            id="+".join(case.id for case in cases),
            context="\n\n".join(case.context for case in cases),
            questions=tuple(question for case in cases for question in case.questions),
        ),
        group[0].seen,
    )


def mixed(conversations: Sequence[Conversation], seed: int, shares: Mapping[int, float] = SHARES) -> list[Case]:
    """Returns cases to train on: histories of every size, each conversation in one of them at most."""
    order = random.Random(f"mix {seed}").sample(conversations, len(conversations))
    cases: list[Case] = []
    start = 0
    for size, share in shares.items():
        end = start + round(share * len(order))
        cases += [history.case for history in histories(order[start:end], size, seed)]
        start = end
    return cases


def asked(conversations: Sequence[Conversation]) -> list[Case]:
    """Returns cases to measure on: kinds of questions about services that training never had end with ``NEW``."""
    return [one.case if one.seen else _renamed(one.case) for one in conversations]


def said(case: Case) -> Case:
    """Returns the case with the questions that it answers, whether its services are new or not."""
    return replace(case, questions=tuple(question for question in case.questions if question.kind.startswith("said")))


def _renamed(case: Case) -> Case:
    return replace(case, questions=tuple(replace(q, kind=q.kind + NEW) for q in case.questions))
