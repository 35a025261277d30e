"""Measures a latent trace on tasks whose facts are split between two agents: what the prompts bring, what the steps.

    python benchmarks/trace.py dossier --seeds 0 1 2 --out benchmarks/results/trace-dossier.json
    python benchmarks/trace.py graph --models runs/symbols-{0,1,2} --out benchmarks/results/trace-graph.json
    python benchmarks/trace.py conversations --data .../conversations --out benchmarks/results/trace-conversations.json

Two frozen agents read half of each case and take latent steps; a reader of the same model, with low-rank weights, is
asked about both halves. Each arm's reader is tuned as the others are. What is there already in --out is not run again.
"""

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from trace_arms import COMPACT, Arm, Setting, run

import ilcp
from ilcp.measure import provenance
from ilcp.models.fingerprint import identify
from ilcp.models.loading import load_model
from ilcp.tasks import Case, case_files, graphs, read_jsonl
from ilcp.training.hyperparameters import Hyperparameters
from ilcp_codecs.trace import Writer, cut, written
from ilcp_codecs.trace.plan import Plan

ROOT = Path(__file__).parent
AGENTS = ("first", "second")
STEPS = 10
RULES = ("ridge", "soft", "norm", "raw", "token", "pause")
SWEEP = (0, 1, 2, 5, 10, 20, 40)
LATENT = "100 bytes"
SAY = "Summarise the text above."
SMALL: dict[str, Any] = dict(
    learning_rate=1e-3,
    adapter_learning_rate=1e-3,
    adapter_after=0.0,
    warmup_steps=10,
    validation_contexts=4,
    blank_share=0.0,
    bfloat16=False,
)


def arms_of(options: argparse.Namespace, says: Callable[[str, int], str]) -> list[Arm]:
    """All arms of a task."""
    plan = Plan(AGENTS, options.steps_latent, options.rule, options.prompt)
    one = Plan(("everything",), 0, "norm", options.prompt)
    main = f"trace, {options.rule}"
    learned = replace(plan, rule="learned")
    arms = [
        Arm("prompts, no steps", replace(plan, steps=0)),
        Arm(main, plan),
        Arm("its steps shuffled", plan, control="shuffled steps", tuned_as=main),
        Arm("another case's steps", plan, control="another's steps", tuned_as=main),
        Arm("its steps zero", plan, control="zero steps", tuned_as=main),
        Arm("its steps left out", plan, control="no steps", tuned_as=main),
        Arm("another case's trace", plan, mismatched=True, tuned_as=main),
        Arm("zero trace", plan, control="zero trace", tuned_as=main),
        Arm(COMPACT, plan, control=COMPACT, tuned_as=main),
        Arm("trace, pause", replace(plan, rule="pause")),
        Arm("trace, shuffled and tuned so", plan, control="shuffled steps"),
        Arm("everything, read by the reader", one, text=lambda text: text),
        Arm("first agent alone", one, of=lambda text: cut(text, 2)[0]),
        Arm("second agent alone", one, of=lambda text: cut(text, 2)[1]),
        Arm("texts of as many tokens", one, text=lambda text: says(text, options.steps_latent)),
        Arm("texts of 100 bytes", one, text=lambda text: "\n".join(head(part, 50) for part in cut(text, 2))),
        Arm("untrained trace", plan, tuned=False),
        *(Arm(f"trace, {rule}", replace(plan, rule=rule)) for rule in RULES if rule not in (options.rule, "pause")),
        *(Arm(f"{steps} steps", replace(plan, steps=steps)) for steps in SWEEP if steps not in (0, plan.steps)),
        Arm("trace, learned", learned, learns_rule=True),
        Arm("trace, learned pause", replace(plan, rule="pause"), learns_rule=True),
        *(Arm(f"steps alone, {rule}", replace(plan, rule=rule, keep="steps")) for rule in (options.rule, "pause")),
        Arm("steps alone, learned", replace(learned, keep="steps"), learns_rule=True),
        Arm("trace, learned and distilled", learned, learns_rule=True, kl_weight=0.5, states_weight=0.5),
    ]
    if options.task == "graph":
        arms += [
            Arm("trace, learned, frontier", learned, learns_rule=True, frontier_weight=1.0),
            Arm("trace, learned pause, frontier", replace(plan, rule="pause"), learns_rule=True, frontier_weight=1.0),
        ]
    return [arm for arm in arms if not options.arms or arm.name in options.arms]


