"""The pages themselves: what each says, put through its template. Nothing here knows of a network or a folder.

A page is of one moment where its caller holds a snapshot of the ledger.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ilcp.audit import tree
from ilcp.audit.checkpoints import parsed
from ilcp.audit.entries import Entry
from ilcp.audit.findings import CHECKS, Verified, said_of
from ilcp.audit.page.plots import by_day
from ilcp.audit.page.views import (
    EVENTS,
    FLAGS,
    Filter,
    Handoff,
    Overview,
    View,
    handoff_at,
    handoffs,
    measured,
    overview,
)
from ilcp.audit.page.words import listed, moment, paragraphs, said
from ilcp.audit.sequences import gaps, in_words
from ilcp.audit.submission import PAGE, VIEWED, VIEWS
from ilcp.errors import MissingExtraError

__all__ = ["PAGES", "Site", "policy", "require_page"]

HERE = Path(__file__).parent
PAGES = {
    "cover": "Cover and scope",
    "inventory": "Models and codecs",
    "handoffs": "Hand-offs",
    "activity": "Over time",
    "integrity": "Integrity",
    "retention": "Retention and erasures",
    "views": "Who looked",
    "signoff": "Sign-off",
}
FACTS = {  # of a record, for who compares it with a system's own logs
    "hop": "Hop of its pipeline",
    "sequence": "Number that its producer gave it",
    "reason": "Reason",
    "error": "Kind of error",
    "codec_id": "Codec's id",
    "sender": "Sender's model",
    "receiver": "Receiver's model",
    "message_sha256": "Message, SHA-256",
    "message_bytes": "Message, bytes",
    "blob_bytes": "Beside it a blob, bytes",
    "handoff_id": "Id of the hand-off",
    "at_unix_ms": "The producer's clock, unix ms",
}
MOST_LISTED = 500  # erasures, removals, views, producers or runs of one page
MOST_CODECS = 100
LINE = ("question", "answer", "from_text")  # of a gloss
Link = Callable[..., str]


def require_page() -> None:
    """Refuses where no page can be made, before work is done for one.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    if find_spec("jinja2") is None:
        raise MissingExtraError.of("jinja2", "for the page", "page")


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {"said": said, "moment": moment, "paragraphs": paragraphs, "listed": listed}
    return found


@cache
def _style() -> str:
    return (HERE / "page.css").read_text(encoding="utf-8")


