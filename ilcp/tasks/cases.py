"""A case is one document with its questions, wherever it comes from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ilcp.errors import EncodeError

__all__ = ["Case", "Question", "read_jsonl"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a case.

    ``choices`` is the pool that the answer was drawn from, uniformly, or ``None`` where there is no such pool.
    ``topic`` names what the question is about, where that is known: questions that ask the same in other words share
    it. Training may use it; answering never does.
    """

    text: str
    answer: str
    kind: str = "lookup"
    choices: tuple[str, ...] | None = None
    topic: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A document, its questions and, where the generator knows it, the entropy of its facts in bits."""

    id: str
    context: str
    questions: tuple[Question, ...]
    entropy_bits: float | None = None


def read_jsonl(path: str | Path) -> Iterator[Case]:
    """Cases from lines of ``{"context", "question", "answer", "choices"?, "kind"?, "topic"?}``; one per line, in order.

    Raises:
        EncodeError: a line is no such object; the text names the file, the line and the field.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EncodeError(f"expected a readable file of cases, got {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EncodeError(f"expected UTF-8 text in {path}, got byte {error.object[error.start]:#04x}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _case(line, f"{path}:{number}")


def _case(line: str, where: str) -> Case:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise EncodeError(f"{where}: expected one JSON object per line, got {line[:60]!r} ({error.msg})") from error
    if not isinstance(record, dict):
        raise EncodeError(f"{where}: expected a JSON object, got {type(record).__name__}")
    for field in ("context", "question", "answer"):
        if not isinstance(record.get(field), str) or not record[field].strip():
            raise EncodeError(f"{where}: expected a non-empty string in {field!r}, got {record.get(field)!r}")
    choices = record.get("choices")
    if choices is not None and not (isinstance(choices, list) and record["answer"] in choices):
        raise EncodeError(f"{where}: expected 'choices' to be a list that holds the answer, got {choices!r}")
    question = Question(
        text=record["question"],
        answer=record["answer"],
        kind=str(record.get("kind", "lookup")),
        choices=None if choices is None else tuple(map(str, choices)),
        topic=None if record.get("topic") is None else str(record["topic"]),
    )
    return Case(id=where, context=record["context"], questions=(question,))
