"""A case is one document with its questions, wherever it comes from."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ilcp.errors import ConfigError, EncodeError
from ilcp.identity import digest
from ilcp.inputs import read_text, require_text
from ilcp.models.chat import messages_of, words_of

__all__ = ["ABSENT", "Case", "FactCode", "Frontier", "Question", "Rewrite", "cases_digest", "read_jsonl", "thin"]

Frontier = tuple[tuple[tuple[str, ...], ...], ...]  # agents, steps, words
ABSENT = "absent"  # the kind of a question that the context does not answer: its answer says so


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a case.

    ``answer`` is the one that is trained on, and whose log-likelihood is taken. ``answers`` are all spellings that are
    right, ``answer`` among them; without any it is the only one.

    ``choices`` is the pool that the answer was drawn from, uniformly, or ``None`` where there is no such pool.

    ``facts`` says what the answer says, as pairs of a topic and words about it, where that is known: questions that ask
    the same in other words share them. Training may use it; answering never does.

    ``entropy_bits`` is what the answer adds to the entropy of the case, where the generator knows it, behind ``given``:
    the beginning of the answer that another question of the case asks for already. ``stands_for`` is how many
    questions of the case this one was drawn from (see ``thin``).
    """

    text: str
    answer: str
    kind: str = "lookup"
    choices: tuple[str, ...] | None = None
    facts: tuple[tuple[str, str], ...] = ()
    entropy_bits: float | None = None
    given: str = ""
    stands_for: float = 1.0
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in (self.text, self.answer, *self.answers):
            require_text(text, "question and answers", error=ConfigError, may_be_empty=True)
        if not self.answers:
            object.__setattr__(self, "answers", (self.answer,))
        if self.answer not in self.answers or len(set(self.answers)) < len(self.answers):
            raise ConfigError(
                f"expected the answer to be one of its spellings, each of them once, got {self.answer!r} and "
                f"{', '.join(map(repr, self.answers))}"
            )

    @property
    def said(self) -> bool:
        """Says whether the context answers the question: all but those of the kind "absent"."""
        return self.kind != ABSENT


class FactCode(Protocol):
    """An entropy code for the facts of a case: as few bytes as they need."""

    def encode(self, payload_bytes: int) -> bytes:
        """Encodes as many of the facts as fit into so many bytes."""
        ...

    def answers(self, payload: bytes) -> Mapping[str, str]:
        """Returns what those bytes answer, by question; a question whose facts did not fit is left out."""
        ...


class Rewrite(Protocol):
    """An agent's rewriting of a case, for the next agent to read, from its answers to questions about it."""

    @property
    def questions(self) -> tuple[str, ...]:
        """The questions that the agent has to have answered."""
        ...

    def notes(self, answers: Mapping[str, str], hop: int) -> str:
        """Returns the answers as text, with the remark of the agent at this hop."""
        ...

    def remark(self, hop: int) -> str:
        """Returns a sentence of the agent's own at this hop, beside the point."""
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """A document and its questions; where the generator knows them, the entropy and the code of its facts, and how an
    agent rewrites it.

    ``frontier`` says, where the task knows it, what agents who read parts of the context in turn should have in mind:
    for each agent, after each latent step, some words.
    """

    id: str
    context: str
    questions: tuple[Question, ...]
    entropy_bits: float | None = None
    fact_code: FactCode | None = None
    rewrite: Rewrite | None = None
    frontier: Frontier = ()

    def __post_init__(self) -> None:
        context = require_text(self.context, f"the context of case {self.id!r}", error=ConfigError, may_be_empty=True)
        object.__setattr__(self, "context", context)


def thin(case: Case, per_kind: Mapping[str, int], number: int) -> Case:
    """Keeps at most so many questions of each kind, a different choice for each ``number``.

    Each question that is kept stands for those that are not.
    """
    kept: list[Question] = []
    for kind in dict.fromkeys(question.kind for question in case.questions):
        asked = [question for question in case.questions if question.kind == kind]
        start, most = number % len(asked), min(len(asked), per_kind.get(kind, len(asked)))
        kept += [replace(q, stands_for=len(asked) / most) for q in (asked[start:] + asked[:start])[:most]]
    return replace(case, questions=tuple(kept))


