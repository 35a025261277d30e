"""Conversations between people handed over between pretrained models that others made: trained, measured, tabulated.

    make real                                                   # the models, into benchmarks/real
    python benchmarks/conversations.py train smollm2-smollm2    # hours; the same command goes on with a stopped one
    python benchmarks/conversations.py measure smollm2-smollm2  # hours; the same
    python benchmarks/conversations.py tables                   # what was measured, beside what it must reach

The pairs are smollm2-smollm2, smollm2-gemma3 and minilm-smollm2: sender, receiver. ``conversations/PAIR.toml`` is the
recipe. ``--data`` is a folder of train.jsonl and test.jsonl as benchmarks/README.md describes ("Conversations"): the
data set is not part of this repository, and nothing of it may come in. So is what ``--runs`` holds: the training file,
the codec, and the reports with every question and answer. ``results/conversations-PAIR.json`` has the figures alone.

Every conversation of the test split is asked about, alone and in histories of two and four of one customer. ``measure``
says first how long it will take; each arm is kept as soon as it is done. ``--without 'head-*'`` leaves arms out.

``measure --learned`` asks about the conversations that the codec learned from in place of the test split, into
``results/learned-PAIR.json``: behind ``train --conversations 240`` that is what an over-fitted codec reaches.
``measure --times`` takes the first tokens of one and of four conversations alone, of any codec of the pair, into
``results/times-PAIR.json``.
"""

import argparse
import json
import time
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import conversations_data as data
import tables
import tables_conversations
import torch
from conversations_arms import ComputedLm, Zstd, compared, true_facts
from conversations_figures import record_of
from gpu_parts import model_at
from rich.console import Console

import ilcp
from ilcp.codec.folder import training_of
from ilcp.codec.memory import TextMemory
from ilcp.embedded import Pair, load_pair
from ilcp.measure import Report, cost, load_report, run, save_report
from ilcp.measure.arms import ArmInput, ArmSpec
from ilcp.measure.items import Items
from ilcp.measure.scoring import Scorer
from ilcp.measure.table import show
from ilcp.measure.verified import ENVELOPE_BYTES
from ilcp.models.loading import load_model
from ilcp.tasks import Case, read_jsonl
from ilcp.tasks.written import write_jsonl
from ilcp.training.begun import is_begun
from ilcp.training.config import DEFAULT_RANK
from ilcp.training.data import split
from ilcp_codecs.text import HeadCodec, LmCodec, TailCodec

HERE = Path(__file__).parent
RECIPES = HERE / "conversations"
RUNS = Path("benchmarks/runs/conversations")  # as the recipes call it
ON_GPU: dict[
    str, Any
] = {  # a step of few contexts takes as long as one of many: fewer steps of more go before a recipe
    "states_gb": 0.0,  # a GPU computes them faster than a disk gives them back
    "training": dict(
        contexts=32,
        reader_contexts=32,
        facts_contexts=64,
        facts_steps=2000,
        learning_rate=3e-4,
        reader_learning_rate=8e-4,
        adapter_learning_rate=1.5e-4,
        facts_learning_rate=1.5e-3,
        warmup_steps=30,
        validate_every=60,
    ),
}
PAIRS = ("smollm2-smollm2", "smollm2-gemma3", "minilm-smollm2")
LENGTHS = {1: (80, 40, 20, 10), 2: (160, 80, 40, 20, 10), 4: (320, 160, 80, 40, 20, 10)}  # by conversations in a row
BUDGETS = (60, 100, 140)  # bytes on the wire of messages that were read back
CONTROLS = ("text", "none", "mismatched", "zero", "random", "continuous")
TRUE_FACTS = "true-facts"
TEXTS = ("head", "tail", "zstd", "lm")
SAMPLES = 2000  # training conversations that zstd's dictionary is made of
TIMED = (1, 4)  # conversations in a row whose first token is timed
LONGEST_TOKENS = 2048  # that it is timed for
PROBED = 4  # cases that tell how long a measurement takes
CHARACTERS_PER_BYTE = {"head": 1.0, "tail": 1.0, "literals-only": 1.0, "zstd": 2.5, "lm": 9.0}  # for that alone
TIMES_READ = {"verified": 6.0, "literals-only": 6.0}  # the questions are asked so often for one message


