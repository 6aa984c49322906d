"""Gradients: the operators of each node's backward, which read what was captured for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from revgraph.compiling.copies import Context, Copies
from revgraph.compiling.demands import Demands
from revgraph.compiling.marking import MARK_GRADIENT
from revgraph.compiling.regions import read_by
from revgraph.errors import PlanError
from revgraph.planning.plans import Plan

aten = torch.ops.aten


class Gradients:
    """Writes operators of the backward, each once; `contexts` have what replays captured."""

    def __init__(self, copies: Copies, demands: Demands, plan: Plan, contexts: dict[str, Context]) -> None:
        self.copies = copies
        self.reading = copies.reading
        self.demands = demands
        self.plan = plan
        self.contexts = contexts
        self.gradients: dict[fx.Node, fx.Node] = {}

    def write(self, name: str) -> None:
        """The operators of a node's backward, and what sums the gradients that it gives."""
        for node in self.reading.backward_of.get(name, ()):
            self._gradient(node)

    def _gradient(self, node: fx.Node) -> fx.Node:
        """An operator of the backward, after those that it reads from."""
        pending = [node]
        while pending:
            each = pending[-1]
            if each in self.gradients:
                pending.pop()
                continue
            if each.op == "placeholder":
                self.gradients[each] = self.copies.originals[each]
                continue
            missing = [
                one
                for one in each.all_input_nodes
                if one in self.reading.backward and one not in self.gradients
            ]
            if missing:
                pending += missing
                continue
            pending.pop()
            if each.target is MARK_GRADIENT:
                self.gradients[each] = self.gradients[each.args[0]]  # pyright: ignore
            else:
                read = set(read_by(each))
                self.gradients[each] = self.copies.copied(
                    each, lambda one, read=read: self._read_in_backward(one, read)
                )
                _forget_statistics(self.gradients[each])
            pending += [user for user in each.users if self._only_sums(user)]
        return self.gradients[node]

    def _only_sums(self, node: fx.Node) -> bool:
        """Whether an operator belongs to no node, and all that it reads is there: as gradients of one value.

        Their sum is made at once, so that no two of them wait.
        """
        reading = self.reading
        if node not in reading.backward or node in reading.backward_region or node in self.gradients:
            return False
        return node.op == "call_function" and all(each in self.gradients for each in node.all_input_nodes)

    def _read_in_backward(self, node: fx.Node, read: set[fx.Node]) -> fx.Node:
        if node in self.reading.backward:
            return self.gradients[node]
        if node not in read:  # it is not looked at
            return self.copies.originals[node]
        return self.copies.at(node, self._context_of(node))

    def _context_of(self, node: fx.Node) -> Context | None:
        """The context of the region that a node is in, as far as it is known by now."""
        name = self.reading.region.get(node)
        if name is None:
            return None
        context = self.contexts.get(name)
        if context is None:
            replayed = self.plan.decisions.get(name, "keep") != "keep" and self.demands.asked.get(name)
            if replayed and node not in self.reading.of_parameters:
                raise PlanError(f"the schedule has no replay of {name!r} before its backward")
            context = self.contexts[name] = Context(name, is_replay=False)
        return context

    def result(self, node: Any) -> Any:
        """What stands for a result of the backward: an operator's, or None and the like as they are."""
        if not isinstance(node, fx.Node):
            return node
        if node in self.reading.backward:
            return self._gradient(node)
        return self.copies.at(node, self._context_of(node))


def _forget_statistics(node: fx.Node) -> None:
    if node.target is aten.native_batch_norm_backward.default and node.args[7] is True:
        node.args = (*node.args[:3], None, None, *node.args[5:])
