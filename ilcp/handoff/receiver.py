"""The receiving end of a hop: it unpacks, projects and answers.

::

    bytes --Message.from_bytes--> payload --codec.decode--> Memory --Receiver.generate--> answer

Several messages may stand in one prompt, and the question may be chat messages: ``ilcp.models.prompt`` says where
memories sit. A message's literals follow right after its memory, an empty line between: one line of text, as
``ilcp.message.literals.line`` writes it. Who may write literals writes text into the prompt: see the threat model of
``ilcp.message``. What ``generate`` takes beyond that goes on to transformers: sampling, beams, streaming, stop strings.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ilcp.assurance.policy import WARNING, Judgement, Policy
from ilcp.codec.context import Context
from ilcp.codec.memory import CacheMemory, Memory, TextMemory
from ilcp.codec.protocols import Codec
from ilcp.errors import ConfigError, EncodeError, MismatchedCodecError
from ilcp.handoff.answers import Group, Score, answered, answered_packed, require_prompt, scored, scored_packed
from ilcp.handoff.assured import guard_of, judged_memory, judged_of
from ilcp.handoff.audited import Audit, telling_refusals
from ilcp.handoff.envelope import Opened
from ilcp.handoff.fallback import Otherwise, accepted
from ilcp.handoff.given import codecs_of, require_able
from ilcp.handoff.peers import require_fit
from ilcp.handoff.prompts import Prompts
from ilcp.inputs import listed, named, require_text, tuples
from ilcp.message import verified
from ilcp.message.blob import Blobs
from ilcp.message.keys import Key, require_audience
from ilcp.message.replay import ReplayCache
from ilcp.models.adapter import plain
from ilcp.models.chat import Chat, require_template
from ilcp.models.fingerprint import Known
from ilcp.models.generate_options import require_count, require_options
from ilcp.models.packing import packs
from ilcp.models.prefix_cache import copied, prefilled
from ilcp.models.support import require_receiver, require_tokenizer

__all__ = ["Receiver"]

# What one memory comes from: a message, or what came of one; of a Context only where a subclass can hand it over.
Source = bytes | bytearray | memoryview | Memory | Context | None
Sources = Source | Iterable[Source]


class Receiver:
    """The receiving side of a hop: unpacks, projects, and answers.

    Args:
        model: a transformers causal language model that takes ``inputs_embeds``, adapted, quantised or as it is; it is
            put into evaluation mode and used, its weights never change. Of one that ``torch.compile`` wrapped, the
            plain model inside is used.
        tokenizer: the model's tokenizer.
        codec: trained for this receiver; or several, for messages of several senders. A message's codec id picks one.
        key: the sender's key, or an ``ilcp.KeyRing`` of those that senders use; bare messages are then refused.
            May be assigned later, to rotate.
        audience: the name under which senders seal for this receiver; messages for another one, or for nobody by name,
            are then refused.
        replay: decodes each sealed message once, whichever process asks; keep its memory to ask it several questions.
        clock: the time in unix seconds, by which messages expire.
        allow_unmeasured: takes a codec that was not measured, or that was and carries nothing (see ``ilcp.evidence``).
        trust: public keys (32 bytes, or their hex) of those whose signed evidence counts, and no other; None for what
            each codec's folder says of itself.
        template: arguments for the chat template beside the messages, such as ``{"enable_thinking": False}``; every
            prompt of this receiver is rendered with them.
        blobs: where the blobs are that messages name, such as an open connection (``ilcp.transport``).
        otherwise: "text" leaves out, with a warning, codecs whose evidence does not hold, where ``text-plain`` is one.
        audit: is told of every message that is taken or refused, such as an ``ilcp.audit.Recorder``;
            may be assigned later.
        assurance: what is done with a message that is unlike those which its codec was calibrated on; None to judge
            none. Of a codec that nobody calibrated, none is judged.

    Raises:
        ConfigError: the model cannot receive, there is no tokenizer, no codec, a replay cache without a key, or an
            argument that is no chat template's own.
        IdentityError: a codec was trained for another receiver; the text names the part that differs. Every later call
            that runs the model raises it too, once weights, adapters or tokenizer are no longer those checked here, or
            hooks, other methods, numbers or configurations have it compute something else. Writes that torch does not
            count (through ``.data``) are found by and by where they are of whole weights. So does a codec whose own
            weights were changed in memory.
        UnmeasuredError: a codec's content gain was not measured, or is not above zero, or nobody trusted says so; the
            text says what was measured.
        MissingExtraError: somebody is to be trusted, and cryptography is not installed.

    One receiver serves any number of threads.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        codec: Codec | Iterable[Codec],
        *,
        key: Key | None = None,
        audience: str | None = None,
        replay: ReplayCache | None = None,
        clock: Callable[[], float] = time.time,
        allow_unmeasured: bool = False,
        trust: Iterable[str | bytes] | None = None,
        template: Mapping[str, Any] | None = None,
        blobs: Blobs | None = None,
        otherwise: Otherwise = None,
        audit: Audit | None = None,
        assurance: Policy | None = WARNING,
    ):
        if replay is not None and key is None:
            raise ConfigError("expected a key beside the replay cache, got none: a bare message has no id to remember")
        if blobs is not None:
            require_able("blobs", blobs, "get_blob", "a place where blobs are")
        require_able("clock", clock, "__call__", "a clock to be called")
        if audit is not None:
            require_able("audit", audit, "received", "a record of hand-offs")
        if replay is not None:
            require_able("replay", replay, "admit", "a replay cache")
        require_audience(audience, key)
        self.model = model = plain(model)
        require_receiver(model)
        require_tokenizer(tokenizer, "receiver")
        codecs = codecs_of(codec)
        self._known = Known("receiver", [each.trained.receiver for each in codecs])
        self._known.require(model, tokenizer)
        self.codecs = accepted(codecs, trust, allow_unmeasured, otherwise)
        model.eval()
        self.tokenizer = tokenizer
        self.codec = self.codecs[0]
        self.key, self.audience = key, audience
        self.replay = replay
        self.clock, self.blobs, self.audit = clock, blobs, audit
        self.template = require_template(template)
        self.guard = guard_of(assurance, "receiver", self.codecs)
        self._by_id = {each.trained.codec_id(each.spec): each for each in self.codecs}
        self._prompts = Prompts(model, tokenizer, self.template)

    @telling_refusals
    def decode(self, message: bytes) -> Memory:
        """Returns the memory that a message stands for, its literals beside it; it serves any number of calls.

        Raises:
            DecodeError: the bytes are no message, damaged, expired, not under this receiver's key, or name a blob that
                no payload is as long as; or the payload decodes to NaN, infinity, another width, vectors out of the
                norm band of this receiver's embeddings; or its text or literals are not plain, or do not fit.
            ReplayError: the message was decoded before.
            ReplayCacheError: the replay cache cannot say so.
            MismatchedCodecError: the message was made by another codec; it is an IdentityError and a DecodeError.
            ConfigError: the key was taken away, and the replay cache is still there; or the message names a blob, and
                there are no ``blobs``.
            DoubtError: the message is unlike those that its codec was calibrated on, or an alarm stands, and the policy
                refuses it.
            TransportError: the blob is not there, or altered; or ConfigError: it is larger than ``blobs`` may fetch.
            AuditError: the message cannot be put on record, and may not go on without.
        """
        opened = Opened.of(self, message)
        memory = opened.codec.decode(opened.payload)
        held = self._prompts.held(memory)
        require_fit(self.model, self.tokenizer, self.template, held, opened.parsed.literals)
        opened.admit(self)  # late, so that what is refused uses up no id
        memory = judged_memory(self, opened, memory)
        return memory.beside(opened.parsed.literals) if opened.parsed.literals else memory

    def judged(self, message: bytes) -> Judgement:
        """Returns what is found of a message, as ``decode`` judges it; it is not taken, and no evidence of what comes.

        Raises:
            DecodeError, MismatchedCodecError, ConfigError, TransportError: as ``decode``.
        """
        opened = Opened.of(self, message)
        return judged_of(self, opened, opened.codec.decode(opened.payload), counts=False)

    def forget(self, message: bytes) -> None:
        """Lets a sealed message in once more, because the work on it failed.

        Raises:
            DecodeError, ReplayCacheError: as ``decode``.
        """
        now = int(self.clock())
        parsed, key = verified(message, key=self.key, now_unix_s=now, audience=self.audience)
        if self.replay is not None and key is not None and parsed.seal is not None:
            self.replay.forget(key, parsed.seal)

    def generate(
        self,
        message: Sources,
        question: str | Chat = "",
        *,
        context: str | Iterable[str] | None = None,
        max_new_tokens: int = 32,
        cache: Any = None,
        **options: Any,
    ) -> str:
        """Returns the receiver's answer, from messages or memories, from ``context`` as text, or from nothing.

        Args:
            message: a message, a memory, or a sequence of them for one prompt, in order; None for nothing.
            question: a text, or chat messages in which ``ilcp.MEMORY_HERE`` marks the place of each memory.
            context: text in place of each memory, to be read in full.
            max_new_tokens: at most so many tokens are answered.
            cache: keys and values of this same prompt's first tokens (see ``prefill``); it is copied, never changed.
            options: for transformers' ``generate``; without any the answer is greedy, whatever the model's
                ``generation_config`` says. A stop string ends the answer and is not part of it. What looks back at
                earlier tokens (a repetition penalty) sees the answer only.

        Raises:
            EncodeError: the prompt cannot be made (see ``ilcp.models.prompt``), or leaves no room for an answer.
            ConfigError: both a message and a context were given, an option is not the caller's or refused by
                transformers, the cache is not this prompt's, or the chat template has no place for a memory.
            DecodeError, IdentityError: as ``decode``.
        """
        require_count("max_new_tokens", max_new_tokens)
        memories = self._memories(message, context)
        require_options(options, 1, cached=cache is not None or _of_cache(memories))
        self._known.require(self.model, self.tokenizer)
        rows = self._prompts.rows(memories, question)
        prompt, beams = self._prompts.together(rows), options.get("num_beams") or 1
        require_prompt(self.model, prompt, max_new_tokens)
        if cache is not None:
            cache = copied(cache, self.model, prompt, beams)
            self._prompts.require_cached(rows, cache)
        elif _of_cache(memories):
            cache = self._prompts.cache(rows)
            cache.batch_repeat_interleave(beams)
        return answered(self.model, self.tokenizer, [prompt], max_new_tokens, options, cache)[0]

    def prefill(self, message: Sources, question: str | Chat = "") -> Any:
        """Returns a cache of the prompt up to and with its last memory that is no text, for ``generate(cache=...)``.

        It serves every question whose prompt begins alike: any text, or the same chat messages up to the memory.

        Raises:
            EncodeError: there is no such memory to pre-fill, or it does not fit the receiver's window.
            ConfigError: the model keeps no such cache as ``generate`` takes.
            DecodeError, IdentityError: as ``decode``.
        """
        self._known.require(self.model, self.tokenizer)
        *rows, _ = self._prompts.rows(self._memories(message, None), question)
        if not rows:
            raise EncodeError("expected a memory of vectors to pre-fill, got none: text and nothing need no prefill")
        beginning = self._prompts.together(rows)
        require_prompt(self.model, beginning, 1)
        return prefilled(self.model, beginning, self._prompts.cache(rows))

    def score(
        self, items: Iterable[tuple[Sources, str | Chat, str]], *, end: bool = True, batch: int = 64
    ) -> list[Score]:
        """Returns scores of ``(message, question, answer)`` items, teacher-forced, at most ``batch`` in one pass.

        A memory is read once for all items about it, where the receiver is of a tested family (SUPPORT.md).
        ``exact`` says whether greedy decoding gives the answer, because each position is judged after the true
        answer so far: the first difference makes it false either way. With ``end`` the answer's end counts too, as
        ``answer_ids`` writes it. If the model ends its answers there (by its ``generation_config``), any other
        of its end tokens counts as well, and ``exact`` is what ``generate`` would answer with room for it.

        Raises:
            EncodeError: a prompt and its answer do not fit into the receiver's window, or an answer is empty.
            ConfigError: the batch is no count, or the chat template has no place for a memory.
            DecodeError, IdentityError: as ``decode``; the text names the item by its index.
        """
        require_count("batch", batch)
        items = tuples(items, ("message", "question", "answer"))
        self._known.require(self.model, self.tokenizer)
        asked, answers = [(message, question) for message, question, _ in items], [answer for *_, answer in items]
        if packs(self.model):
            groups = self._groups(asked, batch, 1)
            by_number = scored_packed(self.model, self.tokenizer, groups, answers, end=end, batch=batch)
            return [by_number[number] for number in range(len(items))]
        scores: list[Score] = []
        for start in range(0, len(items), batch):
            prompts = [self._asked(start + n, m, about, 1) for n, (m, about) in enumerate(asked[start : start + batch])]
            scores += scored(self.model, self.tokenizer, prompts, answers[start : start + batch], end=end)
        return scores

    def answers(
        self,
        items: Iterable[tuple[Sources, str | Chat]],
        *,
        max_new_tokens: int = 32,
        batch: int = 64,
        **options: Any,
    ) -> list[str]:
        """Returns the answers to ``(message, question)`` items, at most ``batch`` in one pass.

        Each is as ``generate`` gives it, but for rounding, which is another in a batch and can decide between tokens
        that are nearly as likely, and for sampling, where the rows of a batch share one source of chance. Without
        options a memory is read once for all items about it, as in ``score``.

        Raises:
            EncodeError, ConfigError, DecodeError, IdentityError: as ``generate``; a streamer follows one answer only,
                and a cache is one prompt's.
        """
        require_count("batch", batch)
        require_count("max_new_tokens", max_new_tokens)
        items = tuples(items, ("message", "question"))
        require_options(options, min(batch, len(items)), cached=False)
        self._known.require(self.model, self.tokenizer)
        if not options and packs(self.model):
            groups = self._groups(items, batch, max_new_tokens)
            by_number = answered_packed(self.model, self.tokenizer, groups, max_new_tokens, batch)
            return [by_number[number] for number in range(len(items))]
        found: list[str] = []
        for start in range(0, len(items), batch):
            part = items[start : start + batch]
            prompts = [self._asked(start + n, m, asked, max_new_tokens) for n, (m, asked) in enumerate(part)]
            found += answered(self.model, self.tokenizer, prompts, max_new_tokens, options)
        return found

    def _asked(self, number: int, message: Sources, question: str | Chat, room: int, *, packed: bool = False) -> Tensor:
        """Returns the prompt of an item, which leaves room for so many tokens of an answer; an error names the item."""
        with named("item", number):
            memories = self._memories(message, None)
            if not packed and _of_cache(memories):
                raise ConfigError(
                    f"expected memories of vectors or text in a batch of this kind, got item {number} with keys and "
                    "values: ask about it with generate, or without options of a receiver that packs (SUPPORT.md)"
                )
            prompt = self._prompts.together(self._prompts.rows(memories, question))
            require_prompt(self.model, prompt, room)
        return prompt

    def _groups(self, asked: Sequence[tuple[Sources, str | Chat]], batch: int, room: int) -> Iterator[Group]:
        """Yields the prompts, those about equal memories together, and at most ``batch`` of these."""
        memories = []
        for number, (message, _) in enumerate(asked):
            with named("item", number):
                memories.append(self._memories(message, None))
        groups: dict[tuple[Hashable, tuple[tuple[int, ...], ...]], list[int]] = {}
        for number, each in enumerate(memories):  # what a digest leaves out is found when prompts are compared
            same = tuple(None if memory is None else (memory.digest(), memory.literals) for memory in each)
            with named("item", number):
                before = self._prompts.before_cache(each, asked[number][1]) if _of_cache(each) else ()
            groups.setdefault((same, before), []).append(number)
        for (_, before), group in groups.items():
            cache = None
            if before:
                cache = self._prompts.cache(self._prompts.rows(memories[group[0]], asked[group[0]][1]), whole=True)
            for start in range(0, len(group), batch):
                part = group[start : start + batch]
                prompts = (self._asked(n, memories[n], asked[n][1], room, packed=True) for n in part)
                yield Group(part, prompts, cache)

    def prompt(self, memory: Memory | Sequence[Memory | None] | None, question: str | Chat) -> Tensor:
        """Returns the embedded prompt, ``"tokens hidden"``, which the receiver reads before its first new token.

        Raises:
            EncodeError, ConfigError: as ``ilcp.models.prompt.pieces``; or a memory is of keys and values.
            DecodeError: a memory is not for this receiver.
            IdentityError: the receiver is no longer the one that was checked.
        """
        self._known.require(self.model, self.tokenizer)
        memories = (memory,) if isinstance(memory, Memory) else tuple(memory or ())
        if _of_cache(memories):
            raise ConfigError("expected memories of vectors or text to embed, got keys and values: call generate")
        return self._prompts.together(self._prompts.rows(memories, question))

    def codec_of(self, codec_id: bytes) -> Codec:
        """Returns the codec of that id; raises MismatchedCodecError where this receiver has none."""
        if codec_id not in self._by_id:
            known = " or ".join(f"{number.hex()} ({codec.spec.name})" for number, codec in self._by_id.items())
            raise MismatchedCodecError(
                f"expected a message of codec {known}, got one of codec "
                f"{codec_id.hex()}: its spec, weights, sender or receiver differ; load the sender's codec"
            )
        return self._by_id[codec_id]

    def _memories(self, message: Sources, context: str | Iterable[str] | None) -> tuple[Memory | None, ...]:
        if message is not None and context is not None:
            raise ConfigError("expected a message or a context, got both: pass None as the message to read the context")
        if context is not None:
            expected = "a context as a str or several in a list"
            texts = [context] if isinstance(context, str) else listed(context, expected, "text", error=ConfigError)
            called = ((text, f"context {number}") for number, text in enumerate(texts))
            return tuple(TextMemory(require_text(text, name, may_be_empty=True)) for text, name in called)
        if message is None:
            return ()
        if isinstance(message, Iterable) and not isinstance(message, str | bytes | bytearray | memoryview):
            return tuple(self._memory(each) for each in message)
        return (self._memory(message),)

    def _memory(self, message: Source) -> Memory | None:
        if message is None or isinstance(message, Memory):
            return message
        if not isinstance(message, bytes | bytearray | memoryview):
            raise ConfigError(
                f"expected message bytes, a Memory, a sequence of them or None, got {type(message).__name__}"
            )
        return self.decode(bytes(message))


def _of_cache(memories: Sequence[Memory | None]) -> bool:
    return any(isinstance(memory, CacheMemory) for memory in memories)
