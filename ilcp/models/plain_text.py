"""What text of a stranger's may stand in a receiver's prompt: the one rule for text memories, literals and questions.

Refused is what a person who reads the text does not see and the model does, or what the model takes for a turn of the
talk: tokens that steer it, and what ``ilcp.inputs.hidden`` finds: controls, characters that change the direction or
have no width, tags, private use. What joins letters or pictures (in Persian, in Hindi, in a family of pictures) may
follow something visible, one at a time.
"""

import re
from functools import lru_cache
from typing import Any

from ilcp.inputs import hidden
from ilcp.models.prompt import MEMORY_HERE

__all__ = ["unfit"]

# How added tokens are spelled that steer; others are words that somebody's texts often have. Gemma has tokens for HTML.
_HTML = "table|caption|thead|tbody|tfoot|t[rhd]|h[1-6]|blockquote|strong|em|[bisu]|su[bp]|code"
_MARKUP = re.compile(rf"(?!</?(?:{_HTML})>)[<\[{{|].*[>\]}}|]", re.DOTALL)


def unfit(tokenizer: Any, text: str) -> str | None:
    """Says why a text may not stand in a prompt, to end a sentence with ("that holds U+200B"); None where it may."""
    if MEMORY_HERE in text:
        return "with ilcp.MEMORY_HERE in it"
    unseen = hidden(text)
    if unseen:
        return f"that holds {unseen}, which nobody sees"
    control = _control_ids(tokenizer, (len(tokenizer), tuple(tokenizer.all_special_ids)))
    if text and not control.isdisjoint(tokenizer(text, add_special_tokens=False).input_ids):
        return "that spells a control token"
    return None


@lru_cache(maxsize=8)
def _control_ids(tokenizer: Any, _known: tuple[int, tuple[int, ...]]) -> frozenset[int]:
    """Returns the tokens that steer a model, such as the end of a turn: special ones, and others that were added."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    steering = (number for number, token in added.items() if token.special or _MARKUP.fullmatch(str(token)))
    return frozenset({*tokenizer.all_special_ids, *steering} - {tokenizer.unk_token_id})  # unknown steers nothing
