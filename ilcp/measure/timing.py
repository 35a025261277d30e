"""The steps of a hand-off, timed: what ``ilcp.measure.cost`` keeps.

Per repetition, interleaved, in an order drawn anew each time::

    sender     reads (with and without hidden states, as far up as the codec does)  -->  codec encodes  -->  wire out
    receiver   wire in  -->  codec decodes  -->  first token: by message, memory, text, as many tokens, nothing
               the same prompts through the bare forward pass ("prefill"), and behind the document's prefix cache

Drawn anew, because what runs after a long text finds the processor's caches full of it. The wire takes microseconds: it
is also timed in a row, per call, where it finds its own.
"""

import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from rich.progress import track

from ilcp.codec.memory import CacheMemory, Memory, TextMemory
from ilcp.errors import ConfigError, EncodeError
from ilcp.handoff import Receiver, Sender
from ilcp.measure.flops import count_flops, eager_attention
from ilcp.measure.prefill import CachedText, cache_text
from ilcp.message import Message
from ilcp.models.forward import Prefill, embed, has_room
from ilcp.models.prompt import layout, text_ids
from ilcp.models.reading import run_ids, window_tokens

__all__ = ["Bench", "as_many_tokens", "fits", "torch_threads"]

WARM_UP = 3  # repetitions of everything, thrown away
IN_A_ROW = 50  # calls per sample of a step that says so
SHORTEST_TOKENS = 32  # the first document length; the next ones double
Steps = dict[str, Callable[[], object]]


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Sets so many threads inside the block; as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fits(receiver: Receiver, context: str, question: str) -> bool:
    """Tells whether the prompt leaves room for one new token."""
    return has_room(receiver.model, len(text_ids(receiver.tokenizer, context, question)))


def as_many_tokens(receiver: Receiver, context: str, question: str, tokens: int) -> str:
    """Returns the beginning of ``context``, repeated where it is too short, that makes a prompt of ``tokens`` tokens.

    Where no cut makes exactly so many, the nearest; the count is measured, not believed.
    """

    def length(end: int) -> int:
        return len(text_ids(receiver.tokenizer, text[:end], question))

    text = context
    while length(len(text)) < tokens:
        text += " " + context
    near = bisect_left(range(len(text)), tokens, key=length)
    ends = range(max(near - 8, 0), min(near + 8, len(text)) + 1)  # a longer text may take fewer tokens: words merge
    return text[: min(ends, key=lambda end: abs(length(end) - tokens))]


