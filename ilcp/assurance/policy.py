"""What an end does with a message that is unlike those of its codec's calibration: declared once, as a ``Policy``.

::

    observed --View--> p ----------------- p below level? ---- doubt ---+
                       |                                                +--> accept, warn, refuse or text
                       +--Watch: bets--> an alarm stands? ---- alarm ---+

>>> Policy().doubt, Policy(doubt="refuse").alarm
('warn', 'warn')

A doubt is about one message, an alarm about all since the last reset. Neither is ever asked to find tampering or
swapped weights: identity and seal refuse those before anything is decoded.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import SystemRandom
from typing import Any, Literal, cast, get_args

from ilcp.assurance.martingale import margin
from ilcp.assurance.reference import Reference
from ilcp.assurance.view import Observed
from ilcp.assurance.watch import State, Watch, tenant_name
from ilcp.errors import ConfigError, DoubtError
from ilcp.identity import digest

__all__ = ["UNJUDGED", "WARNING", "Action", "AssuranceWarning", "Guard", "Judgement", "Policy", "expired"]

Action = Literal["accept", "warn", "refuse", "text"]
ACTIONS = get_args(Action)
STRICTER: tuple[Action, ...] = ("accept", "warn", "text", "refuse")  # where a doubt and an alarm say different things
Ranks = Mapping[str, tuple[float, float]]  # by view: a p-value, and how far it may be off
LEVEL = 0.001
CHANCE = SystemRandom()  # nobody's random numbers are drawn
MOST_SEEN = 4096  # messages that are known again
DAY_S = 86_400.0


class AssuranceWarning(UserWarning):
    """A message is unlike those that its codec was calibrated on, or an alarm stands."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What an end does in doubt.

    Args:
        doubt: about one message whose p-value is below ``level``: "accept" it, "warn", "refuse" it with a DoubtError,
            or take the "text" in its place, which the caller allows by saying so.
        alarm: what is done with every message while an alarm stands.
        level: of p-values; a view of n scores knows none below 1 / (n + 1), which then is its level.
        watch: keeps the evidence of all messages; None for this process's memory.
        tenant: whose messages these are: each has evidence and alarms of its own.
        probe_every: of so many messages one is probed, too: the receiver's model runs once more, over a few answers
            behind the memory. 0 for none.
        text: for "text" at a receiver: gives the text that a message stands for.
        expires_days: how old a codec's evidence may be; older, or of no known date, or of another major version of
            transformers, is a doubt of its own when the end is made. None for no limit.

    Raises:
        ConfigError: an action, a number or a watch is none, or a receiver is to take a text that nobody gives.
    """

    doubt: Action = "warn"
    alarm: Action = "warn"
    level: float = LEVEL
    watch: Watch | None = None
    tenant: str = ""
    probe_every: int = 0
    text: Callable[[bytes], str] | None = None
    expires_days: float | None = None

    def __post_init__(self) -> None:
        for name in ("doubt", "alarm"):
            if getattr(self, name) not in ACTIONS:
                raise ConfigError(f"expected {name} as one of {', '.join(ACTIONS)}, got {getattr(self, name)!r}")
        if not 0 < self.level < 1:
            raise ConfigError(f"expected a level between 0 and 1, got {self.level!r}")
        if type(self.probe_every) is not int or self.probe_every < 0:
            raise ConfigError(f"expected probe_every as a number from 0, got {self.probe_every!r}")
        if self.expires_days is not None and not self.expires_days > 0:
            raise ConfigError(f"expected expires_days above 0 or None, got {self.expires_days!r}")
        watch, text = cast(Any, self.watch), cast(Any, self.text)  # of callers without types
        if not (watch is None or isinstance(watch, Watch)) or not (text is None or callable(text)):
            raise ConfigError(
                "expected watch as an ilcp.assurance.Watch, and text as what gives a text, got another type"
            )
        tenant_name(self.tenant)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found of one message, and what is done about it.

    ``p`` is its p-value, None where nothing was calibrated; ``evidence`` what was won so far by betting that messages
    have changed (an alarm from a hundredfold on).
    """

    action: Action = "accept"
    because: str = ""
    p: float | None = None
    views: Mapping[str, float] = field(default_factory=dict)
    evidence: float = 0.0
    alarmed: bool = False
    reference: str = ""

    def told(self) -> dict[str, Any]:
        """Returns what goes on record, and into the span."""
        told: dict[str, Any] = {"decision": self.action, "reason": self.because, "reference": self.reference}
        if self.p is not None:
            told |= {"p_value": _rounded(self.p), "evidence": _rounded(min(self.evidence, 1e12)), "alarm": self.alarmed}
        return {name: value for name, value in told.items() if value != ""}

    def refusal(self, way_out: str) -> DoubtError:
        """Returns the error of an end that does not take the message; its ``assurance`` is what goes on record."""
        because = f"expected a message like those of the calibration, got one where {self.because}; {way_out}"
        error = DoubtError(because)
        error.assurance = replace(self, action="refuse").told()
        return error


