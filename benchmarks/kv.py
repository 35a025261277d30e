"""What a model's own cache is worth as a message: bytes, quality and time, beside the full text and its controls.

    make real
    python benchmarks/kv.py [--model smollm2] [--n 40] [--data benchmarks/data/conversations]
    python benchmarks/kv.py --hqq --repetitions 0 [--prose stories.jsonl]

A text is cut: the receiver is given a memory of its first tokens, and asked how likely the next ones are. Beside each
codec stand the full text (its cache, exact; its bytes are those of the text under the model's own code), nothing, and
another text's exact cache. ``gain`` is the share of what the full text brings: (codec - nothing) / (full - nothing) in
nats, over all texts, with a bootstrap interval. Times are those of one thread: encoding and decoding in MB of keys and
values a second, and the first token of an answer to a question behind ``--timed`` tokens, from the payload on, beside
that behind the text. Texts are conversations of the test split, put in a row until they are long enough;
benchmarks/README.md says where they are from. ``--prose`` takes texts of another kind, lines of {"text": ...}: the
first half of them is what codecs are fitted to.

``--hqq`` sets the quantised cache of transformers beside these codecs (``QuantizedCache``, backend hqq, groups of 64,
both axes 1 as its documentation advises; needs ``pip install hqq==0.2.8.post1``). It cannot be written down, so its
bytes are those of its codes, scales and zeros in memory, and its keys are rounded as they were turned. It packs whole
bytes only, so the last tokens of a memory that is no multiple of eight stay exact, as the newest do in that cache.
"""

import argparse
import hashlib
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import conversations_data as data
import numpy as np
import torch
from gpu_parts import model_at

from ilcp import Receiver
from ilcp.codec import Context
from ilcp.codec.keys_values import KeysValues
from ilcp.codec.memory import CacheMemory, Memory
from ilcp.measure import provenance
from ilcp.measure.bootstrap import Bootstrap
from ilcp.models.fingerprint import identify
from ilcp.models.kv import following_nats, read_kv
from ilcp.models.loading import load_model
from ilcp.models.prompt import continuation, layout
from ilcp.models.rope import ropes_of
from ilcp_codecs.kv import ExactCodec, Int4Codec, Int8Codec, KvCodec, PcaCodec
from ilcp_codecs.kv.codecs import shape_of

HERE = Path(__file__).parent
KINDS = (ExactCodec, Int8Codec, Int4Codec)
FITTED = (5760, 2880, 1440)  # bytes a token, of principal components: 4, 2 and 1 bits of each of SmolLM2's numbers
FITTED_TEXTS = 8
HQQ_BITS = (8, 4, 2, 1)
HQQ_PACKS = 8  # tokens: so many of one bit are a byte
QUESTION = "What did the customer want?"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--tokens", type=int, nargs=2, default=(383, 96), metavar=("MEMORY", "NEXT"))
    parser.add_argument("--timed", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--prose", type=Path, help="JSONL of texts in place of conversations")
    parser.add_argument("--hqq", action="store_true", help="transformers' own quantised caches beside")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model(model_at(args.models, args.model) or args.models / args.model, dtype=args.dtype)
    codecs = made(model, tokenizer, args)
    read = args.prose or args.data / "test.jsonl"
    record = {
        "what": "one model's keys and values as a message: bytes, quality, time",
        "n": args.n,
        "seed": args.seed,
        "tokens": list(args.tokens),
        "threads": args.threads,
        "texts": {"file": read.name, "sha256": hashlib.sha256(read.read_bytes()).hexdigest()},
        "quality": quality(model, tokenizer, codecs, args),
        "time": timed(model, tokenizer, codecs, args) if args.repetitions else None,
        "provenance": provenance(model=args.model, dtype=args.dtype),
    }
    file = (
        args.json or HERE / "results" / f"kv-{args.model}{'-prose' if args.prose else '-hqq' if args.hqq else ''}.json"
    )
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record["quality"], indent=1), json.dumps(record["time"], indent=1), file, sep="\n")


