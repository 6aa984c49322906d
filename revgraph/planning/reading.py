"""Reading: the solution that a programme's column values say."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np

from revgraph.planning.formulation import Formulation
from revgraph.planning.merging import Merged
from revgraph.planning.problem import Problem, Solution
from revgraph.planning.rebuilding import rebuild

# Continuous columns that stand for yes or no are read as yes from here on.
YES = 0.99


def read(formulation: Formulation, merged: Merged, values: np.ndarray[Any, Any]) -> Solution:
    """The solution in the original's values, without what it stores, reruns or drops to no purpose."""
    problem = formulation.problem
    options = [-1] * len(problem.items)
    holds: dict[int, int] = {}
    for k in formulation.events.stages:
        choices = range(len(problem.items[k].options))
        options[k] = max(choices, key=lambda c: values[formulation.option[k, c]])
    for (k, j), column in formulation.captured.items():
        if values[column] > 0.5:
            holds[k] = j
            options[k] = plain_replay(problem, k)
    reruns = frozenset(k for (k, _), column in formulation.rerun.items() if values[column] > 0.5)
    stored: set[int] = set()
    drops: defaultdict[int, list[int]] = defaultdict(list)
    for value, stages in formulation.events.of.items():
        names = merged.names[value]
        if values[formulation.carried[value, 0]] > YES:
            stored.add(names[0])
        wanted = [values[formulation.at[value, j]] > YES for j in stages]
        for n, j in enumerate(stages[:-1]):
            carried = values[formulation.carried[value, n + 1]] > YES
            if wanted[n] and not carried and any(wanted[n + 1 :]):
                drops[j] += names
    return tidy(
        merged.problem,
        Solution(tuple(options), frozenset(stored), reruns, holds, {j: tuple(v) for j, v in drops.items()}),
    )


def plain_replay(problem: Problem, k: int) -> int:
    """The option of an item that a rerun captures: one that is replayed and holds nothing until then."""
    found = [
        c for c, option in enumerate(problem.items[k].options)
        if option.name != "keep" and not option.held_bytes and not option.pinned
    ]  # fmt: skip
    return max(found, key=lambda c: problem.items[k].options[c].name == "recompute")


def tidy(problem: Problem, solution: Solution) -> Solution:
    """The solution without stored values that nothing reads, and reruns that never happen."""
    rebuilding = rebuild(problem, solution)
    unread = {value for value, spans in rebuilding.spans.items() if spans[0] == (-1, -1)}
    rerun = {move.item for stage in rebuilding.stages for move in stage.moves if move.how == "rerun"}
    return replace(solution, stored=solution.stored - unread, reruns=solution.reruns & rerun)
