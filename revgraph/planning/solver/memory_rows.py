"""Memory rows: what is held in each step of the forward pass, at the turn, and in each backward stage."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from revgraph.planning.solver.formulation import Formulation

Presence = tuple[int, int, int]
# What is left of a sum of bytes that has gone back to zero.
NOTHING = 1e-12


class Memory:
    """Rows that keep every step within the column `peak`, in units of the formulation's scale.

    Backward stages are counted from 0. Each row says in full what is held: HiGHS finds far better cuts in
    such rows than where running sums chain them together.
    """

    def __init__(self, formulation: Formulation) -> None:
        self.f = formulation
        self.problem = formulation.problem
        self.model = formulation.model
        self.position = {k: t for t, k in enumerate(formulation.events.stages)}
        self.count = len(self.position)
        self.size = [each / formulation.scale for each in self.problem.storage_bytes]
        self.changes: list[defaultdict[int, float]] = [defaultdict(float) for _ in range(self.count + 1)]
        self.known: dict[tuple[frozenset[int], frozenset[int]], int] = {}
        self.at_turn: list[tuple[int, float]] = []
        self.later: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
        self.passing: defaultdict[int, list[tuple[int, int | None, float]]] = defaultdict(list)
        results = {self.problem.storage_of[value] for value in self.problem.results}
        self.results = results
        self.reruns_in: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for (k, j), column in formulation.rerun.items():
            self.reruns_in[j].append((k, column))
        self.constant = sum(self.size[storage] for storage in results)
        self._storages(results)
        self._internals()
        self._forward(results)
        self._turn()
        self._backward()

    def _present(self, column: int, size: float, first: int, last: int) -> None:
        """The column's bytes count in the stages from position first to last."""
        if size and first <= last:
            self.changes[first][column] += size
            self.changes[last + 1][column] -= size

    def _storages(self, results: set[int]) -> None:
        presences: defaultdict[int, list[Presence]] = defaultdict(list)
        for value, stages in self.f.events.of.items():
            storage, before = self.problem.storage_of[value], -1
            for n, j in enumerate(stages):
                t = self.position[j]
                presences[storage].append((self.f.carried[value, n], before + (n > 0), t - 1))
                presences[storage].append((self.f.at[value, j], t, t))
                before = t
        pins = self._pins()
        last_read = {
            self.problem.storage_of[value]: i
            for i, item in enumerate(self.problem.items)
            for value in (*item.outputs, *item.inputs)
        }
        for storage in {*presences, *pins}:
            if storage in results or not self.size[storage]:
                continue
            values = {value for value in self.f.events.of if self.problem.storage_of[value] == storage}
            alone = len(values) == 1 and storage not in pins
            parts = presences[storage] if alone else self._union(presences[storage], pins[storage])
            size = self.size[storage]
            if alone:
                self._passing(next(iter(values)), size)
            for column, first, last in parts:
                self._present(column, size, max(first, 0), last)
                if first == -1:
                    self.at_turn.append((column, size))
                    self.later[last_read[storage]].append((column, size))

    def _passing(self, value: int, size: float) -> None:
        """Note the stages that read a value in reruns alone: it goes before their own replay, unless it is
        carried on."""
        stages = self.f.events.of[value]
        for n, j in enumerate(stages):
            if not any(value in (*option.needs, *option.gives) for option in self.problem.items[j].options):
                after = self.f.carried[value, n + 1] if n + 1 < len(stages) else None
                self.passing[j].append((self.f.at[value, j], after, size))

    def _pins(self) -> defaultdict[int, list[tuple[int, int]]]:
        """For each storage, by stage in backward order: a column at least 1 where this or a later stage
        pins."""
        pinning: defaultdict[int, defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for k in self.f.events.stages:
            for c, option in enumerate(self.problem.items[k].options):
                for storage in {self.problem.storage_of[value] for value in option.pinned}:
                    pinning[storage][self.position[k]].append(self.f.option[k, c])
        pins: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for storage, by_stage in pinning.items():
            below: int | None = None
            for t in sorted(by_stage, reverse=True):
                below = column = self._any_of(
                    frozenset(by_stage[t]), frozenset() if below is None else frozenset((below,))
                )
                pins[storage].append((t, column))
            pins[storage].reverse()
        return pins

    def _union(self, presences: list[Presence], pins: list[tuple[int, int]]) -> list[Presence]:
        """Columns that are 1 wherever any value of a storage is present or a stage yet to come pins it."""
        last_pin = [t for t, _ in pins]
        starts = {-1, 0, *(first for _, first, _ in presences), *(last + 1 for _, _, last in presences)}
        starts |= {t + 1 for t in last_pin}
        cuts = sorted(start for start in starts if start <= self.count)
        parts: list[Presence] = []
        for first, after in zip(cuts, [*cuts[1:], self.count], strict=True):
            covering = [column for column, begin, end in presences if begin <= first <= end]
            pin = bisect_right(last_pin, first - 1)
            if pin < len(pins):
                covering.append(pins[pin][1])
            if not covering or first == after:
                continue
            parts.append((self._any_of(frozenset(), frozenset(covering)), first, after - 1))
        return parts

    def _any_of(self, together: frozenset[int], each: frozenset[int]) -> int:
        """A column that is at least the sum of the columns `together`, and at least each of the others."""
        if not together and len(each) == 1:
            return next(iter(each))
        key = together, each
        if key not in self.known:
            self.known[key] = column = self.model.column()
            if together:
                self.model.at_most([*((part, 1.0) for part in together), (column, -1.0)], 0)
            for part in each:
                self.model.implies(part, [column])
        return self.known[key]

    def _internals(self) -> None:
        """Internals held from forward or from a capturing rerun to the item's own stage."""
        for (k, c), column in self.f.option.items():
            size = self.problem.items[k].options[c].held_bytes / self.f.scale
            self._present(column, size, 0, self.position[k])
            if size:
                self.at_turn.append((column, size))
                self.later[k].append((column, size))
        for (k, j), column in self.f.captured.items():
            size = self.problem.items[k].captured_bytes / self.f.scale
            self._present(column, size, self.position[j], self.position[k])

    def _forward(self, results: set[int]) -> None:
        """Rows of the forward steps, where a later step does not need more in any case."""
        steps = self._forward_steps(results)
        held = [0, *accumulate(len(self.later[i]) for i in range(len(steps)))]
        columns = [each for i in range(len(steps)) for each in self.later[i]]
        beyond = self.constant + self.problem.loss_bytes / self.f.scale
        for i in reversed(range(len(steps))):
            base, peaks = steps[i]
            if base + max(peaks.values(), default=0.0) > beyond:
                own = [(self.f.option[i, c], peak) for c, peak in peaks.items()]
                self.model.at_most([*columns[: held[i]], *own, (self.f.peak, -1.0)], -base)
                beyond = max(beyond, base + min(peaks.values(), default=0.0))

    def _forward_steps(self, results: set[int]) -> list[tuple[float, dict[int, float]]]:
        """For each forward step what is alive in any case before it, and its peak by option."""
        items, storage_of = self.problem.items, self.problem.storage_of
        last = {storage_of[v]: i for i, item in enumerate(items) for v in (*item.outputs, *item.inputs)}
        goes: defaultdict[int, set[int]] = defaultdict(set)
        for storage, i in last.items():
            if storage not in results:
                goes[i].add(storage)
        alive, live, steps = set[int](), 0.0, list[tuple[float, dict[int, float]]]()
        for i, item in enumerate(items):
            made = {storage_of[value] for value in item.outputs} - alive
            extra = sum(self.size[storage] for storage in made)
            if item.options:
                steps.append((live, {c: o.forward_peak / self.f.scale for c, o in enumerate(item.options)}))
            else:
                steps.append((live + extra, {}))
            alive |= made
            live += extra - sum(self.size[storage] for storage in goes[i] & alive)
            alive -= goes[i]
        return steps

    def _turn(self) -> None:
        base = self.constant + self.problem.loss_bytes / self.f.scale
        self.model.at_most([*self.at_turn, (self.f.peak, -1.0)], -base)

    def _backward(self) -> None:
        held: defaultdict[int, float] = defaultdict(float)
        for t, j in enumerate(self.f.events.stages):
            for column, size in self.changes[t].items():
                held[column] += size
                if abs(held[column]) < NOTHING:
                    del held[column]
            self._stage(j, held)

    def _stage(self, j: int, held: Mapping[int, float]) -> None:
        """A stage's own replay and differentiation, and each rerun in it, fit beside what is held."""
        item, scale = self.problem.items[j], self.f.scale
        base = self.constant + item.gradient_bytes / scale
        terms = [*held.items(), (self.f.peak, -1.0)]
        own = [(self.f.option[j, c], option.backward_peak / scale) for c, option in enumerate(item.options)]
        replayed = max((option.backward_peak for option in item.options if option.name != "keep"), default=0)
        after = max(0, replayed - item.captured_bytes) / scale
        own += [(self.f.captured[j, i], after) for i in self.f.events.reruns[j] if (j, i) in self.f.captured]
        for at, after, size in self.passing[j]:
            own += [(at, -size), *([] if after is None else [(after, size)])]
        self.model.at_most([*terms, *own], -base)
        for k, column in self.reruns_in[j]:
            rerun = self.problem.items[k]
            outputs = [self.problem.storage_of[value] for value in rerun.outputs]
            counted = self.size[outputs[0]] if len(outputs) == 1 and outputs[0] not in self.results else 0
            peak = [(column, max(0.0, rerun.rerun_peak / scale - counted))]
            if (k, j) in self.f.captured:
                peak.append((self.f.captured[k, j], -rerun.captured_bytes / scale))
            self.model.at_most([*terms, *peak], -base)
