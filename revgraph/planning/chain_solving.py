"""Chain solving: the chain programme's solutions of a problem that is a chain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from revgraph.planning.chain_schedules import chain_schedule
from revgraph.planning.chain_views import ChainView, chain_of
from revgraph.planning.chains import ChainProgramme
from revgraph.planning.problem import Judging, Problem, Solution

# Chains of up to so many nodes are solved exactly; up to so many at all, of which so many can be inverted:
# where nearly all can be, the mixed integer programme is as good and faster.
EXACT, LONGEST, INVERTIBLE = 10, 64, 20
# Steps kept of each curve of a longer chain.
POINTS = 64
# So many schedules that seem to need a little more than there is may fit as well.
BEYOND = 4


class ChainSolver:
    """The best schedules of a chain; none where the problem is not a chain, or too long a one.

    The curve's bytes are a model's: a schedule may hold more in truth. So candidates are judged one by one.
    """

    def __init__(self, problem: Problem, judge: Judging) -> None:
        self.problem = problem
        self.judge = judge
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

    @cached_property
    def sizes(self) -> list[int]:
        return [] if self.view is None else [int(size) for size in self.programme.whole.sizes]

    def within(self, budget: int) -> Solution | None:
        """The least FLOPs within a budget, if any schedule fits."""
        end = int(np.searchsorted(self.sizes, budget, side="right")) + BEYOND
        by_flops = self._solutions(reversed(range(len(self.sizes))[:end]))
        return next((each for each in by_flops if each.peak_bytes <= budget), None)

    def least(self) -> Solution | None:
        """The least peak."""
        best: Solution | None = None
        for n, size in enumerate(self.sizes):
            if best is not None and size > best.peak_bytes:
                break
            found = self._solution(n)
            if best is None or (found is not None and found.peak_bytes < best.peak_bytes):
                best = found
        return best

    def all(self) -> list[Solution]:
        """Every solution on the curve of bytes and FLOPs."""
        return list(self._solutions(range(len(self.sizes))))

    def _solutions(self, places: Iterable[int]) -> Iterator[Solution]:
        return (each for each in map(self._solution, places) if each is not None)

    def _solution(self, n: int) -> Solution | None:
        """The curve's schedule n, or None where it cannot be carried out as the chain thought."""
        if n not in self.known:
            assert self.view is not None
            self.known[n] = self.judge(self.view.solution(chain_schedule(self.programme, self.sizes[n])))
        return self.known[n]
