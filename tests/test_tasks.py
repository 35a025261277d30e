"""Case files: seeded, disjoint, and as entropic as they say; and the JSONL loader's manners."""

import json
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilcp.errors import ConfigError, DecodeError
from ilcp.tasks import UNKNOWN, Question, case_files, read_jsonl, task, thin
from ilcp.tasks.case_files import KINDS, PRESENT, TOPICS, compose
from ilcp.tasks.dossier import ATTRIBUTES, DISTRACTORS, JOINS, POOLS
from tests.helpers import present


def test_the_same_numbers_give_the_same_cases() -> None:
    """A case depends on split, seed and number alone, so any part of a stream can be made again."""
    whole = list(case_files("test", seed=7, n=12))
    assert whole[5:9] == list(case_files("test", seed=7, n=4, start=5))


def test_splits_and_seeds_do_not_overlap() -> None:
    """No document and no set of facts of one stream occurs in another split or seed."""
    streams = [case_files(split, seed, 800) for split in ("train", "validation", "test") for seed in (0, 7)]
    cases = [case for stream in streams for case in stream]
    facts = {tuple(sorted(f"{q.text}={q.answer}" for q in case.questions)) for case in cases}
    assert len(cases) == len({case.context for case in cases})
    assert len(cases) == len(facts)


def test_the_task_is_as_hard_as_the_issue_asks() -> None:
    """At least 16 stated attributes of 32 values or more, 4 patterns each, pools shared, 80 bits of look-up entropy."""
    assert PRESENT >= 16
    assert all(len(POOLS[a.pool]) == len(set(POOLS[a.pool])) >= 32 for a in ATTRIBUTES)
    assert all(len(set(a.sentences)) >= 4 for a in ATTRIBUTES)
    assert 4 == sum(a.pool == "person" for a in ATTRIBUTES)
    assert 80 <= PRESENT * math.log2(min(map(len, POOLS.values())))


def test_every_answer_is_in_the_document_and_every_absent_one_is_not_asked_for_in_vain() -> None:
    """Look-up, join and code answers stand in the text; absent attributes are stated nowhere."""
    for case in case_files("validation", seed=1, n=50):
        assert set(KINDS) == {question.kind for question in case.questions}
        for question in case.questions:
            if question.kind == "absent":
                attribute = next(a for a in ATTRIBUTES if question.text in a.questions)
                stated = [p for p in attribute.sentences if all(half in case.context for half in _halves(p))]
                assert UNKNOWN == question.answer
                assert not any(_states(case.context, pattern) for pattern in stated)
                continue
            assert all(part in case.context for part in question.answer.split(", "))
            assert question.choices is None or question.answer in question.choices


def _halves(pattern: str) -> list[str]:
    return [half for half in pattern.split("{}") if len(half) > 1]


def _states(text: str, pattern: str) -> bool:
    head, tail = pattern.split("{}")
    return any(
        s.endswith(tail) and s.startswith(head) and " " not in s[len(head) : -len(tail)] for s in _sentences(text)
    )


def _sentences(text: str) -> list[str]:
    return [f"{part.rstrip('.')}." for part in text.split(". ")]


def test_joins_need_two_facts() -> None:
    """The office in a join's answer is that of the person who holds the role, and belongs to no other sentence."""
    for case in case_files("validation", seed=2, n=50):
        for question in case.questions:
            if question.kind == "join":
                person, city = question.answer.split(", ")
                sentences = [part for part in case.context.split(". ") if person in part and city in part]
                assert len(sentences) >= 1


def test_a_third_of_the_text_is_beside_the_point() -> None:
    """Distractors make up about a third of the characters."""
    starts = {text.split("{")[0] for text in DISTRACTORS if text.split("{")[0]}
    shares = []
    for case in case_files("validation", seed=3, n=40):
        sentences = [part.rstrip(".") for part in case.context.split(". ")]
        beside = [s for s in sentences if f"{s}." in DISTRACTORS or any("{" in d and _fits(s, d) for d in DISTRACTORS)]
        shares.append(sum(map(len, beside)) / sum(map(len, sentences)))
    assert starts
    assert 0.27 < statistics.mean(shares) < 0.42


