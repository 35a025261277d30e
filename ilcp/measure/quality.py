"""What a message is worth: the same questions in every arm, and the controls beside the claim.

Arms, on the same items::

    text             the receiver reads the document
    message          the sender's message                     (one arm per prefix length: message-80, message-40, ...)
    none             the receiver gets nothing
    other            another case's message: what shows that the message itself matters
    zero             a payload of zero bytes
    head, tail, zstd text of as many bytes as the payload     (one arm per codec and length)

Figures: exact match of the greedy answer, gold log-likelihood in nats, recovery (x - none) / (text - none), content
gain (message - other), each with a 95 % bootstrap interval over documents, paired between arms.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from ilcp.codec import Codec
from ilcp.context import Context
from ilcp.errors import EncodeError
from ilcp.handoff import Receiver, Sender
from ilcp.measure.figures import Measured, bootstrap
from ilcp.memory import Memory
from ilcp.message import CODEC_ID_BYTES, Message
from ilcp.tasks.cases import Case, Question

__all__ = ["ARMS", "Quality", "quality", "thin"]

ARMS = ("text", "message", "none", "other", "zero")
Scores = dict[str, NDArray[np.float64]]  # arm -> one value per item


@dataclass(frozen=True)
class Quality:
    """The items' scores by arm, and the figures made of them.

    ``exact`` and ``nats`` hold one value per item and arm, ``kinds`` and ``documents`` say what an item is;
    ``wire_bytes`` is the mean message size per arm, everything counted.
    """

    kinds: tuple[str, ...]
    documents: tuple[int, ...]
    exact: Scores
    nats: Scores
    wire_bytes: dict[str, float]
    seed: int

    def mean(self, arm: str, kind: str | None = None, *, of: str = "exact") -> Measured:
        """Mean exact match (``of="exact"``) or log-likelihood (``of="nats"``) of an arm, of one kind or of all."""
        values = self._scores(of)[arm]
        return self._figure(kind, lambda items: float(values[items].mean()), "nats" if of == "nats" else "")

    def recovery(self, arm: str, kind: str | None = None, *, of: str = "exact") -> Measured:
        """(arm - none) / (text - none)."""
        scores = self._scores(of)

        def statistic(items: NDArray[np.int64]) -> float:
            none, text = scores["none"][items].mean(), scores["text"][items].mean()
            return float((scores[arm][items].mean() - none) / (text - none)) if text != none else float("nan")

        return self._figure(kind, statistic)

    def difference(self, arm: str, other: str, kind: str | None = None, *, of: str = "exact") -> Measured:
        """arm - other, paired."""
        values = self._scores(of)[arm] - self._scores(of)[other]
        return self._figure(kind, lambda items: float(values[items].mean()), "nats" if of == "nats" else "")

    def content_gain(self, kind: str | None = None, *, arm: str = "message", of: str = "exact") -> Measured:
        """The correct message minus another case's."""
        return self.difference(arm, "other", kind, of=of)

    def to_dict(self) -> dict[str, Any]:
        """All figures by kind and arm, as JSON takes them."""
        return {
            kind: {
                arm: {
                    "wire_bytes": self.wire_bytes.get(arm),
                    "exact": asdict(self.mean(arm, kind)),
                    "nats": asdict(self.mean(arm, kind, of="nats")),
                    "recovery": self._defined_recovery(arm, kind, "exact"),
                    "recovery_nats": self._defined_recovery(arm, kind, "nats"),
                }
                for arm in self.exact
            }
            for kind in dict.fromkeys(self.kinds)
        }

    def _defined_recovery(self, arm: str, kind: str, of: str) -> dict[str, Any] | None:
        """Recovery where the full text is surely better than nothing; else there is nothing to recover."""
        gain = self.difference("text", "none", kind, of=of)
        return asdict(self.recovery(arm, kind, of=of)) if gain.low is not None and gain.low > 0 else None

    def _scores(self, of: str) -> Scores:
        if of not in ("exact", "nats"):
            raise EncodeError(f"expected of to be 'exact' or 'nats', got {of!r}")
        return self.exact if of == "exact" else self.nats

    def _figure(self, kind: str | None, statistic: Any, unit: str = "") -> Measured:
        items = [item for item, found in enumerate(self.kinds) if kind in (None, found)]
        if not items:
            raise EncodeError(f"expected one of the kinds {sorted(set(self.kinds))}, got {kind!r}")
        chosen = np.array(items)
        groups = [self.documents[item] for item in items]
        return bootstrap(lambda within: statistic(chosen[within]), groups, seed=self.seed, unit=unit)


