"""Small graphs and plans made by hand, for the tests of drawing and reporting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import revgraph as rg
from revgraph.graph import Cost, Graph, Kind, Node, Value, verify
from revgraph.planning.plans import Decision, Plan


@dataclass
class Sketch:
    """Nodes and values as they are added; every node's outputs carry its name."""

    name: str
    nodes: list[Node] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)

    def add(
        self,
        name: str,
        kind: Kind,
        inputs: tuple[str, ...] = (),
        shapes: tuple[tuple[int, ...], ...] = (),
        *,
        target: str | None = None,
        expression: str = "",
        saved: int = 0,
    ) -> tuple[str, ...]:
        names = (name,) if len(shapes) == 1 else tuple(f"{name}.{index}" for index in range(len(shapes)))
        for value, shape in zip(names, shapes, strict=True):
            self.values.append(Value(value, shape, "float32", 4 * prod(shape), value))
        cost = Cost(saved_bytes=saved, saved_values=inputs, flops=1_000 * len(inputs))
        module = name if kind in ("coupling", "boundary") else ""
        self.nodes.append(Node(name, kind, inputs, names, module, target, expression, cost=cost))
        return names

    def couple(self, name: str, target: str, *others: str, saved: int = 0) -> str:
        shape = next(value.shape for value in self.values if value.name == target)
        text = f"{target} + {name.rsplit('.', 1)[-1]}({', '.join(others)})"
        return self.add(
            name, "coupling", (target, *others), (shape,), target=target, expression=text, saved=saved
        )[0]

    def graph(self) -> Graph:
        return verify(Graph(tuple(self.nodes), tuple(self.values), self.name))


def revnet(units: int = 3, name: str = "revnet-38", batch: int = 100) -> Graph:
    """A RevNet: stem, split, three stages (unit0 a boundary, then half-steps f and g), concat, head."""
    sketch = Sketch(name)
    (x,) = sketch.add("x", "input", (), ((batch, 3, 32, 32),))
    (x,) = sketch.add("stem", "boundary", (x,), ((batch, 32, 32, 32),), saved=2 * batch * 32 * 32 * 32 * 4)
    x1, x2 = sketch.add("split", "wiring", (x,), ((batch, 16, 32, 32),) * 2)
    for stage, (width, size) in enumerate(((16, 32), (32, 16), (56, 8)), 1):
        shape = (batch, width, size, size)
        saved = 4 * 4 * prod(shape)
        x1, x2 = sketch.add(
            f"stage{stage}.unit0",
            "boundary",
            (x1, x2),
            (shape, shape),
            expression="F(x2) + s(x1), G(y1) + s(x2)",
            saved=2 * saved,
        )
        for unit in range(1, units):
            x1 = sketch.couple(f"stage{stage}.unit{unit}.f", x1, x2, saved=saved)
            x2 = sketch.couple(f"stage{stage}.unit{unit}.g", x2, x1, saved=saved)
    (y,) = sketch.add("concat", "wiring", (x1, x2), ((batch, 112, 8, 8),))
    (y,) = sketch.add("head", "boundary", (y,), ((batch, 10),), saved=3 * batch * 112 * 64 * 4)
    sketch.add("output", "output", (y,))
    return sketch.graph()


def three_streams() -> Graph:
    """Three streams with a skip across a boundary, and a value that several nodes read."""
    sketch = Sketch("three-streams")
    (x,) = sketch.add("x", "input", (), ((4, 12, 8, 8),))
    (mask,) = sketch.add("mask", "input", (), ((4, 1, 8, 8),))
    a, b, c = sketch.add("split", "wiring", (x,), ((4, 4, 8, 8),) * 3)
    a1 = sketch.couple("enc.f", a, b, mask, saved=4096)
    b1 = sketch.couple("enc.g", b, c, saved=4096)
    c1 = sketch.couple("enc.h", c, a1, b1, saved=4096)
    (m,) = sketch.add("mid", "boundary", (c1,), ((4, 4, 8, 8),), saved=9000)
    a2 = sketch.couple("dec.f", a1, m, mask, saved=4096)
    b2 = sketch.couple("dec.g", b1, a2, c1, saved=4096)
    c2 = sketch.couple("dec.h", m, b2, saved=4096)
    (y,) = sketch.add("join", "wiring", (a2, b2, c2), ((4, 12, 8, 8),))
    sketch.add("output", "output", (y,))
    return sketch.graph()


def chain(blocks: int, name: str = "chain") -> Graph:
    """Two streams through `blocks` equal blocks of two half-steps, without any boundary."""
    sketch = Sketch(name)
    x1, x2 = (sketch.add(each, "input", (), ((2, 8),))[0] for each in ("x1", "x2"))
    for block in range(blocks):
        x1 = sketch.couple(f"blocks.{block}.f", x1, x2, saved=64)
        x2 = sketch.couple(f"blocks.{block}.g", x2, x1, saved=64)
    sketch.add("output", "output", (x1, x2))
    return sketch.graph()


def plan_for(
    graph: Graph,
    decide: Callable[[Node], Decision] | None = None,
    peak_at: str = "",
    stored: Iterable[str] = (),
    results: Mapping[str, Iterable[int]] | None = None,
    **changes: object,
) -> Plan:
    """A plan: couplings inverted but the last, boundaries kept; its peak and its operations are made up.

    `stored` are values to store besides, `changes` what else is as a test wants it.
    """
    last = [node.name for node in graph.planned][-1:]

    def usual(node: Node) -> Decision:
        return "invert" if node.kind == "coupling" and node.name not in last else "keep"

    decisions = {node.name: (decide or usual)(node) for node in graph.planned}
    plan = rg.decide(graph, decisions, anchors=stored, results=results)
    made_up = {
        "reasons": {name: "decided by hand for a test" for name in decisions},
        "peak_bytes": plan.held_bytes + plan.held_bytes // 5,
        "peak_at": peak_at or (graph.planned[len(graph.planned) // 2].name if graph.planned else ""),
        "flops_ratio": 1.25,
        "ordinary_bytes": 0,
    }
    return replace(plan, **made_up | changes)  # pyright: ignore[reportArgumentType]
