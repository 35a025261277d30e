"""The worth of a codec of ``examples/tinystories.toml`` on real stories, on which neither it nor anybody here trained.

    python benchmarks/strangers.py CODEC STORIES.jsonl --samples CODEC.run/self-study.jsonl --json REPORT.json

The sender reads the beginning of a story, the message crosses, the receiver continues. STORIES.jsonl has lines of
{"text": ...}. What the true continuation costs the receiver is measured in every arm: by message, with nothing, with
another story's message, with the beginning as text, with text of as many bytes, and more.

--samples is what the sender wrote for the training: zstd's dictionary is made of it. --beginning sets how much of the
story the sender holds. With --seen N the receiver sees the last N characters of the beginning in every arm, so that
what the message adds is what lies further back.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from ilcp.embedded import load_pair
from ilcp.measure import equal_texts, run
from ilcp.measure.table import show
from ilcp.tasks import Case, Question, read_jsonl
from ilcp.training.selfstudy import SelfStudy, cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", type=Path)
    parser.add_argument("stories", type=Path)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--sender", type=Path, help="without it, the one that the codec names")
    parser.add_argument("--receiver", type=Path, help="the same")
    parser.add_argument("--beginning", type=int, default=SelfStudy().context_characters)
    parser.add_argument(
        "--seen", type=int, default=0, help="characters of the beginning that the receiver sees as well"
    )
    parser.add_argument("--n", type=int, help="stories to measure; without it, all")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the report goes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    pair = load_pair(args.codec, sender=args.sender, receiver=args.receiver, allow_unmeasured=True)
    lines = args.stories.read_text(encoding="utf-8").split("\n")
    stories = (json.loads(line)["text"] for line in lines if line.strip())
    cases = [case for text in stories if (case := split(text, args.beginning, args.seen))][: args.n]
    report = run(
        pair.sender,
        pair.receiver,
        cases,
        task=f"{args.stories.name}, {args.beginning} characters held, {args.seen} seen",
        seed=args.seed,
        answers_end=False,
        texts=equal_texts(pair.sender, [case.context for case in read_jsonl(args.samples)]),
        keep=args.json,
        progress=True,
    )
    show(report, Console())


def split(text: str, beginning: int, seen: int) -> Case | None:
    """Cuts a story between words into beginning and continuation, as in the training; None where it is too short."""
    halves = cut(text, beginning, SelfStudy().continuation_characters)
    if halves is None:
        return None
    context, continuation = halves
    start = context.find(" ", max(0, len(context) - seen)) + 1
    case = Case(context, context, (Question("", continuation, "continuation"),))
    return replace(case, questions=(replace(case.questions[0], text=context[start:] if seen else ""),))


if __name__ == "__main__":
    main()
