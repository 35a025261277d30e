"""Trains the embedded codec between the embedded pair, on case files.

    python benchmarks/train_codec.py --out runs/codec --save ilcp/pair/codec

Everything that decides the run is an option; the recipe, the seed and the last validation go into the saved config.
"""

import argparse
import random
import shlex
import sys
from pathlib import Path

import torch

import ilcp
from ilcp.identity import identify
from ilcp.measure.quality import thin
from ilcp.pair import HERE, load_model
from ilcp.tasks import Case, case_files
from ilcp.training import Models, Recipe, Result, train
from ilcp.training.loop import CHECKPOINT
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork

FIRST_FACTS = 3  # of the curriculum: a short text has a word or two per slot, and the code for words is learned there
HOLD = 0.15  # of the curriculum stay with the first number of facts
CARD = """# The embedded codec

A VAE codec ({slots} slots x {dims} dimensions x {bits} bit = {payload_bytes} bytes) for the embedded sender and
receiver, trained through the frozen receiver on case files (synthetic incident dossiers in English). It knows nothing
else: a text of another kind comes out as noise.

- Made by: `{command}` (seed {seed}, {steps} steps, {minutes} minutes on {threads} thread(s))
- Last validation ({contexts} documents, {questions} questions each): {validation}
- Test figures with their controls: `benchmarks/README.md`
- Load: `ilcp.load_pair()`, or `ilcp.load(folder)` for the codec alone
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and the log")
    parser.add_argument("--save", type=Path, help="the codec's folder, written at the end")
    parser.add_argument("--sender", type=Path, default=HERE / "sender")
    parser.add_argument("--receiver", type=Path, default=HERE / "receiver")
    parser.add_argument("--start", type=Path, help="an earlier run's folder whose weights to go on from")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    for name, kind, default in (
        ("steps", int, 100_000),
        ("minutes", float, 60.0),
        ("seed", int, 11),
        ("contexts", int, 16),
        ("questions", int, 12),
        ("rate", float, 1e-3),
        ("kl", float, 0.0),
        ("rate-weight", float, 0.0),
        ("blank", float, 0.125),
        ("slots", int, 32),
        ("bits", int, 1),
        ("width", int, 192),
        ("projector", int, 512),
        ("facts", int, 17),
        ("curriculum-cases", int, 60_000),
        ("full-share", float, 0.4),
        ("reconstruction", float, 0.5),
        ("teacher-floor", float, 0.9),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    models = Models(*load_model(args.sender), *load_model(args.receiver))
    network = VaeNetwork(config_of(models, args), embedding_rms=embedding_rms(models))
    network.full_share = args.full_share
    print(f"codec: {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters", flush=True)
    if args.start:
        network.load_state_dict(torch.load(args.start / CHECKPOINT, weights_only=True)["network"])
    recipe = Recipe(
        steps=args.steps,
        minutes=args.minutes,
        contexts=args.contexts,
        questions=args.questions,
        learning_rate=args.rate,
        kl_weight=args.kl,
        rate_weight=args.rate_weight,
        reconstruction_weight=args.reconstruction,
        blank_share=args.blank,
        teacher_floor=args.teacher_floor,
        seed=args.seed,
    )

    def source(start: int, n: int) -> list[Case]:
        """A curriculum over the number of stated facts; of the absent ones, two questions are asked per document."""
        progress = start / args.curriculum_cases if args.curriculum_cases else 1.0
        most = min(args.facts, FIRST_FACTS + int((args.facts - FIRST_FACTS) * max(0.0, progress - HOLD) / (1 - HOLD)))
        rng = random.Random(f"curriculum {args.seed}/{start}")
        facts = rng.randint(1, most) if most < args.facts else rng.choice((most, most, most, 8, 12, 20))
        cases = case_files("train", args.seed, n, start=start, facts=facts)
        return [thin(case, {"absent": 2}, start + number) for number, case in enumerate(cases)]

    validation = list(case_files("validation", args.seed, recipe.validation_contexts, facts=args.facts))
    result = train(network, models, source, validation, recipe, args.out, resume=args.resume)
    print(f"{result.steps} steps, {result.minutes} minutes: {result.validation}")
    if args.save:
        save(network, models, recipe, result, args)


def config_of(models: Models, args: argparse.Namespace) -> VaeConfig:
    """A payload of 80 bytes, whatever the number of slots and bits."""
    return VaeConfig(
        sender_layers=tuple(range(models.sender.config.num_hidden_layers + 1)),
        sender_hidden=models.sender.config.hidden_size,
        receiver_hidden=models.receiver.config.hidden_size,
        slots=args.slots,
        dims=640 // args.slots // args.bits,
        bits=args.bits,
        width=args.width,
        projector_width=args.projector,
    )


def embedding_rms(models: Models) -> float:
    """The root mean square of the receiver's embeddings: where the memory's scale starts."""
    return float(models.receiver.get_input_embeddings().weight.detach().float().square().mean().sqrt())


def save(network: VaeNetwork, models: Models, recipe: Recipe, result: Result, args: argparse.Namespace) -> None:
    """The codec's folder: weights, config, card."""
    codec = VaeCodec.from_network(
        network,
        identify(models.sender, models.sender_tokenizer),
        identify(models.receiver, models.receiver_tokenizer),
    )
    c = codec.config
    command = shlex.join(["python", *sys.argv])
    card = CARD.format(
        slots=c.slots,
        dims=c.dims,
        bits=c.bits,
        payload_bytes=c.payload_bytes,
        command=command,
        seed=args.seed,
        steps=result.steps,
        minutes=result.minutes,
        threads=args.threads,
        contexts=recipe.validation_contexts,
        questions=recipe.questions,
        validation=result.validation,
    )
    training = {"command": command, "recipe": recipe.to_dict(), "steps": result.steps, "minutes": result.minutes}
    ilcp.save(codec, args.save, card=card, training=training | result.validation.to_dict())


if __name__ == "__main__":
    main()