def head(text: str, most: int) -> str:
    return text.encode()[:most].decode(errors="ignore")


class Says:
    """What text agents say in place of a trace: computed once and kept."""

    def __init__(self, model: Any, tokenizer: Any, prompt: str, file: Path, instruction: str):
        self.writers = [Writer(model, tokenizer, role=role, steps=0, rule="norm", prompt=prompt) for role in AGENTS]
        self.file, self.instruction = file, instruction
        self.known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}

    def __call__(self, text: str, tokens: int) -> str:
        name = hashlib.blake2b(f"{tokens} {text}".encode(), digest_size=16).hexdigest()
        if name not in self.known:
            said: list[str] = []
            for writer, part in zip(self.writers, cut(text, len(AGENTS)), strict=True):
                said.append(writer.say(part, "\n".join(said), tokens=tokens, instruction=self.instruction))
            self.known[name] = "\n".join(said)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.known))
        return self.known[name]


def dossier(options: argparse.Namespace, seed: int) -> Setting:
    models = [ilcp.load_pair(allow_unmeasured=True).receiver for _ in range(2)]
    ends = [(each.model, each.tokenizer) for each in models]
    return Setting(
        ends[0],
        ends[1],
        list(case_files("train", 100 + seed, options.train)),
        list(case_files("validation", 7, 16)),
        list(case_files("test", 7, options.test)),
        Hyperparameters(steps=options.steps, contexts=8, questions=8, validate_every=options.steps, **SMALL),
        options.folder,
    )


def graph(options: argparse.Namespace, seed: int) -> Setting:
    folder = options.models[seed % len(options.models)]
    ends = [load_model(str(folder)) for _ in range(2)]
    made = {
        split: list(graphs(split, seed if split == "train" else 7, n))
        for split, n in (("train", options.train), ("validation", 16), ("test", options.test))
    }
    far = list(graphs("far", 7, options.test, hops=(5, 6)))
    known = {one.case.context: one.case.frontier for own in (*made.values(), far) for one in own}
    ids = ends[0][1].get_vocab()

    def frontier(text: str) -> list[list[list[int]]]:
        return [[[ids[node] for node in nodes] for nodes in agent] for agent in known[text]]

    return Setting(
        ends[0],
        ends[1],
        [one.case for one in made["train"]],
        [one.case for one in made["validation"]],
        [one.case for one in (*made["test"], *far)],
        Hyperparameters(steps=options.steps, contexts=32, questions=4, validate_every=options.steps, **SMALL),
        options.folder,
        frontier=frontier,
    )


def conversations(options: argparse.Namespace, seed: int) -> Setting:
    ends = [load_model(str(options.models[0]), dtype="bfloat16") for _ in range(2)]
    short = {
        split: [case for case in read_jsonl(options.data / f"{split}.jsonl") if len(case.context) < options.characters]
        for split in ("train", "validation", "test")
    }
    rng = random.Random("conversations of the trace")
    return Setting(
        ends[0],
        ends[1],
        rng.sample(short["train"], options.train),
        rng.sample(short["validation"], 4),
        rng.sample(short["test"], options.test),
        Hyperparameters(
            steps=options.steps,
            contexts=options.contexts,
            questions=6,
            validate_every=options.steps,
            **SMALL | {"bfloat16": True, "adapter_learning_rate": 5e-4},
        ),
        options.folder,
        adapter=options.adapter,
        save=options.save,
    )


