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

from ilcp.tasks.cases import Case, Question

__all__ = ["PEOPLE", "canaries"]

PEOPLE = 4  # of a text, and texts of a group
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

    Four cases in a row have the same people and values, each value moved on by one person; so the next case's text is
    wrong about whatever this one asks. ``split`` is ``"train"`` or ``"test"``: these share no name and no value.
    """
    drawn = random.Random(f"canaries {split} {seed}")
    names, number = NAMES[split].split(), 0
    while True:
        manner, pool = drawn.choice(MANNERS)
        people = drawn.sample(names, PEOPLE)
        values = drawn.sample(pool[split].split(), PEOPLE)
        for moved in range(PEOPLE):
            facts = [manner.format(name=people[at], value=values[(at + moved) % PEOPLE]) for at in range(PEOPLE)]
            asked = drawn.randrange(PEOPLE)
            said = manner.format(name=people[asked], value=values[(asked + moved) % PEOPLE])
            choices = tuple(manner.format(name=people[asked], value=value) for value in values)
            given = said[: said.rindex(" ")]
            yield Case(
                id=f"canary {split} {seed} {number}",
                context="\n".join(drawn.sample(facts, PEOPLE)) + "\n",
                questions=(Question("", said, "continuation", choices=choices, given=given),),
            )
            number += 1
