"""One model's cache out of another's: the map that is found, what it is refused for, and the command that finds it."""

import itertools
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from typer.testing import CliRunner

import ilcp
from ilcp import Receiver, Sender
from ilcp.cli import app
from ilcp.codec import Context
from ilcp.codec.memory import CacheMemory
from ilcp.embedded import HERE, load_pair
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError, StorageError, TrainingError
from ilcp.models.adapter import new_adapter
from ilcp.models.kv import read_kv
from ilcp.models.rope import ropes_of
from ilcp.tasks import Case, Question, case_files
from ilcp.tasks.canaries import LASTS, NAMES, canaries
from ilcp.tasks.written import write_jsonl
from ilcp.training.align import Alignment, align, taught
from ilcp_codecs.kv import AlignedCodec, Aligner, ExactCodec, Int8Codec
from ilcp_codecs.kv.aligning import Step, _paired, _sources
from ilcp_codecs.kv.container import Layer
from ilcp_codecs.kv.ends import Behind
from ilcp_codecs.kv.ridge import Sums
from tests.families import SLIDING_TOKENS, build
from tests.helpers import make_tokenizer
from tests.test_kv import QUESTION, TEXT, KvContract

TOKENIZER, OTHER = make_tokenizer(300), make_tokenizer(330)
TEXTS = [f"Case {number}: {TEXT} Nobody but {number * 7} knows why." for number in range(12)]
CASES = [Case(text, text, (Question(QUESTION, "Bergen"),)) for text in TEXTS]


def aligner(
    sender: str = "llama", receiver: str = "qwen3", vocabulary: int = len(TOKENIZER), **options: Any
) -> Aligner:
    """An aligner of two tiny models with different tokenizers."""
    ends = build(sender, vocabulary), TOKENIZER, build(receiver, len(OTHER), hidden=48, layers=3, seed=1), OTHER
    return Aligner(*ends, **options)


def fitted(sender: str = "llama", receiver: str = "qwen3", **options: Any) -> Aligner:
    """The same, fitted."""
    made = aligner(sender, receiver, **options)
    made.fit(TEXTS)
    return made


class TestAligned(KvContract):
    """The codec keeps the contract."""

    @pytest.fixture
    def codec(self) -> Any:
        """From a tiny Llama to a tiny Qwen 3."""
        return fitted().codec()


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2"])
def test_a_model_aligned_with_itself_gives_its_own_cache(family: str) -> None:
    """Layers, heads, keys, values and positions each find their own place again."""
    model = build(family, len(TOKENIZER), window=512)
    same = Aligner(model, TOKENIZER, model, TOKENIZER, tokens=SLIDING_TOKENS - 1)
    same.fit([" ".join(case.context.split()[:40]) for case in case_files("train", 0, 60)])
    kv = read_kv(model, list(range(2, 14)), 3, ropes_of(model))
    mapped = same.codec().mapped(kv)
    own = kv.at(None)
    for found, expected in zip((*mapped.keys, *mapped.values), (*own.keys, *own.values), strict=True):
        torch.testing.assert_close(found, expected, atol=0.1 * float(expected.abs().max()), rtol=0.1)


def test_each_token_is_paired_with_the_last_that_ends_no_later() -> None:
    assert _paired([2, 3, 7, 9], [3, 5, 7, 9]) == [(1, 0), (2, 2), (3, 3)]
    assert _paired([2, 4, 6, 8], [2, 5]) == [(0, 0), (1, 0)]  # the others were cut, or stop earlier
    assert _paired([5], [9]) == []


def test_the_closed_form_is_ridge_regression_of_any_number_of_parts() -> None:
    torch.manual_seed(0)
    x, true = torch.randn(400, 6) * torch.tensor([1.0, 5, 0.2, 1, 1, 1]) + 1000, torch.randn(6, 4)
    y = x @ true + 7
    sums = Sums()
    for part in range(0, 400, 90):
        sums.add(x[part : part + 90], y[part : part + 90])
    sums.add(x[:0], y[:0])
    found = sums.map()
    weight, bias = found.folded()
    spread = (y - y.mean(0)).abs().mean()
    with torch.no_grad():
        assert float((found(x) - y).abs().mean()) < 0.02 * float(spread)  # ridge takes one part in a hundred
    torch.testing.assert_close(x @ weight + bias, found(x).detach(), rtol=1e-3, atol=0.05)


