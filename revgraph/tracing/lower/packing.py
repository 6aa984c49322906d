"""Streams of a bijection side by side in one value, and taken out of it again.

A coupling has one target, and a bijection may change several streams at once. So these lie in one value,
which wirings make and take apart. Where one bijection takes what another gave, nothing is taken apart
(`drop_unread`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from revgraph.expressions import Call, Register, expression, leaves, taken_apart
from revgraph.graph import Node
from revgraph.joint_bijections import Packing
from revgraph.program import Named, Operation
from revgraph.rearrangements import Packed, Unpacked
from revgraph.tracing.lower.graph_builder import GraphBuilder
from revgraph.tracing.tracer import Tracer


class Packer:
    """Writes the wirings that pack streams, and remembers which streams lie in which value."""

    def __init__(self, tracer: Tracer, builder: GraphBuilder) -> None:
        self.tracer = tracer
        self.builder = builder
        self._packed: dict[tuple[str, ...], tuple[str, tuple[int, ...]]] = {}

    def holds(self, streams: tuple[str, ...]) -> bool:
        """Whether there is a value in which these lie."""
        return streams in self._packed

    def pack(self, path: str, streams: tuple[str, ...], packing: Packing, node: fx.Node) -> str:
        """The value in which these streams lie side by side: made by a wiring, unless there is one."""
        if len(streams) == 1 and packing.side_by_side:
            return streams[0]
        name, size = self._packed.get(streams, ("", ()))
        if size == packing.size:
            return name
        name = self.builder.unique(f"{path}.pack")
        like = self.builder.fakes[streams[0]]
        self.builder.add_value(name, self.tracer.keep(like.new_empty((len(like), *packing.size))))
        count = len(streams)
        call = Call("function", packing.pack, tuple(map(Register, range(count))), {}, count, ())
        run = expression((call,), count, (count,))
        text, where = f"pack({', '.join(streams)})", self.tracer.where.get(node, "")
        self.builder.nodes.append(Node(name, "wiring", streams, (name,), expression=text, where=where))
        self.builder.operations.append(Operation(name, run, streams, (name,), rearrangement=Packed(packing)))
        return name

    def unpack(self, packed: str, packing: Packing, node: fx.Node) -> tuple[str, ...]:
        """The streams that lie in a value, taken out of it by a wiring; one alone may be that value."""
        fake = self.builder.fakes[packed]
        if len(packing.sizes) == 1 and packing.side_by_side:
            return (packed,)
        name = self.builder.unique(f"{packed}.unpack")
        outputs = tuple(
            self.builder.add_value(self.builder.unique(f"{packed}.{index}"), self.tracer.keep(view))
            for index, view in enumerate(packing.unpack(fake))
        )
        run = taken_apart(packing.unpack, 1, len(outputs))
        text, where = f"unpack({packed})", self.tracer.where.get(node, "")
        self.builder.nodes.append(Node(name, "wiring", (packed,), outputs, expression=text, where=where))
        self.builder.operations.append(
            Operation(name, run, (packed,), outputs, rearrangement=Unpacked(packing))
        )
        self._packed[outputs] = (packed, tuple(fake.shape[1:]))
        return outputs

    def drop_unread(self, results: Any) -> None:
        """Leave streams side by side that one bijection takes from another."""
        builder = self.builder
        read = {name for operation in builder.operations for name in (*operation.reads, operation.target)}
        read |= {leaf.name for leaf in leaves(results) if isinstance(leaf, Named)}
        for outputs in self._packed:
            if read.isdisjoint(outputs):
                builder.remove(outputs)


def why_no_streams(
    streams: list[Any],
    conditions: Any,
    fakes: Mapping[fx.Node, Any],
    made: tuple[Tensor, ...],
) -> str:
    """Why a bijection that was called on these cannot be undone; "" where it can."""
    if not all(isinstance(each, fx.Node) and each.op != "get_attr" for each in streams):
        return "a stream is a parameter, a buffer or a constant, which nothing takes back"
    if len(set(streams)) < len(streams):
        return "one value is given as two streams"
    if set(streams) & {leaf for leaf in leaves(conditions) if isinstance(leaf, fx.Node)}:
        return "it reads a stream as a condition too"
    every = [*(fakes[each] for each in streams), *made]
    if len({each.dtype for each in every}) > 1 or len({each.device for each in every}) > 1:
        return "its streams are of several dtypes or devices"
    if any(not each.ndim for each in every) or len({len(each) for each in every}) > 1:
        return "its streams have different numbers of samples (dimension 0)"
    return ""
