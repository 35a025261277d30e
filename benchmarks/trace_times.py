"""Times the reader of a trace beside a reader of everything, and what writing and handing over take.

    python benchmarks/trace_times.py --data .../conversations     # SmolLM2 by SmolLM2, on a quiet machine

Conversations in a row, about as many tokens as asked; two agents read half each. All in seconds of one process.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import ilcp
from ilcp.measure import provenance
from ilcp.models.loading import load_model
from ilcp.tasks import read_jsonl
from ilcp_codecs.trace import Plan, Reader, TraceCodec, cut

HERE = Path(__file__).parent
QUESTION = "Restaurants: City where the restaurant is located"


def median_s(call: Callable[[], object], n: int) -> float:
    """The median of so many calls, behind one that warms up."""
    laps = []
    for _ in range(n + 1):
        began = time.perf_counter()
        call()
        laps.append(time.perf_counter() - began)
    return statistics.median(laps[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(HERE / "real" / "smollm2"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--n", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "trace-times.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model(options.model, dtype="bfloat16")
    text = ""
    for case in read_jsonl(options.data / "test.jsonl"):
        text += case.context + "\n"
        if len(tokenizer(text).input_ids) >= options.tokens:
            break
    ids = tokenizer(text).input_ids[: options.tokens]
    text = tokenizer.decode(ids)
    plan = Plan(("first", "second"), options.steps, "ridge", "{text}\n")
    writers, parts = plan.writers(model, tokenizer), cut(text, 2)
    found: dict[str, float] = {}
    trace = writers[0].write(parts[0])
    found["first agent writes"] = median_s(lambda: writers[0].write(parts[0]), options.n)
    found["second agent writes"] = median_s(lambda: writers[1].write(parts[1], trace), options.n)
    found["ten steps of them"] = found["second agent writes"] - median_s(
        lambda: writers[1].write(parts[1], trace, steps=0), options.n
    )
    both = writers[1].write(parts[1], trace)
    sizes = {}
    for carrier in ("kv-exact", "kv-int8"):
        with ilcp.connect("memory://trace-times") as blobs:
            codec = TraceCodec.of(model, tokenizer, plan, carrier=carrier)
            sender = ilcp.Sender(model, tokenizer, codec, blobs=blobs)
            reader = Reader(model, tokenizer, codec, blobs=blobs, allow_unmeasured=True)
            message = sender.encode(both)
            sizes[carrier] = len(codec.encode(both))
            found[f"encode, {carrier}"] = median_s(partial(sender.encode, both), options.n)
            found[f"decode, {carrier}"] = median_s(partial(reader.decode, message), options.n)
            memory = reader.decode(message)
            found[f"first token behind it, {carrier}"] = median_s(
                partial(reader.generate, memory, QUESTION, max_new_tokens=1), options.n
            )
    found["first token, everything read"] = median_s(
        lambda: reader.generate(None, QUESTION, context=text, max_new_tokens=1), options.n
    )
    share = found["first token behind it, kv-exact"] / found["first token, everything read"]
    with_decode = share + found["decode, kv-exact"] / found["first token, everything read"]
    record = {
        "n": options.n,
        "seed": 0,
        "tokens": len(ids),
        "steps": options.steps,
        "seconds": {name: round(value, 4) for name, value in found.items()},
        "bytes": sizes,
        "first token, trace / everything": round(share, 4),
        "with decoding": round(with_decode, 4),
        "provenance": provenance(reader=codec.trained.receiver.exact) | {"threads": options.threads},
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["seconds"], indent=1), record["first token, trace / everything"], record["with decoding"])


if __name__ == "__main__":
    main()
