"""Canary facts: small texts in which the same people and things are bound in another way from text to text.

::

    Ada has the lamp.        Ada has the spoon.
    Hugo has the spoon.      Hugo has the kite.
    Iris has the kite.       Iris has the lamp.      ...

A hand-off that reads fluently and knows nothing brings the people, the things and the manner of speaking. Who has what
it cannot bring: another text's memory names the same and binds them otherwise.
"""

import random
from collections.abc import Iterator
from operator import eq

from ilcp.tasks.cases import Case, Question

__all__ = ["canaries"]

PEOPLE = 4  # of a text
LASTS = {"train": 4, "test": 400}  # cases in a row with the same people and values: a test knows nobody else
NAMES = {
    "train": "Anna Ben Clara David Emma Frank Grace Henry Julia Kevin Laura Mark Nina Oscar Paula Robert Sara Tom",
    "test": "Alice Brian Carol Daniel Ellen George Helen Jack Karen Lucy Martin Rose Simon Tina",
}
THINGS = {
    "train": "ball hat cup book box doll bell key bag shoe pen clock coat ring map plate flag drum",
    "test": "lamp knife chair spoon kite stone apple boat horse letter basket mirror",
}
PLACES = {
    "train": "Paris London Berlin Madrid Vienna Dublin Moscow Tokyo Boston Chicago Cairo Sydney",
    "test": "Rome Oslo Prague Lisbon Athens Warsaw Dallas Seattle Delhi Denver",
}
MANNERS = (  # how a fact is said, and of what
    ("{name} has the {value}.", THINGS),
    ("{name} lost the {value}.", THINGS),
    ("{name} bought the {value}.", THINGS),
    ("{name} wants the {value}.", THINGS),
    ("{name} lives in {value}.", PLACES),
    ("{name} comes from {value}.", PLACES),
)


def canaries(split: str = "test", seed: int = 0) -> Iterator[Case]:
    """Yields cases without end: a text of four facts, and one of them to be said again.

    ``split`` is ``"train"`` or ``"test"``: these share no name and no value. Cases in a row have the same people and
    values, in training four of them, in a test 400; from each to the next every value moves to another person, so that
    the next case's text names all that this one asks for, and is wrong about it.
    """
    drawn = random.Random(f"canaries {split} {seed}")
    names, number = NAMES[split].split(), 0
    while True:
        manner, pool = drawn.choice(MANNERS)
        people = drawn.sample(names, PEOPLE)
        values = bound = drawn.sample(pool[split].split(), PEOPLE)
        seen: set[str] = set()
        while len(seen) < LASTS[split]:
            other = drawn.sample(values, PEOPLE)
            facts = [manner.format(name=name, value=value) for name, value in zip(people, other, strict=True)]
            text = "\n".join(drawn.sample(facts, PEOPLE)) + "\n"
            if text in seen or any(map(eq, other, bound)):
                continue
            seen.add(text)
            bound, asked = other, drawn.randrange(PEOPLE)
            choices = tuple(manner.format(name=people[asked], value=value) for value in values)
            given = facts[asked][: facts[asked].rindex(" ")]
            question = Question("", facts[asked], "continuation", choices=choices, given=given)
            yield Case(f"canary {split} {seed} {number}", text, (question,))
            number += 1
