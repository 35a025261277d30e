"""Evidence of what a codec is worth: the result that stands in its folder, and that a receiver asks for.

A codec whose message says no more than another case's message is a codec whose receiver makes its answers up. So
``Receiver`` takes no codec without ``Evidence``, and none whose content gain is not above zero with its interval,
unless its caller says ``allow_unmeasured=True``. ``ilcp measure --attach`` writes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ilcp.errors import ConfigError, UnmeasuredError
from ilcp.records import read_record

__all__ = ["EARLIER_ARMS", "Evidence", "require_evidence"]

# What reports and evidence of before call an arm; the name that it has.
EARLIER_ARMS = {"other": "mismatched", "literals-other": "literals-mismatched"}


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
            UnmeasuredError: a field is missing, unknown or of another type.
        """
        try:
            found = read_record(cls, record, "the evidence")
        except ConfigError as error:
            raise UnmeasuredError(f"{error}: measure again") from None
        return replace(found, arms={EARLIER_ARMS.get(name, name): value for name, value in found.arms.items()})


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
    if not evidence.holds:
        raise UnmeasuredError(
            f"expected a content gain above zero with its interval, got {evidence}: the message says no more than "
            "another case's message; train it further, or pass allow_unmeasured=True if you know why"
        )