def test_the_second_step_moves_the_map_towards_what_the_receiver_says_and_nothing_else() -> None:
    made = fitted()
    model = made.receiver.model
    before = {name: each.clone() for name, each in model.state_dict().items()}
    wanted, kind = [each.requires_grad for each in model.parameters()], model.config._attn_implementation
    told: list[Step] = []
    for each in (model.train(), made.sender.model.train()):
        assert each.training
    assert made.tune(CASES, minutes=9, steps=30, every=4, told=told.append) == 30
    assert [step.steps for step in told] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert told[-1].kl < 0.7 * told[0].kl
    assert model.training
    assert made.sender.model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert [each.requires_grad for each in model.parameters()] == wanted
    assert model.config._attn_implementation == kind


def test_a_lower_learning_rate_moves_the_map_less() -> None:
    moved = []
    for rate in (None, 2e-5):
        made = fitted()
        before = made.codec().tensors["weight.0"].clone()
        made.tune(CASES, minutes=9, steps=3, learning_rate=rate)
        moved.append(float((made.codec().tensors["weight.0"] - before).norm()))
    assert 10 * moved[1] < moved[0]


def test_what_the_second_step_sees_is_what_the_receiver_says_behind_the_memory() -> None:
    """Its logits of several memories side by side, of unequal length, are those of a receiver's own calls."""
    made = fitted("llama", "gemma3_text")
    codec = made.codec()
    receiver = Receiver(made.receiver.model, OTHER, ExactCodec.of(made.receiver.model, OTHER), allow_unmeasured=True)
    read = made.sender.read([TEXT, TEXT[:30]], 99)
    memories = [codec.mapped(kv) for kv, _ in read]
    behind = Behind(made.receiver)
    asked = [[made._asked(QUESTION, "Bergen"), made._asked("Who?", "Mara")], [made._asked("Why?", "expired")]]
    given = [(list(zip(kv.keys, kv.values, strict=True)), kv.tokens) for kv in memories]
    with torch.no_grad():
        logits = behind.logits(given, asked)
    labels = [token for own in asked for _, answer in own for token in answer]
    found = (-torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")).tolist()
    items = [(0, QUESTION, "Bergen"), (0, "Who?", "Mara"), (1, "Why?", "expired")]
    scores = receiver.score([(CacheMemory(memories[at]), question, answer) for at, question, answer in items])
    expected = [nats for score in scores for nats in score.token_nats]
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_message_crosses_and_is_the_receivers_alone() -> None:
    made = fitted()
    codec = made.codec()
    sender = Sender(made.sender.model, TOKENIZER, codec)
    receiver = Receiver(made.receiver.model, OTHER, codec, allow_unmeasured=True)
    memory = receiver.decode(sender.encode(TEXT))
    assert isinstance(memory, CacheMemory)
    assert memory.kv.tokens == len(TOKENIZER(TEXT).input_ids)
    assert receiver.generate(memory, QUESTION, max_new_tokens=3) == receiver.generate(
        memory, QUESTION, max_new_tokens=3
    )
    for model, tokenizer in ((made.receiver.model, OTHER), (build("llama", 300, seed=5), TOKENIZER)):
        with pytest.raises(IdentityError, match="sender"):
            Sender(model, tokenizer, codec)
    with pytest.raises(IdentityError, match="receiver"):
        Receiver(made.sender.model, TOKENIZER, codec, allow_unmeasured=True)
    own = Int8Codec.of(made.receiver.model, OTHER)
    with pytest.raises(DecodeError, match="expected a cache by kv-align"):
        codec.decode(own.encode(Context(kv=codec.mapped(made.sender.read([TEXT], 99)[0][0]))))


def test_other_caches_than_the_senders_are_refused() -> None:
    made = fitted(tokens=20)
    codec = made.codec()
    other = read_kv(made.receiver.model, list(range(2, 9)), 0, ropes_of(made.receiver.model))
    with pytest.raises(EncodeError, match="this codec's model"):
        codec.encode(Context(kv=other))
    long = read_kv(made.sender.model, list(range(2, 30)), 0, ropes_of(made.sender.model))
    with pytest.raises(EncodeError, match="at most 20 tokens"):
        codec.encode(Context(kv=long))


def test_layers_that_forget_are_no_sources_where_others_are() -> None:
    assert {one for own in aligner("gemma3_text").sources for one in own} == {1}
    short = aligner("gemma3_text", tokens=SLIDING_TOKENS - 1)
    assert {one for own in short.sources for one in own} == {0, 1}
    windowed = aligner("mistral")
    assert windowed.tokens == SLIDING_TOKENS - 1


def test_each_layer_is_made_of_those_as_deep_as_there_are_features_for() -> None:
    wide = [Layer(8, 64, 64, 0, 0)] * 9  # 1,024 features each
    assert _sources(wide, wide[:3], 99) == [(1,), (4,), (7,)]
    narrow = [Layer(4, 64, 64, 0, 0)] * 9  # three times as many layers fit
    assert _sources(narrow, wide[:3], 99) == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]


