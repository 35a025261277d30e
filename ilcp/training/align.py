"""``ilcp align``: from two models to a measured map between their caches.

::

    models, texts --closed form--> map --through the receiver--> codec --> folder
      --> canary facts, or questions of the caller's, with every control --> evidence in the folder

What decides whether the codec may be used are facts, not likelihood: of texts of one kind another's cache brings most
of that as well. First the receiver has to know these facts from its own cache; where it does not, nothing is tried.
"""

import itertools
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ilcp.codec.folder import attach_evidence, load, save
from ilcp.codec.memory import TextMemory
from ilcp.codec.protocols import Codec
from ilcp.codec.registry import codec_class
from ilcp.codec.seen import write_seen
from ilcp.errors import ConfigError, StorageError, TrainingError
from ilcp.files import require_writable
from ilcp.handoff import Receiver, Sender
from ilcp.measure import Report, provenance, run
from ilcp.measure.bootstrap import Bootstrap
from ilcp.measure.files import UNFINISHED
from ilcp.measure.run import require_cases
from ilcp.models.adapter import adapter_files, with_adapter
from ilcp.models.loading import load_model
from ilcp.nn.attention import many_shapes
from ilcp.tasks import Case, Question, canaries, read_jsonl
from ilcp.tasks.load import own_test
from ilcp.tasks.written import merged, write_jsonl
from ilcp.training.begun import is_empty
from ilcp.training.card import short_name
from ilcp.training.data import LEAST, split
from ilcp.training.finish import REPORT, shows, tell
from ilcp.training.log import LOG
from ilcp.training.pace import seconds_text, voice

__all__ = ["Alignment", "align", "taught"]

MINUTES = 20.0
CANARIES = "canary facts"
TRIED = 48  # canaries that the receiver is asked from their text, before anything is fitted
TEST_CASES = 300
EVERY = 5  # steps of the second step, a line of its log
CONTINUED_CHARACTERS = 200  # of a text without questions: what comes next, behind a place that is drawn

CARD = """---
library_name: ilcp
tags:
- ilcp
- kv-cache
---

# {sender}'s cache for {receiver}

A codec of ilcp: what {sender} has computed of a text, its keys and values, mapped to those of {receiver}, which then
reads nothing of the text. It was made for exactly these two models and knows them by their weights{weights}.

Ridge on {cases[training]} texts, then {steps} steps through the receiver in {minutes} minutes, seed {seed}; `log.jsonl`
has the curve.

## Limits

- It is for texts like those that it was made of. What it carries of yours tells `ilcp measure FOLDER --task FILE`.
- What reads fluently may know nothing: likelihood is no evidence here, facts are.
"""


@dataclass(frozen=True, slots=True)
class Alignment:
    """What ``align`` is asked for.

    ``data`` holds cases as ``ilcp.tasks.read_jsonl`` reads them: their contexts are fitted to, and their questions
    teach and test. Of texts without questions canary facts do both. ``tokens`` is the most that a cache may stand for,
    ``learning_rate`` that of the step through the receiver, None for the aligner's own. ``adapter`` is a folder of
    low-rank weights (peft) that the receiver has; they go into the codec's folder.
    """

    sender: str
    receiver: str
    data: Path
    out: Path
    minutes: float = MINUTES
    tokens: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    learning_rate: float | None = None
    adapter: Path | None = None

    def __post_init__(self) -> None:
        if not self.minutes > 0 or self.minutes == float("inf"):
            raise ConfigError(f"expected minutes above 0, got {self.minutes}")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise ConfigError(f"expected a learning rate between 0 and 1, got {self.learning_rate}")
        if self.seed < 0:
            raise ConfigError(f"expected seed to be 0 or more, got {self.seed}")
        if os.path.lexists(self.out) and not is_empty(self.out):
            raise ConfigError(f"expected a new folder for the codec, got {self.out}, which is there: choose another")

    @property
    def work(self) -> Path:
        """The folder of the cases and the report, beside the codec's."""
        return own_test(self.out).parent


