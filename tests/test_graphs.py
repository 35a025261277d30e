"""Split graphs: nothing but following edges tells the two nodes of a question apart, and no agent knows them all."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ilcp.errors import ConfigError
from ilcp.identity import digest
from ilcp.tasks import read_jsonl
from ilcp.tasks.cases import cases_digest
from ilcp.tasks.graphs import HOPS, NODES, SIZE, Graph, frontier, graphs
from ilcp.tasks.written import merged, write_jsonl
from ilcp_codecs.trace import cut

MANY = [*graphs("train", 0, 200)]


def edges_of(graph: Graph) -> list[tuple[str, str]]:
    """The edges of both agents."""
    return [edge for own in graph.edges for edge in own]


def distances(edges: Iterable[tuple[str, str]], root: str) -> dict[str, int]:
    """How many edges each node that can be reached is from the root: breadth first, one node at a time."""
    known, found, queue = list(edges), {root: 0}, [root]
    while queue:
        here = queue.pop(0)
        for a, b in known:
            if a == here and b not in found:
                found[b] = found[here] + 1
                queue.append(b)
    return found


def shape(edges: Iterable[tuple[str, str]], root: str) -> Any:
    """The tree below a node without names; those of equal shape are equal."""
    known = list(edges)
    return tuple(sorted(shape(known, b) for a, b in known if a == root))


def test_a_graph_is_that_of_its_split_seed_and_number() -> None:
    """The same again, whichever part of the stream is asked for; another split, seed, number or hops is another."""
    assert MANY[:5] == [*graphs("train", 0, 5)]
    assert MANY[3:5] == [*graphs("train", 0, 2, start=3)]
    assert [] == [*graphs("train", 0, 0)]
    others = [*graphs("test", 0, 200), *graphs("train", 1, 200), *graphs("train", 0, 200, start=200)]
    contexts = [graph.case.context for graph in (*MANY, *others)]
    assert len(contexts) == len(set(contexts))
    assert len(contexts) == len({graph.case.id for graph in (*MANY, *others)})
    assert [*graphs("train", 0, 5, hops=(1, 2))] != MANY[:5]


def test_the_answer_is_exactly_so_many_edges_from_the_root_and_the_other_is_not_reached() -> None:
    for graph in MANY:
        far = distances(edges_of(graph), graph.root)
        for hops, question in zip(HOPS, graph.case.questions, strict=True):
            pair = question.text.removesuffix(" ?").split(" or ")
            assert tuple(pair) == question.choices
            (other,) = {*pair} - {question.answer}
            assert far[question.answer] == hops
            assert other not in far
            assert question.kind == ("1 hop" if hops == 1 else f"{hops} hops")


def test_both_trees_have_one_shape_and_both_nodes_of_a_question_one_depth() -> None:
    for graph in MANY:
        edges = edges_of(graph)
        (other,) = {a for a, _ in edges} - {b for _, b in edges} - {graph.root}
        assert shape(edges, graph.root) == shape(edges, other)
        near, far = distances(edges, graph.root), distances(edges, other)
        assert (SIZE, SIZE) == (len(near), len(far))
        assert not {*near} & {*far}
        assert {*near, *far} <= {*NODES}
        assert len(edges) == len({b for _, b in edges}) == 2 * (SIZE - 1)  # one way to each node
        for hops, question in zip(HOPS, graph.case.questions, strict=True):
            assert question.choices is not None
            assert {hops} == {(near | far)[node] for node in question.choices}


def test_each_agent_knows_half_of_the_edges_and_its_paragraph_says_them() -> None:
    for graph in MANY:
        first, second = ({*own} for own in graph.edges)
        assert not first & second
        assert len(first) == len(second) == SIZE - 1
        parts = cut(graph.case.context, 2)
        assert parts == [" ".join([*(f"{a} {b} ;" for a, b in own), "from", graph.root]) for own in graph.edges]


def test_no_agent_answers_alone_and_no_place_gives_the_answer_away() -> None:
    """Of two hops and more, one agent's edges lead to less than all answers; the answer stands first as often."""
    asked = [(graph, q, hops) for graph in MANY for hops, q in zip(HOPS, graph.case.questions, strict=True)]
    for hops in HOPS[1:]:
        for own in (0, 1):
            led = [q.answer in distances(graph.edges[own], graph.root) for graph, q, far in asked if far == hops]
            assert sum(led) / len(led) < 0.4
    first = Counter(q.text.startswith(q.answer) for _, q, _ in asked)
    assert 0.42 < first[True] / len(asked) < 0.58
    heads = Counter(graph.edges[0][0][0] in distances(edges_of(graph), graph.root) for graph in MANY)
    assert 0.35 < heads[True] / len(MANY) < 0.65  # nor does the order of the edges


