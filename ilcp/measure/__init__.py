"""What a hand-off costs and what it is worth, beside its controls.

>>> from ilcp.measure import Computed
>>> Computed(41, "B", "20 + 20 + 1", {}).formula
'20 + 20 + 1'

Every figure is a ``Measured`` (a value with n and, where it is a mean, its interval) or a ``Computed`` (a value with
its formula and inputs); there is no third kind.
"""

from ilcp.measure.figures import Computed, Measured, provenance
from ilcp.measure.payload import Payload, payload
from ilcp.measure.quality import ARMS, Quality, quality

__all__ = ["ARMS", "Computed", "Measured", "Payload", "Quality", "payload", "provenance", "quality"]