def quality(
    sender: Sender,
    receiver: Receiver,
    cases: Sequence[Case],
    *,
    payload_bytes: Sequence[int] | None = None,
    text_codecs: Mapping[str, Codec] | None = None,
    close_answers: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Quality:
    """Scores every question of ``cases`` in every arm.

    Args:
        payload_bytes: lengths of message and text arms; the longest is the arm ``message``. None: the codec's own.
        text_codecs: name -> codec that reads text; each becomes an arm per length, at equal payload bytes.
        close_answers: whether an answer ends with the end-of-sequence token; a continuation does not.
        seed: of the bootstrap.

    Raises:
        EncodeError: fewer than two cases (another case's message needs another case), or none has a question.
    """
    items = [(index, question) for index, case in enumerate(cases) for question in case.questions]
    if len(cases) < 2 or not items:
        raise EncodeError(f"expected at least two cases with questions, got {len(cases)} cases, {len(items)} questions")
    exact: Scores = {}
    nats: Scores = {}
    wire_bytes: dict[str, float] = {}
    lengths = sorted(payload_bytes or sender.codec.spec.prefixes or [sender.codec.spec.payload_bytes], reverse=True)
    arms = list(_arms(sender, receiver, cases, lengths, text_codecs or {}))
    for name, make in track(arms, "arms", disable=not progress, transient=True):
        memories, sizes = make()
        asked = [(memories[index], question.text, question.answer) for index, question in items]
        scores = receiver.score(asked, end=close_answers)
        exact[name] = np.array([score.exact for score in scores], dtype=np.float64)
        nats[name] = np.array([score.log_likelihood_nats for score in scores])
        if sizes:
            wire_bytes[name] = float(np.mean(sizes))
    kinds = tuple(question.kind for _, question in items)
    return Quality(kinds, tuple(index for index, _ in items), exact, nats, wire_bytes, seed)


def _arms(
    sender: Sender, receiver: Receiver, cases: Sequence[Case], lengths: Sequence[int], text_codecs: Mapping[str, Codec]
) -> Iterator[tuple[str, Any]]:
    contexts = [sender.read(case.context) for case in cases]

    def plain() -> tuple[list[Memory | None], list[int]]:
        sizes = [len(Message(bytes(CODEC_ID_BYTES), case.context.encode()).to_bytes()) for case in cases]
        return [Memory(text=case.context) for case in cases], sizes

    def nothing() -> tuple[list[Memory | None], list[int]]:
        return [None] * len(cases), []

    def message(length: int, shift: int = 0) -> tuple[list[Memory | None], list[int]]:
        sent = [sender.pack(sender.codec.encode(context, length)) for context in contexts]
        memories: list[Memory | None] = [receiver.decode(data) for data in sent]
        return memories[shift:] + memories[:shift], [len(data) for data in sent]

    def zero() -> tuple[list[Memory | None], list[int]]:
        data = sender.pack(bytes(lengths[0]))
        return [receiver.decode(data)] * len(cases), [len(data)]

    def text(codec: Codec, length: int) -> tuple[list[Memory | None], list[int]]:
        codec_id = codec.trained.codec_id(codec.spec)
        payloads = [codec.encode(Context(text=case.context), length) for case in cases]
        sizes = [len(Message(codec_id, data).to_bytes()) for data in payloads]
        return [codec.decode(data) for data in payloads], sizes

    yield "text", plain
    yield "message", lambda: message(lengths[0])
    yield "none", nothing
    yield "other", lambda: message(lengths[0], shift=1)
    yield "zero", zero
    for length in lengths[1:]:
        yield f"message-{length}", lambda length=length: message(length)
    for length in lengths:
        for name, codec in text_codecs.items():
            yield f"{name}-{length}", lambda codec=codec, length=length: text(codec, length)


def thin(case: Case, per_kind: Mapping[str, int], number: int) -> Case:
    """``case`` with at most so many questions of each kind, a different choice for each ``number``."""
    kept: list[Question] = []
    for kind in dict.fromkeys(question.kind for question in case.questions):
        asked = [question for question in case.questions if question.kind == kind]
        start = number % len(asked)
        kept += (asked[start:] + asked[:start])[: per_kind.get(kind, len(asked))]
    return Case(case.id, case.context, tuple(kept), case.entropy_bits)
