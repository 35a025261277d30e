"""How true an account of a message is: the number that stands beside a record of what was handed over.

Two accounts are made of each hand-off: a **gloss** from the memory alone, for which the receiver is asked the questions
of its role, and a **summary** from the sender's text, of as many characters. Neither is an explanation of anybody's
reasoning: a gloss is a reading of the message, and this says how far it may be believed.

::

    memory --asked the role's questions--> gloss --read by the receiver's model--> its answers foretold?
    text   --sentences of it-------------> summary

- **facts**: how many of what the text says does it tell (recall); how much of what it tells is so (precision); of the
  accounts that tell anything, how many tell something false (misleading). Beside the gloss of nothing and of another
  case's message.
- **alarm**: the same model is asked of the text as well. How many of the gloss's false answers differ from that one,
  so that somebody is warned, and how many of its right ones.
- **told freely**: asked to say what the message says (``ilcp.tasks.telling``), how many facts it names, and whether it
  names a value that the text does not have. Of codecs that were trained to be asked so.
- **foretold**: how often a reader of the gloss, who has no memory, answers as the receiver does from it: questions that
  the gloss asked in other words, and questions that it did not ask (of several facts, and every fourth of the rest).
  Beside a reader of another case's gloss, and one of nothing.
- **swapped**: where one fact of the text is exchanged for another: do the receiver's answer, its gloss and the summary
  say the new one? The summary is asked where it told the old one.
- **encoded again**: from the gloss in place of the text: how many answers stay, how many bits of the payload change.
  Beside another case's message.

A gloss that is no better than what stands beside it tells of its reader, not of the message.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ilcp.audit.summary import summarised
from ilcp.codec.memory import Memory, TextMemory
from ilcp.errors import ConfigError, EncodeError
from ilcp.handoff import Receiver, Sender
from ilcp.measure.bootstrap import Bootstrap
from ilcp.measure.caches import apart
from ilcp.measure.figures import Measured
from ilcp.measure.glosses import ANSWER_TOKENS, TELL_TOKENS
from ilcp.message import Message, describe
from ilcp.tasks.cases import Case, Question
from ilcp.tasks.telling import TELL

__all__ = ["Faithfulness", "faithfulness", "held_out"]

HELD_OUT = 4  # every fourth question that could be asked is not
TRIES = 20  # to find a fact that stands in the text once
Flags = list[tuple[int, float]]  # of a case's number, and whether it is so


@dataclass(frozen=True)
class Faithfulness:
    """Figures by name, of messages of one length; ``None`` where there was nothing to measure.

    ``mean_bytes`` is that of the messages on the wire, blobs counted in; ``gloss_characters`` and ``n`` are of glosses.
    """

    codec_id: str
    payload_bytes: int
    mean_bytes: float
    gloss_characters: float
    n: int
    figures: Mapping[str, Measured | None]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON takes it."""
        return asdict(self)


def held_out(case: Case, number: int) -> tuple[list[Question], list[Question]]:
    """Returns the questions of a case that its gloss asks, and those that it does not: see above."""
    single = [question for question in case.questions if not question.given and len(question.facts) < 2]
    asked = [question for place, question in enumerate(single) if (place + number) % HELD_OUT]
    kept = set(map(id, asked))
    return asked, [question for question in case.questions if id(question) not in kept]


def faithfulness(
    sender: Sender,
    receiver: Receiver,
    cases: Sequence[Case],
    *,
    payload_bytes: int | None = None,
    seed: int = 7,
    freely: bool = False,
) -> Faithfulness:
    """Measures the accounts of the messages of all cases.

    Args:
        cases: with questions that have one fact each, and others.
        payload_bytes: of the messages; None for the codec's own length.
        seed: of what is exchanged, and of the intervals.
        freely: whether messages are also asked to say what they say.

    Raises:
        ConfigError: there are fewer than two cases.
        EncodeError, DecodeError: as ``Sender.encode`` and ``Receiver.decode``.
    """
    if len(cases) < 2:
        raise ConfigError(f"expected at least two cases, since each is compared with another, got {len(cases)}")
    with apart(sender, receiver) as (one, other):
        measuring = _Measuring(one, other, cases, payload_bytes, seed)
        flags = {
            **measuring.facts(),
            **measuring.foretold(),
            **measuring.swapped(),
            **measuring.encoded_again(),
            **measuring.alarms(),
            **(measuring.told_freely() if freely else {}),
        }
        sizes = [len(wire) + (describe(wire).blob_bytes or 0) for wire in measuring.wires]
        characters = [len(text) for text in measuring.texts]
    return Faithfulness(
        one.codec.trained.codec_id(one.codec.spec).hex(),
        payload_bytes or one.codec.spec.payload_bytes,
        float(np.mean(sizes)),
        float(np.mean(characters)),
        len(cases),
        {name: _figure(found, seed) for name, found in flags.items()} | _gains(flags, seed),
    )


