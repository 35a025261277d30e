"""The figures of ``conversations.py``'s reports, without the questions and answers, which are the data set's."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from conversations_data import NEW

from ilcp.codec.folder import training_of
from ilcp.measure import Report
from ilcp.measure.report import plain
from ilcp.measure.verified import ENVELOPE_BYTES

__all__ = ["EVERY", "merged", "record_of"]

EVERY = ", all services"  # behind the kind of a question, in the place of NEW or nothing
LEFT_OUT = ("delivered",)  # bits: what an answer is worth is known of no conversation
TRAINED = ("cases", "steps", "minutes", "seed", "step_s", "reader", "recipe")


def record_of(
    pair: str, seed: int, file: Path, codec: Path, reports: Mapping[int, Report], checked: Mapping[str, float] | None
) -> dict[str, Any]:
    """Returns what is committed: where the figures come from, and the figures by size of the history."""
    training = training_of(codec)
    return {
        "pair": pair,
        "seed": seed,
        "data": {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
        "provenance": dict(next(iter(reports.values())).provenance),
        "training": {name: training[name] for name in TRAINED if name in training}
        | {"machine": training.get("provenance", {}).get("machine")},
        "lm_check": checked,
        "histories": {str(size): _figures(report) for size, report in reports.items()},
    }


def _figures(report: Report) -> dict[str, Any]:
    every = merged(report)
    figures = {name: made for name, made in report.figures().items() if name not in LEFT_OUT}
    arms = figures["arms"]
    for arm, kinds in every.figures()["arms"].items():
        arms[arm] |= {kind + EVERY: scores for kind, scores in kinds.items() if kind != "all"}
    of_kind = dict.fromkeys(zip(report.items.documents, report.items.kinds, strict=True))
    new = {document for document, kind in of_kind if kind.endswith(NEW)}
    return {
        "n": report.n,
        "n_new_services": len(new),
        "questions": {kind: report.items.kinds.count(kind) for kind in report.kinds},
        "notes": list(report.notes),
        "differences": plain(_differences(report, every)),
        "figures": plain(figures),
    }


def merged(report: Report) -> Report:
    """Returns the report with questions about new services under the kinds of all others."""
    kinds = tuple(kind.removesuffix(NEW) for kind in report.items.kinds)
    return replace(report, items=replace(report.items, kinds=kinds))


def _differences(report: Report, every: Report) -> dict[str, Any]:
    """Returns each message minus its rivals of as many bytes, and minus another case's, by kind and metric."""
    pairs = [(arm.rival_of, name) for name, arm in report.arms.items() if arm.rival_of in report.arms]
    for budget in (name.partition("-")[2] for name in report.arms if name.startswith("verified-")):
        pairs.append((f"verified-{budget}", f"lm-{int(budget) - ENVELOPE_BYTES}"))
    pairs += [(name, "mismatched") for name, arm in report.arms.items() if arm.family == "message"]
    made: dict[str, Any] = {}
    for arm, rival in dict.fromkeys(pairs):
        if arm is None or not {arm, rival} <= report.arms.keys():
            continue
        made[f"{arm} - {rival}"] = {
            kind + ending: {of: one.difference(arm, rival, kind, of=of) for of in one.metrics}
            for one, ending in ((report, ""), (every, EVERY))
            for kind in one.kinds
        }
    return made
