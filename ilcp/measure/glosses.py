"""Reads a message for its account: the receiver's model is asked what it says, of its memory alone and of the text.

::

    payload --receiver's codec--> memory --each question--> answer
    text    --------------------- memory --each question--> answer from the text, where the text fits

The guardian's own: no agent works with this receiver, and it needs no key, for it reads payloads.
"""

from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from importlib import metadata

from ilcp.audit.accounts import Gloss, Line
from ilcp.codec.memory import Memory, TextMemory
from ilcp.codec.protocols import Codec
from ilcp.errors import ConfigError, DecodeError, EncodeError
from ilcp.handoff import Receiver
from ilcp.message import Blob, Message
from ilcp.message.format import fitted
from ilcp.tasks.telling import TELL

__all__ = ["ANSWER_TOKENS", "TELL_TOKENS", "Glosses", "own_questions"]

ANSWER_TOKENS = 16
TELL_TOKENS = 200


class Glosses:
    """Reads messages of a receiver's codecs; what ``ilcp.audit.accounts.Accountant`` asks.

    Args:
        receiver: a bare one, which nobody else uses: what is larger than a message holds passes through its ``blobs``.
        questions: what is asked of every message, in the words that the codec was trained for.
        freely: whether a message is also asked to say what it says: of codecs that were trained so (``telling_share``).
        summary: what the model is asked of the text, to sum it up, such as "Sum it up in two sentences."; without, the
            account has sentences of the text, which say nothing that it does not.

    Raises:
        ConfigError: no questions, or a receiver with a key.
    """

    def __init__(self, receiver: Receiver, questions: Sequence[str], *, freely: bool = False, summary: str = ""):
        self.questions = list(dict.fromkeys(questions))
        if not self.questions:
            raise ConfigError("expected questions for accounts, got none: name what you must answer for")
        if receiver.key is not None or receiver.audit is not None:
            got = "got one with: it reads payloads alone, and tells nobody"
            raise ConfigError(f"expected a receiver of its own, without key and audit, for accounts, {got}")
        self.receiver, self.freely, self.summary = receiver, freely, summary
        self._blob = receiver.blobs = _OneBlob()
        receiver.guard = None  # what it reads was handed over already
        self._by_id = {each.trained.codec_id(each.spec).hex(): each for each in receiver.codecs}

    def gloss(self, codec_id: str, payload: bytes, literals: Sequence[str], source: str | None) -> Gloss:
        """Returns what a message says; raises as ``Receiver.decode``."""
        memory = self._memory(codec_id, payload, literals)
        told = self._answers(memory)
        from_text: Sequence[str | None] = [None] * len(told)
        summed_up = ""
        if source is not None and source.strip():
            with suppress(EncodeError, DecodeError):  # more than the model can read at once
                from_text = self._answers(TextMemory(source))
                summed_up = self._told(TextMemory(source), self.summary)
        lines = tuple(Line(*each) for each in zip(self.questions, told, from_text, strict=True))
        return Gloss(lines, self._told(memory, TELL if self.freely else ""), self._by(codec_id), summed_up)

    def _memory(self, codec_id: str, payload: bytes, literals: Sequence[str]) -> Memory:
        known = bytes.fromhex(codec_id) if codec_id in self._by_id else b""
        if not known:
            raise DecodeError(f"expected a codec's id ({' or '.join(self._by_id)}), got {codec_id!r:.80}")
        inline, blob = fitted(payload, self._blob.put_blob)
        wire = Message(known, inline, literals=tuple(literals), blob=blob).to_bytes()
        try:
            return self.receiver.decode(wire)
        finally:
            self._blob.data = b""

    def _answers(self, memory: Memory) -> list[str]:
        return self.receiver.answers([(memory, each) for each in self.questions], max_new_tokens=ANSWER_TOKENS)

    def _told(self, memory: Memory, request: str) -> str:
        if not request:
            return ""
        (found,) = self.receiver.answers([(memory, request)], max_new_tokens=TELL_TOKENS)
        return found

    def _by(self, codec_id: str) -> dict[str, str]:
        asked = sha256("\n".join([*self.questions, self.summary]).encode()).hexdigest()
        model = self._by_id[codec_id].trained.receiver
        versions = {name: metadata.version(name) for name in ("ilcp", "transformers")}
        return {"model": model.digest().hex(), "codec_id": codec_id, "questions_sha256": asked, **versions}


class _OneBlob:
    """Holds the one blob that is being read."""

    def __init__(self) -> None:
        self.data = b""

    def put_blob(self, data: bytes, /) -> Blob:
        """Holds it in place of any other."""
        self.data = data
        return Blob.of(data)

    def get_blob(self, blob: Blob, /) -> bytes:
        """Returns it; the receiver compares it with its name."""
        return self.data


def own_questions(codec: Codec) -> list[str]:
    """Returns the questions that a codec brings along; none where it has none."""
    return list(getattr(codec, "questions", ()))
