"""A message that knows what it lost: its receiver reads it before it is sent, and literals mend it.

::

    known: question -> answer, given, or as the receiver answers from the full text
    memory of the latent, all questions --Receiver.score--> right | lost
    each lost fact as a literal alone (answer | word: answer | clause of the text) --Receiver.score--> gain in nats
    best gain per byte first, while the message fits --> literals
    memory and literals, all questions --Receiver.score--> taken where more is right than before, else fewer, or others
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ilcp.codec.memory import Memory, TextMemory
from ilcp.errors import ConfigError, EncodeError, IdentityError, StorageError
from ilcp.handoff.assured import judged_payload
from ilcp.handoff.envelope import packed
from ilcp.handoff.receiver import Receiver
from ilcp.handoff.sources import said
from ilcp.inputs import listed, require_text
from ilcp.message.literals import chosen, line
from ilcp.models.generate_options import require_count
from ilcp.models.plain_text import unfit

if TYPE_CHECKING:
    from ilcp.handoff.sender import Sender

__all__ = ["Reading", "Verified", "known_answers", "mended", "payload_within", "read_back"]

TRIALS = 4  # of literals together, each asking every question; what more of them mend is next to nothing
_WORD = re.compile(r"\w+")
_CLAUSE = re.compile(r"[.!?;](?=\s|$)|[\n。！？；।؟۔]")  # where one ends; "3.14" stays whole

Literals = tuple[str, ...]
Questions = Iterable[str] | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verified:
    """A message, and what its receiver answers from it; each question whose answer is known stands in one place.

    ``kept``: right, and right from the latent alone. ``mended``: right because of the literals. ``lost``: wrong, or
    rather other than known; mostly because no literal for it fits the budget or helps.
    """

    message: bytes
    kept: tuple[str, ...]
    mended: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a receiver makes of a memory with these literals: nats of each known answer, and which it would give."""

    literals: Literals
    nats: Mapping[str, float]
    right: frozenset[str]


def read_back(
    sender: "Sender",
    source: Any,
    receiver: Receiver,
    budget_bytes: int,
    questions: Questions | None,
    payload_bytes: int | None,
    literals: Literal["auto"] | Sequence[str] | None,
) -> Verified:
    """Returns the message of ``Sender.verified``, which says what each argument is."""
    if literals == "auto":
        raise ConfigError("expected literals as a list beside verify, got 'auto': it picks them itself")
    if sender.codec.spec.reads == "cache":
        raise ConfigError(
            f"expected a codec of latents or text to verify, got {sender.codec.spec.name}: it says it all"
        )
    first = chosen(literals or (), None)
    length = payload_within(sender, budget_bytes, payload_bytes, first)
    _require_same_codec(sender, receiver)
    asked = _questions(sender.codec, questions)
    _require_plain(receiver, asked if questions is None else ())
    context = sender.read(source)
    text = said(source, context)
    known = known_answers(receiver, asked, text)
    payload, judged = judged_payload(sender, context, length)

    def fits(beside: Literals) -> bool:
        try:
            size = len(packed(sender, payload, beside))
        except EncodeError:  # no line of text, or too many of them
            return False
        return size <= budget_bytes and not any(unfit(receiver.tokenizer, each) for each in (*beside, line(beside)))

    beside = sender.codec.decode(payload).beside
    bare, best = mended(receiver, beside, known, text or "", fits, first)
    return Verified(
        sender.pack(payload, best.literals, text, judged),
        kept=tuple(question for question in known if question in bare.right & best.right),
        mended=tuple(question for question in known if question in best.right - bare.right),
        lost=tuple(question for question in known if question not in best.right),
    )


def known_answers(receiver: Receiver, questions: Questions, text: str | None) -> dict[str, str]:
    """Returns the answers that are known, by question: as given, or else the receiver's own from the full text.

    A question that it answers with nothing is left out.

    Raises:
        EncodeError: there is no text to ask, or it does not fit into the receiver's window.
    """
    if isinstance(questions, Mapping):
        return dict(questions)
    if text is None:
        because = "to ask the questions of, got ids or states alone"
        raise EncodeError(f"expected a text {because}: give the answers, as questions={{question: answer}}")
    answers = receiver.answers([(TextMemory(text), question) for question in questions])
    return {question: answer for question, answer in zip(questions, answers, strict=True) if answer}


def mended(
    receiver: Receiver,
    beside: Callable[[Literals], Memory],
    known: Mapping[str, str],
    text: str,
    fits: Callable[[Literals], bool],
    first: Literals = (),
) -> tuple[Reading, Reading]:
    """Returns what the receiver makes of the literals ``first`` alone, and of the best that were found behind them.

    Args:
        receiver: is asked ``known`` once, each lost fact once in each form, and ``known`` at most TRIALS times.
        beside: makes the memory that it reads, of literals.
        known: the answers that matter, by question.
        text: whose clauses may become literals; empty for none.
        fits: says whether a message can carry such literals.
        first: literals that travel in any case.
    """
    ask = partial(_read, receiver, beside, known)
    bare = best = ask(first)
    forms = {
        question: [form for form in some if fits(_joined(first, form))]
        for question, some in _forms(known, text).items()
    }
    offers = _offers(receiver, beside, known, bare, forms)
    most = len(offers)
    for _ in range(TRIALS):
        batch = _batch(offers, best, most, fits)
        if not batch:
            break
        trial = ask(_joined(best.literals, *batch.values()))
        failed = batch.keys() - trial.right
        if not failed and len(trial.right) > len(best.right):
            best = trial
            for question in (question for question in known if question in bare.right - best.right):
                offers.setdefault(question, forms[question][::-1])  # what a literal broke may be mended in turn
        elif len(batch) > 1 and len(failed) in (0, len(batch)):
            most = len(batch) // 2  # it does not show which of them it is
        else:
            for question in failed or batch:
                offers[question].remove(batch[question])
    return bare, best


