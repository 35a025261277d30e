"""Probes: what an attacker with a stolen codec reads from a payload, whatever the receiver would say.

::

    bits "messages bits" (+1, -1; 0 beyond the prefix) --trunk--> h --heads--> one distribution for each field

All heads share the trunk. A probe is trained on the attacker's own messages, keeps the weights that were best on a
tenth of them, and is tried on messages that it never saw, of documents from another stream.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from privacy_data import FIELDS, GROUPS, Messages, Numbers
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.measure.bootstrap import Bootstrap

__all__ = ["Probe", "facts_told", "figure", "learned", "read", "report"]

WIDTH = 768
BATCH = 256
EPOCHS, FEWEST_STEPS, MOST_STEPS = 8, 500, 1800
LEARNING_RATE = 1.5e-3
BITS_PER_NAT = 1 / np.log(2)
Change = Callable[[Tensor], Tensor]


class Probe(nn.Module):
    """Logits ``"messages outputs"``, the classes of all fields in a row, from bits as +1, -1 and 0."""

    def __init__(self, bits: int):
        super().__init__()
        self.sizes = [field.classes for field in FIELDS]
        self.enter, self.mix = nn.Linear(bits, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.leave = nn.Linear(WIDTH + bits, sum(self.sizes))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(F.gelu(self.enter(x)))
        told: Tensor = self.leave(torch.cat([h + self.drop(F.gelu(self.mix(h))), x], -1))
        return told

    def losses(self, x: Tensor, said: Tensor) -> Tensor:
        """Returns the cross-entropy of each message's fields, ``"messages fields"`` in nats; 0 where none is said."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            logits = self(x).float()
        found, start, place = [], 0, 0
        for classes, run in groupby(self.sizes):  # fields of as many classes stand side by side
            fields = len(list(run))
            some = logits[:, start : start + fields * classes].view(len(x), fields, classes).transpose(1, 2)
            found.append(F.cross_entropy(some, said[:, place : place + fields], ignore_index=-1, reduction="none"))
            start, place = start + fields * classes, place + fields
        return torch.cat(found, 1)


def signed(messages: Messages, payload_bytes: int) -> Tensor:
    """Returns the bits of a prefix as +1 and -1."""
    return torch.from_numpy(messages.bits[:, : 8 * payload_bytes]).float() * 2 - 1


