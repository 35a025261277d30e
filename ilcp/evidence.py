"""Evidence of what a codec is worth: the result that stands in its folder, and that a receiver asks for.

A codec whose message says no more than another case's message is a codec whose receiver makes its answers up. So
``Receiver`` takes no codec without ``Evidence``, and none whose content gain is not above zero with its interval,
unless its caller says ``allow_unmeasured=True``. ``ilcp measure --attach`` writes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any

from ilcp.errors import ConfigError, UnmeasuredError
from ilcp.records import read_record

__all__ = ["EARLIER_ARMS", "Evidence", "require_evidence"]

# What reports and evidence of before call an arm; the name that it has.
EARLIER_ARMS = {"other": "mismatched", "literals-other": "literals-mismatched"}
ROUNDED = 1e-3  # of figures with four places


@dataclass(frozen=True, slots=True)
class Evidence:
    """The controls of one measurement: of which codec, on which task, and how the message fared.

    ``content_gain`` is the message minus another case's message, with its 95 % interval, in ``unit`` (exact match, or
    nats where answers go on); ``arms`` holds the mean of the message, of each control and of the full text.
    """

    codec_id: str
    task: str
    n: int
    seed: int
    unit: str
    content_gain: float
    low: float | None
    high: float | None
    arms: Mapping[str, float]
    commit: str

    def require_sound(self) -> None:
        """Refuses figures that no measurement gives: who wrote them may be anybody.

        Raises:
            UnmeasuredError: with what was expected.
        """
        message, other = (self.arms.get(name, nan) for name in ("message", "mismatched"))
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        figures = (self.content_gain, *bounds, *self.arms.values())
        expected = {
            "the arms message and mismatched": {"message", "mismatched"} <= self.arms.keys(),
            "finite figures": all(map(isfinite, figures)),
            "shares from 0 to 1": self.unit != "exact match" or all(0 <= value <= 1 for value in self.arms.values()),
            "a content gain that is the difference of its arms": abs(message - other - self.content_gain) < ROUNDED,
            "n of at least 2 where there is an interval": self.n >= (2 if bounds else 1),
            "an interval around the content gain": not bounds
            or (len(bounds) == 2 and bounds[0] <= self.content_gain <= bounds[1]),
        }
        for what, is_so in expected.items():
            if not is_so:
                raise UnmeasuredError(f"expected {what}, got {self}: measure again")

    @property
    def holds(self) -> bool:
        """Says whether the content gain is above zero with its interval."""
        return self.low is not None and self.low > 0

    def __str__(self) -> str:
        known = self.low is not None and self.high is not None
        interval = f"[{self.low:.3f}, {self.high:.3f}]" if known else "without an interval"
        arms = ", ".join(f"{name} {value:.3f}" for name, value in self.arms.items())
        return f"content gain {self.content_gain:.3f} {interval} ({self.unit}: {arms}) on {self.task}, n={self.n}"

    @classmethod
    def from_dict(cls, record: Any) -> "Evidence":
        """Reads the evidence that ``dataclasses.asdict`` wrote.

        Raises:
            UnmeasuredError: a field is missing, unknown or of another type, or no measurement gives such figures.
        """
        try:
            found = read_record(cls, record, "the evidence")
        except ConfigError as error:
            raise UnmeasuredError(f"{error}: measure again") from None
        found = replace(found, arms={EARLIER_ARMS.get(name, name): value for name, value in found.arms.items()})
        found.require_sound()
        return found


def require_evidence(evidence: Evidence | None, codec_id: str) -> None:
    """Refuses a codec that was not measured, or that was and says nothing.

    Raises:
        UnmeasuredError: the text says what was measured, and what to do.
    """
    way_out = "measure it with 'ilcp measure --attach', or pass allow_unmeasured=True if you know why"
    if evidence is None:
        raise UnmeasuredError(
            f"expected a codec that was measured against its controls, got one that was not: {way_out}"
        )
    if evidence.codec_id != codec_id:
        raise UnmeasuredError(
            f"expected the evidence of codec {codec_id}, got that of {evidence.codec_id}: weights or models "
            f"differ; {way_out}"
        )
    evidence.require_sound()
    if not evidence.holds:
        raise UnmeasuredError(
            f"expected a content gain above zero with its interval, got {evidence}: the message says no more than "
            "another case's message; train it further, or pass allow_unmeasured=True if you know why"
        )
