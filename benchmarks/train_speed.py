"""The time of a training step by part, beside the receiver's own pass.

    python benchmarks/train_speed.py [--sizes tiny 30M SmolLM2-135M] [--device cuda] [--threads 1] [--json FILE]

Models of random weights, texts of random tokens: only time is measured, answers mean nothing. ``SmolLM2-135M`` has that
model's shape, vocabulary and precision, and the batch of a training on conversations. Of each size:

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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilcp.measure import provenance
from ilcp.nn.distributed import init_device
from ilcp.tasks import Case, Question
from ilcp.training import Hyperparameters, Models, StateStore, calibrate
from ilcp.training.batch import Batcher, frozen
from ilcp.training.clock import Clock
from ilcp.training.objective import Objective
from ilcp.training.reader import Reader
from ilcp_codecs.vae import VaeCodec

QUESTION_WORDS, ANSWER_WORDS = 10, 3


@dataclass(frozen=True)
class Size:
    """The shape of both models, and the batch that is trained on: a word is a token."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int | None = None
    inner: int | None = None  # None: three times hidden
    words: int = 4096
    tied: bool = False
    dtype: str = "float32"
    contexts: int = 16
    questions: int = 8
    context_words: int = 200


SIZES = {
    "tiny": Size(128, 2, 4),
    "30M": Size(512, 8, 8),
    "120M": Size(768, 14, 12),
    "SmolLM2-135M": Size(576, 30, 9, 3, 1536, 49_152, True, "bfloat16", contexts=6, questions=4, context_words=250),
    "0.5B": Size(1280, 22, 20),
}
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
        "n": args.repetitions,
        "seed": args.seed,
        "threads": args.threads,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "provenance": provenance(sizes={name: asdict(SIZES[name]) for name in args.sizes}),
        "rows": rows,
    }
    args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(rows)


def measured(name: str, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Measures one line of the table."""
    size = SIZES[name]
    torch.manual_seed(args.seed)
    models = pair(size, device)
    cases = [case(size, random.Random(f"{args.seed}/{number}"), number) for number in range(size.contexts)]
    halved = device.type == "cuda" and size.dtype == "float32"  # by autocast
    recipe = partial(Hyperparameters, steps=1000, contexts=size.contexts, questions=size.questions, bfloat16=halved)
    plain, full = recipe(blank_share=0.0), recipe(kl_weight=0.5)
    network = VaeCodec.untrained(models.sender, models.receiver, {}).to(device)
    calibrate(network, models, cases, plain)
    with tempfile.TemporaryDirectory() as folder, frozen(models):
        store = StateStore(folder, models, network.layers, plain, 1 << 40)
        store.fill(Reader(models, network.layers, plain), [c.context for c in cases])
        batch = Batcher(models, plain).batch(cases, random.Random(0))
        alone = Objective(models, plain, Reader(models, network.layers, plain, store))
        step, shares = stepped(network, models, cases, plain, store, args.repetitions)
        default, default_shares = stepped(network, models, cases, full, store, args.repetitions)
        with torch.no_grad():
            memory, _ = alone.memory(network, *alone.states(batch))
        bare = timed(lambda: alone.receiver_pass(batch, memory), args.repetitions, device)
        compiled = None
        if args.compile:
            network.compile(dynamic=True)
            compiled, _ = stepped(network, models, cases, plain, store, args.repetitions)
    receiver = sum(p.numel() for p in models.receiver.parameters())
    return {
        "size": name,
        "contexts": size.contexts,
        "questions": size.questions,
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


def pair(size: Size, device: torch.device) -> Models:
    """Makes two models of that size, and one tokenizer of one token per word."""
    vocabulary = {"<s>": 0, "</s>": 1} | {f"w{number}": number for number in range(2, size.words)}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    config = LlamaConfig(
        vocab_size=size.words,
        hidden_size=size.hidden,
        intermediate_size=size.inner or 3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        tie_word_embeddings=size.tied,
        max_position_embeddings=2048,
    )
    sender, receiver = (LlamaForCausalLM(config).to(device=device, dtype=getattr(torch, size.dtype)) for _ in range(2))
    return Models(sender, fast, receiver, fast)


def case(size: Size, rng: random.Random, number: int) -> Case:
    """Makes a document of random words, with questions about nothing."""

    def words(count: int) -> str:
        return " ".join(f"w{rng.randrange(2, size.words)}" for _ in range(count))

    asked = tuple(Question(words(QUESTION_WORDS), words(ANSWER_WORDS)) for _ in range(size.questions))
    return Case(str(number), words(size.context_words), asked)


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
