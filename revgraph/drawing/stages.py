"""Stages: nodes whose dotted names begin alike, drawn in one frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from revgraph.drawing.lettering import DASH
from revgraph.drawing.subject import Block, Subject
from revgraph.graph import Graph

WHOLE = 0.6
"""The share of all nodes from which on a prefix says nothing and the next part of the names is used."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Consecutive nodes, from row `first` to row `last`, under a common name; a block lies inside a stage."""

    name: str
    first: int
    last: int
    count: int = 1
    block: bool = False


def stage_names(graph: Graph) -> Mapping[str, str]:
    """The stage of every node that is in one: the shortest prefix that tells parts of the graph apart."""
    prefixes = Counter(prefix for node in graph.nodes for prefix in _prefixes(node.name))
    stages: dict[str, str] = {}
    for node in graph.nodes:
        for prefix in _prefixes(node.name):
            if 2 <= prefixes[prefix] < WHOLE * len(graph.nodes):
                stages[node.name] = prefix
                break
    return stages


def frames(subject: Subject) -> tuple[Frame, ...]:
    """The frames around the drawn nodes, outer before inner."""
    row = {node.name: index for index, node in enumerate(subject.graph.nodes)}
    stages = stage_names(subject.full)
    blocks = [_block_frame(block, row, stages) for block in subject.blocks]
    found: list[Frame] = []
    for first, last in _runs([stages.get(node.name, "") for node in subject.graph.nodes]):
        name = stages.get(subject.graph.nodes[first].name, "")
        around = [block for block in blocks if first <= block.first and block.last <= last]
        whole = any(block.first == first and block.last == last for block in around)
        if name and last > first and not whole:
            found.append(Frame(name, first, last))
    return (*found, *blocks)


def nested(found: Iterable[Frame]) -> Mapping[Frame, tuple[Frame, ...]]:
    """The outermost frames, each with those inside it, from first to last."""
    inside: dict[Frame, tuple[Frame, ...]] = {}
    outer: Frame | None = None
    for frame in sorted(found, key=lambda frame: (frame.first, frame.block)):
        if outer is not None and frame.last <= outer.last:
            inside[outer] += (frame,)
        else:
            outer = frame
            inside[frame] = ()
    return inside


def short_names(subject: Subject) -> Mapping[str, str]:
    """What each drawn node is called inside its frames; a number that a block steps through is a star."""
    stages = stage_names(subject.full)
    short = {node.name: _below(node.name, stages.get(node.name, "")) for node in subject.graph.nodes}
    for block in subject.blocks:
        for name in block.nodes:
            inside = _below(name, block.last)
            if inside != name:
                short[name] = inside
            elif name.startswith(block.last):
                short[name] = _below(block.stem + "*", stages.get(name, ""))
    return short


def _block_frame(block: Block, row: Mapping[str, int], stages: Mapping[str, str]) -> Frame:
    stage = stages.get(block.nodes[0], "")
    name = f"{_below(block.first, stage)}{DASH}{block.last[len(block.stem) :]}"
    rows = [row[name] for name in block.nodes]
    return Frame(name, min(rows), max(rows), block.count, block=True)


def _prefixes(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts)))


def _below(name: str, prefix: str) -> str:
    return name[len(prefix) + 1 :] if prefix and name.startswith(prefix + ".") else name


def _runs(names: Sequence[str]) -> Iterable[tuple[int, int]]:
    first = 0
    for index in range(1, len(names) + 1):
        if index == len(names) or names[index] != names[first]:
            yield first, index - 1
            first = index
