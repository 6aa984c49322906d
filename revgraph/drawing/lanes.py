"""Lanes: the column in which every value runs down the drawing, so that a stream is one straight line.

Nodes have a row each. A value runs from its maker to its *heir*: the coupling of which it is the target,
else the first boundary or wiring that reads it. Nodes that read it on the way tap its lane; nodes that read
it later are reached by a *bypass*, a second lane at the side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from revgraph.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Lane:
    """Where a value runs: its column from row `first` to `last`, and its bypass, if any, to `bypass_last`.

    Columns below `Lanes.trunk` are for streams, those from there on for bypasses and values that are only
    tapped. A `solo` value is alone in the drawing all its life, and runs in the middle.
    """

    column: int
    first: int
    last: int
    heir: str | None = None
    bypass: int | None = None
    bypass_last: int = -1
    solo: bool = False


@dataclass(frozen=True)
class Lanes:
    """The lanes of a graph's values, the rows of its nodes, and the number of columns that streams take."""

    lane: Mapping[str, Lane]
    row: Mapping[str, int]
    trunk: int


def find_lanes(graph: Graph) -> Lanes:
    """A lane for every value: streams keep their column, and no two lanes share one at the same row."""
    row = {node.name: index for index, node in enumerate(graph.nodes)}
    heirs = {value.name: _heir(graph, value.name) for value in graph.values}
    streams, aside = _Columns(), _Columns()
    places: dict[str, Lane] = {}
    bypasses: dict[str, int] = {}
    off_trunk: set[str] = set()
    for index, node in enumerate(graph.nodes):
        ending = [places[name].column for name in dict.fromkeys(node.inputs) if heirs[name] == node.name]
        for order, name in enumerate(node.outputs):
            heir = heirs[name]
            reads = [row[reader.name] for reader in graph.readers[name]]
            last = max(reads, default=index)
            end = row[heir] if heir is not None else last
            if node.kind == "input" and heir is None:
                off_trunk.add(name)
                column = aside.take(index, end)
            elif order < len(ending) and _continues(node, heirs):
                column = streams.take(index, end, ending[order])
            else:
                column = streams.take(index, end)
            places[name] = Lane(column, index, end, heir, bypass_last=last)
            if last > end:
                bypasses[name] = aside.take(index, last)
    trunk = max(streams.width, 1)
    solo = _solo(graph, places)
    lane: dict[str, Lane] = {}
    for name, place in places.items():
        bypass = bypasses[name] + trunk if name in bypasses else None
        column = place.column + trunk if name in off_trunk else place.column
        lane[name] = replace(place, column=column, bypass=bypass, solo=name in solo)
    return Lanes(lane, row, trunk)


class _Columns:
    """Columns handed out, each to one lane at a time."""

    def __init__(self) -> None:
        self._last: list[int] = []

    @property
    def width(self) -> int:
        return len(self._last)

    def take(self, row: int, last: int, column: int | None = None) -> int:
        """A column for a lane from `row` to `last`: the one asked for, else the first free one."""
        if column is None:
            column = next((place for place, end in enumerate(self._last) if end < row), len(self._last))
        if column == len(self._last):
            self._last.append(-1)
        self._last[column] = max(last, row)
        return column


def _heir(graph: Graph, name: str) -> str | None:
    readers = graph.readers[name]
    for reader in readers:
        if reader.target == name:
            return reader.name
    return next((reader.name for reader in readers if reader.kind != "coupling"), None)


def _continues(node: Node, heirs: Mapping[str, str | None]) -> bool:
    return node.kind != "coupling" or heirs[node.target or ""] == node.name


def _solo(graph: Graph, places: Mapping[str, Lane]) -> set[str]:
    """The values that are alone all their lives, as are all values of the same straight line."""
    single = _single(graph, places)
    line: dict[str, str] = {}
    company: set[str] = set()
    for node in graph.nodes:
        inputs = set(node.inputs)
        arriving = [name for name in inputs if places[name].heir == node.name]
        straight = len(arriving) == len(node.outputs) == 1
        for name in node.outputs:
            place = places[name]
            line[name] = line[arriving[0]] if straight else name
            rows = place.last - place.first
            alone = rows > 0 and single[place.last] - single[place.first] == rows
            if not alone or place.bypass_last > place.last or len(arriving) < len(inputs):
                company.add(line[name])
    return {name for name, first in line.items() if first not in company}


def _single(graph: Graph, places: Mapping[str, Lane]) -> list[int]:
    """For each row, how many of the gaps above it are crossed by exactly one lane, bypasses included."""
    change = [0] * (len(graph.nodes) + 1)
    for place in places.values():
        for end in {place.last, max(place.last, place.bypass_last)}:
            change[place.first] += 1
            change[end] -= 1
    alive, single = 0, [0]
    for each in change[:-1]:
        alive += each
        single.append(single[-1] + (alive == 1))
    return single
