"""The pool: every solution found for a problem that no other one beats, as it was judged."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

from revgraph.planning.solver.problem import Judging, Solution

T = TypeVar("T")


class Pool:
    """Solutions of which none has another one with no more bytes at the peak and no more cost.

    Those that run no function more than once again make a second such set of their own, `once`.
    """

    def __init__(self, judge: Judging) -> None:
        self.judge = judge
        self.every = Front()
        self.once = Front()
        self.known: dict[Hashable, Solution | None] = {}

    def add(self, solution: Solution) -> Solution | None:
        """A solution as it is carried out, kept where nothing beats it; None where that cannot be."""
        key = solution.decisions()
        if key not in self.known:
            found = self.judge(solution)
            self.known[key] = found
            if found is not None:
                self.known[found.decisions()] = found
                self.every.add(found)
                if found.most_runs <= 2:
                    self.once.add(found)
        return self.known[key]


class Front:
    """Solutions by rising bytes and strictly falling cost."""

    def __init__(self) -> None:
        self.solutions: list[Solution] = []

    def __iter__(self) -> Iterator[Solution]:
        return iter(self.solutions)

    @property
    def least(self) -> Solution:
        """The one of the least peak."""
        return self.solutions[0]

    def within(self, budget: float) -> Solution | None:
        """The cheapest that fits a budget; None where none does."""
        place = bisect_right(self.solutions, budget, key=lambda each: each.peak_bytes)
        return self.solutions[place - 1] if place else None

    def add(self, solution: Solution) -> None:
        """Keep a solution, unless one with no more bytes costs no more; those that it beats go."""
        cheapest = self.within(solution.peak_bytes)
        if cheapest is not None and cheapest.rank <= solution.rank:
            return
        below = [each for each in self.solutions if each.peak_bytes < solution.peak_bytes]
        above = [each for each in self.solutions if each.peak_bytes >= solution.peak_bytes]
        self.solutions = [*below, solution, *(each for each in above if each.rank < solution.rank)]


def thinned(found: Sequence[T], count: int) -> list[T]:
    """At most so many of them, evenly spread, with both ends."""
    if len(found) <= count or count < 2:
        return list(found)
    return [found[round(n * (len(found) - 1) / (count - 1))] for n in range(count)]
