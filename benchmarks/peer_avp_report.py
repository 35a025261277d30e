"""The figures and findings of ``peer_avp.py``: what is said of the hand-offs that it made."""

import textwrap
from typing import Any, NamedTuple

import numpy as np

from ilcp.measure import Measured
from ilcp.measure.bootstrap import Bootstrap
from ilcp.tasks import Case


class PeerArm(NamedTuple):
    """The model that reads, the one that answers, and the number of latent steps."""

    source: str
    target: str
    steps: int


PEER_ARMS = {
    "avp": PeerArm("sender", "sender", 20),
    "avp_0": PeerArm("sender", "sender", 0),
    "avp_receiver": PeerArm("receiver", "receiver", 20),
    "avp_receiver_0": PeerArm("receiver", "receiver", 0),
    "avp_cross": PeerArm("sender", "receiver", 20),
}
COLUMNS = ("ilcp", *PEER_ARMS)
FANNED_OUT = ("avp", "avp_receiver")
HAND_OFF = ("sender's step", "to bytes", "from bytes", "first token")
TIMES = (*HAND_OFF, "whole hand-off", "first token, full text")
ARMS = {"hand-off": "from the hand-off", "full text": "by the answerer from the full text", "nothing": "from nothing"}
CHECKPOINTS = {  # a receiver with these weights -> whether it should be accepted
    "other weights under the same name": False,
    "other weights in another folder": False,
    "the same weights in another folder": True,
}
CALLS = 8  # of one memory
Figures = dict[str, Measured | None]
Records = dict[str, list[dict[str, Any]]]  # by column, one per document


def rows(cases: list[Case], records: Records, fans: Records, trials: dict[str, Any], seed: int) -> dict[str, Figures]:
    """Makes every figure, by what it is and by column; None where a column has no such thing."""

    def mean(values: list[Any], unit: str = "") -> Measured | None:
        if None in values:
            return None
        one_per_document = Bootstrap(range(len(values)), seed=seed)
        return one_per_document.of(lambda means: means, np.array(values, dtype=np.float64), unit=unit)

    def time(step: str, percentile: int) -> Figures:
        taken = {column: [one["times"].get(step) for one in found] for column, found in records.items()}
        return {
            column: None if None in values else Measured(float(np.percentile(values, percentile)), "ms", len(values))
            for column, values in taken.items()
        }

    text = mean([len(case.context.encode()) for case in cases], "B")
    found: dict[str, Figures] = {
        "bytes on the wire": {c: mean([one["bytes"] for one in them], "B") for c, them in records.items()},
        "bytes of the text handed over": dict.fromkeys(records, text),
    }
    for step in TIMES:
        found[f"{step}, median"], found[f"{step}, 99th percentile"] = time(step, 50), time(step, 99)
    for arm, where in ARMS.items():
        right = {column: [one["right"][arm] for one in them] for column, them in records.items()}
        found[f"look-ups right, {where}"] = {column: mean(values) for column, values in right.items()}
    found[f"hand-offs whose {CALLS} answers to one question agree"] = {
        c: mean([len(set(one["same"])) == 1 for one in them]) for c, them in fans.items()
    }
    found[f"hand-offs that answer {CALLS} questions in turn as {CALLS} fresh copies do"] = {
        c: mean([one["in turn"] == one["fresh"] for one in them]) for c, them in fans.items()
    }
    for part, where in (("payload", "inside the payload"), ("rest", "outside the payload")):
        flips = {column: trial["flips"][part] for column, trial in trials.items()}
        found[f"single flipped bits refused, {where}"] = {
            c: Measured(one["refused"] / one["tried"], "", one["tried"]) for c, one in flips.items()
        }
    empty: Figures = dict.fromkeys(COLUMNS)
    return {what: empty | figures for what, figures in found.items()}


