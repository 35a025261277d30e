"""What people see of a report: its plots, its page, its tables."""

import numpy as np
import pytest

from ilcp.measure.cost import CACHED, POINT_STEPS, PROMPTS, STEPS, Cost, Point
from ilcp.measure.figures import Citation, Computed
from ilcp.measure.items import Arm, Items
from ilcp.measure.report import Report

KINDS = ("lookup", "join", "absent", "code")
DOCUMENTS, QUESTIONS = 16, 8
LENGTHS = (80, 40, 20, 10)
OVERHEAD = 20  # bytes of an envelope


def make_items(kinds: tuple[str, ...] = KINDS) -> Items:
    """Eight questions about each of sixteen documents, the kinds in turn."""
    n = DOCUMENTS * QUESTIONS
    return Items(
        cases=tuple(f"case {number}" for number in range(DOCUMENTS)),
        entropy_bits=(140.0,) * DOCUMENTS,
        documents=tuple(number // QUESTIONS for number in range(n)),
        kinds=tuple(kinds[number % len(kinds)] for number in range(n)),
        questions=tuple(f"question {number}?" for number in range(n)),
        golds=tuple(f"gold {number}" for number in range(n)),
        worth_bits=(5.0,) * n,
        stands_for=(1.0,) * n,
    )


def make_arm(name: str, family: str, skill: float, payload: int = 0, *, closed: bool = True, rival: str | None = None):
    """An arm that answers a share of about ``skill`` of the questions."""
    rng = np.random.default_rng([*name.encode()])
    right = rng.random(DOCUMENTS * QUESTIONS) < skill
    nats = np.round(-3.5 * (1 - skill) * rng.random(len(right)) - 0.1 * rng.random(len(right)), 4).tolist()
    sizes = (rng.integers(payload - payload // 20, payload + 1, DOCUMENTS)).tolist() if payload else []
    return Arm(
        name=name,
        family=family,
        answers=tuple(None if found else "gold or not" for found in right) if closed else (),
        nats=tuple(nats),
        new_nats=tuple(nats),
        payload_bytes=tuple(sizes),
        wire_bytes=tuple(size + OVERHEAD for size in sizes),
        rival_of=rival,
    )


def make_arms(closed: bool, hops: int) -> dict[str, Arm]:
    """Every arm of a run, as good as in a run of the embedded pair."""
    told = [("text", "text", 0.93, 1100, None), ("none", "control", 0.12, 0, None)]
    for length, skill in zip(LENGTHS, (0.78, 0.6, 0.42, 0.3), strict=True):
        name = "message" if length == LENGTHS[0] else f"message-{length}"
        told.append((name, "message", skill, length, None))
        for text, worth in {"head": 0.24, "tail": 0.2, "zstd": 0.26, "lm": 0.4}.items():
            told.append((f"{text}-{length}", "text of equal bytes", worth * skill + 0.1, length, name))
        told.append((f"oracle-{length}", "limit", min(1.0, 0.2 + length / 40), length, None))
    told += [(name, "control", 0.12, LENGTHS[0], None) for name in ("other", "zero", "random")]
    told += [("continuous", "limit", 0.83, 0, None), ("index", "limit", 0.95, 1, None)]
    for hop in range(1, hops + 1):
        told += [(f"forwarded-{hop}", "hops", 0.78, 80, None), (f"reencoded-{hop}", "hops", 0.85 - 0.15 * hop, 80, None)]
        told += [(f"{text}-hops-{hop}", "hops", 0.36 - 0.05 * hop, 80, None) for text in ("head", "tail", "zstd", "lm")]
    return {name: make_arm(name, family, skill, b, closed=closed, rival=r) for name, family, skill, b, r in told}


def make_cost() -> Cost:
    """Times as of two small models."""
    rng = np.random.default_rng(5)

    def samples(steps: dict[str, float], n: int) -> dict[str, tuple[float, ...]]:
        return {step: tuple((median * rng.gamma(40, 1 / 40, n)).tolist()) for step, median in sorted(steps.items())}

    lengths = (32, 64, 128, 256, 512)
    per_point = [
        {"text": 4 + 0.03 * tokens, "message": 6.5, "encode": 2 + 0.002 * tokens, "wire out": 0.02} for tokens in lengths
    ]
    assert POINT_STEPS == set(per_point[0])
    return Cost(
        question="Who reported it?",
        threads=1,
        reads="states",
        samples=samples({step: 9.0 if "text" in step else 5.0 for step in STEPS}, 60),
        tokens={prompt: (300 if prompt == "text" else 40,) * 60 for prompt in PROMPTS},
        points=tuple(Point(tokens, samples(steps, 20)) for tokens, steps in zip(lengths, per_point, strict=True)),
        sizes={"weights": 1_000_000, "layers": 4, "width": 128, "head": 200_000},
        flops={
            "text": 600_000_000,
            "message": 90_000_000,
            "codec encodes": 40_000_000,
            "codec decodes": 8_000_000,
            "text tokens": 300,
            "message tokens": 40,
        },
        parts={"payload": 80, "codec id": 8, "envelope": 8, "check": 4},
        kv_token=Computed(4096, "B", "2 * layers * kv_heads * head_dim * 4", {"layers": 4, "kv_heads": 4, "head_dim": 32}),
        skipped={CACHED: "expected past_key_values, got none"},
    )


def make_report(*, closed: bool = True, hops: int = 3, with_cost: bool = True, **changed) -> Report:
    """A finished report; ``changed`` fields stand in the place of its own."""
    fields = dict(
        task="dossier test",
        seed=11,
        closed=closed,
        codec={"codec_id": "7e393733c843e2b8", "name": "vae", "payload_bytes": 80, "prefixes": [10, 20, 40, 80]},
        items=make_items(),
        arms=make_arms(closed, hops),
        provenance={
            "commit": "0123456789ab+",
            "versions": {"ilcp": "0.1.0", "torch": "2.13.0"},
            "python": "3.11.9",
            "machine": "Linux x86_64, 2 x Some Processor",
            "command": "ilcp bench --html page.html",
            "models": {"sender": {"name": "small sender", "weights": "ab" * 8}, "receiver": {"name": "small receiver"}},
        },
        cost=make_cost() if with_cost else None,
        notes=("other-80: not measured, the codec refuses it (expected more)",),
        footnotes=(Citation("Prompts of 500 tokens fit into one vector.", "arXiv:2502.13063", "Llama-3.1-8B"),),
    )
    return Report(**(fields | changed))
