"""Streams: what couplings change and give back, and where that begins."""

from __future__ import annotations

from dataclasses import dataclass

from revgraph.program import Operation, Program


@dataclass(frozen=True, slots=True)
class Streams:
    """The values that streams begin with, which no coupling made, and the wirings on the way from these."""

    beginnings: tuple[str, ...]
    wirings: tuple[Operation, ...]


def streams_of(program: Program) -> Streams:
    """Where the targets of a program's couplings come from, over any wiring."""
    makers = {name: operation for operation in program.operations for name in operation.makes}
    pending = [operation.target for operation in program.operations if operation.target is not None]
    beginnings: dict[str, None] = {}
    wirings: dict[str, Operation] = {}
    seen = set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        maker = makers.get(name)
        if maker is not None and maker.rearrangement is not None:
            wirings[maker.node] = maker
            pending += program.graph.node[maker.node].inputs
        elif maker is None or maker.target is None:
            beginnings[name] = None
    order = [value.name for value in program.graph.values]
    return Streams(tuple(name for name in order if name in beginnings), tuple(wirings.values()))
