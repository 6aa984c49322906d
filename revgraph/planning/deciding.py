"""Deciding: plans made by hand, by default, and for ordinary autograd."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from revgraph.errors import PlanError
from revgraph.graph import Graph, Node
from revgraph.planning.plans import DECISIONS, TERM, Decision, Plan, Source
from revgraph.planning.profiles import GENERIC, DeviceProfile
from revgraph.planning.schedule import schedule
from revgraph.planning.simulating import weigh
from revgraph.planning.sources import sources_from, sources_of


def check_graph(graph: object) -> None:
    """Refuse what is no graph.

    Raises:
        PlanError: it is something else, such as the net that has the graph.
    """
    if not isinstance(graph, Graph):
        hint = ": give its .graph" if isinstance(getattr(graph, "graph", None), Graph) else ""
        raise PlanError(f"plans are made for a revgraph.Graph, and this is a {type(graph).__name__}{hint}")


def keep_all(graph: Graph, profile: DeviceProfile = GENERIC) -> Plan:
    """The plan of ordinary autograd, the baseline: everything kept."""
    check_graph(graph)
    return decide(graph, dict.fromkeys((node.name for node in graph.planned), "keep"), profile=profile)


AHEAD = "runs again ahead of its backward, with its inputs at hand"
"""Why a node that was to be inverted is recomputed."""


def decide(
    graph: Graph,
    decisions: Mapping[str, Decision],
    anchors: Iterable[str] = (),
    stored: Iterable[str] | None = None,
    reruns: Iterable[str] = (),
    holds: Mapping[str, str] | None = None,
    drops: Mapping[str, Iterable[str]] | None = None,
    results: Mapping[str, Iterable[int]] | None = None,
    profile: DeviceProfile = GENERIC,
) -> Plan:
    """A plan by hand: `decisions` for any nodes, the others as `plan` would start (invert couplings).

    `anchors` are values to store on top of what the decisions need; `stored` are in place of both exactly the
    values to store. `reruns` are nodes whose outputs come back by running them again, where nothing cheaper
    gives them. `holds`, `drops` and `results` are those of the `Plan`; `profile` is what its time is told by.

    Raises:
        PlanError: a name is not in the graph, what is asked for does not fit the node, or a value that a
            replay reads could not come back.

    Example:
        >>> import torch, revgraph as rg
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4)))
        >>> net = rg.trace(model, torch.ones(2, 4))
        >>> once_more = {name: "recompute" for name in "0123"}
        >>> rg.decide(net.graph, once_more).stored
        ('0', '1', '2')
        >>> segment = rg.decide(net.graph, once_more, stored=["1"], reruns=["0", "2"], holds={"2": "3"})
        >>> segment.sources["2"]
        Source(how='recomputed', node='2')
    """
    check_graph(graph)
    if not isinstance(decisions, Mapping):
        raise PlanError(
            "decisions are given by name, such as {'block.f': 'keep'}, and this is a "
            f"{type(decisions).__name__}"
        )
    chosen: dict[str, Decision] = {node.name: _natural(node) for node in graph.planned}
    for name, decision in decisions.items():
        _check_node(name, chosen)
        if decision not in DECISIONS:
            raise PlanError(
                f"{decision!r} is no decision for {name!r}; the decisions are {', '.join(DECISIONS)}"
            )
        if decision == "invert" and graph.node[name].kind != "coupling":
            raise PlanError(f"boundary {name!r} cannot be inverted: keep or recompute it")
        chosen[name] = decision
    anchors = anchored(graph, anchors)
    reruns = tuple(dict.fromkeys(reruns))
    check_reruns(graph, chosen, reruns, holds or {})
    if stored is None:
        stored, sources = sources_of(graph, chosen, anchors, reruns)
    else:
        stored = _exactly(graph, stored, anchors)
        sources = sources_from(graph, chosen, stored, reruns)
    reasons = {
        node.name: "as asked" if node.name in decisions else _reason(node, chosen[node.name])
        for node in graph.planned
    }
    plan = captured_ahead(unweighed(graph, chosen, stored, sources, holds, drops, results, profile))
    reasons |= {name: AHEAD for name in plan.holds if plan.decisions[name] != chosen[name]}
    return finished(plan.noted(reasons=reasons, anchors=anchors))


def unweighed(
    graph: Graph,
    chosen: Mapping[str, Decision],
    stored: tuple[str, ...],
    sources: Mapping[str, Source],
    holds: Mapping[str, str] | None = None,
    drops: Mapping[str, Iterable[str]] | None = None,
    results: Mapping[str, Iterable[int]] | None = None,
    profile: DeviceProfile = GENERIC,
) -> Plan:
    """The plan of decisions on all nodes and of the sources that they lead to, before it is simulated.

    Raises:
        PlanError: what is asked for does not fit a node.
    """
    holds = dict(holds or {})
    return Plan(
        graph=graph,
        decisions=chosen,
        stored=stored,
        sources=sources,
        reasons={},
        peak_bytes=0,
        held_bytes=0,
        peak_at="",
        flops_ratio=1.0,
        results=_checked_results(graph, chosen, holds, results or {}),
        holds=holds,
        drops=_checked_drops(graph, chosen, stored, drops or {}),
        profile=profile,
    )


def captured_ahead(plan: Plan) -> Plan:
    """The plan in which nodes that are run again ahead of their backward are recomputed, and not inverted.

    That run captures all that their backward needs, and leaves nothing to invert.
    """
    inverted = {source.node for source in plan.sources.values() if source.how == "inverted"}
    ahead = {name for name in captured_nodes(plan) - inverted if plan.decisions[name] == "invert"}
    again: dict[str, Decision] = dict.fromkeys(ahead, "recompute")
    return replace(plan, decisions={**plan.decisions, **again}) if ahead else plan


def captured_nodes(plan: Plan) -> set[str]:
    """The nodes that a rerun captures ahead of their backward."""
    if not plan.holds:
        return set()
    return {each.node for each in schedule(plan) if each.action == "recompute_and_keep"}


def anchored(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """The anchors of a plan: values to store, once each, without the caller's inputs, which are always there.

    Raises:
        PlanError: a name is no value of the graph.
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in graph.value:
            raise PlanError(f"anchor {name!r} is no value of the graph")
    return tuple(name for name in names if name not in graph.inputs)


