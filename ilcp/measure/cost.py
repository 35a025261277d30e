"""The cost of a hand-off: time by step, operations, bytes, and the document length from which it pays.

A ``Cost`` keeps the raw samples; every figure is a function of them, so that a report can compute it again. ``timing``
takes the samples, ``prefill`` is the receiver's bare forward pass, ``flops`` counts its operations.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from ilcp.codec.spec import READS
from ilcp.errors import ConfigError
from ilcp.handoff import Receiver, Sender
from ilcp.measure.figures import Computed, Measured
from ilcp.measure.flops import model_sizes, prefill_flops
from ilcp.measure.payload import kv_cache
from ilcp.measure.timing import Bench, fits, torch_threads
from ilcp.message import describe
from ilcp.models.reading import window_tokens
from ilcp.records import read_record

__all__ = ["Cost", "Point", "break_even", "cost", "require_repetitions"]

MIN_REPETITIONS = 50  # the 99th percentile of fewer is no more than their maximum
QUIET_SHARE = 0.95  # of one processor: with less, waiting for other processes shows in the times
LENGTH_REPETITIONS = 20  # per document length: medians only
CACHED = "prefill, text in the prefix cache"
PROMPTS = ("message", "text", "as many tokens", "nothing")
STEPS = {
    "sender reads",
    "sender reads, no hidden states",
    "codec encodes",
    "wire out",
    "wire out, in a row",
    "wire in",
    "wire in, in a row",
    "codec decodes",
    "receiver decodes",
    "first token, memory",
    *(f"first token, {prompt}" for prompt in PROMPTS),
    *(f"prefill, {prompt}" for prompt in PROMPTS),
}
POINT_STEPS = {"text", "message", "encode", "wire out"}
COUNTED = {"text", "message", "codec encodes", "codec decodes", "text tokens", "message tokens"}
Figures = dict[str, Measured | Computed]
Samples = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Point:
    """A document of ``tokens`` receiver's tokens: milliseconds to the first token by text and by message (its decoding
    counted in), and what the sender pays for the message; one sample per repetition."""

    tokens: int
    samples: Samples

    def __post_init__(self) -> None:
        _check_samples(f"a document of {self.tokens} tokens", self.samples, POINT_STEPS, LENGTH_REPETITIONS)

    def median(self, step: str) -> float:
        """Returns the median of one step, in milliseconds."""
        return float(np.median(self.samples[step]))


@dataclass(frozen=True, slots=True)
class Cost:
    """The samples of one pair's hand-off, and the figures made of them.

    ``samples`` holds milliseconds per step and ``tokens`` those of each prompt, one per repetition; ``points`` the time
    by document length; ``sizes`` what the formula for operations needs (see ``model_sizes``), ``flops`` what the
    counter counted; ``parts`` the message's bytes; ``kv_token`` the bytes of one token's keys and values; ``skipped``
    says why a step was not measured. ``processor_share`` is the processor time per second of the measurement.
    """

    question: str
    threads: int
    processor_share: float
    reads: str
    samples: Samples
    tokens: Mapping[str, tuple[int, ...]]
    points: tuple[Point, ...]
    sizes: Mapping[str, int]
    flops: Mapping[str, int]
    parts: Mapping[str, int]
    kv_token: Computed
    skipped: Mapping[str, str]

    def __post_init__(self) -> None:
        _check_samples("a cost", self.samples, STEPS | ({CACHED} - set(self.skipped)), MIN_REPETITIONS)
        _check_samples("a cost's prompts", self.tokens, {*PROMPTS} | (set(self.tokens) - {*PROMPTS}), MIN_REPETITIONS)
        if not self.processor_share > 0:
            raise ConfigError(f"expected a processor_share above 0, got {self.processor_share!r}")
        if set(self.flops) != COUNTED:
            raise ConfigError(f"expected counts of {sorted(COUNTED)}, got {sorted(self.flops)}")

    def figures(self) -> Figures:
        """Returns every figure by name: medians and 99th percentiles of the steps, and what follows from them."""
        n = len(self.samples["wire in"])
        found: Figures = {}
        for step, values in self.samples.items():
            found[step] = Measured(float(np.median(values)), "ms", n)
            found[f"{step}, p99"] = Measured(float(np.percentile(values, 99)), "ms", n)
        for prompt, counts in self.tokens.items():
            found[f"tokens, {prompt}"] = Measured(float(np.median(counts)), "tokens", n)
        found["processor share"] = Measured(self.processor_share, "", 1)
        return found | self._sums() | self._ratios() | self._saved() | self._operations() | self._by_length()

    def notes(self) -> tuple[str, ...]:
        """Says what the figures leave out, and why."""
        notes = []
        if self.processor_share < QUIET_SHARE:
            notes.append(
                f"the process had {self.processor_share:.0%} of a processor: others ran beside it; measure again"
            )
        notes += [f"{step}: not measured, {reason}" for step, reason in self.skipped.items()]
        for side, gains in self._gains().items():
            if break_even(gains) is None:
                notes.append(f"{side}: the message is not faster at the longest document, {gains[-1][0]} tokens")
            elif gains[0][1] > 0 and all(gain > 0 for _, gain in gains):
                notes.append(f"{side}: the message is faster at every length measured, from {gains[0][0]} tokens")
        return tuple(notes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the raw samples, as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Any) -> Self:
        """Reads the cost that ``to_dict`` wrote, also after a passage through JSON.

        Raises:
            ConfigError: fields or samples are missing, unknown, or no numbers.
        """
        return read_record(cls, record, "a cost")

    def _median(self, step: str) -> float:
        return float(np.median(self.samples[step]))

    def _extra(self) -> Computed:
        """Returns what the sender pays beyond what it computes anyway: the passage it reads."""
        read, encode = self._median("sender reads"), self._median("codec encodes")
        if not READS.get(self.reads, True):
            return Computed(read + encode, "ms", "reading + encode", {"reading": read, "encode": encode})
        anyway = self._median("sender reads, no hidden states")
        inputs = {"reading": read, "encode": encode, "anyway": anyway}
        return Computed(read + encode - anyway, "ms", "reading + encode - anyway", inputs)

    def _sums(self) -> Figures:
        found: Figures = {"sender's extra": self._extra()}
        for how in ("", ", in a row"):
            out, back = self._median(f"wire out{how}"), self._median(f"wire in{how}")
            inputs = {"wire_out": out, "wire_in": back}
            found[f"wire both ways{how}"] = Computed(1000 * (out + back), "us", "1000 * (wire_out + wire_in)", inputs)
        return found

    def _ratios(self) -> Figures:
        first = {name: self._median(f"first token, {name}") for name in ("memory", *PROMPTS)}
        bare = {name: self._median(f"prefill, {name}") for name in PROMPTS}
        sent = {"encode": self._median("codec encodes"), "wire": self._median("wire out")}
        extra = {"extra": self._extra().value, "wire": sent["wire"]}
        decode = {"decode": self._median("codec decodes")}
        found: Figures = {
            "first token, message / text": _ratio({"message": first["message"]}, "text", first["text"]),
            "first token, message, encode and wire / text": _ratio(
                {"message": first["message"], **sent}, "text", first["text"]
            ),
            "first token, message, sender's extra and wire / text": _ratio(
                {"message": first["message"], **extra}, "text", first["text"]
            ),
            "first token, message / as many tokens": _ratio(
                {"message": first["message"]}, "as_many", first["as many tokens"]
            ),
            "first token, memory / as many tokens": _ratio(
                {"memory": first["memory"]}, "as_many", first["as many tokens"]
            ),
            "prefill, message / text": _ratio({"message": bare["message"]}, "text", bare["text"]),
            "prefill, message / as many tokens": _ratio(
                {"message": bare["message"]}, "as_many", bare["as many tokens"]
            ),
            "decode / prefill of the text": _ratio(decode, "text", bare["text"]),
        }
        if CACHED in self.samples:
            cached = self._median(CACHED)
            found["prefill, decode and message / text in the prefix cache"] = _ratio(
                {**decode, "message": bare["message"]}, "cached", cached
            )
        return found

    def _saved(self) -> Figures:
        """Returns the bytes sent, and what the receiver neither pre-fills nor keeps."""
        text, message = (float(np.median(self.tokens[name])) for name in ("text", "message"))
        tokens = Computed(text - message, "tokens", "text - message", {"text": text, "message": message})
        one = self.kv_token
        built = Computed(one.value * tokens.value, "B", one.formula, dict(one.inputs) | {"tokens": tokens.value})
        parts: Figures = {f"message, {name}": Measured(size, "B", 1) for name, size in self.parts.items()}
        whole: Figures = {"message": Measured(sum(self.parts.values()), "B", 1)}
        saved: Figures = {"tokens not pre-filled": tokens}
        return whole | parts | saved | ({} if self.reads == "cache" else {"KV bytes not built": built})

    def _operations(self) -> Figures:
        text, message = (prefill_flops(self.sizes, self.flops[f"{name} tokens"]) for name in ("text", "message"))
        found: Figures = {"FLOPs by formula, text": text}
        if self.reads != "cache":  # the formula knows of no tokens that are attended to and not read
            ratio = _ratio({"message": message.value}, "text", text.value)
            found |= {"FLOPs by formula, message": message, "FLOPs by formula, message / text": ratio}
        for name in ("text", "message", "codec encodes", "codec decodes"):
            if self.flops[name]:  # a codec without torch has nothing that the counter sees
                found[f"FLOPs counted under eager attention, {name}"] = Measured(self.flops[name], "FLOP", 1)
        return found

    def _gains(self) -> dict[str, list[tuple[int, float]]]:
        """Returns per side the document lengths with the milliseconds that the message saves at each."""
        receiver = [(point.tokens, point.median("text") - point.median("message")) for point in self.points]
        both = [
            (point.tokens, gain - point.median("encode") - point.median("wire out"))
            for point, (_, gain) in zip(self.points, receiver, strict=True)
        ]
        return {"the message pays, receiver alone": receiver, "the message pays, encode and wire counted in": both}

    def _by_length(self) -> Figures:
        found: Figures = {}
        for point in self.points:
            for step, values in point.samples.items():
                name = f"{point.tokens} tokens, {step}"
                found[name] = Measured(point.median(step), "ms", len(values))
        breaks = {side: break_even(gains) for side, gains in self._gains().items()}
        return found | {side: figure for side, figure in breaks.items() if figure is not None}


def break_even(gains: Sequence[tuple[int, float]]) -> Computed | None:
    """Computes the document length from which a message pays; None where it does not at the longest measured.

    ``gains`` are document tokens, ascending, with the milliseconds saved at each. Where noise makes several crossings,
    the last one counts; where the message pays at every length, the shortest is given.
    """
    losing = [place for place, (_, gain) in enumerate(gains) if gain <= 0]
    if not gains or (losing and losing[-1] == len(gains) - 1):
        return None
    if not losing:
        return Computed(gains[0][0], "tokens", "shortest", {"shortest": gains[0][0]})
    (short, before), (long, gain) = gains[losing[-1] : losing[-1] + 2]
    value = short + (long - short) * -before / (gain - before)
    inputs = {"short": short, "long": long, "loss": -before, "gain": gain}
    return Computed(value, "tokens", "short + (long - short) * loss / (loss + gain)", inputs)


def cost(
    sender: Sender,
    receiver: Receiver,
    contexts: Sequence[str],
    *,
    question: str,
    n: int = 60,
    threads: int = 1,
    longest_tokens: int = 4096,
    progress: bool = False,
) -> Cost:
    """Measures the cost of handing ``contexts`` over, beside what the receiver pays without a hand-off.

    Args:
        contexts: documents; those that fit the receiver's window with the question take turns.
        question: asked of every document.
        n: repetitions; a third of them, at least 20, per document length.
        threads: of torch, for the time of the measurement.
        longest_tokens: the longest document that is made, where the receiver's window is longer.

    Raises:
        ConfigError: fewer than 50 repetitions, no thread, or no question.
        EncodeError: no context fits the receiver's window.
    """
    fitting = _fitting(receiver, contexts, question, n, threads)
    with torch_threads(threads):
        wall_s, busy_s = time.perf_counter(), time.process_time()
        bench = Bench(sender, receiver, question)
        refusal = bench.cache_refusal(fitting[0])
        samples, tokens = bench.measure([fitting[i % len(fitting)] for i in range(n)], not refusal, progress)
        points = bench.by_length(fitting, max(LENGTH_REPETITIONS, n // 3), longest_tokens, progress)
        flops = bench.count(fitting[0])
        processor_share = (time.process_time() - busy_s) / (time.perf_counter() - wall_s)
    return Cost(
        question=question,
        threads=threads,
        processor_share=processor_share,
        reads=sender.codec.spec.reads,
        samples=samples,
        tokens=tokens,
        points=tuple(Point(*point) for point in points),
        sizes=model_sizes(receiver.model),
        flops=flops,
        parts=_parts(sender, fitting[0]),
        kv_token=kv_cache(receiver.model.config, 1, receiver.model.dtype.itemsize),
        skipped={CACHED: refusal} if refusal else {},
    )


def _parts(sender: Sender, context: str) -> dict[str, int]:
    """Returns the bytes of a context's message, part by part, and of what it names."""
    described = describe(sender.encode(context), key=sender.key, audience=sender.audience)
    parts = {part.name: part.size_bytes for part in described.parts}
    return parts if described.blob_bytes is None else parts | {"blob": described.blob_bytes}


