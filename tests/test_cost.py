"""What a hand-off costs: the samples are of what they say, and every figure follows from them."""

import json
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ilcp
from ilcp.codec.memory import TextMemory
from ilcp.errors import ConfigError
from ilcp.measure.cost import CACHED, Cost, Point, break_even, cost
from ilcp.measure.fanout import fan_out
from ilcp.measure.figures import Computed, Measured
from ilcp.measure.flops import count_flops, eager_attention, model_sizes, prefill_flops
from ilcp.measure.prefill import CachedText, cache_text
from ilcp.measure.timing import Bench, as_many_tokens, torch_threads
from ilcp.models.forward import Prefill
from ilcp.models.prompt import text_ids
from ilcp.models.reading import read_ids
from ilcp.tasks import case_files
from ilcp_codecs.text import HeadCodec
from tests.helpers import make_model, noting, present

CONTEXTS = [case.context for case in case_files("validation", 3, 3, facts=2)]
LONG = " ".join(case.context for case in case_files("validation", 1, 3))
QUESTION = "Which region is affected?"
OTHER = "Who owns the ticket?"
KEY = bytes(range(32))


class Watching(ilcp.Receiver):
    """A receiver that notes with how many threads it is asked."""

    threads_seen: set[int]

    def decode(self, message: bytes) -> ilcp.Memory:
        """Notes, and decodes."""
        self.threads_seen.add(torch.get_num_threads())
        return super().decode(message)


@pytest.fixture(scope="module")
def spent(small) -> SimpleNamespace:
    """The cost of the small pair, and the threads before, during and after."""
    receiver = Watching(small.receiver.model, small.receiver.tokenizer, small.codec, allow_unmeasured=True)
    receiver.threads_seen = set()
    with torch_threads(2):
        found = cost(small.sender, receiver, [*CONTEXTS, LONG], question=QUESTION, n=50)
        after = torch.get_num_threads()
    return SimpleNamespace(cost=found, during=receiver.threads_seen, after=after)


def test_every_step_is_timed_as_often_as_asked(spent) -> None:
    """Each step has one sample per repetition, medians and 99th percentiles say n, and nothing was skipped."""
    figures = spent.cost.figures()
    assert {50} == {len(values) for values in spent.cost.samples.values()}
    for step in ("sender reads", "codec encodes", "wire out", "wire in", "first token, message", CACHED):
        assert ("ms", 50) == (figures[step].unit, figures[step].n)
        assert figures[step].value <= figures[f"{step}, p99"].value <= max(spent.cost.samples[step])
    assert {} == spent.cost.skipped
    assert figures["tokens, message"].value == figures["tokens, as many tokens"].value
    assert 36 == figures["message"].value == sum(spent.cost.parts.values())


def test_threads_are_pinned_while_measuring_and_restored(spent) -> None:
    """The measurement runs on the threads asked for; afterwards, also after an error, there are as many as before."""
    assert {1} == spent.during
    assert 2 == spent.after
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        _ = 1 / 0
    assert before == torch.get_num_threads()


def test_the_lengths_double_up_to_the_window(spent, small) -> None:
    """Documents grow from 32 tokens, by doubling, to the longest that leaves room for one new token."""
    lengths = [point.tokens for point in spent.cost.points]
    prompts = [len(text_ids(small.receiver.tokenizer, "x", QUESTION)), 256]
    assert lengths == sorted(lengths)
    assert all(abs(length - 32 * 2**k) <= 2 for k, length in enumerate(lengths[:-1]))
    assert lengths[-1] in range(256 - prompts[0] - 4, 256 - prompts[0] + 2)
    assert {20} == {len(values) for point in spent.cost.points for values in point.samples.values()}


def test_figures_are_a_pure_function_of_the_samples(spent) -> None:
    """Cost and figures survive JSON; the same samples give the same figures, other samples others."""
    again = Cost.from_dict(json.loads(json.dumps(spent.cost.to_dict())))
    assert spent.cost == again
    assert spent.cost.figures() == again.figures()
    assert json.loads(json.dumps({name: asdict(figure) for name, figure in again.figures().items()}))
    slower = {**again.samples, "codec decodes": tuple(2 * value for value in again.samples["codec decodes"])}
    share = "decode / prefill of the text"
    assert pytest.approx(2 * again.figures()[share].value) == replace(again, samples=slower).figures()[share].value


