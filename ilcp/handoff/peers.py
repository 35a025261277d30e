"""What of a peer's message would stand in the receiver's prompt: it has to be plain text, and to leave room."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ilcp.codec.memory import CacheMemory
from ilcp.errors import DecodeError
from ilcp.message.literals import line
from ilcp.models.forward import require_room
from ilcp.models.plain_text import unfit
from ilcp.models.prompt import pieces

__all__ = ["require_fit"]


def require_fit(
    model: Any,
    tokenizer: Any,
    template: Mapping[str, Any],
    held: str | Tensor | CacheMemory,
    literals: tuple[str, ...],
) -> None:
    """Refuses text, keys and literals of a peer that are not plain, or beside which no question would fit.

    Raises:
        DecodeError: with the reason.
    """
    text = held if isinstance(held, str) else ""
    _require_plain(tokenizer, "a memory of plain text", text)
    for literal in literals:
        _require_plain(tokenizer, "literals of plain text", literal)
    said = line(literals)
    _require_plain(tokenizer, "literals of plain text", said)
    said = said if literals else ""
    vectors = held.tokens if isinstance(held, CacheMemory) else 0 if isinstance(held, str) else len(held)
    if text or said or isinstance(held, CacheMemory):
        (ids,) = pieces(tokenizer, "", [text], template, [said])
        what = "a memory of text" if text else "literals beside a memory" if said else "a memory of keys and values"
        require_room(model, vectors + len(ids), what=what, way_out="drop it", error=DecodeError)


def _require_plain(tokenizer: Any, expected: str, text: str) -> None:
    because = unfit(tokenizer, text)
    if because is not None:
        raise DecodeError(f"expected {expected}, got one {because}: leave it out, or drop the message")
