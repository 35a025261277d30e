"""What the pages say, read from a ledger: entries in words, for a reader who may see some of the runs or all.

Nothing is believed of an entry but that it is canonical JSON: a field of another type than its name promises is shown
as it is, or left out.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import merge
from typing import Any

from ilcp.audit.accounts import ACCOUNT
from ilcp.audit.entries import LATEST_MS, Entry
from ilcp.audit.ledger import Ledger
from ilcp.audit.page.access import Reader
from ilcp.audit.page.doubts import decided, is_alarm, is_doubt
from ilcp.audit.page.words import moment, said, share, whole
from ilcp.audit.submission import HANDOFF, VIEWS
from ilcp.audit.tables import KEPT_KINDS

__all__ = ["EVENTS", "FLAGS", "PER_PAGE", "Filter", "Handoff", "Overview", "View", "handoff_at", "handoffs", "overview"]

PER_PAGE = 50
RETENTION = "retention"
MOST_LOOKING_S = 2.0  # for one listing: others wait meanwhile
MOST_BESIDE = 20  # of what producers told of the same hand-off
MOST_LOOKED_AT = 20_000  # entries of one listing, and of an overview; a listing goes on from there
EVENTS = {
    "sent": "handed over",
    "fell back to text": "handed over as text",
    "received": "taken",
    "refused": "refused",
}
FLAGS = {
    "differs": "account and text disagree",
    "no account": "no account was made",
    "weak": "accounts of this codec recall less than half of the facts",
    "not taken": "nobody is on record to have taken it",
    "doubted": "it was in doubt, or an alarm stood",
}
WEAK = 0.5


@dataclass(frozen=True)
class View:
    """A ledger as one reader may see it."""

    ledger: Ledger
    reader: Reader

    def sees(self, entry: Entry) -> bool:
        """Says whether an entry is shown: those of no run are everybody's, but for erasures of another run's."""
        if entry.kind == "erasure":
            return self.reader.may_see(entry.fields.get("run"))
        return entry.kind in KEPT_KINDS or self.reader.may_see(entry.fields.get("run"))

    def at(self, number: int) -> Entry | None:
        """Returns an entry; None where there is none, or only its hash is left."""
        return self.ledger.entry(number) if 0 <= number < self.ledger.size else None

    def newest(self, kinds: Sequence[str], run: str | None = None, before: int | None = None) -> Iterator[Entry]:
        """Yields entries of some kinds that are shown, the newest first."""
        runs = [None] if self.reader.runs is None else sorted(self.reader.runs)
        if run is not None:
            runs = [run] if self.reader.may_see(run) else []
        options: dict[str, Any] = {"kinds": kinds, "but_run": VIEWS, "newest": True, "before": before}
        found = [self.ledger.entries(run=each, **options) for each in runs]
        return (entry for entry in merge(*found, key=lambda entry: -entry.number) if self.sees(entry))

    def since(self, number: int) -> Iterator[Entry]:
        """Yields entries from a number on that are shown."""
        return (entry for entry in self.ledger.entries(first=number, but_run=VIEWS) if self.sees(entry))


@dataclass(frozen=True)
class Filter:
    """What a listing is narrowed to; an empty field narrows nothing."""

    run: str = ""
    event: str = ""
    flag: str = ""
    first_day: str = ""
    last_day: str = ""

    def takes(self, entry: Entry) -> bool:
        """Says whether an entry is of the run, the event and the days."""
        day = _day(entry.recorded_unix_ms)
        return (
            _event(entry) != ""
            and (not self.event or _event(entry) == self.event)
            and (not self.first_day or day >= self.first_day)
            and (not self.last_day or day <= self.last_day)
        )


@dataclass(frozen=True)
class Handoff:
    """One event of a hand-off, as a row or a page of its own says it; ``beside`` are the other ones of the same."""

    entry: Entry
    account: Entry | None
    beside: tuple[Entry, ...] = ()

    @property
    def number(self) -> int:
        """Its number in the ledger."""
        return self.entry.number

    @property
    def when(self) -> str:
        """When it was recorded."""
        return moment(self.entry.recorded_unix_ms)

    @property
    def event(self) -> str:
        """What happened, in words."""
        return EVENTS.get(_event(self.entry), self.field("event"))

    def field(self, name: str) -> str:
        """Returns a field of the entry in one line; empty where there is none."""
        value = self.entry.fields.get(name)
        return "" if value is None else said(value, 400)

    @property
    def sentence(self) -> str:
        """Who did what with what."""
        who, run = self.field("producer") or "somebody", self.field("run")
        sizes = [whole(self.entry.fields.get(name)) for name in ("message_bytes", "blob_bytes")]
        size = sum(each for each in sizes if each is not None)
        what = f"a message of {size:,} bytes" if size else "no message"
        codec = self.field("codec") or "a codec that was not named"
        ways = {
            "sent": f"{who} handed over {what}, made by codec {codec}",
            "fell back to text": f"{who} handed over the text itself ({what}) in place of a message",
            "received": f"{who} took {what}, made by codec {codec}",
            "refused": f"{who} refused {what}",
        }
        return f"{ways.get(_event(self.entry), self.event)}, in run {run}."

    @property
    def decided(self) -> str:
        """What was found when it was compared with its codec's calibration, and decided; empty where nobody did."""
        return decided(self.entry.fields)

    @property
    def takers(self) -> list[str]:
        """Who is on record to have taken it."""
        return [said(each.fields.get("producer"), 100) for each in self.beside if _event(each) == "received"]

    @property
    def verdict(self) -> str:
        """What its account says of message and text, in words."""
        if self.account is None:
            return "no account"
        asked, compared, differ = (whole(self.account.fields.get(name)) for name in ("asked", "compared", "differ"))
        if asked is None or compared is None or differ is None:
            return "the message could not be read"
        if not compared:
            return f"{asked} questions asked of the message, none of the text"
        return f"{differ} of {compared} answers disagree with the text" if differ else f"all {compared} answers agree"

    @property
    def differs(self) -> bool:
        """Says whether account and text disagree."""
        return bool(self.account and whole(self.account.fields.get("differ")))

    @property
    def weak(self) -> bool:
        """Says whether accounts of the codec were measured to recall less than half of the facts."""
        measured = self.account.fields.get("measured") if self.account else None
        figures = measured.get("figures") if isinstance(measured, dict) else None
        recall = figures.get("recall, gloss") if isinstance(figures, dict) else None
        value = recall.get("value") if isinstance(recall, dict) else None
        return isinstance(value, int | float) and value < WEAK

    def has(self, flag: str) -> bool:
        """Says whether a flag is raised."""
        if flag == "differs":
            return self.differs
        if flag == "weak":
            return self.weak
        if flag == "doubted":
            return is_doubt(self.entry.fields)
        if flag == "not taken":
            return _event(self.entry) in ("sent", "fell back to text") and not self.takers
        return not flag or (self.account is None and _event(self.entry) == "sent")


