"""A hand-off between two models that nobody here trained, on real text.

    python examples/strangers.py SENDER_DIR RECEIVER_DIR TEXTS.jsonl [--minutes 10] [--json RESULT.json]

The sender reads the beginning of a story, the message crosses, the receiver continues. Training uses only stories
that the sender itself writes; TEXTS.jsonl (lines of {"text": ...}) is for the test. The figure is bits per byte of the
true continuation: with the message, with nothing, with another story's message, with the beginning as text, and with
the last and the first bytes of the beginning, as many as the payload has.
"""

import argparse
import json
import math
import random
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ilcp import Receiver, Sender
from ilcp.identity import identify
from ilcp.measure import Measured, provenance, quality
from ilcp.measure.figures import bootstrap
from ilcp.pair import load_model
from ilcp.tasks import Case, Question
from ilcp.training import Models, Recipe, calibrate, train
from ilcp_codecs.text import HeadCodec, TailCodec
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork

BEGINNING_CHARS = 150  # what the sender holds
CONTINUATION_CHARS = 100  # what the receiver is judged on
STORY_TOKENS = 120
VALIDATION_STORIES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sender", type=Path)
    parser.add_argument("receiver", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0, help="of training")
    parser.add_argument("--stories", type=int, default=4000, help="that the sender writes for training")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the result goes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    test = [case for text in read_texts(args.texts) if (case := split(text))]
    models = Models(*load_model(args.sender), *load_model(args.receiver))
    written = [case for text in write_stories(models, args.stories) if (case := split(text))]
    codec, training = train_codec(models, written, args)
    result = measure(models, codec, test, args.seed)
    show(result)
    if args.json:
        where = provenance(sender=asdict(codec.trained.sender), receiver=asdict(codec.trained.receiver))
        record = {"figures": {name: asdict(figure) for name, figure in result.items()}, "training": training}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record | {"seed": args.seed, "provenance": where}, indent=2) + "\n")


def read_texts(path: Path) -> list[str]:
    """The "text" of every line."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def split(text: str) -> Case | None:
    """Beginning and continuation of a story, cut between words; None where it is too short."""
    text = " ".join(text.split())
    cut = text.rfind(" ", 0, BEGINNING_CHARS)
    end = text.rfind(" ", 0, cut + CONTINUATION_CHARS)
    if cut < BEGINNING_CHARS // 2 or end < cut + CONTINUATION_CHARS // 2:
        return None
    return Case(text[:24], text[:cut], (Question("", text[cut + 1 : end], "continuation"),))


@torch.no_grad()
def write_stories(models: Models, count: int, batch: int = 200) -> list[str]:
    """Stories sampled from the sender at temperature 1, from nothing but its first token."""
    start = torch.full((batch, 1), models.sender_tokenizer.bos_token_id)
    stories: list[str] = []
    for _ in track(range(-(-count // batch)), "the sender writes", disable=False):
        ids = models.sender.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            max_new_tokens=STORY_TOKENS,
            pad_token_id=models.sender_tokenizer.eos_token_id,
        )
        stories += models.sender_tokenizer.batch_decode(ids, skip_special_tokens=True)
    return stories


def train_codec(models: Models, cases: list[Case], args: argparse.Namespace) -> tuple[VaeCodec, dict]:
    """The same network and the same loop as the embedded pair's."""
    config = VaeConfig(
        sender_layers=tuple(range(models.sender.config.num_hidden_layers + 1)),
        sender_hidden=models.sender.config.hidden_size,
        receiver_hidden=models.receiver.config.hidden_size,
    )
    network = VaeNetwork(config)
    recipe = Recipe(
        steps=1_000_000,
        minutes=args.minutes,
        contexts=32,
        questions=1,
        kl_weight=0.5,
        close_answers=False,
        validation_contexts=VALIDATION_STORIES,
        seed=args.seed,
    )
    calibrate(network, models, cases[:VALIDATION_STORIES], recipe)
    training = cases[VALIDATION_STORIES:]

    def source(first: int, n: int) -> list[Case]:
        return random.Random(f"{args.seed}/{first}").sample(training, n)

    with tempfile.TemporaryDirectory() as folder:
        result = train(network, models, source, cases[:VALIDATION_STORIES], recipe, folder)
    codec = VaeCodec.from_network(
        network,
        identify(models.sender, models.sender_tokenizer),
        identify(models.receiver, models.receiver_tokenizer),
    )
    return codec, {
        "recipe": recipe.to_dict(),
        "steps": result.steps,
        "minutes": result.minutes,
        "stories": len(training),
    }


def measure(models: Models, codec: VaeCodec, cases: list[Case], seed: int) -> dict[str, Measured]:
    """Bits per byte of the true continuation by arm, and the share of the text's gain that the message gives."""
    sender = Sender(models.sender, models.sender_tokenizer, codec)
    receiver = Receiver(models.receiver, models.receiver_tokenizer, codec)
    texts = {"tail": TailCodec(), "head": HeadCodec()}
    lengths = [codec.spec.payload_bytes]
    scores = quality(sender, receiver, cases, payload_bytes=lengths, text_codecs=texts, close_answers=False, seed=seed)
    sizes = torch.tensor([len(case.questions[0].answer.encode()) for case in cases], dtype=torch.float64).numpy()
    figures = {}
    for arm, nats in scores.nats.items():
        figures[f"{arm}, bits per byte"] = bootstrap(
            lambda items, nats=nats: float(-nats[items].sum() / math.log(2) / sizes[items].sum()),
            scores.documents,
            seed=seed,
            unit="bits/byte",
        )
    figures["recovery of the message"] = scores.recovery("message", of="nats")
    figures["content gain, nats per continuation"] = scores.content_gain(of="nats")
    figures["message minus tail, nats per continuation"] = scores.difference("message", f"tail-{lengths[0]}", of="nats")
    figures["message, everything counted"] = Measured(scores.wire_bytes["message"], "B", len(cases))
    return figures


def show(result: dict[str, Measured]) -> None:
    table = Table("figure", "value", "95 % interval", "n")
    for name, figure in result.items():
        interval = "" if figure.low is None else f"{figure.low:.3f} to {figure.high:.3f}"
        table.add_row(name, f"{figure.value:.3f} {figure.unit}", interval, str(figure.n))
    Console().print(table)


if __name__ == "__main__":
    main()
