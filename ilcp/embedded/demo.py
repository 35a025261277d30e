"""Demonstrates a pipeline of four agents over one document, by text and by message, beside its controls.

Each hop asks its own questions. By text, every hop re-reads the document; by message, the first reader has encoded it
once, and every hop attends to what it decodes from the same 100 bytes.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ilcp import measure
from ilcp.codec.memory import Memory, TextMemory
from ilcp.codec.registry import codec_class
from ilcp.embedded import Pair
from ilcp.handoff import Receiver
from ilcp.message import Message
from ilcp.tasks import Question, case_files

__all__ = ["HOPS", "Demo", "Hop", "Run", "hop_of", "run_demo"]

HOPS: dict[str, tuple[str, ...]] = {  # words by which each hop knows its questions; the last also takes joins and codes
    "router": ("region", "went down", "outage hit", "alarm", "reported", "minutes"),
    "planner": ("traffic", "ticket", "follow-up", "next week", "upstream", "escalations", "gets worse", "customer"),
    "reasoner": ("root", "factor", "made it worse", "detected", "show up", "damage", "mitigation", "supplie"),
    "finaliser": ("change", "evidence", "audit", "restored", "recovery", "accounts"),
}
SEED = 7
ARMS = ("message", "none", "mismatched", "text")


@dataclass(frozen=True, slots=True)
class Run:
    """One hop by text or by message: tokens pre-filled, bytes that crossed, time to the first token, right answers."""

    prefilled_tokens: int
    wire_bytes: int
    first_token_ms: float
    right: int


@dataclass(frozen=True, slots=True)
class Hop:
    """One hop: its name, the number of questions it asked, and its runs by text and by message."""

    name: str
    questions: int
    text: Run
    latent: Run


@dataclass(frozen=True, slots=True)
class Demo:
    """The hops, the encoding that the message costs once, and the controls over ``documents`` documents."""

    document: str
    message_bytes: int
    encode_ms: float
    hops: tuple[Hop, ...]
    controls: dict[str, dict[str, Any]]
    documents: int
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON takes it."""
        return asdict(self)


def run_demo(pair: Pair, *, documents: int = 12) -> Demo:
    """Runs the pipeline on one test document, and the controls on ``documents`` of them."""
    cases = list(case_files("test", SEED, documents))
    case = cases[0]
    pair.sender.encode(case.context)  # warm-up, not timed
    pair.receiver.generate(None, "Which region is affected?", context=case.context, max_new_tokens=1)
    started = time.perf_counter()
    message = pair.sender.encode(case.context)
    encode_ms = 1000 * (time.perf_counter() - started)
    plain = codec_class("text-plain")()
    text_message = Message(plain.trained.codec_id(plain.spec), case.context.encode("utf-8")).to_bytes()
    hops = []
    for name in HOPS:
        asked = [question for question in case.questions if hop_of(question) == name]
        hops.append(
            Hop(
                name,
                len(asked),
                _ask(pair.receiver, TextMemory(case.context), len(text_message), asked),
                _ask(pair.receiver, message, len(message), asked),
            )
        )
    report = measure.run(
        pair.sender,
        pair.receiver,
        cases,
        task="case-files",
        seed=SEED,
        lengths=[pair.sender.codec.spec.payload_bytes],
        texts={},
        arms=ARMS,
        repetitions=0,
    )
    controls = {arm: {kind: asdict(report.mean(arm, kind, of="exact")) for kind in report.kinds} for arm in ARMS}
    where = measure.provenance(
        sender=pair.sender.codec.trained.sender.exact, receiver=pair.receiver.codec.trained.receiver.exact
    )
    return Demo(case.id, len(message), encode_ms, tuple(hops), controls, documents, where)


def hop_of(question: Question) -> str:
    """Returns the hop that asks a question: the last one for joins and codes, else the first whose words it holds."""
    last = list(HOPS)[-1]
    if question.kind in ("join", "code"):
        return last
    return next((name for name, words in HOPS.items() if any(word in question.text for word in words)), last)


def _ask(receiver: Receiver, source: bytes | Memory, wire_bytes: int, asked: Sequence[Question]) -> Run:
    """Asks every question by itself; the time to the first token has the decoding of the message in it."""
    memory = source if isinstance(source, Memory) else receiver.decode(source)
    tokens, times, right = 0, [], 0
    for question in asked:
        tokens += receiver.prompt(memory, question.text).shape[0]
        started = time.perf_counter()
        receiver.generate(source, question.text, max_new_tokens=1)
        times.append(1000 * (time.perf_counter() - started))
        right += receiver.generate(memory, question.text) in question.answers
    return Run(tokens, wire_bytes, statistics.median(times), right)
