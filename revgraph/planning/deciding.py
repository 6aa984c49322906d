"""Deciding: plans made by hand, by default, and for ordinary autograd."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import cast

from revgraph.errors import PlanError
from revgraph.graph import Graph, Node
from revgraph.planning.plans import DECISIONS, Decision, Plan
from revgraph.planning.simulating import simulate
from revgraph.planning.sources import sources_of


def plan(graph: Graph) -> Plan:
    """The default plan: every coupling inverted, every boundary kept.

    The last couplings before the output are kept as well, as many as do not raise the predicted peak: their
    internals are needed there anyway, and they are then not evaluated twice.
    """
    inverted = [node.name for node in graph.planned if node.kind == "coupling"]

    def with_last_kept(count: int) -> Plan:
        return decide(graph, dict.fromkeys(inverted[len(inverted) - count :], "keep"))

    least = with_last_kept(0).peak_bytes

    def raises_peak(count: int) -> bool:
        return with_last_kept(count).peak_bytes > least

    beyond = 1
    while beyond <= len(inverted) and not raises_peak(beyond):
        beyond *= 2
    count = bisect_left(range(1, min(beyond, len(inverted) + 1)), True, lo=beyond // 2, key=raises_peak)
    return with_last_kept(count)


def keep_all(graph: Graph) -> Plan:
    """The plan of ordinary autograd, the baseline: everything kept."""
    return decide(graph, dict.fromkeys((node.name for node in graph.planned), "keep"))


def decide(graph: Graph, decisions: Mapping[str, Decision], anchors: Iterable[str] = ()) -> Plan:
    """A plan by hand: `decisions` for any nodes, the others as `plan` would start (invert couplings).

    `anchors` are values to store on top of what the decisions need.

    Raises:
        PlanError: a name is no node that a plan decides on, or a decision does not fit its node.
    """
    chosen: dict[str, Decision] = {node.name: _natural(node) for node in graph.planned}
    for name, decision in decisions.items():
        if name not in chosen:
            close = difflib.get_close_matches(name, chosen, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise PlanError(f"the graph has no coupling or boundary named {name!r}{hint}")
        if decision not in DECISIONS:
            raise PlanError(
                f"{decision!r} is no decision for {name!r}; the decisions are {', '.join(DECISIONS)}"
            )
        if decision == "invert" and graph.node[name].kind != "coupling":
            raise PlanError(f"boundary {name!r} cannot be inverted: keep or recompute it")
        chosen[name] = decision
    anchors = tuple(anchors)
    for name in anchors:
        if name not in graph.value:
            raise PlanError(f"anchor {name!r} is no value of the graph")
    reasons = {
        node.name: "as asked" if node.name in decisions else _reason(node, chosen[node.name], False)
        for node in graph.planned
    }
    return _plan(graph, chosen, anchors, reasons)


def _plan(
    graph: Graph, decisions: Mapping[str, Decision], anchors: tuple[str, ...], reasons: Mapping[str, str]
) -> Plan:
    stored, sources = sources_of(graph, decisions, anchors)
    return finished(
        Plan(
            graph=graph,
            decisions=dict(decisions),
            stored=stored,
            sources=sources,
            reasons=dict(reasons),
            peak_bytes=0,
            held_bytes=0,
            peak_at="",
            flops_ratio=1.0,
        )
    )


def finished(plan: Plan) -> Plan:
    """The plan with what its simulation gives: bytes at the peak and at the turn, and FLOPs.

    Raises:
        PlanError: a step of its schedule reads what is not in memory.
    """
    moments = simulate(plan)
    top = max(moments, key=lambda moment: moment.peak_bytes)
    turn = next((index for index, moment in enumerate(moments) if moment.step.action == "loss"), -1)
    plain = sum(node.cost.flops + node.cost.backward_flops for node in plan.graph.nodes)
    flops = sum(moment.flops for moment in moments)
    return replace(
        plan,
        peak_bytes=top.peak_bytes,
        held_bytes=moments[turn].live_bytes,
        peak_at=f"{top.step.action} of {top.step.node}",
        flops_ratio=flops / plain if plain else 1.0,
    )


def _natural(node: Node) -> Decision:
    return cast("Decision", "invert" if node.kind == "coupling" else "keep")


def _reason(node: Node, decision: Decision, last: bool) -> str:
    if last:
        return "for it is among the last before the output, where keeping raises no peak"
    if decision == "invert":
        return f"for {node.target!r} follows from {node.outputs[0]!r} and what its function reads"
    return "for a boundary cannot be undone"
