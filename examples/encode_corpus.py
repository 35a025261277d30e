"""A batch job: every file of a corpus becomes a message of 100 bytes, and a receiver asks about any of them later.

    python examples/encode_corpus.py [WORK_FOLDER]

``ilcp encode`` writes each message whole or not at all and leaves alone what is there of the same text, so a job that
was stopped is simply run again. The corpus here is of incident dossiers, which is all that the embedded pair knows.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import ilcp
from ilcp.tasks import case_files

work = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
corpus, messages = work / "corpus", work / "messages"
corpus.mkdir(exist_ok=True)
for number, case in enumerate(case_files("test", seed=11, n=20)):
    (corpus / f"dossier-{number:02}.txt").write_text(case.context, encoding="utf-8")

files = sorted(corpus.glob("*.txt"))
encode = [sys.executable, "-m", "ilcp", "encode", "--out", str(messages)]
subprocess.run([*encode, *map(str, files[:12])], check=True)  # the job, stopped after twelve
subprocess.run([*encode, *map(str, files)], check=True)  # run again: the others

done = sorted(messages.glob("*.ilcp"))
sizes = [sum(path.stat().st_size for path in some) for some in (files, done)]
print(f"{len(files)} dossiers: {sizes[0]:,} bytes of text, {sizes[1]:,} bytes of messages")
receiver = ilcp.load_pair().receiver
for path in done[:3]:
    print(f"{path.name}: {receiver.generate(path.read_bytes(), 'Which region is affected?')}")
