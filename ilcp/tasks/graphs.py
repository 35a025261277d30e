"""Split graphs: which of two nodes can be reached from a root, where two agents know half of the edges each.

::

    ma ki ; to re ; ... from ma        the first agent's edges, drawn at random, and the root
    ki lu ; re sa ; ... from ma        the second one's

    sa or lu ?                         lu

Two trees of one shape: one grows from the root, the other from a node that nobody asks about. The two nodes of a
question stand at the same depth, each in its own tree, so that nothing but following edges tells them apart (as in
ProsQA, arXiv 2412.06769). Where a node leads next is known to one agent only, half of the time.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from ilcp.errors import ConfigError
from ilcp.tasks.cases import Case, Question

__all__ = ["NODES", "Graph", "frontier", "graphs"]

NODES = tuple("".join(pair) for pair in product("bdfgklmnprst", "aeiou"))[:48]
HOPS = (1, 2, 3, 4)
SIZE = 10  # nodes of a tree


@dataclass(frozen=True, slots=True)
class Graph:
    """The edges of each agent, the root, and the case that asks about them, whose frontier are the nodes reached."""

    edges: tuple[tuple[tuple[str, str], ...], ...]
    root: str
    case: Case


def frontier(edges: Sequence[tuple[str, str]], root: str) -> tuple[tuple[str, ...], ...]:
    """Returns the nodes that are 1, 2, ... edges from the root, as far as there are any."""
    found, now = [], {root}
    for _ in edges:  # of a cycle there is no end
        if not (now := {b for a, b in edges if a in now}):
            break
        found.append(tuple(sorted(now)))
    return tuple(found)


def graphs(split: str, seed: int, n: int, *, start: int = 0, hops: tuple[int, ...] = HOPS) -> Iterator[Graph]:
    """Yields ``n`` graphs from number ``start`` on, each with a question for every number of ``hops``.

    Raises:
        ConfigError: the hops are not 1 to 8 in ascending order.
    """
    if not hops or list(hops) != sorted({*hops}) or not 1 <= hops[0] <= hops[-1] < SIZE - 1:
        raise ConfigError(f"expected hops from 1 to {SIZE - 2} in ascending order, got {hops}")
    for number in range(start, start + n):
        rng = random.Random(f"split graph {split} {seed} {number} {hops}")
        yield _graph(f"graph/{split}/{seed}/{number}", rng, hops)


def _graph(name: str, rng: random.Random, hops: tuple[int, ...]) -> Graph:
    nodes = rng.sample(NODES, 2 * SIZE)
    depth = _depths(rng, max(hops))
    trees = [dict(zip(range(SIZE), own, strict=True)) for own in (nodes[:SIZE], nodes[SIZE:])]
    edges = [(tree[parent], tree[child]) for tree in trees for child, (parent, _) in depth.items()]
    rng.shuffle(edges)
    halves = tuple(tuple(edges[at::2]) for at in (0, 1))
    root, questions = trees[0][0], []
    for wanted in hops:
        at = rng.choice([node for node, (_, far) in depth.items() if far == wanted])
        other = rng.choice([node for node, (_, far) in depth.items() if far == wanted])
        reached, not_reached = trees[0][at], trees[1][other]
        pair = rng.sample([reached, not_reached], 2)
        questions.append(
            Question(f"{pair[0]} or {pair[1]} ?", reached, f"{wanted} hops" if wanted > 1 else "1 hop", tuple(pair))
        )
    texts = [" ".join([*(f"{a} {b} ;" for a, b in own), "from", root]) for own in halves]
    known = tuple(frontier([edge for own in halves[:agents] for edge in own], root) for agents in (1, 2))
    return Graph(halves, root, Case(name, "\n\n".join(texts), tuple(questions), frontier=known))


def _depths(rng: random.Random, deepest: int) -> dict[int, tuple[int, int]]:
    """Returns for each node but the root its parent and its depth: a path to the deepest, and branches."""
    depth = {node: (node - 1, node) for node in range(1, deepest + 1)}
    for node in range(deepest + 1, SIZE):
        parent = rng.choice([0, *(each for each, (_, far) in depth.items() if far < deepest)])
        depth[node] = parent, 1 + (depth[parent][1] if parent else 0)
    return depth
