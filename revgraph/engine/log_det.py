"""Log-determinants: how much a net, as a bijection, changes volume (a normalizing flow's likelihood)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.engine.executable import PlannedOperation
from revgraph.engine.inverse_order import unwind
from revgraph.errors import GraphError
from revgraph.expressions import leaves
from revgraph.program import Named, Program


@dataclass(slots=True)
class LogDets:
    """The sum so far, [N], of what the couplings of `nodes` add; `batch` is N."""

    nodes: frozenset[str]
    total: Tensor

    def add(self, log_det: Tensor, operation: PlannedOperation) -> None:
        """Add one coupling's log-determinant.

        Raises:
            GraphError: it is not one number a sample.
        """
        if log_det.shape != self.total.shape:
            raise GraphError(
                f"{operation.describe()} gives a log-determinant of shape {list(log_det.shape)}, and it "
                f"should be {list(self.total.shape)}, one number a sample: see its `couple_with_log_det`"
            )
        self.total = self.total + log_det


def join(
    net: nn.Module, operation: PlannedOperation, x: Tensor, term: Any, log_dets: LogDets | None
) -> Tensor:
    """A coupling's output; its log-determinant is added where that counts."""
    assert operation.law is not None
    if log_dets is None or operation.node not in log_dets.nodes:
        return operation.law.couple(net, x, term)
    y, log_det = operation.law.couple_with_log_det(net, x, term)
    if log_det is not None:
        log_dets.add(log_det, operation)
    return y


def begin(net: nn.Module, program: Program, env: dict[str, Any]) -> LogDets:
    """What to add log-determinants to in a forward whose inputs are in `env`.

    Raises:
        GraphError: as `couplings_of_bijection`.
    """
    inputs, nodes = couplings_of_bijection(net, program)
    return LogDets(nodes, zeros_like_batch(env[inputs[0]]))


def couplings_of_bijection(net: nn.Module, program: Program) -> tuple[list[str], frozenset[str]]:
    """The inputs on a net's streams, and the couplings that change volume between these and its outputs.

    Raises:
        GraphError: the net is no bijection from its streams to its outputs, or one of its couplings does not
            say how it changes volume.
    """
    graph = program.graph
    inputs, outputs = _stream_inputs(program), _outputs(program)
    if not inputs:
        raise GraphError(
            "no input of this net runs through couplings and wiring alone to an output, so it is no "
            f"bijection: {_first_boundary(program)}"
        )
    conditions = [name for name in (*graph.inputs, *program.numbers) if name not in inputs]
    moves = unwind(program, [*outputs, *conditions], inputs)
    sizes = [sum(math.prod(graph.value[name].shape) for name in names) for names in (inputs, outputs)]
    if sizes[0] != sizes[1]:
        raise GraphError(
            f"a log-determinant needs as many numbers out as in: inputs {', '.join(map(repr, inputs))} hold "
            f"{sizes[0]:,}, outputs {', '.join(map(repr, outputs))} {sizes[1]:,}"
        )
    undone = [move.operation for move in reversed(moves) if move.undone and move.operation.law is not None]
    for operation in undone:
        assert operation.law is not None
        if name := operation.law.tells_volume(net):
            where = graph.node[operation.node].where
            raise GraphError(
                f"coupling {operation.node!r} ({name}{f', {where}' if where else ''}) does not say how it "
                "changes volume. Give it a method `couple_with_log_det(x, term)` that returns the output and "
                "log |det dy/dx| per sample; of a revgraph.Bijection the module's forward returns both."
            )
    return inputs, frozenset(operation.node for operation in undone)


def zeros_like_batch(stream: Tensor) -> Tensor:
    """Zeros, one a sample, to add log-determinants to."""
    dtype = stream.dtype if stream.dtype == torch.float64 else torch.float32
    return torch.zeros(stream.shape[:1], dtype=dtype, device=stream.device)


def _outputs(program: Program) -> list[str]:
    """The values that the net returns."""
    named = (leaf.name for leaf in leaves(program.results) if isinstance(leaf, Named))
    return [name for name in dict.fromkeys(named) if name in program.graph.value]


def _stream_inputs(program: Program) -> list[str]:
    """The inputs that reach an output as couplings' targets and over wiring."""
    reaches = set(_outputs(program))
    for operation in reversed(program.operations):
        if operation.target is not None and not reaches.isdisjoint(operation.makes):
            reaches.add(operation.target)
        elif operation.rearrangement is not None and not reaches.isdisjoint(operation.makes):
            reaches.update(program.graph.node[operation.node].inputs)
    return [name for name in program.graph.inputs if name in reaches]


def _first_boundary(program: Program) -> str:
    """Where the way back from the outputs ends."""
    graph, pending = program.graph, _outputs(program)
    for name in pending:
        node = graph.producer[name]
        if node.kind == "boundary":
            place = f", {node.where}" if node.where else ""
            return f"node {node.name!r} ({node.expression}{place}) is a boundary, which cannot be undone"
        pending += [node.target] if node.target is not None else node.inputs
    return "it has no outputs that are computed of inputs"
