"""What crosses between two models when the one's cache is mapped to the other's: facts and likelihood, step by step.

    make real
    python benchmarks/kv_align.py --sender smollm2 --receiver gemma3 --data benchmarks/data/conversations/train.jsonl
    python benchmarks/kv_align.py --sender embedded/sender --receiver embedded/receiver --models ilcp   # over dossiers
    python benchmarks/kv_align.py --sender stories260K --receiver TinyStories-656K --models FOLDER --data stories.jsonl

The map (``ilcp align``) is measured as it comes out of the closed form, and again after tuning through the receiver.
Facts are canaries (``ilcp.tasks.canaries``: which of four values a person has, 0.25 by chance), or what was said in the
cases of ``--asked``, answered in words (the questions of ``--data`` then teach; ``--adapter`` holds low-rank weights
with which the receiver reads such texts), or, without ``--data``, look-ups of the embedded case files. Beside the map's
memory stand the receiver's own reading of the text (the ceiling), nothing, and another text's memory. ``gain`` is
(map - nothing) / (own - nothing), in nats of what comes next in texts that were kept apart: it rewards what any text of
the kind would bring, as another text's memory shows.
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import conversations_data as data
import kv
import numpy as np
import torch
from gpu_parts import model_at

from ilcp import Receiver, TextMemory
from ilcp.codec import Context
from ilcp.codec.memory import Memory
from ilcp.measure import provenance
from ilcp.measure.bootstrap import Bootstrap
from ilcp.measure.scoring import Scorer
from ilcp.models.adapter import require_adapter, with_adapter
from ilcp.models.fingerprint import identify
from ilcp.models.loading import load_model
from ilcp.tasks import Case, canaries, case_files, read_jsonl
from ilcp.tasks.written import merged
from ilcp.training.align import taught
from ilcp_codecs.kv import Aligner, ExactCodec
from ilcp_codecs.kv.aligning import LEARNING_RATE, Step

HERE = Path(__file__).parent
FACTS = 6  # look-ups of a dossier
FEW = 60  # texts with facts that are asked about in between
Figures = dict[str, Any]
Cases = tuple[list[Case], list[Case], list[tuple[str, str]]]  # with facts; to train on; cut in two


def main() -> None:
    args = options().parse_args()
    torch.set_num_threads(args.threads)
    record = aligned(args)
    print(json.dumps(record["stages"], indent=1))


def options() -> argparse.ArgumentParser:
    """Returns what the command line takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sender", required=True)
    parser.add_argument("--receiver", required=True)
    parser.add_argument("--models", type=Path, default=HERE / "real")
    parser.add_argument("--data", type=Path, help='cases as ilcp.tasks.read_jsonl reads them, or lines of {"text"}')
    parser.add_argument("--asked", type=Path, help="cases whose questions are the facts; those of --data teach")
    parser.add_argument("--adapter", type=Path, help="low-rank weights of the receiver, such as receiver-adapter")
    parser.add_argument("--characters", type=int, default=sys.maxsize, help="of a text of --data, at most")
    parser.add_argument("--texts", type=int, default=100, help="to fit and tune with")
    parser.add_argument("--tokens", type=int, default=500, help="the most that a cache may stand for")
    parser.add_argument("--n", type=int, default=300, help="texts with facts")
    parser.add_argument("--apart", type=int, default=40, help="texts whose end is foretold")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="of learning, in the second step")
    parser.add_argument("--every", type=float, default=0.25, help="the facts are asked after each such share of them")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="of this code, where it lies without its repository")
    return parser


def aligned(args: argparse.Namespace) -> Figures:
    """Aligns two models, measures every stage, writes the record and returns it."""
    if not 0 < args.rate < 1:
        raise SystemExit(f"expected --rate between 0 and 1, got {args.rate}")
    cases = _cases(args)
    if args.adapter is not None:
        require_adapter(args.adapter)
    sender, (plain, tokenizer) = (_loaded(args, name) for name in (args.sender, args.receiver))
    receiver = with_adapter(plain, args.adapter), tokenizer
    record = {
        "what": "one model's keys and values mapped to another's",
        "pair": [args.sender, args.receiver],
        "facts_of": "look-ups" if args.data is None else "canaries" if args.asked is None else "said",
        "adapted": args.adapter is not None,
        "seed": args.seed,
        "texts": args.texts,
        "minutes": args.minutes,
        "learning_rate": args.rate,
        "data": "case files" if args.data is None else args.data.name,
        "asked": "" if args.asked is None else args.asked.name,
        "provenance": provenance(sender=identify(*sender).exact, receiver=identify(*receiver).exact),
    }
    if args.commit:
        record["provenance"]["commit"] = args.commit
    record |= measured(Aligner(*sender, *receiver, tokens=args.tokens), cases, args)
    ending = "-said" if args.asked else ""
    name = f"kv-align-{args.sender}-{args.receiver}{ending}.json".replace("/", "-")
    file = args.json or HERE / "results" / name
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(file, flush=True)
    return record


