"""A codec for your own two models, from folders of weights to an answer: here between the two embedded ones.

    python examples/your_pair.py [WORK_FOLDER] [STEPS]

A few steps show the way, and end in a codec that says nothing yet: its card and its receiver say so. For one that
works, give it data of your own, thousands of cases and thousands of steps (``ilcp train --help``).
"""

import json
import sys
import tempfile
from pathlib import Path

import ilcp
from ilcp.embedded import HERE
from ilcp.tasks import case_files, thin

FEW = {"lookup": 2, "join": 1, "absent": 1}  # questions of a kind
work = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20

# 1. Cases: what the sender reads, what the receiver is asked, what it should answer.
data = work / "cases.jsonl"
with open(data, "w", encoding="utf-8") as file:
    for number, case in enumerate(case_files("train", seed=0, n=160, facts=4)):
        questions = thin(case, FEW, number).questions  # others of each document, so that all are asked some time
        asked = [{"question": question.text, "answer": question.answer} for question in questions]
        file.write(json.dumps({"context": case.context, "questions": asked}) + "\n")

# 2. The codec: trained, measured against its controls, saved with its card.
sizes = {"slots": 20, "dims": 32, "prefixes": [80], "width": 64, "heads": 4, "projector_width": 128}
codec = ilcp.train(
    sender=HERE / "sender", receiver=HERE / "receiver", data=data, out=work / "codec", steps=steps, codec=sizes
)
print(f"measured: {codec.evidence}")

# 3. The hand-off. Without allow_unmeasured, a receiver takes only a codec whose message was shown to carry something.
pair = ilcp.load_pair(work / "codec", allow_unmeasured=True)
document = next(case_files("test", seed=7, n=1, facts=4)).context
message = pair.sender.encode(document)
print(f"{len(document.encode())} bytes of text became {len(message)}")
print("by message:  ", pair.receiver.generate(message, "Which region is affected?"))
print("by full text:", pair.receiver.generate(None, "Which region is affected?", context=document))
