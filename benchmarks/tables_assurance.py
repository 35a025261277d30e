"""The tables of what finds a codec that has gone wrong. See ``tables.py``."""

from collections.abc import Callable
from typing import Any

Result = Callable[[str], dict[str, Any]]
Table = Callable[[list[str], list[list[str]]], str]

LAYERS = ("sent", "received", "probed", "together")
BASELINES = ("KS on norms", "MMD", "domain classifier", "neighbours, AUROC")
NOTHING = "–"
CALM = 0.03  # of 500 messages found: no more than chance
FACES = {  # what a fault looks like to whoever runs the pair
    "texts": "fluent answers about something else",
    "payload": "confident answers that nobody handed over",
    "sender": "answers drift, or nothing changes",
    "receiver": "answers drift, or nothing changes",
    "chat": "answers in another manner, or wrong ones",
    "another": "fluent answers, all wrong",
    "RoPE": "answers drift, or nothing changes",
    "codec's": "answers get worse, or nothing changes",
    "slow": "a little worse every day",
}


def _found(layer: dict[str, Any] | None) -> str:
    if layer is None:
        return ""
    delay = NOTHING if layer["delay"] is None else f"{layer['delay']}"
    return f"{layer['auroc']:.2f}, {layer['detected']:.2f}, {delay}"


def _canary(row: dict[str, Any]) -> str:
    told = row["canary"]
    return f"{told['verdict'] or 'undecided'} after {told['asked']} ({told['right']} right)" if told else ""


def detection(result: Result, table: Table) -> str:
    """Tabulates, of every fault, what each layer and each baseline finds."""
    found = result("assurance")["faults"]
    rows = []
    for name, row in found["rows"].items():
        if name == "slow drift":
            continue
        baselines = [f"{row['baselines'][each]:.2f}" for each in BASELINES]
        layers = [_found(row.get(layer)) for layer in LAYERS]
        rows.append([name, row["identity"] or NOTHING, *layers, _canary(row), *baselines])
    head = ["fault", "identity", *LAYERS, "canary", *BASELINES]
    drift = found["rows"]["slow drift"]
    days = {
        end: NOTHING if drift[end]["day"] is None else f"day {drift[end]['day']:.0f}" for end in ("sent", "received")
    }
    said = (
        f"\nSlow drift (of {drift['per_day']} messages a day one in a hundred more is a conversation every day): the "
        f"sender's end raises an alarm on {days['sent']}, the receiver's on {days['received']}.\n"
    )
    return table(head, rows) + said


def short(result: Result, table: Table) -> str:
    """Tabulates, of every fault, what it looks like and who finds it."""
    rows = []
    for name, row in result("assurance")["faults"]["rows"].items():
        face = next(said for word, said in FACES.items() if name.startswith(word))
        if name == "slow drift":
            ends = [f"{each}: day {row[each]['day']:.0f}" for each in ("sent", "received") if row[each]["day"]]
            rows.append([name, face, NOTHING, NOTHING, ", ".join(ends) or NOTHING, NOTHING])
            continue
        each, alarms = [], []
        for layer in LAYERS[:3]:
            told = row.get(layer)
            if told and told["detected"] > CALM:
                each.append(f"{layer} {told['detected']:.2f}")
            if told and told["delay"] is not None:
                alarms.append(f"{layer} {told['delay']}")
        identity = f"refused: {row['identity']}" if row["identity"] else NOTHING
        canary = {"lost": "lost", "sound": "sound"}.get(row["canary"].get("verdict", ""), NOTHING)
        rows.append([name, face, identity, ", ".join(each) or NOTHING, ", ".join(alarms) or NOTHING, canary])
    return table(["fault", "looks like", "identity", "each message, found", "alarm after messages", "canaries"], rows)


def calm(result: Result, table: Table) -> str:
    """Tabulates false alarms."""
    rows = [
        [
            name, f"{row['n']:,}", f"{100 * row['at_1_percent']:.2f} %", f"{100 * row['at_0.1_percent']:.3f} %",
            "yes" if row["alarm"] else "no", f"{row['peak_evidence']:.2f} : 1",
            "no" if row["without_margin_alarm_at"] is None else f"at {row['without_margin_alarm_at']:,}",
        ]
        for name, row in result("assurance")["false-alarms"]["layers"].items()
    ]  # fmt: skip
    head = ["view", "messages", "below 0.01", "below 0.001", "alarm", "most evidence", "alarm without the margin"]
    return table(head, rows)


def hostile(result: Result, table: Table) -> str:
    """Tabulates payloads of the right length that no sender made."""
    found = result("assurance")["hostile"]["rows"]
    names = list(next(iter(found.values())))
    return table(["payload", *names], [[name, *(f"{row[of]:,}" for of in names)] for name, row in found.items()])


def caches(result: Result, table: Table) -> str:
    """Tabulates what the receiver's end finds of caches."""
    rows = [[name, _found(row)] for name, row in result("assurance-caches")["rows"].items()]
    return table(["cache", "AUROC, found at 1 %, alarm after"], rows)


def cost(result: Result) -> str:
    """Says what assurance adds to a hand-off."""
    found = result("assurance")["cost"]
    told = [
        f"at {where} {each['ratio']:.4f} [{each['low']:.4f}, {each['high']:.4f}]"
        for where, each in (("the receiver, as by default,", found["receiver"]), ("both ends", found["both ends"]))
    ]
    about = f"paired, n = {found['receiver']['n']}, {1000 * found['without_s']:.1f} ms, {found['threads']} thread"
    return f"\nA hand-off with assurance takes, of one without: {'; '.join(told)} ({about}).\n\n"
