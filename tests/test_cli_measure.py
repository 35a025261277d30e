"""Several codecs in one ``ilcp measure``: presets by name, the same questions, one axis."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

import ilcp
from ilcp.cli import app
from ilcp.cli.measure import _places
from ilcp.cli.named import file_names, is_preset, pairs_of
from ilcp.embedded import HERE, load_pair
from ilcp.errors import ConfigError
from ilcp.measure import load_report, save_report
from ilcp.tasks import case_files
from ilcp.tasks.load import Task, task
from ilcp_codecs.kv import CompactCodec, Int4Codec, PcaCodec

PAIR = load_pair()
MODEL, TOKENIZER = PAIR.receiver.model, PAIR.receiver.tokenizer
NO_ENDS: dict[str, Any] = {"sender": None, "receiver": None, "device": "cpu", "allow_download": False}


def run(*words: str) -> Any:
    """Calls the command line; what it raises is in the result."""
    return CliRunner().invoke(app, ["measure", *words, "--repetitions", "0"])


def written(folder: Path, name: str, seed: int, n: int) -> Path:
    """A file of short cases with a few look-ups each."""
    lines = []
    for case in case_files("validation", seed, n, facts=4):
        asked = [question for question in case.questions if question.kind == "lookup"][:4]
        lines.append({"context": case.context, "questions": [{"question": q.text, "answer": q.answer} for q in asked]})
    file = folder / name
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Three of them."""
    return written(tmp_path, "cases.jsonl", 21, 3)


def test_several_codecs_answer_the_same_questions_and_lie_on_one_axis(cases: Path, tmp_path: Path, monkeypatch) -> None:
    """Each has a report of its own; text and nothing are asked once; what is there already is not measured again."""
    words = ("embedded", "kv-int4", "kv-compact:50%", "--task", str(cases), "--json", str(tmp_path / "out"))
    done = run(*words, "--png", str(tmp_path / "plots"))
    assert done.exception is None, done.output
    assert {"embedded.json", "kv-int4.json", "kv-compact-50%.json"} == {f.name for f in (tmp_path / "out").iterdir()}
    latent, cache, compact = (load_report(tmp_path / "out" / f"{n}.json") for n in file_names(words[:3]))
    assert ("vae", "kv-int4", "kv-compact") == tuple(report.codec["name"] for report in (latent, cache, compact))
    assert {"text", "none", "message", "mismatched"} == set(cache.arms)
    for report in (cache, compact):
        assert [latent.arms[name] for name in ("text", "none")] == [report.arms[name] for name in ("text", "none")]
        assert f"text and none as in the report of vae {latent.codec['codec_id']}" in report.notes
    assert min(compact.arms["message"].wire_bytes) < min(cache.arms["message"].wire_bytes)
    assert "Hand over" in done.output
    assert all(f"\n{name}\n" in done.output for name in words[:3])
    assert {"recovery.png", "log-likelihood.png"} == {file.name for file in (tmp_path / "plots").iterdir()}
    monkeypatch.setattr("ilcp.measure.run", lambda *_, **__: pytest.fail("measured again"))
    again = run(*words)
    assert again.exception is None, again.output
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run(*words, "--seed", "8")


def test_of_caches_among_other_codecs_no_hops_are_measured(tmp_path: Path) -> None:
    """What only some of the codecs can do is no reason to refuse the others; alone, a cache is refused for it."""
    words = ("--task", "case-files", "--n", "2", "--hops", "1")
    done = run("embedded", "kv-int4", *words, "--json", str(tmp_path / "out"))
    assert done.exception is None, done.output
    latent, cache = (load_report(tmp_path / "out" / f"{name}.json") for name in ("embedded", "kv-int4"))
    assert "forwarded-1" in latent.arms
    assert {"text", "none", "message", "mismatched"} == set(cache.arms)
    alone = run("kv-int4", *words, "--receiver", str(HERE / "receiver"), "--json", str(tmp_path / "one.json"))
    assert "expected no hops and no budgets for kv-int4" in str(alone.exception)


