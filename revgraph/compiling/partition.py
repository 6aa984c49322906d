"""Partition: a plan's schedule, lowered into the joint graph of forward and backward that AOTAutograd made.

In comes a joint graph with marks (`marking`), out go the graphs of forward and backward without. What comes
back when is not decided here: the backward is written instruction by instruction of the schedule (`replays`
and `gradients`).

How it is known what is whose: marks cut the graph into regions, the forward and the backward operators of
each node. A region reads values by marks alone, so that "the value as node k reads it" is one node of the
joint graph, and stands for the stored value where k is kept, and for the one at hand in k's replay otherwise.

What is kept true:
- Every operator of a backward that reads something of a forward reads the copy that the node's replay made.
- Random numbers are drawn once: what an operator drew is saved, or drawn again from a seed that is.
- Buffers are written once, by the forward; what reads one that a forward writes reads a copy made before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from revgraph.compiling.copies import Copies
from revgraph.compiling.demands import Demands
from revgraph.compiling.gradients import Gradients
from revgraph.compiling.inverses import Decompositions, Inverses
from revgraph.compiling.marking import Marked
from revgraph.compiling.regions import Reading, is_saved, is_tangent, value_of, writes, written_inputs
from revgraph.compiling.replays import Replays
from revgraph.engine.executable import refuse_half
from revgraph.planning.plans import Plan
from revgraph.planning.schedule import REPLAYING, Schedule

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Partition:
    """The joint graph in the schedule's order, what of it is saved for the backward, and the schedule."""

    joint: fx.GraphModule
    saved: list[fx.Node]
    saved_numbers: list[fx.Node]
    schedule: Schedule


def partitioned(
    joint: fx.GraphModule,
    forward_outputs: int,
    marked: Marked,
    plan: Plan,
    decompositions: Decompositions | None = None,
    fuses: bool = False,
) -> Partition:
    """The joint graph of a marked program, without marks and with a backward as the plan's schedule has it.

    For a compiler that `fuses`, choices are made within nodes (`choices`), and replays on the forward's own
    values take statistics and the like from there, which costs few bytes and saves a pass over large ones.

    Raises:
        PlanError: what a node does cannot be repeated or undone in a compiled graph.
        TraceError: a stream to be inverted is in half precision, and was not when the net was traced.
    """
    reading = Reading(joint, forward_outputs, marked)
    written = written_inputs(reading)
    demands = Demands(reading, plan, fuses)
    _refuse_half(reading, plan)
    copies = Copies(reading, demands.held if fuses else None)
    results = _write_forward(copies, demands, written)
    forward_nodes = set(copies.graph.nodes)
    replays = Replays(copies, demands, Inverses(copies, marked, plan.graph, decompositions), plan)
    gradients = Gradients(copies, demands, plan, replays.contexts)
    for each in demands.schedule:
        if each.action in REPLAYING:
            replays.write(each)
        elif each.action == "backward":
            gradients.write(each.node)
    asked = [gradients.result(each) for each in reading.backward_results]
    output = copies.graph.output((*results, *asked))
    output.meta = dict(reading.output.meta)
    lowered = fx.GraphModule(joint, copies.graph)
    lowered.graph.lint()
    used = _used_by(copies.graph, asked, forward_nodes)
    saved = [node for node in used if isinstance(value_of(node), Tensor)]
    numbers = [node for node in used if not isinstance(value_of(node), Tensor)]
    return Partition(lowered, saved, numbers, demands.schedule)


def _write_forward(copies: Copies, demands: Demands, written: Collection[fx.Node]) -> list[Any]:
    """Copy the forward, and what the backward takes from it, as it is; its results."""
    reading = copies.reading
    for node in reading.nodes:
        if node.op in ("placeholder", "get_attr"):
            copies.originals[node] = copies.graph.node_copy(node)
    for node in reading.nodes:
        if node.op == "placeholder" and node in written:
            copies.copy_before_writing(node)
    taken = demands.taken()
    for node in reading.nodes:  # in order: a result of several tensors lives until the last is taken out
        is_operator = node.op == "call_function" and node not in reading.backward
        is_number = isinstance(value_of(node), (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))
        needed = node in reading.forward or node in taken or is_saved(node) or is_number
        if is_operator and needed and not writes(node):
            copies.original(node)
    results = [
        copies.original(each) if isinstance(each, fx.Node) else each for each in reading.forward_results
    ]
    results = _distinct(copies.graph, results)
    for node in reading.nodes:
        if node not in reading.backward and writes(node):
            copies.original(node)
    return results


def _distinct(graph: fx.Graph, results: Sequence[Any]) -> list[Any]:
    """A forward's results, no tensor twice: autograd takes each result for a tensor of its own."""
    seen = set[Any]()
    found = list(results)
    for index, each in enumerate(found):
        if isinstance(each, fx.Node) and isinstance(value_of(each), Tensor):
            if each in seen or each.op == "placeholder":
                found[index] = graph.call_function(aten.alias.default, (each,))
                found[index].meta = {"val": each.meta["val"]}
            seen.add(each)
    return found


def _refuse_half(reading: Reading, plan: Plan) -> None:
    for name, decision in plan.decisions.items():
        target = plan.graph.node[name].target
        if decision == "invert" and target in reading.made:
            dtype = value_of(reading.made[target]).dtype
            refuse_half(name, target, dtype, plan.graph.value[target].dtype)


def _used_by(graph: fx.Graph, results: Sequence[Any], forward: set[fx.Node]) -> list[fx.Node]:
    """What the backward takes from the forward, in its order."""
    seen: set[fx.Node] = set()
    used: set[fx.Node] = set()
    pending = [each for each in results if isinstance(each, fx.Node)]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in forward:
            if not (node.op == "placeholder" and is_tangent(node)) and node.op != "get_attr":
                used.add(node)
        else:
            pending += node.all_input_nodes
    return [node for node in graph.nodes if node in used]
