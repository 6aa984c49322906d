"""Evaluating: what a solution holds at its peak and computes again, by a problem's numbers alone.

An oracle: it shares nothing with the schedule and the simulator, by which planners judge solutions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from planning.rebuilding import IllegalSolution, Rebuilding, Stage, rebuild

from revgraph.planning.solver.problem import Problem, Solution


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A solution's peak, where it is (`item` is -1 at the turn), bytes at the turn, cost of reruns."""

    peak_bytes: int
    cost: int
    item: int
    phase: Literal["forward", "turn", "backward"]
    turn_bytes: int


def evaluate(problem: Problem, solution: Solution) -> Evaluation:
    """Peak bytes and cost of a training step under this solution, by a walk over its forward and backward.

    Raises:
        IllegalSolution: it reads a value that it neither stores nor rebuilds.
    """
    rebuilding = rebuild(problem, solution)
    ledger = _Ledger(problem, solution, rebuilding)
    ledger.forward()
    ledger.note("turn", -1, problem.loss_bytes)
    turn = ledger.live
    ledger.release_unread()
    for stage in rebuilding.stages:
        ledger.backward(stage)
    return Evaluation(ledger.peak, ledger.cost, ledger.item, ledger.phase, turn)


def judge_of(problem: Problem) -> Callable[[Solution], Solution | None]:
    """What planners of a bare problem judge solutions with."""

    def judge(solution: Solution) -> Solution | None:
        try:
            solution = tidy(problem, solution)
            found = evaluate(problem, solution)
        except IllegalSolution:
            return None
        return replace(solution, peak_bytes=found.peak_bytes, cost=found.cost)

    return judge


def tidy(problem: Problem, solution: Solution) -> Solution:
    """The solution without what it does to no purpose.

    That is stored values that nothing reads, reruns that never happen, and captures by them: where an item's
    outputs are at hand in the stage that was to capture it, it is replayed in its own instead. What is
    stored stays to the last stage that reads it: drops are for what was rebuilt.

    Raises:
        IllegalSolution: a value is asked for that is neither stored nor can be rebuilt.
    """
    drops = {j: tuple(v for v in values if v not in solution.stored) for j, values in solution.drops.items()}
    solution = replace(solution, drops={j: values for j, values in drops.items() if values})
    while True:
        try:
            rebuilding = rebuild(problem, solution)
            break
        except IllegalSolution as error:
            if error.item not in solution.holds:
                raise
            holds = {k: stage for k, stage in solution.holds.items() if k != error.item}
            solution = replace(solution, holds=holds)
    unread = {value for value, spans in rebuilding.spans.items() if spans[0] == (-1, -1)}
    rerun = {move.item for stage in rebuilding.stages for move in stage.moves if move.how == "rerun"}
    return replace(solution, stored=solution.stored - unread, reruns=solution.reruns & rerun)


class _Ledger:
    """Live bytes: each storage counts once while anything holds it."""

    def __init__(self, problem: Problem, solution: Solution, rebuilding: Rebuilding) -> None:
        self.problem = problem
        self.solution = solution
        self.live = self.peak = self.cost = 0
        self.item = -1
        self.phase: Literal["forward", "turn", "backward"] = "turn"
        self.holders = [0] * len(problem.storage_bytes)
        self.begins: defaultdict[int, list[int]] = defaultdict(list)
        self.ends: defaultdict[int, list[int]] = defaultdict(list)
        for value, spans in rebuilding.spans.items():
            for made, read in spans:
                if read > made:  # otherwise nothing reads it once it is there
                    self.begins[made].append(value)
                    self.ends[read].append(value)
        self.unread = [value for value in solution.stored if rebuilding.spans[value][0] == (-1, -1)]
        self.captured: dict[int, int] = {}

    def forward(self) -> None:
        problem = self.problem
        last = {value: i for i, item in enumerate(problem.items) for value in item.inputs}
        results = set(problem.results)
        for i, item in enumerate(problem.items):
            before = self.live
            for value in item.outputs:
                self._hold(value)
                if value in results:
                    self._hold(value)
                if value in self.solution.stored:
                    self._hold(value)
            if self.solution.options[i] >= 0:
                option = item.options[self.solution.options[i]]
                self.note("forward", i, before + option.forward_peak - self.live)
                self.live += option.held_bytes
                for value in option.pinned:
                    self._hold(value)
            self.note("forward", i, 0)
            for value in {*item.inputs, *(each for each in item.outputs if each not in last)}:
                if last.get(value, i) == i:
                    self._release(value)

    def release_unread(self) -> None:
        for value in self.unread:
            self._release(value)

    def backward(self, stage: Stage) -> None:
        j = stage.item
        item, option = self.problem.items[j], self.problem.items[j].options[self.solution.options[j]]
        time, own = stage.first, False
        for move in stage.moves:
            if move.how == "replay":
                replayed = self.problem.items[move.item]
                chosen = replayed.options[self.solution.options[move.item]]
                own = move.item == j
                self.note("backward", j, item.gradient_bytes + chosen.backward_peak)
                self.cost += chosen.cost
                if not own:
                    self._capture(move.item, chosen.captured_bytes)
            elif move.how == "rerun":
                rerun = self.problem.items[move.item]
                self.note("backward", j, item.gradient_bytes + rerun.rerun_peak)
                self.cost += rerun.rerun_cost
                if move.captures:
                    self._capture(move.item, rerun.captured_bytes)
            for value in self.begins[time]:
                self._hold(value)
            if not own:
                self.note("backward", j, item.gradient_bytes)
            for value in self.ends[time]:
                self._release(value)
            time += 1
        if not own:
            captured = self.captured.pop(j, 0)
            self.note("backward", j, item.gradient_bytes + max(0, option.backward_peak - captured))
            self.live -= captured
        self.live -= option.held_bytes
        for value in option.pinned:
            self._release(value)

    def note(self, phase: Literal["forward", "turn", "backward"], item: int, extra: int) -> None:
        if self.live + extra > self.peak:
            self.peak, self.phase, self.item = self.live + extra, phase, item

    def _capture(self, k: int, count: int) -> None:
        self.captured[k] = count
        self.live += count

    def _hold(self, value: int) -> None:
        storage = self.problem.storage_of[value]
        self.holders[storage] += 1
        if self.holders[storage] == 1:
            self.live += self.problem.storage_bytes[storage]

    def _release(self, value: int) -> None:
        storage = self.problem.storage_of[value]
        self.holders[storage] -= 1
        if not self.holders[storage]:
            self.live -= self.problem.storage_bytes[storage]
