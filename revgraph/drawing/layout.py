"""Layout: where every node, value tag and frame stands, in points from the top left corner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from revgraph.drawing.labels import node_lines, value_lines
from revgraph.drawing.lanes import Lanes, find_lanes
from revgraph.drawing.lettering import Line
from revgraph.drawing.rows import Rows, stack
from revgraph.drawing.stages import Frame, frames
from revgraph.drawing.subject import Subject
from revgraph.graph import Graph, Node

BETWEEN_COLUMNS = 34.0
BETWEEN_LINES = 16.0


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle with lines of text."""

    left: float
    top: float
    right: float
    bottom: float
    lines: tuple[Line, ...] = ()

    @property
    def middle(self) -> tuple[float, float]:
        """The point in its middle."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass(frozen=True)
class Layout:
    """The places of nodes and value tags by name, of frames, and of lanes.

    `x` and `bypass_x` are where the lane and the bypass of a value run, `branch_y` where one leaves the
    other. `entries` and `exits` are the inputs and outputs of each node that meet its box from above and from
    below; the others meet it at its sides.
    """

    nodes: Mapping[str, Box]
    tags: Mapping[str, Box]
    frames: Mapping[Frame, Box]
    x: Mapping[str, float]
    bypass_x: Mapping[str, float]
    branch_y: Mapping[str, float]
    entries: Mapping[str, frozenset[str]]
    exits: Mapping[str, frozenset[str]]
    lanes: Lanes


def lay_out(subject: Subject) -> Layout:
    """The layout of a drawing: a row for each node, a column for each stream."""
    graph, lanes = subject.graph, find_lanes(subject.graph)
    lines, tag_lines = node_lines(subject), value_lines(subject)
    room = {name: max(line.width for line in each) + 22 for name, each in lines.items()}
    wide = max((room[node.name] for node in graph.planned), default=60.0)
    wide = max(wide, 84.0)
    width = {
        node.name: room[node.name] if _small(node) else max(wide, room[node.name]) for node in graph.nodes
    }
    tag_width = {name: line.width + 22 for name, line in tag_lines.items()}
    columns = _column_places(graph, lanes, width, tag_width)
    middle = (columns[0] + columns[lanes.trunk - 1]) / 2
    x = {name: middle if lane.solo else columns[lane.column] for name, lane in lanes.lane.items()}
    bypass_x = {name: columns[lane.bypass] for name, lane in lanes.lane.items() if lane.bypass is not None}
    spans = _spans(graph, lanes, x, bypass_x, middle)
    found = frames(subject)
    heights = {node.name: _height(node, lines[node.name], spans[node.name]) for node in graph.nodes}
    rows = stack(graph, lanes, heights, frozenset(tag_lines), found)
    nodes = {
        node.name: Box(
            min(spans[node.name].xs) - width[node.name] / 2,
            rows.nodes[node.name][0],
            max(spans[node.name].xs) + width[node.name] / 2,
            rows.nodes[node.name][1],
            lines[node.name],
        )
        for node in graph.nodes
    }
    tags = {
        name: Box(
            x[name] - tag_width[name] / 2, top, x[name] + tag_width[name] / 2, bottom, (tag_lines[name],)
        )
        for name, (top, bottom) in rows.tags.items()
    }
    return Layout(
        nodes=nodes,
        tags=tags,
        frames=_frame_boxes(graph, found, rows, nodes, tags),
        x=x,
        bypass_x=bypass_x,
        branch_y=rows.branches,
        entries={name: span.entries for name, span in spans.items()},
        exits={name: span.exits for name, span in spans.items()},
        lanes=lanes,
    )


@dataclass(frozen=True, slots=True)
class _Span:
    """The lanes that a node's box stands over."""

    xs: tuple[float, ...]
    entries: frozenset[str]
    exits: frozenset[str]


