"""Solving: a formulation's best column values as a legal solution, with what is proved about it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from revgraph.planning.columns import Outcome
from revgraph.planning.formulation import Formulation
from revgraph.planning.merging import Merged
from revgraph.planning.problem import Judging, Solution
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
    """A solution, if any; `proved` that no other one of the formulation does better.

    `bound` is the least of what was to be small, FLOPs or bytes, that the formulation foresees.
    """

    solution: Solution | None
    proved: bool
    bound: int = 0
    decisions: Mapping[Decision, float] | None = None


class Solver:
    """A problem's formulation under some ties, built once and solved under any limits."""

    def __init__(
        self, judge: Judging, merged: Merged, scale: float, parts: Iterable[Part], depth: int
    ) -> None:
        self.judge = judge
        self.merged = merged
        self.scale = scale
        self.formulation = Formulation(merged.problem, scale, depth, tied(merged.problem, list(parts)))
        self.tied = bool(self.formulation.ties.like)
        self.excess = 0  # by how many bytes the formulation foresaw too much for the last solution

    def cheapest(
        self, budget: int, below: int | None, seconds: float, fixed: Mapping[Decision, float] | None = None
    ) -> Found:
        """The least FLOPs within a budget, if less than `below`.

        The formulation may foresee too much or too little. So it is given as much as it was off by the last
        time, and then less and less, between what `exceeded` the budget in truth and what is `short` of any
        solution.
        """
        first = allowed = budget + max(0, self.excess)
        end = time.monotonic() + seconds
        short, exceeded = 0, allowed + 1
        for _ in range(ATTEMPTS):
            left = SHARE * (end - time.monotonic())
            found = self._minimise(self.formulation.cost, allowed, below, left, fixed or {})
            if isinstance(found, Outcome):
                short = allowed
                if allowed == first or not found.infeasible or exceeded - short < 2:
                    return Found(None, found.infeasible and allowed == first)
                allowed = (short + exceeded) // 2
                continue
            solution, outcome, foreseen = found
            if solution.peak_bytes <= budget:
                bound = math.ceil(outcome.bound - 1e-6) * self.formulation.unit
                close = solution.flops <= bound * (1 + 2 * GAP) + self.formulation.unit
                proved = outcome.proved and allowed == first and close
                return Found(solution, proved, max(0, min(bound, solution.flops)), self._decisions(outcome))
            exceeded = allowed
            allowed = min(allowed - (solution.peak_bytes - budget), foreseen - 1)
            if allowed <= short:
                allowed = (short + exceeded) // 2
        return Found(None, False)

    def smallest(
        self,
        below: int | None,
        flops: int | None,
        seconds: float,
        fixed: Mapping[Decision, float] | None = None,
    ) -> Found:
        """The least peak that is foreseen, if less than `below` bytes, with at most so many FLOPs."""
        cost = None if flops is None else flops + self.formulation.unit
        allowed = None if below is None else below - 1
        found = self._minimise(self.formulation.peak, allowed, cost, seconds, fixed or {})
        if isinstance(found, Outcome):
            return Found(None, found.infeasible)
        solution, outcome, foreseen = found
        return Found(solution, outcome.proved, foreseen, self._decisions(outcome))

    def _minimise(
        self,
        column: int,
        budget: int | None,
        below: int | None,
        seconds: float,
        fixed: Mapping[Decision, float],
    ) -> tuple[Solution, Outcome, int] | Outcome:
        """What HiGHS finds, with the bytes foreseen; rows that few solutions break are added as soon as one
        does."""
        formulation = self.formulation
        upper = {} if budget is None else {formulation.peak: budget / self.scale}
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
            foreseen = round(formulation.programme.least(formulation.peak, outcome.values) * self.scale)
            tightened = self._hold_stored(outcome)
            solution = self.judge(read(formulation, self.merged, outcome.values))
            if solution is None:
                found = replace(outcome, values=None, proved=False)
                tightened |= formulation.decide_wiring()
            else:
                self.excess = foreseen - solution.peak_bytes
                found = solution, outcome, foreseen
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