def require_repetitions(n: int) -> None:
    """Refuses too few repetitions.

    Raises:
        ConfigError: with how many it takes.
    """
    if n < MIN_REPETITIONS:
        because = "the 99th percentile of fewer is no more than their maximum"
        raise ConfigError(f"expected at least {MIN_REPETITIONS} repetitions, got {n}: {because}")


def _fitting(receiver: Receiver, contexts: Sequence[str], question: str, n: int, threads: int) -> list[str]:
    """Returns the contexts that the receiver can read with the question; refuses what cannot be measured."""
    require_repetitions(n)
    if threads < 1 or not question.strip():
        raise ConfigError(f"expected at least one thread and a question, got {threads} and {question!r}")
    fitting = [context for context in contexts if context.strip() and fits(receiver, context, question)]
    if not fitting:
        raise ConfigError(
            f"expected a context that fits the receiver's window of {window_tokens(receiver.model)} tokens, "
            f"got {len(contexts)} of which none does: cut them"
        )
    return fitting


def _ratio(above: Mapping[str, float], below: str, value: float) -> Computed:
    """Computes the sum of what is ``above``, over ``value``, which is named ``below``."""
    total = " + ".join(above)
    formula = f"({total}) / {below}" if len(above) > 1 else f"{total} / {below}"
    return Computed(sum(above.values()) / value, "", formula, {**above, below: value})


def _check_samples(what: str, samples: Mapping[str, tuple[float, ...]], steps: set[str], least: int) -> None:
    """Refuses samples unless each step, and no other, has as many finite ones as the next, and at least ``least``."""
    if set(samples) != steps:
        raise ConfigError(f"expected {what} to hold {sorted(steps)}, got {sorted(samples)}")
    lengths = {len(values) for values in samples.values()}
    if len(lengths) != 1 or min(lengths) < least:
        raise ConfigError(f"expected {what} to hold at least {least} samples of every step, got {sorted(lengths)}")
    for step, values in samples.items():
        if not all(0 <= value < float("inf") for value in values):
            raise ConfigError(f"expected samples from 0 up of {step!r} in {what}, got {values}")
