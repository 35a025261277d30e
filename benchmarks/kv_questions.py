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
from pathlib import Path
from typing import Any, cast

import conversations_data as data
import numpy as np
import torch
from gpu_parts import model_at

from ilcp import Receiver, Sender
from ilcp.codec import Context
from ilcp.codec.memory import CacheMemory, Memory
from ilcp.measure import provenance
from ilcp.measure.bootstrap import Bootstrap
from ilcp.models.adapter import begun_adapter
from ilcp.models.fingerprint import identify
from ilcp.models.kv import read_kv
from ilcp.models.loading import load_model
from ilcp.models.rope import ropes_of
from ilcp.tasks import Case
from ilcp_codecs.kv import CompactCodec, ExactCodec, Int4Codec, Int8Codec, KvCodec, PcaCodec
from ilcp_codecs.kv.codecs import shape_of

HERE = Path(__file__).parent
FITTED = (2880, 1440)  # bytes a token, of principal components
FITTED_CASES = 24
SHARES = (0.25, 0.1, 0.05, 0.03)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=HERE / "real")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "conversations")
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plain, tokenizer = load_model(model_at(args.models, args.model) or args.models / args.model, dtype="bfloat16")
    model = begun_adapter(plain, args.adapter).get_base_model().eval()
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
    codecs = made(model, tokenizer, args)
    sender = Sender(model, tokenizer, codecs["kv-exact"])
    receiver = Receiver(model, tokenizer, codecs["kv-exact"], allow_unmeasured=True)
    nats: dict[str, list[float]] = {}
    exact: dict[str, list[float]] = {}
    sizes: dict[str, list[float]] = {}
    asking_s, another = [], CacheMemory(cast(Any, sender.read(cases[-1].context).kv))
    for number, case in enumerate(cases):
        kv = cast(Any, sender.read(case.context).kv)
        memories: dict[str, Memory | None] = {"none": None, "mismatched": another}
        for name, codec in codecs.items():
            payload = codec.encode(Context(kv=kv))
            memories[name], sizes[name] = codec.decode(payload), [*sizes.get(name, []), len(payload) / kv.tokens]
        another = CacheMemory(kv)
        compact = CompactCodec.of(model, tokenizer, questions=[question.text for question in case.questions])
        started = time.perf_counter()
        context = Sender(model, tokenizer, compact).read(case.context)
        asking_s.append(time.perf_counter() - started)
        for share in SHARES:
            compact = CompactCodec.of(model, tokenizer, questions=compact.questions, share=share)
            payload, name = compact.encode(context), f"kv-compact-{share}"
            memories[name], sizes[name] = compact.decode(payload), [*sizes.get(name, []), len(payload) / kv.tokens]
        for name, memory in memories.items():
            scores = receiver.score([(memory, question.text, question.answer) for question in case.questions])
            nats[name] = [*nats.get(name, []), *(sum(score.token_nats) for score in scores)]
            exact[name] = [*exact.get(name, []), *(float(score.exact) for score in scores)]
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


def made(model: Any, tokenizer: Any, args: argparse.Namespace) -> dict[str, KvCodec]:
    """Returns the codecs that every text has alike, by their names; some fitted to training conversations."""
    who, shape, ropes = identify(model, tokenizer), shape_of(model), ropes_of(model)
    texts = [one.case.context for one in data.read(args.data / "train.jsonl")[:FITTED_CASES]]
    caches = [read_kv(model, tokenizer(text, verbose=False).input_ids, 0, ropes) for text in texts]
    codecs: dict[str, KvCodec] = {kind.name: kind(who, shape) for kind in (ExactCodec, Int8Codec, Int4Codec)}
    for most in FITTED:
        codec = PcaCodec.fit_caches(who, shape, caches, bytes_per_token=most)
        codecs[f"{codec.name}-{most}"] = codec
    return codecs


if __name__ == "__main__":
    main()
