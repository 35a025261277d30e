"""Latent traces: what writers append is what one model computes, step for step, and what was changed shows."""

import itertools
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from ilcp.codec import Context
from ilcp.codec.keys_values import KeysValues, held_tokens
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError
from ilcp.handoff import Receiver
from ilcp.models.forward import embed
from ilcp.models.kv import read_kv
from ilcp.models.prompt import continuation, layout
from ilcp.models.reading import backbone
from ilcp.models.rope import ropes_of
from ilcp_codecs.text import HeadCodec
from ilcp_codecs.trace import RULES, Plan, Rule, Segment, Trace, Writer, cut, written
from ilcp_codecs.trace.trace import MAX_SEGMENTS, MAX_STEPS
from ilcp_codecs.trace.writer import SAY, write_rows
from tests.families import FAMILIES, SLIDING_TOKENS, build
from tests.test_kv import FIXED, TEXT, TOKENIZER

PLAN = Plan(("planner", "critic"), 3, "ridge")
PREFIX = layout(TOKENIZER, "").prefix
PARTS = cut(TEXT, 2)
TURNED = [name for name, family in FAMILIES.items() if family.receiver and name not in FIXED]
families = pytest.mark.parametrize("family", TURNED)


@cache
def frozen(family: str = "llama") -> Any:
    """A tiny model that no test changes."""
    return build(family, len(TOKENIZER)).requires_grad_(False)


@cache
def traced(plan: Plan = PLAN, family: str = "llama") -> Trace:
    """A trace that two agents wrote."""
    return written(plan.writers(frozen(family), TOKENIZER), PARTS)


def ids_of(text: str) -> list[int]:
    """The ids that a writer reads of a text."""
    return list(continuation(TOKENIZER, text)[0])


def with_kv(trace: Trace, side: str, layer: int, places: tuple[int, int, int], by: float = 1e-3) -> Trace:
    """The trace with one number of its keys or values changed."""
    tensors = [each.clone() for each in getattr(trace.kept, side)]
    tensors[layer][places] += by
    changed: dict[str, Any] = {side: tuple(tensors)}
    return replace(trace, kv=replace(trace.kept, **changed))


def near(found: KeysValues, expected: Any) -> None:
    """Compares keys and values with those of a cache that holds every position."""
    for keys, values, layer in zip(found.keys, found.values, expected.layers, strict=True):
        for own, one in ((keys, layer.keys), (values, layer.values)):
            torch.testing.assert_close(own, one[0, :, -own.shape[1] :], rtol=1e-3, atol=1e-3)


# ---- the trace


def test_writing_on_a_trace_leaves_it_as_it_was() -> None:
    """The next segment names the trace before it by its digest; nobody can set a field of either."""
    planner, critic = PLAN.writers(frozen(), TOKENIZER)
    first = planner.write(PARTS[0])
    before, segments = first.kept.digest(), first.segments
    second = critic.write(PARTS[1], first)
    assert (before, segments) == (first.kept.digest(), first.segments)
    assert second.segments[:1] == segments
    assert ["", first.digest] == [segment.before for segment in second.segments]
    assert first.digest != second.digest
    assert [("planner", 3), ("critic", 3)] == [(segment.role, segment.steps) for segment in second.segments]
    own = [len(ids_of(part)) for part in PARTS]
    assert own == [segment.prompt_tokens for segment in second.segments]
    ends = own[0], own[0] + 3, own[0] + 3 + own[1], sum(own) + 6
    assert [range(0, ends[0]), range(*ends[:2]), range(*ends[1:3]), range(*ends[2:])] == [
        places for pair in second.spans() for places in pair
    ]
    for name in ("carried", "kv", "segments"):
        with pytest.raises(FrozenInstanceError):
            setattr(second, name, None)
    with pytest.raises(AttributeError):
        second.segments[0].role = "me"  # type: ignore[misc]


