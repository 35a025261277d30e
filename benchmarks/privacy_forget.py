"""Forgetting three fields of a dossier: a codec trained to, and sentences deleted from the text. See ``privacy.py``.

Every arm is attacked by a probe of its own, trained after the defence on messages that the attacker made with it.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from privacy_attacks import asked, auroc, receiver_report
from privacy_data import FIELDS, SEED, Messages, embedded_network, encoded, facts_of, labels, models, stolen
from privacy_probes import BITS_PER_NAT, Probe, figure, learned, prior_nats, read, signed

from ilcp.embedded import Pair
from ilcp.tasks import Case, case_files
from ilcp.tasks.case_files import OFFICE
from ilcp.tasks.dossier import ATTRIBUTES, SITE_SENTENCES
from ilcp.tasks.rewrite import state
from ilcp.training import Hyperparameters, fit
from ilcp.training.forget import values_of
from ilcp.training.log import LOG, read_log
from ilcp_codecs.vae import VaeNetwork

FORGET = ("reporter", OFFICE["reporter"], "minutes")
TRAIN_SEED = 23
WORKS_FROM = 1000  # cases that values are found in
SENTENCES = {attribute.name: attribute.sentences for attribute in ATTRIBUTES}


def hyperparameters(steps: int, weight: float) -> Hyperparameters:
    """Returns the recipe of the codec that forgets; a weight of 0 is one whose questions alone are changed."""
    return Hyperparameters(
        steps=steps,
        contexts=16,
        questions=6,
        per_kind={"lookup": 4, "absent": 2},
        learning_rate=6e-4,
        warmup_steps=min(60, steps // 5),
        forget=FORGET,
        forget_values=values_of(case_files("train", TRAIN_SEED, WORKS_FROM), FORGET),
        forget_answer="unknown",
        forget_weight=weight,
        teacher_floor=0.6,
        validate_every=max(1, steps // 8),
        validation_contexts=32 if steps > 1 else 4,
        seed=TRAIN_SEED,
    )


def forgetful(pair: Pair, steps: int, weight: float, folder: Path) -> tuple[VaeNetwork, list[dict[str, Any]]]:
    """Returns the embedded codec's network, trained on to forget, and the log of that; ``folder`` keeps both."""
    network, wanted = copy.deepcopy(embedded_network(pair)).requires_grad_(True), hyperparameters(steps, weight)
    network.full_share = 0.5
    validation = list(case_files("validation", TRAIN_SEED, wanted.validation_contexts))

    def source(start: int, n: int) -> list[Case]:
        return list(case_files("train", TRAIN_SEED, n, start=start))

    fit(network, models(pair), source, validation, wanted, folder, resume=True)
    network.round_to_half()
    return network.eval(), read_log(folder / LOG)


def whole(case: Case) -> str:
    """Returns a dossier's text."""
    return case.context


def fields_cut(case: Case) -> str:
    """Returns the text without the sentences that state two of the fields; that of the office stays, with a name."""
    text, said = case.context, facts_of(case)
    for name in ("reporter", "minutes"):
        for sentence in SENTENCES[name] if name in said else ():
            text = text.replace(state(sentence, said[name]), "")
    return " ".join(text.split())


def all_cut(case: Case) -> str:
    """Returns the text without any sentence that states one of the fields."""
    text, said = fields_cut(case), facts_of(case)
    if "reporter" in said:
        for sentence in SITE_SENTENCES:
            text = text.replace(sentence.format(person=said["reporter"], city=said[OFFICE["reporter"]]), "")
    return " ".join(text.split())


WEIGHTS = {"not asked for, and an adversary": 4.0, "not asked for": 0.0}  # of the adversary in the codec's loss
CUTS = {"sentences deleted, the office's left": fields_cut, "sentences deleted, the office's too": all_cut}


