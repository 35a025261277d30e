"""The table of the README: five figures, each beside its controls."""

from collections.abc import Callable
from typing import Any

__all__ = ["front"]

TIME = "first token, message, encode and wire / text"
RECOVERY = "recovery, exact"
BY_DEFINITION = {"text": "1", "none": "0"}  # of recovery


def front(
    result: Callable[[str], dict[str, Any]],
    table: Callable[[list[str], list[list[str]]], str],
    number: Callable[[dict[str, Any] | None], str],
) -> str:
    """Returns what the message is worth and costs, beside the text, text of as many bytes, and the controls."""
    made = result("embedded")["figures"]
    arms, sizes = made["arms"], made["bytes"]
    mismatched = "mismatched" if "mismatched" in arms else "other"  # its name in results of earlier versions
    shown = {  # what the receiver gets -> the arm, and its arm where the payload has 20 bytes
        "message": ("message", "message-20"),
        "full text": ("text", "text"),
        "text, coded by the sender's model": ("lm-80", "lm-20"),
        "another case's message": (mismatched, None),
        "nothing": ("none", "none"),
    }
    times = {"message": number(made["cost"][TIME]), "text": "1"}

    def recovery(arm: str | None) -> str:
        return number(None) if arm is None else BY_DEFINITION.get(arm) or number(arms[arm]["all"][RECOVERY])

    rows = [
        [
            what,
            number(sizes[arm]["wire"] if arm in sizes else None),
            recovery(arm),
            recovery(shorter),
            number(arms[arm]["join"]["exact"]),
            times.get(arm, number(None)),
        ]
        for what, (arm, shorter) in shown.items()
    ]
    n, joins = arms["message"]["all"][RECOVERY]["n"], arms["message"]["join"]["exact"]["n"]
    header = [
        "the receiver gets",
        "bytes on the wire",
        f"recovery, 80 bytes of payload (n = {n})",
        f"recovery, 20 bytes of payload (n = {n})",
        f"joins right (n = {joins})",
        "time to first token",
    ]
    return table(header, rows)