def test_what_a_segment_holds_does_not_depend_on_what_comes_later() -> None:
    """Its keys, values and digest are the same, bit by bit, whoever writes on."""
    planner, critic = PLAN.writers(frozen(), TOKENIZER)
    first = planner.write(PARTS[0])
    for text in (PARTS[1], "Something else altogether."):
        later = critic.write(text, first)
        assert first.segments[0] == later.segments[0]
        for own, longer in zip(
            (*first.kept.keys, *first.kept.values), (*later.kept.keys, *later.kept.values), strict=True
        ):
            assert torch.equal(own, longer[:, : first.kept.tokens])
        later.require_whole()


def tampered(first: Segment, second: Segment) -> dict[str, tuple[tuple[Segment, ...], str]]:
    """Segments that are not those of their trace, and what is said of them."""
    follows = "expected segment {} to stand on"
    return {
        "reordered": ((second, first), follows.format(0)),
        "first dropped": ((second,), "segments' .* tokens"),
        "first dropped, its tokens claimed": (
            (replace(second, prompt_tokens=second.prompt_tokens + first.tokens),),
            follows.format(0),
        ),
        "last dropped": ((first,), "segments' .* tokens"),
        "first twice": ((first, replace(first, prompt_tokens=second.tokens - 3)), follows.format(1)),
        "renamed": ((replace(first, role="me"), second), follows.format(1)),
        "another model": ((replace(first, model="0" * 32), second), follows.format(1)),
        "another rule": ((replace(first, rule="raw"), second), follows.format(1)),
        "other content": ((replace(first, content="0" * 32), second), follows.format(1)),
        "said to be rounded": ((replace(first, on="kv-int8"), second), follows.format(1)),
        "a step said to be a token": (
            (replace(first, steps=2, prompt_tokens=first.prompt_tokens + 1), second),
            follows.format(1),
        ),
        "none": ((), "1 to 256 segments, got 0"),
        "too many": ((first,) * (MAX_SEGMENTS + 1), "1 to 256 segments, got 257"),
    }


SAMPLE = Segment("a", "", 9, 3, "ridge", "", "")


@pytest.mark.parametrize("how", tampered(SAMPLE, SAMPLE))
def test_segments_that_are_not_those_of_their_trace_are_refused(how: str) -> None:
    segments, words = tampered(*traced().segments)[how]
    with pytest.raises(DecodeError, match=words):
        replace(traced(), segments=segments)


def test_a_trace_without_keys_and_values_is_none() -> None:
    with pytest.raises(DecodeError, match="expected keys and values of 1 to 256 segments, got 2"):
        Trace(segments=traced().segments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"role": "x" * 81}, "at most 80 printable characters"),
        ({"role": "a\nb"}, "printable"),
        ({"on": "\x1b[2J"}, "printable"),
        ({"content": "\ud800"}, "printable"),
        ({"prompt_tokens": 0}, "at least one token"),
        ({"steps": -1}, "0 to 4096 steps"),
        ({"steps": MAX_STEPS + 1}, "0 to 4096 steps"),
    ],
)
def test_a_segment_of_what_none_has_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        replace(traced().segments[0], **changes)


def test_one_changed_number_is_found_in_whichever_segment_it_stands() -> None:
    trace = traced()
    trace.require_whole()
    for number, (prompt, steps) in enumerate(trace.spans()):
        role = trace.segments[number].role
        places = (prompt.start, prompt.stop - 1, steps.start, steps.stop - 1)
        for side, layer, place in itertools.product(("keys", "values"), (0, 1), places):
            with pytest.raises(DecodeError, match=f"'{role}' wrote, got others: {number}"):
                with_kv(trace, side, layer, (1, place, 7)).require_whole()
    with pytest.raises(DecodeError, match="'planner' wrote"):
        replace(trace, kv=trace.kept.at(7)).require_whole()
    with pytest.raises(DecodeError, match="'planner' wrote"):
        replace(trace, kv=trace.kept.to("cpu", torch.bfloat16)).require_whole()


