"""The report of one run: what every arm answered, and the figures that follow from it.

::

    items   one entry per question: its document, kind, wording, gold answer, what it is worth in bits
    arms    one entry per question and arm: the answer, its log-likelihood; one per document: the bytes that crossed
    cost    the times, one entry per repetition
      --figures()--> Measured and Computed, nothing else

A figure is never stored for itself: it is made from the items whenever it is asked for. The JSON holds the figures too,
for people; ``from_dict`` makes them anew and refuses a file whose figures differ, so that none can be typed in by hand.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilcp.errors import ConfigError, UnmeasuredError
from ilcp.evidence import Evidence
from ilcp.measure.bootstrap import Bootstrap
from ilcp.measure.cost import Cost
from ilcp.measure.fanout import FanOut
from ilcp.measure.figures import Citation, Computed, Measured
from ilcp.measure.formats import FORMAT, FORMATS, translated
from ilcp.measure.items import JOINT, LOG_LIKELIHOOD, Arm, Items
from ilcp.measure.verdict import CONTROLS, ESSENTIAL, verdict
from ilcp.records import read_record
from ilcp.tasks.cases import Case

__all__ = ["FORMAT", "Report"]

ALL = "all"  # in the place of a kind: every question
PER_QUESTION = "index"  # the arm whose bytes are those of one question, not of a document
SAME = 1e-6  # relative: what two versions of a numerics library may differ by
DAMAGED = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)  # what damaged columns bring about
Figures = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """One run's answers, beside their controls.

    ``answers_end`` is false for continuations, whose answers go on: exact match and F1 mean nothing there.
    ``notes`` says what could not be measured, and why. ``complete`` is false for what an interrupted run left.
    ``left_out`` are the cases that failed while they were measured, and ``seen`` is how many of those in the report the
    codec was trained on.
    """

    task: str
    seed: int
    answers_end: bool
    codec: Mapping[str, Any]
    items: Items
    arms: Mapping[str, Arm]
    provenance: Mapping[str, Any]
    cost: Cost | None = None
    fan_out: FanOut | None = None
    notes: tuple[str, ...] = ()
    footnotes: tuple[Citation, ...] = ()
    complete: bool = True
    format: int = field(default=FORMAT)
    left_out: tuple[str, ...] = ()
    seen: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"expected a seed from 0, got {self.seed}")
        for arm in self.arms.values():
            self._check_lengths(arm)

    def _check_lengths(self, arm: Arm) -> None:
        for column in (arm.nats, arm.new_nats, arm.answers if self.answers_end else arm.nats):
            if len(column) != len(self.items):
                raise ConfigError(
                    f"expected {len(self.items)} answers in arm {arm.name!r}, one per question, got {len(column)}"
                )
        for name in ("payload_bytes", "wire_bytes"):
            sizes = getattr(arm, name)
            if len(sizes) != (self.n if arm.payload_bytes or arm.wire_bytes else 0):
                raise ConfigError(f"expected {self.n} {name} in arm {arm.name!r}, one per document, got {len(sizes)}")
            if min(sizes, default=1) < 1:
                raise ConfigError(f"expected {name} from 1 in arm {arm.name!r}, got {min(sizes)}")

    @property
    def n(self) -> int:
        """The number of documents."""
        return len(self.items.entropy_bits)

    def kept(self, cases: Iterable[Case]) -> list[Case]:
        """Returns those of the cases that were not left out."""
        return [case for case in cases if case.id not in self.left_out]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of question, in the order of their first appearance."""
        return tuple(dict.fromkeys(self.items.kinds))

    @property
    def metric(self) -> str:
        """The score that this task is judged by: exact match, or log-likelihood where answers go on."""
        return "exact" if self.answers_end else LOG_LIKELIHOOD

    @property
    def metrics(self) -> tuple[str, ...]:
        """The scores that the answers give; ``joint`` where a document has several questions."""
        if not self.answers_end:
            return (LOG_LIKELIHOOD,)
        return ("exact", *((JOINT,) if len(self.items) > self.n else ()), "f1", LOG_LIKELIHOOD)

    @cached_property
    def _bootstrap(self) -> Bootstrap:
        return Bootstrap(self.items.documents, seed=self.seed)

    def mean(self, arm: str, kind: str = ALL, *, of: str | None = None) -> Measured:
        """Returns the mean score of an arm: ``of`` is one of ``metrics``; None is the task's own.

        ``joint`` is the share of documents of which all questions (of that kind) have the exact answer.
        """
        return self._figure(lambda x: x, arm, kind=kind, of=of, unit=self._unit(of))

    def recovery(self, arm: str, kind: str = ALL, *, of: str | None = None) -> Measured | None:
        """Returns (arm - none) / (text - none); None where the full text is not surely better than nothing."""
        gain = self.difference("text", "none", kind, of=of)
        if gain.low is None or gain.low <= 0:
            return None
        return self._figure(lambda x, none, text: (x - none) / (text - none), arm, "none", "text", kind=kind, of=of)

    def difference(self, arm: str, other: str, kind: str = ALL, *, of: str | None = None) -> Measured:
        """Returns arm - other, paired."""
        return self._figure(lambda x, y: x - y, arm, other, kind=kind, of=of, unit=self._unit(of))

    def content_gain(self, kind: str = ALL, *, of: str | None = None) -> Measured:
        """Returns the message minus another case's message: what shows that the message itself matters."""
        return self.difference("message", "mismatched", kind, of=of)

    def churn(self, arm: str, other: str, kind: str = ALL) -> Measured:
        """Returns the share of questions that two arms answer differently, right or wrong."""
        answers = zip(self._arm(arm).texts(self.items), self._arm(other).texts(self.items), strict=True)
        differs = np.array([a != b for a, b in answers], dtype=np.float64)
        return self._bootstrap.of(lambda x: x, differs, items=self._chosen(kind))

    def bits_per_byte(self, arm: str) -> Measured:
        """Returns what the gold answers cost the receiver in an arm, by their UTF-8 bytes."""
        sizes = np.array([len(gold.encode()) for gold in self.items.golds], dtype=np.float64)
        nats = self._arm(arm).scores(LOG_LIKELIHOOD, self.items)
        return self._bootstrap.of(lambda x, size: -x / np.log(2) / size, nats, sizes, unit="bits/byte")

    def delivered(self, arm: str) -> dict[str, Measured]:
        """Returns what an arm tells the receiver of a document's facts, in bits, and as shares of what was spent on it.

        Sum over the questions of (what the answer is worth - its cross-entropy, both in bits). What an answer is worth
        is known from the generator; elsewhere it is the receiver's own cross-entropy with nothing. Since the worths of
        all questions add up to the entropy of the document, this is a lower bound of the mutual information.
        """
        prior = self.items.prior_bits(self._arm("none"))
        gain = self.items.weights * (prior + self._arm(arm).new_nats_array / np.log(2))
        bits = self._bootstrap.sums(gain)
        found = {"bits per document": self._bootstrap.figure(bits, self.n, "bits")}
        for name, sizes in (("payload", self._arm(arm).payload_bytes), ("wire", self._arm(arm).wire_bytes)):
            if sizes:
                spent = self._bootstrap.of_groups(8.0 * np.array(sizes))
                found[f"share of {name} bits"] = self._bootstrap.figure(bits / spent, self.n)
        if all(self.items.entropy_bits):
            entropy = self._bootstrap.of_groups(np.array(self.items.entropy_bits, dtype=np.float64))
            found["share of the document's entropy"] = self._bootstrap.figure(bits / entropy, self.n)
        return found

    def mean_entropy(self) -> Measured:
        """Returns the mean entropy of the documents' facts, where the generator knows it.

        Raises:
            ConfigError: it does not.
        """
        if not all(self.items.entropy_bits):
            raise ConfigError(f"expected documents of known entropy, got those of {self.task!r}")
        bits = np.array(self.items.entropy_bits, dtype=np.float64)
        return self._bootstrap.figure(self._bootstrap.of_groups(bits), self.n, "bits")

    def strongest(self, names: tuple[str, ...]) -> str | None:
        """Returns which of these arms has the best score; None where none of them was run."""
        run = [name for name in names if name in self.arms]
        return max(run, key=lambda name: self.mean(name).value) if run else None

    def verdict(self) -> str:
        """Says in a sentence whether the message carries content, and whether text of as many bytes does better."""
        return verdict(self)

    def evidence(self) -> Evidence:
        """Returns the result that goes into the codec's folder.

        Raises:
            UnmeasuredError: the report is not complete, or lacks an arm that the evidence needs.
        """
        if not self.complete:
            raise UnmeasuredError(
                "expected a complete report for the evidence, got an interrupted one: finish the run first"
            )
        if missing := [name for name in ESSENTIAL if name not in self.arms]:
            raise UnmeasuredError(
                f"expected the arms {', '.join(ESSENTIAL)} for the evidence, got none of {', '.join(missing)}: measure "
                "them too"
            )
        gain = self.content_gain()
        shown = [arm for arm in ("message", *CONTROLS, "text") if arm in self.arms]
        return Evidence(
            codec_id=self.codec["codec_id"],
            task=f"{self.task} (trained on {self.seen} of them)" if self.seen else self.task,
            n=self.n,
            seed=self.seed,
            unit={"exact": "exact match", LOG_LIKELIHOOD: "nats"}[self.metric],
            content_gain=round(gain.value, 4),
            low=None if gain.low is None else round(gain.low, 4),
            high=None if gain.high is None else round(gain.high, 4),
            arms={arm: round(self.mean(arm).value, 4) for arm in shown},
            commit=self.provenance["commit"],
            measured_unix_s=self.provenance.get("measured_unix_s", 0),
            transformers=self.provenance.get("versions", {}).get("transformers", ""),
        )

    def figures(self) -> Figures:
        """Makes every figure: ``arms`` by arm, kind and metric, ``delivered``, ``bytes``, ``churn`` and ``cost``."""
        found: Figures = {
            "arms": {arm: {kind: self._scores_of(arm, kind) for kind in (ALL, *self.kinds)} for arm in self.arms},
            "bytes": {name: arm.sizes() for name, arm in self.arms.items() if arm.wire_bytes},
        }
        if {"text", "none", "message"} <= self.arms.keys():
            found["delivered"] = {arm: self.delivered(arm) for arm in self.arms if arm != PER_QUESTION}
            found["churn"] = {arm: self.churn(arm, "text") for arm in self.arms if self.answers_end}
        if not self.answers_end:
            found["bits per byte"] = {arm: self.bits_per_byte(arm) for arm in self.arms}
        if {"message", "mismatched"} <= self.arms.keys():
            found["content gain"] = {
                kind: {of: self.content_gain(kind, of=of) for of in self.metrics} for kind in (ALL, *self.kinds)
            }
        if self.cost is not None:
            found["cost"] = self.cost.figures()
        if self.fan_out is not None:
            found["fan-out"] = {"identical answers": self.fan_out.identical, "memory unchanged": self.fan_out.unchanged}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON takes it; the figures of an incomplete report are left out."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record["items"] = self.items.to_dict()
        record["arms"] = {name: arm.to_dict() for name, arm in self.arms.items()}
        record["cost"] = None if self.cost is None else self.cost.to_dict()
        record["fan_out"] = None if self.fan_out is None else plain(asdict(self.fan_out))
        record["footnotes"] = [asdict(note) for note in self.footnotes]
        record |= {"notes": list(self.notes), "left_out": list(self.left_out)}
        return record | {"verdict": self.verdict(), "figures": plain(self.figures()) if self.complete else {}}

    @classmethod
    def from_dict(cls, record: Any) -> "Report":
        """Reads the report that ``to_dict`` wrote, or a version before this one.

        Raises:
            ConfigError: another format, a field that is missing, or a figure that does not follow from the items.
        """
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        if found not in FORMATS:
            raise ConfigError(
                f"expected a report of ilcp measure, of format {' or '.join(map(str, FORMATS))}, got {found!r}: "
                "name another file, or measure again with this version"
            )
        try:
            columns = translated(record)
            columns["arms"] = {name: Arm.from_dict(arm, f"arm {name!r}") for name, arm in columns["arms"].items()}
            columns["cost"] = None if columns["cost"] is None else Cost.from_dict(columns["cost"])
            figures = columns.pop("figures")
        except ConfigError:
            raise
        except DAMAGED as error:
            raise ConfigError(
                f"expected the fields of a report, got {error!r}: it is no report of ilcp measure, or damaged"
            ) from error
        columns.pop("verdict", None)  # for people; it follows from the rest
        report = read_record(cls, columns, "the report")
        for where, name in (("codec", "codec_id"), ("provenance", "commit")):
            value = getattr(report, where).get(name)
            if not isinstance(value, str):
                raise ConfigError(f"expected {name!r} in the report's {where}, got {value!r}")
        if not report.complete:
            return report
        try:
            made = plain(report.figures())
        except ConfigError:
            raise
        except DAMAGED as error:
            raise ConfigError(f"expected answers and samples that give figures, got {error!r}: damaged") from error
        _check_same(made, figures, "figures")
        return report

    def _scores_of(self, arm: str, kind: str) -> Figures:
        found: Figures = {of: self.mean(arm, kind, of=of) for of in self.metrics}
        if {"text", "none"} <= self.arms.keys():
            for of in self.metrics:
                recovery = self.recovery(arm, kind, of=of)
                found |= {} if recovery is None else {f"recovery, {of}": recovery}
        return found

    def _unit(self, of: str | None) -> str:
        return "nats" if (of or self.metric) == LOG_LIKELIHOOD else ""

    def _figure(self, statistic: Any, *arms: str, kind: str, of: str | None, unit: str = "") -> Measured:
        of, chosen = of or self.metric, self._chosen(kind)
        scores = [self._scores(arm, "exact" if of == JOINT else of) for arm in arms]
        if of == JOINT:
            scores = [self._joint(exact, chosen) for exact in scores]
            chosen = self._firsts(chosen)
        return self._bootstrap.of(statistic, *scores, items=chosen, unit=unit)

    def _joint(self, exact: NDArray[np.float64], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Returns one score per question: 1 where all chosen questions of its document are right."""
        documents = np.array(self.items.documents)
        wrong = np.bincount(documents[chosen], exact[chosen] < 1, minlength=self.n)
        right: NDArray[np.float64] = (wrong[documents] == 0).astype(np.float64)
        return right

    def _firsts(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Keeps the first of the chosen questions of each document, which then stands for it."""
        numbers = np.flatnonzero(chosen)
        first = np.unique(np.array(self.items.documents)[numbers], return_index=True)[1]
        return np.isin(np.arange(len(chosen)), numbers[first])

    def _scores(self, arm: str, of: str) -> NDArray[np.float64]:
        key = arm, of
        if key not in self._known_scores:  # every figure asks for them, and F1 takes long
            self._known_scores[key] = self._arm(arm).scores(of, self.items)
        return self._known_scores[key]

    @cached_property
    def _known_scores(self) -> dict[tuple[str, str], NDArray[np.float64]]:
        return {}

    def _chosen(self, kind: str) -> NDArray[np.bool_]:
        chosen = np.array([kind in (ALL, found) for found in self.items.kinds])
        if not chosen.any():
            raise ConfigError(f"expected one of the kinds {ALL}, {', '.join(self.kinds)}, got {kind!r}")
        return chosen

    def _arm(self, name: str) -> Arm:
        if name not in self.arms:
            raise ConfigError(f"expected one of the arms {', '.join(self.arms)}, got {name!r}")
        return self.arms[name]


def plain(value: Any) -> Any:
    """Returns a nested table of figures as JSON gives it back."""
    if isinstance(value, Measured | Computed):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _check_same(made: Any, stored: Any, where: str) -> None:
    """Checks whatever is stored; a version before knew fewer figures."""
    if isinstance(made, dict) and isinstance(stored, dict) and made.keys() >= stored.keys():
        for name, value in stored.items():
            _check_same(made[name], value, f"{where} / {name}")
        return
    close = isinstance(made, int | float) and isinstance(stored, int | float) and bool(np.isclose(made, stored, SAME))
    if not close and made != stored:
        raise ConfigError(f"expected {made!r} at {where}, because the answers in the file say so, got {stored!r}")
