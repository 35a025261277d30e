"""How a sender reads for a codec of caches: a text behind what a receiver's prompt begins with, or a finished call's.

::

    text --read_kv--> keys and values, and what the codec's questions look at in them
    text --codec.writing, where the codec has agents of its own--> their trace
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from ilcp.codec.context import Context
from ilcp.codec.keys_values import KeysValues, Rope
from ilcp.errors import EncodeError
from ilcp.handoff.sources import is_text_or_ids
from ilcp.inputs import require_text
from ilcp.models.attended import attended
from ilcp.models.forward import require_room
from ilcp.models.kv import read_kv, taken
from ilcp.models.prompt import continuation, layout
from ilcp.models.reading import require_ids
from ilcp.models.rope import ropes_of

__all__ = ["CacheReading"]

Prepared = tuple[str | None, list[int]]  # a source's text and its ids


class CacheReading:
    """Reads sources with one model for one codec."""

    def __init__(self, model: Any, tokenizer: Any, codec: Any, template: dict[str, Any]):
        self.model, self.tokenizer, self.codec, self.template = model, tokenizer, codec, template

    @cached_property
    def _agents(self) -> Callable[[str], Context]:
        """What the codec's own agents make of a text; it takes a while to make."""
        agents: Callable[[str], Context] = self.codec.writing(self.model, self.tokenizer)
        return agents

    @cached_property
    def _ropes(self) -> tuple[Rope, ...]:
        return ropes_of(self.model)

    def read(self, source: Any, prepared: Callable[[Any], Prepared]) -> Context:
        """Reads a text behind what a receiver's prompt begins with; anything else as a prompt's beginning itself.

        Raises:
            EncodeError, ConfigError: as ``Sender.read``.
        """
        if hasattr(self.codec, "writing"):
            if not isinstance(source, str):
                got = type(source).__name__
                raise EncodeError(f"expected a text for the codec's agents to read, or their Trace, got {got}")
            return self._agents(require_text(source))
        if not is_text_or_ids(source):
            cache = getattr(source, "past_key_values", source)
            return self._looked_at(None, (), taken(cache, self.model, 0, self._ropes))
        text, ids = prepared(source)
        start = 0
        if isinstance(source, str):
            before = layout(self.tokenizer, "", self.template).prefix
            ids, start = [*before, *continuation(self.tokenizer, require_text(source))[0]], len(before)
        require_ids(self.model, ids)
        require_room(self.model, len(ids), what="a text to read at once", way_out="hand off a part of it")
        return self._looked_at(text, ids[:start], read_kv(self.model, ids, start, self._ropes))

    def looked_at(self, context: Context) -> Context:
        """Returns a context with what the codec's questions look at in its cache, where they ask and it has one.

        Raises:
            EncodeError: the cache stands behind something else than a receiver's prompt begins with.
        """
        kv = context.kv
        if kv is None or context.attended is not None or not getattr(self.codec, "questions", ()):
            return context
        before = layout(self.tokenizer, "", self.template).prefix if kv.start else ()
        if kv.start != len(before):
            raise EncodeError(
                f"expected a cache at position 0, or {len(before)}, which a prompt begins with, got {kv.start}"
            )
        return replace(context, attended=self._looked_at(None, before, kv).attended)

    def _looked_at(self, text: str | None, before: Sequence[int], kv: KeysValues) -> Context:
        """Returns a context of a cache; beside it what the codec's questions look at, where it has some."""
        asked = getattr(self.codec, "questions", ())
        looked = attended(self.model, self.tokenizer, before, kv, asked, self.template) if asked else None
        return Context(text, kv=kv, attended=looked)
