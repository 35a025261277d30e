"""The validation of a network on cases that it is not trained on, between the two ends: nothing and the full text.

It scores and judges as ``ilcp.measure`` does: the same ``answer_scores``, the same bootstrap over documents. What it
does not share is the way there: questions of one context are packed into one sequence, and the network is asked in
full precision, before there is a codec, a payload or a message. Of several accepted spellings it knows the trained one.
"""

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ilcp.errors import TrainingError
from ilcp.measure.bootstrap import Bootstrap
from ilcp.models.forward import answer_scores, has_room
from ilcp.models.prompt import text_ids
from ilcp.tasks.cases import Case
from ilcp.training.batch import Batcher, Models, Row, require_fitting
from ilcp.training.forget import remembered
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.packed import memory_logits, text_logits
from ilcp.training.precision import precision
from ilcp.training.reader import Reader

__all__ = ["READING", "Scores", "Validation", "Validator"]

CHUNK = 16  # rows per forward pass of the receiver: each may be a whole document
READ = 8  # documents per pass of the sender and the codec
READING = ("none", "mismatched", "text")  # the arms of the receiver by itself, without a message
LEAST_GAIN_NATS = 0.1  # per answer: below it the full text says next to nothing to the receiver, and nothing can be won


@dataclass(frozen=True, slots=True)
class Scores:
    """The log-likelihood of each row's answer, in nats, and whether greedy decoding gives exactly it."""

    log_likelihood: list[float]
    exact: list[bool]


@dataclass(frozen=True, slots=True)
class Validation:
    """Mean log-likelihood of the answers in nats, and exact match, of each arm.

    The arms are ``none``, ``mismatched`` (another case's message), ``message`` and ``text``, or, of the receiver by
    itself, those of ``READING``, where another case's text is the mismatched one. ``gain_nats`` is the content gain,
    the message (or the text) minus the mismatched one, and ``gain_low`` the lower end of its 95 % interval; NaN where
    one of the two was not asked for.
    """

    log_likelihood: dict[str, float]
    exact: dict[str, float]
    gain_nats: float = math.nan
    gain_low: float = math.nan

    @property
    def recovery(self) -> float:
        """The share of what the full text gives, in log-likelihood, that the message gives; NaN where it gives next to
        nothing, of which no share can be told."""
        gain = self.log_likelihood["text"] - self.log_likelihood["none"]
        told = self.log_likelihood["message"] - self.log_likelihood["none"]
        return told / gain if gain > LEAST_GAIN_NATS else math.nan

    @property
    def score(self) -> tuple[str, float]:
        """What a run is to raise, and its name: the recovery, or without a message how well the text is read."""
        if "message" not in self.exact:
            return "nats from the text", self.log_likelihood["text"]
        if "text" not in self.exact or math.isnan(self.recovery):
            return "nats from the message", self.log_likelihood["message"]
        return "recovery", self.recovery

    def to_dict(self) -> dict[str, Any]:
        """Returns both tables, the gain and the recovery, rounded; without what was not asked for."""
        record = asdict(self)
        tables = {
            f"validation_{of}": {k: round(v, 4) for k, v in record[of].items()} for of in ("log_likelihood", "exact")
        }
        figures = {"recovery": self.recovery} if self.score[0] == "recovery" else {}
        figures |= {name: record[name] for name in ("gain_nats", "gain_low") if not math.isnan(record[name])}
        return tables | {name: round(value, 4) for name, value in figures.items()}

    def __str__(self) -> str:
        shown = ", ".join(
            f"{arm} {self.log_likelihood[arm]:.3f} nats {self.exact[arm]:.3f} exact" for arm in self.log_likelihood
        )
        if not {"message", "text"} <= self.exact.keys():
            return shown
        share = f"{self.recovery:.3f}" if self.score[0] == "recovery" else "not told, the full text gives nothing"
        return f"{shown}; recovery {share}"


