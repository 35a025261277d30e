"""Makes SUPPORT.md of the outcomes of test_families: ``python -m tests.support_matrix REPORT.xml ... >SUPPORT.md``.

Each report is pytest's JUnit XML of one environment. A test may name its own cell (``record_property("cell", ...)``).
"""

import re
import sys
from xml.etree import ElementTree

from tests.families import FAMILIES

DTYPES = ("float32", "bfloat16")
COLUMNS = {
    "sender": "test_sender",
    "receiver (bit-identical logits)": "test_receiver",
    "generate": "test_generate",
    "packed training": "test_packed_training",
    "cache": "test_cache",
}
HEAD = """# Which models can send, and which can receive

Written by `make support` from the outcomes of `tests/test_families.py`, on tiny random models of each family (by
`config.model_type`). The sliding windows of mistral, gemma2 and gemma3_text are shorter than the prompts there.

- **sender**: a text, its ids and a finished forward give one message, from the states of a plain forward.
- **receiver**: memory made of a text's own embeddings gives the text's logits bit by bit, alone and padded in a batch.
- **generate**: greedy answers by memory are those of transformers to the same text, alone and in a batch.
- **packed training**: many questions behind one memory or text in one sequence have the logits of separate prompts.
- **cache**: one pre-filled memory serves several questions, with the answers of no cache, and stays as it was.

Gemma 2 scales its embeddings inside its embedding module from transformers 5 on, and behind it before: a codec that was
trained for a gemma2 receiver under one is refused under the other, by its identity.

A model can come from a GGUF file too, of an architecture that transformers reads (`ilcp[gguf]`). Its tokenizer is
rebuilt from the file, differently by transformers 5 and 4: a codec trained under one may be refused under the other.

Another decoder is admitted if embeddings and ids of a few tokens give it the same logits, and refused by name if not;
encoder-decoders and recurrent (state-space) models are refused as receivers. See `ilcp/models/support.py`.
"""


def outcomes(report: str) -> tuple[str, dict[tuple[str, str, str], str]]:
    """Returns the version of transformers, and the cell of each (test, family, dtype)."""
    root = ElementTree.parse(report).getroot()
    version = next(p.get("value", "") for p in root.iter("property") if p.get("name") == "transformers")
    cells = {}
    for case in root.iter("testcase"):
        test, _, rest = case.get("name", "").partition("[")
        family, _, dtype = rest.rstrip("]").partition("-")
        named = next((p.get("value") for p in case.iter("property") if p.get("name") == "cell"), "passed")
        failed = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped") is not None
        cells[test, family, dtype] = "failed" if failed else "not run" if skipped else str(named)
    return version, cells


def table(version: str, dtype: str, cells: dict[tuple[str, str, str], str]) -> str:
    """Writes one table: rows are families, columns what was tested."""
    lines = [f"## transformers {version}, {dtype}", "", f"| family | {' | '.join(COLUMNS)} |"]
    lines.append("| --- |" + " --- |" * len(COLUMNS))
    for name, family in FAMILIES.items():
        none = "not run" if family.receiver else "not applicable"
        row = [cells.get((test, name, dtype), none) for test in COLUMNS.values()]
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def families_of(text: str, version: str, dtype: str) -> list[str]:
    """Returns the families in one table of SUPPORT.md."""
    part = text.partition(f"## transformers {version}, {dtype}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| (\w+) \|", part, re.MULTILINE)[1:]


if __name__ == "__main__":
    tables = [table(version, dtype, cells) for version, cells in map(outcomes, sys.argv[1:]) for dtype in DTYPES]
    print(HEAD + "\n" + "\n\n".join(tables))
