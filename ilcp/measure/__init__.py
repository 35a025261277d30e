"""The instrument: what a hand-off costs and what it is worth, beside its controls.

>>> from ilcp.measure import Computed
>>> Computed(41, "B", "20 + 20 + 1", {}).formula
'20 + 20 + 1'

``run`` measures one codec between two models on one task, in every arm, and gives a ``Report``. Every figure in it is a
``Measured`` (a value with n and, where it is a mean, its interval) or a ``Computed`` (a value with its formula and
inputs); there is no third kind, and all ``Measured`` of a report share its provenance: commit, versions, machine,
command, models and seed.
"""

from ilcp.measure.calibrating import calibrate
from ilcp.measure.choosing import Choice, Offer, choose
from ilcp.measure.compare import Comparison, compare
from ilcp.measure.cost import Cost, cost
from ilcp.measure.faithfulness import Faithfulness, faithfulness
from ilcp.measure.fanout import FanOut, fan_out
from ilcp.measure.figures import Citation, Computed, Measured, provenance
from ilcp.measure.files import load_report, save_report
from ilcp.measure.glosses import Glosses
from ilcp.measure.payload import Payload, payload
from ilcp.measure.report import Report
from ilcp.measure.run import equal_texts, run
from ilcp.measure.sequential import canary

__all__ = [
    "Choice",
    "Citation",
    "Comparison",
    "Computed",
    "Cost",
    "Faithfulness",
    "FanOut",
    "Glosses",
    "Measured",
    "Offer",
    "Payload",
    "Report",
    "calibrate",
    "canary",
    "choose",
    "compare",
    "cost",
    "equal_texts",
    "faithfulness",
    "fan_out",
    "load_report",
    "payload",
    "provenance",
    "run",
    "save_report",
]