def _check_node(name: str, chosen: Mapping[str, Decision]) -> None:
    if name not in chosen:
        close = difflib.get_close_matches(name, chosen, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise PlanError(f"the graph has no coupling or boundary named {name!r}{hint}")


def _exactly(graph: Graph, stored: Iterable[str], anchors: tuple[str, ...]) -> tuple[str, ...]:
    """The values to store, in the graph's order and without the caller's inputs, which are always there."""
    if anchors:
        raise PlanError(
            "anchors come on top of what the decisions need, and `stored` is exactly what to store: give one "
            "of the two"
        )
    names = set(stored)
    for name in names - graph.value.keys():
        raise PlanError(f"{name!r}, to be stored, is no value of the graph")
    return tuple(value.name for value in graph.values if value.name in names - set(graph.inputs))


def check_reruns(
    graph: Graph, chosen: Mapping[str, Decision], reruns: Sequence[str], holds: Mapping[str, str]
) -> None:
    """Nothing, where these nodes can be rerun, and those of `holds` captured in the stages named.

    Raises:
        PlanError: which node cannot, and why.
    """
    for name in reruns:
        _check_node(name, chosen)
        if chosen[name] == "keep":
            raise PlanError(f"{name!r} is kept, so it is never rerun: recompute it, or take it out of reruns")
    place = {node.name: index for index, node in enumerate(graph.planned)} if holds else {}
    rerun = frozenset(reruns)
    for name, stage in holds.items():
        _check_node(name, chosen)
        _check_node(stage, chosen)
        if name not in rerun:
            raise PlanError(f"{name!r} cannot be held from the stage of {stage!r}, for it is not in reruns")
        if place[stage] <= place[name]:
            raise PlanError(
                f"{name!r} cannot be held from the stage of {stage!r}, which is not before its own"
            )
        if chosen[stage] == "keep" or stage in holds:
            why = "is kept" if chosen[stage] == "keep" else f"is held itself, from that of {holds[stage]!r}"
            raise PlanError(
                f"{name!r} cannot be held from the stage of {stage!r}: nothing is derived there, for "
                f"{stage!r} {why}"
            )


def _checked_drops(
    graph: Graph, chosen: Mapping[str, Decision], stored: tuple[str, ...], drops: Mapping[str, Iterable[str]]
) -> dict[str, tuple[str, ...]]:
    checked: dict[str, tuple[str, ...]] = {}
    for stage, names in drops.items():
        _check_node(stage, chosen)
        checked[stage] = tuple(dict.fromkeys(names))
        for name in checked[stage]:
            if name not in graph.value:
                raise PlanError(f"{name!r}, to be dropped after {stage!r}, is no value of the graph")
            if name in stored or name in graph.inputs:
                raise PlanError(
                    f"{name!r} cannot be dropped after {stage!r}, for it is stored: only rebuilt values can"
                )
    return checked


def _checked_results(
    graph: Graph,
    chosen: Mapping[str, Decision],
    holds: Mapping[str, str],
    results: Mapping[str, Iterable[int]],
) -> dict[str, tuple[int, ...]]:
    checked: dict[str, tuple[int, ...]] = {}
    for name, indices in results.items():
        _check_node(name, chosen)
        indices = tuple(indices)
        for index in indices:
            if not isinstance(index, int) or isinstance(index, bool) or index < TERM:
                raise PlanError(
                    f"{index!r} is no result of {name!r}: results are counted from 0, and the term is {TERM}"
                )
            if index == TERM and graph.node[name].kind != "coupling":
                raise PlanError(f"boundary {name!r} has no term to keep: results are counted from 0")
            heavy = graph.node[name].cost.heavy_results
            if graph.node[name].cost.courses and index >= heavy:
                raise PlanError(
                    f"{name!r} has no result {index}: its function runs {heavy} heavy operators, and they "
                    "are counted from 0"
                )
        if indices and chosen[name] == "keep":
            raise PlanError(f"{name!r} is kept with all its internals: it has no use for kept results")
        if indices and name in holds:
            raise PlanError(
                f"{name!r} is held from the stage of {holds[name]!r}, by a rerun that computes all of it "
                "anew: it has no use for kept results. Leave it out of `results` or of `holds`."
            )
        if not _is_silent(graph.node[name], chosen[name]):  # otherwise they would lie there for no replay
            checked[name] = tuple(sorted(set(indices)))
    return checked


def _is_silent(node: Node, decision: Decision) -> bool:
    """Whether costs say that a node saves nothing under this decision, or that no gradient reaches it."""
    return decision in node.cost.courses and not node.cost.courses[decision].replays


def finished(plan: Plan) -> Plan:
    """The plan with what its simulation gives: bytes at the peak and at the turn, and FLOPs.

    Raises:
        PlanError: a step of its schedule reads what is not in memory.
    """
    weight = weigh(plan)
    if weight.peak_step is None:
        return plan
    ordinary = plan.graph.worked_out(Ordinary)
    plain = ordinary.nanoseconds(plan.graph, plan.profile)
    return plan.noted(
        peak_bytes=weight.peak_bytes,
        held_bytes=weight.held_bytes,
        peak_at=f"{weight.peak_step.action} of {weight.peak_step.node}",
        flops_ratio=weight.flops / ordinary.flops if ordinary.flops else 1.0,
        time_ratio=weight.nanoseconds / plain if plain else 1.0,
        ordinary_bytes=ordinary.peak_bytes,
    )


class Ordinary:
    """A step of ordinary autograd, which plans are compared with; made once for a graph and kept with it."""

    def __init__(self, graph: Graph) -> None:
        self.flops = sum(node.cost.flops + node.cost.backward_flops for node in graph.nodes)
        self.peak_bytes = weigh(_kept(graph, GENERIC)).peak_bytes
        self._nanoseconds: dict[DeviceProfile, int] = {}

    def nanoseconds(self, graph: Graph, profile: DeviceProfile) -> int:
        """How long it takes by a profile."""
        if profile not in self._nanoseconds:
            self._nanoseconds[profile] = weigh(_kept(graph, profile)).nanoseconds
        return self._nanoseconds[profile]


def _kept(graph: Graph, profile: DeviceProfile) -> Plan:
    """The plan that keeps everything, without what is told of it."""
    decisions: dict[str, Decision] = {node.name: "keep" for node in graph.planned}
    return Plan(graph, decisions, (), {}, {}, 0, 0, "", 1.0, profile=profile)


def _natural(node: Node) -> Decision:
    return cast("Decision", "invert" if node.kind == "coupling" else "keep")


def _reason(node: Node, decision: Decision) -> str:
    if decision == "invert":
        return f"for {node.target!r} follows from {node.outputs[0]!r} and what its function reads"
    return "for a boundary cannot be undone"
