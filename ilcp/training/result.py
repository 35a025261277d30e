"""What a run came to, and what bounded it."""

from dataclasses import dataclass

from ilcp.training.pace import seconds_text
from ilcp.training.validation import Validation

__all__ = ["Result"]


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a run: steps made, minutes taken, the last validation, and each part's share of a step's time.

    ``step_s`` are the seconds of a step after the warm-up, ``receiver_pass_s`` those of the receiver's pass alone over
    its questions, forward and back to the memory; both are 0 where the run had no step to make.
    """

    steps: int
    minutes: float
    validation: Validation
    shares: dict[str, float]
    tokens_per_s: float
    step_s: float = 0.0
    receiver_pass_s: float = 0.0

    def bound(self) -> str:
        """Says what a step's time went to; empty where there was none."""
        if not self.receiver_pass_s:
            return ""
        largest = sorted(self.shares.items(), key=lambda item: -item[1])
        return (
            f"a step took {seconds_text(self.step_s)}: {', '.join(f'{part} {share:.0%}' for part, share in largest)}; "
            f"the receiver's pass alone takes {seconds_text(self.receiver_pass_s)}, so a step is "
            f"{self.step_s / self.receiver_pass_s:.2f} times that"
        )
