"""The tables of latent traces. See ``tables.py``."""

from collections.abc import Callable
from typing import Any

Result = Callable[[str], dict[str, Any]]
Table = Callable[[list[str], list[list[str]]], str]

TASKS = {
    "conversations": "conversations, SmolLM2",
    "dossier": "dossiers, embedded receiver",
    "graph": "graphs, symbols",
}
FRONT = (
    "everything, read by the reader",
    "first agent alone",
    "second agent alone",
    "prompts, no steps",
    "trace, soft",
    "trace, ridge",
    "trace, pause",
    "trace, shuffled and tuned so",
    "texts of as many tokens",
)
SHARES = {"": "first token, trace / everything", ", decoding counted in": "with decoding"}
STEPS = (0, 1, 2, 5, 10, 20, 40)


def _of(arm: dict[str, Any] | None, of: str = "exact") -> str:
    if arm is None:
        return ""
    figure = arm[of]
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _results(result: Result) -> dict[str, dict[str, Any]]:
    return {heading: result(f"trace-{task}") for task, heading in TASKS.items()}


def said(result: Result) -> str:
    """Says of each task, first of all, what the steps bring."""
    return "\n" + "".join(f"- **{name}**: {each['sentence']}\n" for name, each in _results(result).items()) + "\n"


def front(result: Result, table: Table) -> str:
    """Tabulates what a tuned reader answers, by what it is given."""
    found = _results(result)
    rows = [[name, *(_of(each["arms"].get(name)) for each in found.values())] for name in FRONT]
    return table(["the reader gets", *(f"{name} (n = {each['n']:,})" for name, each in found.items())], rows)


def arms(result: Result, table: Table, task: str) -> str:
    """Tabulates every arm of one task."""
    found = result(f"trace-{task}")["arms"]
    rows = []
    for name, arm in found.items():
        sure = ", ".join(f"{value:.2f}" for value in arm.get("perplexity", ()))
        by_seed = " / ".join(f"{value:.3f}" for value in arm["exact"]["by seed"])
        sizes = [f"{arm[of]:,}" if arm[of] else "" for of in ("tokens", "bytes")]
        rows.append([name, _of(arm), by_seed, _of(arm, "nats"), sure, *sizes])
    headings = ["exact match", "by seed", "nats of the gold answer", "perplexity of what was said: mean, 95th, above 2"]
    return table(["the reader gets", *headings, "tokens", "bytes"], rows)


def gains(result: Result, table: Table) -> str:
    """Tabulates the trace with its steps, and without, minus what it has to beat."""
    found, rows = _results(result), []
    for said, of in (("ten steps", "gains"), ("no steps", "gains without steps")):
        for name in dict.fromkeys(name for each in found.values() for name in each[of]):
            cells = (cell for each in found.values() for cell in _gain(each[of].get(name)))
            rows.append([f"{said} − {name}", *cells])
    return table(["", *(h for name in found for h in (f"{name}: exact", "nats", "answers that differ"))], rows)


def _gain(gain: dict[str, Any] | None) -> list[str]:
    if gain is None:
        return ["", "", ""]
    shown = [f"{gain[of]['value']:+.3f} [{gain[of]['low']:+.3f}, {gain[of]['high']:+.3f}]" for of in ("exact", "nats")]
    return [*shown, f"{gain['churn']:.3f}"]


def sweep(result: Result, table: Table) -> str:
    """Tabulates exact match by the number of steps."""
    found = _results(result)
    rows = []
    for steps in STEPS:
        name = {0: "prompts, no steps", 10: "trace, soft"}.get(steps, f"{steps} steps")
        arms = [each["arms"].get(name) for each in found.values()]
        rows.append(
            [str(steps), *(cell for arm in arms for cell in (_of(arm), "" if arm is None else _of(arm, "nats")))]
        )
    return table(["steps of each agent", *(h for name in found for h in (f"{name}: exact", "nats"))], rows)


def hops(result: Result, table: Table) -> str:
    """Tabulates exact match of graphs by hops; the last two are more than any reader was tuned on."""
    arms = result("trace-graph")["arms"]
    kinds = list(next(iter(arms.values()))["kinds"])
    rows = [[name, *(f"{arm['kinds'][kind]:.3f}" for kind in kinds)] for name, arm in arms.items()]
    return table(["the reader gets", *kinds], rows)


def times(result: Result, table: Table) -> str:
    """Tabulates what takes how long."""
    found = result("trace-times")
    rows = [[name, f"{s:.3f}"] for name, s in found["seconds"].items()]
    rows += [[f"first token, trace / everything{of}", f"{found[name]:.3f}"] for of, name in SHARES.items()]
    return table(["SmolLM2, 1,000 tokens", "seconds"], rows)
