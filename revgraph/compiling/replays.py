"""Replays: instructions of a schedule that bring values back, written into the backward.

invert, recompute, ...   the operators of the node's forward once more, on the values that its reads have
                         by then; an inverted target by the coupling's own `uncouple`
invert_wiring            the inverse of the wiring
"""

from __future__ import annotations

from torch import fx

from revgraph.compiling.barriers import in_memory
from revgraph.compiling.copies import Context, Copies
from revgraph.compiling.demands import Demands
from revgraph.compiling.inverses import Inverses
from revgraph.compiling.marking import MARK
from revgraph.compiling.regions import ancestors
from revgraph.errors import PlanError
from revgraph.planning.plans import Plan
from revgraph.planning.schedule import CAPTURING, Instruction


class Replays:
    """Writes replays. `at_hand` has the values that are rebuilt by now, `contexts` what replays captured."""

    def __init__(self, copies: Copies, demands: Demands, inverses: Inverses, plan: Plan) -> None:
        self.copies = copies
        self.reading = copies.reading
        self.demands = demands
        self.inverses = inverses
        self.plan = plan
        self.graph = plan.graph
        self.at_hand: dict[str, fx.Node] = {}
        self.contexts: dict[str, Context] = {}

    def write(self, step: Instruction) -> None:
        """Write an instruction into the backward."""
        if step.action == "invert_wiring":
            self._invert_wiring(step)
        else:
            self._evaluate(step)
        for name in step.frees:
            self.at_hand.pop(name, None)

    def _evaluate(self, step: Instruction) -> None:
        """A node's function once more; what it makes is at hand then, and what it captures in its context."""
        reading, node = self.reading, self.graph.node[step.node]
        context = Context(step.node, is_replay=True)
        context.values = {name: self._value_at(name, step) for name in step.reads}
        captures = step.action in CAPTURING
        asked = self.demands.asked.get(step.node, []) if captures else []
        if captures:
            self.contexts[step.node] = context
            for each in self.demands.kept.get(step.node, ()):
                context.copies[each] = self.copies.original(each)
        target = node.target
        takes_back = step.action in ("invert", "invert_again") and target is not None
        after: list[fx.Node] = []
        if takes_back:
            assert target is not None
            reads_target = reading.read.get((node.name, target))
            wanted = target in step.makes or reads_target in ancestors(asked, MARK)
            leads = ancestors(reading.terms.get(node.name, {}).values(), MARK)
            after = [each for each in asked if each not in leads]
            for each in asked:
                if each in leads:
                    self.copies.at(each, context)
            if wanted:
                back = self.inverses.uncoupled(node.name, target, context)
                context.values[target] = back = self._in_memory(back)
                if target in step.makes:
                    self.at_hand[target] = back
        for each in after if takes_back else asked:
            self.copies.at(each, context)
        if not takes_back:
            for name in step.makes:
                made = self.copies.at(reading.made[name].args[0], context)  # pyright: ignore
                self.at_hand[name] = self._in_memory(made)

    def _value_at(self, name: str, step: Instruction) -> fx.Node:
        """A value as it is at hand: rebuilt, stored, or the caller's."""
        found = self.at_hand.get(name)
        if found is not None:
            return found
        if name in self.plan.stored or name in self.graph.inputs:
            if name in self.reading.made:
                return self.copies.original(self.reading.made[name])
            raise PlanError(
                f"value {name!r}, which {step.node!r} reads in its replay, is not in the compiled graph"
            )
        raise PlanError(f"value {name!r}, which {step.node!r} reads in its replay, is not at hand there")

    def _in_memory(self, node: fx.Node) -> fx.Node:
        return in_memory(self.copies.graph, node) if self.copies.held is not None else node

    def _invert_wiring(self, step: Instruction) -> None:
        makes = self.inverses.marked.operations[step.node].makes
        given = [self._value_at(name, step) for name in makes]
        self.at_hand.update(self.inverses.rewired(step.node, given, step.makes))
