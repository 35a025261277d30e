"""Measures what finds a codec that has gone wrong: each layer, all together, and what others do, on every fault.

    python benchmarks/train_pair.py receiver --seed 12 --out runs/twin-12      # another checkpoint, about 35 minutes
    python benchmarks/assurance.py false-alarms --n 100000
    python benchmarks/assurance.py faults --other runs/twin-12 --data DATA
    python benchmarks/assurance.py hostile --n 10000
    python benchmarks/assurance.py cost

The embedded pair, whose codec was calibrated on 8,000 dossiers of another seed (``ilcp calibrate``). DATA has texts of
other kinds: ``conversations/test.jsonl`` ("context"), ``agent_logs.jsonl`` ("history") and ``tinystories.jsonl``
("text"). Messages are in distribution (dossiers of a seed that nothing else uses), or have a fault of
``assurance_faults.py``. What is told of a fault, layer by layer:

    identity    whether it refuses, or for a replay the replay cache; behind it the fault is forced upon the others
    sent        the p-value of the latent, at the sender
    received    that of the payload, at the receiver
    probed      that of the receiver's nats for a few fixed answers
    together    the least of these three, three times (Bonferroni)
    over time   how many messages the martingale takes, from the first faulty one on
    canary      how many canary questions are asked until the facts are lost, or sound

Baselines see windows of 50 payloads, and have 200 windows in distribution to find their limit at 1 %.
"""

import argparse
import json
import random
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assurance_baselines import WINDOW, limits, neighbours, windows
from assurance_faults import FAULTS, Fault, Places, drifting, forced, refused, texts_of

from ilcp.assurance import Policy, Reference
from ilcp.assurance.martingale import ALARM, Jumper, margin
from ilcp.assurance.observing import received
from ilcp.assurance.view import Observed
from ilcp.embedded import Pair, load_pair
from ilcp.errors import DecodeError, DoubtError
from ilcp.handoff import Receiver, Sender
from ilcp.handoff.assured import probed
from ilcp.measure import provenance
from ilcp.measure.sequential import canary
from ilcp.message import Message
from ilcp.tasks import case_files

RESULTS = Path(__file__).parent / "results" / "assurance.json"
LAYERS = ("sent", "received", "probed")
SEED, DRIFT_SEED, CANARY_SEED = 21, 22, 23
STREAM = 2000  # messages in which an alarm is waited for
ORDERS = 21  # in which they come, of which the middle one is told
PER_DAY = 100
AT_ONCE, BATCH = 2000, 32

Scores = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("false-alarms", "faults", "hostile", "cost"))
    parser.add_argument("--n", type=int, help="messages: 100,000, of each fault 500, 10,000, or 400")
    parser.add_argument("--other", type=Path, help="another checkpoint of the receiver, for faults")
    parser.add_argument("--data", type=Path, help="texts of other kinds, for faults")
    parser.add_argument("--codec", type=Path, help="another folder of the embedded codec")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    pair = load_pair(args.codec)
    reference = Reference.of(pair.sender.codec)
    assert reference is not None
    parts = {"false-alarms": false_alarms, "faults": faults, "hostile": hostile, "cost": cost}
    found = parts[args.part](pair, reference, args)
    record = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    trained = pair.sender.codec.trained
    made = provenance(sender=trained.sender.exact, receiver=trained.receiver.exact)
    made["command"] = f"assurance.py {args.part}" + (f" --n {args.n}" if args.n else "")
    record[args.part] = found | {"provenance": made}
    record |= {"seed": args.seed, "reference": reference.digest, "provenance": made}
    args.out.write_text(json.dumps(record, indent=1, default=lambda value: value.item()) + "\n", encoding="utf-8")


