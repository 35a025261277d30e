"""The words of an incident dossier: value pools, attributes with their sentences and questions, distractors.

Pools are shared between attributes (four roles draw from the same forty people), so that knowing *which* values a
document holds answers nothing: the binding of value to attribute has to cross the hop.
"""

from dataclasses import dataclass

__all__ = [
    "ATTRIBUTES",
    "CODE",
    "CODE_DIGITS",
    "CODE_LETTERS",
    "DISTRACTORS",
    "JOINS",
    "POOLS",
    "SITE_SENTENCES",
    "Attribute",
]

POOLS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "person": "Mara Jonas Ilse Tomas Priya Kenji Amina Diego Freya Pavel Noor Hugo Leila Sven Chiara Emeka Yuki "
        "Marta Omar Greta Rafael Ingrid Dmitri Salma Nils Bianca Tariq Elena Lukas Zofia Andre Keiko Samir "
        "Petra Oscar Nadia Bruno Astrid Malik Vera",
        "city": "Bergen Porto Leeds Gdansk Turin Malmo Bilbao Ghent Tampere Split Bremen Cork Graz Lyon Oulu Seville "
        "Riga Basel Trieste Utrecht Lugano Brno Aarhus Nantes Cadiz Leipzig Genoa Tartu Dundee Krakow Vaasa "
        "Rennes Bari Linz Antwerp Exeter Patras Zagreb Kaunas Girona",
        "service": "billing checkout search ledger catalog identity payroll shipping pricing archive quota booking "
        "invoicing messaging routing storage refunds loyalty tracking indexing metering voucher inventory "
        "onboarding reporting scheduling translation telemetry backup gateway registry sandbox profile rating "
        "survey transcoding wallet warehouse webhook consent",
        "cause": "deadlock typo overflow leak misrouting corruption drift starvation congestion skew expiry truncation "
        "recursion contention fragmentation mislabel underflow timeout collision desync regression "
        "duplication throttling saturation rollover blackout flapping lockout rounding staleness thrashing "
        "aliasing jitter backlog spike outlier tampering overheating condensation miscount",
        "remedy": "rollback restart failover patch reindex failback rebuild reboot resync isolation rotation rebalance "
        "purge downgrade upgrade throttle replay quarantine bypass reseed compaction revert sharding refactor "
        "retraining migration hotfix drain reroute revocation cleanup recount replacement recalibration "
        "rewrite lockdown audit freeze cutover handback",
        "tool": "pager dashboard probe canary tracer notebook console logbook scanner sentinel crawler ticker "
        "spreadsheet recorder watchdog beacon profiler monitor counter sampler checker diary inspector "
        "collector locker binder vault bucket drive folder journal mailbox wiki chatroom whiteboard tablet "
        "scrapbook cabinet safe shelf",
        "vendor": "Acorn Brightwell Cobalt Dovetail Elmwood Fairmont Greystone Halcyon Ironbark Juniper Kestrel "
        "Larkspur Meridian Northgate Oakhurst Pinnacle Quarry Redfern Silverline Thornbury Umbra Vantage "
        "Westbrook Yarrow Zephyr Ashford Birchall Copperfield Drummond Eastlake Foxglove Glenmore Hawthorn "
        "Inglewood Kingsley Lockwood Marlow Nettleton Orchard Penrose",
        "number": " ".join(str(number) for number in range(15, 95, 2)),
    }.items()
}


@dataclass(frozen=True, slots=True)
class Attribute:
    """A fact a dossier may state: its value pool, the sentences that state it, the questions that ask for it."""

    name: str
    pool: str
    sentences: tuple[str, ...]
    questions: tuple[str, ...]


def _attribute(name: str, pool: str, sentences: str, questions: str) -> Attribute:
    return Attribute(
        name,
        pool,
        tuple(line.strip() for line in sentences.strip().splitlines()),
        tuple(line.strip() for line in questions.strip().splitlines()),
    )