class Validator:
    """Measures networks on one fixed set of questions; the two ends are those of the last ``read``.

    Raises:
        ConfigError: a case does not fit into the receiver's window.
    """

    reading: Validation  # of the receiver, as it stood at the last ``read``

    def __init__(self, models: Models, cases: Sequence[Case], hyperparameters: Hyperparameters, reader: Reader):
        require_fitting(models, cases, hyperparameters)
        self.models, self.hyperparameters, self.reader = models, hyperparameters, reader
        alone = replace(hyperparameters, literals_share=0.0, telling_share=0.0)  # what is watched: the latent's answers
        self.batch = Batcher(models, alone).batch(
            [remembered(case, hyperparameters.forget) for case in cases],
            random.Random(f"validation {hyperparameters.seed}"),
            whole=True,
        )
        self._draws = Bootstrap([row.context for row in self.batch.rows], seed=hyperparameters.seed)
        self._ends: dict[str, Scores] = {}

    def read(self, arms: Collection[str] = READING) -> Validation:
        """Measures the receiver by itself as it stands now; these are the ends that ``measure`` compares with."""
        texts = {
            "none": [""] * len(self.batch.rows),
            "mismatched": [self._another(row) for row in self.batch.rows],
            "text": [self.batch.texts[row.context] for row in self.batch.rows],
        }
        scores = {arm: self._text(texts[arm]) for arm in READING if arm in arms}
        self._ends |= scores
        found = self._validation(scores, "text")
        if scores.keys() == set(READING):
            self.reading = found
        return found

    def _another(self, row: Row) -> str:
        """Returns the text before the row's own that leaves room for its question and answer; none where none does."""
        models, texts = self.models, self.batch.texts
        for number in range(row.context - 1, row.context - len(texts), -1):
            asked = len(text_ids(models.receiver_tokenizer, texts[number], row.question))
            if has_room(models.receiver, asked, len(row.answer)):
                return texts[number]
        return ""

    def said(self) -> str:
        """Says, in a sentence, how the receiver answered at the last ``read``."""
        words = {"text": "from the full text", "mismatched": "from another case's", "none": "from nothing"}
        exact, nats = self.reading.exact, self.reading.log_likelihood
        if not self.hyperparameters.answers_end:  # nobody goes on word for word as a text does
            shown = ", ".join(f"{nats[arm]:.2f} nats {how}" for arm, how in words.items())
            return (
                f"the receiver goes on with {shown} (n = {len(self.batch.rows)}); exact match says nothing of "
                "continuations: teacher_floor does not apply"
            )
        shown = ", ".join(f"{exact[arm]:.3f} exact ({nats[arm]:.2f} nats) {how}" for arm, how in words.items())
        return f"the receiver answers {shown} (n = {len(self.batch.rows)})"

    def require_teacher(self) -> None:
        """Refuses a receiver that did not profit, at the last ``read``, from what the full text says.

        Raises:
            TrainingError: with the figures, and what to do.
        """
        floor, exact = self.hyperparameters.teacher_floor, self.reading.exact["text"]
        nats, n = self.reading.log_likelihood, len(self.batch.rows)
        tuned = self.models.adapter is not None
        better = "tune it longer (reader_share) or on more cases" if tuned else "tune it to read (--adapt-receiver)"
        if self.reading.gain_low <= LEAST_GAIN_NATS:
            raise TrainingError(
                "expected the receiver to answer better with the full text than with another case's, got "
                f"{nats['text']:.3f} against {nats['mismatched']:.3f} nats per answer over {n} questions: {better}, or "
                "choose another receiver"
            )
        if self.hyperparameters.answers_end and exact < floor:
            raise TrainingError(
                f"expected the receiver with the full text to reach {floor} exact match (teacher_floor), got "
                f"{exact:.3f} over {n} questions: {better}, choose a receiver that reads better, or set "
                "teacher_floor = 0 to train through it all the same"
            )

    @torch.no_grad()
    def measure(self, network: nn.Module) -> Validation:
        """Measures the network in every arm, and leaves it in evaluation mode."""
        if not self._ends:
            self.read()
        network.eval()
        texts = self.batch.texts
        parts = [texts[start : start + READ] for start in range(0, len(texts), READ)]
        memory = [one for part in parts for one in network(*self.reader.states(part))[0]]
        arms = {
            "none": self._ends["none"],
            "mismatched": self._memory(memory[-1:] + memory[:-1]),
            "message": self._memory(memory),
            "text": self._ends["text"],
        }
        return self._validation(arms, "message")

    def _validation(self, arms: Mapping[str, Scores], told: str) -> Validation:
        """Returns the means of all arms, and what the one that is ``told`` the case gains over the mismatched one."""
        gain = self._gain(arms[told], arms["mismatched"]) if {told, "mismatched"} <= arms.keys() else ()
        return Validation(
            {arm: _mean(scores.log_likelihood) for arm, scores in arms.items()},
            {arm: _mean(scores.exact) for arm, scores in arms.items()},
            *gain,
        )

    def _gain(self, ours: Scores, others: Scores) -> tuple[float, float]:
        """Returns the mean of the paired differences in nats, and the lower end of its 95 % interval."""
        values = (np.array(scores.log_likelihood) for scores in (ours, others))
        gain = self._draws.of(np.subtract, *values, unit="nats")
        return gain.value, math.nan if gain.low is None else gain.low

    def _memory(self, memory: Sequence[Tensor]) -> Scores:
        return self._scores(lambda rows: memory_logits(self.models, rows, memory))

    def _text(self, texts: Sequence[str]) -> Scores:
        by_row = dict(zip(map(id, self.batch.rows), texts, strict=True))
        return self._scores(lambda rows: text_logits(self.models, rows, [by_row[id(row)] for row in rows]))

    @torch.no_grad()
    def _scores(self, run: Callable[[Sequence[Row]], tuple[Tensor, Tensor]]) -> Scores:
        scores: list[tuple[list[float], bool]] = []
        for start in range(0, len(self.batch.rows), CHUNK):
            with precision(self.models.receiver.device, self.hyperparameters):
                logits, labels = run(self.batch.rows[start : start + CHUNK])
            scores += answer_scores(logits, labels)
        return Scores([sum(nats) for nats, _ in scores], [exact for _, exact in scores])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
