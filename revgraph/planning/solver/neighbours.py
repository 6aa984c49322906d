"""Neighbours: solutions that differ from one in a single thing, for a search that goes down step by step.

The programmes decide stretches of a line, and the improver rounds what it foresees; a single value that is
stored too many, or a node that could be run again for nothing, is left to this.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace

from revgraph.planning.solver.pool import Pool
from revgraph.planning.solver.problem import Problem, Solution


class Neighbours:
    """Steps down from a pool's solutions; all of them together take at most so many `trials`."""

    def __init__(self, problem: Problem, pool: Pool, trials: int) -> None:
        self.problem = problem
        self.pool = pool
        self.trials = trials
        self.left: set[Hashable] = set()
        self.nodes = [k for k, item in enumerate(problem.items) if item.options]
        self.made = {value for item in problem.items for value in item.outputs}.difference(problem.given)
        self.values = sorted(self.made)
        reads = {n: set(problem.items[n].inputs) for n in self.nodes}
        self.readers = {
            k: [n for n in self.nodes if not reads[n].isdisjoint(problem.items[k].outputs)]
            for k in self.nodes
        }

    def descend(self, budget: int) -> None:
        """Go on from the cheapest solution within a budget to cheaper ones, as long as a step finds them."""
        while (best := self.pool.every.within(budget)) is not None and self._tried(best):
            pass

    def spread(self) -> None:
        """Go on from every solution that nothing beats."""
        while any([self._tried(each) for each in self.pool.every]):
            pass

    def _tried(self, solution: Solution) -> bool:
        """Whether all steps from a solution were tried now: False if they were before, or trials ran out."""
        if solution.decisions() in self.left:
            return False
        for each in self._around(solution):
            if self.trials <= 0:
                return False
            self.trials -= each.decisions() not in self.pool.known
            self.pool.add(each)
        self.left.add(solution.decisions())
        return True

    def _around(self, solution: Solution) -> Iterator[Solution]:
        yield from self._otherwise_stored(solution)
        yield from self._otherwise_rerun(solution)
        yield from self._other_options(solution)
        yield from self._otherwise_dropped(solution)
        yield from self._rerun_ahead(solution)

    def _other_options(self, solution: Solution) -> Iterator[Solution]:
        """Another option of a node, also with what it pins stored: until its backward that takes no more."""
        for k in self.nodes:
            for n, option in enumerate(self.problem.items[k].options):
                if n != solution.options[k]:
                    options = (*solution.options[:k], n, *solution.options[k + 1 :])
                    yield replace(solution, options=options)
                    stored = solution.stored.union(self.made.intersection(option.pinned))
                    if stored != solution.stored:
                        yield replace(solution, options=options, stored=stored)

    def _otherwise_stored(self, solution: Solution) -> Iterator[Solution]:
        for value in self.values:
            yield replace(solution, stored=solution.stored ^ {value})

    def _otherwise_rerun(self, solution: Solution) -> Iterator[Solution]:
        """A node is run again, and captures in the stage of any later one, or is not."""
        for n, k in enumerate(self.nodes):
            holds = {item: stage for item, stage in solution.holds.items() if item != k}
            if k in solution.reruns:
                yield replace(solution, reruns=solution.reruns - {k}, holds=holds)
            if k not in solution.reruns or k in solution.holds:
                yield replace(solution, reruns=solution.reruns | {k}, holds=holds)
            for stage in self.nodes[n + 1 :]:
                if solution.holds.get(k) != stage:
                    yield replace(solution, reruns=solution.reruns | {k}, holds={**holds, k: stage})

    def _otherwise_dropped(self, solution: Solution) -> Iterator[Solution]:
        for stage in self.nodes:
            before = solution.drops.get(stage, ())
            for value in self.values:
                after = tuple(sorted({*before} ^ {value}))
                yield replace(solution, drops={**solution.drops, stage: after})

    def _rerun_ahead(self, solution: Solution) -> Iterator[Solution]:
        """A node is run again from stored inputs where its outputs are read, captured ahead of its own stage.

        Four decisions at once, none of which is better without the others.
        """
        for k, readers in self.readers.items():
            item = self.problem.items[k]
            replayed = next(
                (n for n, each in enumerate(item.options) if each.cost and not each.held_bytes), None
            )
            if replayed is None:
                continue
            stored = solution.stored.difference(item.outputs).union(self.made.intersection(item.inputs))
            for reader in readers:
                for option in range(len(self.problem.items[reader].options)):
                    options = list(solution.options)
                    options[k], options[reader] = replayed, option
                    yield replace(
                        solution,
                        options=tuple(options),
                        stored=stored,
                        reruns=solution.reruns | {k},
                        holds={**solution.holds, k: reader},
                    )
