"""Chain solving: the chain programme's solutions of a problem that is a chain."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from revgraph.planning.chain_schedules import chain_schedule
from revgraph.planning.chain_views import ChainView, chain_of
from revgraph.planning.chains import ChainProgramme
from revgraph.planning.problem import Problem, Solution
from revgraph.planning.reading import tidy
from revgraph.planning.rebuilding import IllegalSolution
from revgraph.planning.solving import scored

# Chains of up to so many nodes are solved exactly; up to so many at all, of which so many can be inverted:
# where nearly all can be, the mixed integer programme is as good and faster.
EXACT, LONGEST, INVERTIBLE = 10, 64, 20
# Steps kept of each curve of a longer chain.
POINTS = 64
# A chain's peaks are upper bounds: what seems to need a little more may fit as well.
BEYOND = 4


class ChainSolver:
    """The best schedules of a chain; none where the problem is not a chain, or too long a one."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.known: dict[int, Solution | None] = {}

    @cached_property
    def view(self) -> ChainView | None:
        items = [item for item in self.problem.items if item.options]
        invertible = sum(any(option.gives for option in item.options) for item in items)
        if len(items) > LONGEST or invertible > INVERTIBLE:
            return None
        return chain_of(self.problem)

    @cached_property
    def programme(self) -> ChainProgramme:
        assert self.view is not None
        return ChainProgramme(self.view.chain, None if len(self.view.items) <= EXACT else POINTS)

    def within(self, budget: int) -> Solution | None:
        """The least FLOPs within a budget, if any schedule fits."""
        if self.view is None:
            return None
        sizes = self.programme.whole.sizes
        last = int(np.searchsorted(sizes, budget, side="right")) - 1
        for n in reversed(range(max(0, last), min(len(sizes), last + 1 + BEYOND))):
            solution = self._solution(n)
            if solution is not None and solution.peak_bytes <= budget:
                return solution
        return None

    def all(self) -> list[Solution]:
        """Every solution on the curve of bytes and FLOPs."""
        if self.view is None:
            return []
        found = map(self._solution, range(len(self.programme.whole.sizes)))
        return [solution for solution in found if solution is not None]

    def _solution(self, n: int) -> Solution | None:
        """The curve's schedule n, or None where the problem cannot carry it out as the chain thought."""
        if n not in self.known:
            assert self.view is not None
            actions = chain_schedule(self.programme, int(self.programme.whole.sizes[n]))
            try:
                self.known[n] = scored(self.problem, tidy(self.problem, self.view.solution(actions)))
            except IllegalSolution:
                self.known[n] = None
        return self.known[n]
