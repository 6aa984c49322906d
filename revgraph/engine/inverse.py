"""The inverse of a net: its inputs from its outputs, where every node on the way can be undone.

The way back is a program of its own, written once: each coupling that is undone is a coupling again, whose
`couple` is the other's `uncouple`, with the net's output as its target. So the engine runs it as it runs the
net, inverting everything: it holds as little, and its gradients come the same way, flat in depth.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.engine.contexts import is_transformed
from revgraph.engine.executable import Executable
from revgraph.engine.forward import Forward
from revgraph.engine.inverse_order import Move, unwind
from revgraph.engine.log_det import LogDets, couplings_of_bijection, zeros_like_batch
from revgraph.engine.random_state import devices_of
from revgraph.errors import GraphError
from revgraph.expressions import Expression, ObjectForm, leaves, taken_apart
from revgraph.graph import Cost, Graph, Node, Value
from revgraph.planning.deciding import decide
from revgraph.program import Law, Named, Operation, Program
from revgraph.rearrangements import Rearrangement
from revgraph.tracing.arguments import fields_of

# Forwards whose replays are compared with them.
COMPARED, THEN_EVERY = 8, 16


class InverseNet:
    """The inverse of a program, for calls that give these inputs by name besides the outputs."""

    def __init__(self, program: Program, known: Sequence[str]) -> None:
        self.program = program
        self.known = known
        self.count = 0
        self._made: tuple[Program, Executable] | None = None

    def run(self, net: nn.Module, outputs: tuple[Any, ...], known: dict[str, Any], log_det: bool) -> Any:
        """What `ReversibleModule.inverse` and `inverse_with_log_det` return."""
        given = _given(self.program, outputs, known)
        log_dets = self._log_dets(net, given) if log_det else None
        program, executable = self._executable(net)
        with torch.random.fork_rng(devices_of(list(given.values()))):
            forward = Forward(net, executable, given, log_dets=log_dets, is_shielded=True)
            if torch.is_grad_enabled() and not is_transformed():
                forward.record(self.count < COMPARED or self.count % THEN_EVERY == 0)
                self.count += 1
            else:
                forward.run()
        found = tuple([forward[leaf.name] for leaf in leaves(program.results)])
        inputs = found[0] if len(found) == 1 else found
        return inputs if log_dets is None else (inputs, log_dets.total)

    def _executable(self, net: nn.Module) -> tuple[Program, Executable]:
        if self._made is None or not self._made[1].is_current():
            model = net.__dict__["_model"]
            program = _Writing(self.program, self.known, model).write()
            self._made = program, Executable(model, program, decide(program.graph, {}))
        return self._made

    def _log_dets(self, net: nn.Module, given: dict[str, Any]) -> LogDets:
        inputs, nodes = couplings_of_bijection(net, self.program)
        for name in inputs:
            if name in self.known:
                raise GraphError(f"input {name!r} follows from the outputs, and was given besides them")
        first = next(value for value in given.values() if isinstance(value, Tensor))
        return LogDets(nodes, zeros_like_batch(first))


def _given(program: Program, outputs: tuple[Any, ...], known: dict[str, Any]) -> dict[str, Any]:
    """The values that a call of the inverse gives, by name."""
    values: dict[str, Any] = {}
    form = program.results
    many = isinstance(form, (tuple, list)) and not (
        len(outputs) == 1 and isinstance(outputs[0], (tuple, list))
    )
    _read_results(form, outputs if many or len(outputs) != 1 else outputs[0], values)
    for name, value in known.items():
        if name not in program.graph.inputs and name not in program.numbers:
            inputs = (*program.graph.inputs, *program.numbers)
            raise GraphError(f"the net has no input {name!r}; its inputs are {', '.join(map(repr, inputs))}")
        values[name] = value
    return values


class _Writing:
    """Writes the program that leads from a net's outputs back to its inputs."""

    def __init__(self, program: Program, known: Sequence[str], model: nn.Module) -> None:
        self.program = program
        self.graph = program.graph
        self.model = model
        self.values = dict(program.graph.value)
        self.names: set[str] = set()
        named = (leaf.name for leaf in leaves(program.results) if isinstance(leaf, Named))
        self.given = tuple(dict.fromkeys([*named, *known]))
        self.wanted = tuple(name for name in program.graph.inputs if name not in known)

    def write(self) -> Program:
        moves = unwind(self.program, self.given, self.wanted)
        tensors = tuple(name for name in self.given if name in self.graph.value)
        operations: list[Operation] = []
        nodes: list[Node] = [Node("(given)", "input", (), tensors)]
        for move in moves:
            operation, node = self._undone(move) if move.undone else self._redone(move)
            operations.append(operation)
            nodes += [] if node is None else [node]
        nodes.append(Node("(found)", "output", self.wanted, ()))
        return Program(
            graph=Graph(tuple(nodes), tuple(self.values.values()), f"inverse of {self.graph.name}"),
            operations=tuple(operations),
            arguments={},
            results=tuple(Named(name) for name in self.wanted),
            numbers={name: None for name in self.given if name not in self.graph.value},
            differentiable=frozenset(),
            signature=inspect.Signature(),
        )

    def _undone(self, move: Move) -> tuple[Operation, Node]:
        operation, node = move.operation, self.graph.node[move.operation.node]
        if operation.law is not None and operation.target is not None:
            output, run = operation.makes[0], operation.expression
            undone = replace(
                operation,
                expression=replace(run, outputs=run.outputs[:1]),
                law=Undone(operation.law),
                target=output,
                makes=(operation.target,),
            )
            inputs = (output, *node.others)
            return undone, replace(
                node, inputs=inputs, outputs=(operation.target,), target=output, cost=Cost()
            )
        assert operation.rearrangement is not None
        makes = self._fresh(node.inputs, move.makes)
        unwired = Unwired(self.model, self.graph, node, operation.rearrangement)
        run = taken_apart(unwired, len(node.outputs), len(makes))
        again = None if set(operation.reads) - set(node.inputs) else Rewired(operation.expression)
        undone = Operation(node.name, run, node.outputs, makes, rearrangement=again)
        kind = "boundary" if again is None else "wiring"
        return undone, replace(node, kind=kind, inputs=node.outputs, outputs=makes, cost=Cost())

    def _redone(self, move: Move) -> tuple[Operation, Node | None]:
        operation = move.operation
        makes = self._fresh(operation.makes, move.makes)
        node = self.graph.node.get(operation.node)
        if node is not None:
            tensors = tuple(name for name in makes if name in self.values)
            node = replace(node, outputs=tensors, cost=Cost())
        return replace(operation, makes=makes), node

    def _fresh(self, names: Sequence[str], made: Sequence[str]) -> tuple[str, ...]:
        """The names, other ones for values that are there already."""
        found: list[str] = []
        for name in names:
            fresh = name
            if name not in made and name in self.values:
                fresh = f"{name}, again"
                self.values[fresh] = replace(self.values[name], name=fresh, storage=fresh)
            found.append(fresh)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Undone(Law):
    """A coupling rule the other way round: from the output to the target."""

    law: Law

    def couple(self, root: nn.Module, x: Tensor, term: Any) -> Tensor:
        return self.law.uncouple(root, x, term)

    def uncouple(self, root: nn.Module, y: Tensor, term: Any) -> Tensor:
        return self.law.couple(root, y, term)

    def couple_with_log_det(self, root: nn.Module, x: Tensor, term: Any) -> tuple[Tensor, Tensor | None]:
        target = self.law.uncouple(root, x, term)
        _, log_det = self.law.couple_with_log_det(root, target, term)
        return target, None if log_det is None else -log_det

    @property
    def evaluates_modules(self) -> bool:
        return self.law.evaluates_modules

    def modules(self, root: nn.Module) -> tuple[nn.Module, ...]:
        return self.law.modules(root)

    def tells_volume(self, root: nn.Module) -> str:
        return self.law.tells_volume(root)


