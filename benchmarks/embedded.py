"""Measures what the embedded pair's message is worth: every arm, the hops, and the capacity curve.

    python benchmarks/embedded.py                     # writes benchmarks/results/{embedded,hops,capacity}.json
    python benchmarks/embedded.py --only capacity

Test documents are of a seed and split that no training and no choice has seen. ``embedded`` is the report of
``ilcp measure embedded``; ``hops`` the same on fewer documents, handed on up to six times; ``capacity`` asks every
question of documents that state more and more.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ilcp.codec.registry import codec_class
from ilcp.embedded import Pair, load_pair
from ilcp.measure import Report, equal_texts, load_report, provenance, run
from ilcp.measure.table import show
from ilcp.tasks import case_files, task

RESULTS = Path(__file__).parent / "results"
FACTS = (3, 6, 9, 12, 15, 17, 20)  # attributes that a document of the capacity curve states
HOPS = 6
ENDS = ("text", "none", "mismatched")
PARTS = ("embedded", "hops", "capacity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--fewer", type=int, default=100, help="documents for the hops, and for each capacity")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--codec", type=Path, help="another codec's folder for the embedded pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    pair = load_pair(args.codec, allow_unmeasured=True)
    wanted = args.only or PARTS
    if "embedded" in wanted:
        asked = task("case-files", n=args.documents, seed=args.seed)
        texts = equal_texts(pair.sender, asked.samples())
        measured(pair, asked.cases, args, "embedded", texts=texts)
    if "hops" in wanted:
        asked = task("case-files", n=args.fewer, seed=args.seed)
        texts = {"zstd": equal_texts(pair.sender, asked.samples())["zstd"], "tail": codec_class("text-tail")()}
        chains = ("forwarded", "reencoded", *(f"{name}-hops" for name in texts))
        arms = (*ENDS, "message", *(f"{chain}-{hop}" for chain in chains for hop in range(1, HOPS + 1)))
        measured(pair, asked.cases, args, "hops", texts=texts, arms=arms, hops=HOPS, repetitions=0)
    if "capacity" in wanted:
        capacity(pair, args)


def measured(pair: Pair, cases: Any, args: argparse.Namespace, name: str, **options: Any) -> Report:
    """Makes a report, kept in its file meanwhile."""
    report = run(
        pair.sender,
        pair.receiver,
        cases,
        task="case-files",
        seed=args.seed,
        keep=args.out / f"{name}.json",
        progress=True,
        **options,
    )
    show(report, Console())
    return report


def capacity(pair: Pair, args: argparse.Namespace) -> None:
    """Measures recovery and delivered bits as the documents' entropy grows, at every length of the payload."""
    points: list[dict[str, Any]] = []
    for facts in FACTS:
        keep = args.out / f"capacity-{facts}.json"
        cases = tuple(case_files("test", args.seed, args.fewer, facts=facts))
        report = run(
            pair.sender,
            pair.receiver,
            cases,
            task=f"case-files that state {facts} attributes",
            seed=args.seed,
            texts={},
            arms=(*ENDS, "message", *(f"message-{length}" for length in pair.sender.codec.spec.prefixes)),
            repetitions=0,
            keep=keep,
            progress=True,
        )
        assert load_report(keep) == report
        points.append({"facts": facts, "entropy_bits": entropy_of(report), "arms": arms_of(report)})
        keep.unlink()
        print(f"{facts} facts: {json.dumps(points[-1]['arms']['message']['delivered'])}", flush=True)
    trained = pair.sender.codec.trained
    record = {
        "n_documents": args.fewer,
        "seed": args.seed,
        "points": points,
        "provenance": provenance(sender=trained.sender.exact, receiver=trained.receiver.exact),
    }
    (args.out / "capacity.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def entropy_of(report: Report) -> dict[str, Any]:
    """Returns the mean entropy of the documents."""
    return asdict(report.mean_entropy())


def arms_of(report: Report) -> dict[str, Any]:
    """Returns recovery and delivered information of the message at each length, and of the full text."""
    return {
        arm: {
            "recovery": asdict(recovery) if (recovery := report.recovery(arm)) else None,
            "delivered": {name: asdict(figure) for name, figure in report.delivered(arm).items()},
        }
        for arm in report.arms
        if report.arms[arm].family in ("message", "text")
    }


if __name__ == "__main__":
    main()
