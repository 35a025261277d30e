"""``benchmarks/conversations.py`` on made-up conversations and tiny models: its data, its arms, its whole way."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ilcp
from ilcp.codec.context import Context
from ilcp.errors import DecodeError
from ilcp.handoff import Receiver
from ilcp.measure import load_report
from ilcp.models.fingerprint import identify
from ilcp.models.forward import embed
from ilcp.models.loading import load_model
from ilcp.tasks import read_jsonl
from ilcp.tasks.written import write_jsonl
from ilcp.training import Models
from ilcp.training.data import split
from ilcp.training.facts import value_tokens
from ilcp_codecs.facts import FactsCodec
from ilcp_codecs.text import LmCodec
from tests.helpers import load_script, make_model, make_tokenizer, text_of, vectors_of

data, arms, script = map(load_script, ("conversations_data", "conversations_arms", "conversations"))
shown, items = load_script("tables_conversations"), load_script("gpu_items")

DOMAINS = ("Trips", "Rooms", "Meals", "Calls", "Songs")
PLACES = ("Brno", "Turin", "Porto", "Graz", "Lund")


def record(split: str, number: int, *, seen: bool | None = None) -> dict[str, Any]:
    """A conversation about one or two domains: where, how many, and a price, which half of them do not speak of."""
    rng = random.Random(f"{split} {number}")
    said, turns = [], []
    for domain in rng.sample(DOMAINS, rng.choice((1, 1, 2))):
        place, count = rng.choice(PLACES), str(rng.randint(2, 9))
        cheap = "cheap" if number % 2 else "not said"
        turns.append(f"user: {domain} in {place.lower()}, for {count}.\nassistant: {place} it is, no {number}.")
        turns += ["user: Make it cheap."] if number % 2 else []
        for slot, answers in (("city", [place.lower(), place]), ("count", [count]), ("price", [cheap])):
            kind = "absent" if answers == ["not said"] else "said"
            said.append(
                {"question": f"{domain}: {slot}", "answers": answers, "kind": kind, "topic": f"{domain}.{slot}"}
            )
    flag = {} if seen is None else {"services_seen_in_training": seen}
    return {"id": f"{split}/{number}", "context": "\n".join(turns), "questions": said} | flag


def write_split(folder: Path, split: str, n: int, **flags: Any) -> Path:
    """Writes a split of ``n`` conversations; every third of a test split is of seen services."""
    folder.mkdir(exist_ok=True)
    records = [record(split, k, seen=None if split == "train" else k % 3 == 0) for k in range(n)]
    file = folder / f"{split}.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> list:
    """Sixty conversations of a test split."""
    return data.read(write_split(tmp_path_factory.mktemp("data"), "test", 60))


@pytest.mark.parametrize("size", [2, 4])
def test_a_history_has_one_answer_to_each_question(size: int, conversations) -> None:
    """Its conversations are about different domains, none is used twice, and seen services are not mixed with new."""
    made = data.histories(conversations, size, seed=7)
    by_id = {one.case.id: one for one in conversations}
    used = [part for one in made for part in one.case.id.split("+")]
    assert len(used) == len(set(used))
    assert len(used) > 20
    for one in made:
        parts = [by_id[part] for part in one.case.id.split("+")]
        assert size == len(parts)
        assert {one.seen} == {part.seen for part in parts}
        assert len(one.domains) == sum(len(part.domains) for part in parts)
        assert "\n\n".join(part.case.context for part in parts) == one.case.context
        asked = [question.text for question in one.case.questions]
        assert len(asked) == len(set(asked))


def test_histories_are_those_of_the_seed(conversations) -> None:
    """The same seed gives the same histories, another one others; a history of one is the conversation."""
    assert data.histories(conversations, 2, 7) == data.histories(conversations, 2, 7)
    assert data.histories(conversations, 2, 7) != data.histories(conversations, 2, 8)
    assert conversations == data.histories(conversations, 1, 7)


def test_new_services_are_kinds_of_their_own(conversations) -> None:
    """What is asked about services that training never had says so in its kind, and nothing else changes."""
    for one, case in zip(conversations, data.asked(conversations), strict=True):
        ending = "" if one.seen else data.NEW
        assert [q.kind + ending for q in one.case.questions] == [q.kind for q in case.questions]
        assert [q.answers for q in one.case.questions] == [q.answers for q in case.questions]


def test_cases_to_train_on_use_each_conversation_once(tmp_path) -> None:
    """They are a mix of sizes, short ones only, and the file says the same: answer, spellings, kind and topic."""
    found = data.read(write_split(tmp_path, "train", 80), characters=70)
    assert 0 < len(found) < 80
    cases = data.mixed(found, 0)
    used = [part for case in cases for part in case.id.split("+")]
    assert len(used) == len(set(used)) <= len(found)
    assert {1, 2, 4} == {case.id.count("+") + 1 for case in cases}
    write_jsonl(tmp_path / "mixed.jsonl", cases)
    assert cases == list(read_jsonl(tmp_path / "mixed.jsonl"))
    own = {one.case.id: one.case.questions for one in found}
    for case in cases:  # the answers of each conversation by itself, whatever spelling comes last in the history
        assert case.questions == tuple(q for part in case.id.split("+") for q in own[part])


@pytest.fixture(scope="module", params=[True, False], ids=["a chat template", "no start"])
def lms(request) -> tuple[Any, LmCodec]:
    """The computed cut and the real coder under one random model, to which some tokens are likelier than others."""
    tokenizer = make_tokenizer(300) if request.param else make_tokenizer(300, None)
    model = make_model(len(tokenizer), 32, window=1024, seed=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    return arms.ComputedLm(model, tokenizer), LmCodec(model, tokenizer, 4000)


def test_the_computed_cut_is_that_of_the_real_coder(lms, conversations) -> None:
    """At every size: never a shorter beginning of the text, and at most two tokens and an end more."""
    computed, coder = lms
    texts = [one.case.context for one in conversations[:2]]
    for text in texts:
        for size in (20, 3):
            payload = computed.encode(Context(text=text), size)
            assert len(payload) <= size
            ours, real = (text_of(codec.decode(codec.encode(Context(text=text), size))) for codec in lms)
            assert text.startswith(ours)
            assert len(real) <= len(ours)
            allowed = text_of(coder.decode(coder.encode(Context(text=text), size + 5)))
            assert len(ours) <= max(len(allowed), 4)
    pairs = arms.compared(computed, coder, texts[:1], (20, 10))
    assert 2 == len(pairs)
    assert all(ours >= real for ours, real in pairs)


def test_the_code_lengths_do_not_depend_on_blocks(lms, conversations, monkeypatch) -> None:
    """A text that is read block by block costs what it costs in one pass, and no more than a budget is looked at."""
    computed, coder = lms
    text = "\n\n".join(one.case.context for one in conversations[:6])
    whole = computed._coded(text, float("inf"))
    assert len(whole.ids) == len(whole.bits)
    assert abs(whole.bits[-1] - coder.code_length_bits(text)) < 20  # its end is open
    monkeypatch.setattr(arms, "BLOCK_TOKENS", 7)
    assert torch.allclose(torch.tensor(whole.bits), torch.tensor(computed._coded(text, float("inf")).bits), atol=1e-2)
    assert len(computed._coded(text, 100).bits) < len(whole.bits)


def test_a_stand_in_is_good_in_its_own_codec_only(lms) -> None:
    """Bytes that it did not make are refused; a whole text takes the bytes of its code, whatever room there is."""
    computed, coder = lms
    with pytest.raises(DecodeError, match="this very codec"):
        computed.decode(b"anything")
    payload = computed.encode(Context(text="no 7"), 300)
    assert "no 7" == text_of(computed.decode(payload))
    assert abs(len(payload) - coder.code_length_bits("no 7") / 8) <= 4


def test_zstd_says_something_in_any_budget(conversations) -> None:
    """Where no frame fits, the beginning goes as it is."""
    texts = [one.case.context for one in conversations]
    zstd = arms.Zstd.fit(texts * 4)
    for size in (1, 4, 60):
        assert texts[0].startswith(text_of(zstd.decode(zstd.encode(Context(text=texts[0]), size))))
    assert "u" == text_of(zstd.decode(zstd.encode(Context(text=texts[0]), 1)))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Models and data of a tiny pair."""
    root = tmp_path_factory.mktemp("home")
    for name, vocabulary, hidden, seed in (("smollm2", 300, 32, 1), ("gemma3", 320, 48, 2)):
        tokenizer = make_tokenizer(vocabulary)
        make_model(len(tokenizer), hidden, window=1024, seed=seed).save_pretrained(root / "models" / name)
        tokenizer.save_pretrained(root / "models" / name)
    write_split(root / "data", "train", 120)
    write_split(root / "data", "test", 24)
    return root


