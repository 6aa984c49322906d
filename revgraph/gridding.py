"""Gridding: a program whose streams live on a fixed-point grid, so that inversion is exact (exact mode).

Every stream is rounded where it begins, and every term before it is added. Sums and differences of such
numbers are exact as long as they stay within range, so that what a coupling gives back is what it took, bit
for bit, at any depth. Functions round otherwise on other layouts of the same numbers: all read dense tensors.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.couplings import Additive
from revgraph.errors import TraceError
from revgraph.expressions import Call, Expression, Register, expression, module_at
from revgraph.graph import Node, Value, verify
from revgraph.looks import Structures
from revgraph.program import CouplingLaw, Difference, Law, Operation, Program, Sum
from revgraph.rearrangements import Rearrangement, WiringModule
from revgraph.rounding import DIGITS, RESOLUTION, in_range, is_power_of_two, rounded, to_grid
from revgraph.streams import streams_of
from revgraph.wiring import Concatenate, Permute, Reshape, SpaceToDepth, Split, Swap

# Wiring modules that move elements and compute nothing.
EXACT_WIRING = (Concatenate, Permute, Reshape, SpaceToDepth, Split, Swap)


@dataclass(frozen=True, slots=True)
class OnGrid(Law):
    """A sum or difference of a target on the grid and `alpha` times the term, rounded."""

    law: Law
    alpha: float
    resolution: float
    node: str

    def couple(self, root: nn.Module, x: Tensor, term: Any) -> Tensor:
        return in_range(self.law.couple(root, x, self._rounded(term, x)), self.resolution, self.node)

    def uncouple(self, root: nn.Module, y: Tensor, term: Any) -> Tensor:
        return self.law.uncouple(root, y, self._rounded(term, y))

    def look(self, root: nn.Module, told: Structures | None = None) -> Hashable:
        return self.law.look(root, told), self.alpha, self.resolution

    def _rounded(self, term: Tensor, like: Tensor) -> Tensor:
        term = term.to(like.dtype)
        return rounded(term if self.alpha == 1 else self.alpha * term, self.resolution)


@dataclass(frozen=True, slots=True)
class Begun(Rearrangement):
    """Stands for the beginning of a stream on the grid: nothing before it is ever asked for in backward."""

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        return (outputs[0],)


def on_grid(program: Program, model: nn.Module, exact: bool | float) -> Program:
    """The program with its streams on a grid of the resolution `exact` (True for the default one).

    Raises:
        TraceError: the resolution is no power of two, or a coupling or wiring on the way of a stream does
            arithmetic that a grid does not make exact.
    """
    resolution = RESOLUTION if exact is True else float(exact)
    if not is_power_of_two(resolution):
        raise TraceError(
            f"exact mode needs a resolution that is a power of two, as {RESOLUTION} (2**-14), not {exact!r}"
        )
    return _Gridding(program, model, resolution).write()


class _Gridding:
    def __init__(self, program: Program, model: nn.Module, resolution: float) -> None:
        self.program = program
        self.graph = program.graph
        self.model = model
        self.resolution = resolution
        self.makers = {name: operation for operation in program.operations for name in operation.makes}
        self.begun: dict[str, str] = {}

    def write(self) -> Program:
        operations, nodes = list[Operation](), {node.name: [node] for node in self.graph.nodes}
        streams = streams_of(self.program)
        for operation in streams.wirings:
            self._check_wiring(operation)
        for name in streams.beginnings:
            self._check_dtype(name)
            if name in self.graph.inputs:
                maker = next(node for node in self.graph.nodes if name in node.outputs)
                self._begin(name, operations, nodes[maker.name])
        for operation in self.program.operations:
            operations.append(self._renamed(operation))
            for name in operation.makes:
                if name in streams.beginnings:
                    self._begin(name, operations, nodes[operation.node])
        ordered = [self._node(node) for group in nodes.values() for node in group]
        graph = replace(self.graph, nodes=tuple(ordered), values=tuple(self._values()))
        return replace(self.program, graph=verify(graph), operations=tuple(operations))

    def _check_dtype(self, name: str) -> None:
        dtype = self.graph.value[name].dtype
        if getattr(torch, dtype) not in DIGITS:
            raise TraceError(
                f"exact mode holds streams in float32 or float64, and {name!r} is {dtype}. Cast it before "
                "the first coupling; functions may run in low precision under autocast."
            )

    def _check_wiring(self, maker: Operation) -> None:
        if isinstance(maker.rearrangement, WiringModule):
            module = module_at(self.model, maker.rearrangement.path)
            if not isinstance(module, EXACT_WIRING):
                raise TraceError(
                    f"exact mode cannot tell whether wiring {maker.node!r} ({type(module).__name__}) only "
                    "moves elements. Use revgraph's own wiring there, or make it a boundary."
                )

    def _begin(self, name: str, operations: list[Operation], nodes: list[Node]) -> None:
        """Round a value right after it is made; all that is read from then on is the rounded one."""
        node = f"{name}.grid"
        while node in self.graph.node or node in self.graph.value:
            node += "_"
        call = Call("function", to_grid, (Register(0), self.resolution, node), {}, 1, ())
        run = expression((call,), 1, (1,))
        operations.append(Operation(node, run, (name,), (node,), rearrangement=Begun()))
        nodes.append(Node(node, "wiring", (name,), (node,), expression=f"grid({name})", where=nodes[0].where))
        self.begun[name] = node

    def _renamed(self, operation: Operation) -> Operation:
        law = operation.law
        wired = not operation.node or operation.rearrangement is not None
        return replace(
            operation,
            expression=operation.expression if wired else _on_dense_inputs(operation.expression),
            reads=self._names(operation.reads),
            target=operation.target and self._name(operation.target),
            law=law and self._law(law, operation.node),
        )

    def _law(self, law: Law, node: str) -> Law:
        if isinstance(law, CouplingLaw) and type(module_at(self.model, law.path)) is Additive:
            law = Sum()
        if isinstance(law, Sum):
            return OnGrid(Sum(), law.alpha, self.resolution, node)
        if isinstance(law, Difference):
            return OnGrid(law, 1, self.resolution, node)
        raise TraceError(
            f"exact mode makes sums and differences exact, and coupling {node!r} is neither. Leave exact "
            "mode, or wrap that coupling in a revgraph.Boundary."
        )

    def _node(self, node: Node) -> Node:
        if node.name in self.begun.values():
            return node
        inputs = node.inputs if node.kind in ("input", "output") else self._names(node.inputs)
        return replace(node, inputs=inputs, target=node.target and self._name(node.target))

    def _values(self) -> Iterator[Value]:
        """The graph's values in order, with those on the grid; views of these lie in their memory."""
        storages: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for value in self.graph.values:
            storage = value.storage
            maker = self.makers.get(value.name)
            for source in self.graph.node[maker.node].inputs if maker is not None else ():
                if self.graph.value[source].storage == value.storage != value.name:
                    storage = self.begun.get(source, storages[source])
            storages[value.name] = storage
            yield replace(value, storage=storage, nbytes=sizes.get(storage, value.nbytes))
            if value.name in self.begun:
                grid = self.begun[value.name]
                sizes[grid] = torch.Size(value.shape).numel() * getattr(torch, value.dtype).itemsize
                yield replace(value, name=grid, storage=grid, nbytes=sizes[grid])

    def _name(self, name: str) -> str:
        return self.begun.get(name, name)

    def _names(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self._name(name) for name in names)


def _on_dense_inputs(run: Expression) -> Expression:
    """The expression with its inputs made contiguous first, as a value that is rebuilt may lie otherwise."""
    inputs = range(run.inputs)
    first = [Call("function", _dense, (Register(index),), {}, index, ()) for index in inputs]
    return expression((*first, *run.calls), run.inputs, run.outputs)


def _dense(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value