def observed(pair: Pair, reference: Reference, texts: Sequence[str]) -> tuple[list[bytes], np.ndarray]:
    """Returns payloads of texts, and the scores of their latents, many at a time: as each alone, but for rounding."""
    payloads: list[bytes] = []
    scores: list[float] = []
    codec: Any = pair.sender.codec
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in range(0, len(order), BATCH):
        read = pair.sender.read_batch([texts[k] for k in order[start : start + BATCH]], BATCH)
        states = [context.states for context in read if context.states is not None]
        mask = torch.zeros(len(states), max(each.shape[1] for each in states))
        for row, each in zip(mask, states, strict=True):
            row[: each.shape[1]] = 1
        padded = torch.stack([torch.nn.functional.pad(s, (0, 0, 0, mask.shape[1] - s.shape[1])) for s in states])
        with torch.inference_mode():
            slots = codec.network.pooler(padded, mask)
            z, log_var = codec.network.bottleneck(slots)[0], codec.network.bottleneck.to_log_var(slots)
        payloads += [codec._payload(each) for each in z]
        sent = [Observed(a.flatten().numpy(), (float(b.mean()),)) for a, b in zip(z, log_var, strict=True)]
        scores += [reference.views["sent"].score(each) for each in sent]
    place = np.argsort(order)
    return [payloads[k] for k in place], np.array(scores)[place]


def scores_of(
    pair: Pair, reference: Reference, payloads: Sequence[bytes], sent: np.ndarray | None, most: int
) -> Scores:
    """Returns the scores of each layer; probed are the first ``most``."""
    codec, found = pair.receiver.codec, {} if sent is None else {"sent": sent}
    name = f"received/{len(payloads[0])}"
    found["received"] = np.array([reference.views[name].score(received(codec, each, None)[name]) for each in payloads])
    memories = [codec.decode(payload) for payload in payloads[:most]]
    asked = [probed(pair.receiver, memory, reference) for memory in memories]
    found["probed"] = np.array([reference.views["probed"].score(each) for each in asked if each is not None])
    return found


def p_values(reference: Reference, layer: str, scores: np.ndarray, drawn: random.Random) -> np.ndarray:
    view = _view(reference, layer)
    return np.array([view.p_value(score, drawn.random()) for score in scores])


def _view(reference: Reference, layer: str) -> Any:
    """Returns the view of a layer; of payloads that of the longest."""
    return reference.views[layer if layer in reference.views else "received/80"]


