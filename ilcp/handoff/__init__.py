"""The two ends of a hop: a sender that encodes what it has read, a receiver that answers from what arrived.

::

    text, ids or outputs --Sender.read--> Context --codec.encode--> payload --Message.to_bytes--> bytes
    bytes --Message.from_bytes--> payload --codec.decode--> Memory --Receiver.generate--> answer
"""

from ilcp.handoff.answers import Score
from ilcp.handoff.fallback import FallbackWarning
from ilcp.handoff.receiver import Receiver
from ilcp.handoff.sender import Sender
from ilcp.handoff.verify import Verified

__all__ = ["FallbackWarning", "Receiver", "Score", "Sender", "Verified"]
