"""A planner: a problem with all the solutions found for it, for as many budgets as wanted.

Mixed integer programmes, solved by HiGHS; repeated blocks are decided alike at first, and one by one where
that matters. Where the problem is a chain, the chain programme's solutions compete.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

from revgraph.planning.chain_solving import ChainSolver
from revgraph.planning.merging import merge
from revgraph.planning.problem import Judging, Problem, Solution
from revgraph.planning.solving import Decision, Found, Solver
from revgraph.planning.tying import Part, cut_where_it_changes, parts_of

# Up to so many decided items are planned one by one at once; up to so many, once planned in groups.
FEW, SOME = 30, 60
# Decisions where repeated blocks are decided in groups, and how often those are cut that matter.
GROUPS, ROUNDS = 24, 2
# The most seconds that one of several searches may take once there is a solution.
PATIENCE = 2.0
# What is left in any case for what is solved last.
LEAST_SECONDS = 0.2
# Stages in which an item may be run again, in problems of at most so many decided items, and in larger ones.
SMALL, DEPTH, DEPTH_BEYOND = 16, 3, 1


def keep_everything(problem: Problem, judge: Judging) -> Solution:
    """Ordinary autograd: every item under its option that is called keep, nothing stored besides."""
    options = tuple(
        next((c for c, option in enumerate(item.options) if option.name == "keep"), 0) if item.options else -1
        for item in problem.items
    )
    kept = judge(Solution(options, frozenset()))
    assert kept is not None
    return kept


class Planner:
    """Searches for solutions; all that were found are `known` and serve any budget that they fit.

    What they hold and compute is what the `judge` says.
    """

    def __init__(self, problem: Problem, judge: Judging) -> None:
        self.problem = problem
        self.judge = judge
        self.merged = merge(problem)
        self.kept = keep_everything(problem, judge)
        self.known: list[Solution] = [self.kept]
        self.chain = ChainSolver(problem, judge)
        self.scale = float(max(1, self.kept.peak_bytes))
        self._last: Mapping[Decision, float] | None = None
        self.size = sum(bool(item.options) for item in problem.items)
        self.depth = DEPTH if self.size <= SMALL else DEPTH_BEYOND

    @cached_property
    def whole(self) -> Solver:
        """Every item decided by itself."""
        return self._solver([])

    @cached_property
    def parts(self) -> list[Part]:
        return parts_of(self.merged.problem, GROUPS) if self.size > FEW else []

    @cached_property
    def grouped(self) -> Solver:
        """Repeated blocks decided in groups."""
        return self._solver(self.parts)

    def _solver(self, parts: Iterable[Part]) -> Solver:
        return Solver(self.judge, self.merged, self.scale, parts, self.depth)

    def within(self, budget: int, seconds: float) -> Solution | None:
        """The least FLOPs within the budget; None where nothing was found."""
        return self._search(budget, seconds, thorough=True)

    def _search(self, budget: int, seconds: float, *, thorough: bool) -> Solution | None:
        end = time.monotonic() + seconds
        chained = self.chain.within(budget)
        self.known += [] if chained is None else [chained]
        proved, bound = False, 0
        for solver, fixed, share in self._searches(thorough):
            best = self._best(budget)
            if best is not None and best.flops == 0:
                break
            below = None if best is None else best.flops
            left = share * (end - time.monotonic())
            patient = best is None or not self.parts
            found = solver.cheapest(budget, below, left if patient else min(left, PATIENCE), fixed)
            self._know(found)
            if not solver.tied and not fixed:
                proved = found.proved
                bound = found.bound if found.solution is not None else below or 0
        best = self._best(budget)
        if best is None:
            return None
        if best.flops == 0 or proved:
            return replace(best, status="optimal", bound=min(bound, best.flops))
        return replace(best, status="feasible", bound=0)

    def least(self, seconds: float) -> Solution:
        """The least peak found, and the least FLOPs within it."""
        end = time.monotonic() + seconds
        chained = self.chain.least()
        foreseen: int | None = None
        self.known += [] if chained is None else [chained]
        for solver, fixed, share in self._searches(thorough=True):
            left = share * (end - time.monotonic()) / 2
            found = solver.smallest(foreseen, None, min(left, PATIENCE) if self.parts else left, fixed)
            self._know(found)
            if found.solution is not None:
                foreseen = found.bound
        # What the formulation calls least may hold more in truth: a little above it there may be better.
        best = min(each.peak_bytes for each in self.known)
        for allowed in (best - 1, (best + foreseen) // 2) if foreseen and foreseen < best else ():
            self.within(allowed, max(LEAST_SECONDS, end - time.monotonic()))
        best = min(self.known, key=lambda each: (each.peak_bytes, each.flops))
        return self.within(best.peak_bytes, max(LEAST_SECONDS, end - time.monotonic())) or best

    def free(self, seconds: float) -> Solution:
        """The least peak found without any FLOPs computed again."""

        def best() -> Solution:
            return min(
                (each for each in self.known if each.flops <= self.kept.flops),
                key=lambda each: each.peak_bytes,
            )

        solver = self.grouped if self.parts else self.whole
        self._know(solver.smallest(None, self.kept.flops, seconds))
        return best()

    def frontier(self, points: int, seconds: float) -> list[Solution]:
        """At most so many solutions from the least peak to no recomputation.

        Bytes rise, FLOPs strictly fall.
        """
        self._explore(points, seconds)
        best: list[Solution] = []
        for each in sorted(self.known, key=lambda each: (each.peak_bytes, each.flops)):
            if not best or each.flops < best[-1].flops:
                best.append(each)
        return thinned(best, points)

    def _explore(self, points: int, seconds: float) -> None:
        """Find solutions for so many budgets from the least peak that is known to no recomputation."""
        end = time.monotonic() + seconds
        low, high = min(each.peak_bytes for each in self.known), self.free(seconds / 8).peak_bytes
        self.known += self.chain.all()
        for n in range(1, points - 1):
            budget = round(low * (high / low) ** (n / (points - 1)))
            share = (end - time.monotonic()) / (points - 1 - n)
            self._search(budget, max(0.1, share), thorough=False)

    def _searches(self, thorough: bool) -> Iterator[tuple[Solver, Mapping[Decision, float], float]]:
        """Solvers to try in turn, what to fix in them, and the share of the time left that each may take."""
        if not self.parts:
            yield self.whole, {}, 1.0
            return
        parts = self.parts
        yield self.grouped, {}, 0.4
        for _ in range(ROUNDS):
            decided = self._last
            if decided is None:
                break
            cut = list(cut_where_it_changes(parts, decided))
            if cut == parts:
                break
            kept = set(cut).intersection(parts)
            still = {k for start, period, times in kept for k in range(start, start + period * times)}
            parts = cut
            yield self._solver(parts), {key: value for key, value in decided.items() if key[1] in still}, 0.5
        if thorough and self.size <= SOME:
            yield self.whole, {}, 1.0

    def _know(self, found: Found) -> None:
        """Note what a search has found, and how it decided."""
        if found.solution is not None:
            self.known.append(found.solution)
        self._last = found.decisions

    def _best(self, budget: int) -> Solution | None:
        fitting = [each for each in self.known if each.peak_bytes <= budget]
        return min(fitting, key=lambda each: (each.flops, each.peak_bytes), default=None)


def thinned(solutions: list[Solution], points: int) -> list[Solution]:
    """At most so many of them, evenly spread, with both ends."""
    if len(solutions) <= points or points < 2:
        return solutions
    last = len(solutions) - 1
    return [solutions[round(n * last / (points - 1))] for n in range(points)]
