"""How a writer's state becomes its next input, what a plan of writers may be, and what controls change of a trace."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from ilcp.codec.keys_values import KeysValues
from ilcp.errors import ConfigError, EncodeError
from ilcp.models.forward import embed, embedding_norm
from ilcp_codecs.kv.ends import End
from ilcp_codecs.trace import RULES, Plan, Rule, cut, written
from ilcp_codecs.trace.controls import CONTROLS, changed, steps_of
from ilcp_codecs.trace.plan import chosen
from ilcp_codecs.trace.trace import MAX_STEPS
from ilcp_codecs.trace.traces import Traces, Written
from tests.families import build
from tests.test_kv import TEXT, TOKENIZER
from tests.test_trace import PLAN, frozen

OTHER = "Who wrote the last novel about whales? Nobody knows, said the librarian of Bergen."


def test_norm_has_the_embeddings_norm_and_the_states_direction() -> None:
    model, state = frozen(), torch.randn(5, 32) * 40
    found = Rule("norm", model)(state)
    torch.testing.assert_close(found.norm(dim=-1), torch.full((5,), embedding_norm(model)))
    torch.testing.assert_close(torch.cosine_similarity(found, state), torch.ones(5))


def test_ridge_brings_an_output_embedding_to_its_tokens_input_embedding() -> None:
    """Of tied weights nearly onto it, of others nearer than the state as it is; both of the embeddings' norm."""
    tied, untied = build("qwen2", len(TOKENIZER)), frozen()
    tied.config.tie_word_embeddings = True
    tied.lm_head.weight = tied.get_input_embeddings().weight
    for model, least in ((tied, 0.97), (untied, 0.25)):
        heads = model.get_output_embeddings(), model.get_input_embeddings()
        out, into = (each.weight.detach()[2:] for each in heads)  # without the padding's, which is zero
        found = Rule("ridge", model)(out)
        likeness = torch.cosine_similarity(found, into).mean()
        assert float(likeness) > least
        assert float(likeness) >= float(torch.cosine_similarity(out, into).mean()) - 0.03
        torch.testing.assert_close(found.norm(dim=-1), torch.full((len(out),), embedding_norm(model)))


def test_the_controls_feed_what_their_names_say() -> None:
    model, states = frozen(), torch.randn(4, 32)
    assert torch.equal(states, Rule("raw", model)(states))
    pause = Rule("pause", model)(states)
    assert torch.equal(pause, Rule("pause", model)(states + 1))
    assert torch.equal(pause[:1].expand(4, -1), pause)
    likeliest = model.get_output_embeddings()(states).argmax(-1)
    assert torch.equal(embed(model, likeliest.tolist()), Rule("token", model)(states))


def test_soft_feeds_the_mean_embedding_of_the_likeliest_tokens_by_their_probabilities() -> None:
    model, states = frozen(), torch.randn(4, 32) * 0.1
    chances = model.get_output_embeddings()(states).softmax(-1)
    wanted = torch.zeros(4, 32)
    for row, own in enumerate(chances):
        for token in own.argsort(descending=True)[:64].tolist():
            wanted[row] += own[token] * embed(model, [token])[0]
    found = Rule("soft", model)(states)
    torch.testing.assert_close(torch.cosine_similarity(found, wanted), torch.ones(4))
    torch.testing.assert_close(found.norm(dim=-1), torch.full((4,), embedding_norm(model)))


def test_a_learned_rule_begins_as_ridge_and_takes_its_own_weights_only() -> None:
    model, states = frozen(), torch.randn(4, 32)
    rule, ridge = Rule("learned", model), Rule("ridge", model)
    assert torch.equal(rule(states), ridge(states))
    assert {} == ridge.tensors()
    assert {"weight", "bias"} == set(rule.tensors())
    with torch.no_grad():
        rule.bias.add_(1.0)
        rule.weight.mul_(-1.0)
    again = Rule("learned", model)
    again.take(rule.tensors())
    assert torch.equal(rule(states), again(states))
    assert not torch.equal(rule(states), ridge(states))
    pause = Rule("pause", model)
    wide = Rule("learned", build("llama", len(TOKENIZER), hidden=48))
    for tensors in ({}, pause.tensors(), wide.tensors()):
        with pytest.raises(ConfigError, match="weights of the rule 'learned' for this model, got others"):
            rule.take(tensors)
    pause.take({"bias": torch.full((32,), 2.0)})
    assert torch.equal(torch.full((4, 32), 2.0), pause(states))


def test_half_precision_stays_what_it_was() -> None:
    model = build("llama", len(TOKENIZER), torch.bfloat16)
    for name in RULES:
        made = Rule(name, model)(torch.randn(2, 32, dtype=torch.bfloat16))
        assert (torch.bfloat16, (2, 32)) == (made.dtype, tuple(made.shape))


