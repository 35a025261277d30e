"""Coverage-guided fuzzing of what reads bytes of a peer.

    python fuzz/run.py --target message|memory [--inputs 100000] [--keep]

Inputs begin with ``fuzz/corpus/TARGET``; what is found to reach new code is kept for the run, or with ``--keep`` in
that folder. An input that breaks a promise is printed and stays in ``fuzz/findings``. A run without one ends with 0 and
says "no finding". Where atheris is missing (``pip install atheris``; it has wheels for some Pythons only) it says so.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGETS = ("message", "memory")
MAX_INPUT_BYTES = 1400  # covers payloads beyond 256 bytes and literals beyond their limit; the rest is only longer


def main() -> int:
    """Runs the fuzzer in a process of its own, because libFuzzer ends the one it runs in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="write new inputs into the committed corpus")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    if args.here:
        return fuzz(args.target, rest)
    if importlib.util.find_spec("atheris") is None:
        print(f"{args.target}: skipped, because atheris is not installed (pip install atheris)")
        return 0
    corpus, findings = HERE / "corpus" / args.target, HERE / "findings"
    findings.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [corpus] if args.keep else [Path(scratch), corpus]
        done = subprocess.run(
            [sys.executable, __file__, "--here", "--target", args.target]
            + [f"-runs={args.inputs}", f"-seed={args.seed}", f"-max_len={MAX_INPUT_BYTES}", "-print_final_stats=1"]
            + [f"-artifact_prefix={findings}/{args.target}-", "-timeout=5", *map(str, folders)],
            cwd=HERE.parent,
            check=False,
        )
    if not any(findings.iterdir()):
        findings.rmdir()
    if done.returncode == 0:
        print(f"{args.target}: {args.inputs} inputs, no finding")
    return done.returncode


def fuzz(target: str, options: list[str]) -> int:
    """Hands this process over to libFuzzer, with the target's modules instrumented."""
    import atheris

    sys.path.insert(0, str(HERE.parent))
    if target == "memory":
        import torch  # its own modules are not what is fuzzed

        torch.set_num_threads(1)
    with atheris.instrument_imports(include=["ilcp", "ilcp_codecs", "tests"]):
        module = importlib.import_module(f"fuzz.{target}_target")
    atheris.Setup([sys.argv[0], *options], module.one_input)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
