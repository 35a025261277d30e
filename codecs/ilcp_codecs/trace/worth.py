"""What the steps of a trace are worth to its reader, beside controls that change nothing else.

::

    cases --Traces--> memories, as they are and as each control has them --reader--> answers, of the same questions

The claim to prove is that steps bring something beyond the prompts' own keys and values.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ilcp.errors import ConfigError
from ilcp.measure.bootstrap import Bootstrap
from ilcp.measure.figures import Measured
from ilcp.models.generate_options import end_ids
from ilcp.models.prompt import answer_ids, layout
from ilcp.tasks import Case
from ilcp.training.batch import Models, frozen
from ilcp_codecs.kv.ends import Behind, End
from ilcp_codecs.trace.controls import CONTROLS, changed
from ilcp_codecs.trace.learning import scored
from ilcp_codecs.trace.rules import Rule
from ilcp_codecs.trace.traces import Traces, Written

__all__ = ["OWN", "Answered", "StepsWorth", "answered", "steps_worth"]

OWN = "trace"
CHUNK = 8  # cases in one pass
OUTLIER = 2.0  # a perplexity above it: the reader was not sure of what it said
ANSWER_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Answered:
    """What a reader answered, question by question.

    ``nats`` is the gold answer's log-likelihood; ``perplexity`` that of what was decoded, greedily, per token.
    """

    exact: list[bool]
    nats: list[float]
    answers: list[str]
    perplexity: list[float]
    tokens: list[int]
    bytes: list[int]


@torch.no_grad()
def answered(
    models: Models,
    end: End,
    cases: Sequence[Case],
    written: Callable[[Sequence[Case]], list[Written]],
    traces: Traces,
    *,
    shift: int = 0,
) -> Answered:
    """Returns what the reader answers behind each case's trace.

    Args:
        end: the writers'.
        written: the traces of some cases, as they are to be read.
        traces: whose plan says what the reader gets of them.
        shift: reads the trace of the case so many places on.
    """
    tokenizer, ends = models.receiver_tokenizer, end_ids(models.receiver)
    found = Answered([], [], [], [], [], [])
    with frozen(models):
        behind = Behind(replace(end, model=models.receiver))
        for start in range(0, len(cases), CHUNK):
            part = cases[start : start + CHUNK]
            given = [cases[(start + n + shift) % len(cases)] for n in range(len(part))]
            memories = [each.memory(traces.plan) for each in written(given)]
            questions = [list(case.questions) for case in part]
            asked = [
                [(layout(tokenizer, q.text).suffix, answer_ids(tokenizer, q.answer)) for q in own] for own in questions
            ]
            gold = scored(behind.logits(memories, asked), [answer for own in asked for _, answer in own])
            said = behind.answers(memories, [[suffix for suffix, _ in own] for own in asked], ends, ANSWER_TOKENS)
            again = iter(said)
            decoded = [[(suffix, next(again)) for suffix, _ in own] for own in asked]
            sure = scored(behind.logits(memories, decoded), said)
            texts = [tokenizer.decode([t for t in ids if t not in ends], skip_special_tokens=True) for ids in said]
            answers = [text.strip() for text in texts]
            flat = [question for own in questions for question in own]
            found.exact.extend(answer in q.answers for answer, q in zip(answers, flat, strict=True))
            found.nats.extend(sum(nats) for nats, _ in gold)
            found.answers.extend(answers)
            found.perplexity.extend(math.exp(-sum(nats) / len(nats)) for nats, _ in sure)
            found.tokens.extend(tokens for _, tokens in memories)
            found.bytes.extend(sum(k.nbytes + v.nbytes for k, v in pairs) for pairs, _ in memories)
    return found


@dataclass(frozen=True, slots=True)
class StepsWorth:
    """What a reader answers behind its traces, and behind each control, with the trace minus the control.

    ``exact`` and ``nats`` are means of each arm; ``gains`` are differences in exact match, ``gains_nats`` in nats of
    the gold answer; ``perplexity`` has of each arm the mean, the 95th percentile, and the share above 2; ``churn`` is
    the share of questions that are answered otherwise than behind the trace.
    """

    n: int
    cases: int
    steps: int
    exact: dict[str, float]
    nats: dict[str, float]
    gains: dict[str, Measured]
    gains_nats: dict[str, Measured]
    perplexity: dict[str, tuple[float, float, float]]
    churn: dict[str, float]

    def sentence(self) -> str:
        """Says first whether the steps bring anything: against each control of them, in exact match."""
        if not self.steps:
            return "The agents take no steps: what there is comes from the keys and values of their prompts."
        if not self.gains:
            return "What the steps bring cannot be told: the model has sliding windows, where they cannot be changed."
        parts = []
        for control in CONTROLS[:-1]:
            gain = self.gains[control]
            assert gain.low is not None
            assert gain.high is not None
            verdict = "more than" if gain.low > 0 else "less than" if gain.high < 0 else "not measurably more than"
            parts.append(f"{verdict} {control} ({gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}])")
        over = f"in exact match over {self.n} questions about {self.cases} cases"
        if (self.gains["zero trace"].low or 0) <= 0:
            zeros = f"{self.exact[OWN]:.3f} against {self.exact['zero trace']:.3f}"
            return (
                f"What the steps bring cannot be told: the reader answers no better behind its trace than behind zeros "
                f"({zeros}, {over}); train it longer, or on more cases."
            )
        return f"To this reader the steps bring {', '.join(parts)}, {over}."

    def to_dict(self) -> dict[str, Any]:
        """Returns all figures as JSON takes them."""
        return asdict(self) | {"sentence": self.sentence()}


def steps_worth(codec: Any, models: Models, cases: Sequence[Case], *, seed: int = 0) -> StepsWorth:
    """Measures what a trained reader answers behind its traces and behind each control; of a model with sliding windows
    there are none.

    Raises:
        ConfigError: there are fewer than two cases.
    """
    if len(cases) < 2:
        raise ConfigError(f"expected at least two cases (another's steps are a control), got {len(cases)}")
    end = End.of("writer", models.sender, models.sender_tokenizer)
    rule = Rule(codec.plan.rule, models.sender, codec.tensors)
    traces, steps = Traces(end, codec.plan, rule), codec.plan.steps
    known = dict(zip((case.context for case in cases), [*cases[1:], cases[0]], strict=True))

    def under(control: str, given: Sequence[Case]) -> list[Written]:
        own = traces.of_cases(given)
        others: Sequence[Written | None] = [None] * len(own)
        if control == "another's steps":
            others = traces.of_cases([known[case.context] for case in given])
        return [
            changed(a, steps, control, case.context, seed=seed, other=b)
            for case, a, b in zip(given, own, others, strict=True)
        ]

    arms = {OWN: answered(models, end, cases, traces.of_cases, traces)}
    controls = CONTROLS if steps else CONTROLS[-1:]
    for control in () if any(layer.window for layer in end.shape.layers) else controls:
        arms[control] = answered(models, end, cases, partial(under, control), traces)
    return _worth(arms, steps, cases, seed)


def _worth(arms: Mapping[str, Answered], steps: int, cases: Sequence[Case], seed: int) -> StepsWorth:
    documents = [number for number, case in enumerate(cases) for _ in case.questions]
    draws = Bootstrap(documents, seed=seed)
    own = arms[OWN]
    gains, gains_nats = (
        {
            name: draws.of(np.subtract, np.array(getattr(own, of), float), np.array(getattr(arm, of), float), unit=unit)
            for name, arm in arms.items()
            if name != OWN
        }
        for of, unit in (("exact", "exact match"), ("nats", "nats"))
    )
    return StepsWorth(
        n=len(documents),
        cases=len(cases),
        steps=steps,
        exact={name: float(np.mean(arm.exact)) for name, arm in arms.items()},
        nats={name: float(np.mean(arm.nats)) for name, arm in arms.items()},
        gains=gains,
        gains_nats=gains_nats,
        perplexity={name: sureness(arm.perplexity) for name, arm in arms.items()},
        churn={
            name: float(np.mean([a != b for a, b in zip(own.answers, arm.answers, strict=True)]))
            for name, arm in arms.items()
            if name != OWN
        },
    )


def sureness(perplexity: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean perplexity, its 95th percentile, and the share of outliers."""
    values = np.array(perplexity)
    return float(values.mean()), float(np.percentile(values, 95)), float((values > OUTLIER).mean())
