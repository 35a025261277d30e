"""What ``gpu.py`` starts, each in a process of its own: the smoke stage, a training, a measurement.

    python benchmarks/gpu_items.py smoke --draft FILE --work FOLDER --device cpu

Each writes a JSON object with ``n`` and ``models`` (their identities), and exits with 1 where something failed. What a
process that was ended leaves in ``--work`` the next one goes on with.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gpu_parts import model_at
from scale import MIN_REPETITIONS
from scale import measure as measure_steps
from scale_steps import Document, Hop, Machine

import ilcp
from ilcp import embedded
from ilcp.codec.folder import evidence_of
from ilcp.errors import ConfigError
from ilcp.files import write_whole
from ilcp.measure import equal_texts, load_report, run
from ilcp.tasks import Case, case_files, read_jsonl, thin
from ilcp.tasks.case_files import PRESENT
from ilcp.tasks.written import write_jsonl
from ilcp.training.begun import is_begun

RECIPE = Path(__file__).parent / "gpu.toml"
CONVERSATIONS, DOSSIERS = "conversations", "dossiers of ilcp.tasks.case_files: there were no conversations in --data"
TRAINING, TEST = 1500, 200  # dossiers, where there are no conversations; TEST is also how many cases are measured
PER_KIND = {"lookup": 3, "absent": 1, "join": 0, "code": 0}  # a join asks for two facts, and a topic is one
REPETITIONS = 60  # of the times
TEXTS = ("head", "zstd")  # a language model codes text token by token, which takes longer than all the rest
SMOKE_CASES, SMOKE_TEST, SMOKE_FACTS = 160, 4, 3  # the fewest that train, and short dossiers
SMOKE: dict[str, Any] = dict(
    test_cases=16,
    codec=dict(width=32, heads=4, speller_width=32, blocks=1),
    training=dict(
        steps=2,
        contexts=4,
        questions=2,
        warmup_steps=1,
        facts_steps=1,
        facts_contexts=4,
        reader_contexts=2,
        validation_contexts=4,
        validate_every=2,
    ),
)
Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WORKS)
    parser.add_argument("names", nargs="*", help="sender and receiver, as their folders are called")
    parser.add_argument("--draft", type=Path, required=True, help="where the JSON goes")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    record = WORKS[args.what](args)
    write_whole(args.draft, json.dumps(record, indent=1) + "\n")
    sys.exit(1 if any("failed" in check for check in record.get("checks", {}).values()) else 0)


# --- the smoke stage -------------------------------------------------------------------------------------------------


def smoke(args: argparse.Namespace) -> Record:
    """Does on the device, with the smallest models there are, what the other items do; says what fails, and goes on."""
    checks: dict[str, Record] = {}
    works: dict[str, Callable[[argparse.Namespace], Record]] = {
        "computes": product,
        "trains and measures": tiny_training,
        "steps at real sizes": tiny_scale,
    }
    for name, work in works.items():
        started = time.perf_counter()
        try:
            checks[name] = work(args)
        except Exception as error:  # whatever it is, it is to be said now and not in the middle of an hour
            traceback.print_exc()
            checks[name] = {"failed": f"{type(error).__name__}: {error}"}
        checks[name]["seconds"] = round(time.perf_counter() - started, 1)
        shown = checks[name].get("failed", "as expected")
        print(f"{name}: {shown} ({checks[name]['seconds']} s)", flush=True)
    identities = asdict(ilcp.load(embedded.HERE / "codec").trained)
    return {"n": SMOKE_TEST, "models": {side: identities[side] for side in ("sender", "receiver")}, "checks": checks}


def product(args: argparse.Namespace) -> Record:
    """Multiplies two matrices in bfloat16."""
    left = torch.ones(256, 256, device=args.device, dtype=torch.bfloat16)
    found = float((left @ left).sum())
    if found != 256.0**3:
        raise RuntimeError(f"expected {256.0**3} as the sum of a product of ones, got {found}")
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def tiny_training(args: argparse.Namespace) -> Record:
    """Trains the embedded pair for a few steps and measures what came out, as the items of other models do."""
    args.work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.work) as scratch:
        folder = Path(scratch)
        for split, n in (("train", SMOKE_CASES), ("test", SMOKE_TEST)):
            write_jsonl(folder / f"{split}.jsonl", dossiers(split, args.seed, n, facts=SMOKE_FACTS))
        given = vars(args) | {"names": ["sender", "receiver"], "models": embedded.HERE, "data": folder, "work": folder}
        tiny = argparse.Namespace(**given)
        trained, measured = train(tiny, **SMOKE), measure(tiny, repetitions=0)
        return {"evidence": trained["evidence"], "n": measured["n"], "verdict": measured["verdict"]}


def tiny_scale(args: argparse.Namespace) -> Record:
    """Takes the time of every step of a hand-off with the size that is for tests."""
    machine = Machine(torch.device(args.device), torch.bfloat16)
    made = measure_steps(Document(Hop(("tiny", "tiny"), machine, args.seed), 64, args.seed), MIN_REPETITIONS)
    return {"message / text": made["figures"]["message / text"]["value"]}


# --- two models ------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, **changes: Any) -> Record:
    """Trains a codec by the recipe with these changes, or goes on with a training that was ended."""
    sender, receiver = (found(args, name) for name in args.names)
    data, what = cases_of(args, "train")
    out = codec_of(args)
    if not (out / "config.json").exists() or evidence_of(out) is None:
        ends = dict(sender=sender, receiver=receiver, data=data, out=out)
        ilcp.train(RECIPE, **ends, **changes, device=args.device, seed=args.seed, resume=is_begun(out))
    return {"data": what, **outcome(out), "figures": load_report(report_of(out)).to_dict()["figures"]}


def measure(args: argparse.Namespace, repetitions: int = REPETITIONS) -> Record:
    """Measures that codec on test cases, with every control; what was measured stays, arm by arm."""
    sender, receiver = (found(args, name) for name in args.names)
    data, what = cases_of(args, "test")
    out = codec_of(args)
    pair = ilcp.load_pair(out, sender=sender, receiver=receiver, allow_unmeasured=True, device=args.device)
    samples = (case.context for case in read_jsonl(cases_of(args, "train")[0]))
    texts = equal_texts(pair.sender, samples)
    report = run(
        pair.sender,
        pair.receiver,
        tuple(islice(read_jsonl(data), TEST)),
        task=data.stem,
        seed=args.seed,
        texts={name: texts[name] for name in TEXTS},
        repetitions=repetitions,
        keep=args.work / f"{out.name}-report.json",
    )
    record = report.to_dict()
    models = report.provenance["models"]
    return {"data": what, "n": report.n, "models": models, "verdict": record["verdict"], "figures": record["figures"]}


def outcome(folder: Path) -> Record:
    """Returns what a finished training says of itself, without the paths of a machine."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    training, evidence = config["training"], config["evidence"]
    kept = ("recipe", "cases", "steps", "minutes", "tokens_per_s", "time_shares", "step_s", "receiver_pass_s", "reader")
    models = {side: config["trained"][side] for side in ("sender", "receiver")}
    shown = {name: training[name] for name in kept if name in training}
    return {"n": evidence["n"], "models": models, "training": shown, "evidence": evidence, "spec": config["spec"]}


