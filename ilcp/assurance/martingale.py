"""Evidence that accumulates: test martingales, whose value is money won by betting that something is wrong.

Who bets against what is true wins a hundredfold with a probability of at most one in a hundred, at whatever moment one
looks (Ville's inequality): so an alarm at 100 is false with at most 1 % over all time, and needs no number of messages
fixed beforehand.

``SimpleJumper`` (Vovk et al., "Retrain or not retrain", PMLR 152, 2021) bets on p-values of messages. They are ranks in
a *fixed* calibration set, whose own chance would win in the end: 4,000 scores are up to three hundredths of a rank off,
and a jumper that plays long enough finds that out. So each bet is laid on a p-value moved against it by what the set
may be off (Dvoretzky, Kiefer and Wolfowitz), and nothing is won by a reference that is merely finite. A tenth of the
starting capital is kept back for the one case in a thousand that it is further off.

While nothing is wrong, bets lose: within 100,000 messages all that there is, and nobody would notice anything any more.
So half of the capital sleeps at first, and of it a little wakes with each message, ever less and never all of it.

``Canary`` bets on right and wrong answers, in both directions, and stops as soon as either has won.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["ALARM", "BETS", "FURTHER_OFF", "START", "Canary", "Jumper", "margin"]

ALARM = 100.0
FURTHER_OFF = 0.001  # the probability that a calibration set is further off than the margin
START = 1 - ALARM * FURTHER_OFF  # of the capital: 0.9 / 100 + 0.001 is one in a hundred
BETS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # factors 1 + bet (p - 1/2), so that none is ever negative
JUMP = 0.01  # of the capital, spread anew over all bets with each message
WAKING = 4  # the power of what sleeps that wakes: at first 0.04, after a million messages 2e-9
MOST = 1e100  # what is won stays a number
STAKES = (0.1, 0.25, 0.5, 0.75, 0.9)  # of what may be laid on an answer; each has a fifth of the capital


def margin(n: int) -> float:
    """Returns how far the ranks in a calibration set of ``n`` may be off, but for a probability of ``FURTHER_OFF``."""
    return math.sqrt(math.log(2 / FURTHER_OFF) / (2 * n))


@dataclass(frozen=True, slots=True)
class Jumper:
    """The capital on each of ``bets``; a new one with every p-value."""

    capital: tuple[float, ...] = ()
    bets: tuple[float, ...] = BETS
    jump: float = JUMP
    asleep: float = 0.0  # what is not laid on any bet yet

    @classmethod
    def fresh(
        cls, bets: Sequence[float] = BETS, jump: float = JUMP, start: float = START, asleep: float = START / 2
    ) -> "Jumper":
        """Returns one that has won nothing yet; of ``start``, ``asleep`` is not laid on any bet at first."""
        return cls(((start - asleep) / len(bets),) * len(bets), tuple(bets), jump, asleep)

    @property
    def value(self) -> float:
        """All capital."""
        return sum(self.capital) + self.asleep

    def bet(self, p: float, off: float = 0.0) -> "Jumper":
        """Returns the capital after a p-value, which may be off by so much."""
        woken, count = self.asleep**WAKING, len(self.bets)
        anew = self.jump * sum(self.capital) + woken
        spread = [(1 - self.jump) * each + anew / count for each in self.capital]
        up, down = min(1.0, p + off), max(0.0, p - off)
        won = (1 + bet * ((up if bet < 0 else down) - 0.5) for bet in self.bets)
        capital = tuple(min(MOST, each * factor) for each, factor in zip(spread, won, strict=True))
        return replace(self, capital=capital, asleep=self.asleep - woken)


@dataclass(frozen=True, slots=True)
class Canary:
    """A sequential test of answers: against their being right as often as ``usual``, and against ``lost``.

    ``usual`` is a share of right answers that a sound pair exceeds, ``lost`` one that a broken pair does not. What is
    won against the first is evidence of a fault, against the second of health.

    >>> test = Canary(0.8, 0.4)
    >>> for right in (False, True, False, False, False, False):
    ...     test = test.told(right)
    >>> test.verdict
    'lost'
    """

    usual: float
    lost: float
    against_usual: tuple[float, ...] = (1 / len(STAKES),) * len(STAKES)
    against_lost: tuple[float, ...] = (1 / len(STAKES),) * len(STAKES)
    asked: int = 0
    right: int = 0

    @property
    def sound(self) -> bool:
        """Says whether it is one that can be told of answers: who wrote a file may be anybody."""
        lengths = {len(self.against_usual), len(self.against_lost)}
        return 0 < self.lost < 1 and 0 < self.usual < 1 and lengths == {len(STAKES)} and 0 <= self.right <= self.asked

    @property
    def values(self) -> tuple[float, float]:
        """What was won against ``usual`` and against ``lost``."""
        return sum(self.against_usual), sum(self.against_lost)

    @property
    def verdict(self) -> str:
        """ "lost", "sound", or "" where the evidence is not in yet."""
        fault, health = self.values
        return "lost" if fault >= ALARM else "sound" if health >= ALARM else ""

    def told(self, right: bool) -> "Canary":
        """Returns the test after one more answer."""
        hit = float(right)
        # Each factor is at least 1 - stake, and 1 on average where hits are as often as ``usual``, or as ``lost``.
        fault = [1 + stake * (self.usual - hit) / (1 - self.usual) for stake in STAKES]
        health = [1 + stake * (hit - self.lost) / self.lost for stake in STAKES]
        return replace(
            self,
            against_usual=tuple(min(MOST, a * b) for a, b in zip(self.against_usual, fault, strict=True)),
            against_lost=tuple(min(MOST, a * b) for a, b in zip(self.against_lost, health, strict=True)),
            asked=self.asked + 1,
            right=self.right + right,
        )
