"""Assurance at both ends: a message is judged before it is sent, and before it is answered from.

What is judged is what the end has anyway: the latent before it is rounded, the payload and its memory. Decisions go on
record, and into the OpenTelemetry span that is open.
"""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers

from ilcp.assurance.observing import encoded, received
from ilcp.assurance.policy import AssuranceWarning, Guard, Judgement, Policy, expired
from ilcp.assurance.reference import Reference
from ilcp.assurance.view import Observed
from ilcp.codec.context import Context
from ilcp.codec.memory import Memory, TextMemory
from ilcp.errors import ConfigError, EncodeError, StorageError, UnmeasuredError
from ilcp.handoff.fallback import FallbackWarning, as_text
from ilcp.handoff.peers import require_fit
from ilcp.handoff.sources import said
from ilcp.inputs import require_text
from ilcp.tracing import mark, recording

if TYPE_CHECKING:
    from ilcp.handoff.envelope import Opened
    from ilcp.handoff.receiver import Receiver
    from ilcp.handoff.sender import Sender

__all__ = ["guard_of", "judged_memory", "judged_message", "judged_payload", "told"]

AGAIN = "measure it again with 'ilcp measure CODEC --again'"
AT_SENDER = "send the text, or let your sender's policy take it"
AT_RECEIVER = "ask for the text, or let your receiver's policy take it"


def guard_of(policy: Policy | None, place: str, codecs: Any) -> Guard | None:
    """Returns the judge of one end; None where there is no policy.

    Raises:
        ConfigError: the policy is none, or is to take a text that nobody gives.
        UnmeasuredError: the policy refuses in doubt, and a codec's evidence has expired.
        StorageError, IdentityError: a codec's reference is damaged, or another codec's.
    """
    if policy is None:
        return None
    if not isinstance(policy, Policy):
        raise ConfigError(f"expected assurance as an ilcp.assurance.Policy or None, got {type(policy).__name__}")
    if place == "receiver" and "text" in (policy.doubt, policy.alarm) and policy.text is None:
        raise ConfigError("expected text= beside a receiver's policy of 'text', got none: say where a text comes from")
    for codec in codecs:
        because = expired(codec.evidence, policy.expires_days, transformers.__version__)
        if because and policy.doubt == "refuse":
            raise UnmeasuredError(f"expected a codec whose evidence counts, got one where {because}: {AGAIN}")
        if because and policy.doubt != "accept":
            warnings.warn(f"the evidence of {codec.spec.name} is in doubt: {because}; {AGAIN}", AssuranceWarning, 4)
    return Guard(policy, place, codecs)


def judged_payload(
    sender: "Sender", context: Context, payload_bytes: int | None, *, or_text: bool = False
) -> tuple[bytes, Judgement]:
    """Returns a context's payload, and what was found of it.

    Raises:
        EncodeError, ConfigError: as ``codec.encode``.
        DoubtError: the policy refuses, or has the text taken where there is none to take (without ``or_text``).
    """
    codec, guard = sender.codec, sender.guard
    reference = None if guard is None else guard.reference(codec)
    if guard is None or reference is None:
        return codec.encode(context, payload_bytes), Judgement()
    payload, observed = encoded(codec, context, payload_bytes, reference.attention)
    judged = guard.judge(codec, payload, {} if observed is None else {"sent": observed})
    _mark(judged)
    guard.act(judged, AT_SENDER)
    if judged.action == "text" and not or_text:
        raise judged.refusal("send the text")
    return payload, judged


def judged_message(
    sender: "Sender", context: Context, payload_bytes: int | None, literals: tuple[str, ...], source: Any
) -> bytes:
    """Returns the message of a context, or of its text where the policy says so in doubt.

    Raises:
        EncodeError, ConfigError, DoubtError, TransportError, AuditError: as ``judged_payload`` and ``Sender.pack``.
    """
    payload, judged = judged_payload(sender, context, payload_bytes, or_text=True)
    if judged.action == "text":
        return as_text(sender, source, literals, judged.because, told(judged))
    return sender.pack(payload, literals, said(source, context), judged)


def judged_memory(receiver: "Receiver", opened: "Opened", memory: Memory) -> Memory:
    """Returns the memory of a message that was let in, or its text where the policy says so in doubt; tells the record.

    Raises:
        DoubtError: the policy refuses; the message's id is let in once more, as where anything else fails.
        StorageError: the watch cannot be read or written, or the reference's probe cannot be asked.
        DecodeError: the text that came in its place does not fit.
        AuditError: the message cannot be put on record, and may not go on without.
    """
    guard, judged = receiver.guard, Judgement()
    if guard is not None:
        try:
            judged = judged_of(receiver, opened, memory)
            _mark(judged)
            guard.act(judged, AT_RECEIVER)
            if judged.action == "text":
                memory = _text(receiver, opened, judged)
        except BaseException:
            opened.forget(receiver)
            raise
    if receiver.audit is not None:
        receiver.audit.received(opened.wire, opened.codec, opened.parsed.literals, **told(judged))
    return memory


def judged_of(receiver: "Receiver", opened: "Opened", memory: Memory, *, counts: bool = True) -> Judgement:
    """Returns what is found of a message; ``counts`` says whether it is evidence of what comes."""
    guard = receiver.guard
    reference = None if guard is None else guard.reference(opened.codec)
    if guard is None or reference is None:
        return Judgement()
    observed = received(opened.codec, opened.payload, memory, reference.attention)

    def probe(known: Reference) -> Observed | None:
        try:
            return probed(receiver, memory, known)
        except EncodeError as error:  # whoever wrote the codec's folder wrote the questions, too
            raise StorageError(
                f"expected a probe in the codec's reference that can be asked, got: {error}; calibrate again"
            ) from error

    return guard.judge(opened.codec, opened.payload, observed, probe, counts=counts)


def probed(receiver: "Receiver", memory: Memory | None, reference: Reference) -> Observed | None:
    """Returns the nats of the probe's answers behind a memory; None where the reference has no probe.

    Raises:
        EncodeError, DecodeError: as ``Receiver.score``.
    """
    if not reference.calibrated.probe:
        return None
    scores = receiver.score([(memory, question, answer) for question, answer in reference.calibrated.probe])
    return Observed(np.array([score.log_likelihood_nats for score in scores], dtype=np.float32))


def told(judged: Judgement) -> dict[str, Any]:
    """Returns what a record is told of a judgement, by keyword; nothing where nothing was judged."""
    return {"assurance": judged.told()} if judged.reference else {}


def _text(receiver: "Receiver", opened: "Opened", judged: Judgement) -> Memory:
    give: Any = receiver.guard and receiver.guard.policy.text
    memory = TextMemory(require_text(give(opened.wire), "the text of a message in doubt"))
    require_fit(receiver.model, receiver.tokenizer, receiver.template, str(memory.text), opened.parsed.literals)
    warnings.warn(f"the text is taken in place of a message: {judged.because}", FallbackWarning, stacklevel=5)
    return memory


def _mark(judged: Judgement) -> None:
    if judged.reference and recording():
        mark({f"ilcp.assurance.{name}": value for name, value in judged.told().items()})
