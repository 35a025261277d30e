"""The whole axis of one task, from ten bytes to a whole cache: latents, texts, and the receiver's own cache, by name.

    python benchmarks/axis.py                              # writes benchmarks/results/axis-embedded.json
    python benchmarks/axis.py --codec FOLDER --n 40        # of conversations.py's; results/axis-conversations.json

Presets of caches answer the same questions of the same texts as latent and text do, with the receiver's model at both
ends; the principal components are fitted to texts of the training split. The embedded pair's latents and texts are
those of its report (``embedded.py``), and beside them stands what peers hand over (``axis_peers.py``). Those of
conversations are measured here, over what was said; text is coded by the receiver's model as it came, by the lengths
of its code. What ``ilcp measure CODEC kv-exact ... --task FILE`` does in one go is done here in two, because a first
part may be there already.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import axis_peers
import conversations_data as data
import torch
from codec_options import codec_options, ends_of
from conversations_arms import ComputedLm
from peer_avp import PYTHON

from ilcp.cli.common import EMBEDDED
from ilcp.cli.named import file_names, pairs_of
from ilcp.embedded import Pair
from ilcp.files import write_whole
from ilcp.measure import Report, choose, load_report, provenance, run
from ilcp.measure.files import is_same
from ilcp.models.loading import load_model
from ilcp.tasks import task
from ilcp.tasks.load import Task

HERE = Path(__file__).parent
PRESETS = ("kv-exact", "kv-int8", "kv-int4", "kv-pca:4bit", "kv-pca:2bit", "kv-pca:1bit", "kv-compact:10%")
LENGTHS = (80, 40, 20)
ARMS = ("text", "none", "mismatched", "message", "message-40", "message-20", "lm-80", "lm-40", "lm-20")
SAMPLES = 100  # conversations of the training split that principal components are fitted to


def main() -> None:
    args = options().parse_args()
    torch.set_num_threads(args.threads)
    name, made = ("embedded", embedded) if args.codec == EMBEDDED else ("conversations", conversations)
    args.keeps = args.runs / name
    record = {"what": "everything that can be handed over of one task, on one axis", **made(args)}
    file = args.out / f"axis-{name}.json"
    write_whole(file, json.dumps(record, indent=1) + "\n")
    print(file)


def options() -> argparse.ArgumentParser:
    """Returns what the command line takes."""
    parser = codec_options(__doc__)
    parser.add_argument("--n", type=int, default=40, help="conversations")
    parser.add_argument("--report", type=Path, default=HERE / "results" / "embedded.json", help="the embedded pair's")
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--avp-python", type=Path, default=HERE.parent / PYTHON, help="of an environment with avp")
    parser.add_argument("--repetitions", type=int, default=0, help="of a cache's times, at least 50; without it, none")
    parser.add_argument("--runs", type=Path, default=HERE / "runs" / "axis", help="where every codec's report is kept")
    return parser


def embedded(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the axis of the embedded pair, whose latents and texts are in a report, with the peers that are there."""
    for lack in axis_peers.missing(args.avp_python):
        print(lack, flush=True)
    latent = load_report(args.report)
    if latent.cost is not None:
        torch.set_num_threads(latent.cost.threads)
    asked = task("case-files", n=latent.n, seed=latent.seed)
    _, *pairs = pairs_of([EMBEDDED, *args.presets], **ends_of(args), task=asked)
    found = axis(latent, pairs, asked, args)
    offers, versions = axis_peers.measured(latent, pairs[0], asked.cases, args.avp_python)
    every = found["offers"] + [asdict(offer) for offer in offers]
    every.sort(key=itemgetter("mean_bytes"))
    return {"pair": [EMBEDDED], **found, "offers": every, "peers": versions}


def conversations(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the axis of a codec over test conversations."""
    known = data.read(args.data / "test.jsonl")
    if not 2 <= args.n <= len(known):
        raise SystemExit(f"expected --n from 2 to {len(known)} conversations, got {args.n}")
    drawn = data.asked(random.Random(args.seed).sample(known, args.n))
    cases = tuple(case for case in map(data.said, drawn) if case.questions)
    samples = tuple(one.case.context for one in data.read(args.data / "train.jsonl")[:SAMPLES])
    asked = Task("conversations", cases, True, lambda: samples)
    ends = ends_of(args)
    pair, *pairs = pairs_of([args.codec, *args.presets], **ends, task=asked)
    options: dict[str, Any] = {"lengths": LENGTHS, "arms": ARMS, "seed": args.seed, "repetitions": 0}
    options["texts"] = {"lm": ComputedLm(*load_model(ends["receiver"], dtype="float32"))}
    latent = measured(pair, asked, args.keeps / "latent.json", **options)
    return {"pair": list(args.pair), **axis(latent, pairs, replace(asked, cases=tuple(latent.kept(cases))), args)}


def axis(latent: Report, pairs: Sequence[Pair], asked: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Measures every preset, and returns all offers beside the controls."""
    reports: dict[str, Report] = {"latent": latent}
    options: dict[str, Any] = {"seed": latent.seed, "repetitions": args.repetitions, "alike": [latent]}
    for name, pair in zip(file_names(args.presets), pairs, strict=True):
        reports[name] = measured(pair, asked, args.keeps / f"{name}.json", **options)
        print(f"{name}: recovery {reports[name].recovery('message')}", flush=True)
    controls = ("none", "other", "mismatched")
    return {
        "n": min(one.n for one in reports.values()),
        "questions": min(len(one.items) for one in reports.values()),
        "seed": latent.seed,
        "offers": [asdict(offer) for offer in choose(reports).offers],
        "controls": {name: asdict(latent.mean(name)) for name in controls if name in latent.arms},
        "another's": {
            name: asdict(figure)
            for name, one in reports.items()
            if "mismatched" in one.arms and name != "latent" and (figure := one.recovery("mismatched"))
        },
        "latent": latent.provenance,
        "provenance": provenance(**latent.provenance["models"]),
    }


def measured(pair: Pair, asked: Task, keep: Path, *, seed: int, **options: Any) -> Report:
    """Measures one codec, or takes the report of an earlier call that measured it by this code."""
    found = load_report(keep) if keep.exists() else None
    if found and found.complete and is_same(found, pair.sender.codec, asked.cases, task=asked.name, seed=seed):
        return found
    return run(pair.sender, pair.receiver, asked.cases, task=asked.name, seed=seed, keep=keep, progress=True, **options)


if __name__ == "__main__":
    main()
