"""Forgetting three fields of a dossier: a codec trained to, and sentences deleted from the text. See ``privacy.py``.

Every arm is attacked by a probe of its own, trained after the defence on messages that the attacker made with it.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from privacy_attacks import asked, receiver_report
from privacy_data import FIELDS, SEED, Messages, embedded_network, encoded, facts_of, labels, models, stolen
from privacy_probes import BITS_PER_NAT, learned, prior_nats, read, report

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
WORKS_FROM, ASKED = 1000, 200  # cases that values are found in; documents that the receiver is asked about
SENTENCES = {attribute.name: attribute.sentences for attribute in ATTRIBUTES}


def hyperparameters(steps: int, weight: float) -> Hyperparameters:
    """Returns the recipe of the codec that forgets; a weight of 0 is one whose questions alone are changed."""
    return Hyperparameters(
        steps=steps,
        contexts=24,
        questions=8,
        per_kind={"lookup": 5, "absent": 2},
        learning_rate=6e-4,
        warmup_steps=min(60, steps // 5),
        forget=FORGET,
        forget_values=values_of(case_files("train", TRAIN_SEED, WORKS_FROM), FORGET),
        forget_answer="unknown",
        forget_weight=weight,
        teacher_floor=0.6,
        validate_every=max(1, steps // 8),
        seed=TRAIN_SEED,
    )


def forgetful(pair: Pair, steps: int, weight: float, folder: Path) -> tuple[VaeNetwork, list[dict[str, Any]]]:
    """Returns the embedded codec's network, trained on to forget, and the log of that; ``folder`` keeps both."""
    network, wanted = copy.deepcopy(embedded_network(pair)).train(), hyperparameters(steps, weight)
    network.full_share = 0.5
    validation = list(case_files("validation", TRAIN_SEED, wanted.validation_contexts))

    def source(start: int, n: int) -> list[Case]:
        return list(case_files("train", TRAIN_SEED, n, start=start))

    fit(network, models(pair), source, validation, wanted, folder, resume=True)
    network.round_to_half()
    return network.eval(), read_log(folder / LOG)


def redacted(case: Case, *, offices: bool) -> str:
    """Returns a dossier's text without the sentences that state the fields; ``offices``: without that of the office.

    Where that stays, so does the name of who works there.
    """
    text, said = case.context, facts_of(case)
    for name in ("reporter", "minutes"):
        for sentence in SENTENCES[name] if name in said else ():
            text = text.replace(state(sentence, said[name]), "")
    if offices and "reporter" in said:
        for sentence in SITE_SENTENCES:
            text = text.replace(sentence.format(person=said["reporter"], city=said[OFFICE["reporter"]]), "")
    return " ".join(text.split())


def compared(pair: Pair, steps: int, n_own: int, work: Path, *, test: int, asks: int = ASKED) -> dict[str, Any]:
    """Returns the arms: what a fresh probe reads of the fields and of all others, and what the receiver answers."""
    plain = embedded_network(pair)
    whole: Callable[[Case], str] = lambda case: case.context  # noqa: E731
    arms: dict[str, Any] = {"as it is": arm(pair, plain, whole, n_own, work / "plain", test, asks)}
    for name, weight in (("not asked for", 0.0), ("not asked for, and an adversary", 4.0)):
        network, log = forgetful(pair, steps, weight, work / f"forget-{weight:g}-{steps}")
        arms[name] = arm(pair, network, whole, n_own, work / f"forget-{weight:g}-{steps}-messages", test, asks)
        arms[name]["training"] = [_logged(record) for record in log]
        print(name, json.dumps(arms[name], indent=1), flush=True)
    for name, offices in (
        ("sentences deleted, the office's left", False),
        ("sentences deleted, the office's too", True),
    ):
        cut: Callable[[Case], str] = lambda case, offices=offices: redacted(case, offices=offices)  # type: ignore[misc]  # noqa: E731
        arms[name] = arm(pair, plain, cut, n_own, work / f"redacted-{offices:d}", test, asks)
    return {"forget": FORGET, "steps": steps, "n_own": n_own, "arms": arms}


def _logged(record: dict[str, Any]) -> dict[str, Any]:
    names = ("step", "cross_entropy", "adversary", "guess", "forgetting", "recovery")
    return {name: record[name] for name in names if name in record} | {"exact": record["validation_exact"]}


def arm(
    pair: Pair, network: VaeNetwork, change: Callable[[Case], str], n_own: int, folder: Path, test: int, asks: int
) -> dict[str, Any]:
    """Returns the figures of one defence: of a fresh probe, and of the receiver."""
    own, attacked = stolen(network, models(pair), n_own, folder, change=change, test=test)
    probe = learned(own, 80, seed=SEED)
    found = read(probe, attacked, 80)
    cases = list(case_files("test", SEED, asks))
    told = asked(pair, network, cases, encoded(network, models(pair), list(map(change, cases))))
    there = np.array(list(map(labels, cases)))[:, :24] > 0
    hidden = np.array([field.name in FORGET for field in FIELDS[:24]])
    rest = np.append(~hidden, True)
    kept = told & rest
    return {
        "forgotten": fields(own, attacked, found),
        "receiver tells, of the forgotten": {
            name: round(float(told[there[:, at], at].mean()), 4)
            for at, name in enumerate(field.name for field in FIELDS[:24])
            if name in FORGET
        },
        "receiver, all else": receiver_report(cases, kept, 80)["facts"],
        "probe, all": {
            k: v for k, v in report(own, attacked, found, 80).items() if k in ("facts", "share of facts", "n")
        },
        "probe, all else": others(attacked, found[0]),
    }


def fields(own: Messages, attacked: Messages, found: tuple[Any, Any]) -> dict[str, Any]:
    """Returns, of each forgotten field, how often a stated one is read, how often a guess is right, and bits."""
    guesses, nats = found
    bits = (prior_nats(own, attacked) - nats) * BITS_PER_NAT
    made = {}
    for at, field in enumerate(FIELDS):
        if field.name in FORGET:
            said = attacked.labels[:, at]
            there = said > 0
            made[field.name] = {
                "exact": round(float((guesses == attacked.labels)[there, at].mean()), 4),
                "n": int(there.sum()),
                "chance": round(1 / (field.classes - 1), 4),
                "bits": round(float(bits[:, at].mean()), 3),
                "whether it is stated": round(float(((guesses[:, at] > 0) == there).mean()), 4),
                "whether it is stated, chance": round(float(max(there.mean(), 1 - there.mean())), 4),
            }
    return made


def others(attacked: Messages, guesses: Any) -> float:
    """Returns the share of all other stated attributes and offices that the probe reads."""
    at = [n for n, field in enumerate(FIELDS[:24]) if field.name not in FORGET]
    said = attacked.labels[:, at]
    return round(float((guesses[:, at] == said)[said > 0].mean()), 4)