def untrained(recipe: Path, *, sender: Path, receiver: Path, data: Path, out: Path, **options: Any) -> Any:
    """Stands in for ``ilcp.train``: a codec of the topics of that file, which learned nothing."""
    assert recipe == Path(script.HERE) / "conversations" / "smollm2-gemma3.toml"
    usual = {"resume": False, "device": "cpu", "adapter": None, "steps": None, "minutes": 5.0}
    assert usual == options
    models = Models(*load_model(sender), *load_model(receiver))
    tiny = dict(width=32, heads=4, blocks=1, speller_width=32)
    torch.manual_seed(0)
    network = FactsCodec.untrained_for(models, tiny, list(read_jsonl(data)))
    ends = identify(models.sender, models.sender_tokenizer), identify(models.receiver, models.receiver_tokenizer)
    made: dict[str, Any] = {"steps": 3, "cases": {"validation": 9}}
    made["reader"] = {"before": {"exact": 0.1}, "after": {"exact": 0.9}, "questions": 64}
    ilcp.save(FactsCodec.from_network(network, *ends), out, training=made)
    return ilcp.load(out)


def start(monkeypatch: pytest.MonkeyPatch, home: Path, command: str, *words: str) -> None:
    """Calls the script as from a shell."""
    threads = ("--threads", "1") if command != "tables" else ()
    folders = [word for name in ("models", "data", "runs") for word in (f"--{name}", str(home / name))]
    line = [command, "smollm2-gemma3", *folders, *threads] if command != "tables" else [command]
    monkeypatch.setattr(sys, "argv", ["conversations.py", *line, *words])
    script.main()


