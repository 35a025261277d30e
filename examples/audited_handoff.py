"""Two agents, a guardian, and an auditor: what was handed over is on a record that a stranger can verify.

    python examples/audited_handoff.py [FOLDER]

In real use the guardian is a process of its own (``ilcp audit guard``), under an account that the agents cannot write
to, and the older checkpoint lies where it cannot reach it.
"""

import sys
import tempfile
from pathlib import Path

import ilcp
from ilcp.audit import Guardian, Ledger, Recorder, Signer, export, verify
from ilcp.audit.findings import said_of
from ilcp.audit.guardian import settings_for
from ilcp.signing import seed_in
from ilcp.tasks import case_files
from ilcp.transport import connect


def main(folder: Path) -> None:
    url, pair = f"spool://{folder}", ilcp.load_pair()
    dossier = next(case_files("test", seed=7, n=1)).context
    with Recorder(url, "planner", run="monday", hop=1) as first, Recorder(url, "writer", run="monday", hop=2) as second:
        sender = ilcp.Sender(pair.sender.model, pair.sender.tokenizer, pair.sender.codec, audit=first)
        receiver = ilcp.Receiver(pair.receiver.model, pair.receiver.tokenizer, pair.receiver.codec, audit=second)
        message = sender.encode(dossier, literals="auto")  # it is on its way to the guardian when this returns
        print("answer:", receiver.generate(message, "Which region is affected?"))
    signer = Signer("example.org/handoffs", seed_in(folder / "key"))  # the guardian's alone
    guardian_end = connect(url, name="guardian", settings=settings_for(url))
    with guardian_end as connection, Ledger(folder / "ledger.sqlite", signer) as ledger:
        Guardian(ledger, connection).work()
        older = ledger.checkpoint()  # an auditor keeps it
        ledger.erase(1, ["literals"], by="the data protection officer", because="the customer asked for it")
        export(ledger, folder / "export.jsonl")
    for line in said_of(verify(folder / "export.jsonl", keys=[signer.key], witnessed=[older])):
        print("auditor:", line)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