ATTRIBUTES: tuple[Attribute, ...] = (
    _attribute(
        "reporter",
        "person",
        """{} reported the incident.
        The incident was reported by {}.
        The first report came from {}.
        It was {} who raised the alarm.""",
        """Who reported the incident?
        Which person raised the alarm?""",
    ),
    _attribute(
        "owner",
        "person",
        """{} owns the ticket.
        The ticket is owned by {}.
        Ownership of the ticket went to {}.
        The ticket belongs to {}.""",
        """Who owns the ticket?
        To whom does the ticket belong?""",
    ),
    _attribute(
        "approver",
        "person",
        """{} approved the change.
        The change was approved by {}.
        Approval for the change was given by {}.
        The change was signed off by {}.""",
        """Who approved the change?
        Which person signed off the change?""",
    ),
    _attribute(
        "escalation",
        "person",
        """{} takes every escalation.
        Escalations go to {}.
        The contact for escalation is {}.
        If it gets worse, call {}.""",
        """Who takes escalations?
        Whom should one call if it gets worse?""",
    ),
    _attribute(
        "region",
        "city",
        """The affected region is {}.
        Only the region around {} is affected.
        {} is the affected region.
        The impact is confined to the region of {}.""",
        """Which region is affected?
        What is the affected region?""",
    ),
    _attribute(
        "failover",
        "city",
        """Traffic was moved to {}.
        {} now carries the traffic.
        The traffic is served from {} for now.
        The spare site in {} took over the traffic.""",
        """Where was the traffic moved?
        Which site carries the traffic now?""",
    ),
    _attribute(
        "customer",
        "city",
        """The largest customer sits in {}.
        A customer in {} complained first.
        The customer who complained is based in {}.
        {} is home to the customer who complained.""",
        """Where is the customer who complained?
        In which city is the customer based?""",
    ),
    _attribute(
        "failed",
        "service",
        """The {} service went down.
        The service that went down is {}.
        An outage hit the {} service.
        The outage was seen in {}.""",
        """Which service went down?
        What did the outage hit?""",
    ),
    _attribute(
        "upstream",
        "service",
        """It depends on {} upstream.
        The upstream dependency is {}.
        Upstream of it runs {}.
        Here {} is the dependency upstream.""",
        """What is the upstream dependency?
        Which service runs upstream?""",
    ),
    _attribute(
        "restored",
        "service",
        """The first thing restored was {}.
        First of all {} was restored.
        Recovery began with {}.
        The team restored {} before the rest.""",
        """What was restored first?
        With what did recovery begin?""",
    ),
    _attribute(
        "cause",
        "cause",
        """The root cause was {}.
        In the end {} was the root cause.
        At the root of it lay {}.
        The analysis names {} as the root cause.""",
        """What was the root cause?
        What lay at the root of it?""",
    ),
    _attribute(
        "factor",
        "cause",
        """A contributing factor was {}.
        On top of that {} made it worse.
        It was aggravated by {}.
        The situation was made worse by {}.""",
        """What was a contributing factor?
        What made it worse?""",
    ),
    _attribute(
        "mitigation",
        "remedy",
        """It was mitigated by {}.
        The mitigation was {}.
        Only {} stopped the damage.
        The crew chose {} as mitigation.""",
        """What was the mitigation?
        What stopped the damage?""",
    ),
    _attribute(
        "followup",
        "remedy",
        """The planned follow-up is {}.
        Next week brings {}.
        For next week {} is planned.
        As a follow-up they will do {}.""",
        """What is the planned follow-up?
        What is planned for next week?""",
    ),
    _attribute(
        "detection",
        "tool",
        """The {} detected it.
        It was detected by the {}.
        Detection is owed to the {}.
        The fault showed up on the {}.""",
        """What detected it?
        Where did the fault show up?""",
    ),
    _attribute(
        "evidence",
        "tool",
        """The evidence is kept in the {}.
        All evidence went into the {}.
        The {} holds the evidence.
        Look into the {} for evidence.""",
        """Where is the evidence kept?
        What holds the evidence?""",
    ),
    _attribute(
        "supplier",
        "vendor",
        """The faulty part was supplied by {}.
        {} supplied the faulty part.
        The supplier of the part is {}.
        The part had been bought from {}.""",
        """Who supplied the faulty part?
        Which company is the supplier of the part?""",
    ),
    _attribute(
        "auditor",
        "vendor",
        """{} will audit the case.
        The audit is done by {}.
        The auditor in charge is {}.
        An audit was ordered from {}.""",
        """Which company will audit the case?
        Who is the auditor in charge?""",
    ),
    _attribute(
        "minutes",
        "number",
        """The outage lasted {} minutes.
        It took {} minutes to recover.
        After {} minutes it was over.
        The clock stopped at {} minutes.""",
        """How many minutes did the outage last?
        After how many minutes was it over?""",
    ),
    _attribute(
        "accounts",
        "number",
        """It touched {} accounts.
        {} accounts were touched.
        The number of accounts touched is {}.
        In total {} accounts saw errors.""",
        """How many accounts were touched?
        What is the number of accounts touched?""",
    ),
)