def delay(reference: Reference, ps: dict[str, np.ndarray], drawn: random.Random) -> int | None:
    """Returns after how many messages, in the middle of some orders, an alarm is raised; None beyond ``STREAM``."""
    found = []
    for _ in range(ORDERS):
        jumpers = {layer: Jumper.fresh() for layer in ps}
        at = STREAM + 1
        for number in range(1, STREAM + 1):
            for layer, values in ps.items():
                off = margin(len(_view(reference, layer).scores))
                jumpers[layer] = jumpers[layer].bet(drawn.choice(values), off)
            if sum(jumper.value for jumper in jumpers.values()) / len(jumpers) >= ALARM:
                at = number
                break
        found.append(at)
    middle = sorted(found)[ORDERS // 2]
    return middle if middle <= STREAM else None


def auroc(usual: np.ndarray, faulty: np.ndarray) -> float:
    """Returns the probability that a faulty message has the higher score."""
    ranks = np.searchsorted(np.sort(usual), faulty, "left") + np.searchsorted(np.sort(usual), faulty, "right")
    return float(ranks.mean() / 2 / len(usual))


def false_alarms(pair: Pair, reference: Reference, args: argparse.Namespace) -> dict[str, Any]:
    """Judges messages in distribution: how many are doubted, and whether an alarm is ever raised."""
    n, drawn = args.n or 100_000, random.Random(args.seed)
    ps: dict[str, list[float]] = {layer: [] for layer in LAYERS}
    by_length: dict[str, list[float]] = {}
    began = time.time()
    for start in range(0, n, AT_ONCE):
        texts = [case.context for case in case_files("test", args.seed, min(AT_ONCE, n - start), start=start)]
        payloads, sent = observed(pair, reference, texts)
        most = AT_ONCE if start < n // 10 else 0  # a probe takes the receiver's model: one in ten
        found = scores_of(pair, reference, payloads, sent, most)
        for layer in LAYERS:
            ps[layer] += list(p_values(reference, layer, found[layer], drawn))
        for length in pair.sender.codec.spec.prefixes[:-1]:
            view, name = reference.views[f"received/{length}"], f"received/{length}"
            scores = [view.score(received(pair.receiver.codec, each[:length], None)[name]) for each in payloads]
            by_length.setdefault(name, []).extend(view.p_value(score, drawn.random()) for score in scores)
        print(f"{start + len(texts)} of {n}, {time.time() - began:.0f} s", flush=True)
    rows = {}
    for layer, values in (ps | by_length).items():
        array = np.array(values)
        off = margin(len(_view(reference, layer).scores))
        jumper, peak = Jumper.fresh(), 0.0
        for p in values:
            jumper = jumper.bet(p, off)
            peak = max(peak, jumper.value)
        plain = Jumper.fresh(start=1.0, asleep=0.0)
        plain_at = next((k for k, p in enumerate(values, 1) if (plain := plain.bet(p)).value >= ALARM), None)
        rows[layer] = {
            "n": len(values), "at_1_percent": float((array < 0.01).mean()),
            "at_0.1_percent": float((array < 0.001).mean()),
            "peak_evidence": peak, "alarm": peak >= ALARM, "without_margin_alarm_at": plain_at,
        }  # fmt: skip
        print(layer, rows[layer], flush=True)
    return {"n": n, "layers": rows}


def faults(pair: Pair, reference: Reference, args: argparse.Namespace) -> dict[str, Any]:
    """Tells of every fault what each layer finds."""
    n = args.n or 500
    texts = texts_of(args.seed + 1000, n, args.data)
    places = Places(args.other, texts.others["stories"])
    usual_payloads, usual_sent = observed(pair, reference, texts.usual)
    usual = scores_of(pair, reference, usual_payloads, usual_sent, n)
    reference_payloads, _ = observed(pair, reference, [c.context for c in case_files("test", args.seed + 2000, 2000)])
    known = limits(reference_payloads, args.seed)
    keep = args.out.with_suffix(".rows.json")  # an interrupted run goes on from it
    rows = json.loads(keep.read_text(encoding="utf-8")) if keep.exists() else {}
    for fault in (each for each in FAULTS if each.name not in rows):
        began = time.time()
        changed = fault.pair(pair, places) if fault.pair else forced(pair)
        payloads: list[bytes] = usual_payloads
        sent: np.ndarray | None = usual_sent
        if fault.texts or (fault.pair and changed.sender is not None):
            payloads, sent = observed(changed, reference, fault.texts(texts, n) if fault.texts else texts.usual)
        if fault.payloads:
            payloads, sent = fault.payloads(usual_payloads, random.Random(args.seed)), None
        found = scores_of(changed, reference, payloads, sent, n)
        near = auroc(neighbours(usual_payloads, known), neighbours(payloads, known))
        rows[fault.name] = row = {
            "identity": refused(pair, changed, fault), **_layers(reference, usual, found, args.seed),
            "canary": _canary(changed, reference, fault, args.seed),
            "baselines": windows(payloads, known) | {"neighbours, AUROC": near},
        }  # fmt: skip
        print(
            f"{fault.name} ({time.time() - began:.0f} s): {json.dumps(row, default=lambda value: value.item())}",
            flush=True,
        )
        keep.write_text(json.dumps(rows, default=lambda value: value.item()), encoding="utf-8")
    rows["slow drift"] = _drift(pair, reference, texts, args.seed)
    print(f"slow drift: {json.dumps(rows['slow drift'])}")
    keep.unlink()
    return {"n": n, "window": WINDOW, "rows": rows, "canaries": reference.calibrated.canaries}


def _layers(reference: Reference, usual: Scores, found: Scores, seed: int) -> dict[str, Any]:
    drawn = random.Random(seed)
    ps = {layer: p_values(reference, layer, found[layer], drawn) for layer in LAYERS if layer in found}
    told: dict[str, Any] = {
        layer: {
            "auroc": auroc(usual[layer], found[layer]), "detected": float((ps[layer] < 0.01).mean()),
            "delay": delay(reference, {layer: ps[layer]}, drawn),
        }
        for layer in ps
    }  # fmt: skip
    least = np.minimum(1, len(ps) * np.min([ps[layer] for layer in ps], axis=0))
    calm = {layer: p_values(reference, layer, usual[layer], drawn) for layer in ps}
    least_usual = np.minimum(1, len(ps) * np.min([calm[layer] for layer in ps], axis=0))
    return told | {
        "together": {
            "auroc": auroc(-least_usual, -least), "detected": float((least < 0.01).mean()),
            "delay": delay(reference, ps, drawn),
        }
    }  # fmt: skip


def _canary(pair: Pair, reference: Reference, fault: Fault, seed: int) -> dict[str, Any]:
    """Asks canary questions through the faulty pair; a fault of payloads or of texts is none of the pair's."""
    if fault.pair is None:
        return {}
    test = canary(pair.sender, pair.receiver, reference, case_files("test", CANARY_SEED + seed, 1000))
    return {"verdict": test.verdict, "asked": test.asked, "right": test.right}


def _drift(pair: Pair, reference: Reference, texts: Any, seed: int) -> dict[str, Any]:
    """Returns on which day of a drift of one in a hundred a day towards conversations each end raises an alarm."""
    drawn = random.Random(seed)
    stream = list(drifting(texts.usual, texts.others["conversations"], PER_DAY, drawn))
    payloads, sent = observed(pair, reference, stream)
    found = scores_of(pair, reference, payloads, sent, 0)
    told: dict[str, Any] = {"per_day": PER_DAY}
    for layer in ("sent", "received"):
        off = margin(len(_view(reference, layer).scores))
        jumper, at = Jumper.fresh(), 0
        for number, p in enumerate(p_values(reference, layer, found[layer], drawn), 1):
            jumper = jumper.bet(p, off)
            if jumper.value >= ALARM:
                at = number
                break
        told[layer] = {"message": at or None, "day": at / PER_DAY if at else None}
    return told


def hostile(pair: Pair, reference: Reference, args: argparse.Namespace) -> dict[str, Any]:
    """Hands a receiver payloads of the right length that no sender made."""
    n, drawn = args.n or 10_000, random.Random(args.seed)
    receiver = Receiver(
        pair.receiver.model, pair.receiver.tokenizer, pair.receiver.codec, assurance=Policy(doubt="refuse", level=0.01)
    )
    usual, _ = observed(pair, reference, [case.context for case in case_files("test", args.seed, 1000)])
    rows = {}
    for fault in (each for each in FAULTS if each.payloads and not each.replayed):
        made: list[bytes] = []
        while len(made) < n // 4:
            made += fault.payloads(usual, drawn) if fault.payloads else []
        counts = {"n": n // 4, "not finite": 0, "crashed": 0, "doubted": 0, "refused otherwise": 0, "taken": 0}
        for payload in made[: n // 4]:
            try:
                memory: Any = receiver.decode(Message(pair.sender.codec_id, payload).to_bytes())
                counts["taken"] += 1
                counts["not finite"] += not bool(torch.isfinite(memory.vectors).all())
            except DoubtError:
                counts["doubted"] += 1
            except DecodeError:
                counts["refused otherwise"] += 1
            except Exception:
                counts["crashed"] += 1
        rows[fault.name] = counts
        print(fault.name, counts, flush=True)
    return {"n": n, "level": 0.01, "rows": rows}


def cost(pair: Pair, reference: Reference, args: argparse.Namespace) -> dict[str, Any]:
    """Times hand-offs without assurance, with it at the receiver, as by default, and at both ends, in turn."""
    n = args.n or 400
    policies = {"without": (None, None), "receiver": (None, Policy()), "both ends": (Policy(), Policy())}
    one, other = pair.sender, pair.receiver
    ends = {
        name: (
            Sender(one.model, one.tokenizer, one.codec, assurance=sends),
            Receiver(other.model, other.tokenizer, other.codec, assurance=takes),
        )
        for name, (sends, takes) in policies.items()
    }
    times: dict[str, list[float]] = {name: [] for name in ends}
    for number, case in enumerate(case_files("test", args.seed, n)):
        order = [*ends] if number % 2 else [*ends][::-1]
        for name in order:
            sender, receiver = ends[name]
            began = time.perf_counter()
            receiver.generate(sender.encode(case.context), case.questions[0].text)
            times[name].append(time.perf_counter() - began)
    warm = {name: np.array(values[10:]) for name, values in times.items()}
    drawn = np.random.default_rng(args.seed)
    found: dict[str, Any] = {"threads": args.threads, "without_s": float(np.median(warm["without"]))}
    for name in ("receiver", "both ends"):
        ratios = warm[name] / warm["without"]
        medians = [float(np.median(drawn.choice(ratios, len(ratios)))) for _ in range(1000)]
        low, high = (float(np.quantile(medians, share)) for share in (0.025, 0.975))
        found[name] = {"n": len(ratios), "ratio": float(np.median(ratios)), "low": low, "high": high}
    print(found)
    return found


if __name__ == "__main__":
    main()
