"""The planning problem as a mixed integer programme: an option for each item, values stored, items rerun."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import gcd

from revgraph.planning.solver.events import Events
from revgraph.planning.solver.line import is_plain
from revgraph.planning.solver.linear_model import LinearModel
from revgraph.planning.solver.memory_rows import Memory
from revgraph.planning.solver.problem import Problem


class Formulation:
    """Columns by what they decide, with the rows that make a solution of them legal.

    `option[k, c]`: item k is under its option c. `captured[k, j]`: it is captured by a rerun in stage j
    instead. `rerun[k, j]`: item k is run again in stage j. `at[v, j]`: value v is at hand when stage j
    replays; `carried[v, n]`: it stays from v's event n - 1 (the turn for n = 0) to its event n. `peak` is
    the budget.
    """

    def __init__(self, problem: Problem, scale: float, depth: int) -> None:
        self.problem = problem
        self.scale = scale
        self.events = Events(problem, depth)
        self.model = LinearModel()
        self.peak = self.model.column(0, float("inf"))
        self.total = self.model.column(0, float("inf"), whole=True)
        self.option: dict[tuple[int, int], int] = {}
        self.captured: dict[tuple[int, int], int] = {}
        self.rerun: dict[tuple[int, int], int] = {}
        self.at: dict[tuple[int, int], int] = {}
        self.carried: dict[tuple[int, int], int] = {}
        self.held: set[int] = set()
        self._decisions()
        self._values()
        self._availability()
        self._uses()
        self._costs()
        self.memory = Memory(self)

    @cached_property
    def unit(self) -> int:
        """Costs in whole numbers of these let HiGHS round its bound."""
        items = self.problem.items
        found = gcd(*(option.cost for item in items for option in item.options))
        return max(1, gcd(found, *(item.rerun_cost for item in items if item.options)))

    def hold_stored(self, value: int) -> bool:
        """Have the value, if it is stored, stay to the last stage that reads it; False if it does already."""
        stages = self.events.of[value]
        lead = self.carried[value, 0]
        if lead in self.held or len(stages) < 2:
            return False
        self.held.add(lead)
        later: int | None = None
        for n in reversed(range(1, len(stages))):
            column = self.model.column()
            self.model.implies(self.at[value, stages[n]], [column])
            if later is not None:
                self.model.implies(later, [column])
            self.model.at_most([(lead, 1.0), (column, 1.0), (self.carried[value, n], -1.0)], 1)
            later = column
        return True

    def decide_wiring(self) -> bool:
        """Have values that come over wiring be at hand or not, never in part; False if they do already."""
        columns = [
            column
            for (value, _), column in (*self.at.items(), *self.carried.items())
            if len(self.events.relatives(value)) > 1 and not self.model.whole[column]
        ]
        for column in columns:
            self.model.whole[column] = True
        return bool(columns)

    def _costs(self) -> None:
        """The column `total` is what is computed again, in units of `unit`."""
        terms = [(self.total, -1.0)]
        for (k, c), column in self.option.items():
            terms.append((column, self.problem.items[k].options[c].cost / self.unit))
        for (k, _), column in self.rerun.items():
            terms.append((column, self.problem.items[k].rerun_cost / self.unit))
        self.model.row(terms, 0, 0)

    def _decisions(self) -> None:
        model, items = self.model, self.problem.items
        for k in sorted(self.events.stages):
            capturable = any(map(is_plain, items[k].options))
            for c in range(len(items[k].options)):
                self.option[k, c] = model.column(whole=True)
            for j in self.events.reruns[k]:
                self.rerun[k, j] = model.column(whole=True)
                if capturable:
                    self.captured[k, j] = model.column(whole=True)
                    model.implies(self.captured[k, j], [self.rerun[k, j]])
            choices = [self.option[k, c] for c in range(len(items[k].options))]
            choices += [self.captured[k, j] for j in self.events.reruns[k] if (k, j) in self.captured]
            model.row([(choice, 1.0) for choice in choices], 1, 1)
            # The engine runs nothing again that holds something from its forward on.
            holding = [self.option[k, c] for c, each in enumerate(items[k].options) if not is_plain(each)]
            for j in self.events.reruns[k]:
                model.at_most([(each, 1.0) for each in (*holding, self.rerun[k, j])], 1)

    def _values(self) -> None:
        for value, stages in self.events.of.items():
            # Wiring adds up sources, which must not build up a whole from parts.
            relatives = self.events.relatives(value)
            wired = len(relatives) > 1
            ways = {k for each in relatives for k in self.events.neighbours[each]}
            tangled = len(ways.intersection(self.events.wirings)) > 1
            for n, j in enumerate(stages):
                self.carried[value, n] = self.model.column(whole=tangled or (wired and n == 0))
                self.at[value, j] = self.model.column(whole=tangled)

    def _availability(self) -> None:
        """A value is at hand where it was carried to, is rerun, or comes over wiring from what is at hand."""
        problem, given = self.problem, self.events.given
        producer = {value: k for k in self.events.stages for value in problem.items[k].outputs}
        gives: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for k in self.events.stages:
            for c, option in enumerate(problem.items[k].options):
                for value in option.gives:
                    gives[value, k].append(self.option[k, c])
        before: dict[tuple[int, int], list[int]] = {}
        for value, stages in self.events.of.items():
            for n, j in enumerate(stages):
                sources = [self.carried[value, n]]
                if value in producer and (producer[value], j) in self.rerun:
                    sources.append(self.rerun[producer[value], j])
                before[value, j] = sources
                if n + 1 < len(stages):
                    self.model.implies(self.carried[value, n + 1], [self.at[value, j], *gives[value, j]])
        wired = [value for value in self.events.of if len(self.events.relatives(value)) > 1]
        sweep = _Sweep(self, before)
        for value in wired:
            for j in self.events.of[value]:
                sweep.start(value, j)
        for w in reversed(self.events.wirings):
            item = problem.items[w]
            sweep.pass_on(item.outputs, item.inputs, given)
        for w in self.events.wirings:
            item = problem.items[w]
            sweep.pass_on(item.inputs, item.outputs, given)
        sweep.finish()
        for value, stages in self.events.of.items():
            if len(self.events.relatives(value)) == 1:
                for j in stages:
                    self.model.implies(self.at[value, j], before[value, j])

    def _uses(self) -> None:
        """What a replay or a rerun reads is at hand in its stage."""
        problem, model, given = self.problem, self.model, self.events.given
        users: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for (k, c), column in self.option.items():
            for value in problem.items[k].options[c].needs:
                users[value, k].append(column)
        for (k, j), column in self.rerun.items():
            for value in problem.items[k].inputs:
                users[value, j].append(column)
        for k in self.events.stages:
            item = problem.items[k]
            readers: defaultdict[int, list[int]] = defaultdict(list)
            for c, option in enumerate(item.options):
                for value in option.needs:
                    if value not in given:
                        readers[value].append(self.option[k, c])
            for value, columns in readers.items():
                model.at_most([*((each, 1.0) for each in columns), (self.at[value, k], -1.0)], 0)
            for j in self.events.reruns[k]:
                for value in item.inputs:
                    if value not in given:
                        model.implies(self.rerun[k, j], [self.at[value, j]])
                outputs = [value for value in item.outputs if (value, j) in self.at]
                carried = [(self.carried[value, self.events.of[value].index(j)], 1.0) for value in outputs]
                count = float(len(carried))
                together = {each for value in outputs for each in self.events.relatives(value)}
                by = dict.fromkeys(each for value in sorted(together) for each in users.get((value, j), ()))
                model.implies(self.rerun[k, j], by)
                model.at_most([*carried, (self.rerun[k, j], 1.0)], count)


class _Sweep:
    """Availability over wiring: against the program's order, then along it, so that nothing supports
    itself."""

    def __init__(self, formulation: Formulation, before: Mapping[tuple[int, int], Sequence[int]]) -> None:
        self.formulation = formulation
        self.before = before
        self.now: dict[tuple[int, int], int] = {}
        self.sources: dict[tuple[int, int], list[int]] = {}

    def start(self, value: int, j: int) -> None:
        column = self.formulation.model.column()
        self.formulation.model.implies(column, self.before[value, j])
        self.formulation.model.implies(column, [self.formulation.at[value, j]])
        self.now[value, j] = column

    def pass_on(self, sources: tuple[int, ...], targets: tuple[int, ...], given: set[int]) -> None:
        """Wherever all `sources` are at hand, so may the `targets` be."""
        model, formulation = self.formulation.model, self.formulation
        needed = [value for value in sources if value not in given]
        for target in targets:
            for j in formulation.events.of.get(target, ()):
                if not needed:
                    model.low[self.now[target, j]] = 0
                    free = model.column()
                    model.implies(free, [formulation.at[target, j]])
                    self.now[target, j] = free
                    continue
                way = self.now[needed[0], j] if len(needed) == 1 else model.column()
                if len(needed) > 1:
                    for value in needed:
                        model.implies(way, [self.now[value, j]])
                after = model.column()
                model.implies(after, [self.now[target, j], way])
                model.implies(after, [formulation.at[target, j]])
                self.now[target, j] = after

    def finish(self) -> None:
        for (value, j), column in self.now.items():
            self.formulation.model.implies(self.formulation.at[value, j], [column])