JOINS: dict[str, tuple[str, ...]] = {
    "reporter": (
        "Who reported the incident, and where does that person work?",
        "Name the reporter and the reporter's office.",
    ),
    "owner": (
        "Who owns the ticket, and where does that person work?",
        "Name the owner of the ticket and the owner's office.",
    ),
    "approver": (
        "Who approved the change, and where does that person work?",
        "Name the approver of the change and the approver's office.",
    ),
    "escalation": (
        "Who takes escalations, and where does that person work?",
        "Name the contact for escalation and that contact's office.",
    ),
}

SITE_SENTENCES: tuple[str, ...] = (
    "{person} works from {city}.",
    "{person} has a desk in {city}.",
    "The office of {person} is in {city}.",
    "In {city} one can find {person} at work.",
)

CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # without I and O, which people mistake for digits
CODE_DIGITS = "0123456789"
CODE = _attribute(
    "code",
    "code",
    """The reference code is {}.
    It is filed under code {}.
    Quote the code {} in every reply.
    {} is its reference code.""",
    """What is the reference code?
    Under which code is it filed?""",
)

DISTRACTORS: tuple[str, ...] = (
    "The morning had been quiet.",
    "Nobody expected trouble that day.",
    "Two meetings were cancelled because of it.",
    "The weather played no part in this.",
    "A similar case was closed last spring without action.",
    "The notes below follow the usual form.",
    "Coffee ran out early.",
    "Several people asked for regular updates.",
    "The phones kept ringing for a while.",
    "All times are given in local time.",
    "There is no sign of an attack.",
    "The press did not ask about it.",
    "Some of the graphs are hard to read.",
    "A longer review will be written later.",
    "The night shift left short notes.",
    "Most users did not notice anything.",
    "The plan for such days worked well enough.",
    "Training for new staff goes on as before.",
    "A draft of this text was shared with all teams.",
    "The budget for the quarter stays as it is.",
    "Nothing was lost in the end.",
    "The old manual was of little help.",
    "Everyone stayed calm.",
    "A few open questions remain.",
    "The lights in the hall flickered once.",
    "Lunch was late for most of the crew.",
    "The calendar shows no other event.",
    "An earlier test had passed without warnings.",
    "{person} was on leave that week.",
    "{person} brought cake for the crew.",
    "{person} read these notes and had nothing to add.",
    "A visit to {city} was put off.",
    "The yearly gathering took place near {city}.",
    "Rumours about {service} proved wrong.",
    "The plans for {service} do not change.",
    "A salesman from {vendor} happened to visit.",
    "An old poster of {vendor} hangs in the hall.",
    "Page {number} of the manual is missing.",
    "Room {number} was used for the calls.",
    "Someone had left the {tool} open.",
)
