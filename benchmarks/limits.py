"""Where the embedded codec stands between its limits: without quantiser, and over-fitted to one batch.

    python benchmarks/limits.py                       # writes benchmarks/results/limits.json

The continuous latent (same weights, nothing rounded) says what rounding costs. The over-fitted batch (the same weights,
trained on eight documents alone) says what the network and the frozen receiver could hold.
"""

import argparse
import copy
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ilcp.forward import PADDING
from ilcp.measure import Measured, provenance
from ilcp.measure.figures import bootstrap
from ilcp.pair import load_pair
from ilcp.tasks import Case, case_files
from ilcp.training import Models, Recipe
from ilcp.training.objective import Batcher, frozen, loss_of, memory_logits, memory_of
from ilcp_codecs.vae import VaeNetwork

RESULTS = Path(__file__).parent / "results"
BATCH = 8  # documents that are over-fitted
ALL = 100  # questions per document: more than any has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--steps", type=int, default=150, help="on the one batch")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS / "limits.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    pair = load_pair()
    models = Models(pair.sender.model, pair.sender.tokenizer, pair.receiver.model, pair.receiver.tokenizer)
    network = copy.deepcopy(pair.sender.codec.network)
    figures: dict[str, Measured] = {}
    documents = list(case_files("test", args.seed, args.documents))
    for name, continuous in (("quantised", False), ("continuous", True)):
        network.continuous = continuous
        figures |= {f"{name}, {kind}": value for kind, value in exact(network, models, documents, args.seed).items()}
    network.continuous = False
    one = list(case_files("train", args.seed, BATCH))
    with frozen(models):
        overfit(network, models, one, args.steps)
    figures |= {f"over-fitted, {kind}": value for kind, value in exact(network, models, one, args.seed).items()}
    record = {
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "n_documents": args.documents,
        "over_fitted": {"documents": BATCH, "steps": args.steps},
        "seed": args.seed,
        "provenance": provenance(
            sender=asdict(pair.sender.codec.trained.sender), receiver=asdict(pair.sender.codec.trained.receiver)
        ),
    }
    args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, figure in figures.items():
        print(f"{name}: {figure}")


@torch.no_grad()
def exact(network: VaeNetwork, models: Models, cases: Sequence[Case], seed: int) -> dict[str, Measured]:
    """Exact match by kind, with intervals over the documents; every question of every document is asked."""
    batcher = Batcher(models, Recipe(steps=1, questions=ALL))
    hits: dict[str, list[float]] = defaultdict(list)
    owner: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        batch = batcher.batch([case], random.Random(0))
        logits, labels = memory_logits(models, batch.rows, memory_of(network, batch, models, batcher.recipe)[0])
        right = ((logits.argmax(-1) == labels) | (labels == PADDING)).all(-1).tolist()
        kind = {question.text: question.kind for question in case.questions}
        for name in set(kind.values()):
            hits[name] += [float(ok) for row, ok in zip(batch.rows, right, strict=True) if kind[row.question] == name]
            owner[name] += [case.id] * (len(hits[name]) - len(owner[name]))
    return {name: _share(np.array(found), owner[name], seed) for name, found in sorted(hits.items())}


def _share(hits: np.ndarray, owner: Sequence[str], seed: int) -> Measured:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(owner))}
    return bootstrap(lambda items: float(hits[items].mean()), [numbers[name] for name in owner], seed=seed)


def overfit(network: VaeNetwork, models: Models, cases: Sequence[Case], steps: int) -> None:
    """Trains the network on these cases alone, with the whole payload and nothing but the cross-entropy."""
    network.full_share = 1.0
    network.train().requires_grad_(True)
    network.bottleneck.norm.eval()  # the batch is too small for statistics of its own
    recipe = Recipe(steps=steps, questions=ALL, blank_share=0.0)
    batch = Batcher(models, recipe).batch(cases, random.Random(0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.0)
    for _ in range(steps):
        loss = loss_of(network, batch, models, recipe)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
