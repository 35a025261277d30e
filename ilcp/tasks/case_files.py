"""Case files: a seeded generator of incident dossiers, whose facts are private to whoever reads the document.

A dossier states 17 of 20 attributes (40 possible values each, pools shared between attributes), the office of every
person it names in a role, and a six-character code; sentences come in random order and about a third of the text is
beside the point. Its entropy is known, because every draw is uniform:

    look-up   17 x log2(40)                = 90.5 bits
    absent    log2(20 choose 3)            = 10.2 bits
    join      offices of distinct persons  =  5.3 bits each
    code      3 letters, 3 digits          = 23.7 bits

The wording of the sentences is drawn too, but no question asks for it, so it is not counted.
"""

import math
import random
from collections.abc import Iterator, Sequence

from ilcp.errors import ConfigError
from ilcp.tasks.cases import Case, Question
from ilcp.tasks.dossier import (
    ATTRIBUTES,
    CODE,
    CODE_DIGITS,
    CODE_LETTERS,
    DISTRACTORS,
    JOINS,
    POOLS,
    SITE_SENTENCES,
    Attribute,
)
from ilcp.tasks.fact_code import UNKNOWN, DossierFactCode
from ilcp.tasks.rewrite import DossierRewrite, state

__all__ = ["KINDS", "PRESENT", "SPLITS", "TOPICS", "UNKNOWN", "case_files", "compose", "retold"]

SPLITS = ("train", "validation", "test")
KINDS = ("lookup", "join", "absent", "code")
PRESENT = 17  # of the 20 attributes: 17 x log2(40) = 90 bits of look-up entropy, and three to ask for in vain
CODE_BITS = 3 * math.log2(len(CODE_LETTERS) * len(CODE_DIGITS))
CODE_TOPICS = tuple(f"code, character {place}" for place in range(1, 7))
OFFICE = {role: f"{role}'s office" for role in JOINS}
TOPICS = (*(a.name for a in ATTRIBUTES), *OFFICE.values(), *CODE_TOPICS)  # what the facts of a dossier are about
DISTRACTOR_SHARE = 1 / 3
BARE_SHARE = 0.5


def case_files(
    split: str = "train", seed: int = 0, n: int | None = None, *, start: int = 0, facts: int = PRESENT
) -> Iterator[Case]:
    """Yields dossiers ``start`` to ``start + n`` of a split and seed, without end where ``n`` is None.

    A case depends on split, seed, its number and ``facts`` (how many of the 20 attributes are stated) alone, so any
    part of a stream can be made again.

    Raises:
        ConfigError: the split is none of train, validation, test, or a number is out of its range.
    """
    if split not in SPLITS:
        raise ConfigError(f"expected split to be one of {', '.join(SPLITS)}, got {split!r}")
    if start < 0 or (n is not None and n < 0):
        raise ConfigError(f"expected start and n not to be negative, got start={start}, n={n}")
    if not 0 <= facts <= len(ATTRIBUTES):
        raise ConfigError(f"expected facts to be 0 to {len(ATTRIBUTES)}, got {facts}")
    stop = math.inf if n is None else start + n
    return _stream(f"{split}/{seed}", start, stop, facts)


def _stream(stream: str, start: int, stop: float, facts: int) -> Iterator[Case]:
    number = start
    while number < stop:
        name = f"{stream}/{number}"
        rng = random.Random(f"ilcp case file {name} with {facts} facts")
        yield compose(name, rng, rng.sample([a.name for a in ATTRIBUTES], facts))
        number += 1


def compose(
    name: str, rng: random.Random, present: Sequence[str], *, bare: bool = False, share: float = BARE_SHARE
) -> Case:
    """Composes the dossier that states the attributes named in ``present``, and asks for all.

    ``bare``: no distractors, and only this ``share`` of the offices and codes. Training begins with such documents.
    """

    def stated() -> bool:
        return not bare or rng.random() < share

    values = {a.name: rng.choice(POOLS[a.pool]) for a in ATTRIBUTES if a.name in present}
    people = sorted({values[role] for role in JOINS if role in values})
    offices = {person: rng.choice(POOLS["city"]) for person in people if stated()}
    code = "".join(rng.choice(CODE_LETTERS) + rng.choice(CODE_DIGITS) for _ in range(3)) if stated() else None
    return retold(name, rng, values, offices, code, bare=bare)


