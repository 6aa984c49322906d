"""Pools of the graphs that were planned last: a net that is traced again is not searched again.

A pool is a function of what a plan depends on in a graph (`same_graph`), of anchors, effort and cost, and its
solutions name nodes and values by number. So it serves every graph that is the same in these, and whether it
was known or searched for makes no difference to a plan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import replace
from typing import NamedTuple

from revgraph.graph import Graph
from revgraph.planning.same_graph import difference
from revgraph.planning.solver.pool import Front, Pool

# Of so many graphs pools are kept.
MOST = 16


class Fronts(NamedTuple):
    """What a pool found: of all solutions, and of those that run nothing more than once again."""

    every: Front
    once: Front


class _Known(NamedTuple):
    key: Hashable
    graph: Graph
    fronts: Fronts


_known: deque[_Known] = deque(maxlen=MOST)


def known(graph: Graph, key: Hashable) -> Fronts | None:
    """What was found for a graph that is the same to plans, with the same anchors, effort and cost."""
    for each in tuple(_known):
        if (
            each.key == key
            and len(each.graph.nodes) == len(graph.nodes)
            and not difference(each.graph, graph)
        ):
            return each.fronts
    return None


def note(graph: Graph, key: Hashable, pool: Pool) -> Fronts:
    """What the pool found, which is known from now on of a graph with these nodes, values and costs."""
    fronts = Fronts(pool.every, pool.once)
    _known.append(_Known(key, _copied(graph), fronts))
    return fronts


def _copied(graph: Graph) -> Graph:
    """The graph as it is now: courses stand in dictionaries, which may be changed later."""
    nodes = (replace(node, cost=replace(node.cost, courses=dict(node.cost.courses))) for node in graph.nodes)
    return replace(graph, nodes=tuple(nodes))


def forget() -> None:
    """Know nothing any more, so that the next plan of any graph is searched for."""
    _known.clear()
