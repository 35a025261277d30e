"""The tables of ``conversations.py``: what was asked of it beside what came out, and every arm."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["GOALS", "conversations", "front", "goals"]

Table = Callable[[list[str], list[list[str]]], str]
Number = Callable[[dict[str, Any] | None], str]
Figure = dict[str, Any]
FIRST_PAIR = "smollm2-smollm2"
NOTHING = "\nNothing is measured yet.\n\n"
SAID, NEW, EVERY = "said", "said, new services", "said, all services"
TIME = "first token, message, encode and wire / text"
FRONT = {  # what the receiver gets -> the arm in each column of the README
    "message": ("message", "message", "message-20", "message-80"),
    "text, what the receiver's model codes into as many bytes": ("lm-80", "lm-80", "lm-20", "lm-80"),
    "full text": ("text", "text", "text", "text"),
    "another's message": ("mismatched", "mismatched", None, None),  # that of the longest payload alone is measured
    "nothing": ("none", "none", "none", "none"),
}
KINDS = {"said, seen services": SAID, "said, new services": NEW, "absent": "absent, all services"}


class Goal(NamedTuple):
    """A figure of a history of ``size`` conversations; ``must`` and ``aim`` are what it is held against, by ``part``:
    ``value``, or ``low``, the interval's lower end."""

    name: str
    size: int
    path: tuple[str, ...]
    must: float | None = None
    aim: float | None = None
    part: str = "value"
    below: bool = False


def _arm(arm: str, kind: str, metric: str) -> tuple[str, ...]:
    return "figures", "arms", arm, kind, metric


def _above(arm: str, rival: str) -> tuple[str, ...]:
    return "differences", f"{arm} - {rival}", EVERY, "exact"


GOALS = (
    Goal("full text, said, seen services", 1, _arm("text", SAID, "exact"), 0.8, 0.9),
    Goal("full text, all said slots of a conversation, seen services", 1, _arm("text", SAID, "joint"), None, 0.5),
    Goal("recovery, 80 bytes, seen services", 1, _arm("message", SAID, "recovery, exact"), 0.6, 0.85),
    Goal("recovery, 80 bytes, new services", 1, _arm("message", NEW, "recovery, exact"), None, 0.6),
    Goal("message minus coded text, 20 bytes, one conversation", 1, _above("message-20", "lm-20"), 0, None, "low"),
    Goal("message minus coded text, 40 bytes, one conversation", 1, _above("message-40", "lm-40"), None, 0, "low"),
    Goal("message minus coded text, 80 bytes, four", 4, _above("message-80", "lm-80"), 0, None, "low"),
    Goal("message minus coded text, 160 bytes, four", 4, _above("message-160", "lm-160"), None, 0, "low"),
    Goal("message minus another case's, 80 bytes", 1, _above("message", "mismatched"), 0.3, 0.6, "low"),
    Goal("recovery, verified, 140 bytes, all services", 1, _arm("verified-140", EVERY, "recovery, exact"), 0.85, 0.95),
    Goal("recovery, verified, 140 bytes, seen services", 1, _arm("verified-140", SAID, "recovery, exact"), 0.85, 0.95),
    Goal("first token, message over text, one conversation", 1, ("figures", "cost", TIME)),
    Goal("first token, message over text, four", 4, ("figures", "cost", TIME), None, 0.5, below=True),
)


def goals(results: Path, table: Table, number: Number) -> str:
    """Makes the table of what the first pair must reach and should, beside what it and the others did."""
    records = _records(results)
    if not records:
        return NOTHING
    rows, times = [], _records(results, "times")  # those of a later codec of the pair, where the pair's own lack them
    for goal in GOALS:
        found = {pair: _figure(record, goal) for pair, record in records.items()}
        if TIME in goal.path:
            found = {pair: figure or _figure(times.get(pair), goal) for pair, figure in found.items()}
        wanted = ["–" if limit is None else _limit(goal, limit) for limit in (goal.must, goal.aim)]
        says = _judged(goal, found.get(FIRST_PAIR))
        rows.append([goal.name, *wanted, *(number(figure) for figure in found.values()), says])
    return table(["exact match of said slots", "must", "aim", *records, FIRST_PAIR + " says"], rows)