def _fits(sentence: str, pattern: str) -> bool:
    head, tail = pattern.split("{")[0], pattern.split("}")[-1].rstrip(".")
    return sentence.startswith(head) and sentence.endswith(tail) and len(head) + len(tail) > 8


def test_the_stated_entropy_is_the_entropy_of_the_draws() -> None:
    """With all 20 facts and distinct people the entropy is the sum of the logs, term by term."""
    case = next(case_files("train", seed=4, n=1, facts=20))
    people = {question.answer for question in case.questions if question.text in _role_questions()}
    expected = 20 * math.log2(40) + len(people) * math.log2(40) + 3 * math.log2(24 * 10)
    assert expected == pytest.approx(case.entropy_bits)


def _role_questions() -> set[str]:
    return {question for a in ATTRIBUTES if a.name in JOINS for question in a.questions}


def test_bad_arguments_are_named() -> None:
    """A wrong split or number says what was expected and what came."""
    with pytest.raises(ConfigError, match="train, validation, test, got 'dev'"):
        case_files("dev")
    with pytest.raises(ConfigError, match="n=-1"):
        case_files("test", n=-1)
    with pytest.raises(ConfigError, match="0 to 20, got 21"):
        case_files("test", facts=21)


def test_jsonl_round_trip(tmp_path) -> None:
    """Lines of context, question, answer and choices become cases in file order."""
    file = tmp_path / "cases.jsonl"
    record = {"context": "Mara owns it.", "question": "Who?", "answer": "Mara", "choices": ["Mara", "Jonas"]}
    file.write_text(json.dumps(record) + "\n\n" + json.dumps(record | {"choices": None, "topic": "owner"}) + "\n")
    first, second = read_jsonl(file)
    assert ("Mara", "Jonas") == first.questions[0].choices
    assert second.questions[0].choices is None
    assert ((), (("owner", "Mara"),)) == (first.questions[0].facts, second.questions[0].facts)
    assert f"{file}:3" == second.id


def test_jsonl_takes_several_questions_and_continuations(tmp_path) -> None:
    """A line may ask several questions, name its case, or hold what comes next."""
    file = tmp_path / "cases.jsonl"
    asked = {"id": "a", "context": "Mara owns it.", "questions": [{"question": "Who?", "answer": "Mara", "kind": "k"}]}
    file.write_text(json.dumps(asked) + "\n" + json.dumps({"context": "Once", "continuation": "upon a time"}) + "\n")
    several, goes_on = read_jsonl(file)
    assert ("a", "k") == (several.id, several.questions[0].kind)
    assert ("", "upon a time") == (goes_on.questions[0].text, goes_on.questions[0].answer)
    with pytest.raises(ConfigError, match="either questions or continuations"):
        task(str(file), n=2, seed=0)
    with pytest.raises(ConfigError, match=r"at least n=3 cases in .*, got 2"):
        task(str(file), n=3, seed=0)


def test_any_of_several_spellings_is_right(tmp_path) -> None:
    """A line of conversations is read as it is: all spellings are kept, and what nobody asked for is ignored."""
    file = tmp_path / "cases.jsonl"
    record = {
        "id": "test/1",
        "context": "user: A table for seven pm, please.\nassistant: Booked: 19:00.",
        "questions": [
            {"question": "Time", "answers": ["seven pm", "19:00"], "kind": "said", "topic": "Restaurants.time"},
            {"question": "Seats", "answers": ["not said"], "kind": "absent", "topic": "Restaurants.seats"},
            {"question": "Hour", "answer": "seven pm", "answers": ["19:00", "seven pm"]},
            {"question": "Clock", "answers": ["7 pm", "19:00"], "choices": ["7 pm", "8 pm"]},
        ],
        "services_seen_in_training": True,
    }
    file.write_text(json.dumps(record) + "\n")
    time, seats, hour, clock = next(read_jsonl(file)).questions
    assert (("seven pm", "19:00"), "19:00") == (time.answers, time.answer)
    assert ((("Restaurants.time", "19:00"),), True) == (time.facts, time.said)
    assert (("not said",), "not said", False) == (seats.answers, seats.answer, seats.said)
    assert (("19:00", "seven pm"), "seven pm") == (hour.answers, hour.answer)
    assert ("19:00", ("7 pm", "8 pm")) == (clock.answer, clock.choices)
    assert ("Mara",) == Question("Who?", "Mara").answers


