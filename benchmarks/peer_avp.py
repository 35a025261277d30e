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
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peer_avp_report import (
    CALLS,
    COLUMNS,
    FANNED_OUT,
    HAND_OFF,
    PEER_ARMS,
    Records,
    findings,
    rows,
    show,
)
from peer_avp_worker import ANSWER_TOKENS, Client, PeerError, attempt, digest, flip, perturb, timed

from ilcp import Message, Receiver, SoftPrompt, embedded
from ilcp.embedded import Pair, load_pair
from ilcp.measure import provenance
from ilcp.message import Seal, describe
from ilcp.models.loading import load_model
from ilcp.tasks import Case, case_files

HERE = Path(__file__).parent
MODELS = embedded.HERE
PYTHON = Path(".venv-avp") / "bin" / "python"
NOTE = f"""no interpreter with avp at {{python}}: nothing was measured. To make one, in the repository's root:
    python3 -m venv .venv-avp
    .venv-avp/bin/pip install -c constraints.txt torch==2.13.0 transformers avp==0.6.2
then run this again, or name another with --avp-python (default: {PYTHON})."""


WARM_UP, NOISE, SCALE, FLIPS, FORGED = 5, 0.5, -8.0, 1000, 100


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
        "columns": {"ilcp": "sender -> receiver"} | {name: arm._asdict() for name, arm in PEER_ARMS.items()},
        "rows": [
            {"what": what, **{column: figure and asdict(figure) for column, figure in figures.items()}}
            for what, figures in rows(cases, records, fans, trials, args.seed).items()
        ],
        "findings": findings(fans, trials, failures),
    }
    trained = pair.sender.codec.trained
    record["provenance"] = provenance(sender=trained.sender.exact, receiver=trained.receiver.exact)
    command = record["provenance"]["command"].replace(str(args.avp_python), str(PYTHON))
    record["provenance"] |= {"command": command, "peer": peer, "load_average": load_average}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(record)


def lookups(case: Case) -> list[Any]:
    """Returns the look-ups of a case."""
    return [question for question in case.questions if question.kind == "lookup"]


def hand_offs(pair: Pair, worker: Client, cases: list[Case]) -> tuple[Records, dict[str, str]]:
    """Hands each document over in each column, with one look-up; and the columns that failed, with the error."""
    records: Records = {column: [] for column in COLUMNS}
    failures: dict[str, str] = {}
    for number, case in enumerate(cases):
        asked = lookups(case)[number % len(lookups(case))]
        given = {"text": case.context, "question": asked.text}
        for column in COLUMNS:
            if column in failures:
                continue
            try:
                arm = PEER_ARMS.get(column)
                found = worker.ask("hand_off", **arm._asdict(), **given) if arm else ilcp_hand_off(pair, **given)
            except PeerError as error:
                failures[column] = str(error)
                continue
            found["times"]["whole hand-off"] = sum(found["times"].get(step, 0.0) for step in HAND_OFF)
            found["right"] = {source: answer == asked.answer for source, answer in found["answers"].items()}
            records[column].append(found)
    return {column: found[WARM_UP:] for column, found in records.items() if column not in failures}, failures


def ilcp_hand_off(pair: Pair, text: str, question: str) -> dict[str, Any]:
    """Returns what the worker's ``hand_off`` gives, by ilcp."""
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
    """Returns the greedy answer, as long as the peer's may be."""
    return receiver.generate(memory, question, context=context, max_new_tokens=tokens)


def fan_outs(pair: Pair, worker: Client, cases: list[Case]) -> Records:
    """Makes one hand-off per document for eight receiver calls."""
    fans: Records = {column: [] for column in ("ilcp", *FANNED_OUT)}
    for number, case in enumerate(cases):
        start = number % len(lookups(case))  # another attribute comes first each time
        questions = [question.text for question in (lookups(case) * 2)[start : start + CALLS]]
        fans["ilcp"].append(ilcp_fan_out(pair, case.context, questions))
        for column in FANNED_OUT:
            arm = PEER_ARMS[column]
            given = {"model": arm.source, "steps": arm.steps, "text": case.context, "questions": questions}
            fans[column].append(worker.ask("fan_out", **given))
    return fans


def ilcp_fan_out(pair: Pair, text: str, questions: list[str]) -> dict[str, Any]:
    """Returns what the worker's ``fan_out`` gives, by ilcp."""
    receiver, message = pair.receiver, pair.sender.encode(text)
    memory = receiver.decode(message)
    assert isinstance(memory, SoftPrompt)

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
    """Tries other checkpoints, damage and forgery, with avp's defaults."""
    arm = PEER_ARMS["avp"]
    model, given = {"model": arm.source}, {"steps": arm.steps, "text": case.context, "question": lookups(case)[0].text}
    return {
        "checkpoints": worker.ask("checkpoints", **model, **given, noise=NOISE, seed=seed),
        "flips": worker.ask("flips", **model, **given, sample=FLIPS, seed=seed),
        "cross": worker.ask("cross_wire", **given),
        **worker.ask("forge", **model, **given, factor=SCALE),
    }


def ilcp_trials(pair: Pair, case: Case, seed: int) -> dict[str, Any]:
    """Returns what ``avp_trials`` gives, by ilcp, as far as it has the thing."""
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
    """Tries payloads of zeros, ones and random bytes, the check made anew; the same to a receiver that holds a key."""
    original, rng = Message.from_bytes(message), random.Random(seed)
    size = len(original.payload)
    payloads = [bytes(size), b"\xff" * size, *(rng.randbytes(size) for _ in range(FORGED - 2))]

    def take(data: bytes, key: bytes | None = None) -> dict[str, Any]:
        keyed = Receiver(receiver.model, receiver.tokenizer, receiver.codec, key=key)
        memory = keyed.decode(data)
        assert isinstance(memory, SoftPrompt)
        return {"answer": answer(keyed, memory, question), "finite": bool(torch.isfinite(memory.vectors).all())}

    def take_payload(payload: bytes) -> dict[str, Any]:
        return take(replace(original, payload=payload).to_bytes())

    bare = [attempt(partial(take_payload, payload)) for payload in payloads]
    held, unknown = (bytes([number]) * 16 for number in (1, 2))
    sealed = replace(original, seal=Seal.fresh(ttl_s=3600))
    forged = replace(sealed, payload=payloads[-1]).to_bytes(unknown)
    return {
        "forged": bare,
        "own seal": attempt(lambda: take(sealed.to_bytes(held), held)),
        "forged seal": attempt(lambda: take(forged, held)),
        "no seal": attempt(lambda: take(message, held)),
    }


if __name__ == "__main__":
    main()
