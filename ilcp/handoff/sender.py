"""The sending end of a hop: it reads, compresses and packs.

::

    text, messages, ids, outputs, capture --Sender.read--> Context --codec.encode--> payload --Message.to_bytes--> bytes
                                                                           literals --^  (``verify`` finds out which)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal

from torch import Tensor

from ilcp.assurance.policy import UNJUDGED, Judgement, Policy
from ilcp.codec.context import Context
from ilcp.codec.protocols import Codec
from ilcp.errors import ConfigError, EncodeError
from ilcp.handoff.assured import guard_of, judged_message, told
from ilcp.handoff.audited import Audit, telling_refusals
from ilcp.handoff.cache_reading import CacheReading
from ilcp.handoff.envelope import packed
from ilcp.handoff.fallback import Otherwise, in_text
from ilcp.handoff.given import require_able, require_codec
from ilcp.handoff.receiver import Receiver
from ilcp.handoff.sources import (
    is_messages,
    is_text_or_ids,
    one_row,
    passes,
    rendered,
    require_length,
    require_outputs,
    said,
    saying,
)
from ilcp.handoff.verify import Questions, Verified, read_back
from ilcp.inputs import listed, named, require_text
from ilcp.message.blob import Blobs
from ilcp.message.encryption import require_encryption
from ilcp.message.keys import Key, require_audience
from ilcp.message.literals import chosen
from ilcp.models.adapter import plain
from ilcp.models.capture import Capture, recording
from ilcp.models.chat import require_template, spoken
from ilcp.models.fingerprint import Known
from ilcp.models.generate_options import require_count
from ilcp.models.reading import (
    capture_batch,
    padded_ids,
    read_ids,
    read_outputs,
    reading_part,
    require_ids,
    window_tokens,
)
from ilcp.models.support import require_receiver, require_sender, require_tokenizer

__all__ = ["Sender"]

TTL_S = 3600  # a sealed message lives an hour unless the sender says otherwise
BATCH = 8  # texts that are read in one pass at most


class Sender:
    """The sending side of a hop: reads, compresses, and packs.

    Args:
        model: a transformers causal language model or encoder, with a peft adapter or without, quantised or not; it
            is put into evaluation mode and used, its weights never change. Of one that ``torch.compile`` wrapped, the
            plain model inside is used.
        tokenizer: the model's tokenizer.
        codec: trained for this sender.
        key: 16 to 64 bytes shared with the receiver, or an ``ilcp.KeyRing``, whose current one counts; messages
            are then sealed (127 bytes in place of 100). May be assigned later, to rotate.
        audience: the receiver for whom messages are sealed, by the name that it has as its own; another one with the
            same key refuses them.
        encrypt: encrypts messages under the key, and what is put as a blob, which takes no more bytes (126 in place of
            127). The length, the codec's id, hand-off id and expiry are not hidden.
        ttl_s: how long a sealed message is valid, in seconds.
        template: arguments for the chat template beside the messages; every chat of this sender is written with them.
        blobs: where payloads of more than 65,535 bytes are put, such as an open connection (``ilcp.transport``); the
            message then names what it put there.
        audit: is told of every message that is made or refused, such as an ``ilcp.audit.Recorder``;
            may be assigned later.
        assurance: what is done with a text whose latent is unlike those which the codec was calibrated on; None, as
            the receiver judges what it gets.

    Raises:
        ConfigError: one of them is not what its name says, the model's states cannot be captured, or there is no key to
            encrypt with.
        MissingExtraError: messages are to be encrypted, and cryptography is not installed.
        IdentityError: the codec was trained for another sender; the text names the part that differs. Every later call
            raises it too, once weights, adapters or tokenizer are no longer those that were checked, or hooks, other
            methods, numbers or configurations have it compute something else. Writes that torch does not count
            (through ``.data``) are found by and by where they are of whole weights. So does a codec whose own weights
            were changed in memory.

    One sender serves any number of threads: its passes take turns.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        codec: Codec,
        *,
        key: Key | None = None,
        audience: str | None = None,
        encrypt: bool = False,
        ttl_s: int = TTL_S,
        template: Mapping[str, Any] | None = None,
        blobs: Blobs | None = None,
        audit: Audit | None = None,
        assurance: Policy | None = None,
    ):
        require_tokenizer(tokenizer, "sender")
        require_sender(plain(model))
        require_codec(codec)
        if codec.spec.runs_sender:
            reading_part(model)  # which refuses a learned prompt
        if codec.spec.reads == "cache":
            require_receiver(plain(model))
        self.model = plain(model).eval()
        self._known = Known("sender", [codec.trained.sender])
        self._known.require(self.model, tokenizer)
        self.tokenizer = tokenizer
        self.codec = codec
        require_audience(audience, key)
        if encrypt:
            require_encryption(key)
        if blobs is not None:
            require_able("blobs", blobs, "put_blob", "a place for blobs")
        if audit is not None:
            require_able("audit", audit, "sent", "a record of hand-offs")
        self.key, self.audience, self.encrypt = key, audience, encrypt
        self.ttl_s, self.blobs, self.audit = ttl_s, blobs, audit
        self.template = require_template(template)
        self.guard = guard_of(assurance, "sender", [codec])
        self.codec_id = codec.trained.codec_id(codec.spec)
        self._cache = CacheReading(self.model, tokenizer, codec, self.template)

    @telling_refusals
    def encode(
        self,
        source: Any,
        *,
        payload_bytes: int | None = None,
        literals: Literal["auto"] | Sequence[str] | None = None,
        verify: Receiver | None = None,
        budget_bytes: int | None = None,
        questions: Questions | None = None,
        otherwise: Otherwise = None,
    ) -> bytes:
        """Returns the message for ``source``, as bytes.

        Args:
            source: a text; chat messages (``[{"role": ..., "content": ...}, ...]``); token ids, or what the tokenizer
                returned for one text; a Context; or what this model has computed anyway, so that no second pass is
                paid: a capture, or the outputs of its own finished ``forward`` or ``generate`` call with hidden states.
            payload_bytes: a shorter prefix of the same latent; None for the codec's own length. Of text and of caches,
                which have no such prefixes, the most that there may be.
            literals: exact strings to travel beside the latent, each once, in this order; "auto" picks the text's
                codes, numbers, dates, ids, e-mails, URLs and paths by the rules of ``message.literals``, and none where
                there are none. They need not occur in the source. Each costs its bytes and about one more.
            verify, budget_bytes, questions: a receiver that reads the message first, so that literals bring back what
                the latent lost, within so many bytes; see ``verified``.
            otherwise: "text" hands over the text itself, with a warning, where this codec's evidence does not hold.

        Raises:
            EncodeError: there is nothing to encode, no message for those literals, or "auto" without a text.
            ConfigError: there is no payload of that length, or one of the last three is missing or given alone.
            DoubtError: the latent is unlike those that the codec was calibrated on, or an alarm stands, and the policy
                refuses it.
        """
        if otherwise is not None and (text := in_text(self, source, literals, otherwise)) is not None:
            return text
        if verify is not None and budget_bytes is not None:
            return self.verified(source, verify, budget_bytes, questions, payload_bytes, literals).message
        if verify is not None or budget_bytes is not None or questions is not None:
            raise ConfigError("expected verify=receiver and budget_bytes together, got one without: give both or none")
        given = () if literals is None or literals == "auto" else chosen(literals, None)  # refused before anything runs
        context = self.read(source)
        beside = chosen("auto", said(source, context)) if literals == "auto" else given
        return judged_message(self, context, payload_bytes, beside, source)

    def verified(
        self,
        source: Any,
        receiver: Receiver,
        budget_bytes: int,
        questions: Questions | None = None,
        payload_bytes: int | None = None,
        literals: Literal["auto"] | Sequence[str] | None = None,
    ) -> Verified:
        """Returns the message for ``source`` with literals for what its latent lost, and what its receiver answers.

        Args:
            source: as in ``encode``.
            receiver: of this sender's codec. It is asked: every question of the message, each lost fact with up to
                three literals alone, and every question again for at most four sets of literals.
            budget_bytes: of the whole message on the wire, seal included.
            questions: those whose answers matter; what the receiver answers from the full text counts as known. Or
                the answers too, as ``{question: answer}``, where you know them. None for the codec's own, if any.
            payload_bytes: as in ``encode``; None for the longest that fits. A shorter one leaves more to literals,
                which can be better where the receiver reads text well: compare.
            literals: a list that travels in any case.

        Raises:
            EncodeError: as ``encode``, or there is no text to ask, or it does not fit into the receiver's window.
            ConfigError: as ``encode``, no message fits the budget, or there are no questions.
            IdentityError: the receiver has another codec.
        """
        return read_back(self, source, receiver, budget_bytes, questions, payload_bytes, literals)

    @telling_refusals
    def encode_batch(
        self,
        sources: Iterable[Any],
        batch: int = BATCH,
        payload_bytes: int | None = None,
        literals: Literal["auto"] | None = None,
    ) -> list[bytes]:
        """Returns the messages for ``sources``, in their order; the states of one batch at a time are in memory.

        Args:
            sources: each as in ``encode``; texts, messages and ids are read ``batch`` at a time.
            batch: how many are read in one pass at most, fewer where they are long; padding changes states only by
                rounding.
            payload_bytes: as in ``encode``.
            literals: as in ``encode``, picked from each source; a list is one source's, so it goes to ``encode``.

        Raises:
            EncodeError: as in ``encode``; the text names the source by its index.
            ConfigError: a batch of less than one source, literals that are not picked from each, or no payload of that
                length.
        """
        if literals not in (None, "auto"):
            got = f"got {type(literals).__name__}: encode the sources one by one"
            raise ConfigError(f"expected literals as 'auto' or None for a batch, {got}")
        require_count("batch", batch)
        sources = listed(sources, "a list of sources", "source")
        messages: list[bytes] = [b""] * len(sources)
        for index, context in self._contexts(sources, batch):
            with named("source", index):
                text = said(sources[index], context)
                beside = () if literals is None else chosen(literals, text)
                messages[index] = judged_message(self, context, payload_bytes, beside, sources[index])
        return messages

    def read(self, source: Any) -> Context:
        """Returns the context of whatever ``encode`` takes.

        Raises:
            EncodeError: the source is empty, or holds nothing that the codec reads.
        """
        self._known.require(self.model, self.tokenizer)
        if isinstance(source, Context):
            return self._cache.looked_at(source)
        if isinstance(source, Capture):
            if self.codec.spec.reads == "cache":
                raise EncodeError("expected a text or a finished call's past_key_values, got a capture of states")
            return self._read_capture(source)
        if self.codec.spec.reads == "cache":
            return self._cache.read(source, self._prepared)
        if not is_text_or_ids(source):
            require_outputs(source)
            if not self.codec.spec.runs_sender:
                raise EncodeError(
                    f"expected a text, messages or token ids, because codec {self.codec.spec.name!r} reads text, "
                    f"got {type(source).__name__}"
                )
            return Context(states=read_outputs(source, self.codec.layers))
        text, ids = self._prepared(source)
        if not self.codec.spec.runs_sender:
            return Context(text=text)
        states, windows = read_ids(self.model, ids, self.codec.layers)
        return Context(text=text, states=states, windows=windows)

    def read_batch(self, sources: Iterable[Any], batch: int = BATCH) -> list[Context]:
        """Returns the contexts of ``sources``, in their order; see ``encode_batch``, which does not keep them all.

        Raises:
            EncodeError, ConfigError: as in ``encode_batch``.
        """
        sources = listed(sources, "a list of sources", "source")
        contexts = dict(self._contexts(sources, batch))
        return [contexts[index] for index in range(len(sources))]

    def capture(self) -> AbstractContextManager[Capture]:
        """Records what this sender's model computes inside the ``with``, whoever calls it::

            with sender.capture() as context:
                model.generate(**inputs)
            message = sender.encode(context)

        Only the layers that the codec reads are kept. A capture of several rows hands out ``context.rows``. The model
        must not serve others meanwhile, nor be compiled, and ``generate`` has to be called on it inside the ``with``.

        Raises:
            ConfigError: the model's layers cannot be captured.
            EncodeError: inside the ``with``, for beam search and other ways to generate that reorder rows or take
                tokens back, and for two calls at a time.
            IdentityError: there, too, for a call of a model that was changed, such as with its adapter switched off.
        """
        self._known.require(self.model, self.tokenizer)
        require = partial(self._known.require, self.model, self.tokenizer)
        return recording(self.model, self.tokenizer, tuple(self.codec.layers), require)

    def pack(
        self, payload: bytes, literals: tuple[str, ...] = (), source: str | None = None, judged: Judgement = UNJUDGED
    ) -> bytes:
        """Returns a payload and literals in their envelope: bare, or sealed or encrypted where this sender has a key.

        ``source`` is the text that it was made of, and ``judged`` what was found of it, for the ``audit`` alone.

        Raises:
            EncodeError: no message can carry the payload or the literals.
            TransportError: a payload that is put as a blob does not arrive.
            AuditError: the message cannot be put on record, and may not go on without.
        """
        wire = packed(self, payload, literals)
        if self.audit is not None:
            self.audit.sent(wire, self.codec, literals, payload=payload, source=source, **told(judged))
        return wire

    def _read_capture(self, capture: Capture) -> Context:
        if capture.model is not self.model or capture.layers != tuple(self.codec.layers):
            raise EncodeError("expected a capture of this sender, got another's: use `with` on this sender's capture()")
        rows = capture.rows
        if len(rows) != 1:
            raise EncodeError(
                f"expected a capture of one row, got {len(rows)}: encode its rows one by one, as in "
                "sender.encode(capture.rows[0]), or all with sender.encode_batch(capture.rows)"
            )
        if not self.codec.spec.runs_sender and rows[0].text is None:
            raise EncodeError(
                f"expected calls with input_ids, because codec {self.codec.spec.name!r} reads text, got embeddings: "
                "encode the text itself"
            )
        return rows[0]

    def _contexts(self, sources: Sequence[Any], batch: int) -> Iterator[tuple[int, Context]]:
        """Yields each source's index and context: those that share no pass, then pass by pass, shortest first."""
        if batch < 1:
            raise ConfigError(f"expected a batch of at least 1 source, got {batch}")
        self._known.require(self.model, self.tokenizer)
        shared = [self.codec.spec.reads == "states" and is_text_or_ids(source) for source in sources]
        prepared: dict[int, tuple[str | None, list[int]]] = {}
        for index in (index for index, shares in enumerate(shared) if shares):
            with named("source", index):
                prepared[index] = self._prepared(sources[index])
                require_ids(self.model, prepared[index][1])
        for index in (index for index, shares in enumerate(shared) if not shares):
            with named("source", index):
                context = self.read(sources[index])
            yield index, context
        window = window_tokens(self.model)
        lengths = {index: len(ids) for index, (_, ids) in prepared.items()}
        order = sorted(prepared, key=lambda index: lengths[index])
        fitting = [index for index in order if lengths[index] <= window]
        for group in passes(fitting, [lengths[index] for index in fitting], batch):
            rows = self._capture_rows([prepared[index][1] for index in group])
            for index, row in zip(group, rows, strict=True):
                yield index, Context(text=prepared[index][0], states=row)
        for index in order[len(fitting) :]:
            text, ids = prepared[index]
            states, windows = read_ids(self.model, ids, self.codec.layers)
            yield index, Context(text=text, states=states, windows=windows)

    def _capture_rows(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Returns states ``"layers tokens hidden"`` of each row, from one pass."""
        states = capture_batch(self.model, *padded_ids(rows, self.model.device), self.codec.layers)
        return [states[index, :, : len(row)] for index, row in enumerate(rows)]

    def _prepared(self, source: Any) -> tuple[str | None, list[int]]:
        """Returns the text of a source and its ids: what the codec does not need is None or empty."""
        reads_text = not self.codec.spec.runs_sender
        if isinstance(source, str):
            text = require_text(source)
            return text, [] if reads_text else self.tokenizer(require_length(text), verbose=False).input_ids
        if is_messages(source) and reads_text:
            return spoken(saying(source)), []  # control tokens of this tokenizer are none of the receiver's
        if is_messages(source):
            text = require_length(rendered(self.tokenizer, source, self.template))
            # The template has written what special tokens there are.
            return text, self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        ids = one_row(source)
        if not reads_text:
            return None, ids
        require_ids(self.model, ids)
        return self.tokenizer.decode(ids, skip_special_tokens=True), ids
