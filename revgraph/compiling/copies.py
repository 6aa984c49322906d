"""Copies: a new graph, whose nodes stand for those of a joint graph as the forward or a replay has them.

The new graph's forward has one copy of each operator. A backward that reads a forward operator of some node
reads what that node's context has: the forward's own copy where the node is kept, and one of the replay where
it is evaluated again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from revgraph.compiling.choices import is_cheap
from revgraph.compiling.marking import MARK
from revgraph.compiling.refusals import CannotCompile
from revgraph.compiling.regions import Reading, is_saved, value_of
from revgraph.errors import PlanError

aten = torch.ops.aten


@dataclass(slots=True)
class Context:
    """Where a region's operators are looked up: as the forward had them, or as a replay has.

    `copies` are nodes of the new graph by those of the old one that they stand for, `values` the values that
    the replay read.
    """

    node: str
    is_replay: bool
    copies: dict[fx.Node, fx.Node] = field(default_factory=dict)
    values: dict[str, fx.Node] = field(default_factory=dict)


class Copies:
    """A new graph, and its nodes by those of the joint graph that they stand for.

    With a collection of what is `held`, cheap operators besides are computed again where the backward reads
    them.
    """

    def __init__(self, reading: Reading, held: Collection[fx.Node] | None) -> None:
        self.reading = reading
        self.held = held
        self.graph = fx.Graph()
        self.originals: dict[fx.Node, fx.Node] = {}
        self.before_writing: dict[fx.Node, fx.Node] = {}

    def original(self, node: fx.Node) -> fx.Node:
        """The node of the new graph's forward that stands for one of the old one's."""
        found = self.originals.get(node)
        if found is None:
            first: Any = node.args[0] if node.target is MARK else None
            found = self.copied(node, self.original) if first is None else self.original(first)
            self.originals[node] = found
        return found

    def copied(self, node: fx.Node, at: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """A new copy of an operator, which reads what `at` gives for each that the operator reads."""
        copied = self.graph.node_copy(node, at)
        copied.meta = {
            key: each for key, each in node.meta.items() if key not in ("partitioner_tag", "seq_nr")
        }
        return copied

    def copy_before_writing(self, node: fx.Node) -> None:
        """A copy of an input that the forward writes, for what reads it in the backward."""
        original = self.originals[node]
        copied = self.graph.call_function(aten.clone.default, (original,))
        copied.meta = {"val": original.meta["val"]}
        self.before_writing[node] = copied

    def input(self, node: fx.Node) -> fx.Node:
        """An input as it was before the forward wrote it."""
        return self.before_writing.get(node) or self.originals[node]

    def at(self, node: fx.Node, context: Context | None) -> fx.Node:
        """A node of the old graph as a context has it: copied, where it is not there yet."""
        if node.op != "call_function":
            return self.input(node)
        if context is not None and node in context.copies:
            return context.copies[node]
        reading = self.reading
        if node.target is MARK:
            mark = reading.mark(node)
            if context is not None and context.is_replay and mark.kind == "read":
                if mark.value not in context.values:
                    raise PlanError(
                        f"{context.node!r} asks for {mark.value!r}, which its replay does not read"
                    )
                return context.values[mark.value]
            first: Any = node.args[0]
            found = self.at(first, context) if mark.kind == "term" else self.original(node)
        elif not isinstance(value_of(node), (Tensor, tuple, list)):
            return self.original(node)  # numbers are small
        elif is_saved(node):
            found = self.original(node)
        elif context is None or not context.is_replay:
            is_there = node in reading.forward and node in self.originals
            if is_there and node not in reading.of_parameters and not self._is_dropped(node):
                found = self.originals[node]
            elif node.target is operator.getitem:
                found = self.original(node)
            else:
                found = self.copied(node, lambda each: self.at(each, context))
        else:
            found = self._repeated(node, context)
        if context is not None:
            context.copies[node] = found
        return found

    def _repeated(self, node: fx.Node, context: Context) -> fx.Node:
        """An operator of a node's forward once more, without what it would write."""
        if node.is_impure():
            raise CannotCompile(
                f"{context.node!r} runs {node.target}, which has side effects, so that it cannot be run "
                f"again in a compiled backward. Keep the node: decisions {{{context.node!r}: 'keep'}}."
            )
        if node.target is aten._native_batch_norm_legit_functional.default and node.args[5] is True:
            x, weight, bias, _, _, _, momentum, eps = node.args
            args = [None if each is None else self.at(each, context) for each in (x, weight, bias)]  # pyright: ignore
            found = self.graph.call_function(
                aten._native_batch_norm_legit.no_stats, (*args, True, momentum, eps)
            )
            found.meta = {"val": tuple(node.meta["val"])[:3]}
            return found
        return self.copied(node, lambda each: self.at(each, context))

    def _is_dropped(self, node: fx.Node) -> bool:
        """Whether a result is not held, but computed again where the backward reads it."""
        return self.held is not None and node not in self.held and is_cheap(node)
