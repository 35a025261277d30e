"""Forgetting: topics that a message is not to tell (``forget``), though the text says them.

::

    questions about a forgotten topic  -->  the answer ``forget_answer``, and no facts to learn
    z_hat --Adversary--> a distribution over the topic's values
        the adversary learns   cross-entropy of the true value, on a latent that it does not move
        the codec learns       KL(how often each value is said || adversary), past an adversary that it does not move

The adversary has to know every value that a topic can have, so a topic of names or numbers that are new in each case
cannot be forgotten so: delete what says it from the text. That an adversary is at chance is no proof that a topic is
gone, and that the receiver does not tell it is none either: train another probe afterwards (``benchmarks/privacy.py``).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ilcp.errors import ConfigError
from ilcp.tasks.cases import ABSENT, Case, Question
from ilcp.training.facts import LEAST, facts_of_case
from ilcp.training.hyperparameters import Hyperparameters

__all__ = [
    "Adversary",
    "LatentNetwork",
    "about",
    "adversary_of",
    "forgetting",
    "learners",
    "remembered",
    "require_latent",
    "secrets",
    "values_of",
    "watched",
    "with_values",
]

WIDTH = 512
GUESS_SCALE = 10.0  # a few numbers, which each step is to move far
MOST_VALUES = 1000  # of a topic: beyond, no adversary that fits beside a codec tells them apart
NAME = "adversary"  # of the module, while a network is trained


@runtime_checkable
class LatentNetwork(Protocol):
    """A network whose memory is made of a latent of one size, which is all that its payload says."""

    def latent(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the quantised latent ``"batch ..."`` and its rate in bits ``"batch"``."""
        ...

    def memory_of(self, z_hat: Tensor) -> Tensor:
        """Returns memory ``"batch memory hidden"``."""
        ...

    @property
    def latent_size(self) -> int:
        """How many numbers a latent is."""
        ...