def test_every_computed_figure_is_what_its_formula_says(spent) -> None:
    """The printed formula, with the printed inputs, gives the value."""
    computed = {name: figure for name, figure in spent.cost.figures().items() if isinstance(figure, Computed)}
    assert len(computed) > 10
    for name, figure in computed.items():
        expected = eval(figure.formula, {"__builtins__": {}}, dict(figure.inputs))
        assert pytest.approx(expected) == figure.value, name


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("samples"),
        lambda record: record.update(colour="blue"),
        lambda record: record["samples"].pop("wire in"),
        lambda record: record["samples"].update(tea=[1.0] * 50),
        lambda record: record["samples"].update({"wire in": ["fast"] * 50}),
        lambda record: record["samples"].update({"wire in": [float("nan")] * 50}),
        lambda record: record["samples"].update({"wire in": [1.0] * 49}),
        lambda record: record["samples"].update({"wire in": 1.0}),
        lambda record: record.update(samples={name: values[:10] for name, values in record["samples"].items()}),
        lambda record: record["tokens"].pop("text"),
        lambda record: record.update(processor_share=float("nan")),
        lambda record: record.update(processor_share="all"),
        lambda record: record["flops"].pop("text"),
        lambda record: record["flops"].update(text="many"),
        lambda record: record["points"][0].pop("tokens"),
        lambda record: record["points"][0]["samples"].pop("text"),
        lambda record: record["kv_token"].pop("formula"),
        lambda record: record.update(kv_token=asdict(Measured(1, "B", 1))),
        lambda record: record.update(points=7),
    ],
)
def test_a_record_of_another_shape_is_refused(spent, spoil) -> None:
    """A field or step that is missing, unknown, too short or no number is a ConfigError, never a wrong figure."""
    record = json.loads(json.dumps(spent.cost.to_dict()))
    spoil(record)
    with pytest.raises(ConfigError, match="expected"):
        Cost.from_dict(record)


def test_what_cannot_be_measured_is_refused(small) -> None:
    """Too few repetitions, no thread, no question, and contexts that do not fit are named in the error."""
    pair = (small.sender, small.receiver)
    with pytest.raises(ConfigError, match="at least 50 repetitions, got 49: the 99th percentile"):
        cost(*pair, CONTEXTS, question=QUESTION, n=49)
    with pytest.raises(ConfigError, match="at least one thread"):
        cost(*pair, CONTEXTS, question=QUESTION, threads=0)
    with pytest.raises(ConfigError, match="and a question"):
        cost(*pair, CONTEXTS, question=" ")
    with pytest.raises(ConfigError, match="window of 256 tokens, got 1 of which none does"):
        cost(*pair, [LONG], question=QUESTION)
    with pytest.raises(ConfigError, match="expected a table in a cost"):
        Cost.from_dict([])


@pytest.mark.parametrize("which", ["small", "pair"])
def test_the_prefix_cache_gives_the_cold_first_token_and_stays_as_it_is(which, request) -> None:
    """Behind the cached document the logits are those of the cold text, twice over, and the cache does not change."""
    receiver = request.getfixturevalue(which).receiver
    prefill = Prefill(receiver.model)
    cold = prefill(receiver.prompt(TextMemory(CONTEXTS[0]), QUESTION))
    cached = cache_text(receiver, CONTEXTS[0], QUESTION)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cached.cache.layers]
    for _ in range(2):
        warm = cached.first_logits(prefill, cached.copy())
        assert int(cold.argmax()) == int(warm.argmax())
        assert torch.allclose(cold, warm, atol=1e-4)
    assert cached.tokens == cached.cache.get_seq_length()
    for (keys, values), layer in zip(before, cached.cache.layers, strict=True):
        assert torch.equal(keys, layer.keys)
        assert torch.equal(values, layer.values)


def test_the_cache_holds_the_document_and_not_the_question(pair) -> None:
    """What is pre-filled is the same for every question: the document's own tokens, nearly all of the prompt."""
    receiver, context = pair.receiver, CONTEXTS[0]
    first, second = (cache_text(receiver, context, question) for question in (QUESTION, OTHER))
    whole = text_ids(receiver.tokenizer, context, QUESTION)
    assert first.tokens == second.tokens
    assert abs(len(receiver.tokenizer(context).input_ids) - first.tokens) <= 2
    assert len(whole) == first.tokens + len(first.rest)


def test_a_cache_that_answers_otherwise_is_left_out_with_the_reason(small, spent, monkeypatch) -> None:
    """Where the first token behind the cache is not the cold one, the step is skipped and the notes say why."""
    bench = Bench(small.sender, small.receiver, QUESTION)
    assert "" == bench.cache_refusal(CONTEXTS[0])
    wrong = CachedText.first_logits
    monkeypatch.setattr(CachedText, "first_logits", lambda self, *rest: -wrong(self, *rest))
    refusal = bench.cache_refusal(CONTEXTS[0])
    assert "as without a cache" in refusal
    samples = {step: values for step, values in spent.cost.samples.items() if step != CACHED}
    without = replace(spent.cost, samples=samples, skipped={CACHED: refusal})
    assert CACHED not in without.figures()
    assert refusal in " ".join(without.notes())


