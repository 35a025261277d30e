"""Makes the figures of a trace benchmark out of its raw answers, which stay where they were measured.

    python benchmarks/trace_report.py runs/trace-dossier.json --out benchmarks/results/trace-dossier.json

Each figure is a mean over questions and seeds; its interval draws documents, each with what all seeds said about it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ilcp.measure.bootstrap import Bootstrap
from ilcp_codecs.trace.worth import sureness

NO_STEPS, PAUSE = "prompts, no steps", "trace, pause"
FLOORS, CEILING = ("first agent alone", "second agent alone"), "everything, read by the reader"
AGAINST = (
    NO_STEPS,
    PAUSE,
    "its steps shuffled",
    "trace, shuffled and tuned so",
    "another case's steps",
    "its steps zero",
    "its steps left out",
    "untrained trace",
    *FLOORS,
    CEILING,
)
ENDS = (*FLOORS, CEILING, "texts of as many tokens")


def report(raw: dict[str, Any]) -> dict[str, Any]:
    """All figures of one task."""
    documents, kinds = raw["documents"], np.array(raw["kinds"])
    draws = Bootstrap(documents, seed=0)
    seeds = sorted({seed for arm in raw["arms"].values() for seed in arm})
    arms = {name: _arm(found, draws, kinds) for name, found in raw["arms"].items()}
    rule, steps = raw["settings"]["rule"], raw["settings"]["steps_latent"]
    with_steps = _gains(raw["arms"], f"trace, {rule}", AGAINST, draws)
    without = _gains(raw["arms"], NO_STEPS, ENDS, draws)
    return {
        "task": raw["settings"]["task"],
        "seed": 0,  # of the intervals
        "seeds": [int(seed) for seed in seeds],
        "n": len(documents),
        "settings": raw["settings"],
        "arms": arms,
        "gains": with_steps,
        "gains without steps": without,
        "sentence": sentence(with_steps, rule, steps),
        "provenance": raw["provenance"],
    }


def _gains(arms: dict[str, Any], name: str, against: Sequence[str], draws: Bootstrap) -> dict[str, Any]:
    """Returns an arm minus others, over the seeds that both have."""
    own, gains = arms.get(name, {}), {}
    for other in against:
        both = sorted(own.keys() & arms.get(other, {}).keys())
        if both:
            figures = {of: _difference(own, arms[other], both, of, draws) for of in ("exact", "nats")}
            churn = np.mean([_churn(own[seed], arms[other][seed]) for seed in both])
            gains[other] = figures | {"seeds": both, "churn": round(float(churn), 4)}
    return gains


def _arm(found: dict[str, Any], draws: Bootstrap, kinds: Any) -> dict[str, Any]:
    seeds = sorted(found)
    record: dict[str, Any] = {"seeds": [int(seed) for seed in seeds]}
    for of in ("exact", "nats"):
        values = np.mean([np.array(found[seed][of], float) for seed in seeds], axis=0)
        figure = draws.of(np.asarray, values)
        record[of] = {"value": _r(figure.value), "low": _r(figure.low), "high": _r(figure.high)}
        record[of]["by seed"] = [_r(float(np.mean(found[seed][of]))) for seed in seeds]
        if of == "exact" and len(set(kinds)) < 8:
            record["kinds"] = {kind: _r(float(values[kinds == kind].mean())) for kind in dict.fromkeys(kinds)}
    sure = [value for seed in seeds for value in found[seed]["perplexity"]]
    if sure:
        record["perplexity"] = [*map(_r, sureness(sure))]
    for of in ("tokens", "bytes"):
        values = [value for seed in seeds for value in found[seed][of]]
        record[of] = round(float(np.mean(values))) if values else None
    record["s"] = [found[seed]["s"] for seed in seeds]
    return record


def _difference(own: Any, other: Any, seeds: list[str], of: str, draws: Bootstrap) -> dict[str, Any]:
    a, b = (np.mean([np.array(arm[seed][of], float) for seed in seeds], axis=0) for arm in (own, other))
    figure = draws.of(np.subtract, a, b)
    each = [_r(float(np.mean(own[seed][of]) - np.mean(other[seed][of]))) for seed in seeds]
    return {"value": _r(figure.value), "low": _r(figure.low), "high": _r(figure.high), "by seed": each}


def _churn(own: Any, other: Any) -> float:
    return float(np.mean([a != b for a, b in zip(own["answers"], other["answers"], strict=True)]))


def sentence(gains: dict[str, Any], rule: str, steps: int) -> str:
    """What the steps bring, said first."""
    parts = []
    for name in (NO_STEPS, PAUSE, "trace, shuffled and tuned so"):
        if name in gains:
            gain = gains[name]["exact"]
            verdict = (
                "more than" if gain["low"] > 0 else "less than" if gain["high"] < 0 else "not measurably more than"
            )
            parts.append(f"{verdict} {name} ({gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}])")
    return f"{steps} latent steps by {rule} bring {'; '.join(parts)}." if parts else "No steps were measured."


def _r(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("raw", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", required=True, help="that measured it, without paths of a machine")
    parser.add_argument("--commit", help="that measured it, where the raw answers do not say")
    options = parser.parse_args()
    found = report(json.loads(options.raw.read_text()))
    found["provenance"]["command"] = options.command
    if options.commit:
        found["provenance"]["commit"] = options.commit
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(found["sentence"])


if __name__ == "__main__":
    main()