def test_a_case_is_held_where_question_and_answer_have_room_behind_it_and_some_is_spare() -> None:
    made = aligner()
    case = CASES[0]
    text = max(len(tokenizer(case.context).input_ids) for tokenizer in (TOKENIZER, OTHER))
    suffix, answer = made._asked(QUESTION, "Bergen")
    needed = len(made.receiver.prefix) + text + len(suffix) + len(answer) + 32
    for window, held in ((needed, True), (needed - 1, False)):
        receiver = build("qwen3", len(OTHER), hidden=48, layers=3, window=window)
        assert Aligner(build("llama", len(TOKENIZER)), TOKENIZER, receiver, OTHER).holds(case) is held


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: aligner("gpt2"), "sender whose keys can be turned"),
        (lambda: aligner("llama", "gpt2"), "receiver whose keys can be turned"),
        (lambda: aligner(tokens=0), "tokens from 1 to 2"),
        (lambda: aligner("mistral", tokens=100), f"tokens from 1 to {SLIDING_TOKENS - 1}"),
        (lambda: AlignedCodec.of(build("llama", 300), TOKENIZER), "two models to align"),
        (lambda: fitted().tune([], minutes=1), "a case with questions"),
        (lambda: fitted().tune([Case("a", TEXT, ())], minutes=1), "a case with questions"),
        (lambda: fitted().tune(cast(Any, ["text"]), minutes=1), "a case with questions"),
        (lambda: fitted().tune(CASES, minutes=float("nan")), "above 0"),
        (lambda: fitted().tune(CASES, minutes=1, every=0), "above 0"),
        (lambda: fitted().tune(CASES, minutes=1, steps=0), "above 0"),
        (lambda: fitted().tune(CASES, minutes=1, learning_rate=0.0), "a learning rate between 0 and 1, got 0.0"),
        (lambda: Aligner(build("llama", 300, torch.float64), TOKENIZER, build("llama", 300), TOKENIZER), "float64"),
        (lambda: aligner().fit(TEXTS[:1]), "3 tokens|texts of 192 tokens or more"),
        (lambda: aligner().fit("one text"), "texts in a list"),
        (lambda: aligner().fit(["", "a"]), "text 0"),
        (lambda: aligner(vocabulary=290), "tokenizer of at most 290 tokens"),
        (lambda: aligner().codec(), "call fit first"),
        (lambda: aligner().tune(CASES, minutes=1), "call fit first"),
    ],
)
def test_what_cannot_be_aligned_is_refused_by_name(make: Any, said: str) -> None:
    with pytest.raises((ConfigError, EncodeError), match=said):
        make()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda settings: settings.update(sources=[[0]] * 3), StorageError),
        (lambda settings: settings.update(sources=[[0, 9]] * 3), StorageError),
        (lambda settings: settings.update(sources=[[True, 1]] * 3), StorageError),
        (lambda settings: settings.update(sources=[[1, 0]] * 3), IdentityError),
        (lambda settings: settings.update(dtype="int8"), StorageError),
        (lambda settings: settings["gives"].update(layers=settings["gives"]["layers"][:2]), StorageError),
        (lambda settings: settings.pop("reads"), StorageError),
        (lambda settings: settings.update(more=1), StorageError),
    ],
)
def test_a_folder_of_other_settings_is_refused(change: Any, kind: Any, tmp_path: Path) -> None:
    ilcp.save(fitted().codec(), tmp_path / "codec")
    config = tmp_path / "codec" / "config.json"
    record = json.loads(config.read_text())
    change(record["settings"])
    config.write_text(json.dumps(record))
    with pytest.raises(kind):
        ilcp.load(tmp_path / "codec")


