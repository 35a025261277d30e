"""Traces of a training's texts: those that writers write, computed once and kept on disk, whatever becomes of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ilcp.errors import StorageError
from ilcp.tasks import Case
from ilcp_codecs.kv.ends import End
from ilcp_codecs.trace import Plan, Rule, cut, written
from ilcp_codecs.trace import traces as traces_module
from ilcp_codecs.trace.controls import steps_of
from ilcp_codecs.trace.traces import Traces, Written
from tests.helpers import noting
from tests.test_kv import TEXT, TOKENIZER
from tests.test_trace import PLAN, frozen

TEXTS = ["Mara owns it. Jonas does not.", "Ilse is away. Nobody knows why, nor for how long.", TEXT]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the passes that write traces from now on: of each, how many it writes."""
    seen: list[int] = []
    noted = noting(traces_module.write_rows, seen, lambda *args: len(args[2][0]))
    monkeypatch.setattr(traces_module, "write_rows", noted)
    return seen


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The passes of a test."""
    return counted(monkeypatch)


def traces_of(plan: Plan = PLAN, family: str = "llama", **options: Any) -> Traces:
    """Traces by a tiny model."""
    return Traces(End.of("writer", frozen(family), TOKENIZER), plan, Rule(plan.rule, frozen(family)), **options)


def same(one: Written, other: Written) -> bool:
    """Whether two traces are equal, bit by bit."""
    return (one.kv.digest(), one.prompts) == (other.kv.digest(), other.prompts)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral"])
def test_traces_are_those_that_the_plans_writers_write(family: str) -> None:
    """Of texts of any lengths, in their order, of no position; the same text twice is one."""
    found = traces_of(PLAN, family).of([*TEXTS, TEXTS[0]])
    assert same(found[0], found[3])
    for text, one in zip(TEXTS, found, strict=False):
        trace = written(PLAN.writers(frozen(family), TOKENIZER), cut(text, 2))
        assert one.prompts == [segment.prompt_tokens for segment in trace.segments]
        assert one.kv.tokens == trace.kept.tokens == traces_of(PLAN, family).tokens(text)
        assert (one.kv.start, one.kv.windows) == (None, trace.kept.windows)
        own, there = one.kv.at(trace.kept.start), trace.kept
        for a, b in zip((*own.keys, *own.values), (*there.keys, *there.values), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-3)


def test_writers_read_their_parts_in_the_plans_prompt() -> None:
    plan = replace(PLAN, prompt="So they said: {text} And then?")
    (found,) = traces_of(plan).of(TEXTS[:1])
    trace = written(plan.writers(frozen(), TOKENIZER), cut(TEXTS[0], 2))
    assert found.prompts == [segment.prompt_tokens for segment in trace.segments]
    assert found.kv.tokens == traces_of(plan).tokens(TEXTS[0]) > traces_of().tokens(TEXTS[0])
    for a, b in zip(found.kv.values, trace.kept.values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_traces_of_equal_length_are_written_side_by_side_and_each_is_its_own(passes: list[int]) -> None:
    texts = [f"Mara owns {number}. Jonas does not." for number in range(10, 30)]
    together = traces_of().of(texts)
    assert max(passes) > 1
    assert len(texts) == sum(passes)
    for text, one in zip(texts, together, strict=True):
        (alone,) = traces_of().of([text])
        assert one.prompts == alone.prompts
        for a, b in zip((*one.kv.keys, *one.kv.values), (*alone.kv.keys, *alone.kv.values), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kept", ["disk", "memory"])
def test_traces_are_computed_once(kept: str, tmp_path: Path, passes: list[int]) -> None:
    folder = tmp_path if kept == "disk" else None
    traces = traces_of(folder=folder)
    first = traces.of([*TEXTS, TEXTS[0]])
    assert len(TEXTS) == sum(passes)
    del passes[:]
    assert all(map(same, first, traces.of([*TEXTS, TEXTS[0]])))
    assert all(map(same, first, traces.of_cases([Case(text, text, ()) for text in TEXTS])))
    again = traces_of(folder=folder)
    assert all(map(same, first, again.of(TEXTS)))
    assert sum(passes) == (0 if kept == "disk" else len(TEXTS))
    del passes[:]
    again.of([TEXTS[1], "Something new. It is short."])
    assert [1] == passes


def test_what_another_plan_rule_or_model_wrote_is_not_found(tmp_path: Path, passes: list[int]) -> None:
    traces_of(folder=tmp_path).of(TEXTS[:1])
    rule = Rule("learned", frozen())
    plan = replace(PLAN, rule="learned")
    others = [
        traces_of(replace(PLAN, **changes), folder=tmp_path) for changes in ({"steps": 2}, {"prompt": "So: {text}"})
    ]
    others += [traces_of(replace(PLAN, rule="norm"), folder=tmp_path), traces_of(PLAN, "qwen3", folder=tmp_path)]
    end = End.of("writer", frozen(), TOKENIZER)
    others.append(Traces(end, plan, rule, folder=tmp_path))
    with torch.no_grad():
        rule.bias.add_(1.0)
    others.append(Traces(end, plan, rule, folder=tmp_path))
    folders = {traces.folder for traces in others}
    assert len(others) == len(folders)
    for traces in others:
        del passes[:]
        traces.of(TEXTS[:1])
        assert [1] == passes


@pytest.mark.parametrize("spoil", ["a bit", "half of it", "nothing in it", "another's"])
def test_a_damaged_file_is_written_anew(spoil: str, tmp_path: Path, passes: list[int]) -> None:
    traces = traces_of(folder=tmp_path)
    first = traces.of(TEXTS)
    folder = traces.folder
    assert folder is not None
    files = sorted(folder.iterdir())
    assert len(TEXTS) == len(files)
    whole = [file.read_bytes() for file in files]
    for file, content in zip(files, whole, strict=True):
        at = len(content) - 9
        spoilt = {
            "a bit": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
            "half of it": content[: len(content) // 2],
            "nothing in it": b"",
            "another's": b"no tensors at all",
        }[spoil]
        file.write_bytes(spoilt)
    del passes[:]
    assert all(map(same, first, traces_of(folder=tmp_path).of(TEXTS)))
    assert len(TEXTS) == sum(passes)
    del passes[:]
    assert all(map(same, first, traces_of(folder=tmp_path).of(TEXTS)))
    assert [] == passes


def test_what_is_beyond_the_limit_is_written_each_time(tmp_path: Path, passes: list[int]) -> None:
    size = traces_of().of(TEXTS[:1])[0].kv.size_bytes
    for limit, kept in ((size - 1, 0), (size, 1)):
        folder = tmp_path / str(limit)
        traces = traces_of(folder=folder, limit_bytes=limit)
        first = traces.of(TEXTS)
        assert kept == len([*folder.rglob("*.safetensors")])
        del passes[:]
        assert all(map(same, first, traces.of(TEXTS)))
        assert len(TEXTS) - kept == sum(passes)


def test_the_limit_is_of_all_traces_together(tmp_path: Path) -> None:
    """The third is smaller than either of the first two, and there is no room left."""
    texts = [TEXTS[1], f"{TEXTS[1]} So it is.", TEXTS[0]]
    sizes = [each.kv.size_bytes for each in traces_of().of(texts)]
    assert sizes[2] < min(sizes[:2])
    for limit, kept in ((sum(sizes[:2]), 2), (sum(sizes), 3)):
        folder = tmp_path / str(limit)
        traces_of(folder=folder, limit_bytes=limit).of(texts)
        assert kept == len([*folder.rglob("*.safetensors")])


@pytest.mark.parametrize("error", [StorageError("full"), OSError("full")])
def test_a_full_disk_is_no_reason_to_stop(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it tried again."""
    tried = []

    def full(path: Path, *_: Any) -> None:
        tried.append(path)
        raise error

    monkeypatch.setattr(traces_module, "write_tensors", full)
    traces = traces_of(folder=tmp_path)
    expected = traces_of().of(TEXTS)
    for _ in range(2):
        assert all(map(same, expected, traces.of(TEXTS)))
    assert 1 == len(tried)