def align(plan: Alignment) -> Report:
    """Finds the map between two models' caches, measures it, and saves it in ``plan.out``.

    Raises:
        ConfigError: the models, the data, the adapter or the folder cannot be used.
        MissingExtraError: there is an adapter, and peft is not installed.
        TrainingError: the receiver does not know the facts from its own reading of the text.
        StorageError: the disk is full or not to be written to.
    """
    cases = merged(read_jsonl(plan.data))
    asked = [case for case in cases if all(question.text for question in case.questions)]
    if asked and len(asked) < len(cases):
        raise ConfigError(f"expected either questions or texts alone in {plan.data}, got both: align with one of them")
    training, test, task = _parts(cases, bool(asked), plan)
    _require_new(plan.work)
    files = None if plan.adapter is None else adapter_files(plan.adapter)
    models = [load_model(one, dtype=plan.dtype, device=plan.device) for one in (plan.sender, plan.receiver)]
    models[1] = with_adapter(models[1][0], plan.adapter), models[1][1]
    _require_known(*models[1], test, task, ends=bool(asked))
    with many_shapes():
        method: Any = codec_class("kv-align")
        aligner = method.aligner(*models[0], *models[1], tokens=plan.tokens)
        for case in [*test, *(training if asked else ())]:
            if not aligner.holds(case):
                raise ConfigError(
                    f"expected texts of at most {aligner.tokens} of the sender's tokens, with room for the question in "
                    f"the receiver's window, got case {case.id!r}: shorten it, leave it out, or allow more tokens"
                )
        tell(f"both models read {len(training)} texts")
        aligner.fit([case.context for case in training])
        steps = _tuned(aligner, training if asked else taught(training, plan.seed), plan)
        _save(aligner.codec(), plan, training, steps, files)
        write_jsonl(own_test(plan.out), test)
        return _measured(load(plan.out), models, test, task, plan, ends=bool(asked))


def _require_new(work: Path) -> None:
    """Refuses a folder that holds another measurement, which would be taken for this one's beginning.

    Raises:
        ConfigError: with what to do.
        StorageError: nothing can be written there.
    """
    left = [file for file in (work / REPORT, work / (REPORT + UNFINISHED)) if os.path.lexists(file)]
    if left:
        raise ConfigError(f"expected no report of an earlier run, got {left[0]}: remove it, or choose another --out")
    require_writable(work / REPORT)


def _parts(cases: list[Case], asked: bool, plan: Alignment) -> tuple[list[Case], list[Case], str]:
    """Returns the cases to align with, those with facts to measure on, and the name of these."""
    if not asked:
        return cases, list(itertools.islice(canaries("test", plan.seed), TEST_CASES)), CANARIES
    if len(cases) < 10 * LEAST:
        raise ConfigError(
            f"expected at least {10 * LEAST} cases with different contexts in {plan.data} (a tenth tests), got "
            f"{len(cases)}: add cases, or give texts without questions"
        )
    parts = split(cases, validation=0, test=TEST_CASES, seed=plan.seed)
    return parts.training, parts.test, plan.data.name


def _require_known(model: Any, tokenizer: Any, cases: Sequence[Case], task: str, *, ends: bool) -> None:
    """Refuses a receiver that does not know the facts from its own reading of the text.

    Raises:
        ConfigError: a case does not fit into its window.
        TrainingError: with what it knows of its own text, and of another case's.
    """
    receiver = Receiver(model, tokenizer, codec_class("text-head")(), allow_unmeasured=True)
    require_cases(cases, receiver, answers_end=ends)
    cases = cases[:TRIED]
    texts = [TextMemory(case.context) for case in cases]
    nats = []
    for held in (texts, texts[1:] + texts[:1]):
        asked = [(memory, q.text, q.answer) for memory, case in zip(held, cases, strict=True) for q in case.questions]
        nats.append([score.log_likelihood_nats for score in receiver.score(asked, end=ends)])
    own, other = (np.array(each) for each in nats)
    documents = [number for number, case in enumerate(cases) for _ in case.questions]
    gain = Bootstrap(documents, seed=0).of(np.subtract, own, other)
    if gain.low is None or gain.low <= 0:
        raise TrainingError(
            f"expected a receiver that knows {task} from its own reading, got {own.mean():.2f} nats an answer by the "
            f"text and {other.mean():.2f} by another's: what it does not know itself no cache can tell it; take one "
            "that reads them, or --data with questions that it answers"
        )
    tell(
        f"the receiver, by its own reading of {task}: {own.mean():.2f} nats an answer, by another's {other.mean():.2f}"
    )


