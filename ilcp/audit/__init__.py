"""The accountability shadow: what was handed over, on a record that only grows, and that a stranger can verify.

::

    Sender(audit=Recorder) --submission--> spool, NATS --> Guardian --> Ledger <-- verify, witnesses, exports
    Receiver(audit=...)    <--receipt----

- ``Recorder``: a producer tells of each hand-off; it cannot append, edit or sign.
- ``Guardian``: a process and a key of its own (``ilcp audit guard``) enters what comes in, each once.
- ``Accountant``: beside it, two texts of a hand-off: what its message was read to say, and what its text says.
- ``Ledger``: entries under a Merkle tree (RFC 6962), its root signed; personal values beside it, which can be erased.
- ``verify``: computes everything anew from the file or an export, and compares it with checkpoints that others hold.

**What it shows**: that this record is what the guardian entered then, in this order, and that nothing was changed,
left out or put in since, as far as somebody else keeps a checkpoint. **What it cannot show**: that what a producer told
is so, or that it told everything but where its own numbers have gaps. It is tamper-evident; it is no proof of truth.

``import ilcp.audit`` loads no torch. It needs ``ilcp[audit]``.
"""

from ilcp.audit.accounts import Accountant, Gloss, Line
from ilcp.audit.checkpoints import Checkpoint, Key, Signer, parsed, signers
from ilcp.audit.copies import export
from ilcp.audit.entries import Draft, Entry, Personal
from ilcp.audit.findings import CHECKS, Finding, Verified
from ilcp.audit.guardian import Guardian
from ilcp.audit.ledger import Ledger
from ilcp.audit.recorder import AuditWarning, Recorder
from ilcp.audit.verify import verify

__all__ = [
    "CHECKS",
    "Accountant",
    "AuditWarning",
    "Checkpoint",
    "Draft",
    "Entry",
    "Finding",
    "Gloss",
    "Guardian",
    "Key",
    "Ledger",
    "Line",
    "Personal",
    "Recorder",
    "Signer",
    "Verified",
    "export",
    "parsed",
    "signers",
    "verify",
]
