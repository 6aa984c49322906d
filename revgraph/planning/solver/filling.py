"""Filling: what a solution leaves unused of a budget, spent on nodes that then compute less.

The programmes count bytes in slots and foresee peaks from above, so that their schedules end somewhat below
the budget that they aim at. What is left goes to those nodes first that save most for a byte, as in a greedy
knapsack (Dantzig 1957, "Discrete-variable extremum problems"). Bytes are only foreseen: those that are free
again when the peak comes take nothing of it, so that more is tried as long as there is room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from revgraph.planning.solver.line import Line, Storages
from revgraph.planning.solver.pool import Pool
from revgraph.planning.solver.problem import Item, Solution

# How often a solution is gone on from at one budget, and how often with half as many bytes where that fails.
ROUNDS, HALVES = 2, 1


class _Move(NamedTuple):
    """A node that gets another option: what that saves, and how many bytes more it holds.

    Where it `stays`, it is not run again any more, and its outputs are stored.
    """

    node: int
    option: int
    stays: bool
    saved: int
    held: int

    @property
    def worth(self) -> float:
        return self.saved / max(1, self.held)


class BudgetFilling:
    """Goes on from a pool's solutions to cheaper ones within the same budget."""

    def __init__(self, line: Line, pool: Pool) -> None:
        self.line = line
        self.problem = line.problem
        self.pool = pool

    def fill(self, budget: int) -> None:
        """Look for a cheaper solution than the pool's best within a budget, near it."""
        for _ in range(ROUNDS):
            best = self.pool.every.within(budget)
            if best is None or not best.cost or not self._better(best, budget):
                return

    def _better(self, solution: Solution, budget: int) -> bool:
        """Whether moves were found that make it cheaper."""
        moves = sorted(self._moves(solution), key=lambda move: (-move.worth, move.node))
        room = budget - solution.peak_bytes
        for _ in range(1 + HALVES):
            chosen = list(_affordable(moves, room))
            if not chosen:
                return False
            found = self.pool.add(self._moved(solution, chosen))
            if found is not None and found.peak_bytes <= budget and found.rank < solution.rank:
                return True
            room //= 2
        return False

    def _moves(self, solution: Solution) -> Iterator[_Move]:
        """For each node the move that saves most for a byte."""
        stored = self.line.free | {self.problem.storage_of[value] for value in solution.stored}
        for k, item in enumerate(self.problem.items):
            found = [move for move in self._moves_of(k, item, solution, stored) if move.saved > 0]
            if found:
                yield max(found, key=lambda move: (move.worth, -move.option))

    def _moves_of(self, k: int, item: Item, solution: Solution, stored: Storages) -> Iterator[_Move]:
        if not item.options:
            return
        present = item.options[solution.options[k]]
        again = k in solution.reruns
        captured = k in solution.holds
        outputs = {self.problem.storage_of[value] for value in item.outputs}
        for number, option in enumerate(item.options):
            pinned = set(option.pinned).difference(stored)
            if not again:
                saved = present.cost - option.cost
                held = option.held_bytes - present.held_bytes + self.line.size(pinned)
                yield _Move(k, number, False, saved, held)
            elif option.name == "keep":
                saved = item.rerun_cost + (0 if captured else present.cost)
                yield _Move(
                    k, number, True, saved, option.held_bytes + self.line.size(pinned | outputs - stored)
                )
        if again and not captured:
            held = self.line.size(outputs - stored)
            yield _Move(k, solution.options[k], True, item.rerun_cost, held)

    def _moved(self, solution: Solution, moves: Iterable[_Move]) -> Solution:
        options, stored = list(solution.options), set(solution.stored)
        reruns, holds = set(solution.reruns), dict(solution.holds)
        for move in moves:
            options[move.node] = move.option
            if move.stays:
                reruns.discard(move.node)
                holds.pop(move.node, None)
                stored.update(self.problem.items[move.node].outputs)
        return replace(
            solution, options=tuple(options), stored=frozenset(stored), reruns=frozenset(reruns), holds=holds
        )


def _affordable(moves: Sequence[_Move], room: int) -> Iterator[_Move]:
    """As many of the moves, from the first on, as there is room for; those that are too large are passed."""
    for move in moves:
        if move.held <= room:
            room -= move.held
            yield move
