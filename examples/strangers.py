"""A hand-off between two models that nobody here trained, on real text.

    python examples/strangers.py SENDER_DIR RECEIVER_DIR TEXTS.jsonl --save CODEC [--minutes 10] [--json REPORT.json]

The sender reads the beginning of a story, the message crosses, the receiver continues. Training uses only stories
that the sender itself writes; TEXTS.jsonl (lines of {"text": ...}) is for the test. What the true continuation costs
the receiver is measured in every arm: by message, with nothing, with another story's message, with the beginning as
text, with text of as many bytes, and more.

--beginning sets how much of the story the sender holds. With --seen N the receiver sees the last N characters of the
beginning in every arm, so that what the message adds is what lies further back.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

import ilcp
from ilcp.codec import prove
from ilcp.identity import identify
from ilcp.measure import Report, equal_texts, run
from ilcp.measure.table import show
from ilcp.pair import load_model
from ilcp.tasks import Case, Question
from ilcp.training import Models, Recipe, calibrate, train
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork

BEGINNING_CHARS = 150  # what the sender holds
CONTINUATION_CHARS = 100  # what the receiver is judged on
STORY_TOKENS = 120
VALIDATION_STORIES = 64
DICTIONARY_STORIES = 2000  # that the sender writes for zstd's dictionary
CARD = "# A codec for the beginnings of stories\n\nTrained on stories that the sender wrote itself.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sender", type=Path)
    parser.add_argument("receiver", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--save", type=Path, required=True, help="the codec's folder; one that is there is measured")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training")
    parser.add_argument("--stories", type=int, default=4000, help="that the sender writes for training")
    parser.add_argument("--beginning", type=int, default=BEGINNING_CHARS, help="characters that the sender holds")
    parser.add_argument("--seen", type=int, default=0, help="characters of them that the receiver sees as well")
    parser.add_argument("--n", type=int, help="stories to measure; without it, all")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the report goes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    models = Models(*load_model(args.sender), *load_model(args.receiver))
    if not args.save.exists():
        written = [case for text in write_stories(models, args.stories) if (case := split(text, args))]
        train_codec(models, written, args)
    test = [case for text in read_texts(args.texts) if (case := split(text, args))][: args.n]
    report = measure(models, test, args)
    show(report, Console())
    if args.seen == 0:
        prove(args.save, report.proof())


def read_texts(path: Path) -> list[str]:
    """The "text" of every line."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def split(text: str, args: argparse.Namespace) -> Case | None:
    """Beginning and continuation of a story, cut between words; None where it is too short."""
    text = " ".join(text.split())
    cut = text.rfind(" ", 0, args.beginning)
    end = text.rfind(" ", 0, cut + CONTINUATION_CHARS)
    if cut < args.beginning // 2 or end < cut + CONTINUATION_CHARS // 2:
        return None
    seen = text[text.find(" ", max(0, cut - args.seen)) + 1 : cut] if args.seen else ""
    return Case(text[: args.beginning], text[:cut], (Question(seen, text[cut + 1 : end], "continuation"),))


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


def train_codec(models: Models, cases: list[Case], args: argparse.Namespace) -> None:
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
    made = {"recipe": recipe.to_dict(), "steps": result.steps, "minutes": result.minutes, "stories": len(training)}
    ilcp.save(codec, args.save, card=CARD, training=made)


def measure(models: Models, cases: list[Case], args: argparse.Namespace) -> Report:
    """Every arm, on stories that nobody trained on."""
    codec = ilcp.load(args.save)
    sender = ilcp.Sender(models.sender, models.sender_tokenizer, codec)
    receiver = ilcp.Receiver(models.receiver, models.receiver_tokenizer, codec, allow_unproven=True)
    dictionary = write_stories(models, DICTIONARY_STORIES)
    return run(
        sender,
        receiver,
        cases,
        task=f"{args.texts.name}, {args.beginning} characters held, {args.seen} seen",
        seed=args.seed,
        closed=False,
        texts=equal_texts(sender, dictionary),
        keep=args.json,
        progress=True,
    )


if __name__ == "__main__":
    main()