def test_the_same_bytes_at_another_place_or_of_another_kind_are_not_whole() -> None:
    model = build("llama", len(TOKENIZER), torch.bfloat16)
    trace = Writer(model, TOKENIZER, role="planner", steps=1).write(TEXT)
    trace.require_whole()
    sides: dict[str, Any] = {
        side: tuple(each.view(torch.float16) for each in getattr(trace.kept, side)) for side in ("keys", "values")
    }
    for kv in (replace(trace.kept, start=7), replace(trace.kept, **sides)):
        with pytest.raises(DecodeError, match="'planner' wrote, got others: 0"):
            replace(trace, kv=kv).require_whole()


# ---- writers


@families
def test_without_steps_a_trace_is_what_one_model_computes_of_everything(family: str) -> None:
    """Behind the same beginning, sliding windows included: one agent's bit by bit, two agents' up to rounding."""
    model, ropes = frozen(family), ropes_of(frozen(family))
    first, second = map(ids_of, PARTS)
    assert len(first) > SLIDING_TOKENS
    planner, critic = Plan(steps=0).writers(model, TOKENIZER)
    one = planner.write(PARTS[0])
    assert one.kept.digest() == read_kv(model, [*PREFIX, *first], len(PREFIX), ropes).digest()
    both, expected = critic.write(PARTS[1], one).kept, read_kv(model, [*PREFIX, *first, *second], len(PREFIX), ropes)
    assert (expected.tokens, expected.start, expected.windows) == (both.tokens, both.start, both.windows)
    for own, other in zip((*both.keys, *both.values), (*expected.keys, *expected.values), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def by_hand(model: Any, agents: Sequence[Sequence[int]], rule: Rule, steps: int) -> Any:
    """A cache of the same, by a whole pass over everything for each step: the rule's inputs are appended."""
    base, embeds, kept = backbone(model), embed(model, PREFIX), DynamicCache()
    for ids in agents:
        embeds = torch.cat([embeds, embed(model, ids)])
        for _ in range(steps):
            state = base(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[:, -1]
            embeds = torch.cat([embeds, rule(state)])
    base(inputs_embeds=embeds[None], past_key_values=kept, use_cache=True)
    return kept


@families
def test_each_step_is_a_pass_over_everything_with_the_rules_input_behind_it(family: str) -> None:
    """In every family whose keys can be turned, for two agents in turn."""
    model = frozen(family)
    kept = by_hand(model, [*map(ids_of, PARTS)], Rule("ridge", model), 3)
    trace = traced(PLAN, family)
    assert kept.get_seq_length() == len(PREFIX) + trace.kept.tokens
    near(trace.kept, kept)
    trace.require_whole()


@pytest.mark.parametrize("name", RULES)
def test_each_rule_steps_as_it_says(name: str) -> None:
    model = frozen()
    rule = Rule(name, model)
    trace = written(Plan(PLAN.agents, 2, name).writers(model, TOKENIZER), PARTS)
    near(trace.kept, by_hand(model, [*map(ids_of, PARTS)], rule, 2))
    assert {name} == {segment.rule for segment in trace.segments}


def test_steps_of_one_call_go_before_the_writers_own() -> None:
    writer = Writer(frozen(), TOKENIZER, role="planner", steps=5, prompt="Note: {text}")
    assert [1, 0, 5] == [writer.write(TEXT, steps=n).segments[0].steps for n in (1, 0, None)]
    assert len(ids_of(f"Note: {TEXT}")) == writer.write(TEXT).segments[0].prompt_tokens


def test_writing_changes_nothing_of_the_model_and_keeps_no_gradient() -> None:
    model = build("llama", len(TOKENIZER)).train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    rule = Rule("learned", model)
    trace = Writer(model, TOKENIZER, role="planner", steps=2, rule=rule).write(TEXT)
    assert not any(each.requires_grad for each in (*trace.kept.keys, *trace.kept.values))
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert "learned" == trace.segments[0].rule


def rows() -> tuple[list[list[str]], list[torch.Tensor]]:
    """Three texts for each of two agents, of equal length, and their ids."""
    texts = [f"Case {number} is owned by Mara." for number in range(10, 60)], [f"Why {n}?" for n in range(10, 60)]
    chosen = []
    for own in texts:
        most = max((len(ids_of(text)) for text in own), key=[len(ids_of(text)) for text in own].count)
        chosen.append([text for text in own if len(ids_of(text)) == most][:3])
    return chosen, [torch.tensor([ids_of(text) for text in own]) for own in chosen]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_traces_side_by_side_are_those_of_one_after_the_other(family: str) -> None:
    model, (texts, ids) = frozen(family), rows()
    with torch.no_grad():
        cache, states = write_rows(model, PREFIX, ids, Rule("ridge", model), 3)
    assert [[(3, 32)] * 4] * 2 == [[tuple(each.shape) for each in own] for own in states]
    for row in range(3):
        alone = written(PLAN.writers(model, TOKENIZER), [own[row] for own in texts]).kept
        for keys, values, layer, window in zip(alone.keys, alone.values, cache.layers, alone.windows, strict=True):
            held = held_tokens(alone.tokens, window)
            torch.testing.assert_close(keys, layer.keys[row, :, -held:], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(values, layer.values[row, :, -held:], rtol=1e-3, atol=1e-3)


def test_gradients_reach_a_learned_rule_through_the_steps_and_what_is_read_behind_them() -> None:
    model, (_, ids) = frozen(), rows()
    rule = Rule("learned", model)
    cache, states = write_rows(model, PREFIX, ids, rule, 2)
    through = torch.autograd.grad(states[0][2].square().sum(), states[0][1], retain_graph=True)[0]
    assert bool((through.abs().sum(-1) > 0).all())  # of every row, the second step feels the first
    here = len(PREFIX) + ids[0].shape[1] + 2
    second = cache.layers[1].values[:, :, here : here + ids[1].shape[1]]
    for what in (states[0][1], second, states[1][0]):
        for weight in (rule.weight, rule.bias):
            found = torch.autograd.grad(what.square().sum(), weight, retain_graph=True)[0]
            assert bool(found.isfinite().all())
            assert float(found.abs().sum()) > 0
    assert not states[0][0].requires_grad  # nothing that is learned stands before the first step


@pytest.mark.parametrize("layers", [(0, 1), (2,), (0, 1, 2)])
def test_states_that_are_kept_are_those_of_an_ordinary_reading(layers: tuple[int, ...]) -> None:
    """Without steps; so a codec of states takes a trace as it takes a text that was read."""
    model = frozen()
    agents = [Writer(model, TOKENIZER, role=role, steps=0, layers=layers) for role in ("planner", "critic")]
    trace = written(agents, PARTS)
    whole = [*PREFIX, *ids_of(PARTS[0]), *ids_of(PARTS[1])]
    with torch.no_grad():
        states = model(torch.tensor([whole]), output_hidden_states=True).hidden_states
    assert trace.states is not None
    expected = torch.stack([states[layer][0, len(PREFIX) :] for layer in layers])
    torch.testing.assert_close(trace.states, expected, rtol=1e-4, atol=1e-5)
    assert (trace.kept.tokens, len(layers)) == (trace.tokens, len(trace.states))
    stepped = Writer(model, TOKENIZER, role="last", steps=2, layers=layers).write("Well?", trace)
    assert stepped.kept.tokens == stepped.tokens


def test_a_trace_that_kept_other_states_is_refused() -> None:
    model = frozen()
    keeps = Writer(model, TOKENIZER, role="critic", steps=1, layers=(0, 1))
    for layers in ((), (1,)):
        before = Writer(model, TOKENIZER, role="planner", steps=1, layers=layers).write(PARTS[0])
        with pytest.raises(EncodeError, match="kept states of as many layers"):
            keeps.write(PARTS[1], before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"role": ""}, "a writer's role"),
        ({"role": "x" * 81}, "at most 80 printable characters"),
        ({"role": "a\tb"}, "printable"),
        ({"prompt": "no place"}, r"\{text\} in it once"),
        ({"prompt": "{text} {text}"}, r"\{text\} in it once"),
        ({"steps": -1}, "0 to 4096 steps, got -1"),
        ({"steps": True}, "0 to 4096 steps, got True"),
        ({"steps": MAX_STEPS + 1}, "0 to 4096 steps"),
        ({"rule": "best"}, f"a rule of {', '.join(RULES)}, got 'best'"),
    ],
)
def test_no_writer_is_made_of_what_is_none(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Writer(frozen(), TOKENIZER, **{"role": "planner", **changes})


def test_what_cannot_be_written_on_is_refused() -> None:
    """Nothing to read, no room, another model's trace, altered numbers, a plain context, keys that stay in place."""
    writer, trace = PLAN.writers(frozen(), TOKENIZER)[0], traced()
    with pytest.raises(EncodeError, match="text"):
        writer.write("")
    with pytest.raises(EncodeError, match="a trace, a text behind it and its steps of at most 256 tokens"):
        writer.write("Mara " * 90, trace)
    with pytest.raises(EncodeError, match="at most 256 tokens"):
        writer.write("Well?", trace, steps=256)
    with pytest.raises(ConfigError, match=r"0 to 4096 steps, got 1\.0"):
        writer.write("Well?", trace, steps=1.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a Trace to write on, got Context"):
        writer.write("Well?", Context(kv=trace.kept))  # type: ignore[arg-type]
    other = Writer(build("llama", len(TOKENIZER), seed=1), TOKENIZER, role="planner", steps=1)
    with pytest.raises(IdentityError, match="a segment of another's by 'planner'"):
        other.write("Well?", trace)
    with pytest.raises(DecodeError, match="that 'critic' wrote, got others: 1"):
        writer.write("Well?", with_kv(trace, "values", 1, (0, trace.kept.tokens - 1, 0)))
    with pytest.raises(ConfigError, match=r"keys can be turned \(RoPE\), got GPT2LMHeadModel"):
        Writer(build("gpt2", len(TOKENIZER)), TOKENIZER, role="planner", rule="norm")


def test_a_writer_whose_weights_change_writes_no_more() -> None:
    model = build("llama", len(TOKENIZER))
    writer = Writer(model, TOKENIZER, role="planner", steps=1)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    with pytest.raises(IdentityError, match="weights"):
        writer.write(TEXT)


def test_a_trace_of_as_many_segments_as_there_may_be_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced()
    monkeypatch.setattr("ilcp_codecs.trace.trace.MAX_SEGMENTS", 2)
    with pytest.raises(EncodeError, match=r"room for one segment more, got: .*1 to 2 segments, got 3"):
        PLAN.writers(frozen(), TOKENIZER)[0].write("Well?", trace)


def test_an_agent_says_what_the_model_answers_behind_what_was_said() -> None:
    model = frozen()
    writer = Writer(model, TOKENIZER, role="planner", steps=0, prompt="Note: {text}")
    reader = Receiver(model, TOKENIZER, HeadCodec(), allow_unmeasured=True)
    for on, context in (("", f"Note: {PARTS[0]}"), ("Before.", f"Before.\nNote: {PARTS[0]}")):
        expected = reader.generate(None, SAY, context=context, max_new_tokens=6).strip()
        assert expected == writer.say(PARTS[0], on, tokens=6)


def test_as_many_texts_as_writers_are_wanted() -> None:
    agents = PLAN.writers(frozen(), TOKENIZER)
    for writers, texts in (((), ()), (agents, PARTS[:1]), (agents[:1], PARTS)):
        with pytest.raises(ConfigError, match=f"got {len(texts)} for {len(writers)}"):
            written(writers, texts)
    assert traced().digest == written(agents[1:], PARTS[1:], written(agents[:1], PARTS[:1])).digest


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_what_sliding_windows_hold_is_compared_too(family: str) -> None:
    """At the end of the last segment: of those before it the windows have let go."""
    trace = traced(family=family)
    trace.require_whole()
    slides = next(layer for layer, window in enumerate(trace.kept.windows) if window)
    for side in ("keys", "values"):
        with pytest.raises(DecodeError, match="sliding windows held"):
            with_kv(trace, side, slides, (0, 0, 0)).require_whole()
    assert trace.segments[0].held != trace.segments[1].held
    assert all(not segment.held for segment in traced().segments)