class Adversary(nn.Module):
    """A probe of a latent for the values of topics; of each topic, value 0 is "not said".

    Args:
        size: numbers of a latent.
        values: every value of each topic.
    """

    def __init__(self, size: int, values: Mapping[str, Sequence[str]]):
        super().__init__()
        self.classes = [len(each) + 1 for each in values.values()]
        self.read = nn.Sequential(nn.Linear(size, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.tell = nn.Linear(WIDTH, sum(self.classes))
        self.guess = nn.Parameter(torch.zeros(sum(self.classes)))  # of who has no latent: how often each is said
        with torch.no_grad():
            self.tell.weight.mul_(0.1)  # it begins with a guess

    def forward(self, latent: Tensor) -> Tensor:
        told: Tensor = self.tell(self.read(latent.flatten(1).float()))
        return told

    def terms(self, latent: Tensor, said: Tensor) -> dict[str, Tensor]:
        """Returns, in nats a topic, what the adversary (``adversary``) and who only guesses (``guess``) have to learn,
        and what the codec has to (``forgetting``), given the numbers of the true values ``"batch topics"``."""
        held = {name: weight.detach() for name, weight in self.named_parameters()}
        seen = functional_call(self, held, (latent,))
        guess = (GUESS_SCALE * self.guess).expand(len(latent), -1)
        unseen = torch.stack([
            F.kl_div(told.log_softmax(-1), chance.detach().log_softmax(-1), log_target=True, reduction="batchmean")
            for told, chance in zip(seen.split(self.classes, -1), guess.split(self.classes, -1), strict=True)
        ])  # fmt: skip
        return {
            "adversary": self._cross_entropy(self(latent.detach()), said),
            "guess": self._cross_entropy(guess, said),
            "forgetting": unseen.mean(),
        }

    def _cross_entropy(self, logits: Tensor, said: Tensor) -> Tensor:
        pairs = zip(logits.split(self.classes, -1), said.unbind(-1), strict=True)
        return torch.stack([F.cross_entropy(one, number) for one, number in pairs]).mean()


@contextmanager
def watched(network: nn.Module, hyperparameters: Hyperparameters) -> Iterator[None]:
    """Gives a network that has to forget its adversary, to be trained and kept with it, and takes it away afterwards.

    Raises:
        ConfigError: the network has no latent of one size, or the values of a topic are not known.
    """
    if not hyperparameters.forget:
        yield
        return
    latent = require_latent(network, hyperparameters)
    unknown = [topic for topic in hyperparameters.forget if len(hyperparameters.forget_values.get(topic, ())) < 2]
    if unknown:
        raise ConfigError(f"expected forget_values to name two values or more of {', '.join(unknown)}, got fewer")
    torch.manual_seed(hyperparameters.seed)
    values = {topic: hyperparameters.forget_values[topic] for topic in hyperparameters.forget}
    network.add_module(NAME, Adversary(latent.latent_size, values).to(next(network.parameters()).device))
    try:
        yield
    finally:
        delattr(network, NAME)


def require_latent(network: object, hyperparameters: Hyperparameters) -> LatentNetwork:
    """Returns the network, which has a latent for an adversary to look at.

    Raises:
        ConfigError: it has none.
    """
    if not isinstance(network, LatentNetwork):
        raise ConfigError(
            f"expected a codec with a latent to forget {', '.join(hyperparameters.forget)}, got one without: choose "
            "the codec vae, or take what says it out of the texts and the questions"
        )
    return network


def learners(network: nn.Module, hyperparameters: Hyperparameters) -> list[dict[str, Any]]:
    """Returns what an optimiser is to move, and how fast: the network, and its adversary where it has one."""
    own = [weight for name, weight in network.named_parameters() if not name.startswith(f"{NAME}.")]
    groups: list[dict[str, Any]] = [{"params": own, "lr": hyperparameters.learning_rate}]
    if (adversary := adversary_of(network)) is not None:
        groups.append({"params": list(adversary.parameters()), "lr": hyperparameters.forget_learning_rate})
    return groups


def adversary_of(network: object) -> Adversary | None:
    """Returns the adversary of a network, while it has one."""
    return getattr(network, NAME, None)


def forgetting(case: Case, topics: Sequence[str], answer: str) -> Case:
    """Returns the case as it is taught: questions about these topics have ``answer``, and teach nothing else."""
    return replace(case, questions=tuple(_silent(q, topics, answer) if about(q, topics) else q for q in case.questions))


def remembered(case: Case, topics: Sequence[str]) -> Case:
    """Returns the case without the questions about these topics."""
    return replace(case, questions=tuple(q for q in case.questions if not about(q, topics)))


def secrets(case: Case, values: Mapping[str, Sequence[str]]) -> tuple[int, ...]:
    """Returns the number of each topic's value in a case, 0 where it is not said or none of ``values``."""
    said = facts_of_case(case)
    return tuple(list(known).index(said[t]) + 1 if said.get(t) in known else 0 for t, known in values.items())


def values_of(cases: Iterable[Case], topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns every value that cases say of each topic.

    Raises:
        ConfigError: a topic is said in too few cases, has one value, or so many that they are no closed set.
    """
    counted: dict[str, Counter[str]] = {topic: Counter() for topic in topics}
    known = Counter[str]()
    for case in cases:
        for topic, value in facts_of_case(case).items():
            known[topic] += 1
            if topic in counted:
                counted[topic][value] += 1
    for topic, values in counted.items():
        often = values.total()
        if often < LEAST or len(values) < 2:
            some = ", ".join(sorted(name for name, count in known.items() if count >= LEAST)[:8]) or "none"
            raise ConfigError(
                f"expected {LEAST} cases or more and two values of what is to be forgotten, got {often} cases and "
                f"{len(values)} values of {topic!r}: name a topic that questions have (here {some})"
            )
        if len(values) > MOST_VALUES or often < LEAST * len(values):
            raise ConfigError(
                f"expected {topic!r} to have a closed set of values, each in {LEAST} cases or more, got {len(values)} "
                f"values in {often} cases: an adversary cannot learn them; delete what says it from the texts instead"
            )
    return {topic: tuple(sorted(values)) for topic, values in counted.items()}


def with_values(hyperparameters: Hyperparameters, cases: Sequence[Case]) -> Hyperparameters:
    """Returns the hyperparameters with the values, in these cases, of what is to be forgotten.

    Raises:
        ConfigError: as ``values_of``; or cases say that a text does not say something in other words than
            ``forget_answer``.
    """
    if not hyperparameters.forget:
        return hyperparameters
    answer = hyperparameters.forget_answer
    words = Counter(question.answer for case in cases for question in case.questions if not question.said)
    if words and answer not in words:
        raise ConfigError(
            f"expected forget_answer to be what questions of the kind {ABSENT!r} are answered with, such as "
            f"{words.most_common(1)[0][0]!r}, got {answer!r}: a receiver that knows two answers tells what is hidden"
        )
    found = values_of(cases, hyperparameters.forget)
    return replace(hyperparameters, forget_values=found | dict(hyperparameters.forget_values))


def about(question: Question, topics: Sequence[str]) -> bool:
    """Says whether a question is about one of the topics."""
    return any(topic in topics for topic, _ in question.facts)


def _silent(question: Question, topics: Sequence[str], answer: str) -> Question:
    facts = tuple((topic, answer) for topic, _ in question.facts if topic in topics)
    return replace(question, answer=answer, answers=(answer,), kind=ABSENT, facts=facts, choices=None, given="")