def test_the_whole_way(home, monkeypatch, capsys) -> None:
    """Trained, measured, gone on with, and tabulated; the result has figures and no text of the data."""
    monkeypatch.setattr(ilcp, "train", untrained)
    monkeypatch.setattr(script.tables, "RESULTS", home / "results")
    start(monkeypatch, home, "tables")
    assert "Nothing is measured yet." in capsys.readouterr().out
    start(monkeypatch, home, "train", "--minutes", "5")
    few = ("--out", str(home / "results"), "--histories", "1", "2", "--n", "4", "--repetitions", "0")
    left = ("head-*", "tail-*", "zstd-*", "*-10", "*-40", "lm-1*", "*-100", "*-140", "*-160")
    start(monkeypatch, home, "measure", *few, "--without", *left, "verified-*", "literals-*")
    assert "4 cases of 1, 11 arms: about 0 minutes in all" in capsys.readouterr().out
    assert "verified-60" not in load_report(home / "runs" / "smollm2-gemma3" / "report-1.json").arms
    start(monkeypatch, home, "measure", *few, "--without", *left, "--check-lm", "1")
    assert "computed:" in capsys.readouterr().out
    report = load_report(home / "runs" / "smollm2-gemma3" / "report-1.json")
    assert {*script.CONTROLS, "true-facts", "message", "message-20", "lm-80", "lm-20"} <= report.arms.keys()
    assert {"verified-60", "literals-only-60"} <= report.arms.keys()
    file = home / "results" / "conversations-smollm2-gemma3.json"
    measured = json.loads(file.read_text(encoding="utf-8"))
    assert "Brno" not in json.dumps(measured)
    assert {"commit", "versions", "machine", "command", "models"} <= set(measured["provenance"])
    assert (7, 3) == (measured["seed"], measured["training"]["steps"])
    alone = measured["histories"]["1"]
    assert (4, 2) == (alone["n"], alone["n_new_services"])
    assert {"said", "said, new services", "said, all services"} <= set(alone["differences"]["message-20 - lm-20"])
    monkeypatch.setattr(script, "run", None)  # what is measured is not measured again
    start(monkeypatch, home, "measure", *few, "--without", *left)
    assert measured["histories"] == json.loads(file.read_text(encoding="utf-8"))["histories"]
    start(monkeypatch, home, "tables")
    said = capsys.readouterr().out
    assert "smollm2 to gemma3, histories of 2** (n = 4" in said
    assert "0.100 exact from the full text before, 0.900 after it" in said
    assert "| true-facts |" in said
    assert "| recovery, 80 bytes, seen services | 0.6 | 0.85 |" in said