def test_the_frontier_is_that_of_a_breadth_first_search() -> None:
    """Of what the first agent knows, then of what both do; each distance in order, up to the farthest."""
    for graph in MANY:
        edges = edges_of(graph)
        far = distances(edges, graph.root)
        expected = [tuple(sorted(node for node in far if far[node] == n)) for n in range(1, max(far.values()) + 1)]
        assert tuple(expected) == frontier(edges, graph.root) == graph.case.frontier[1]
        assert frontier(graph.edges[0], graph.root) == graph.case.frontier[0]
        for ours, all_of_it in zip(graph.case.frontier[0], expected, strict=False):
            assert {*ours} <= {*all_of_it}
        for hops, question in zip(HOPS, graph.case.questions, strict=True):
            assert question.answer in graph.case.frontier[1][hops - 1]
    assert () == frontier([], "ba")
    assert (("di",),) == frontier([("ba", "di"), ("fu", "ga")], "ba")


@pytest.mark.parametrize("hops", [(), (0,), (SIZE - 1,), (2, 1), (1, 1), (-1, 2), (1, SIZE)])
def test_hops_out_of_range_are_refused(hops: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=f"hops from 1 to {SIZE - 2} in ascending order, got"):
        next(graphs("train", 0, 1, hops=hops))


@pytest.mark.parametrize("hops", [(1,), (8,), (2, 5), tuple(range(1, SIZE - 1))])
def test_any_hops_in_range_have_a_question_each(hops: tuple[int, ...]) -> None:
    for graph in graphs("train", 0, 20, hops=hops):
        far = distances(edges_of(graph), graph.root)
        assert [*hops] == [far[question.answer] for question in graph.case.questions]


def test_cases_come_back_from_their_file_with_their_frontier(tmp_path: Path) -> None:
    cases = [graph.case for graph in MANY[:5]]
    write_jsonl(tmp_path / "graphs.jsonl", cases)
    again = merged(read_jsonl(tmp_path / "graphs.jsonl"))
    for one, other in zip(cases, again, strict=True):
        assert (one.id, one.context, one.frontier) == (other.id, other.context, other.frontier)
        assert [(q.text, q.answer, q.kind) for q in one.questions] == [
            (q.text, q.answer, q.kind) for q in other.questions
        ]


@pytest.mark.parametrize("spoilt", [7, "ba", ["ba"], [["ba"]], [[[7]]], {"a": 1}])
def test_a_frontier_that_is_none_is_refused_with_its_line(spoilt: Any, tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_text(json.dumps({"context": "a", "question": "b", "answer": "c", "frontier": spoilt}) + "\n")
    with pytest.raises(ConfigError, match=r"cases\.jsonl.*1: expected 'frontier' to be for each agent, of each step"):
        [*read_jsonl(file)]


def test_a_case_without_a_frontier_has_the_digest_that_it_always_had() -> None:
    """And what should be in mind counts, where there is something."""
    case = MANY[0].case
    bare = replace(case, frontier=())
    record = {name: value for name, value in asdict(bare).items() if name != "frontier"}
    assert cases_digest([bare]) == digest(json.dumps(record, sort_keys=True).encode()).hex()
    assert cases_digest([case]) != cases_digest([bare])