class Bench:
    """The steps of one pair's hand-off, ready to be timed."""

    def __init__(self, sender: Sender, receiver: Receiver, question: str):
        self.sender, self.receiver, self.question = sender, receiver, question
        self.prefill = Prefill(receiver.model)
        self.on_gpu = any(model.device.type == "cuda" for model in (sender.model, receiver.model))

    def cache_refusal(self, context: str) -> str:
        """Says why the prefix cache is not measured; empty where it gives the first token of the cold text path."""
        try:
            cached = cache_text(self.receiver, context, self.question)
        except (ConfigError, EncodeError) as error:
            return str(error)
        cold = int(self.prefill(self.receiver.prompt(TextMemory(context), self.question)).argmax())
        warm = int(cached.first_logits(self.prefill, cached.copy()).argmax())
        return "" if warm == cold else f"expected first token {cold} as without a cache, got {warm}"

    def measure(
        self, contexts: Sequence[str], cached: bool, progress: bool
    ) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[int, ...]]]:
        """Returns milliseconds per step and tokens per prompt, one of each per context, after a warm-up."""
        samples: dict[str, list[float]] = {}
        tokens: dict[str, list[int]] = {}
        for context in contexts[:WARM_UP]:
            self._time(self._steps(context, cached)[0], 0)
        for turn, context in enumerate(track(contexts, "repetitions", disable=not progress, transient=True)):
            steps, counts = self._steps(context, cached)
            for name, milliseconds in self._time(steps, turn).items():
                samples.setdefault(name, []).append(milliseconds)
            for name, count in counts.items():
                tokens.setdefault(name, []).append(count)
        return {k: tuple(samples[k]) for k in steps}, {k: tuple(v) for k, v in tokens.items()}

    def by_length(
        self, contexts: Sequence[str], repetitions: int, longest_tokens: int, progress: bool
    ) -> list[tuple[int, dict[str, tuple[float, ...]]]]:
        """Returns the tokens of documents of doubling length up to the window, each with milliseconds per step: to the
        first token by text and by message, and what the sender does for the message."""
        place = layout(self.receiver.tokenizer, self.question)
        room = window_tokens(self.receiver.model) - len(place.prefix) - len(place.suffix) - 1
        limit = min(room, longest_tokens)
        lengths = [SHORTEST_TOKENS << k for k in range(limit.bit_length()) if SHORTEST_TOKENS << k < limit]
        documents = [self._document(contexts, length) for length in [*lengths, limit]]
        documents = documents[:1] + [document for document in documents[1:] if self._takes(document)]
        samples: list[dict[str, list[float]]] = [{} for _ in documents]
        for turn in track(range(-WARM_UP, repetitions), "lengths", disable=not progress, transient=True):
            for document, taken in zip(documents, samples, strict=True):
                for name, milliseconds in self._time(self._length_steps(document), turn).items():
                    if turn >= 0:
                        taken.setdefault(name, []).append(milliseconds)
        counts = [len(self.receiver.tokenizer(text, add_special_tokens=False).input_ids) for text in documents]
        return [
            (count, {name: tuple(values) for name, values in taken.items()})
            for count, taken in zip(counts, samples, strict=True)
        ]

    def _takes(self, document: str) -> bool:
        """Says whether a codec of caches takes so long a document."""
        try:
            return self.sender.codec.spec.reads != "cache" or bool(self.sender.encode(document))
        except EncodeError:
            return False

    def count(self, context: str) -> dict[str, int]:
        """Counts operations, and the tokens of the prompts they were counted on."""
        codec, read = self.sender.codec, self.sender.read(context)
        data = codec.encode(read)
        memory = self.receiver.codec.decode(data)
        text = self.receiver.prompt(TextMemory(context), self.question)
        by_message, read_tokens = self._pass(memory)
        with eager_attention(self.receiver.model):
            counted = {
                "text": count_flops(lambda: self.prefill(text)),
                "message": count_flops(by_message),
            }
        counted["codec encodes"] = count_flops(lambda: codec.encode(read))
        counted["codec decodes"] = count_flops(lambda: self.receiver.codec.decode(data))
        return counted | {"text tokens": len(text), "message tokens": read_tokens}

    def _pass(self, memory: Memory) -> tuple[Callable[[], object], int]:
        """Returns the bare forward pass of the prompt with a memory, and how many tokens it reads: of keys and values
        those around them, behind a copy of them that is counted in."""
        receiver = self.receiver
        if not isinstance(memory, CacheMemory):
            prompt = receiver.prompt(memory, self.question)
            return partial(self.prefill, prompt), len(prompt)
        place = layout(receiver.tokenizer, self.question, receiver.template)
        cache, rest = receiver.prefill(memory, self.question), embed(receiver.model, place.suffix).detach()
        kept = CachedText(cache, len(place.prefix) + memory.kv.tokens, rest)
        return lambda: kept.first_logits(self.prefill, kept.copy()), len(place.prefix) + len(place.suffix)

    def _time(self, steps: Steps, turn: int) -> dict[str, float]:
        """Returns milliseconds of each step, in an order drawn for ``turn``: none always follows the same one."""
        names = list(steps)
        random.Random(turn).shuffle(names)
        times: dict[str, float] = {}
        for name in names:
            calls = IN_A_ROW if name.endswith("in a row") else 1
            work = steps[name]
            self._settle()
            started = time.perf_counter()
            for _ in range(calls):
                work()
            self._settle()
            times[name] = 1000 * (time.perf_counter() - started) / calls
        return times

    def _settle(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def _steps(self, context: str, cached: bool) -> tuple[Steps, dict[str, int]]:
        """Returns every step on ``context``, independent of the others' results; and the tokens of each prompt."""
        sender, receiver, codec = self.sender, self.receiver, self.receiver.codec
        read = sender.read(context)
        ids = sender.tokenizer(context, verbose=False).input_ids
        data = sender.codec.encode(read)
        message = sender.pack(data)
        memory = receiver.decode(message)
        by_message, read_tokens = self._pass(memory)
        twin = as_many_tokens(receiver, context, self.question, read_tokens)
        prompts = {
            "text": receiver.prompt(TextMemory(context), self.question),
            "as many tokens": receiver.prompt(TextMemory(twin), self.question),
            "nothing": receiver.prompt(None, self.question),
        }
        steps: Steps = {
            "sender reads": lambda: sender.read(context),
            "sender reads, no hidden states": self._anyway(ids),
            "codec encodes": lambda: sender.codec.encode(read),
            "wire out": lambda: sender.pack(data),
            "wire out, in a row": lambda: sender.pack(data),
            "wire in": lambda: Message.from_bytes(message, key=receiver.key, audience=receiver.audience),
            "wire in, in a row": lambda: Message.from_bytes(message, key=receiver.key, audience=receiver.audience),
            "codec decodes": lambda: codec.decode(data),
            "receiver decodes": lambda: receiver.decode(message),
            "first token, message": lambda: self._first(message),
            "first token, memory": lambda: self._first(memory),
            "first token, text": lambda: self._first(None, context),
            "first token, as many tokens": lambda: self._first(None, twin),
            "first token, nothing": lambda: self._first(None),
            "prefill, message": by_message,
        }
        for name, prompt in prompts.items():
            steps[f"prefill, {name}"] = partial(self.prefill, prompt)
        counts = {"message": read_tokens} | {name: len(prompt) for name, prompt in prompts.items()}
        if cached:
            kept = cache_text(receiver, context, self.question)
            fresh = kept.copy()
            steps["prefill, text in the prefix cache"] = lambda: kept.first_logits(self.prefill, fresh)
            counts["text in the prefix cache"] = kept.tokens
        return steps, counts

    def _anyway(self, ids: Sequence[int]) -> Callable[[], object]:
        """Returns what the sender computes of its text without a hand-off: as far up as the codec reads, or all."""
        model, layers = self.sender.model, self.sender.codec.layers
        if self.sender.codec.spec.reads != "cache":
            return lambda: run_ids(model, ids, layers)
        whole = Prefill(model)
        return lambda: whole.outputs(embed(model, ids))

    def _length_steps(self, document: str) -> Steps:
        sender = self.sender
        read = sender.read(document)
        data = sender.codec.encode(read)
        message = sender.pack(data)
        return {
            "text": lambda: self._first(None, document),
            "message": lambda: self._first(message),
            "encode": lambda: sender.codec.encode(read),
            "wire out": lambda: sender.pack(data),
        }

    def _first(self, message: bytes | Memory | None, context: str | None = None) -> str:
        return self.receiver.generate(message, self.question, context=context, max_new_tokens=1)

    def _document(self, contexts: Sequence[str], tokens: int) -> str:
        """Makes a text of ``tokens`` receiver's tokens, or a few less: cut out of the contexts, one after the other."""
        tokenizer = self.receiver.tokenizer
        ids: list[int] = []
        while len(ids) < tokens:
            ids += tokenizer(" ".join(contexts), add_special_tokens=False, verbose=False).input_ids
        while True:
            text = str(tokenizer.decode(ids[:tokens], skip_special_tokens=True))
            if fits(self.receiver, text, self.question):
                return text
            tokens -= 1