def test_what_was_learned_is_no_case_that_was_watched_or_tested(monkeypatch, tmp_path) -> None:
    """``--learned`` asks about single conversations of the training's own split, and of no other run's."""
    cases = data.mixed(data.read(write_split(tmp_path, "all", 300)), 7)
    write_jsonl(tmp_path / "train.jsonl", cases)
    own = split(cases, validation=9, test=10, seed=5)
    made: dict[str, Any] = {"cases": {"training": len(own.training), "validation": 9, "test": 10}, "seed": 5}
    monkeypatch.setattr(script, "training_of", lambda codec: made)
    args = script.argparse.Namespace(runs=tmp_path)
    found = script.learned(args, tmp_path / "codec")
    assert [case for case in own.training if "+" not in case.id] == [one.case for one in found]
    assert all(one.seen for one in found)
    made["cases"]["training"] += 1
    with pytest.raises(SystemExit, match=f"expected the {len(own.training) + 1} cases that .*codec learned from"):
        script.learned(args, tmp_path / "codec")


def test_the_items_for_a_gpu_are_this_script(home, monkeypatch, tmp_path) -> None:
    """A training and a measurement of ``gpu.py`` leave what it asks for, and the figures where they are committed."""

    def trained(recipe: Path, *, out: Path, **options: Any) -> Any:
        codec = untrained(recipe, out=out, **options)
        (out / items.LOG).write_text(json.dumps({"step": 3, "validation_exact": {"text": 0.5}}) + "\n")
        return codec

    monkeypatch.setattr(ilcp, "train", trained)
    given = dict(pair="smollm2-gemma3", device="cpu", seed=7, minutes=5.0, work=tmp_path, results=tmp_path / "results")
    args = items.argparse.Namespace(**given, models=home / "models", data=home / "data", commit="abc")
    made = items.train(args)
    assert ({"step": 3, "validation_exact": {"text": 0.5}}, None) == (made["training"]["validation"], made["evidence"])
    monkeypatch.setattr(script, "LENGTHS", {1: (20,)})
    monkeypatch.setattr(items.conversations, "LENGTHS", {1: (20,)})
    monkeypatch.setattr(items, "WITHOUT", (*items.WITHOUT, "head-*", "tail-*", "zstd-*", "lm-*"))
    found = items.measure(args)
    assert (24, {"1": 24}) == (found["n"], found["histories"])
    record = json.loads((tmp_path / "results" / found["file"]).read_text(encoding="utf-8"))
    assert "abc" == record["provenance"]["commit"]
    assert {"sender", "receiver"} == set(made["models"]) == set(found["models"])