def _column_places(
    graph: Graph, lanes: Lanes, width: Mapping[str, float], tag_width: Mapping[str, float]
) -> list[float]:
    """The x of every column: as wide as what stands on it, a little space between."""
    count = 1 + max((max(lane.column, lane.bypass or 0) for lane in lanes.lane.values()), default=0)
    widths = [0.0] * max(count, lanes.trunk)
    for node in graph.nodes:
        for name in (*node.inputs, *node.outputs):
            lane = lanes.lane[name]
            if name in node.outputs or lane.heir == node.name:
                widths[lane.column] = max(widths[lane.column], width[node.name], tag_width.get(name, 0.0))
    places = [widths[0] / 2]
    for index, (left, right) in enumerate(pairwise(widths), 1):
        between = BETWEEN_COLUMNS if (left and right) or index == lanes.trunk else BETWEEN_LINES
        places.append(places[-1] + left / 2 + between + right / 2)
    return places


def _spans(
    graph: Graph, lanes: Lanes, x: Mapping[str, float], bypass_x: Mapping[str, float], middle: float
) -> Mapping[str, _Span]:
    alive: dict[tuple[str, bool], float] = {}
    spans: dict[str, _Span] = {}
    for row, node in enumerate(graph.nodes):
        arriving = [name for name in dict.fromkeys(node.inputs) if lanes.lane[name].heir == node.name]
        foreign = [place for (name, bypass), place in alive.items() if bypass or name not in arriving]
        own = [x[name] for name in (*node.outputs, *arriving)] or [middle]
        xs = _reachable(own, foreign)
        spans[node.name] = _Span(
            xs,
            frozenset(name for name in arriving if x[name] in xs),
            frozenset(name for name in node.outputs if x[name] in xs),
        )
        for name in node.outputs:
            alive[name, False] = x[name]
            if name in bypass_x:
                alive[name, True] = bypass_x[name]
        for name, bypass in list(alive):
            if (lanes.lane[name].bypass_last if bypass else lanes.lane[name].last) <= row:
                del alive[name, bypass]
    return spans


def _reachable(own: list[float], foreign: list[float]) -> tuple[float, ...]:
    """Of the lanes that meet a node, those with no foreign lane between them and the first."""
    first = own[0]
    left = max((place for place in foreign if place < first), default=float("-inf"))
    right = min((place for place in foreign if place > first), default=float("inf"))
    return tuple(place for place in own if left < place < right)


def _small(node: Node) -> bool:
    """Whether a node is drawn no wider than its text: it stands on one lane, and no plan decides on it."""
    return node.kind in ("input", "output", "wiring") and max(len(node.inputs), len(node.outputs)) < 2


def _height(node: Node, lines: tuple[Line, ...], span: _Span) -> float:
    text = sum(line.height for line in lines)
    at_sides = len(set(node.inputs) - span.entries) + len(set(node.outputs) - span.exits)
    space = 5.0 if node.kind in ("coupling", "boundary") else 4.0
    return max(text + space, 9.0 * at_sides + 8.0)


def _frame_boxes(
    graph: Graph,
    found: tuple[Frame, ...],
    rows: Rows,
    nodes: Mapping[str, Box],
    tags: Mapping[str, Box],
) -> Mapping[Frame, Box]:
    edges: dict[Frame, tuple[float, float]] = {}
    for frame in found:
        inside = graph.nodes[frame.first : frame.last + 1]
        boxes = [nodes[node.name] for node in inside]
        boxes += [tags[name] for node in inside for name in node.outputs if name in tags]
        margin = 12.0 if frame.block else 22.0
        edges[frame] = min(box.left for box in boxes) - margin, max(box.right for box in boxes) + margin
    for block in (False, True):
        alike = [edges[frame] for frame in found if frame.block is block]
        for frame in found:
            if frame.block is block:
                edges[frame] = min(left for left, _ in alike), max(right for _, right in alike)
    return {
        frame: Box(edges[frame][0], rows.frames[frame][0], edges[frame][1], rows.frames[frame][1])
        for frame in found
    }
