"""Regions: which operators of a joint graph belong to which node, told by the marks between them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from revgraph.compiling.marking import MARK, MARK_GRADIENT, Mark, Marked
from revgraph.errors import PlanError

aten = torch.ops.aten
# How many times smaller than what it is computed from a result is that is kept rather than computed again.
SMALL = 64


class Reading:
    """What of a joint graph belongs to what.

    `backward` are the operators that depend on tangents. `region` has the node of the graph that an operator
    of the forward belongs to, `backward_region` that of one of the backward (`backward_of`: by node). `made`,
    `read` and `terms` have the marks of values, of readings by (node, value), and of a coupling's term by its
    leaves.
    """

    def __init__(self, joint: fx.GraphModule, forward_outputs: int, marked: Marked) -> None:
        self.joint = joint
        self.marks = marked.marks
        self.nodes: list[fx.Node] = list(joint.graph.nodes)
        self.place = {node: index for index, node in enumerate(self.nodes)}
        self.output = self.nodes[-1]
        results = list(self.output.args[0])  # pyright: ignore[reportArgumentType]
        self.forward_results: list[Any] = results[:forward_outputs]
        self.backward_results: list[Any] = results[forward_outputs:]
        self.made: dict[str, fx.Node] = {}
        self.read: dict[tuple[str, str], fx.Node] = {}
        self.terms: dict[str, dict[int, fx.Node]] = {}
        self.backward: set[fx.Node] = set()
        self.forward: set[fx.Node] = ancestors(self.forward_results)
        self.region: dict[fx.Node, str] = {}
        self.backward_region: dict[fx.Node, str] = {}
        self.backward_of: dict[str, list[fx.Node]] = {}
        self.of_parameters: set[fx.Node] = set()
        for node in self.nodes:
            if is_tangent(node) or any(each in self.backward for each in node.all_input_nodes):
                if node.op != "output":
                    self.backward.add(node)
            elif node.target is MARK:
                self._note(node)
        for node in self.nodes:
            if node not in self.backward and writes(node):
                self.forward |= ancestors(node.all_input_nodes)
            elif node not in self.backward and has_effect(node):
                self.forward |= ancestors([node])
        self._claim_forward()
        self._claim_backward()

    def mark(self, node: fx.Node) -> Mark:
        """What passes this mark."""
        return self.marks[node.args[2 if node.target is MARK else 1]]  # pyright: ignore

    def is_backward_only(self, node: fx.Node) -> bool:
        """Whether an operator of a node's region serves the backward alone, and can run there."""
        return node not in self.forward and node.target is not operator.getitem

    def _note(self, node: fx.Node) -> None:
        mark = self.mark(node)
        if mark.kind == "value":
            self.made[mark.value] = node
        elif mark.kind == "alive":
            pass
        elif mark.kind == "read":
            self.read.setdefault((mark.node, mark.value), node)
        else:
            self.terms.setdefault(mark.node, {})[node.args[3]] = node  # pyright: ignore

    def _claim_forward(self) -> None:
        """Operators belong to the node whose marks they lead to; what leads to none, to the one they read."""
        for node in self.nodes:
            mark = self.mark(node) if node.target is MARK else None
            if mark is None or mark.kind in ("read", "alive"):
                continue
            pending = [node.args[0]]
            while pending:
                each: Any = pending.pop()
                if each.op == "call_function" and each.target is not MARK and each not in self.region:
                    self.region[each] = mark.node
                    pending += each.all_input_nodes
        for node in self.nodes:
            if node.op != "call_function" or node in self.backward:
                continue
            if node.target is MARK:
                if self.mark(node).kind in ("read", "term"):
                    self.region[node] = self.mark(node).node
                continue
            inputs = node.all_input_nodes
            if all(each.op != "call_function" or each in self.of_parameters for each in inputs) and not draws(
                node
            ):
                self.of_parameters.add(node)
            if node not in self.region:
                found = [self.region[each] for each in node.all_input_nodes if each in self.region]
                if found:
                    self.region[node] = found[0]

    def _claim_backward(self) -> None:
        """Operators of the backward belong to the node whose outputs' gradients they come from."""
        leads_to: dict[fx.Node, str] = {}
        for node in self.nodes:
            if node not in self.backward or node.op != "call_function":
                continue
            if node.target is MARK_GRADIENT:
                mark = self.mark(node)
                leads_to[node] = "" if mark.kind == "read" else mark.node
                continue
            found = {leads_to[each] for each in node.all_input_nodes if leads_to.get(each)}
            if len(found) == 1:
                name = leads_to[node] = self.backward_region[node] = found.pop()
                self.backward_of.setdefault(name, []).append(node)


