"""The receiving end of a hop: it unpacks, projects and answers.

::

    bytes --Message.from_bytes--> payload --codec.decode--> Memory --Receiver.generate--> answer

Several messages may stand in one prompt, and the question may be chat messages: ``ilcp.models.prompt`` says where
memories sit. A message's literals follow right after its memory, an empty line between: one line of text, as
``ilcp.message.literals.line`` writes it. Who may write literals writes text into the prompt: see the threat model of
``ilcp.message``. What ``generate`` takes beyond that goes on to transformers: sampling, beams, streaming, stop strings.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ilcp.codec.memory import Memory
from ilcp.codec.protocols import Codec
from ilcp.errors import DecodeError, EncodeError, MismatchedCodecError
from ilcp.evidence import require_evidence
from ilcp.identity import check_same, digest
from ilcp.message import verified
from ilcp.message.keys import Key
from ilcp.message.literals import line
from ilcp.message.replay import ReplayCache
from ilcp.models.fingerprint import identify
from ilcp.models.forward import answer_logits, answer_scores, embed, embedding_norm, pad_left
from ilcp.models.generate_options import before_stop, check_count, check_options, end_ids, neutral
from ilcp.models.prefix_cache import copied, require_cache
from ilcp.models.prompt import GAP, MEMORY_HERE, Chat, answer_ids, holds_control, pieces
from ilcp.models.reading import window_tokens
from ilcp.models.support import forward_takes, require_receiver, require_tokenizer

__all__ = ["Receiver", "Score"]

Source = bytes | bytearray | memoryview | Memory | None  # what one memory comes from
Sources = Source | Sequence[Source]


@dataclass(frozen=True, slots=True)
class Score:
    """How one answer fares: the log-likelihood of each of its tokens in nats, and whether greedy decoding gives it."""

    token_nats: tuple[float, ...]
    exact: bool

    @property
    def log_likelihood_nats(self) -> float:
        """Of the whole answer."""
        return sum(self.token_nats)


class Receiver:
    """The other side of a hop: unpacks, projects, and answers.

    Args:
        model: a transformers causal language model that takes ``inputs_embeds``; it is put into evaluation mode and
            used, its weights never change.
        tokenizer: the model's tokenizer.
        codec: trained for this receiver; or several, for messages of several senders. A message's codec id picks one.
        key: the sender's key, or an ``ilcp.KeyRing`` of those that senders use; bare messages are then refused.
            May be assigned later, to rotate.
        replay: decodes each sealed message once, whichever process asks; keep its memory to ask it several questions.
        clock: the time in unix seconds, by which messages expire.
        allow_unmeasured: takes a codec that was not measured, or that was and carries nothing (see ``ilcp.evidence``).
        template: arguments for the chat template beside the messages, such as ``{"enable_thinking": False}``; every
            prompt of this receiver is rendered with them.

    Raises:
        EncodeError: the model cannot receive, there is no tokenizer, no codec, or a replay cache without a key.
        IdentityError: a codec was trained for another receiver; the text names the part that differs.
        UnmeasuredError: a codec's content gain was not measured, or is not above zero; the text says what was measured.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        codec: Codec | Sequence[Codec],
        *,
        key: Key | None = None,
        replay: ReplayCache | None = None,
        clock: Callable[[], float] = time.time,
        allow_unmeasured: bool = False,
        template: Mapping[str, Any] | None = None,
    ):
        if replay is not None and key is None:
            raise EncodeError("expected a key beside the replay cache, got none: a bare message has no id to remember")
        require_receiver(model)
        require_tokenizer(tokenizer, "receiver")
        self.codecs = _codecs(codec)
        identity = identify(model, tokenizer)
        for each in self.codecs:
            check_same("receiver", each.trained.receiver, identity)
            if not allow_unmeasured:
                require_evidence(each.evidence, each.trained.codec_id(each.spec).hex())
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.codec = self.codecs[0]
        self.key = key
        self.replay = replay
        self.clock = clock
        self.template = dict(template or {})
        self._by_id = {each.trained.codec_id(each.spec): each for each in self.codecs}
        self._embedding_norm = embedding_norm(model)
        self._hidden = embed(model, [0]).shape[1]
        self._prefilled: WeakKeyDictionary[Any, bytes] = WeakKeyDictionary()

    def decode(self, message: bytes) -> Memory:
        """The memory that a message stands for, its literals beside it; it serves any number of calls.

        Raises:
            DecodeError: the bytes are no message, damaged, expired, or not under this receiver's key; or the payload
                decodes to NaN, infinity, another width, or vectors out of the norm band of this receiver's embeddings.
            ReplayError: the message was decoded before.
            ReplayCacheError: the replay cache cannot say so.
            MismatchedCodecError: the message was made by another codec; it is an IdentityError and a DecodeError.
            EncodeError: the key was taken away, and the replay cache is still there.
        """
        now = int(self.clock())
        if self.replay is not None and self.key is None:
            raise EncodeError("expected a key beside the replay cache, got none: without it nothing is authenticated")
        parsed, key = verified(message, key=self.key, now_unix_s=now)
        if parsed.codec_id not in self._by_id:
            known = " or ".join(f"{number.hex()} ({codec.spec.name})" for number, codec in self._by_id.items())
            raise MismatchedCodecError(
                f"expected a message of codec {known}, got one of codec "
                f"{parsed.codec_id.hex()}: its spec, weights, sender or receiver differ; load the sender's codec"
            )
        memory = self._by_id[parsed.codec_id].decode(parsed.payload)
        if MEMORY_HERE in (memory.text or ""):
            raise DecodeError("expected a memory of plain text, got one with ilcp.MEMORY_HERE in it: drop it")
        if memory.text is None:
            memory.checked_vectors(self._hidden, self._embedding_norm)
        if parsed.literals and holds_control(self.tokenizer, line(parsed.literals)):
            raise DecodeError("expected literals of plain text, got one that spells a control token: leave it out")
        if self.replay is not None and key is not None and parsed.seal is not None:
            self.replay.admit(key, parsed.seal, now_unix_s=now)  # last, so that what is refused uses up no id
        return memory.beside(parsed.literals) if parsed.literals else memory

    def forget(self, message: bytes) -> None:
        """Lets a sealed message in once more, because the work on it failed.

        Raises:
            DecodeError, ReplayCacheError: as ``decode``.
        """
        parsed, key = verified(message, key=self.key, now_unix_s=int(self.clock()))
        if self.replay is not None and key is not None and parsed.seal is not None:
            self.replay.forget(key, parsed.seal)

    def generate(
        self,
        message: Sources,
        question: str | Chat = "",
        *,
        context: str | Sequence[str] | None = None,
        max_new_tokens: int = 32,
        cache: Any = None,
        **options: Any,
    ) -> str:
        """The receiver's answer, from messages or memories, from ``context`` as text, or from nothing.

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
            EncodeError: both a message and a context were given, the prompt leaves no room for an answer, it cannot be
                made (see ``ilcp.models.prompt``), an option is not the caller's or refused by transformers, or the
                cache is not this prompt's.
            DecodeError, IdentityError: as ``decode``.
        """
        check_count("max_new_tokens", max_new_tokens)
        check_options(options, 1, cached=cache is not None)
        prompt = self.prompt(self._memories(message, context), question)
        return self._answered([prompt], max_new_tokens, options, cache)[0]

    def prefill(self, message: Sources, question: str | Chat = "") -> Any:
        """A cache of the prompt up to and including its last memory of vectors, for ``generate(..., cache=...)``.

        It serves every question whose prompt begins alike: any text, or the same chat messages up to the memory.

        Raises:
            EncodeError: there is no memory of vectors to pre-fill, or it does not fit the receiver's window.
            DecodeError, IdentityError: as ``decode``.
        """
        *rows, _ = self._rows(self._memories(message, None), question)
        if not rows:
            raise EncodeError("expected a memory of vectors to pre-fill, got none: text and nothing need no prefill")
        prompt = torch.cat(rows)
        self._check_room(len(prompt), 1)
        fewer = {"logits_to_keep": 1} if forward_takes(self.model, "logits_to_keep") else {}
        with torch.no_grad():
            outputs = self.model(inputs_embeds=prompt.unsqueeze(0), use_cache=True, **fewer)
        cache = outputs.past_key_values
        require_cache(cache, self.model, len(prompt) + 1)  # refused now, not at the first question
        self._prefilled[cache] = _fingerprint(prompt)
        return cache

    @torch.no_grad()
    def _answered(
        self, prompts: Sequence[Tensor], max_new_tokens: int, options: Mapping[str, Any], cache: Any = None
    ) -> list[str]:
        for prompt in prompts:
            self._check_room(prompt.shape[0], max_new_tokens)
        embeds, mask = pad_left(prompts)
        more = {**neutral(self.model), **options}
        if cache is not None:
            more["past_key_values"] = self._checked_cache(cache, prompts[0], options)
        try:
            ids = self.model.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=self._pad_id(),
                tokenizer=self.tokenizer,  # for stop strings
                **more,
            )
        except (TypeError, ValueError) as error:
            if not options:  # then it is no option's fault
                raise
            raise EncodeError(
                f"expected options that transformers' generate takes, got {', '.join(sorted(options))}: {error}"
            ) from error
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [before_stop(str(text), options.get("stop_strings")).strip() for text in texts]

    def score(
        self, items: Sequence[tuple[Sources, str | Chat, str]], *, end: bool = True, batch: int = 64
    ) -> list[Score]:
        """Scores of ``(message, question, answer)`` items, teacher-forced in batches.

        ``exact`` says whether greedy decoding gives the answer, because each position is judged after the true
        answer so far: the first difference makes it false either way. With ``end`` the answer is closed as
        ``answer_ids`` says. If the model ends its answers there (by its ``generation_config``), any other
        of its end tokens counts as well, and ``exact`` is what ``generate`` would answer with room for it.

        Raises:
            EncodeError: a prompt and its answer do not fit into the receiver's window, or an answer is empty.
            DecodeError, IdentityError: as ``decode``.
        """
        check_count("batch", batch)
        scores: list[Score] = []
        ends = end_ids(self.model) if end else ()
        for start in range(0, len(items), batch):
            prompts, answers = [], []
            for message, question, answer in items[start : start + batch]:
                prompts.append(self.prompt(self._memories(message, None), question))
                answers.append(answer_ids(self.tokenizer, answer, end=end))
                if not answer or not answers[-1]:
                    raise EncodeError("expected an answer to score, got an empty one")
                self._check_room(prompts[-1].shape[0], len(answers[-1]))
            with torch.no_grad():
                logits, labels = answer_logits(self.model, prompts, answers)
            scores += [Score(tuple(nats), exact) for nats, exact in answer_scores(logits, labels, ends)]
        return scores

    def answers(
        self,
        items: Sequence[tuple[Sources, str | Chat]],
        *,
        max_new_tokens: int = 32,
        batch: int = 64,
        **options: Any,
    ) -> list[str]:
        """The answers to ``(message, question)`` items, in batches.

        Each is as ``generate`` gives it, but for rounding in a padded batch, which can decide between tokens that are
        nearly as likely, and for sampling, where the rows of a batch share one source of chance.

        Raises:
            EncodeError, DecodeError, IdentityError: as ``generate``; a streamer follows one answer only, and a cache is
                one prompt's.
        """
        check_count("batch", batch)
        check_count("max_new_tokens", max_new_tokens)
        check_options(options, min(batch, len(items)), cached=False)
        found: list[str] = []
        for start in range(0, len(items), batch):
            prompts = [self.prompt(self._memories(m, None), question) for m, question in items[start : start + batch]]
            found += self._answered(prompts, max_new_tokens, options)
        return found

    def prompt(self, memory: Memory | Sequence[Memory | None] | None, question: str | Chat) -> Tensor:
        """The embedded prompt, ``"tokens hidden"``: what the receiver pre-fills before its first new token.

        Raises:
            EncodeError: as ``ilcp.models.prompt.pieces``.
            DecodeError: a memory is not for this receiver.
        """
        memories = (memory,) if isinstance(memory, Memory) else tuple(memory or ())
        return torch.cat(self._rows(memories, question))

    @torch.no_grad()
    def _rows(self, memories: Sequence[Memory | None], question: str | Chat) -> list[Tensor]:
        """Embedded text and memories of vectors in turn; the first and the last are text, though it may be empty."""
        asked, contexts = _with_literals(question, memories)
        texts = [embed(self.model, ids) for ids in pieces(self.tokenizer, asked, contexts, self.template)]
        rows = texts[:1]
        held = [memory for memory in memories if memory is not None and memory.text is None]
        for memory, after in zip(held, texts[1:], strict=True):
            rows += [memory.checked_vectors(after.shape[1], self._embedding_norm).to(after), after]
        return rows

    def _memories(self, message: Sources, context: str | Sequence[str] | None) -> tuple[Memory | None, ...]:
        if message is not None and context is not None:
            raise EncodeError("expected a message or a context, got both: pass None as the message to read the context")
        if context is not None:
            return tuple(Memory(text=text) for text in ([context] if isinstance(context, str) else context))
        if message is None:
            return ()
        if isinstance(message, Sequence) and not isinstance(message, str | bytes | bytearray | memoryview):
            return tuple(self._memory(each) for each in message)
        return (self._memory(message),)

    def _memory(self, message: Source) -> Memory | None:
        if message is None or isinstance(message, Memory):
            return message
        if not isinstance(message, bytes | bytearray | memoryview):
            raise EncodeError(
                f"expected message bytes, a Memory, a sequence of them or None, got {type(message).__name__}"
            )
        return self.decode(bytes(message))

    def _checked_cache(self, cache: Any, prompt: Tensor, options: Mapping[str, Any]) -> Any:
        require_cache(cache, self.model, len(prompt))
        filled = self._prefilled.get(cache)
        if filled is not None and filled != _fingerprint(prompt[: cache.get_seq_length()]):
            raise EncodeError(
                f"expected a cache of this prompt's first {cache.get_seq_length()} tokens, got one that was pre-filled "
                "for another memory, another beginning of the chat, or that was written into since: pre-fill again"
            )
        return copied(cache, options.get("num_beams") or 1)

    def _pad_id(self) -> int | None:
        pad: int | None = self.tokenizer.pad_token_id
        end: int | None = self.tokenizer.eos_token_id
        return end if pad is None else pad

    def _check_room(self, prompt_tokens: int, answer_tokens: int) -> None:
        window = window_tokens(self.model)
        if prompt_tokens == 0:
            raise EncodeError("expected a message, a context or a question, got none of them")
        if prompt_tokens + answer_tokens > window:
            raise EncodeError(
                f"expected a prompt and answer of at most {window} tokens (the receiver's window), "
                f"got {prompt_tokens} + {answer_tokens}: shorten the text, or hand it off as a message"
            )


