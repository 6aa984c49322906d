"""Drifting: how far off the values that a plan rebuilds may be, and which to store to bound that."""

from __future__ import annotations

import math

from revgraph.errors import PlanError
from revgraph.graph import Graph
from revgraph.planning.plans import Plan
from revgraph.planning.sources import rule_needs


def check_estimates(graph: Graph, max_drift: float) -> None:
    """Refuse a bound that is none, or a graph on which drift was not estimated.

    Raises:
        PlanError: which of the two.
    """
    if isinstance(max_drift, bool) or not isinstance(max_drift, (int, float)) or not 0 < max_drift < math.inf:
        raise PlanError(f"max_drift is a relative error above 0, as 1e-3, not {max_drift!r}")
    for node in graph.nodes:
        if node.kind == "coupling" and not node.cost.growth:
            raise PlanError(
                f"how errors grow through {node.name!r} was never measured: call "
                "revgraph.estimate_drift(net, *inputs) on real inputs first, and then plan net.graph"
            )


def drift_of(plan: Plan) -> dict[str, float]:
    """For every value that the plan's backward asks for, an estimate of its relative error there.

    Undoing a coupling adds its own rounding to the larger error of what it reads, times the growth that was
    measured for it. Stored values and inputs have none; wiring and reruns hand errors on.
    """
    return _walked(plan, math.inf)[0]


def anchors_of(plan: Plan, max_drift: float) -> tuple[str, ...]:
    """The values to store besides so that none is off by more than `max_drift`, each as late as possible.

    Backward rebuilds a stream from its end; what would be too far off is stored, and errors start again from
    there.
    """
    return _walked(plan, max_drift)[1]


def _walked(plan: Plan, most: float) -> tuple[dict[str, float], tuple[str, ...]]:
    drift = dict.fromkeys(plan.graph.inputs, 0.0)
    anchors: list[str] = []
    for wanted in plan.sources:
        pending = [wanted]
        while pending:
            name = pending[-1]
            source = plan.sources[name] if name not in drift else None
            reads = () if source is None else rule_needs(plan.graph, source)
            missing = [other for other in reads if other not in drift]
            if missing:
                pending += missing
                continue
            pending.pop()
            if source is None:
                continue
            error = max((drift[other] for other in reads), default=0.0)
            if source.how == "inverted":
                cost = plan.graph.node[source.node].cost
                error = cost.rounding + cost.growth * error
            if error > most:
                anchors.append(name)
            drift[name] = 0.0 if error > most else error
    return drift, tuple(anchors)