def retold(
    name: str,
    rng: random.Random,
    values: dict[str, str],
    offices: dict[str, str],
    code: str | None,
    *,
    bare: bool = False,
) -> Case:
    """Words a dossier of these facts: attributes, offices by person, a code; wording, order and the rest are drawn."""
    context = _document(rng, values, offices, code, bare)
    questions = _questions(rng, values, offices, code)
    asks = tuple((question.text, question.kind, question.facts[0][0]) for question in questions)
    fact_code = None if bare else DossierFactCode(values, offices, code or "", asks)
    entropy_bits = _entropy_bits(values, len(offices), code)
    return Case(name, context, questions, entropy_bits, fact_code, DossierRewrite(name, asks))


def _document(rng: random.Random, values: dict[str, str], offices: dict[str, str], code: str | None, bare: bool) -> str:
    sentences = [state(rng.choice(a.sentences), values[a.name]) for a in ATTRIBUTES if a.name in values]
    sentences += [rng.choice(SITE_SENTENCES).format(person=p, city=c) for p, c in offices.items()]
    if code is not None:
        sentences.append(state(rng.choice(CODE.sentences), code))
    if bare:
        return " ".join(rng.sample(sentences, len(sentences)))
    facts_chars = sum(map(len, sentences))
    distractors = rng.sample(DISTRACTORS, len(DISTRACTORS))
    while sum(map(len, sentences)) * (1 - DISTRACTOR_SHARE) < facts_chars:
        words = {pool: rng.choice(choices) for pool, choices in POOLS.items()}
        sentences.append(distractors.pop().format(**words))
    rng.shuffle(sentences)
    return " ".join(sentences)


def _questions(
    rng: random.Random, values: dict[str, str], offices: dict[str, str], code: str | None
) -> tuple[Question, ...]:
    stated_bits = math.log2(math.comb(len(ATTRIBUTES), len(values))) / len(ATTRIBUTES)  # which are there: a share each

    def ask(attribute: Attribute, answer: str, kind: str) -> Question:
        pool = POOLS[attribute.pool]
        bits = stated_bits + (math.log2(len(pool)) if kind == "lookup" else 0.0)
        return Question(rng.choice(attribute.questions), answer, kind, pool, ((attribute.name, answer),), bits)

    questions = [
        ask(a, values[a.name], "lookup") if a.name in values else ask(a, UNKNOWN, "absent") for a in ATTRIBUTES
    ]
    known: set[str] = set()  # people whose office another join asks for already
    for role, texts in JOINS.items():
        if role in values and values[role] in offices:
            person, office = values[role], offices[values[role]]
            facts = ((role, person), (OFFICE[role], office))
            bits = 0.0 if person in known else math.log2(len(POOLS["city"]))
            known.add(person)
            answer = f"{person}, {office}"
            questions.append(Question(rng.choice(texts), answer, "join", None, facts, bits, given=f"{person},"))
    if code is not None:
        letters = tuple((topic, letter) for topic, letter in zip(CODE_TOPICS, code, strict=True))
        questions.append(Question(rng.choice(CODE.questions), code, "code", None, letters, CODE_BITS))
    return tuple(questions)


def _entropy_bits(values: dict[str, str], offices: int, code: str | None) -> float:
    lookup = sum(math.log2(len(POOLS[a.pool])) for a in ATTRIBUTES if a.name in values)
    absent = math.log2(math.comb(len(ATTRIBUTES), len(values)))
    join = offices * math.log2(len(POOLS["city"]))
    return lookup + absent + join + (0.0 if code is None else CODE_BITS)