def read_jsonl(path: str | Path) -> Iterator[Case]:
    """Reads cases from the lines of a file, in order; a line is a JSON object of one of four forms.

    - ``{"context", "question", "answer", "answers"?, "choices"?, "kind"?, "topic"?}``: one question;
    - ``{"context", "questions": [{"question", "answer", ...}, ...]}``: several, each with the same keys;
    - ``{"context", "continuation"}``: what comes next; its question is empty;
    - ``{"messages": [{"role", "content", "name"?}, ...], "handoffs"?: [int, ...]}``: a chat log, its contents texts,
      lists of text parts, or null beside a tool's call. Each hand-off is a case: what came before it, as "author:
      content" paragraphs, and what the next agent then wrote. Without ``"handoffs"`` (numbers of messages, from 0)
      these are all messages of an agent (neither user nor system) by another author than the one before.

    ``"answers"`` is a list of spellings, any of which is right. Without an ``"answer"`` beside it the one that stands
    last in the context is trained on: a conversation ends with what was confirmed. ``"kind"`` groups questions in a
    report; ``"absent"`` is for those that the context does not answer ("not said" may be their answer). ``"topic"``
    names what the question asks about. ``"id"`` names the case; without it, its file and line do. ``"frontier"`` is
    ``Case.frontier``. Other keys are ignored.

    Raises:
        ConfigError: a line is no such object, or names an id again; the text names the file, the line and the field.
    """
    lines = read_text(path, "a readable file of cases").split("\n")  # a string in JSON may hold other line breaks
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        line = require_text(line, may_be_empty=True)  # files that were put together have marks between them
        if line.strip():
            for case in _cases(line, f"{path}:{number}"):
                if case.id in seen:
                    raise ConfigError(
                        f"{path}:{number}: expected an id of its own, got {case.id!r} as in line {seen[case.id]}"
                    )
                seen[case.id] = number
                yield case


def _cases(line: str, where: str) -> list[Case]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of a thousand digits, a hundred thousand brackets
        because = getattr(error, "msg", str(error))
        raise ConfigError(f"{where}: expected one JSON object per line, got {line[:60]!r} ({because})") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: expected a JSON object, got {type(record).__name__}")
    if "messages" in record:
        return _handoffs(record, where)
    context = _text(record, "context", where)
    if "continuation" in record:
        questions = [Question(text="", answer=_text(record, "continuation", where), kind="continuation")]
    elif "questions" in record:
        if not isinstance(record["questions"], list) or not record["questions"]:
            raise ConfigError(f"{where}: expected a list of questions in 'questions', got {record['questions']!r}")
        questions = [
            _question(entry, context, f"{where}: question {n}") for n, entry in enumerate(record["questions"], start=1)
        ]
    else:
        questions = [_question(record, context, where)]
    frontier = _frontier(record, where)
    return [Case(_label(record, "id", where, where), context, tuple(questions), frontier=frontier)]


def _frontier(record: dict[str, Any], where: str) -> Frontier:
    try:
        return msgspec.convert(record.get("frontier", ()), Frontier)
    except msgspec.ValidationError as error:
        said = "for each agent, of each step, a list of words"
        raise ConfigError(f"{where}: expected 'frontier' to be {said}, got: {error}") from error


