"""Private-fact tasks: documents that only the sender reads, and questions that only they answer.

>>> from ilcp.tasks import case_files
>>> case = next(iter(case_files(split="test", seed=7, n=1)))
>>> sorted({question.kind for question in case.questions})
['absent', 'code', 'join', 'lookup']
"""

from ilcp.tasks.canaries import canaries
from ilcp.tasks.case_files import UNKNOWN, case_files
from ilcp.tasks.cases import Case, Question, cases_digest, read_jsonl, thin
from ilcp.tasks.graphs import graphs
from ilcp.tasks.load import Task, task

__all__ = [
    "UNKNOWN",
    "Case",
    "Question",
    "Task",
    "canaries",
    "case_files",
    "cases_digest",
    "graphs",
    "read_jsonl",
    "task",
    "thin",
]
