"""The validation of a network on cases that it is not trained on, between the two ends: nothing and the full text.

It scores and judges as ``ilcp.measure`` does: the same ``answer_scores``, the same bootstrap over documents. What it
does not share is the way there: questions of one context are packed into one sequence, and the network is asked in
full precision, before there is a codec, a payload or a message. Of several accepted spellings it knows the trained one.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ilcp.errors import TrainingError
from ilcp.measure.bootstrap import Bootstrap
from ilcp.models.forward import answer_scores
from ilcp.tasks.cases import Case
from ilcp.training.batch import Batcher, Models, Row, require_fitting
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.packed import memory_logits, text_logits
from ilcp.training.precision import precision
from ilcp.training.reader import Reader

__all__ = ["Validation", "Validator"]

CHUNK = 16  # rows per forward pass of the receiver: each may be a whole document
READ = 8  # documents per pass of the sender and the codec
LEAST_GAIN_NATS = 0.1  # per answer: below it the full text says next to nothing to the receiver, and nothing can be won


@dataclass(frozen=True, slots=True)
class _Scores:
    """The log-likelihood of each row's answer, in nats, and whether greedy decoding gives exactly it."""

    log_likelihood: list[float]
    exact: list[bool]


@dataclass(frozen=True, slots=True)
class Validation:
    """Mean log-likelihood of the answers in nats, and exact match, of each arm.

    The arms are ``none``, ``mismatched`` (another case's message), ``message`` and ``text``. ``gain_nats`` is the
    content gain, the message minus the mismatched one, and ``gain_low`` the lower end of its 95 % interval.
    """

    log_likelihood: dict[str, float]
    exact: dict[str, float]
    gain_nats: float
    gain_low: float

    @property
    def recovery(self) -> float:
        """The share of what the full text gives, in log-likelihood, that the message gives."""
        gain = self.log_likelihood["text"] - self.log_likelihood["none"]
        return (self.log_likelihood["message"] - self.log_likelihood["none"]) / gain

    def to_dict(self) -> dict[str, Any]:
        """Returns both tables, the gain and the recovery, rounded."""
        record = asdict(self)
        tables = {
            f"validation_{of}": {k: round(v, 4) for k, v in record[of].items()} for of in ("log_likelihood", "exact")
        }
        figures = {"recovery": self.recovery, "gain_nats": self.gain_nats, "gain_low": self.gain_low}
        return tables | {name: round(value, 4) for name, value in figures.items()}

    def __str__(self) -> str:
        shown = ", ".join(
            f"{arm} {self.log_likelihood[arm]:.3f} nats {self.exact[arm]:.3f} exact" for arm in self.log_likelihood
        )
        return f"{shown}; recovery {self.recovery:.3f}"


class Validator:
    """Measures networks on one fixed set of questions; the two ends are measured once, on the receiver as it was.

    Raises:
        ConfigError: a case does not fit into the receiver's window.
    """

    def __init__(self, models: Models, cases: Sequence[Case], hyperparameters: Hyperparameters, reader: Reader):
        require_fitting(models, cases, hyperparameters)
        self.models, self.hyperparameters, self.reader = models, hyperparameters, reader
        alone = replace(hyperparameters, literals_share=0.0)  # what the latent says by itself is what is watched
        self.batch = Batcher(models, alone).batch(
            cases, random.Random(f"validation {hyperparameters.seed}"), whole=True
        )
        self._draws = Bootstrap([row.context for row in self.batch.rows], seed=hyperparameters.seed)
        texts = [self.batch.texts[row.context] for row in self.batch.rows]
        with models.unadapted():
            self.text = self._text(texts)
            self.none = self._text([""] * len(texts))

    def require_teacher(self) -> None:
        """Refuses a receiver that does not profit from what the full text says.

        Raises:
            TrainingError: with the figures.
        """
        with self.models.unadapted():
            mismatched = self._text([self.batch.texts[row.context - 1] for row in self.batch.rows])
        questions, exact = len(self.batch.rows), _mean(self.text.exact)
        _, low = self._gain(self.text, mismatched)
        if low <= LEAST_GAIN_NATS:
            raise TrainingError(
                "expected the receiver to answer better with the full text than with another case's, got "
                f"{_mean(self.text.log_likelihood):.3f} against {_mean(mismatched.log_likelihood):.3f} nats per answer "
                f"over {questions} questions: train or choose a better receiver first"
            )
        if exact < self.hyperparameters.teacher_floor:
            raise TrainingError(
                f"expected the receiver with the full text to reach {self.hyperparameters.teacher_floor} exact match, "
                f"got {exact:.3f} over {questions} questions: train or choose a better receiver first"
            )

    @torch.no_grad()
    def measure(self, network: nn.Module) -> Validation:
        """Measures the network in every arm, and leaves it in evaluation mode."""
        network.eval()
        texts = self.batch.texts
        parts = [texts[start : start + READ] for start in range(0, len(texts), READ)]
        memory = torch.cat([network(*self.reader.states(part))[0] for part in parts])
        arms = {
            "none": self.none,
            "mismatched": self._memory(memory.roll(1, dims=0)),
            "message": self._memory(memory),
            "text": self.text,
        }
        gain, low = self._gain(arms["message"], arms["mismatched"])
        return Validation(
            {arm: _mean(scores.log_likelihood) for arm, scores in arms.items()},
            {arm: _mean(scores.exact) for arm, scores in arms.items()},
            gain,
            low,
        )

    def _gain(self, ours: _Scores, others: _Scores) -> tuple[float, float]:
        """Returns the mean of the paired differences in nats, and the lower end of its 95 % interval."""
        values = (np.array(scores.log_likelihood) for scores in (ours, others))
        gain = self._draws.of(np.subtract, *values, unit="nats")
        return gain.value, math.nan if gain.low is None else gain.low

    def _memory(self, memory: Tensor) -> _Scores:
        return self._scores(lambda rows: memory_logits(self.models, rows, memory))

    def _text(self, texts: Sequence[str]) -> _Scores:
        by_row = dict(zip(map(id, self.batch.rows), texts, strict=True))
        return self._scores(lambda rows: text_logits(self.models, rows, [by_row[id(row)] for row in rows]))

    @torch.no_grad()
    def _scores(self, run: Callable[[Sequence[Row]], tuple[Tensor, Tensor]]) -> _Scores:
        scores: list[tuple[list[float], bool]] = []
        for start in range(0, len(self.batch.rows), CHUNK):
            with precision(self.models.receiver.device, self.hyperparameters):
                logits, labels = run(self.batch.rows[start : start + CHUNK])
            scores += answer_scores(logits, labels)
        return _Scores([sum(nats) for nats, _ in scores], [exact for _, exact in scores])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
