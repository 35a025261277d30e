"""What a facts codec finds in the training cases: topics, words, and how often what is said."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilcp.errors import ConfigError
from ilcp_codecs.facts.config import VALUE_TOKENS

if TYPE_CHECKING:
    from ilcp.tasks.cases import Case

__all__ = ["Found", "find"]

MOST_WORDS = 16_384  # that a codec knows: those of values first, then the commonest of contexts


class Found(NamedTuple):
    """``topics``, a question about each, and the token ids of each one's name, and of a line break.

    The ``vocabulary`` are token ids, ascending; ``said`` is ``"cases topics"``, ``lengths`` are counted in ``"topics
    most"``; of every fact there are its topic ``"facts"`` and its token ids ``"facts most"``.
    """

    topics: tuple[str, ...]
    questions: tuple[str, ...]
    named: tuple[tuple[int, ...], ...]
    close: tuple[int, ...]
    vocabulary: tuple[int, ...]
    said: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    fact_topics: Tensor
    fact_ids: Tensor


def find(cases: Sequence["Case"], tokenizer: Any, settings: Mapping[str, Any]) -> Found:
    """Returns what the cases say, in tokens of the receiver's ``tokenizer``.

    Raises:
        ConfigError: no topic is said in enough cases.
    """
    from ilcp.training.facts import facts_of_case, topics_of, value_tokens

    most = int(settings.get("value_tokens", VALUE_TOKENS))
    told = [facts_of_case(case) for case in cases]
    topics = topics_of(cases)
    if not topics:
        raise ConfigError(
            f"expected questions with a topic that many cases answer, got none among {len(cases)} cases: give each "
            "question a topic, or train another codec ([codec] name)"
        )
    number = {topic: at for at, topic in enumerate(topics)}
    wordings = {topic: question.text for case in cases for question in case.questions for topic, _ in question.facts}
    facts = [(row, number[t], value) for row, own in enumerate(told) for t, value in own.items() if t in number]
    tokens = {value: value_tokens(tokenizer, value)[0][:most] for value in dict.fromkeys(v for *_, v in facts)}
    said = np.zeros((len(cases), len(topics)), dtype=bool)
    lengths = np.zeros((len(topics), most), dtype=np.int64)
    ids = torch.full((len(facts), most), -1)
    for at, (row, topic, value) in enumerate(facts):
        own = tokens[value]
        said[row, topic] = True
        lengths[topic, max(0, len(own) - 1)] += 1
        ids[at, : len(own)] = torch.tensor(own)
    questions = tuple(wordings[topic] for topic in topics)
    named = tuple(tuple(tokenizer(_words(topic), add_special_tokens=False).input_ids) for topic in topics)
    close = tuple(tokenizer("\n", add_special_tokens=False).input_ids)[-1:]
    known = _vocabulary(cases, tokenizer, {token for own in tokens.values() for token in own})
    about = torch.tensor([topic for _, topic, _ in facts])
    return Found(topics, questions, named, close, known, said, lengths, about, ids)


def _words(topic: str) -> str:
    """Returns a topic as a receiver reads it: "Restaurants city:" of "Restaurants.city"."""
    return re.sub(r"[\W_]+", " ", topic).strip() + ":"


def _vocabulary(cases: Sequence["Case"], tokenizer: Any, needed: set[int]) -> tuple[int, ...]:
    """Returns the tokens of values, and the commonest of contexts: a name that no value had may stand there."""
    texts = tokenizer([case.context for case in cases], add_special_tokens=False, verbose=False).input_ids
    common = Counter(token for ids in texts for token in ids if token not in needed)
    left = max(0, MOST_WORDS - len(needed))
    return tuple(sorted(needed | {token for token, _ in common.most_common(left)}))
