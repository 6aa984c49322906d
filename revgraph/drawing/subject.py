"""What a drawing shows: a graph, folded or not, and the plan for it if there is one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from revgraph.folding import Fold, find_folds, up_to_change
from revgraph.graph import Graph, Node
from revgraph.planning.plans import Plan

FOLD_ABOVE = 32
"""Nodes above which a graph is folded unless the caller says otherwise."""


@dataclass(frozen=True, slots=True)
class Block:
    """One drawn block, by its node names, which stands for `count` blocks from `first` to `last`.

    These two are names up to the number in which they differ.
    """

    nodes: tuple[str, ...]
    first: str
    last: str
    count: int

    @property
    def stem(self) -> str:
        """What comes before the number."""
        return self.last.rstrip("0123456789")


@dataclass(frozen=True)
class Subject:
    """A graph as it is drawn.

    `graph` has one block left of each repetition, the last, wired to what the first one read. `shown` leads
    from every node of the full graph to the node drawn for it, `copies` from a stored value to how many
    stored values it stands for. `full` is the graph before folding; `peak_nodes` are the drawn nodes that the
    plan's peak names.
    """

    graph: Graph
    full: Graph
    plan: Plan | None
    blocks: tuple[Block, ...]
    shown: Mapping[str, str]
    copies: Mapping[str, int]
    peak_nodes: frozenset[str]


def subject(drawn: Graph | Plan, fold: bool | None = None) -> Subject:
    """What to draw of a graph or plan; `fold` None folds graphs of more than `FOLD_ABOVE` nodes."""
    plan = drawn if isinstance(drawn, Plan) else None
    full = drawn.graph if isinstance(drawn, Plan) else drawn
    stored = frozenset(plan.stored) if plan else frozenset()
    folds: tuple[Fold, ...] = ()
    if fold or (fold is None and len(full.nodes) > FOLD_ABOVE):
        marks = {name: plan.decided(name) for name in plan.decisions} if plan else {}
        folds = find_folds(full, marks, stored)
    shown = {node.name: node.name for node in full.nodes}
    copies: Counter[str] = Counter(stored)
    entries: dict[tuple[str, str], str] = {}
    blocks: list[Block] = []
    hidden: set[str] = set()
    for each in folds:
        kept = full.nodes[each.end - each.period : each.end]
        inside = {name for node in kept for name in node.outputs}
        blocks.append(_block(full, each, kept))
        for index in range(each.start, each.end - each.period):
            node, twin = full.nodes[index], kept[(index - each.start) % each.period]
            hidden.add(node.name)
            shown[node.name] = twin.name
            for name, again in zip(node.outputs, twin.outputs, strict=True):
                copies[again] += name in stored
        for node, twin in zip(full.nodes[each.start :], kept, strict=False):
            for name, again in zip(node.inputs, twin.inputs, strict=True):
                if again not in inside:
                    entries[twin.name, again] = name
    nodes = tuple(_rewired(node, entries) for node in full.nodes if node.name not in hidden)
    made = {name for node in nodes for name in node.outputs}
    graph = replace(full, nodes=nodes, values=tuple(value for value in full.values if value.name in made))
    peak = frozenset(shown[name] for name in _peak_names(plan)) if plan else frozenset[str]()
    return Subject(graph, full, plan, tuple(blocks), shown, +copies, peak)


def _rewired(node: Node, entries: Mapping[tuple[str, str], str]) -> Node:
    def entry(name: str) -> str:
        return entries.get((node.name, name), name)

    inputs = tuple(entry(name) for name in node.inputs)
    return replace(node, inputs=inputs, target=None if node.target is None else entry(node.target))


def _block(graph: Graph, fold: Fold, kept: tuple[Node, ...]) -> Block:
    first, last = up_to_change(graph.nodes[fold.start].name, kept[0].name)
    return Block(tuple(node.name for node in kept), first, last, fold.count)


def _peak_names(plan: Plan) -> set[str]:
    if plan.peak_at in plan.graph.node:
        return {plan.peak_at}
    words = {word.strip("'\",;:()[]") for word in re.split(r"\s+", plan.peak_at)}
    return words & set(plan.graph.node)
