"""Writes golden vectors that are not there yet; what is there is never touched.

    python -m tests.golden.write

The bytes come from the tables of ``tests/test_message.py``, whose checks and MACs were made with other tools.
``vectors.json`` holds all of them: to add one, write its row, remove nothing, delete the JSON, run this, and see in the
diff that lines were added only.
"""

import json

from tests.test_message import GOLDEN, GOLDEN_ROWS, accepted_vectors, refused_vectors

ABOUT = [
    "Message v1 of ilcp. All bytes are hex; ilcp/message.py has the specification.",
    "accepted: reading hex with key (null: none) at now_unix_s gives these fields, null being absent.",
    "canonical: writing these fields gives exactly hex; else a writer may choose another zstd frame, or text.",
    "refused: reading must fail. refusal is DecodeError (malformed or damaged), AuthenticationError or ExpiredError.",
]


def main() -> None:
    """Writes what is missing, and says what."""
    for name, _, wire in GOLDEN_ROWS:
        file = GOLDEN / f"{name}.bin"
        if not file.exists():
            file.write_bytes(wire)
            print(file)
    file = GOLDEN / "vectors.json"
    if not file.exists():
        vectors = {"about": ABOUT, "accepted": accepted_vectors(), "refused": refused_vectors()}
        file.write_text(json.dumps(vectors, indent=1) + "\n", encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
