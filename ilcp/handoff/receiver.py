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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilcp.codec.memory import Memory, TextMemory
from ilcp.codec.protocols import Codec
from ilcp.errors import ConfigError, DecodeError, EncodeError, MismatchedCodecError
from ilcp.evidence import require_evidence, require_signed, trusted_keys
from ilcp.handoff.answers import Group, Score, answered, answered_packed, require_prompt, scored, scored_packed
from ilcp.inputs import listed, require_text, tuples
from ilcp.message import verified
from ilcp.message.keys import Key, require_audience
from ilcp.message.literals import line
from ilcp.message.replay import ReplayCache
from ilcp.models.adapter import plain, unwrapped
from ilcp.models.chat import Chat, require_template
from ilcp.models.fingerprint import Known
from ilcp.models.forward import embed, embedding_norm, require_room
from ilcp.models.generate_options import require_count, require_options
from ilcp.models.packing import packs
from ilcp.models.plain_text import unfit
from ilcp.models.prefix_cache import PrefixCaches
from ilcp.models.prompt import pieces
from ilcp.models.support import require_receiver, require_tokenizer
from ilcp.nn.inference import inference

__all__ = ["Receiver"]

Source = bytes | bytearray | memoryview | Memory | None  # what one memory comes from
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

    Raises:
        ConfigError: the model cannot receive, there is no tokenizer, no codec, a replay cache without a key, or an
            argument that is no chat template's own.
        IdentityError: a codec was trained for another receiver; the text names the part that differs. Every later call
            that runs the model raises it too, once weights, adapters or tokenizer are no longer those checked here,
            as far as torch counts writes (it counts none through ``.data``).
        UnmeasuredError: a codec's content gain was not measured, or is not above zero, or nobody trusted says so; the
            text says what was measured.
        MissingExtraError: somebody is to be trusted, and PyNaCl is not installed.

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
    ):
        if replay is not None and key is None:
            raise ConfigError("expected a key beside the replay cache, got none: a bare message has no id to remember")
        _require_able("clock", clock, "__call__", "a clock to be called")
        if replay is not None:
            _require_able("replay", replay, "admit", "a replay cache")
        require_audience(audience, key)
        self.model = model = plain(model)
        require_receiver(model)
        require_tokenizer(tokenizer, "receiver")
        self.codecs = _codecs(codec)
        self._known = Known("receiver", [each.trained.receiver for each in self.codecs])
        self._known.require(model, tokenizer)
        trusted = () if trust is None else trusted_keys(trust)
        for each in self.codecs:
            codec_id = each.trained.codec_id(each.spec).hex()
            if trusted:
                require_signed(each.evidence, trusted, codec_id)
            if not allow_unmeasured:
                require_evidence(each.evidence, codec_id)
        model.eval()
        self.tokenizer = tokenizer
        self.codec = self.codecs[0]
        self.key, self.audience = key, audience
        self.replay = replay
        self.clock = clock
        self.template = require_template(template)
        self._by_id = {each.trained.codec_id(each.spec): each for each in self.codecs}
        self._embedding_norm = embedding_norm(model)
        self._hidden = embed(model, [0]).shape[1]
        self._caches = PrefixCaches()

    def decode(self, message: bytes) -> Memory:
        """Returns the memory that a message stands for, its literals beside it; it serves any number of calls.

        Raises:
            DecodeError: the bytes are no message, damaged, expired, or not under this receiver's key; or the payload
                decodes to NaN, infinity, another width, vectors out of the norm band of this receiver's embeddings; or
                its text or literals are not plain (see ``ilcp.models.plain_text``), or longer than the window.
            ReplayError: the message was decoded before.
            ReplayCacheError: the replay cache cannot say so.
            MismatchedCodecError: the message was made by another codec; it is an IdentityError and a DecodeError.
            ConfigError: the key was taken away, and the replay cache is still there.
        """
        now = int(self.clock())
        if self.replay is not None and self.key is None:
            raise ConfigError("expected a key beside the replay cache, got none: without it nothing is authenticated")
        parsed, key = verified(message, key=self.key, now_unix_s=now, audience=self.audience)
        memory = self._codec_of(parsed.codec_id).decode(parsed.payload)
        held = memory.in_prompt(self._hidden, self._embedding_norm)
        self._require_plain("a memory of plain text", held if isinstance(held, str) else "")
        for literal in parsed.literals:
            self._require_plain("literals of plain text", literal)
        self._require_plain("literals of plain text", line(parsed.literals))
        self._require_room(held, line(parsed.literals) if parsed.literals else "")
        if self.replay is not None and key is not None and parsed.seal is not None:
            self.replay.admit(key, parsed.seal, now_unix_s=now)  # last, so that what is refused uses up no id
        return memory.beside(parsed.literals) if parsed.literals else memory

    def _require_plain(self, expected: str, text: str) -> None:
        because = unfit(self.tokenizer, text)
        if because is not None:
            raise DecodeError(f"expected {expected}, got one {because}: leave it out, or drop the message")

    def _require_room(self, held: str | Tensor, said: str) -> None:
        """Refuses text and literals of a peer beside which no question would fit."""
        vectors, text = (0, held) if isinstance(held, str) else (len(held), "")
        if text or said:
            (ids,) = pieces(self.tokenizer, "", [text], self.template, [said])
            what = "a memory of text" if text else "literals beside a memory"
            require_room(self.model, vectors + len(ids), what=what, way_out="drop it", error=DecodeError)

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
        require_options(options, 1, cached=cache is not None)
        self._known.require(self.model, self.tokenizer)
        prompt = self.prompt(self._memories(message, context), question)
        if cache is not None:
            cache = self._caches.copied(cache, self.model, prompt, options.get("num_beams") or 1)
        return answered(self.model, self.tokenizer, [prompt], max_new_tokens, options, cache)[0]

    def prefill(self, message: Sources, question: str | Chat = "") -> Any:
        """Returns a cache of the prompt up to and including its last memory of vectors, for ``generate(cache=...)``.

        It serves every question whose prompt begins alike: any text, or the same chat messages up to the memory.

        Raises:
            EncodeError: there is no memory of vectors to pre-fill, or it does not fit the receiver's window.
            ConfigError: the model keeps no such cache as ``generate`` takes.
            DecodeError, IdentityError: as ``decode``.
        """
        self._known.require(self.model, self.tokenizer)
        *rows, _ = self._rows(self._memories(message, None), question)
        if not rows:
            raise EncodeError("expected a memory of vectors to pre-fill, got none: text and nothing need no prefill")
        beginning = torch.cat(rows)
        require_prompt(self.model, beginning, 1)
        return self._caches.prefilled(self.model, beginning)

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

    def _asked(self, number: int, message: Sources, question: str | Chat, room: int) -> Tensor:
        """Returns the prompt of an item, which leaves room for so many tokens of an answer; an error names the item."""
        with _named(number):
            prompt = self.prompt(self._memories(message, None), question)
            require_prompt(self.model, prompt, room)
        return prompt

    def _groups(self, asked: Sequence[tuple[Sources, str | Chat]], batch: int, room: int) -> Iterator[Group]:
        """Yields the prompts, those about equal memories together, and at most ``batch`` of these."""
        memories = []
        for number, (message, _) in enumerate(asked):
            with _named(number):
                memories.append(self._memories(message, None))
        groups: dict[Hashable, list[int]] = {}
        for number, each in enumerate(memories):  # what a digest leaves out is found when prompts are compared
            key = tuple(None if memory is None else (memory.digest(), memory.literals) for memory in each)
            groups.setdefault(key, []).append(number)
        for group in groups.values():
            for start in range(0, len(group), batch):
                part = group[start : start + batch]
                yield part, (self._asked(number, memories[number], asked[number][1], room) for number in part)

    def prompt(self, memory: Memory | Sequence[Memory | None] | None, question: str | Chat) -> Tensor:
        """Returns the embedded prompt, ``"tokens hidden"``, which the receiver reads before its first new token.

        Raises:
            EncodeError, ConfigError: as ``ilcp.models.prompt.pieces``.
            DecodeError: a memory is not for this receiver.
        """
        memories = (memory,) if isinstance(memory, Memory) else tuple(memory or ())
        return torch.cat(self._rows(memories, question))

    @inference(lambda receiver: unwrapped(receiver.model))
    def _rows(self, memories: Sequence[Memory | None], question: str | Chat) -> list[Tensor]:
        """Returns embedded text and vectors in turn; the first and the last are text, though it may be empty."""
        held = [None if memory is None else memory.in_prompt(self._hidden, self._embedding_norm) for memory in memories]
        lines = [line(memory.literals) if memory is not None and memory.literals else "" for memory in memories]
        contexts = [None if isinstance(each, Tensor) else each or "" for each in held]
        texts = [embed(self.model, ids) for ids in pieces(self.tokenizer, question, contexts, self.template, lines)]
        rows = texts[:1]
        for vectors, after in zip((each for each in held if isinstance(each, Tensor)), texts[1:], strict=True):
            rows += [vectors.to(after), after]
        return rows

    def _codec_of(self, codec_id: bytes) -> Codec:
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
            named = ((text, f"context {number}") for number, text in enumerate(texts))
            return tuple(TextMemory(require_text(text, name, may_be_empty=True)) for text, name in named)
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


@contextmanager
def _named(number: int) -> Iterator[None]:
    """Names the item of a batch in whatever refuses it."""
    try:
        yield
    except (DecodeError, EncodeError) as error:
        raise type(error)(f"item {number}: {error}") from error


def _require_able(name: str, given: Any, method: str, what: str) -> None:
    if not hasattr(given, method):
        raise ConfigError(f"expected {name} to be {what}, got {type(given).__name__}")


def _codecs(codec: Any) -> tuple[Codec, ...]:
    codecs = tuple(codec) if isinstance(codec, Iterable) and not isinstance(codec, str | bytes) else (codec,)
    if not codecs:
        raise ConfigError("expected a codec or several, got none: load the sender's with ilcp.load")
    for each in codecs:
        if not all(hasattr(each, name) for name in ("spec", "trained", "decode")):
            shown = repr(each) if each is None or isinstance(each, str | Path) else type(each).__name__
            raise ConfigError(f"expected a codec, got {shown}: load it with ilcp.load(folder_or_hub_id)")
    return codecs
