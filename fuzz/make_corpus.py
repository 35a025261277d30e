"""Writes the first inputs of each target from the golden vectors; files that are there stay as they are.

python -m fuzz.make_corpus
"""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
VECTORS = json.loads((HERE.parent / "tests" / "golden" / "v1" / "vectors.json").read_text(encoding="utf-8"))


def main() -> None:
    """Each golden message as it comes, and without its tag for the ways that make one."""
    for vector in (*VECTORS["accepted"], *VECTORS["refused"]):
        wire, sealed = bytes.fromhex(vector["hex"]), vector["key"] is not None
        name = "".join(char if char.isalnum() else "-" for char in vector["name"])
        if len(wire) <= 320:
            write("message", name, bytes([int(sealed)]) + wire)
        if "payload" in vector and len(wire) <= 320:
            write("message", f"{name}-open", bytes([2 + sealed]) + wire[: -18 if sealed else -6])
    for which, payload in enumerate((b"\xa5" * 8, "Mara owns it: Ø.".encode(), b"\x00\x29\x00\x00Mara.")):
        for length in range(4 if which == 0 else 1):
            write("memory", f"codec-{which}-{length}", bytes([which, length]) + payload)


def write(target: str, name: str, data: bytes) -> None:
    """One input, unless it is there."""
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    if not file.exists():
        file.write_bytes(data)


if __name__ == "__main__":
    main()