def test_a_folder_keeps_the_map_bit_by_bit(tmp_path: Path) -> None:
    made = fitted()
    codec = made.codec()
    ilcp.save(codec, tmp_path / "codec")
    loaded = ilcp.load(tmp_path / "codec")
    assert isinstance(loaded, AlignedCodec)
    context = Context(kv=made.sender.read([TEXT], 99)[0][0])
    assert loaded.encode(context) == codec.encode(context)
    assert loaded.trained == codec.trained


def test_canaries_bind_the_same_things_otherwise() -> None:
    """In a whole test another case's text has every word of this one's, and is wrong about what this one asks."""
    cases = list(itertools.islice(canaries("test", 3), LASTS["test"]))
    assert len({case.context for case in cases}) == len(cases)
    assert len({frozenset(re.findall(r"\w+", case.context)) for case in cases}) == 1
    for case, other in itertools.pairwise(cases):
        said = case.questions[0].answer
        assert said in case.context.splitlines()
        assert said not in other.context.splitlines()
        assert said in (case.questions[0].choices or ())
    assert cases == list(itertools.islice(canaries("test", 3), len(cases)))
    assert not {*NAMES["train"].split()} & {*NAMES["test"].split()}
    lessons = list(itertools.islice(canaries("train", 3), 40))
    assert len({frozenset(re.findall(r"\w+", case.context)) for case in lessons}) == 10


def test_who_binds_nothing_knows_no_canary() -> None:
    """A score that any text of the same words would bring is level with that of another case's text."""
    cases = list(itertools.islice(canaries("test", 5), 100))
    words = [{*case.context.split()} for case in cases]
    own = [len(words[at] & {*case.questions[0].answer.split()}) for at, case in enumerate(cases)]
    other = [len(words[(at + 1) % 100] & {*case.questions[0].answer.split()}) for at, case in enumerate(cases)]
    assert own == other


@pytest.fixture
def dossiers(tmp_path: Path) -> Path:
    """Cases that both embedded models can read."""
    file = tmp_path / "cases.jsonl"
    write_jsonl(file, case_files("train", 5, 160))
    return file


