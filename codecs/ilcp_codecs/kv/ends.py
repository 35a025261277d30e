"""The two ends of an alignment: a model that reads texts side by side, and a receiver through which gradients flow.

::

    texts --End.read--> KeysValues of each, of no position, and where in the text each token ends
    keys and values of several memories, what is asked of each --Behind.logits--> logits of all answers
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ilcp.codec.keys_values import KeysValues, turned
from ilcp.errors import ConfigError
from ilcp.identity import ModelIdentity
from ilcp.models.adapter import plain, unwrapped
from ilcp.models.fingerprint import identify
from ilcp.models.forward import embed
from ilcp.models.packing import Packed, behind, greedy, pack
from ilcp.models.prompt import continuation, layout
from ilcp.models.rope import ropes_of
from ilcp.models.support import forward_takes, require_tokenizer
from ilcp.nn.inference import inference
from ilcp_codecs.kv.codecs import DTYPES, shape_of
from ilcp_codecs.kv.container import Shape

__all__ = ["Asked", "Behind", "End", "Memory"]

Memory = tuple[Sequence[tuple[Tensor, Tensor]], int]  # keys and values of each layer, of no position, and the tokens
Asked = tuple[Sequence[int], Sequence[int]]  # ids of what stands behind the memory, and of the answer


@dataclass(frozen=True, slots=True)
class End:
    """One model, what its tokenizer makes of a text, and what stands before a memory in its prompts."""

    model: Any
    tokenizer: Any
    identity: ModelIdentity
    ropes: tuple[tuple[float, ...], ...]
    shape: Shape
    prefix: tuple[int, ...]

    @classmethod
    def of(cls, side: str, model: Any, tokenizer: Any) -> "End":
        """Returns the end of a loaded model.

        Raises:
            ConfigError: as ``Aligner``.
        """
        require_tokenizer(tokenizer, side)
        model = plain(model)
        ropes = ropes_of(model)
        if not all(ropes):
            raise ConfigError(f"expected a {side} whose keys can be turned (RoPE), got {type(model).__name__}")
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(f"expected a {side}'s tokenizer that says where its tokens end (a fast one), got another")
        if model.dtype not in DTYPES.values():
            raise ConfigError(f"expected a {side} in one of {', '.join(DTYPES)}, got {model.dtype}: load it so")
        prefix = tuple(layout(tokenizer, "").prefix)
        return cls(model, tokenizer, identify(model, tokenizer), ropes, shape_of(model), prefix)

    @property
    def room(self) -> int:
        """The tokens that stand behind the prefix at most."""
        return self.shape.tokens - len(self.prefix)

    @inference(lambda end: unwrapped(end.model))
    def read(self, texts: Sequence[str], most: int) -> list[tuple[KeysValues, list[int]]]:
        """Returns for each text keys and values of its tokens, of no position, and where in the text each ends.

        They stand behind what a prompt begins with, and are read side by side, of each text ``most`` tokens.

        Raises:
            ConfigError: the tokenizer does not say where a text's tokens end.
        """
        start, most = len(self.prefix), min(most, self.room)
        made = [continuation(self.tokenizer, text) for text in texts]
        for text, (_, spans) in zip(texts, made, strict=True):
            if not spans:
                raise ConfigError(f"expected a text whose tokens the tokenizer tells apart, got {text[:40]!r}: drop it")
        rows = [[*self.prefix, *ids[:most]] for ids, _ in made]
        cache, found = self.cache(rows), []
        for at, (row, (_, spans)) in enumerate(zip(rows, made, strict=True)):
            tokens = len(row) - start
            held = [slice(len(row) - layer.held(tokens), len(row)) for layer in self.shape.layers]
            kept = zip(cache.layers, held, strict=True)
            pairs = [(layer.keys[at, :, these], layer.values[at, :, these]) for layer, these in kept]
            kv = self.shape.keys_values(pairs, tokens, start)
            found.append((kv.at(None), [end for _, end in spans[:most]]))
        return found

    @inference(lambda end: unwrapped(end.model))
    def cache(self, rows: Sequence[Sequence[int]]) -> Any:
        """Returns a cache of rows of ids, padded on the right, with every position of every layer."""
        from transformers import DynamicCache

        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.model.device)
        cache = DynamicCache()  # without a configuration nothing falls out of a window
        last = {"logits_to_keep": 1} if forward_takes(self.model, "logits_to_keep") else {}
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, **last)  # nobody sees the padding behind him
        return cache


class Behind:
    """The receiver behind a cache through which gradients flow."""

    def __init__(self, end: End):
        self.end, self.prefix = end, end.prefix
        self._before = end.cache([end.prefix]).layers if end.prefix else None
        self.packed: Packed | None = None  # what was asked last

    def logits(self, memories: Sequence[Memory], asked: Sequence[Sequence[Asked]]) -> Tensor:
        """Returns float32 logits ``"tokens vocabulary"`` of all answers in turn, each behind its memory."""
        self.packed = packed = self._pack(memories, asked)
        logits = packed.of_rows(behind(self.end.model, packed, self._cache(memories)))
        longest = packed.at.shape[1]
        lengths = [len(answer) for own in asked for _, answer in own]
        known = torch.tensor([[at >= longest - length for at in range(longest)] for length in lengths])
        return logits[known.to(logits.device)]

    def answers(
        self, memories: Sequence[Memory], asked: Sequence[Sequence[Sequence[int]]], ends: Sequence[int], most: int
    ) -> list[list[int]]:
        """Returns the ids of the greedy answer to each question, given by what stands behind its memory, in turn."""
        questions = [[(suffix, suffix[-1:]) for suffix in own] for own in asked]
        packed = self._pack(memories, questions)
        return greedy(self.end.model, packed._replace(cache=self._cache(memories)), ends, most)

    def _pack(self, memories: Sequence[Memory], asked: Sequence[Sequence[Asked]]) -> Packed:
        model, start = self.end.model, len(self.prefix)
        nobody = embed(model, [0])  # what is in the cache is not read
        flat = [each for own in asked for each in own]
        return pack(
            [nobody.expand(start + tokens, -1) for _, tokens in memories],
            [embed(model, [*suffix, *answer[:-1]]) for suffix, answer in flat],
            [number for number, own in enumerate(asked) for _ in own],
            [len(answer) for _, answer in flat],
        )

    def _cache(self, memories: Sequence[Memory]) -> Any:
        """Returns the prompt's beginning and each memory behind it, padded on the right with what nobody sees."""
        from transformers import DynamicCache

        cache, start, model = DynamicCache(), len(self.prefix), self.end.model
        most = max(tokens for _, tokens in memories)
        for number, rope in enumerate(self.end.ropes):
            sides: tuple[list[Tensor], list[Tensor]] = [], []
            for pairs, tokens in memories:
                keys, values = pairs[number]
                gone = tokens - keys.shape[1]
                places = torch.arange(gone, tokens, dtype=torch.float64) + start
                for side, each in zip(sides, (turned(keys, places, rope), values), strict=True):
                    side.append(F.pad(each, (0, 0, gone, most - tokens)).to(model.device, model.dtype))
            both = [torch.stack(side) for side in sides]
            if self._before is not None:
                first = (self._before[number].keys[0], self._before[number].values[0])
                both = [torch.cat([a.expand(len(b), *a.shape), b], 2) for a, b in zip(first, both, strict=True)]
            cache.update(both[0], both[1], number)
        return cache
