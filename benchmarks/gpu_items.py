"""What ``gpu.py`` starts, each in a process of its own: the smoke stage, a training, a measurement, an alignment.

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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import conversations
import kv_align
import torch
from gpu_parts import model_at
from scale import MIN_REPETITIONS
from scale import measure as measure_steps
from scale_steps import Document, Hop, Machine

import ilcp
from ilcp import embedded
from ilcp.codec.folder import evidence_of, load_to_measure, training_of
from ilcp.errors import ConfigError
from ilcp.files import write_whole
from ilcp.measure import run
from ilcp.tasks import Case, case_files, thin
from ilcp.tasks.written import write_jsonl
from ilcp.training.log import LOG

KEPT = ("recipe", "cases", "steps", "minutes", "step_s", "tokens_per_s", "time_shares", "reader")
WITHOUT = ("verified-*", "literals-only-*")  # the message of one case after the other, which a GPU does no faster
PER_KIND = {"lookup": 3, "absent": 1, "join": 0, "code": 0}  # a join asks for two facts, and a topic is one
SMOKE_CASES, SMOKE_TEST, SMOKE_FACTS = 160, 4, 3  # the fewest that train, and short dossiers
SMOKE: dict[str, Any] = dict(
    adapt_receiver=True,
    dtype="bfloat16",
    too_long="skip",
    test_cases=16,
    codec=dict(width=32, heads=4, speller_width=32, blocks=1),
    training=dict(
        minutes=1.0,
        teacher_floor=0.0,
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
    parser.add_argument("pair", nargs="?", choices=conversations.PAIRS)
    parser.add_argument("--minutes", type=float, help="of a training")
    parser.add_argument("--draft", type=Path, required=True, help="where the JSON goes")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="where the figures of a pair go")
    parser.add_argument("--commit")
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
    """Trains the embedded pair for a few steps with an adapted receiver, and measures what came out."""
    args.work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.work) as scratch:
        data, codec = Path(scratch) / "train.jsonl", Path(scratch) / "codec"
        write_jsonl(data, dossiers("train", args.seed, SMOKE_CASES))
        models: dict[str, Any] = {side: embedded.HERE / side for side in ("sender", "receiver")}
        ilcp.train(**models, **SMOKE, data=data, out=codec, device=args.device, seed=args.seed)
        pair = ilcp.load_pair(codec, **models, allow_unmeasured=True, device=args.device)
        cases, found = tuple(dossiers("test", args.seed, SMOKE_TEST)), evidence_of(codec)
        assert found is not None
        report = run(pair.sender, pair.receiver, cases, task="dossiers", seed=args.seed, texts={}, repetitions=0)
        return {"evidence": asdict(found), "n": report.n, "verdict": report.to_dict()["verdict"]}


def dossiers(split: str, seed: int, n: int) -> Iterable[Case]:
    """Yields short dossiers with questions that ask for one fact each, and give nothing to choose from."""
    for number, case in enumerate(case_files(split, seed, n, facts=SMOKE_FACTS)):
        asked = thin(case, PER_KIND, number).questions
        yield replace(case, questions=tuple(replace(question, choices=None) for question in asked))


def tiny_scale(args: argparse.Namespace) -> Record:
    """Takes the time of every step of a hand-off with the size that is for tests."""
    machine = Machine(torch.device(args.device), torch.bfloat16)
    made = measure_steps(Document(Hop(("tiny", "tiny"), machine, args.seed), 64, args.seed), MIN_REPETITIONS)
    return {"message / text": made["figures"]["message / text"]["value"]}


# --- two models ------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> Record:
    """Trains a pair's codec by its recipe, or goes on with a training that was ended."""
    codec = args.work / args.pair / "codec"
    if not (codec / "config.json").exists() or evidence_of(codec) is None:
        conversations.train(_given(args, "train", characters=sys.maxsize, minutes=args.minutes))
    return outcome(codec)


def outcome(codec: Path) -> Record:
    """Returns what a training says of itself, without the paths of a machine; its evidence where it was measured."""
    evidence, training, trained = evidence_of(codec), training_of(codec), asdict(load_to_measure(codec).trained)
    shown = {name: training[name] for name in KEPT if name in training}
    *_, last = (codec / LOG).read_text(encoding="utf-8").splitlines()
    return {
        "n": evidence.n if evidence else training["cases"]["validation"],
        "models": {side: trained[side] for side in ("sender", "receiver")},
        "training": shown | {"validation": json.loads(last)},
        "evidence": asdict(evidence) if evidence else None,
    }


def measure(args: argparse.Namespace) -> Record:
    """Measures that codec on all test conversations; what was measured stays, arm by arm."""
    given = _given(args, "measure", repetitions=0, out=args.results, **({"commit": args.commit} if args.commit else {}))
    given.without = WITHOUT
    conversations.measure(given)
    file = args.results / f"conversations-{args.pair}.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    n = {size: found["n"] for size, found in record["histories"].items()}
    return {"n": n["1"], "models": record["provenance"]["models"], "file": file.name, "histories": n}


def align(args: argparse.Namespace) -> Record:
    """Maps the cache of a pair's first model to its second's, and measures every stage; nothing is gone on with."""
    given = _given(args, "train")
    sender, receiver = given.pair.split("-")
    file = args.results / f"kv-align-{given.pair}.json"
    words = {
        "sender": sender,
        "receiver": receiver,
        "models": given.models,
        "data": given.data / "train.jsonl",
        "device": given.device,
        "minutes": args.minutes,
        "seed": given.seed,
        "json": file,
        **({"commit": args.commit} if args.commit else {}),
    }
    line = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    record = kv_align.aligned(kv_align.options().parse_args(line))
    return {"n": record["facts"], "models": record["provenance"]["models"], "file": file.name}


def _given(args: argparse.Namespace, command: str, **more: Any) -> argparse.Namespace:
    """Returns the arguments of a command of ``conversations.py``, all others as they are without a word.

    Raises:
        ConfigError: a model or the data is not there.
    """
    if args.data is None or not all((args.data / f"{name}.jsonl").is_file() for name in ("train", "test")):
        raise ConfigError(f"expected train.jsonl and test.jsonl in --data, got {args.data}: carry them there")
    for name in args.pair.split("-"):
        if model_at(args.models, name) is None:
            raise ConfigError(f"expected a model {name} in {args.models}, got none: carry it there (see gpu.py pack)")
    given = {name: getattr(args, name) for name in ("models", "data", "device", "seed")} | {"runs": args.work} | more
    line = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    return conversations.options().parse_args([command, args.pair, *line])


WORKS: dict[str, Callable[[argparse.Namespace], Record]] = {
    "smoke": smoke,
    "train": train,
    "measure": measure,
    "align": align,
}

if __name__ == "__main__":
    main()
