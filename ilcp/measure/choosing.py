"""The one axis: everything that reports measured of the same questions, from ten bytes to a whole cache, and a choice.

::

    reports, limits --choose--> what to hand over, or what cannot be had; every offer, with what speaks against it
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ilcp.errors import ConfigError
from ilcp.inputs import listed
from ilcp.measure.asking import narrowed
from ilcp.measure.compare import require_same_questions
from ilcp.measure.figures import Measured
from ilcp.measure.items import LOG_LIKELIHOOD
from ilcp.measure.report import Report

__all__ = ["Choice", "Offer", "axis_of", "choose"]

HANDED = ("message", "literals", "text", "text of equal bytes")  # families of arms that somebody can send
READ = ("text", "text of equal bytes")  # of which an auditor can read what was handed over
TIMED = ("message", "text")  # arms that have figures of a cost


@dataclass(frozen=True, slots=True)
class Offer:
    """An arm of a report: the codec that was measured, the arm's name, and what it costs and brings.

    ``codec`` is empty for text that the reports have alike, and for other text the codec that was measured beside it:
    each codec's messages have texts of their own length as rivals. Two codecs of one name go by the names of their
    reports, or by their ids.
    ``most_bytes`` is the longest message on the wire, ``mean_bytes`` their mean; ``first_token_ms`` the receiver's time
    to its first token, decoding counted in, and ``read_tokens`` how many tokens it reads until then, None where they
    were not taken; ``recovery`` is by the task's own score, ``recovery_nats`` by log-likelihood; ``against`` says what
    speaks against it.
    """

    codec: str
    arm: str
    most_bytes: int
    mean_bytes: float
    recovery: Measured
    first_token_ms: float | None
    readable: bool
    against: tuple[str, ...] = ()
    read_tokens: float | None = None
    recovery_nats: Measured | None = None

    def __str__(self) -> str:
        of = f" by {self.codec}" if self.codec else ""
        return f"{self.arm}{of}: at most {self.most_bytes:,} bytes, recovery {self.recovery}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, None where nothing keeps every limit; a sentence; and all offers, the shortest first."""

    chosen: Offer | None
    said: str
    offers: tuple[Offer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON takes it."""
        return asdict(self)


def choose(
    reports: Sequence[Report] | Mapping[str, Report],
    *,
    max_bytes: int | None = None,
    max_first_token_ms: float | None = None,
    min_recovery: float | None = None,
    readable: bool = False,
) -> Choice:
    """Names what to hand over within the limits, out of reports of the same questions.

    It takes the fewest bytes of those that reach the recovery asked for, by the lower end of the interval; where none
    is asked for, of those that are not surely worse than the best, since their intervals meet.

    Args:
        reports: in a mapping by names that tell two codecs of one kind apart.
        max_bytes: of the longest message on the wire, a blob counted in.
        max_first_token_ms: of the receiver, from the message on; an arm whose time was not taken is none.
        min_recovery: 1 is as good as the full text, 0 as nothing.
        readable: only what can be read by people: text.

    Raises:
        ConfigError: there is no report, one is not complete, of other questions or of another receiver, which does no
            better with the full text than with nothing, or a limit is no number above zero.
    """
    _require_limits(min_recovery, max_bytes=max_bytes, max_first_token_ms=max_first_token_ms)
    offers = []
    for offer in axis_of(reports):
        against = []
        if max_bytes is not None and offer.most_bytes > max_bytes:
            against.append(f"over {max_bytes:,} bytes")
        if max_first_token_ms is not None:
            if offer.first_token_ms is None:
                against.append("its first token was not timed")
            elif offer.first_token_ms > max_first_token_ms:
                against.append(f"first token after {offer.first_token_ms:.1f} ms")
        if readable and not offer.readable:
            against.append("nobody can read it")
        if min_recovery is not None and _least(offer) < min_recovery:
            against.append(f"recovery below {min_recovery:g}")
        offers.append(replace(offer, against=tuple(against)))
    fitting = [offer for offer in offers if not offer.against]
    if not fitting:
        return Choice(None, _lacking(offers), tuple(offers))
    best = max(fitting, key=_least)
    good = fitting if min_recovery is not None else [offer for offer in fitting if _most(offer) >= _least(best)]
    chosen = min(good, key=lambda offer: (offer.mean_bytes, -offer.recovery.value))
    return Choice(chosen, f"Hand over {chosen}.", tuple(offers))


def axis_of(reports: Sequence[Report] | Mapping[str, Report]) -> tuple[Offer, ...]:
    """Returns what can be handed over, the shortest first; what several reports have alike, once.

    A case that one of the reports left out counts in none.

    Raises:
        ConfigError: as ``choose``.
    """
    given = reports if isinstance(reports, Mapping) else {}
    reports = listed([*given.values()] or reports, "reports in a list", "report", error=ConfigError)
    if left := {case for report in reports for case in report.left_out}:  # by one of them, so not for all to compare
        kept = [[n for n, case in enumerate(report.items.cases) if case not in left] for report in reports]
        reports = [narrowed(report, each) if each else report for report, each in zip(reports, kept, strict=True)]
    _require_alike(reports)
    shown = _names(reports, given)
    groups: dict[tuple[Any, ...], list[Offer]] = {}  # what is alike: a text by what it tells, all else by its codec
    for report in reports:
        own = str(report.codec["codec_id"])
        for offer in _offers(report, shown[own]):
            groups.setdefault((offer.arm, _told(offer) if offer.readable else own), []).append(offer)
    kinds = Counter(arm for arm, _ in groups)
    found = []
    for (arm, _), alike in groups.items():
        offer = next((one for one in alike if one.first_token_ms is not None), alike[-1])
        found.append(replace(offer, codec="" if offer.readable and kinds[arm] == 1 else alike[0].codec))
    return tuple(sorted(found, key=lambda offer: (offer.mean_bytes, offer.arm)))


def _offers(report: Report, codec: str) -> Iterator[Offer]:
    """Yields what one report measured of what can be handed over."""
    figures = {} if report.cost is None else report.cost.figures()
    for name, arm in report.arms.items():
        if arm.family not in HANDED or not arm.wire_bytes:
            continue
        recovery = report.recovery(name)
        assert recovery is not None  # see _require_alike
        first, read = (figures.get(f"{what}, {name}") if name in TIMED else None for what in ("first token", "tokens"))
        yield Offer(
            codec=codec,
            arm=name,
            most_bytes=max(arm.wire_bytes),
            mean_bytes=arm.sizes()["wire"].value,
            recovery=recovery,
            first_token_ms=None if first is None else first.value,
            readable=arm.family in READ,
            read_tokens=None if read is None else read.value,
            recovery_nats=report.recovery(name, of=LOG_LIKELIHOOD),
        )


def _told(offer: Offer) -> tuple[float, float]:
    """Returns what two texts of one name differ in, where each codec's own messages are as long."""
    return offer.mean_bytes, offer.recovery.value


def _names(reports: Sequence[Report], given: Mapping[str, Report]) -> dict[str, str]:
    """Returns what to call each codec, by its id."""
    names = {str(report.codec["codec_id"]): str(report.codec["name"]) for report in reports}
    told = {str(report.codec["codec_id"]): name for name, report in given.items()}
    often = Counter(names.values())
    told = {one: name for one, name in told.items() if name not in often}  # else it would be another codec's
    return {one: name if often[name] == 1 else told.get(one, f"{name} {one}") for one, name in names.items()}


def _require_limits(min_recovery: float | None, **limits: float | None) -> None:
    for name, limit in limits.items():
        if limit is not None and not limit > 0:
            raise ConfigError(f"expected {name} above 0, got {limit!r}")
    if min_recovery is not None and not min_recovery == min_recovery:
        raise ConfigError(f"expected min_recovery to be a number, got {min_recovery!r}")


def _require_alike(reports: Sequence[Report]) -> None:
    if not reports:
        raise ConfigError("expected one report or more, got none")
    first = reports[0]
    for report in reports:
        if not report.complete:
            raise ConfigError(
                f"expected complete reports, got an interrupted one of {report.task}: finish its run first"
            )
        require_same_questions(first, report)
        receivers = [one.provenance.get("models", {}).get("receiver") for one in (first, report)]
        if receivers[0] != receivers[1]:
            raise ConfigError(
                f"expected reports of one receiver, got {first.codec['name']}'s and {report.codec['name']}'s, which "
                "differ: recovery is a share of what a receiver knows from the full text, and each has its own; see "
                "'ilcp compare'"
            )
        if not {"text", "none"} <= report.arms.keys() or report.recovery("text") is None:
            raise ConfigError(
                f"expected a receiver that does better with the full text than with nothing, got the report of "
                f"{report.codec['name']}, where it does not: there is nothing to recover"
            )


def _least(offer: Offer) -> float:
    """Returns the lower end of the recovery; what has none is the full text itself, or was not bounded."""
    return offer.recovery.value if offer.recovery.low is None else offer.recovery.low


def _most(offer: Offer) -> float:
    """Returns the upper end of the recovery, as ``_least`` the lower."""
    return offer.recovery.value if offer.recovery.high is None else offer.recovery.high


def _lacking(offers: Sequence[Offer]) -> str:
    """Says what comes nearest: what keeps all limits but one, and which that is."""
    if not offers:
        return "Nothing can be had: the reports have no arm that can be handed over."
    fewest = min(len(offer.against) for offer in offers)
    near = max((o for o in offers if len(o.against) == fewest), key=lambda offer: offer.recovery.value)
    return f"Nothing keeps every limit. Nearest is {near}; against it: {', '.join(near.against)}."
