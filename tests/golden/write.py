"""Writes golden vectors that are not there yet; what is there is never touched.

    python -m tests.golden.write

The bytes come from the tables of ``tests/test_message.py``, ``test_message_blob.py`` and ``test_message_encrypted.py``;
their checks, MACs and ciphertexts were made with other tools.
``vectors.json`` holds all of them: to add one, write its row, remove nothing, delete the JSON, run this, and see in the
diff that lines were added only.
"""

import json
from pathlib import Path
from typing import Any

from tests import test_message as v1
from tests import test_message_blob as v2
from tests import test_message_encrypted as v3

ABOUT = [
    "Message v{version} of ilcp. All bytes are hex; ilcp/message/__init__.py has the specification.",
    "accepted: reading hex with key (null: none) at now_unix_s gives these fields, null being absent.",
    "canonical: writing these fields gives exactly hex; else a writer may choose another zstd frame, or text.",
    "refused: reading must fail. refusal is DecodeError (malformed or damaged), AuthenticationError or ExpiredError.",
]


def main() -> None:
    """Writes what is missing, and says what."""
    write(1, v1.GOLDEN, v1.GOLDEN_ROWS, {"accepted": v1.accepted_vectors(), "refused": v1.refused_vectors()})
    write(2, v2.GOLDEN, v2.TABLE, {"accepted": v2.accepted_vectors(), "refused": v2.refused_vectors()})
    write(3, v3.GOLDEN, v3.GOLDEN_ROWS, {"accepted": v3.accepted_vectors(), "refused": v3.refused_vectors()})


def write(version: int, golden: Path, rows: Any, vectors: dict[str, Any]) -> None:
    """Writes the files of one version that are not there yet."""
    for name, _, wire in rows:
        file = golden / f"{name}.bin"
        if not file.exists():
            file.write_bytes(wire)
            print(file)
    file = golden / "vectors.json"
    if not file.exists():
        about = [line.format(version=version) for line in ABOUT]
        file.write_text(json.dumps({"about": about, **vectors}, indent=1) + "\n", encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
