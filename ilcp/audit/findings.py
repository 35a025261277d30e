"""What verifying a copy of a ledger finds, and how it is told to people."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ilcp.audit.checkpoints import parsed
from ilcp.audit.entries import Entry
from ilcp.audit.sequences import Recorded, in_words

__all__ = ["CHECKS", "NO_KEY", "NO_WITNESS", "PARTLY", "Finding", "Verified", "in_line", "said_of"]

CHECKS = {
    "readable": "every part can be read and has its type",
    "entries": "every entry is spelt canonically, at its number, and what it is looked up by is what it says",
    "tree": "the hashes that are kept are those of the entries, or each entry's proof leads to the root",
    "root": "every checkpoint is of just these entries",
    "signature": "every checkpoint is signed by the key of its time, and the newest by one that is believed",
    "witness": "the ledger still begins with what older checkpoints stood for, and is no shorter",
    "time": "no entry is dated before a checkpoint that it came after, nor before the entry in front of it",
    "personal": "what stands beside an entry is what the entry meant, and what is gone was erased on the record",
    "sequence": "no producer's number in a run was given twice",
}
NO_KEY = "no key was given: another could have written the whole ledger; ask its guardian for the public key"
NO_WITNESS = (
    "no older checkpoint was given: the guardian itself could have rewritten the ledger, or cut off its end; whoever "
    "keeps one can tell ('ilcp audit witness')"
)
PARTLY = "this copy is of some runs: what was left out at the end of one cannot be seen"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and at which entry; None: of all."""

    check: str
    said: str
    entry: int | None = None

    def __str__(self) -> str:
        return f"{self.check}{'' if self.entry is None else f', entry {self.entry}'}: {self.said}"


@dataclass(frozen=True)
class Verified:
    """What is so of a copy: its newest checkpoint, how many entries it has, what was found and what cannot be told.

    ``note`` is that checkpoint as it is signed. ``missing`` has the ranges of numbers that were not handed in though
    later ones were: such a run is incomplete, which is no sign that the ledger was changed. ``complete`` has the last
    number of all others. Both are by producer, run and the part that tells several recorders of it apart. ``erased``
    are the entries that say what was erased, by whom and why; ``retired`` counts those of which only the hash is left.
    """

    note: str
    entries: int
    findings: tuple[Finding, ...]
    cannot: tuple[str, ...]
    missing: Mapping[Recorded, list[list[int]]]
    complete: Mapping[Recorded, int]
    erased: tuple[Entry, ...]
    retired: int

    @property
    def sound(self) -> bool:
        """Says whether nothing was found."""
        return not self.findings


def said_of(found: Verified) -> Iterator[str]:
    """Yields, line by line, what people are told of a copy; nothing of it breaks out of its line."""
    if found.note:
        yield in_line(f"{parsed(found.note).origin}: {found.entries} entries, {found.retired} of them retired")
    for who, number in found.complete.items():
        yield in_line(f"{_named(who, found)}: all of 1 to {number}")
    for who, numbers in found.missing.items():
        more = ", ..." if len(numbers) > 10 else ""
        yield in_line(f"{_named(who, found)}: incomplete, missing {in_words(numbers[:10])}{more}")
    for entry in found.erased:
        fields = entry.fields
        names = fields.get("names")
        which = ", ".join(map(str, names if isinstance(names, list) else [names]))
        yield in_line(
            f"entry {fields.get('of')}: {which} erased by {fields.get('by')}, because {fields.get('because')}"
        )
    yield from (in_line(f"cannot be told: {each}") for each in found.cannot)
    yield from (in_line(f"NOT SOUND: {each}") for each in found.findings)
    if found.sound:
        untold = {check for check, why in (("signature", NO_KEY), ("witness", NO_WITNESS)) if why in found.cannot}
        yield f"sound: {', '.join(check for check in CHECKS if check not in untold)}"


def _named(who: Recorded, found: Verified) -> str:
    """Names a run's recorder: by its part only where the run has several."""
    several = sum(who[:2] == other[:2] for other in (*found.complete, *found.missing)) > 1
    return f"{who[0]}, run {who[1]}" + (f", part {who[2]}" if several else "")


def in_line(text: str) -> str:
    """Returns a stranger's words as they stand in one line: what cannot be printed is escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
