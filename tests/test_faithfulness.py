"""How true an account is: what each figure counts, on a receiver whose answers are known."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import ilcp
from ilcp.audit.summary import summarised
from ilcp.cli import app
from ilcp.codec.memory import TextMemory
from ilcp.errors import ConfigError, EncodeError, StorageError
from ilcp.measure.faithfulness import _bits_changed, faithfulness, held_out
from ilcp.message import Message
from ilcp.tasks import Case, Question, case_files
from ilcp.tasks.telling import TELL

NAMES = ("Mara", "Ivo", "Lena", "Odd", "Runa")
CITIES = ("Bergen", "Brno", "Genoa", "Porto", "Vigo")


def case(number: int) -> Case:
    who, where = NAMES[number % 5], CITIES[(2 * number) % 5]
    asked = (
        Question("Who is it?", who, choices=NAMES, facts=(("who", who),)),
        Question("Which city?", where, choices=CITIES, facts=(("where", where),)),
        Question("Which day?", "not said", kind="absent", facts=(("day", "not said"),)),
        Question("Who is where?", f"{who}, {where}", "join", facts=(("who", who), ("where", where)), given=f"{who},"),
    )
    return Case(f"case {number}", f"It is {who}. The city is {where}. Nothing else is known.", asked)


class Ends:
    """A sender whose message is the text itself, and a receiver that answers by rule from what it holds."""

    def __init__(self, forgets: str = "", says: dict[str, str] | None = None) -> None:
        trained = SimpleNamespace(codec_id=lambda _: bytes(8))
        self.codec = SimpleNamespace(spec=SimpleNamespace(reads="text", payload_bytes=500), trained=trained)
        self.audit = self.guard = self.key = self.audience = None
        self.forgets, self.says = forgets, says or {}

    def encode(self, text: str, *, payload_bytes: int | None = None) -> bytes:
        if "never" in text:
            raise EncodeError("expected another text, got this one")
        return Message(bytes(8), text.encode().ljust(200)).to_bytes()

    def decode(self, message: bytes) -> TextMemory:
        text = Message.from_bytes(message).payload.decode().strip()
        return TextMemory(text.replace(self.forgets, "somebody") if self.forgets else text)

    def answers(self, items: Sequence[tuple[Any, str]], **_: Any) -> list[str]:
        texts = (("" if memory is None else memory.text, question) for memory, question in items)
        return [self.says.get(question) or self._answer(text, question) for text, question in texts]

    @staticmethod
    def _answer(text: str, question: str) -> str:
        who = next((name for name in NAMES if name in text), "Nobody")
        where = next((city for city in CITIES if city in text), "nowhere")
        return {"Who is it?": who, "Which city?": where, "Which day?": "not said"}.get(question, f"{who}, {where}")


def measured(ends: Ends, n: int = 8, *, freely: bool = False) -> dict[str, float]:
    cases = [case(number) for number in range(n)]
    found = faithfulness(ends, ends, cases, freely=freely)  # type: ignore[arg-type]
    return {name: figure.value for name, figure in found.figures.items() if figure is not None}


def test_a_receiver_that_keeps_everything_has_a_true_account() -> None:
    found = measured(Ends())
    told = ("recall, gloss", "precision, gloss", "foretold, asked", "swapped, answer", "swapped, answer and gloss")
    for name in told:
        assert 1 == found[name], name
    assert 0 == found["misleading, gloss"] == found["recall, gloss of nothing"]
    assert 1 == found["misleading, gloss of nothing"] == found["misleading, another's gloss"]
    assert found["recall, another's gloss"] < 0.5
    assert 0.9 < found["gain over no gloss, asked"] + found["foretold, asked, no gloss"] <= 1
    assert found["encoded again, answers kept"] > found["encoded again, answers kept, another's message"]


def test_what_a_message_lost_is_missing_in_its_gloss_alone() -> None:
    """The receiver makes a name up: its gloss says so, the summary does not, and the reader foretells it."""
    found = measured(Ends(forgets="Mara", says={"Who is it?": "Mara"}))
    assert found["recall, gloss"] < 1
    assert found["misleading, gloss"] > 0.5
    assert 1 == found["foretold, asked"]
    assert found["swapped, answer"] < 1


def test_an_absent_fact_that_is_told_is_misleading_and_silence_is_not() -> None:
    """What says that nothing was said is no statement; whoever names a day misleads."""
    assert 1 == measured(Ends())["precision, gloss"]
    found = measured(Ends(says={"Which day?": "Friday"}))
    assert (1, 0.75) == (found["recall, gloss"], found["misleading, gloss"])  # every fourth gloss does not ask for it
    assert found["precision, gloss"] < 0.8


def test_a_summary_is_asked_for_a_new_fact_where_it_told_the_old_one() -> None:
    """One that never mentioned it has nothing to change."""
    rest = "and so it goes on and on and so on and on as it goes on and on and so it goes"
    cases = [
        replace(case(n), context=f"K7 Q9 B2. It is {NAMES[n]} {rest} in {CITIES[2 * n % 5]} {rest}.") for n in range(4)
    ]
    ends: Any = Ends()
    figures = faithfulness(ends, ends, cases).figures
    answered = figures["swapped, answer"]
    assert answered is not None
    assert 4 == answered.n
    assert figures["swapped, summary"] is None


def test_questions_that_no_gloss_asks_are_apart() -> None:
    """Those of two facts, and every fourth of the rest, another one from case to case."""
    for number in range(4):
        asked, unasked = held_out(case(number), number)
        assert {"Who is where?"} <= {question.text for question in unasked}
        assert 4 == len(asked) + len(unasked)
    assert 2 < len({tuple(q.text for q in held_out(case(n), n)[0]) for n in range(4)})


def test_what_cannot_be_encoded_again_is_left_out() -> None:
    rewrite: Any = SimpleNamespace(notes=lambda *_: "never")
    cases = [replace(case(number), rewrite=rewrite) for number in range(2)]
    ends: Any = Ends()
    found = faithfulness(ends, ends, cases).figures
    assert found["encoded again, answers kept"] is None
    assert found["recall, gloss"] is not None
    with pytest.raises(ConfigError, match="at least two cases"):
        faithfulness(ends, ends, cases[:1])


class Misreads(Ends):
    """Takes everybody in a text for Odd, and nobody in a memory."""

    def decode(self, message: bytes) -> TextMemory:
        return TextMemory(f"memory: {super().decode(message).text}")

    def answers(self, items: Sequence[tuple[Any, str]], **options: Any) -> list[str]:
        """Answers otherwise who it is, where it reads the text itself."""
        read = [memory is not None and memory.text.startswith("It is") for memory, _ in items]
        known = super().answers(items, **options)
        told = zip(read, items, known, strict=True)
        return ["Odd" if text and question == "Who is it?" else answer for text, (_, question), answer in told]


def test_an_alarm_is_a_gloss_that_differs_from_what_the_text_is_read_to_say() -> None:
    """What the message lost is noticed, what the model says of the text as well is not; right answers raise few."""
    kept = measured(Ends())
    assert (0, None) == (kept["alarm, right answers"], kept.get("alarm, false answers"))
    lost = measured(Ends(forgets="Mara"))
    assert (0, 1) == (lost["alarm, right answers"], lost["alarm, false answers"])
    unnoticed = measured(Ends(says={"Who is it?": "Mara"}))
    assert (0, 0) == (unnoticed["alarm, right answers"], unnoticed["alarm, false answers"])
    invented = measured(Ends(says={"Which day?": "Friday"}))
    assert (0, 0) == (invented["alarm, right answers"], invented["alarm, false answers"])


def test_alarms_are_of_answers_that_tell_something() -> None:
    """Of five cases 4 glosses ask where and 3 who; of these two are taken for another in the text."""
    ends: Any = Misreads()
    figures = faithfulness(ends, ends, [case(number) for number in range(5)]).figures
    alarmed = figures["alarm, right answers"]
    assert alarmed is not None
    assert (7, pytest.approx(2 / 7)) == (alarmed.n, alarmed.value)
    assert figures["alarm, false answers"] is None


class Narrow(Ends):
    """Sends the beginning of a text, and reads no long one."""

    def decode(self, message: bytes) -> TextMemory:
        return TextMemory(super().decode(message).text[:60])

    def answers(self, items: Sequence[tuple[Any, str]], **options: Any) -> list[str]:
        """Refuses a long text."""
        if any(memory is not None and len(memory.text) > 1000 for memory, _ in items):
            raise EncodeError("expected a shorter text, got a long one")
        return super().answers(items, **options)


def test_no_alarm_is_of_a_text_that_is_more_than_the_receiver_reads() -> None:
    """The rest is measured as ever."""
    ends: Any = Narrow()
    long = [replace(case(n), context=f"{case(n).context} {'And so on. ' * 200}") for n in range(2)]
    figures = faithfulness(ends, ends, [*long, *(case(number) for number in range(2, 5))]).figures
    alarmed = figures["alarm, right answers"]
    assert alarmed is not None
    assert 4 == alarmed.n
    figures = faithfulness(ends, ends, long).figures
    assert [None] * 2 == [figures[f"alarm, {name} answers"] for name in ("right", "false")]
    assert figures["recall, gloss"] is not None


def test_what_a_message_says_freely_is_looked_through_for_facts() -> None:
    """Whole words count, of what the case says; a value of another case that the text does not have misleads."""
    found = measured(Ends(), freely=True)
    assert (1, 0) == (found["recall, told freely"], found["misleading, told freely"])
    assert (0, 1) == (found["recall, another's, told freely"], found["misleading, another's, told freely"])
    assert (0, None) == (found["recall, of nothing, told freely"], found.get("misleading, of nothing, told freely"))
    assert not any("told freely" in name for name in measured(Ends()))
    said = measured(Ends(says={TELL: "Marabel was in Brno, says Ivo-Odd."}), n=5, freely=True)
    assert pytest.approx(3 / 10) == said["recall, told freely"]  # Ivo in one case, Odd and Brno in another
    assert 1 == said["misleading, told freely"]
    kept = measured(Ends(says={TELL: "Ivo of Genoa."}), n=5, freely=True)
    assert pytest.approx(2 / 10) == kept["recall, told freely"]
    assert pytest.approx(4 / 5) == kept["misleading, told freely"]  # case 1 is about Ivo in Genoa, and no other is
    ends: Any = Ends(says={TELL: "Ivo of Genoa."})
    beside = [replace(case(n), context=f"{case(n).context} Ivo knows Genoa.") for n in range(5)]
    figure = faithfulness(ends, ends, beside, freely=True).figures["misleading, told freely"]
    assert figure is not None
    assert (1, 0) == (figure.n, figure.value)  # what the text says beside the point misleads nobody
    assert "misleading, told freely" not in measured(Ends(says={TELL: "Nothing."}), n=5, freely=True)


def test_bits_are_counted_where_payloads_are_as_long() -> None:
    one, other, short = b"\x00\xff", b"\x01\xff", b"\x00"
    assert (0.0, 1 / 16, None) == (_bits_changed(one, one), _bits_changed(one, other), _bits_changed(one, short))


def test_a_summary_is_made_of_the_text_s_own_sentences() -> None:
    text = "It rained. Mara Lindqvist owns ticket INC-20391 since 3.5 days. It rained again and again. Call Ivo!\nBye."
    found = summarised(text, 80)
    assert "Mara Lindqvist owns ticket INC-20391 since 3.5 days." in found
    assert len(found) <= 80
    assert all(part.strip() in text for part in found.replace("! ", "!|").replace(". ", ".|").split("|"))
    assert text.replace("\n", " ") == summarised(text, 1000)
    assert ("Bye.", "Cal") == (summarised(text, 5), summarised(text, 3))
    with pytest.raises(EncodeError):
        summarised(" ", 10)


def test_the_embedded_pair_s_gloss_beats_another_s(pair) -> None:
    """At 80 bytes most facts are told, at 10 few; another message's gloss tells nothing of this one."""
    cases = list(case_files("test", 7, 4))
    found = {n: faithfulness(pair.sender, pair.receiver, cases, payload_bytes=n).figures for n in (80, 10)}
    values = {n: {name: figure.value for name, figure in figures.items() if figure} for n, figures in found.items()}
    assert values[80]["recall, gloss"] > 0.8 > values[10]["recall, gloss"]
    assert values[80]["recall, another's gloss"] < 0.2
    assert values[80]["swapped, answer and gloss"] == 1


def test_a_sealed_message_has_an_account_too(pair) -> None:
    """The bits are those of its payload; its seal is another every time."""
    ends = ilcp.load_pair(key=bytes(range(32)))
    cases = list(case_files("test", 7, 2))
    sealed, bare = (faithfulness(each.sender, each.receiver, cases) for each in (ends, pair))
    assert sealed.mean_bytes - bare.mean_bytes == 27
    assert bare.figures == sealed.figures


def test_the_command_tells_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table, and a file of figures; a place that cannot be written is refused before anything is measured."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "accounts.json"
    words = ["measure", "embedded", "--n", "2", "--repetitions", "0", "--faithfulness"]
    done = CliRunner().invoke(app, [*words, str(file)])
    assert done.exception is None, done.output
    assert "How true an account of the message is" in done.output
    record = json.loads(file.read_text(encoding="utf-8"))
    assert [80, 40, 20, 10] == [one["payload_bytes"] for one in record["accounts"]["embedded"]]
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="expected to be able to write"):
        CliRunner().invoke(app, [*words, str(tmp_path / "file" / "no.json")], catch_exceptions=False)