def _with_literals(question: str | Chat, memories: Sequence[Memory | None]) -> tuple[str | Chat, Sequence[str | None]]:
    """The question and the contexts for ``pieces``, each memory's literals as text right after it."""
    contexts = ["" if memory is None else memory.text for memory in memories]
    lines = [line(memory.literals) if memory is not None and memory.literals else "" for memory in memories]
    if not any(lines):
        return question, contexts
    contents = [question] if isinstance(question, str) else [message.get("content") for message in question]
    markers = sum(content.count(MEMORY_HERE) for content in contents if isinstance(content, str))
    if not markers:  # the literals of each stand behind it, as a text that was handed off would
        return question, [part for pair in zip(contexts, lines, strict=True) for part in pair if part != ""]
    if markers != len(memories):
        return question, contexts  # pieces() refuses it
    left = iter(lines)

    def written(content: Any) -> Any:
        if not isinstance(content, str):
            return content
        first, *rest = content.split(MEMORY_HERE)
        return first + "".join(GAP.join(filter(None, (MEMORY_HERE, next(left)))) + part for part in rest)

    if isinstance(question, str):
        return written(question), contexts
    return [{**message, "content": written(message.get("content"))} for message in question], contexts


def _codecs(codec: Any) -> tuple[Codec, ...]:
    codecs = tuple(codec) if isinstance(codec, Sequence) and not isinstance(codec, str | bytes) else (codec,)
    if not codecs:
        raise EncodeError("expected a codec or several, got none: load the sender's with ilcp.load")
    for each in codecs:
        if not all(hasattr(each, name) for name in ("spec", "trained", "decode")):
            shown = repr(each) if each is None or isinstance(each, str | Path) else type(each).__name__
            raise EncodeError(f"expected a codec, got {shown}: load it with ilcp.load(folder_or_hub_id)")
    return codecs


def _fingerprint(prompt: Tensor) -> bytes:
    return digest(prompt.float().cpu().contiguous().numpy().tobytes())
