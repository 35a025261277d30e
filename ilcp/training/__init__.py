"""The loop that every learned codec uses: through the frozen receiver, from questions with known answers.

::

    cases --Batcher--> texts, rows "context, question, answer"
      Reader (the frozen sender, or its states on disk) --states--> network --memory--> receiver (frozen) --> loss

It knows a network only by ``Network``: states in, memory and a rate out.
"""

from ilcp.training.batch import Models
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.loop import Result, fit
from ilcp.training.objective import Network, calibrate
from ilcp.training.phrasebook import Phrasebook, write_phrasebook
from ilcp.training.reader import StateStore
from ilcp.training.topics import with_topics
from ilcp.training.tuning import tune

__all__ = [
    "Hyperparameters",
    "Models",
    "Network",
    "Phrasebook",
    "Result",
    "StateStore",
    "calibrate",
    "fit",
    "tune",
    "with_topics",
    "write_phrasebook",
]
