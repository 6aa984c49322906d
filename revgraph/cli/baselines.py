"""Baselines: what training without revgraph would take, as plans, to set a network's own plans beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from revgraph.courses import DONE, REPLAY, Course, own_bytes
from revgraph.graph import Cost, Graph, Node, Value
from revgraph.planning import Decision, Plan, decide

# A node that hands its input on: the same tensor, and so the same gradient.
HANDS_ON = Course(forward=(("same", "out0", "in0"), ("identity", 0, 0), ("drop", "in0"), ("drop", "out0")))


def checkpoint_blocks(graph: Graph) -> Plan:
    """What a training step takes with `torch.utils.checkpoint` around each block, as a plan.

    What a block reads is stored. When the last of its nodes that holds internals is differentiated, the block
    runs again from its start up to there, and its internals stay until they are used.

    A block is everything below a number in dotted names (`layers.3`), else the couplings of one module
    (`stage1.unit1`) or one boundary inside a module (`stage1.unit0`). Other boundaries, such as a network's
    stem and head, are kept.

    The plan is for a graph of its own, in which what leaves a block has a second name: a block computes its
    values again also where a later block has stored them, which a plan for `graph` would not do.
    """
    apart = _apart(graph)
    decisions: dict[str, Decision] = {node.name: "keep" for node in apart.planned}
    stored: list[str] = []
    reruns: list[str] = []
    holds: dict[str, str] = {}
    for block in _blocks(apart):
        decisions.update((node.name, "recompute") for node in block)
        stored += _read_from_outside(apart, block)
        busy = [node for node in block if _replays(node)]
        if busy:
            reruns += [node.name for node in block[: block.index(busy[-1])]]
            holds.update((node.name, busy[-1].name) for node in busy[:-1])
    return decide(apart, decisions, stored=stored, reruns=reruns, holds=holds)


def block_of(node: Node) -> str:
    """The name of the block that a node is in, "" where it is in none."""
    parts = node.name.split(".")
    for depth in range(2, len(parts)):
        if parts[depth - 1].isdigit():
            return ".".join(parts[:depth])
    if node.kind == "coupling":
        return ".".join(parts[:-1]) or node.name
    return node.name if len(parts) > 1 else ""


def _blocks(graph: Graph) -> Iterator[tuple[Node, ...]]:
    groups = groupby((node for node in graph.planned if HANDS_ON not in node.cost.courses.values()), block_of)
    return (tuple(nodes) for name, nodes in groups if name)


def _apart(graph: Graph) -> Graph:
    """The graph with a second name, given by a node of its own, for every value that leaves a block."""
    ends = {block[-1].name: block for block in _blocks(graph)}
    nodes: list[Node] = []
    values: dict[str, Value] = dict(graph.value)
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        nodes.append(_renamed(node, renamed))
        for name in _leaving(graph, ends.get(node.name, ())):
            renamed[name] = handed = f"{name} (handed on)"
            values[handed] = replace(values[name], name=handed)
            cost = Cost(frees=(name,), courses={"keep": HANDS_ON})
            nodes.append(Node(handed, "boundary", (name,), (handed,), cost=cost))
    loss = graph.loss and _renamed(graph.loss, renamed)
    return replace(graph, nodes=tuple(nodes), values=tuple(values.values()), loss=loss)


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    frees = tuple(names.get(name, name) for name in node.cost.frees)
    return replace(
        node,
        inputs=tuple(names.get(name, name) for name in node.inputs),
        target=names.get(node.target, node.target) if node.target else None,
        cost=replace(node.cost, frees=frees, courses=_without_statistics(node.cost.courses)),
    )


def _without_statistics(courses: Mapping[str, Course]) -> dict[str, Course]:
    """The courses where a recomputed node keeps nothing of its forward.

    revgraph keeps the statistics of batch normalization, torch's checkpoint computes them anew in the replay.
    """
    found = dict(courses)
    recompute, rerun = found.get("recompute"), found.get("rerun")
    if recompute is not None and rerun is not None and recompute.replays:
        kept = own_bytes(recompute.forward) - own_bytes(rerun.forward)
        forward = (*(each for each in recompute.forward if each[0] != "state"), ("use", 0, -kept))
        replay = (REPLAY, ("use", kept, kept), *recompute.in_replay, DONE)
        backward = (*recompute.before_replay, *replay, *recompute.after_replay)
        found["recompute"] = replace(recompute, forward=forward, backward=backward)
    return found


def _leaving(graph: Graph, block: Sequence[Node]) -> list[str]:
    """What the nodes of a block make, and nodes that are not of it read."""
    inside = {node.name for node in block}
    made = (name for node in block for name in node.outputs)
    return [name for name in made if any(reader.name not in inside for reader in graph.readers[name])]


def _read_from_outside(graph: Graph, block: Sequence[Node]) -> list[str]:
    """What a block's nodes, and wiring between them, read and none of these made."""
    names = {node.name for node in block}
    made: set[str] = set()
    read: dict[str, None] = {}
    for node in graph.nodes[graph.nodes.index(block[0]) : graph.nodes.index(block[-1]) + 1]:
        if node.name in names or (node.kind == "wiring" and made.intersection(node.inputs)):
            read.update(dict.fromkeys(name for name in node.inputs if name not in made))
            made.update(node.outputs)
    return list(read)


def _replays(node: Node) -> bool:
    course = node.cost.courses.get("recompute")
    return course is None or course.replays
