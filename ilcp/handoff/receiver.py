"""The receiving end of a hop: it unpacks, projects and answers.

::

    bytes --Message.from_bytes--> payload --codec.decode--> Memory --Receiver.generate--> answer
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ilcp.codec import Codec
from ilcp.context import window_tokens
from ilcp.errors import EncodeError, IdentityError
from ilcp.forward import answer_logits, answer_scores, embed, pad_left
from ilcp.identity import check_same, identify
from ilcp.memory import Memory
from ilcp.message import Message
from ilcp.prompt import answer_ids, layout, text_ids
from ilcp.proof import require_proof

__all__ = ["Receiver", "Score"]


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
        codec: trained for this receiver.
        key: the sender's key; bare messages are then refused.
        allow_unproven: takes a codec that was not measured, or that was and carries nothing (see ``ilcp.proof``).

    Raises:
        IdentityError: the codec was trained for another receiver; the text names the part that differs.
        UnprovenError: the codec's content gain was not measured, or is not above zero; the text says what was measured.
    """

    def __init__(
        self, model: Any, tokenizer: Any, codec: Codec, *, key: bytes | None = None, allow_unproven: bool = False
    ):
        check_same("receiver", codec.trained.receiver, identify(model, tokenizer))
        if not allow_unproven:
            require_proof(codec.proof, codec.trained.codec_id(codec.spec).hex())
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.codec = codec
        self.key = key
        self._codec_id = codec.trained.codec_id(codec.spec)
        self._embedding_norm = float(model.get_input_embeddings().weight.detach().float().norm(dim=-1).mean())

    def decode(self, message: bytes) -> Memory:
        """The memory that a message stands for; it serves any number of calls.

        Raises:
            DecodeError: the bytes are no message, damaged, expired, or not under this receiver's key.
            IdentityError: the message was made by another codec.
        """
        parsed = Message.from_bytes(message, key=self.key)
        if parsed.codec_id != self._codec_id:
            raise IdentityError(
                f"expected a message of codec {self._codec_id.hex()} ({self.codec.spec.name}), got one of codec "
                f"{parsed.codec_id.hex()}: its spec, weights, sender or receiver differ; load the sender's codec"
            )
        return self.codec.decode(parsed.payload)

    def generate(
        self,
        message: bytes | Memory | None,
        question: str = "",
        *,
        context: str | None = None,
        max_new_tokens: int = 32,
    ) -> str:
        """The receiver's greedy answer, from a message or memory, from ``context`` as text, or from nothing.

        Raises:
            EncodeError: both a message and a context were given, or the prompt leaves no room for an answer.
            DecodeError, IdentityError: as ``decode``.
        """
        return self._greedy([self.prompt(self._memory(message, context), question)], max_new_tokens)[0]

    @torch.no_grad()
    def _greedy(self, prompts: Sequence[Tensor], max_new_tokens: int) -> list[str]:
        for prompt in prompts:
            self._check_room(prompt.shape[0], max_new_tokens)
        embeds, mask = pad_left(prompts)
        ids = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self._pad_id(),
        )
        return [str(text).strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def score(
        self, items: Sequence[tuple[bytes | Memory | None, str, str]], *, end: bool = True, batch: int = 64
    ) -> list[Score]:
        """Scores of ``(message, question, answer)`` items, teacher-forced in batches.

        ``exact`` equals what greedy ``generate`` would answer, because each position is judged after the true
        answer so far: the first difference makes it false either way.

        Raises:
            EncodeError: a prompt and its answer do not fit into the receiver's window, or an answer is empty.
            DecodeError, IdentityError: as ``decode``.
        """
        scores: list[Score] = []
        for start in range(0, len(items), batch):
            prompts, answers = [], []
            for message, question, answer in items[start : start + batch]:
                prompts.append(self.prompt(self._memory(message, None), question))
                answers.append(answer_ids(self.tokenizer, answer, end=end))
                if not answer or not answers[-1]:
                    raise EncodeError("expected an answer to score, got an empty one")
                self._check_room(prompts[-1].shape[0], len(answers[-1]))
            with torch.no_grad():
                logits, labels = answer_logits(self.model, prompts, answers)
            scores += [Score(tuple(nats), exact) for nats, exact in answer_scores(logits, labels)]
        return scores

    def answers(
        self, items: Sequence[tuple[bytes | Memory | None, str]], *, max_new_tokens: int = 32, batch: int = 64
    ) -> list[str]:
        """The greedy answers to ``(message, question)`` items, in batches; each as ``generate`` gives it.

        Raises:
            EncodeError, DecodeError, IdentityError: as ``generate``.
        """
        found: list[str] = []
        for start in range(0, len(items), batch):
            prompts = [self.prompt(self._memory(m, None), question) for m, question in items[start : start + batch]]
            found += self._greedy(prompts, max_new_tokens)
        return found

    def prompt(self, memory: Memory | None, question: str) -> Tensor:
        """The embedded prompt, ``"tokens hidden"``: what the receiver pre-fills before its first new token."""
        if memory is None or memory.text is not None:
            text = "" if memory is None else memory.text or ""
            return embed(self.model, text_ids(self.tokenizer, text, question)).detach()
        embedding = self.model.get_input_embeddings()
        vectors = memory.checked_vectors(embedding.embedding_dim, self._embedding_norm)
        place = layout(self.tokenizer, question)
        before, after = embed(self.model, place.prefix), embed(self.model, place.suffix)
        return torch.cat([before, vectors.to(embedding.weight), after]).detach()

    def _memory(self, message: bytes | Memory | None, context: str | None) -> Memory | None:
        if message is not None and context is not None:
            raise EncodeError("expected a message or a context, got both: pass None as the message to read the context")
        if context is not None:
            return Memory(text=context)
        if message is None or isinstance(message, Memory):
            return message
        if not isinstance(message, bytes | bytearray | memoryview):
            raise EncodeError(f"expected message bytes, a Memory or None, got {type(message).__name__}")
        return self.decode(bytes(message))

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
