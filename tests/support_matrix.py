"""Makes SUPPORT.md of outcomes of tests: ``python -m tests.support_matrix REPORT.xml ... >SUPPORT.md``.

Each report is pytest's JUnit XML of one environment. A test may name its own cell (``record_property("cell", ...)``).
"""

import re
import sys
from xml.etree import ElementTree

from tests.families import FAMILIES
from tests.prepared import PREPARED

DTYPES = ("float32", "bfloat16")
COLUMNS = {
    "sender": "test_sender",
    "receiver (bit-identical logits)": "test_receiver",
    "generate": "test_generate",
    "packed training": "test_packed_training",
    "cache": "test_cache",
}
PREPARED_COLUMNS = {
    "sender": "test_prepared_sender",
    "receiver": "test_prepared_receiver",
    "identity": "test_prepared_identity",
}
HEAD = """# Which models can send, and which can receive

Written by `make support` from the outcomes of `tests/test_families.py` and `tests/test_prepared.py`, on tiny random
models of each family (by `config.model_type`). The sliding windows of mistral, gemma2 and gemma3_text are shorter than
the prompts there.

- **sender**: a text, its ids and a finished forward give one message, from the states of a plain forward.
- **receiver**: memory made of a text's own embeddings gives the text's logits bit by bit, alone and padded in a batch.
- **generate**: greedy answers by memory are those of transformers to the same text, alone and in a batch.
- **packed training**: many questions behind one memory or text in one sequence have the logits of separate prompts.
- **cache**: one pre-filled memory serves several questions, with the answers of no cache, and stays as it was.

Gemma 2 scales its embeddings inside its embedding module from transformers 5 on, and behind it before: a codec that was
trained for a gemma2 receiver under one is refused under the other, by its identity.

A model can come from a GGUF file too, of an architecture that transformers reads (`ilcp[gguf]`). Its tokenizer is
rebuilt from the file, differently by transformers 5 and 4, and by some releases of 5 (5.17 and 5.23 for SmolLM2): a
codec trained under one is refused under the other. `save_pretrained` makes a folder of it that all of them read alike.

Another decoder is admitted if embeddings and ids of a few tokens give it the same logits, and refused by name if not;
encoder-decoders and recurrent (state-space) models are refused as receivers. See `ilcp/models/support.py`.

## Adapted, quantised, compiled, trained on, shared

Below the families stand models as people prepare them, left in training mode after the sender or receiver was made:

- **sender**: the states are those of a plain forward in evaluation mode, and the message is one.
- **receiver**: memory made of a text's own embeddings is answered as transformers answers the text, and scored alike.
- **identity**: prepared alike it is known again; when weights, scales, packed weights, the active adapter, its scaling
  or its merging change, the next use is refused.

The same weights under another configuration (base of positions, activation, epsilon of a norm) are another function:
a codec keeps numbers from the last layer's states of one sentence of 48 tokens, and refuses a model whose own differ
by more than rounding may: 1 %, or 10 % in half precision. What is not noticed: what changes less (in half precision a
base that is halved), what begins after 48 tokens, what comes behind the last layer, and quantised models, of which no
states are kept: a step more or less in what they round makes other states of the same model (of a 135M model in
dynamic int8, another kind of attention up to 33 % in 12 texts, where a steering of 2 % makes 38 %).

A model that was checked is compared with itself, quantised or not, logits included, once its wiring is another:
hooks, other methods and modules, numbers, configurations, kinds of attention, frequencies of positions. There 0.2 %
are taken for rounding, or 10 % in half precision; a switch of a quantised model's kind of attention may be refused.
Not noticed are what begins after 48 tokens, what a hook keeps in its lists and dicts, variables elsewhere that a
replaced method reads, and writes of single weights through `tensor.data`.

An adapter counts as far as it is in effect: switched off, the model is the one without it; merged, it is known by the
weights that came of it. Of a model that `torch.compile` wrapped, the plain one inside is used. Any other model is known
by all that its modules save too; what cannot be hashed is refused by name, and so are four bits that bitsandbytes packs
anew, losing digits, at their first use on a processor with AVX-512. torchao and bitsandbytes are no packages of ilcp's;
`make support` fetches them.
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
        cells[test, family, dtype] = "failed" if failed else "not run" if skipped and named == "passed" else str(named)
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


def prepared_table(version: str, cells: dict[tuple[str, str, str], str]) -> str:
    """Writes the table of prepared models; without outcomes of any there is none."""
    lines = [f"## transformers {version}, prepared models", "", f"| model | {' | '.join(PREPARED_COLUMNS)} |"]
    lines.append("| --- |" + " --- |" * len(PREPARED_COLUMNS))
    for kind in PREPARED:
        row = [cells.get((test, kind, ""), "not run") for test in PREPARED_COLUMNS.values()]
        lines.append(f"| {kind} | {' | '.join(row)} |")
    return "\n".join(lines)


def families_of(text: str, version: str, dtype: str) -> list[str]:
    """Returns the families in one table of SUPPORT.md."""
    part = text.partition(f"## transformers {version}, {dtype}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| (\w+) \|", part, re.MULTILINE)[1:]


if __name__ == "__main__":
    tables = []
    for version, cells in map(outcomes, sys.argv[1:]):
        tables += [table(version, dtype, cells) for dtype in DTYPES]
        if any(test in PREPARED_COLUMNS.values() for test, _, _ in cells):
            tables.append(prepared_table(version, cells))
    print(HEAD + "\n" + "\n\n".join(tables))
