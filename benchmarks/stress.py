"""Counts wrong messages and memories where many threads share one sender and one receiver.

    python benchmarks/stress.py [--n 10000] [--threads 8] [--json FILE]

Each thread encodes and decodes texts of different lengths, in an order of its own, and compares message and memory with
those that one thread alone got before. A bystander runs forward passes on the sender's model meanwhile, whose logits
are compared too. Threads give way a thousand times as often as they do by themselves. Goal: none is wrong.
"""

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Event, Thread

import torch

import ilcp
from ilcp.measure import provenance
from ilcp.tasks import case_files

SEED = 7
TEXTS = 16
SWITCH_S = 5e-6
PAUSE_S = 0.02  # of the bystander


def main() -> int:
    """Runs the threads, and prints and keeps the counts; 1 where one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "stress.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of texts that the embedded pair does not know: short ones are read as well
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_S)
    pair = ilcp.load_pair()
    trained = pair.sender.codec.trained
    made_by = provenance(sender=trained.sender.exact, receiver=trained.receiver.exact)
    start_s = time.perf_counter()
    counted = stress(pair.sender, pair.receiver, args.n, args.threads)
    found = {"seed": SEED, "threads": args.threads, **counted, "seconds": round(time.perf_counter() - start_s, 1)}
    print(json.dumps(found))
    args.json.write_text(json.dumps({**found, "provenance": made_by}, indent=1) + "\n", encoding="utf-8")
    return int(bool(found["wrong"] or found["errors"] or found["bystander_wrong"]))


def stress(sender: ilcp.Sender, receiver: ilcp.Receiver, n: int, threads: int) -> dict[str, int]:
    """Returns how many hand-offs were made, were wrong, or raised, and the same of the bystander's passes."""
    texts = [
        case.context[: 40 + 25 * number] for number, case in enumerate(islice(case_files("test", SEED, TEXTS), TEXTS))
    ]
    expected = [(message := sender.encode(text), receiver.decode(message).digest()) for text in texts]
    ids = torch.tensor([sender.tokenizer(texts[0]).input_ids])
    alone = _logits(sender, ids)
    counted, done, passes = Counter(dict.fromkeys(("bystander_passes", "bystander_wrong"), 0)), Event(), Counter[str]()

    def bystander() -> None:
        while not done.wait(PAUSE_S):
            counted["bystander_passes"] += 1
            counted["bystander_wrong"] += not torch.equal(alone, _logits(sender, ids))

    def work(worker: int) -> Counter[str]:
        own = Counter[str]()
        for step in range(worker, n, threads):
            number = (7 * step + worker) % TEXTS
            try:
                message = sender.encode(texts[number])
                own["wrong"] += (message, receiver.decode(message).digest()) != expected[number]
            except Exception as error:
                own["errors"] += 1
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            own["handoffs"] += 1
        return own

    thread = Thread(target=bystander)
    thread.start()
    try:
        with ThreadPoolExecutor(threads) as pool:
            for own in pool.map(work, range(threads)):
                passes.update(own)
    finally:
        done.set()
        thread.join()
    return {name: passes[name] for name in ("handoffs", "wrong", "errors")} | dict(counted)


def _logits(sender: ilcp.Sender, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = sender.model(ids).logits
    return logits


if __name__ == "__main__":
    sys.exit(main())
