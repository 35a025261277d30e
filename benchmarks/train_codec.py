"""Trains the embedded codec between the embedded pair, on case files.

    python benchmarks/train_codec.py --out runs/codec --save ilcp/embedded/codec

The shipped one was made in five runs. The first, ``--plain --projector 384 --minutes 60``, gave the codec that stands
in ilcp/pair/codec at commit 59007e6 (now ilcp/embedded/codec). The second went on from its encoder, with people and
their offices first, and the third from that, with the numbers that the second had all but forgotten::

    python benchmarks/train_codec.py --start FIRST --out runs/codec4 --save runs/codec4-saved --alignment 1 \\
        --naming-steps 500 --alignment-steps 150 --phrasebook-steps 400 400 --minutes 57
    python benchmarks/train_codec.py --start runs/codec4-saved --out runs/codec5 --save ilcp/embedded/codec \\
        --alignment 1 --weak minutes accounts --rate 1.2e-3 --naming-steps 200 --alignment-steps 50 --minutes 17

The last two taught it to stand beside literals; both used the phrasebook of the third, copied into their folders::

    python benchmarks/train_codec.py --start ilcp/embedded/codec --out runs/codec7 --save runs/codec7-saved \\
        --alignment 1 --naming-steps 0 --alignment-steps 0 --literals 0.5 --rate 8e-4 --minutes 35
    python benchmarks/train_codec.py --start runs/codec7-saved --out runs/codec8 --save ilcp/embedded/codec \\
        --alignment 1 --naming-steps 0 --alignment-steps 0 --literals 0.5 --people 0.3 --seed 12 --rate 6e-4 \\
        --minutes 25

Everything that decides the run is an option; the hyperparameters and the last validation go into the saved config.
"""

import argparse
import json
import random
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import ilcp
from ilcp.embedded import HERE
from ilcp.models.fingerprint import identify
from ilcp.models.loading import load_model
from ilcp.tasks import Case, case_files
from ilcp.tasks.case_files import OFFICE, PRESENT, TOPICS, compose
from ilcp.tasks.dossier import ATTRIBUTES, JOINS
from ilcp.training import Hyperparameters, Models, Phrasebook, Result, calibrate, fit, write_phrasebook
from ilcp.training.batch import Batch, Batcher, frozen
from ilcp.training.objective import alignment_loss, targets_of
from ilcp.training.reader import Reader
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork

NAMES = tuple(attribute.name for attribute in ATTRIBUTES)
FACTS = (PRESENT, PRESENT, PRESENT, 4, 8, 12, 20)  # how many attributes the documents of training state
CURRICULUM = ((300, 96, 2), (450, 48, 5), (650, 24, 20))  # until step, cases per step, facts at most; then dossiers
FIRST_CASES = 64  # of each step with which a training that goes on begins
OFFICE_NOISE = 0.3  # between the query of an office and that of its person
CALIBRATION_CASES = 48
PROJECTOR_CASES, PROJECTOR_STEPS = 960, 1200
PER_KIND = {"lookup": 7, "absent": 3}  # questions asked per document; joins and codes, the rarer ones, are all asked
RARE = {"lookup": 4, "absent": 2}  # the same for the second part of the phrasebook: joins are read last
ALL = 100  # questions per document: more than any has
CARD = """# The embedded codec

A VAE codec ({slots} slots x {dims} dimensions x {bits} bit = {payload_bytes} bytes) for the embedded sender and
receiver, trained through the frozen receiver on case files (synthetic incident dossiers in English). Each slot is
about one attribute of a dossier, one office, or one character of its code. It knows nothing else: a text of another
kind comes out as noise.

- Made by: `{command}` (seed {seed}, {steps} steps, {minutes} minutes on {threads} thread(s)){began}
- Last validation ({contexts} documents, {questions} questions each): {validation}
- Test figures with their controls: `benchmarks/README.md`
- Load: `ilcp.load_pair()`, or `ilcp.load(folder)` for the codec alone
"""


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    models = Models(*load_model(args.sender), *load_model(args.receiver))
    network = VaeNetwork(config_of(models, args))
    print(f"codec: {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters", flush=True)
    hyperparameters = hyperparameters_of(args)
    led = hyperparameters.alignment_weight or hyperparameters.naming_steps or hyperparameters.alignment_steps
    phrasebook = make_phrasebook(models, hyperparameters, args) if led else None
    calibrate(network, models, list(case_files("train", args.seed, CALIBRATION_CASES)), hyperparameters, phrasebook)
    began: list[str] = []  # the commands that made what this run goes on from
    if args.start is not None:
        earlier = go_on(network, args.start)
        made = json.loads((args.start / "config.json").read_text(encoding="utf-8"))["training"]
        began = [*made.get("began", ()), made["command"]]
        if network.config != earlier.config and phrasebook is not None:
            cases = list(case_files("train", args.seed + 2, PROJECTOR_CASES))
            fit_projector(network, models, hyperparameters, phrasebook, cases)
        if network.config.same_token_attention and not earlier.config.same_token_attention:
            lead_to_offices(network)

    source = curriculum(network, hyperparameters, args)
    validation = list(case_files("validation", args.seed, hyperparameters.validation_contexts))
    result = fit(
        network, models, source, validation, hyperparameters, args.out, phrasebook=phrasebook, resume=args.resume
    )
    print(f"{result.steps} steps, {result.minutes} minutes: {result.validation}")
    if args.save:
        save(network, models, hyperparameters, result, args, began)


