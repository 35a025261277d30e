"""The scripts of the trace benchmark: the figures made of raw answers, the arms, the symbols."""

import random
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from ilcp.tasks import graphs
from tests.helpers import load_script

trace, trace_report, train_symbols = map(load_script, ("trace", "trace_report", "train_symbols"))
TEN = "trace, soft"


def raw(**arms: list[int]) -> dict[str, Any]:
    """Raw answers of two seeds, alike, over four documents of two questions each."""

    def found(exact: list[int]) -> dict[str, Any]:
        answers = ["yes" if right else "no" for right in exact]
        base: dict[str, Any] = dict(nats=[float(right - 1) for right in exact], perplexity=[1.0, 3.0], tokens=[7])
        return base | dict(exact=exact, answers=answers, bytes=[100], s=1.0)

    return {
        "arms": {name: {seed: found(exact) for seed in ("0", "1")} for name, exact in arms.items()},
        "documents": [0, 0, 1, 1, 2, 2, 3, 3],
        "kinds": ["a", "b"] * 4,
        "settings": {"task": "dossier", "rule": "soft", "steps_latent": 10},
        "provenance": {"models": {}},
    }


def test_the_sentence_says_first_what_the_steps_bring() -> None:
    better = trace_report.report(raw(**{TEN: [1] * 8, "prompts, no steps": [0] * 8, "trace, pause": [1] * 8}))
    assert "bring more than prompts, no steps (+1.000" in better["sentence"]
    assert "not measurably more than trace, pause (+0.000" in better["sentence"]
    worse = trace_report.report(raw(**{TEN: [0] * 8, "prompts, no steps": [1] * 8}))
    assert "bring less than prompts, no steps (-1.000" in worse["sentence"]


def test_figures_are_means_over_questions_and_seeds() -> None:
    found = trace_report.report(raw(**{TEN: [1, 0] * 4}))["arms"][TEN]
    assert found["exact"]["value"] == 0.5
    assert found["exact"]["by seed"] == [0.5, 0.5]
    assert found["kinds"] == {"a": 1.0, "b": 0.0}
    assert found["perplexity"] == [2.0, 3.0, 0.5]
    assert (found["tokens"], found["bytes"]) == (7, 100)


def test_answers_that_differ_are_counted() -> None:
    gains = trace_report.report(raw(**{TEN: [1] * 8, "trace, pause": [1, 1, 1, 0] * 2}))["gains"]
    assert gains["trace, pause"]["churn"] == 0.25


def test_without_steps_nothing_is_claimed() -> None:
    assert trace_report.report(raw(**{"trace, pause": [1] * 8}))["sentence"] == "No steps were measured."


@pytest.mark.parametrize("task", ["dossier", "graph"])
def test_every_control_has_the_reader_of_an_arm_that_is_run(task: str) -> None:
    options = SimpleNamespace(task=task, steps_latent=10, rule="soft", prompt=" {text}", arms=[])
    arms = trace.arms_of(options, lambda text, tokens: text)
    names = [arm.name for arm in arms]
    assert len(names) == len({*names})
    assert {arm.tuned_as for arm in arms if arm.tuned_as} <= {*names}
    assert {0, 1, 2, 5, 10, 20, 40} <= {arm.plan.steps for arm in arms}


def test_a_row_of_symbols_holds_what_agents_read_and_right_answers() -> None:
    graph = next(graphs("train", 1, 1))
    words, learned = train_symbols.row(graph, random.Random(0), walks=True, listed=True)
    assert len(words) == len(learned)
    edges = {edge for own in graph.edges for edge in own}
    begins = [at for at, word in enumerate(words) if word == "from"]
    for agents, at in enumerate(begins, start=1):
        known = {edge for own in graph.edges[:agents] for edge in own}
        walked = words[at + 1 : at + 2 + train_symbols.WALK]
        ended = walked.index("end") if "end" in walked else len(walked)
        assert {*pairwise(walked[:ended])} <= known
        assert ended == len(walked) or not any(a == walked[ended - 1] for a, _ in known)
    listed = words[words.index("all") + 1 : words.index("end", words.index("all"))]
    assert {*listed} == {node for nodes in graph.case.frontier[-1] for node in nodes}
    assert {b for _, b in edges} >= {*listed}
    for at, word in enumerate(words):
        if word == "?":
            assert words[at + 1] in listed
            assert learned[at + 1]