def _read(
    receiver: Receiver, beside: Callable[[Literals], Memory], known: Mapping[str, str], literals: Literals
) -> Reading:
    memory = beside(literals)
    scores = receiver.score([(memory, question, answer) for question, answer in known.items()])
    by_question = dict(zip(known, scores, strict=True))
    nats = {question: score.log_likelihood_nats for question, score in by_question.items()}
    return Reading(literals, nats, frozenset(question for question, score in by_question.items() if score.exact))


def _offers(
    receiver: Receiver,
    beside: Callable[[Literals], Memory],
    known: Mapping[str, str],
    bare: Reading,
    forms: Mapping[str, Sequence[str]],
) -> dict[str, list[str]]:
    """Returns the literals that mend a lost question where they stand alone, by question, best gain per byte first."""
    lost = [(question, form) for question in known if question not in bare.right for form in forms[question]]
    items = [(beside(_joined(bare.literals, form)), question, known[question]) for question, form in lost]
    worth: dict[str, dict[str, float]] = {}
    for (question, form), score in zip(lost, receiver.score(items), strict=True):
        if score.exact:
            gain_nats = score.log_likelihood_nats - bare.nats[question]
            worth.setdefault(question, {})[form] = gain_nats / (1 + len(form.encode()))
    ranked = {question: sorted(some, key=some.__getitem__, reverse=True) for question, some in worth.items()}
    return dict(sorted(ranked.items(), key=lambda each: worth[each[0]][each[1][0]], reverse=True))


def _batch(
    offers: Mapping[str, Sequence[str]], best: Reading, most: int, fits: Callable[[Literals], bool]
) -> dict[str, str]:
    """Returns the literals to try next beside those that are taken, by the question that each is for."""
    batch: dict[str, str] = {}
    for question in (question for question in offers if question not in best.right):
        if len(batch) < most:
            taken = (*best.literals, *batch.values())
            fitting = next((form for form in offers[question] if fits(_joined(taken, form))), None)
            if fitting is not None:
                batch[question] = fitting
    return batch


def _joined(literals: Iterable[str], *more: str) -> Literals:
    return tuple(dict.fromkeys((*literals, *more)))


def _forms(known: Mapping[str, str], text: str) -> dict[str, tuple[str, ...]]:
    """Returns what a literal may say of each fact: the answer; with the question's rarest word; a clause of the text.

    Where no clause holds the answer, the question itself stands before it.
    """
    asked = Counter(word for question in known for word in _words(question))
    clauses = [(clause, set(_WORD.findall(clause))) for clause in map(str.strip, _CLAUSE.split(text))]
    forms = {}
    for question, answer in known.items():
        said, wanted = " ".join(answer.split()), set(_WORD.findall(answer))
        own = max(_WORD.findall(question), key=lambda word: (-asked[word.lower()], len(word)), default=question)
        found = (clause for clause, words in clauses if wanted <= words)
        best = max(found, key=lambda clause: (len(_words(clause) & _words(question)), -len(clause)), default=None)
        forms[question] = _joined((said, f"{own}: {said}", f"{question} {said}" if best is None else best))
    return forms


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)}


def _questions(codec: Any, questions: Questions | None) -> Questions:
    """Returns the questions whose answers matter: those given, or else the codec's own, each once."""
    expected, each = "questions in a list, or with their answers in a dict", "a text for each question and answer"
    given = getattr(codec, "questions", ()) if questions is None else questions
    if isinstance(given, Mapping):
        known = {
            require_text(question, each, error=ConfigError): require_text(answer, each, error=ConfigError)
            for question, answer in given.items()
        }
        if known:
            return known
    elif some := listed(given, expected, "question", error=ConfigError):
        return list(dict.fromkeys(require_text(question, each, error=ConfigError) for question in some))
    raise ConfigError(f"expected {expected}, got none, and the codec has none of its own")


def _require_plain(receiver: Receiver, own: Iterable[str]) -> None:
    """Refuses questions of the codec's own that may not stand in a prompt: its folder may be a stranger's."""
    for question in own:
        because = unfit(receiver.tokenizer, question)
        if because is not None:
            expected = "questions of plain text in the codec's settings"
            raise StorageError(f"expected {expected}, got one {because}: give your own")


def payload_within(
    sender: "Sender", budget_bytes: int, payload_bytes: int | None = None, literals: Literals = ()
) -> int:
    """Returns the length asked for, or else the longest with which the message fits the budget.

    Raises:
        ConfigError: none does.
    """
    require_count("budget_bytes", budget_bytes)
    spec = sender.codec.spec
    some = spec.prefixes or range(1, min(spec.payload_bytes, budget_bytes) + 1)
    lengths = some if payload_bytes is None else [spec.length(payload_bytes)]
    for length in reversed(lengths):
        least = len(packed(sender, bytes(length), literals))
        if least <= budget_bytes:
            return length
    raise ConfigError(
        f"expected budget_bytes of at least {least}, got {budget_bytes}: "
        f"so long is a message with {length} bytes of payload before anything is mended"
    )


def _require_same_codec(sender: "Sender", receiver: Any) -> None:
    """Refuses a receiver that could not read the sender's messages."""
    if not isinstance(receiver, Receiver):
        raise ConfigError(f"expected an ilcp.Receiver to verify with, got {type(receiver).__name__}")
    own, *others = (each.trained.codec_id(each.spec).hex() for each in (sender.codec, *receiver.codecs))
    if own not in others:
        raise IdentityError(
            f"expected a receiver with the sender's codec {own}, got one with {' and '.join(others)}: "
            "load it with the codec that the sender encodes with"
        )