def options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and the log")
    parser.add_argument("--save", type=Path, help="the codec's folder, written at the end")
    parser.add_argument("--sender", type=Path, default=HERE / "sender")
    parser.add_argument("--receiver", type=Path, default=HERE / "receiver")
    parser.add_argument("--start", type=Path, help="a codec whose encoder to go on from; the projector starts anew")
    parser.add_argument("--weak", nargs="*", choices=NAMES, help="begin with these attributes, not with people")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    for name, kind, default in (
        ("steps", int, 100_000),
        ("minutes", float, 70.0),
        ("seed", int, 11),
        ("contexts", int, 24),
        ("questions", int, 14),
        ("rate", float, 2e-3),
        ("kl", float, 0.0),
        ("rate-weight", float, 0.0),
        ("blank", float, 0.125),
        ("literals", float, 0.0),
        ("people", float, 0.0),
        ("telling", float, 0.0),
        ("slots", int, 32),
        ("bits", int, 1),
        ("priority-bits", int, 8),
        ("width", int, 192),
        ("blocks", int, 3),
        ("projector", int, 192),
        ("full-share", float, 0.5),
        ("alignment", float, 2.0),
        ("naming-steps", int, 900),
        ("alignment-steps", int, 300),
        ("teacher-floor", float, 0.75),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument(
        "--plain", action="store_true", help="without same-token attention, and with one matrix for all slots' codes"
    )
    parser.add_argument("--phrasebook-steps", type=int, nargs=2, default=(400, 300), help="of its two parts")
    return parser.parse_args()


def hyperparameters_of(args: argparse.Namespace) -> Hyperparameters:
    """Returns the hyperparameters that the options ask for."""
    return Hyperparameters(
        steps=args.steps,
        minutes=args.minutes,
        contexts=args.contexts,
        questions=args.questions,
        per_kind=PER_KIND,
        learning_rate=args.rate,
        kl_weight=args.kl,
        rate_weight=args.rate_weight,
        alignment_weight=args.alignment,
        naming_steps=args.naming_steps,
        alignment_steps=args.alignment_steps,
        topics=TOPICS,
        blank_share=args.blank,
        literals_share=args.literals,
        telling_share=args.telling,
        teacher_floor=args.teacher_floor,
        seed=args.seed,
    )


def curriculum(
    network: VaeNetwork, hyperparameters: Hyperparameters, args: argparse.Namespace
) -> Callable[[int, int], list[Case]]:
    """Returns the source of the training's cases, which also says how often the network trains whole payloads."""
    warm = hyperparameters.naming_steps + hyperparameters.alignment_steps

    def source(start: int, n: int) -> list[Case]:
        """Gives sentences, then lists of facts, then dossiers; a few questions ask for what a document does not say."""
        step = start // n
        network.full_share = 1.0 if step < warm else args.full_share  # whole payloads first, then prefixes as well
        rng = random.Random(f"curriculum {args.seed}/{start}")
        if args.start is not None and step < hyperparameters.naming_steps:
            return [weak_case(rng, args.weak) if args.weak else people_case(rng) for _ in range(FIRST_CASES)]
        for until, cases, most in CURRICULUM if args.start is None else ():
            if step < until:
                return [bare_case(rng, rng.randint(1, most)) for _ in range(cases)]
        drawn = list(case_files("train", args.seed, n, start=start, facts=rng.choice(FACTS)))
        return [people_case(rng) if rng.random() < args.people else case for case in drawn]

    return source


def go_on(network: VaeNetwork, folder: Path) -> VaeCodec:
    """Takes the encoder of an earlier codec, which may lack same-token attention and a matrix per slot."""
    earlier = ilcp.load(folder)
    if not isinstance(earlier, VaeCodec):
        raise SystemExit(f"expected a VAE codec in {folder}, got {earlier.spec.name!r}")
    held = earlier.network.state_dict()
    for name, wanted in network.state_dict().items():
        if name in held and (earlier.config == network.config or not name.startswith("projector")):
            wanted.copy_(held[name])  # one matrix for all slots becomes the first of each slot's own
    return earlier


@torch.no_grad()
def lead_to_offices(network: VaeNetwork) -> None:
    """Starts the slots of offices where those of their people read: same-token attention leads on from a name."""
    queries = network.pooler.queries
    for role in JOINS:
        near = queries[TOPICS.index(role)]
        queries[TOPICS.index(OFFICE[role])] = near + OFFICE_NOISE * torch.randn_like(near)


def fit_projector(
    network: VaeNetwork, models: Models, hyperparameters: Hyperparameters, phrasebook: Phrasebook, cases: list[Case]
) -> None:
    """Trains a new projector to read the codes of an encoder that is trained already."""
    batcher, batches = Batcher(models, hyperparameters), []
    network.eval()
    with torch.no_grad(), frozen(models):
        for first in range(0, len(cases), hyperparameters.contexts):
            batch = batcher.batch(cases[first : first + hyperparameters.contexts], random.Random(0))
            batches.append((batch, network.bottleneck.z_hat(latents(network, models, batch.texts))))
    optimizer = torch.optim.AdamW(network.projector.parameters(), lr=hyperparameters.learning_rate)
    for step in range(PROJECTOR_STEPS):
        optimizer.param_groups[0]["lr"] = hyperparameters.learning_rate * (1 - step / PROJECTOR_STEPS)
        batch, z_hat = batches[step % len(batches)]
        loss = alignment_loss(targets_of(phrasebook, batch, network.projector(z_hat)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"projector: {loss.item():.3f} of the phrasebook's memory missing", flush=True)


def latents(network: VaeNetwork, models: Models, texts: Sequence[str]) -> Tensor:
    """Returns the latents ``"texts slots dims"`` of texts, before they are quantised."""
    states, mask = Reader(models, network.layers, Hyperparameters(steps=1, bfloat16=False)).states(texts)
    z: Tensor = network.bottleneck(network.pooler(states, mask))[0]
    return z


def make_phrasebook(models: Models, hyperparameters: Hyperparameters, args: argparse.Namespace) -> Phrasebook:
    """Reads the phrasebook of the run's folder, which is written first where there is none."""
    file = args.out / "phrasebook.safetensors"
    if file.exists():
        return Phrasebook.load(file)
    everything = replace(hyperparameters, questions=ALL, per_kind={}, literals_share=0.0, telling_share=0.0)
    rare = replace(hyperparameters, per_kind=RARE, literals_share=0.0, telling_share=0.0)
    draft = write_phrasebook(models, phrasebook_batches(models, everything, args, 0), everything)
    phrasebook = write_phrasebook(models, phrasebook_batches(models, rare, args, 1), rare, draft=draft)
    args.out.mkdir(parents=True, exist_ok=True)
    phrasebook.save(file)
    return phrasebook


def phrasebook_batches(
    models: Models, hyperparameters: Hyperparameters, args: argparse.Namespace, part: int
) -> list[Batch]:
    """Makes the batches of one of the two parts: first every question, then mostly those about joins and codes."""
    batcher, batches = Batcher(models, hyperparameters), []
    for step in range(args.phrasebook_steps[part]):
        rng = random.Random(f"phrasebook {args.seed}/{part}/{step}")
        first = (1000 * part + step) * hyperparameters.contexts
        cases = list(case_files("train", args.seed + 1, hyperparameters.contexts, start=first, facts=rng.choice(FACTS)))
        batches.append(batcher.batch(cases, rng))
    return batches


def bare_case(rng: random.Random, facts: int) -> Case:
    """Composes so many facts in a sentence each, and nothing beside them."""
    return compose("bare", rng, rng.sample(NAMES, facts), bare=True)


def people_case(rng: random.Random) -> Case:
    """Composes people and their offices, of which none can be told without the name: joins are learned from them."""
    return compose("people", rng, rng.sample(list(JOINS), rng.randint(2, len(JOINS))), bare=True, share=1.0)


def weak_case(rng: random.Random, weak: list[str]) -> Case:
    """Composes a few facts, and one of those that the codec still tells badly."""
    return compose("weak", rng, sorted({rng.choice(weak), *rng.sample(NAMES, rng.randint(2, 6))}), bare=True)


def config_of(models: Models, args: argparse.Namespace) -> VaeConfig:
    """Configures a payload of 80 bytes, whatever the number of slots and bits."""
    return VaeConfig(
        sender_layers=tuple(range(models.sender.config.num_hidden_layers + 1)),
        sender_hidden=models.sender.config.hidden_size,
        receiver_hidden=models.receiver.config.hidden_size,
        slots=args.slots,
        dims=640 // args.slots // args.bits,
        bits=args.bits,
        width=args.width,
        blocks=args.blocks,
        projector_width=args.projector,
        priority_slots=len(NAMES) if args.priority_bits else 0,
        priority_dims=args.priority_bits // args.bits,
        locality_bias=0.0,
        same_token_attention=not args.plain,
        per_slot_mu=not args.plain,
    )


def save(
    network: VaeNetwork,
    models: Models,
    hyperparameters: Hyperparameters,
    result: Result,
    args: argparse.Namespace,
    began: list[str],
) -> None:
    """Writes the codec's folder: weights, config, card."""
    network.round_to_half()
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
        began="".join(f"\n- Before that: `{command}`" for command in reversed(began)),
        seed=args.seed,
        steps=result.steps,
        minutes=result.minutes,
        threads=args.threads,
        contexts=hyperparameters.validation_contexts,
        questions=hyperparameters.questions,
        validation=result.validation,
    )
    training = {
        "command": command,
        "began": began,
        "recipe": hyperparameters.to_dict(),
        "steps": result.steps,
        "minutes": result.minutes,
    }
    ilcp.save(codec, args.save, card=card, training=training | result.validation.to_dict())


if __name__ == "__main__":
    main()
