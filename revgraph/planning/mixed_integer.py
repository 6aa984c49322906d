"""Planning by mixed integer programming: the least recomputation within a budget, and the least peak."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from revgraph.errors import PlanError
from revgraph.planning.columns import Outcome
from revgraph.planning.evaluating import IllegalSolution, evaluate
from revgraph.planning.formulation import Formulation
from revgraph.planning.merging import merge
from revgraph.planning.problem import Problem, Solution
from revgraph.planning.reading import read
from revgraph.planning.tying import Ties

# How often a programme is solved again with what its last solution got wrong forbidden.
ATTEMPTS = 6


class Infeasible(PlanError):
    """No solution within the budget: the least bytes found, and the item that needs them (-1: the loss)."""

    def __init__(self, least_bytes: int, item: int) -> None:
        super().__init__(f"no plan fits: the least found needs {least_bytes} bytes, at item {item}")
        self.least_bytes = least_bytes
        self.item = item


def keep_everything(problem: Problem) -> Solution:
    """Ordinary autograd: every item under its first option that is called keep, nothing stored besides."""
    options = tuple(
        next((c for c, option in enumerate(item.options) if option.name == "keep"), 0) if item.options else -1
        for item in problem.items
    )
    return scored(problem, Solution(options, frozenset()))


def scored(problem: Problem, solution: Solution) -> Solution:
    """The solution with its peak and FLOPs as `evaluate` finds them."""
    found = evaluate(problem, solution)
    return replace(solution, peak_bytes=found.peak_bytes, flops=found.flops)


class Planner:
    """A problem's programme, built once and solved for as many budgets as wanted."""

    def __init__(self, problem: Problem, *, depth: int = 1) -> None:
        self.problem = problem
        self.merged = merge(problem)
        self.kept = keep_everything(problem)
        self.scale = float(max(1, self.kept.peak_bytes))
        self.formulation = Formulation(self.merged.problem, self.scale, depth=depth, ties=Ties())
        self.objective = self.formulation.objective()
        self.forbidden: dict[int, float] = {}

    def within(self, budget: int, seconds: float) -> Solution | None:
        """The least FLOPs within the budget; None where nothing was found."""
        if self.kept.peak_bytes <= budget and not self.kept.flops:
            return replace(self.kept, status="optimal")
        allowed, end = budget, time.monotonic() + seconds
        for _ in range(ATTEMPTS):
            found = self._minimise(self.objective, allowed, end - time.monotonic())
            if found is None:
                return None
            solution, outcome = found
            if solution.peak_bytes <= budget:
                bound = max(0, min(solution.flops, math.ceil(outcome.bound - 1e-6) * self.formulation.unit))
                proved = outcome.proved and allowed == budget
                return replace(solution, bound=bound, status="optimal" if proved else "feasible")
            allowed -= solution.peak_bytes - budget
        return None

    def least(self, seconds: float) -> Solution:
        """The least peak found, and the least FLOPs within it."""
        end = time.monotonic() + seconds
        found = self._minimise({self.formulation.peak: 1.0}, self.kept.peak_bytes, seconds)
        best = found[0] if found is not None else self.kept
        cheaper = self.within(best.peak_bytes, max(1.0, end - time.monotonic()))
        return cheaper or best

    def _minimise(
        self, objective: Mapping[int, float], budget: int, seconds: float
    ) -> tuple[Solution, Outcome] | None:
        """What HiGHS finds, once it is legal: a capture that would never happen is forbidden from then on."""
        end = time.monotonic() + seconds
        for _ in range(ATTEMPTS):
            outcome = self.formulation.programme.minimise(
                objective,
                upper={self.formulation.peak: budget / self.scale},
                fixed=self.forbidden,
                seconds=end - time.monotonic(),
            )
            if outcome.values is None:
                return None
            try:
                solution = read(self.formulation, self.merged, outcome.values)
                return scored(self.problem, solution), outcome
            except IllegalSolution as error:
                ways = [column for (k, _), column in self.formulation.captured.items() if k == error.item]
                if not ways:
                    return None
                self.forbidden.update(dict.fromkeys(ways, 0.0))
        return None


def solve(problem: Problem, budget: int, *, seconds: float = 10) -> Solution:
    """The least FLOPs computed again within `budget` bytes.

    Raises:
        Infeasible: nothing was found that fits.
    """
    planner = Planner(problem)
    found = planner.within(budget, seconds)
    if found is None:
        least = planner.least(seconds)
        if least.peak_bytes <= budget:
            return least
        raise Infeasible(least.peak_bytes, evaluate(problem, least).item)
    return found


def least_peak(problem: Problem, *, seconds: float = 10) -> Solution:
    """The least peak, and the least FLOPs within it."""
    return Planner(problem).least(seconds)


def frontier(problem: Problem, points: int = 16, *, seconds: float = 15) -> list[Solution]:
    """Solutions from the least peak to ordinary autograd, the peak rising and the FLOPs falling strictly."""
    planner, end = Planner(problem), time.monotonic() + seconds
    least = planner.least(seconds / 4)
    found = [least]
    low, high = least.peak_bytes, planner.kept.peak_bytes
    for n in range(1, points - 1):
        budget = round(low * (high / low) ** (n / (points - 1)))
        share = (end - time.monotonic()) / (points - 1 - n)
        solution = planner.within(budget, max(0.2, share))
        if solution is not None:
            found.append(solution)
    return strictly_falling([*found, planner.kept])


def strictly_falling(solutions: Iterable[Solution]) -> list[Solution]:
    """Those that no other one beats in both bytes and FLOPs, by rising peak."""
    best: list[Solution] = []
    for solution in sorted(solutions, key=lambda each: (each.peak_bytes, each.flops)):
        if not best or solution.flops < best[-1].flops:
            best.append(solution)
    return best