def _loaded(args: argparse.Namespace, name: str) -> tuple[Any, Any]:
    return load_model(model_at(args.models, name) or args.models / name, dtype="float32", device=args.device)


def measured(aligner: Aligner, cases: Cases, args: argparse.Namespace) -> Figures:
    """Returns the figures of every stage, and the curve of the second step."""
    facts, training, apart = cases
    asker = _Asker(aligner, facts, apart, args.seed)
    stages: dict[str, Figures] = {"own reading": asker.figures(lambda text: TextMemory(text))}
    print("own reading", json.dumps(stages["own reading"]), flush=True)
    aligner.fit([case.context for case in training])
    stages["closed form"] = asker.figures(asker.mapped())
    print("closed form", json.dumps(stages["closed form"]), flush=True)
    lessons = training if args.data is None or args.asked else taught(training, args.seed)
    curve: list[Figures] = []
    asked = itertools.count(1)
    due = [next(asked) * args.every * args.minutes]

    def told(step: Step) -> None:
        curve.append(asdict(step))
        if step.seconds >= 60 * due[0] and due[0] < args.minutes:
            due[0] = next(asked) * args.every * args.minutes
            ask(step.steps, step.seconds)

    def ask(steps: int, seconds: float) -> None:
        name = f"after {steps} steps, {seconds / 60:.1f} minutes"
        stages[name] = asker.figures(asker.mapped(), None if seconds >= 60 * args.minutes else FEW)
        print(name, json.dumps(stages[name]), flush=True)

    tuned = partial(aligner.tune, lessons, minutes=args.minutes, learning_rate=args.rate, seed=args.seed)
    steps = tuned(every=10, told=told)
    ask(steps, 60 * args.minutes)
    return {"facts": len(facts), "apart": len(apart), "stages": stages, "curve": curve}


def _cases(args: argparse.Namespace) -> Cases:
    """Returns cases with facts, cases to train on, and texts cut in two, no text in two of them.

    Raises:
        SystemExit: the files have too few, or nothing to ask.
    """
    if args.data is None:
        if args.asked is not None:
            raise SystemExit("expected --data beside --asked, got none: its questions teach")
        lookups = (
            (case, [q for q in case.questions if q.kind == "lookup"]) for case in _dossiers("test", args.n, args)
        )
        facts = [replace(case, questions=tuple(questions[:FACTS])) for case, questions in lookups]
        return facts, _dossiers("train", args.texts, args), _cut(_dossiers("validation", args.apart, args))
    if args.asked is None:
        facts = list(itertools.islice(canaries("test", args.seed), args.n))
    else:
        facts = _drawn(
            [case for case in map(data.said, merged(read_jsonl(args.asked))) if case.questions], args.n, args
        )
    taken = {case.context for case in facts}
    short = (case for case in _texts(args.data) if len(case.context) <= args.characters)
    texts = [case for case in short if case.context not in taken]
    teach = (case.questions and all(question.text for question in case.questions) for case in texts)
    if args.asked is not None and not all(teach):
        raise SystemExit(f"expected questions in {args.data} beside --asked, got texts without: they teach")
    chosen = _drawn(texts, args.texts + args.apart, args)
    return facts, chosen[: args.texts], _cut(chosen[args.texts :])


def _dossiers(split: str, n: int, args: argparse.Namespace) -> list[Case]:
    return list(case_files(split, args.seed, n))


def _drawn(cases: list[Case], n: int, args: argparse.Namespace) -> list[Case]:
    if n > len(cases):
        raise SystemExit(f"expected {n} texts to draw from, got {len(cases)}: lower --n, --texts or --apart")
    return random.Random(args.seed).sample(cases, n)