def taught(cases: Sequence[Case], seed: int) -> list[Case]:
    """Returns as many canaries as texts, and of each text its beginning and what comes next."""
    drawn, found = random.Random(f"align {seed}"), list(itertools.islice(canaries("train", seed), len(cases)))
    for case in cases:
        text = case.context
        place = drawn.randint(len(text) // 4, 3 * len(text) // 4)
        at = max(text.rfind(" ", 0, place), 0) or place
        beginning, end = text[:at], text[at : at + CONTINUED_CHARACTERS]
        if beginning.strip() and end.strip():
            found.append(Case(case.id, beginning, (Question("", end.strip(), "continuation"),)))
    return found


def _tuned(aligner: Any, cases: Sequence[Case], plan: Alignment) -> list[dict[str, float]]:
    """Takes the second step, and returns what it said of itself; Ctrl-C ends it, and its map stays."""
    told: list[dict[str, float]] = []
    with voice(Console(stderr=True, soft_wrap=True), "through the receiver") as show:

        def heard(step: Any) -> None:
            told.append(asdict(step))
            left = seconds_text(max(0.0, 60 * plan.minutes - step.seconds))
            show(step.seconds / (60 * plan.minutes), f"step {step.steps:,} · KL {step.kl:.3f} nats · ends in {left}")

        try:
            rate = plan.learning_rate
            aligner.tune(cases, minutes=plan.minutes, learning_rate=rate, seed=plan.seed, every=EVERY, told=heard)
        except KeyboardInterrupt:
            tell("interrupted: what was found so far is saved and measured")
        except TrainingError as error:
            tell(f"{error}; what was found before that step is saved and measured")
    return told


def _save(
    codec: Codec,
    plan: Alignment,
    cases: Sequence[Case],
    steps: Sequence[dict[str, float]],
    files: Mapping[str, bytes] | None,
) -> None:
    weights = "" if files is None else ", the receiver's low-rank ones (`receiver-adapter`) among them"
    made: dict[str, Any] = {
        "plan": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(plan).items()},
        "cases": {"training": len(cases)},
        "steps": steps[-1]["steps"] if steps else 0,
        "minutes": round(steps[-1]["seconds"] / 60, 1) if steps else 0.0,
        "seed": plan.seed,
        "provenance": provenance(sender=codec.trained.sender.exact, receiver=codec.trained.receiver.exact),
    }
    save(
        codec,
        plan.out,
        card=CARD.format(sender=short_name(plan.sender), receiver=short_name(plan.receiver), weights=weights, **made),
        training=made,
        adapter=files,
    )
    try:
        write_seen(plan.out, (case.context for case in cases))
        (plan.out / LOG).write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"expected room for the codec in {plan.out}, got: {error}; free space") from error
    tell(f"the map is in {plan.out}, not measured yet: 'ilcp measure {plan.out} --attach' does so too")


def _measured(
    codec: Codec, models: Sequence[Any], cases: Sequence[Case], task: str, plan: Alignment, *, ends: bool
) -> Report:
    (sender, sender_tokenizer), (receiver, receiver_tokenizer) = models
    report = run(
        Sender(sender, sender_tokenizer, codec),
        Receiver(receiver, receiver_tokenizer, codec, allow_unmeasured=True),
        cases,
        task=task,
        seed=plan.seed,
        answers_end=ends,
        repetitions=0,
        keep=plan.work / REPORT,
        progress=shows(),
    )
    attach_evidence(plan.out, report.evidence())
    return report
