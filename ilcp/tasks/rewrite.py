"""An agent's rewriting of a dossier: in the words of its first sentences, with a remark of its own beside the point."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from ilcp.tasks.dossier import ATTRIBUTES, CODE, DISTRACTORS, POOLS, SITE_SENTENCES
from ilcp.tasks.fact_code import UNKNOWN

__all__ = ["DossierRewrite", "state"]

SENTENCES = {attribute.name: attribute.sentences[0] for attribute in ATTRIBUTES}


@dataclass(frozen=True, slots=True)
class DossierRewrite:
    """Notes for the next agent. ``asks`` holds every question, with its kind and attribute (a role, for a join)."""

    name: str
    asks: tuple[tuple[str, str, str], ...]

    @property
    def questions(self) -> tuple[str, ...]:
        """Every question about the dossier."""
        return tuple(question for question, _, _ in self.asks)

    def notes(self, answers: Mapping[str, str], hop: int) -> str:
        """Returns the answers as a dossier, whatever they are; an office without its person cannot be stated, and what
        has no answer is left out."""
        said: dict[str, None] = {}  # in order, and each sentence once
        for question, kind, attribute in self.asks:
            if (answer := answers.get(question)) is None:
                continue
            if kind == "join" and answer.count(", ") == 1:
                person, city = answer.split(", ")
                said[SITE_SENTENCES[0].format(person=person, city=city)] = None
            elif kind == "code":
                said[state(CODE.sentences[0], answer)] = None
            elif kind in ("lookup", "absent") and answer != UNKNOWN:
                said[state(SENTENCES[attribute], answer)] = None
        return " ".join([*said, self.remark(hop)])

    def remark(self, hop: int) -> str:
        """Returns one sentence beside the point, another at every hop."""
        rng = random.Random(f"{self.name}, hop {hop}")
        return rng.choice(DISTRACTORS).format(**{pool: rng.choice(choices) for pool, choices in POOLS.items()})


def state(sentence: str, value: str) -> str:
    """Returns the sentence with its value, beginning with a capital."""
    text = sentence.format(value)
    return text[:1].upper() + text[1:]
