"""The loop that every learned codec uses: through the frozen receiver, from questions with known answers.

::

    cases --Batcher--> sender ids, rows "context, question, answer"
      sender (frozen) --states--> network --memory--> receiver (frozen) --> loss

It knows a network only by ``Network``: states in, memory and a rate out.
"""

from ilcp.training.loop import Result, train
from ilcp.training.objective import Models, Network, calibrate
from ilcp.training.phrasebook import Phrasebook, write_phrasebook
from ilcp.training.recipe import Recipe

__all__ = ["Models", "Network", "Phrasebook", "Recipe", "Result", "calibrate", "train", "write_phrasebook"]
