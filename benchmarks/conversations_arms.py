"""What ``conversations.py`` measures beside the arms of ``ilcp measure``.

``ComputedLm`` is text under the receiver's own model where coding it for real would take days, ``Zstd`` a zstd that
refuses no budget, ``true_facts`` what the codec's memory would be if the sender had missed nothing.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import shake_128
from math import ceil, inf, log2
from typing import Any

import torch

from ilcp.codec.context import Context
from ilcp.codec.memory import Memory, SoftPrompt
from ilcp.errors import DecodeError, EncodeError
from ilcp.handoff import Receiver
from ilcp.models.forward import embed
from ilcp.models.prompt import layout
from ilcp.models.reading import window_tokens
from ilcp.tasks import Case
from ilcp.training.facts import value_tokens
from ilcp_codecs.text import HeadCodec, LmCodec, ZstdCodec
from ilcp_codecs.text.codecs import TextCodec
from ilcp_codecs.text.lm import CUT_OFF, FLOOR, MODES

__all__ = ["ComputedLm", "Zstd", "compared", "true_facts"]

BLOCK_TOKENS = 256  # per pass: the logits of a whole history over 262,144 words would take gigabytes
LEAST_BYTES = 160  # of a text's code that are looked at: shorter budgets come later, of the same text
SALTS = 1000


@dataclass(frozen=True)
class _Coded:
    """A text's tokens and the code length of its first one, two, ...; ``budget_bits`` of it were looked at."""

    ids: list[int]
    bits: list[float]
    budget_bits: float


class ComputedLm(TextCodec):
    """The longest beginning of a text whose code under a language model is no longer than the bytes there are.

    The chances are those of ``LmCodec``, computed in one pass over the text, and the code's length is taken for its
    bytes: no end, no rounding up, and at least one token, so that it says a little more than ``LmCodec`` would. As
    there, a text that surprises the model goes as it is. A payload is a stand-in: of as many bytes, and good for
    finding the text again in this very object.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
    """

    name = "text-lm-computed"

    def __init__(self, model: Any, tokenizer: Any):
        super().__init__()
        self.model, self.tokenizer = model.eval(), tokenizer
        self._start = list(layout(tokenizer, "").prefix)
        self._size = 1 + max(tokenizer.get_vocab().values())
        self._known: dict[str, _Coded] = {}
        self._texts: dict[bytes, str] = {}

    def _pack(self, text: str, limit: int) -> bytes:
        coded = self._known.get(text)
        if coded is None or coded.budget_bits < 8 * limit:
            coded = self._known[text] = self._coded(text, 8 * max(limit, LEAST_BYTES))
        count = max(1, bisect_right(coded.bits, 8 * limit))
        size = min(limit, ceil(coded.bits[count - 1] / 8)) if coded.bits else 1
        head = self._head(text, coded.ids[:count])
        plain = text.encode("utf-8")[:limit].decode("utf-8", errors="ignore")  # for what surprises the model
        return self._stand_in(head, size) if len(head) >= len(plain) else self._stand_in(plain, limit)

    def _unpack(self, payload: bytes) -> bytes:
        if payload not in self._texts:
            raise DecodeError("expected a payload that this very codec made, got another: it is for measuring only")
        return self._texts[payload].encode("utf-8")

    @torch.no_grad()
    def _coded(self, text: str, budget_bits: float) -> _Coded:
        ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        row = [*self._start, *ids][: window_tokens(self.model)]
        known = max(1, len(self._start))  # tokens that cost nothing; without a start, the first is any
        bits = [-log2(MODES[0]) + (0.0 if self._start else log2(self._size))]
        cache: Any = None
        for start in range(0, len(row) - 1, BLOCK_TOKENS):
            block, following = row[start : start + BLOCK_TOKENS], row[start + 1 : start + BLOCK_TOKENS + 1]
            inputs = torch.tensor([block], device=self.model.device)
            outputs = self.model(input_ids=inputs, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            chances = outputs.logits[0, : len(following), : self._size].float().softmax(-1)
            found = chances[range(len(following)), following].double()
            costs = -torch.log2((1 - FLOOR) * found + FLOOR / self._size)
            for cost in costs[max(0, known - 1 - start) :].tolist():
                bits.append(bits[-1] + cost)
            if bits[-1] > budget_bits:
                return _Coded(ids, bits[bool(self._start) :], budget_bits)
        return _Coded(ids, bits[bool(self._start) :], inf)

    def _head(self, text: str, ids: list[int]) -> str:
        """Returns the beginning that the tokens stand for, without what the tokenizer does not give back."""
        for count in range(len(ids), 0, -1):
            head = self.tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            head = head.rstrip(CUT_OFF)
            if head and text.startswith(head):
                return str(head)
        return text[:1]

    def _stand_in(self, head: str, size: int) -> bytes:
        for salt in range(SALTS):
            payload = shake_128(f"{salt} {head}".encode()).digest(size)
            if self._texts.setdefault(payload, head) == head:
                return payload
        raise EncodeError(f"expected to tell the texts of {size} bytes apart, got too many of them")


class Zstd(ZstdCodec):
    """zstd; where a budget is too short for any frame, the beginning as it is."""

    name = "text-zstd-or-head"

    def _pack(self, text: str, limit: int) -> bytes:
        return super()._pack(text, limit) or HeadCodec()._pack(text, limit)

    def _unpack(self, payload: bytes) -> bytes:
        try:
            return super()._unpack(payload)
        except DecodeError:
            return payload


def compared(computed: ComputedLm, coder: LmCodec, texts: Sequence[str], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Returns how many characters of each text ``computed`` says in each size, and how many the real coder."""
    return [
        (_characters(computed, text, size), _characters(coder, text, size))
        for text in texts
        for size in sorted(sizes, reverse=True)  # a codec remembers the last text that it worked on
    ]


def _characters(codec: TextCodec, text: str, size: int) -> int:
    held = codec.decode(codec.encode(Context(text=text), size)).in_prompt(0, 0.0)
    assert isinstance(held, str)
    return len(held)


@torch.no_grad()
def true_facts(receiver: Receiver, cases: Sequence[Case]) -> list[Memory]:
    """Returns memories as the facts codec makes them, of the true values in the receiver's own embeddings.

    What is said about a topic that the codec does not know is left out: no message can say it.
    """
    network: Any = receiver.codec.network  # type: ignore[attr-defined]
    number = {topic: at for at, topic in enumerate(network.topics)}
    memories: list[Memory] = []
    for case in cases:
        told: dict[int, str] = {}
        for question in case.questions:
            for topic, value in question.facts if question.kind.startswith("said") else ():
                if topic in number:
                    told.setdefault(number[topic], value)
        rows = [network.speller.close[:0]]
        for at, value in sorted(told.items()):
            ids = value_tokens(receiver.tokenizer, value)[0][: network.places]
            rows.append(network.speller.fact(at, embed(receiver.model, ids).float()))
        memories.append(SoftPrompt(torch.cat(rows)))
    return memories
