"""A message that knows what it lost: what is asked, which literals are taken, and what is refused before any work."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch

import ilcp
from ilcp.codec.context import Context
from ilcp.codec.memory import TextMemory
from ilcp.embedded import Pair
from ilcp.errors import ConfigError, EncodeError, IdentityError
from ilcp.handoff import Receiver, Score, Verified
from ilcp.handoff import verify as module
from ilcp.handoff.verify import mended
from ilcp.measure import run
from ilcp.measure.verified import verified_specs
from ilcp.message import Message
from ilcp.models.prompt import MEMORY_HERE
from ilcp.tasks import case_files, thin
from ilcp_codecs.text import HeadCodec
from tests.helpers import make_model, make_tokenizer, noting

CASES = [thin(case, {"lookup": 7, "absent": 1, "join": 1, "code": 1}, 0) for case in case_files("test", 11, 2)]
KNOWN = {question.text: question.answer for question in CASES[0].questions}
CODE, REGION = "What is the reference code?", "Which region is affected?"
KEY = bytes(range(32))


Right = Callable[[tuple[str, ...], str, str], bool]


class Reader(Receiver):
    """Answers from the literals alone: ``right`` says of literals, question and answer whether it gives the answer."""

    def __init__(self, right: Right):
        self.right = right
        self.asked: list[tuple[str, ...]] = []

    def score(self, items: Iterable[Any], **options: Any) -> list[Score]:
        """Scores each item 5 nats higher where it is right."""
        self.asked += [memory.literals for memory, _, _ in items]
        found = [self.right(memory.literals, question, answer) for memory, question, answer in items]
        return [Score((-0.5 if right else -5.5,), right) for right in found]


def told(literals: tuple[str, ...], question: str, answer: str) -> bool:
    """Is right where the answer stands in a literal."""
    return any(answer in literal for literal in literals)


def literals_for(right: Right, known: Mapping[str, str], text: str = "", room_bytes: int = 1000) -> tuple[str, ...]:
    """Returns the literals that mend a memory of nothing for such a reader."""
    fits = lambda literals: len("\n".join(literals)) <= room_bytes  # noqa: E731
    return mended(Reader(right), TextMemory("").beside, known, text, fits)[1].literals


def right_answers(pair: Pair, messages: Sequence[bytes]) -> int:
    """Counts the right answers to all questions of the cases."""
    items = [
        (message, question.text, question.answer)
        for message, case in zip(messages, CASES, strict=True)
        for question in case.questions
    ]
    return sum(score.exact for score in pair.receiver.score(items))


@pytest.mark.parametrize("given", [False, True])
def test_literals_that_were_tried_bring_more_back_than_those_that_look_exact(pair: Pair, given: bool) -> None:
    """A short latent with the literals that help beats the same with those that ``auto`` picks, and with none."""
    budget = 40
    verified = []
    for case in CASES:
        asked = [question.text for question in case.questions]
        known = {question.text: question.answer for question in case.questions} if given else asked
        verified.append(
            pair.sender.encode(
                case.context, payload_bytes=10, verify=pair.receiver, budget_bytes=budget, questions=known
            )
        )
    contexts = [case.context for case in CASES]
    auto = pair.sender.encode_batch(contexts, payload_bytes=10, literals="auto")
    bare = pair.sender.encode_batch(contexts, payload_bytes=10)
    assert all(len(message) <= budget for message in [*verified, *auto, *bare])
    assert right_answers(pair, verified) > max(right_answers(pair, auto), right_answers(pair, bare))


def test_each_known_question_stands_in_one_place_and_the_message_keeps_the_promise(pair: Pair) -> None:
    """What is kept and mended is what the receiver answers from the very bytes; the rest is lost."""
    found = pair.sender.verified(CASES[0].context, pair.receiver, 70, KNOWN, payload_bytes=10)
    assert sorted(KNOWN) == sorted((*found.kept, *found.mended, *found.lost))
    scores = pair.receiver.score([(found.message, *item) for item in KNOWN.items()])
    right = {question for question, score in zip(KNOWN, scores, strict=True) if score.exact}
    assert right == {*found.kept, *found.mended}
    assert found.mended
    assert found.lost
    assert len(found.message) <= 70
    assert found.message == pair.sender.encode(
        CASES[0].context, verify=pair.receiver, budget_bytes=70, questions=KNOWN, payload_bytes=10
    )


def test_where_nothing_is_lost_nothing_travels_beside(pair: Pair) -> None:
    """What the latent keeps costs no byte: the message is that of ``encode``."""
    scores = pair.receiver.score([(pair.sender.encode(CASES[0].context), *item) for item in KNOWN.items()])
    kept = {question: KNOWN[question] for question, score in zip(KNOWN, scores, strict=True) if score.exact}
    found = pair.sender.verified(CASES[0].context, pair.receiver, 200, kept)
    assert Verified(pair.sender.encode(CASES[0].context), tuple(kept), (), ()) == found


def test_the_longest_prefix_that_fits_is_sent_with_seal_and_own_literals_counted(pair: Pair) -> None:
    """A budget pays for all that crosses; sealed, and with a literal in any case, a shorter prefix fits."""
    one = {REGION: KNOWN[next(iter(KNOWN))]}
    sealing = ilcp.Sender(pair.sender.model, pair.sender.tokenizer, pair.sender.codec, key=KEY)
    for sender, literals, prefix in ((pair.sender, None, 80), (pair.sender, ["T-1"], 40), (sealing, None, 40)):
        message = sender.encode(
            CASES[0].context, verify=pair.receiver, budget_bytes=100, questions=one, literals=literals
        )
        parsed = Message.from_bytes(message, key=sender.key)
        assert prefix == len(parsed.payload)
        assert tuple(literals or ()) == parsed.literals[: len(literals or ())]
        assert len(message) <= 100


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"budget_bytes": 27}, "expected budget_bytes of at least 30, got 27: so long is a message with 10 bytes"),
        ({"budget_bytes": 99, "payload_bytes": 80}, "of at least 100, got 99"),
        ({"budget_bytes": 0}, "expected budget_bytes to be a whole number from 1, got 0"),
        ({"questions": None}, "expected questions in a list, or with their answers in a dict, got none"),
        ({"questions": REGION}, "in a dict, got str"),
        ({"questions": {REGION: ""}}, "a text for each question and answer, got an empty one"),
        ({"questions": [7]}, "a text for each question and answer as a str, got int"),
        ({"literals": "auto"}, "expected literals as a list beside verify, got 'auto'"),
        ({"verify": None}, "expected verify=receiver and budget_bytes together"),
        ({"budget_bytes": None}, "expected verify=receiver and budget_bytes together"),
        ({"verify": "receiver"}, "expected an ilcp.Receiver to verify with, got str"),
    ],
)
def test_what_cannot_be_verified_is_refused_before_any_work(pair: Pair, monkeypatch, options, fragment: str) -> None:
    """Each argument is judged before the sender's model runs."""
    monkeypatch.setattr(pair.sender, "read", None)
    given = {"verify": pair.receiver, "budget_bytes": 100, "questions": [REGION]} | options
    with pytest.raises(ConfigError) as caught:
        pair.sender.encode(CASES[0].context, **given)
    assert fragment in str(caught.value)


