"""Reading: the solution that a programme's column values say."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from revgraph.planning.formulation import Formulation
from revgraph.planning.merging import Merged
from revgraph.planning.problem import Problem, Solution

# Continuous columns that stand for yes or no are read as yes from here on.
YES = 0.99


def read(formulation: Formulation, merged: Merged, values: np.ndarray[Any, Any]) -> Solution:
    """The solution in the original's values."""
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
    names = merged.names
    stored = {names[value][0] for value in formulation.events.of if is_stored(formulation, value, values)}
    drops: defaultdict[int, list[int]] = defaultdict(list)
    for value in formulation.events.of:
        for j in drops_of(formulation, value, values):
            drops[j] += names[value]
    return Solution(tuple(options), frozenset(stored), reruns, holds, {j: tuple(v) for j, v in drops.items()})


def is_stored(formulation: Formulation, value: int, values: np.ndarray[Any, Any]) -> bool:
    return bool(values[formulation.carried[value, 0]] > YES)


def drops_of(formulation: Formulation, value: int, values: np.ndarray[Any, Any]) -> list[int]:
    """The stages at whose end a value goes although it is at hand again in a later one."""
    stages = formulation.events.of[value]
    wanted = [values[formulation.at[value, j]] > YES for j in stages]
    return [
        j for n, j in enumerate(stages[:-1])
        if wanted[n] and any(wanted[n + 1 :]) and not values[formulation.carried[value, n + 1]] > YES
    ]  # fmt: skip


def plain_replay(problem: Problem, k: int) -> int:
    """The option of an item that a rerun captures: one that is replayed and holds nothing until then."""
    found = [
        c for c, option in enumerate(problem.items[k].options)
        if option.name != "keep" and not option.held_bytes and not option.pinned
    ]  # fmt: skip
    return max(found, key=lambda c: problem.items[k].options[c].name == "recompute")