def findings(fans: Records, trials: dict[str, Any], failures: dict[str, str]) -> list[dict[str, Any]]:
    """Says what is so and what is not, with how it was found; a yes is always what one would wish for."""
    ilcp, avp = trials["ilcp"], trials["avp"]
    found: list[dict[str, Any]] = []

    def add(what: str, of_ilcp: tuple[bool, str], of_avp: tuple[bool, str]) -> None:
        sides = {"ilcp": of_ilcp, "avp": of_avp}
        found.append({"what": what} | {side: {"yes": yes, "how": how} for side, (yes, how) in sides.items()})

    add(f"the memory is the same after {CALLS} calls", *(unchanged(fans[side]) for side in ("ilcp", "avp")))
    for name, wanted in CHECKPOINTS.items():
        verb = "accepts" if wanted else "refuses"
        sides = [side["checkpoints"][name] for side in (ilcp, avp)]
        add(f"{verb} a receiver with {name}", *((one["accepted"] == wanted, outcome(one)) for one in sides))
    for part, where in (("payload", "inside"), ("rest", "outside")):
        add(f"refuses every flipped bit {where} the payload", *(flipped(side["flips"][part]) for side in (ilcp, avp)))
    accepted = [one["answer"] for one in ilcp["forged"] if one["accepted"]]
    finite = sum(one["finite"] for one in accepted)
    avp_forged = "; ".join(f"{name}: {outcome(one)}" for name, one in avp["forged"].items())
    add(
        "refuses another payload whose checksum was made anew, without a key",
        (not accepted, f"{len(accepted)} of {len(ilcp['forged'])} payloads of zeros, ones and random bytes accepted"),
        (not any(one["accepted"] for one in avp["forged"].values()), avp_forged),
    )
    add(
        "whatever the payload, what reaches the receiver is finite",
        (finite == len(accepted), f"{finite} of the {len(accepted)} accepted above decode to finite vectors"),
        (not avp["forged"]["NaN"]["accepted"], f"a cache of NaN: {outcome(avp['forged']['NaN'])}"),
    )
    takes = avp["to_bytes takes"]
    seals = [ilcp[name]["accepted"] for name in ("own seal", "forged seal", "no seal")]
    add(
        "refuses it where both ends share a key",
        (seals == [True, False, False], f"{outcome(ilcp['forged seal'])}; unsealed: {outcome(ilcp['no seal'])}"),
        (any("key" in name for name in takes), f"to_bytes takes {', '.join(takes)}"),
    )
    cross = avp["cross"].items()
    add(
        "hands over between two different models through bytes",
        (bool(fans["ilcp"]), f"{len(fans['ilcp'])} messages answered from"),
        (any(one["accepted"] for _, one in cross), "; ".join(f"{name}: {outcome(one)}" for name, one in cross)),
    )
    for column, error in failures.items():
        add(f"the column {column} works", (True, "not of ilcp"), (False, error))
    return found


def unchanged(fans: list[dict[str, Any]]) -> tuple[bool, str]:
    """Tells whether no fan-out changed its memory, and what became of the first."""
    before, after = fans[0]["tokens"]
    changed = sum(fan["changed"] for fan in fans)
    return not changed, f"{changed} of {len(fans)} changed; the first from {before} to {after} positions"


def flipped(flips: dict[str, Any]) -> tuple[bool, str]:
    """Tells whether every flip was refused, and with what."""
    errors = "".join(f", {count} {name}" for name, count in flips["errors"].items())
    return flips["refused"] == flips["tried"], f"{flips['refused']} of {flips['tried']} refused{errors}"


def outcome(trial: dict[str, Any]) -> str:
    """Says one trial in a few words."""
    if not trial["accepted"]:
        said = f"refused, {textwrap.shorten(trial['error'], 150)}"
    else:
        said = f"accepted, answers {textwrap.shorten(str(trial['answer']), 60)!r}"
    return said + (f" (handshake: {trial['handshake']})" if "handshake" in trial else "")


def show(record: dict[str, Any]) -> None:
    """Prints the table and the findings."""
    print(" | ".join(["", *COLUMNS]))
    for row in record["rows"]:
        cells = [f"{row[c]['value']:.4g} {row[c]['unit']}".strip() if row[c] else "–" for c in COLUMNS]
        print(" | ".join([row["what"], *cells]))
    for finding in record["findings"]:
        print(finding["what"])
        for side in ("ilcp", "avp"):
            print(f"    {side}: {'yes' if finding[side]['yes'] else 'no'}: {finding[side]['how']}")