def codec_of(args: argparse.Namespace) -> Path:
    """Returns the folder of the codec between the two named models."""
    return args.work / "-".join(args.names)


def report_of(codec: Path) -> Path:
    """Returns the file of the report that a training leaves beside its codec."""
    return codec.with_name(codec.name + ".run") / "report.json"


def found(args: argparse.Namespace, name: str) -> Path:
    """Returns where a model is.

    Raises:
        ConfigError: it is not there.
    """
    place = model_at(args.models, name)
    if place is None:
        raise ConfigError(f"expected a model {name} in {args.models}, got none: carry it there (see gpu.py pack)")
    return place


def cases_of(args: argparse.Namespace, split: str) -> tuple[Path, str]:
    """Returns the file of a split and what is in it: conversations where both files are there, else dossiers."""
    if args.data is not None and all((args.data / f"{name}.jsonl").is_file() for name in ("train", "test")):
        return args.data / f"{split}.jsonl", CONVERSATIONS
    file = args.work / f"dossiers-{split}.jsonl"
    if not file.exists():
        write_jsonl(file, dossiers(split, args.seed, TRAINING if split == "train" else TEST))
    return file, DOSSIERS


def dossiers(split: str, seed: int, n: int, facts: int = PRESENT) -> Iterable[Case]:
    """Yields dossiers with questions that ask for one fact each, and give nothing to choose from."""
    for number, case in enumerate(case_files(split, seed, n, facts=facts)):
        asked = thin(case, PER_KIND, number).questions
        yield replace(case, questions=tuple(replace(question, choices=None) for question in asked))


WORKS: dict[str, Callable[[argparse.Namespace], Record]] = {"smoke": smoke, "train": train, "measure": measure}

if __name__ == "__main__":
    main()