def test_the_command_leaves_a_measured_codec_that_carries_facts(dossiers: Path, tmp_path: Path) -> None:
    """Between the embedded models, in seconds: more is known by the memory than by another case's, and it is used."""
    out = tmp_path / "codec"
    ends = ["--sender", HERE / "sender", "--receiver", HERE / "receiver"]
    words = ["align", *ends, "--data", dossiers, "--out", out, "--minutes", "0.15"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert "content gain" in done.output
    pair = load_pair(out)
    assert pair.sender.model.config.hidden_size != pair.receiver.model.config.hidden_size
    evidence = pair.sender.codec.evidence
    assert evidence is not None
    assert evidence.holds
    assert evidence.arms["text"] > evidence.arms["message"] > evidence.arms["mismatched"]
    with pytest.raises(ConfigError, match="expected a new folder"):
        Alignment("a", "b", dossiers, out)


def test_the_receivers_own_low_rank_weights_go_with_the_map(dossiers: Path, tmp_path: Path) -> None:
    """The map is for the receiver that has them, and the codec's folder gives them to it."""
    torch.manual_seed(3)
    adapter = new_adapter(load_pair().receiver.model, 2)
    for name, weight in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    adapter.save_pretrained(tmp_path / "mine")  # as peft does, with the path of the model beside it
    assert str(HERE) in (tmp_path / "mine" / "adapter_config.json").read_text(encoding="utf-8")
    ends = [str(HERE / "sender"), str(HERE / "receiver")]
    named = ["--sender", ends[0], "--receiver", ends[1], "--adapter", tmp_path / "mine"]
    words = ["align", *named, "--data", dossiers, "--out", tmp_path / "codec", "--minutes", "0.05"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    pair = load_pair(tmp_path / "codec", allow_unmeasured=True)
    assert pair.sender.codec.trained.receiver.adapters
    assert pair.receiver.codec.evidence is not None
    assert str(HERE) not in (tmp_path / "codec" / "receiver-adapter" / "adapter_config.json").read_text(
        encoding="utf-8"
    )
    plain = load_pair().receiver
    with pytest.raises(IdentityError, match="adapters"):
        Receiver(plain.model, plain.tokenizer, pair.receiver.codec, allow_unmeasured=True)
    (tmp_path / "odd").mkdir()
    for name, content in (("adapter_config.json", '{"peft_type": "ROAD"}'), ("adapter_model.safetensors", "")):
        (tmp_path / "odd" / name).write_text(content)
    for folder in ("nothing", "odd"):  # before a model is loaded, since there is none
        with pytest.raises(ConfigError, match=r"expected (a folder of )?low-rank weights as adapter"):
            align(Alignment("none", "none", dossiers, tmp_path / "other", adapter=tmp_path / folder))


def test_the_learning_rate_goes_through_the_command(dossiers: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Aligner, "tune", lambda *_, learning_rate, **__: pytest.fail(f"at {learning_rate}"))
    ends = ["--sender", str(HERE / "sender"), "--receiver", str(HERE / "receiver"), "--data", str(dossiers)]
    words = ["align", *ends, "--out", str(tmp_path / "codec"), "--learning-rate", "0.0005"]
    with pytest.raises(pytest.fail.Exception, match=r"at 0\.0005"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_receiver_that_does_not_know_the_facts_itself_is_refused_before_anything_is_fitted(
    dossiers: Path, tmp_path: Path
) -> None:
    model, tokenizer = build("llama", len(TOKENIZER), window=1024), make_tokenizer(300, None)
    model.save_pretrained(tmp_path / "random")
    tokenizer.save_pretrained(tmp_path / "random")
    plan = Alignment(str(HERE / "sender"), str(tmp_path / "random"), dossiers, tmp_path / "codec")
    with pytest.raises(TrainingError, match=r"knows cases\.jsonl from its own reading"):
        align(plan)
    assert not (tmp_path / "codec").exists()


def test_questions_and_texts_are_not_mixed(dossiers: Path, tmp_path: Path) -> None:
    with dossiers.open("a") as file:
        file.write(json.dumps({"context": "One.", "continuation": "Two."}) + "\n")
    with pytest.raises(ConfigError, match="either questions or texts alone"):
        align(Alignment("a", "b", dossiers, tmp_path / "codec"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"minutes": 0}, "minutes above 0"),
        ({"seed": -1}, "seed to be 0"),
        ({"learning_rate": 1.0}, "a learning rate between 0 and 1, got 1.0"),
    ],
)
def test_an_impossible_plan_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        Alignment("a", "b", tmp_path / "cases.jsonl", tmp_path / "codec", **options)


def test_texts_that_no_cache_of_the_codec_holds_are_refused_before_anything_is_fitted(
    dossiers: Path, tmp_path: Path
) -> None:
    plan = Alignment(str(HERE / "sender"), str(HERE / "receiver"), dossiers, tmp_path / "codec", tokens=40)
    with pytest.raises(ConfigError, match="at most 40 of the sender's tokens, with room"):
        align(plan)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="which is there"):
        Alignment("a", "b", dossiers, tmp_path / "file")


