"""How long the receiver takes to its first token, by message and by full text, everything counted in.

    python benchmarks/latency.py                      # writes benchmarks/results/latency.json

All arms are cold (no prefix cache), interleaved document by document, after a warm-up; medians and 99th percentiles.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ilcp import Message
from ilcp.measure import Computed, Measured, payload, provenance
from ilcp.pair import load_pair
from ilcp.tasks import case_files

RESULTS = Path(__file__).parent / "results"
WARM_UP = 5
QUESTION = "Which region is affected?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS / "latency.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    pair = load_pair()
    sender, receiver = pair.sender, pair.receiver
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        started = time.perf_counter()
        result = work()
        times.setdefault(name, []).append(1000 * (time.perf_counter() - started))
        return result

    cases = list(case_files("test", args.seed, args.n + WARM_UP))
    for number, case in enumerate(cases):
        if number == WARM_UP:
            times.clear()
        context = timed("sender reads the document", lambda c=case: sender.read(c.context))
        data = timed("codec encodes", lambda c=context: sender.codec.encode(c))
        message = timed("wire out", lambda d=data: sender.pack(d))
        timed("wire in", lambda m=message: Message.from_bytes(m))
        memory = timed("receiver decodes the message", lambda m=message: receiver.decode(m))
        timed("first token, message decoded before", lambda m=memory: first_token(receiver, m))
        timed("first token, message", lambda m=message: first_token(receiver, m))
        timed("first token, full text", lambda c=case: first_token(receiver, None, context=c.context))
        timed("first token, nothing", lambda: first_token(receiver, None))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    figures = {
        name: {
            "median": asdict(Measured(medians[name], "ms", args.n)),
            "p99": asdict(Measured(float(np.percentile(values, 99)), "ms", args.n)),
        }
        for name, values in times.items()
    }
    ratios = {name: asdict(ratio) for name, ratio in ratios_of(medians).items()}
    sizes = payload(message, text=case.context, sender=sender, receiver=receiver)
    trained = sender.codec.trained
    record = {"n": args.n, "seed": args.seed, "threads": args.threads, "figures": figures, "ratios": ratios}
    record["last message"] = asdict(sizes)
    record["provenance"] = provenance(sender=asdict(trained.sender), receiver=asdict(trained.receiver))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, value in medians.items():
        print(f"{name}: {value:.3f} ms (median of {args.n})")
    for name, ratio in ratios_of(medians).items():
        print(f"{name}: {ratio}")
    print(sizes)


def first_token(receiver, message, context=None) -> str:
    return receiver.generate(message, QUESTION, context=context, max_new_tokens=1)


def ratios_of(medians: dict[str, float]) -> dict[str, Computed]:
    """First token by message over first token by text: at the receiver, and with the sender's own work counted in."""
    text = medians["first token, full text"]
    receiver_side = medians["first token, message"]
    sender_side = medians["codec encodes"] + medians["wire out"]
    reading = medians["sender reads the document"]
    return {
        "receiver alone": Computed(
            receiver_side / text, "", "message / text", {"message": receiver_side, "text": text}
        ),
        "encode, wire and decode counted in": Computed(
            (receiver_side + sender_side) / text,
            "",
            "(message + encode + wire) / text",
            {"message": receiver_side, "encode and wire": sender_side, "text": text},
        ),
        "a sender that reads only to encode": Computed(
            (receiver_side + sender_side + reading) / text,
            "",
            "(message + encode + wire + reading) / text",
            {"message": receiver_side, "encode and wire": sender_side, "reading": reading, "text": text},
        ),
    }


if __name__ == "__main__":
    main()
