"""The improver: a mixed integer programme that looks for less than the best that is known.

A line knows the state between two nodes as one thing; where branches meet, single values are worth storing,
inverting or running again by themselves. The formulation has all of that at once, so it is only as good as
the solver's first steps. It is given the best known cost as a limit and a few nodes of branch and bound, and
what it finds is judged as everything else.
"""

from __future__ import annotations

from collections import defaultdict

from revgraph.planning.solver.formulation import Formulation
from revgraph.planning.solver.line import replay_option
from revgraph.planning.solver.linear_model import Values
from revgraph.planning.solver.merging import Merged
from revgraph.planning.solver.pool import Pool
from revgraph.planning.solver.problem import Solution

# How often it is solved again with less memory, where it took a solution to need too little.
ATTEMPTS = 4
# In small problems more is tried: the formulation foresees some peaks too high by up to so much.
SLACK = 1.1
# Solutions this much worse than the best, as a share, are as good as it, in small problems and in others.
GAP, GAP_BEYOND = 1e-4, 5e-3
# Continuous columns that stand for yes or no are read as yes from here on.
YES = 0.99
# Stages in which an item may be run again, in problems of at most so many items and in larger ones.
SMALL, DEPTH, DEPTH_BEYOND = 6, 3, 1


class Improver:
    """A problem's formulation, solved under any budget; what it finds goes to the pool.

    A solve takes `nodes` of branch and bound at most.
    """

    def __init__(self, merged: Merged, pool: Pool, scale: float, nodes: int) -> None:
        self.merged = merged
        self.pool = pool
        self.nodes = nodes
        self.scale = float(max(1.0, scale))
        items = sum(bool(item.options) for item in merged.problem.items)
        self.slack, self.gap = (SLACK, GAP) if items <= SMALL else (1.0, GAP_BEYOND)
        self.formulation = Formulation(merged.problem, self.scale, DEPTH if items <= SMALL else DEPTH_BEYOND)

    @property
    def entries(self) -> int:
        """Columns by rows of the formulation, few of them other than 0."""
        return len(self.formulation.model.low) * len(self.formulation.model.row_low)

    def improve(self, budget: int) -> None:
        """Look for a solution of less cost than the pool's best within a budget."""
        best = self.pool.every.within(budget)
        if best is not None and not best.cost:
            return
        allowed = round(budget * self.slack)
        for _ in range(ATTEMPTS):
            found = self._solved(self.formulation.total, allowed, None if best is None else best.cost)
            if found is None:
                return
            solution, foreseen = found
            if solution.peak_bytes <= budget:
                return
            allowed = min(allowed - (solution.peak_bytes - budget), foreseen - 1)

    def shrink(self) -> None:
        """Look for solutions of a lower peak than any in the pool."""
        for _ in range(ATTEMPTS):
            before = self.pool.every.least.peak_bytes
            self._solved(self.formulation.peak, round((before - 1) * self.slack), None)
            if self.pool.every.least.peak_bytes == before:
                return

    def _solved(self, column: int, budget: int, below: int | None) -> tuple[Solution, int] | None:
        """What HiGHS finds with the least of a column, judged, with the bytes that were foreseen.

        Rows that few solutions break are added as soon as one does.
        """
        formulation = self.formulation
        upper = {formulation.peak: budget / self.scale}
        if below is not None:
            upper[formulation.total] = min(
                below / formulation.unit - 1, below / formulation.unit * (1 - self.gap)
            )
            if upper[formulation.total] < 0:
                return None
        for _ in range(ATTEMPTS):
            values = formulation.model.minimise({column: 1.0}, upper=upper, nodes=self.nodes, gap=self.gap)
            if values is None:
                return None
            foreseen = round(formulation.model.least(formulation.peak, values) * self.scale)
            tightened = self._hold_stored(values)
            solution = self.pool.add(self._read(values))
            if solution is not None:
                return solution, foreseen
            if not (formulation.decide_wiring() or tightened):
                return None
        return None

    def _hold_stored(self, values: Values) -> bool:
        """Add the rows that hold what is stored, for values that this outcome lets go and rebuilds."""
        added = False
        for value in self.formulation.events.of:
            if self._is_stored(value, values) and self._drops(value, values):
                added |= self.formulation.hold_stored(value)
        return added

    def _read(self, values: Values) -> Solution:
        """The solution that the columns say, in the original's values."""
        formulation, names = self.formulation, self.merged.names
        problem = formulation.problem
        options = [-1] * len(problem.items)
        holds: dict[int, int] = {}
        for k in formulation.events.stages:
            choices = range(len(problem.items[k].options))
            options[k] = max(choices, key=lambda c: values[formulation.option[k, c]])
        for (k, j), column in formulation.captured.items():
            replay = replay_option(problem.items[k])
            if values[column] > 0.5 and replay is not None:
                holds[k], options[k] = j, replay
        reruns = frozenset(k for (k, _), column in formulation.rerun.items() if values[column] > 0.5)
        stored = {names[value][0] for value in formulation.events.of if self._is_stored(value, values)}
        drops: defaultdict[int, list[int]] = defaultdict(list)
        for value in formulation.events.of:
            for j in self._drops(value, values):
                drops[j] += names[value]
        return Solution(
            tuple(options), frozenset(stored), reruns, holds, {j: tuple(v) for j, v in drops.items()}
        )

    def _is_stored(self, value: int, values: Values) -> bool:
        return bool(values[self.formulation.carried[value, 0]] > YES)

    def _drops(self, value: int, values: Values) -> list[int]:
        """The stages at whose end a value goes although it is at hand again in a later one."""
        formulation = self.formulation
        stages = formulation.events.of[value]
        wanted = [values[formulation.at[value, j]] > YES for j in stages]
        return [
            j
            for n, j in enumerate(stages[:-1])
            if wanted[n] and any(wanted[n + 1 :]) and not values[formulation.carried[value, n + 1]] > YES
        ]
