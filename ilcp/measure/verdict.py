"""A report in one sentence: whether the message carries content, and whether text of as many bytes does better."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ilcp.measure.report import Report

__all__ = ["CONTROLS", "ESSENTIAL", "verdict"]

ESSENTIAL = ("text", "none", "message", "mismatched")  # arms without which there is no verdict
CONTROLS = ("none", "zero", "random", "mismatched")


def verdict(report: "Report") -> str:
    """Judges the message, and says of cases that the codec was trained on that they are."""
    if not report.complete:
        return "INCOMPLETE: the run was interrupted; the same command goes on with it."
    if missing := [name for name in ESSENTIAL if name not in report.arms]:
        return f"NOT JUDGED: without the arms {', '.join(missing)} nothing can be said of the message."
    overlap = f" OVERLAP: the codec was trained on {report.seen} of the {report.n} cases; measure it on others."
    return _judged(report) + (overlap if report.seen else "")


def _judged(report: "Report") -> str:
    gain, control = report.content_gain(), report.strongest(CONTROLS)
    if gain.low is None or gain.low <= 0:
        text = report.difference("text", "none")
        if text.low is None or text.low <= 0:  # then it is not the message's fault
            return (
                f"UNDECIDED: the receiver does no better with the full text than with nothing ({text}; it reaches "
                f"{report.mean('text')}), so no message could help it: take one that reads, or tune it to "
                f"(--adapt-receiver). Content gain {gain}."
            )
        return f"CARRIES NOTHING: the message does no better than another case's message; content gain {gain}."
    assert control is not None  # "none" is always run
    over = report.difference("message", control)
    if over.low is None or over.low <= 0:
        return f"FAILS A CONTROL: the message does no better than the control {control!r}; the difference is {over}."
    said = f"The message carries content: content gain {gain}; over the best control ({control}) {over}"
    rival = report.strongest(tuple(name for name, arm in report.arms.items() if arm.rival_of == "message"))
    if rival is None:
        return said + _saving(report) + "."
    over = report.difference("message", rival)
    if over.low is not None and over.low > 0:
        return f"{said}; over the best text of as many bytes ({rival}) {over}."
    verb = "does better" if over.high is not None and over.high < 0 else "does as well"
    return f"{said}; but text of as many bytes ({rival}) {verb}: message minus text {over}."


def _saving(report: "Report") -> str:
    """Says of a message that is longer than the text, as a cache is, that it saves no bytes."""
    text, message = (report.arms[name].sizes()["wire"].value for name in ("text", "message"))
    if text >= message:
        return ""
    return f"; the text itself takes fewer bytes ({text:,.0f} of {message:,.0f}): a cache saves reading, not bytes"
