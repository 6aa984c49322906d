"""Merging: values that wiring turns into one another one to one on the same storage become one value."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from revgraph.planning.solver.problem import Item, Problem


@dataclass(frozen=True, slots=True)
class Merged:
    """A problem on fewer values; `names` gives for each value left those of the original that it stands for.

    Wiring that does nothing any more has neither inputs nor outputs.
    """

    problem: Problem
    names: dict[int, tuple[int, ...]]


def merge(problem: Problem) -> Merged:
    """The problem without permutations, reshapes and other wiring that only renames values."""
    same = list(range(len(problem.storage_of)))
    items: list[Item] = []
    for item in problem.items:
        inputs = _renamed(item.inputs, same)
        if not item.options and _renames(problem, inputs, item.outputs):
            by_storage = {problem.storage_of[value]: value for value in inputs}
            for value in item.outputs:
                same[value] = by_storage[problem.storage_of[value]]
            items.append(replace(item, inputs=(), outputs=()))
            continue
        options = tuple(
            replace(
                option,
                pinned=_renamed(option.pinned, same),
                needs=_renamed(option.needs, same),
                gives=_renamed(option.gives, same),
            )
            for option in item.options
        )
        items.append(replace(item, inputs=inputs, options=options))
    names: defaultdict[int, list[int]] = defaultdict(list)
    for value, name in enumerate(same):
        names[name].append(value)
    merged = replace(
        problem,
        items=tuple(items),
        given=_renamed(problem.given, same),
        results=_renamed(problem.results, same),
    )
    return Merged(merged, {name: tuple(values) for name, values in names.items()})


def _renames(problem: Problem, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> bool:
    before = [problem.storage_of[value] for value in inputs]
    after = [problem.storage_of[value] for value in outputs]
    return sorted(before) == sorted(after) and len(set(before)) == len(before)


def _renamed(values: tuple[int, ...], same: list[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(same[value] for value in values))
