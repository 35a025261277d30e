"""What other systems hand over of the same texts, for the same questions: offers beside those of ``axis.py``.

- ``avp-20``, ``avp-0``: avp hands a whole cache to the same model through bytes, with its 20 latent steps or none, in a
  process of its own (``peer_avp.py``). It says no likelihood, and puts the question as it does by itself.
- ``hqq-8``, ``hqq-4``, ``hqq-2``: the quantised cache of transformers, of so many bits (``kv.py --hqq``); needs hqq.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kv import by_hqq
from peer_avp import MODELS, NOTE
from peer_avp_worker import Client

from ilcp.codec.memory import CacheMemory, Memory
from ilcp.embedded import Pair
from ilcp.measure import Offer, Report
from ilcp.measure.arms import ArmInput, ArmSpec
from ilcp.measure.items import LOG_LIKELIHOOD, Arm
from ilcp.measure.scoring import Scorer
from ilcp.tasks import Case

HQQ_BITS = (8, 4, 2)
AVP_STEPS = (20, 0)  # latent steps: avp's default, and none


def missing(avp_python: Path) -> Iterator[str]:
    """Yields what lacks a peer, and how to get it."""
    if not avp_python.exists():
        yield NOTE.format(python=avp_python)
    if find_spec("hqq") is None:
        yield "no hqq: pip install hqq==0.2.8.post1"


def measured(
    latent: Report, pair: Pair, cases: Sequence[Case], avp_python: Path
) -> tuple[list[Offer], dict[str, dict[str, str]]]:
    """Returns an offer of each peer that is there, the receiver's model at both ends; and the peers' versions.

    Args:
        latent: whose answers from text and from nothing are those of the same receiver to the same questions.
        pair: ends of that receiver's model, which hand over its cache.
    """
    found: list[Offer] = []
    versions = {}
    if find_spec("hqq") is not None:
        versions["hqq"] = {"hqq": version("hqq")}
        found += [_offer(latent, f"hqq-{bits}", _of_hqq(pair, cases, bits)) for bits in HQQ_BITS]
    if avp_python.exists():
        worker = Client(avp_python.absolute())
        try:
            versions["avp"] = worker.ask("load", sender=str(MODELS / "sender"), receiver=str(MODELS / "receiver"))
            for steps in AVP_STEPS:
                made = _of_avp(partial(worker.ask, "answers", model="receiver", steps=steps), cases)
                found.append(replace(_offer(latent, f"avp-{steps}", made), recovery_nats=None))
        finally:
            worker.close()
    return found, versions


def _offer(latent: Report, name: str, arm: Arm) -> Offer:
    beside = replace(latent, arms={each: latent.arms[each] for each in ("text", "none")} | {arm.name: arm})
    exact, nats = (beside.recovery(arm.name, of=of) for of in (None, LOG_LIKELIHOOD))
    assert exact is not None  # its receiver is better with the text than with nothing, or there was no axis
    sizes = arm.wire_bytes
    return Offer(name, "message", max(sizes), sum(sizes) / len(sizes), exact, None, False, recovery_nats=nats)


def _of_hqq(pair: Pair, cases: Sequence[Case], bits: int) -> Arm:
    memories: list[Memory] = []
    sizes = []
    for case in cases:
        kv = pair.sender.read(case.context).kv
        assert kv is not None  # since the codec at its side reads one
        rounded, size = by_hqq(kv, bits)
        memories.append(CacheMemory(rounded))
        sizes.append(size)
    given = ArmInput(memories, tuple(sizes), tuple(sizes))
    return Scorer(pair.receiver, cases).arm(ArmSpec("message", "message", lambda: given), given, None)


def _of_avp(ask: Callable[..., dict[str, Any]], cases: Sequence[Case]) -> Arm:
    found = [ask(text=case.context, questions=[each.text for each in case.questions]) for case in cases]
    asked = [question for case in cases for question in case.questions]
    said = [answer for one in found for answer in one["answers"]]
    answers = tuple(None if a == each.answer else a for a, each in zip(said, asked, strict=True))
    sizes, unknown = tuple(one["bytes"] for one in found), (0.0,) * len(asked)
    return Arm("message", "message", answers, unknown, unknown, sizes, sizes)
