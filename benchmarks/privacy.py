"""Measures what a message gives away to whoever holds it, and what two defences are worth.

    python benchmarks/privacy.py --smoke              # every part, small, under a minute; writes nothing
    python benchmarks/privacy.py                      # writes benchmarks/results/privacy-*.json: an hour or two

The messages are those of the embedded pair over synthetic dossiers, whose facts are known and are nobody's. Parts:

    asked      who has the receiver asks it every question: what the message is for, and the reference of all others
    probes     a stolen codec: classifiers of every field, trained on the attacker's own messages
    rebuilt    a stolen codec and receiver: the receiver's model trained to write the text
    searched   a stolen codec and sender, and no training: the text whose payload is nearest, field by field
    caches     keys and values: the text read back word by word
    linked     whether two messages are about the same thing
    noise      bits of the payload flipped on purpose, against a shorter prefix
    forget     a codec trained to forget three fields, against their sentences deleted from the text
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import privacy_attacks as attacks
import privacy_forget
import privacy_kv
import torch
from privacy_data import FIELDS, SEED, STOLEN_SEED, TEST, Messages, embedded_network, encoded, models, stolen
from privacy_probes import Probe, learned, read, report, signed, summary

from ilcp.embedded import Pair, load_pair
from ilcp.measure import provenance
from ilcp.tasks import case_files

HERE = Path(__file__).parent
LENGTHS = (10, 20, 40, 80)
CURVE = (1000, 4000, 16000)
FLIPS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
NOISE_OWN, FORGET_OWN, LINK_OWN = 8000, 4000, 1000  # messages that the attacker makes for these parts
FORGET_TEST = 400
PEOPLE = ("reporter", "owner", "approver", "escalation", "offices")
RELATIONS = {
    "the same case in other words": tuple(field.name for field in FIELDS[:20]) + ("offices", "code"),
    "the same four people and their offices, all else another's": PEOPLE,
    "the same customer's city, all else another's": ("customer",),
}


class Lab:
    """The pair, the messages and the sizes of a run."""

    def __init__(self, args: argparse.Namespace, work: Path):
        smoke = args.smoke
        self.work, self.seed, self.smoke = work, SEED, smoke
        self.pair: Pair = load_pair()
        self.models, self.network = models(self.pair), embedded_network(self.pair)
        self.own: int = 64 if smoke else args.own
        self.test, self.asks, self.reads, self.searches = (8, 2, 2, 0) if smoke else (TEST, 200, 48, 8)
        self.minutes: float = 0.02 if smoke else args.decoder_minutes
        self.steps: int = 1 if smoke else args.forget_steps
        self.pairs, self.most = (8, 5) if smoke else (500, 2000)
        self.cases = list(case_files("test", SEED, self.asks))

    def messages(self, n: int | None = None) -> tuple[Messages, Messages]:
        """Returns the attacker's own messages, and those under attack."""
        return stolen(self.network, self.models, n or self.own, self.work / "plain", test=self.test)

    def probe(self, payload_bytes: int, n: int | None = None) -> Probe:
        """Returns the probe of a length, trained once."""
        own, _ = self.messages(n)
        file = self.work / f"probe-{payload_bytes}-{len(own.bits)}.pt"
        if file.exists():
            probe = Probe(8 * payload_bytes)
            probe.load_state_dict(torch.load(file, weights_only=True))
            return probe.eval()
        probe = learned(own, payload_bytes, seed=SEED, most=self.most)
        torch.save(probe.state_dict(), file)
        return probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--own", type=int, default=32000, help="messages that the attacker makes")
    parser.add_argument("--decoder-minutes", type=float, default=5.0)
    parser.add_argument("--forget-steps", type=int, default=300)
    parser.add_argument("--work", type=Path, help="keeps messages and probes, for a run that goes on")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(args, args.work or Path(folder))
        lab.work.mkdir(parents=True, exist_ok=True)
        for part in args.only or PARTS:
            torch.manual_seed(SEED)
            record = {"what": part, "seed": SEED, "attacker_seed": STOLEN_SEED, "result": PARTS[part](lab)}
            trained = lab.pair.sender.codec.trained
            record["provenance"] = provenance(sender=trained.sender.exact, receiver=trained.receiver.exact)
            text = json.dumps(record, indent=1)
            if args.smoke:
                print(f"{part}: {len(text)} characters of results")
            else:
                (args.out / f"privacy-{part}.json").write_text(text + "\n", encoding="utf-8")
                print(text if len(text) < 6000 else f"{part}: done", flush=True)


def by_receiver(lab: Lab) -> Any:
    """Asks the receiver every question of every length of message."""
    bits = encoded(lab.network, lab.models, [case.context for case in lab.cases])
    rows = []
    for size in LENGTHS:
        told = attacks.asked(lab.pair, lab.network, lab.cases, bits[:, : 8 * size])
        rows.append(attacks.receiver_report(lab.cases, told, size))
    return {"rows": rows, "literals": attacks.literals_told(lab.cases[:50], SEED)}


def by_probes(lab: Lab) -> Any:
    """Trains a probe for each length, and one for each number of messages that the attacker has."""
    rows = []
    for size, n in [(size, lab.own) for size in LENGTHS] + [(s, n) for s in (80, 10) for n in CURVE if n < lab.own]:
        own, attacked = lab.messages(n)
        rows.append(report(own, attacked, read(lab.probe(size, n), attacked, size), size))
        print(f"probe of {size} bytes, {n} messages: {summary(rows[-1])}", flush=True)
    return {"rows": rows}


