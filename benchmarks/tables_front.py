"""The table of the README: five figures, each beside its controls."""

from collections.abc import Callable
from typing import Any

__all__ = ["front"]

TIME = "first token, message, encode and wire / text"


def front(
    result: Callable[[str], dict[str, Any]],
    table: Callable[[list[str], list[list[str]]], str],
    number: Callable[[dict[str, Any] | None], str],
) -> str:
    """Returns what the message is worth and costs, beside the text, text of as many bytes, and the controls."""
    made = result("embedded")["figures"]
    foreign = "mismatched" if "mismatched" in made["arms"] else "other"  # its name in results of earlier versions

    def row(what: str, kind: str, name: str, *arms: str | None) -> list[str]:
        found = [None if arm is None else made["arms"][arm][kind][name] for arm in arms]
        return [what, *map(number, found), f"n = {made['arms']['message'][kind][name]['n']}"]

    every = ("message", "text", "lm-80", foreign, "none")
    sizes = [number(made["bytes"][arm]["wire"]) if arm in made["bytes"] else "–" for arm in every]
    rows = [
        ["bytes on the wire, everything counted", *sizes, f"n = {made['bytes']['message']['wire']['n']}"],
        row("recovery, payload of at most 80 bytes", "all", "recovery, exact", *every),
        row(
            "recovery, payload of at most 20 bytes",
            "all",
            "recovery, exact",
            "message-20",
            "text",
            "lm-20",
            None,
            "none",
        ),
        row("joins answered right (two facts, one answer)", "join", "exact", *every),
        [
            "time to the first token, encoding counted in, by that of the text",
            number(made["cost"][TIME]),
            *["1", "–", "–", "–"],
            "medians",
        ],
    ]
    return table(
        ["figure", "message", "full text", "text coded by the sender's model", "another case's message", "nothing", ""],
        rows,
    )