@pytest.mark.parametrize(
    ("answers", "context", "trained"),
    [
        (["New York", "NY"], "In NY? Yes, new york it is.", "New York"),
        (["New York", "NY"], "In new york? NY it is.", "NY"),
        (["4:30", "4:30 pm"], "At 4:30 or at 4:30 pm.", "4:30 pm"),
        (["5th", "March 5th"], "On March 5th.", "March 5th"),
        (["1", "one"], "A table for 1. My phone is off.", "1"),
        (["\u5317\u4eac", "\u4e0a\u6d77"], "\u53bb\u5317\u4eac\u6216\u4e0a\u6d77\u5427", "\u4e0a\u6d77"),
        (["unknown", "nowhere at all"], "Hello.", "unknown"),
    ],
)
def test_the_spelling_that_stands_last_is_trained_on(tmp_path, answers, context, trained) -> None:
    """Case does not matter, whole words go first, the longest wins where two end together; else it is the first."""
    file = tmp_path / "cases.jsonl"
    file.write_text(json.dumps({"context": context, "question": "b", "answers": answers}) + "\n")
    assert trained == next(read_jsonl(file)).questions[0].answer


def test_a_repeated_id_names_both_lines(tmp_path) -> None:
    """Two cases cannot be told apart by one name."""
    file = tmp_path / "cases.jsonl"
    line = json.dumps({"id": "a", "context": "x", "continuation": "y"}) + "\n"
    file.write_text(line + line)
    with pytest.raises(ConfigError, match=r"cases\.jsonl:2: .*'a' as in line 1"):
        list(read_jsonl(file))


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("{", "one JSON object per line"),
        ("[]", "a JSON object, got list"),
        ('{"context": "a", "question": "b"}', "a text in 'answer' as a str, got NoneType"),
        ('{"context": " ", "question": "b", "answer": "c"}', "'context'"),
        ('{"context": "a", "question": "b", "answer": "c", "choices": ["d"]}', "holds the answer"),
        ('{"context": "a", "questions": []}', "a list of questions"),
        ('{"context": "a", "questions": [{"question": "b"}]}', "question 1: expected a text in 'answer' as a str"),
        ('{"context": "a", "questions": ["b"]}', "question 1: expected a JSON object, got str"),
        ('{"context": "a", "question": "b", "answers": []}', "a list of spellings in 'answers', got []"),
        ('{"context": "a", "question": "b", "answers": "c"}', "a list of spellings in 'answers', got 'c'"),
        ('{"context": "a", "question": "b", "answers": ["c", " "]}', "a text in 'answers', got an empty one"),
        ('{"context": "a", "question": "b", "answers": ["c", "c"]}', "each of them once, got 'c' and 'c', 'c'"),
        ('{"context": "a", "question": "b", "answer": "d", "answers": ["c"]}', "one of its spellings, each of them"),
        ('{"context": "a", "question": "b", "answers": ["c", "e"], "choices": ["d"]}', "holds the answer"),
        ('{"context": "a", "continuation": ""}', "a text in 'continuation', got an empty one"),
    ],
)
def test_bad_lines_name_file_line_and_field(tmp_path, line: str, fragment: str) -> None:
    """A damaged line is an ConfigError that names where it stands."""
    file = tmp_path / "cases.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"cases\.jsonl:1: ") as caught:
        list(read_jsonl(file))
    assert fragment in str(caught.value)