def test_a_case_that_fails_costs_itself_and_no_hours(home, monkeypatch, capsys) -> None:
    """The rest is measured and gone on with; what was measured is not measured again."""
    monkeypatch.setattr(ilcp, "train", untrained)
    start(monkeypatch, home, "train", "--minutes", "5")
    bad, score = next(read_jsonl(home / "data" / "test.jsonl")).context, Receiver.score

    def failing(receiver: Receiver, asked: Any, **options: Any) -> Any:
        asked = list(asked)
        if any(getattr(memory, "text", None) == bad for memory, *_ in asked):
            raise RuntimeError("too odd")
        return score(receiver, asked, **options)

    monkeypatch.setattr(Receiver, "score", failing)
    few = ("--histories", "1", "--n", "6", "--repetitions", "0", "--out", str(home / "out"))
    left = ("*-*[0-9]", "random", "zero", "continuous")
    start(monkeypatch, home, "measure", *few, "--without", *left)
    report = load_report(home / "runs" / "smollm2-gemma3" / "report-1.json")
    assert (5, ("test/0",)) == (report.n, report.left_out)
    assert "true-facts" in report.arms
    monkeypatch.setattr(script, "run", None)
    start(monkeypatch, home, "measure", *few, "--without", *left)
    assert "5 cases of 1" in capsys.readouterr().out


def test_true_facts_are_the_codec_s_memory_of_what_was_said(home) -> None:
    """A topic's words, the receiver's own embeddings of the value, a line break; what was not said is not there."""
    sides = {"sender": home / "models" / "smollm2", "receiver": home / "models" / "gemma3"}
    recipe = Path(script.HERE) / "conversations" / "smollm2-gemma3.toml"
    file = home / "data" / "train.jsonl"
    untrained(
        recipe,
        **sides,
        data=file,
        out=home / "codec",
        resume=False,
        steps=None,
        minutes=5.0,
        device="cpu",
        adapter=None,
    )
    pair = ilcp.load_pair(home / "codec", **sides, allow_unmeasured=True)
    cases = data.asked(data.read(home / "data" / "test.jsonl"))[:3]
    for case, memory in zip(cases, arms.true_facts(pair.receiver, cases), strict=True):
        said = sorted((topic, value) for q in case.questions if "said" in q.kind for topic, value in q.facts)
        rows = [value_tokens(pair.receiver.tokenizer, value)[0][:8] for _, value in said]
        vectors = vectors_of(memory)
        codec: Any = pair.receiver.codec
        names = [int(codec.network.speller.told[codec.network.topics.index(topic)]) for topic, _ in said]
        assert sum(names) + sum(map(len, rows)) + len(said) == len(vectors)
        assert torch.allclose(embed(pair.receiver.model, rows[0]).float(), vectors[names[0] : names[0] + len(rows[0])])


@pytest.mark.parametrize(
    ("goal", "figure", "said"),
    [
        (shown.Goal("x", 1, (), 0.6, 0.85), {"value": 0.7}, "must met, **aim missed by 0.150**"),
        (shown.Goal("x", 1, (), 0.6, 0.85), {"value": 0.5}, "**must missed by 0.100**, **aim missed by 0.350**"),
        (shown.Goal("x", 1, (), 0, None, "low"), {"value": 0.2, "low": -0.01}, "**must missed by 0.010**"),
        (shown.Goal("x", 1, (), 0, None, "low"), {"value": 0.2, "low": 0.0}, "**must missed by 0.000**"),
        (shown.Goal("x", 4, (), None, 0.5, below=True), {"value": 0.4}, "aim met"),
        (shown.Goal("x", 1, ()), {"value": 0.4}, "reported"),
        (shown.Goal("x", 1, (), 0.6), None, "not measured"),
    ],
)
def test_a_goal_is_met_or_missed_by_so_much(goal, figure, said: str) -> None:
    """A miss is said as a miss; an interval has to lie above its limit."""
    assert said == shown._judged(goal, figure)


