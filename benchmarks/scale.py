"""Measures time and memory of every step of a hand-off at real sizes, beside the receiver that reads the full text.

    python benchmarks/scale.py                                  # writes benchmarks/results/scale-<device>.json
    python benchmarks/scale.py --sender 0.5B --receiver 7B --tokens 4096 8192

The shapes are those of published models, the weights are random: **time and memory are measured, and nothing else**; an
answer of such a model means nothing. On a GPU all three sizes are run with documents of 1k to 32k tokens, on a CPU the
smallest with 1k. Per repetition, in a new random order, every step from the same start::

    sender     reads the document (as it does anyway)   reads and captures   codec encodes   wire out
    receiver   wire in   codec decodes   first token: full text, cold and behind its prefix cache; memory; as many
               tokens of text as memory vectors; nothing. The question stands behind each

The first token is the prompt's embedding, the forward pass with a KV cache, and the choice; the sender's pass is timed
without such a cache, with and without capture. Every document is read in one window, which is therefore wider than the
published one. Documents are given in ids: how long a real tokenizer takes is not in here. Where both ends are of one
size, one model plays both: no time depends on that, and every peak is counted beyond the weights. A length that does
not fit is recorded with the reason. The file is written anew after each length.
"""

import argparse
import gc
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scale_steps import CACHED, QUESTION_TOKENS, SIZES, STEPS, Document, Hop, Machine, Record

from ilcp.files import write_whole
from ilcp.measure import Computed, Measured, provenance
from ilcp.measure.payload import kv_cache
from ilcp.measure.timing import torch_threads

RESULTS = Path(__file__).parent / "results"
WHAT = "time and memory only: the weights are random, so that what these models answer means nothing"
LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768)
MIN_REPETITIONS = 6  # the least and the greatest of fewer bound no median with 95 %
QUIET_SHARE = 0.95  # of a processor: with less, waiting for other processes shows in the times
Figures = dict[str, Measured | Computed]