def learned(
    own: Messages,
    payload_bytes: int,
    *,
    seed: int,
    change: Change = lambda x: x,
    most: int = MOST_STEPS,
    only: Sequence[int] = range(len(FIELDS)),
) -> Probe:
    """Returns a probe of prefixes of a length.

    Args:
        change: what happens to payloads on the way, such as noise; drawn anew each time a message is seen.
        most: steps.
        only: the fields that it is to read; what it says of others is nothing.
    """
    torch.manual_seed(seed)
    x, said = signed(own, payload_bytes), torch.from_numpy(own.labels)
    kept = max(50, len(x) // 10)
    steps = min(most, max(FEWEST_STEPS, EPOCHS * (len(x) - kept) // BATCH))
    probe, fields = Probe(x.shape[1]), list(only)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    best, weights = np.inf, probe.state_dict()
    for step in range(1, steps + 1):
        some = torch.randint(kept, len(x), (BATCH,))
        loss = probe.train().losses(change(x[some]), said[some])[:, fields].sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            with torch.no_grad():
                held = float(probe.eval().losses(change(x[:kept]), said[:kept])[:, fields].sum(1).mean())
            if held < best:
                best, weights = held, {name: value.clone() for name, value in probe.state_dict().items()}
    probe.load_state_dict(weights)
    return probe.eval()


@torch.no_grad()
def read(probe: Probe, messages: Messages, payload_bytes: int, change: Change = lambda x: x) -> tuple[Numbers, Any]:
    """Returns what the probe says of each field, ``"messages fields"``, and the nats of what is true."""
    x = change(signed(messages, payload_bytes))
    guesses = torch.stack([one.argmax(-1) for one in probe(x).split(probe.sizes, -1)], 1)
    return guesses.numpy(), probe.losses(x, torch.from_numpy(messages.labels)).numpy()


def prior_nats(own: Messages, attacked: Messages) -> NDArray[np.float64]:
    """Returns the nats of what is true, ``"messages fields"``, to who knows only how often each value is said."""
    nats = np.zeros(attacked.labels.shape)
    for at, field in enumerate(FIELDS):
        known = own.labels[:, at] >= 0
        chances = np.bincount(own.labels[known, at], minlength=field.classes) + 0.5
        said = attacked.labels[:, at]
        nats[:, at] = np.where(said >= 0, -np.log(chances / chances.sum())[np.maximum(said, 0)], 0.0)
    return nats


def facts_told(guesses: Numbers, said: Numbers) -> NDArray[np.bool_]:
    """Returns ``"messages facts"``: whether each stated fact is told exactly; the code is one fact, all six characters.

    What is not stated is no fact, and stays false.
    """
    groups = np.array([field.group for field in FIELDS])
    right = (guesses == said) & (said > 0)
    told = right[:, ~np.isin(groups, ("code", "wording", "distractor"))]
    return np.column_stack([told, right[:, groups == "code"].all(1)])


def stated(said: Numbers) -> NDArray[np.bool_]:
    """Returns ``"messages facts"``: whether each is stated."""
    return facts_told(said, said)


def report(own: Messages, attacked: Messages, found: tuple[Numbers, Any], payload_bytes: int) -> dict[str, Any]:
    """Returns the figures of an attack: facts told exactly a message and a byte, their share, and bits, by group."""
    guesses, nats = found
    right, there = facts_told(guesses, attacked.labels), stated(attacked.labels)
    gained = (prior_nats(own, attacked) - nats) * BITS_PER_NAT
    groups = np.array([field.group for field in FIELDS])
    facts = ~np.isin(groups, ("wording", "distractor"))
    shares = {
        field.name: _share(guesses[:, at], attacked.labels[:, at], field.group) for at, field in enumerate(FIELDS)
    }
    made = {
        "payload_bytes": payload_bytes,
        "n_own": len(own.bits),
        "n": len(attacked.bits),
        "facts": figure(right.sum(1)),
        "facts stated": figure(there.sum(1)),
        "facts a byte": float(right.sum(1).mean() / payload_bytes),
        "share of facts": figure(right.sum(1), there.sum(1)),
        "whole code": figure(right[:, -1]),
        "bits of facts": figure(gained[:, facts].sum(1)),
        "bits of facts a byte": float(gained[:, facts].sum(1).mean() / payload_bytes),
        "bits by group": {group: float(gained[:, groups == group].sum(1).mean()) for group in GROUPS},
        "exact by group": {
            group: float(np.nanmean([shares[field.name] for field in FIELDS if field.group == group]))
            for group in GROUPS
        },
        "exact by field": {name: round(share, 4) for name, share in shares.items()},
    }
    return made


def _share(guesses: Numbers, said: Numbers, group: str) -> float:
    there = said >= 0 if group in ("wording", "distractor") else said > 0
    return float((guesses == said)[there].mean()) if there.any() else float("nan")


def figure(values: Any, over: Any = None, *, seed: int = 0) -> dict[str, float | int]:
    """Returns the mean over messages, or the ratio of two means, with its 95 % interval."""
    draws = Bootstrap(range(len(values)), seed=seed)
    means = draws.of_groups(np.asarray(values, dtype=np.float64))
    made = draws.figure(
        means if over is None else means / draws.of_groups(np.asarray(over, dtype=np.float64)), len(values)
    )
    assert made.low is not None
    assert made.high is not None
    return {"value": round(made.value, 4), "low": round(made.low, 4), "high": round(made.high, 4), "n": made.n}


def summary(made: Mapping[str, Any]) -> str:
    """Returns a line that says how an attack did."""
    told, there, bits = (made[name]["value"] for name in ("facts", "facts stated", "bits of facts"))
    return f"{told:.2f} of {there:.2f} facts, {bits:.1f} bits"
