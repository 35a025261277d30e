"""How a handed-over cache fails, each failure made on purpose and seen from outside.

    make real
    python benchmarks/kv_failures.py [--model smollm2] [--n 100] [--data benchmarks/data/conversations]

Every row is the exact cache of a text with one thing wrong, forced past what would refuse it. ``caught by`` says what
does: the identity of the models, the check of the bytes, or a canary (its facts are not above those of another text's
cache, interval excluding zero). What is caught by nothing needs a seal, or somebody who asks.

The columns: ``facts`` are canaries (``ilcp.tasks.canaries``, 0.25 by chance); ``gain`` is (x - nothing) / (exact -
nothing) in nats of what comes next in conversations; ``agrees`` is the share of canaries about which the receiver
prefers what it prefers behind the exact cache; ``cosine`` is that of the attention's outputs with those behind the
exact cache, mean over layers and tokens of what comes next; ``entropy`` is the attention's over the memory, in nats,
and ``keys``, ``values`` are mean norms over those of the exact cache.
"""

import argparse
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import conversations_data as data
import numpy as np
import torch
from gpu_parts import model_at
from kv import likeliest
from torch import Tensor
from torch.nn import functional as F

from ilcp import Receiver, Sender
from ilcp.codec.keys_values import KeysValues, turned
from ilcp.codec.memory import CacheMemory
from ilcp.errors import IdentityError, IlcpError
from ilcp.measure import provenance
from ilcp.measure.bootstrap import Bootstrap
from ilcp.message.blob import Blob
from ilcp.models.fingerprint import identify
from ilcp.models.forward import embed
from ilcp.models.kv import placed, read_kv
from ilcp.models.loading import load_model
from ilcp.models.prompt import continuation, layout
from ilcp.models.rope import ropes_of
from ilcp.tasks import Case, canaries
from ilcp_codecs.kv import ExactCodec

HERE = Path(__file__).parent
NEXT_CHARACTERS = 200
NOISE = 0.05  # of each weight matrix's spread: about what a further training of some thousand steps moves it by
LARGEST = 1e4  # of a key or value
Figures = dict[str, Any]
Pair = Callable[[KeysValues, KeysValues], KeysValues]


@dataclass(frozen=True, slots=True)
class Failure:
    """What is wrong: with the cache, made of a text's own and another text's, or with the model that it is given to.

    ``refuses`` raises what ilcp refuses it with, where it does.
    """

    name: str
    cache: Pair = lambda own, other: own
    receiver: Any = None
    sender: Any = None
    refuses: Callable[[], object] | None = None


