"""Events: the stages of the backward pass at which a value can be born, read or let go."""

from __future__ import annotations

from collections import defaultdict

from revgraph.planning.solver.problem import Problem


def relatives_of(problem: Problem) -> dict[int, frozenset[int]]:
    """For each value that wiring reads or makes those that wiring connects it with, itself included."""
    import networkx as nx  # takes a while to import, and few need it

    network: nx.Graph[int] = nx.Graph()
    for item in problem.items:
        if not item.options and item.inputs:
            nx.add_star(network, [*item.inputs, *item.outputs])
    components = map(frozenset[int], nx.connected_components(network))
    return {value: component for component in components for value in component}


class Events:
    """Which stages matter to which value of a problem; a stage is named by its item.

    `of` gives each value's stages in backward order. `reruns` gives for an item the stages in which it may
    be run again: the first in backward order to read what it makes, and up to `depth` in all, the others
    being those in which an item that reads it may be run again. `neighbours` are the items that make or
    read a value.
    """

    def __init__(self, problem: Problem, depth: int) -> None:
        self.problem = problem
        self.depth = depth
        self.given = set(problem.given)
        self.stages = [k for k, item in reversed(list(enumerate(problem.items))) if item.options]
        self.wirings = [k for k, item in enumerate(problem.items) if not item.options and item.inputs]
        self.neighbours: defaultdict[int, list[int]] = defaultdict(list)
        for k, item in enumerate(problem.items):
            for value in (*item.inputs, *item.outputs):
                self.neighbours[value].append(k)
        self.family = relatives_of(problem)
        self.reruns = self._reruns()
        self.of = self._events()

    def relatives(self, value: int) -> frozenset[int]:
        return self.family.get(value, frozenset((value,)))

    def _reruns(self) -> dict[int, tuple[int, ...]]:
        items = self.problem.items
        readers: defaultdict[int, set[int]] = defaultdict(set)
        direct: defaultdict[int, set[int]] = defaultdict(set)
        for k in self.stages:
            for value in items[k].inputs:
                for each in self.relatives(value):
                    readers[each].add(k)
            for option in items[k].options:
                for value in option.needs:
                    for each in self.relatives(value):
                        direct[each].add(k)
        reruns: dict[int, tuple[int, ...]] = {}
        for k in self.stages:
            if any(option.gives for option in items[k].options):
                reruns[k] = ()
                continue
            asked = {j for value in items[k].outputs for j in direct[value] if j > k}
            found = set(asked)
            found.update(
                j for value in items[k].outputs for reader in readers[value] if reader > k
                for j in reruns.get(reader, ())
            )  # fmt: skip
            first = [max(asked)] if asked else []
            others = sorted(found.difference(first), key=lambda j: abs(j - k))
            reruns[k] = tuple(sorted((first + others)[: self.depth], reverse=True))
        return reruns

    def _events(self) -> dict[int, list[int]]:
        found: defaultdict[int, set[int]] = defaultdict(set)
        for k in self.stages:
            item = self.problem.items[k]
            for option in item.options:
                for value in (*option.needs, *option.gives):
                    found[value].add(k)
            for value in (*item.inputs, *item.outputs):
                found[value].update(self.reruns[k])
        events: dict[int, list[int]] = {}
        for value in found:
            together = set[int]().union(*(found.get(each, ()) for each in self.relatives(value)))
            for each in self.relatives(value):
                events[each] = sorted(together, reverse=True)
        return {value: stages for value, stages in events.items() if stages and value not in self.given}