def main() -> None:
    parser = options()
    args = parser.parse_args()
    if args.command == "tables":
        print(tables_conversations.goals(tables.RESULTS, tables.table, tables.number))
        print(tables_conversations.conversations(tables.RESULTS, tables.table, tables.number))
        return
    for name in ("train.jsonl", "test.jsonl"):
        if not (args.data / name).is_file():
            parser.error(f"expected {args.data / name}, got none: benchmarks/README.md says where it is from")
    if args.command == "measure" and args.learned and tuple(args.histories) != (1,):
        parser.error("expected --histories 1 beside --learned: of histories, none is as the codec learned from it")
    if args.command == "measure" and args.times and not args.repetitions:
        parser.error("expected --repetitions of 50 or more beside --times, got 0: these are what is asked for")
    torch.set_num_threads(args.threads)
    train(args) if args.command == "train" else measure(args)


def options() -> argparse.ArgumentParser:
    """Returns what the command line takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train_parser, measure_parser = (commands.add_parser(name) for name in ("train", "measure"))
    for each in (train_parser, measure_parser):
        each.add_argument("pair", choices=PAIRS)
        each.add_argument("--models", type=Path, default=HERE / "real")
        each.add_argument("--data", type=Path, default=HERE / "data" / "conversations")
        each.add_argument("--runs", type=Path, default=HERE / "runs" / "conversations")
        each.add_argument("--seed", type=int, default=7, help="of the histories, and of what is drawn in measuring")
        each.add_argument("--threads", type=int, default=2)
        each.add_argument("--device", default="cpu", help="of both models: cuda, cuda:1 ...")
    train_parser.add_argument("--characters", type=int, default=1100, help="train on conversations of fewer")
    train_parser.add_argument("--conversations", type=int, help="train on so many of them; without it, on all")
    train_parser.add_argument("--steps", type=int, help="in place of the recipe's")
    train_parser.add_argument("--minutes", type=float, help="the same")
    train_parser.add_argument("--adapter", type=Path, help="low-rank weights that read already, to begin with")
    measure_parser.add_argument("--codec", type=Path, help="a folder; without it, what train made")
    measure_parser.add_argument("--histories", type=int, nargs="+", choices=tuple(LENGTHS), default=tuple(LENGTHS))
    measure_parser.add_argument("--n", type=int, help="so many cases of each size; without it, all")
    instead = measure_parser.add_mutually_exclusive_group()
    instead.add_argument("--learned", action="store_true", help="on what the codec learned from")
    instead.add_argument("--times", action="store_true", help="the first tokens, with no arms but text and none")
    measure_parser.add_argument("--without", nargs="+", default=[], metavar="ARM", help="a name, or a pattern of names")
    measure_parser.add_argument("--repetitions", type=int, default=50, help="of the times; 0: not measured")
    measure_parser.add_argument("--check-lm", type=int, default=0, metavar="N", help="code N texts for real as well")
    measure_parser.add_argument("--out", type=Path, default=HERE / "results")
    measure_parser.add_argument("--commit", help="of this code, where it lies without its repository")
    commands.add_parser("tables")
    return parser


def train(args: argparse.Namespace) -> None:
    """Trains the codec of a pair by its recipe; goes on with what a stopped call left."""
    conversations = data.read(args.data / "train.jsonl", args.characters)[: args.conversations]
    cases = data.mixed(conversations, args.seed)
    file = args.runs / "train.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(file, cases)
    print(f"{len(cases)} cases of {len(conversations)} conversations in {file}", flush=True)
    sender, receiver = models_of(args)
    codec = ilcp.train(
        RECIPES / f"{args.pair}.toml",
        resume=is_begun(args.runs / args.pair / "codec"),
        sender=sender,
        receiver=receiver,
        data=file,
        out=args.runs / args.pair / "codec",
        adapter=args.adapter or adapter_of(args),
        device=args.device,
        **changes_of(args),
        steps=args.steps,
        minutes=args.minutes,
    )
    print(codec.evidence)


def models_of(args: argparse.Namespace) -> list[Path]:
    """Returns where the pair's models are: folders, or GGUF files of their names."""
    return [model_at(args.models, name) or args.models / name for name in args.pair.split("-")]