def handoffs(view: View, narrowed: Filter, before: int | None = None) -> tuple[list[Handoff], int | None]:
    """Returns a page of hand-offs, the newest first, and the number from which to go on; None where that is all."""
    found: list[Handoff] = []
    looked, ends = view.newest([HANDOFF], narrowed.run or None, before), time.monotonic() + MOST_LOOKING_S
    for looked_at, entry in enumerate(looked, 1):
        if len(found) == PER_PAGE or looked_at > MOST_LOOKED_AT or time.monotonic() > ends:
            return found, entry.number + 1
        if narrowed.takes(entry):
            row = _row(view, entry)
            if row.has(narrowed.flag):
                found.append(row)
    return found, None


def handoff_at(view: View, number: int) -> Handoff | None:
    """Returns a hand-off that the reader may see; None where there is none."""
    entry = view.at(number)
    if entry is None or entry.kind != HANDOFF or not view.sees(entry):
        return None
    return _row(view, entry)


def _row(view: View, entry: Entry) -> Handoff:
    """Returns an entry with what else is on record of the same hand-off, as far as the reader may see it."""
    handoff_id = entry.fields.get("handoff_id")
    found = view.ledger.of_handoff(handoff_id, MOST_BESIDE) if isinstance(handoff_id, str) else []
    beside = tuple(each for each in found if each.number != entry.number and view.sees(each))
    made = [each for each in view.ledger.about(entry.number, ACCOUNT) if view.sees(each)]
    return Handoff(entry, made[0] if made else None, beside)


