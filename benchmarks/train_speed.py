"""The time of a training step by part, beside the receiver's own pass.

    python benchmarks/train_speed.py [--sizes tiny 30M 120M] [--device cuda] [--threads 1] [--json FILE]

Models of random weights, texts of random tokens: only time is measured, answers mean nothing. Of each size:

- the *bare* pass: the receiver, forward and backward to its input, over the sequences that training packs (memory and
  questions), everything else left out;
- the *step* with cross-entropy alone, the sender's states on disk: what the codec adds to it;
- the step of the default hyperparameters, which also distils from the receiver reading the full text.

Goals: the codec's own forward and backward under 20 % of a step, and a step within 1.3 times the bare pass.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilcp.measure import provenance
from ilcp.models.forward import PADDING
from ilcp.nn.distributed import init_device
from ilcp.tasks import Case, Question
from ilcp.training import Hyperparameters, Models, StateStore, calibrate
from ilcp.training.batch import Batcher, frozen
from ilcp.training.clock import Clock
from ilcp.training.objective import Objective
from ilcp.training.packed import memory_logits
from ilcp.training.precision import precision
from ilcp.training.reader import Reader
from ilcp_codecs.vae import VaeCodec

WORDS = 4096
SIZES = {  # hidden, layers, heads
    "tiny": (128, 2, 4),
    "30M": (512, 8, 8),
    "120M": (768, 14, 12),
    "0.5B": (1280, 22, 20),
}
CONTEXTS, QUESTIONS = 16, 8
CONTEXT_WORDS, QUESTION_WORDS, ANSWER_WORDS = 200, 10, 3
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "30M"])
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile around the codec")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "train-speed.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = init_device(args.device)
    rows = [measured(name, device, args) for name in args.sizes]
    record = {
        "what": "seconds of a training step; random weights and tokens, so only times are measured",
        "contexts": CONTEXTS,
        "questions": QUESTIONS,
        "n": args.repetitions,
        "seed": args.seed,
        "threads": args.threads,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "provenance": provenance(sizes={name: SIZES[name] for name in args.sizes}),
        "rows": rows,
    }
    args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(rows)


def measured(name: str, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Measures one line of the table."""
    torch.manual_seed(args.seed)
    models = pair(*SIZES[name], device)
    cases = [case(random.Random(f"{args.seed}/{number}"), number) for number in range(CONTEXTS)]
    plain = Hyperparameters(
        steps=1000, contexts=CONTEXTS, questions=QUESTIONS, blank_share=0.0, bfloat16=device.type == "cuda"
    )
    full = Hyperparameters(
        steps=1000, contexts=CONTEXTS, questions=QUESTIONS, kl_weight=0.5, bfloat16=device.type == "cuda"
    )
    network = VaeCodec.untrained(models.sender, models.receiver, {}).to(device)
    calibrate(network, models, cases, plain)
    with tempfile.TemporaryDirectory() as folder, frozen(models):
        store = StateStore(folder, models, network.layers, plain, 1 << 40)
        store.fill(Reader(models, network.layers, plain), [c.context for c in cases])
        step, shares = stepped(network, models, cases, plain, store, args.repetitions)
        default, default_shares = stepped(network, models, cases, full, store, args.repetitions)
        with precision(device, plain):
            bare = timed(lambda: bare_pass(models, network, cases, plain), args.repetitions, device)
        compiled = None
        if args.compile:
            network.compile(dynamic=True)
            compiled, _ = stepped(network, models, cases, plain, store, args.repetitions)
    receiver = sum(p.numel() for p in models.receiver.parameters())
    return {
        "size": name,
        "receiver_parameters": receiver,
        "codec_parameters": sum(p.numel() for p in network.parameters()),
        "bare_s": bare,
        "step_s": step,
        "step_compiled_s": compiled,
        "step_over_bare": step / bare,
        "shares": shares,
        "default_step_s": default,
        "default_shares": default_shares,
    }


def pair(hidden: int, layers: int, heads: int, device: torch.device) -> Models:
    """Makes two models of that size, and one tokenizer of one token per word."""
    vocabulary = {"<s>": 0, "</s>": 1} | {f"w{number}": number for number in range(2, WORDS)}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<s>"))
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
    )
    return Models(LlamaForCausalLM(config).to(device), fast, LlamaForCausalLM(config).to(device), fast)


def case(rng: random.Random, number: int) -> Case:
    """Makes a document of random words, with questions about nothing."""

    def words(count: int) -> str:
        return " ".join(f"w{rng.randrange(2, WORDS)}" for _ in range(count))

    asked = tuple(Question(words(QUESTION_WORDS), words(ANSWER_WORDS)) for _ in range(QUESTIONS))
    return Case(str(number), words(CONTEXT_WORDS), asked)


def stepped(
    network: Any,
    models: Models,
    cases: list[Case],
    hyperparameters: Hyperparameters,
    store: StateStore,
    repetitions: int,
) -> tuple[float, dict[str, float]]:
    """Returns the median seconds of a whole step, and each part's share of them."""
    device = models.receiver.device
    clock = Clock(device)  # of every step: none says that it starts
    objective = Objective(models, hyperparameters, Reader(models, network.layers, hyperparameters, store), clock=clock)
    batcher, optimizer = Batcher(models, hyperparameters), torch.optim.AdamW(network.parameters())
    network.train()

    def step() -> None:
        batch = batcher.batch(cases, random.Random(0))
        terms = objective.terms(network, batch)
        optimizer.zero_grad(set_to_none=True)
        with clock.backward():
            terms["loss"].backward()
        with clock("codec"):
            optimizer.step()

    step()  # the first one allocates
    clock.seconds.clear()
    return timed(step, repetitions, device), clock.shares()


def bare_pass(models: Models, network: Any, cases: list[Case], hyperparameters: Hyperparameters) -> None:
    """Runs the receiver over the packed sequences, forward and back to the memory."""
    batch = Batcher(models, hyperparameters).batch(cases, random.Random(0))
    shape = len(cases), network.config.slots, network.config.receiver_hidden
    memory = (0.02 * torch.randn(shape, device=models.receiver.device)).requires_grad_()
    logits, labels = memory_logits(models, batch.rows, memory)
    known = labels != PADDING
    torch.nn.functional.cross_entropy(logits[known], labels[known]).backward()


def timed(work: Callable[[], None], repetitions: int, device: torch.device) -> float:
    """Returns the median of so many, after one that is not counted."""
    laps = []
    for number in range(repetitions + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:
            laps.append(time.perf_counter() - started)
    return median(laps)


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    columns = ("receiver", "codec, parameters", "bare pass", "step", "of bare", "codec's", "default step", "codec's")
    table = Table(*columns, title="seconds, medians; states on disk")
    for row in rows:
        table.add_row(
            row["size"],
            f"{row['codec_parameters'] / 1e6:.1f} M",
            f"{row['bare_s']:.3f}",
            f"{row['step_s']:.3f}",
            f"{row['step_over_bare']:.2f}",
            f"{row['shares']['codec']:.0%}",
            f"{row['default_step_s']:.3f}",
            f"{row['default_shares']['codec']:.0%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