TASKS: dict[str, Callable[[argparse.Namespace, int], Setting]] = {
    "dossier": dossier,
    "graph": graph,
    "conversations": conversations,
}
USUAL: dict[str, dict[str, Any]] = {
    "dossier": dict(train=400, test=100, steps=150, prompt=" {text}"),
    "graph": dict(train=2000, test=200, steps=150, prompt=" {text}"),
    "conversations": dict(train=160, test=60, steps=40, prompt="{text}\n"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--models", type=Path, nargs="+", default=[ROOT / "real" / "smollm2"])
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--adapter", type=Path, default=None)
    parser.add_argument("--save", type=Path, default=None, help="where the tuned low-rank weights of one arm go")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=None, help="of traces and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[])
    parser.add_argument("--train", type=int)
    parser.add_argument("--test", type=int)
    parser.add_argument("--steps", type=int, help="of tuning")
    parser.add_argument("--steps-latent", type=int, default=STEPS)
    parser.add_argument("--rule", choices=RULES, default="soft", help="of the trace that every control is about")
    parser.add_argument("--prompt")
    parser.add_argument("--contexts", type=int, default=2, help="conversations a step")
    parser.add_argument("--characters", type=int, default=900)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for name, value in USUAL[options.task].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.folder = options.folder or options.out.with_suffix(".work")
    torch.set_num_threads(options.threads)
    raw = Raw(options)
    for seed in options.seeds:
        setting = TASKS[options.task](options, seed)
        said = options.folder / f"said-{seed if options.task == 'graph' else 0}.json"
        arms = arms_of(options, Says(*setting.writer, options.prompt, said, SAY))
        raw.begin(seed, setting)
        left = [arm for arm in arms if not raw.has(arm.name, seed)]
        again = {arm.tuned_as or arm.name for arm in left}  # a control needs its reader
        run(setting, [arm for arm in arms if arm in left or arm.name in again], seed, partial(raw.add, seed))
        if options.task == "dossier" and (not options.arms or LATENT in options.arms):
            for steps in (0, options.steps_latent):
                raw.add(seed, f"{LATENT}, {steps} steps", latent(setting.test, steps, options.rule))


class Raw:
    """The answers of all arms and seeds, in a file that grows; ``trace_report.py`` makes figures of it."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.file = options, options.out
        self.record: dict[str, Any] = {"arms": {}, "models": {}}
        if self.file.exists():
            self.record = json.loads(self.file.read_text())

    def begin(self, seed: int, setting: Setting) -> None:
        """Says what is measured."""
        kept = ("task", "train", "test", "steps", "steps_latent", "rule", "prompt", "contexts", "characters")
        self.record |= {
            "kinds": [question.kind for case in setting.test for question in case.questions],
            "documents": [number for number, case in enumerate(setting.test) for _ in case.questions],
            "settings": {name: getattr(self.options, name) for name in kept},
        }
        self.record["models"][str(seed)] = identify(*setting.writer).exact
        self.record["provenance"] = provenance(**self.record["models"])

    def has(self, name: str, seed: int) -> bool:
        """Says whether an arm was measured."""
        return str(seed) in self.record["arms"].get(name, {})

    def add(self, seed: int, name: str, found: dict[str, Any]) -> None:
        """Adds an arm's answers."""
        self.record["arms"].setdefault(name, {})[str(seed)] = found
        exact, nats = (sum(found[of]) / len(found[of]) for of in ("exact", "nats"))
        print(f"seed {seed} {name:34} exact {exact:.3f} nats {nats:.3f} {found['s']} s", file=sys.stderr, flush=True)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.record))


def latent(cases: Sequence[Case], steps: int, rule: str) -> dict[str, Any]:
    """What the embedded codec makes of a trace of the embedded sender: 100 bytes, for a reader that nobody tuned."""
    began, pair = time.monotonic(), ilcp.load_pair()
    sender, receiver = pair.sender, pair.receiver
    layers = sender.codec.layers
    writers = [
        Writer(sender.model, sender.tokenizer, role=role, steps=steps, rule=rule, prompt=" {text}", layers=layers)
        for role in AGENTS
    ]
    messages = [sender.encode(written(writers, cut(case.context, 2))) for case in cases]
    items = [(message, q.text, q.answer) for message, case in zip(messages, cases, strict=True) for q in case.questions]
    scores = receiver.score(items)
    answers = receiver.answers([(message, text) for message, text, _ in items])
    questions = [question for case in cases for question in case.questions]
    return {
        "exact": [int(answer in q.answers) for answer, q in zip(answers, questions, strict=True)],
        "nats": [round(score.log_likelihood_nats, 4) for score in scores],
        "perplexity": [],
        "answers": answers,
        "tokens": [],
        "bytes": [len(message) for message in messages],
        "steps": 0,
        "s": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    main()