def test_a_preset_is_fitted_to_the_samples_named(cases: Path, tmp_path: Path, monkeypatch) -> None:
    words = ("kv-pca:4bit", "--task", str(cases), "--receiver", str(HERE / "receiver"))
    lacking = run(*words)
    assert "expected texts to fit kv-pca to, got none" in str(lacking.exception)
    monkeypatch.setattr("ilcp.measure.run", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(pytest.fail.Exception, match="asked"):
        run(*words, "--samples", str(written(tmp_path, "more.jsonl", 22, 12)))


def test_what_no_codec_has_part_in_is_asked_anew_of_another_receiver(cases: Path) -> None:
    """Answers are taken over from the same receiver and the same questions only."""
    (mine,) = pairs_of(
        ["kv-int4"], **NO_ENDS | {"receiver": str(HERE / "receiver")}, task=task(str(cases), n=3, seed=0)
    )
    (other,) = pairs_of(["kv-int4"], **NO_ENDS | {"receiver": str(HERE / "sender")}, task=task(str(cases), n=3, seed=0))
    found = task(str(cases), n=3, seed=0).cases
    options: dict[str, Any] = {"task": "x", "repetitions": 0}
    first = ilcp.measure.run(mine.sender, mine.receiver, found, **options)
    for pair, asked in ((other, found), (mine, found[:2])):
        report = ilcp.measure.run(pair.sender, pair.receiver, asked, alike=[first], **options)
        assert () == report.notes
        assert first.arms["none"] != report.arms["none"]
    second = ilcp.measure.run(mine.sender, mine.receiver, found, alike=[first], arms=["none", "message"], **options)
    assert {"none", "message"} == set(second.arms)


def test_a_preset_stands_on_the_receiver_of_the_codec_beside_it(cases: Path) -> None:
    asked = task(str(cases), n=3, seed=0)
    made, codec = pairs_of(["kv-int8", "embedded"], **NO_ENDS, task=asked)
    assert made.receiver.model is made.sender.model is codec.receiver.model
    assert made.sender.codec.trained.receiver == codec.sender.codec.trained.receiver
    (alone,) = pairs_of(["kv-int8"], **NO_ENDS | {"sender": str(HERE / "receiver")}, task=asked)
    assert alone.sender.codec.trained == made.sender.codec.trained
    with pytest.raises(ConfigError, match="expected a model for kv-int8, got none: name it with --receiver"):
        pairs_of(["kv-int8"], **NO_ENDS, task=asked)


def test_budgets_are_the_methods_own_words(cases: Path) -> None:
    texts = [case.context for case in case_files("train", 3, 24)]
    numbers = sum(
        layer.heads * (layer.key_width + layer.value_width) for layer in Int4Codec.of(MODEL, TOKENIZER).shape.layers
    )
    fits = {name: PcaCodec.for_model(MODEL, TOKENIZER, name, texts=texts) for name in ("", "2bit", "4bit", "100")}
    spent = {
        name: sum(int(each.sum()) for key, each in codec.tensors.items() if key.endswith("bits")) / 8
        for name, codec in fits.items()
    }
    assert spent == {"": numbers / 4, "2bit": numbers / 4, "4bit": numbers / 2, "100": 100}
    assert 0.05 == CompactCodec.for_model(MODEL, TOKENIZER, "5%", questions=["Who?"]).share
    assert 0.1 == CompactCodec.for_model(MODEL, TOKENIZER, questions=["Who?"]).share
    for kind, budget, said in (
        (PcaCodec, "3bit", "expected 4bit, 2bit, 1bit or bytes a token behind kv-pca:, got '3bit'"),
        (PcaCodec, "9" * 5000, "or bytes a token behind kv-pca:, got '9"),
        (CompactCodec, "0.1", "expected a share of the tokens, 1% to 100%, behind kv-compact:, got '0.1'"),
        (CompactCodec, "0%", "expected a share of the tokens, 1% to 100%"),
        (CompactCodec, "9" * 5000 + "%", "expected a share of the tokens, 1% to 100%"),
        (Int4Codec, "2", "expected kv-int4 alone, got kv-int4:2"),
    ):
        with pytest.raises(ConfigError, match=said):
            kind.for_model(MODEL, TOKENIZER, budget, texts=texts, questions=["Who?"])
    with pytest.raises(ConfigError, match="expected texts to fit kv-pca to, got none"):
        PcaCodec.for_model(MODEL, TOKENIZER)


def test_a_budget_is_refused_before_a_model_is_loaded(cases: Path, monkeypatch) -> None:
    for place in ("ilcp.embedded.load_pair", "ilcp.models.loading.load_model"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("loaded"))
    for names in (["embedded", "kv-pca:3bit"], ["kv-pca:3bit"]):
        with pytest.raises(ConfigError, match="expected 4bit, 2bit, 1bit or bytes a token behind kv-pca:"):
            pairs_of(names, **NO_ENDS | {"receiver": str(HERE / "receiver")}, task=task(str(cases), n=3, seed=0))


def test_a_preset_asks_no_more_questions_than_its_codec_takes() -> None:
    """The most frequent of a task come first; what asks nothing, as continuations do, is none."""
    many = CompactCodec.for_model(MODEL, TOKENIZER, questions=["", *(f"Who is {n}?" for n in range(300))])
    assert [f"Who is {n}?" for n in range(256)] == list(many.questions)
    with pytest.raises(ConfigError, match="expected 1 to 256 questions, got 0"):
        CompactCodec.for_model(MODEL, TOKENIZER, questions=["", ""])


def test_a_saved_cache_stands_on_the_receiver_beside_it(cases: Path, tmp_path: Path, monkeypatch) -> None:
    """Where it is that receiver's; both models need not be named for it. Of another receiver it is refused at once."""
    asked = task(str(cases), n=3, seed=0)
    for name, side in (("mine", "receiver"), ("other", "sender")):
        (alone,) = pairs_of(["kv-int4"], **NO_ENDS | {"receiver": str(HERE / side)}, task=asked)
        ilcp.save(alone.sender.codec, tmp_path / name)
    made, codec = pairs_of([str(tmp_path / "mine"), "embedded"], **NO_ENDS, task=asked)
    assert made.receiver.model is made.sender.model is codec.receiver.model
    (other,) = pairs_of([str(tmp_path / "other")], **NO_ENDS | {"receiver": str(HERE / "sender")}, task=asked)
    load = ilcp.embedded.load_pair
    monkeypatch.setattr(
        ilcp.embedded, "load_pair", lambda name, **options: load(name, **options) if not name else other
    )
    with pytest.raises(ConfigError, match=r"expected codecs of one receiver, got embedded and .*other, whose"):
        pairs_of(["embedded", str(tmp_path / "other")], **NO_ENDS, task=asked)


def test_another_runs_file_is_found_before_the_first_codec_is_measured(
    cases: Path, tmp_path: Path, monkeypatch
) -> None:
    """Of all codecs: one that is no report, and what an interrupted run of another measurement left."""
    words = ("embedded", "kv-int4", "--task", str(cases), "--json", str(tmp_path / "out"))
    assert run(*words).exception is None
    monkeypatch.setattr("ilcp.measure.run", lambda *_, **__: pytest.fail("measured"))
    file = tmp_path / "out" / "kv-int4.json"
    whole = load_report(file)
    for content, said in (
        ("no report", "expected a report as JSON"),
        (replace(whole, complete=False, seed=8), "expected an interrupted run of this measurement in"),
    ):
        file.write_text(content) if isinstance(content, str) else save_report(content, file)
        done = run(*words)
        assert said in str(done.exception), done.output


def test_a_finished_report_is_taken_for_the_same_command_only(cases: Path, tmp_path: Path, monkeypatch) -> None:
    """Other options are another measurement, whatever they are."""
    words = ("embedded", "kv-int4", "--task", str(cases), "--json", str(tmp_path / "out"))
    assert run(*words).exception is None
    monkeypatch.setattr("ilcp.measure.run", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr("ilcp.measure.figures.sys.argv", ["ilcp", "another", "command"])
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run(*words)


def test_without_json_nothing_is_left_but_where_a_later_codec_fails(cases: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("embedded", "kv-int4", "--task", cases.name)
    measured = ilcp.measure.run

    def failing(sender: Any, *ends: Any, **options: Any) -> Any:
        if sender.codec.spec.reads == "cache":
            raise RuntimeError("too odd")
        return measured(sender, *ends, **options)

    with monkeypatch.context() as patched:
        patched.setattr("ilcp.measure.run", failing)
        done = run(*words)
    assert "too odd" in str(done.exception)
    (left,) = (file.name for file in tmp_path.glob("*.unfinished.json"))
    assert left.startswith("embedded-")
    assert f"{left} holds what was measured" in " ".join(done.output.split())
    done = run(*words)
    assert done.exception is None, done.output
    assert {"cases.jsonl"} == {file.name for file in tmp_path.iterdir()}


def test_a_companion_of_two_codecs_has_two_files() -> None:
    """A preset stands on the receiver beside it: with another codec it is another measurement."""
    first, second = (_places([codec, "kv-int4"], None, ()) for codec in ("a", "b"))
    assert first[1] != second[1]


def test_no_language_model_is_copied_for_a_cache(cases: Path, monkeypatch) -> None:
    """The text of as many bytes as a cache is the whole text: no arm needs the codecs that cut it."""
    (pair,) = pairs_of(
        ["kv-int4"], **NO_ENDS | {"receiver": str(HERE / "receiver")}, task=task(str(cases), n=3, seed=0)
    )
    monkeypatch.setattr(sys.modules["ilcp.measure.run"], "equal_texts", lambda *_: pytest.fail("made"))
    assert ilcp.measure.run(pair.sender, pair.receiver, task(str(cases), n=3, seed=0).cases, task="x", repetitions=0)


def test_alike_are_reports(cases: Path) -> None:
    (pair,) = pairs_of(
        ["kv-int4"], **NO_ENDS | {"receiver": str(HERE / "receiver")}, task=task(str(cases), n=3, seed=0)
    )
    found = task(str(cases), n=3, seed=0).cases
    for wrong in ([None], "report"):
        with pytest.raises(ConfigError, match="expected reports in"):
            ilcp.measure.run(pair.sender, pair.receiver, found, task="x", repetitions=0, alike=cast(Any, wrong))
    bare = ilcp.measure.run(pair.sender, pair.receiver, found, task="x", repetitions=0)
    for other in (
        replace(bare, provenance={"commit": "x"}),
        replace(bare, answers_end=False),
        replace(bare, provenance={**bare.provenance, "commit": "x"}),
    ):
        made = ilcp.measure.run(
            pair.sender, pair.receiver, found, task="x", repetitions=0, alike=[other], arms=["none"]
        )
        wanted = [] if other.provenance == {"commit": "x"} or not other.answers_end else ["by other code"]
        assert wanted == [note[-len("by other code") :] for note in made.notes]


def test_few_of_many_samples_are_read(monkeypatch) -> None:
    """A task may have thousands; a basis needs some dozens."""
    read: list[int] = []
    monkeypatch.setattr(PcaCodec, "fit", lambda *_, bytes_per_token, **__: read.append(len(_[2])))
    PcaCodec.for_model(MODEL, TOKENIZER, texts=("text" for _ in range(10_000)))
    assert [64] == read


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("kv-int4",), "expected --task beside kv-int4"),
        (("kv-int4", "embedded", "--n", "1"), "expected n to be at least 2"),
        (("kv-int4", "--task", "case-files"), "expected a model for kv-int4, got none"),
        (("embedded", "kv-int4:9", "--task", "case-files", "--n", "2"), "expected kv-int4 alone, got kv-int4:9"),
        (("kv-align", "--task", "case-files", "--receiver", str(HERE / "receiver")), "expected two models to align"),
        (("embedded", "embedded"), "expected codecs of different names, got 'embedded' twice"),
        (("embedded", "kv-int4", "--html", "x.html"), "expected one codec for --html, got 2"),
        (("kv-int4", "--task", "case-files", "--attach"), "expected a codec's folder to --attach, got 'kv-int4'"),
        (("embedded", "--json", str(HERE)), "expected a file for --json of one codec, got a folder"),
        (("embedded", "no-such-codec", "--n", "2"), "expected a codec's folder with a config.json"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(words, said, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ilcp.measure.run", lambda *_, **__: pytest.fail("measured"))
    done = run(*words)
    assert isinstance(done.exception, ConfigError), done.output
    assert said in str(done.exception)
    assert [] == list(tmp_path.iterdir())


def test_samples_are_texts_that_nobody_is_asked_about(cases: Path, tmp_path: Path) -> None:
    more = written(tmp_path, "more.jsonl", 22, 5)
    loaded = task(str(cases), n=3, seed=0, samples=more)
    assert 5 == len(list(loaded.samples()))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ConfigError, match=r"expected cases in .*empty\.jsonl, got none"):
        task(str(cases), n=3, seed=0, samples=tmp_path / "empty.jsonl")
    with pytest.raises(ConfigError, match=r"expected samples that are no text of .*cases\.jsonl, got 3 in"):
        task(str(cases), n=3, seed=0, samples=cases)
    assert [] == list(Task("x", (), True).samples())


def test_a_folder_of_that_name_goes_before_a_preset(monkeypatch, tmp_path: Path) -> None:
    assert is_preset("kv-int4")
    assert not is_preset("text-head")
    assert not is_preset("embedded")
    (tmp_path / "kv-int4").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_preset("kv-int4")
    assert ["a-b", "codec-1"] == file_names(["a:b", "somewhere/codec 1/"])


def test_asking_freely_without_a_file_of_accounts_is_refused() -> None:
    """Before anything is loaded."""
    assert "--faithfulness FILE beside --freely" in str(run("embedded", "--freely").exception)
