"""The open question about a message: say what it says, inside a fixed frame, so that it can be put into words.

A soft prompt that was trained inside one syntactic frame can be put into words there, and others cannot (arXiv
2605.27642, and what followed it). So a share of a codec's training may ask this question (``telling_share``), and
whoever wants an account that no question shaped asks it in the same words.
"""

from ilcp.models.prompt import MEMORY_HERE
from ilcp.tasks.cases import Case, Question

__all__ = ["TELL", "telling"]

TELL = f"The note says: {MEMORY_HERE}\n\nSay what the note says."


def telling(case: Case) -> Question | None:
    """Returns the question with what a case states, always in the same order; None where no facts of it are known.

    That is the case in its agents' own words, where they rewrite it, else each fact as ``topic: words.``
    """
    said = {fact: None for question in case.questions if question.said for fact in question.facts}
    if not said:
        return None
    if case.rewrite is not None:
        notes = case.rewrite.notes({question.text: question.answer for question in case.questions}, 0)
        return Question(TELL, notes.removesuffix(case.rewrite.remark(0)).strip(), "telling")
    return Question(TELL, " ".join(f"{topic}: {words}." for topic, words in said), "telling")
