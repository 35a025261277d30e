"""Coverage-guided fuzzing of what reads strangers' bytes: messages, memories, caches, the receive side of every
transport, folders of codecs; and of what a run kept on a disk that may have changed it.

    python fuzz/run.py [--target message|memory|kv|transport|folder|kept|all]... [--inputs N] [--keep] [--json FILE]

Targets run one after the other, ``--inputs`` each: 100000, or ``message=6000000`` for one its own. Inputs begin with
``fuzz/corpus/TARGET``; what is found to reach new code is kept for the run, or with ``--keep`` in that folder. An input
that breaks a promise ends its target, is printed, and stays in ``fuzz/findings``. The table says what libFuzzer counted
as run. A run without a finding ends with 0 and says "no finding". Where atheris is missing (``pip install atheris``; it
has wheels for some Pythons only) it says so.
"""

import argparse
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TREE = [str(HERE.parent), str(HERE.parent / "codecs")]  # this checkout, wherever an installed ilcp may be
TARGETS = ("message", "memory", "kv", "transport", "folder", "kept")
MAX_INPUT_BYTES = 1400  # covers payloads beyond 256 bytes and literals beyond their limit; the rest is only longer
MAX_PROCESS_MB = 1536  # torch takes a third of it
SAID = ("NEW", "REDUCE", "RELOAD", "Uses:", "ommended dictionary", "WARNING: Failed")  # of no use afterwards


def main() -> int:
    """Runs each target in a process of its own, because libFuzzer ends the one it runs in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=(*TARGETS, "all"), required=True)
    parser.add_argument("--inputs", nargs="+", default=["100000"], metavar="N|TARGET=N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="write new inputs into the committed corpus")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    sys.path[:0] = TREE
    if args.here:
        return fuzz(args.target[0], rest)
    own = dict(each.split("=", 1) for each in args.inputs if "=" in each)
    if rest or not own.keys() <= set(TARGETS):
        parser.error(f"expected options and targets as above, got {' '.join([*rest, *own])}")
    targets = TARGETS if "all" in args.target else tuple(dict.fromkeys(args.target))
    if importlib.util.find_spec("atheris") is None:
        print(f"{', '.join(targets)}: skipped, because atheris is not installed (pip install atheris)")
        return 0
    usual = next((each for each in args.inputs if "=" not in each), "100000")
    began = provenance() if args.json else {}  # of the code that runs, whatever is committed meanwhile
    rows = {}
    for target in targets:
        rows[target] = row = run(target, int(own.get(target, usual)), args.seed, args.keep)
        said = f"{row['findings']} finding" if row["findings"] else "no finding"
        rate = f"{row['inputs_per_s']:.0f}/s in {row['seconds']:.1f} s, coverage {row['coverage']}"
        print(f"{target}: {row['inputs']} inputs, {said}, {rate}", flush=True)
    total = sum(row["inputs"] for row in rows.values())
    failed = any(row["findings"] for row in rows.values())
    print(f"all: {total} inputs, {'findings: see fuzz/findings' if failed else 'no finding'}")
    if args.json:
        record = {"seed": args.seed, "inputs": total, "targets": rows, "provenance": began}
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(failed)


def run(target: str, inputs: int, seed: int, keep: bool) -> dict[str, Any]:
    """Runs one target, and returns its row of the table; to run fewer inputs than it was to is a finding."""
    corpus, findings = HERE / "corpus" / target, HERE / "findings"
    findings.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [corpus] if keep else [Path(scratch), corpus]
        limits = ["-timeout=5", f"-rss_limit_mb={MAX_PROCESS_MB}", f"-max_len={MAX_INPUT_BYTES}"]
        child = subprocess.Popen(
            [sys.executable, __file__, "--here", "--target", target, f"-runs={inputs}", f"-seed={seed}", *limits]
            + ["-print_final_stats=1", f"-artifact_prefix={findings}/{target}-", *map(str, folders)],
            cwd=HERE.parent,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        )
        counted, seconds = read(child)
    if not any(findings.iterdir()):
        findings.rmdir()
    return {
        "inputs": counted.get("inputs", 0),
        "seconds": round(seconds, 1),
        "inputs_per_s": round(counted.get("inputs", 0) / seconds, 1) if seconds else 0.0,
        "coverage": counted.get("coverage", 0),
        "corpus": counted.get("corpus", 0),
        "findings": int(child.returncode != 0 or counted.get("inputs", 0) < inputs),  # libFuzzer ends with the first
    }


def read(child: subprocess.Popen[str]) -> tuple[dict[str, int], float]:
    """Returns libFuzzer's counts and the seconds since it began; passes on what it says, but for its progress."""
    counted: dict[str, int] = {}
    start_s = 0.0
    for line in child.stderr or ():
        start_s = start_s or (time.monotonic() if line.startswith("INFO: Running") else 0.0)
        counted.update(counts(line))
        if not any(word in line for word in SAID):
            print(line, end="", file=sys.stderr, flush=True)
    child.wait()
    return counted, time.monotonic() - start_s if start_s else 0.0


def counts(line: str) -> Iterator[tuple[str, int]]:
    """Finds the counts in one line of libFuzzer's."""
    for name, pattern in (
        ("coverage", r"\bcov: (\d+)"),
        ("corpus", r"\bcorp: (\d+)/"),
        ("inputs", r"stat::number_of_executed_units: (\d+)"),
    ):
        found = re.search(pattern, line)
        if found:
            yield name, int(found[1])


def provenance() -> dict[str, Any]:
    """Records where the counts come from: commit, versions, machine, command."""
    from ilcp import measure

    return measure.provenance()


def fuzz(target: str, options: list[str]) -> int:
    """Hands this process over to libFuzzer, with the target's modules instrumented."""
    import atheris

    if target in ("memory", "kv", "folder", "kept"):
        import torch  # its own modules are not what is fuzzed

        torch.set_num_threads(1)
    with atheris.instrument_imports(include=["ilcp", "ilcp_codecs", "tests"]):
        module = importlib.import_module(f"fuzz.{target}_target")
    atheris.Setup([sys.argv[0], *options], module.one_input)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
