"""Two agents, a guardian and an auditor: what was handed over is on a record that people read and strangers verify.

    python examples/audited_handoff.py [FOLDER]

In real use the guardian is a process of its own (``ilcp audit guard``), under an account that the agents cannot write
to, the older checkpoint lies where it cannot reach it, and the page is served (``ilcp audit serve``).
"""

import sys
import tempfile
from pathlib import Path

import ilcp
from ilcp.audit import Accountant, Guardian, Ledger, Recorder, Signer, export, verify
from ilcp.audit.findings import said_of
from ilcp.audit.guardian import settings_for
from ilcp.audit.page.written import write_pages
from ilcp.embedded import load_receiver
from ilcp.measure import Glosses
from ilcp.signing import seed_in
from ilcp.tasks import case_files
from ilcp.transport import connect

QUESTIONS = ["Which region is affected?", "Who owns the ticket?", "What was the root cause?"]


def main(folder: Path) -> None:
    url, pair = f"spool://{folder}", ilcp.load_pair()
    dossier = next(case_files("test", seed=7, n=1)).context
    with (
        Recorder(url, "planner", run="monday", hop=1, accounts=True) as first,
        Recorder(url, "writer", run="monday", hop=2) as second,
    ):
        sender = ilcp.Sender(pair.sender.model, pair.sender.tokenizer, pair.sender.codec, audit=first)
        receiver = ilcp.Receiver(pair.receiver.model, pair.receiver.tokenizer, pair.receiver.codec, audit=second)
        message = sender.encode(dossier, literals="auto")  # it is on its way to the guardian when this returns
        print("answer:", receiver.generate(message, "Which region is affected?"))
    signer = Signer("example.org/handoffs", seed_in(folder / "key"))  # the guardian's alone
    with (
        connect(url, name="guardian", settings=settings_for(url)) as records,
        connect(url, name="guardian-accounts", settings=settings_for(url)) as deposits,
        Ledger(folder / "ledger.sqlite", signer) as ledger,
    ):
        Guardian(ledger, records).work()
        Accountant(ledger, deposits, Glosses(load_receiver(), QUESTIONS)).work()  # one account; again for the next
        older = ledger.checkpoint()  # an auditor keeps it
        ledger.erase(1, ["literals"], by="the data protection officer", because="the customer asked for it")
        export(ledger, folder / "export.jsonl")
        print("pages of", write_pages(ledger, folder / "pages"), "hand-offs:", folder / "pages" / "index.html")
    for line in said_of(verify(folder / "export.jsonl", keys=[signer.key], witnessed=[older])):
        print("auditor:", line)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