@pytest.mark.parametrize("which", ["small", "pair"])
def test_as_many_ordinary_tokens_as_the_memory_has_vectors(which, request) -> None:
    """The twin of a message makes a prompt of the same length, also where the context is shorter than the memory."""
    hop = request.getfixturevalue(which)
    told = hop.receiver.prompt(hop.receiver.decode(hop.sender.encode(CONTEXTS[0])), QUESTION)
    for context in (*CONTEXTS, "Bergen."):
        twin = as_many_tokens(hop.receiver, context, QUESTION, len(told))
        assert len(told) == len(hop.receiver.prompt(TextMemory(twin), QUESTION))


def test_reading_plainly_takes_the_windows_of_reading(small, monkeypatch) -> None:
    """The pass without hidden states sees the very tokens that ``Sender.read`` sees, window by window."""
    bench = Bench(small.sender, small.receiver, QUESTION)
    body = small.sender.model.base_model
    rows: list[torch.Tensor] = []
    monkeypatch.setattr(body, "forward", noting(body.forward, rows, lambda *_, input_ids, **__: input_ids))
    for text in (CONTEXTS[0], LONG, LONG[: len(LONG) // 2]):
        steps, _ = bench._steps(text, False)
        rows.clear()
        windows = small.sender.read(text).windows
        steps["sender reads, no hidden states"]()
        assert 2 * windows == len(rows)
        assert all(torch.equal(read, plain) for read, plain in zip(rows[:windows], rows[windows:], strict=True))


@pytest.mark.parametrize("key", [None, KEY])
def test_any_codec_behind_the_seam_can_be_measured(small, key) -> None:
    """A codec that reads text and counts no operations goes through the same steps, sealed or not."""
    sender = ilcp.Sender(small.sender.model, small.sender.tokenizer, HeadCodec(), key=key)
    model, tokenizer = small.receiver.model, small.receiver.tokenizer
    receiver = ilcp.Receiver(model, tokenizer, HeadCodec(), key=key, allow_unmeasured=True)
    bench = Bench(sender, receiver, QUESTION)
    samples, tokens = bench.measure(CONTEXTS[:1], cached=True, progress=False)
    assert {1} == {len(values) for values in samples.values()}
    assert tokens["message"] == tokens["as many tokens"]
    counted = bench.count(CONTEXTS[0])
    assert (0, 0) == (counted["codec encodes"], counted["codec decodes"])
    assert counted["text"] >= counted["message"] > 0


def test_a_busy_machine_shows_in_the_notes(spent) -> None:
    """Where the process did not have its processor to itself, the notes say so; else they say nothing of it."""
    assert 0 < spent.cost.processor_share
    busy, quiet = (" ".join(replace(spent.cost, processor_share=share).notes()) for share in (0.5, 0.99))
    assert "the process had 50% of a processor" in busy
    assert "processor" not in quiet


def test_what_the_counter_does_not_see_is_left_out(spent) -> None:
    """No figure says that a codec computes nothing; and a sender of text owes all of its reading to the hand-off."""
    figures = spent.cost.figures()
    assert figures["FLOPs counted under eager attention, codec encodes"].value > 0
    blind = replace(spent.cost, flops={**spent.cost.flops, "codec encodes": 0}, reads="text").figures()
    assert "FLOPs counted under eager attention, codec encodes" not in blind
    assert "reading + encode - anyway" == figures["sender's extra"].formula
    assert "reading + encode" == blind["sender's extra"].formula


def test_formula_and_counter_agree_and_the_rest_is_known() -> None:
    """The counter has the masked half of attention, and where they are a product the angles of the rotary embedding; it
    has no norms. All of it is a few percent."""
    model, tokens = make_model(300, hidden=64, layers=3), 40
    sizes = model_sizes(model)
    prefill = Prefill(model)
    prompt = torch.randn(tokens, 64)
    with eager_attention(model):
        counted = count_flops(lambda: prefill(prompt))
    formula = prefill_flops(sizes, tokens)
    masked_half = 2 * sizes["layers"] * sizes["width"] * tokens**2
    angles = 2 * (64 // 4 // 2) * tokens
    norms = 2 * (2 * sizes["layers"] + 1) * 64 * tokens
    assert pytest.approx(formula.value, rel=0.06) == counted
    assert counted - (formula.value + masked_half - norms) in (0, angles)


def test_the_counter_sees_attention_and_leaves_it_as_it_was() -> None:
    """Under eager attention the count grows with the square of the tokens, by exactly the two products of attention."""
    model = make_model(300, hidden=64, layers=3)
    before, sizes, prefill = model.config._attn_implementation, model_sizes(model), Prefill(model)
    with eager_attention(model):
        once, twice = (count_flops(partial(prefill, torch.randn(t, 64))) for t in (32, 64))
    assert "eager" != before == model.config._attn_implementation
    assert 4 * sizes["layers"] * sizes["width"] * 2 * 32**2 == twice - 2 * once + 2 * sizes["head"]


def test_the_counter_counts_no_block_above_those_that_are_read() -> None:
    """A reading up to the middle has the operations of the blocks below it, and what is counted next is whole."""
    model, ids = make_model(300, hidden=64, layers=4), list(range(40))
    with eager_attention(model):
        none, half, whole, again = (count_flops(partial(read_ids, model, ids, (0, k))) for k in (0, 2, 4, 4))
    assert 2 * (half - none) == whole - none > 0
    assert whole == again


def test_break_even_is_where_the_lines_cross() -> None:
    """Linear between two lengths; the last crossing counts; absent where the longest document loses."""
    assert 96.0 == present(break_even([(32, -5.0), (64, -1.0), (128, 1.0)])).value
    assert 48.0 == present(break_even([(32, -1.0), (64, 1.0), (128, 9.0)])).value
    assert 64.0 == present(break_even([(32, -1.0), (64, 0.0), (128, 2.0)])).value
    assert 224.0 == present(break_even([(32, -1.0), (64, 2.0), (128, -3.0), (256, 1.0)])).value
    assert 32 == present(break_even([(32, 0.5), (64, 1.0)])).value
    assert break_even([(32, -2.0), (64, -1.0)]) is None
    assert break_even([(32, 2.0), (64, 0.0)]) is None
    assert break_even([]) is None


def test_a_message_that_never_pays_is_said_to_and_has_no_figure(spent) -> None:
    """Without a crossing there is no length among the figures; the notes say up to where it was looked for."""

    def line(text: float, encode: float) -> tuple[Point, ...]:
        times = {
            "text": lambda t: text * t,
            "message": lambda _: 3.2,
            "encode": lambda _: encode,
            "wire out": lambda _: 0.0,
        }
        return tuple(Point(t, {name: (time(t),) * 20 for name, time in times.items()}) for t in (32, 64, 128))

    alone, both = "the message pays, receiver alone", "the message pays, encode and wire counted in"
    found = replace(spent.cost, points=line(text=0.05, encode=1e3))
    assert pytest.approx(64) == found.figures()[alone].value
    assert both not in found.figures()
    assert f"{both}: the message is not faster at the longest document, 128 tokens" in found.notes()
    always = replace(spent.cost, points=line(text=1.0, encode=0.1))
    assert 32 == always.figures()[both].value
    assert f"{both}: the message is faster at every length measured, from 32 tokens" in always.notes()


class Worn:
    """A receiver whose memory wears with use (``wear``), or whose answers depend on the call (``moody``)."""

    def __init__(self, *, wear: float = 0.0, moody: bool = False):
        self.wear, self.moody, self.calls = wear, moody, 0

    def decode(self, _: bytes) -> SimpleNamespace:
        memory = SimpleNamespace(vectors=torch.ones(2, 3))
        memory.digest = lambda: memory.vectors.numpy().tobytes()
        return memory

    def generate(self, message, question, *, max_new_tokens: int) -> str:
        self.calls += 1
        memory = self.decode(message) if isinstance(message, bytes) else message
        answer = f"{question} {float(memory.vectors.sum())} {self.calls if self.moody else ''}"
        memory.vectors += self.wear
        return answer


def test_fan_out_of_the_embedded_pair_is_safe(pair) -> None:
    """Eight calls per question with one memory answer as a fresh memory does, and the memory stays as it was."""
    found = fan_out(pair.receiver, pair.sender.encode(CONTEXTS[0]), [QUESTION, OTHER], max_new_tokens=4)
    assert (1.0, 16) == (found.identical.value, found.identical.n)
    assert (1.0, 16) == (found.unchanged.value, found.unchanged.n)


def test_fan_out_finds_memory_that_wears_and_answers_that_differ() -> None:
    """A memory that calls change, and answers that change without it, each show in their own share."""
    receivers: tuple[Any, ...] = (Worn(), Worn(wear=1.0), Worn(moody=True))
    fine, worn, moody = (fan_out(receiver, b"", [QUESTION, OTHER], receivers=4) for receiver in receivers)
    assert (1.0, 1.0) == (fine.identical.value, fine.unchanged.value)
    assert (1 / 8, 0.0) == (worn.identical.value, worn.unchanged.value)
    assert (0.0, 1.0) == (moody.identical.value, moody.unchanged.value)
    with pytest.raises(ConfigError, match="at least 2 receivers and 2 questions, got 1 and 2"):
        fan_out(receivers[0], b"", [QUESTION, OTHER], receivers=1)
    with pytest.raises(ConfigError, match="got 8 and 1"):
        fan_out(receivers[0], b"", [QUESTION, QUESTION])