def test_a_receiver_of_another_codec_is_refused(pair: Pair, small: Any) -> None:
    """Its answers would say nothing of what the message loses for the codec's own."""
    with pytest.raises(IdentityError, match=r"expected a receiver with the sender's codec .*, got one with"):
        pair.sender.encode("Mara owns it.", verify=small.receiver, budget_bytes=100, questions=[REGION])


def test_the_codecs_own_questions_count_where_none_are_given(small: Any, monkeypatch) -> None:
    """A codec that was trained on topics knows what to ask."""
    monkeypatch.setattr(small.codec, "questions", ("Which code?", "Which code?", "Who?"), raising=False)
    monkeypatch.setattr(small.receiver, "answers", lambda items: ["x"] * len(items))
    found = small.sender.verified("Mara closed J3X4P2.", small.receiver, 60)
    assert ["Which code?", "Who?"] == sorted((*found.kept, *found.mended, *found.lost))


def test_the_text_is_asked_without_the_template_of_its_messages(small: Any, monkeypatch) -> None:
    """Of chat messages the receiver reads the words; a question it answers with nothing counts for nothing."""
    asked: list[Any] = []
    answers = noting(lambda items: ["", "x"], asked, lambda items: items[0][0].text)
    monkeypatch.setattr(small.receiver, "answers", answers)
    turns = [{"role": "user", "content": "The code is J3X4P2"}, {"role": "assistant", "content": "Noted"}]
    found = small.sender.verified(turns, small.receiver, 60, ["Which code?", "Who?"])
    assert ["The code is J3X4P2\nNoted"] == asked
    assert ["Who?"] == sorted((*found.kept, *found.mended, *found.lost))


