"""What a cache as a message still knows: the questions of conversations, answered from each codec's memory.

    make real
    python benchmarks/kv_questions.py --adapter FOLDER [--model smollm2] [--n 40] [--data benchmarks/data/conversations]

Likelihood of a text's end, which ``kv.py`` takes, rewards what any conversation would bring; a slot that was settled is
known or it is not. ``--adapter`` holds low-rank weights with which the model reads conversations, such as the
``receiver-adapter`` of a codec that ``conversations.py`` trained: both ends have them. Beside each codec stand the
exact cache, nothing, and another conversation's cache. ``gain`` is (codec - nothing) / (exact - nothing), in
log-likelihood of the right answers and in exact match, with bootstrap intervals over conversations. ``kv-compact`` is
given the questions that the receiver will ask, and answers them itself first: ``asking_s`` is what reading and that
take the sender for a conversation. Conversations are drawn from the test split by the seed.
"""

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import conversations_data as data
import kv
import numpy as np
import torch
from gpu_parts import model_at

from ilcp import Receiver, Sender
from ilcp.codec import Context
from ilcp.codec.memory import CacheMemory, Memory
from ilcp.measure import provenance
from ilcp.measure.bootstrap import Bootstrap
from ilcp.models.adapter import require_adapter, with_adapter
from ilcp.models.fingerprint import identify
from ilcp.models.loading import load_model
from ilcp.tasks import Case
from ilcp_codecs.kv import CompactCodec

HERE = Path(__file__).parent
FITTED = (2880, 1440)  # bytes a token, of principal components
FITTED_CASES = 24
SHARES = (0.25, 0.1, 0.05, 0.03)


def main() -> None:
    parser = kv.options(__doc__)
    parser.add_argument("--adapter", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    require_adapter(args.adapter)
    plain, tokenizer = load_model(model_at(args.models, args.model) or args.models / args.model, dtype="bfloat16")
    model = with_adapter(plain, args.adapter)
    cases = data.asked(random.Random(args.seed).sample(data.read(args.data / "test.jsonl"), args.n))
    record = measured(model, tokenizer, cases, args) | {
        "what": "questions answered from one model's keys and values as a message",
        "seed": args.seed,
        "provenance": provenance(model=identify(model, tokenizer).exact),
    }
    file = args.json or HERE / "results" / f"kv-questions-{args.model}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record["arms"], indent=1), file, sep="\n")


def measured(model: Any, tokenizer: Any, cases: list[Case], args: argparse.Namespace) -> dict[str, Any]:
    """Returns each arm's bytes, exact match and gains."""
    fitted_to = [one.case.context for one in data.read(args.data / "train.jsonl")[:FITTED_CASES]]
    rows = [tokenizer(text, verbose=False).input_ids for text in fitted_to]
    codecs = kv.codecs_of(model, tokenizer, rows, FITTED)
    sender = Sender(model, tokenizer, codecs["kv-exact"])
    receiver = Receiver(model, tokenizer, codecs["kv-exact"], allow_unmeasured=True)
    nats, exact, sizes = (defaultdict[str, list[float]](list) for _ in range(3))
    asking_s, another = [], CacheMemory(cast(Any, sender.read(cases[-1].context).kv))
    for number, case in enumerate(cases):
        own = cast(Any, sender.read(case.context).kv)
        memories: dict[str, Memory | None] = {"none": None, "mismatched": another}
        for name, codec in codecs.items():
            payload = codec.encode(Context(kv=own))
            memories[name] = codec.decode(payload)
            sizes[name].append(len(payload) / own.tokens)
        another = CacheMemory(own)
        compact = CompactCodec.of(model, tokenizer, questions=[question.text for question in case.questions])
        started = time.perf_counter()
        context = Sender(model, tokenizer, compact).read(case.context)
        asking_s.append(time.perf_counter() - started)
        for share in SHARES:
            compact = CompactCodec.of(model, tokenizer, questions=compact.questions, share=share)
            payload, name = compact.encode(context), f"kv-compact-{share}"
            memories[name] = compact.decode(payload)
            sizes[name].append(len(payload) / own.tokens)
        for name, memory in memories.items():
            scores = receiver.score([(memory, question.text, question.answer) for question in case.questions])
            nats[name] += [sum(score.token_nats) for score in scores]
            exact[name] += [float(score.exact) for score in scores]
        print(f"conversation {number + 1} of {len(cases)}", flush=True)
    groups = [number for number, case in enumerate(cases) for _ in case.questions]
    drawn = Bootstrap(groups, seed=args.seed)
    return {
        "n": len(cases),
        "questions": len(groups),
        "asking_s": statistics.fmean(asking_s),
        "arms": {
            name: {
                "bytes_per_token": statistics.fmean(sizes[name]) if name in sizes else None,
                "exact": statistics.fmean(exact[name]),
                "log_likelihood": statistics.fmean(nats[name]),
                "gain_exact": gain(drawn, exact, name),
                "gain": gain(drawn, nats, name),
            }
            for name in nats
        },
    }


def gain(drawn: Bootstrap, values: dict[str, list[float]], name: str) -> list[float | None]:
    """Returns the share of the exact cache's gain over nothing, and its interval."""
    own, none, full = (drawn.means(np.array(values[each])) for each in (name, "none", "kv-exact"))
    figure = drawn.figure((own - none) / (full - none), len(values[name]))
    return [figure.value, figure.low, figure.high]


if __name__ == "__main__":
    main()
