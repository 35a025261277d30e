"""Measures what the receiver's end finds of a cache that has gone wrong, by how attention reads it.

    python benchmarks/assurance_caches.py --data DATA

The embedded receiver's own caches in 8 bits (``kv-int8``), calibrated on ``--calibrated`` dossiers of one seed, judged
on others of another: what a map between two models, a store or a peer may do to keys and values. Each change keeps
every norm where it says so.
"""

import argparse
import json
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assurance import auroc, delay, p_values
from assurance_faults import texts_of

from ilcp.assurance.observing import received
from ilcp.codec.keys_values import KeysValues
from ilcp.codec.memory import CacheMemory
from ilcp.embedded import load_pair
from ilcp.handoff import Receiver, Sender
from ilcp.measure import calibrate, provenance
from ilcp.tasks import case_files
from ilcp_codecs.kv import Int8Codec

RESULTS = Path(__file__).parent / "results" / "assurance-caches.json"
Change = Callable[[KeysValues, torch.Generator], KeysValues]


def _rotated(kv: KeysValues, generator: torch.Generator) -> KeysValues:
    """Turns every value by the same random rotation of its layer: all norms stay."""
    turns = [torch.linalg.qr(torch.randn(v.shape[-1], v.shape[-1], generator=generator))[0] for v in kv.values]
    return replace(kv, values=tuple(v @ turn.to(v.dtype) for v, turn in zip(kv.values, turns, strict=True)))


def _noisy(share: float) -> Change:
    def changed(kv: KeysValues, generator: torch.Generator) -> KeysValues:
        def noise(x: torch.Tensor) -> torch.Tensor:
            made = x + share * x.std() * torch.randn(x.shape, generator=generator)
            return made * x.norm(dim=-1, keepdim=True) / made.norm(dim=-1, keepdim=True)

        return replace(kv, keys=tuple(map(noise, kv.keys)), values=tuple(map(noise, kv.values)))

    return changed


CHANGES: dict[str, Change] = {
    "values turned, norms kept": _rotated,
    "noise of 10 %, norms kept": _noisy(0.1),
    "noise of 50 %, norms kept": _noisy(0.5),
    "layers in another order": lambda kv, _: replace(kv, keys=kv.keys[::-1], values=kv.values[::-1]),
    "tokens in another order": lambda kv, generator: _shuffled(kv, generator),
    "values of one token for all": lambda kv, _: replace(kv, values=tuple(v[:, :1].expand_as(v) for v in kv.values)),
}


def _shuffled(kv: KeysValues, generator: torch.Generator) -> KeysValues:
    order = torch.randperm(kv.tokens, generator=generator)
    return replace(kv, keys=tuple(k[:, order] for k in kv.keys))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="texts of other kinds, as for assurance.py")
    parser.add_argument("--calibrated", type=int, default=1500)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    end = load_pair().receiver
    codec = Int8Codec.of(end.model, end.tokenizer)
    sender = Sender(end.model, end.tokenizer, codec)
    receiver = Receiver(end.model, end.tokenizer, codec, allow_unmeasured=True)
    cases = list(case_files("test", args.seed, args.calibrated))
    reference = calibrate(sender, receiver, cases, task="case-files", seed=args.seed)
    texts = texts_of(args.seed + 1, args.n, args.data)

    def read(some: list[str]) -> list[KeysValues]:
        return [codec.decode(codec.encode(context)).kv for context in sender.read_batch(some)]  # type: ignore[attr-defined]

    def scores(caches: list[KeysValues]) -> np.ndarray:
        found = [received(codec, b"", CacheMemory(kv), reference.attention)["received"] for kv in caches]
        return np.array([reference.views["received"].score(each) for each in found])

    usual = read(texts.usual)
    calm = scores(usual)
    rows = {"usual": _row(reference, calm, calm, args.seed)}
    for name in ("conversations", "stories"):
        rows[f"texts: {name}"] = _row(reference, calm, scores(read(texts.others[name])), args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    for name, change in CHANGES.items():
        rows[name] = _row(reference, calm, scores([change(kv, generator) for kv in usual]), args.seed)
    for name, row in rows.items():
        print(name, json.dumps(row))
    record = {
        "n": args.n, "calibrated": args.calibrated, "seed": args.seed, "rows": rows,
        "provenance": provenance(receiver=codec.trained.receiver.exact),
    }  # fmt: skip
    record["provenance"]["command"] = "assurance_caches.py"
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _row(reference: Any, usual: np.ndarray, found: np.ndarray, seed: int) -> dict[str, Any]:
    drawn = random.Random(seed)
    ps = p_values(reference, "received", found, drawn)
    alarm = delay(reference, {"received": ps}, drawn)
    return {"auroc": auroc(usual, found), "detected": float((ps < 0.01).mean()), "delay": alarm}


if __name__ == "__main__":
    main()