def test_few_questions_are_refused_and_what_is_cut_for_canaries_keeps_the_text(tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    write_jsonl(few, case_files("train", 5, 20))
    with pytest.raises(ConfigError, match="at least 160 cases"):
        align(Alignment("a", "b", few, tmp_path / "codec"))
    texts = [Case("words", TEXT, ()), Case("one word", "x" * 90, ())]
    lessons = taught(texts, 3)
    assert [case.id.split()[0] for case in lessons] == ["canary", "canary", "words", "one"]
    for case, text in zip(lessons[2:], texts, strict=True):
        assert text.context.startswith(case.context + (" " if case.id == "words" else "") + case.questions[0].answer)


def test_a_prefix_longer_than_a_window_is_seen_as_the_receiver_sees_it() -> None:
    """Of a chat whose beginning fills the windows of sliding layers, all logits are still those of the receiver."""
    tokenizer = make_tokenizer(330, OTHER.chat_template.replace("<|user|>", "<|user|>" + "a long beginning " * 9, 1))
    model = build("gemma3_text", len(tokenizer), hidden=48, layers=3, seed=1)
    made = Aligner(build("llama", len(TOKENIZER)), TOKENIZER, model, tokenizer)
    made.fit(TEXTS)
    assert len(made.receiver.prefix) > SLIDING_TOKENS
    memory = made.codec().mapped(made.sender.read([TEXT], 99)[0][0])
    given = [(list(zip(memory.keys, memory.values, strict=True)), memory.tokens)]
    suffix, answer = made._asked(QUESTION, "Bergen")
    with torch.no_grad():
        logits = Behind(made.receiver).logits(given, [[(suffix, answer)]])
    found = (-torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none")).tolist()
    receiver = Receiver(model, tokenizer, ExactCodec.of(model, tokenizer), allow_unmeasured=True)
    (score,) = receiver.score([(CacheMemory(memory), QUESTION, "Bergen")])
    assert found == pytest.approx(list(score.token_nats), abs=1e-3)


def test_what_is_no_number_ends_the_second_step_and_leaves_the_map() -> None:
    made = fitted()
    before = [one.weight.detach().clone() for one in made._maps]
    with torch.no_grad():
        made.receiver.model.get_output_embeddings().weight[:] = float("nan")
    with pytest.raises(TrainingError, match="finite loss, got nan in step 1"):
        made.tune(CASES, minutes=1)
    assert all(torch.equal(one.weight, own) for one, own in zip(made._maps, before, strict=True))


def test_maps_that_overflow_the_receivers_dtype_are_refused_when_they_are_used() -> None:
    model = build("qwen3", len(OTHER), torch.float16, hidden=48, layers=3, seed=1)
    made = Aligner(build("llama", len(TOKENIZER)), TOKENIZER, model, OTHER)
    made.fit(TEXTS)
    kv = made.sender.read([TEXT], 99)[0][0]
    made.codec().encode(Context(kv=kv))
    with torch.no_grad():
        made._maps[0].bias[:] = 1e9
    with pytest.raises(EncodeError, match="that float16 holds, got larger ones"):
        made.codec().encode(Context(kv=kv))


def test_a_report_of_an_earlier_run_is_no_beginning_of_this_one(dossiers: Path, tmp_path: Path) -> None:
    (tmp_path / "codec.run").mkdir()
    (tmp_path / "codec.run" / "report.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no report of an earlier run, got .*report\.json"):
        align(Alignment("a", "b", dossiers, tmp_path / "codec"))


def test_of_texts_alone_a_receiver_has_to_know_canary_facts_first(tmp_path: Path) -> None:
    model, tokenizer = build("llama", len(TOKENIZER), window=1024), make_tokenizer(300, None)
    model.save_pretrained(tmp_path / "random")
    tokenizer.save_pretrained(tmp_path / "random")
    texts = tmp_path / "texts.jsonl"
    write_jsonl(texts, [Case(text, text, (Question("", "And so on.", "continuation"),)) for text in TEXTS])
    plan = Alignment(str(HERE / "sender"), str(tmp_path / "random"), texts, tmp_path / "codec")
    with pytest.raises(TrainingError, match="knows canary facts from its own reading"):
        align(plan)
