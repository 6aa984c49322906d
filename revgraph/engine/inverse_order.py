"""Unwinding: in which order operations lead from a net's outputs back to its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from revgraph.errors import GraphError
from revgraph.graph import Graph
from revgraph.program import Operation, Program


@dataclass(frozen=True, slots=True)
class Move:
    """An operation on the way back: undone (inputs from outputs), or done again as in the forward.

    `makes` are the values that it gives.
    """

    operation: Operation
    undone: bool
    makes: tuple[str, ...]


def unwind(program: Program, given: Iterable[str], wanted: Sequence[str]) -> list[Move]:
    """The moves that lead from the given values to the wanted ones, and no others.

    Raises:
        GraphError: a boundary or a value that is not given lies on the way; the text names it.
    """
    graph = program.graph
    known = set(given)
    moves: list[Move] = []
    before = -1
    while len(moves) > before and not known.issuperset(wanted):
        before = len(moves)
        for operation in program.operations:
            makes = tuple(name for name in operation.makes if name not in known)
            if makes and _can_run(operation, known):
                moves.append(Move(operation, False, makes))
                known.update(makes)
        for operation in reversed(program.operations):
            if makes := _undone(graph, operation, known):
                moves.append(Move(operation, True, makes))
                known.update(makes)
    for name in wanted:
        if name not in known:
            raise _obstacle(graph, name, known)
    return _needed(graph, moves, wanted)


def _can_run(operation: Operation, known: set[str]) -> bool:
    return known.issuperset(operation.reads) and (operation.target is None or operation.target in known)


def _undone(graph: Graph, operation: Operation, known: set[str]) -> tuple[str, ...]:
    """What undoing an operation gives that is not known yet; nothing where it cannot be undone."""
    if operation.law is not None and operation.target is not None:
        can = known.issuperset((operation.makes[0], *operation.reads))
        return (operation.target,) if can and operation.target not in known else ()
    if operation.rearrangement is None:
        return ()
    node = graph.node[operation.node]
    return tuple(name for name in node.inputs if name not in known) if known.issuperset(node.outputs) else ()


def _needed(graph: Graph, moves: list[Move], wanted: Sequence[str]) -> list[Move]:
    """The moves without those that give nothing that is wanted or read later."""
    needed, kept = set(wanted), list[Move]()
    for move in reversed(moves):
        if needed.isdisjoint(move.makes):
            continue
        kept.append(move)
        operation = move.operation
        if not move.undone:
            needed.update(
                operation.reads if operation.target is None else (*operation.reads, operation.target)
            )
        elif operation.law is not None:
            needed.update((*operation.reads, *operation.makes))
        else:
            needed.update(graph.node[operation.node].outputs)
    return kept[::-1]


def _obstacle(graph: Graph, name: str, known: set[str]) -> GraphError:
    """Why an input cannot be computed: the first node after it that cannot be undone."""
    seen: set[str] = set()
    pending = [name]
    while pending:
        value = pending.pop(0)
        if value in seen:
            continue
        seen.add(value)
        for reader in graph.readers[value]:
            if reader.kind == "boundary":
                place = f", {reader.where}" if reader.where else ""
                return GraphError(
                    f"input {name!r} cannot be computed from the outputs: node {reader.name!r} "
                    f"({reader.expression}{place}) is a boundary, which cannot be undone. "
                    "Use couplings and wiring all the way, or invert the part behind it."
                )
            pending += reader.outputs
    unknown = [each for each in graph.inputs if each not in known]
    return GraphError(
        f"input {name!r} cannot be computed from the outputs alone; unknown are "
        f"{', '.join(map(repr, unknown))}. "
        f"Give those that are on no output's stream (a mask, a condition) by name: "
        f"net.inverse(..., {unknown[-1]}=...)"
    )