def main() -> None:
    args = arguments()
    machine = Machine(torch.device(args.device), getattr(torch, args.dtype))
    sizes = args.sizes or [name for name in SIZES if name != "tiny"][: None if machine.on_gpu else 1]
    lengths = sorted(set(args.tokens or (LENGTHS if machine.on_gpu else LENGTHS[:1])))
    record: Record = {"what": WHAT, "notes": [], "models": {}, "runs": [], **settings(args, machine)}
    if not machine.on_gpu and not (args.sizes and args.tokens):
        record["notes"].append(f"no GPU: sizes {', '.join(sizes)} and documents of {lengths} tokens only")
    out = args.out or RESULTS / f"scale-{machine.name}.json"
    with torch_threads(args.threads):
        for name in sizes:
            for run in runs((name, args.receiver or name), lengths, args, machine, record["models"]):
                record["runs"].append(run)
                record["provenance"] = provenance(**{n: about["identity"] for n, about in record["models"].items()})
                write_whole(out, json.dumps(record, indent=1) + "\n")
    show(record, Console())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", "--sender", dest="sizes", choices=SIZES, action="append", help="tiny: for tests")
    parser.add_argument("--receiver", choices=SIZES, help="another size for the receiving end")
    parser.add_argument("--tokens", type=int, nargs="+", help="of the documents")
    parser.add_argument("--repetitions", type=int, help="6 on a CPU, 20 on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.repetitions = args.repetitions or (20 if args.device.startswith("cuda") else MIN_REPETITIONS)
    if args.repetitions < MIN_REPETITIONS or min(args.tokens or [1]) < 1:
        parser.error(
            f"expected at least {MIN_REPETITIONS} repetitions (fewer bound no median with 95 %) and 1 token, "
            f"got {args.repetitions} and {args.tokens}"
        )
    return args


def settings(args: argparse.Namespace, machine: Machine) -> Record:
    """Returns the settings that all runs share."""
    return {
        "device": machine.name,
        "free_bytes_at_start": machine.free_bytes(),
        "threads": args.threads,
        "dtype": args.dtype,
        "seed": args.seed,
        "repetitions": args.repetitions,
        "interval": "order statistics that bound the median with at least 95 %",
        "peak": machine.peak_source,
        "question_tokens": QUESTION_TOKENS,
    }


def runs(
    pair: tuple[str, str], lengths: Sequence[int], args: argparse.Namespace, machine: Machine, models: Record
) -> Iterator[Record]:
    """Yields a record of each length; ``models`` is filled with what they ran on."""
    release(machine)
    weights = sum(SIZES[name].parameters() for name in set(pair)) * machine.dtype.itemsize
    reason = lack(weights, machine, "the weights")
    hop = None if reason else Hop(pair, machine, args.seed)
    models.update(hop.about if hop else {})
    for tokens in lengths:
        found = measured(hop, tokens, args) if hop else {"refused": reason}
        yield {"sender": pair[0], "receiver": pair[1], "tokens": tokens, **found}
        release(machine)


def measured(hop: Hop, tokens: int, args: argparse.Namespace) -> Record:
    """Measures one length: its samples and figures, or why there are none."""
    if reason := refusal(hop, tokens):
        return {"refused": reason}
    try:
        return measure(Document(hop, tokens, args.seed), args.repetitions)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        return {"refused": f"out of memory: {str(error).splitlines()[0]}"}


def release(machine: Machine) -> None:
    """Gives back what nothing holds any more."""
    gc.collect()
    if machine.on_gpu:
        torch.cuda.empty_cache()


def refusal(hop: Hop, tokens: int) -> str:
    """Says why a document of so many tokens is not measured; empty where nothing speaks against it."""
    total = tokens + QUESTION_TOKENS + 1
    window = min(size.window for size in hop.sizes)
    if total > window:
        return f"expected a document, question and answer of at most {window} tokens (the window), got {total}"
    sending, receiving = hop.sizes
    value_bytes = hop.machine.dtype.itemsize
    captured = len(sending.layers_read()) * tokens * sending.hidden * 4
    kv = kv_cache(receiving.config(), total, value_bytes).value
    widest = max(sending.intermediate, receiving.intermediate) * total * value_bytes
    needed = 3 * captured + 3 * kv + 4 * widest
    return lack(needed, hop.machine, "3 x the captured states in float32, 3 x the KV cache, 4 x an MLP's activations")


def lack(needed_bytes: float, machine: Machine, of: str) -> str:
    """Says that the machine has less memory free than is needed; empty where it has enough."""
    free = machine.free_bytes()
    return f"expected {needed_bytes / 1e9:.1f} GB free ({of}), got {free / 1e9:.1f} GB" if needed_bytes > free else ""


def measure(document: Document, repetitions: int) -> Record:
    """Takes the raw samples of one document, and makes the figures that follow from them."""
    machine, receiver = document.hop.machine, document.receiver
    peaks = {step: machine.peak_bytes(work) for step, work in document.steps().items()}
    started, busy = time.perf_counter(), time.process_time()
    samples = document.samples(repetitions)
    states = document.read.states
    assert states is not None
    raw = {
        "samples": samples,
        "peak_bytes": peaks,
        "prompt_tokens": document.prompt_tokens(),
        "bytes": {
            "message on the wire": len(document.message),
            "captured states": states.nbytes,
            "memory vectors": document.memory.vectors.nbytes,
        },
        "processor_share": (time.process_time() - busy) / (time.perf_counter() - started),
    }
    return raw | {"figures": {name: asdict(figure) for name, figure in figures(raw, receiver.model).items()}}


def figures(raw: Mapping[str, Any], model: Any) -> Figures:
    """Returns every figure by name; ``model`` is the receiver's, whose keys and values are counted."""
    samples, peaks, reading = raw["samples"], raw["peak_bytes"], "sender reads"
    found: Figures = {step: median(samples[step]) for step in STEPS}
    beyond = np.subtract(samples[f"{reading} and captures"], samples[reading])
    found["capture, beyond reading"] = median(beyond.tolist())
    found |= {f"{step}, peak": Measured(peaks[step], "B", 1) for step in STEPS}
    found["capture, peak beyond reading"] = computed(
        "B", "capture - reading", capture=peaks[f"{reading} and captures"], reading=peaks[reading]
    )
    found |= {name: Measured(size, "B", 1) for name, size in raw["bytes"].items()}
    for prompt, tokens in raw["prompt_tokens"].items():
        found[f"tokens, {prompt}"] = Measured(tokens, "tokens", 1)
        found[f"KV, {prompt}"] = kv_cache(model.config, tokens, model.dtype.itemsize)
    found["processor share"] = Measured(raw["processor_share"], "", 1)
    return found | comparisons({name: figure.value for name, figure in found.items()})


def comparisons(value: Mapping[str, float]) -> Figures:
    """Returns what follows from the medians: both ends' sums, and the message over what it stands for."""
    arrives = {"wire_in": value["wire in"], "decode": value["codec decodes"], "memory": value["first token, memory"]}
    leaves = {
        "capture": value["capture, beyond reading"],
        "encode": value["codec encodes"],
        "wire_out": value["wire out"],
    }
    text, cached, twin = (value[f"first token, {name}"] for name in ("text", CACHED, "as many tokens"))
    one, all_of = "wire_in + decode + memory", "capture + encode + wire_out + wire_in + decode + memory"
    return {
        "sender's extra": computed("ms", "capture + encode + wire_out", **leaves),
        "message to first token": computed("ms", one, **arrives),
        "message / text": computed("", f"({one}) / text", **arrives, text=text),
        "message, sender's extra counted in / text": computed("", f"({all_of}) / text", **leaves, **arrives, text=text),
        f"message / {CACHED}": computed("", f"({one}) / cached", **arrives, cached=cached),
        f"message, sender's extra counted in / {CACHED}": computed(
            "", f"({all_of}) / cached", **leaves, **arrives, cached=cached
        ),
        "message / as many tokens": computed("", f"({one}) / twin", **arrives, twin=twin),
        "KV, memory / text": computed("", "memory / text", memory=value["KV, memory"], text=value["KV, text"]),
    }


def computed(unit: str, formula: str, **inputs: float) -> Computed:
    """Returns the figure that ``formula`` gives for its inputs."""
    return Computed(eval(formula, {"__builtins__": {}}, inputs), unit, formula, inputs)


def median(values: Sequence[float]) -> Measured:
    """Returns the median in milliseconds, between the order statistics that bound it with at least 95 %."""
    ordered, n = sorted(values), len(values)
    outside = np.cumsum([math.comb(n, k) / 2 ** (n - 1) for k in range(n)])  # both tails, of k values and fewer
    cut = int((outside <= 0.05).sum()) - 1
    return Measured(float(np.median(ordered)), "ms", n, ordered[cut], ordered[n - 1 - cut])


def show(record: Record, console: Console) -> None:
    """Prints for each pair of sizes a table of times, one of bytes and one of the rest; a column per length."""
    console.print(f"{record['what']}. Peaks: {record['peak']}.", *record["notes"])
    for pair in dict.fromkeys((run["sender"], run["receiver"]) for run in record["runs"]):
        found = [run for run in record["runs"] if (run["sender"], run["receiver"]) == pair]
        made = {f"{run['tokens']:,} tokens": run["figures"] for run in found if "figures" in run}
        names: dict[str, Any] = next(iter(made.values()), {})
        for title, units in (("time", ("ms",)), ("bytes", ("B",)), ("counts and ratios", ("tokens", ""))):
            table = Table("", *made, title=f"{pair[0]} to {pair[1]}: {title}")
            for name in (name for name, figure in names.items() if figure["unit"] in units):
                table.add_row(name, *(cell(figures[name]) for figures in made.values()))
            console.print(*([table] if made else []))
        for run in found:
            if "refused" in run:
                console.print(f"{run['tokens']:,} tokens: {run['refused']}")
            elif record["device"] == "cpu" and run["processor_share"] < QUIET_SHARE:
                console.print(f"{run['tokens']:,} tokens: others ran beside this; measure again")


def cell(figure: Mapping[str, Any]) -> str:
    """Writes a figure as the table shows it."""
    scale, unit = (1e6, "MB") if figure["unit"] == "B" and figure["value"] >= 1e5 else (1, figure["unit"])
    given = [figure[key] / scale for key in ("value", "low", "high") if figure.get(key) is not None]
    value, *bounds = (f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}" for number in given)
    return f"{value}{' [' + ', '.join(bounds) + ']' if bounds else ''} {unit}".rstrip()


if __name__ == "__main__":
    main()
