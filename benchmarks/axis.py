"""The whole axis of one task, from ten bytes to a whole cache: latents, texts, and the receiver's own cache, by name.

    python benchmarks/axis.py            # writes benchmarks/results/axis-embedded.json

The embedded pair's report (``embedded.py``) has its latents and texts. Presets of caches answer the same questions of
the same dossiers, with the embedded receiver's model at both ends; the principal components are fitted to dossiers of
the training split. What ``ilcp measure embedded kv-exact ... --task case-files`` does in one go is done here in two,
because the first part is there already.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ilcp.cli.named import file_names, pairs_of
from ilcp.measure import Report, choose, load_report, provenance, run
from ilcp.tasks import task

RESULTS = Path(__file__).parent / "results"
PRESETS = ("kv-exact", "kv-int8", "kv-int4", "kv-pca:4bit", "kv-pca:2bit", "kv-pca:1bit", "kv-compact:10%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=RESULTS / "embedded.json")
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument(
        "--repetitions", type=int, default=0, help="of the times, at least 50; without it, none are taken"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    latent = load_report(args.report)
    if latent.cost is not None:
        torch.set_num_threads(latent.cost.threads)
    asked = task("case-files", n=latent.n, seed=latent.seed)
    ends: dict[str, Any] = {"sender": None, "receiver": None, "device": "cpu", "allow_download": False}
    _, *pairs = pairs_of(["embedded", *args.presets], **ends, task=asked)
    reports: dict[str, Report] = {"latent": latent}
    options: dict[str, Any] = {"task": asked.name, "seed": latent.seed, "repetitions": args.repetitions}
    options |= {"alike": [latent], "progress": True}
    keeps = {name: args.out / f"axis-{name}.json" for name in file_names(args.presets)}
    for (name, keep), pair in zip(keeps.items(), pairs, strict=True):
        reports[name] = run(pair.sender, pair.receiver, asked.cases, keep=keep, **options)
        print(f"{name}: recovery {reports[name].recovery('message')}", flush=True)
    found = choose(reports)
    record = {
        "what": "everything that can be handed over of one task, on one axis",
        "n": latent.n,
        "questions": len(latent.items),
        "seed": latent.seed,
        "offers": [asdict(offer) for offer in found.offers],
        "controls": {name: asdict(latent.mean(name)) for name in ("none", "other") if name in latent.arms},
        "another's": {
            name: asdict(figure)
            for name, one in reports.items()
            if "mismatched" in one.arms and name != "latent" and (figure := one.recovery("mismatched"))
        },
        "latent": latent.provenance,
        "provenance": provenance(**latent.provenance["models"]),
    }
    file = args.out / "axis-embedded.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for keep in keeps.values():
        keep.unlink()
    print(file)


if __name__ == "__main__":
    main()