def test_what_writers_read_and_what_readers_get_can_be_changed() -> None:
    traces = traces_of(of=str.upper, change=lambda each, text: replace(each, prompts=[1, len(text)]))
    assert [[1, len(TEXTS[0])]] == [each.prompts for each in traces.of(TEXTS[:1])]
    plain = traces_of().of([TEXTS[0].upper()])[0]
    assert plain.kv.digest() == traces.of(TEXTS[:1])[0].kv.digest()
    assert traces.tokens(TEXTS[0]) == plain.kv.tokens == traces.live(TEXTS[:1])[0].kv.tokens
    (pairs, tokens), steps = traces_of().memories(TEXTS[:1])[0], replace(PLAN, keep="steps")
    assert tokens == traces_of().of(TEXTS[:1])[0].kv.tokens == pairs[0][0].shape[1]
    one = traces_of(steps).of(TEXTS[:1])[0]
    pairs, tokens = traces_of(steps).memories(TEXTS[:1])[0]
    assert 6 == tokens
    for (keys, values), own, other in zip(pairs, one.kv.keys, one.kv.values, strict=True):
        assert torch.equal(own[:, steps_of(one, 3)], keys)
        assert torch.equal(other[:, steps_of(one, 3)], values)


def test_live_traces_have_gradients_and_states_and_kept_ones_have_none() -> None:
    plan = replace(PLAN, rule="learned")
    traces = traces_of(plan)
    live, kept = traces.live(TEXTS)[0], traces.of(TEXTS)[0]
    torch.testing.assert_close(live.kv.keys[1], kept.kv.keys[1])
    assert live.kv.keys[1].requires_grad
    assert not kept.kv.keys[1].requires_grad
    assert [(4, 32), (4, 32)] == [tuple(each.shape) for each in live.states]
    assert [] == traces.of(TEXTS)[0].states  # of what was kept
