"""ilcp beside a peer, `avp` 0.6.2 (Agent Vector Protocol, Apache-2.0), on the same two small models and documents.

    python benchmarks/peer_avp.py                      # writes benchmarks/results/peer-avp.json

The peer lives in an environment of its own (``--avp-python``); without one, this says how to make it, and ends.

What each does, and does not do:

- avp hands the reader's whole KV cache to the same model: about a megabyte here, growing with every token. Nothing of
  the context is lost, nothing is trained, any document will do. Its receiver appends to the context that it is given;
  whoever deserialises once per call has a fresh one. Between two models it projects one vector, inside one process.
- ilcp hands about 100 bytes to another model. The message is lossy, and its codec was trained for this pair and this
  kind of document: it cannot carry what avp carries, and knows nothing of other texts.

So a look-up is easy for avp's cache and hard for a small message; what the bytes cost on a network is in no time here.
Both models are tiny: fixed costs weigh more than they would in a large one. Columns::

    ilcp             sender's model -> message -> receiver's model
    avp              the sender's model at both ends, 20 latent steps (avp's default)
    avp_0            the same without latent steps
    avp_receiver     the receiver's model at both ends, 20 steps     (the same model answers as in ilcp's column)
    avp_receiver_0   the same without latent steps
    avp_cross        sender's model -> projection -> receiver's model, 20 steps (one process: no bytes)

Each process runs on one thread; documents alternate between them, after a warm-up, each side making an untimed call
before its clock starts. Answers are greedy. ``load_average`` says what else the machine was doing.
"""

import argparse
import copy
import json
import os
import random
import shutil
import tempfile
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peer_avp_worker import ANSWER_TOKENS, Client, PeerError, attempt, digest, flip, perturb, timed

from ilcp import Message, Receiver
from ilcp.embedded import HERE as MODELS
from ilcp.embedded import Pair, load_pair
from ilcp.measure import Measured, provenance
from ilcp.measure.bootstrap import Bootstrap
from ilcp.message import Seal, describe
from ilcp.models.loading import load_model
from ilcp.tasks import Case, case_files

HERE = Path(__file__).parent
PYTHON = Path(".venv-avp") / "bin" / "python"
NOTE = f"""no interpreter with avp at {{python}}: nothing was measured. To make one, in the repository's root:
    python3 -m venv .venv-avp
    .venv-avp/bin/pip install -c constraints.txt torch==2.13.0 transformers avp==0.6.2
then run this again, or name another with --avp-python (default: {PYTHON})."""


class ArmSpec(NamedTuple):
    """Who reads, who answers, and after how many latent steps."""

    source: str
    target: str
    steps: int


WAYS = {
    "avp": ArmSpec("sender", "sender", 20),
    "avp_0": ArmSpec("sender", "sender", 0),
    "avp_receiver": ArmSpec("receiver", "receiver", 20),
    "avp_receiver_0": ArmSpec("receiver", "receiver", 0),
    "avp_cross": ArmSpec("sender", "receiver", 20),
}
COLUMNS = ("ilcp", *WAYS)
FANNED_OUT = ("avp", "avp_receiver")
HAND_OFF = ("sender's step", "to bytes", "from bytes", "first token")
TIMES = (*HAND_OFF, "whole hand-off", "first token, full text")
ARMS = {"hand-off": "from the hand-off", "full text": "by the answerer from the full text", "nothing": "from nothing"}
CHECKPOINTS = {  # a receiver with these weights -> whether it should be accepted
    "other weights under the same name": False,
    "other weights in another folder": False,
    "the same weights in another folder": True,
}
WARM_UP, CALLS, NOISE, SCALE, FLIPS, FORGED = 5, 8, 0.5, -8.0, 1000, 100
Figures = dict[str, Measured | None]
Records = dict[str, list[dict[str, Any]]]  # by column, one per document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--avp-python", type=Path, default=HERE.parent / PYTHON)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "peer-avp.json")
    args = parser.parse_args()
    if not args.avp_python.exists():
        print(NOTE.format(python=args.avp_python))
        return
    torch.set_num_threads(1)
    load_average = [os.getloadavg()]
    pair, worker = load_pair(), Client(args.avp_python.absolute())
    peer = worker.ask("load", sender=str(MODELS / "sender"), receiver=str(MODELS / "receiver"))
    cases = list(case_files("test", args.seed, args.n + WARM_UP))
    records, failures = hand_offs(pair, worker, cases)
    cases = cases[WARM_UP:]
    fans = fan_outs(pair, worker, cases[: min(50, args.n)])
    trials = {"ilcp": ilcp_trials(pair, cases[0], args.seed), "avp": avp_trials(worker, cases[0], args.seed)}
    worker.close()
    load_average.append(os.getloadavg())

    record = {
        "n": args.n,
        "seed": args.seed,
        "threads": 1,
        "columns": {"ilcp": "sender -> receiver"} | {name: way._asdict() for name, way in WAYS.items()},
        "rows": [
            {"what": what, **{column: figure and asdict(figure) for column, figure in figures.items()}}
            for what, figures in rows(cases, records, fans, trials, args.seed).items()
        ],
        "findings": findings(fans, trials, failures),
    }
    trained = pair.sender.codec.trained
    record["provenance"] = provenance(sender=asdict(trained.sender), receiver=asdict(trained.receiver))
    command = record["provenance"]["command"].replace(str(args.avp_python), str(PYTHON))
    record["provenance"] |= {"command": command, "peer": peer, "load_average": load_average}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(record)


