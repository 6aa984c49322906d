"""Routes: the path of every line, along lanes and straight across to the nodes that read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from revgraph.drawing.layout import Layout
from revgraph.drawing.subject import Subject
from revgraph.graph import Graph, Node

Point = tuple[float, float]
BESIDE = 9.0
"""How far an inversion runs beside the stream it undoes."""


@dataclass(frozen=True, slots=True)
class Route:
    """One line: what it carries, from where to where, and through which corners.

    A "stream" is the way from a coupling's target to its output and on, an "other" any further reading; an
    "inversion" leads back up. A `tap` begins on a lane, with a dot. `tail` and `head` are names of nodes, or
    of values where the line begins or ends at a value's tag (`tail_tag`, `head_tag`).
    """

    value: str
    kind: Literal["stream", "other", "inversion"]
    tail: str
    head: str
    points: tuple[Point, ...]
    tap: bool = False
    arrow: bool = True
    tail_tag: bool = False
    head_tag: bool = False


def find_routes(subject: Subject, layout: Layout) -> tuple[Route, ...]:
    """All lines of a drawing: of the values, then of the inversions."""
    graph = subject.graph
    sides = _Sides(graph, layout)
    forward = tuple(route for node in graph.nodes for route in _of_outputs(graph, layout, sides, node))
    return (*forward, *_inversions(subject, layout, forward))


class _Sides:
    """The heights at which lines meet the left and right sides of nodes, each line at its own."""

    def __init__(self, graph: Graph, layout: Layout) -> None:
        self._at: dict[tuple[str, str, bool], Point] = {}
        for node in graph.nodes:
            box = layout.nodes[node.name]
            meeting = [
                (_end_x(layout, name, node), name, False)
                for name in dict.fromkeys(node.inputs)
                if name not in layout.entries[node.name]
            ]
            meeting += [
                (layout.x[name], name, True) for name in node.outputs if name not in layout.exits[node.name]
            ]
            for side, lines in (
                (box.left, [line for line in meeting if line[0] < box.middle[0]]),
                (box.right, [line for line in meeting if line[0] >= box.middle[0]]),
            ):
                lines.sort(key=lambda line: (line[2], abs(line[0] - box.middle[0])))
                step = (box.bottom - box.top) / (len(lines) + 1)
                for place, (_, name, leaving) in enumerate(lines, 1):
                    self._at[node.name, name, leaving] = side, box.top + place * step

    def entry(self, node: Node, name: str) -> Point:
        """Where a value comes into a node from the side."""
        return self._at[node.name, name, False]

    def exit(self, node: Node, name: str) -> Point:
        """Where a value leaves a node at the side."""
        return self._at[node.name, name, True]


def _end_x(layout: Layout, name: str, reader: Node) -> float:
    """The x of the lane from which a node reads a value."""
    lane = layout.lanes.lane[name]
    return layout.bypass_x[name] if layout.lanes.row[reader.name] > lane.last else layout.x[name]


def _of_outputs(graph: Graph, layout: Layout, sides: _Sides, node: Node) -> Iterator[Route]:
    for name in node.outputs:
        lane, tag, box = layout.lanes.lane[name], layout.tags.get(name), layout.nodes[node.name]
        x = layout.x[name]
        start: tuple[Point, ...] = ((x, box.bottom),)
        if name not in layout.exits[node.name]:
            leave = sides.exit(node, name)
            start = (leave, (x, leave[1]))
        if tag is not None:
            yield Route(name, "stream", node.name, name, (*start, (x, tag.top)), arrow=False, head_tag=True)
            start = ((x, tag.bottom),)
        tail, tagged = (name, True) if tag is not None else (node.name, False)
        early = [each for each in graph.readers[name] if layout.lanes.row[each.name] <= lane.last]
        late = [each for each in graph.readers[name] if layout.lanes.row[each.name] > lane.last]
        for reader in early:
            ending = reader.name == lane.heir or (lane.heir is None and reader is early[-1])
            first = start if ending else ((x, sides.entry(reader, name)[1]),)
            if name in layout.entries[reader.name]:
                rest: tuple[Point, ...] = ((x, layout.nodes[reader.name].top),)
            else:
                enter = sides.entry(reader, name)
                rest = ((x, enter[1]), enter) if ending else (enter,)
            yield Route(
                name,
                _kind(reader, name, lane.heir),
                tail,
                reader.name,
                (*first, *rest),
                not ending,
                tail_tag=tagged,
            )
        if late:
            branch = layout.branch_y[name]
            side = layout.bypass_x[name]
            for reader in late:
                enter = sides.entry(reader, name)
                points: tuple[Point, ...] = ((side, enter[1]), enter)
                if reader is late[-1]:
                    points = ((x, branch), (side, branch), *points)
                yield Route(
                    name, _kind(reader, name, lane.heir), tail, reader.name, points, tap=True, tail_tag=tagged
                )


def _kind(reader: Node, name: str, heir: str | None) -> Literal["stream", "other"]:
    stream = reader.target == name or (reader.kind != "coupling" and reader.name == heir)
    return "stream" if stream else "other"


def _inversions(subject: Subject, layout: Layout, forward: tuple[Route, ...]) -> Iterator[Route]:
    if subject.plan is None:
        return
    made_from: Mapping[tuple[str, str], Route] = {
        (route.value, route.head): route for route in forward if not route.head_tag
    }
    for value in subject.graph.values:
        source = subject.plan.sources.get(value.name)
        if source is None or source.how not in ("inverted", "rewired"):
            continue
        route = made_from.get((value.name, subject.shown.get(source.node, "")))
        if route is None or route.head == route.tail:
            continue
        maker = subject.graph.producer[value.name].name
        yield Route(value.name, "inversion", route.head, maker, _back(route.points))


def _back(points: tuple[Point, ...]) -> tuple[Point, Point]:
    """The way back from a node to the lane that it read, beside the last piece of the way there."""
    (x, y), (end_x, end_y) = points[-2:]
    across, down = (BESIDE, 0.0) if x == end_x else (0.0, BESIDE / 2)
    return (end_x - across, end_y - down), (x - across, y - down)