def compared(pair: Pair, steps: int, n_own: int, work: Path, *, test: int, asks: int, most: int) -> dict[str, Any]:
    """Returns the arms: what a fresh probe reads of the fields, and what the receiver answers of these and all others.

    Of the codec as it is, and of that which an adversary watched, the attacker has three times as many messages.
    """
    plain = embedded_network(pair)
    more, sizes = 3 * n_own, {"test": test, "asks": asks, "most": most}
    arms: dict[str, Any] = {"as it is": arm(pair, plain, whole, work / "plain", n_own=more, **sizes)}
    for name, weight in WEIGHTS.items():
        folder = work / f"forget-{weight:g}-{steps}"
        network, log = forgetful(pair, steps, weight, folder)
        own = more if weight else n_own
        made = arm(pair, network, whole, folder.with_name(f"{folder.name}-messages"), n_own=own, **sizes)
        arms[name] = made | {"training": [_logged(record) for record in log]}
        print(name, json.dumps(made), flush=True)
    for name, cut in CUTS.items():
        arms[name] = arm(pair, plain, cut, work / cut.__name__, n_own=n_own, **sizes)
    return {"forget": FORGET, "steps": steps, "arms": arms}


def _logged(record: dict[str, Any]) -> dict[str, Any]:
    names = ("step", "cross_entropy", "adversary", "guess", "forgetting", "recovery")
    return {name: record[name] for name in names if name in record} | {"exact": record["validation_exact"]}


def arm(
    pair: Pair,
    network: VaeNetwork,
    change: Callable[[Case], str],
    folder: Path,
    *,
    n_own: int,
    test: int,
    asks: int,
    most: int,
) -> dict[str, Any]:
    """Returns the figures of one defence: of a fresh probe for the forgotten fields alone, and of the receiver."""
    own, attacked = stolen(network, models(pair), n_own, folder, change=change, test=test)
    hidden = [at for at, field in enumerate(FIELDS) if field.name in FORGET]
    probe = learned(own, 80, seed=SEED, most=most, only=hidden)
    made = {"n_own": n_own, "forgotten": fields(own, attacked, probe)}
    return made | answered(pair, network, change, folder / f"answered-{asks}.json", asks)


def answered(pair: Pair, network: VaeNetwork, change: Callable[[Case], str], file: Path, asks: int) -> dict[str, Any]:
    """Returns how often the receiver tells each forgotten field, and how many of all other facts; ``file`` keeps it."""
    if file.exists():
        made: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return made
    cases = list(case_files("test", SEED, asks))
    told = asked(pair, network, cases, encoded(network, models(pair), list(map(change, cases))))
    there = np.array(list(map(labels, cases)))[:, :24] > 0
    names = [field.name for field in FIELDS[:24]]
    rest = np.array([name not in FORGET for name in names] + [True])
    made = {
        "receiver tells, of the forgotten": {
            name: round(float(told[there[:, at], at].mean()), 4) for at, name in enumerate(names) if name in FORGET
        },
        "receiver, all else": receiver_report(cases, told & rest, 80)["facts"],
    }
    file.write_text(json.dumps(made), encoding="utf-8")
    return made


@torch.no_grad()
def fields(own: Messages, attacked: Messages, probe: Probe) -> dict[str, Any]:
    """Returns, of each forgotten field, how often the likeliest value is the stated one, how well documents that state
    it are told from others (AUROC), and bits."""
    bits = (prior_nats(own, attacked) - read(probe, attacked, 80)[1]) * BITS_PER_NAT
    told = probe(signed(attacked, 80)).split(probe.sizes, -1)
    made = {}
    for at, field in enumerate(FIELDS):
        if field.name in FORGET:
            said, logits = attacked.labels[:, at], told[at].numpy()
            there = said > 0
            right = logits[there, 1:].argmax(-1) + 1 == said[there]
            absent = logits[:, 0] - torch.logsumexp(told[at][:, 1:], -1).numpy()
            made[field.name] = {
                "exact": figure(right),
                "chance": round(1 / (field.classes - 1), 4),
                "bits": figure(bits[:, at]),
                "AUROC, whether it is stated": round(auroc(-absent[there], -absent[~there]), 4),
            }
    return made