def lookups(case: Case) -> list[Any]:
    """The look-ups of a case."""
    return [question for question in case.questions if question.kind == "lookup"]


def hand_offs(pair: Pair, worker: Client, cases: list[Case]) -> tuple[Records, dict[str, str]]:
    """One hand-off per document and column, in turn, with one look-up; and the columns that failed, with the error."""
    records: Records = {column: [] for column in COLUMNS}
    failures: dict[str, str] = {}
    for number, case in enumerate(cases):
        asked = lookups(case)[number % len(lookups(case))]
        given = {"text": case.context, "question": asked.text}
        for column in COLUMNS:
            if column in failures:
                continue
            try:
                way = WAYS.get(column)
                found = worker.ask("hand_off", **way._asdict(), **given) if way else ilcp_hand_off(pair, **given)
            except PeerError as error:
                failures[column] = str(error)
                continue
            found["times"]["whole hand-off"] = sum(found["times"].get(step, 0.0) for step in HAND_OFF)
            found["right"] = {arm: answer == asked.answer for arm, answer in found["answers"].items()}
            records[column].append(found)
    return {column: found[WARM_UP:] for column, found in records.items() if column not in failures}, failures


def ilcp_hand_off(pair: Pair, text: str, question: str) -> dict[str, Any]:
    """What the worker's ``hand_off`` gives, by ilcp."""
    sender, receiver = pair.sender, pair.receiver
    nothing = answer(receiver, None, question)
    times: dict[str, float] = {}
    payload = timed(times, "sender's step", lambda: sender.codec.encode(sender.read(text)))
    message = timed(times, "to bytes", lambda: sender.pack(payload))
    memory = timed(times, "from bytes", lambda: receiver.decode(message))
    timed(times, "first token", lambda: answer(receiver, memory, question, tokens=1))
    timed(times, "first token, full text", lambda: answer(receiver, None, question, text, tokens=1))
    answers = {
        "hand-off": answer(receiver, memory, question),
        "full text": answer(receiver, None, question, context=text),
        "nothing": nothing,
    }
    return {"bytes": len(message), "times": times, "answers": answers}


def answer(
    receiver: Receiver, memory: Any, question: str, context: str | None = None, tokens: int = ANSWER_TOKENS
) -> str:
    """The greedy answer, as long as the peer's may be."""
    return receiver.generate(memory, question, context=context, max_new_tokens=tokens)


def fan_outs(pair: Pair, worker: Client, cases: list[Case]) -> Records:
    """One hand-off per document for eight receiver calls."""
    fans: Records = {column: [] for column in ("ilcp", *FANNED_OUT)}
    for number, case in enumerate(cases):
        start = number % len(lookups(case))  # another attribute comes first each time
        questions = [question.text for question in (lookups(case) * 2)[start : start + CALLS]]
        fans["ilcp"].append(ilcp_fan_out(pair, case.context, questions))
        for column in FANNED_OUT:
            way = WAYS[column]
            given = {"model": way.source, "steps": way.steps, "text": case.context, "questions": questions}
            fans[column].append(worker.ask("fan_out", **given))
    return fans


def ilcp_fan_out(pair: Pair, text: str, questions: list[str]) -> dict[str, Any]:
    """What the worker's ``fan_out`` gives, by ilcp."""
    receiver, message = pair.receiver, pair.sender.encode(text)
    memory = receiver.decode(message)

    def held() -> str:
        return digest(message + memory.vectors.numpy().tobytes())

    before = held()
    return {  # in this order: whether it has changed is asked after the calls
        "same": [answer(receiver, memory, questions[0]) for _ in questions],
        "in turn": [answer(receiver, memory, question) for question in questions],
        "fresh": [answer(receiver, receiver.decode(message), question) for question in questions],
        "changed": before != held(),
        "tokens": [memory.shape[0]] * 2,
    }


def avp_trials(worker: Client, case: Case, seed: int) -> dict[str, Any]:
    """Other checkpoints, damage and forgery, by avp's default way."""
    way = WAYS["avp"]
    model, given = {"model": way.source}, {"steps": way.steps, "text": case.context, "question": lookups(case)[0].text}
    return {
        "checkpoints": worker.ask("checkpoints", **model, **given, noise=NOISE, seed=seed),
        "flips": worker.ask("flips", **model, **given, sample=FLIPS, seed=seed),
        "cross": worker.ask("cross_wire", **given),
        **worker.ask("forge", **model, **given, factor=SCALE),
    }


