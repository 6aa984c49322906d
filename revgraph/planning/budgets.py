"""Budgets: the cheapest plan that fits a memory budget, the least peak, and the whole trade-off."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import SupportsIndex, get_args

from revgraph.errors import BudgetError, PlanError, warn
from revgraph.graph import Graph
from revgraph.planning.deciding import anchored, check_graph, decide, keep_all
from revgraph.planning.drifting import anchors_of, check_estimates
from revgraph.planning.judging import Judge
from revgraph.planning.known_pools import known, note
from revgraph.planning.plans import CostKind, Decision, Made, Plan, human_bytes
from revgraph.planning.posing import pose
from revgraph.planning.profiles import DeviceProfile, profile_of
from revgraph.planning.reasons import reasons_of
from revgraph.planning.solver import TOLERANCE, Effort, Solution, search, thinned
from revgraph.planning.wording import where_peak
from revgraph.progress import Progress
from revgraph.uncollected import uncollected

UNITS = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
}  # fmt: skip
LEAST = "least"
SIZE = re.compile(r"\s*((?:\d+(?:\.\d+)?|\.\d+)(?:e[+]?\d\d?)?)\s*([a-z]*)\s*")
# Text below this without a unit was meant in some.
BARE = 10_000
SHARE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*%\s*")
EFFORTS: tuple[Effort, ...] = get_args(Effort)
POINTS = 16
ATTEMPTS = 4
# What `seconds` of the first version come to, each up to so many.
SECONDS: dict[Effort, float] = {"quick": 0.5, "normal": 10.0, "thorough": float("inf")}


def plan(
    graph: Graph,
    budget: int | str | None = None,
    max_drift: float | None = None,
    anchors: Iterable[str] = (),
    effort: Effort = "normal",
    cost: str | DeviceProfile = "time",
    *,
    seconds: float | None = None,
) -> Plan:
    """The plan that takes least time within a memory budget.

    `budget` is in activation bytes, or text such as "300 MiB", "1.5 GB" or "50%" (of ordinary training), or
    "least": the least peak that was found. Without one, the plan is the cheapest within a tenth of the least
    peak among plans that run no function more than once again.

    `anchors` are values to store whatever they cost. `max_drift` bounds the estimated relative error of every
    rebuilt value: as many anchors are placed as that takes, by what `estimate_drift` has measured. Every plan
    was simulated, so its peak never exceeds the budget. `effort` is how many plans are tried. `cost` is what
    is to be small: "time", estimated seconds on no device in particular; a name in `revgraph.PROFILES`, those
    on such a device; what `revgraph.profile` gave, those on this machine; or "flops". Plans hang on the
    graph, the effort and the cost, and on no clock. `seconds` is out of use, and becomes an effort.

    Raises:
        BudgetError: no plan that was found fits; the error has the least bytes that do, and the node that
            needs them.
        PlanError: the budget, the effort or the cost cannot be read, an anchor is no value of the graph, or
            drift is to be bounded and was not estimated.

    Example:
        >>> import torch, revgraph as rg
        >>> net = rg.load("revnet-38", batch=4)
        >>> rg.plan(net.graph, budget="5 MiB").peak_bytes <= 5 * 2**20
        True
    """
    check_graph(graph)
    effort = _effort(effort, seconds)
    if max_drift is not None:
        check_estimates(graph, max_drift)
    anchors = anchored(graph, anchors)
    wanted = LEAST if _is_least(budget) else None if budget is None else budget_bytes(graph, budget)
    if max_drift is not None:
        anchors = (*anchors, *anchors_of(decide(graph, {}, anchors), max_drift))
    for _ in range(ATTEMPTS):
        found = _Plans.of(graph, anchors, effort, cost).chosen(wanted)
        more = () if max_drift is None else anchors_of(found, max_drift)
        if not more:
            return found
        anchors = (*anchors, *more)  # this plan rebuilds values in other ways than inversion from the end
    raise PlanError(
        f"no plan was found that keeps the drift below {max_drift}: its anchors change what is rebuilt and "
        "how. Give those values as `anchors` that matter most, or use exact mode."
    )


def frontier(
    graph: Graph,
    points: int = POINTS,
    effort: Effort = "normal",
    cost: str | DeviceProfile = "time",
    *,
    seconds: float | None = None,
) -> list[Plan]:
    """About so many plans from the least peak to ordinary autograd's speed: bytes rise, cost strictly falls.

    They are those that `plan` chooses from: the first has the least peak, the last computes nothing again.
    `effort`, `cost` and `seconds` are those of `plan`.
    """
    check_graph(graph)
    return _Plans.of(graph, (), _effort(effort, seconds), cost).frontier(points)


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
    height = (first.cost_ratio - last.cost_ratio) or 1.0

    def below(each: Plan) -> float:
        return (first.cost_ratio - each.cost_ratio) / height - (each.peak_bytes - first.peak_bytes) / width

    return max(plans, key=below)


def parse_bytes(budget: SupportsIndex | float | str) -> int:
    """Bytes from a number or from text such as "300 MiB"; KiB and K are 1,024 bytes and KB is 1,000.

    Raises:
        PlanError: it is neither, or not above 0; or it is text of a small number without a unit.
    """
    count: float | None = None
    if isinstance(budget, float):
        count = budget if budget.is_integer() else None  # as 1e8 is
    elif not isinstance(budget, (bool, str)):
        with suppress(TypeError):
            count = operator.index(budget)  # of numpy's whole numbers, too
    elif isinstance(budget, str):
        match = SIZE.fullmatch(budget.replace(",", "").lower())
        if match is not None and (match[2] or "b") in UNITS:
            count = float(match[1]) * UNITS[match[2] or "b"]
            if 1 <= count < BARE and not match[2]:
                number = match[1]
                raise PlanError(
                    f"{budget!r} would be {number} bytes: did you mean '{number} MiB'? Give the unit, "
                    f"'{number} B' if it is bytes."
                )
    if count is None or count < 1:
        raise PlanError(
            f"{budget!r} is no budget: give bytes as a whole number above 0, or text such as '300 MiB', "
            "'1.5 GB', '50%' of ordinary training, or 'least'"
        )
    return int(count)


def check_budget(budget: int | str) -> None:
    """Refuse what `plan` could not read, before a graph is there.

    Raises:
        PlanError: it is neither bytes nor a share nor "least".
    """
    share = SHARE.fullmatch(budget) if isinstance(budget, str) else None
    if not _is_least(budget) and (share is None or not float(share[1])):
        parse_bytes(budget)


def _is_least(budget: object) -> bool:
    return isinstance(budget, str) and budget.strip().lower() == LEAST


def budget_bytes(graph: Graph, budget: int | str) -> int | None:
    """A budget for a graph in bytes, also where it is a share of ordinary training; None for the least.

    Raises:
        PlanError: it cannot be read.
    """
    check_budget(budget)
    if _is_least(budget):
        return None
    if isinstance(budget, str) and (share := SHARE.fullmatch(budget)):
        return int(float(share[1]) / 100 * keep_all(graph).peak_bytes)
    return parse_bytes(budget)


class _Plans:
    """The pool of a graph under some anchors, and the plans that are chosen from it."""

    def __init__(
        self, graph: Graph, anchors: tuple[str, ...], effort: Effort, cost: CostKind, profile: DeviceProfile
    ) -> None:
        key = anchors, effort, cost, profile
        posed = pose(graph, cost, profile)
        self.anchors = anchors
        self.judge = Judge(posed, anchors)
        fronts = known(graph, key)
        if fronts is None:
            judge = Judge(posed, anchors)  # what it remembers goes with the search
            work = f"planning {graph.name}, {len(graph.planned)} nodes"
            with uncollected(), Progress(work, lambda: f"{judge.count:,} plans tried"):
                pool = search(posed.problem, judge, effort, self._by_hand(graph))
            fronts = note(graph, key, pool)
        self.pool = fronts

    def _by_hand(self, graph: Graph) -> Iterator[Solution]:
        """All inverted, all recomputed, and inverted with boundaries recomputed."""
        again: Decision = "recompute"
        boundaries = [node for node in graph.planned if node.kind == "boundary"]
        for nodes in ((), graph.planned, boundaries):
            plan = decide(graph, {node.name: again for node in nodes}, self.anchors)
            yield self.judge.solution(plan)

    @classmethod
    def of(cls, graph: Graph, anchors: tuple[str, ...], effort: Effort, cost: str | DeviceProfile) -> _Plans:
        """The same for the same graph, as long as it lives: a pool serves every budget."""
        kind: CostKind = "flops" if cost == "flops" else "time"
        return graph.worked_out(cls, anchors, effort, kind, profile_of(cost))

    def chosen(self, budget: int | str | None) -> Plan:
        """Within so many bytes; at the "least" peak; or by default.

        Raises:
            BudgetError: nothing fits.
        """
        pool = self.pool
        if budget is None:
            front = pool.once if pool.once.solutions else pool.every
            found = front.within((1 + TOLERANCE) * front.least.peak_bytes)
        else:
            found = pool.every.least if isinstance(budget, str) else pool.every.within(budget)
        if found is None:
            assert isinstance(budget, int)
            raise _too_small(budget, self._planned(pool.every.least, "least"))
        if budget is None:
            return self._planned(found, "default")
        if isinstance(budget, str):
            return self._planned(found, "least")
        return self._planned(found, "budget").noted(budget_bytes=budget)

    def frontier(self, points: int) -> list[Plan]:
        solutions: list[Solution] = []
        for each in self.pool.every:
            if not solutions or each.cost < solutions[-1].cost:
                solutions.append(each)
        return [self._planned(each, "frontier") for each in thinned(solutions, points)]

    def _planned(self, solution: Solution, made: Made) -> Plan:
        found = self.judge.plan(solution).noted(anchors=self.anchors, made=made)
        return found.noted(reasons=reasons_of(found))


def check_effort(effort: str) -> Effort:
    """The effort of this name.

    Raises:
        PlanError: there is none.
    """
    for each in EFFORTS:
        if effort == each:
            return each
    raise PlanError(f"{effort!r} is no effort; efforts are {', '.join(EFFORTS)}")


def _effort(effort: Effort, seconds: float | None) -> Effort:
    effort = check_effort(effort)
    if seconds is None:
        return effort
    found: Effort = "thorough"
    for each in reversed(EFFORTS):
        found = each if seconds <= SECONDS[each] else found
    warn(
        f"`seconds` is out of use, for plans do not depend on time any more: seconds={seconds} is taken as "
        f"effort={found!r}. Give `effort` instead.",
        DeprecationWarning,
    )
    return found


def _too_small(budget: int, least: Plan) -> BudgetError:
    _, _, node = least.peak_at.partition(" of ")
    loss = least.graph.loss
    is_loss = loss is not None and node == loss.name
    ways_out = " or lower the batch" if is_loss else ", lower the batch, or split that node"
    ordinary = human_bytes(least.ordinary_bytes)
    return BudgetError(
        f"no plan fits {human_bytes(budget)} ({budget:,} bytes): the least peak found is "
        f"{human_bytes(least.peak_bytes)} ({least.peak_bytes:,} bytes), where ordinary training takes "
        f"{ordinary}. That peak is {where_peak(least.peak_at, repr(node))}. "
        f"Raise the budget{ways_out}.",
        least_bytes=least.peak_bytes,
        node=node,
    )