def test_answers_are_facts_about_topics() -> None:
    """A look-up tells of its attribute, a join of its role and that role's office, a code of each of its characters."""
    for case in case_files("train", seed=3, n=30):
        told = {topic: words for q in case.questions if q.kind in ("lookup", "absent") for topic, words in q.facts}
        assert {a.name for a in ATTRIBUTES} == set(told)
        for question in case.questions:
            facts = dict(question.facts)
            assert set(facts) <= set(TOPICS)
            if question.kind == "join":
                (role, person), (office, city) = question.facts
                assert (told[role], f"{role}'s office") == (person, office)
                assert f"{person}, {city}" == question.answer
            if question.kind == "code":
                assert question.answer == "".join(facts.values())


def test_what_answers_are_worth_adds_up_to_the_entropy() -> None:
    """No bit of a dossier is asked for twice, also where one person has two roles, and thinning keeps the sum."""
    for number, case in enumerate(case_files("train", seed=3, n=60)):
        assert case.entropy_bits == pytest.approx(sum(present(q.entropy_bits) for q in case.questions))
        assert all(q.answer.startswith(q.given) for q in case.questions)
        kept = thin(case, {"lookup": 3, "absent": 1}, number)
        worth = sum(present(q.entropy_bits) * q.stands_for for q in kept.questions)
        assert case.entropy_bits == pytest.approx(worth)


@given(payload_bytes=st.integers(1, 40), number=st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_a_fact_code_answers_what_fits_and_nothing_wrong(payload_bytes: int, number: int) -> None:
    """A fact code of any length answers some of the questions, all of them rightly; the whole one answers all."""
    case = next(case_files("train", seed=9, n=1, start=number, facts=number % 21))
    fact_code = present(case.fact_code)
    payload = fact_code.encode(payload_bytes)
    answers = fact_code.answers(payload)
    assert 1 <= len(payload) <= payload_bytes
    assert all(answers[q.text] == q.answer for q in case.questions if q.text in answers)
    if payload_bytes >= math.ceil(present(case.entropy_bits) / 8):
        assert {q.text for q in case.questions} == set(answers)


def test_a_damaged_fact_code_is_refused() -> None:
    """Bytes beyond the last fact are no fact code."""
    case = next(case_files("train", seed=9, n=1))
    with pytest.raises(DecodeError, match="beyond its last fact"):
        present(case.fact_code).answers(bytes([255]) * 40)


def test_a_rewritten_dossier_says_its_facts_again() -> None:
    """Notes written from the right answers state every look-up, office and code, each once, and a remark per hop."""
    case = next(case_files("train", seed=9, n=1))
    right = {question.text: question.answer for question in case.questions}
    rewrite = present(case.rewrite)
    notes = rewrite.notes(right, 2)
    for question in case.questions:
        if question.kind != "absent":
            assert all(notes.lower().count(words.lower()) for _, words in question.facts)
    assert notes.endswith(rewrite.remark(2))
    assert rewrite.remark(1) == rewrite.remark(1)
    nothing = rewrite.notes(dict.fromkeys(right, "unknown"), 1)
    assert nothing.count(".") <= 2  # a code that is "unknown", and the remark


def test_bare_cases_are_their_facts_and_nothing_else() -> None:
    """A sentence per attribute, perhaps an office and a code; no distractor, and nothing asked that is not stated."""
    kinds = set()
    for number in range(50):
        case = compose("bare", random.Random(number), ["owner", "region", "cause"], bare=True)
        stated = {question.kind for question in case.questions} - {"absent"}
        assert 2 + len(stated) == case.context.count(".")
        assert all(
            words.lower() in case.context.lower()
            for question in case.questions
            if question.kind in ("lookup", "join")
            for _, words in question.facts
        )
        kinds |= stated
    assert {"lookup", "join", "code"} == kinds
