"""The inverse of a net: its inputs from its outputs, where every node on the way can be undone."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from revgraph.errors import GraphError, add_note
from revgraph.expressions import module_at
from revgraph.graph import Graph
from revgraph.program import Named, Operation, Program
from revgraph.runtime.context import ModuleState, RandomStream
from revgraph.runtime.unwinding import unwind


def invert(net: nn.Module, program: Program, outputs: tuple[Any, ...], known: dict[str, Any]) -> Any:
    """What `ReversibleModule.inverse` returns."""
    graph = program.graph
    values: dict[str, Any] = {}
    form = program.results
    many = isinstance(form, (tuple, list)) and not (
        len(outputs) == 1 and isinstance(outputs[0], (tuple, list))
    )
    _read_results(form, outputs if many or len(outputs) != 1 else outputs[0], values)
    for name, value in known.items():
        if name not in graph.inputs and name not in program.numbers:
            inputs = (*graph.inputs, *program.numbers)
            raise GraphError(f"the net has no input {name!r}; its inputs are {', '.join(map(repr, inputs))}")
        values[name] = value
    wanted = [name for name in graph.inputs if name not in known]
    for move in unwind(program, values, wanted):
        give = _undo if move.undone else _redo
        values.update(
            (name, value)
            for name, value in give(net, graph, move.operation, values).items()
            if name in move.makes
        )
    found = tuple(values[name] for name in wanted)
    return found[0] if len(found) == 1 else found


def _undo(net: nn.Module, graph: Graph, operation: Operation, values: dict[str, Any]) -> dict[str, Any]:
    """What a coupling's or a wiring's outputs give of its inputs."""
    if operation.law is not None:
        (output,), target = operation.makes, cast("str", operation.target)
        term = _evaluate(net, operation, [values[name] for name in operation.reads], graph)
        return {target: operation.law.uncouple(net, values[output], term[0] if term else None)}
    node = graph.node[operation.node]
    given = [values[name] for name in node.outputs]
    traced = graph.value[node.outputs[0]].shape
    same_batch = tuple(given[0].shape[:1]) == traced[:1]
    shapes = [graph.value[name].shape for name in node.inputs]
    sizes = [torch.Size(shape if same_batch or not shape else (-1, *shape[1:])) for shape in shapes]
    assert operation.rearrangement is not None
    try:
        inputs = operation.rearrangement.inverse(net, given, sizes)
    except RuntimeError as error:
        raise GraphError(
            f"wiring {node.name!r} ({node.expression}) cannot be undone at this batch size: {error}. "
            "Trace the net with a batch of this size."
        ) from error
    return dict(zip(node.inputs, inputs, strict=True))


def _redo(net: nn.Module, graph: Graph, operation: Operation, values: dict[str, Any]) -> dict[str, Any]:
    """What a node gives for inputs that are known (a condition's embedding, a sum of known streams)."""
    results = _evaluate(net, operation, [values[name] for name in operation.reads], graph)
    if operation.law is not None and operation.target is not None:
        term = results[0] if results else None
        results = (operation.law.couple(net, values[operation.target], term),)
    return dict(zip(operation.makes, results, strict=True))


def _evaluate(net: nn.Module, operation: Operation, inputs: list[Any], graph: Graph) -> tuple[Any, ...]:
    """The expression's results; buffers that it writes stay as they were.

    Raises:
        GraphError: it drew random numbers, so that it cannot give what the forward gave.
    """
    paths = operation.expression.module_paths
    modules = list(dict.fromkeys(module for path in paths for module in module_at(net, path).modules()))
    state = ModuleState(modules, every_buffer=True)
    random = RandomStream(inputs)
    try:
        with torch.random.fork_rng(random.devices), state.restored():
            before = random.before()
            results = operation.expression.run(net, inputs)
            drawn = random.drawn_since(before)
    except Exception as error:
        add_note(error, f"in the inverse of node {operation.node!r}")
        raise
    if drawn:
        raise GraphError(
            f"node {operation.node!r} draws random numbers, so its inverse is not the one of any forward. "
            "Call net.eval() before net.inverse, or take the dropout out."
        )
    return results


def _read_results(form: Any, given: Any, values: dict[str, Any]) -> None:
    if isinstance(form, Named):
        if not isinstance(given, Tensor):
            raise GraphError(
                f"output {form.name!r} is a tensor, and a {type(given).__name__} was given for it"
            )
        values[form.name] = given
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