def test_states_alone_are_asked_nothing_but_take_known_answers(small: Any) -> None:
    """Without a text the questions need their answers."""
    states = Context(states=torch.randn(3, 5, 32))
    with pytest.raises(EncodeError, match=r"expected a text to ask .* give the answers, as questions="):
        small.sender.verified(states, small.receiver, 60, ["Who?"])
    assert ("Who?",) == small.sender.verified(states, small.receiver, 60, {"Who?": "Mara"}).lost


@pytest.mark.parametrize("answer", [f"a{MEMORY_HERE}", "a</s>", "x" * 1100])
def test_an_answer_that_no_literal_can_carry_is_lost_and_the_message_reads(
    small: Any, monkeypatch, answer: str
) -> None:
    """Markers, control tokens and what is too long never become literals: the receiver would refuse the message."""
    monkeypatch.setattr(small.receiver, "score", Reader(told).score)
    found = small.sender.verified("Mara owns it.", small.receiver, 1200, {"Who?": "Mara", "Which?": answer})
    assert (("Who?",), ("Which?",)) == (found.mended, found.lost)
    assert ("Mara",) == small.receiver.decode(found.message).literals


def test_literals_that_spell_a_control_token_together_give_way_to_other_forms(monkeypatch) -> None:
    """Each may be a literal alone, but their line in the receiver's prompt would be refused."""
    tokenizer = make_tokenizer(300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["> | <"]})
    receiver = Receiver(make_model(len(tokenizer)), tokenizer, HeadCodec(), allow_unmeasured=True)
    sender = ilcp.Sender(receiver.model, tokenizer, HeadCodec())
    monkeypatch.setattr(receiver, "score", Reader(told).score)
    found = sender.verified("Mara owns it.", receiver, 90, {"Who?": "<a>", "Which?": "<b>"})
    assert () == found.lost
    assert 2 == len(receiver.decode(found.message).literals)


def test_a_sealed_message_is_verified_without_using_up_its_id(small: Any) -> None:
    """The receiver's replay cache sees the message when it arrives, not when it is made."""
    cache = ilcp.ReplayCache()
    receiver = Receiver(
        small.receiver.model, small.receiver.tokenizer, small.codec, key=KEY, replay=cache, allow_unmeasured=True
    )
    sender = ilcp.Sender(small.sender.model, small.sender.tokenizer, small.codec, key=KEY)
    receiver.decode(sender.encode("Mara owns it.", verify=receiver, budget_bytes=90, questions={"Who?": "Mara"}))


# --- which literals are taken, by readers made up --------------------------------------------------------------------


def test_the_best_gain_per_byte_comes_first_and_the_budget_ends_it() -> None:
    """Of facts lost alike, the short ones are served; where there is room for all, all are."""
    known = {"One?": "a long answer", "Two?": "short", "Three?": "brief one"}
    assert ("short", "brief one") == literals_for(told, known, room_bytes=16)
    assert ("short", "brief one", "a long answer") == literals_for(told, known)
    assert () == literals_for(told, known, room_bytes=4)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("It was late. The part had cost 3.5, to Mara. Mara left.", "The part had cost 3.5, to Mara"),
        ("Nobody is named.", "Who paid for the part? Mara 3.5"),
    ],
)
def test_a_fact_that_needs_more_than_its_answer_is_told_in_a_clause_or_with_its_question(text: str, form: str) -> None:
    """The answer alone comes first, then with the question's own word, then in the text's words, or the question's."""
    known = {"Who paid for the part?": "Mara 3.5", "Who asked for the part?": "Mara"}
    for longest, expected in (("Mara 3.5", "Mara 3.5"), ("paid: Mara 3.5", "paid: Mara 3.5"), (form, form)):
        right = lambda literals, question, answer, wanted=longest: question[4] == "a" or wanted in literals  # noqa: E731
        assert (expected,) == literals_for(right, known, text)