def by_decoder(lab: Lab) -> Any:
    """Trains the receiver's model to write the text as it stands, and its facts in one order and wording."""
    own, attacked = lab.messages()
    cases, bits = list(case_files("test", SEED, lab.reads)), attacked.bits[: lab.reads]
    mine = list(case_files("train", STOLEN_SEED, len(own.bits)))
    found = {}
    for name, write in (("as it stands", attacks.as_it_stands), ("facts in one order", attacks.in_order)):
        file = lab.work / f"decoder {name}.json"
        if not file.exists():
            made, steps = attacks.decoder(lab.pair, lab.network, own.bits, list(map(write, mine)), lab.minutes, SEED)
            result = attacks.rebuilt(made, cases, list(map(write, cases)), bits)
            told = {"steps": steps, "minutes": lab.minutes, "n_own": steps * attacks.DECODER_BATCH, **result}
            file.write_text(json.dumps(told), encoding="utf-8")
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    return found


def by_search(lab: Lab) -> Any:
    """Searches for the text of a few messages."""
    n = max(1, lab.searches)
    cases = list(case_files("test", SEED, n))
    if lab.smoke:
        return attacks.template([0] * 30)
    return attacks.optimised(lab.network, lab.models, cases, lab.messages()[1].bits[:n], SEED)


def by_caches(lab: Lab) -> Any:
    """Reads texts back from caches."""
    real = HERE / "real" / "smollm2"
    return privacy_kv.attacked(lab.pair, HERE / "none" if lab.smoke else real, 2 if lab.smoke else lab.reads, SEED)


def by_links(lab: Lab) -> Any:
    """Tells pairs of messages about one thing from pairs about two, of documents that all say what is shared."""
    own, attacked = lab.messages()
    whole = list(case_files("train", STOLEN_SEED, min(LINK_OWN, lab.own))), list(case_files("test", SEED, lab.pairs))
    rows = []
    for relation, keep in RELATIONS.items():
        needed = set() if len(keep) > len(FIELDS[:20]) else {name for name in keep if name != "offices"}
        places = [[at for at, case in enumerate(cases) if needed <= attacks.facts_of(case).keys()] for cases in whole]
        some = [[cases[at] for at in chosen] for cases, chosen in zip(whole, places, strict=True)]
        again = [encoded(lab.network, lab.models, attacks.retellings(cases, keep, SEED)) for cases in some]
        for size in LENGTHS:
            one, mine = attacked.bits[places[1]], own.bits[places[0]]
            row = attacks.linked(one, again[1], mine, again[0], size, SEED)
            alike = both(lab, size, one, again[1], keep, own)
            other = both(lab, size, one, np.roll(again[1], 1, 0), keep, own)
            rows.append({"relation": relation, **row, "AUROC, by probes": attacks.auroc(alike, other)})
            print(json.dumps(rows[-1]), flush=True)
    return {"rows": rows}


@torch.no_grad()
def both(lab: Lab, size: int, one: Any, two: Any, keep: tuple[str, ...], own: Messages) -> Any:
    """Returns, for each pair, the log-odds that fields of ``keep`` are the same, by the probe of that length."""
    probe, none = lab.probe(size), own.labels[:1].repeat(len(one), 0)
    told = [probe(signed(Messages(bits, none), size)).split(probe.sizes, -1) for bits in (one, two)]
    odds = torch.zeros(len(one))
    for at, (field, a, b) in enumerate(zip(FIELDS, *told, strict=True)):
        if field.name in keep or field.group in keep or ("offices" in keep and field.group == "office"):
            known = own.labels[:, at]
            chance = np.bincount(known[known >= 0], minlength=field.classes) + 0.5
            prior = torch.from_numpy(chance / chance.sum()).float()
            odds += ((a.softmax(-1) * b.softmax(-1) / prior).sum(-1)).clamp(min=1e-6).log()
    return odds.numpy()


def by_noise(lab: Lab) -> Any:
    """Flips bits on their way, for receiver and attacker alike; beside it, shorter prefixes without noise."""
    own, attacked = lab.messages(min(NOISE_OWN, lab.own))
    bits, rng = attacked.bits, np.random.default_rng(SEED)
    rows = []
    for flip, size in [(flip, 80) for flip in FLIPS] + [(0.0, size) for size in LENGTHS[:-1]]:
        noisy = bits ^ (rng.random(bits.shape) < flip)
        probe = learned(own, size, seed=SEED, change=flipping(flip), most=lab.most)
        found = report(own, attacked, read(probe, Messages(noisy, attacked.labels), size), size)
        told = attacks.asked(lab.pair, lab.network, lab.cases, noisy[: lab.asks, : 8 * size])
        given = attacks.receiver_report(lab.cases, told, size)
        names = ("share of facts", "facts")
        rows.append({
            "flipped": flip,
            "payload_bytes": size,
            "n_own": found["n_own"],
            "receiver": {name: given[name] for name in names},
            "probe": {name: found[name] for name in (*names, "bits of facts")},
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return {"rows": rows}


def flipping(share: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what flips that share of signed bits, drawn anew each time."""
    return lambda x: torch.where(torch.rand(x.shape) < share, -x, x)


def by_forgetting(lab: Lab) -> Any:
    """Compares a codec that forgets with deleted sentences."""
    n = min(FORGET_OWN, lab.own)
    return privacy_forget.compared(
        lab.pair, lab.steps, n, lab.work, test=min(FORGET_TEST, lab.test), asks=lab.asks, most=lab.most
    )


PARTS: dict[str, Callable[[Lab], Any]] = {
    "asked": by_receiver,
    "probes": by_probes,
    "rebuilt": by_decoder,
    "searched": by_search,
    "caches": by_caches,
    "linked": by_links,
    "noise": by_noise,
    "forget": by_forgetting,
}

if __name__ == "__main__":
    main()
