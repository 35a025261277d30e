"""Knowing when a codec is wrong: what is usual of its messages, and what an end does in doubt.

Four layers, the cheapest first:

- *identity* (``ilcp.identity``) refuses what differs before anything is decoded: tampering and swapped weights are its
  business and the seal's, never that of statistics;
- *each message* has a conformal p-value against a ``Reference`` in the codec's folder, which the sender knows before it
  sends and the receiver before it answers;
- *over time* a test martingale accumulates what those p-values say (``ilcp.assurance.martingale``), in a ``Watch``;
- *function*: canary questions are asked through the real pair (``ilcp.measure.canary``), which finds what reads
  fluently and knows nothing.

``Policy`` says what follows: ``Receiver(..., assurance=Policy(doubt="refuse"))``.
"""

from ilcp.assurance.martingale import ALARM, Canary, Jumper
from ilcp.assurance.policy import AssuranceWarning, Judgement, Policy
from ilcp.assurance.reference import REFERENCE, Calibrated, Reference
from ilcp.assurance.view import Observed, View
from ilcp.assurance.watch import State, Watch

__all__ = [
    "ALARM",
    "REFERENCE",
    "AssuranceWarning",
    "Calibrated",
    "Canary",
    "Judgement",
    "Jumper",
    "Observed",
    "Policy",
    "Reference",
    "State",
    "View",
    "Watch",
]
