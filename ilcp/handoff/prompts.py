"""A receiver's prompt: text that it reads, vectors that it attends to as if it had, and caches that stand as they are.

::

    memories, question --rows--> text "tokens hidden" | vectors "memory hidden" | KeysValues | text ...
    rows --together--> one prompt "tokens hidden", in which a cache has as many vectors that nobody reads
    rows --cache--> keys and values up to the last cache, None where there is none
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ilcp.codec.keys_values import KeysValues
from ilcp.codec.memory import CacheMemory, Memory
from ilcp.errors import ConfigError, EncodeError
from ilcp.message.literals import line
from ilcp.models.adapter import unwrapped
from ilcp.models.chat import Chat
from ilcp.models.forward import embed, embedding_norm
from ilcp.models.kv import placed, read_kv, require_fit
from ilcp.models.prompt import pieces
from ilcp.models.rope import ropes_of
from ilcp.nn.inference import inference

__all__ = ["Prompts", "Row"]

Row = Tensor | CacheMemory


class Prompts:
    """Makes the prompts of one receiver."""

    def __init__(self, model: Any, tokenizer: Any, template: dict[str, Any]):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.embedding_norm = embedding_norm(model)
        self.hidden = embed(model, [0]).shape[1]

    @cached_property
    def _own(self) -> KeysValues:
        """The model's keys and values of one token, whose shape those of a memory have to have."""
        return read_kv(self.model, [0], 0, ropes_of(self.model))

    def held(self, memory: Memory) -> str | Tensor | CacheMemory:
        """Returns what stands in a memory's place.

        Raises:
            DecodeError: the memory is not for this receiver.
        """
        if isinstance(memory, CacheMemory):
            require_fit(memory._held, self._own)
            return memory
        held = memory.in_prompt(self.hidden, self.embedding_norm)
        assert not isinstance(held, KeysValues)
        return held

    @inference(lambda prompts: unwrapped(prompts.model))
    def rows(self, memories: Sequence[Memory | None], question: str | Chat) -> list[Row]:
        """Returns embedded text and memories in turn; the first and the last are text, though it may be empty.

        Raises:
            EncodeError, ConfigError: as ``ilcp.models.prompt.pieces``; nothing stands behind a cache.
            DecodeError: a memory is not for this receiver.
        """
        held = [None if memory is None else self.held(memory) for memory in memories]
        texts = [embed(self.model, ids) for ids in self._pieces(memories, held, question)]
        rows: list[Row] = [texts[0]]
        for each, after in zip((each for each in held if not isinstance(each, str | None)), texts[1:], strict=True):
            rows += [each.to(after) if isinstance(each, Tensor) else each, after]
        if len(rows) > 1 and isinstance(rows[-2], CacheMemory) and not len(texts[-1]):
            raise EncodeError("expected a question to read behind a memory of keys and values, got none: ask something")
        return rows

    def before_cache(self, memories: Sequence[Memory | None], question: str | Chat) -> tuple[tuple[int, ...], ...]:
        """Returns the ids of text before the last memory that is a cache; none where no memory is one."""
        held = [None if memory is None else self.held(memory) for memory in memories]
        places = [each for each in held if isinstance(each, Tensor | CacheMemory)]
        caches = [at for at, each in enumerate(places) if isinstance(each, CacheMemory)]
        return tuple(self._pieces(memories, held, question)[: caches[-1] + 1]) if caches else ()

    def cache(self, rows: Sequence[Row], *, whole: bool = False) -> Any:
        """Returns a cache of all up to the last memory that is one, None where none is.

        Raises:
            DecodeError, ConfigError: as ``ilcp.models.kv.placed``.
        """
        cached = self._up_to_cache(rows)
        ready = [row._held if isinstance(row, CacheMemory) else row for row in cached]
        return placed(self.model, ready, whole=whole) if cached else None

    def require_cached(self, rows: Sequence[Row], cache: Any) -> None:
        """Refuses a caller's cache that ends before the last memory that is one: what stands there cannot be read.

        Raises:
            ConfigError: with both numbers of tokens.
        """
        needed = sum(row.tokens if isinstance(row, CacheMemory) else len(row) for row in self._up_to_cache(rows))
        if cache.get_seq_length() < needed:
            raise ConfigError(
                f"expected a cache of the {needed} tokens up to the end of a memory of keys and values, got one of "
                f"{cache.get_seq_length()}: make it with prefill, or leave it out"
            )

    def _up_to_cache(self, rows: Sequence[Row]) -> Sequence[Row]:
        caches = [at for at, row in enumerate(rows) if isinstance(row, CacheMemory)]
        return rows[: caches[-1] + 1] if caches else ()

    def together(self, rows: Sequence[Row]) -> Tensor:
        """Returns rows as one prompt ``"tokens hidden"``."""
        return torch.cat([self._stand_in(row) if isinstance(row, CacheMemory) else row for row in rows])

    def _pieces(
        self, memories: Sequence[Memory | None], held: Sequence[Any], question: str | Chat
    ) -> tuple[tuple[int, ...], ...]:
        lines = [line(memory.literals) if memory is not None and memory.literals else "" for memory in memories]
        contexts = [each or "" if isinstance(each, str | None) else None for each in held]
        return pieces(self.tokenizer, question, contexts, self.template, lines)

    def _stand_in(self, memory: CacheMemory) -> Tensor:
        """Returns vectors that nobody reads, different for different memories: prompts are compared by them."""
        named = torch.frombuffer(bytearray(memory.digest()), dtype=torch.uint8)[: self.hidden]
        row = F.pad(named, (0, self.hidden - len(named))).to(self.model.device, self.model.dtype)
        return row.expand(memory.tokens, -1)