class Guard:
    """One end's judge: a policy, and the references of its codecs.

    Args:
        place: "sender" or "receiver".
        codecs: whose references are read from their folders.

    Raises:
        StorageError, IdentityError: a reference is damaged, or another codec's.
    """

    def __init__(self, policy: Policy, place: str, codecs: Any):
        self.policy, self.place = policy, place
        self._watch = Watch() if policy.watch is None else policy.watch
        self._known = [(each, each.trained.codec_id(each.spec), Reference.of(each)) for each in codecs]
        self._turns = 0
        self._seen: dict[bytes, Ranks] = {}

    def reference(self, codec: Any) -> Reference | None:
        """Returns what is usual of a codec's messages; None where nobody calibrated it."""
        return self._of(codec)[1]

    def judge(
        self,
        codec: Any,
        payload: bytes,
        observed: Mapping[str, Observed],
        probe: Callable[[Reference], Observed | None] | None = None,
        *,
        counts: bool = True,
    ) -> Judgement:
        """Returns what is found of a message, and counts it, once: one that is decoded again says nothing new.

        Args:
            observed: by the name of the view.
            probe: asks the receiver's model, where it is this message's turn.
            counts: whether it is evidence of what comes, and a decision.

        Raises:
            StorageError: the watch cannot be read or written.
        """
        codec_id, reference = self._of(codec)
        if reference is None:
            return Judgement()
        key = (codec_id.hex(), reference.digest, self.policy.tenant, self.place)
        name = digest(codec_id, payload)
        probes = bool(self.policy.probe_every) and probe is not None and "probed" in reference.views
        ranks, known = self._seen.get(name), name in self._seen
        if ranks is None:
            if probe is not None and probes and self._turn(counts):
                asked = probe(reference)
                observed = {**observed, **({} if asked is None else {"probed": asked})}
            ranks = _ranks(reference, observed)
        if known or not counts:
            return self._judged(reference, ranks, self._watch.look(*key))
        found: list[Judgement] = []

        def step(state: State) -> State:
            state = state.bet(ranks, views=1 + probes)
            found.append(self._judged(reference, ranks, state))
            return state.decide(found[0].action)

        self._watch.change(*key, step)
        self._remember(name, ranks)
        return found[0]

    def _of(self, codec: Any) -> tuple[bytes, Reference | None]:
        """Returns a codec's id, and its reference if there is one."""
        for each, codec_id, reference in self._known:
            if each is codec:
                return codec_id, reference
        return codec.trained.codec_id(codec.spec), None

    def _remember(self, name: bytes, ranks: Ranks) -> None:
        self._seen[name] = ranks
        with suppress(RuntimeError, StopIteration):  # where another thread does so, too
            while len(self._seen) > MOST_SEEN:
                self._seen.pop(next(iter(self._seen)), None)

    def _turn(self, counts: bool) -> bool:
        """Says whether a message is probed, too: each that is no evidence of what comes, else one of so many."""
        turn = self._turns
        self._turns += counts
        return not counts or turn % self.policy.probe_every == 0

    def _judged(self, reference: Reference, ranks: Ranks, state: State) -> Judgement:
        """Returns the judgement from the ranks of one message, and the state after it."""
        ps = {name: p for name, (p, _) in ranks.items()}
        known: dict[str, Any] = {"reference": reference.digest, "evidence": state.value, "alarmed": state.alarmed}
        if ps:
            known |= {"p": min(1.0, len(ps) * min(ps.values())), "views": dict(ps)}
        because = dict[Action, str]()
        for name, p in ((name, len(ps) * p) for name, p in ps.items()):
            level = max(self.policy.level, len(ps) / (len(reference.views[name].scores) + 1))
            if p < level:
                what = WHAT[name.split("/")[0]]
                because[self.policy.doubt] = f"its {what} is unlike those calibrated on: p = {p:.2g} < {level:.2g}"
        if state.alarmed:
            since = f"an alarm stands since message {state.alarm_at}: messages have changed"
            because.setdefault(self.policy.alarm, f"{since} (evidence up to {state.peak:.3g} : 1)")
        if not because:
            return Judgement(**known)
        action = max(because, key=STRICTER.index)
        return Judgement(action, because[action], **known)

    def act(self, judged: Judgement, way_out: str) -> None:
        """Warns, or refuses; what else is to be done the end does.

        Raises:
            DoubtError: the policy refuses.
        """
        if judged.action == "refuse":
            raise judged.refusal(way_out)
        if judged.action == "warn":
            warnings.warn(f"a message is taken in doubt: {judged.because}", AssuranceWarning, stacklevel=4)


WARNING, UNJUDGED = Policy(), Judgement()
WHAT = {"sent": "latent", "received": "payload", "probed": "effect on the receiver"}


def _ranks(reference: Reference, observed: Mapping[str, Observed]) -> Ranks:
    """Returns p-values, and how far each may be off, of what there is a view for; of another shape it is 0."""
    ranks = {}
    for name, each in observed.items():
        if (view := reference.views.get(name)) is not None:
            score = view.score(each) if view.fits(each) else float("inf")
            ranks[name] = (view.p_value(score, CHANCE.random()), margin(len(view.scores)))
    return ranks


def expired(evidence: Any, days: float | None, transformers: str) -> str:
    """Says why a codec is to be measured again; empty where it is not."""
    if evidence is None:
        return ""
    if days is not None and not evidence.measured_unix_s:
        return f"nothing says when it was measured, and {days:g} days are allowed"
    if days is not None:
        age = (time.time() - evidence.measured_unix_s) / DAY_S
        if age > days:
            return f"it was measured {age:.0f} days ago, and {days:g} are allowed"
    measured = evidence.transformers
    if measured and measured.split(".")[0] != transformers.split(".")[0]:
        return f"it was measured with transformers {measured}, and {transformers} is installed"
    return ""


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