def options(about: str | None) -> argparse.ArgumentParser:
    """Returns the options that the measurements of caches have alike."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--models", type=Path, default=HERE / "real")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "conversations")
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser


def made(model: Any, tokenizer: Any, args: argparse.Namespace) -> dict[str, KvCodec]:
    """Returns the codecs by their names; those that are fitted, to conversations of the training split."""
    rows = texts(tokenizer, args, "train", FITTED_TEXTS, sum(args.tokens))
    codecs = codecs_of(model, tokenizer, rows, FITTED)
    for codec in codecs.values():
        if isinstance(codec, PcaCodec):
            codec.require_worth(model, rows[:2])
    return codecs


def codecs_of(model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], fitted: Sequence[int]) -> dict[str, KvCodec]:
    """Returns codecs by their names; those of principal components, at these bytes a token, fitted to ids of texts."""
    ropes, who, shape = ropes_of(model), identify(model, tokenizer), shape_of(model)
    caches = [read_kv(model, row, 0, ropes) for row in rows]
    codecs: dict[str, KvCodec] = {kind.name: kind(who, shape) for kind in KINDS}
    for most in fitted:
        codec = PcaCodec.fit_caches(who, shape, caches, bytes_per_token=most)
        codecs[f"{codec.name}-{most}"] = codec
    return codecs


def texts(tokenizer: Any, args: argparse.Namespace, split: str, n: int, wanted: int) -> list[list[int]]:
    """Returns ids of ``n`` texts, each of as many tokens as are asked for."""
    whole = _prose(args.prose, split) if args.prose else data.read(args.data / f"{split}.jsonl")
    whole = [one if isinstance(one, str) else one.case.context for one in whole]
    random.Random(args.seed).shuffle(whole)
    found: list[list[int]] = []
    row: list[int] = []
    for text in whole:
        row += tokenizer(("\n\n" if row else "") + text, add_special_tokens=False).input_ids
        if len(row) >= wanted:
            found.append(row[:wanted])
            row = []
        if len(found) == n:
            return found
    raise SystemExit(f"expected {n} texts of {wanted} tokens, got {len(found)}: ask for fewer, or for shorter ones")


def _prose(file: Path, split: str) -> list[str]:
    """Returns the texts of one half of a file: the first is there to fit to."""
    lines = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[: len(lines) // 2] if split == "train" else lines[len(lines) // 2 :]


def quality(model: Any, tokenizer: Any, codecs: dict[str, KvCodec], args: argparse.Namespace) -> dict[str, Any]:
    """Returns bytes a token, nats a token, and the share of the gain, of each arm."""
    held = args.tokens[0]
    rows = texts(tokenizer, args, "test", args.n, sum(args.tokens))
    ropes = ropes_of(model)
    before = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    caches = [read_kv(model, [*before, *row[:held]], 0, ropes) for row in rows]
    nats: dict[str, list[float]] = {name: [] for name in ("full", "none", "mismatched", *codecs)}
    sizes: dict[str, list[float]] = {name: [] for name in ("full", *codecs)}
    for number, (row, kv) in enumerate(zip(rows, caches, strict=True)):
        after = row[held:]
        nats["full"].append(following_nats(model, kv, after))
        sizes["full"].append(coded_bytes(model, [*before, *row[:held]]))
        nats["none"].append(following_nats(model, None, after))
        nats["mismatched"].append(following_nats(model, caches[number - 1], after))
        for name, codec in codecs.items():
            payload = codec.encode(Context(kv=kv))
            sizes[name].append(len(payload))
            nats[name].append(following_nats(model, cast(CacheMemory, codec.decode(payload)).kv, after))
        for bits in HQQ_BITS if args.hqq else ():
            rounded, size = by_hqq(kv, bits)
            sizes.setdefault(name := f"hqq-{bits}", []).append(size)
            nats.setdefault(name, []).append(following_nats(model, rounded, after))
        print(f"text {number + 1} of {len(rows)}", flush=True)
    drawn = Bootstrap(range(len(rows)), seed=args.seed)
    none, full = np.array(nats["none"]), np.array(nats["full"])
    gains = {name: drawn.of(np.divide, none - np.array(values), none - full) for name, values in nats.items()}
    return {
        name: {
            "nats_per_token": statistics.fmean(values),
            "gain": [gains[name].value, gains[name].low, gains[name].high],
            "bytes_per_token": statistics.fmean(sizes[name]) / held if name in sizes else None,
        }
        for name, values in nats.items()
    }


def coded_bytes(model: Any, ids: Sequence[int]) -> float:
    """Returns how long a text's code under the model is: all tokens but the first, without rounding up."""
    return following_nats(model, None, ids) * (len(ids) - 1) / math.log(2) / 8


