"""The one rule for what fits: a receiver reads a case in full, is asked, and has room for the longest right answer.

The full text is the arm that all others are compared with, and what a training's targets come from. All who read cases
ask here before they begin: a training of its data, self-study of what it writes, a measurement of what it is given.
"""

from collections.abc import Mapping
from typing import Any

from ilcp.models.forward import has_room
from ilcp.models.prompt import answer_ids, text_ids
from ilcp.models.reading import window_tokens
from ilcp.tasks.cases import Case, Question

__all__ = ["answer_room", "misfit"]

SPARE_TOKENS = 8  # by which an answer may be longer than the gold one before it is cut off


def answer_room(tokenizer: Any, question: Question, *, answers_end: bool = True) -> int:
    """Returns how many tokens the answer is given: those of the longest accepted one and a few, or, where answers go
    on, those of the continuation."""
    longest = max(len(answer_ids(tokenizer, answer, end=answers_end)) for answer in question.answers)
    return longest + SPARE_TOKENS if answers_end else longest


def misfit(
    model: Any, tokenizer: Any, case: Case, *, answers_end: bool = True, template: Mapping[str, Any] | None = None
) -> str | None:
    """Says by how much a case is beyond the window of the receiver's ``model``, and what to do; None where it fits.

    Raises:
        EncodeError, ConfigError: as ``ilcp.models.prompt.pieces``.
    """
    for question in case.questions:
        asked = len(text_ids(tokenizer, case.context, question.text, template))
        answer = answer_room(tokenizer, question, answers_end=answers_end)
        if not has_room(model, asked, answer):
            return (
                f"expected case {case.id!r} to fit into the receiver's window of {window_tokens(model)} tokens, got "
                f"{asked} for the context and question and {answer} for the answer: the full text is what the message "
                "is measured against; shorten the context, or leave the case out (of a training: too_long = 'skip')"
            )
    return None