EXACT = Failure("nothing wrong: the exact cache")
ANOTHER = Failure("another text's cache", lambda own, other: other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--models", type=Path, default=HERE / "real")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "conversations")
    parser.add_argument("--n", type=int, default=100, help="texts with facts")
    parser.add_argument("--apart", type=int, default=24, help="conversations whose end is foretold")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model(model_at(args.models, args.model) or args.models / args.model, dtype="float32")
    model.set_attn_implementation("eager")  # which gives its weights away
    facts = list(itertools.islice(canaries("test", args.seed), args.n))
    drawn = random.Random(args.seed).sample(data.read(args.data / "test.jsonl"), args.apart)
    apart = [cut(one.case.context) for one in drawn]
    asker = Asker(model, tokenizer, facts, apart, args.seed)
    rows = {}
    for failure in failures(model, tokenizer):
        rows[failure.name] = asker.figures(failure)
        print(failure.name, json.dumps(rows[failure.name]), flush=True)
    record = {
        "what": "caches of one model with one thing wrong",
        "n": args.n,
        "apart": args.apart,
        "seed": args.seed,
        "failures": rows,
        "provenance": provenance(model=identify(model, tokenizer).exact),
    }
    file = args.json or HERE / "results" / f"kv-failures-{args.model}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(file)


def cut(text: str) -> tuple[str, str]:
    """Returns three quarters of a text, and what comes next."""
    at = text.rfind(" ", 0, 3 * len(text) // 4)
    return text[:at], text[at:].strip()[:NEXT_CHARACTERS]


def failures(model: Any, tokenizer: Any) -> Iterator[Failure]:
    """Yields the catalogue, the cache as it should be first."""
    codec = ExactCodec.of(model, tokenizer)
    ropes = ropes_of(model)
    middle = len(ropes) // 2
    yield from (EXACT, ANOTHER)
    for name, other in (("weights moved a little", moved(model, NOISE)), ("other weights", moved(model, 1.0))):
        sends = partial(Sender, other, tokenizer, codec)
        yield Failure(f"{name}, at the sender", sender=other, refuses=sends)
    eight = rounded(model)
    takes = partial(Receiver, eight, tokenizer, codec, allow_unmeasured=True)
    yield Failure("receiver in 8 bits", receiver=eight, refuses=takes)
    yield Failure("64 positions too far", lambda own, other: shifted(own, 64))
    yield Failure("not turned at all", lambda own, other: replace(own.at(None), start=own.start))
    yield Failure("one layer's rope of ten times the base", lambda own, other: one_rope(own, middle))
    yield Failure(
        "all layers one too high",
        lambda own, other: replace(own, keys=own.keys[-1:] + own.keys[:-1], values=own.values[-1:] + own.values[:-1]),
    )
    yield Failure("values another text's", lambda own, other: replace(own, values=cropped(other.values, own.values)))
    yield Failure("keys another text's", lambda own, other: replace(own, keys=cropped(other.keys, own.keys)))
    yield Failure("half of it another text's", halved)
    yield Failure("the last quarter lost, zeros in its place", lost)
    place = Altered(lambda held: held[:-200] + bytes([held[-200] ^ 0x40]) + held[-199:])
    message = Sender(model, tokenizer, codec, blobs=place).encode("A text of some tokens. " * 9)
    receiver = Receiver(model, tokenizer, codec, allow_unmeasured=True, blobs=place)
    yield Failure("one bit in 10,000 flipped", flips, refuses=lambda: receiver.decode(message))


def moved(model: Any, share: float) -> Any:
    """Returns the same model with noise of that share of each matrix's spread added."""
    other, drawn = deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim > 1:
                weight += share * weight.std() * torch.randn(weight.shape, generator=drawn)
    return other


def rounded(model: Any) -> Any:
    """Returns the same model with each row of its matrices rounded to eight bits."""
    other = deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim > 1:
                scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
                weight.copy_((weight / scale).round() * scale)
    return other


def shifted(kv: KeysValues, by: int) -> KeysValues:
    """Returns keys that stand so many positions further on than they say."""
    return replace(kv.at((kv.start or 0) + by), start=kv.start)


def one_rope(kv: KeysValues, layer: int) -> KeysValues:
    """Returns the keys of one layer turned by a base ten times as large."""
    rope = kv.ropes[layer]
    swapped = tuple(one * 10 ** (-number / len(rope)) for number, one in enumerate(rope))
    level = kv.at(None)
    places = torch.arange(kv.tokens, dtype=torch.float64) + (kv.start or 0)
    keys = list(kv.keys)
    keys[layer] = turned(level.keys[layer], places, swapped)
    return replace(kv, keys=tuple(keys))


def cropped(others: Sequence[Tensor], own: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns the first tokens of others, as many as there are of one's own; what they lack stays one's own."""
    return tuple(torch.cat([a[:, : b.shape[1]], b[:, a.shape[1] :]], 1) for a, b in zip(others, own, strict=True))


def halved(own: KeysValues, other: KeysValues) -> KeysValues:
    """Returns a cache whose second half is the other's."""
    at = own.tokens // 2

    def joined(a: Tensor, b: Tensor) -> Tensor:
        b = torch.cat([b, a[:, b.shape[1] :]], 1)[:, : a.shape[1]]
        return torch.cat([a[:, :at], b[:, at:]], 1)

    keys, values = (tuple(map(joined, *each)) for each in ((own.keys, other.keys), (own.values, other.values)))
    return replace(own, keys=keys, values=values)


def lost(own: KeysValues, other: KeysValues) -> KeysValues:
    """Returns a cache whose last quarter is zeros."""
    at = 3 * own.tokens // 4
    keys, values = (
        tuple(torch.cat([each[:, :at], torch.zeros_like(each[:, at:])], 1) for each in side)
        for side in (own.keys, own.values)
    )
    return replace(own, keys=keys, values=values)


def flips(own: KeysValues, other: KeysValues) -> KeysValues:
    """Returns a cache with one bit in ten thousand flipped; what no cache holds is then zero."""
    drawn = np.random.default_rng(1)

    def one(each: Tensor) -> Tensor:
        raw = np.ascontiguousarray(each.numpy()).view(np.uint8).copy()
        flat = raw.reshape(-1)
        hits = drawn.integers(0, flat.size * 8, flat.size * 8 // 10_000)
        np.bitwise_xor.at(flat, hits // 8, np.left_shift(1, hits % 8).astype(np.uint8))
        found = torch.from_numpy(raw.view(np.float32)).nan_to_num(0, 0, 0)
        return found * (found.abs() < LARGEST)

    return replace(own, keys=tuple(map(one, own.keys)), values=tuple(map(one, own.values)))


class Altered:
    """A place for blobs that gives back other bytes than it was given."""

    def __init__(self, altered: Callable[[bytes], bytes]):
        self.altered, self.held = altered, b""

    def put_blob(self, data: bytes, /) -> Blob:
        self.held = data
        return Blob.of(data)

    def get_blob(self, blob: Blob, /) -> bytes:
        return self.altered(self.held)


class Asker:
    """Asks a model for facts and for what comes next behind any cache, and looks at its attention."""

    def __init__(self, model: Any, tokenizer: Any, facts: Sequence[Case], apart: Sequence[tuple[str, str]], seed: int):
        self.model, self.tokenizer, self.facts, self.apart, self.seed = model, tokenizer, facts, apart, seed
        self._receivers: dict[int, tuple[Any, Receiver]] = {}  # by model, which is held so that no other has its id
        self._known = {each.name: self._all(each) for each in (EXACT, ANOTHER)}  # whom all others are beside
        self.exact, self.another = self._known[EXACT.name], self._known[ANOTHER.name]["right"]
        self.none = np.array([self._nats(model, None, after) for _, after in apart])

    def figures(self, failure: Failure) -> Figures:
        """Returns the row of a failure."""
        found = self._known.get(failure.name) or self._all(failure)
        drawn = Bootstrap(range(len(self.facts)), seed=self.seed)
        above = drawn.of(np.subtract, found["right"], self.another)
        right = drawn.of(lambda x: x, found["right"])
        share = Bootstrap(range(len(self.apart)), seed=self.seed).of(
            lambda x, none, own: (x - none) / (own - none), found["next"], self.none, self.exact["next"]
        )
        by = [] if failure.refuses is None else [refused_by(failure.refuses)]
        return {
            "facts": [right.value, right.low, right.high],
            "gain": [share.value, share.low, share.high],
            "agrees": float(np.mean(found["chosen"] == self.exact["chosen"])),
            "cosine": float(
                np.mean([cosine(a, b) for a, b in zip(found["outputs"], self.exact["outputs"], strict=True)])
            ),
            "entropy": float(np.mean(found["entropy"])),
            "keys": found["keys"] / self.exact["keys"],
            "values": found["values"] / self.exact["values"],
            "caught by": by + ([] if above.low is not None and above.low > 0 else ["canary"]),
        }

    def _all(self, failure: Failure) -> Figures:
        """Returns what is known, foretold and seen by the caches that a failure makes."""
        reader, answerer = failure.sender or self.model, failure.receiver or self.model
        texts = [case.context for case in self.facts]
        caches = self._caches(reader, texts, failure.cache)
        chosen = np.array([self._chosen(answerer, kv, case) for kv, case in zip(caches, self.facts, strict=True)])
        right = np.array([c == case.questions[0].answer for c, case in zip(chosen, self.facts, strict=True)], float)
        caches = self._caches(reader, [text for text, _ in self.apart], failure.cache)
        seen = [self._seen(answerer, kv, after) for kv, (_, after) in zip(caches, self.apart, strict=True)]
        return {
            "chosen": chosen,
            "right": right,
            "next": np.array([nats for nats, _, _ in seen]),
            "outputs": [outputs for _, outputs, _ in seen],
            "entropy": [entropy for _, _, entropy in seen],
            "keys": np.mean([float(torch.stack([k.norm(dim=-1).mean() for k in kv.keys]).mean()) for kv in caches]),
            "values": np.mean([float(torch.stack([v.norm(dim=-1).mean() for v in kv.values]).mean()) for kv in caches]),
        }

    def _caches(self, model: Any, texts: Sequence[str], make: Pair) -> list[KeysValues]:
        before, ropes = layout(self.tokenizer, "").prefix, ropes_of(self.model)
        rows = [continuation(self.tokenizer, text)[0] for text in texts]
        read = [read_kv(model, [*before, *row], len(before), ropes) for row in rows]
        return [make(own, other) for own, other in zip(read, read[1:] + read[:1], strict=True)]

    def _chosen(self, model: Any, kv: KeysValues, case: Case) -> str:
        """Returns the likeliest of a canary's choices."""
        if id(model) not in self._receivers:
            own = ExactCodec.of(model, self.tokenizer)
            self._receivers[id(model)] = model, Receiver(model, self.tokenizer, own, allow_unmeasured=True)
        return likeliest(self._receivers[id(model)][1], CacheMemory(kv), case.questions[0].choices or ())

    def _nats(self, model: Any, kv: KeysValues | None, after: str) -> float:
        ids = continuation(self.tokenizer, after)[0]
        return float(self._answer(model, kv, ids, len(ids) - 1)[0].mean())

    def _seen(self, model: Any, kv: KeysValues, after: str) -> tuple[float, list[Tensor], float]:
        """Returns the mean nats of what comes next, the outputs of each layer's attention, and its entropy."""
        ids = continuation(self.tokenizer, after)[0]
        with outputs_of(model) as outputs:
            nats, attentions = self._answer(model, kv, ids, len(ids) - 1)
        memory = slice(kv.start or 0, (kv.start or 0) + kv.tokens)
        entropies = []
        for weights in attentions:
            share = weights[0, :, :, memory].float().clamp(min=1e-9)
            share = share / share.sum(-1, keepdim=True)
            entropies.append(float(-(share * share.log()).sum(-1).mean()))
        return float(nats.mean()), list(outputs), float(np.mean(entropies))

    @torch.no_grad()
    def _answer(self, model: Any, kv: KeysValues | None, ids: Sequence[int], count: int) -> tuple[Tensor, Any]:
        """Returns log-likelihoods of the last ``count`` of ids that follow a memory, and the attention's weights."""
        before = layout(self.tokenizer, "").prefix
        rows: list[Any] = [embed(model, before)] if before else []
        start = len(before) + (0 if kv is None else kv.tokens)
        cache = placed(model, [*rows, kv]) if kv is not None else None
        row = list(ids) if kv is not None else [*before, *ids]
        out = model(
            input_ids=torch.tensor([row]),
            past_key_values=cache,
            attention_mask=torch.ones(1, (start if kv is not None else 0) + len(row), dtype=torch.long),
            position_ids=torch.arange(len(row))[None] + (start if kv is not None else 0),
            output_attentions=True,
            use_cache=True,
        )
        labels = torch.tensor(row[-count:])
        return -F.cross_entropy(out.logits[0, -count - 1 : -1], labels, reduction="none"), out.attentions


@contextmanager
def outputs_of(model: Any) -> Iterator[list[Tensor]]:
    """Yields what the attention of each layer gives, as it comes."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, given, out: found.append(out[0][0].float()))
        for name, module in model.named_modules()
        if name.endswith("self_attn")
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Returns the mean cosine of two models' outputs, over layers and tokens."""
    return float(np.mean([float(F.cosine_similarity(x, y, dim=-1).mean()) for x, y in zip(a, b, strict=True)]))


def refused_by(call: Callable[[], object]) -> str:
    """Says what refuses it."""
    try:
        call()
    except IdentityError:
        return "identity"
    except IlcpError:
        return "check"
    return "nothing"


if __name__ == "__main__":
    main()