def _figure(flags: Flags, seed: int) -> Measured | None:
    if not flags:
        return None
    groups, values = zip(*flags, strict=True)
    return Bootstrap(groups, seed=seed).of(lambda mean: mean, np.array(values, dtype=np.float64))


def _gains(flags: Mapping[str, Flags], seed: int) -> dict[str, Measured | None]:
    """Returns by how much a reader with the gloss foretells more than one with another's, or with none."""
    found: dict[str, Measured | None] = {}
    for part in ("asked", "not asked"):
        for beside in ("another's gloss", "no gloss"):
            own, base = flags[f"foretold, {part}"], flags[f"foretold, {part}, {beside}"]
            groups = [number for number, _ in own]
            values = (np.array([value for _, value in each]) for each in (own, base))
            figure = Bootstrap(groups, seed=seed).of(lambda a, b: a - b, *values) if own else None
            found[f"gain over {beside}, {part}"] = figure
    return found


class _Measuring:
    """One length of messages."""

    def __init__(self, sender: Sender, receiver: Receiver, cases: Sequence[Case], payload_bytes: int | None, seed: int):
        self.sender, self.receiver, self.cases, self.seed = sender, receiver, cases, seed
        self.length = payload_bytes
        self.wording = _wording(cases)
        self.silence = {a for case in cases for q in case.questions if not q.said for a in q.answers} | {""}
        self.asked, self.unasked = zip(*(held_out(case, number) for number, case in enumerate(cases)), strict=True)
        self.wires = [self._sent(case.context) for case in cases]
        self.memories = [receiver.decode(wire) for wire in self.wires]
        self.glosses = self._glosses(self.memories)
        self.texts = [self._text(number, gloss) for number, gloss in enumerate(self.glosses)]
        self.said = self._answers(self.memories, [case.questions for case in cases])

    def _sent(self, text: str) -> bytes:
        return self.sender.encode(text, payload_bytes=self.length)

    def _answers(self, memories: Sequence[Memory | None], questions: Sequence[Sequence[Question]]) -> list[list[str]]:
        items = [(memory, q.text) for memory, asked in zip(memories, questions, strict=True) for q in asked]
        found = iter(self.receiver.answers(items, max_new_tokens=ANSWER_TOKENS) if items else [])
        return [[next(found) for _ in asked] for asked in questions]

    def _glosses(self, memories: Sequence[Memory | None]) -> list[list[str]]:
        """Asks every memory the questions of its role, in the role's own words."""
        return self._answers(memories, [[self.wording(q) for q in asked] for asked in self.asked])

    def _text(self, number: int, gloss: Sequence[str]) -> str:
        """Writes a gloss down: as the task's agents write, where they do, else a line for each question."""
        case, answers = self.cases[number], dict(zip([q.text for q in self.asked[number]], gloss, strict=True))
        if case.rewrite is not None:
            return case.rewrite.notes(answers, 0)
        lines = zip(self.asked[number], gloss, strict=True)
        return "\n".join(f"{self.wording(question).text} {answer}" for question, answer in lines)

    def _payload(self, wire: bytes) -> bytes:
        return Message.from_bytes(wire, key=self.receiver.key, audience=self.receiver.audience).payload

    # --- what is measured ---------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Flags]:
        """Recall, precision and misleading accounts, of the gloss and of its baselines; the summary's recall."""
        found: dict[str, Flags] = {}
        n = len(self.cases)
        others = self._glosses([self.memories[(number + 1) % n] for number in range(n)])
        for name, glosses in {
            "gloss": self.glosses,
            "another's gloss": others,
            "gloss of nothing": self._glosses([None] * n),
        }.items():
            recall, precision, misleading = (found.setdefault(f"{part}, {name}", []) for part in PARTS)
            for number, (asked, answers) in enumerate(zip(self.asked, glosses, strict=True)):
                told = [(q, a) for q, a in zip(asked, answers, strict=True) if a not in self.silence]
                false = [a not in q.answers for q, a in told]
                recall += [(number, float(a in q.answers)) for q, a in zip(asked, answers, strict=True) if q.said]
                precision += [(number, float(not each)) for each in false]
                misleading += [(number, float(any(false)))] if told else []
        found["recall, summary"] = [
            (number, float(any(answer in summary for answer in question.answers)))
            for number, summary in enumerate(self._summaries())
            for question in self.asked[number]
            if question.said
        ]
        return found

    def alarms(self) -> dict[str, Flags]:
        """How many false answers of the gloss, and how many right ones, differ from the model's answer from the text.

        Of texts that it can read at once.
        """
        found: dict[str, Flags] = {f"alarm, {which} answers": [] for which in ("false", "right")}
        for number, (case, asked) in enumerate(zip(self.cases, self.asked, strict=True)):
            try:
                (from_text,) = self._answers([TextMemory(case.context)], [[self.wording(q) for q in asked]])
            except EncodeError:  # more than it can read
                continue
            for question, told, text in zip(asked, self.glosses[number], from_text, strict=True):
                if told not in self.silence:
                    which = "right" if told in question.answers else "false"
                    found[f"alarm, {which} answers"].append((number, float(told != text)))
        return found

    def told_freely(self) -> dict[str, Flags]:
        """Recall and misleading accounts where the memory is asked to say what it says, and of the baselines."""
        found: dict[str, Flags] = {}
        n = len(self.cases)
        pool = {value for values in self._values.values() for value in values}
        asked: dict[str, Sequence[Memory | None]] = {
            "told freely": self.memories,
            "another's, told freely": [self.memories[(number + 1) % n] for number in range(n)],
            "of nothing, told freely": [None] * n,
        }
        for name, memories in asked.items():
            told = self.receiver.answers([(memory, TELL) for memory in memories], max_new_tokens=TELL_TOKENS)
            recall, misleading = (found.setdefault(f"{part}, {name}", []) for part in ("recall", "misleading"))
            for number, (case, text) in enumerate(zip(self.cases, told, strict=True)):
                words = _Words(text)
                stated = {q: [words.has(a) for a in q.answers] for q in case.questions if q.said and not q.given}
                recall += [(number, float(any(each))) for each in stated.values()]
                own = {
                    answer for q in case.questions for answer in q.answers
                }  # as they are said, if not as they are written
                false = [value for value in pool - own if words.has(value) and not _Words(case.context).has(value)]
                misleading += [(number, float(bool(false)))] if false or any(map(any, stated.values())) else []
        return found

    def _summaries(self) -> Iterator[str]:
        for case, text in zip(self.cases, self.texts, strict=True):
            yield summarised(case.context, max(1, len(text)))

    def foretold(self) -> dict[str, Flags]:
        """How often a reader of the gloss answers as the receiver does from its memory."""
        found: dict[str, Flags] = {}
        n = len(self.cases)
        readers: dict[str, list[Memory | None]] = {
            "": [TextMemory(text) for text in self.texts],
            ", another's gloss": [TextMemory(self.texts[(number + 1) % n]) for number in range(n)],
            ", no gloss": [None] * n,
        }
        for name, memories in readers.items():
            answers = self._answers(memories, [case.questions for case in self.cases])
            asked, unasked = (found.setdefault(f"foretold, {part}{name}", []) for part in ("asked", "not asked"))
            for number, case in enumerate(self.cases):
                kept = set(map(id, self.asked[number]))
                for question, answer, said in zip(case.questions, answers[number], self.said[number], strict=True):
                    (asked if id(question) in kept else unasked).append((number, float(answer == said)))
        return found

    def swapped(self) -> dict[str, Flags]:
        """Whether what is exchanged in the text is exchanged in the answer, in the gloss and in the summary."""
        found: dict[str, Flags] = {
            f"swapped, {part}": [] for part in ("answer", "gloss", "summary", "answer and gloss")
        }
        made = [(number, *swap) for number, swap in enumerate(map(self._swap, range(len(self.cases)))) if swap]
        if not made:
            return found
        memories = [self.receiver.decode(self._sent(text)) for _, _, _, text in made]
        plain = self._answers(memories, [[question] for _, question, _, _ in made])
        glossed = self._answers(memories, [[self.wording(question)] for _, question, _, _ in made])
        for (number, question, new, text), (answer,), (gloss,) in zip(made, plain, glossed, strict=True):
            summary = summarised(text, max(1, len(self.texts[number])))
            before = summarised(self.cases[number].context, max(1, len(self.texts[number])))
            found["swapped, answer"].append((number, float(answer == new)))
            found["swapped, gloss"].append((number, float(gloss == new)))
            found["swapped, answer and gloss"].append((number, float(answer == gloss)))
            if question.answer in before:
                found["swapped, summary"].append((number, float(new in summary)))
        return found

    def _swap(self, number: int) -> tuple[Question, str, str] | None:
        """Picks a fact that stands once in the text, and another value; None where there is none."""
        case, rng = self.cases[number], random.Random(f"{self.seed} {number}")
        asked = [question for question in self.asked[number] if question.said and question.answer]
        rng.shuffle(asked)
        for question in asked[:TRIES]:
            pool = question.choices or tuple(self._values.get(self._topic(question), ()))
            others = sorted({value for value in pool if value not in question.answers and value not in case.context})
            whole = re.compile(rf"(?<!\w){re.escape(question.answer)}(?!\w)")
            elsewhere = any(other in whole.sub("", case.context) for other in question.answers if other)
            if others and not elsewhere and len(whole.findall(case.context)) == 1:
                new = rng.choice(others)
                return question, new, new.join(whole.split(case.context))
        return None

    @property
    def _values(self) -> dict[str, set[str]]:
        """The answers of all cases, by what they are about."""
        found: dict[str, set[str]] = {}
        for case in self.cases:
            for question in case.questions:
                if question.said:
                    found.setdefault(self._topic(question), set()).add(question.answer)
        return found

    @staticmethod
    def _topic(question: Question) -> str:
        return question.facts[0][0] if len(question.facts) == 1 else question.text

    def encoded_again(self) -> dict[str, Flags]:
        """How many answers stay where the gloss is encoded in place of the text, and how many bits change."""
        found: dict[str, Flags] = {"encoded again, answers kept": [], "encoded again, bits changed": []}
        found |= {f"{name}, another's message": [] for name in tuple(found)}
        n, again = len(self.cases), {}
        for number, text in enumerate(self.texts):
            with suppress(EncodeError):  # no codec takes every text, and nothing is none
                again[number] = self._sent(text)
        others = {number: self.wires[(number + 1) % n] for number in again}
        for ending, wires in (("", again), (", another's message", others)):
            memories = [self.receiver.decode(wire) for wire in wires.values()]
            answers = self._answers(memories, [self.cases[number].questions for number in wires])
            for (number, wire), said in zip(wires.items(), answers, strict=True):
                found[f"encoded again, answers kept{ending}"] += [
                    (number, float(a == b)) for a, b in zip(said, self.said[number], strict=True)
                ]
                changed = _bits_changed(self._payload(self.wires[number]), self._payload(wire))
                if changed is not None:
                    found[f"encoded again, bits changed{ending}"].append((number, changed))
        return found


class _Words:
    """A text in which whole words are looked for."""

    def __init__(self, text: str):
        self._text = f" {' '.join(re.findall(WORD, text))} "

    def has(self, words: str) -> bool:
        """Says whether they stand in it, one after the other."""
        return bool(words) and f" {' '.join(re.findall(WORD, words))} " in self._text


WORD = re.compile(r"\w+")
PARTS = ("recall", "precision", "misleading")
SWAPPED = ("answer", "gloss", "summary", "answer and gloss")


def _wording(cases: Sequence[Case]) -> Callable[[Question], Question]:
    """Returns what puts a question into the words of its role: those in which its topic was asked for first."""
    words: dict[str, str] = {}
    for case in cases:
        for question in case.questions:
            if len(question.facts) == 1:
                words.setdefault(question.facts[0][0], question.text)

    def put(question: Question) -> Question:
        topic = question.facts[0][0] if len(question.facts) == 1 else ""
        return replace(question, text=words.get(topic, question.text))

    return put


def _bits_changed(one: bytes, other: bytes) -> float | None:
    """Returns the share of a payload's bits that another one has otherwise; None where the two are not as long."""
    if not one or len(one) != len(other):
        return None
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True)) / (8 * len(one))
