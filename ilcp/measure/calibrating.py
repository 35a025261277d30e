"""Calibration: what is usual of a codec's messages, from cases that no training has seen, and how its canaries fare."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import transformers

from ilcp.assurance.observing import attention_of, encoded, received
from ilcp.assurance.reference import Calibrated, Reference
from ilcp.assurance.shape import Array
from ilcp.assurance.view import FEWEST, Observed, View
from ilcp.codec.context import Context
from ilcp.errors import ConfigError
from ilcp.handoff import Receiver, Sender
from ilcp.handoff.assured import probed
from ilcp.measure.figures import provenance
from ilcp.measure.sequential import right_answers
from ilcp.tasks import Case, cases_digest

__all__ = ["calibrate"]

AT_ONCE = 64  # contexts in memory
PROBES = 8  # answers
FEWEST_SAME = 5  # cases of which an answer is: one of fewer would tell of them
MOST_PROBED = 2000  # messages that the receiver's model is asked behind
MOST_CANARIES = 1000
ATTENDED = 100  # caches that the usual attention is the mean of


def calibrate(
    sender: Sender, receiver: Receiver, cases: Sequence[Case], *, task: str, seed: int = 0, batch: int = 8
) -> Reference:
    """Returns what is usual of a codec's messages; ``write`` puts it into the codec's folder.

    Args:
        cases: at least 100, that neither training nor any choice has seen, in an order that means nothing. Those with
            questions are canaries, too, and the most usual of these are the probe.
        task: their name.
        seed: that they were drawn with.

    Raises:
        ConfigError: there are too few, or the codec has nothing to observe.
    """
    codec, cases = sender.codec, list(cases)
    if len(cases) < FEWEST:
        raise ConfigError(f"expected at least {FEWEST} cases to calibrate on, got {len(cases)}: give more")
    attention = _usual_attention(sender, cases[:ATTENDED], batch)
    observed: dict[str, list[Observed]] = {}
    probe = _probe(cases)
    known = Calibrated(
        codec.trained.codec_id(codec.spec).hex(), task, cases_digest(cases), len(cases), seed,
        provenance()["commit"], transformers.__version__, probe,
    )  # fmt: skip
    empty = Reference({}, known, attention)
    for number, context in enumerate(_contexts(sender, cases, batch)):
        payload, sent = encoded(codec, context, None, attention)
        if sent is not None:
            observed.setdefault("sent", []).append(sent)
        for length in codec.spec.prefixes or (len(payload),):
            part = payload[:length]
            memory = codec.decode(part)
            for name, each in received(codec, part, memory, attention).items():
                observed.setdefault(name, []).append(each)
        if number < MOST_PROBED and (effect := probed(receiver, memory, empty)) is not None:
            observed.setdefault("probed", []).append(effect)
    if not observed:
        raise ConfigError(f"expected a codec with something to observe, got {codec.spec.name}: text is read as it is")
    views = {name: View.fit(each) for name, each in observed.items()}
    asked, right, others = right_answers(sender, receiver, cases[:MOST_CANARIES])
    known = replace(known, canaries=asked, right=right, right_by_others=others)
    return Reference(views, known, attention)


def _contexts(sender: Sender, cases: Sequence[Case], batch: int) -> Iterator[Context]:
    texts = iter([case.context for case in cases])
    while part := list(islice(texts, AT_ONCE)):
        yield from sender.read_batch(part, batch)


def _usual_attention(sender: Sender, cases: Sequence[Case], batch: int) -> Array | None:
    """Returns the mean attention of the codec's caches; None where it has none."""
    found = []
    for context in _contexts(sender, cases, batch):
        if context.kv is None:
            return None
        memory = sender.codec.decode(sender.codec.encode(context))
        found.append(attention_of(getattr(memory, "kv", context.kv)))
    mean: Array = np.mean(found, axis=0)
    return mean


def _probe(cases: Sequence[Case]) -> tuple[tuple[str, str], ...]:
    """Returns the most usual questions, each with its most usual answer, as far as several cases have it."""
    asked = Counter(
        each for case in cases for each in {(q.text, q.answer) for q in case.questions if q.answer and q.said}
    )
    best: dict[str, str] = {}
    for (question, answer), count in sorted(asked.items(), key=lambda each: (-each[1], each[0])):
        if count >= FEWEST_SAME:
            best.setdefault(question, answer)
    return tuple(islice(best.items(), PROBES))
