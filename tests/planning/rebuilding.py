"""Rebuilding: how a solution brings back, stage by stage, what each replay of the backward pass reads."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from revgraph.errors import PlanError
from revgraph.planning.solver.problem import Option, Problem, Solution


class IllegalSolution(PlanError, ValueError):
    """A solution asks for a value that it can neither store nor rebuild, or contradicts itself.

    `item` is where that is.
    """

    def __init__(self, message: str, item: int) -> None:
        super().__init__(message)
        self.item = item


class Move(NamedTuple):
    """One step of a stage: an item done again, and whether what it captures stays until its own stage.

    A "replay" is of the item itself (under its option; early where it is another item's stage), a "rerun"
    gives outputs from inputs, "wire" and "unwire" are a wiring's two directions.
    """

    how: Literal["replay", "rerun", "wire", "unwire"]
    item: int
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    captures: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """What happens in the backward of an item: moves that rebuild, the last of them its own replay if any.

    `first` is the time of the first move; moves are counted through the whole backward pass.
    """

    item: int
    moves: tuple[Move, ...]
    first: int


@dataclass(frozen=True, slots=True)
class Rebuilding:
    """The stages in backward order; for each value `spans` of times (made, last read), -1 for the turn."""

    stages: tuple[Stage, ...]
    spans: dict[int, tuple[tuple[int, int], ...]]


def rebuild(problem: Problem, solution: Solution) -> Rebuilding:
    """How every value that a replay reads comes back.

    A missing value comes over wiring from what is at hand, else from a rerun of its item if that is in
    `reruns`, else from an early replay of the item that inverts it; of several ways the one with the fewest
    early replays, then with the least cost.

    Raises:
        IllegalSolution: what cannot be rebuilt, and where it is asked for.
    """
    walk = _Walk(problem, solution)
    for j in reversed(range(len(problem.items))):
        if solution.options[j] >= 0:
            walk.stage(j)
    for k, j in solution.holds.items():
        if k not in walk.replayed_at or walk.replayed_at[k] != j:
            raise IllegalSolution(
                f"{problem.items[k].name!r} is never rerun in the stage that captures it", k
            )
    spans = {value: tuple((made, read) for made, read in spans) for value, spans in walk.spans.items()}
    return Rebuilding(tuple(walk.stages), spans)


class _Walk:
    def __init__(self, problem: Problem, solution: Solution) -> None:
        self.problem = problem
        self.solution = solution
        self.stages: list[Stage] = []
        self.spans: defaultdict[int, list[list[int]]] = defaultdict(list)
        self.at_hand = {*problem.given, *solution.stored}
        for value in solution.stored:
            self.spans[value].append([-1, -1])
        self.replayed_at: dict[int, int] = {}
        self.time = 0
        self.rules: defaultdict[int, list[Move]] = defaultdict(list)
        for rule in self._all_rules():
            for value in rule.makes:
                self.rules[value].append(rule)

    def _all_rules(self) -> Iterable[Move]:
        for k, item in enumerate(self.problem.items):
            if self.solution.options[k] < 0:
                yield Move("unwire", k, item.outputs, item.inputs)
                yield Move("wire", k, item.inputs, item.outputs)
                continue
            option = self._option(k)
            if k in self.solution.reruns:
                yield Move("rerun", k, item.inputs, item.outputs)
            if option.gives:
                yield Move("replay", k, option.needs, option.gives, True)

    def _option(self, k: int) -> Option:
        return self.problem.items[k].options[self.solution.options[k]]

    def stage(self, j: int) -> None:
        option, first = self._option(j), self.time
        dropped = set(self.solution.drops.get(j, ()))
        moves: list[Move] = []
        if option.name != "keep" and j not in self.replayed_at:
            if any(value not in self.at_hand for value in option.needs):
                self._bring(j, option.needs, moves)
            # What was there, is dropped in this stage and given by its replay is there again at the end.
            anew = dropped.intersection(option.gives, self.at_hand).difference(option.needs)
            self.at_hand -= anew
            self._do(Move("replay", j, option.needs, option.gives), j, moves)
            dropped -= anew
        self.replayed_at.setdefault(j, j)
        self.at_hand -= dropped
        self.at_hand.update(self.problem.given)
        self.time += 1
        self.stages.append(Stage(j, tuple(moves), first))

    def _bring(self, j: int, wanted: tuple[int, ...], moves: list[Move]) -> None:
        best = self._ways(j, wanted)
        pending = list(reversed(wanted))
        while pending:
            value = pending[-1]
            if value in self.at_hand:
                pending.pop()
                continue
            if value not in best:
                name = self.problem.items[j].name
                raise IllegalSolution(
                    f"value {value}, which the stage of {name!r} needs, cannot be rebuilt", j
                )
            missing = [each for each in best[value].reads if each not in self.at_hand]
            if missing:
                pending += missing
            else:
                self._do(best[value], j, moves)

    def _ways(self, j: int, wanted: tuple[int, ...]) -> dict[int, Move]:
        """For each missing value that may be of use the best way to it (Knuth's extension of Dijkstra)."""
        waiting: defaultdict[int, list[int]] = defaultdict(list)
        rules: list[Move] = []
        missing: list[int] = []
        costs: list[tuple[int, int, int]] = []
        queue: list[tuple[tuple[int, int, int], int, int]] = []
        pending, seen = [value for value in wanted if value not in self.at_hand], set(wanted)
        while pending:
            for rule in self.rules[pending.pop()]:
                if rule.how == "replay" and (rule.item >= j or rule.item in self.replayed_at):
                    continue
                reads = {value for value in rule.reads if value not in self.at_hand}
                rules.append(rule)
                missing.append(len(reads))
                costs.append(self._cost(rule))
                for value in reads:
                    waiting[value].append(len(rules) - 1)
                pending += reads - seen
                seen |= reads
        for index, count in enumerate(missing):
            if not count:
                queue += [(costs[index], value, index) for value in rules[index].makes]
        heapq.heapify(queue)
        best: dict[int, Move] = {}
        while queue:
            cost, value, index = heapq.heappop(queue)
            if value in best or value in self.at_hand:
                continue
            best[value] = rules[index]
            for other in waiting[value]:
                missing[other] -= 1
                costs[other] = _sum(costs[other], cost)
                if not missing[other]:
                    for made in rules[other].makes:
                        heapq.heappush(queue, (costs[other], made, other))
        return best

    def _cost(self, rule: Move) -> tuple[int, int, int]:
        if rule.how == "replay":
            return 1, 0, 1
        return 0, self.problem.items[rule.item].rerun_cost if rule.how == "rerun" else 0, 1

    def _do(self, move: Move, j: int, moves: list[Move]) -> None:
        k = move.item
        if move.how == "rerun" and self.solution.holds.get(k) == j and k not in self.replayed_at:
            if self._option(k).name == "keep":
                raise IllegalSolution(f"{self.problem.items[k].name!r} is kept, and captured by a rerun", k)
            move = move._replace(captures=True)
        if move.how == "replay" or move.captures:
            self.replayed_at[k] = j
        for value in move.reads:
            if value in self.spans:
                self.spans[value][-1][1] = self.time
        for value in move.makes:
            if value not in self.at_hand:
                self.spans[value].append([self.time, self.time])
                self.at_hand.add(value)
        self.time += 1
        moves.append(move)


def _sum(one: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, int]:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]