def test_a_literal_that_breaks_as_much_as_it_mends_gives_way_to_its_next_form() -> None:
    """The number of right answers counts, of all questions: what helps one and harms another is not taken."""

    def right(literals: tuple[str, ...], question: str, answer: str) -> bool:
        return "Mara" not in literals if question == "Who asked?" else any("Mara" in each for each in literals)

    assert ("paid: Mara",) == literals_for(right, {"Who paid?": "Mara", "Who asked?": "Ilse"})


def test_what_a_literal_breaks_is_mended_in_turn() -> None:
    """Where more is gained than lost the literal stays, and what it broke gets one of its own."""

    def right(literals: tuple[str, ...], question: str, answer: str) -> bool:
        return told(literals, question, answer) or (question == "Who asked?" and "Mara" not in literals)

    known = {"Who paid?": "Mara", "Who came?": "Mara", "Who asked?": "Ilse"}
    assert ("Mara", "Who asked? Ilse") == literals_for(right, known)


def test_where_many_confuse_fewer_are_tried() -> None:
    """A reader that gives up at more than two literals gets two."""
    known = {f"Which {n}?": f"v{n}" for n in range(4)}
    found = literals_for(lambda literals, *rest: len(literals) <= 2 and told(literals, *rest), known)
    assert ("v0", "v1") == found


def test_the_work_is_bounded() -> None:
    """A reader that each literal confuses is asked once without, each form once, and ``TRIALS`` sets at most."""
    known = {f"Which {n}?": f"v{n}" for n in range(8)}
    reader = Reader(lambda literals, *rest: len(literals) == 1 and told(literals, *rest))
    mended(reader, TextMemory("").beside, known, "", lambda literals: True)
    assert len(reader.asked) <= 8 + 3 * 8 + module.TRIALS * 8


# --- measured --------------------------------------------------------------------------------------------------------


def test_the_arms_stay_within_their_budgets_and_say_what_they_rival(pair: Pair) -> None:
    """At each budget stand the message read back, facts in words, and text where no message is as long."""
    specs = verified_specs(
        pair.sender, pair.receiver, CASES, budgets=(60, 140), lengths=(80, 40), texts={"head": HeadCodec()}
    )
    assert [
        ("verified-140", None),
        ("literals-only-140", "verified-140"),
        ("head-120", "verified-140"),
        ("verified-60", None),
        ("literals-only-60", "verified-60"),
    ] == [(spec.name, spec.rival_of) for spec in specs]


def test_a_budget_that_no_message_fits_is_refused_before_anything_is_asked(pair: Pair, monkeypatch) -> None:
    """A report takes long: what cannot be measured at its end is said at its beginning."""
    monkeypatch.setattr(Receiver, "score", lambda *_, **__: pytest.fail("the receiver was asked"))
    with pytest.raises(ConfigError, match="budget_bytes of at least 30, got 20"):
        run(pair.sender, pair.receiver, CASES, task="dossiers", budgets=(60, 20))


def test_a_report_holds_the_arms_of_its_budgets(pair: Pair) -> None:
    """``run`` measures them beside all others; each message and each text is within its budget."""
    thinned = [thin(case, {"lookup": 2, "absent": 1, "join": 1, "code": 1}, 0) for case in CASES]
    arms = ["verified-50", "literals-only-50", "head-30", "none", "text"]
    report = run(
        pair.sender,
        pair.receiver,
        thinned,
        task="verified",
        texts={"head": HeadCodec()},
        repetitions=0,
        budgets=(50,),
        arms=arms,
    )
    assert set(arms) == set(report.arms)
    assert all(size <= 50 for name in arms[:3] for size in report.arms[name].wire_bytes)
    assert all(20 <= size <= 30 for size in report.arms["verified-50"].payload_bytes)
    exact = {name: report.arms[name].scores("exact", report.items).mean() for name in arms}
    assert exact["verified-50"] > max(exact["literals-only-50"], exact["head-30"])
