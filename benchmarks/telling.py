"""What a share of training that asks a message to say what it says costs, and what it brings.

    python benchmarks/train_codec.py --start ilcp/embedded/codec --out runs/tell-N --save runs/tell-N-saved \\
        --alignment 0 --naming-steps 0 --alignment-steps 0 --literals 0.5 --rate 6e-4 --steps 900 --telling N   # 0, 0.5
    python benchmarks/telling.py runs/tell-0-saved runs/tell-0.5-saved      # writes benchmarks/results/telling.json

Both go on from the shipped codec for as many steps, on the same cases; the second asks half of them, inside a fixed
frame, for all that they say. Then, over test dossiers: questions answered right from the message, what the gloss
recalls, and what a message says when it is asked to say what it says, beside another's message and none.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ilcp.codec.memory import TextMemory
from ilcp.embedded import Pair, load_pair
from ilcp.files import write_whole
from ilcp.measure import faithfulness, provenance
from ilcp.measure.bootstrap import Bootstrap
from ilcp.measure.figures import Measured
from ilcp.tasks import Case, case_files
from ilcp.tasks.telling import TELL, telling

HERE = Path(__file__).parent
KEPT = (
    "recall, gloss",
    "misleading, gloss",
    "recall, told freely",
    "recall, another's, told freely",
    "recall, of nothing, told freely",
    "misleading, told freely",
    "misleading, another's, told freely",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="+", type=Path, help="saved by train_codec.py")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "telling.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = list(case_files("test", args.seed, args.n))
    rows: list[dict[str, Any]] = []
    for folder in (None, *args.codecs):
        pair = load_pair(folder, allow_unmeasured=True)
        trained = {} if folder is None else json.loads((folder / "config.json").read_text())["training"]
        found = faithfulness(pair.sender, pair.receiver, cases, seed=args.seed, freely=True)
        shown = {name: found.figures[name] for name in KEPT}
        rows.append(
            {
                "telling_share": trained.get("recipe", {}).get("telling_share", 0.0),
                "steps": trained.get("steps", 0),
                "codec_id": found.codec_id,
                "answered right": as_record(answered(pair, cases, args.seed)),
                **{name: None if figure is None else as_record(figure) for name, figure in shown.items()},
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    reader = from_text(load_pair(), cases[:50], args.seed)
    print("the receiver itself, asked so of the text:", reader)
    record = {"what": "asking a message to say what it says", "n": args.n, "seed": args.seed, "codecs": rows}
    trained = load_pair().sender.codec.trained
    origin = provenance(sender=trained.sender.exact, receiver=trained.receiver.exact)
    record |= {"of the text itself": as_record(reader), "provenance": origin}
    write_whole(args.json, json.dumps(record, indent=1) + "\n")


def answered(pair: Pair, cases: list[Case], seed: int) -> Measured:
    """Returns the share of all questions that the receiver answers right from the message."""
    asked = [(case, question) for case in cases for question in case.questions]
    memories = {case.id: pair.receiver.decode(pair.sender.encode(case.context)) for case in cases}
    found = pair.receiver.answers([(memories[case.id], question.text) for case, question in asked], max_new_tokens=16)
    flags = [(case.id, float(a in q.answers)) for (case, q), a in zip(asked, found, strict=True)]
    return mean_of(flags, seed)


def from_text(pair: Pair, cases: list[Case], seed: int) -> Measured:
    """Returns how many facts the receiver names that reads the text itself, asked in the same words."""
    told = pair.receiver.answers([(TextMemory(case.context), TELL) for case in cases], max_new_tokens=200)
    flags = [
        (case.id, float(question.answer in text))
        for case, text in zip(cases, told, strict=True)
        if telling(case) is not None
        for question in case.questions
        if question.said and not question.given
    ]
    return mean_of(flags, seed)


def mean_of(flags: list[tuple[str, float]], seed: int) -> Measured:
    groups, values = zip(*flags, strict=True)
    return Bootstrap(groups, seed=seed).of(lambda mean: mean, np.array(values))


def as_record(figure: Measured) -> dict[str, Any]:
    return {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n}


if __name__ == "__main__":
    main()
