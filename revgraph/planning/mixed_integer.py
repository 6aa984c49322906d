"""Planning on plain numbers: the least recomputation within a budget, the least peak, and all between.

Mixed integer programmes, solved by HiGHS; repeated blocks are decided alike at first, and one by one where
that matters. Where the problem is a chain, the chain programme's solutions compete.
"""

from __future__ import annotations

from collections.abc import Iterable

from revgraph.errors import PlanError
from revgraph.planning.evaluating import evaluate
from revgraph.planning.planner import Planner, keep_everything
from revgraph.planning.problem import Problem, Solution

__all__ = ["Infeasible", "Planner", "frontier", "keep_everything", "least_peak", "solve"]


class Infeasible(PlanError):
    """No solution within the budget: the least bytes found, and the item that needs them (-1: the loss)."""

    def __init__(self, least_bytes: int, item: int) -> None:
        super().__init__(f"no plan fits: the least found needs {least_bytes} bytes, at item {item}")
        self.least_bytes = least_bytes
        self.item = item


def solve(problem: Problem, budget: int, *, seconds: float = 10) -> Solution:
    """The least FLOPs computed again within `budget` bytes.

    Raises:
        Infeasible: nothing was found that fits.
    """
    planner = Planner(problem)
    found = planner.within(budget, seconds)
    if found is not None:
        return found
    least = planner.least(seconds)
    if least.peak_bytes <= budget:
        return least
    raise Infeasible(least.peak_bytes, evaluate(problem, least).item)


def least_peak(problem: Problem, *, seconds: float = 10) -> Solution:
    """The least peak, and the least FLOPs within it."""
    return Planner(problem).least(seconds)


def frontier(planner: Planner, points: int, seconds: float) -> list[Solution]:
    """At most so many solutions from the least peak to no recomputation: bytes rise, FLOPs strictly fall."""
    planner.explore(points, seconds)
    return thinned(strictly_falling(planner.known), points)


def strictly_falling(solutions: Iterable[Solution]) -> list[Solution]:
    """Those that no other one beats in both bytes and FLOPs, by rising peak."""
    best: list[Solution] = []
    for solution in sorted(solutions, key=lambda each: (each.peak_bytes, each.flops)):
        if not best or solution.flops < best[-1].flops:
            best.append(solution)
    return best


def thinned(solutions: list[Solution], points: int) -> list[Solution]:
    """At most so many of them, evenly spread, with both ends."""
    if len(solutions) <= points or points < 2:
        return solutions
    last = len(solutions) - 1
    return [solutions[round(n * last / (points - 1))] for n in range(points)]