def test_a_model_without_output_embeddings_has_the_rules_that_need_none() -> None:
    base = frozen().model
    for name in ("ridge", "learned", "token"):
        with pytest.raises(ConfigError, match="a model with output embeddings, got LlamaModel: take the rule 'norm'"):
            Rule(name, base)
    assert (1, 32) == tuple(Rule("norm", base)(torch.ones(1, 32)).shape)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"agents": ()}, "agents as 1 to 256 roles"),
        ({"agents": ("",)}, "agents as 1 to 256 roles"),
        ({"agents": ("a",) * 257}, "agents as 1 to 256 roles"),
        ({"agents": ("a\x00",)}, "printable"),
        ({"steps": -1}, "0 to 4096 steps"),
        ({"steps": MAX_STEPS + 1}, "0 to 4096 steps"),
        ({"rule": "best"}, "a rule of norm"),
        ({"prompt": "none"}, "in it once"),
        ({"keep": "some"}, "keep 'all', or 'steps'"),
        ({"keep": "steps", "steps": 0}, "'steps' where there are some"),
    ],
)
def test_no_plan_is_made_of_what_is_none(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(PLAN, **changes)


def test_a_plan_comes_back_from_its_record() -> None:
    assert PLAN == Plan.from_dict(PLAN.to_dict(), "a plan")
    with pytest.raises(ConfigError, match="expected a key of a plan, got 'agent'"):
        Plan.from_dict({"agent": "planner"}, "a plan")


# ---- how a text is cut among agents


@pytest.mark.parametrize(
    ("text", "parts", "expected"),
    [
        ("One.\n\nTwo.\n\nThree.", 3, ["One.", "Two.", "Three."]),
        ("One.\n\n\n\nTwo. More.", 2, ["One.", "Two. More."]),
        ("a\nb\n\nc\nd", 4, ["a", "b", "c", "d"]),
        ("One. Two. Three. Four.", 2, ["One. Two.", "Three. Four."]),
        ("a b c d e", 2, ["a b", "c d e"]),
        ("  alone ", 1, ["alone"]),
    ],
)
def test_a_text_is_cut_where_it_parts_most(text: str, parts: int, expected: list[str]) -> None:
    assert expected == cut(text, parts)


def test_every_cut_has_as_many_parts_and_loses_no_word() -> None:
    for words, parts in itertools.product(range(1, 30), range(1, 12)):
        text = " ".join(map(str, range(words)))
        if words < parts:
            with pytest.raises(EncodeError, match=f"at least {parts} words"):
                cut(text, parts)
        else:
            found = cut(text, parts)
            assert (parts, text.split()) == (len(found), " ".join(found).split())
            assert all(found)
    with pytest.raises(ConfigError, match="at least one part, got 0"):
        cut("a", 0)


# ---- controls


def made(plan: Plan = PLAN, family: str = "llama") -> tuple[Written, Written]:
    """Two traces of different length."""
    one, other = Traces(End.of("writer", frozen(family), TOKENIZER), plan, Rule("ridge", frozen(family))).of(
        [TEXT, OTHER]
    )
    assert one.kv.tokens != other.kv.tokens
    return one, other


def sides(one: KeysValues, other: KeysValues) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of both, layer by layer."""
    return zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)


def test_the_places_of_steps_are_those_behind_each_prompt() -> None:
    one, _ = made()
    first, second = one.prompts
    assert one.kv.tokens == first + second + 6
    assert [*range(first, first + 3), *range(first + 3 + second, first + second + 6)] == steps_of(one, 3)


def test_shuffled_steps_are_the_same_rows_in_another_order() -> None:
    """Of all agents, keys and values of every layer alike; what was read stays where it was."""
    one, _ = made()
    places = steps_of(one, 3)
    read = [at for at in range(one.kv.tokens) if at not in places]
    orders = set()
    for seed in range(5):
        other = changed(one, 3, "shuffled steps", seed=seed).kv
        assert torch.equal(other.keys[0], changed(one, 3, "shuffled steps", seed=seed).kv.keys[0])
        found = {
            tuple(next(a for a in places if torch.equal(before[:, a], after[:, b])) for b in places)
            for before, after in sides(one.kv, other)
        }
        assert 1 == len(found)
        assert places == sorted(*found)
        orders |= found
        assert all(torch.equal(before[:, read], after[:, read]) for before, after in sides(one.kv, other))
    assert len(orders) > 1
    assert orders != {tuple(places)}


@pytest.mark.parametrize("control", ["another's steps", "zero steps"])
def test_other_steps_stand_where_the_own_ones_stood(control: str) -> None:
    one, other = made()
    places, theirs = steps_of(one, 3), steps_of(other, 3)
    read = [at for at in range(one.kv.tokens) if at not in places]
    found = changed(one, 3, control, other=other)
    assert one.prompts == found.prompts
    for before, after, beside in zip(
        (*one.kv.keys, *one.kv.values),
        (*found.kv.keys, *found.kv.values),
        (*other.kv.keys, *other.kv.values),
        strict=True,
    ):
        assert torch.equal(before[:, read], after[:, read])
        wanted = torch.zeros_like(after[:, places]) if control == "zero steps" else beside[:, theirs]
        assert torch.equal(wanted, after[:, places])
        assert float(before[:, places].abs().min()) > 0  # what was there is not what comes: the trace itself stays


def test_without_steps_only_what_was_read_is_left() -> None:
    one, _ = made()
    found = changed(one, 3, "no steps")
    places = steps_of(one, 3)
    read = [at for at in range(one.kv.tokens) if at not in places]
    assert (sum(one.prompts), None) == (found.kv.tokens, found.kv.start)
    assert all(torch.equal(before[:, read], after) for before, after in sides(one.kv, found.kv))


def test_a_zero_trace_has_the_shape_and_nothing_else() -> None:
    one, _ = made()
    found = changed(one, 3, "zero trace")
    assert (one.kv.tokens, one.prompts) == (found.kv.tokens, found.prompts)
    assert not any(after.any() for _, after in sides(one.kv, found.kv))
    assert all(before.any() for before, _ in sides(one.kv, found.kv))


def test_controls_that_cannot_be_are_refused() -> None:
    one, _ = made()
    with pytest.raises(ConfigError, match=r"a control of shuffled steps, .*zero trace, got 'noise'"):
        changed(one, 3, "noise")
    with pytest.raises(ConfigError, match="another trace to take steps of, got none"):
        changed(one, 3, "another's steps")
    windowed, other = made(PLAN, "gemma3_text")
    for control in CONTROLS:
        with pytest.raises(ConfigError, match="a model without sliding windows to change the steps of"):
            changed(windowed, 3, control, other=other)


def test_what_a_reader_of_the_steps_alone_gets_of_each_control() -> None:
    """As many rows as there are steps, one behind the other; without steps, none."""
    plan = replace(PLAN, keep="steps")
    one, other = made(plan)
    for control in CONTROLS:
        pairs, tokens = changed(one, 3, control, other=other).memory(plan)
        assert tokens == (0 if control == "no steps" else 6)
        assert {tokens} == {each.shape[1] for pair in pairs for each in pair}
    pairs, _ = one.memory(plan)
    places = steps_of(one, 3)
    for (keys, values), own, beside in zip(pairs, one.kv.keys, one.kv.values, strict=True):
        assert torch.equal(own[:, places], keys)
        assert torch.equal(beside[:, places], values)


def test_rows_are_chosen_of_no_position_and_of_no_window() -> None:
    one, _ = made()
    there = one.kv.at(9)
    found = chosen(there, [4, 2])
    assert (2, None) == (found.tokens, found.start)
    for before, after in sides(one.kv, found):
        torch.testing.assert_close(before[:, [4, 2]], after, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="without sliding windows to hand over the steps alone, got one: keep all"):
        chosen(made(PLAN, "mistral")[0].kv, [0])


@pytest.mark.parametrize(
    ("made", "refusal"),
    [
        (lambda: Plan("planner"), "a tuple of roles, .* got 'planner'"),  # type: ignore[arg-type]
        (lambda: Plan((1, 2)), "a tuple of roles"),  # type: ignore[arg-type]
        (lambda: Plan(None), "a tuple of roles"),  # type: ignore[arg-type]
        (lambda: Plan(prompt=None), "a prompt with {text} in it once"),  # type: ignore[arg-type]
        (lambda: Plan(steps="3"), "0 to 4096 steps, got '3'"),  # type: ignore[arg-type]
        (lambda: Plan(keep="steps"), "'steps' and 0 steps: say how many"),
        (lambda: cut("a b", "3"), "at least one part, got '3'"),  # type: ignore[arg-type]
        (lambda: written([], "ab"), "texts in a list"),
    ],
)
def test_what_is_no_plan_is_refused_in_words(made: Any, refusal: str) -> None:
    with pytest.raises(ConfigError, match=refusal):
        made()


def test_a_plan_takes_a_list_of_roles() -> None:
    assert Plan(["planner", "critic"]).agents == ("planner", "critic")  # type: ignore[arg-type]
