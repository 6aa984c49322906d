"""Inverses: those of couplings and of wiring, as operators of the new graph.

An inverse is Python (`uncouple`, `inverse`) that was never traced. It runs here on fake tensors, and the
operators that it runs are copied to read the nodes of the new graph that it was given, parameters and buffers
among them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from revgraph.compiling.copies import Context, Copies
from revgraph.compiling.marking import Marked, filled, owned_by
from revgraph.compiling.refusals import CannotCompile
from revgraph.compiling.regions import Reading, is_dense, numbers, value_of, writes
from revgraph.expressions import attribute_at
from revgraph.graph import Graph
from revgraph.isolation import tensors_replaced
from revgraph.program import Operation

Decompositions = Mapping[Any, Callable[..., Any]]


class Inverses:
    """Writes inverses into a graph of copies."""

    def __init__(
        self, copies: Copies, marked: Marked, graph: Graph, decompositions: Decompositions | None
    ) -> None:
        self.copies = copies
        self.reading: Reading = copies.reading
        self.marked = marked
        self.graph = graph
        self.decompositions = decompositions

    def uncoupled(self, name: str, target: str, context: Context) -> fx.Node:
        """A coupling's target from its output and its term."""
        reading, operation = self.reading, self.marked.operations[name]
        law = operation.law
        assert law is not None
        marks = [each for _, each in sorted(reading.terms.get(name, {}).items())]
        terms = [self.copies.at(each, context) for each in marks]
        y = context.values[operation.makes[0]]
        tree = self._term_tree(operation, [each.meta["val"] for each in marks])
        owned = self._owned(operation, reading.made.get(operation.makes[0]))
        like = self._like(target, operation.makes[0])

        def undo(y: Tensor, *rest: Tensor) -> Tensor:
            terms_, others = rest[: len(marks)], rest[len(marks) :]
            with self._replaced(owned, others):
                return law.uncouple(self.marked.root, y, filled(tree, terms_))

        (found,) = self._inlined(undo, [y, *terms, *owned.values()])
        return self._laid_out(found, like)

    def rewired(self, name: str, given: Sequence[fx.Node], wanted: Collection[str]) -> dict[str, fx.Node]:
        """The values wanted of those that a wiring read, from all that it made."""
        reading, operation, node = self.reading, self.marked.operations[name], self.graph.node[name]
        rearrangement = operation.rearrangement
        assert rearrangement is not None
        shapes = [self._shape(each, reading.read.get((name, each))) for each in node.inputs]
        marks = [reading.made[each] for each in operation.makes if each in reading.made]
        owned = self._owned(operation, marks[0] if marks else None)
        count = len(given)

        def undo(*tensors: Tensor) -> tuple[Tensor, ...]:
            with self._replaced(owned, tensors[count:]):
                return tuple(rearrangement.inverse(self.marked.root, list(tensors[:count]), shapes))

        found = zip(node.inputs, self._inlined(undo, [*given, *owned.values()]), strict=True)
        return {each: self._laid_out(value, self._like(each)) for each, value in found if each in wanted}

    def _shape(self, name: str, mark: fx.Node | None) -> torch.Size:
        mark = mark or self.reading.made.get(name)
        return value_of(mark).shape if mark is not None else torch.Size(self.graph.value[name].shape)

    def _like(self, name: str, other: str = "") -> Tensor:
        """What a value of the forward was like; what another was, where the graph does not have it."""
        made = self.reading.made
        return value_of(made.get(name) or made[other])

    def _replaced(
        self, owned: Mapping[str, fx.Node], tensors: Sequence[Tensor]
    ) -> AbstractContextManager[None]:
        """A block in which the model has these tensors in the place of its own at the paths of `owned`."""
        own = (attribute_at(self.marked.root, path) for path in owned)
        return tensors_replaced(
            self.marked.root, {id(each): other for each, other in zip(own, tensors, strict=True)}
        )

    def _term_tree(self, operation: Operation, values: Sequence[Tensor]) -> Any:
        """A coupling's term, with any tensors in it."""
        if len(values) == 1 and not getattr(operation.law, "evaluates_modules", False):
            single = not hasattr(operation.law, "terms") or operation.law.terms == 1  # pyright: ignore
            if single:
                return values[0]
        if not values and not operation.expression.outputs:
            return None
        return self._run_on_fakes(operation)

    def _run_on_fakes(self, operation: Operation) -> Any:
        reading = self.reading
        given: list[Any] = []
        for name in operation.reads:
            node = reading.made.get(name)
            given.append(node.meta["val"] if node is not None else None)
        mode = next(each.fake_mode for each in given if isinstance(each, Tensor))  # pyright: ignore
        with _takes_real_tensors(mode), mode, torch.no_grad():
            return self.marked.functions[operation.node](*given)[0]

    def _owned(self, operation: Operation, mark: fx.Node | None) -> dict[str, fx.Node]:
        """The parameters and buffers that undo an operation, by their paths."""
        paths = owned_by(operation, self.marked.root)
        if not paths:
            return {}
        assert mark is not None
        nodes: Any = mark.args[1]
        return {path: self.copies.input(each) for path, each in zip(paths, nodes, strict=True)}

    def _laid_out(self, node: fx.Node, like: Tensor) -> fx.Node:
        """A rebuilt value with the strides of the forward's, as operators choose their ways by these."""
        value = value_of(node)
        if value.stride() == like.stride() or value.shape != like.shape or not is_dense(like):
            return node

        strides = numbers(like.stride())
        order = sorted(range(like.dim()), key=strides.__getitem__, reverse=True)
        back = sorted(range(like.dim()), key=order.__getitem__)

        def lay_out(value: Tensor) -> Tensor:
            return value.permute(order).clone(memory_format=torch.contiguous_format).permute(back)

        (found,) = self._inlined(lay_out, [node])
        return found

    def _inlined(self, function: Callable[..., Any], given: Sequence[fx.Node]) -> list[fx.Node]:
        """A function's operators on nodes of the new graph, and its results."""
        values = [value_of(each) for each in given]
        mode: Any = next(each.fake_mode for each in values if hasattr(each, "fake_mode"))
        traced = _functional(function, values, mode, self.decompositions)
        copies: dict[fx.Node, fx.Node] = {}
        place = iter(given)
        results: Any = ()
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(place)
            elif node.op == "output":
                results = node.args[0]
            elif node.op == "get_attr":
                raise CannotCompile(
                    "an inverse uses a tensor that is neither an input nor a parameter or buffer of its "
                    "module, which a compiled graph cannot take in. Register it as a buffer."
                )
            else:
                copies[node] = self.copies.copied(node, copies.__getitem__)
        found = results if isinstance(results, (tuple, list)) else (results,)
        return [copies[each] for each in found]


@contextmanager
def _takes_real_tensors(mode: Any) -> Iterator[None]:
    """A block in which a mode of fake tensors takes others, such as constants of a module, as well."""
    before, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    try:
        yield
    finally:
        mode.allow_non_fake_inputs = before


def _functional(
    function: Callable[..., Any], values: Sequence[Any], mode: Any, decompositions: Decompositions | None
) -> fx.GraphModule:
    """The operators that a function runs, none of which writes into a tensor."""

    def run(*given: Any) -> Any:
        with torch.no_grad():
            return function(*given)

    table = dict(decompositions or {})
    with _takes_real_tensors(mode), mode:
        traced = make_fx(run, decomposition_table=table, tracing_mode="real")(*values)
        if any(writes(node) for node in traced.graph.nodes):
            pure = torch.func.functionalize(traced, remove="mutations")
            traced = make_fx(pure, decomposition_table=table, tracing_mode="real")(*values)
    return traced