@cache
def policy() -> str:
    """Returns the content security policy: nothing runs, nothing is loaded, and one style is known by its digest."""
    style = b64encode(sha256(_style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


@dataclass(frozen=True)
class Site:
    """A ledger's pages for one reader; ``link`` makes an address of a page's name and what it is asked for."""

    view: View
    link: Link
    alive: bool = True  # served, so that there are filters and buttons; else written down
    counted: Overview | None = None  # of before, from which to go on counting

    @cached_property
    def overview(self) -> Overview:
        """Counts of what the reader may see."""
        return overview(self.view, self.counted)

    def render(self, name: str, **told: Any) -> str:
        """Returns a page of that name as HTML."""
        note = parsed(self.view.ledger.checkpoint())
        given = {
            "page": name,
            "pages": PAGES,
            "link": self.link,
            "alive": self.alive,
            "style": _style(),
            "policy": policy(),
            "reader": self.view.reader,
            "checkpoint": note,
            "title": PAGES.get(name, told.get("heading", "")),
        }
        return str(_environment().get_template(f"{name}.html.jinja").render(given | told))

    def cover(self) -> str:
        """What this is, of whom, how far it goes, and what it does not show."""
        told = [each for each in self.view.ledger.sequences().items() if self.view.reader.may_see(each[0][1])]
        told.sort(key=lambda each: not gaps(each[1]))  # what is incomplete comes first
        shown = {"complete": [self._numbered(*each) for each in told[:MOST_LISTED]], "more": len(told[MOST_LISTED:])}
        shown["retired"] = self.view.ledger.retired if self.view.reader.runs is None else 0
        return self.render("cover", overview=self.overview, events=EVENTS, key=self.view.ledger.keys[-1], **shown)

    def inventory(self) -> str:
        """The codecs, their models, what they were validated on, and how true accounts of them are."""
        codecs = sorted(self.overview.codecs.items(), key=lambda each: -each[1]["count"])
        return self.render("inventory", codecs=codecs[:MOST_CODECS], more=len(codecs[MOST_CODECS:]))

    def listed(self, narrowed: Filter, before: int | None = None) -> tuple[list[Handoff], int | None]:
        """Returns the rows of a listing, and from where to go on."""
        return handoffs(self.view, narrowed, before)

    def handoffs(self, narrowed: Filter, before: int | None = None) -> str:
        """A listing."""
        return self.listing(narrowed, *self.listed(narrowed, before))

    def listing(self, narrowed: Filter, rows: Sequence[Handoff], onwards: int | None) -> str:
        """The page of rows that ``listed`` found."""
        known = sorted(run for run, _ in self.overview.runs.most_common(MOST_LISTED)) if self.alive else []
        told = {"rows": rows, "onwards": onwards, "narrowed": narrowed, "runs": known}
        return self.render("handoffs", **told, events=EVENTS, flags=FLAGS)

    def handoff(self, number: int) -> str | None:
        """One hand-off, its account, and the proof that it is in the tree; None where the reader may see none."""
        found = handoff_at(self.view, number)
        if found is None:
            return None
        told = self._told(found)
        return self.render("handoff", heading=f"Hand-off {number}", told=told, **told)

    def compare(self, one: int, other: int) -> str | None:
        """Two hand-offs side by side; None where the reader may not see both."""
        both = [handoff_at(self.view, number) for number in (one, other)]
        told = [self._told(each) for each in both if each is not None]
        if len(told) < len(both):
            return None
        heading = f"Hand-offs {one} and {other}"
        questions = list(dict.fromkeys(line["question"] for each in told for line in each["lines"]))
        answers = [{line["question"]: line for line in each["lines"]} for each in told]
        lines = [(question, *(found.get(question) for found in answers)) for question in questions]
        return self.render("compare", heading=heading, both=told, lines=lines, differences=_differences(told))

    def activity(self) -> str:
        """What happened by day, drawn and in a table."""
        found = self.overview
        plots = [
            by_day(found.days, EVENTS, "Hand-offs recorded on each day"),
            by_day(found.days, {name: EVENTS[name] for name in ("fell back to text", "refused")}, "Refusals and texts"),
            by_day(found.days, {"disagree": "accounts that disagree with the text"}, "Accounts that disagree"),
        ]
        days = sorted(found.days.items(), reverse=True)
        return self.render("activity", plots=[plot for plot in plots if plot], days=days, events=EVENTS, cut=found.cut)

    def integrity(self, verified: Verified | None = None, took_s: float = 0.0, busy: bool = False) -> str:
        """What verifying found, if it was asked for, and the command with which anybody does it."""
        told = [] if verified is None else self._findings(verified)
        return self.render("integrity", verified=verified, took_s=took_s, busy=busy, told=told, checks=CHECKS)

    def retention(self) -> str:
        """What was erased and removed, by whom, when and why."""
        erasures, removals = (self._listed(kind) for kind in ("erasure", "retention"))
        return self.render("retention", erasures=erasures, removals=removals, most=MOST_LISTED)

    def views(self) -> str:
        """Who looked at which page when."""
        seen = []
        for entry in self.view.ledger.entries(kinds=["handoff"], run=VIEWS, newest=True):
            told = {name: entry.fields.get(name) for name in ("producer", "event", "reader", "page")}
            if (told["producer"], told["event"]) == (PAGE, VIEWED) and self._own(told["reader"]):
                seen.append((entry.recorded_unix_ms, told))
            if len(seen) == MOST_LISTED:
                break
        return self.render("views", seen=seen, most=MOST_LISTED)

    def _own(self, reader: Any) -> bool:
        return self.view.reader.runs is None or reader == self.view.reader.name

    def signoff(self) -> str:
        """A sheet to print and sign."""
        return self.render("signoff", signed=self.view.ledger.checkpoint(), overview=self.overview, events=EVENTS)

    def _listed(self, kind: str) -> list[Entry]:
        found = []
        for entry in self.view.ledger.entries(kinds=[kind], newest=True):
            if self.view.sees(entry):
                found.append(entry)
            if len(found) == MOST_LISTED:
                break
        return found

    @staticmethod
    def _numbered(who: tuple[str, str, str], numbers: list[list[int]]) -> tuple[str, str, str]:
        missing = gaps(numbers)
        last = numbers[-1][1]
        return (
            said(who[0], 100),
            said(who[1], 100),
            f"missing {in_words(missing[:10])} of 1 to {last}" if missing else f"all of 1 to {last}",
        )

    def _findings(self, found: Verified) -> list[str]:
        """Returns what verifying said; a reader of some runs is not told of others."""
        if self.view.reader.runs is None:
            return [said(line, 1000) for line in said_of(found)]
        return [f"not sound: {name}" for name in sorted({each.check for each in found.findings})]

    def _told(self, found: Handoff) -> dict[str, Any]:
        """Returns what the page of one hand-off says."""
        ledger, number = self.view.ledger, found.number
        beside = ledger.personal(number)
        account = {} if found.account is None else ledger.personal(found.account.number)
        held = account.get("gloss")
        gloss = held.value if held is not None and isinstance(held.value, list) else []
        numbers = {number} | ({found.account.number} if found.account else set())
        erased = [entry for each in sorted(numbers) for entry in ledger.about(each, "erasure")]
        proof, size = ledger.inclusion(number), ledger.size
        leaf = tree.leaf_hash(found.entry.to_bytes())
        return {
            "found": found,
            "beside": {n: each for n, each in beside.items() if n != "reason" and not n.endswith("_sha256")},
            "reason": "" if (why := beside.get("reason")) is None else why.value,
            "lines": [line for line in map(_line, gloss) if line is not None],
            "account": account,
            "summed_up": found.account is not None and _by_model(found.account.fields.get("summary_by")),
            "sealed": found.account is not None and found.account.fields.get("payload") != "of the message",
            "worth": measured(found.account.fields.get("measured")) if found.account else [],
            "erased": erased,
            "leaf": leaf.hex(),
            "proof": [each.hex() for each in proof],
            "holds": tree.includes(ledger.root(size), size, number, leaf, proof),
            "root": ledger.root(size).hex(),
            "size": size,
            "related": [Handoff(entry, None) for entry in found.beside],
            "facts": {words: found.field(name) for name, words in FACTS.items() if found.field(name)},
            "raw": found.entry.to_bytes().decode(),
        }


def _by_model(by: Any) -> bool:
    """Says whether a summary is a model's own words."""
    return isinstance(by, dict) and by.get("method") != "sentences of the text"


def _line(value: Any) -> dict[str, Any] | None:
    """Returns a line of a gloss, whoever wrote it; None where it is none."""
    if not isinstance(value, dict) or not {*LINE} <= value.keys():
        return None
    agrees = None if value["from_text"] is None else value["from_text"] == value["answer"]
    told = {name: None if value[name] is None else said(_in_line(value[name]), 300) for name in LINE}
    return {**told, "agrees": agrees}


def _in_line(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) else value


def _differences(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """Says, in sentences, in what two hand-offs differ."""
    one, other = (each["found"] for each in told)
    a, b = one.number, other.number
    names = {
        "producer": "Hand-off {} was told by {}, hand-off {} by {}.",
        "run": "Hand-off {} belongs to run {}, hand-off {} to run {}.",
        "hop": "Hand-off {} is hop {} of its pipeline, hand-off {} is hop {}.",
        "codec": "Hand-off {} was made by codec {}, hand-off {} by {}.",
        "message_bytes": "The message of hand-off {} has {} bytes, that of hand-off {} has {}.",
        "message_sha256": "",
    }
    found = []
    if one.event != other.event:
        found.append(f"Hand-off {a} was {one.event}, hand-off {b} was {other.event}.")
    for name, way in names.items():
        values = one.field(name), other.field(name)
        if way and values[0] != values[1]:
            found.append(way.format(a, values[0] or "nobody knows which", b, values[1] or "nobody knows which"))
    if one.field("message_sha256") == other.field("message_sha256") != "":
        found.append("Both are of the very same message.")
    pairs = [{line["question"]: line["answer"] for line in each["lines"]} for each in told]
    shared = [question for question in pairs[0] if question in pairs[1]]
    if shared:
        same = sum(pairs[0][question] == pairs[1][question] for question in shared)
        found.append(f"Asked the same {len(shared)} questions, the two messages answer {same} of them alike.")
    return found or ["Nothing of what is recorded differs but number and time."]
