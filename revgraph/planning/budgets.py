"""Budgets: the cheapest plan that fits a memory budget, the least peak, and the whole trade-off."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence

from revgraph.errors import BudgetError, PlanError
from revgraph.graph import Graph
from revgraph.planning.deciding import decide, keep_all
from revgraph.planning.drifting import anchors_of, check_estimates
from revgraph.planning.judging import Judge
from revgraph.planning.planner import Planner
from revgraph.planning.plans import Decision, Plan, human_bytes
from revgraph.planning.posing import Posed, pose
from revgraph.planning.problem import Solution
from revgraph.planning.reasons import reasons_of

UNITS = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
SECONDS = 1.5
POINTS = 16
# The least of a frontier's seconds, and of a plan's, that is left for what is solved last.
LEAST_SECONDS = 0.2
ATTEMPTS = 4


def plan(
    graph: Graph,
    budget: int | str | None = None,
    max_drift: float | None = None,
    anchors: Iterable[str] = (),
    seconds: float = SECONDS,
) -> Plan:
    """The plan that computes least again within a memory budget; without one, within the least peak.

    `budget` is in activation bytes, or text such as "300 MiB" or "1.5 GB". `anchors` are values to store
    whatever they cost. `max_drift` bounds the estimated relative error of every rebuilt value: as many
    anchors are placed as that takes, by what `estimate_drift` has measured. The plan is checked by
    simulation, so its peak never exceeds the budget. The search ends after about so many `seconds`; a plan
    that is then "feasible" rather than "optimal" may become better with more of them.

    Raises:
        BudgetError: no plan fits; the error has the least bytes that do, and the node that needs them.
        PlanError: the budget cannot be read, an anchor is no value of the graph, or drift is to be bounded
            and was not estimated.

    Example:
        >>> import torch, revgraph as rg
        >>> net = rg.load("revnet-38", batch=4)
        >>> rg.plan(net.graph, budget="5 MiB").peak_bytes <= 5 * 2**20
        True
    """
    if max_drift is not None:
        check_estimates(graph, max_drift)
    anchors = tuple(anchors)
    for name in anchors:
        if name not in graph.value:
            raise PlanError(f"anchor {name!r} is no value of the graph")
    limit = None if budget is None else parse_bytes(budget)
    posed = pose(graph)
    if max_drift is not None:
        anchors = (*anchors, *anchors_of(decide(graph, {}, anchors), max_drift))
    for _ in range(ATTEMPTS):
        search = _Search(posed, anchors, seconds)
        found = search.least() if limit is None else search.within(limit)
        more = () if max_drift is None else anchors_of(found, max_drift)
        if not more:
            return found
        anchors = (*anchors, *more)  # this plan rebuilds values in other ways than inversion from the end
    raise PlanError(
        f"no plan was found that keeps the drift below {max_drift}: its anchors change what is rebuilt and "
        "how. Give those values as `anchors` that matter most, or use exact mode."
    )


def frontier(graph: Graph, points: int = POINTS, seconds: float = 10 * SECONDS) -> list[Plan]:
    """Plans from the least peak to ordinary autograd's speed: bytes rise, FLOPs strictly fall.

    The first is the plan of the least peak; the last computes nothing again. The search for about so many
    `points` ends after about so many `seconds`.
    """
    search = _Search(pose(graph), (), seconds)
    least = search.least(share=1 / 4)
    found = [search.planned(each) for each in search.planner.frontier(points, search.left())]
    found += search.by_hand()
    later = [each for each in found if each.peak_bytes > least.peak_bytes]
    return _strictly_falling([least, *later])


def knee(plans: Sequence[Plan]) -> Plan:
    """The plan of a frontier that is farthest below the line between its ends, both axes scaled to 1.

    Before it bytes buy much speed, after it little (Satopaa et al. 2011, "Finding a kneedle in a haystack").

    Raises:
        PlanError: there are no plans.
    """
    if not plans:
        raise PlanError("a frontier without plans has no knee")
    first, last = plans[0], plans[-1]
    width = (last.peak_bytes - first.peak_bytes) or 1
    height = (first.flops_ratio - last.flops_ratio) or 1.0

    def below(each: Plan) -> float:
        return (first.flops_ratio - each.flops_ratio) / height - (each.peak_bytes - first.peak_bytes) / width

    return max(plans, key=below)


def parse_bytes(budget: int | str) -> int:
    """Bytes from a number or from text such as "300 MiB"; KiB is 1,024 bytes and KB is 1,000.

    Raises:
        PlanError: it is neither, or not above 0.
    """
    count: float | None = None
    if isinstance(budget, int) and not isinstance(budget, bool):
        count = budget
    elif isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)\s*", budget.replace(",", "").lower())
        if match is not None and (match[2] or "b") in UNITS:
            count = float(match[1]) * UNITS[match[2] or "b"]
    if count is None or count < 1:
        raise PlanError(
            f"{budget!r} is no budget: give bytes as a whole number above 0, or text such as '300 MiB' or "
            "'1.5 GB'"
        )
    return int(count)


class _Search:
    """Looks for plans: the best of the planner's solutions, and of plans by hand."""

    def __init__(self, posed: Posed, anchors: tuple[str, ...], seconds: float) -> None:
        self.posed = posed
        self.anchors = anchors
        self.end = time.monotonic() + seconds
        self.judge = Judge(posed, anchors)
        self.planner = Planner(posed.problem, self.judge)

    def left(self) -> float:
        """The seconds that are left to search."""
        return max(LEAST_SECONDS, self.end - time.monotonic())

    def least(self, share: float = 1.0) -> Plan:
        """The plan of the least peak, and of the least FLOPs within it."""
        found = [self.planned(self.planner.least(share * self.left())), *self.by_hand()]
        return min(found, key=lambda each: (each.peak_bytes, each.flops_ratio))

    def within(self, budget: int) -> Plan:
        """The least FLOPs within the budget."""
        solution = self.planner.within(budget, self.left())
        found = [*([] if solution is None else [self.planned(solution)]), *self.by_hand()]
        fitting = [each for each in found if each.peak_bytes <= budget]
        if not fitting:
            least = self.least()
            if least.peak_bytes > budget:
                raise _too_small(budget, least)
            fitting.append(least)
        return min(fitting, key=lambda each: (each.flops_ratio, each.peak_bytes))

    def by_hand(self) -> list[Plan]:
        """The plans that every search competes with: all inverted, all recomputed, and ordinary autograd."""
        graph = self.posed.graph
        recomputed: dict[str, Decision] = {node.name: "recompute" for node in graph.planned}
        dropped = [decide(graph, decisions, self.anchors) for decisions in ({}, recomputed)]
        plans = [*(each.noted(anchors=self.anchors) for each in dropped), keep_all(graph)]
        return [_with_status(each, None) for each in plans]

    def planned(self, solution: Solution) -> Plan:
        """The plan of a solution that was found."""
        found = self.judge.plan(solution)
        assert found is not None
        return _with_status(found.noted(anchors=self.anchors), solution)


def _too_small(budget: int, least: Plan) -> BudgetError:
    when, _, node = least.peak_at.partition(" of ")
    return BudgetError(
        f"no plan fits {human_bytes(budget)} ({budget:,} bytes): the least peak found is "
        f"{human_bytes(least.peak_bytes)} ({least.peak_bytes:,} bytes), at the {when} of {node!r}. "
        "Raise the budget, lower the batch, or split that node.",
        least_bytes=least.peak_bytes,
        node=node,
    )


def _with_status(found: Plan, solution: Solution | None) -> Plan:
    """The plan with its reasons, and with what is known of how good it is."""
    found = found.noted(reasons=reasons_of(found))
    if solution is None:
        return found
    return found.noted(status=solution.status, bound=solution.bound)


def _strictly_falling(plans: Iterable[Plan]) -> list[Plan]:
    best: list[Plan] = []
    for each in sorted(plans, key=lambda each: (each.peak_bytes, each.flops_ratio)):
        if not best or each.flops_ratio < best[-1].flops_ratio:
            best.append(each)
    return best
