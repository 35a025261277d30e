"""A summary that is taken from the text itself: sentences of it, in its order, those with the most to tell.

A sentence tells by its names, numbers and codes, and by words that the text has seldom; the sentence that tells most
for its length comes first, until there is no room. So a summary says nothing that the text does not, and leaves much
out.
"""

import re
from collections import Counter

from ilcp.inputs import require_text

__all__ = ["summarised"]

_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?](?=\S)[^.!?\n]*)*[.!?]*\n?")  # a point inside a word ends none
_WORD = re.compile(r"\w[\w'-]*")
NAMED = 3.0  # a name, number or code tells as much as three words


def summarised(text: str, most_characters: int) -> str:
    """Returns at most so many characters of a text: whole sentences, or the beginning of the best one.

    Raises:
        EncodeError: there is no text.
    """
    sentences: list[str] = [each.strip() for each in _SENTENCE.findall(require_text(text)) if each.strip()]
    common = Counter(word.lower() for word in _WORD.findall(text))
    told = {place: _told(sentence, common) / len(sentence) for place, sentence in enumerate(sentences)}
    left = most_characters
    kept: list[int] = []
    for place in sorted(told, key=lambda place: -told[place]):
        if len(sentences[place]) + bool(kept) <= left:
            left -= len(sentences[place]) + bool(kept)
            kept.append(place)
    if not kept:
        return sentences[max(told, key=lambda place: told[place])][:most_characters]
    return " ".join(sentences[place] for place in sorted(kept))


def _told(sentence: str, common: Counter[str]) -> float:
    """Returns how much a sentence tells."""
    words = _WORD.findall(sentence)
    named = [any(c.isdigit() for c in word) or (word[0].isupper() and place > 0) for place, word in enumerate(words)]
    return sum((NAMED if name else 1.0) / common[word.lower()] for word, name in zip(words, named, strict=True))