def _handoffs(record: dict[str, Any], where: str) -> list[Case]:
    """Returns the hand-offs of a chat log as cases."""
    messages = record["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ConfigError(f"{where}: expected a list of objects in 'messages', got {str(messages)[:60]!r}")
    try:
        told = [{"content": words_of(message)} for message in messages_of(messages)]
    except EncodeError as error:
        raise ConfigError(f"{where}: {error}") from None
    contents = [_text(message, "content", f"{where}: message {n}") for n, message in enumerate(told)]
    authors = [
        _text(message, "name" if message.get("name") else "role", f"{where}: message {n}")
        for n, message in enumerate(messages)
    ]
    agents = [n for n, message in enumerate(messages) if message.get("role") not in ("user", "system")]
    found = record.get("handoffs", [n for n in agents if n and authors[n] != authors[n - 1]])
    if not isinstance(found, list) or not all(isinstance(n, int) and 0 < n < len(messages) for n in found):
        raise ConfigError(f"{where}: expected numbers from 1 to {len(messages) - 1} in 'handoffs', got {found!r}")
    if not found:
        raise ConfigError(f"{where}: expected a message of another agent than the one before, got none: say 'handoffs'")
    said = [f"{author}: {content}" for author, content in zip(authors, contents, strict=True)]
    return [
        Case(
            id=f"{_label(record, 'id', where, where)}#{n}",
            context="\n\n".join(said[:n]),
            questions=(Question(text="", answer=contents[n], kind="continuation"),),
        )
        for n in found
    ]


def _question(record: Any, context: str, where: str) -> Question:
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: expected a JSON object, got {type(record).__name__}")
    answers, choices = _spellings(record, where), record.get("choices")
    some = choices if isinstance(choices, list) else ()
    pool = tuple(_label({"choices": each}, "choices", "", where) for each in some)
    if choices is not None and not any(answer in pool for answer in answers):
        raise ConfigError(f"{where}: expected 'choices' to be a list that holds the answer, got {choices!r}")
    answer = _last(answers, context) if record.get("answer") is None else _text(record, "answer", where)
    text = _text(record, "question", where)
    kind = _label(record, "kind", "lookup", where)
    topic = None if record.get("topic") is None else _label(record, "topic", "", where)
    try:
        return Question(
            text=text,
            answer=answer,
            kind=kind,
            choices=pool or None,
            facts=() if topic is None else ((topic, answer),),
            answers=answers,
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _spellings(record: dict[str, Any], where: str) -> tuple[str, ...]:
    """Returns every spelling of the answer that is right."""
    answers = record.get("answers")
    if answers is None:
        return (_text(record, "answer", where),)
    if not isinstance(answers, list) or not answers:
        raise ConfigError(f"{where}: expected a list of spellings in 'answers', got {answers!r}")
    return tuple(_text({"answers": answer}, "answers", where) for answer in answers)


def _last(answers: tuple[str, ...], context: str) -> str:
    """Returns the spelling that ends last in the context, the longest of those that end there; else the first."""
    if len(answers) == 1:
        return answers[0]
    folded = context.casefold()
    ends = {answer: _end(answer.casefold(), folded) for answer in answers}
    if not any(map(any, ends.values())):
        return answers[0]
    return max(answers, key=lambda answer: (ends[answer], len(answer)))


def _end(spelling: str, context: str) -> tuple[int, int]:
    """Returns where the spelling ends for the last time, as whole words and anyhow: "one" is no word of "phone"."""
    anyhow = context.rfind(spelling) + len(spelling) if spelling in context else 0
    at = context.rfind(spelling)
    while at >= 0:
        end = at + len(spelling)
        if not context[max(at - 1, 0) : at].isalnum() and not context[end : end + 1].isalnum():
            return end, anyhow
        at = context.rfind(spelling, 0, end - 1)
    return 0, anyhow


def cases_digest(cases: Iterable[Case]) -> str:
    """Returns the digest, in hex, of all that the cases say, in their order: what a measurement was made on."""
    said = ({name: value for name, value in asdict(case).items() if value or name != "frontier"} for case in cases)
    return digest(*(json.dumps(each, sort_keys=True).encode() for each in said)).hex()


def _label(record: dict[str, Any], field: str, usual: str, where: str) -> str:
    """Returns what may be a number in the record, or empty."""
    return _text({field: str(record.get(field, usual))}, field, where, may_be_empty=True)


def _text(record: dict[str, Any], field: str, where: str, *, may_be_empty: bool = False) -> str:
    def refusal(said: str) -> ConfigError:
        return ConfigError(f"{where}: {said}")

    return require_text(record.get(field), f"a text in {field!r}", error=refusal, may_be_empty=may_be_empty)
