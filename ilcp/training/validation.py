"""How a network fares on cases it is not trained on, between the two ends: nothing and the full text."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ilcp.errors import EncodeError
from ilcp.models.forward import answer_scores
from ilcp.tasks.cases import Case
from ilcp.training.batch import Batcher, Models, Row, check_room
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.packed import memory_logits, text_logits
from ilcp.training.precision import precision
from ilcp.training.reader import Reader

__all__ = ["Validation", "Validator"]

CHUNK = 16  # rows per forward pass of the receiver: each may be a whole document
READ = 8  # documents per pass of the sender and the codec
LEAST_GAIN_NATS = 0.1  # per answer: below it the full text says next to nothing to the receiver, and nothing can be won
NORMAL_95 = 1.96
Scores = list[tuple[float, bool]]


@dataclass(frozen=True, slots=True)
class Validation:
    """Mean log-likelihood of the answers in nats, and exact match, by what the receiver had to go by.

    ``gain_nats`` is the content gain: the message minus another case's; ``gain_low`` is the lower end of its 95 %
    interval (normal approximation over questions).
    """

    nats: dict[str, float]
    exact: dict[str, float]
    gain_nats: float
    gain_low: float

    @property
    def recovery(self) -> float:
        """The share of what the full text gives, in log-likelihood, that the message gives."""
        gain = self.nats["text"] - self.nats["none"]
        return (self.nats["message"] - self.nats["none"]) / gain

    def to_dict(self) -> dict[str, Any]:
        """Both tables, the gain and the recovery, rounded."""
        record = asdict(self)
        tables = {f"validation_{of}": {k: round(v, 4) for k, v in record[of].items()} for of in ("nats", "exact")}
        figures = {"recovery": self.recovery, "gain_nats": self.gain_nats, "gain_low": self.gain_low}
        return tables | {name: round(value, 4) for name, value in figures.items()}

    def __str__(self) -> str:
        shown = ", ".join(f"{arm} {self.nats[arm]:.3f} nats {self.exact[arm]:.3f} exact" for arm in self.nats)
        return f"{shown}; recovery {self.recovery:.3f}"


class Validator:
    """Measures networks on one fixed set of questions; the two ends are measured once, on the receiver as it was.

    Raises:
        EncodeError: a case does not fit into the receiver's window.
    """

    def __init__(self, models: Models, cases: Sequence[Case], recipe: Hyperparameters, reader: Reader):
        check_room(models, cases, recipe)
        self.models, self.recipe, self.reader = models, recipe, reader
        alone = replace(recipe, literals_share=0.0)  # what the latent says by itself is what is watched
        self.batch = Batcher(models, alone).batch(cases, random.Random(f"validation {recipe.seed}"), whole=True)
        texts = [self.batch.texts[row.context] for row in self.batch.rows]
        with models.unadapted():
            self.text = self._text(texts)
            self.none = self._text([""] * len(texts))

    def require_teacher(self) -> None:
        """Refuses a receiver that does not profit from what the full text says.

        Raises:
            EncodeError: with the figures.
        """
        with self.models.unadapted():
            other = self._text([self.batch.texts[row.context - 1] for row in self.batch.rows])
        (text_nats, text_exact), (other_nats, _) = _means(self.text), _means(other)
        _, low = _gain(self.text, other)
        if low <= LEAST_GAIN_NATS:
            raise EncodeError(
                "expected the receiver to answer better with the full text than with another case's, got "
                f"{text_nats:.3f} against {other_nats:.3f} nats per answer over {len(other)} questions: "
                "train or choose a better receiver first"
            )
        if text_exact < self.recipe.teacher_floor:
            raise EncodeError(
                f"expected the receiver with the full text to reach {self.recipe.teacher_floor} exact match, "
                f"got {text_exact:.3f} over {len(other)} questions: train or choose a better receiver first"
            )

    @torch.no_grad()
    def measure(self, network: nn.Module) -> Validation:
        """The table of nothing, message and full text; the network is left in evaluation mode."""
        network.eval()
        texts = self.batch.texts
        parts = [texts[start : start + READ] for start in range(0, len(texts), READ)]
        memory = torch.cat([network(*self.reader.states(part))[0] for part in parts])
        foreign = memory.roll(1, dims=0)  # another case's message
        arms = {"none": self.none, "foreign": self._memory(foreign), "message": self._memory(memory), "text": self.text}
        means = {arm: _means(scores) for arm, scores in arms.items()}
        gain, low = _gain(arms["message"], arms["foreign"])
        return Validation(
            {arm: nats for arm, (nats, _) in means.items()}, {arm: hit for arm, (_, hit) in means.items()}, gain, low
        )

    def _memory(self, memory: Tensor) -> Scores:
        return self._scores(lambda rows: memory_logits(self.models, rows, memory))

    def _text(self, texts: Sequence[str]) -> Scores:
        by_row = dict(zip(map(id, self.batch.rows), texts, strict=True))
        return self._scores(lambda rows: text_logits(self.models, rows, [by_row[id(row)] for row in rows]))

    @torch.no_grad()
    def _scores(self, run: Callable[[Sequence[Row]], tuple[Tensor, Tensor]]) -> Scores:
        scores: Scores = []
        for start in range(0, len(self.batch.rows), CHUNK):
            with precision(self.models.receiver.device, self.recipe):
                logits, labels = run(self.batch.rows[start : start + CHUNK])
            scores += [(sum(nats), exact) for nats, exact in answer_scores(logits, labels)]
        return scores


def _means(scores: Scores) -> tuple[float, float]:
    return sum(nats for nats, _ in scores) / len(scores), sum(hit for _, hit in scores) / len(scores)


def _gain(ours: Scores, others: Scores) -> tuple[float, float]:
    """The mean of the paired differences in nats, and the lower end of its 95 % interval."""
    gains = torch.tensor([own - foreign for (own, _), (foreign, _) in zip(ours, others, strict=True)])
    mean = float(gains.mean())
    return mean, mean - NORMAL_95 * float(gains.std(correction=1)) / len(gains) ** 0.5