def by_hqq(kv: KeysValues, bits: int) -> tuple[KeysValues, int]:
    """Returns keys and values as transformers' cache of that many bits gives them back, and its bytes."""
    from transformers.cache_utils import HQQQuantizedLayer

    rounded = kv.tokens - kv.tokens % HQQ_PACKS
    pairs, size = [], 0
    for both in zip(kv.keys, kv.values, strict=True):
        layer = HQQQuantizedLayer(nbits=bits, axis_key=1, axis_value=1, q_group_size=64)
        layer.update(*(each[None, :, :rounded] for each in both))
        coded, exact = (layer._quantized_keys, layer._quantized_values), [each[:, rounded:] for each in both]
        size += sum(each.nbytes for codes, meta in coded for each in (codes, meta["scale"], meta["zero"]))
        size += sum(each.nbytes for each in exact)
        again = [layer._dequantize(each)[0] for each in coded]
        pairs.append([torch.cat(parts, dim=1) for parts in zip(again, exact, strict=True)])
    return replace(kv, keys=tuple(keys for keys, _ in pairs), values=tuple(values for _, values in pairs)), size


def timed(model: Any, tokenizer: Any, codecs: dict[str, KvCodec], args: argparse.Namespace) -> dict[str, Any]:
    """Returns speeds of encoding and decoding, and the time to a first token by each codec and by the text."""
    ids = texts(tokenizer, args, "test", 1, args.timed)[0]
    text = tokenizer.decode(ids)
    before = layout(tokenizer, "").prefix
    own = continuation(tokenizer, text)[0]
    kv = read_kv(model, [*before, *own], len(before), ropes_of(model))
    found: dict[str, Any] = {"tokens": len(own), "cache_bytes": kv.size_bytes}
    for name, codec in codecs.items():
        receiver = Receiver(model, tokenizer, codec, allow_unmeasured=True)
        payload = codec.encode(Context(kv=kv))
        encode_s = seconds(partial(codec.encode, Context(kv=kv)), args.repetitions)
        decode_s = seconds(partial(codec.decode, payload), args.repetitions)
        first_s = seconds(partial(first_token, receiver, codec, payload), args.repetitions)
        found[name] = {
            "payload_bytes": len(payload),
            "encode_mb_per_s": kv.size_bytes / encode_s / 1e6,
            "decode_mb_per_s": kv.size_bytes / decode_s / 1e6,
            "first_token_ms": 1000 * first_s,
        }
    text_s = seconds(lambda: receiver.generate(None, QUESTION, context=text, max_new_tokens=1), args.repetitions)
    found["text"] = {"first_token_ms": 1000 * text_s}
    for name in codecs:
        found[name]["first_token_share"] = found[name]["first_token_ms"] / found["text"]["first_token_ms"]
    return found


def likeliest(receiver: Receiver, memory: Memory | None, choices: Sequence[str]) -> str:
    """Returns which of the choices a receiver thinks likeliest behind a memory, with nothing asked."""
    scores = receiver.score([(memory, "", choice) for choice in choices], end=False)
    return max(zip(choices, scores, strict=True), key=lambda pair: pair[1].log_likelihood_nats)[0]


def first_token(receiver: Receiver, codec: KvCodec, payload: bytes) -> str:
    """Returns what a receiver answers first, from the payload on."""
    return receiver.generate(codec.decode(payload), QUESTION, max_new_tokens=1)


def seconds(call: Callable[[], object], repetitions: int) -> float:
    """Returns the median time of a call."""
    call()
    spent = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent)


if __name__ == "__main__":
    main()
