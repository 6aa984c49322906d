"""Solving: a formulation's best column values as a legal solution, with what is proved about it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from revgraph.planning.columns import Outcome
from revgraph.planning.evaluating import IllegalSolution, evaluate
from revgraph.planning.formulation import Formulation
from revgraph.planning.merging import Merged
from revgraph.planning.problem import Problem, Solution
from revgraph.planning.reading import drops_of, is_stored, read
from revgraph.planning.tying import Part, tied

# How often a programme is solved again, with less memory, where it took a solution to need too little.
ATTEMPTS = 6
# Of the time that is left, what one of them may take.
SHARE = 0.6
# Solutions this much worse than the best, as a share, are as good as it.
GAP = 1e-4

Decision = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Found:
    """A solution, if any; `proved` that no other one of the formulation does better, and its least FLOPs."""

    solution: Solution | None
    proved: bool
    bound: int = 0
    decisions: Mapping[Decision, float] | None = None


def scored(problem: Problem, solution: Solution) -> Solution:
    """The solution with its peak and FLOPs as `evaluate` finds them."""
    found = evaluate(problem, solution)
    return replace(solution, peak_bytes=found.peak_bytes, flops=found.flops)


class Solver:
    """A problem's formulation under some ties, built once and solved under any limits."""

    def __init__(
        self, problem: Problem, merged: Merged, scale: float, parts: Iterable[Part], depth: int
    ) -> None:
        self.problem = problem
        self.merged = merged
        self.scale = scale
        self.formulation = Formulation(merged.problem, scale, depth, tied(merged.problem, list(parts)))
        self.tied = bool(self.formulation.ties.like)

    def cheapest(
        self, budget: int, below: int | None, seconds: float, fixed: Mapping[Decision, float] | None = None
    ) -> Found:
        """The least FLOPs within a budget, if less than `below`."""
        allowed, end = budget, time.monotonic() + seconds
        for _ in range(ATTEMPTS):
            left = SHARE * (end - time.monotonic())
            found = self._minimise(self.formulation.cost, allowed, below, left, fixed or {})
            if isinstance(found, Outcome):
                return Found(None, found.infeasible and allowed == budget)
            solution, outcome = found
            if solution.peak_bytes <= budget:
                bound = math.ceil(outcome.bound - 1e-6) * self.formulation.unit
                close = solution.flops <= bound * (1 + 2 * GAP) + self.formulation.unit
                proved = outcome.proved and allowed == budget and close
                return Found(solution, proved, max(0, min(bound, solution.flops)), self._decisions(outcome))
            allowed -= solution.peak_bytes - budget
        return Found(None, False)

    def smallest(
        self,
        below: int,
        flops: int | None,
        seconds: float,
        fixed: Mapping[Decision, float] | None = None,
    ) -> Found:
        """The least peak, if less than `below` bytes, with at most so many FLOPs."""
        cost = None if flops is None else flops + self.formulation.unit
        found = self._minimise(self.formulation.peak, below - 1, cost, seconds, fixed or {})
        if isinstance(found, Outcome):
            return Found(None, found.infeasible)
        solution, outcome = found
        return Found(solution, outcome.proved, 0, self._decisions(outcome))

    def _minimise(
        self, column: int, budget: int, below: int | None, seconds: float, fixed: Mapping[Decision, float]
    ) -> tuple[Solution, Outcome] | Outcome:
        """What HiGHS finds; rows that few solutions break are added as soon as one does."""
        formulation = self.formulation
        upper = {formulation.peak: budget / self.scale}
        if below is not None:
            upper[formulation.cost] = min(below / formulation.unit - 1, below / formulation.unit * (1 - GAP))
            if upper[formulation.cost] < 0:
                return Outcome(None, False, True, 0.0)
        columns = {c: fixed[key] for key, c in formulation.decisions() if key in fixed}
        end = time.monotonic() + seconds
        while True:
            outcome = formulation.programme.minimise(
                {column: 1.0}, upper=upper, fixed=columns, seconds=end - time.monotonic(), gap=GAP
            )
            if outcome.values is None:
                return outcome
            tightened = self._hold_stored(outcome)
            try:
                found = scored(self.problem, read(formulation, self.merged, outcome.values)), outcome
            except IllegalSolution:
                found = replace(outcome, values=None, proved=False)
                tightened |= formulation.decide_wiring()
            if not tightened or time.monotonic() > end:
                return found

    def _hold_stored(self, outcome: Outcome) -> bool:
        """Add the rows that hold what is stored, for values that this outcome lets go and rebuilds."""
        assert outcome.values is not None
        added = False
        for value in self.formulation.events.of:
            stored = is_stored(self.formulation, value, outcome.values)
            if stored and drops_of(self.formulation, value, outcome.values):
                added |= self.formulation.hold_stored(value)
        return added

    def _decisions(self, outcome: Outcome) -> dict[Decision, float]:
        assert outcome.values is not None
        return {key: round(float(outcome.values[c])) for key, c in self.formulation.decisions()}