@dataclass(frozen=True, slots=True)
class Rewired(Rearrangement):
    """Undoes a wiring that was undone: the wiring itself."""

    expression: Expression

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        return self.expression.run(root, outputs)


@dataclass(frozen=True, slots=True)
class Unwired:
    """A wiring undone, as a function of its outputs."""

    model: nn.Module
    graph: Graph
    node: Node
    rearrangement: Rearrangement

    def __call__(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Value] = dict(self.graph.value)
        traced = values[self.node.outputs[0]].shape
        same_batch = tuple(outputs[0].shape[:1]) == traced[:1]
        shapes = [values[name].shape for name in self.node.inputs]
        sizes = [torch.Size(shape if same_batch or not shape else (-1, *shape[1:])) for shape in shapes]
        try:
            return tuple(self.rearrangement.inverse(self.model, outputs, sizes))
        except RuntimeError as error:
            raise GraphError(
                f"wiring {self.node.name!r} ({self.node.expression}) cannot be undone at this batch size: "
                f"{error}. Trace the net with a batch of this size."
            ) from error


def _read_results(form: Any, given: Any, values: dict[str, Any]) -> None:
    if isinstance(form, Named):
        if not isinstance(given, Tensor):
            raise GraphError(
                f"output {form.name!r} is a tensor, and a {type(given).__name__} was given for it"
            )
        values[form.name] = given
    elif isinstance(form, ObjectForm):
        if type(given) is not form.kind:
            raise GraphError(f"the net returns a {form.kind.__name__}; give its inverse the same")
        fields = fields_of(given)
        for name, item in form.fields.items():
            _read_results(item, fields.get(name), values)
    elif isinstance(form, dict):
        if not isinstance(given, dict) or set(given) != set(form):
            raise GraphError(f"the net returns a dictionary with {sorted(form)}; give its inverse the same")
        for key, item in form.items():
            _read_results(item, given[key], values)
    elif isinstance(form, (tuple, list)):
        if not isinstance(given, (tuple, list)) or len(given) != len(form):
            count = len(given) if isinstance(given, (tuple, list)) else 1
            raise GraphError(f"the net returns {len(form)} outputs, and its inverse was given {count}")
        for item, part in zip(form, given, strict=True):
            _read_results(item, part, values)
