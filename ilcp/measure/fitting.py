"""The one rule for what fits: a receiver reads a case in full, is asked, and has room for the longest right answer.

The full text is the arm that all others are compared with, and what a training's targets come from. All who read cases
ask here before they begin: a training of its data, self-study of what it writes, a measurement of what it is given.
"""

from collections.abc import Mapping
from typing import Any

from ilcp.models.prompt import answer_ids, text_ids
from ilcp.models.reading import window_tokens
from ilcp.tasks.cases import Case, Question

__all__ = ["Fitting"]

SEAM_TOKENS = 32  # by which a prompt may be longer than its parts, tokenized one by one
SPARE_TOKENS = 8  # by which an answer may be longer than the gold one before it is cut off


class Fitting:
    """What fits into the window of a receiver; remembers how long questions and answers are that come again.

    Args:
        model: the receiver's.
        answers_end: whether answers end (questions) or go on (continuations).
        template: arguments of the receiver's for its chat template.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, answers_end: bool = True, template: Mapping[str, Any] | None = None
    ):
        self.tokenizer, self.answers_end, self.template = tokenizer, answers_end, template
        self.window_tokens = window_tokens(model)
        self._answers: dict[str, int] = {}
        self._questions: dict[str, int] = {}
        self._context: tuple[str, int] | None = None  # the last one, and its tokens

    def answer_room(self, question: Question) -> int:
        """Returns how many tokens the answer is given: those of the longest accepted one and a few, or, where answers
        go on, those of the continuation."""
        longest = max(map(self._answer_tokens, question.answers))
        return longest + SPARE_TOKENS if self.answers_end else longest

    def misfit(self, case: Case) -> str | None:
        """Says by how much a case is beyond the window, and what to do; None where it fits.

        Raises:
            EncodeError, ConfigError: as ``ilcp.models.prompt.pieces``.
        """
        for question in case.questions:
            answer = self.answer_room(question)
            asked = self.prompt_tokens(case, question, answer)
            if asked + answer > self.window_tokens:
                return (
                    f"expected case {case.id!r} to fit into the receiver's window of {self.window_tokens} tokens, got "
                    f"{asked} for the context and question and {answer} for the answer: the full text is what the "
                    "message is measured against; shorten the context, or leave the case out (of a training: too_long "
                    "= 'skip')"
                )
        return None

    def prompt_tokens(self, case: Case, question: Question, room: int) -> int:
        """Returns how many tokens the prompt has that holds the context; a few too many where these and ``room`` fit.

        To read the context again with every question of it would take most of the time.

        Raises:
            EncodeError, ConfigError: as ``ilcp.models.prompt.pieces``.
        """
        if self._context is None or self._context[0] != case.context:
            self._context = case.context, len(text_ids(self.tokenizer, case.context, "", self.template))
        if question.text not in self._questions:
            self._questions[question.text] = len(text_ids(self.tokenizer, "", question.text, self.template))
        most = self._context[1] + self._questions[question.text] + SEAM_TOKENS
        if most + room <= self.window_tokens:
            return most
        return len(text_ids(self.tokenizer, case.context, question.text, self.template))

    def _answer_tokens(self, answer: str) -> int:
        if answer not in self._answers:
            self._answers[answer] = len(answer_ids(self.tokenizer, answer, end=self.answers_end))
        return self._answers[answer]
