"""How true an account of a message is: glosses and summaries, against their baselines, at every price.

    python benchmarks/faithfulness.py                          # writes benchmarks/results/faithfulness-embedded.json
    python benchmarks/faithfulness.py --codec FOLDER --n 40    # of conversations.py's; faithfulness-conversations.json

What is measured, ``ilcp.measure.faithfulness`` says. The embedded pair's messages at every length, and the receiver's
own cache by three presets, over test dossiers; or a codec of conversations at its lengths, over what was said and what
was not.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import conversations_data as data
import torch
from codec_options import codec_options, ends_of

from ilcp.cli.common import EMBEDDED
from ilcp.cli.named import pairs_of
from ilcp.embedded import Pair
from ilcp.files import write_whole
from ilcp.measure import faithfulness, provenance
from ilcp.tasks import task
from ilcp.tasks.load import Task

HERE = Path(__file__).parent
PRESETS = ("kv-exact", "kv-int4", "kv-pca:1bit")
LENGTHS = (80, 40, 20, 10)  # of payloads, in bytes


def main() -> None:
    args = options().parse_args()
    torch.set_num_threads(args.threads)
    name = "embedded" if args.codec == EMBEDDED else "conversations"
    asked, of_pairs = dossiers(args) if args.codec == EMBEDDED else conversations(args)
    accounts: dict[str, list[dict[str, Any]]] = {}
    for codec, pair in of_pairs.items():
        spec = pair.sender.codec.spec
        lengths: list[int | None] = [None] if spec.reads == "cache" else [*args.lengths]
        cases = asked.cases if spec.reads != "cache" else asked.cases[: args.caches]
        for length in lengths:
            freely = args.freely and length == lengths[0]
            found = faithfulness(pair.sender, pair.receiver, cases, payload_bytes=length, seed=args.seed, freely=freely)
            accounts.setdefault(codec, []).append(found.to_dict())
            print(codec, length, {what: str(figure) for what, figure in found.figures.items()}, flush=True)
    trained = next(iter(of_pairs.values())).sender.codec.trained
    origin = provenance(sender=trained.sender.exact, receiver=trained.receiver.exact)
    record = {"what": "how true accounts of messages are", "n": len(asked.cases), "seed": args.seed}
    file = args.out / f"faithfulness-{name}.json"
    write_whole(file, json.dumps(record | {"accounts": accounts, "provenance": origin}, indent=1) + "\n")
    print(file)


def options() -> argparse.ArgumentParser:
    """Returns what the command line takes."""
    parser = codec_options(__doc__)
    parser.add_argument("--n", type=int, default=200, help="dossiers or conversations")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="of payloads, in bytes at most")
    parser.add_argument("--freely", action="store_true", help="at the first length, also ask messages what they say")
    parser.add_argument("--caches", type=int, default=50, help="of them for caches")
    return parser


def dossiers(args: argparse.Namespace) -> tuple[Task, dict[str, Pair]]:
    """Returns test dossiers, and the embedded pair with the presets of its receiver's cache."""
    asked = task("case-files", n=args.n, seed=args.seed)
    names = [EMBEDDED, *PRESETS]
    return asked, dict(zip(names, pairs_of(names, **ends_of(args), task=asked), strict=True))


def conversations(args: argparse.Namespace) -> tuple[Task, dict[str, Pair]]:
    """Returns test conversations, and a codec between two pretrained models."""
    known = data.read(args.data / "test.jsonl")
    drawn = random.Random(args.seed).sample(known, args.n)
    asked = Task("conversations", tuple(one.case for one in drawn), True, tuple)
    return asked, dict(zip(["facts"], pairs_of([args.codec], **ends_of(args), task=asked), strict=True))


if __name__ == "__main__":
    main()
