"""Cases as a file holds them: one per context, and written as ``read_jsonl`` reads them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from ilcp.files import write_whole
from ilcp.tasks.cases import Case, Question

__all__ = ["merged", "write_jsonl"]


def merged(cases: Iterable[Case]) -> list[Case]:
    """Merges cases into one per context, with all questions about it, in the order of their first sight."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.context, []).append(case)
    return [
        replace(group[0], questions=tuple(question for case in group for question in case.questions))
        for group in groups.values()
    ]


def write_jsonl(path: str | Path, cases: Iterable[Case]) -> None:
    """Writes cases, whole or not at all; ``merged`` puts those of several continuations together again.

    Raises:
        StorageError: the file cannot be written.
    """
    cases = list(cases)
    taken = {case.id for case in cases}
    write_whole(Path(path), "".join(f"{json.dumps(line)}\n" for case in cases for line in _lines(case, taken)))


def _lines(case: Case, taken: set[str]) -> Iterator[dict[str, Any]]:
    """Yields the lines of a case; what does not go into its own gets an id that is not ``taken``, and takes it."""
    asked = [_record(question) for question in case.questions if question.text]
    if asked:
        known = {"frontier": case.frontier} if case.frontier else {}
        yield {"id": case.id, "context": case.context, "questions": asked, **known}
    names = (f"{case.id}#{number}" for number in count(1))
    for number, question in enumerate(question for question in case.questions if not question.text):
        name = case.id if not asked and number == 0 else next(name for name in names if name not in taken)
        taken.add(name)
        yield {"id": name, "context": case.context, "continuation": question.answer}


def _record(question: Question) -> dict[str, Any]:
    record: dict[str, Any] = {"question": question.text, "answer": question.answer, "kind": question.kind}
    if len(question.answers) > 1:
        record["answers"] = list(question.answers)
    if question.choices is not None and any(answer in question.choices for answer in question.answers):
        record["choices"] = list(question.choices)
    if question.facts:
        record["topic"] = question.facts[0][0]
    return record