def front(results: Path, table: Table, number: Number) -> str:
    """Makes the table of the README: what was said that the receiver of the first pair tells, word for word."""
    record = _records(results).get(FIRST_PAIR)
    if record is None or not {"1", "4"} <= record["histories"].keys():
        return NOTHING
    one, four = (record["histories"][size] for size in ("1", "4"))
    columns = {
        "one conversation, services of the training, 80 bytes": (one, SAID),
        "one conversation, all services, 80 bytes": (one, EVERY),
        "20 bytes": (one, EVERY),
        "four conversations in a row, 80 bytes": (four, EVERY),
    }
    rows = [
        [what, *(number(_right(*place, arm)) for place, arm in zip(columns.values(), arms, strict=True))]
        for what, arms in FRONT.items()
    ]
    counts = [f" (n = {_right(*place, 'text')['n']})" for place in columns.values()]  # type: ignore[index]
    return table(["the receiver gets", *map("".join, zip(columns, counts, strict=True))], rows)


def _right(found: Figure, kind: str, arm: str | None) -> Figure | None:
    return None if arm is None else found["figures"]["arms"].get(arm, {}).get(kind, {}).get("exact")


def conversations(results: Path, table: Table, number: Number) -> str:
    """Makes the tables of every arm: one for each pair and size of history, and one of what a codec learned from."""
    made = [
        _title(pair, size, found, record) + _arms(found, table, number)
        for pair, record in _records(results).items()
        for size, found in record["histories"].items()
    ]
    made += [
        f"\n**{_named(pair)}, {found['n']} conversations that the codec learned from** (of "
        f"{record['training']['cases']['training']} cases, histories among them).\n" + _arms(found, table, number)
        for pair, record in _records(results, "learned").items()
        for found in record["histories"].values()
    ]
    return "".join(made) or NOTHING


def _records(results: Path, kind: str = "conversations") -> dict[str, dict[str, Any]]:
    files = sorted(results.glob(f"{kind}-*.json"), key=lambda file: (FIRST_PAIR not in file.name, file.name))
    records = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    return {record["pair"]: record for record in records}


def _figure(record: dict[str, Any] | None, goal: Goal) -> Figure | None:
    found: Any = {} if record is None else record["histories"].get(str(goal.size), {})
    for name in goal.path:
        found = found.get(name, {})
    return found or None


def _limit(goal: Goal, limit: float) -> str:
    sign = "< " if goal.below else "interval above " if goal.part == "low" else ""
    return f"{sign}{limit:g}"


def _judged(goal: Goal, figure: Figure | None) -> str:
    """Says whether must and aim are met, and by how much they are missed."""
    if figure is None or figure.get(goal.part) is None:
        return "not measured"
    value = figure[goal.part]
    said = []
    for name, limit in (("must", goal.must), ("aim", goal.aim)):
        if limit is not None:
            short = value - limit if goal.below else limit - value
            strict = goal.below or goal.part == "low"
            met = short < 0 or (short == 0 and not strict)
            said.append(f"{name} met" if met else f"**{name} missed by {short:.3f}**")
    return ", ".join(said) or "reported"


def _title(pair: str, size: str, found: dict[str, Any], record: dict[str, Any]) -> str:
    lines = [
        f"\n**{_named(pair)}, histories of {size}** (n = {found['n']}, {found['n_new_services']} of them "
        "about services that no training conversation has)."
    ]
    reader = record["training"].get("reader")
    if size == "1" and reader:
        lines.append(
            f" Tuning alone: {reader['before']['exact']:.3f} exact from the full text before, "
            f"{reader['after']['exact']:.3f} after it, on {reader['questions']} questions of validation cases."
        )
    return "".join(lines) + "".join(f" {note}." for note in found["notes"]) + "\n"


def _named(pair: str) -> str:
    return pair.replace("-", " to ")


def _arms(found: dict[str, Any], table: Table, number: Number) -> str:
    """Makes the table of the arms, each with the difference to the message of as many bytes where it rivals one."""
    made, differences = found["figures"], found["differences"]
    over: dict[str, Figure] = {}  # by the rival: a message before one that was read back
    for (_, rival), kinds in ((pair.split(" - "), kinds) for pair, kinds in differences.items() if EVERY in kinds):
        over.setdefault(rival, kinds[EVERY]["exact"])
    over.pop("mismatched", None)
    rows = []
    for arm, kinds in made["arms"].items():
        scores = [kinds.get(kind, {}) for kind in KINDS.values()]
        every = kinds.get(EVERY, {})
        rows.append(
            [
                arm,
                f"{made['bytes'][arm]['wire']['value']:.0f}" if arm in made["bytes"] else "",
                *(number(score.get("exact")) for score in scores),
                number(every.get("joint")),
                number(every.get("recovery, exact")),
                number(every.get("log_likelihood")),
                number(over.get(arm)),
            ]
        )
    columns = ["joint, said", "recovery, said", "nats, said", "message of as many bytes minus this, said"]
    return table(["arm", "bytes on the wire, mean", *KINDS, *columns], rows)