def _cut(cases: Iterable[Case]) -> list[tuple[str, str]]:
    """Returns each text in two: what is handed over, and what comes next."""
    places = [(case.context, case.context.rfind(" ", 0, 3 * len(case.context) // 4)) for case in cases]
    return [(text[:at], text[at:].strip()) for text, at in places]


def _texts(file: Path) -> list[Case]:
    """Reads texts, each a case; those of a file of bare texts have no questions."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    if all("text" in line for line in lines):
        return [
            Case(str(number), text, ()) for number, text in enumerate(dict.fromkeys(line["text"] for line in lines))
        ]
    return merged(read_jsonl(file))


class _Asker:
    """Asks the receiver for facts, and for what comes next, by any memory of a text."""

    def __init__(self, aligner: Aligner, facts: Sequence[Case], apart: Sequence[tuple[str, str]], seed: int):
        self.aligner, self.facts, self.apart, self.seed = aligner, facts, apart, seed
        end = aligner.receiver
        self.receiver = Receiver(
            end.model, end.tokenizer, ExactCodec.of(end.model, end.tokenizer), allow_unmeasured=True
        )
        self.none = self._next([None] * len(apart))
        self.own = self._next([TextMemory(text) for text, _ in apart])

    def mapped(self) -> Callable[[str], Memory]:
        """Returns what makes a memory of a text by the map as it is, through the codec's bytes."""
        codec = self.aligner.codec()

        def memory(text: str) -> Memory:
            ((own, _),) = self.aligner.sender.read([text], self.aligner.tokens)
            payload = codec.encode(Context(kv=own))
            self.sizes.append(len(payload))
            return codec.decode(payload)

        return memory

    def figures(self, memory: Callable[[str], Memory], few: int | None = None) -> Figures:
        """Returns what is known by the memories of the texts, the first ``few`` alone, and by another text's."""
        asked = self.facts[:few]
        drawn = Bootstrap([number for number, case in enumerate(asked) for _ in case.questions], seed=self.seed)
        self.sizes: list[int] = []
        held = [memory(case.context) for case in asked]
        nothing: list[Memory | None] = [None] * len(asked)
        right = {
            name: self._right(asked, memories)
            for name, memories in (("own", held), ("another", held[1:] + held[:1]), ("none", nothing))
        }
        found: Figures = {"n": len(asked), "payload_bytes": fmean(self.sizes) if self.sizes else None}
        for name, values in right.items():
            found[f"facts, {name}"] = _interval(drawn.of(lambda x: x, values))
        found["facts, own - another"] = _interval(drawn.of(np.subtract, right["own"], right["another"]))
        if self.apart:
            held = [memory(text) for text, _ in self.apart]
            drawn = Bootstrap(range(len(self.apart)), seed=self.seed)
            for name, memories in (("own", held), ("another", held[1:] + held[:1])):
                nats = self._next(memories)
                found[f"nats a token, {name}"] = float(nats.mean())
                share = drawn.of(lambda x, none, own: (x - none) / (own - none), nats, self.none, self.own)
                found[f"gain, {name}"] = _interval(share)
            found["nats a token, none"] = float(self.none.mean())
        return found

    def _right(self, cases: Sequence[Case], memories: Sequence[Memory | None]) -> Any:
        """Returns for each question 1 where the right answer is the likeliest choice, or, without choices, given."""
        asked = [
            (question, memory) for case, memory in zip(cases, memories, strict=True) for question in case.questions
        ]
        if all(question.text for question, _ in asked):
            given = Scorer(self.receiver, cases).ask(memories).answers
            right = [said is None or said in question.answers for said, (question, _) in zip(given, asked, strict=True)]
        else:
            choices = [(kv.likeliest(self.receiver, held, one.choices or ()), one) for one, held in asked]
            right = [said == question.answer for said, question in choices]
        return np.array(right, dtype=float)

    def _next(self, memories: Sequence[Memory | None]) -> Any:
        """Returns the mean log-likelihood of a token of what comes next in each text."""
        asked = [(memory, "", after) for memory, (_, after) in zip(memories, self.apart, strict=True)]
        scores = [self.receiver.score([one], end=False)[0] for one in asked]
        return np.array([score.log_likelihood_nats / len(score.token_nats) for score in scores])


def _interval(figure: Any) -> list[float | None]:
    return [figure.value, figure.low, figure.high]


if __name__ == "__main__":
    main()