def test_the_readme_shows_the_first_pair_beside_its_controls(tmp_path) -> None:
    """One conversation and four, each arm in its place; a dash where another case's short message was not measured."""
    assert shown.front(tmp_path, script.tables.table, script.tables.number) == shown.NOTHING
    names = ("text", "none", "mismatched", "message", "message-80", "message-20", "lm-80", "lm-20")
    sizes = {
        size: {
            name: {
                kind: {"exact": {"value": at / 10 + base + more, "n": 5}}
                for kind, more in ((shown.EVERY, 0), (shown.SAID, 0.05))
            }
            for at, name in enumerate(names)
        }
        for size, base in (("1", 0.0), ("4", 0.01))
    }
    found = {"histories": {size: {"figures": {"arms": made}} for size, made in sizes.items()}, "pair": shown.FIRST_PAIR}
    (tmp_path / f"conversations-{shown.FIRST_PAIR}.json").write_text(json.dumps(found))
    made = shown.front(tmp_path, script.tables.table, script.tables.number)
    assert "four conversations in a row, 80 bytes (n = 5)" in made
    assert "| message | 0.350 | 0.300 | 0.500 | 0.410 |" in made
    assert "| another's message | 0.250 | 0.200 | – | – |" in made


def test_times_measured_later_stand_where_the_pairs_own_are_missing(tmp_path) -> None:
    """Those of four conversations, of a codec that was trained later; the pair's own stay."""

    def written(kind: str, **by_size: float) -> None:
        arms = {"text": {shown.SAID: {"joint": {"value": 0.9}}}} if kind == "times" else {}
        figures = {size: {"cost": {shown.TIME: {"value": value}}, "arms": arms} for size, value in by_size.items()}
        cost = {size: {"figures": made} for size, made in figures.items()}
        record = {"pair": shown.FIRST_PAIR, "histories": {size.strip("n"): made for size, made in cost.items()}}
        (tmp_path / f"{kind}-{shown.FIRST_PAIR}.json").write_text(json.dumps(record))

    def said() -> list[str]:
        made = shown.goals(tmp_path, script.tables.table, lambda figure: str((figure or {}).get("value", "–")))
        return [line.split("|")[4].strip() for line in made.split("\n") if line.startswith("| first token")]

    written("conversations", n1=0.5)
    assert said() == ["0.5", "–"]
    written("times", n1=0.7, n4=0.3)
    assert said() == ["0.5", "0.3"]
    made = shown.goals(tmp_path, script.tables.table, lambda figure: str((figure or {}).get("value", "–")))
    assert "0.9" not in [cell.strip() for line in made.split("\n") for cell in line.split("|")[4:5]]


def test_the_times_are_taken_of_one_and_of_four(home, monkeypatch) -> None:
    """Documents up to a length that small machines can read, unless no times are asked for."""
    asked: list[Any] = []
    monkeypatch.setattr(script, "cost", lambda *ends, **options: asked.append(options))
    monkeypatch.setattr(script, "save_report", lambda report, keep: None)
    pair, cases = type("Pair", (), dict(sender=None, receiver=type("R", (), {"codec": None}))), data.asked([])
    monkeypatch.setattr(
        script, "kept", lambda *_: type("Report", (), {"arms": {}, "cost": None, "kept": staticmethod(list)})()
    )
    monkeypatch.setattr(script, "replace", lambda report, **changed: report)
    args = type("Args", (), dict(runs=home, pair="x", seed=7, without=[], learned=False, times=True, repetitions=60))
    cases = data.asked(data.read(home / "data" / "test.jsonl"))
    for size in (1, 2, 4):
        script.measured(pair, cases, size, {}, args)
    assert [60, 60] == [options["n"] for options in asked]
    assert {2048} == {options["longest_tokens"] for options in asked}


@pytest.mark.parametrize("pair", script.PAIRS)
def test_the_committed_recipes_are_recipes(pair: str) -> None:
    """Each pair has one, which names its models and tunes the receiver."""
    from ilcp.training.config import read_config

    config = read_config(Path(script.HERE) / "conversations" / f"{pair}.toml")
    assert pair == "-".join(Path(side).name for side in (config.sender, config.receiver))
    assert config.adapt_receiver
    assert config.hyperparameters(True, facts=True).minutes <= 180


def test_without_the_data_it_says_where_they_are_from(home, monkeypatch, capsys) -> None:
    """No training without files, and no trace of a traceback."""
    with pytest.raises(SystemExit):
        start(monkeypatch, home, "train", "--data", str(home / "nowhere"))
    assert "benchmarks/README.md says where it is from" in capsys.readouterr().err
