"""Demands: what a backward asks of each node's forward, and what of it is kept or captured for that.

An operator of a backward reads results of forward operators. Those in a node's region are what the node has
to give: from its forward where it is kept, from its replay otherwise. The plan may keep results of a replayed
node besides, and a compiler that fuses leaves out of a kept node what is cheap to compute again (`choices`).
"""

from __future__ import annotations

from torch import Tensor, fx

from revgraph.compiling.choices import captured
from revgraph.compiling.marking import MARK
from revgraph.compiling.regions import Reading, ancestors, is_small, read_by, value_of
from revgraph.engine.selective_recompute import is_heavy
from revgraph.planning.plans import TERM, Plan
from revgraph.planning.schedule import CAPTURING, Schedule, schedule


class Demands:
    """What each node has to give to the backward, by the node's name.

    `asked` are the results of operators and the values read that the backward reads, `captured` those to hold
    of a kept node's forward or of a replay, `kept` the forward's results that a replay takes over. `schedule`
    is the plan's, with nodes that are asked for nothing silent.
    """

    def __init__(self, reading: Reading, plan: Plan, fuses: bool) -> None:
        self.reading = reading
        self.plan = plan
        self.graph = plan.graph
        self.fuses = fuses
        self.asked = self._asked()
        self.kept = {name: self._kept_results(name) for name in plan.results}
        silent = (each.name for each in self.graph.planned if not self.asked.get(each.name))
        self.schedule: Schedule = schedule(plan, frozenset(silent))
        for each in self.schedule if fuses else ():
            if each.action in CAPTURING and each.exact:
                self.kept.setdefault(each.node, []).extend(self._small_results(each.node))
        self.captured = self._captured() if fuses else self.asked

    @property
    def held(self) -> set[fx.Node]:
        """All that is captured."""
        return {node for found in self.captured.values() for node in found}

    def taken(self) -> set[fx.Node]:
        """What the backward takes from the forward as it is there."""
        reading, plan = self.reading, self.plan
        taken = {reading.made[name] for name in plan.stored if name in reading.made}
        for name, found in self.captured.items():
            if plan.decisions.get(name, "keep") == "keep":
                taken.update(node for node in found if node.target is not MARK)
        return taken.union(*self.kept.values())

    def _asked(self) -> dict[str, list[fx.Node]]:
        """For each node what its region has to give to the backward: results of operators, values it read."""
        reading = self.reading
        asked: dict[str, set[fx.Node]] = {}
        seen: set[fx.Node] = set()
        for node in reading.nodes:
            if node not in reading.backward or node.op != "call_function":
                continue
            pending = [each for each in read_by(node) if each not in reading.backward]
            while pending:
                each = pending.pop()
                if (
                    each in seen
                    or each.op != "call_function"
                    or not isinstance(value_of(each), (Tensor, tuple, list))
                ):
                    continue
                seen.add(each)
                if each in reading.of_parameters:
                    continue
                if each.target is not MARK and reading.is_backward_only(each):
                    pending += read_by(each)
                elif each in reading.region:
                    asked.setdefault(reading.region[each], set()).add(each)
                elif each.target is MARK:  # a value where it is made, read by no node: by the results alone
                    asked.setdefault(reading.mark(each).node, set()).add(each)
        for each in reading.backward_results:
            if isinstance(each, fx.Node) and each not in reading.backward and each in reading.region:
                asked.setdefault(reading.region[each], set()).add(each)
        return {name: sorted(found, key=reading.place.__getitem__) for name, found in asked.items()}

    def _kept_results(self, name: str) -> list[fx.Node]:
        """The operators of a node whose results the plan keeps, and the leaves of its term."""
        reading, wanted = self.reading, self.plan.results[name]
        found: list[fx.Node] = []
        count = 0
        for node in reading.nodes:
            if reading.region.get(node) != name or node in reading.backward:
                continue
            if is_heavy(node.target) and self._is_of_function(node, name):
                if count in wanted:
                    multiple = isinstance(value_of(node), (tuple, list))
                    found += [each for each in node.users if each in reading.region] if multiple else [node]
                count += 1
        if TERM in wanted:
            found += reading.terms.get(name, {}).values()
        return found

    def _captured(self) -> dict[str, list[fx.Node]]:
        """For a kept node what its forward is to hold, for any other what its replay is to capture.

        That is all that is asked for: a compiler joins work that one graph does twice, and holds its result.
        """
        reading, plan = self.reading, self.plan
        stored = {*plan.stored, *self.graph.inputs}
        free = {mark for (_, value), mark in reading.read.items() if value in stored}
        free.update(reading.made[name].args[0] for name in stored if name in reading.made)  # pyright: ignore
        return {
            name: captured(reading, asked, free) if plan.decisions.get(name, "keep") == "keep" else asked
            for name, asked in self.asked.items()
        }

    def _small_results(self, name: str) -> list[fx.Node]:
        """What a node computes on the way to what its backward asks for, and is small."""
        reading = self.reading
        found = ancestors(self.asked.get(name, ()), MARK)
        return [
            node
            for node in found
            if reading.region.get(node) == name and node not in reading.of_parameters and is_small(node)
        ]

    def _is_of_function(self, node: fx.Node, name: str) -> bool:
        """Whether an operator belongs to a node's function, and not to the law that joins its term."""
        terms = [each.args[0] for each in self.reading.terms.get(name, {}).values()]
        return not terms or node in ancestors(terms)