def ilcp_trials(pair: Pair, case: Case, seed: int) -> dict[str, Any]:
    """What ``avp_trials`` gives, by ilcp, as far as it has the thing."""
    receiver, message = pair.receiver, pair.sender.encode(case.context)
    question = lookups(case)[0].text

    def tried(model: Any, tokenizer: Any) -> dict[str, Any]:
        return attempt(lambda: answer(Receiver(model, tokenizer, receiver.codec), message, question))

    changed = copy.deepcopy(receiver.model)
    perturb(changed, NOISE, seed)
    with tempfile.TemporaryDirectory() as scratch:
        equal, other = (shutil.copytree(MODELS / "receiver", Path(scratch) / name) for name in "ab")
        changed.save_pretrained(other)
        checkpoints = {
            "other weights under the same name": tried(changed, receiver.tokenizer),
            "other weights in another folder": tried(*load_model(other)),
            "the same weights in another folder": tried(*load_model(equal)),
        }
    start, size = next((part.offset, part.size_bytes) for part in describe(message).parts if part.name == "payload")
    payload_bits = range(8 * start, 8 * (start + size))
    rest = [bit for bit in range(8 * len(message)) if bit not in payload_bits]
    flips = {"payload": flip(receiver.decode, message, payload_bits), "rest": flip(receiver.decode, message, rest)}
    return {"checkpoints": checkpoints, "flips": flips, **ilcp_forge(receiver, message, question, seed)}


def ilcp_forge(receiver: Receiver, message: bytes, question: str, seed: int) -> dict[str, Any]:
    """Payloads of zeros, ones and random bytes, the check made anew; the same to a receiver that holds a key."""
    original, rng = Message.from_bytes(message), random.Random(seed)
    size = len(original.payload)
    payloads = [bytes(size), b"\xff" * size, *(rng.randbytes(size) for _ in range(FORGED - 2))]

    def take(data: bytes, key: bytes | None = None) -> dict[str, Any]:
        keyed = Receiver(receiver.model, receiver.tokenizer, receiver.codec, key=key)
        memory = keyed.decode(data)
        return {"answer": answer(keyed, memory, question), "finite": bool(torch.isfinite(memory.vectors).all())}

    bare = [attempt(lambda one=one: take(replace(original, payload=one).to_bytes())) for one in payloads]
    mine, foreign = (bytes([number]) * 16 for number in (1, 2))
    sealed = replace(original, seal=Seal.fresh(ttl_s=3600))
    forged = replace(sealed, payload=payloads[-1]).to_bytes(foreign)
    return {
        "forged": bare,
        "own seal": attempt(lambda: take(sealed.to_bytes(mine), mine)),
        "forged seal": attempt(lambda: take(forged, mine)),
        "no seal": attempt(lambda: take(message, mine)),
    }


def rows(cases: list[Case], records: Records, fans: Records, trials: dict[str, Any], seed: int) -> dict[str, Figures]:
    """Every figure, by what it is and by column; None where a column has no such thing."""

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
    """What is so and what is not, with how it was found; in every line a yes is what one would wish for."""
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
    """Whether no fan-out changed its memory, and what became of the first."""
    before, after = fans[0]["tokens"]
    changed = sum(fan["changed"] for fan in fans)
    return not changed, f"{changed} of {len(fans)} changed; the first from {before} to {after} positions"


def flipped(flips: dict[str, Any]) -> tuple[bool, str]:
    """Whether every flip was refused, and with what."""
    errors = "".join(f", {count} {name}" for name, count in flips["errors"].items())
    return flips["refused"] == flips["tried"], f"{flips['refused']} of {flips['tried']} refused{errors}"


def outcome(trial: dict[str, Any]) -> str:
    """One trial in a few words."""
    if not trial["accepted"]:
        said = f"refused, {textwrap.shorten(trial['error'], 150)}"
    else:
        said = f"accepted, answers {textwrap.shorten(str(trial['answer']), 60)!r}"
    return said + (f" (handshake: {trial['handshake']})" if "handshake" in trial else "")


def show(record: dict[str, Any]) -> None:
    """The table, and the findings."""
    print(" | ".join(["", *COLUMNS]))
    for row in record["rows"]:
        cells = [f"{row[c]['value']:.4g} {row[c]['unit']}".strip() if row[c] else "–" for c in COLUMNS]
        print(" | ".join([row["what"], *cells]))
    for finding in record["findings"]:
        print(finding["what"])
        for side in ("ilcp", "avp"):
            print(f"    {side}: {'yes' if finding[side]['yes'] else 'no'}: {finding[side]['how']}")


if __name__ == "__main__":
    main()
