"""Rows: how far down every node, tag, branch and frame stands, in points from the top."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from revgraph.drawing.lanes import Lanes
from revgraph.drawing.stages import Frame
from revgraph.graph import Graph, Node

GAP = 17.0
BEFORE_TAG = 7.0
TAG = 15.0
TRACK = 9.0
FRAME_TOP = 24.0
FRAME_BOTTOM = 10.0


@dataclass(frozen=True)
class Rows:
    """Top and bottom of nodes, tags and frames, and the height at which each bypass leaves its lane."""

    nodes: dict[str, tuple[float, float]] = field(default_factory=dict)
    tags: dict[str, tuple[float, float]] = field(default_factory=dict)
    branches: dict[str, float] = field(default_factory=dict)
    frames: dict[Frame, tuple[float, float]] = field(default_factory=dict)


def stack(
    graph: Graph,
    lanes: Lanes,
    heights: Mapping[str, float],
    tagged: frozenset[str],
    frames: tuple[Frame, ...],
) -> Rows:
    """The rows of a graph whose nodes have these heights, and of which these values have tags."""
    rows = Rows()
    begin: dict[int, list[Frame]] = defaultdict(list)
    end: dict[int, list[Frame]] = defaultdict(list)
    for frame in frames:
        begin[frame.first].append(frame)
        end[frame.last].insert(0, frame)
    y = 0.0
    for first, nodes in _together(graph):
        for frame in begin[first]:
            rows.frames[frame] = (y, y)
            y += FRAME_TOP
        for node in nodes:
            rows.nodes[node.name] = (y, y + heights[node.name])
        y += max(heights[node.name] for node in nodes)
        y = _below(rows, lanes, tagged, nodes, y)
        for row in range(first, first + len(nodes)):
            for frame in end[row]:
                y += FRAME_BOTTOM
                rows.frames[frame] = (rows.frames[frame][0], y)
        y += GAP
    return rows


def _together(graph: Graph) -> Iterator[tuple[int, list[Node]]]:
    """The nodes in rows, each with its first index: inputs beside each other, the rest alone."""
    row: list[Node] = []
    for index, node in enumerate(graph.nodes):
        if row and not (node.kind == "input" and _runs_on(graph, row[-1])):
            yield index - len(row), row
            row = []
        row.append(node)
    if row:
        yield len(graph.nodes) - len(row), row


def _runs_on(graph: Graph, node: Node) -> bool:
    """Whether the next input may stand beside this node: it is an input too, and its lanes go on below it."""
    return node.kind == "input" and all(graph.readers[name] for name in node.outputs)


def _below(rows: Rows, lanes: Lanes, tagged: frozenset[str], nodes: list[Node], y: float) -> float:
    """Place what stands under nodes that end at `y`: tags side by side, then branches one by one."""
    outputs = [name for node in nodes for name in node.outputs]
    if any(name in tagged for name in outputs):
        top = y + BEFORE_TAG
        y = top + TAG
        rows.tags.update((name, (top, y)) for name in outputs if name in tagged)
    for name in outputs:
        if lanes.lane[name].bypass is not None:
            y += TRACK
            rows.branches[name] = y - 3.0
    return y