def changes_of(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what goes before the recipe on this device, and with a receiver that reads already."""
    changes: dict[str, Any] = {} if args.device == "cpu" else dict(ON_GPU)
    if args.adapter:
        changes["training"] = {**changes.get("training", {}), "reader_share": 0.0}
        changes["adapter_rank"] = DEFAULT_RANK  # nothing said: it is the folder's
    return changes


def adapter_of(args: argparse.Namespace) -> Path | None:
    """Returns the low-rank weights of another pair's receiver that this pair's recipe begins with, where they are."""
    named = tomllib.loads((RECIPES / f"{args.pair}.toml").read_text(encoding="utf-8")).get("adapter")
    return args.runs / Path(named).relative_to(RUNS) if named else None


def measure(args: argparse.Namespace) -> None:
    """Measures the codec of a pair in every arm, on histories of every size, and writes the figures."""
    sender, receiver = models_of(args)
    codec = args.codec or args.runs / args.pair / "codec"
    pair = load_pair(codec, sender=sender, receiver=receiver, allow_unmeasured=True, device=args.device)
    lm = ComputedLm(*load_model(receiver, dtype="float32", device=args.device))  # as it came, without the adapter
    samples = [one.case.context for one in data.read(args.data / "train.jsonl")[:SAMPLES]]
    texts = {"head": HeadCodec(), "tail": TailCodec(), "zstd": Zstd.fit(samples), "lm": lm}
    conversations = learned(args, pair.path) if args.learned else data.read(args.data / "test.jsonl")
    reports: dict[int, Report] = {}
    for size in sorted({*args.histories} & {*TIMED} if args.times else args.histories):
        cases = data.asked(data.histories(conversations, size, args.seed))[: args.n]
        reports[size] = measured(pair, cases, size, texts, args)
        show(reports[size], Console())
    checked = check_lm(lm, conversations, args.check_lm) if args.check_lm else None
    asked = args.runs / "train.jsonl" if args.learned else args.data / "test.jsonl"
    record = record_of(args.pair, args.seed, asked, pair.path, reports, checked)
    if args.commit:
        record["provenance"]["commit"] = args.commit
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{kind_of(args)}-{args.pair}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{file}: {', '.join(f'{len(r.items.cases)} cases of {s}' for s, r in reports.items())}", flush=True)


def kind_of(args: argparse.Namespace) -> str:
    """Names what is measured, in the names of files."""
    return "learned" if args.learned else "times" if args.times else "conversations"


def learned(args: argparse.Namespace, codec: Path) -> list[data.Conversation]:
    """Returns the conversations, none of them part of a history, that the training of this codec learned from."""
    made = training_of(codec)
    sizes = {name: made["cases"][name] for name in ("validation", "test")}
    cases = split(list(read_jsonl(args.runs / "train.jsonl")), **sizes, seed=made["seed"]).training
    if len(cases) != made["cases"]["training"]:
        raise SystemExit(f"expected the {made['cases']['training']} cases that {codec} learned from, got {len(cases)}")
    return [data.Conversation(case) for case in cases if "+" not in case.id]


def measured(pair: Pair, cases: Sequence[Case], size: int, texts: Any, args: argparse.Namespace) -> Report:
    """Measures histories of one size, and keeps the report in the run's folder as it grows."""
    keep = args.runs / args.pair / f"{'report' if kind_of(args) == 'conversations' else kind_of(args)}-{size}.json"
    known = ["text", "none"] if args.times else arms_of(size)
    wanted = [name for name in known if not any(fnmatchcase(name, each) for each in args.without)]
    report = kept(keep, cases, args.seed, wanted)
    if report is None:
        print(f"{len(cases)} cases of {size}, {len(wanted)} arms: {expected(pair, cases, wanted)} in all", flush=True)
        report = run(
            pair.sender,
            pair.receiver,
            cases,
            task=f"{size} conversations in a row",
            seed=args.seed,
            lengths=LENGTHS[size],
            texts=texts,
            arms=[name for name in wanted if name != TRUE_FACTS],
            budgets=BUDGETS,
            repetitions=0,
            keep=keep,
            progress=True,
        )
    cases = report.kept(cases)
    if TRUE_FACTS in wanted and TRUE_FACTS not in report.arms and hasattr(pair.receiver.codec, "network"):
        spec = ArmSpec(TRUE_FACTS, "limit", partial(ArmInput, true_facts(pair.receiver, cases)))
        arm = Scorer(pair.receiver, cases).arm(spec, spec.make(), None)
        report = replace(report, arms={**report.arms, spec.name: arm})
        save_report(report, keep)
    if args.repetitions and size in TIMED and report.cost is None:
        contexts, question = [case.context for case in cases], cases[0].questions[0].text
        ends = pair.sender, pair.receiver, contexts
        took = cost(*ends, question=question, n=args.repetitions, longest_tokens=LONGEST_TOKENS, progress=True)
        report = replace(report, cost=took)
        save_report(report, keep)
    return report


def arms_of(size: int) -> list[str]:
    """Returns the names of the arms for histories of a size."""
    rivals = [*LENGTHS[size], *(one - ENVELOPE_BYTES for one in BUDGETS if one - ENVELOPE_BYTES not in LENGTHS[size])]
    return [
        *CONTROLS,
        TRUE_FACTS,
        "message",
        *(f"message-{length}" for length in LENGTHS[size][1:]),
        *(f"{name}-{length}" for length in rivals for name in TEXTS),
        *(f"{name}-{budget}" for budget in BUDGETS for name in ("verified", "literals-only")),
    ]


def kept(keep: Path, cases: Sequence[Case], seed: int, wanted: Sequence[str]) -> Report | None:
    """Returns the finished report of these cases, if it has all arms; opens it again where some are missing."""
    report = load_report(keep) if keep.exists() else None
    if report is None or not report.complete:
        return None
    if (report.items, report.seed) != (Items.of(report.kept(cases)), seed):
        return None
    done = {TRUE_FACTS, *report.arms, *(note.partition(":")[0] for note in report.notes)}
    if done.issuperset(wanted):
        return report
    save_report(replace(report, complete=False), keep)
    return None


def expected(pair: Pair, cases: Sequence[Case], wanted: Sequence[str]) -> str:
    """Says about how long a measurement takes; a case that fails when it is tried is the measurement's to leave out."""
    try:
        return f"about {_expected_s(pair, cases, wanted) / 60:.0f} minutes"
    except Exception as error:  # of any kind
        return f"who knows how long, since one that was tried failed ({type(error).__name__}),"


def _expected_s(pair: Pair, cases: Sequence[Case], wanted: Sequence[str]) -> float:
    """Estimates the seconds of a measurement from asking a few cases with nothing and with the full text."""
    probed = cases[:PROBED]
    scorer = Scorer(pair.receiver, probed)
    took = []
    for memories in ([None] * len(probed), [TextMemory(case.context) for case in probed]):
        started = time.perf_counter()
        scorer.ask(memories)
        took.append((time.perf_counter() - started) / len(probed))
    characters = sum(len(case.context) for case in cases) / len(cases)
    per_case = 0.0
    for arm in wanted:
        name, _, size = arm.rpartition("-")
        known = size.isdigit() and name in CHARACTERS_PER_BYTE
        share = min(1.0, CHARACTERS_PER_BYTE[name] * int(size) / characters) if known else float(arm == "text")
        per_case += TIMES_READ.get(name, 1.0) * (took[0] + share * (took[1] - took[0]))
    return per_case * len(cases)


def check_lm(lm: ComputedLm, conversations: Sequence[data.Conversation], n: int) -> dict[str, float]:
    """Compares the computed cut with that of the real coder, which takes half a minute a conversation."""
    texts = [one.case.context for one in conversations[:n]]
    found = compared(lm, LmCodec(lm.model, lm.tokenizer), texts, LENGTHS[1])
    computed, coded = (sum(column) / len(found) for column in zip(*found, strict=True))
    print(f"computed: {computed:.1f} characters, coded: {coded:.1f} (mean over {n} texts and their sizes)", flush=True)
    return {"texts": n, "computed_characters": computed, "coded_characters": coded}


if __name__ == "__main__":
    main()
