"""What a drawing shows: a graph, folded or not, and the plan for it if there is one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from revgraph.folding import Fold, find_folds, up_to_change
from revgraph.graph import Graph, Node
from revgraph.planning.accounting import holdings
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
    from every node of the full graph to the node drawn for it. `stored` leads from a drawn value to the bytes
    of every stored value that it stands for, `own` from a drawn node to what every node that it stands for
    holds besides between forward and backward: with what the caller holds, these are the plan's held bytes.
    `full` is the graph before folding; `peak_nodes` are the drawn nodes that the plan's peak names.
    """

    graph: Graph
    full: Graph
    plan: Plan | None
    blocks: tuple[Block, ...]
    shown: Mapping[str, str]
    stored: Mapping[str, tuple[int, ...]]
    own: Mapping[str, tuple[int, ...]]
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
    told = {name: name for name in (plan.stored if plan else ())}
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
                if name in stored:
                    told[name] = again
        for node, twin in zip(full.nodes[each.start :], kept, strict=False):
            for name, again in zip(node.inputs, twin.inputs, strict=True):
                if again not in inside:
                    entries[twin.name, again] = name
    nodes = tuple(_rewired(node, entries) for node in full.nodes if node.name not in hidden)
    made = {name for node in nodes for name in node.outputs}
    graph = replace(full, nodes=nodes, values=tuple(value for value in full.values if value.name in made))
    peak = frozenset(shown[name] for name in _peak_names(plan)) if plan else frozenset[str]()
    return Subject(graph, full, plan, tuple(blocks), shown, *_held(plan, shown, told), peak)


def _held(
    plan: Plan | None, shown: Mapping[str, str], told: Mapping[str, str]
) -> tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]]:
    """`stored` and `own` of a subject, from the nodes and the values that stand for others."""
    stored: defaultdict[str, tuple[int, ...]] = defaultdict(tuple)
    own: defaultdict[str, tuple[int, ...]] = defaultdict(tuple)
    if plan is None:
        return {}, {}
    graph, sizes, owns = plan.graph, dict.fromkeys(plan.stored, 0), dict[str, int]()
    if any(node.cost.courses for node in graph.nodes):
        for each in holdings(plan)[:-1]:
            sizes.update(each.values)
            owns[each.node] = each.own_bytes
    else:  # traced without costs: what is known is how large values are
        first = {graph.value[name].storage: name for name in reversed(plan.stored)}
        sizes.update((name, graph.value[name].nbytes) for name in first.values())
        kept = (node for node in graph.planned if plan.decisions[node.name] == "keep")
        owns = {node.name: node.cost.saved_bytes for node in kept}
    for name, drawn in told.items():
        stored[drawn] += (sizes[name],)
    for name, size in owns.items():
        own[shown[name]] += (size,)
    return dict(stored), dict(own)


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