@dataclass
class Overview:
    """Counts of the newest hand-offs, days, codecs; ``cut`` says that there are older ones."""

    events: Counter[str] = field(default_factory=Counter)
    days: dict[str, Counter[str]] = field(default_factory=dict)
    codecs: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)
    accounts: int = 0
    differing: int = 0
    doubted: int = 0
    alarmed: int = 0
    cut: bool = False
    upto: int = 0

    def add(self, entry: Entry) -> None:
        """Counts one entry."""
        if entry.kind == ACCOUNT:
            self._add_account(entry)
        elif entry.kind == HANDOFF:
            self._add_handoff(entry)

    def _add_account(self, entry: Entry) -> None:
        differs = bool(whole(entry.fields.get("differ")))
        self.accounts += 1
        self.differing += differs
        self.days.setdefault(_day(entry.recorded_unix_ms), Counter())["disagree"] += differs
        by = entry.fields.get("gloss_by")
        if "measured" in entry.fields and isinstance(by, dict):
            kept = self.codecs.setdefault(said(by.get("codec_id"), 64), {"count": 0})
            kept["measured"] = measured(entry.fields["measured"])

    def _add_handoff(self, entry: Entry) -> None:
        event, day = _event(entry), _day(entry.recorded_unix_ms)
        if not event:
            return
        self.events[event] += 1
        self.doubted += is_doubt(entry.fields)
        self.alarmed += is_alarm(entry.fields)
        self.days.setdefault(day, Counter())[event] += 1
        run = entry.fields.get("run")
        if isinstance(run, str) and run.isprintable():
            self.runs[run] += 1
        codec_id = entry.fields.get("codec_id")
        if isinstance(codec_id, str):
            kept = self.codecs.setdefault(codec_id, {"count": 0})
            kept["count"] += event in ("sent", "fell back to text")
            if (told := decided(entry.fields)) and entry.number >= kept.get("judged_at", -1):
                kept |= {"judged": told, "judged_at": entry.number}
            if "codec" in entry.fields and "codec" not in kept:
                kept |= _codec(entry.fields)


def overview(view: View, known: Overview | None = None) -> Overview:
    """Counts the newest hand-offs that the reader may see; goes on from what is ``known``, unless some were retired."""
    upto = view.ledger.size
    since = view.newest([HANDOFF, ACCOUNT, RETENTION]) if known is None else view.since(known.upto)
    found = Overview() if known is None else known
    for count, entry in enumerate(since, 1):
        if entry.kind == RETENTION and known is not None:
            return overview(view)
        found.add(entry)
        if count == MOST_LOOKED_AT and known is None:
            found.cut = True
            break
    found.upto = upto
    return found


def _codec(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what an entry says of its codec, in words."""
    evidence = fields.get("evidence")
    told: dict[str, Any] = {"codec": said(fields["codec"], 100), "evidence": "", "models": {}}
    for end in ("sender", "receiver"):
        value = fields.get(end)
        told["models"][end] = said(value.get("weights"), 64) if isinstance(value, dict) else said(value, 64)
    if isinstance(evidence, dict):
        told["evidence"] = _evidence(evidence)
    return told


def _evidence(evidence: Mapping[str, Any]) -> str:
    """Says what a codec was measured to be worth."""
    gain = {"value": evidence.get("content_gain"), "low": evidence.get("low"), "high": evidence.get("high")}
    about = f"measured on {said(evidence.get('task'), 60)}, n = {said(evidence.get('n'), 20)}"
    if evidence.get("unit") == "exact match":
        return f"its message brings {share(gain)} of all answers that another case's message does not; {about}"
    numbers = " to ".join(said(gain[name], 20) for name in ("low", "high"))
    unit = said(evidence.get("unit"), 30)
    return f"its message is worth {said(gain['value'], 20)} {unit} more than another case's ({numbers}); {about}"


def measured(value: Any) -> list[str]:
    """Says, in sentences, how true accounts of a codec were measured to be."""
    figures = value.get("figures") if isinstance(value, dict) else None
    if not isinstance(figures, dict):
        return []
    ways = {
        "recall, gloss": "of the facts that the text states, an account tells {}",
        "recall, another's gloss": "an account of another message tells {} of them",
        "precision, gloss": "of what an account tells, {} is so",
        "misleading, gloss": "{} of the accounts tell at least one thing that is not so",
        "alarm, false answers": "the comparison with the text points out {} of the false answers",
        "alarm, right answers": "and wrongly {} of the right ones",
        "recall, told freely": "asked to say what it says, a message tells {} of the facts",
        "misleading, told freely": "and {} of such accounts tell something that is not so",
    }
    told = [way.format(share(figures[name])) for name, way in ways.items() if name in figures]
    about = f"measured on {said(value.get('cases'), 20)} cases at {said(value.get('payload_bytes'), 20)} bytes"
    return [*told, about] if told else []


def _event(entry: Entry) -> str:
    """Returns what happened; empty for what is no hand-off's, such as a view of the page."""
    event = entry.fields.get("event")
    return event if isinstance(event, str) and event in EVENTS else ""


def _day(unix_ms: int) -> str:
    return f"{datetime.fromtimestamp(min(unix_ms, LATEST_MS) / 1000, UTC):%Y-%m-%d}"