def written_inputs(reading: Reading) -> set[fx.Node]:
    """The inputs that the forward writes.

    Raises:
        PlanError: this version of torch does not say.
    """
    results = reading.output.meta.get("desc")
    inputs = {node.meta.get("desc"): node for node in reading.nodes if node.op == "placeholder"}
    if results is None or None in inputs:
        raise PlanError(f"rg.compile needs a newer PyTorch than {torch.__version__}: 2.9 or later will do")
    written = (getattr(each, "mutated_input", None) for each in results)
    found = {inputs[each] for each in written if each is not None}
    for node in reading.nodes:
        if node not in reading.backward and writes(node):
            found.add(node.args[0])  # pyright: ignore[reportArgumentType]
    return found


def is_tangent(node: fx.Node) -> bool:
    return node.op == "placeholder" and "tangents" in str(node.target)


def value_of(node: fx.Node) -> Any:
    return node.meta.get("val")


def ancestors(nodes: Iterable[Any], stop: Any = None) -> set[fx.Node]:
    """Nodes and all that leads to them; not beyond marks, if these are to stop it."""
    found: set[fx.Node] = set()
    pending = [node for node in nodes if isinstance(node, fx.Node)]
    first = set(pending)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            if stop is None or node.target is not stop or node in first:
                pending += node.all_input_nodes
    return found


def draws(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in node.target.tags
    )


def must_be_saved(node: fx.Node) -> bool:
    """Whether an operator draws random numbers, or the seeds for these."""
    name = str(node.target)
    if "inductor_random" in name or "inductor_randint" in name:
        return False  # from a seed
    return "inductor_seed" in name or "inductor_lookup_seed" in name or draws(node)


def is_saved(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return must_be_saved(node.args[0])  # pyright: ignore
    return must_be_saved(node)


def is_small(node: fx.Node) -> bool:
    """Whether an operator's result is far smaller than what it reads, as statistics are."""
    maker: Any = node.args[0] if node.target is operator.getitem else node
    if not isinstance(value_of(node), Tensor) or maker.op != "call_function":
        return False
    read = max((bytes_of(each) for each in maker.all_input_nodes), default=0)
    return SMALL * bytes_of(maker) <= read


def is_dense(value: Tensor) -> bool:
    """Whether a tensor's elements lie side by side, in some order of its dimensions."""
    count = 1
    for stride, size in sorted(zip(numbers(value.stride()), numbers(value.shape), strict=True)):
        if size != 1 and stride != count:
            return False
        count *= size
    return True


def bytes_of(node: fx.Node) -> int:
    """The bytes of what a node gives."""
    value = value_of(node)
    given = value if isinstance(value, (tuple, list)) else [value]
    return sum(
        math.prod(numbers(each.shape)) * each.element_size() for each in given if isinstance(each, Tensor)
    )


def numbers(sizes: Iterable[int | torch.SymInt]) -> list[int]:
    """Sizes as they are in the call that is compiled, so that nothing is compiled for these alone."""
    return [each if isinstance(each, int) else each.node.hint for each in sizes]


def read_by(node: fx.Node) -> list[fx.Node]:
    """What an operator really reads: in training, no running statistics for batch normalization."""
    if node.target is aten.native_batch_norm_backward.default and node.args[7] is True:
        return [
            each for place, each in enumerate(node.args) if isinstance(each, fx.Node) and place not in (3, 4)
        ]
    return node.all_input_nodes


def has_effect(node: fx.Node) -> bool:
    """Whether an operator does something besides what it gives, as assertions do."""
    return node.op == "call_function" and not draws(node) and node.is_impure()


def writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
