"""Topics that are found: which questions ask for the same, and what is left without."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import pytest

from ilcp.errors import ConfigError
from ilcp.tasks import Case, Question, case_files
from ilcp.training import with_topics

CITIES = ("Porto", "Ghent", "Riga", "Graz", "Lyon", "Bari")


def bare(cases: Iterable[Case]) -> list[Case]:
    """The cases without facts."""
    return [replace(case, questions=tuple(replace(q, facts=()) for q in case.questions)) for case in cases]


def topics(cases: Iterable[Case]) -> list[str | None]:
    """What each question is about."""
    return [q.facts[0][0] if q.facts else None for case in cases for q in case.questions]


def booking(number: int) -> Case:
    """A conversation of one of two services, which say the same in their own words, and one that says other things."""
    city, time = CITIES[number % 6], f"{number % 9 + 1} pm"
    mine = (
        ("City where the restaurant is located", city, "Time of the  reservation", time),
        ("city in which the restaurant is located", city, "Time of the reservation", time),
        ("City to pick up the rental car", city, "City to drop off the rental car", CITIES[(number + 1) % 6]),
    )[number % 3]
    asked = [Question(mine[0], mine[1], "said"), Question(mine[2], mine[3], "said")]
    asked += [Question(f"Number of {what} in the reservation", "not said", "absent") for what in ("rooms", "days")]
    return Case(str(number), f"text {number}", tuple(asked))


BOOKINGS = [booking(number) for number in range(60)]


def test_nearly_the_same_words_ask_for_the_same() -> None:
    """Spaces and case do not matter, a word or two hardly; the commonest wording is the name, the answer the fact."""
    found = with_topics(BOOKINGS)
    assert {
        "City where the restaurant is located": 40,
        "Time of the reservation": 40,
        "City to pick up the rental car": 20,
        "City to drop off the rental car": 20,
        "Number of rooms in the reservation": 60,
        "Number of days in the reservation": 60,
    } == Counter(topics(found))
    assert all(q.facts[0][1] == q.answer for case in found for q in case.questions)


def test_what_one_context_answers_differently_is_never_one_topic() -> None:
    """However alike two questions sound: where a case asks both, they are one only if both are said, and the same."""
    pairs = [("owner of the ticket", "owners of the ticket"), ("owner of the case", "owners of the case")]
    said = [(a, a2, "Mara", "Mara" if a.endswith("ticket") else "Jonas") for a, a2 in pairs]
    cases = [
        Case(f"{n} {one}", f"{n} {one}", (Question(one, a), Question(other, b)))
        for n in range(10)
        for one, other, a, b in said
    ]
    assert {"owner of the ticket": 20, "owner of the case": 10, "owners of the case": 10} == Counter(
        topics(with_topics(cases))
    )
    absent = [
        replace(c, questions=tuple(replace(q, kind="absent", answer="no", answers=()) for q in c.questions))
        for c in cases
    ]
    assert 4 == len(set(topics(with_topics(absent))))


def asks(wording: str, numbers: range, answer: str = "noon") -> list[Case]:
    """One question about each of the contexts of these numbers."""
    return [Case(f"{n} {wording}", f"context {n}", (Question(wording, answer),)) for n in numbers]


def test_a_wording_joins_the_nearest_topic_by_its_commonest_wording() -> None:
    """Wordings do not chain, whatever comes first in the list; the nearest of two topics is taken, and well named."""
    first, second = "date of the pickup of the rental car", "date of the pickup of the rental car at the airport"
    third, fourth = "date of pickup at the airport", "date of the pickup at the airport"
    chain = [*asks(third, range(30, 39)), *asks(second, range(20, 30)), *asks(first, range(12))]
    assert {first: 22, third: 9} == Counter(topics(with_topics(chain, near=0.7)))
    apart = [*asks(first, range(20)), *asks(third, range(10, 20), "dawn"), *asks(fourth, range(40, 49))]
    assert {first: 20, third: 19} == Counter(topics(with_topics(apart, near=0.5)))
    assert {"where?": 12} == Counter(topics(with_topics([*asks("Where?", range(3)), *asks("where?", range(3, 12))])))


def test_rare_questions_continuations_and_known_topics_stay_as_they_are() -> None:
    """Below the least count there is no topic; facts that are known are kept; nothing at all is no error."""
    rare = Question("What is the name of the dog?", "Rex")
    known = Question("Time of the reservation", "noon", facts=(("time", "noon"),))
    cases = [*BOOKINGS, *(Case(f"rare {n}", f"rare {n}", (rare, known, Question("", "upon"))) for n in range(3))]
    *_, last = with_topics(cases, least=4)
    assert cases[-1] == last
    assert "What is the name of the dog?" in topics(with_topics(cases, least=3))
    assert [] == with_topics([])
    assert [cases[-1]] == with_topics([cases[-1]])
    with pytest.raises(ConfigError, match="contexts from 1, got 0"):
        with_topics(cases, least=0)


def test_the_order_of_cases_and_questions_does_not_matter() -> None:
    """A shuffled list gets the same topics."""
    rng = random.Random(3)
    shuffled = [replace(case, questions=tuple(rng.sample(case.questions, 4))) for case in rng.sample(BOOKINGS, 60)]
    expected = {(case.id, q.text): q.facts for case in with_topics(BOOKINGS) for q in case.questions}
    assert expected == {(case.id, q.text): q.facts for case in with_topics(shuffled) for q in case.questions}


def test_no_two_facts_of_a_dossier_share_a_topic() -> None:
    """Every topic found in dossiers holds the questions of one attribute, join or code, and every question has one."""
    cases = list(case_files("train", seed=3, n=80))
    found = topics(with_topics(bare(cases)))
    truth = [(q.kind == "join", q.facts[0][0]) for case in cases for q in case.questions]
    of = defaultdict(set)
    for topic, fact in zip(found, truth, strict=True):
        of[topic].add(fact)
    assert None not in of
    assert {1} == {len(facts) for facts in of.values()}
